"""Compares two arms: paired by seed, with an interval and a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from ..functional.checks import problem
from ..metrics.student import student_interval

Verdict = Literal["better", "worse", "no difference seen"]


@dataclass(frozen=True)
class Comparison:
    """The paired difference of two arms.

    Attributes:
        n: number of seeds that both arms have.
        mean: mean of the differences.
        low: lower end of the interval.
        high: upper end of the interval.
        p: two-sided p-value of Student's paired test.
        verdict: ``"better"`` if the interval is above 0, ``"worse"`` if it is below, else ``"no difference seen"``.
            This does not mean "no difference": few seeds show only large differences.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def paired(arm: Mapping[int, float], baseline: Mapping[int, float], *, confidence: float = 0.95) -> Comparison:
    r"""Student's interval of the mean paired difference, :math:`\bar d \pm t_{n-1} s_d / \sqrt n`.

    Args:
        arm: figure by seed; higher is better.
        baseline: likewise.
        confidence: confidence of the interval.

    Raises:
        ValueError: fewer than two seeds in common.

    Example:
        >>> result = paired({0: 52.0, 1: 54.0, 2: 53.0}, {0: 50.0, 1: 51.0, 2: 52.0})
        >>> str(result), result.verdict
        ('+2.0 [-0.5, +4.5]', 'no difference seen')
    """
    seeds = sorted(arm.keys() & baseline.keys())
    if len(seeds) < 2:
        raise ValueError(problem("arm, baseline", "of two seeds in common", len(seeds), "train both arms with them"))
    gaps = np.array([arm[seed] - baseline[seed] for seed in seeds])
    mean, low, high = student_interval(gaps, confidence)
    error = float(gaps.std(ddof=1) / math.sqrt(len(gaps)))
    p = float(2 * stats.t.sf(abs(mean) / error, len(gaps) - 1)) if error > 0 else float(mean == 0)
    verdict: Verdict = "better" if low > 0 else "worse" if high < 0 else "no difference seen"
    return Comparison(len(gaps), mean, low, high, p, verdict)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for multiple comparisons: Holm 1979, step down, valid under any dependence.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected
