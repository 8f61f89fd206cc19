"""Otsu's threshold and k-means of numbers, slowly: every split tried, in fractions, without rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations, pairwise

TIED = Fraction(1, 10**12)  # what the library counts as equal: rounding may order such splits either way


def mean(numbers: Sequence[Fraction]) -> Fraction:
    return sum(numbers, Fraction(0)) / len(numbers)


def otsu_split_slow(values: Sequence[float]) -> tuple[float, float] | None:
    """The neighbours of the best split: docs/grouping.md; None for a constant sample."""
    x = sorted(Fraction(v) for v in values)
    variances = {}
    for i in range(1, len(x)):
        if x[i - 1] < x[i]:
            below, above = x[:i], x[i:]
            weight = Fraction(len(below) * len(above), len(x) ** 2)
            variances[i] = weight * (mean(above) - mean(below)) ** 2
    if not variances:
        return None
    best = max(variances.values())
    i = min(i for i, variance in variances.items() if variance >= best * (1 - TIED))
    return float(x[i - 1]), float(x[i])


def otsu_threshold_slow(values: Sequence[float]) -> float:
    split = otsu_split_slow(values)
    return float(values[0]) if split is None else float((Fraction(split[0]) + Fraction(split[1])) / 2)


def sum_of_squares(cluster: Sequence[Fraction]) -> Fraction:
    center = mean(cluster)
    return sum(((x - center) ** 2 for x in cluster), Fraction(0))


def kmeans_clusters_slow(values: Sequence[float], k: int) -> tuple[Fraction, list[list[Fraction]]]:
    """Least sum of squares over every cut of the distinct values into k intervals, and the first cut to reach it."""
    x = sorted(Fraction(v) for v in values)
    cuts = [i for i in range(1, len(x)) if x[i - 1] < x[i]]
    k = min(k, len(cuts) + 1)
    ways = []
    for chosen in combinations(cuts, k - 1):
        edges = [0, *chosen, len(x)]
        clusters = [x[a:b] for a, b in pairwise(edges)]
        ways.append((sum(map(sum_of_squares, clusters), Fraction(0)), clusters))
    return min(ways, key=lambda way: way[0])


def kmeans_threshold_slow(values: Sequence[float], k: int) -> float:
    _, clusters = kmeans_clusters_slow(values, k)
    return float(mean([mean(cluster) for cluster in clusters]))


def groups_slow(
    rows: Sequence[Sequence[float]],
    threshold: Callable[[Sequence[float]], float],
    magnitude: bool = True,
    max_radius: float = math.inf,
) -> list[int]:
    """Algorithm 1, line 3, one sample at a time."""
    of_label = [threshold([abs(y) if magnitude else y for y in column]) for column in zip(*rows, strict=True)]
    delta_r = math.hypot(*of_label)
    groups = []
    for row in rows:
        r = math.hypot(*row)
        groups.append(-1 if r >= max_radius else 0 if r < delta_r else 1)
    return groups
