"""Aff-Wild, the challenge of 2017: YouTube reactions with valence and arousal for every frame (Zafeiriou et al. 2017).

The labels of the test videos were never released. People are not identified: the video is the identity, so a split by
identity is video-independent, and some people appear in several videos.

The difficulty is to assign labels to frames. For some videos the numbers of label lines, of frames that decode, and of
``.pts`` files differ. The rule for each video: if lines and frames agree within 2 % (or two), line k is frame k, and
the longer list is truncated. If instead lines and boxes agree, and there are more frames than either, line k is the
k-th frame that has a box. Otherwise the video is refused, as is a video that is cut short. Every choice that is not
obvious is in the report's notes. Frames are numbered by their time stamps (:mod:`~adaptive_margin.images.video`): a
damaged frame loses its own line and shifts no other, and the line of a skipped frame gets the picture that is shown at
its time. Label files hold no times: in a video of variable rate, whose time stamps lie on no grid, lines and frames are
counted, and the report's notes name it and say how many labels another reading would assign to another frame.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from ..images._layout import VIDEO_SUFFIXES, Folders, checked_root, first_nested, natural, wrong_layout
from ..images.decode import Progress
from ..images.errors import MISSING, UNDECODABLE, LabelFileError, UnwritableError
from ..images.image_list import Box
from ..images.video import (
    extract,
    find_video,
    frame_name,
    read_boxes,
    read_extraction,
    region,
    surveyed,
)
from ..messages import check_choice, counted, problem
from ._cells import check_every, label_lines
from ._cells import number as parse_number
from .records import RecordBuilder
from .report import (
    BAD_ANNOTATION,
    INCOMPLETE,
    LOST,
    NO_FACE,
    NOT_A_NUMBER,
    NOT_SELECTED,
    REFUSED,
    SURPLUS,
    LoadedSplit,
    Tally,
    require_rows,
)

NAME = "aff-wild"
SPLITS = ("train",)
CONTEXT = 2.0
TOLERANCE = 0.02
LEAST_TOLERANCE = 2
WARN = 0.01

LAYOUT = """\
  aff_wild_annotations_bboxes_landmarks_new/       (each folder may be doubled: train/train)
    annotations/train/valence/<id>.txt, annotations/train/arousal/<id>.txt
    bboxes/train/<id>/<frame>.pts                  (or bboxs/; a frame without a file has no face)
    videos/train/<id>.mp4 or .avi"""

_OUTER = "aff_wild_annotations_bboxes_landmarks_new"


@dataclass(frozen=True)
class Layout:
    """Where the parts of an Aff-Wild root are."""

    valence: Path
    arousal: Path
    boxes: Path | None
    videos: Path | None


def find_layout(root: Path) -> Layout | None:
    """The parts of ``root`` in any of the known spellings, or ``None`` if there are no label folders."""
    bases = [root, *filter(None, (first_nested(root, names) for names in (_OUTER, {"Aff-Wild", "AffWild"})))]

    def find(*levels: str | set[str]) -> Path | None:
        return next((folder for base in bases if (folder := first_nested(base, *levels)) is not None), None)

    valence = find("annotations", "train", "valence")
    arousal = find("annotations", "train", "arousal")
    if valence is None or arousal is None:
        return None
    return Layout(valence, arousal, find({"bboxes", "bboxs"}, "train"), find("videos", "train"))


def _checked_layout(base: Path, crop: str, extracted: Path | None = None) -> Layout:
    """The layout, if it has what is needed: boxes for faces, and videos or frames ``extracted`` from them."""
    layout = find_layout(base)
    if layout is None:
        missing = "annotations/train/valence/ and annotations/train/arousal/"
    elif layout.videos is None and not (extracted is not None and extracted.is_dir()):
        missing = "videos/train/ (or frames extracted from them; check: --frames-dir, training: --cache)"
    elif layout.boxes is None and crop == "box":
        missing = "bboxes/train/ (crop='none' takes whole frames)"
    else:
        return layout
    raise wrong_layout(base, "Aff-Wild", LAYOUT, missing)


@dataclass(frozen=True)
class Indexing:
    """The frame to which each label line of a video belongs."""

    how: str  # "frame" (line k is frame k), "face" (line k is the k-th frame with a box) or "refused"
    note: str  # the reason, if it is not obvious; "" otherwise


def decide_indexing(lines: int, frames: int, boxes: int | None, last: int = 0) -> Indexing:
    """The rule described at the top of this module, from the numbers of label lines, decoded frames and ``.pts`` files.

    If ``last``, the highest frame number among the latter, is beyond the frames, the video is cut short, and nothing
    matches.

    Example:
        >>> decide_indexing(lines=998, frames=1000, boxes=800)
        Indexing(how='frame', note='')
        >>> decide_indexing(lines=801, frames=1000, boxes=800).how, decide_indexing(900, 1000, 800).how
        ('face', 'refused')
    """
    counts = f"{lines:,} label lines, {frames:,} frames" + ("" if boxes is None else f", {boxes:,} boxes")
    if frames and _near(lines, frames):
        if boxes is not None and lines == boxes != frames:
            return Indexing("frame", f"{counts}: lines taken as frames, although there are as many lines as boxes")
        if abs(lines - frames) > WARN * max(lines, frames):
            return Indexing("frame", f"{counts}: lines taken as frames although they differ by more than 1 %")
        return Indexing("frame", "")
    if boxes and _near(lines, boxes) and lines < frames and last <= frames + _slack(frames, frames):
        return Indexing("face", f"{counts}: lines taken as frames with a face")
    return Indexing("refused", f"{counts}: the lines match neither")


def _near(one: int, other: int) -> bool:
    return abs(one - other) <= _slack(one, other)


def _slack(one: int, other: int) -> float:
    return max(LEAST_TOLERANCE, TOLERANCE * max(one, other))


def read_labels(path: Path) -> npt.NDArray[np.float64]:
    """The numbers of a label file, one per line, no header; a line that is not a number is NaN, so that no line shifts.

    Blank lines at the end, Windows line ends and exponents are accepted.
    """
    return np.array([parse_number(line) for line in label_lines(path)], dtype=np.float64)


def read_pts(path: Path) -> npt.NDArray[np.float64]:
    """The points of a ``.pts`` file: x and y in pixels, shape ``(P, 2)``.

    Raises:
        LabelFileError: it is not such a file.
    """
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    before, opened, rest = text.partition("{")
    inside, closed, _ = rest.partition("}")
    try:
        points = np.array([[float(cell) for cell in line.split()] for line in inside.splitlines() if line.strip()])
        stated = [int(line.split(":")[1]) for line in before.splitlines() if line.strip().startswith("n_points")]
        if not (opened and closed) or points.ndim != 2 or points.shape[1] != 2 or stated not in ([], [len(points)]):
            raise ValueError(f"{points.shape} numbers between the braces, n_points {stated}")
        if not np.isfinite(points).all():
            raise ValueError("a coordinate that is not finite")
    except (ValueError, IndexError) as error:
        raise LabelFileError(problem(f"{path}", "points between braces, one per line", error, "restore it")) from error
    return points


def read_box(path: Path) -> Box:
    """The box of a ``.pts`` file, whose corners can be in any order.

    Raises:
        LabelFileError: it is not such a file, or the box has no extent.
    """
    points = read_pts(path)
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    if not (right > left and bottom > top):
        raise LabelFileError(problem(f"{path}", "the corners of a box", points.tolist(), "restore it"))
    return (left, top, right, bottom)


def _boxes_of(folder: Path, extracted: Path | None, listings: Folders) -> tuple[dict[int, Box], dict[int, str]]:
    """The boxes of a video by frame, and the damaged ``.pts`` files; an extraction has the boxes if none is damaged."""
    stems = _ids(listings.names(folder), (".pts",))
    if extracted is not None and len(kept := read_boxes(extracted)) == len(stems):
        return kept, {}
    numbers = {int(stem): stem for stem in stems if stem.isdecimal()}
    first = 0 if 0 in numbers else 1  # the number that the first frame has in their names
    found: dict[int, Box] = {}
    damaged: dict[int, str] = {}
    for number in sorted(numbers):
        try:
            found[number - first + 1] = read_box(folder / f"{numbers[number]}.pts")
        except LabelFileError as error:
            damaged[number - first + 1] = str(error)
    return found, damaged


def load_aff_wild(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    crop: str = "box",
    frames_dir: str | os.PathLike[str] | None = None,
    every: int = 1,
    extract: bool = True,
    skip_unreadable: int | float = 0,
    progress: Progress | None = None,
) -> LoadedSplit:
    """The usable frames of Aff-Wild's training videos; their frames are extracted the first time.

    Extraction reads each video once, in order, at its native rate (:mod:`~adaptive_margin.images.video`), and keeps
    an area of twice the box around each face, which is much smaller than the frame. It can be interrupted safely, and
    later calls use the extracted frames, even after the videos have been deleted. They read all of it once and compare
    checksums: what is damaged is in the report's notes and extracted again, or, without its video, unreadable.

    Args:
        root: the folder with ``annotations``, ``bboxes`` and ``videos``, in any of the known spellings.
        split: ``"train"``; the test labels were never released.
        crop: ``"box"`` for the faces, ``"none"`` for whole frames.
        frames_dir: folder for extracted frames; by default ``extracted_frames`` in ``root``.
        every: keep only frames 1, 1 + every, 1 + 2·every …, because neighbouring frames hardly differ.
        extract: extract what is missing or damaged; otherwise nothing is written.
        skip_unreadable: how many label lines may belong to a missing or undecodable video, lack their other label
            file, or have a damaged box file: a number, or a share of the lines. Damaged frames of a video that
            otherwise decodes, and refused videos, are counted and named but not limited.
        progress: called with (videos done, total).

    Returns:
        ``(records, report)``; keys are ``"105/000417"``, identity and video are the id, ``frame`` counts from 1 like
        the ``.pts`` files, ``records.root`` is the folder of extracted frames.

    Raises:
        LayoutError: the folders do not exist.
        ImportError: videos must be read and OpenCV is not installed.
        UnreadableError: more lines are unreadable than allowed.
        UnwritableError: frames are missing and their folder cannot be written.
        FileNotFoundError: frames are missing and ``extract`` is off.
        OSError: the disk is full.
        ValueError: an unknown option, or no usable frame.
    """
    if split == "test":
        raise ValueError(problem("split", "'train'", "'test'", "its labels were never released: use group_holdout"))
    check_choice("split", split, SPLITS)
    check_choice("crop", crop, ("box", "none"))
    check_every(every)
    base = checked_root(root, "Aff-Wild", LAYOUT)
    kind = _KINDS[crop] + (f"-every{every}" if every > 1 else "")
    frames = (Path(frames_dir) if frames_dir is not None else base / "extracted_frames") / kind
    layout = _checked_layout(base, crop, frames)
    if not extract:
        return require_rows(_Work(layout, frames, crop, every, extract=False).read(skip_unreadable, progress))
    try:
        frames.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableError(frames, error) from error
    with _locked(frames.parent / f".{kind}.lock"):
        return require_rows(_Work(layout, frames, crop, every).read(skip_unreadable, progress))


_KINDS = {"box": "faces", "none": "frames"}
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock; not in a read-only folder, where frames can only be read."""
    lock = FileLock(path)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
    try:
        yield
    finally:
        lock.release()


