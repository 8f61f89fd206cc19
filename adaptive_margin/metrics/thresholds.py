"""Whether one threshold on distances suits every class."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..functional.checks import at_least_float32, check_finite, check_labels, check_matrix
from ..functional.groups import group_index
from ..messages import problem

ENTRIES = 2**22
"""Distances held at once."""


@dataclass(frozen=True)
class ThresholdConsistency:
    """What :func:`operating_point_inconsistency` found.

    Attributes:
        opis: the score, in [0, 1]: 0 if every class has the same utility at every threshold.
        low: the smallest threshold, a distance.
        high: the largest.
        best: the threshold with the largest mean utility.
        utility: that utility, in [0, 1].
        worst: the utility of the worst class there.
        classes: number of classes with at least two rows: those that count.
    """

    opis: float
    low: float
    high: float
    best: float
    utility: float
    worst: float
    classes: int


@torch.no_grad()
def operating_point_inconsistency(
    embeddings: Tensor, labels: Tensor, *, false_accepts: tuple[float, float] = (0.01, 0.1), thresholds: int = 101
) -> ThresholdConsistency:
    r"""Operating-point-inconsistency score (OPIS): the variance over classes of the utility of a common threshold.

    .. math::
        \mathrm{OPIS} = \frac1{d_1 - d_0}\int_{d_0}^{d_1} \frac1C \sum_{c=1}^{C} \bigl(U_c(d) - \bar U(d)\bigr)^2
        \,\mathrm{d}d, \qquad U_c = \frac{2\,\phi_c\,\psi_c}{\phi_c + \psi_c}

    with :math:`\phi_c(d)` the share of the pairs within class c at distance d or less (true accepts) and
    :math:`\psi_c(d)` the share of the pairs of class c with other classes beyond it (true rejects). The range of
    thresholds is that in which the share of false accepts of all pairs together goes from one of ``false_accepts`` to
    the other. The integral is the mean over evenly spaced thresholds.

    Source: Zhang et al., ICLR 2024, *Threshold-Consistent Margin Loss for Open-World Deep Metric Learning*
    (arXiv 2307.04047). Ours: the default range of false accepts, and the number of thresholds.

    All pairs are compared, a tile of rows at a time: O(N²·D) time, O(N²) memory for the distances between classes.

    Args:
        embeddings: shape ``(N, D)``, used without normalisation.
        labels: integers, shape ``(N,)``; at least two classes, one of them with two rows. A class of one row is only
            a negative of the others.
        false_accepts: shares of false accepts at the ends of the range, increasing, in (0, 1).
        thresholds: number of thresholds, at least 2.

    Returns:
        The score, the range, and the best threshold in it.

    Raises:
        ValueError: shapes that do not match, NaN or infinity, too few classes or rows, options out of range.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [10.0], [14.0]])
        >>> found = operating_point_inconsistency(x, torch.tensor([0, 0, 1, 1]), false_accepts=(0.1, 0.5))
        >>> found.low, found.high  # between classes: 9, 10, 13, 14; within: 1 and 4, so that all are accepted
        (9.0, 10.0)
    """
    check_matrix("embeddings", embeddings)
    check_labels("labels", labels, len(embeddings))
    check_finite("embeddings", embeddings)
    low, high = false_accepts
    if not 0 < low < high < 1:
        remedy = "0.01 and 0.1 are usual"
        raise ValueError(problem("false_accepts", "two increasing shares in (0, 1)", false_accepts, remedy))
    if thresholds < 2:
        raise ValueError(problem("thresholds", "at least 2", thresholds, "101 are usually enough"))
    x, index = at_least_float32(embeddings), group_index(labels)
    counts = torch.bincount(index)
    if len(counts) < 2 or counts.max() < 2:
        got = f"{len(counts)} classes, the largest of {int(counts.max()) if len(counts) else 0} rows"
        remedy = "a threshold needs pairs within a class and between classes"
        raise ValueError(problem("labels", "of two classes, one with two rows", got, remedy))
    step = max(1, ENTRIES // len(x))
    starts = [*range(0, len(x), step), len(x)]
    between = [
        torch.cdist(x[a:b], x)[index[a:b, None] != index].cpu().numpy() for a, b in pairwise(starts)
    ]  # each pair twice
    ends = np.quantile(np.concatenate(between), (low, high), method="inverted_cdf")
    edges = torch.linspace(float(ends[0]), float(ends[1]), thresholds, dtype=x.dtype, device=x.device)
    edges[-1] = float(ends[1])
    accepted = torch.zeros(2, len(counts), thresholds + 1, dtype=torch.int64, device=x.device)  # of other, of own class
    for a, b in pairwise(starts):
        own = index[a:b, None] == index
        bins = torch.bucketize(torch.cdist(x[a:b], x), edges)  # the first threshold that accepts the pair
        places = (own * len(counts) + index[a:b, None]) * (thresholds + 1) + bins
        places = places[torch.arange(a, b, device=x.device)[:, None] != torch.arange(len(x), device=x.device)]
        accepted += torch.bincount(places, minlength=accepted.numel()).view_as(accepted)
    cumulated = accepted.cumsum(2).double()
    shares = cumulated[..., :-1] / cumulated[..., -1:]
    counted = counts >= 2
    rejects, accepts = 1 - shares[0, counted], shares[1, counted]  # (C, thresholds)
    utility = (2 * accepts * rejects / (accepts + rejects)).nan_to_num(0.0)
    mean = utility.mean(0)
    best = int(mean.argmax())
    return ThresholdConsistency(
        opis=float((utility - mean).square().mean()),
        low=float(ends[0]),
        high=float(ends[1]),
        best=float(edges[best]),
        utility=float(mean[best]),
        worst=float(utility[:, best].min()),
        classes=int(counted.sum()),
    )
