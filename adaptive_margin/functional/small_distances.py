"""Squared distances of all pairs of a few rows on a CPU, in numpy; those of one batch are computed once."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .checks import is_blind
from .dependence import Array


class SmallDistances(NamedTuple):
    """Rows and their distances, for reading only: a margin and a loss may share them.

    Attributes:
        x: the rows relative to their mean, so that distances of rows far from 0 are exact; shape ``(N, D)``.
        squares: their squared norms, shape ``(N,)``.
        sums: those of the two rows of each pair, shape ``(N, N)``.
        d: squared distances from products of coordinates, at least 0, shape ``(N, N)``.
    """

    x: Array
    squares: Array
    sums: Array
    d: Array


class _Block:
    """A ``with`` block, and what has been measured in it."""

    def __init__(self) -> None:
        self.rows: Array = np.empty((0, 0))
        self.distances: SmallDistances | None = None

    def __enter__(self) -> None:
        self.around, _this_thread.block = _this_thread.block, self

    def __exit__(self, *error: object) -> None:
        _this_thread.block = self.around


class _ThisThread(threading.local):
    block: _Block | None = None


_this_thread = _ThisThread()


def shared_distances(x: Tensor) -> AbstractContextManager[None]:
    """A ``with`` block in which the same rows are measured once: for a margin of ``x``, then for a loss.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> with shared_distances(x):
        ...     small_distances(x.numpy()) is small_distances(x.clone().numpy())
        True
        >>> small_distances(x.numpy()) is small_distances(x.numpy())
        False
    """
    return nullcontext() if is_blind(x) else _Block()


def small_distances(rows: Array) -> SmallDistances:
    """The distances of rows.

    Example:
        >>> small_distances(torch.tensor([[0.0], [1.0], [2.0]]).numpy()).d
        array([[0., 1., 4.],
               [1., 0., 1.],
               [4., 1., 0.]], dtype=float32)
    """
    block = _this_thread.block
    if block is None:
        return _measured(rows)
    if block.distances is None or not _is_same(block.rows, rows):
        block.rows, block.distances = rows.copy(), _measured(rows)
    return block.distances


def _is_same(x: Array, y: Array) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype and bool((x == y).all())


def _measured(rows: Array) -> SmallDistances:
    x = rows - np.add.reduce(rows) / rows.dtype.type(len(rows))
    squares = np.add.reduce(x * x, axis=1)
    sums, factor = squares[:, None] + squares, torch.from_numpy(x)
    d = sums.copy()
    torch.from_numpy(d).addmm_(factor, factor.T, alpha=-2)  # numpy's matrix product uses threads of its own
    np.maximum(d, 0, out=d)
    return SmallDistances(x, squares, sums, d)
