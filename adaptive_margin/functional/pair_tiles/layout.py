"""Which pairs there are, and in which tiles: rows sorted by group, so that the pairs of two groups fill rectangles."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .options import Kind, Number, Options

TILE_ROWS = {"cpu": 512, "cuda": 2048}


TILE_ENTRIES = {"cpu": 2**19, "cuda": 2**22}
"""A tile of float32 is 2 MiB on a CPU, where it stays in the cache, and 16 MiB on a GPU; at most four are held."""


NO_GROUP = torch.iinfo(torch.int64).max
"""The group of rows that are left out, if dropping them would wait for the device."""


class Side(NamedTuple):
    """Rows sorted by group."""

    order: Tensor | None  # their places in the caller's matrix; None: unchanged
    groups: Tensor  # (n,) int64, increasing
    values: list[int] | None  # the distinct groups and where each starts (with n at the end), if looking is free
    starts: list[int] | None


def side_of(labels: Tensor, ignore_label: int | None, look: bool) -> Side:
    """Rows of a batch with labels; ``look`` if reading data does not wait for a device."""
    labels = labels.to(torch.int64)
    if ignore_label is not None and not look:
        labels = torch.where(labels == ignore_label, NO_GROUP, labels)
    groups, order = torch.sort(labels, stable=True)
    if not look:
        return Side(order, groups, None, None)
    if ignore_label is not None:
        kept = groups != ignore_label
        if not bool(kept.all()):
            groups, order = groups[kept], order[kept]
    values, counts = torch.unique_consecutive(groups, return_counts=True)
    return Side(order, groups, values.tolist(), [*accumulate(counts.tolist(), initial=0)])


def side_of_sizes(sizes: Sequence[int], device: torch.device) -> Side:
    """Rows that are already sorted, in groups of these sizes."""
    starts = [*accumulate(sizes, initial=0)]
    places = torch.arange(starts[-1], device=device)
    groups = torch.zeros_like(places)
    for start in starts[1:-1]:
        groups += places >= start
    return Side(None, groups, list(range(len(sizes))), starts)


class Tile(NamedTuple):
    """A rectangle of the matrix of distances."""

    top: int
    bottom: int
    left: int
    right: int
    masked: bool  # holds pairs that do not belong


class Layout(NamedTuple):
    """The pairs of a batch: inside groups and across groups."""

    rows: Side
    cols: Side
    symmetric: bool  # both sides are one set: each pair counts once, and no row pairs with itself
    only_first: bool

    def tiles(self, kind: Kind, height: int, entries: int) -> Iterator[Tile]:
        """Tiles that together hold every pair of a kind once; none is empty."""
        height = min(height, len(self.rows.groups))
        for top, bottom, first, last in self._bands(height):
            for left, right, masked in self._columns(kind, top, first, last):
                width = max(1, entries // (bottom - top))
                for start in range(left, right, width):
                    stop = min(start + width, right)
                    corner = kind == "inside" and self.symmetric and start < bottom
                    yield Tile(top, bottom, start, stop, masked or corner)

    def _bands(self, height: int) -> Iterator[tuple[int, int, int, int]]:
        """Bands of rows, with the first and the last of their groups; none runs into or out of a large one."""
        n, starts = len(self.rows.groups), self.rows.starts
        top = first = last = 0
        while top < n:
            bottom = min(top + height, n)
            if starts is not None:
                first = last = bisect_right(starts, top) - 1
                while starts[last + 1] < bottom:
                    here, following = starts[last + 1] - max(top, starts[last]), starts[last + 2] - starts[last + 1]
                    if 2 * max(here, following) >= height:
                        bottom = starts[last + 1]
                        break
                    last += 1
            yield top, bottom, first, last
            top = bottom

    def _columns(self, kind: Kind, top: int, first: int, last: int) -> Iterator[tuple[int, int, bool]]:
        """Ranges of columns that hold a band's pairs of a kind, and whether they hold others too."""
        n = len(self.cols.groups)
        if self.rows.values is None or self.cols.values is None or self.cols.starts is None:
            yield (top if self.symmetric else 0), n, True
            return
        values, starts = self.cols.values, self.cols.starts
        near = starts[bisect_left(values, self.rows.values[first])]  # columns of the band's own groups
        far = starts[bisect_right(values, self.rows.values[last])]
        mixed = first < last
        if kind == "inside":
            if not self.only_first or self.rows.values[first] == 0:
                yield (top if self.symmetric else near), far, mixed
        elif self.symmetric:
            if mixed:
                yield starts[first + 1], far, True
            yield far, n, False
        else:
            yield 0, near, False
            if mixed:
                yield near, far, True
            yield far, n, False

    def mask(self, kind: Kind, tile: Tile, out: Tensor) -> Tensor:
        """1 for the pairs of a tile that belong, 0 for the others."""
        rows = self.rows.groups[tile.top : tile.bottom, None]
        cols = self.cols.groups[tile.left : tile.right]
        if kind == "inside":
            torch.eq(rows, cols, out=out)
            if self.symmetric and tile.left < tile.bottom:
                out.triu_(tile.top - tile.left + 1)
            if self.only_first:
                out.mul_(rows == 0)
        elif self.symmetric:  # sorted: another group's row comes later exactly if its group is larger
            torch.gt(cols, rows, out=out)
        else:
            torch.ne(cols, rows, out=out)
        if self.rows.values is None:
            out.mul_(rows != NO_GROUP).mul_(cols != NO_GROUP)
        return out

    def pulled(self, side: Side, partners: Tensor) -> Tensor:
        """The partners that a side's rows are pulled towards: none if their group is not pulled together."""
        if self.only_first:
            partners = partners * (side.groups == 0)
        return partners if side.values is not None else partners * (side.groups != NO_GROUP)

    def counts(self) -> tuple[Number, Number]:
        """Numbers of pairs inside (the groups that are pulled together) and across groups, in int64."""
        if self.rows.values is not None:
            return self._counts_on_host()
        rows, cols = self.rows.groups, self.cols.groups
        partners = meeting_of(rows, cols).partners * (rows != NO_GROUP)
        pulled = self.pulled(self.rows, partners)
        inside, same = pulled.sum(), partners.sum()
        valid, ref_valid = (rows != NO_GROUP).sum(), (cols != NO_GROUP).sum()
        if self.symmetric:
            return (inside - (pulled > 0).sum()) // 2, (valid * valid - same) // 2
        return inside, valid * ref_valid - same

    def _counts_on_host(self) -> tuple[int, int]:
        sizes, ref_sizes = _sizes(self.rows), _sizes(self.cols)
        same = {value: size * ref_sizes.get(value, 0) for value, size in sizes.items()}
        across = len(self.rows.groups) * len(self.cols.groups) - sum(same.values())
        pulled = [value for value in sizes if value == 0 or not self.only_first]
        inside = sum(same[value] for value in pulled)
        if self.symmetric:
            return (inside - sum(sizes[value] for value in pulled)) // 2, across // 2
        return inside, across


