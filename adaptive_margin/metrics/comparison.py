"""Means over few seeds and how far to trust them: Student's intervals, paired differences, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from ..messages import problem

Verdict = Literal["better", "worse", "no difference seen", "identical"]
LEVEL = 0.05
"""How often a corrected set of comparisons may say better or worse where there is no difference at all."""


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


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign, which is a true minus where it is negative after rounding.

    Example:
        >>> signed(-0.25, 2), signed(-0.04)
        ('−0.25', '+0.0')
    """
    return f"{round(float(value), digits) + 0.0:+.{digits}f}".replace("-", "−")


@dataclass(frozen=True)
class Comparison:
    """The paired difference of two arms.

    Attributes:
        n: number of seeds that both arms have.
        mean: mean of the differences.
        low: lower end of the interval.
        high: upper end of the interval.
        p: two-sided p-value of Student's paired test.
        verdict: ``"better"`` if the interval is above 0, ``"worse"`` if it is below, ``"identical"`` if the arms are
            equal on every seed, else ``"no difference seen"``. This does not mean "no difference": few seeds show
            only large differences.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    verdict: Verdict

    def __str__(self) -> str:
        return f"{signed(self.mean)} [{signed(self.low)}, {signed(self.high)}]"


def paired(arm: Mapping[int, float], baseline: Mapping[int, float], *, confidence: float = 1 - LEVEL) -> Comparison:
    r"""Student's interval of the mean paired difference, :math:`\bar d \pm t_{n-1} s_d / \sqrt n`.

    Args:
        arm: figure by seed; higher is better.
        baseline: likewise.
        confidence: confidence of the interval.

    Raises:
        ValueError: fewer than two seeds in common, or a figure of one that is not finite.

    Example:
        >>> result = paired({0: 52.0, 1: 54.0, 2: 53.0}, {0: 50.0, 1: 51.0, 2: 52.0})
        >>> str(result), result.verdict
        ('+2.0 [−0.5, +4.5]', 'no difference seen')
    """
    seeds = sorted(arm.keys() & baseline.keys())
    if len(seeds) < 2:
        raise ValueError(problem("arm, baseline", "of two seeds in common", len(seeds), "train both arms with them"))
    for seed in seeds:
        if not (math.isfinite(arm[seed]) and math.isfinite(baseline[seed])):
            got = f"{arm[seed]} and {baseline[seed]} of seed {seed}"
            raise ValueError(problem("arm, baseline", "finite", got, "leave that seed out"))
    gaps = np.array([arm[seed] - baseline[seed] for seed in seeds])
    mean, low, high = student_interval(gaps, confidence)
    error = float(gaps.std(ddof=1) / math.sqrt(len(gaps)))
    p = float(2 * stats.t.sf(abs(mean) / error, len(gaps) - 1)) if error > 0 else float(mean == 0)
    verdict: Verdict = "better" if low > 0 else "worse" if high < 0 else "no difference seen"
    return Comparison(len(gaps), mean, low, high, p, verdict if gaps.any() else "identical")


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for multiple comparisons: Holm 1979, step down, valid under any dependence.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.arange(len(order), 0, -1) * np.asarray(p_values, dtype=float)[order]
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(steps).clip(max=1.0)
    return [float(p) for p in corrected]


def compared(pairs: Iterable[tuple[Mapping[int, float], Mapping[int, float]]]) -> list[Comparison]:
    """Several arms, each against its baseline: p-values, intervals and verdicts are corrected for their number.

    Holm's procedure tests the smallest of m p-values at 0.05 / m, the next at 0.05 / (m - 1), and so on until one is
    not below its level; all others are tested at that level. Each interval has the confidence of its test, so it leaves
    out 0, and the verdict says better or worse, exactly where the corrected p is below 0.05.

    Args:
        pairs: arm and baseline as in :func:`paired`.

    Returns:
        One comparison per pair, in their order.

    Example:
        >>> gains = [{0: 1.0, 1: 1.2, 2: 1.1}, {0: 1.0, 1: 1.2, 2: 0.6}, {0: 0.0, 1: 0.0, 2: 0.0}]
        >>> for found in compared((gain, dict.fromkeys(gain, 0.0)) for gain in gains):
        ...     print(found, f"p = {found.p:.2f}, {found.verdict}")
        +1.1 [+0.7, +1.5] p = 0.01, better
        +0.9 [−0.2, +2.0] p = 0.07, no difference seen
        +0.0 [+0.0, +0.0] p = 1.00, identical
    """
    pairs = list(pairs)
    p_values = [paired(*pair).p for pair in pairs]
    corrected = holm(p_values)
    rejected = sum(p < LEVEL for p in corrected)
    ranks = np.argsort(np.argsort(p_values, kind="stable"), kind="stable")
    confidences = [1 - LEVEL / (len(pairs) - min(int(rank), rejected)) for rank in ranks]
    return [
        replace(paired(*pair, confidence=confidence), p=p)
        for pair, confidence, p in zip(pairs, confidences, corrected, strict=True)
    ]
