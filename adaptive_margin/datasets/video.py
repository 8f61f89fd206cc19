"""Frames out of videos: decoded in order at the native rate, once, each file named after its number.

Containers lie about their number of frames, and a forced frame rate duplicates frames of 29.97 fps videos and so
shifts every later label. Here a video is read from the first frame to the last that decodes, and the number in a file's
name is the frame's, counted from 1 as Aff-Wild's ``.pts`` files count.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..functional.checks import problem
from .layout import VIDEO_SUFFIXES, Folders
from .records import Box

FORMAT = 1
_QUALITY = 95


def opencv() -> Any:
    """The ``cv2`` module.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError("reading videos needs OpenCV: pip install 'adaptive-margin[fer]'") from error
    return cv2


def frame_name(number: int) -> str:
    """The file of frame ``number``, counted from 1.

    Example:
        >>> frame_name(417)
        '000417.jpg'
    """
    return f"{number:06d}.jpg"


def find_video(folder: Path | None, name: str, listings: Folders) -> Path | None:
    """The video called ``name`` in whatever container it comes."""
    if folder is None:
        return None
    for suffix in VIDEO_SUFFIXES:
        found = [other for other in (name + suffix, name + suffix.upper()) if other in listings.names(folder)]
        if found:
            return folder / found[0]
    return None


def decode(path: Path) -> Iterator[npt.NDArray[np.uint8]]:
    """The frames of a video in order, uint8, ``(H, W, 3)``, blue first as OpenCV has them; none if it is damaged."""
    capture = opencv().VideoCapture(str(path))
    try:
        while True:
            good, frame = capture.read()
            if not good:
                return
            yield frame
    finally:
        capture.release()


def container_says(path: Path) -> tuple[int, float]:
    """Number of frames and frame rate as the container states them; the number is unreliable."""
    cv2 = opencv()
    capture = cv2.VideoCapture(str(path))
    try:
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))), float(capture.get(cv2.CAP_PROP_FPS))
    finally:
        capture.release()


def count_frames(path: Path) -> int:
    """How many frames of a video decode: all of it is read."""
    return sum(1 for _ in decode(path))


@dataclass(frozen=True)
class Extraction:
    """What was taken out of a video, as its ``frames.json`` says.

    Attributes:
        video: the video's file name.
        length: of that file, bytes.
        changed: its time of change, nanoseconds.
        frames: how many frames decoded.
        stated: how many the container states.
        fps: the frame rate it states; nothing is resampled to it.
        width: of the frames, pixels.
        height: likewise.
        boxes: how many ``.pts`` files were read; −1 where whole frames were kept.
        folder_changed: time of change of the folder with these files.
    """

    video: str
    length: int
    changed: int
    frames: int
    stated: int
    fps: float
    width: int
    height: int
    boxes: int
    folder_changed: int


def region(box: Box, context: float, width: int, height: int) -> tuple[int, int, int, int] | None:
    """The part of a frame that is kept around a face: the box enlarged ``context`` times, within the frame.

    Returns:
        (left, top, right, bottom) in whole pixels, or ``None`` where the box lies outside the frame.

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
    """Writes the frames of a video as JPEG files, all of them or none: an interrupted extraction starts again.

    Args:
        video: the file.
        folder: where the frames go; replaced if it is there.
        boxes: frame number (from 1) → face: only these frames are kept, cut to :func:`region`. ``None`` keeps whole
            frames, all of them.
        boxes_changed: time of change of the folder the boxes come from, to notice later that it changed.
        context: how much around a face is kept.
        every: keep only frames 1, 1 + every, 1 + 2·every and so on.

    Raises:
        OSError: the disk is full, or the folder cannot be written. Nothing is left behind.
    """
    cv2 = opencv()
    status = video.stat()
    stated, fps = container_says(video)
    draft = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)  # of an extraction that was killed; the caller holds the lock
    draft.mkdir(parents=True)
    try:
        total, width, height = 0, 0, 0
        for number, frame in enumerate(decode(video), 1):
            total = number
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
            (draft / frame_name(number)).write_bytes(data.tobytes())  # unlike imwrite, this reports a full disk
        if boxes is not None:
            table = np.array([(number, *boxes[number]) for number in sorted(boxes)], dtype=np.float64).reshape(-1, 5)
            np.save(draft / "boxes.npy", table)
        done = Extraction(
            video=video.name,
            length=status.st_size,
            changed=status.st_mtime_ns,
            frames=total,
            stated=stated,
            fps=fps,
            width=width,
            height=height,
            boxes=-1 if boxes is None else len(boxes),
            folder_changed=boxes_changed,
        )
        plain = {"format": FORMAT, "context": context if boxes is not None else None, "every": every, **asdict(done)}
        (draft / "frames.json").write_text(json.dumps(plain, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return done


def read_extraction(
    folder: Path, *, video: Path | None, boxes_changed: int, context: float | None, every: int
) -> Extraction | None:
    """What lies in ``folder``, or ``None`` where nothing does, or something made from another video or otherwise."""
    try:
        plain = json.loads((folder / "frames.json").read_text())
        made = plain.pop("format"), plain.pop("context"), plain.pop("every")
        done = Extraction(**plain)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if made != (FORMAT, context, every) or (done.boxes >= 0 and done.folder_changed != boxes_changed):
        return None
    if video is not None:  # frames outlive videos: whoever deleted those to save space may go on with these
        status = video.stat()
        if (video.name, status.st_size, status.st_mtime_ns) != (done.video, done.length, done.changed):
            return None
    return done


def read_boxes(folder: Path) -> dict[int, Box]:
    """The boxes kept beside extracted frames: frame number → (left, top, right, bottom) in pixels of the whole frame.

    Raises:
        ValueError: the file is damaged.
    """
    table = np.load(folder / "boxes.npy", allow_pickle=False)
    if table.ndim != 2 or table.shape[1] != 5:
        remedy = "delete the folder: it is made again"
        raise ValueError(problem(f"{folder / 'boxes.npy'}", "a table of five columns", table.shape, remedy))
    return {int(row[0]): (row[1], row[2], row[3], row[4]) for row in table.tolist()}
