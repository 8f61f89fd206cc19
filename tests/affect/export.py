"""Writes faces in the layout of a real data set, optionally with the defects of the real ones.

For tests of the loaders, and for trying a pipeline on faces that may be shared, unlike AffectNet and similar data sets.
Every exporter returns what a loader must find: rows read, used, and dropped for each reason, counted while writing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from adaptive_margin.affect._known import CLASS_MEANS
from adaptive_margin.affect.affectnet import COLUMNS
from adaptive_margin.affect.report import (
    BAD_ANNOTATION,
    CATEGORY,
    INCOMPLETE,
    NO_FACE,
    NOT_A_NUMBER,
    REFUSED,
    SENTINEL,
    SURPLUS,
    SplitReport,
)
from adaptive_margin.images.errors import MISSING
from adaptive_margin.images.image_list import Box
from adaptive_margin.images.video import opencv
from adaptive_margin.messages import check_choice, problem

Pixels = npt.NDArray[np.uint8]

BORDER = 0.1  # of the face's side, around it in pictures that have a face box
AFEW_MARGIN = 1.3  # the loader's default: with it the square around the landmarks is the face that was given


@dataclass(frozen=True, eq=False)
class Sample:
    """One face to write.

    Attributes:
        image: the face, uint8, RGB, shape ``(H, W, 3)``.
        valence: in [−1, 1].
        arousal: in [−1, 1].
        identity: the person, for data sets that identify people.
        video: the video, for data sets with videos; frames of a video are written in the given order.
        split: ``"train"`` or ``"validation"``.
        expression: AffectNet's code; by default that of the nearest class mean in the valence–arousal plane.
        face: whether a detector found it; if not, the frame is written without box or crop.
    """

    image: Pixels
    valence: float
    arousal: float
    identity: str | None = None
    video: str | None = None
    split: str = "train"
    expression: int | None = None
    face: bool = True

    @property
    def code(self) -> int:
        """The expression's code."""
        if self.expression is not None:
            return self.expression
        distance = {
            code: (self.valence - v) ** 2 + (self.arousal - a) ** 2 for code, (v, a) in sorted(CLASS_MEANS.items())
        }
        return min(distance, key=distance.__getitem__)


@dataclass
class Expected:
    """What a loader with its default options must find in one split.

    Attributes:
        read: rows of the label files.
        used: rows that become records.
        dropped: reason → rows, at loading.
        undecodable: rows among the used whose image does not decode.
        outside_circle: rows used with valence² + arousal² > 1.
    """

    read: int = 0
    used: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    undecodable: int = 0
    outside_circle: int = 0

    def row(self, reason: str | None = None, *, count: int = 1, undecodable: bool = False) -> None:
        """Counts rows written: used, or dropped for ``reason``."""
        if count <= 0:
            return
        self.read += count
        if reason is None:
            self.used += count
            self.undecodable += count * undecodable
        else:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def differences(self, report: SplitReport) -> list[str]:
        """The differences from a loader's report; empty if there are none."""
        pairs: list[tuple[str, Any, Any]] = [
            ("rows read", self.read, report.rows_read),
            ("rows used", self.used, report.rows_used),
            ("dropped", dict(sorted(self.dropped.items())), dict(sorted(report.dropped.items()))),
            ("outside the unit circle", self.outside_circle, report.outside_circle),
        ]
        return [f"{what}: {expected} written, {found} found" for what, expected, found in pairs if expected != found]


def _outside(valence: float, arousal: float) -> bool:
    return float(np.float32(valence)) ** 2 + float(np.float32(arousal)) ** 2 > 1


def _check(samples: Sequence[Sample], *, videos: bool = False) -> None:
    if not samples:
        raise ValueError(problem("samples", "at least one face", "none", "pass some"))
    for place, sample in enumerate(samples):
        image = sample.image
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.dtype} of shape {image.shape}"
            raise ValueError(
                problem(f"samples[{place}].image", "uint8 of shape (H, W, 3)", got, "convert it to RGB bytes")
            )
        check_choice(f"samples[{place}].split", sample.split, ("train", "validation"))
        if videos and (sample.video is None):
            remedy = "this layout is made of videos: name one"
            raise ValueError(problem(f"samples[{place}].video", "named", None, remedy))