def _sizes(side: Side) -> dict[int, int]:
    """Rows in each group."""
    assert side.values is not None
    assert side.starts is not None
    return {value: stop - start for value, (start, stop) in zip(side.values, pairwise(side.starts), strict=True)}


class Meeting(NamedTuple):
    """For each row the first column of its group (of another group, where it has none), and the number of them."""

    first: Tensor
    partners: Tensor


def meeting_of(groups: Tensor, others: Tensor) -> Meeting:
    """Where the rows of each row's group lie in another sorted set."""
    first = torch.searchsorted(others, groups)
    partners = torch.searchsorted(others, groups, right=True).sub_(first)
    return Meeting(first if groups is others else first.clamp_(max=len(others) - 1), partners)


def layout_of(
    x: Tensor, y: Tensor | None, labels: Tensor | None, ref_labels: Tensor | None, options: Options
) -> Layout:
    """The pairs of a batch."""
    look = x.device.type == "cpu"
    if labels is None:
        assert options.sizes is not None
        rows = cols = side_of_sizes(options.sizes, x.device)
    else:
        rows = cols = side_of(labels, options.ignore_label, look)
        if y is not None:
            assert ref_labels is not None
            cols = side_of(ref_labels, options.ignore_label, look)
    return Layout(rows, cols, y is None, options.only_first)


def in_order(x: Tensor, side: Side) -> Tensor:
    """Rows sorted by group; zeros for those that take part in no pair, if dropping them would wait."""
    x = x if side.order is None else x.index_select(0, side.order)
    return x if side.values is not None else torch.where((side.groups != NO_GROUP)[:, None], x, 0.0)


def back_in_place(gradient: Tensor, side: Side, like: Tensor) -> Tensor:
    """The gradient of sorted rows in the caller's order; 0 for rows that were dropped."""
    if side.order is None:
        return gradient
    if len(side.order) < len(like):
        return torch.zeros_like(like).index_copy_(0, side.order, gradient)
    places = torch.empty_like(side.order)
    places[side.order] = torch.arange(len(places), device=places.device)
    return gradient.index_select(0, places)  # in parallel, where index_copy_ is not
