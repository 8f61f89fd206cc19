"""Neighbourhood sizes with ties: on a grid of 0.1, equal distances differ by the rounding of the entries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

ENTRIES = 2**20
"""Distances held at once."""

ONE_IN = 64
"""Rows of float32 of which one may have two neighbours equally far by mere chance, whatever the data."""


def undecided(key: Array, sizes: Array, found: Array, row_squares: Array) -> Array:
    """Which rows' K-th neighbours are as far as the next one, within the accuracy of products of coordinates.

    Args:
        key: sorted distances of each row, as integers whose last bit is a flag.
        sizes: K of each row.
        found: for which rows.
        row_squares: squared norms of the rows.

    Returns:
        bool, one per row.
    """
    rows = np.flatnonzero(found & (sizes < key.shape[1]))
    k = sizes[rows]
    here, following = ((key[rows, place] & -2).view(row_squares.dtype) for place in (k - 1, k))
    rounding = 8 * np.finfo(row_squares.dtype).eps
    result = np.zeros(len(key), dtype=np.bool_)
    result[rows] = following - here <= rounding * (3 * row_squares[rows] + 2 * here)
    return result


def settle(
    x: Tensor, y: Tensor, offset: Tensor, rows: Tensor, index: Tensor, ref_index: Tensor, required: Array, sizes: Array
) -> None:
    r"""Determines the neighbourhood sizes of some rows by distances in float64, with equal distances in one place.

    Distances are equal if they differ by no more than the effect of rounding the entries by ``eps`` each:
    :math:`|D^2 - D'^2| \le 4\,\mathrm{eps}\,D\,(\|x\| + D)/\sqrt d`, for d features. In ties, other labels come first.
    In float32 a single pair of such neighbours is left unchanged, unless at least one row in 64 has them, because such
    pairs also occur by chance in generic embeddings.

    Args:
        x: rows relative to a centre, shape ``(B, D)``.
        y: the reference set relative to the same centre, shape ``(R, D)``, or ``x`` itself.
        offset: the centre, shape ``(D,)``.
        rows: the indices of these rows, int64.
        index: labels of ``x`` as consecutive integers.
        ref_index: those of ``y``.
        required: own labels that the k nearest must contain, for k = 1, 2, ….
        sizes: of all rows; those of ``rows`` are overwritten.
    """
    if x.dtype == torch.float32 and len(rows) * ONE_IN < len(x):
        return
    ys = y.double()
    y_squares = ys.square().sum(1)
    for some in torch.split(rows, max(1, ENTRIES // len(y))):
        xs = x[some].double()
        x_squares = xs.square().sum(1, keepdim=True)
        squares = (x_squares + y_squares).addmm_(xs, ys.T, alpha=-2).clamp_(min=0)
        own = index[some, None] == ref_index
        noise = 16 * torch.finfo(torch.float64).eps * x_squares
        if x is y:
            itself = torch.arange(len(some)), some
            everybody = torch.full((len(some),), len(y) - 1)
        else:  # one copy of the row, with its label, is itself
            copy = own & (squares <= noise)
            there = copy.any(1)
            itself = there.nonzero()[:, 0], copy.to(torch.uint8).argmax(1)[there]
            everybody = (len(y) - there.to(torch.int64)).clamp(min=1)
        squares[itself], own[itself] = torch.inf, False
        squares, order = squares.sort(1)
        roots = squares.sqrt()
        lengths = torch.linalg.vector_norm(xs + offset, dim=1, keepdim=True)
        tie = roots * (lengths + roots) * (4 * torch.finfo(x.dtype).eps / math.sqrt(x.shape[1])) + noise
        apart = squares.diff(dim=1) > tie[:, :-1]
        place = torch.nn.functional.pad(apart, (1, 0)).cumsum(1)  # equals share one
        flags = (2 * place + own.gather(1, order)).sort(1).values & 1
        passed = flags[:, : len(required)].cumsum(1) >= torch.from_numpy(required)
        first = passed.to(torch.uint8).argmax(1) + 1
        sizes[some.numpy()] = torch.where(passed.any(1), first.minimum(everybody), everybody).numpy()
