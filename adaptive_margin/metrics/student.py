"""The uncertainty of a mean over few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from ..functional.checks import problem


def student_interval(
    values: Sequence[float] | npt.NDArray[Any], confidence: float = 0.95
) -> tuple[float, float, float]:
    r"""Mean of a sample and the interval of Student's t around it.

    .. math:: \bar x \pm t_{n-1,\,(1 + c)/2}\; s / \sqrt n

    Source: Student 1908, *The probable error of a mean*. For paired differences it is the interval of the paired test.

    Args:
        values: :math:`x`, one number per seed, at least one.
        confidence: c, in (0, 1).

    Returns:
        Mean, lower and upper end; for a single number, which has no spread, the ends are NaN.

    Raises:
        ValueError: no values, or a confidence out of range.

    Example:
        >>> [round(x, 3) for x in student_interval([0.5, 0.6, 0.7])]
        [0.6, 0.352, 0.848]
    """
    n = len(values)
    if n == 0:
        raise ValueError(problem("values", "at least one number", "none", "train a seed first"))
    if not 0 < confidence < 1:
        raise ValueError(problem("confidence", "above 0 and below 1", confidence, "0.95 is usual"))
    mean = float(np.mean(values))
    if n == 1:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half
