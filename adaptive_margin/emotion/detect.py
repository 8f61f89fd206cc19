"""Finds faces in a picture, with a detector that is part of the extra and downloads nothing.

OpenCV 4's wheels ship Haar cascades; OpenCV 5's have neither the files nor the class that reads them, and no other
detector of theirs works without a downloaded model. So the extra ``fer`` requires OpenCV below 5.

Measured on 120 drawn faces of 120 people, half of them filling the picture and half somewhere in a larger one
(``benchmarks/detection/run.py``): this detector found 55 of 60 and 56 of 60 with 1 false face; the cascade
``frontalface_default`` 47 and 54 with 3; scikit-image's local binary patterns 40 and 48 with 26.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..messages import problem

Box = tuple[float, float, float, float]
Detector = Callable[[NDArray[np.uint8]], list[Box]]
"""RGB picture, uint8, ``(H, W, 3)`` → (left, top, right, bottom) of each face in pixels, the largest first."""

SMALLEST = 24  # pixels: the cascade was trained on squares of 20
SHARE = 32  # of the picture's shorter side: the default for the smallest face is 1/32
REMEDY = (
    "pip install 'opencv-python-headless>=4.9,<5' (the extra 'fer' asks for it; OpenCV 5 has no face detector without "
    "a download), or cut the faces out yourself and pass --crops"
)


class NoDetectorError(RuntimeError):
    """No face detector is installed; the message says what to install, or to pass crops."""


def face_detector(smallest: int | None = None) -> Detector:
    """The detector that is installed.

    It finds frontal faces that are upright to within about 15 degrees. If it finds none, it tries again on the picture
    with its histogram equalised.

    Args:
        smallest: side of the smallest face to look for, pixels, at least 24. By default 1/32 of the picture's shorter
            side or 24, whichever is larger: 94 for 4000 × 3000. On one core a picture of that size takes 1.3 s with
            this default, 0.5 s with 1/16, and 6.6 s with 24 pixels.

    Returns:
        A function from a picture to its faces; it must not be shared between threads.

    Raises:
        NoDetectorError: OpenCV is missing, or its version has no detector.
        ValueError: ``smallest`` is below 24.
    """
    if smallest is not None and smallest < SMALLEST:
        remedy = "enlarge the pictures: the cascade cannot find smaller faces"
        raise ValueError(problem("smallest", f"None or at least {SMALLEST}", smallest, remedy))
    try:
        import cv2
    except ImportError as error:
        raise NoDetectorError(f"no face detector: OpenCV is not installed; {REMEDY}") from error
    path = Path(getattr(getattr(cv2, "data", None), "haarcascades", "")) / "haarcascade_frontalface_alt2.xml"
    if not hasattr(cv2, "CascadeClassifier") or not path.is_file():
        raise NoDetectorError(f"no face detector: OpenCV {cv2.__version__} has no Haar cascades; {REMEDY}")
    cascade: Any = cv2.CascadeClassifier(str(path))

    def search(grey: NDArray[np.uint8], least: int) -> list[Box]:
        found = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=3, minSize=(least, least))
        return [(float(x), float(y), float(x + w), float(y + h)) for x, y, w, h in found]

    def detect(image: NDArray[np.uint8]) -> list[Box]:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            got = f"{image.dtype} of shape {image.shape}"
            remedy = "open it with np.asarray(read_image(path))"
            raise ValueError(problem("image", "RGB bytes of shape (H, W, 3)", got, remedy))
        if min(image.shape[:2]) < SMALLEST:
            return []
        grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
        least = max(SMALLEST, min(grey.shape) // SHARE) if smallest is None else smallest
        found = search(grey, least) or search(cv2.equalizeHist(grey), least)
        return sorted(found, key=lambda box: (-(box[2] - box[0]) * (box[3] - box[1]), box))

    return detect


def enlarged(box: Box, margin: float) -> Box:
    """The square around a box, with a side of ``margin`` times the box's longer side; it may extend beyond the picture.

    Example:
        >>> enlarged((10.0, 10.0, 30.0, 30.0), 1.5)
        (5.0, 5.0, 35.0, 35.0)
    """
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = margin * max(box[2] - box[0], box[3] - box[1]) / 2
    return x - half, y - half, x + half, y + half
