"""Losses of pytorch-metric-learning with a margin of its own for each pair or triplet: slow, one number at a time.

Written from the papers' formulas: contrastive (Hadsell et al. 2006), triplet (Schroff et al. 2015), margin based
(Wu et al. 2017, with the mean over terms above zero), signal-to-noise contrastive (Yuan et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, variance

Vector = Sequence[float]
Distance = Callable[[Vector, Vector], float]


def unit(x: Vector) -> list[float]:
    norm = math.sqrt(sum(v * v for v in x))
    return [v / norm for v in x]


def euclidean(x: Vector, y: Vector) -> float:
    x, y = unit(x), unit(y)
    return math.sqrt(sum((v - w) ** 2 for v, w in zip(x, y, strict=True)))


def noise_to_signal(anchor: Vector, other: Vector) -> float:
    anchor, other = unit(anchor), unit(other)
    return variance([v - w for v, w in zip(anchor, other, strict=True)]) / variance(anchor)


def _mean_above_zero(terms: list[float]) -> float:
    above = [term for term in terms if term > 0]
    return fmean(above) if above else 0.0


def contrastive(
    z: Sequence[Vector],
    ref: Sequence[Vector],
    positives: list[tuple[int, int]],
    negatives: list[tuple[int, int]],
    margins: list[float],
    distance: Distance = euclidean,
) -> float:
    """Mean of positive distances, and of what negative distances lack to the margin of each negative pair."""
    pull = [distance(z[a], ref[p]) for a, p in positives]
    push = [margin - distance(z[a], ref[n]) for (a, n), margin in zip(negatives, margins, strict=True)]
    return _mean_above_zero(pull) + _mean_above_zero(push)


def triplet(
    z: Sequence[Vector], ref: Sequence[Vector], triplets: list[tuple[int, int, int]], margins: list[float]
) -> float:
    """Mean, over triplets that violate their margin, of the violation."""
    terms = []
    for (a, p, n), margin in zip(triplets, margins, strict=True):
        terms.append(euclidean(z[a], ref[p]) - euclidean(z[a], ref[n]) + margin)
    return _mean_above_zero(terms)


def margin_based(
    z: Sequence[Vector],
    ref: Sequence[Vector],
    triplets: list[tuple[int, int, int]],
    margins: list[float],
    beta: float = 1.25,
) -> float:
    """Positives within beta minus the margin, negatives beyond beta plus it; mean over the terms above zero."""
    terms = []
    for (a, p, n), margin in zip(triplets, margins, strict=True):
        terms += [euclidean(z[a], ref[p]) - beta + margin, beta - euclidean(z[a], ref[n]) + margin]
    return _mean_above_zero(terms)


def all_pairs(
    labels: Sequence[int], ref_labels: Sequence[int] | None = None
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Positive and negative pairs, in the order of their indices; nothing is paired with itself."""
    others = labels if ref_labels is None else ref_labels
    positives, negatives = [], []
    for i, label in enumerate(labels):
        for j, other in enumerate(others):
            if label != other:
                negatives.append((i, j))
            elif ref_labels is not None or i != j:
                positives.append((i, j))
    return positives, negatives


def all_triplets(labels: Sequence[int], ref_labels: Sequence[int] | None = None) -> list[tuple[int, int, int]]:
    """Every anchor with every positive and every negative."""
    positives, negatives = all_pairs(labels, ref_labels)
    return [(a, p, n) for a, p in positives for b, n in negatives if a == b]
