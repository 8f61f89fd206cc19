"""The margin of a small batch on a CPU, in numpy.

At N = 128 most of the time goes into starting about two hundred operations, which numpy does in a third of the time.
Without it :class:`~adaptive_margin.ContrastiveVDMLoss` takes 1.6 times as long as the host's contrastive loss
on squared distances; with it, a little less time than the host's: ``python benchmarks/speed/small.py`` prints both. The
result is that of the general path, up to the rounding of its sums.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .checks import at_least_float32, check_finite, is_blind
from .dependence import Array, Bandwidth, correlations_of_moments, divisor_for
from .neighbourhood import Significant, first_reached, required_counts
from .own_neighbours import rounding_of, sort_by_distance
from .small_distances import small_distances

MOST_ENTRIES = 512**2
"""Largest number of entries in the distance matrix and in the embeddings; beyond it torch's threads are faster."""

ORDINARY = 2.0**20
"""Rows whose largest entry is within this factor of 1 have distances that need no scaling."""


class SmallBatch:
    """A plain batch: each row with the others as its reference set. Raises if an entry is not finite.

    Args:
        x: embeddings, shape ``(B, D)``; half precision is computed in float32.
        labels: integers, shape ``(B,)``.

    Example:
        >>> from adaptive_margin.functional import hoeffding_significant
        >>> x = torch.cat([torch.randn(64, 8), torch.randn(64, 8) + 20.0])
        >>> batch = SmallBatch(x, torch.arange(128) // 64)
        >>> np.unique(batch.sizes(hoeffding_significant, 0.05))
        array([16])
    """

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        x = at_least_float32(x)
        given = labels.numpy()
        order = given.argsort()
        ordered = given[order]
        first = np.empty(len(order), dtype=np.bool_)
        first[:1] = True
        np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
        rows = x.numpy(force=True)
        largest = float(max(np.maximum.reduce(rows, axis=None), -np.minimum.reduce(rows, axis=None)))
        if not math.isfinite(largest):
            check_finite("embeddings", x)
        self.scale = divisor_for(largest, x.dtype)
        self.x = rows.take(order, axis=0)  # (B, D), class by class
        self.x /= rows.dtype.type(self.scale)
        self.index = np.empty(len(order), np.int64)  # (B,), in the order of the batch
        self.index[order] = first.cumsum() - 1
        self.rows = rows if 1 / ORDINARY <= self.scale <= ORDINARY else rows / rows.dtype.type(self.scale)
        self.starts = first.nonzero()[0]  # (C,)
        self.counts = np.bincount(self.index)  # (C,)
        self.dtype = x.dtype

    empty = False

    @property
    def weights(self) -> Array:
        """The share of each class, shape ``(C,)``."""
        return self.counts / len(self.index)

    def as_tensor(self, value: float | Tensor) -> Tensor:
        """A margin of this batch, a number, as a 0-dim tensor."""
        if isinstance(value, Tensor):
            return value.to(self.dtype)
        return torch.scalar_tensor(value, dtype=self.dtype, device="cpu")

    @staticmethod
    def suits(x: Tensor) -> bool:
        """Whether a batch is small and plain enough for this path."""
        small = len(x) > 1 and max(len(x) ** 2, x.numel()) <= MOST_ENTRIES
        return small and not x.requires_grad and not is_blind(x)

    def correlations(self, bandwidth: Bandwidth) -> Array:
        """:func:`~adaptive_margin.functional.class_correlations` of the batch, float64, shape ``(C,)``."""
        x, floor = self.x, (8 * np.finfo(self.x.dtype).eps) ** 2
        if bandwidth == "std":
            squares = x - _mean(x)
            squares *= squares
            variance = float(np.add.reduce(squares, axis=None)) / x.size
            g = x * x
            g *= -0.5 / variance if variance > floor else 0.0
        else:
            g = (x * min(self.scale / float(bandwidth), 1e30)).clip(-1e4, 1e4) ** 2
            g *= -0.5
        np.exp(g, out=g)
        g -= _mean(g)
        g = g.astype(np.float64)
        columns, sums = np.add.reduceat(g, self.starts), np.empty((2, len(self.counts)))
        g *= g
        np.add.reduceat(np.add.reduce(g, axis=1), self.starts, out=sums[0])
        sums[1] = self.counts
        moments = columns, sums
        eta: Array = correlations_of_moments(moments, moments, torch.from_numpy(x).dtype)
        return eta

    def sizes(self, significant: Significant, confidence: float, rows: Tensor | None = None) -> Array:
        """:func:`~adaptive_margin.functional.empirical_bias_k` of all or some rows for one of our bounds."""
        n = len(self.x)
        required = required_counts(significant, n - 1, int(self.counts.max()) - 1, n, len(self.counts), confidence)
        neighbours = np.full(n if rows is None else len(rows), n - 1)
        return first_reached(self._own(len(required), rows), required, neighbours) if len(required) else neighbours

    def impurities(self, rows: Tensor | None = None) -> Array:
        """:func:`~adaptive_margin.functional.neighbourhood_impurity` of all or some rows."""
        wanted = self.counts[self.index if rows is None else self.index[rows.numpy()]] - 1
        reach = max(1, int(wanted.max()))
        own = self._own(reach, rows)
        own &= np.arange(reach) < wanted[:, None]
        alone = wanted == 0  # its share of the batch takes the place of that of its neighbourhood
        found: Array = (np.add.reduce(own, axis=1) + alone / len(self.index)) / (wanted + alone)
        return 1 - found

    def _own(self, reach: int, rows: Tensor | None) -> Array:
        """Whether the 1st, 2nd, … nearest neighbour has the row's label, shape ``(rows, reach)``."""
        measured = small_distances(self.rows)
        label = self.index.astype(np.uint8 if len(self.counts) < 256 else np.int64)  # small numbers compare faster
        if rows is None:
            d, sums, of_rows, places = measured.d.copy(), measured.sums, label, np.arange(len(label))
        else:
            places = rows.numpy()
            d, sums, of_rows = measured.d[places], measured.sums[places], label[places]
        sort_by_distance(label, reach, d, sums * rounding_of(self.x.shape[1], self.dtype), of_rows, places)
        own: Array = d.view(np.int32 if d.dtype == np.float32 else np.int64)[:, :reach] & 1
        return own


def _mean(x: Array) -> Array:
    """``x.mean()`` without its overhead, in the dtype of ``x``."""
    mean: Array = np.add.reduce(x, axis=None) / x.dtype.type(x.size)
    return mean
