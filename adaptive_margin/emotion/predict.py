"""Valence and arousal of the faces in pictures and videos: a table, and the pictures with what was found drawn in.

``adaptive-margin predict FACE.jpg --checkpoint run/``
"""

from __future__ import annotations

import csv
import itertools
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..datasets.errors import ImageError
from ..datasets.images import read_image
from ..datasets.layout import VIDEO_SUFFIXES
from ..datasets.transforms import centre_square, normalise, resize_shorter
from ..datasets.video import container_says, decode, opencv
from ..functional.checks import problem
from .detect import Box, Detector, enlarged, face_detector
from .model_file import Preprocessing, load_network
from .nets import EmotionNet

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
COLUMNS = ("source", "frame", "face", "left", "top", "right", "bottom", "valence", "arousal")
COLOURS = ("#3b82c4", "#d9772b", "#2f9e6e", "#d1495b", "#9b6bd1", "#b08a2e")
TRAIL = 24  # frames of a video whose points stay in the inset, fading
CODEC = "mp4v"  # of the videos that are written
LEAST = 256  # smaller pictures are enlarged before anything is written on them

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Face:
    """A face and what the network makes of it.

    Attributes:
        box: (left, top, right, bottom) of what the network saw, in pixels of the picture as shown.
        valence: as predicted, not clipped.
        arousal: likewise.
    """

    box: Box
    valence: float
    arousal: float


