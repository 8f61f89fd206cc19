"""AffectNet, the 2017 release: full images and CSV lists (Mollahosseini, Hasani & Mahoor 2017).

Expression codes: 0 neutral, 1 happy, 2 sad, 3 surprise, 4 fear, 5 disgust, 6 anger, 7 contempt, 8 none, 9 uncertain,
10 no face. Codes 9 and 10 have −2 in place of valence and arousal; 8 ("none" of the emotions) has real ones, so
regression uses 0 to 8, while papers that also classify use 0 to 7: say which, because the figures differ. The test set
was never released, and everybody tests on the validation set: hold out part of training to choose an epoch
(:func:`~adaptive_margin.affect.splits.stratified_holdout`). People are not identified.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ..images._layout import Folders, checked_root, nested, relative, subfolders, wrong_layout
from ..images.errors import MISSING, LabelFileError
from ..images.image_list import Box
from ..messages import check_choice, counted, problem
from ._cells import check_expressions, integer, landmark_box, number
from ._derived import refuse_derived_copy
from .records import RecordBuilder
from .report import BAD_ANNOTATION, NO_FACE, LoadedSplit, Tally, require_rows

NAME = "affectnet-2017"
SPLITS = ("train", "validation", "automatic")

LAYOUT = """\
  AffectNet/
    Manually_Annotated_file_lists/      (or Manually_Annotated/, or the root itself)
      training.csv, validation.csv
    Manually_Annotated_Images/          (or Manually_Annotated/Manually_Annotated_Images/)
      1/ … 1000/<56 hexadecimal digits>.jpg
    Automatically_annotated_file_list/automatically_annotated.csv    (optional)
    Automatically_Annotated_Images/1/ …                              (optional)"""

COLUMNS = (
    "subDirectory_filePath",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    "expression",
    "valence",
    "arousal",
)
_FOLDED = [name.casefold() for name in COLUMNS]

_FILES = {"train": "training.csv", "validation": "validation.csv", "automatic": "automatically_annotated.csv"}
# how the folders' names begin, in any letter case
_OUTER = {"train": "Manually_Annotated", "validation": "Manually_Annotated", "automatic": "Automatically_Annotated"}


def find_list(root: Path, split: str) -> Path | None:
    """The CSV list of a split in either spelling of the folders, or ``None``."""
    for folder in _places(root, split, "file_list", "file_lists"):
        for name in sorted(os.listdir(folder)):
            if name.casefold() == _FILES[split] and (folder / name).is_file():
                return folder / name
    return None


def find_images(root: Path, split: str) -> Path | None:
    """The folder to which the paths of a split's list are relative: one with numbered folders; or ``None``."""
    places = _places(root, split, "Images")
    return next((each for each in places if any(inner.name.isdecimal() for inner in subfolders(each))), None)


def _places(root: Path, split: str, *parts: str) -> Iterator[Path]:
    """Folders that may contain a part of the release, the most specific first."""
    outer = _OUTER[split]
    names = [f"{outer}_{part}" for part in parts]
    for base in (root, *nested(root, "AffectNet")):
        yield from nested(base, names)
        yield from nested(base, outer, names)
        yield from nested(base, outer)
        yield base


def is_affectnet_2017(root: Path) -> bool:
    """Whether ``root`` has one of this release's lists with the right columns."""
    for path in filter(None, (find_list(root, split) for split in SPLITS)):
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if _columns(next(csv.reader(file), [])) is not None:
                return True
    return False


