"""AffectNet, the reduced release of 2021 and later: 224-pixel face crops and one ``.npy`` file per annotation.

Codes 0 to 7 only. Identifiers are row numbers of an older list: not contiguous, and the same numbers occur in both
parts. Do not mix this release with that of 2017: the crops differ, the validation set has one row fewer (3,999), and
"none" is left out.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..atomic import write_atomically
from ..images._layout import Folders, checked_root, first_nested, litter, relative, wrong_layout
from ..images.decode import Progress
from ..images.errors import MISSING, LabelFileError
from ..messages import check_choice, counted, problem
from ._cells import check_expressions, integer, number
from ._derived import refuse_derived_copy
from .records import Record, RecordBuilder
from .report import BAD_ANNOTATION, INCOMPLETE, NOT_A_NUMBER, LoadedSplit, Tally, require_rows

NAME = "affectnet-reduced"
SPLITS = ("train", "validation")
INDEX_FORMAT = 1

LAYOUT = """\
  AffectNet/
    train_set/
      images/<id>.jpg
      annotations/<id>_exp.npy, <id>_val.npy, <id>_aro.npy, <id>_lnd.npy
    val_set/
      images/…, annotations/…"""

_FOLDERS = {"train": "train_set", "validation": "val_set"}
_FIELDS = ("exp", "val", "aro")
_SPOT_CHECKS = 64


def find_part(root: Path, split: str) -> Path | None:
    """The folder of a split, or ``None``."""
    names = (_FOLDERS[split],)
    for levels in (names, ("AffectNet", *names)):
        folder = first_nested(root, *levels)
        if folder is not None and first_nested(folder, "annotations") is not None:
            return folder
    return None


def index_name(split: str) -> str:
    """The name of the index file with the labels of a split."""
    return f"adaptive_margin_index_{split}.csv"


def load_affectnet_reduced(
    root: str | os.PathLike[str],
    split: str,
    *,
    expressions: Collection[int] = range(8),
    skip_unreadable: int | float = 0,
    index_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> LoadedSplit:
    """The usable rows of a part of the reduced release.

    More than a million small files hold the labels. They are read once into an index, a CSV next to the data
    (``adaptive_margin_index_<split>.csv``), which is then used as long as it lists exactly the existing identifiers and
    a sample of annotations still matches it.

    Args:
        root: the folder with ``train_set`` and ``val_set``.
        split: ``"train"`` or ``"validation"``.
        expressions: the codes to keep; by default 0 to 7.
        skip_unreadable: how many rows may lack their image or one of their annotations, or have a damaged one: a
            number, or a share of the rows.
        index_dir: folder of the index, if not ``root``.
        progress: called with (annotations read, total) while the index is built.

    Returns:
        ``(records, report)``; keys are ``"train/417"``, all identities are ``None``.

    Raises:
        LayoutError: the folders do not exist; :class:`DerivedCopyError` if ``root`` is another data set made from
            AffectNet.
        UnreadableError: more rows are damaged than allowed.
        ValueError: an unknown option, or no usable row.
    """
    check_choice("split", split, SPLITS)
    wanted = check_expressions(expressions, "range(8) has the eight emotions, all that this release has")
    base = checked_root(root, "AffectNet (reduced release)", LAYOUT)
    part = find_part(base, split)
    images = None if part is None else first_nested(part, "images")
    if part is None or images is None:
        refuse_derived_copy(base)
        missing = f"{_FOLDERS[split]}/{'annotations' if part is None else 'images'}/"
        raise wrong_layout(base, "AffectNet (reduced release)", LAYOUT, missing)
    tally, rows, listings = Tally(NAME, split), RecordBuilder(NAME, base), Folders()
    annotations = first_nested(part, "annotations")
    assert annotations is not None  # find_part looked
    index = _Index(annotations, Path(index_dir) if index_dir is not None else base, split)
    prefix = relative(images, base)
    for name, texts, trouble in index.rows(tally, progress):
        tally.read()
        key = f"{split}/{name}"
        code = None if texts[0] is None else integer(texts[0])
        if code is not None:
            tally.category(code)
        if trouble:
            tally.drop(INCOMPLETE if trouble.startswith("no ") else BAD_ANNOTATION, f"{key}: {trouble}")
            continue
        labels = (number(texts[1]), number(texts[2]))
        if code is None or math.isnan(labels[0]) or math.isnan(labels[1]):
            tally.drop(NOT_A_NUMBER, f"{key}: {texts}")
            continue
        if not tally.keeps(labels, code, wanted, key):
            continue
        file = listings.find(images, f"{name}.jpg")
        if file is None:
            tally.drop(MISSING, f"{key}: {prefix}/{name}.jpg")
            continue
        rows.add(key, f"{prefix}/{file}", labels, expression=code)
    known = set(index.names)
    orphans = sum(1 for file in listings.images(images) if os.path.splitext(file)[0] not in known)
    if orphans:
        tally.note(f"{counted(orphans, 'image')} without an annotation left out")
    return require_rows(tally.finish(rows.build(), skip_unreadable))


def read_landmarks(record: Record) -> npt.NDArray[np.float32]:
    """The 68 landmarks of a face of this release, read on demand.

    Returns:
        x and y in pixels of the crop, shape ``(68, 2)``, whether stored flat, in pairs, or as text.

    Raises:
        LabelFileError: there are none, they are damaged, or they are stored as Python objects (which may run code).
    """
    path = record.path.parent.parent / "annotations" / f"{record.path.stem}_lnd.npy"
    try:
        numbers: npt.NDArray[np.float32] = np.load(path, allow_pickle=False).astype(np.float32).reshape(-1, 2)
    except (OSError, ValueError, EOFError) as error:
        got = f"{type(error).__name__}: {error}"
        raise LabelFileError(problem(f"{path}", "136 numbers", got, "restore the file")) from error
    if numbers.shape != (68, 2):
        raise LabelFileError(problem(f"{path}", "136 numbers", f"{numbers.size}", "restore the file"))
    return numbers


class _Index:
    """The labels of one part in one file, built once and checked each time it is read."""

    def __init__(self, annotations: Path, folder: Path, split: str) -> None:
        self.annotations, self.split = annotations, split
        self.path = folder / index_name(split)
        present: dict[str, set[str]] = {}
        for name in os.listdir(annotations):
            match = re.fullmatch(r"(.+)_(exp|val|aro)\.npy", name)
            if match and not litter(name):
                present.setdefault(match[1], set()).add(match[2])
        self.present = present
        self.names = sorted(present, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name))
        self.fingerprint = hashlib.sha256("\n".join(self.names).encode()).hexdigest()

    def rows(self, tally: Tally, progress: Progress | None) -> list[tuple[str, list[str | None], str]]:
        """(identifier, [expression, valence, arousal] as text, what is wrong or "") of every row, by number."""
        found, why = self._read()
        if found is not None:
            return found
        found = []
        for done, name in enumerate(self.names, 1):
            found.append((name, *self._annotation(name)))
            if progress is not None:
                progress(done, len(self.names))
        if why:
            tally.note(f"the index {self.path.name} was made again: {why}")
        try:
            self._write(found)
        except OSError as error:
            remedy = "pass index_dir= (check: --index-dir; training: --cache) to read the annotations only once"
            tally.note(f"no index could be kept ({error.strerror}): {remedy}")
        return found

    def _annotation(self, name: str) -> tuple[list[str | None], str]:
        texts: list[str | None] = []
        trouble = ""
        for field in _FIELDS:
            if field not in self.present[name]:
                texts.append(None)
                trouble = trouble or f"no {name}_{field}.npy"
                continue
            try:
                texts.append(_text(np.load(self.annotations / f"{name}_{field}.npy", allow_pickle=False)))
            except (OSError, ValueError, EOFError) as error:
                texts.append(None)
                detail = " ".join(str(error).split())
                trouble = trouble or f"{name}_{field}.npy: {detail}"
        return texts, trouble

    def _write(self, rows: list[tuple[str, list[str | None], str]]) -> None:
        lines = [f"# adaptive-margin index {INDEX_FORMAT}; rows {len(rows)}; names {self.fingerprint}"]
        lines.append("split,id,exp,val,aro,problem")
        for name, texts, trouble in rows:
            cells = [self.split, name, *("" if text is None else text for text in texts), trouble.replace(",", ";")]
            lines.append(",".join(cells))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, ("\n".join(lines) + "\n").encode())

    def _read(self) -> tuple[list[tuple[str, list[str | None], str]] | None, str]:
        """The index, or ``None`` and why it cannot be used ("" if there is none)."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None, ""
        except (OSError, UnicodeDecodeError) as error:
            return None, f"it cannot be read ({error})"
        lines = text.splitlines()
        expected = f"# adaptive-margin index {INDEX_FORMAT}; rows {len(self.names)}; names {self.fingerprint}"
        if not lines or lines[0] != expected:
            return None, "it lists other identifiers than the folder has"
        if len(lines) != len(self.names) + 2 or not text.endswith("\n"):
            return None, f"it has {max(0, len(lines) - 2):,} rows and not {len(self.names):,}"
        rows: list[tuple[str, list[str | None], str]] = []
        for cells in csv.reader(lines[2:]):
            if len(cells) != 6 or cells[0] != self.split:
                return None, f"row {len(rows) + 1} is damaged"
            rows.append((cells[1], [cell or None for cell in cells[2:5]], cells[5]))
        if [row[0] for row in rows] != self.names:
            return None, "it lists other identifiers than the folder has"
        step = max(1, len(rows) // _SPOT_CHECKS)
        for place, (name, texts, trouble) in enumerate(rows):
            if (trouble or place % step == 0) and self._annotation(name)[0] != texts:
                return None, f"the annotations of {name} have changed"
        return rows, ""


def _text(array: npt.NDArray[Any]) -> str:
    """The one value of an annotation as text: shape () or (1,), number or text.

    Example:
        >>> [_text(np.array(value)) for value in ("-0.25", 0.5, [3], b"1")]
        ['-0.25', '0.5', '3', '1']
    """
    if array.shape not in ((), (1,)):
        raise ValueError(f"shape {array.shape}, not a single value")
    value = array.item()
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return text.strip().replace(",", ";")
