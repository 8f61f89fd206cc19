"""Predicts valence and arousal of the faces in pictures and videos: a table, and the pictures with the results drawn
in.

``adaptive-margin predict FACE.jpg FOLDER --checkpoint run/``
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import itertools
import json
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..atomic import write_atomically
from ..choices import DetectorName
from ..images._layout import VIDEO_SUFFIXES, endings, identity, litter, said_endings
from ..images.decode import IMAGE_SUFFIXES, read_image
from ..images.errors import UNDECODABLE, UNREADABLE, ImageError
from ..images.transforms import centre_square, normalise, resize_shorter
from ..images.video import Timeline, decode, opencv, timeline
from ..messages import counted, pip_install, printable, problem, shorten
from ..metrics.comparison import signed
from .detect import Box, Detector, Found, enlarged, face_detector
from .model_file import Preprocessing, network_of, read_network
from .nets import EmotionNet, PersonNorm

BOX = ("left", "top", "right", "bottom")
COLUMNS = ("source", "frame", "face", *BOX, "valence", "arousal", "seconds", "roll", "warning")
PERSON = ("person_valence", "person_arousal")  # after arousal, where all pictures are of one person
DIGITS = dict.fromkeys(BOX, 1) | dict.fromkeys(("valence", "arousal", *PERSON), 6) | {"seconds": 3, "roll": 1}
UPRIGHT = 15.0  # degrees: faces that lean by less are not turned, as data sets do not turn them
COLOURS = ("#3b82c4", "#d9772b", "#2f9e6e", "#d1495b", "#9b6bd1", "#b08a2e")
TRAIL = 24  # frames of a video whose points stay in the inset, fading
CODECS = ("vp09", "mp4v")  # of the videos that are written, by preference: browsers play VP9, and not MPEG-4 Part 2
BATCH_PIXELS = 32_000_000  # of the pictures that are in memory at a time: 384 MB with what is drawn
DRAWN = "trained on drawn faces: not valid for photographs"
UNEVEN_RATE = 30.0  # frame rate of the output for a video whose frames are not evenly spaced
LEAST = 256  # smaller pictures are enlarged before anything is written on them

Bytes = NDArray[np.uint8]
Key = tuple[Path, int | None]  # a picture, or a frame of a video

UNREACHABLE = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOENT, errno.ELOOP}
"""System errors that concern one file, so that the others can still be predicted."""
LONGEST = 255  # bytes of a file's name


@dataclass(frozen=True)
class Face:
    """A face and the network's prediction for it.

    Attributes:
        box: (left, top, right, bottom) of the area that the network saw, in pixels of the picture as displayed.
        valence: as predicted, not clipped.
        arousal: likewise.
        roll: how far the area was turned clockwise before the network saw it, degrees, to be upright.
        by_person: (valence, arousal) read with the features normalised by all pictures of the person, if they are known
            to be of one.
    """

    box: Box
    valence: float
    arousal: float
    roll: float = 0.0
    by_person: tuple[float, float] | None = None

    @property
    def shown(self) -> tuple[float, float]:
        """(valence, arousal) as drawn: by person where that is known."""
        return self.by_person or (self.valence, self.arousal)


class Predictor:
    """A network with its preprocessing and a face detector.

    Args:
        net: encoder and regressor.
        preprocessing: of its input.
        detector: finds faces; with None each picture is one face, already cropped.
        margin: side of the crop, as a multiple of the side of the detector's box. Detectors give tighter boxes than
            data sets: 1.5 gives about the same area as drawn faces and landmark boxes with a margin of 1.3.
        device: where the network runs.
        warning: what every output says beside the predictions; empty for none.

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
        warning: str = "",
    ) -> None:
        if not (margin > 0 and math.isfinite(margin)):
            raise ValueError(problem("margin", "positive", margin, "1.5 of the detector's box is usual"))
        self.net = net.to(device).eval()
        self.preprocessing, self.detector, self.margin, self.device = preprocessing, detector, margin, device
        self.warning = warning

    def __call__(self, picture: Bytes) -> list[Face]:
        """The faces of a picture, the largest first; empty if the detector finds none.

        Args:
            picture: RGB, uint8, ``(H, W, 3)``.
        """
        return self.several([picture])[0]

    def several(self, pictures: Sequence[Bytes], *, same_person: bool = False) -> list[list[Face]]:
        """The faces of each picture; all faces go through the network at once.

        Args:
            pictures: RGB, uint8, each ``(H, W, 3)``; they may differ in size.
            same_person: the largest face of each picture is one and the same person's: it is also read with features
                normalised by those of the others (``by_person``), as :class:`~adaptive_margin.emotion.nets.PersonNorm`
                does. A single face has nothing to be normalised by and gets no such reading.

        Raises:
            ValueError: ``same_person``, and the network was not trained with ``person_norm``.
        """
        if same_person:
            self.norm()
        faces, features = self.rated(pictures)
        return self.normalised(faces, features) if same_person else faces

    def norm(self) -> PersonNorm:
        """What normalises the network's features by person.

        Raises:
            ValueError: nothing does.
        """
        found = self.net.person_norm
        if found is None:
            remedy = "train one with --person-norm, or leave --same-person (same_person) out"
            raise ValueError(problem("the network, for --same-person,", "trained with person_norm", "another", remedy))
        return found

    def normalised(self, faces: Sequence[list[Face]], features: Tensor) -> list[list[Face]]:
        """The same faces, of which the largest of each picture is read with features normalised by each other.

        Args:
            faces: of each picture, as :meth:`rated` returns them; several results may be put together.
            features: of the largest face of each picture that has one.
        """
        if len(features) < 2:
            return list(faces)
        with torch.inference_mode(), self.norm().known(torch.zeros(len(features), device=self.device)):
            rated = iter(self.net.regressor(features.to(self.device)).float().cpu().tolist())
        return [[replace(of[0], by_person=tuple(next(rated))), *of[1:]] if of else [] for of in faces]

    def rated(self, pictures: Sequence[Bytes]) -> tuple[list[list[Face]], Tensor]:
        """The faces of each picture, and the encoder's features of the largest one of each that has any, ``(K, F)``."""
        found = [self._find(picture) for picture in pictures]
        squares = [square for _, of_one in found for square in of_one]
        if not squares:
            return [[] for _ in pictures], torch.empty(0, self.net.encoder.features)
        pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
        how = self.preprocessing
        with torch.inference_mode():
            features = self.net.encoder(normalise(pixels, how.mean, how.std).to(self.device))
            rated = iter(self.net.regressor(features).float().cpu().tolist())
        faces = [
            [Face(box, valence, arousal, roll) for (box, roll), (valence, arousal) in zip(places, rated, strict=False)]
            for places, _ in found
        ]
        before = itertools.accumulate(map(len, faces), initial=0)
        return faces, features[[start for start, of in zip(before, faces, strict=False) if of]]

    def _find(self, picture: Bytes) -> tuple[list[tuple[Box, float]], list[Bytes]]:
        """Box and roll of a picture's faces, and what the network sees of each."""
        height, width = picture.shape[:2]
        if self.detector is None:
            places: list[tuple[Box, float]] = [((0.0, 0.0, float(width), float(height)), 0.0)]
            crops = [picture]
        else:
            found = [Found(*face) for face in self.detector(picture)]
            places = [
                (enlarged(face[:4], self.margin), face.roll if abs(face.roll) > UPRIGHT else 0.0) for face in found
            ]
            crops = [cut(picture, box, roll) for box, roll in places]
        how = self.preprocessing
        squares = [centre_square(resize_shorter(Image.fromarray(crop), how.resize), how.size) for crop in crops]
        return places, [np.asarray(square) for square in squares]