class Predictor:
    """A network with its preprocessing and a face detector.

    Args:
        net: encoder and regressor.
        preprocessing: of its input.
        detector: finds faces; None takes each picture as one face, already cut out.
        margin: side of the square that is cut out, over the side of the detector's box. Detectors draw tighter boxes
            than data sets: 1.5 gives about what drawn faces and landmark boxes with a margin of 1.3 show.
        device: where the network runs.

    Example:
        >>> from adaptive_margin.emotion.nets import emotion_net
        >>> predictor = Predictor(emotion_net("small"), Preprocessing(resize=64, size=60))
        >>> [face.box for face in predictor(np.zeros((80, 70, 3), dtype=np.uint8))]
        [(0.0, 0.0, 70.0, 80.0)]
    """

    def __init__(
        self,
        net: EmotionNet,
        preprocessing: Preprocessing,
        detector: Detector | None = None,
        *,
        margin: float = 1.5,
        device: str | torch.device = "cpu",
    ) -> None:
        if not (margin > 0 and math.isfinite(margin)):
            raise ValueError(problem("margin", "positive", margin, "1.5 of the detector's box is usual"))
        self.net = net.to(device).eval()
        self.preprocessing, self.detector, self.margin, self.device = preprocessing, detector, margin, device

    def __call__(self, picture: Bytes) -> list[Face]:
        """The faces of a picture, the largest first; none where the detector finds none.

        Args:
            picture: RGB, uint8, ``(H, W, 3)``.
        """
        height, width = picture.shape[:2]
        if self.detector is None:
            boxes: list[Box] = [(0.0, 0.0, float(width), float(height))]
            crops = [picture]
        else:
            boxes = [enlarged(box, self.margin) for box in self.detector(picture)]
            crops = [cut(picture, box) for box in boxes]
        if not boxes:
            return []
        how = self.preprocessing
        squares = [centre_square(resize_shorter(Image.fromarray(crop), how.resize), how.size) for crop in crops]
        pixels = torch.from_numpy(np.stack([np.asarray(square) for square in squares])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            found = self.net(normalise(pixels, how.mean, how.std).to(self.device)).float().cpu().numpy()
        return [Face(box, float(v), float(a)) for box, (v, a) in zip(boxes, found, strict=True)]


def cut(picture: Bytes, box: Box) -> Bytes:
    """A square out of a picture; where it sticks out, the picture's edge is repeated."""
    left, top = round(box[0]), round(box[1])
    side = max(1, round(box[2] - box[0]))
    rows = np.clip(np.arange(top, top + side), 0, picture.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, picture.shape[1] - 1)
    return picture[rows[:, None], columns[None, :]]


# Drawing


def annotated(
    picture: Bytes,
    faces: Sequence[Face],
    trails: Sequence[Sequence[tuple[float, float]]] = (),
    corner: int | None = None,
) -> Bytes:
    """The picture with a square and two numbers at each face, and a circumplex with their points in a corner.

    Args:
        picture: RGB, uint8, ``(H, W, 3)``.
        faces: of the picture.
        trails: earlier (valence, arousal) of each face, the oldest first.
        corner: of the circumplex, see :func:`free_corner`, which chooses unless it is given.

    Returns:
        RGB, uint8: of the picture's size, or enlarged by a whole number where its shorter side is below 256.
    """
    height, width = picture.shape[:2]
    scale = max(1, math.ceil(LEAST / min(height, width)))
    scale = min(scale, max(1, 4096 // max(height, width)))  # a strip of one pixel stays a strip
    image = Image.fromarray(picture)
    if scale > 1:
        image = image.resize((width * scale, height * scale), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    unit = max(1.0, min(image.size) / 256)
    font = ImageFont.load_default(size=max(10, round(11 * unit)))
    whole = len(faces) == 1 and faces[0].box == (0.0, 0.0, float(width), float(height))
    for number, face in enumerate(faces):
        colour = COLOURS[number % len(COLOURS)]
        left, top, right, bottom = (value * scale for value in face.box)
        if not whole:
            draw.rectangle((left, top, right, bottom), outline=colour, width=max(2, round(1.5 * unit)))
        text = f"V {face.valence:+.2f}  A {face.arousal:+.2f}"
        if len(faces) > 1:
            text = f"{number + 1}  {text}"
        _label(draw, image.size, left, bottom if not whole else image.size[1], text, colour, font, unit)
    _circumplex(image, faces, trails, free_corner(picture.shape, faces) if corner is None else corner)
    return np.asarray(image)


def _label(
    draw: Any, size: tuple[int, int], left: float, bottom: float, text: str, colour: str, font: Any, unit: float
) -> None:
    """A line of text on a plate under a face, moved so that all of it is inside the picture."""
    x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)
    pad = round(3 * unit)
    w, h = x1 - x0 + 2 * pad, y1 - y0 + 2 * pad
    x = min(max(0, left), max(0, size[0] - w))
    y = min(max(0, bottom), max(0, size[1] - h))
    draw.rectangle((x, y, x + w, y + h), fill=colour)
    draw.text((x + pad - x0, y + pad - y0), text, fill="white", font=font)


INSET = 0.32  # of the picture's shorter side


def free_corner(shape: Sequence[int], faces: Sequence[Face]) -> int:
    """The corner that faces leave free, or cover least: 0 upper right, 1 upper left, 2 lower right, 3 lower left.

    Args:
        shape: (height, width, ...) of the picture.
        faces: in it.

    Example:
        >>> free_corner((100, 200), [Face((140.0, 0.0, 200.0, 60.0), 0.0, 0.0)])
        1
    """
    height, width = shape[:2]
    side = INSET * min(height, width)

    def covered(corner: int) -> float:
        left, top = (0.0 if corner % 2 else width - side), (height - side if corner > 1 else 0.0)
        shared = 0.0
        for face in faces:
            x0, y0, x1, y1 = enlarged(face.box, 0.7)  # what was cut out is wider than the face
            w, h = min(x1, left + side) - max(x0, left), min(y1, top + side) - max(y0, top)
            shared += max(0.0, w) * max(0.0, h)
        return shared

    return min(range(4), key=covered)


def _circumplex(
    image: Image.Image, faces: Sequence[Face], trails: Sequence[Sequence[tuple[float, float]]], corner: int
) -> None:
    """The valence-arousal plane in a corner, drawn at four times its size and shrunk."""
    side = round(min(min(image.size) * INSET, 260))
    if side < 40:
        return
    fine = 4
    s = side * fine
    inset = Image.new("RGBA", (s, s), (0, 0, 0, 0))
    draw = ImageDraw.Draw(inset)
    centre, radius = s / 2, s * 0.40
    draw.rounded_rectangle((0, 0, s - 1, s - 1), radius=s // 14, fill=(18, 21, 27, 205))
    line = (255, 255, 255, 110)
    draw.ellipse((centre - radius, centre - radius, centre + radius, centre + radius), outline=line, width=fine)
    draw.line((centre - radius, centre, centre + radius, centre), fill=line, width=fine)
    draw.line((centre, centre - radius, centre, centre + radius), fill=line, width=fine)
    font = ImageFont.load_default(size=max(9 * fine, s // 13))
    draw.text((s * 0.985, centre - fine), "V", fill=(255, 255, 255, 230), font=font, anchor="rb")
    draw.text((centre + 2 * fine, s * 0.005), "A", fill=(255, 255, 255, 230), font=font, anchor="lt")

    def at(valence: float, arousal: float) -> tuple[float, float]:
        reach = max(1.0, math.hypot(valence, arousal) / 1.12)  # a prediction may lie outside: it stays in the inset
        return centre + radius * valence / reach, centre - radius * arousal / reach

    for number, face in enumerate(faces):
        colour = tuple(int(COLOURS[number % len(COLOURS)][i : i + 2], 16) for i in (1, 3, 5))
        trail = [at(*point) for point in (trails[number] if number < len(trails) else ())]
        for step, (start, end) in enumerate(itertools.pairwise(trail)):
            draw.line((*start, *end), fill=(*colour, round(40 + 190 * step / len(trail))), width=2 * fine)
        x, y = at(face.valence, face.arousal)
        dot = max(4 * fine, s // 26)
        draw.ellipse(
            (x - dot, y - dot, x + dot, y + dot), fill=(*colour, 255), outline=(255, 255, 255, 255), width=fine
        )
    small = inset.resize((side, side), Image.Resampling.LANCZOS)
    gap = round(side * 0.06)
    x = gap if corner % 2 else image.width - side - gap
    y = image.height - side - gap if corner > 1 else gap
    image.paste(small, (x, y), small)


# Files


class VideoWriterError(RuntimeError):
    """OpenCV cannot write a video; the message names the file and the codec."""


@dataclass
class Outcome:
    """What became of everything that was asked.

    Attributes:
        table: the CSV file.
        pictures: pictures and videos read.
        faces: rows written.
        without_face: pictures in which no face was found.
        unreadable: file → why.
        interrupted: whether Ctrl-C ended it; what was written is there.
    """

    table: Path
    pictures: int = 0
    faces: int = 0
    without_face: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


def predict(
    source: str | Path,
    predictor: Predictor,
    output: str | Path,
    *,
    annotate: bool = True,
    tell: Callable[[str], None] = print,
) -> Outcome:
    """Predicts an image, a folder of images and videos (searched to any depth), or a video.

    In ``output``: ``predictions.csv``, a row for each face with its source, frame (videos, from 1), number, box and
    (valence, arousal), written as it is found; and each picture and video with what was found drawn in, under the name
    that :func:`output_names` gives it. EXIF orientation is followed; any mode Pillow reads becomes RGB. Unreadable
    files are named, skipped and counted.

    Args:
        source: file or folder.
        predictor: network and detector.
        output: folder, made if need be.
        annotate: write pictures and videos too.
        tell: gets a line for each file that is skipped.

    Returns:
        What was read, found and skipped. Ctrl-C ends it early with what there is.

    Raises:
        ValueError: there is no such source, a folder without any, or something would be written over a source.
        VideoWriterError: a video cannot be written, for want of a codec for instance.
    """
    source, output = Path(source), Path(output)
    files = list(find_files(source, output))
    root = source if source.is_dir() else source.parent
    targets = output_names([path.relative_to(root).as_posix() for path in files])
    outcome = Outcome(output / "predictions.csv")
    _keep_sources(files, [outcome.table, *(output / target for target in targets.values() if annotate)])
    output.mkdir(parents=True, exist_ok=True)
    with open(outcome.table, "w", newline="", encoding="utf-8") as table:
        rows = csv.writer(table)
        rows.writerow(COLUMNS)
        try:
            for path in files:
                name = path.relative_to(root).as_posix()
                target = output / targets[name] if annotate else None
                try:
                    if path.suffix.lower() in VIDEO_SUFFIXES:
                        _video(path, name, predictor, target, rows, table, outcome)
                    else:
                        _picture(path, name, predictor, target, rows, table, outcome)
                except ImageError as error:
                    outcome.unreadable[name] = f"{error.reason}: {error.detail}"
                    tell(f"{name}: {error.reason} ({error.detail}), skipped")
        except KeyboardInterrupt:
            outcome.interrupted = True
    return outcome


def output_names(names: Sequence[str]) -> dict[str, str]:
    """What each picture and video is called once it is drawn in: ``.jpg`` stays, other pictures are ``.png``, videos
    ``.mp4``. Where two would get one name, the one that has it already keeps it, and the others keep their old ending
    in front of the new one. Names that differ in case alone count as one, as on some disks they are.

    Args:
        names: the files, relative to the source, with slashes.

    Example:
        >>> output_names(["a.bmp", "a.png", "b.tiff", "v.avi", "v.mov"])
        {'a.bmp': 'a.bmp.png', 'a.png': 'a.png', 'b.tiff': 'b.png', 'v.avi': 'v.avi.mp4', 'v.mov': 'v.mov.mp4'}
    """
    endings: dict[str, str] = {}
    plain: dict[str, str] = {}
    for name in names:
        suffix = Path(name).suffix.lower()
        endings[name] = ".mp4" if suffix in VIDEO_SUFFIXES else ".jpg" if suffix == ".jpg" else ".png"
        plain[name] = Path(name).with_suffix(endings[name]).as_posix()
    asked = Counter(target.casefold() for target in plain.values())
    taken: set[str] = set()
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: plain[name] != name):  # those that keep their own name first
        target = plain[name]
        if asked[target.casefold()] > 1 and target != name:
            target = name + endings[name]
        number = 1
        while target.casefold() in taken:
            number += 1
            target = f"{name}-{number}{endings[name]}"
        taken.add(target.casefold())
        found[name] = target
    return {name: found[name] for name in names}


def find_files(source: Path, output: Path) -> Iterator[Path]:
    """The images and videos in a source, sorted by name; the output's own folder is left out.

    Raises:
        ValueError: there are none.
    """
    if source.is_file():
        yield source
        return
    if not source.is_dir():
        remedy = "pass an image, a video, or a folder of them"
        raise ValueError(problem("source", "a file or folder", f"{source}, which is not there", remedy))
    inside = output.resolve()
    around = source.resolve()
    if inside == around:
        raise ValueError(problem("output", "another folder than the source", output, "pass --output DIR"))
    found = [
        path
        for path in sorted(source.rglob("*"))
        if path.is_file()
        and path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
        and not (around in inside.parents and inside in path.resolve().parents)  # one above the source holds it all
    ]
    if not found:
        endings = ", ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        raise ValueError(
            problem("source", f"a folder with files that end in {endings}", f"{source} with none", "check it")
        )
    yield from found


def _keep_sources(files: Sequence[Path], targets: Sequence[Path]) -> None:
    """Raises where a target is one of the files, under whatever name: nothing is written over what is read."""
    sources = {_identity(path) for path in files}
    for target in targets:
        there = target.resolve()  # of a/../b, also before a is made
        if there.exists() and _identity(there) in sources:
            got, remedy = f"one in which {target} is a source itself", "pass --output DIR with another folder"
            raise ValueError(problem("output", "a folder in which no source is overwritten", got, remedy))


def _identity(path: Path) -> tuple[int, int]:
    """What two names of one file share, be they links or differ in case on a disk that does not mind."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _write_rows(rows: Any, table: IO[str], name: str, frame: int | None, faces: Sequence[Face]) -> None:
    for number, face in enumerate(faces, 1):
        box = [f"{value:.1f}" for value in face.box]
        rows.writerow([name, frame or "", number, *box, f"{face.valence:.6f}", f"{face.arousal:.6f}"])
    table.flush()


def _picture(
    path: Path, name: str, predictor: Predictor, target: Path | None, rows: Any, table: IO[str], outcome: Outcome
) -> None:
    picture = np.asarray(read_image(path, exif=True))
    faces = predictor(picture)
    outcome.pictures += 1
    outcome.faces += len(faces)
    if not faces:
        outcome.without_face.append(name)
    _write_rows(rows, table, name, None, faces)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(annotated(picture, faces)).save(target, quality=92)


def _video(
    path: Path, name: str, predictor: Predictor, target: Path | None, rows: Any, table: IO[str], outcome: Outcome
) -> None:
    """Frame by frame; of several faces, those nearest to the last frame's go on with their trails."""
    cv2 = opencv()
    fps = container_says(path)[1] or 25.0
    writer: Any = None
    before: list[Face] = []
    trails: list[list[tuple[float, float]]] = []
    frames = found = 0
    corner: int | None = None  # where the first faces left one free; it does not jump about
    try:
        for frame in decode(path):
            frames += 1
            picture = np.ascontiguousarray(frame[:, :, ::-1])
            faces, trails = followed(predictor(picture), before, trails)
            before = faces
            found += len(faces)
            outcome.faces += len(faces)
            _write_rows(rows, table, name, frames, faces)
            if target is not None:
                if corner is None and faces:
                    corner = free_corner(picture.shape, faces)
                drawn = annotated(picture, faces, trails, corner)
                drawn = drawn[: drawn.shape[0] // 2 * 2, : drawn.shape[1] // 2 * 2]  # codecs want even sides
                if writer is None:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    writer = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*CODEC), fps, drawn.shape[1::-1])
                    if not writer.isOpened():  # it would swallow every frame
                        raise VideoWriterError(
                            f"{target} could not be opened for writing with the codec {CODEC} by OpenCV "
                            f"{cv2.__version__}: install the wheel that has it (pip install 'adaptive-margin[fer]'), "
                            "check that the folder can be written in, or ask for the table only (--no-pictures, or "
                            "annotate=False)"
                        )
                writer.write(np.ascontiguousarray(drawn[:, :, ::-1]))
    finally:
        if writer is not None:
            writer.release()  # also after Ctrl-C: what was written can be played
    if not frames:
        raise ImageError(path, "undecodable", "no frame of it can be decoded")
    outcome.pictures += 1
    if not found:
        outcome.without_face.append(name)


def followed(
    faces: Sequence[Face], before: Sequence[Face], trails: Sequence[list[tuple[float, float]]]
) -> tuple[list[Face], list[list[tuple[float, float]]]]:
    """Faces in the last frame's order where they overlap, new ones behind, and each one's trail with its new point.

    Example:
        >>> a, b = Face((0.0, 0.0, 9.0, 9.0), 0.1, 0.2), Face((50.0, 0.0, 60.0, 9.0), 0.3, 0.4)
        >>> faces, trails = followed([b, a], [a, b], [[(0.0, 0.0)], [(1.0, 1.0)]])
        >>> faces == [a, b], trails
        (True, [[(0.0, 0.0), (0.1, 0.2)], [(1.0, 1.0), (0.3, 0.4)]])
    """
    left = list(faces)
    ordered, lines = [], []
    for old, trail in zip(before, trails, strict=True):
        nearest = max(left, key=lambda face: overlap(face.box, old.box), default=None)
        if nearest is not None and overlap(nearest.box, old.box) > 0.2:
            left.remove(nearest)
            ordered.append(nearest)
            lines.append([*trail, (nearest.valence, nearest.arousal)][-TRAIL:])
    for new in left:
        ordered.append(new)
        lines.append([(new.valence, new.arousal)])
    return ordered, lines


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes.

    Example:
        >>> overlap((0.0, 0.0, 2.0, 1.0), (1.0, 0.0, 3.0, 1.0))
        0.3333333333333333
    """
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return w * h / (areas - w * h)


def load_predictor(
    checkpoint: str | os.PathLike[str], *, crops: bool = False, margin: float = 1.5, device: str = "cpu"
) -> Predictor:
    """A predictor from a model file or run folder.

    Args:
        checkpoint: see :func:`~adaptive_margin.emotion.model_file.load_network`.
        crops: pictures are faces already: no detector is needed.
        margin: see :class:`Predictor`.
        device: where the network runs.

    Raises:
        NoDetectorError: none is installed, and ``crops`` is off.
        ValueError: no model file.
    """
    detector = None if crops else face_detector()
    net, preprocessing = load_network(checkpoint, device)
    return Predictor(net, preprocessing, detector, margin=margin, device=device)


def summary(outcome: Outcome) -> str:
    """What a user is told at the end."""
    text = f"{outcome.faces:,} faces in {outcome.pictures:,} files: {outcome.table}"
    if outcome.without_face:
        some = ", ".join(outcome.without_face[:5]) + (", …" if len(outcome.without_face) > 5 else "")
        text += f"\n{len(outcome.without_face):,} without a face: {some}"
    if outcome.unreadable:
        text += f"\n{len(outcome.unreadable):,} unreadable, skipped"
    if outcome.interrupted:
        text += "\ninterrupted: what was found so far is in the table"
    return text


def tell_on_stderr(line: str) -> None:
    """Warnings go where they do not mix with results."""
    print(line, file=sys.stderr, flush=True)
