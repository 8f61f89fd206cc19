"""Exact k-means of numbers: the paper's ablation of Otsu's threshold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..messages import problem
from .otsu import rounding, sample_columns, standardise, wide


def kmeans_threshold(values: Tensor, k: int = 2) -> Tensor:
    r"""Mean of the centres of a sample's k-means clusters, :math:`\delta = \frac1k \sum_{j=1}^k c_j`.

    Source: Kim & Song 2021, Ablation Study, "we calculated k cluster centers per domain using k-means clustering, and
    averaged them to determine the decision threshold"; k of 2, 3 and 5. One difference: the clusters are optimal
    (:func:`kmeans_centers`), not the result of an iteration from a random start.

    Args:
        values: shape ``(N,)``, any unit; integers are taken in torch's default floating dtype.
        k: number of clusters, at least 2.

    Returns:
        :math:`\delta`, 0-dim, in the unit and dtype of ``values``, without a gradient. A sample with fewer than ``k``
        distinct values has a cluster for each of them.

    Raises:
        ValueError: ``values`` is not one-dimensional, is empty, or holds NaN or infinity; ``k`` is below 2.

    Example:
        >>> kmeans_threshold(torch.tensor([0.0, 0.0, 1.0, 8.0, 9.0, 20.0]), k=3)
        tensor(9.6111)
    """
    return kmeans_thresholds(sample_columns("values", values, ndim=1), k)[0]


def kmeans_thresholds(values: Tensor, k: int = 2) -> Tensor:
    """Threshold of every column, :func:`kmeans_threshold` batched.

    Source: Kim & Song 2021, Ablation Study.

    Args:
        values: one sample per column, shape ``(N, L)``.
        k: number of clusters, at least 2.

    Returns:
        One threshold per column, shape ``(L,)``, dtype of ``values``.

    Raises:
        ValueError: as :func:`kmeans_threshold`, for a ``values`` that is not two-dimensional.

    Example:
        >>> kmeans_thresholds(torch.tensor([[0.0, 7.0], [1.0, 9.0], [8.5, 9.0]]))
        tensor([4.5000, 8.0000])
    """
    x = sample_columns("values", values, ndim=2)
    centers, used = _centers(x, k)
    return ((centers * used).sum(dim=0) / used.sum(dim=0)).to(x.dtype)


def kmeans_centers(values: Tensor, k: int = 2) -> Tensor:
    r"""Centres of the k-means clusters of a sample of numbers, the global optimum.

    .. math:: \min_{c_1, \dots, c_k} \sum_{i=1}^N \min_j (x_i - c_j)^2

    Clusters of numbers are intervals of the sorted sample, so the optimum has an exact dynamic program,
    :math:`D_m(j) = \min_i D_{m-1}(i) + \mathrm{SSE}(x_{(i+1)}, \dots, x_{(j)})`, in :math:`O(k N^2)`. Optima that agree
    to rounding are ties, and the lowest split wins; with ``k=2`` the clusters are the two groups of
    :func:`~adaptive_margin.functional.otsu_threshold`.

    Source: Wang & Song 2011 (the dynamic program); Kim & Song 2021, Ablation Study.

    Args:
        values: shape ``(N,)``, any unit.
        k: number of clusters, at least 2.

    Returns:
        The centres, ascending, shape ``(k,)`` or as many as there are distinct values, dtype of ``values``.

    Raises:
        ValueError: as :func:`kmeans_threshold`.

    Example:
        >>> kmeans_centers(torch.tensor([0.0, 0.0, 1.0, 8.0, 9.0, 20.0]), k=3)
        tensor([ 0.3333,  8.5000, 20.0000])
    """
    x = sample_columns("values", values, ndim=1)
    centers, used = _centers(x, k)
    return centers[used].to(x.dtype)


def _centers(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Centres of each column, ascending, and which of them exist; both of shape ``(min(k, N), L)``."""
    if not isinstance(k, int) or k < 2:
        raise ValueError(problem("k", "an integer of at least 2", k, "the paper compares 2, 3 and 5"))
    n, columns = x.shape
    k = min(k, n)
    x = wide(x.sort(dim=0).values)
    starts_run = torch.nn.functional.pad(x[1:] > x[:-1], (0, 0, 1, 0), value=True).T  # (L, N): no split inside a run
    x, scale, shift = (t.T for t in standardise(x))  # (L, N), (L, 1), (L, 1)
    sums = torch.nn.functional.pad(x.cumsum(dim=1), (1, 0))  # (L, N + 1); column j: of the first j values
    squares = torch.nn.functional.pad(x.square().cumsum(dim=1), (1, 0))

    def spread(i: Tensor, j: Tensor) -> Tensor:
        """Sum of squared deviations of the sorted values i, ..., j - 1 from their mean."""
        total = sums.gather(1, j) - sums.gather(1, i)
        return (squares.gather(1, j) - squares.gather(1, i) - total.square() / (j - i)).clamp(min=0)

    last = torch.arange(1, n + 1, device=x.device).expand(columns, n)
    infinite = x.new_full((columns, 1), torch.inf)
    cost = torch.cat([infinite, spread(torch.zeros_like(last), last)], dim=1)  # (L, N + 1): one cluster
    tie = rounding(x) * cost[:, -1:]
    may_start = torch.nn.functional.pad(starts_run, (0, 1), value=False)  # (L, N + 1)
    starts = []
    for _ in range(2, k + 1):
        cost = torch.where(may_start, cost, infinite)
        cost, start = _add_cluster(cost, spread, tie)
        starts.append(start)

    distinct = starts_run.sum(dim=1, keepdim=True)  # (L, 1)
    end = torch.full_like(distinct, n)
    centers, used = [], []
    for m in range(k, 0, -1):
        exists = distinct >= m
        start = torch.where(exists, starts[m - 2].gather(1, end), end) if m > 1 else torch.zeros_like(end)
        centers.append((sums.gather(1, end) - sums.gather(1, start)) / (end - start).clamp(min=1))
        used.append(exists)
        end = start
    ascending = torch.cat(centers[::-1], dim=1) * scale + shift
    return ascending.T, torch.cat(used[::-1], dim=1).T


def _add_cluster(cost: Tensor, spread: Callable[[Tensor, Tensor], Tensor], tie: Tensor) -> tuple[Tensor, Tensor]:
    """One more cluster: the new cost D(j) and its first minimiser, for every j and column."""
    total = torch.full_like(cost, torch.inf)
    start = torch.zeros(cost.shape, dtype=torch.int64, device=cost.device)
    splits = torch.arange(cost.shape[1], device=cost.device).expand_as(cost)  # (L, N + 1)
    for j in range(1, cost.shape[1]):
        candidate = cost[:, :j] + spread(splits[:, :j], splits[:, j : j + 1].expand(-1, j))  # (L, j)
        total[:, j] = candidate.amin(dim=1)
        start[:, j] = (candidate <= total[:, j : j + 1] + tie).int().argmax(dim=1)
    return total, start