def survey_aff_wild(
    root: Path, *, decode: bool, crop: str = "box", frames_dir: str | os.PathLike[str] | None = None
) -> LoadedSplit:
    """What :func:`load_aff_wild` would find, without writing frames: for the check command.

    Files of the records need not exist. ``decode`` reads the videos to number their frames; otherwise the numbers in
    their containers are trusted. Without videos the frames that were extracted from them are read, all of them or
    every Nth.
    """
    base = checked_root(root, "Aff-Wild", LAYOUT)
    folder = Path(frames_dir) if frames_dir is not None else base / "extracted_frames"
    found = {1: folder / _KINDS[crop]}
    for path in folder.glob(f"{_KINDS[crop]}-every*"):
        if (number := path.name.rpartition("-every")[2]).isdecimal():
            found[int(number)] = path
    every = next((number for number in sorted(found) if found[number].is_dir()), 1)
    layout = _checked_layout(base, crop, found[every])
    every = every if layout.videos is None else 1
    return _Work(layout, found[every], crop, every, survey=decode).read(1.0)


def could_be_off(
    lines: int, order: Sequence[int] | None, numbers: Sequence[int], seconds: Sequence[float], duration: float
) -> tuple[int, int, float]:
    """How far counting label lines can be from timing them, in a video whose frames are not evenly spaced.

    Label files hold no times. Here a line's time is what it would be if annotators' tools had sampled the whole video
    evenly, and its frame the one shown then. ``order`` has the frame of each line, ``None`` where line k is frame k;
    ``seconds`` says when each of the ``numbers`` is shown, ``duration`` when the last one disappears. Returns
    how many lines would belong to another frame, and by at most how many numbers and seconds.

    Example:
        >>> could_be_off(4, None, [1, 2, 3, 4], [0.0, 1.0, 2.0, 3.0], 4.0)
        (0, 0, 0.0)
        >>> could_be_off(4, None, [1, 2, 3, 4], [0.0, 0.1, 0.2, 0.3], 4.0)  # the last frame is shown for most of it
        (3, 3, 2.2)
    """
    counted = np.arange(1, lines + 1) if order is None else np.array(order[:lines])
    counted = counted[counted <= numbers[-1]]
    times = (np.arange(len(counted)) + 0.5) * duration / lines
    begins, known = np.array(seconds), np.array(numbers)
    timed = known[np.clip(np.searchsorted(begins, times, side="right") - 1, 0, None)]
    place = np.clip(np.searchsorted(known, counted), 0, len(known) - 1)
    ends = np.append(begins[1:], duration)
    apart = np.maximum(np.maximum(begins[place] - times, times - ends[place]), 0.0)
    gaps = np.abs(timed - counted)
    if not len(gaps):
        return 0, 0, 0.0
    return int((gaps > 0).sum()), int(gaps.max()), round(float(apart.max()), 3)


