"""Numbers in cells of label files, which may contain anything."""

from __future__ import annotations

import math


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