def cut(picture: Bytes, box: Box, roll: float = 0.0) -> Bytes:
    """A square crop of a picture; where it extends beyond the picture, the edge is repeated.

    Args:
        picture: RGB, uint8, ``(H, W, 3)``.
        box: the square as it is in the result.
        roll: how far the square is turned clockwise in the picture, degrees.
    """
    if roll:
        around = Image.fromarray(cut(picture, enlarged(box, 1.5))).rotate(roll, Image.Resampling.BILINEAR)
        side = max(1, round(box[2] - box[0]))
        start = (around.width - side) // 2
        return np.asarray(around.crop((start, start, start + side, start + side)))
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
    warning: str = "",
) -> Bytes:
    """The picture with a square and two numbers at each face, and a circumplex with their points in a corner.

    Args:
        picture: RGB, uint8, ``(H, W, 3)``.
        faces: the faces of the picture.
        trails: earlier (valence, arousal) of each face, the oldest first.
        corner: corner of the circumplex; by default :func:`free_corner` chooses it.
        warning: a line on a plate along the upper edge; empty for none.

    Returns:
        RGB, uint8: of the picture's size, or enlarged by an integer factor if its shorter side is below 256.
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
            _outline(draw, (left, top, right, bottom), face.roll, colour, max(2, round(1.5 * unit)))
        valence, arousal = (signed(value, 2).replace("−", "-") for value in face.shown)  # no true minus in this font
        text = f"V {valence}  A {arousal}"
        if len(faces) > 1:
            text = f"{number + 1}  {text}"
        _label(draw, image.size, left, bottom if not whole else image.size[1], text, colour, font, unit)
    plate = _warning(draw, image.size, warning, unit) if warning else 0
    _circumplex(image, faces, trails, free_corner(picture.shape, faces) if corner is None else corner, plate)
    return np.asarray(image)


def _warning(draw: Any, size: tuple[int, int], text: str, unit: float) -> int:
    """A line on a plate along the upper edge, as small as it has to be to fit; returns the plate's height."""
    points = max(10, round(9 * unit))
    while points > 6 and draw.textlength(text, font=ImageFont.load_default(size=points)) > size[0] - 8:
        points -= 1
    font = ImageFont.load_default(size=points)
    height = round(1.7 * points)
    draw.rectangle((0, 0, size[0], height), fill="#7a1f2b")
    draw.text((4, height / 2), text, fill="white", font=font, anchor="lm")
    return height


