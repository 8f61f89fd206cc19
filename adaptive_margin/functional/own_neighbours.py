"""Which of each sample's nearest neighbours share its label: what every rule for a neighbourhood counts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .checks import is_blind
from .dependence import Array
from .pair_tiles.rows import ROUNDING

TILE_ENTRIES = {"cpu": 2**20, "cuda": 2**22}
"""Distances held at once: with everything computed from them, about 16 MiB on a CPU, 120 MiB on a GPU."""

FEWEST_ROWS = 64
"""Minimum rows of a tile: a matrix product with fewer rows reads the whole reference set for little work."""

ENTRIES_A_THREAD = 2**18
"""Number of distances whose sorting is long enough for a separate thread."""

FEW, SHORT = 16, 256
"""For at most ``FEW`` neighbours, among more than ``SHORT`` references, selecting is faster than sorting."""


class Tile(NamedTuple):
    """Some rows and their neighbours.

    Attributes:
        rows: which rows, as a slice of those requested.
        own: whether the 1st, 2nd, … nearest neighbour has the row's label, 0 or 1, shape ``(rows, reach)``.
        left_out: how many references are not neighbours: the row itself, or its copy; shape ``(rows,)``.
    """

    rows: slice
    own: Tensor
    left_out: Tensor


class Side(NamedTuple):
    """Rows relative to the centre, their squared norms and their labels."""

    x: Tensor
    squares: Tensor
    label: Tensor


def evenly_spaced(index: Tensor, number: int) -> Tensor | None:
    """At least ``number`` rows, evenly spaced in the order of their groups, so that each group has its share.

    Fewer than ``2 * number`` of them; None, for all rows, if there are fewer than that.

    Example:
        >>> evenly_spaced(torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]), 4)
        tensor([2, 6, 3, 7])
    """
    every = len(index) // number
    return torch.argsort(index, stable=True)[every // 2 :: every] if every > 1 else None


def own_neighbours(
    x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, reach: int, rows: Tensor | None = None
) -> Iterator[Tile]:
    r"""The neighbours of each row in order of distance, a tile of rows at a time; in a tie, other labels come first.

    A row is not its own neighbour; in another reference set, one copy of the row with its label is left out. Squared
    distances count as equal if they differ by no more than the rounding of the entries (on a grid of 0.1 or 1/255) and
    of the products of coordinates: :math:`2 + 24/\sqrt D` units in the last place of the two squared norms, from the
    mean.

    Args:
        x: embeddings scaled by a power of two, shape ``(B, D)``.
        index: their labels, numbered from 0 over both sets, shape ``(B,)``.
        y: the reference set, shape ``(R, D)``, or ``x`` itself.
        ref_index: its labels, shape ``(R,)``.
        reach: how many neighbours are wanted, at most R.
        rows: which rows of ``x``; None for all.

    Example:
        >>> x, index = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 1, 0])
        >>> next(own_neighbours(x, index, x, index, 2)).own
        tensor([[0, 1],
                [0, 0],
                [0, 1]], dtype=torch.int32)
    """
    itself = y is x
    places = torch.arange(len(x), device=x.device) if rows is None else rows
    centre = y.mean(0)  # small differences of distant embeddings survive products of coordinates
    y = y - centre
    x = y if itself else x - centre
    refs = Side(y, (y * y).sum(1), ref_index)
    anchors = refs if itself else Side(x, (x * x).sum(1), index)
    if rows is not None:
        anchors = Side(*(part[rows] for part in anchors))
    make = _tiles_on_device if is_blind(x) else _tiles_on_host
    entries = TILE_ENTRIES["cpu" if x.device.type == "cpu" else "cuda"]
    step = min(max(1, FEWEST_ROWS, entries // len(y)), len(places))
    return make(anchors, refs, places if itself else None, reach, step)


def _tiles_on_device(anchors: Side, refs: Side, places: Tensor | None, reach: int, step: int) -> Iterator[Tile]:
    """Tiles computed without waiting for the device; also works in compiled code."""
    for start in range(0, len(anchors.x), step):
        tile = slice(start, start + step)
        x, squares, label = (part[tile] for part in anchors)
        own = label[:, None] == refs.label
        d = squares[:, None] + refs.squares
        noise = d * rounding_of(x.shape[1], x.dtype)
        d = d.addmm(x, refs.x.T, alpha=-2)
        if places is None:
            copy = own & (d <= noise)
            out = copy.to(torch.uint8).argmax(1, keepdim=True)
            found = copy.gather(1, out)
        else:
            out = places[tile, None]
            found = torch.ones_like(out, dtype=torch.bool)
        d = torch.where(own, d + noise, d).clamp(min=0)
        d.scatter_(1, out, torch.where(found, torch.inf, d.gather(1, out)))
        own.scatter_(1, out, own.gather(1, out) & ~found)
        key = d.view(_integers(d)).bitwise_and(-2) + own
        yield Tile(tile, key.sort(dim=1).values[:, :reach].bitwise_and(1), found[:, 0].to(torch.int64))


def _tiles_on_host(anchors: Side, refs: Side, places: Tensor | None, reach: int, step: int) -> Iterator[Tile]:
    """The same in numpy, whose sort and small operations are several times faster, in one buffer for all tiles."""
    rows, columns = len(anchors.x), len(refs.x)
    small = np.min_scalar_type(rows + columns) if places is None else np.min_scalar_type(columns)
    label, ref_label = (side.label.numpy().astype(small) for side in (anchors, refs))  # small numbers compare faster
    of_rows = label, anchors.squares.numpy(), np.full(rows, -1) if places is None else places.numpy()
    select = reach <= FEW and columns > SHORT
    rounding = rounding_of(refs.x.shape[1], refs.x.dtype)
    sort = partial(_sort_products, ref_label, refs.squares.numpy(), rounding, None if select else reach)
    buffer, x = refs.x.new_empty(step, columns), -2 * anchors.x
    threads = min(torch.get_num_threads(), step * columns // ENTRIES_A_THREAD)
    with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
        for start in range(0, rows, step):
            tile = slice(start, min(start + step, rows))
            d = torch.mm(x[tile], refs.x.T, out=buffer[: tile.stop - start])
            parts = d.numpy(), *(part[tile] for part in of_rows)
            if pool is None:
                left_out = sort(*parts)
            else:  # numpy releases the GIL while it computes
                pieces = (np.array_split(part, threads) for part in parts)
                left_out = np.concatenate([*pool.map(sort, *pieces)])
            key = d.view(_integers(d))
            key = key.topk(reach, largest=False).values if select else key[:, :reach]
            yield Tile(tile, key.bitwise_and(1), torch.from_numpy(left_out))


def _sort_products(
    ref_label: Array,
    ref_squares: Array,
    rounding: float,
    reach: int | None,
    d: Array,
    label: Array,
    squares: Array,
    place: Array,
) -> Array:
    """:func:`sort_by_distance` with -2 times the products of rows and columns in ``d``."""
    noise = squares[:, None] + ref_squares
    d += noise
    noise *= rounding
    return sort_by_distance(ref_label, reach, d, noise, label, place)


def sort_by_distance(ref_label: Array, reach: int | None, d: Array, noise: Array, label: Array, place: Array) -> Array:
    """Turns squared distances into keys: numbers that sort like distances, with the label in the last bit.

    Args:
        ref_label: labels of the columns.
        reach: how many of the smallest are to come first, in order; None leaves all in place.
        d: squared distances of rows and columns; overwritten by the keys.
        noise: their rounding; overwritten.
        label: labels of the rows.
        place: the column of each row itself; -1 for a set that does not contain the row, but may contain a copy.

    Returns:
        How many columns each row leaves out.
    """
    rows = np.arange(len(d))
    own = label[:, None] == ref_label
    if len(place) and place[0] < 0:
        copy = own & (d <= noise)
        place = copy.argmax(1)
        rows = np.flatnonzero(copy[rows, place])
        place = place[rows]
    own[rows, place] = False
    noise *= own
    d += noise  # in a tie other labels come first
    np.maximum(d, 0, out=d)
    d[rows, place] = np.inf
    key = d.view(np.int32 if d.dtype == np.float32 else np.int64)
    key &= -2
    key |= own
    if reach is not None:
        if reach < key.shape[1] // 2 and key.shape[1] > SHORT:
            key.partition(reach, axis=1)
            key = key[:, :reach]
        key.sort(axis=1)
    return np.bincount(rows, minlength=len(d))


def counts_of(own: Array) -> Array:
    """How many of the 1, 2, … nearest neighbours have the row's label, int32, the shape of ``own``."""
    counts: Array = torch.from_numpy(own).cumsum(1, dtype=torch.int32).numpy()  # quicker than numpy's
    return counts


def rounding_of(features: int, dtype: torch.dtype) -> float:
    """The rounding error of a squared distance, relative to the two squared norms: of products and of their entries."""
    return ROUNDING * (0.5 + 6 / math.sqrt(features)) * torch.finfo(dtype).eps


def _integers(d: Tensor) -> torch.dtype:
    """The bits of non-negative floats sort like the floats; the last bit, below their rounding, holds the label."""
    return torch.int32 if d.dtype == torch.float32 else torch.int64
