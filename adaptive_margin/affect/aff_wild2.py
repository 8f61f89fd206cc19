"""Aff-Wild2, the valence–arousal track of the ABAW challenges (Kollias & Zafeiriou 2019 and later editions).

A label file has a header and one ``valence,arousal`` per line; −5 marks a frame that was not annotated. Line k after
the header is frame k and ``0000k.jpg`` of the supplied crops; a missing crop means a frame without a face. ``_left``
and ``_right`` are different people in the same video. People are not identified: the identity is the source video,
without these suffixes and without part numbers. The official split is used; test labels are withheld.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..images._layout import Folders, checked_root, litter, natural, nested, relative, subfolders, wrong_layout
from ..images.decode import IMAGE_SUFFIXES
from ..images.errors import MISSING, LabelFileError, LayoutError
from ..messages import check_choice, counted, problem, shorten
from ._cells import check_every, label_lines
from ._cells import number as parse_number
from .records import RecordBuilder
from .report import NO_FACE, NOT_A_NUMBER, NOT_SELECTED, SENTINEL, LoadedSplit, Tally, require_rows

NAME = "aff-wild2"
SPLITS = ("train", "validation")
UNANNOTATED_BELOW = -1.0

Line = tuple[str, int, tuple[float, float]]  # video, frame, valence and arousal

LAYOUT = """\
  <any>/
    6th ABAW Annotations/VA_Estimation_Challenge/Train_Set/<video>[_left|_right].txt, Validation_Set/
      (2020: annotations/VA_Set/Training_Set/, Validation_Set/)
    cropped_aligned/<video>[_left|_right]/00001.jpg …
    cropped_aligned_new_50_vids/<video>/00001.jpg …      (videos added later)"""

_TRACK = {"VA_Estimation_Challenge", "VA_Set"}
_PARTS = {"train": {"Train_Set", "Training_Set"}, "validation": {"Validation_Set"}}


def find_annotations(root: Path, split: str) -> list[Path]:
    """The folders of label files of a split, one for each existing edition."""
    bases = (root, *subfolders(root))
    return sorted({folder for base in bases for folder in nested(base, _TRACK, _PARTS[split]) if _label_files(folder)})


def _label_files(folder: Path) -> list[str]:
    return sorted((name for name in os.listdir(folder) if name.endswith(".txt") and not litter(name)), key=natural)


def edition_labels(root: str | os.PathLike[str], edition: str | os.PathLike[str], split: str) -> Path:
    """The label files of a split in one of the editions in a root: ``annotations`` of :func:`load_aff_wild2`.

    ``edition`` is the folder of the edition, of its track or of one of its splits, even the other one; relative to the
    root, or a full path.

    Raises:
        LayoutError: there are no labels of the split, or labels of several editions; the message names what was found.
    """
    check_choice("split", split, SPLITS)
    place = Path(root, edition)
    names = {name.casefold() for name in _TRACK}
    track = next((folder for folder in (place, place.parent) if folder.name.casefold() in names), None)
    if track is None:
        found = find_annotations(place, split) if place.is_dir() else []
    else:
        found = [each for each in find_annotations(track.parent, split) if each.parent.resolve() == track.resolve()]
    if len(found) != 1:
        got = f"{str(edition)!r}" + (f" with {len(found)} of them" if found else "")
        there = [relative(folder, Path(root)) for folder in find_annotations(Path(root), split)]
        remedy = f"in the root are {', '.join(there)}" if there else "the root has none either: unpack them there"
        raise LayoutError(problem("annotations", f"a folder with one edition's {split} labels", got, remedy))
    return found[0]


def find_crops(root: Path) -> list[Path]:
    """The folders of face crops, ``cropped_aligned`` before those added later; ``cropped`` counts if alone."""
    names = [folder for folder in subfolders(root) if folder.name.casefold().startswith("cropped")]
    aligned = [folder for folder in names if folder.name.casefold().startswith("cropped_aligned")]
    ordered = sorted(aligned or names, key=lambda folder: natural(folder.name))
    return [next(nested(folder, folder.name), folder) for folder in ordered]


def source_video(name: str) -> str:
    """The recording to which the name of a label file belongs: without ``_left``, ``_right`` and part numbers.

    Example:
        >>> [source_video(name) for name in ("video45_3", "10-60-1280x720_right", "5-60-1920x1080-2", "102")]
        ['video45', '10-60-1280x720', '5-60-1920x1080', '102']
    """
    name = re.sub(r"_(left|right)$", "", name)
    return re.sub(r"(?<=.)(-[1-5]|_[1-7])$", "", name)


def read_labels(path: Path) -> tuple[npt.NDArray[np.float64], str]:
    """The label lines of a file.

    Columns are found by their names in the header. A line that is not two numbers is NaN, so that no line shifts; blank
    lines at the end do not count.

    Returns:
        (valence, arousal) of each line after the header, shape ``(lines, 2)``; and an anomaly to report, or "".

    Raises:
        LabelFileError: the first line is neither the header nor two numbers.
    """
    lines = label_lines(path)
    header = [name.strip().casefold() for name in lines[0].split(",")] if lines else []
    odd = ""
    if sorted(header) == ["arousal", "valence"]:
        order = [header.index("valence"), header.index("arousal")]
        lines = lines[1:]
        if order != [0, 1]:
            odd = f"{path.name}: its header puts arousal first"
    elif len(header) == 2 and not np.isnan([parse_number(cell) for cell in header]).any():
        order = [0, 1]
        odd = f"{path.name}: no header; the first line is taken as frame 1"
    else:
        got = lines[0][:60] if lines else "an empty file"
        raise LabelFileError(problem(f"{path} line 1", "'valence,arousal'", repr(got), "use the file as released"))
    values = np.full((len(lines), 2), np.nan)
    for place, line in enumerate(lines):
        cells = line.split(",")
        if len(cells) == 2:
            values[place] = [parse_number(cells[column]) for column in order]
    return values, odd


def load_aff_wild2(
    root: str | os.PathLike[str],
    split: str,
    *,
    annotations: str | os.PathLike[str] | None = None,
    crops: Sequence[str | os.PathLike[str]] | None = None,
    every: int = 1,
    skip_unreadable: int | float = 0,
) -> LoadedSplit:
    """The usable frames of a split of the valence–arousal track.

    A frame without a crop has no face and is dropped for that reason. A video without a folder of crops is different:
    its archive is missing, and its lines count as unreadable.

    Args:
        root: the folder with the annotations and the crops.
        split: ``"train"`` or ``"validation"``.
        annotations: the folder of label files, where several editions lie in ``root``; below the root, or in full.
        crops: the folders of crops, if they are elsewhere; searched in this order.
        every: keep only frames 1, 1 + every, 1 + 2·every …, because neighbouring frames hardly differ.
        skip_unreadable: how many annotated lines may belong to videos without crops: a number, or a share of them.

    Returns:
        ``(records, report)``; keys are ``"train/10-60-1280x720_left/00417"``, the identity is the source video,
        ``frame`` counts from 1 like the crops.

    Raises:
        LayoutError: labels or crops do not exist, or there are several editions.
        LabelFileError: a label file without its header.
        UnreadableError: more lines lack their video's crops than allowed.
        ValueError: an unknown option, or no usable frame.
    """
    check_choice("split", split, SPLITS)
    base, crop_folders = _places(root, every, crops)
    if annotations is not None:
        given = Path(annotations)
        folder = checked_root(given if given.is_dir() else base / given, "Aff-Wild2's label files", LAYOUT)
    else:
        found = find_annotations(base, split)
        if not found:
            raise wrong_layout(base, "Aff-Wild2", LAYOUT, "VA_Estimation_Challenge/ or VA_Set/ with label files")
        if len(found) > 1:
            names = ", ".join(relative(path, base) for path in found)
            remedy = "editions divide the videos differently: choose one with annotations= (training: --annotations)"
            raise LayoutError(problem("root", f"with one edition's {split} labels", names, remedy))
        folder = found[0]
    files = _label_files(folder)
    if not files:
        raise wrong_layout(folder, "Aff-Wild2's label files", LAYOUT, "<video>.txt")
    tally = Tally(NAME, split)

    def lines() -> Iterator[Line]:
        for file in files:
            values, odd = read_labels(folder / file)
            if odd:
                tally.note(odd)
            for number, (valence, arousal) in enumerate(values.tolist(), 1):
                yield file[: -len(".txt")], number, (valence, arousal)

    return _joined(tally, lines(), crop_folders, base, every, skip_unreadable)


def load_aff_wild2_list(
    root: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    split: str,
    crops: Sequence[str | os.PathLike[str]] | None = None,
    every: int = 1,
    skip_unreadable: int | float = 0,
) -> LoadedSplit:
    """The usable frames of a list ``image_location,valence,arousal``, the format of later editions.

    Args:
        root: the folder with the crops.
        path: the list; its locations are ``<video>/00001.jpg``.
        split: its name in keys and report.
        crops: as in :func:`load_aff_wild2`.
        every: likewise.
        skip_unreadable: likewise.

    Raises:
        LabelFileError: another header, or a location that is not a video's numbered frame.
    """
    base, crop_folders = _places(root, every, crops)

    def lines() -> Iterator[Line]:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [name.strip().casefold() for name in reader.fieldnames or []]
            if sorted(columns) != ["arousal", "image_location", "valence"]:
                remedy = "use the list as released"
                raise LabelFileError(problem(f"{path} line 1", "'image_location,valence,arousal'", columns, remedy))
            reader.fieldnames = columns
            for row in reader:
                video, _, name = (row["image_location"] or "").strip().rpartition("/")
                stem = os.path.splitext(name)[0]
                if not video or not stem.isdecimal():
                    what, got = f"{path} line {reader.line_num}", repr(row["image_location"])
                    expected, remedy = "a location <video>/<number>.jpg", "use the list as released"
                    raise LabelFileError(problem(what, expected, got, remedy))
                yield video, int(stem), (parse_number(row["valence"]), parse_number(row["arousal"]))

    return _joined(Tally(NAME, split), lines(), crop_folders, base, every, skip_unreadable)


def _places(
    root: str | os.PathLike[str], every: int, crops: Sequence[str | os.PathLike[str]] | None
) -> tuple[Path, list[Path]]:
    """Root and crop folders, as given or found."""
    check_every(every)
    base = checked_root(root, "Aff-Wild2", LAYOUT)
    folders = find_crops(base) if crops is None else [checked_root(path, "Aff-Wild2's crops", LAYOUT) for path in crops]
    if not folders:
        raise wrong_layout(base, "Aff-Wild2", LAYOUT, "cropped_aligned/")
    return base, folders


def _joined(
    tally: Tally, lines: Iterable[Line], folders: Sequence[Path], base: Path, every: int, skip_unreadable: int | float
) -> LoadedSplit:
    """Joins label lines and crops on the frame number, and counts those without a match."""
    rows, listings = RecordBuilder(NAME, base, "source video"), Folders()
    places: dict[str, Path] = {}  # of each video's crops: the first folder that is not empty
    for folder in (folder for each in folders for folder in subfolders(each)):
        if folder.name not in places or not listings.names(places[folder.name]):
            places[folder.name] = folder
    last: dict[str, int] = {}
    images: dict[int, str] = {}
    current = prefix = ""
    for video, number, labels in lines:
        if video != current:
            current = video
            if video in places:
                images, place = _numbered(listings.names(places[video])), places[video]
                prefix = relative(place, base) if place.is_relative_to(base) else place.resolve().as_posix()
        last[video] = max(number, last.get(video, 0))
        tally.read()
        key = f"{tally.split}/{video}/{number:05d}"
        if math.isnan(labels[0] + labels[1]):
            tally.drop(NOT_A_NUMBER, key)
        elif min(labels) < UNANNOTATED_BELOW:
            tally.drop(SENTINEL, key)
        elif (number - 1) % every:
            tally.drop(NOT_SELECTED, f"{key} (every={every})")
        elif video not in places:
            tally.drop(MISSING, f"{key}: no folder of crops called {video}")
        elif number not in images:
            tally.drop(NO_FACE, key)
        else:
            rows.add(key, f"{prefix}/{images[number]}", labels, identity=source_video(video), video=video, frame=number)
    ends = ((_numbered(listings.names(places[video])), end) for video, end in last.items() if video in places)
    surplus = sum(number > end for numbers, end in ends for number in numbers)
    if surplus:
        tally.note(f"{counted(surplus, 'crop')} after the last label line of a video left out")
    shared = sorted({source_video(video) for video in last if re.fullmatch(r"\d+", source_video(video))}, key=natural)
    if shared:
        tally.note(f"{counted(len(shared), 'video')} from Aff-Wild: do not mix the two data sets ({shorten(shared)})")
    return require_rows(tally.finish(rows.build(), skip_unreadable))


def _numbered(names: Iterable[str]) -> dict[int, str]:
    """Frame number → file, for images that are named after a number."""
    parts = ((*os.path.splitext(name), name) for name in sorted(names))
    return {int(stem): name for stem, suffix, name in parts if stem.isdecimal() and suffix.lower() in IMAGE_SUFFIXES}
