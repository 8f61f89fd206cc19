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
        index_dir: folder of the index, if not ``root``; an index in ``root`` that is intact is used, too.
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
    index = _Index(annotations, base if index_dir is None else Path(index_dir), split, base)
    prefix = relative(images, base)
    for name, *texts, trouble in index.rows(tally, progress):
        tally.read()
        key = f"{split}/{name}"
        code = integer(texts[0])
        if code is not None:
            tally.category(code)
        if trouble:
            tally.drop(INCOMPLETE if trouble.startswith("no ") else BAD_ANNOTATION, f"{key}: {trouble}")
            continue
        labels = (number(texts[1]), number(texts[2]))
        if code is None or math.isnan(labels[0] + labels[1]):
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
        numbers: npt.NDArray[np.float32] = np.load(path, allow_pickle=False).astype(np.float32).reshape(68, 2)
    except (OSError, ValueError, EOFError) as error:
        got = f"{type(error).__name__}: {error}"
        raise LabelFileError(problem(f"{path}", "136 numbers", got, "restore the file")) from error
    return numbers


class _Index:
    """The labels of one part in one file, built once and checked each time it is read; perhaps already in ``base``."""

    def __init__(self, annotations: Path, folder: Path, split: str, base: Path) -> None:
        self.annotations, self.split = annotations, split
        self.path, self.there = folder / index_name(split), base / index_name(split)
        self.present = {name for name in os.listdir(annotations) if not litter(name)}
        found = {match[1] for name in self.present if (match := re.fullmatch(r"(.+)_(exp|val|aro)\.npy", name))}
        self.names = sorted(found, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name))
        names = hashlib.sha256("\n".join(self.names).encode()).hexdigest()
        self.head = f"# adaptive-margin index {INDEX_FORMAT}; rows {len(self.names)}; names {names}"

    def rows(self, tally: Tally, progress: Progress | None) -> list[list[str]]:
        """Identifier, expression, valence and arousal as text, and what is wrong or "", of every row, by number."""
        why = ""
        for path in dict.fromkeys((self.path, self.there)):
            found, trouble = self._read(path)
            if found is not None:
                return found
            why = why or trouble
        rows: list[list[str]] = []
        for name in self.names:
            rows.append(self._annotation(name))
            if progress is not None:
                progress(len(rows), len(self.names))
        if why:
            tally.note(f"the index {self.path.name} was made again: {why}")
        lines = [",".join([self.split, *cells[:4], cells[4].replace(",", ";")]) for cells in rows]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = "\n".join([self.head, "split,id,exp,val,aro,problem", *lines, ""])
            write_atomically(self.path, content.encode())
        except OSError as error:
            remedy = "pass index_dir= (check: --index-dir; training: --cache) to read the annotations only once"
            tally.note(f"no index could be kept ({error.strerror}): {remedy}")
        return rows

    def _annotation(self, name: str) -> list[str]:
        cells, trouble = [name], ""
        for file in (f"{name}_{field}.npy" for field in _FIELDS):
            why = "" if file in self.present else f"no {file}"
            try:
                cells.append("" if why else _text(np.load(self.annotations / file, allow_pickle=False)))
            except (OSError, ValueError, EOFError) as error:
                cells.append("")
                why = f"{file}: {' '.join(str(error).split())}"
            trouble = trouble or why
        return [*cells, trouble]

    def _read(self, path: Path) -> tuple[list[list[str]] | None, str]:
        """The index, or ``None`` and why it cannot be used ("" if there is none)."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None, ""
        except (OSError, UnicodeDecodeError) as error:
            return None, f"it cannot be read ({error})"
        head, _, *lines = [*text.splitlines(), "", ""]
        if head != self.head:
            return None, "it lists other identifiers than the folder has"
        rows = list(csv.reader(lines[:-2]))
        if len(rows) != len(self.names) or not text.endswith("\n"):
            return None, f"it has {len(rows):,} rows and not {len(self.names):,}"
        step = max(1, len(rows) // _SPOT_CHECKS)
        for place, (name, cells) in enumerate(zip(self.names, rows, strict=True)):
            if len(cells) != 6 or cells[:2] != [self.split, name]:
                return None, f"row {place + 1} is damaged"
            if (cells[5] or place % step == 0) and self._annotation(name)[:4] != cells[1:5]:
                return None, f"the annotations of {name} have changed"
        return [cells[1:] for cells in rows], ""


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