def load_affectnet_2017(
    root: str | os.PathLike[str],
    split: str,
    *,
    expressions: Collection[int] = range(9),
    crop: str = "box",
    margin: float = 1.25,
    skip_unreadable: int | float = 0,
) -> LoadedSplit:
    """The usable rows of a list of the 2017 release.

    Columns are read by name. The key of a row is its split and number, ``"train/000417"``, because a picture with
    several faces has several rows. A row is dropped if its labels are not numbers or are −2, if its expression is not
    requested, if it has no face box (width ≤ 0 or ``NULL``), or if its file is missing; it is counted under the first
    reason that applies. A file that exists with another extension, or in another case, is used and counted in a note.

    Args:
        root: the folder with the lists and images, in either spelling of their names.
        split: ``"train"``, ``"validation"`` or ``"automatic"`` (the machine-made labels, which few papers use).
        expressions: the codes to keep; by default 0 to 8, all that have labels.
        crop: ``"box"`` for the list's face box, ``"landmarks"`` for the square around the landmarks,
            ``"none"`` for the stored image, a loose crop of the head.
        margin: side of that square, as a multiple of the landmarks' extent.
        skip_unreadable: how many rows may lack their file: a number, or a share of the rows.

    Returns:
        ``(records, report)``; all identities are ``None``.

    Raises:
        LayoutError: lists or images do not exist; :class:`DerivedCopyError` if ``root`` is another data set made from
            AffectNet.
        LabelFileError: the list has other columns.
        UnreadableError: more rows lack their file than allowed.
        ValueError: an unknown option, or no usable row.
    """
    check_choice("split", split, SPLITS)
    check_choice("crop", crop, ("box", "landmarks", "none"))
    wanted = check_expressions(expressions, "range(9) has all labelled faces, range(8) the eight emotions")
    base = checked_root(root, "AffectNet (2017 release)", LAYOUT)
    path, images = find_list(base, split), find_images(base, split)
    if path is None or images is None:
        refuse_derived_copy(base)
        missing = _FILES[split] if path is None else f"{_OUTER[split]}_Images/"
        raise wrong_layout(base, "AffectNet (2017 release)", LAYOUT, missing)
    tally, rows = Tally(NAME, split), RecordBuilder(NAME, base)
    listings, prefix = Folders(), relative(images, base)
    respelt, repeated = 0, 0
    seen: set[str] = set()
    for row, line, cells in _rows(path, tally):
        tally.read()
        name = f"{path.name} line {line}"
        if None in cells.values():
            there = sum(cell is not None for cell in cells.values())
            tally.drop(BAD_ANNOTATION, f"{name}: {there} of {len(cells)} columns")
            continue
        code = integer(cells["expression"])
        if code is None or not 0 <= code <= 10:
            tally.drop(BAD_ANNOTATION, f"{name}: expression {cells['expression']!r}")
            continue
        tally.category(code)
        labels = (number(cells["valence"]), number(cells["arousal"]))
        if not tally.keeps(labels, code, wanted, name):
            continue
        box = _box(cells, crop, margin)
        if box is None and crop != "none":
            tally.drop(NO_FACE, name)
            continue
        stated = cells["subdirectory_filepath"].strip().replace("\\", "/")
        folder, _, file = stated.rpartition("/")
        found = listings.find(images / folder, file)
        if found is None:
            tally.drop(MISSING, f"{name}: {stated}")
            continue
        respelt += found != file
        actual = f"{folder}/{found}" if folder else found
        repeated += actual in seen
        seen.add(actual)
        file_path = actual if prefix == "." else f"{prefix}/{actual}"
        rows.add(f"{split}/{row:06d}", file_path, labels, box=box, expression=code)
    if respelt:
        tally.note(f"{counted(respelt, 'file')} found with another extension or letter case than in the list")
    if repeated:
        tally.note(f"{counted(repeated, 'row')} of a further face in the picture of an earlier row")
    tally.note(f"expressions kept: {', '.join(map(str, sorted(wanted)))}; crop: {crop}")
    return require_rows(tally.finish(rows.build(), skip_unreadable))


def _columns(first: Sequence[str]) -> list[str] | None:
    """The columns' names in lower case, by the first line of a list, or ``None``.

    It may already be a row, with path, expression and two numbers in place: then they are :data:`_FOLDED`.
    """
    names = [name.strip().strip('"').casefold() for name in first]
    if set(_FOLDED) <= set(names):
        return names
    row = len(first) == len(COLUMNS) and "/" in first[0].replace("\\", "/") and integer(first[6]) is not None
    return _FOLDED if row and not any(math.isnan(number(cell)) for cell in first[7:]) else None


def _rows(path: Path, tally: Tally) -> Iterator[tuple[int, int, dict[str, str]]]:
    """(row number, line number, cells by column) of a list; a missing cell is ``None``."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        try:
            first = reader.fieldnames or []
            columns = _columns(first)
            if columns is None:
                got = ",".join(cell[:30] for cell in first[:12]) or "an empty file"
                remedy = "use the list as it was released"
                raise LabelFileError(problem(f"{path} line 1", f"the header {','.join(COLUMNS)}", got, remedy))
            if columns is _FOLDED:
                file.seek(0)
                reader = csv.DictReader(file)
                tally.note(f"{path.name} has no header line: columns taken in the documented order")
            reader.fieldnames = columns
            for row, cells in enumerate(reader):
                yield row, reader.line_num, cells
        except csv.Error as error:
            what, remedy = f"{path} line {reader.line_num}", "use the list as it was released"
            raise LabelFileError(problem(what, "comma-separated text", error, remedy)) from error


def _box(cells: Mapping[str, str], crop: str, margin: float) -> Box | None:
    """The face of a row, or ``None`` if there is none (or none is requested)."""
    if crop == "none":
        return None
    x, y, width, height = (number(cells[name]) for name in ("face_x", "face_y", "face_width", "face_height"))
    if not (width > 0 and height > 0 and math.isfinite(x) and math.isfinite(y)):  # NULL and −1 both mark "no face"
        return None
    if crop == "box":
        return (x, y, x + width, y + height)
    return landmark_box([number(text) for text in cells["facial_landmarks"].split(";")], margin)
