"""Extracts frames from videos, each with the number and time that its time stamp gives.

Counting reads is not enough to number frames: a read that fails in the middle is a damaged frame, not the end;
containers hold frames that a decoder skips or repeats; their number of frames and their rate may be wrong.
:func:`timeline` reads a video to its end, past frames that do not decode, and numbers frames from 1 by their time
stamps, like Aff-Wild's ``.pts`` files. Nothing is resampled.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..messages import pip_install, refuse_broken
from ..stored import DamagedFileError, read_json, write_json
from ._layout import VIDEO_SUFFIXES, Folders
from .image_list import Box

FORMAT = 3
_QUALITY = 95
_TRIES = 64  # failed reads in a row that are not yet the end, whatever the container states
_MOST_TRIES = 4096  # and those that are, whatever it states
_OFF = 0.25  # of a frame's duration: how far a time stamp may be from its place; stamps are often whole milliseconds
_SPARSE = 100  # as many numbers for each frame that decodes are a nonsense time stamp
_USUAL = 120.0  # frames a second: a higher stated rate is often the clock of the time stamps


def opencv() -> Any:
    """The ``cv2`` module, or an ``ImportError`` that says what to install."""
    try:
        import cv2
    except ImportError as error:
        refuse_broken("cv2", error)
        raise ImportError(f"reading videos needs OpenCV: {pip_install('fer')}") from error
    return cv2


def frame_name(number: int) -> str:
    """The file of frame ``number``, counted from 1.

    Example:
        >>> frame_name(417)
        '000417.jpg'
    """
    return f"{number:06d}.jpg"


def find_video(folder: Path | None, name: str, listings: Folders) -> Path | None:
    """The video called ``name``, in any container."""
    files = (name + suffix for each in VIDEO_SUFFIXES for suffix in (each, each.upper()))
    return None if folder is None else next((folder / file for file in files if file in listings.names(folder)), None)


@dataclass(frozen=True)
class Timeline:
    """Which frames of a video decode, and when they are shown.

    Time stamps on a grid determine the numbers, and all are shown equally long (``even``). Otherwise frames are
    counted, including those that do not decode, as for a video without time stamps.
    """

    numbers: tuple[int, ...]  # of the frames that decode, from 1, increasing
    seconds: tuple[float, ...]  # when each of them appears
    duration: float  # when the last one disappears, seconds
    rate: float  # numbers per second; their mean if the time stamps are not on a grid
    even: bool
    lost: tuple[int, ...]  # numbers that do not decode
    repeated: int  # how many frames were left out because another has their number
    stated: int  # how many frames the container states; unreliable
    reads: tuple[int, ...]  # the number of each frame that can be read, 0 for one that is left out

    @property
    def total(self) -> int:
        """The last number that decodes; 0 if none does."""
        return self.numbers[-1] if self.numbers else 0

    @property
    def held(self) -> int:
        """How many numbers have neither a frame nor a damaged frame: the previous frame is still shown."""
        return self.total - len(self.numbers) - len(self.lost)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    capture = opencv().VideoCapture(str(path))
    try:
        yield capture
    finally:
        capture.release()


def timeline(path: Path) -> Timeline:
    """Reads a video to its end and numbers its frames by their time stamps.

    Time stamps on a grid give the numbers: a number without a frame was skipped, or was read but did not decode. The
    grid is that of the commonest step, or that of the stated rate. If the time stamps are on neither, as in recordings
    with a variable rate, frames are counted in order.
    """
    cv2 = opencv()
    with _opened(path) as capture:
        stated, rate = _stated(capture)
        found = [(failed, capture.get(cv2.CAP_PROP_POS_MSEC) / 1000) for failed, _ in _reads(capture, stated)]
    failed = np.array([each[0] for each in found], dtype=np.int64)
    stamps = np.array([each[1] for each in found], dtype=np.float64)
    reads, placed, even = _placed(stamps, failed, rate)
    first = np.diff(reads, prepend=0) > 0
    numbers = reads[first]
    lost: list[int] = []
    for before, number, missed in zip((0, *numbers), numbers, failed[first], strict=False):
        lost += range(before + 1, number) if missed or not before else ()
    seconds = (numbers - 1) / placed if even else stamps[first]
    end = float(seconds[-1] + 1 / placed) if len(numbers) else 0.0
    if not even and rate > 0 and end - 1 / placed < stated / rate < 2 * end:
        end = stated / rate
    return Timeline(
        numbers=tuple(numbers.tolist()),
        seconds=tuple(seconds.tolist()),
        duration=end,
        rate=placed,
        even=even,
        lost=tuple(int(number) for number in lost),
        repeated=int((~first).sum()),
        stated=stated,
        reads=tuple(np.where(first, reads, 0).tolist()),
    )


def _placed(
    stamps: npt.NDArray[np.float64], failed: npt.NDArray[np.int64], stated: float
) -> tuple[npt.NDArray[np.int64], float, bool]:
    """Number of each frame, numbers per second, and whether they are evenly spaced."""
    counted = np.cumsum(failed + 1)
    usual = stated if 0 < stated <= _USUAL else 25.0
    steps = np.diff(stamps)
    if len(stamps) < 2 or not np.isfinite(stamps).all() or stamps[0] < 0 or (steps < 0).any() or not steps.any():
        return counted, usual, True
    single = np.median((steps / (failed[1:] + 1))[steps > 0])  # a frame's duration, even if every second one is damaged
    common = float(np.rint(steps / single).sum() / steps.sum())  # exact, though each step may be rounded
    for rate in (common, usual):
        places = stamps * rate
        numbers = np.rint(places).astype(np.int64) + 1
        if np.abs(places + 1 - numbers).max() <= _OFF and numbers[-1] <= _SPARSE * len(numbers):
            return numbers, rate, True
    return counted, float((len(stamps) - 1) / steps.sum()), False


def _reads(capture: Any, stated: int) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """The frames that can be read, each with how many reads failed since the one before."""
    failed = done = 0
    while failed < min(_MOST_TRIES, max(_TRIES, stated - done)):
        good, frame = capture.read()
        if good:
            yield failed, frame
            done, failed = done + failed + 1, 0
        else:
            failed += 1


def decode(path: Path, times: Timeline | None = None) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Number and pixels of each frame that decodes: uint8, ``(H, W, 3)``, in OpenCV's BGR order.

    ``times`` is the result of :func:`timeline`, computed if not given.
    """
    times = timeline(path) if times is None else times
    with _opened(path) as capture:
        for number, (_, frame) in zip(times.reads, _reads(capture, times.stated), strict=False):
            if number:
                yield number, frame