def _ids(names: Iterable[str], suffixes: tuple[str, ...] = (".txt",)) -> set[str]:
    return {os.path.splitext(name)[0] for name in names if name.lower().endswith(suffixes)}


@dataclass
class _Work:
    layout: Layout
    frames: Path
    crop: str
    every: int = 1
    survey: bool | None = None  # whether to decode for numbering, where frames are not extracted
    extract: bool = True  # whether to extract frames, unless it is a survey

    def __post_init__(self) -> None:
        self.tally, self.listings = Tally(NAME, "train"), Folders()
        self.rows = RecordBuilder(NAME, self.frames, "video")
        self.unlabelled: dict[str, int] = {}  # video → frames after its last label

    def read(self, skip_unreadable: int | float, progress: Progress | None = None) -> LoadedSplit:
        layout, listings, tally = self.layout, self.listings, self.tally
        names = [_ids(listings.names(folder)) for folder in (layout.valence, layout.arousal)]
        ids = sorted(names[0] | names[1], key=natural)
        if not ids:
            what = f"{layout.valence}"
            raise LabelFileError(problem(what, "a folder of <id>.txt files", "none", "unpack the archive"))
        for done, video in enumerate(ids):
            if progress is not None:
                progress(done, len(ids))
            if video in names[0] and video in names[1]:
                self._read_video(video)
                continue
            folder, lacking = (layout.valence, "arousal") if video in names[0] else (layout.arousal, "valence")
            lines = len(read_labels(folder / f"{video}.txt"))
            tally.read(lines)
            tally.drop(INCOMPLETE, f"{video}: no {lacking}/{video}.txt", lines)
        if progress is not None:
            progress(len(ids), len(ids))
        if unlabelled := _ids(listings.names(layout.videos), VIDEO_SUFFIXES) - set(ids) if layout.videos else set():
            tally.note(f"{counted(len(unlabelled), 'video')} without labels left out")
        if self.survey is False:
            tally.note("numbers of frames come from the containers and are unreliable: decode to be sure")
        if self.unlabelled:
            frames, videos = sum(self.unlabelled.values()), len(self.unlabelled)
            tally.note(f"{counted(frames, 'frame')} of {counted(videos, 'video')} after the last label left out")
        return tally.finish(self.rows.build(), skip_unreadable)

    def _read_video(self, video: str) -> None:
        tally, layout, every, survey, listings = self.tally, self.layout, self.every, self.survey, self.listings
        both = [read_labels(folder / f"{video}.txt") for folder in (layout.valence, layout.arousal)]
        lines, longest = sorted(map(len, both))
        tally.read(longest)
        if not _near(lines, longest):
            tally.drop(REFUSED, f"{video}: {len(both[0]):,} lines of valence, {len(both[1]):,} of arousal", longest)
            return
        tally.drop(NOT_A_NUMBER, f"{video}: lines that only one of valence and arousal has", longest - lines)
        boxes_folder = layout.boxes / video if layout.boxes is not None and self.crop == "box" else None
        changed = boxes_folder.stat().st_mtime_ns if boxes_folder is not None and boxes_folder.is_dir() else 0
        context = CONTEXT if self.crop == "box" else None
        path = find_video(layout.videos, video, listings)
        extracted = self.frames / video
        have, wrong = read_extraction(extracted, video=path, boxes_changed=changed, context=context, every=every)
        if wrong and (path is not None or "boxes.npy" in wrong):
            have = None  # frames are extracted again rather than used in part
        if wrong:
            then = "what is left of it is used" if have else "it is extracted again" if path else ""
            tally.note(f"video {video}: {extracted / wrong[0]} and {len(wrong) - 1:,} other files are damaged; {then}")
        if have is None and path is None:
            damage = ", and its extraction is damaged" if wrong else ""
            tally.drop(MISSING, f"{video}: no video of that name{damage}", lines)
            return
        found: dict[int, Box] | None = None
        damaged: dict[int, str] = {}
        if boxes_folder is not None:
            found, damaged = _boxes_of(boxes_folder, None if have is None else extracted, listings)
        if have is not None:
            seen = have
        elif survey is not None:
            assert path is not None  # or it was dropped
            seen = surveyed(path, decode=survey)
        else:
            assert path is not None
            if not self.extract:
                raise FileNotFoundError(errno.ENOENT, "frames are not all there", str(extracted))
            try:
                seen = extract(path, extracted, boxes=found, boxes_changed=changed, context=CONTEXT, every=every)
            except OSError as error:
                if error.errno in _READ_ONLY:
                    raise UnwritableError(self.frames, error) from error
                raise
        if seen.held or seen.repeated:
            what = f"{seen.held:,} numbers have no frame and show the one before, {seen.repeated:,} frames are repeated"
            tally.note(f"video {video}: {what}")
        total, lost = seen.frames, frozenset(seen.lost)
        if not total:
            tally.drop(UNDECODABLE, f"{video}: no frame of it decodes", lines)
            return
        known = None if found is None else len(found) + len(damaged)
        choice = decide_indexing(lines, total, known, max([*(found or {}), *damaged], default=0))
        if choice.note:
            tally.note(f"video {video}: {choice.note}")
        if choice.how == "refused":
            tally.drop(REFUSED, f"{video}: {choice.note}", lines)
            return
        order = sorted({**(found or {}), **damaged}) if choice.how == "face" else None
        written = have is not None or survey is None
        wrong = wrong if have is not None else []
        there = Folders().names(extracted) if written else frozenset()
        if seen.uneven:
            numbers, times = zip(*seen.uneven, strict=True)
            off, most, seconds = could_be_off(lines, order, numbers, times, seen.duration)
            kind = "frame with a face" if order else "frame"
            what = f"its time stamps lie on no grid, so label line k is taken for its k-th {kind}"
            bound = f"{off:,} of {lines:,} labels would belong to another frame"
            by = f"by up to {most:,} frames or {seconds:.2f} s"
            tally.note(f"video {video}: {what}; if labels were evenly spaced in time, {bound}, {by}")
        for line in range(lines):
            number = line + 1 if order is None else order[line] if line < len(order) else 0
            key = f"{video}/{number:06d}"
            labels = (float(both[0][line]), float(both[1][line]))
            if not 1 <= number <= total:
                tally.drop(SURPLUS, f"{video} line {line + 1}")
            elif math.isnan(labels[0] + labels[1]):
                tally.drop(NOT_A_NUMBER, f"{video} line {line + 1}")
            elif (number - 1) % every:
                tally.drop(NOT_SELECTED, f"{key} (every={every})")
            elif number in lost:
                tally.drop(LOST, f"{key}: this frame of the video does not decode")
            elif number in damaged:
                tally.drop(BAD_ANNOTATION, damaged[number])
            elif found is not None and number not in found:
                tally.drop(NO_FACE, key)
            else:
                box = None if found is None else found[number]
                if box is not None and written:
                    cut = region(box, CONTEXT, seen.width, seen.height)
                    if cut is None:
                        tally.drop(NO_FACE, f"{key}: the box {box} is outside the frame")
                        continue
                    box = (box[0] - cut[0], box[1] - cut[1], box[2] - cut[0], box[3] - cut[1])
                file = f"{video}/{frame_name(number)}"
                if frame_name(number) in wrong:
                    tally.drop(UNDECODABLE, f"{key}: {file} is not the frame that was extracted")
                elif written and frame_name(number) not in there:
                    tally.drop(MISSING, f"{key}: {file} (delete the folder to extract it again)")
                else:
                    self.rows.add(key, file, labels, identity=video, video=video, frame=number, box=box)
        if total > lines and order is None:
            self.unlabelled[video] = total - lines