def _outline(draw: Any, box: Box, roll: float, colour: str, width: int) -> None:
    """The square that the network saw, turned as it was."""
    if not roll:
        draw.rectangle(box, outline=colour, width=width)
        return
    x, y, half = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, (box[2] - box[0]) / 2
    cosine, sine = half * math.cos(math.radians(roll)), half * math.sin(math.radians(roll))
    ways = ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))
    draw.line([(x + a * cosine - b * sine, y + a * sine + b * cosine) for a, b in ways], colour, width, "curve")


def _label(
    draw: Any, size: tuple[int, int], left: float, bottom: float, text: str, colour: str, font: Any, unit: float
) -> None:
    """A line of text on a plate under a face, moved so that it is entirely inside the picture."""
    x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)
    pad = round(3 * unit)
    w, h = x1 - x0 + 2 * pad, y1 - y0 + 2 * pad
    x = min(max(0, left), max(0, size[0] - w))
    y = min(max(0, bottom), max(0, size[1] - h))
    draw.rectangle((x, y, x + w, y + h), fill=colour)
    draw.text((x + pad - x0, y + pad - y0), text, fill="white", font=font)


INSET = 0.32  # of the picture's shorter side


def free_corner(shape: Sequence[int], faces: Sequence[Face]) -> int:
    """The corner that is free of faces, or covered least: 0 upper right, 1 upper left, 2 lower right, 3 lower left.

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
            x0, y0, x1, y1 = enlarged(face.box, 0.7)  # the crop is wider than the face
            w, h = min(x1, left + side) - max(x0, left), min(y1, top + side) - max(y0, top)
            shared += max(0.0, w) * max(0.0, h)
        return shared

    return min(range(4), key=covered)


def _circumplex(
    image: Image.Image,
    faces: Sequence[Face],
    trails: Sequence[Sequence[tuple[float, float]]],
    corner: int,
    below: int = 0,
) -> None:
    """The valence-arousal plane in a corner, drawn at four times its size and shrunk; ``below`` a plate's height."""
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
        x, y = at(*face.shown)
        dot = max(4 * fine, s // 26)
        draw.ellipse(
            (x - dot, y - dot, x + dot, y + dot), fill=(*colour, 255), outline=(255, 255, 255, 255), width=fine
        )
    small = inset.resize((side, side), Image.Resampling.LANCZOS)
    gap = round(side * 0.06)
    x = gap if corner % 2 else image.width - side - gap
    y = image.height - side - gap if corner > 1 else gap + below
    image.paste(small, (x, y), small)


# Files


class VideoWriterError(RuntimeError):
    """OpenCV cannot write a video; the message names the file and the codec."""


@dataclass
class Outcome:
    """The result of a prediction run.

    Attributes:
        table: the CSV file.
        pictures: pictures and videos read.
        faces: rows written.
        without_face: pictures in which no face was found.
        unreadable: file → why.
        lost: video → the numbers of its frames that do not decode.
        passed_over: file extension → number of files in a folder that are neither pictures nor videos by extension.
        warning: what every output says beside the predictions; empty for none.
        interrupted: whether Ctrl-C ended it; the output so far remains.
        of_person: with ``same_person``, number of faces of this person; None otherwise.
        in_company: with ``same_person``, number of pictures and frames with other faces, too.
    """

    table: Path
    pictures: int = 0
    faces: int = 0
    without_face: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    lost: dict[str, tuple[int, ...]] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    warning: str = ""
    interrupted: bool = False
    of_person: int | None = None
    in_company: int = 0


def predict(
    source: str | Path | Sequence[str | Path],
    predictor: Predictor,
    output: str | Path,
    *,
    annotate: bool = True,
    as_json: bool = False,
    overwrite: bool = False,
    batch_size: int = 16,
    same_person: bool = False,
    tell: Callable[[str], None] = print,
) -> Outcome:
    """Predicts images, folders of images and videos (searched to any depth), and videos.

    In ``output``: ``predictions.csv``, a row for each face with its source, frame (videos, from 1), number, box,
    (valence, arousal), for videos the second, how far it was turned, and the predictor's warning, written as soon as
    its batch is done; with ``as_json`` the same rows in ``predictions.json`` at the end; and each picture and video
    with the results drawn in, under the name from :func:`output_names`. EXIF orientation is applied; every mode that
    Pillow reads is converted to RGB. Unreadable files, and frames of a video that do not decode, are named, skipped and
    counted; frames are numbered by their time stamps (:mod:`~adaptive_margin.images.video`), so the numbers of the
    others do not change. Any other error is raised when what was read before it has been written.

    Sources are named relative to the folder; those of several inputs relative to the folder that holds them all.
    Names in the table can always be written, and a spreadsheet does not read them as formulas: names that are not valid
    text are escaped by :func:`~adaptive_margin.messages.printable`, and ``=a.jpg`` becomes ``./=a.jpg``, the same
    file.

    Videos are written as VP9 in ``.mp4``, which browsers play; where OpenCV lacks it, as MPEG-4 Part 2, which they do
    not, and ``tell`` says so.

    With ``same_person`` all sources show one person, the largest face where there are several. The table then also has
    ``person_valence`` and ``person_arousal``, read with this person's features normalised by each other, and the
    pictures show these. Files are read twice, as the normalisation needs all faces; features stay in memory.

    Args:
        source: file or folder, or several of them; a file that is in two of them is read once.
        predictor: network and detector.
        output: folder, created if necessary.
        annotate: write pictures and videos too.
        as_json: write ``predictions.json`` too.
        overwrite: replace existing files; a link itself is replaced, not its target. A ``predictions.json`` of an
            earlier run is replaced, too.
        batch_size: pictures, or frames of a video, whose faces go through the network at once.
        same_person: all sources show one person.
        tell: called with a line for each skipped file or folder, and for each video with skipped frames.

    Returns:
        What was read, found and skipped. After Ctrl-C, the results so far.

    Raises:
        ValueError: a source does not exist, or is a folder without pictures or videos; a source would be overwritten,
            a file would be written through a link to another folder, or, without ``overwrite``, any file would be
            overwritten; ``same_person``, and the network was not trained with ``person_norm``. Nothing has been written
            then.
        VideoWriterError: a video cannot be written, for instance because a codec is missing.
    """
    if batch_size < 1:
        raise ValueError(problem("batch_size", "at least 1", batch_size, "16 is the default"))
    if same_person:
        predictor.norm()
    output = Path(output)
    passed_over: Counter[str] = Counter()
    files = _named([source] if isinstance(source, (str, Path)) else source, output, passed_over, tell)
    targets = output_names(list(files))
    outcome = Outcome(output / "predictions.csv", passed_over=dict(passed_over), warning=predictor.warning)
    as_list = output / "predictions.json"
    as_json = as_json or os.path.lexists(as_list)  # an earlier one would not belong to the new table
    written = [
        outcome.table,
        *([as_list] if as_json else []),
        *(output / target for target in targets.values() if annotate),
    ]
    _check_targets(output, written, files.values(), overwrite)
    codec = CODECS[0]
    if annotate:
        codec = _codec(next((target for target in written if target.suffix == ".mp4"), None), tell)
    output.mkdir(parents=True, exist_ok=True)
    outcome.table.unlink(missing_ok=True)  # a link is replaced, not followed
    with open(outcome.table, "x", newline="", encoding="utf-8") as table:
        run = _Run(predictor, outcome, table, codec, batch_size, tell)
        try:
            if same_person:
                look = _FirstLook(predictor, Outcome(outcome.table), io.StringIO(), codec, batch_size, tell)
                look.read_all(files, {})
                if look.outcome.interrupted or look.error:
                    files = {name: path for name, path in files.items() if path in look.whole}
                    outcome.unreadable |= look.outcome.unreadable
                outcome.interrupted = look.outcome.interrupted
                run.known, run.tell = look.normalised(), lambda line: None  # the first look said it all
                outcome.of_person = len(look.features)
                outcome.in_company = sum(len(faces) > 1 for faces in run.known.values())
                run.error = look.error
            run.rows.writerow(run.columns)
            run.read_all(files, {name: output / targets[name] for name in files if annotate})
        finally:
            if as_json:
                write_atomically(as_list, (json.dumps(run.listed, indent=1, ensure_ascii=False) + "\n").encode())
    if run.error:
        tell(f"stopped by an error: what was found before it is in {printable(str(outcome.table))}")
        raise run.error
    return outcome


def _named(
    sources: Sequence[str | Path], output: Path, passed_over: Counter[str], tell: Callable[[str], None]
) -> dict[str, Path]:
    """Each file of the sources under its name: relative to a folder, or to the one that holds all sources."""
    given = [Path(source) for source in sources]
    if not given:
        raise ValueError(problem("source", "one or more", "none", "pass an image, a video, or a folder of them"))
    found: dict[object, Path] = {}
    for each in given:
        for path in find_files(each, output, passed_over, tell):
            first = found.setdefault(_identity(path), path)
            if os.path.abspath(first) != os.path.abspath(path):
                tell(printable(f"{path}: the same file as {first}, read once"))
    around = [each if each.is_dir() else each.parent for each in given]
    if len(given) == 1:
        return {path.relative_to(around[0]).as_posix(): path for path in found.values()}
    root = os.path.commonpath([os.path.abspath(each) for each in around])
    return {Path(os.path.relpath(path, root)).as_posix(): path for path in found.values()}


def _identity(path: Path) -> object:
    """What all names of a file share; the name itself if the file cannot be reached."""
    try:
        return identity(path)
    except OSError:
        return path


def _said(numbers: Sequence[int]) -> str:
    some = shorten([f"{number:,}" for number in numbers], most=10)
    return f"frame {some}" if len(numbers) == 1 else f"{len(numbers):,} frames ({some})"


def output_names(names: Sequence[str]) -> dict[str, str]:
    """The output name of each file, relative to its source: ``.jpg`` stays, other pictures become ``.png``, videos
    ``.mp4``. If two would get the same name, the one that already has it keeps it, and the others keep their old
    extension in front of the new one. Names that differ only in case count as the same, as they do on some disks.
    A name that is too long for a disk is cut.

    Example:
        >>> output_names(["a.bmp", "a.png", "b.tiff", "v.avi", "v.mov"])
        {'a.bmp': 'a.bmp.png', 'a.png': 'a.png', 'b.tiff': 'b.png', 'v.avi': 'v.avi.mp4', 'v.mov': 'v.mov.mp4'}
    """
    ending: dict[str, str] = {}
    plain: dict[str, str] = {}
    for name in names:
        suffix = Path(name).suffix.lower()
        ending[name] = ".mp4" if suffix in VIDEO_SUFFIXES else ".jpg" if suffix == ".jpg" else ".png"
        plain[name] = Path(name).with_suffix(ending[name]).as_posix()
    asked = Counter(target.casefold() for target in plain.values())
    taken: set[str] = set()
    found: dict[str, str] = {}

    def fitting(name: str, end: str) -> str:
        while len(os.fsencode(Path(name).name + end)) > LONGEST:
            name = name[:-1]
        return name + end

    for name in sorted(names, key=lambda name: plain[name] != name):  # those that keep their own name first
        target = fitting(plain[name].removesuffix(ending[name]), ending[name])
        if asked[target.casefold()] > 1 and target != name:
            target = fitting(name, ending[name])
        number = 1
        while target.casefold() in taken:
            number += 1
            target = fitting(name, f"-{number}{ending[name]}")
        taken.add(target.casefold())
        found[name] = target
    return {name: found[name] for name in names}


def find_files(
    source: Path,
    output: Path,
    passed_over: Counter[str] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[Path]:
    """The images and videos in a file or folder, recognised by extension and sorted by name; ``output`` is left out.

    ``passed_over`` counts the folder's other files by extension; ``tell`` is called with a line for each folder that is
    left out, because it is a link or cannot be read. A ``ValueError`` says that there are no images or videos.
    """
    if source.is_file():
        yield source
        return
    if not source.is_dir():
        remedy = "pass an image, a video, or a folder of them"
        raise ValueError(problem("source", "a file or folder", f"{source}, which does not exist", remedy))
    inside = output.resolve()
    around = source.resolve()
    if inside == around:
        raise ValueError(problem("output", "a folder other than the source", output, "pass --output DIR"))

    def unreadable(error: OSError) -> None:
        tell(printable(f"{error.filename}: the folder cannot be read ({error.strerror}), skipped"))

    paths: list[Path] = []
    for place, folders, names in os.walk(source, onerror=unreadable):
        folders[:] = [name for name in folders if not litter(name)]
        for link in filter(Path.is_symlink, (Path(place, name) for name in sorted(folders))):
            if around not in link.resolve().parents:  # what is inside is read anyway
                tell(printable(f"{link}: a link to a folder, skipped (pass the folder itself, too)"))
        paths += (Path(place, name) for name in names if not litter(name))
    found = []
    others: list[str] = []
    for path in sorted(paths):
        if os.path.exists(path) and not os.path.isfile(path):  # a device, a socket
            continue
        if around in inside.parents and inside in Path(os.path.realpath(path)).parents:
            continue  # but not where the output is above the source, and holds it all
        if path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
            found.append(path)
        else:
            others.append(path.name)
    if passed_over is not None:
        passed_over.update(endings(others))
    if not found:
        videos = ", ".join(VIDEO_SUFFIXES)
        expected = (
            f"a folder with files that end in .jpg, .png or another extension that Pillow can open, or in {videos}"
        )
        got = f"{source} with " + (f"only other files: {said_endings(endings(others))}" if others else "none")
        raise ValueError(problem("source", expected, got, "check it, or convert them"))
    yield from found


def _check_targets(output: Path, targets: Sequence[Path], sources: Iterable[Path], overwrite: bool) -> None:
    """Raises if a target is one of the sources, under any name, is behind a link that leads out of the output folder,
    or exists and may not be replaced.
    """
    never = {_identity(path) for path in sources}
    around = output.resolve()
    there = []
    for target in targets:
        real, place = target.resolve(), target.parent.resolve()  # of a/../b, also before a is made
        if real.exists() and identity(real) in never:
            got, remedy = f"one in which {target} is a source itself", "pass --output DIR with another folder"
            raise ValueError(problem("output", "a folder in which no source is overwritten", got, remedy))
        if place != around and around not in place.parents:
            got, remedy = f"one in which {target.parent} leads to {place}", "remove the link, or pass another --output"
            raise ValueError(problem("output", "a folder without links that lead out of it", got, remedy))
        if target.is_dir() or (os.path.lexists(target) and not overwrite):
            there.append(printable(str(target)))
    if there:
        got = f"one with {shorten(there, most=3)}"
        remedy = "pass another --output, or --overwrite (overwrite=True) to replace files"
        raise ValueError(problem("output", "a folder without files named like the results", got, remedy))


@contextlib.contextmanager
def _of_one_file(path: Path) -> Iterator[None]:
    """Raises system errors that concern one file as :class:`~adaptive_margin.images.ImageError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNREACHABLE:
            raise
        raise ImageError(path, UNREADABLE, error.strerror or str(error)) from error


@dataclass
class _Run:
    """The files of a prediction run: pictures wait until a batch is full, a video has batches of its own frames."""

    predictor: Predictor
    outcome: Outcome
    table: IO[str]
    codec: str
    batch_size: int
    tell: Callable[[str], None]
    known: dict[Key, list[Face]] | None = None  # of a first look
    waiting: list[tuple[Path, str, Path | None, Bytes]] = field(default_factory=list)
    listed: list[dict[str, Any]] = field(default_factory=list)
    whole: set[Path] = field(default_factory=set)  # the files that were read to their end
    error: Exception | None = None  # that ended it, to be raised when everything else is written

    def __post_init__(self) -> None:
        self.rows = csv.writer(self.table)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the table."""
        after = COLUMNS.index("arousal") + 1
        return COLUMNS if self.known is None else (*COLUMNS[:after], *PERSON, *COLUMNS[after:])

    def read_all(self, files: Mapping[str, Path], targets: Mapping[str, Path]) -> None:
        """All files, up to Ctrl-C or an error."""
        try:
            try:
                for name, path in files.items():
                    self.read(path, printable(name), targets.get(name))
            except Exception as error:
                self.error = self.error or error
            self.flush()
        except KeyboardInterrupt:
            self.outcome.interrupted = True
        except Exception as error:
            self.error = self.error or error

    def rate(self, keys: Sequence[Key], pictures: Sequence[Bytes]) -> list[list[Face]]:
        """The faces of each picture."""
        if self.known is not None:
            return [self.known.get(key, []) for key in keys]
        return self.predictor.several(pictures)

    def read(self, path: Path, name: str, target: Path | None) -> None:
        """A picture joins the batch, a video is processed; what cannot be read is said and counted."""
        outcome = self.outcome
        try:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                self.flush()  # rows keep the order of the files
                with _of_one_file(path), open(path, "rb"):  # OpenCV does not say why it reads nothing
                    pass
                self._video(path, name, target)
            else:
                with _of_one_file(path):
                    picture = np.asarray(read_image(path, exif=True))
                self.waiting.append((path, name, target, picture))
        except ImageError as error:
            outcome.unreadable[name] = printable(f"{error.reason}: {error.detail}")
            self.tell(f"{name}: {error.reason} ({printable(error.detail)}), skipped")
        if name in outcome.lost:
            self.tell(f"{name}: {_said(outcome.lost[name])} cannot be decoded, left out")
        if self._full([picture for *_, picture in self.waiting]):
            self.flush()

    def _full(self, pictures: Sequence[Bytes]) -> bool:
        """Whether a batch has as many pictures, or pixels, as it may."""
        pixels = sum(picture.shape[0] * picture.shape[1] for picture in pictures)
        return len(pictures) >= self.batch_size or pixels >= BATCH_PIXELS

    def flush(self) -> None:
        """Predicts and writes the pictures that wait."""
        waiting, self.waiting = self.waiting, []
        found = self.rate([(path, None) for path, *_ in waiting], [each[-1] for each in waiting]) if waiting else []
        for (path, name, target, picture), faces in zip(waiting, found, strict=True):
            self.whole.add(path)
            self.outcome.pictures += 1
            if not faces:
                self.outcome.without_face.append(name)
            self._write(name, faces)
            if target is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                kind = "JPEG" if target.suffix == ".jpg" else "PNG"
                drawn = annotated(picture, faces, warning=self.predictor.warning)
                content = io.BytesIO()
                Image.fromarray(drawn).save(content, kind, quality=92)
                write_atomically(target, content.getvalue())

    def _write(self, name: str, faces: Sequence[Face], frame: int | None = None, second: float | None = None) -> None:
        """The rows of a picture or a frame."""
        cell = f"./{name}" if name[:1] in "=+-@" else name  # a spreadsheet would take it for a formula
        self.outcome.faces += len(faces)
        for number, face in enumerate(faces, 1):
            by_person = () if self.known is None else face.by_person or (None, None)
            felt = (face.valence, face.arousal, *by_person)
            values = (cell, frame, number, *face.box, *felt, second, face.roll, self.predictor.warning)
            row: dict[str, Any] = dict(zip(self.columns, values, strict=True))
            shown = {name: n for name, n in DIGITS.items() if row.get(name) is not None}
            row |= {name: round(row[name], n) for name, n in shown.items()}
            self.listed.append(row)
            self.rows.writerow((row | {name: f"{row[name]:.{n}f}" for name, n in shown.items()}).values())
        self.table.flush()

    def _video(self, path: Path, name: str, target: Path | None) -> None:
        """Processes a video; trails continue with the faces that are nearest to those of the last frame.

        The output is as long as the video: a frame is repeated until the time of the next one.
        """
        times = timeline(path)
        seconds = dict(zip(times.numbers, times.seconds, strict=True))
        before: list[Face] = []
        trails: list[list[tuple[float, float]]] = []
        found = 0
        corner: int | None = None  # a corner that is free in the first frame with faces; it stays there
        with contextlib.closing(_Film(target, times, self.codec)) as film:
            for number, picture, faces in self._frames(path, times):
                faces, trails = followed(faces, before, trails)
                before = faces
                found += len(faces)
                self._write(name, faces, number, seconds[number])
                if target is not None:
                    if corner is None and faces:
                        corner = free_corner(picture.shape, faces)
                    film.show(annotated(picture, faces, trails, corner, self.predictor.warning))
        if not times.numbers:
            raise ImageError(path, UNDECODABLE, "no frame of it can be decoded")
        if times.lost:
            self.outcome.lost[name] = times.lost
        self.whole.add(path)
        self.outcome.pictures += 1
        if not found:
            self.outcome.without_face.append(name)

    def _frames(self, path: Path, times: Timeline) -> Iterator[tuple[int, Bytes, list[Face]]]:
        """Number, picture and faces of each frame, predicted in batches."""
        batch: list[tuple[int, Bytes]] = []

        def rated() -> Iterator[tuple[int, Bytes, list[Face]]]:
            found = self.rate([(path, number) for number, _ in batch], [picture for _, picture in batch])
            yield from ((number, picture, faces) for (number, picture), faces in zip(batch, found, strict=True))
            batch.clear()

        for number, frame in decode(path, times):
            batch.append((number, np.ascontiguousarray(frame[:, :, ::-1])))
            if self._full([picture for _, picture in batch]):
                yield from rated()
        if batch:
            yield from rated()


@dataclass
class _FirstLook(_Run):
    """All faces of one person, before anything is written."""

    found: dict[Key, list[Face]] = field(default_factory=dict)
    features: dict[Key, Tensor] = field(default_factory=dict)  # of the person's face in each picture and frame

    def rate(self, keys: Sequence[Key], pictures: Sequence[Bytes]) -> list[list[Face]]:
        faces, features = self.predictor.rated(pictures)
        self.found.update(zip(keys, faces, strict=True))
        with_face = [key for key, of in zip(keys, faces, strict=True) if of]
        self.features.update(zip(with_face, features.cpu(), strict=True))
        return faces

    def _write(self, name: str, faces: Sequence[Face], frame: int | None = None, second: float | None = None) -> None:
        """Nothing yet."""

    def normalised(self) -> dict[Key, list[Face]]:
        """The faces with their readings by person; after Ctrl-C, without the file that was being read."""
        if self.outcome.interrupted:
            self.found = {key: faces for key, faces in self.found.items() if key[0] in self.whole}
            self.features = {key: row for key, row in self.features.items() if key[0] in self.whole}
        if not self.features:
            return self.found
        faces = self.predictor.normalised(list(self.found.values()), torch.stack(list(self.features.values())))
        return dict(zip(self.found, faces, strict=True))


class _Film:
    """The video that is written: opened with the first frame."""

    def __init__(self, target: Path | None, times: Timeline, codec: str) -> None:
        self.target, self.codec = target, codec
        self.rate = times.rate if times.even else UNEVEN_RATE
        if times.even:
            ends = [*(number - 1 for number in times.numbers[1:]), times.total]
        else:
            ends = [round(second * self.rate) for second in (*times.seconds[1:], times.duration)]
        self.ends = iter(ends)  # the number of frames shown up to the end of each frame of the video
        self.written = 0
        self.writer: Any = None

    def close(self) -> None:
        """So that it can be played; nothing where no frame was shown."""
        if self.writer is not None:
            self.writer.release()

    def show(self, drawn: Bytes) -> None:
        """The next frame, as often as its duration asks for."""
        assert self.target is not None
        drawn = drawn[: drawn.shape[0] // 2 * 2, : drawn.shape[1] // 2 * 2]  # codecs want even sides
        if self.writer is None:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.target.unlink(missing_ok=True)  # a link is replaced, not followed
            self.writer = _writer(self.target, self.target, self.codec, self.rate, drawn.shape[1::-1])
        drawn = np.ascontiguousarray(drawn[:, :, ::-1])
        end = next(self.ends)
        for _ in range(self.written, end):
            self.writer.write(drawn)
        self.written = max(self.written, end)


def _codec(target: Path | None, tell: Callable[[str], None]) -> str:
    """The first codec that OpenCV has: known before any work, not after it; raises if it has none of them."""
    if target is None:
        return CODECS[0]
    with tempfile.TemporaryDirectory() as folder:
        for codec in CODECS:
            try:
                _writer(target, Path(folder, f"{codec}.mp4"), codec, 25.0, (64, 64)).release()
            except VideoWriterError:
                if codec == CODECS[-1]:
                    raise
            else:
                if codec != CODECS[0]:
                    tell(f"videos are written as {codec}, which browsers do not play: this OpenCV has no VP9")
                return codec
    raise AssertionError("CODECS is empty")


def _writer(target: Path, place: Path, codec: str, rate: float, size: Sequence[int]) -> Any:
    """OpenCV's video writer; checked, because a writer that failed to open silently discards all frames."""
    cv2 = opencv()
    writer = cv2.VideoWriter(str(place), cv2.VideoWriter_fourcc(*codec), rate, size)
    if not writer.isOpened():
        raise VideoWriterError(
            f"{printable(str(target))} could not be opened for writing with the codec {codec} by OpenCV "
            f"{cv2.__version__}: install the wheel that has it ({pip_install('fer')}), check that the "
            "folder is writable, or ask for the table only (--no-pictures, or annotate=False)"
        )
    return writer


def followed(
    faces: Sequence[Face], before: Sequence[Face], trails: Sequence[list[tuple[float, float]]]
) -> tuple[list[Face], list[list[tuple[float, float]]]]:
    """Faces in the order of the last frame if they overlap with it, then new ones, and each face's trail with its new
    point.

    Example:
        >>> a, b = Face((0.0, 0.0, 9.0, 9.0), 0.1, 0.2), Face((50.0, 0.0, 60.0, 9.0), 0.3, 0.4)
        >>> faces, trails = followed([b, a], [a, b], [[(0.0, 0.0)], [(1.0, 1.0)]])
        >>> faces == [a, b], trails
        (True, [[(0.0, 0.0), (0.1, 0.2)], [(1.0, 1.0), (0.3, 0.4)]])
    """
    from torchvision.ops import box_iou  # loads torch's compiler, which takes its time

    left = list(faces)
    ordered, lines = [], []
    for old, trail in zip(before, trails, strict=True):
        shared = box_iou(torch.tensor([old.box]), torch.tensor([face.box for face in left]).reshape(-1, 4))[0]
        if len(left) and shared.max() > 0.2:
            nearest = left.pop(int(shared.argmax()))
            ordered.append(nearest)
            lines.append([*trail, nearest.shown][-TRAIL:])
    for new in left:
        ordered.append(new)
        lines.append([new.shown])
    return ordered, lines


def load_predictor(
    checkpoint: str | os.PathLike[str],
    *,
    crops: bool = False,
    margin: float = 1.5,
    device: str = "cpu",
    detector: DetectorName = "auto",
    min_face: int | None = None,
) -> Predictor:
    """A predictor from a model file or run folder; it warns on every output if the network was trained on drawn faces.

    Args:
        checkpoint: see :func:`~adaptive_margin.emotion.model_file.load_network`.
        crops: pictures are already cropped faces: no detector is needed.
        margin: see :class:`Predictor`.
        device: where the network runs.
        detector: see :func:`~adaptive_margin.emotion.detect.face_detector`.
        min_face: likewise.

    Raises:
        NoDetectorError: none is installed, and ``crops`` is off.
        ValueError: not a model file.
    """
    find = None if crops else face_detector(detector, min_face)
    source = read_network(checkpoint, device)
    net, preprocessing = network_of(source, device)
    warning = DRAWN if source.config().get("dataset") == "faces" else ""
    return Predictor(net, preprocessing, find, margin=margin, device=device, warning=warning)


def summary(outcome: Outcome) -> str:
    """The message for the user at the end."""
    files = counted(outcome.pictures, "file")
    text = f"{counted(outcome.faces, 'face')} in {files}: {printable(str(outcome.table))}"
    if outcome.warning:
        text += f"\nwarning: {outcome.warning}"
    if outcome.of_person is not None and outcome.of_person > 1:
        text += f"\n{' and '.join(PERSON)}: normalised by the {outcome.of_person:,} faces of this person"
    elif outcome.of_person is not None:
        text += f"\n{' and '.join(PERSON)} are empty: they need two faces of this person or more"
    if outcome.in_company:
        text += f"\n{outcome.in_company:,} with several faces: the largest is taken for the person"
    if outcome.without_face:
        some = ", ".join(outcome.without_face[:5]) + (", …" if len(outcome.without_face) > 5 else "")
        text += f"\n{len(outcome.without_face):,} without a face: {some} (--min-face looks for smaller ones)"
    if outcome.unreadable:
        text += f"\n{len(outcome.unreadable):,} unreadable, skipped"
    if outcome.lost:
        lost = sum(map(len, outcome.lost.values()))
        text += f"\n{counted(lost, 'frame')} of {counted(len(outcome.lost), 'video')} cannot be decoded, left out"
    if outcome.passed_over:
        others = counted(sum(outcome.passed_over.values()), "other file")
        text += f"\n{others} skipped: {said_endings(outcome.passed_over)}"
    if outcome.interrupted:
        text += "\ninterrupted: what was found so far is in the table"
    return text


def tell_on_stderr(line: str) -> None:
    """Prints warnings on standard error, so that they do not mix with results."""
    print(line, file=sys.stderr, flush=True)
