"""The two parts of the adaptive margin for a small batch on a CPU, in numpy.

For a batch of 128, torch has little to compute: most of the time goes into starting about ninety operations. numpy
starts them in a third of that time. The result is that of the general path, up to the rounding of its sums. If
distances need the general path's handling of copies and ties, this path returns nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checks import is_blind
from .dependence import Bandwidth, correlations_of_moments, power_of_two
from .groups import index_on_host
from .neighbourhood import PURE, Significant, first_significant, required_counts, rounding_of_squares
from .ties import settle

Array = NDArray[Any]

MOST_ENTRIES = 2**18
"""Of the matrix of distances and of the embeddings; torch's threads gain beyond."""


class SmallBatch(NamedTuple):
    """The result of :func:`small_batch`.

    Attributes:
        eta: correlation of each class with the rest, float64, shape ``(C,)``.
        weights: the share of the batch in each class, shape ``(C,)``.
        sizes: neighbourhood size of each row, int64, shape ``(B,)``; None if no bound was given.
    """

    eta: Array
    weights: Array
    sizes: Array | None


def small_batch(
    x: Tensor, labels: Tensor, scale: Tensor, bandwidth: Bandwidth, confidence: float, significant: Significant | None
) -> SmallBatch | None:
    """Class correlations and neighbourhood sizes of a batch, or None if the general path is needed.

    Args:
        x: finite embeddings, shape ``(B, D)``, float32 or float64.
        labels: integers, shape ``(B,)``.
        scale: :func:`~adaptive_margin.functional.dependence.common_scale` of ``x``.
        bandwidth: as for :func:`~adaptive_margin.functional.gaussian_kernel`.
        confidence: c.
        significant: the bound; None leaves the neighbourhood sizes out.

    Example:
        >>> x = torch.cat([torch.randn(64, 8), torch.randn(64, 8) + 20.0])
        >>> found = small_batch(x, torch.arange(128) // 64, torch.tensor(16.0), "std", 0.05, PURE[0])
        >>> np.unique(found.sizes)
        array([16])
    """
    n = len(x)
    largest = max(n * n, x.numel())
    known = significant is None or significant in PURE
    if n < 2 or largest > MOST_ENTRIES or x.requires_grad or not known or is_blind(x):
        return None
    index = index_on_host(labels)
    counts = np.bincount(index)
    scaled = x.numpy() / scale.numpy()
    sizes = None
    if significant is not None:
        sizes = _sizes(scaled, index, counts, confidence, significant)
        if sizes is None:
            return None
    return SmallBatch(_correlations(scaled, index, counts, scale.item(), bandwidth), counts / n, sizes)


def _correlations(x: Array, index: Array, counts: Array, scale: float, bandwidth: Bandwidth) -> Array:
    dtype = torch.float32 if x.dtype == np.float32 else torch.float64
    if bandwidth == "std":
        deviation = x - _mean(x)
        variance = float(np.einsum("ij,ij->", deviation, deviation)) / x.size
        floor = (8 * torch.finfo(dtype).eps) ** 2
        g = x * x
        g *= -0.5 / variance if variance > floor else 0.0
    else:
        g = (x * min(scale / float(bandwidth), 1e30)).clip(-1e4, 1e4) ** 2
        g *= -0.5
    np.exp(g, out=g)
    g -= _mean(g)
    g = g.astype(np.float64)
    own = (index == np.arange(len(counts))[:, None]).astype(np.float64)  # (C, B)
    columns = (torch.from_numpy(own) @ torch.from_numpy(g)).numpy()  # numpy's own product has other threads
    squares = np.bincount(index, weights=np.einsum("ij,ij->i", g, g))
    moments = (columns, squares, counts)
    eta: Array = correlations_of_moments(moments, moments, dtype)
    return eta


def _mean(x: Array) -> Any:
    """``x.mean()`` without its overhead, in the dtype of ``x``."""
    return np.add.reduce(x, axis=None) / x.dtype.type(x.size)


def _sizes(x: Array, index: Array, counts: Array, confidence: float, significant: Significant) -> Array | None:
    n = len(x)
    required = required_counts(significant, n - 1, int(counts.max()) - 1, n, len(counts), confidence)
    sizes = np.full(n, n - 1)
    if len(required.of_nearest) == 0:
        return sizes
    centre = np.add.reduce(x) / x.dtype.type(n)
    spread = float(np.abs(x - centre).max())
    step = max(power_of_two(spread) / 8, 2.0**-64)
    offset = np.round(centre / step) * step
    x = x - offset
    norms = np.einsum("ij,ij->i", x, x)
    ordered = np.sort(norms)
    if (ordered[1:] == ordered[:-1]).any():
        return None  # copies, perhaps
    rows = torch.from_numpy(x)
    squares = (rows @ rows.T).numpy()
    squares *= -2
    squares += norms
    squares += norms[:, None]
    np.fill_diagonal(squares, np.inf)
    if squares.min() <= rounding_of_squares(rows) * 2 * ordered[-1]:
        return None  # too near for this arithmetic
    key = squares.view(np.int32 if squares.dtype == np.float32 else np.int64)
    key &= -2
    label = index.astype(np.min_scalar_type(len(counts)))  # small ones compare faster
    flag = np.empty(key.shape, dtype=np.bool_)
    tied = np.flatnonzero(first_significant(key, flag, label, sizes, label, required, norms))
    if len(tied):
        groups, at = torch.from_numpy(index), torch.from_numpy(tied)
        settle(rows, rows, torch.from_numpy(offset), at, groups, groups, required.of_nearest, sizes)
    return sizes
