"""Embeddings and labels from files: .npy, .npz, .pt, .csv and .parquet. Nothing in a file is executed."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..messages import is_problem, problem, refuse_broken

Array = NDArray[Any]
ENDINGS = (".npy", ".npz", ".pt", ".pth", ".csv", ".parquet", ".txt")
EMBEDDINGS = ("embeddings", "embedding", "features", "x")
LABELS = ("labels", "label", "targets", "target", "class", "classes", "y")
"""Names of arrays and columns, in the order in which they are looked for; case does not matter."""
INDEX = re.compile(r"(unnamed: 0(\.\d+)?)?|__index_level_\d+__")
"""Names that pandas gives to the column of row numbers, in small letters."""


def read_embeddings(path: str | Path, labels: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """Embeddings and labels from a file, or from two.

    - ``.npy``: one array. ``.npz``, ``.pt``: arrays named ``embeddings`` and ``labels`` (or ``features``, ``x``,
      ``targets``, ``y``, …), or one matrix and one vector whatever their names; ``.pt`` also holds one tensor, or a
      pair. ``.pt`` is read with ``torch.load(weights_only=True)``, and no pickled object is read from any file.
    - ``.csv``, ``.parquet``: a row per sample, a column per feature, and a column ``label`` (``labels``, ``class``,
      ``target``, …). In ``.parquet`` the embeddings can also be one column of lists. A ``.csv`` without a header has
      its labels in the last column, unless they are in a file of their own. The index of a pandas table is left out,
      with a warning.
    - ``.txt``, and a ``.csv`` of one column, for labels alone: one per line.

    Labels can be whole numbers, which stay exact, or names, which are numbered in alphabetical order.

    Args:
        path: of the embeddings.
        labels: of the labels, if they are in another file; it takes the place of labels beside the embeddings.

    Returns:
        Embeddings ``(N, D)``, float32 (float64 if they are stored so), and int64 labels ``(N,)``.

    Raises:
        ValueError: an unknown kind of file, content that cannot be read, no matrix, no labels, other lengths; labels
            that are missing, not whole, not finite, or too large to be exact in their dtype.
        ImportError: ``.parquet`` without pyarrow.
        FileNotFoundError: a file is not there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", embeddings=np.eye(3), labels=["cat", "dog", "cat"])
        ...     read_embeddings(f"{folder}/a.npz")[1]
        tensor([0, 1, 0])
    """
    path = Path(path)
    matrix, beside = _read(path, want_labels=labels is None)
    if matrix is None:
        got = "none" if beside is None else f"an array of shape {beside.shape}"
        remedy = "store one row per sample, and name it 'embeddings' if there are several"
        raise ValueError(problem(f"{path.name}", "a file with a matrix of embeddings", got, remedy))
    if labels is not None:
        alone, beside = _read(Path(labels), want_labels=True)
        if beside is None and alone is not None and 1 in alone.shape:
            beside = alone.ravel()
    if beside is None:
        remedy = "pass a file of labels, too, or store them as 'labels' beside the embeddings"
        raise ValueError(problem("LABELS", "given", f"none in {Path(labels or path).name}", remedy))
    if matrix.dtype.kind not in "fiu":
        remedy = "leave out columns that are no features"
        raise ValueError(problem(path.name, "numbers, but for the labels", str(matrix.dtype), remedy))
    if len(beside) != len(matrix):
        remedy = "store one label per row"
        raise ValueError(problem("LABELS", f"of {len(matrix)} rows", f"{len(beside)} labels", remedy))
    exact = np.float64 if matrix.dtype == np.float64 else np.float32
    return torch.from_numpy(np.ascontiguousarray(matrix, exact)), _numbered(beside)


def _numbered(labels: Array) -> Tensor:
    """Labels as int64: whole numbers as they are, anything else numbered in its order."""
    expected = "whole numbers or names"
    if labels.dtype.kind == "f":
        exact = 2 / np.finfo(labels.dtype).eps  # the first number whose neighbour is not in the dtype
        wrong = ~np.isfinite(labels) | (labels != np.trunc(labels))
        if wrong.any():
            got = f"such as {labels[wrong][0]}"
            remedy = "group continuous targets first, with OtsuGrouper for instance"
            raise ValueError(problem("LABELS", expected, got, remedy))
        if (np.abs(labels) >= exact).any():
            got = f"{labels[np.abs(labels) >= exact][0]:.0f}, where {labels.dtype} skips numbers"
            raise ValueError(problem("LABELS", expected, got, "store them as int64, or as text"))
    elif labels.dtype == np.uint64 and (labels >= 2**63).any():
        labels = labels.astype(str)
    if labels.dtype.kind in "iubf":
        return torch.from_numpy(labels.astype(np.int64))
    missing = [i for i, label in enumerate(labels.tolist()) if label is None or label == ""]
    if missing:
        got = f"none in row {missing[0]}, counted from 0"
        raise ValueError(problem("LABELS", "one for each row", got, "leave out rows without a label"))
    return torch.from_numpy(np.unique(labels.astype(str), return_inverse=True)[1].astype(np.int64))


def _read(path: Path, want_labels: bool) -> tuple[Array | None, Array | None]:
    """A matrix and a vector of labels; None for what the file does not have."""
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        remedy = "save it with numpy.savez(FILE, embeddings=…, labels=…)"
        raise ValueError(problem(path.name, f"a file that ends in {', '.join(ENDINGS)}", ending or "no ending", remedy))
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, or is not a file")
    try:
        if ending == ".parquet":
            return _parquet(path)
        if ending == ".csv":
            return _csv(path, want_labels)
        if ending == ".txt":
            return None, _narrowed(np.array(path.read_text(encoding="utf-8-sig").split("\n"), dtype=str))
        if ending in (".pt", ".pth"):
            return _chosen(torch.load(path, map_location="cpu", weights_only=True))
        if ending == ".npy":
            return _chosen(np.load(path, allow_pickle=False))
        with np.load(path, allow_pickle=False) as stored:
            return _chosen(dict(stored))
    except Exception as error:  # for damaged files numpy and torch raise a dozen kinds
        if is_problem(error):
            raise
        why = (str(error) or type(error).__name__).splitlines()[0][:200]
        remedy = "save arrays or tensors of numbers again, without other objects"
        if ending == ".csv":
            remedy = "leave out columns of text other than the labels, and rows that are cut off"
        if isinstance(error, MemoryError):  # the size that a damaged file gives can be any number
            remedy = "pass fewer rows, or save the file again if this is not its size"
        raise ValueError(problem(path.name, f"a readable {ending} file", f"an error ({why})", remedy)) from error


def _chosen(content: Any) -> tuple[Array | None, Array | None]:
    """Matrix and labels of what an archive holds."""
    if isinstance(content, list | tuple) and all(isinstance(each, Tensor) for each in content):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping):
        content = {"0": content}
    arrays = {str(name).lower(): _array(each) for name, each in content.items()}
    matrices = {name: each for name, each in arrays.items() if each is not None and each.ndim == 2}
    vectors = {name: each for name, each in arrays.items() if each is not None and each.ndim == 1}
    return _named(matrices, EMBEDDINGS), _named(vectors, LABELS)


def _array(value: Any) -> Array | None:
    if isinstance(value, Tensor):
        value = value.detach()
        numbers: Array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        return numbers
    if isinstance(value, list) and value and isinstance(value[0], str | int):
        return np.array(value)
    return value if isinstance(value, np.ndarray) else None  # numbers, or text


def _named(arrays: Mapping[str, Array], names: tuple[str, ...]) -> Array | None:
    for name in names:
        if name in arrays:
            return arrays[name]
    return next(iter(arrays.values())) if len(arrays) == 1 else None


def _csv(path: Path, want_labels: bool) -> tuple[Array | None, Array | None]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        first = next(csv.reader(file), [])
    if not first:
        raise ValueError("it is empty")
    names = [each.strip().lower() for each in first]
    if len(names) == 1:
        header, at = names[0] in LABELS, 0 if want_labels else None
    else:
        named = any(name in LABELS for name in names) or not all(map(_is_number, first[:-1]))
        numbered = len(names) > 2 and names == [str(i) for i in range(len(names))]  # by pandas
        if numbered:
            said = f"{path.name}: its first line, 0 to {len(names) - 1}, is taken for the header of a pandas table"
            warnings.warn(said, stacklevel=4)  # where read_embeddings is called
        header = named or numbered
        at = _position(names) if named else len(names) - 1 if want_labels or not _is_number(first[-1]) else None
    columns = [i for i in range(len(names)) if i != at]
    if header and columns[:1] == [0] and INDEX.fullmatch(names[0]):
        _say_left_out(path, first[:1])
        columns = columns[1:]
    how: dict[str, Any] = {"delimiter": ",", "quotechar": '"', "comments": None, "encoding": "utf-8-sig", "ndmin": 2}
    how["skiprows"] = int(header)
    matrix = np.loadtxt(path, dtype=np.float32, usecols=columns, **how) if columns else None
    if at is None:
        return matrix, None
    return matrix, _narrowed(np.loadtxt(path, dtype=str, usecols=[at], **how)[:, 0])


def _say_left_out(path: Path, names: list[str]) -> None:
    said = f"{path.name}: left out {', '.join(map(repr, names))}, the index of a pandas table"
    warnings.warn(said, stacklevel=5)  # where read_embeddings is called


def _position(names: list[str]) -> int | None:
    return next((names.index(name) for name in LABELS if name in names), None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # Python reads 1_0 as 10


def _narrowed(texts: Array) -> Array:
    """Numbers, if all lines are numbers, and exact if they are whole; without empty lines at the end."""
    texts = np.char.strip(texts)
    filled = np.flatnonzero(texts != "")
    texts = texts[: filled[-1] + 1 if len(filled) else 0]
    if not len(texts) or not all(map(_is_number, texts)):
        return texts
    try:
        return texts.astype(np.int64)
    except (ValueError, OverflowError):  # not whole, or too large
        whole = all(text.lstrip("+-").isdigit() for text in texts.tolist())
        return texts if whole else texts.astype(np.float64)


def _parquet(path: Path) -> tuple[Array | None, Array | None]:
    try:
        pa, pq = import_module("pyarrow"), import_module("pyarrow.parquet")
        lengths_of = import_module("pyarrow.compute").list_value_length
    except ImportError as error:
        refuse_broken("pyarrow", error)
        raise ImportError("a .parquet file needs pyarrow: pip install pyarrow, or save an .npz file") from error
    read = pq.read_table(path)
    names = [name.lower() for name in read.column_names]
    types = read.schema.types
    at = _position(names)
    labels = None
    if at is not None:
        plain = pa.types.is_integer(types[at]) and not read.column(at).null_count  # others as Python has them
        labels = read.column(at).to_numpy() if plain else np.array(read.column(at).to_pylist())
    kinds = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    lists = [i for i, kind in enumerate(types) if i != at and any(is_kind(kind) for is_kind in kinds)]
    if lists:
        chosen = next((i for i in lists if names[i] in EMBEDDINGS), lists[0])
        column = read.column(chosen).combine_chunks()
        _check_lengths(f"{path.name}, column {read.column_names[chosen]!r}", lengths_of(column).to_pylist())
        rows: Array = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        return rows, labels
    numeric = [
        i for i, kind in enumerate(types) if i != at and (pa.types.is_floating(kind) or pa.types.is_integer(kind))
    ]
    stored = (read.schema.pandas_metadata or {}).get("index_columns", ())
    index = [i for i in numeric if read.column_names[i] in stored or INDEX.fullmatch(names[i])]
    if index:
        _say_left_out(path, [read.column_names[i] for i in index])
    features = [read.column(i).to_numpy() for i in numeric if i not in index]
    return np.stack(features, axis=1) if features else None, labels


def _check_lengths(column: str, lengths: list[int | None]) -> None:
    odd = next((i for i, length in enumerate(lengths) if not length or length != lengths[0]), None)
    if odd is not None:
        got = f"{lengths[odd] or 'no'} in row {odd}, counted from 0"
        remedy = "leave out rows whose embedding is missing or cut off"
        raise ValueError(problem(column, f"lists of one length ({lengths[0] or 'at least 1'})", got, remedy))
