"""Embeddings and labels from files: .npy, .npz, .pt, .csv and .parquet. Nothing in a file is executed."""

from __future__ import annotations

import csv
import pickle
import zipfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..messages import problem

Array = NDArray[Any]
ENDINGS = (".npy", ".npz", ".pt", ".pth", ".csv", ".parquet", ".txt")
EMBEDDINGS = ("embeddings", "embedding", "features", "x")
LABELS = ("labels", "label", "targets", "target", "class", "classes", "y")
"""Names of arrays and columns, in the order in which they are looked for; case does not matter."""


def read_embeddings(path: str | Path, labels: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """Embeddings and labels from a file, or from two.

    - ``.npy``: one array. ``.npz``, ``.pt``: arrays named ``embeddings`` and ``labels`` (or ``features``, ``x``,
      ``targets``, ``y``, …), or one matrix and one vector whatever their names; ``.pt`` also holds one tensor, or a
      pair. ``.pt`` is read with ``torch.load(weights_only=True)``, and no pickled object is read from any file.
    - ``.csv``, ``.parquet``: a row per sample, a column per feature, and a column ``label`` (``labels``, ``class``,
      ``target``, …). In ``.parquet`` the embeddings can also be one column of lists. A ``.csv`` without a header has
      its labels in the last column, unless they are in a file of their own.
    - ``.txt``, and a ``.csv`` of one column, for labels alone: one per line.

    Labels can be numbers or names; names are numbered in alphabetical order.

    Args:
        path: of the embeddings.
        labels: of the labels, if they are in another file; it takes the place of labels beside the embeddings.

    Returns:
        Embeddings ``(N, D)``, float32 (float64 if they are stored so), and int64 labels ``(N,)``.

    Raises:
        ValueError: an unknown kind of file, content that cannot be read, no matrix, no labels, other lengths.
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
    if labels.dtype.kind in "iub":
        return torch.from_numpy(labels.astype(np.int64))
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all() or (labels != np.trunc(labels)).any():
            got = f"such as {labels[~(labels == np.trunc(labels))][0]}"
            remedy = "group continuous targets first, with OtsuGrouper for instance"
            raise ValueError(problem("LABELS", "whole numbers or names", got, remedy))
        return torch.from_numpy(labels.astype(np.int64))
    return torch.from_numpy(np.unique(labels.astype(str), return_inverse=True)[1].astype(np.int64))


def _read(path: Path, want_labels: bool) -> tuple[Array | None, Array | None]:
    """A matrix and a vector of labels; None for what the file does not have."""
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        remedy = "save it with numpy.savez(FILE, embeddings=…, labels=…)"
        raise ValueError(problem(path.name, f"a file that ends in {', '.join(ENDINGS)}", ending or "no ending", remedy))
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, or no file")
    try:
        if ending == ".parquet":
            return _parquet(path)
        if ending == ".csv":
            return _csv(path, want_labels)
        if ending == ".txt":
            return None, _narrowed(np.array(path.read_text(encoding="utf-8-sig").split("\n"), dtype=str))
        if ending in (".pt", ".pth"):
            return _chosen(torch.load(path, map_location="cpu", weights_only=True))
        stored = np.load(path, allow_pickle=False)
        with stored if ending == ".npz" else _Nothing():
            return _chosen(dict(stored) if ending == ".npz" else stored)
    except ImportError:
        raise
    except (ValueError, OSError, EOFError, RuntimeError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        why = (str(error) or type(error).__name__).splitlines()[0][:200]
        remedy = "save arrays or tensors of numbers again, without other objects"
        raise ValueError(problem(path.name, f"a readable {ending} file", f"an error ({why})", remedy)) from error


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


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
        header = any(name in LABELS for name in names) or not all(map(_is_number, first[:-1]))
        at = _position(names) if header else len(names) - 1 if want_labels or not _is_number(first[-1]) else None
    columns = [i for i in range(len(names)) if i != at]
    how: dict[str, Any] = {"delimiter": ",", "quotechar": '"', "comments": None, "encoding": "utf-8-sig", "ndmin": 2}
    how["skiprows"] = int(header)
    matrix = np.loadtxt(path, dtype=np.float32, usecols=columns, **how) if columns else None
    if at is None:
        return matrix, None
    return matrix, _narrowed(np.loadtxt(path, dtype=str, usecols=[at], **how)[:, 0])


def _position(names: list[str]) -> int | None:
    return next((names.index(name) for name in LABELS if name in names), None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _narrowed(texts: Array) -> Array:
    """Numbers, if all lines are numbers; without empty lines at the end."""
    texts = np.char.strip(texts)
    filled = np.flatnonzero(texts != "")
    texts = texts[: filled[-1] + 1 if len(filled) else 0]
    return texts.astype(np.float64) if len(texts) and all(map(_is_number, texts)) else texts


def _parquet(path: Path) -> tuple[Array | None, Array | None]:
    try:
        pa, pq = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError("a .parquet file needs pyarrow: pip install pyarrow, or save an .npz file") from error
    read = pq.read_table(path)
    names = [name.lower() for name in read.column_names]
    at = _position(names)
    labels = None if at is None else np.array(read.column(at).to_pylist())
    lists = [i for i in range(len(names)) if i != at and pa.types.is_nested(read.schema.types[i])]
    if lists:
        chosen = next((i for i in lists if names[i] in EMBEDDINGS), lists[0])
        column = read.column(chosen).combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False)
        if len(column) == 0 or len(flat) % len(column) or len(set(map(len, column.to_pylist()[:1000]))) > 1:
            raise ValueError("its lists differ in length")
        rows: Array = flat.reshape(len(column), -1)
        return rows, labels
    numeric = [
        i
        for i in range(len(names))
        if i != at and (pa.types.is_floating(t := read.schema.types[i]) or pa.types.is_integer(t))
    ]
    if not numeric:
        return None, labels
    return np.stack([read.column(i).to_numpy() for i in numeric], axis=1), labels