def _by_split(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    parts: dict[str, list[Sample]] = {}
    for sample in samples:
        parts.setdefault(sample.split, []).append(sample)
    return parts


def _check_videos_apart(samples: Sequence[Sample]) -> None:
    split: dict[str | None, str] = {}
    for sample in samples:
        if split.setdefault(sample.video, sample.split) != sample.split:
            what = f"the frames of video {sample.video!r}"
            raise ValueError(problem(what, "in one split", "both", "give the videos of each split their own names"))


def _by_video(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    videos: dict[str, list[Sample]] = {}
    for sample in samples:
        videos.setdefault(str(sample.video), []).append(sample)
    return videos


def _framed(image: Pixels) -> tuple[Pixels, Box]:
    """The face inside a larger picture, and its box there."""
    height, width = image.shape[:2]
    x, y = max(2, round(BORDER * width)), max(2, round(BORDER * height))
    x, y = x + (width + 2 * x) % 2, y + (height + 2 * y) % 2
    wide = np.pad(image, ((y, y), (x, x), (0, 0)), mode="edge")
    wide = wide[: wide.shape[0] // 2 * 2, : wide.shape[1] // 2 * 2]  # video codecs want even sides
    return np.ascontiguousarray(wide), (float(x), float(y), float(x + width), float(y + height))


def _landmarks(box: Box, extent: float) -> npt.NDArray[np.float64]:
    """68 points on an ellipse whose extent is the box over ``extent``, shape ``(68, 2)``."""
    angle = np.arange(68) * (2 * np.pi / 68)
    x = (box[0] + box[2]) / 2 + (box[2] - box[0]) / 2 / extent * np.cos(angle)
    y = (box[1] + box[3]) / 2 + (box[3] - box[1]) / 2 / extent * np.sin(angle)
    return np.round(np.stack([x, y], axis=1), 4)


def _encoded(image: Pixels, kind: str, mode: str = "RGB") -> bytes:
    """An image file's bytes."""
    data = io.BytesIO()
    picture = Image.fromarray(image)
    picture = picture.quantize(64) if mode == "P" else picture.convert(mode)
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    picture.save(data, kind, **options)
    return data.getvalue()


def _write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def export_affectnet_2017(
    root: str | Path, samples: Sequence[Sample], *, defects: bool = False, spelling: str = "flat"
) -> dict[str, Expected]:
    """Writes the 2017 release: CSV lists and loose head crops with a face box.

    Args:
        root: an empty or new folder.
        samples: the faces.
        defects: plant in the training list every defect that the real one is known to have: rows of codes 8 to 10 with
            −2 or real labels, a ``NULL`` box, a negative width, a repeated path, a missing and a truncated file,
            grey, palette and CMYK pictures, extensions in another case or not the content's, a box that sticks out,
            a label outside the unit circle, backslashes, a label that is no number, and system litter.
        spelling: ``"flat"`` or ``"nested"``: one of the two ways in which the folders are named.

    Returns:
        Split → what the loader must find with its default options.
    """
    _check(samples)
    check_choice("spelling", spelling, ("flat", "nested"))
    base = Path(root)
    lists = base / ("Manually_Annotated_file_lists" if spelling == "flat" else "Manually_Annotated")
    images = base / (
        "Manually_Annotated_Images" if spelling == "flat" else "Manually_Annotated/Manually_Annotated_Images"
    )
    expected = {split: Expected() for split in _by_split(samples)}
    number = 0

    def name(extension: str) -> str:
        nonlocal number
        number += 1
        return f"{1 + number % 2}/{number:056x}{extension}"

    def line(path: str, box: Box | None, points: str, code: int, labels: Sequence[object], cells: str = "") -> str:
        if box is not None:
            cells = f"{box[0]:.0f},{box[1]:.0f},{box[2] - box[0]:.0f},{box[3] - box[1]:.0f}"
        return f"{path},{cells},{points},{code},{labels[0]},{labels[1]}"

    for split, part in _by_split(samples).items():
        found, rows = expected[split], [",".join(COLUMNS)]
        for sample in part:
            picture, box = _framed(sample.image)
            path = name(".jpg")
            _write(images / path, _encoded(picture, "JPEG"))
            points = ";".join(f"{value:g}" for value in _landmarks(box, 1.25).ravel())
            rows.append(line(path, box, points, sample.code, (sample.valence, sample.arousal)))
            reason = SENTINEL if sample.code in (9, 10) else None
            if reason:
                rows[-1] = line(path, None, "NULL", sample.code, (-2, -2), "NULL,NULL,-1,-1")
            found.row(reason)
            found.outside_circle += reason is None and _outside(sample.valence, sample.arousal)
        if defects and split == "train":
            picture, box = _framed(part[0].image)
            points = ";".join(f"{value:g}" for value in _landmarks(box, 1.25).ravel())
            jpeg = _encoded(picture, "JPEG")

            def plant(
                path: str,
                data: bytes | None,
                reason: str | None,
                *,
                disk: str | None = None,
                code: int = 1,
                labels: Sequence[object] = (0.25, -0.5),
                box: Box | None = box,
                cells: str = "",
                undecodable: bool = False,
                points: str = points,
                rows: list[str] = rows,
                found: Expected = found,
            ) -> None:
                if data is not None:
                    _write(images / (disk or path), data)
                rows.append(line(path, box, points, code, labels, cells))
                found.row(reason, undecodable=undecodable)
                if reason is None and not isinstance(labels[0], str):
                    found.outside_circle += _outside(float(str(labels[0])), float(str(labels[1])))

            plant(name(".jpg"), jpeg, SENTINEL, code=9, labels=(-2, -2))
            plant(
                name(".png"), None, SENTINEL, code=10, labels=(-2, -2), box=None, cells="NULL,NULL,-1,-1", points="NULL"
            )
            plant(name(".jpg"), jpeg, SENTINEL, code=4, labels=(-2, 0.5))
            plant(name(".jpg"), jpeg, NO_FACE, box=None, cells="NULL,NULL,NULL,NULL", points="NULL")
            plant(name(".jpg"), jpeg, NO_FACE, box=None, cells="10,10,-20,-20")
            twice = name(".jpg")
            plant(twice, jpeg, None, code=0, labels=(0.0, 0.0))
            plant(twice, None, None, code=1, labels=(0.6, 0.1))
            plant(name(".jpg"), None, MISSING)
            plant(name(".jpg"), _truncated(jpeg), None, undecodable=True)
            plant(name(".jpg"), b"", None, undecodable=True)
            upper = name(".PNG")
            plant(upper, _encoded(picture, "PNG", "L"), None)
            respelt = name(".jpg")
            plant(respelt, jpeg, None, disk=respelt.replace(".jpg", ".JPEG"))
            plant(name(".jpg"), _encoded(picture, "PNG", "P"), None)  # a palette PNG under a JPEG's name
            plant(name(".jpg"), _encoded(picture, "JPEG", "CMYK"), None)
            plant(name(".tif"), _encoded(picture, "TIFF", "RGBA"), None)
            plant(name(".jpg"), jpeg, None, labels=(0.9, 0.8))
            sticking = (-3.0, -2.0, picture.shape[1] + 4.0, picture.shape[0] + 5.0)
            plant(name(".jpg"), jpeg, None, box=sticking)
            back = name(".jpg")
            plant(back.replace("/", "\\"), jpeg, None, disk=back)
            plant(name(".jpg"), jpeg, NOT_A_NUMBER, labels=("NULL", 0.5))
            plant(name(".jpg"), jpeg, None, code=8, labels=(0.1, 0.2))
            _write(images / "1" / ".DS_Store", b"\0")
            _write(images / "1" / "._litter.jpg", b"\0")
        file = {"train": "training.csv", "validation": "validation.csv"}[split]
        _write(lists / file, "\n".join(rows) + "\n")
    return expected


def export_affectnet_reduced(
    root: str | Path, samples: Sequence[Sample], *, defects: bool = False
) -> dict[str, Expected]:
    """Writes the reduced release: crops named by number and ``.npy`` annotations in every known form.

    Args:
        root: an empty or new folder.
        samples: the faces; codes 0 to 7.
        defects: plant in the training part a missing and a truncated picture, one without its arousal, one whose
            annotation is cut short, −2 labels, a label that is no number, a code 8, pictures in grey and with an
            upper-case extension, a picture without annotations, and system litter.

    Returns:
        Split → what the loader must find with its default options.
    """
    _check(samples)
    base = Path(root)
    forms: tuple[Callable[[float], Any], ...] = (
        lambda value: np.array(repr(value)),
        lambda value: np.array(value),
        lambda value: np.array([value]),
        lambda value: np.array([repr(value)]),
        lambda value: np.array(repr(value).encode()),
    )
    expected = {split: Expected() for split in _by_split(samples)}
    for split, part in _by_split(samples).items():
        folder = base / {"train": "train_set", "validation": "val_set"}[split]
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        found = expected[split]
        count = 0

        def annotate(values: Sequence[Any], points: npt.NDArray[np.float64], folder: Path = folder) -> int:
            nonlocal count
            name = count * 3 // 2 + count // 4  # 0, 1, 3, 4, 7, 8 …: gaps, and the same numbers in both parts
            form = forms[count % len(forms)]
            count += 1
            for key, value in zip(("exp", "val", "aro"), values, strict=True):
                data = np.array(value) if isinstance(value, str) else form(value)
                np.save(folder / "annotations" / f"{name}_{key}.npy", data)
            shaped = (points, points.ravel(), points.ravel().astype(str))[count % 3]
            np.save(folder / "annotations" / f"{name}_lnd.npy", shaped)
            return name

        for sample in part:
            height, width = sample.image.shape[:2]
            points = _landmarks((0.0, 0.0, float(width), float(height)), 1.2)
            name = annotate((sample.code, float(sample.valence), float(sample.arousal)), points)
            _write(folder / "images" / f"{name}.jpg", _encoded(sample.image, "JPEG"))
            found.row(CATEGORY if sample.code > 7 else None)
            found.outside_circle += sample.code <= 7 and _outside(sample.valence, sample.arousal)
        if defects and split == "train":
            height, width = part[0].image.shape[:2]
            points = _landmarks((0.0, 0.0, float(width), float(height)), 1.2)
            jpeg = _encoded(part[0].image, "JPEG")
            images, labels = folder / "images", (1, 0.25, -0.5)
            annotate(labels, points)
            found.row(MISSING)
            _write(images / f"{annotate(labels, points)}.jpg", _truncated(jpeg))
            found.row(undecodable=True)
            name = annotate(labels, points)
            _write(images / f"{name}.jpg", jpeg)
            (folder / "annotations" / f"{name}_aro.npy").unlink()
            found.row(INCOMPLETE)
            name = annotate(labels, points)
            _write(images / f"{name}.jpg", jpeg)
            damaged = folder / "annotations" / f"{name}_val.npy"
            damaged.write_bytes(damaged.read_bytes()[:40])
            found.row(BAD_ANNOTATION)
            for values, reason in (
                ((1, -2.0, -2.0), SENTINEL),
                ((1, "nan", 0.5), NOT_A_NUMBER),
                ((8, 0.1, 0.2), CATEGORY),
            ):
                _write(images / f"{annotate(values, points)}.jpg", jpeg)
                found.row(reason)
            _write(images / f"{annotate(labels, points)}.JPG", _encoded(part[0].image, "JPEG", "L"))
            found.row()
            _write(images / "999999.jpg", jpeg)
            _write(images / ".DS_Store", b"\0")
            _write(folder / "annotations" / "._0_exp.npy", b"\0")
    return expected


def export_afew_va(
    root: str | Path, samples: Sequence[Sample], *, defects: bool = False, layout: str = "flat"
) -> dict[str, Expected]:
    """Writes AFEW-VA: a folder per clip with PNG frames and a JSON file; labels are rounded to tenths.

    Args:
        root: an empty or new folder.
        samples: the frames; ``video`` names the clip (numbered from 001 in the order met), ``identity`` the actor. A
            frame with ``face=False`` has no landmarks.
        defects: plant, in three more clips made of the first one's frames, an actor's name in another case and with
            a trailing space, an empty name, labels of ±10, a missing, an extra and a truncated picture, a label
            that is null, system litter, and a ``_cropped`` folder; keys of the JSON are out of order.
        layout: ``"flat"`` or ``"parts"`` (``01/001`` …).

    Returns:
        ``"all"`` → what the loader must find with its default options.
    """
    _check(samples, videos=True)
    check_choice("layout", layout, ("flat", "parts"))
    base = Path(root)
    expected = Expected()
    clips = list(_by_video(samples).values())
    honest = len(clips)
    if defects:
        first = clips[0][:8]
        first = first + [first[-1]] * (8 - len(first))
        who = clips[0][0].identity or "somebody"
        clips += [
            [replace(sample, identity=f"{who.upper()}  ") for sample in first],
            [replace(sample, identity="") for sample in first],
            [replace(sample, identity=who) for sample in first],
        ]
    for place, frames in enumerate(clips):
        name = f"{place + 1:03d}"
        folder = base / name if layout == "flat" else base / f"{place // 50 + 1:02d}" / name
        entries: dict[str, dict[str, Any]] = {}
        for number, sample in enumerate(frames):
            picture, box = _framed(sample.image)
            stem = f"{number:05d}"
            valence, arousal = round(10 * sample.valence), round(10 * sample.arousal)
            planted = number if place == honest + 2 else -1
            if place == honest:
                valence, arousal = ((10, -10), (-10, 10))[number % 2]
            entry: dict[str, Any] = {"valence": valence, "arousal": arousal}
            entry["landmarks"] = _landmarks(box, AFEW_MARGIN).tolist() if sample.face else []
            if planted == 3:
                entry["valence"] = None
            data = _encoded(picture, "PNG")
            if planted != 0:
                _write(folder / f"{stem}.png", _truncated(data) if planted == 1 else data)
            entries[stem] = entry
            reason = NOT_A_NUMBER if planted == 3 else NO_FACE if not sample.face else MISSING if planted == 0 else None
            expected.row(reason, undecodable=planted == 1)
            expected.outside_circle += reason is None and _outside(valence / 10, arousal / 10)
            if planted == 2:
                _write(folder / f"{len(frames):05d}.png", data)
                _write(folder / ".DS_Store", b"\0")
                _write(folder / f"._{stem}.png", b"\0")
                _write(folder.with_name(f"{name}_cropped") / f"{stem}.png", data)
        if defects:
            entries = dict(reversed(entries.items()))
        content = {"video_id": name, "actor": frames[0].identity or "", "frames": entries}
        _write(folder / f"{name}.json", json.dumps(content))
    return {"all": expected}


def _write_video(path: Path, frames: Sequence[Pixels]) -> None:
    """A video of RGB frames of one size: MJPG in ``.avi``, mp4v in ``.mp4``.

    Raises:
        ValueError: frames of several sizes.
        OSError: OpenCV cannot write it.
    """
    cv2 = opencv()
    shapes = {frame.shape for frame in frames}
    if len(shapes) != 1:
        raise ValueError(problem(f"frames of {path.name}", "of one size", sorted(shapes), "resize them first"))
    height, width = frames[0].shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    code = cv2.VideoWriter_fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    writer = cv2.VideoWriter(str(path), code, 30000 / 1001, (width, height))
    if not writer.isOpened():
        raise OSError(f"{path}: OpenCV cannot write this kind of video")
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
    writer.release()


def _pts(box: Box, shuffle: int) -> str:
    """A ``.pts`` file of a box, its corners in one of several orders."""
    left, top, right, bottom = box
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    corners = corners[shuffle % 4 :] + corners[: shuffle % 4]
    if shuffle % 3 == 1:
        corners = corners[::-1]
    points = "\n".join(f"{x:.3f} {y:.3f}" for x, y in corners)
    return f"version: 1\nn_points: 4\n{{\n{points}\n}}\n"


def export_aff_wild(
    root: str | Path,
    samples: Sequence[Sample],
    *,
    defects: bool = False,
    spelling: str = "bboxes",
    doubled: bool = False,
) -> dict[str, Expected]:
    """Writes Aff-Wild: videos with a line of valence and of arousal, and a box file, for every frame.

    Args:
        root: an empty or new folder.
        samples: the frames; ``video`` names the video, numbered 105, 202, 107, 204 … in the order met (``.avi`` up to
            200, ``.mp4`` above). A frame with ``face=False`` has no box file.
        defects: plant in further videos, made of the first one's frames: labels for all but two frames, lines for
            frames with a face only, lines that fit neither, no arousal file, a video that does not decode, a box
            file cut short, a box that sticks out, Windows line ends, exponents, a blank last line, a label that is no
            number, system litter, and a test video without labels.
        spelling: ``"bboxes"`` or ``"bboxs"``.
        doubled: ``train/train`` in place of ``train``, as the inner archives unpack.

    Returns:
        ``"train"`` → what the loader must find with its default options.

    Raises:
        ImportError: OpenCV is not installed.
    """
    _check(samples, videos=True)
    check_choice("spelling", spelling, ("bboxes", "bboxs"))
    base = Path(root)
    train = "train/train" if doubled else "train"
    expected = Expected()
    count = 0

    def place(frames: Sequence[Sample], avi: bool | None = None) -> tuple[str, list[Pixels], list[Box]]:
        """Name of the next video, and its frames with their boxes."""
        nonlocal count
        avi = count % 2 == 0 if avi is None else avi
        name = str((105 if avi else 202) + 2 * (count // 2))
        count += 1
        framed = [_framed(sample.image) for sample in frames]
        pictures, boxes = [picture for picture, _ in framed], [box for _, box in framed]
        _write_video(base / "videos" / train / f"{name}.{'avi' if avi else 'mp4'}", pictures)
        return name, pictures, boxes

    def label(name: str, which: str, values: Sequence[object], end: str = "\n", last: str = "") -> None:
        text = "".join(f"{value}{end}" for value in values)
        _write(base / "annotations" / train / which / f"{name}.txt", text + last)

    def box_file(name: str, number: int, box: Box) -> Path:
        path = base / spelling / train / name / f"{number}.pts"
        _write(path, _pts(box, number))
        return path

    for frames in _by_video(samples).values():
        name, _, boxes = place(frames)
        label(name, "valence", [sample.valence for sample in frames])
        label(name, "arousal", [sample.arousal for sample in frames])
        for number, (sample, box) in enumerate(zip(frames, boxes, strict=True), 1):
            if sample.face:
                box_file(name, number, box)
            expected.row(None if sample.face else NO_FACE)
            expected.outside_circle += sample.face and _outside(sample.valence, sample.arousal)
    if not defects:
        return {"train": expected}
    frames = [replace(sample, face=True) for sample in next(iter(_by_video(samples).values()))]
    frames = (frames * (12 // len(frames) + 1))[: max(12, min(len(frames), 24))]
    total = len(frames)
    valence = [sample.valence for sample in frames]
    arousal = [sample.arousal for sample in frames]

    def outside(kept: Sequence[int]) -> None:
        expected.outside_circle += sum(_outside(valence[index], arousal[index]) for index in kept)

    # Two labels fewer than frames; Windows line ends, exponents, a blank line at the end; no face in frame 4, a damaged
    # box file in frame 5, a box that sticks out in frame 6, no number for frame 7.
    name, pictures, boxes = place(frames)
    numbers: list[object] = [f"{value:.8e}" for value in valence[: total - 2]]
    numbers[6] = "n/a"
    label(name, "valence", numbers, "\r\n", "\r\n")
    label(name, "arousal", [f"{value:.8e}" for value in arousal[: total - 2]], "\r\n")
    for number, box in enumerate(boxes, 1):
        height, width = pictures[number - 1].shape[:2]
        if number == 6:
            box = (-4.0, -4.0, width + 4.0, height + 4.0)
        if number != 4:
            path = box_file(name, number, box)
            if number == 5:
                path.write_text(path.read_text()[:30])
    _write(base / spelling / train / name / ".DS_Store", b"\0")
    expected.row(NO_FACE)
    expected.row(BAD_ANNOTATION)
    expected.row(NOT_A_NUMBER)
    kept = [index for index in range(total - 2) if index not in (3, 4, 6)]
    expected.row(count=len(kept))
    outside(kept)
    # Lines for the frames with a face alone: every second.
    name, _, boxes = place(frames)
    seen = list(range(0, total, 2))
    label(name, "valence", [valence[index] for index in seen])
    label(name, "arousal", [arousal[index] for index in seen])
    for index in seen:
        box_file(name, index + 1, boxes[index])
    expected.row(count=len(seen))
    outside(seen)
    # One label more than frames.
    name, _, boxes = place(frames)
    label(name, "valence", [*valence, 0.0])
    label(name, "arousal", [*arousal, 0.0])
    for number, box in enumerate(boxes, 1):
        box_file(name, number, box)
    expected.row(count=total)
    outside(range(total))
    expected.row(SURPLUS)
    # Lines that fit neither the frames nor the boxes.
    name, _, boxes = place(frames)
    few = total - 6
    label(name, "valence", valence[:few])
    label(name, "arousal", arousal[:few])
    for number, box in enumerate(boxes, 1):
        box_file(name, number, box)
    expected.row(REFUSED, count=few)
    # No arousal.
    name, _, _ = place(frames)
    label(name, "valence", valence)
    expected.row(INCOMPLETE, count=total)
    # A file that is no video.
    name = str(105 + 2 * (count // 2 + 1))
    _write(base / "videos" / train / f"{name}.avi", b"RIFF\0\0\0\0AVI ")
    label(name, "valence", valence)
    label(name, "arousal", arousal)
    for number, box in enumerate(boxes, 1):
        box_file(name, number, box)
    expected.row("undecodable", count=total)
    _write(base / "videos" / "test" / "900.mp4", b"\0")
    return {"train": expected}


def export_aff_wild2(
    root: str | Path, samples: Sequence[Sample], *, defects: bool = False, edition: str = "6th ABAW Annotations"
) -> dict[str, Expected]:
    """Writes the valence–arousal track of Aff-Wild2: label files with a header, and numbered crops.

    Args:
        root: an empty or new folder.
        samples: the frames; ``video`` is the name of the label file. A frame with ``face=False`` has no crop.
        defects: plant in further training videos, made of the first one's frames: frames marked −5, one of them in
            one column only, a ``_left`` and a ``_right`` person, parts of one recording, a plain number from Aff-Wild,
            a video in the second folder of crops, one without crops at all, a label line and a crop too many, and
            system litter.
        edition: the folder of the annotations, or ``"2020"`` for ``annotations/VA_Set``.

    Returns:
        Split → what the loader must find with its default options.
    """
    _check(samples, videos=True)
    _check_videos_apart(samples)
    base = Path(root)
    track = base / ("annotations/VA_Set" if edition == "2020" else f"{edition}/VA_Estimation_Challenge")
    expected = {split: Expected() for split in _by_split(samples)}

    def write(
        split: str,
        video: str,
        frames: Sequence[Sample],
        *,
        crops: str | None = "cropped_aligned",
        labels: Mapping[int, tuple[float, float]] | None = None,
        extra_crops: int = 0,
        end: str = "\n",
    ) -> None:
        found = expected[split]
        folder = track / {"train": "Training_Set" if edition == "2020" else "Train_Set"}.get(split, "Validation_Set")
        lines = ["valence,arousal"]
        for number, sample in enumerate(frames, 1):
            pair = (labels or {}).get(number, (sample.valence, sample.arousal))
            lines.append(f"{pair[0]},{pair[1]}")
            if sample.face and crops is not None:
                _write(base / crops / video / f"{number:05d}.jpg", _encoded(sample.image, "JPEG"))
            reason = SENTINEL if min(pair) < -1 else MISSING if crops is None else None if sample.face else NO_FACE
            found.row(reason)
            found.outside_circle += reason is None and _outside(*pair)
        for number in range(len(frames) + 1, len(frames) + 1 + extra_crops):
            _write(base / str(crops) / video / f"{number:05d}.jpg", _encoded(frames[0].image, "JPEG"))
        _write(folder / f"{video}.txt", end.join(lines) + end)

    for split, part in _by_split(samples).items():
        for video, frames in _by_video(part).items():
            write(split, video, frames)
    if defects and "train" in expected:
        part = _by_split(samples)["train"]
        frames = [replace(sample, face=True) for sample in next(iter(_by_video(part).values()))]
        frames = (frames * (6 // len(frames) + 1))[: max(6, min(len(frames), 12))]
        write("train", "77-30-1280x720", frames, labels={2: (-5.0, -5.0), 3: (-5.0, 0.5), 4: (0.5, -5.0)})
        write("train", "77-30-1280x720_left", [replace(sample, face=index != 2) for index, sample in enumerate(frames)])
        write("train", "77-30-1280x720_right", frames, end="\r\n")
        write("train", "video45_3", frames, extra_crops=1)
        write("train", "video45_4", [*frames, replace(frames[0], face=False)])
        write("train", "102", frames, crops="cropped_aligned_new_50_vids")
        write("train", "88-25-640x480", frames, crops=None)
        _write(base / "cropped_aligned" / ".DS_Store", b"\0")
        _write(base / "cropped_aligned" / "video45_3" / "._00001.jpg", b"\0")
        _write(track / ("Training_Set" if edition == "2020" else "Train_Set") / ".DS_Store", b"\0")
        _write(track / ("Training_Set" if edition == "2020" else "Train_Set") / "._102.txt", b"\0")
    return expected