def shown(path: Path, times: Timeline) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Like :func:`decode`, but numbers without a frame get the frame that is still shown; lost numbers get none."""
    lost = frozenset(times.lost)
    last: npt.NDArray[np.uint8] | None = None
    expected = 1
    for number, frame in decode(path, times):
        for skipped in range(expected, number):
            if last is None or skipped in lost:
                last = None  # its picture is unknown
            else:
                yield skipped, last
        yield number, frame
        expected, last = number + 1, frame


def _stated(capture: Any) -> tuple[int, float]:
    """Number of frames and frame rate according to the container; both are unreliable."""
    cv2 = opencv()
    count, rate = float(capture.get(cv2.CAP_PROP_FRAME_COUNT)), float(capture.get(cv2.CAP_PROP_FPS))
    return max(0, int(count)) if math.isfinite(count) else 0, rate if math.isfinite(rate) else 0.0


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """The description of extracted frames, stored in ``frames.json``; without files, that of a video alone."""

    video: str = ""  # the video's file name
    length: int = 0  # size of that file, bytes
    changed: int = 0  # its modification time, nanoseconds
    frames: int  # the last number that decodes
    stated: int  # how many frames the container states
    fps: float  # numbers per second; nothing is resampled to it
    lost: tuple[int, ...] = ()  # numbers that do not decode
    held: int = 0  # how many numbers got the previous picture, which is still shown
    repeated: int = 0  # how many frames were left out because another has their number
    width: int = 0  # of the frames, pixels
    height: int = 0
    boxes: int = -1  # how many .pts files were read; -1 if whole frames were kept
    folder_changed: int = 0  # modification time of the folder with these files
    # number and second of each frame, where time stamps are on no grid and frames were counted; else empty
    uneven: tuple[tuple[int, float], ...] = ()
    duration: float = 0.0  # when the last frame disappears, seconds
    checksums: dict[str, int] = field(default_factory=dict)  # CRC-32 of each file written, by name

    @classmethod
    def of(cls, times: Timeline, **files: Any) -> Extraction:
        """The description of a video whose frames were numbered."""
        shared = {name: getattr(times, name) for name in ("stated", "lost", "held", "repeated", "duration")}
        uneven = () if times.even else tuple(zip(times.numbers, times.seconds, strict=True))
        return cls(frames=times.total, fps=times.rate, uneven=uneven, **shared, **files)


def surveyed(video: Path, *, decode: bool) -> Extraction:
    """What an extraction would find; without decoding, what the container states, which is unreliable."""
    if decode:
        return Extraction.of(timeline(video))
    with _opened(video) as capture:
        frames, rate = _stated(capture)
    return Extraction(frames=frames, stated=frames, fps=rate)


def region(box: Box, context: float, width: int, height: int) -> tuple[int, int, int, int] | None:
    """The part of a frame to keep around a face: the box enlarged ``context`` times, clamped to the frame.

    It is (left, top, right, bottom) in whole pixels, or ``None`` if the box is outside the frame.

    Example:
        >>> region((40.0, 40.0, 60.0, 60.0), 2.0, 64, 48)
        (30, 30, 64, 48)
    """
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half_width, half_height = context * (box[2] - box[0]) / 2, context * (box[3] - box[1]) / 2
    left, top = max(0, int(np.floor(x - half_width))), max(0, int(np.floor(y - half_height)))
    right, bottom = min(width, int(np.ceil(x + half_width))), min(height, int(np.ceil(y + half_height)))
    return (left, top, right, bottom) if right - left >= 2 and bottom - top >= 2 else None


def extract(
    video: Path,
    folder: Path,
    *,
    boxes: Mapping[int, Box] | None,
    boxes_changed: int = 0,
    context: float = 2.0,
    every: int = 1,
) -> Extraction:
    """Writes the frames of a video as JPEG files, either all or none: an interrupted extraction starts again.

    An existing ``folder`` is replaced. ``boxes`` are the faces by frame number (from 1): only these frames are kept,
    cropped to :func:`region`; ``None`` keeps all frames, uncropped. ``boxes_changed``, the modification time of their
    folder, detects later changes. Of the frames, 1, 1 + every, 1 + 2·every and so on are kept. An OSError (the disk is
    full, or the folder cannot be written) leaves nothing behind.
    """
    cv2 = opencv()
    status = video.stat()
    times = timeline(video)
    draft = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)  # of an extraction that was killed; the caller holds the lock
    draft.mkdir(parents=True)
    checksums: dict[str, int] = {}
    try:
        width, height = 0, 0
        for number, frame in shown(video, times):
            height, width = frame.shape[:2]
            if (number - 1) % every:
                continue
            if boxes is not None:
                cut = region(boxes[number], context, width, height) if number in boxes else None
                if cut is None:
                    continue
                frame = frame[cut[1] : cut[3], cut[0] : cut[2]]
            good, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
            if not good:
                raise OSError(f"{video}: frame {number} of shape {frame.shape} cannot be written as JPEG")
            file = draft / frame_name(number)
            file.write_bytes(data.tobytes())  # unlike imwrite, this reports a full disk
            checksums[file.name] = zlib.crc32(data.tobytes())
        if boxes is not None:
            table = np.array([(number, *boxes[number]) for number in sorted(boxes)], dtype=np.float64).reshape(-1, 5)
            np.save(draft / "boxes.npy", table)
            checksums["boxes.npy"] = zlib.crc32((draft / "boxes.npy").read_bytes())
        done = Extraction.of(
            times,
            video=video.name,
            length=status.st_size,
            changed=status.st_mtime_ns,
            width=width,
            height=height,
            boxes=-1 if boxes is None else len(boxes),
            folder_changed=boxes_changed,
            checksums=checksums,
        )
        plain = {"format": FORMAT, "context": context if boxes is not None else None, "every": every, **asdict(done)}
        write_json(draft / "frames.json", plain, indent=1)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return done


def read_extraction(
    folder: Path, *, video: Path | None, boxes_changed: int, context: float | None, every: int
) -> tuple[Extraction | None, list[str]]:
    """The extraction in ``folder``, and names of its files that differ from what was written, but for missing frames.

    ``None`` if there is none, or one of another video or with other options, or if ``frames.json`` is damaged. Every
    file is read: a zeroed or half-zeroed JPEG can still decode to some picture, so no decoder would notice.
    """
    try:
        plain = read_json(folder / "frames.json")
        made = plain.pop("format"), plain.pop("context"), plain.pop("every")
        lost = tuple(int(number) for number in plain["lost"])
        uneven = tuple((int(number), float(second)) for number, second in plain["uneven"])
        done = Extraction(**{**plain, "lost": lost, "uneven": uneven})
    except DamagedFileError:
        return None, ["frames.json"]
    except (OSError, ValueError, KeyError, TypeError):  # nothing there, or of another format
        return None, []
    if made != (FORMAT, context, every) or (done.boxes >= 0 and done.folder_changed != boxes_changed):
        return None, []
    if video is not None:  # frames may outlive their video, which users delete to save space
        status = video.stat()
        if (video.name, status.st_size, status.st_mtime_ns) != (done.video, done.length, done.changed):
            return None, []

    def differs(name: str) -> bool:
        try:
            return zlib.crc32((folder / name).read_bytes()) != done.checksums[name]
        except FileNotFoundError:
            return name == "boxes.npy"
        except OSError:
            return True

    names = sorted(done.checksums)
    with ThreadPoolExecutor() as pool:
        return done, [name for name, wrong in zip(names, pool.map(differs, names), strict=True) if wrong]


def read_boxes(folder: Path) -> dict[int, Box]:
    """The boxes beside extracted frames: frame number → (left, top, right, bottom), pixels of the whole frame."""
    table = np.load(folder / "boxes.npy", allow_pickle=False)  # checked by read_extraction
    return {int(row[0]): (row[1], row[2], row[3], row[4]) for row in table.tolist()}
