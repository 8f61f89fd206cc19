"""What the readers of label files share: numbers in cells, which may contain anything, and two of their options."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np

from ..images.decode import square_box
from ..images.image_list import Box
from ..messages import problem


def number(text: str | None) -> float:
    """The number in a cell; NaN for ``NULL``, other text, an empty cell, and values that are not finite.

    Example:
        >>> [number(text) for text in (" -0.5", "1e-3", "NULL", "inf", "")]
        [-0.5, 0.001, nan, nan, nan]
    """
    try:
        value = float(text or "")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def integer(text: str | None) -> int | None:
    """The whole number in a cell, which may be written as a decimal; ``None`` if there is none.

    Example:
        >>> [integer(text) for text in ("3", "3.0", "3.5", "x")]
        [3, 3, None, None]
    """
    value = number(text)
    return int(value) if not math.isnan(value) and value == int(value) else None


def landmark_box(landmarks: object, margin: float, stretch: float = 1.0) -> Box | None:
    """The square around a face, or ``None`` unless its landmarks are 68 points or their 136 numbers."""
    try:
        points = np.array(landmarks, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if points.shape not in ((68, 2), (136,)) or not np.isfinite(points).all():
        return None
    points = points.reshape(68, 2)
    return square_box(points, margin, stretch) if np.ptp(points) > 0 else None


def label_lines(path: Path) -> list[str]:
    """The lines of a label file, however they end, without blank ones at the end."""
    return path.read_text(encoding="utf-8-sig", errors="replace").rstrip().splitlines()


def check_expressions(expressions: Collection[int], remedy: str) -> frozenset[int]:
    """The codes to keep, as a set."""
    wanted = frozenset(int(code) for code in expressions)
    if not wanted or not wanted <= set(range(11)):
        raise ValueError(problem("expressions", "codes from 0 to 10, at least one", sorted(wanted), remedy))
    return wanted


def check_every(every: int) -> None:
    """Raises unless ``every`` is a whole number above 0."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(problem("every", "a whole number, at least 1", every, "1 keeps all frames"))
