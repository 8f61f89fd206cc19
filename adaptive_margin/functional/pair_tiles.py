"""Sums over all pairs of a batch, and their gradients, in memory that grows with the batch and not with its square.

Rows are sorted by group, so that the pairs (i, j), i < j, of two groups fill rectangles of the distance matrix whose
borders are known. Each rectangle is computed a tile at a time: a matrix product gives the distances, the hinge turns
them into losses, and two more products, of the tile's weights with the rows, add to the gradient in the same pass.
Each tile is then dropped. The squared distances inside a group need no tile at all:

    sum over i < j of |x_i - x_j|² = n · sum over i of |x_i - mean|²
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .checks import check_finite, check_fits, check_labels, check_matrix, check_same_features, is_blind, problem
from .dependence import at_least_float32, check_choice

Distance = Literal["squared_l2", "l2", "cosine", "dot"]
Kind = Literal["inside", "across"]
Number = float | Tensor
"""A Python number if reading data is free (CPU), a 0-dim tensor if it would wait for the device."""

TILE_ROWS = {"cpu": 512, "cuda": 2048}
TILE_ENTRIES = {"cpu": 2**19, "cuda": 2**22}
"""A tile of float32 is 2 MiB on a CPU, where it stays in the cache, and 16 MiB on a GPU; at most four are held."""

SMALL = 256
"""Up to this number of rows, one square matrix of all pairs is faster than sorting rows and finding tiles."""

TRITON = os.environ.get("ADAPTIVE_MARGIN_TRITON") == "1"
"""Whether a fused kernel takes the pairs across groups on CUDA. Off: it has not been measured on a GPU yet."""

UNCLEAR = 2.0**-12
"""If rounding could change a pair's distance, or the margin it is compared with, by this share, the pair is computed
again from the differences of its rows, provided that reading data is free."""

ROUNDING = 4
"""Of a squared distance by products of coordinates, in units in the last place of the two squared norms: the most that
was seen, whatever the number of coordinates."""

FAR_OFF = 3
"""Rows whose squared distance from the mean exceeds this many times the median have pulled the mean away from the
others."""

NO_GROUP = torch.iinfo(torch.int64).max
"""The group of left-out rows, if dropping them would wait for the device."""


class PairTerms(NamedTuple):
    """The terms of contrastive losses; see :func:`pair_terms`."""

    attraction: Tensor
    repulsion: Tensor
    second_moment: Tensor
    counts: Tensor


class Options(NamedTuple):
    """The options of a measurement: everything that is not a tensor."""

    distance: str = "squared_l2"
    pos_margin: float = 0.0
    over_active: bool = False
    """Whether the mean attraction is over the pairs beyond ``pos_margin`` only, or over all pairs of a group."""
    second_moment: bool = False
    only_first: bool = False
    """Groups are 0 and 1, and only group 0 is pulled together."""
    ignore_label: int | None = None
    sizes: tuple[int, ...] | None = None
    """Sizes of the groups, where the rows come sorted; there are no labels then."""
    counts: bool = True
    gradient_limit: float = math.inf
    """The largest number of the dtype that the gradients are to return in."""
    gradients: bool = True
    ref_gradients: bool = True
    margin_gradients: bool = True

    def but(self, **changes: Any) -> Options:
        """The same but for some: ``_replace``, which torch 2.6 does not compile."""
        values = [changes.get(name, value) for name, value in zip(Options._fields, self, strict=True)]
        return Options(*values)  # type: ignore[arg-type]


def count_pairs(sizes: Tensor, ref_sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The numbers of pairs inside groups and across groups.

    Args:
        sizes: rows in each group, integers of shape ``(G,)``.
        ref_sizes: rows of a reference set in each group; a pair then takes one row from either set.

    Returns:
        Two 0-dim int64 tensors: pairs inside a group (without a reference set: unordered, no row with itself) and pairs
        across groups. Exact up to 2³¹ rows: 65,536 rows already have more pairs than int32 holds.

    Example:
        >>> count_pairs(torch.tensor([32768, 32768], dtype=torch.int32))
        (tensor(1073709056), tensor(1073741824))
    """
    sizes = sizes.to(torch.int64)
    if ref_sizes is None:
        inside = (sizes * (sizes - 1) // 2).sum()
        return inside, sizes.sum() * (sizes.sum() - 1) // 2 - inside
    ref_sizes = ref_sizes.to(torch.int64)
    inside = (sizes * ref_sizes).sum()
    return inside, sizes.sum() * ref_sizes.sum() - inside


# --- which pairs, and in which tiles ----------------------------------------------------------------------------------


class _Side(NamedTuple):
    """Rows sorted by group."""

    order: Tensor | None  # their places in the caller's matrix; None: as they come
    groups: Tensor  # (n,) int64, increasing
    values: list[int] | None  # the distinct groups and where each starts (with n at the end), where looking is free
    starts: list[int] | None


def _side(labels: Tensor, ignore_label: int | None, look: bool) -> _Side:
    labels = labels.to(torch.int64)
    if ignore_label is not None and not look:
        labels = torch.where(labels == ignore_label, NO_GROUP, labels)
    groups, order = torch.sort(labels, stable=True)
    if not look:
        return _Side(order, groups, None, None)
    if ignore_label is not None:
        kept = groups != ignore_label
        if not bool(kept.all()):
            groups, order = groups[kept], order[kept]
    values, counts = torch.unique_consecutive(groups, return_counts=True)
    return _Side(order, groups, values.tolist(), _starts(counts.tolist()))


def _side_of_sizes(sizes: Sequence[int], device: torch.device) -> _Side:
    starts = _starts(sizes)
    places = torch.arange(starts[-1], device=device)
    groups = torch.zeros_like(places)
    for start in starts[1:-1]:
        groups += places >= start
    return _Side(None, groups, list(range(len(sizes))), starts)


def _starts(counts: Sequence[int]) -> list[int]:
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return starts


class _Tile(NamedTuple):
    top: int
    bottom: int
    left: int
    right: int
    masked: bool  # holds pairs that do not belong


class _Layout(NamedTuple):
    """The pairs of a batch: inside groups and across groups."""

    rows: _Side
    cols: _Side
    symmetric: bool  # both sides are one set: each pair counts once, and no row meets itself
    only_first: bool

    def tiles(self, kind: Kind, height: int, entries: int) -> Iterator[_Tile]:
        """Tiles that together hold every pair of a kind once; none is empty."""
        height = min(height, len(self.rows.groups))
        for top, bottom, first, last in self._bands(height):
            for left, right, masked in self._columns(kind, top, first, last):
                width = max(1, entries // (bottom - top))
                for start in range(left, right, width):
                    stop = min(start + width, right)
                    corner = kind == "inside" and self.symmetric and start < bottom
                    yield _Tile(top, bottom, start, stop, masked or corner)

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

    def mask(self, kind: Kind, tile: _Tile, out: Tensor) -> Tensor:
        """1 for the pairs of a tile that belong, 0 for the others."""
        rows = self.rows.groups[tile.top : tile.bottom, None]
        cols = self.cols.groups[tile.left : tile.right]
        if kind == "inside":
            torch.eq(rows, cols, out=out)
            if self.symmetric and tile.left < tile.bottom:
                out.triu_(tile.top - tile.left + 1)
            if self.only_first:
                out.mul_(rows == 0)
        elif self.symmetric:  # sorted: another group's row comes later just where its group is larger
            torch.gt(cols, rows, out=out)
        else:
            torch.ne(cols, rows, out=out)
        if self.rows.values is None:
            out.mul_(rows != NO_GROUP).mul_(cols != NO_GROUP)
        return out

    def pulled(self, side: _Side, partners: Tensor) -> Tensor:
        """The partners that a side's rows are pulled to: none where their group is not."""
        if self.only_first:
            partners = partners * (side.groups == 0)
        return partners if side.values is not None else partners * (side.groups != NO_GROUP)

    def counts(self) -> tuple[Number, Number]:
        """Numbers of pairs inside (the groups that are pulled together) and across groups, in int64."""
        if self.rows.values is not None:
            return self._counts_on_host()
        rows, cols = self.rows.groups, self.cols.groups
        partners = _meeting(rows, cols).partners * (rows != NO_GROUP)
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


def _sizes(side: _Side) -> dict[int, int]:
    """Rows in each group."""
    assert side.values is not None
    assert side.starts is not None
    return {value: stop - start for value, (start, stop) in zip(side.values, pairwise(side.starts), strict=True)}


# --- one kind of pairs, tile by tile ----------------------------------------------------------------------------------


class _Rows(NamedTuple):
    """Rows and the squares of their norms, from a centre that makes differences exact."""

    x: Tensor
    squares: Tensor
    given: Tensor  # the caller's rows, in the caller's order
    largest: float  # square; infinite if reading it would wait


class _Gradient:
    """Sums of w_ij ∂d_ij/∂x_i over the pairs of many tiles, for rows and for columns."""

    def __init__(self, x: Tensor, y: Tensor, of_columns: bool) -> None:
        """Of one set, ``x`` is ``y``, and a pair adds to the gradients of both its rows."""
        self.x, self.y = x, y
        self.of_rows: tuple[Tensor, Tensor] = (torch.zeros_like(x), x.new_zeros(len(x)))
        self.of_columns: tuple[Tensor, Tensor] | tuple[()] = self.of_rows
        if y is not x:
            self.of_columns = (torch.zeros_like(y), y.new_zeros(len(y))) if of_columns else ()

    def add(self, weights: Tensor, tile: _Tile) -> None:
        top, bottom, left, right, _ = tile
        sums, totals = self.of_rows
        sums[top:bottom].addmm_(weights, self.y[left:right])
        totals[top:bottom].add_(weights.sum(1))
        if self.of_columns:
            sums, totals = self.of_columns
            sums[left:right].addmm_(weights.t(), self.x[top:bottom])
            totals[left:right].add_(weights.sum(0))

    def add_listed(self, pulls: Tensor, i: Tensor, j: Tensor) -> None:
        """Adds w_ij (x_i - y_j) of listed pairs, for which no weight is to be added."""
        self.of_rows[0].index_add_(0, i, pulls, alpha=-1)
        if self.of_columns:
            self.of_columns[0].index_add_(0, j, pulls)

    def finish(self, distance: str, factor: Number) -> list[Tensor]:
        """The gradient for rows (and, of two sets, for columns), times ``factor``, in the buffers of the sums."""
        gradients = [self.finished(self.x, *self.of_rows, distance, factor)]
        if self.of_columns and self.of_columns is not self.of_rows:
            gradients.append(self.finished(self.y, *self.of_columns, distance, factor))
        return gradients

    @staticmethod
    def finished(x: Tensor, sums: Tensor, totals: Tensor, distance: str, factor: Number) -> Tensor:
        sums.neg_()  # ∂(-x·y)/∂x = -y
        if distance != "cosine":  # ∂|x - y|²/∂x = 2(x - y), ∂|x - y|/∂x = (x - y)/|x - y|
            sums.addcmul_(x, totals[:, None])
        return sums.mul_(2 * factor if distance == "squared_l2" else factor)


class _Sums:
    """Sums over the hinges of one kind of pairs."""

    def __init__(self) -> None:
        self.total: Number = 0.0
        self.active: Number = 0.0
        self.squares: Number = 0.0
        self.gradient: _Gradient | None = None
        self.square_gradient: _Gradient | None = None
        self.active_of: Tensor | None = None  # per row, for a margin of each row
        self.total_of: Tensor | None = None


def _distances(
    rows: _Rows, cols: _Rows, tile: _Tile, distance: str, unclear: Tensor | None, buffers: _Buffers
) -> tuple[Tensor, Tensor | None]:
    """Distances of a tile's rows and columns, in the first buffer; a similarity counts as the distance -s.

    Beside them which are too inexact: those whose square is up to ``unclear``; None where none is.
    """
    out = buffers.take(0, tile)
    x, y = rows.x[tile.top : tile.bottom], cols.x[tile.left : tile.right]
    if distance == "cosine":
        return torch.mm(x, y.t(), out=out).neg_(), None
    squares = rows.squares[tile.top : tile.bottom, None]
    torch.add(squares, cols.squares[tile.left : tile.right], out=out).addmm_(x, y.t(), alpha=-2).clamp_(min=0)
    near = None
    if unclear is not None:
        near = out <= unclear[tile.top : tile.bottom, None]
        if rows is cols and tile.left < tile.bottom:
            near.diagonal(tile.top - tile.left).fill_(False)  # a row and itself are no pair
        near = near if bool(near.any()) else None
    if distance == "squared_l2":
        return out, near
    if out.device.type != "cpu":
        # Equal rows must be at distance 0 and not at the root of a rounding error, which is no small number.
        told_apart = torch.gt(out, squares * (8 * torch.finfo(x.dtype).eps), out=buffers.take(1, tile))
        out.mul_(told_apart)
    return out.sqrt_(), near


def _tie(squares: Tensor, margin: Tensor, distance: str) -> Tensor:
    """How near to the margin a distance from each row equals it: the rounding of the distances there.

    Where |x - y|² is m, |y|² is at most 2|x|² + 2m. Below half the margin nothing is equal to it.
    """
    rounding, tiny = ROUNDING * torch.finfo(squares.dtype).eps, torch.finfo(squares.dtype).tiny
    if distance == "cosine":
        return torch.full_like(squares, 2 * rounding)
    m = margin.abs().clamp_(min=tiny) if margin.ndim or is_blind(margin) else max(abs(margin.item()), tiny)
    if distance == "squared_l2":
        return (squares * (3 * rounding)).add_(m * (2 * rounding)).clamp_(max=m / 2)
    return (squares * (1.5 * rounding / m)).add_(m * rounding).clamp_(max=m / 2)


def ties_of_pairs(x: Tensor, y: Tensor, anchors: Tensor, margin: Tensor, distance: Distance | None) -> Tensor:
    """How near to the margin the distances of listed pairs equal it: what tiles take for equal.

    Args:
        x: rows as the distance sees them, shape ``(B, D)``.
        y: the rows of the pairs' other ends, or ``x`` itself.
        anchors: the row of each pair, shape ``(P,)``.
        margin: margin of all pairs or of each pair, 0-dim or ``(P,)``.
        distance: as for :func:`pair_terms`; ``"dot"`` for :math:`D^2 = 2 - 2s`, None for any other.

    Returns:
        Shape ``(P,)``, or 0-dim if neither rows nor margins differ.
    """
    x, y, margin = x.detach(), y.detach(), margin.detach()
    rounding = ROUNDING * torch.finfo(x.dtype).eps
    if distance is None:
        return margin.abs() * rounding
    if distance == "dot":
        return margin.new_full((), 4 * rounding)
    rows, _ = _from_centre(x, y, x, y, None, distance)
    return _tie(rows.squares[anchors], margin, distance)


def _tie_inside(rows: _Rows, margin: Tensor, options: Options) -> Tensor | None:
    """:func:`_tie` of a margin for pairs inside, at a margin of 0 that of copies; None where none is needed: in a mean
    over all of them, and of copies under L2, which are at 0.
    """
    if not options.over_active or (options.distance == "l2" and options.pos_margin == 0):
        return None
    if options.distance == "squared_l2":
        return rows.squares * (3 * ROUNDING * torch.finfo(rows.x.dtype).eps)
    return _tie(rows.squares, margin, options.distance)


def _unclear(kind: Kind, rows: _Rows, margin: Tensor, options: Options) -> Tensor | None:
    """The squared distance from each row up to which those by products of coordinates are too inexact.

    A squared distance is as inexact as squared norms are rounded. Across groups, and squared, it is the margin that
    has to be large beside that; elsewhere the distance itself, but where small ones hardly matter.
    """
    if options.distance == "cosine" or rows.x.device.type != "cpu":
        return None
    rounding = 2 * ROUNDING * torch.finfo(rows.x.dtype).eps
    if options.distance == "l2" or (kind == "inside" and options.over_active):
        return rows.squares * (rounding / UNCLEAR)
    if kind == "inside":
        return None
    low, high = _bounds(margin)
    if rounding * rows.largest <= UNCLEAR * low:
        return None
    inexact = rows.squares * rounding
    return torch.where(inexact > UNCLEAR * low, inexact + high, -1.0)


def _bounds(margin: Tensor) -> tuple[float, float]:
    """The smallest and the largest size of a margin."""
    if margin.ndim == 0:
        return (abs(margin.item()),) * 2
    low, high = torch.aminmax(margin.abs())
    return low.item(), high.item()


def _hinge_sums(
    kind: Kind, layout: _Layout, rows: _Rows, cols: _Rows, margin: Tensor, options: Options, first_order: bool = True
) -> _Sums:
    """Sums of (d - m)₊ over the pairs inside groups, or of (m - d)₊ over those across groups, and their gradients.

    A margin of each row (0-dim otherwise) holds for pairs across groups, and each counts once from either end: of two
    sets, from its row. A pair on the margin, as far as rounding lets one see, has no hinge.
    """
    inside = kind == "inside"
    tie = _tie_inside(rows, margin, options) if inside else _tie(rows.squares, margin, options.distance)
    edge = margin if tie is None else margin + tie if inside else margin - tie
    fused = TRITON and not inside and options.distance == "squared_l2" and not options.second_moment
    if fused and tie is not None and (made := _fused_sums(layout, rows, cols, margin, tie, options)) is not None:
        return made
    sums = _Sums()
    look = rows.x.device.type == "cpu"
    device = "cpu" if look else "cuda"
    sides = ("row", "col") if margin.ndim == 1 and layout.symmetric else ("row",)
    if options.gradients:
        sums.gradient = _Gradient(rows.x, cols.x, options.ref_gradients) if first_order else None
        sums.square_gradient = _Gradient(rows.x, cols.x, options.ref_gradients) if options.second_moment else None
        if options.margin_gradients and margin.ndim == 1:
            sums.active_of, sums.total_of = torch.zeros_like(margin), torch.zeros_like(margin)
    height, entries = TILE_ROWS[device], TILE_ENTRIES[device]
    buffers = _Buffers(rows.x, min(entries, len(rows.x) * len(cols.x)))
    unclear = _unclear(kind, rows, margin, options)
    for tile in layout.tiles(kind, height, entries):
        d, near = _distances(rows, cols, tile, options.distance, unclear, buffers)
        mask = layout.mask(kind, tile, buffers.take(1, tile)) if tile.masked else None
        if near is not None:
            d.masked_fill_(near, -torch.inf if inside else torch.inf)
            i, j = (near if mask is None else near.logical_and_(mask)).nonzero().unbind(1)
            _add_listed(sums, kind, layout, rows, cols, i + tile.top, j + tile.left, margin, sides, options)
        for side in sides:
            at = slice(tile.top, tile.bottom) if side == "row" else slice(tile.left, tile.right)
            m = edge if edge.ndim == 0 else edge[at, None] if side == "row" else edge[at]
            d_is_needed = len(sides) > 1 or options.distance == "l2"
            h = buffers.take(2, tile) if d_is_needed else d
            h = (torch.sub(d, m, out=h) if inside else torch.sub(m, d, out=h)).clamp_(min=0)
            if mask is not None:
                h.mul_(mask)
            part = _wide(h.sum())
            if look and part == 0:
                continue  # no active pair: nothing to add to anything
            if options.second_moment:
                w = torch.sign(h, out=buffers.take(3, tile))
                if tie is not None:
                    h.addcmul_(w, tie[at, None] if side == "row" else tie[at])
                sums.squares = sums.squares + _wide(torch.linalg.vector_norm(h).double().square())
            else:
                w = h.sign_()
            active = w.sum(1 if side == "row" else 0)
            sums.total = sums.total + part + (0.0 if tie is None else _wide(active.dot(tie[at])))
            sums.active = sums.active + _wide(active.sum())
            if sums.active_of is not None and sums.total_of is not None:
                sums.active_of[at].add_(active)
                if options.second_moment:
                    sums.total_of[at].add_(h.sum(1 if side == "row" else 0))
            for gradient, weights in ((sums.gradient, w), (sums.square_gradient, h)):
                if gradient is not None:
                    if options.distance == "l2":
                        weights.div_(d).nan_to_num_(0.0, 0.0, 0.0)  # at distance 0 the gradient is 0
                    gradient.add(weights, tile)
    return sums


def _add_listed(
    sums: _Sums,
    kind: Kind,
    layout: _Layout,
    rows: _Rows,
    cols: _Rows,
    i: Tensor,
    j: Tensor,
    margin: Tensor,
    sides: Sequence[str],
    options: Options,
) -> None:
    """Adds the hinges of pairs (i, j) of sorted rows, from the differences of the caller's rows."""
    inside = kind == "inside"
    step = max(1, TILE_ENTRIES["cpu"] // rows.x.shape[1])
    for i_part, j_part in zip(torch.split(i, step), torch.split(j, step), strict=True):
        x = rows.given[i_part if layout.rows.order is None else layout.rows.order[i_part]]
        y = cols.given[j_part if layout.cols.order is None else layout.cols.order[j_part]]
        difference = x - y
        d = torch.linalg.vector_norm(difference, dim=1)
        d = d if options.distance == "l2" else d.square()
        for side in sides:
            at = i_part if side == "row" else j_part
            m = margin if margin.ndim == 0 else margin[at]
            h = d - m if inside else m - d
            w = (h > 8 * torch.finfo(d.dtype).eps * m.abs()).to(d.dtype)
            h.mul_(w)
            sums.total = sums.total + _wide(h.sum())
            sums.active = sums.active + _wide(w.sum())
            if options.second_moment:
                sums.squares = sums.squares + _wide(torch.linalg.vector_norm(h).double().square())
            if sums.active_of is not None and sums.total_of is not None:
                sums.active_of.index_add_(0, at, w)
                sums.total_of.index_add_(0, at, h)
            for gradient, weights in ((sums.gradient, w), (sums.square_gradient, h)):
                if gradient is not None:
                    if options.distance == "l2":
                        weights = (weights / d).nan_to_num_(0.0, 0.0, 0.0)
                    gradient.add_listed(difference * weights[:, None], i_part, j_part)


def _fused_sums(
    layout: _Layout, rows: _Rows, cols: _Rows, margin: Tensor, tie: Tensor, options: Options
) -> _Sums | None:
    """:func:`_hinge_sums` across groups by one Triton kernel, which meets each pair of one set from either end.

    None where the kernel does not serve: other dtypes, too many features, a CPU without ``TRITON_INTERPRET=1``.
    """
    from .pair_tiles_triton import MOST_FEATURES, hinge_rows

    x, y = rows.x, cols.x
    runs = x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    if not runs or x.dtype != torch.float32 or x.shape[1] > MOST_FEATURES:
        return None
    groups, others = layout.rows.groups, layout.cols.groups
    own = hinge_rows(x, y, groups, others, margin, tie, NO_GROUP, "batch" if margin.ndim == 0 else "row")
    ends = 0.5 if layout.symmetric and margin.ndim == 0 else 1.0
    sums = _Sums()
    sums.total = _wide(own.loss.sum(dtype=torch.float64)) * ends
    sums.active = _wide(own.active.sum()) * ends
    if not options.gradients:
        return sums
    if options.margin_gradients and margin.ndim == 1:
        sums.active_of = own.active.to(x.dtype)
    sums.gradient = _Gradient(x, y, options.ref_gradients)
    parts = [(sums.gradient.of_rows, own)]
    if sums.gradient.of_columns and (margin.ndim == 1 or not layout.symmetric):
        edges = margin.expand(len(x)) if margin.ndim == 0 else margin
        far = hinge_rows(y, x, others, groups, edges, tie, NO_GROUP, "column")
        parts.append((sums.gradient.of_columns, far))  # those of the rows, where both sides are one set
    for (weighted, active), made in parts:
        weighted.add_(made.weighted)
        active.add_(made.active)
    return sums


def _wide(part: Tensor) -> Number:
    """For sums of many tiles: a Python number, or a float64 tensor on a device."""
    return part.item() if part.device.type == "cpu" else part.double()


class _Buffers:
    """Room for tiles, allocated once."""

    def __init__(self, like: Tensor, size: int) -> None:
        self.like, self.size = like, size
        self.held: dict[int, Tensor] = {}

    def take(self, which: int, tile: _Tile) -> Tensor:
        if which not in self.held:
            self.held[which] = self.like.new_empty(self.size)
        height, width = tile.bottom - tile.top, tile.right - tile.left
        return self.held[which][: height * width].view(height, width)


# --- all terms of a batch ---------------------------------------------------------------------------------------------


class _Term:
    """A mean over pairs, with its gradients for the rows, the columns (of two sets) and the margin."""

    def __init__(self, value: Number, gradients: list[Tensor], of_margin: Tensor | None = None) -> None:
        self.value, self.gradients, self.of_margin = value, gradients, of_margin


def _measure(
    x: Tensor, y: Tensor | None, margin: Tensor, labels: Tensor | None, ref_labels: Tensor | None, options: Options
) -> list[Tensor]:
    """All of :func:`pair_terms` as one list of tensors, in the caller's order of rows.

    Returns:
        Attraction, repulsion, second moment and counts; then, where gradients are wanted, for each of the terms (two,
        or three with the second moment) those for the rows, those for the columns where there are two sets, and those
        for the margin. :func:`_shapes` says the same.
    """
    if y is None and 0 < len(x) <= SMALL and not options.second_moment:
        small = _measure_small(x, margin, labels, options)
        if small is not None:
            return small
    layout = _layout(x, y, labels, ref_labels, options)
    if len(layout.rows.groups) == 0 or len(layout.cols.groups) == 0:
        return [x.new_zeros(shape, dtype=dtype) for shape, dtype in _shapes(x, y, margin, options)]
    xs = _in_order(x, layout.rows)
    ys = xs if y is None else _in_order(y, layout.cols)
    by_row = margin if margin.ndim == 0 or layout.rows.order is None else margin.index_select(0, layout.rows.order)
    valid = None if layout.cols.values is not None else layout.cols.groups != NO_GROUP
    rows, cols = _from_centre(xs, ys, x, x if y is None else y, valid, options.distance)
    _check_squares("embeddings", rows, labels, options.ignore_label)
    if y is not None:
        _check_squares("ref_emb", cols, ref_labels, options.ignore_label)
    pairs = layout.counts()
    across = _hinge_sums("across", layout, rows, cols, by_row, options)
    repulsion = _repulsion(across, by_row, options)
    attraction, second_moment = _inside(layout, rows, cols, pairs, across, by_row, options)
    terms = [attraction, repulsion, second_moment]
    _check_values([term.value for term in terms], x.dtype)
    values = [_value(term.value, x) for term in terms]
    active = across.active * (2 if layout.symmetric and margin.ndim == 0 else 1)
    counts = _counts(*pairs, active) if options.counts else x.new_zeros(3, dtype=torch.int64)
    if not options.gradients:
        return [*values, counts]
    terms = terms if options.second_moment else terms[:2]
    of_rows = [_back_in_place(term.gradients[0], layout.rows, x) for term in terms]
    of_cols = []
    if y is not None and options.ref_gradients:
        of_cols = [_back_in_place(term.gradients[1], layout.cols, y) for term in terms]
    of_margin = []
    if options.margin_gradients:
        of_margin = [term.of_margin.to(x.dtype) for term in terms[1:] if term.of_margin is not None]
    if margin.ndim == 1:
        of_margin = [_back_in_place(gradient, layout.rows, margin) for gradient in of_margin]
    return [*values, counts, *of_rows, *of_cols, *of_margin]


def _shapes(
    x: Tensor, y: Tensor | None, margin: Tensor, options: Options
) -> list[tuple[torch.Size | tuple[int, ...], torch.dtype]]:
    """Shape and dtype of everything that :func:`_measure` returns."""
    terms = 3 if options.second_moment else 2
    shapes: list[tuple[torch.Size | tuple[int, ...], torch.dtype]] = [((), x.dtype)] * 3 + [((3,), torch.int64)]
    if options.gradients:
        shapes += [(x.shape, x.dtype)] * terms
        shapes += [] if y is None or not options.ref_gradients else [(y.shape, x.dtype)] * terms
        shapes += [(margin.shape, x.dtype)] * (terms - 1) if options.margin_gradients else []
    return shapes


def _layout(x: Tensor, y: Tensor | None, labels: Tensor | None, ref_labels: Tensor | None, options: Options) -> _Layout:
    look = x.device.type == "cpu"
    if labels is None:
        assert options.sizes is not None
        rows = cols = _side_of_sizes(options.sizes, x.device)
    else:
        rows = cols = _side(labels, options.ignore_label, look)
        if y is not None:
            assert ref_labels is not None
            cols = _side(ref_labels, options.ignore_label, look)
    return _Layout(rows, cols, y is None, options.only_first)


def _in_order(x: Tensor, side: _Side) -> Tensor:
    """Rows sorted by group; zeros for those that take part in nothing, where dropping them would wait."""
    x = x if side.order is None else x.index_select(0, side.order)
    return x if side.values is not None else torch.where((side.groups != NO_GROUP)[:, None], x, 0.0)


def _from_centre(
    x: Tensor, y: Tensor, given: Tensor, ref_given: Tensor, valid: Tensor | None, distance: str
) -> tuple[_Rows, _Rows]:
    """Rows and columns from the mean of the columns, all of them or the valid; similarities from where they are."""
    if distance == "cosine":
        rows = _rows(x, given)
        return rows, rows if y is x else _rows(y, ref_given)
    centre = y.mean(0) if valid is None else y.sum(0) / valid.sum().clamp_(min=1)
    cols = _rows(y - centre, ref_given)
    near = _near_rows(cols, valid)
    if near is not None:
        centre = torch.where(near[:, None], y, 0.0).sum(0) / near.sum().clamp_(min=1)
        cols = _rows(y - centre, ref_given)
    return cols if y is x else _rows(x - centre, given), cols


def _near_rows(rows: _Rows, valid: Tensor | None) -> Tensor | None:
    """Which rows are near, where a few others may have drawn the mean away from them; None where they have not."""
    squares = rows.squares
    if squares.device.type == "cpu":
        median = squares.median()
        return squares <= median if rows.largest > FAR_OFF * median.item() else None
    near = squares <= FAR_OFF * (squares if valid is None else squares.masked_fill(~valid, torch.nan)).nanmedian()
    return near if valid is None else near & valid


def _back_in_place(gradient: Tensor, side: _Side, like: Tensor) -> Tensor:
    """The gradient of sorted rows in the caller's order; 0 for rows that were dropped."""
    if side.order is None:
        return gradient
    if len(side.order) < len(like):
        return torch.zeros_like(like).index_copy_(0, side.order, gradient)
    places = torch.empty_like(side.order)
    places[side.order] = torch.arange(len(places), device=places.device)
    return gradient.index_select(0, places)  # in parallel, where index_copy_ is not


def _rows(x: Tensor, given: Tensor) -> _Rows:
    squares = torch.linalg.vector_norm(x, dim=1).square_()
    return _Rows(x, squares, given, squares.amax().item() if squares.device.type == "cpu" else math.inf)


def _value(number: Number, like: Tensor) -> Tensor:
    if isinstance(number, Tensor):
        return number.to(like.dtype)
    return torch.scalar_tensor(number, dtype=like.dtype, device=like.device)


def _counts(*numbers: Number) -> Tensor:
    if isinstance(numbers[-1], Tensor):
        return torch.stack([torch.as_tensor(n, device=numbers[-1].device).to(torch.int64) for n in numbers])
    return torch.tensor([int(n) for n in numbers])


def _mean_of(total: Number, count: Number) -> tuple[Number, Number]:
    """A mean that is 0 where there is nothing to average, and the weight of one summand in it."""
    scale = 1 / count.double().clamp_(min=1) if isinstance(count, Tensor) else 1 / max(count, 1)
    return total * scale, scale


def _repulsion(across: _Sums, margin: Tensor, options: Options) -> _Term:
    value, scale = _mean_of(across.total, across.active)
    if across.gradient is None:
        return _Term(value, [])
    active = across.active_of if across.active_of is not None else margin.new_ones(()) * across.active
    return _Term(value, across.gradient.finish(options.distance, -1 * scale), active * scale)


def _inside(
    layout: _Layout,
    rows: _Rows,
    cols: _Rows,
    pairs: tuple[Number, Number],
    across: _Sums,
    margin: Tensor,
    options: Options,
) -> tuple[_Term, _Term]:
    """Attraction, and the second moment, whose other half comes from the pairs across groups."""
    closed_form = not options.over_active and options.pos_margin == NEVER_WITHIN.get(options.distance)
    own = _meeting(layout.cols.groups, layout.cols.groups)
    met = own if layout.symmetric else _meeting(layout.rows.groups, layout.cols.groups)
    centred = rows, cols
    if options.distance != "cosine" or closed_form:
        centred = _centred_on_groups(rows, cols, met, own)
    second_moment = _Term(0.0, [])
    inside = _Sums()
    if not closed_form or options.second_moment:
        pos_margin = margin.new_full((), options.pos_margin)
        pair = (rows, cols) if options.distance == "cosine" else centred
        inside = _hinge_sums("inside", layout, *pair, pos_margin, options, first_order=not closed_form)
    if options.second_moment:
        second_moment = _second_moment(inside, across, pairs, layout.symmetric, margin, options)
    if closed_form:
        _, scale = _mean_of(0.0, pairs[0])
        term = _inside_in_closed_form(layout, *centred, met, own, scale, options)
        if options.distance == "cosine":
            _of_similarities(term, layout, rows, cols, met, scale, options)
        return term, second_moment
    value, scale = _mean_of(inside.total, inside.active if options.over_active else pairs[0])
    gradients = [] if inside.gradient is None else inside.gradient.finish(options.distance, scale)
    return _Term(value, gradients), second_moment


def _second_moment(
    inside: _Sums, across: _Sums, pairs: tuple[Number, Number], symmetric: bool, margin: Tensor, options: Options
) -> _Term:
    """½ (mean of f² inside + mean of f² across), over all pairs of each kind; f is -d inside and the hinge across."""
    ends = 2 if margin.ndim == 1 and symmetric else 1
    of_inside, inside_scale = _mean_of(inside.squares, pairs[0])
    of_across, across_scale = _mean_of(across.squares, pairs[1] * ends)
    value = 0.5 * (of_inside + of_across)
    if inside.square_gradient is None or across.square_gradient is None:
        return _Term(value, [])
    gradients = inside.square_gradient.finish(options.distance, inside_scale)  # 0.5 · ∂f² = f · ∂f
    of_across_gradients = across.square_gradient.finish(options.distance, -1 * across_scale)
    for gradient, other in zip(gradients, of_across_gradients, strict=True):
        gradient.add_(other)
    total = across.total_of if across.total_of is not None else margin.new_ones(()) * across.total
    return _Term(value, gradients, total * across_scale)


class _Meeting(NamedTuple):
    """For each row the first column of its group (of another group, where it has none), and the number of them."""

    first: Tensor
    partners: Tensor


def _meeting(groups: Tensor, others: Tensor) -> _Meeting:
    first = torch.searchsorted(others, groups)
    partners = torch.searchsorted(others, groups, right=True).sub_(first)
    return _Meeting(first if groups is others else first.clamp_(max=len(others) - 1), partners)


def _centred_on_groups(rows: _Rows, columns: _Rows, met: _Meeting, own: _Meeting) -> tuple[_Rows, _Rows]:
    """Rows and columns from the mean of the columns of their group, where small distances inside it are exact."""
    x, y = rows.x, columns.x
    sums = torch.zeros_like(y).index_add_(0, own.first, y)
    centres = sums.index_select(0, own.first).div_(own.partners[:, None])
    cols = _rows(torch.sub(y, centres, out=centres), columns.given)
    if met is own:
        return cols, cols
    centres = sums.index_select(0, met.first).div_(met.partners.clamp(min=1)[:, None])
    return _rows(torch.sub(x, centres, out=centres), rows.given), cols


def _inside_in_closed_form(
    layout: _Layout, rows: _Rows, cols: _Rows, met: _Meeting, own: _Meeting, scale: Number, options: Options
) -> _Term:
    """Mean squared distance inside the groups, of rows and columns centred on their groups; writes into their buffers.

    Of one set, sum over i < j of |x_i - x_j|² = n · sum of |x_i|². Of two, whose columns have mean 0, sum over i and j
    of |x_i - y_j|² = m · sum of |x_i|² + n · sum of |y_j|², for n rows and m columns.
    """
    weights = layout.pulled(layout.rows, met.partners).to(rows.x.dtype).mul_(scale)
    total = (weights * rows.squares).sum(dtype=torch.float64)
    if layout.symmetric:
        return _Term(_wide(total), [rows.x.mul_(weights.mul_(2)[:, None])] if options.gradients else [])
    met_by = _meeting(layout.cols.groups, layout.rows.groups)
    col_weights = layout.pulled(layout.cols, met_by.partners).to(cols.x.dtype).mul_(scale)
    total = total + (col_weights * cols.squares).sum(dtype=torch.float64)
    gradients = []
    if options.gradients and options.ref_gradients:
        to_group = (weights > 0).to(weights.dtype).mul_(scale)
        sums = torch.zeros_like(cols.x).index_add_(0, met.first, rows.x * to_group[:, None])
        gradients.append(cols.x.mul_(col_weights[:, None]).sub_(sums.index_select(0, own.first)).mul_(2))
    if options.gradients:
        gradients.insert(0, rows.x.mul_(weights.mul_(2)[:, None]))
    return _Term(_wide(total), gradients)


def _of_similarities(
    term: _Term, layout: _Layout, rows: _Rows, cols: _Rows, met: _Meeting, scale: Number, options: Options
) -> None:
    """Turns the mean squared distance of unit rows into that of 1 - s, where some rows are shorter: 0, above all.

    1 - x·y = ½ (|x - y|² + (1 - |x|²) + (1 - |y|²)). The gradient of a unit row along itself comes to nothing.
    """
    weights = layout.pulled(layout.rows, met.partners).to(rows.x.dtype)
    weights = (weights - (weights > 0).to(weights.dtype) if layout.symmetric else weights).mul_(scale)
    sides = [(rows, weights)]
    if not layout.symmetric:
        met_by = _meeting(layout.cols.groups, layout.rows.groups)
        sides.append((cols, layout.pulled(layout.cols, met_by.partners).to(rows.x.dtype).mul_(scale)))
    for side, weight in sides:
        term.value = term.value + _wide((weight * _shortness(side)).sum())
    term.value = 0.5 * term.value
    for gradient, (side, weight) in zip(term.gradients, sides, strict=False):
        short = _shortness(side) > 0
        gradient.mul_(0.5).addcmul_(side.x, (weight * short)[:, None], value=-1)


def _shortness(rows: _Rows) -> Tensor:
    """1 - |x|², and 0 where that is the rounding of a unit row."""
    shortness = 1 - rows.squares
    return shortness.mul_(shortness > 64 * torch.finfo(shortness.dtype).eps)


def _check_squares(argument: str, rows: _Rows, labels: Tensor | None, ignore_label: int | None) -> None:
    """Raises where a squared norm is no number: that of NaN, of infinity, or of a number too large to be squared."""
    dtype, given = rows.x.dtype, rows.given
    limit = torch.finfo(dtype).max / 4  # no squared distance is larger than four squares
    if given.device.type != "cpu":
        message = f"{argument} must be finite and small enough to be squared in {dtype}"
        torch._assert_async(rows.squares.amax() <= limit, message)
    elif not rows.largest <= limit:  # NaN and infinity come through
        if labels is not None and ignore_label is not None:
            given = torch.where((labels != ignore_label)[:, None], given, 0.0)
        check_finite(argument, given)
        got = f"a largest absolute value of {given.detach().abs().max().item():.3g}"
        raise ValueError(problem(argument, f"small enough to be squared in {dtype}", got, SMALLER))


NEVER_WITHIN = {"squared_l2": 0.0, "cosine": -1.0}
"""The margin that no pair inside is within, in closed form; a similarity counts as its negative."""

UNIT = "pass a number in the unit of the distance"
SMALLER = "normalise or scale the embeddings, or pass them in float64"


def _check_values(values: list[Number], dtype: torch.dtype) -> None:
    """Raises where a term does not fit its dtype."""
    for name, value in zip(PairTerms._fields, values, strict=False):
        if isinstance(value, Tensor):
            fits = torch.isfinite(value.to(dtype))
            torch._assert_async(fits, f"embeddings must be small enough for a loss that fits {dtype}")
        elif not abs(value) <= torch.finfo(dtype).max:
            expected = f"small enough for a loss that fits {dtype}"
            raise ValueError(problem("embeddings", expected, f"a mean {name} of {value:.3g}", SMALLER))


# --- few rows ---------------------------------------------------------------------------------------------------------


def _measure_small(x: Tensor, margin: Tensor, labels: Tensor | None, options: Options) -> list[Tensor] | None:
    """:func:`_measure` of one small set, without its second moment: a few operations on the matrix of all pairs.

    None where some distances need more care than products of coordinates give them.
    """
    labels = _side_of_sizes(options.sizes or (), x.device).groups if labels is None else labels
    given = x
    x, same, valid = _pairs_of_small(x, labels, options)
    if options.distance != "cosine":
        x = x - x.mean(0)
    rows = _rows(x, given)
    _check_squares("embeddings", rows, labels, options.ignore_label)
    closed_form = not options.over_active and options.distance == "squared_l2" and options.pos_margin == 0
    kind: Kind = "inside" if options.over_active else "across"
    unclear = _unclear(kind, rows, margin, options)
    whole = _Tile(0, len(x), 0, len(x), True)
    d, near = _distances(rows, rows, whole, options.distance, unclear, _Buffers(x, len(x) ** 2))
    listed = None
    if near is not None:
        near = near & (same == 0) if closed_form else near | near.t()
        near = near if valid is None else near & valid[:, None] & valid
        if bool(near.any()):
            rounding = 2 * ROUNDING * torch.finfo(x.dtype).eps * rows.largest
            if options.distance != "l2" or rounding > UNCLEAR * _bounds(margin)[0] ** 2:
                return None  # to the margin all pairs are near
            i, j = near.nonzero().unbind(1)
            listed = _Listed(i, j, given[i] - given[j])
            d.index_put_((i, j), torch.linalg.vector_norm(listed.differences, dim=1))

    tie = _tie(rows.squares, margin, options.distance)
    weights = torch.sub((margin - tie)[:, None], d)
    weights.sub_(same, alpha=torch.finfo(x.dtype).max).clamp_(min=0)  # pairs inside are out of reach
    if valid is not None:
        weights.mul_(valid[:, None]).mul_(valid)
    total = _wide(weights.sum())
    active_of = weights.sign_().sum(1)  # of ordered pairs, here and below
    total, active = total + _wide(active_of.dot(tie)), _wide(active_of.sum())
    repulsion, scale = _mean_of(total, active)
    gradients, of_margin = [], []
    if options.margin_gradients:
        of_margin = [active_of * scale if margin.ndim == 1 else _value(active * scale, x)]
    if options.gradients:
        if margin.ndim == 1:
            weights, scale = weights + weights.t(), 0.5 * scale
        gradients = [_gradient_of_small(weights, x, d, listed, options.distance, -2 * scale)]

    if options.only_first:
        same.mul_((labels == 0)[:, None])
    if valid is not None:
        same.mul_(valid[:, None]).mul_(valid)
    partners = same.sum(1)
    together = _wide(partners.sum())  # each row with itself among them
    rows_in = len(x) if valid is None else _wide(valid.sum())
    members = _wide(same.diagonal().sum()) if options.only_first else rows_in
    inside = together - members
    if closed_form:
        _, scale = _mean_of(0.0, inside)
        # The sum over ordered pairs is 2 · sum of n |x_i - mean of the group|², the gradient 4n times that difference.
        sizes = partners.clamp(min=1) if options.only_first or valid is not None else partners
        apart = torch.addcdiv(x, torch.mm(same, x), sizes[:, None], value=-1)
        pull = apart * partners.mul_(scale)[:, None]
        attraction = _wide(apart.mul_(pull).sum()) * 2
        if options.gradients:
            gradients.insert(0, pull.mul_(4))
    else:
        edge = margin.new_full((), options.pos_margin)
        ties = _tie_inside(rows, edge, options)
        weights = torch.sub(d, edge if ties is None else (edge + ties)[:, None]).clamp_(min=0)
        total = _wide(weights.mul_(same.fill_diagonal_(0)).sum())
        weights.sign_()
        count = _wide(weights.sum()) if options.over_active and ties is None else inside
        if ties is not None:
            active_of = weights.sum(1)
            total, count = total + _wide(active_of.dot(ties)), _wide(active_of.sum())
        attraction, scale = _mean_of(total, count)
        if options.gradients:
            gradients.insert(0, _gradient_of_small(weights, x, d, listed, options.distance, 2 * scale))
    _check_values([attraction, repulsion], x.dtype)
    counts = x.new_zeros(3, dtype=torch.int64)
    if options.counts:
        across = 2 * members * (rows_in - members) if options.only_first else rows_in * rows_in - together
        counts = _counts(0.5 * inside, 0.5 * across, active)
    return [_value(attraction, x), _value(repulsion, x), x.new_zeros(()), counts, *gradients, *of_margin]


def _pairs_of_small(x: Tensor, labels: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor | None]:
    """The rows, 1 for pairs of one group, and which rows take part: None for all; the others become zeros."""
    same = torch.eq(labels[:, None], labels, out=x.new_empty(len(x), len(x)))
    if options.ignore_label is None:
        return x, same, None
    valid = labels != options.ignore_label
    if x.device.type == "cpu" and bool(valid.all()):
        return x, same, None
    return torch.where(valid[:, None], x, 0.0), same, valid


def _gradient_of_small(
    weights: Tensor, x: Tensor, d: Tensor, listed: _Listed | None, distance: str, factor: Number
) -> Tensor:
    """Sums of w_ij ∂d_ij/∂x_i, of symmetric weights, times ``factor``."""
    if distance == "l2":
        weights = weights.div_(d).nan_to_num_(0.0, 0.0, 0.0)  # at distance 0 the gradient is 0
    if listed is None:
        return _Gradient.finished(x, torch.mm(weights, x), weights.sum(1), distance, factor)
    pulls = listed.differences * weights[listed.i, listed.j][:, None]
    weights.index_put_((listed.i, listed.j), weights.new_zeros(()))
    sums = torch.mm(weights, x).index_add_(0, listed.i, pulls, alpha=-1)
    return _Gradient.finished(x, sums, weights.sum(1), distance, factor)


class _Listed(NamedTuple):
    """Pairs (i, j) of a small set that are too near for products of coordinates."""

    i: Tensor
    j: Tensor
    differences: Tensor  # x_i - x_j


# --- autograd ---------------------------------------------------------------------------------------------------------


def _check_gradient(gradient: Tensor, limit: float) -> None:
    largest = gradient.abs().amax().item() if gradient.numel() else 0.0
    if not largest <= limit:
        expected = f"small enough for gradients up to {limit:.5g}"
        raise ValueError(problem("embeddings", expected, f"a gradient of {largest:.3g}", SMALLER))


class _PairTerms(torch.autograd.Function):
    """Terms whose gradients were made with them: backward only adds them up."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        margin: Tensor,
        labels: Tensor | None,
        ref_labels: Tensor | None,
        options: Options,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        measure = _compiled_measure if torch.compiler.is_compiling() else _measure
        attraction, repulsion, second_moment, counts, *gradients = measure(x, y, margin, labels, ref_labels, options)
        for gradient in gradients if options.gradient_limit < math.inf and not is_blind(x) else ():
            _check_gradient(gradient, options.gradient_limit)
        ctx.save_for_backward(*gradients)
        ctx.terms = (3 if options.second_moment else 2) if options.gradients else 0
        ctx.has_columns = y is not None and options.ref_gradients
        ctx.has_margin = options.margin_gradients
        ctx.mark_non_differentiable(counts)
        ctx.set_materialize_grads(False)
        return attraction, repulsion, second_moment, counts

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        weights, at = upstream[: ctx.terms], ctx.terms
        of_rows = _combine(weights, saved[:at])
        if of_rows is not None and ctx.terms == 3 and not is_blind(of_rows):
            _check_gradient(of_rows, torch.finfo(of_rows.dtype).max)  # fourth powers of distances
        of_cols = of_margin = None
        if ctx.has_columns:
            of_cols = _combine(weights, saved[at : at + ctx.terms])
            at += ctx.terms
        if ctx.has_margin:
            of_margin = _combine(weights[1:], saved[at:])  # the attraction has none
        if torch.is_grad_enabled():  # create_graph=True
            of_rows, of_cols, of_margin = (
                None if gradient is None else _OnceOnly.apply(gradient.detach().requires_grad_())
                for gradient in (of_rows, of_cols, of_margin)
            )
        return of_rows, of_cols, of_margin, None, None, None


class _OnceOnly(torch.autograd.Function):
    """A gradient that may be used but not differentiated: without this, a penalty on it would silently do nothing."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        remedy = "build the loss with pair_memory='pairs' where a gradient of the gradient is needed"
        raise RuntimeError(f"sums over tiles of pairs have no second derivative; {remedy}")


def _combine(weights: Sequence[Tensor | None], gradients: Sequence[Tensor]) -> Tensor | None:
    result: Tensor | None = None
    for weight, gradient in zip(weights, gradients, strict=True):
        if weight is not None:
            result = gradient * weight if result is None else result.addcmul_(gradient, weight)
    return result


def _compiled_measure(
    x: Tensor, y: Tensor | None, margin: Tensor, labels: Tensor | None, ref_labels: Tensor | None, options: Options
) -> list[Tensor]:
    """:func:`_measure` as one operator that ``torch.compile`` does not look into."""
    return list(_measure_op(x, y, margin, labels, ref_labels, *options))


@torch.library.custom_op(
    "adaptive_margin::pair_terms",
    mutates_args=(),
    schema="(Tensor x, Tensor? y, Tensor margin, Tensor? labels, Tensor? ref_labels, str distance, float pos_margin, "
    "bool over_active, bool second_moment, bool only_first, int? ignore_label, int[]? sizes, bool counts, "
    "float gradient_limit, bool gradients, bool ref_gradients, bool margin_gradients) -> Tensor[]",
)
def _measure_op(
    x: Tensor, y: Tensor | None, margin: Tensor, labels: Tensor | None, ref_labels: Tensor | None, *options: Any
) -> list[Tensor]:
    return _measure(x, y, margin, labels, ref_labels, Options(*options))


@_measure_op.register_fake
def _(
    x: Tensor, y: Tensor | None, margin: Tensor, labels: Tensor | None, ref_labels: Tensor | None, *options: Any
) -> list[Tensor]:
    return [x.new_empty(shape, dtype=dtype) for shape, dtype in _shapes(x, y, margin, Options(*options))]


# --- what others call -------------------------------------------------------------------------------------------------


def pair_terms(
    embeddings: Tensor,
    labels: Tensor,
    margin: float | Tensor,
    *,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    distance: Distance = "squared_l2",
    pos_margin: float = 0.0,
    over_active: bool = False,
    second_moment: bool = False,
    only_first: bool = False,
    ignore_label: int | None = None,
    counts: bool = True,
) -> PairTerms:
    r"""The terms of a contrastive loss over all pairs, without a list of pairs and without a matrix of distances.

    .. math::
        \text{attraction} = \operatorname{mean}_{\text{inside}} (d_{ij} - \beta)_+, \qquad
        \text{repulsion} = \operatorname{mean}_{\text{across},\ d_{ij} < \alpha_i} (\alpha_i - d_{ij})_+, \qquad
        \Omega = \tfrac12 \operatorname{mean}_{\text{inside}} d_{ij}^2
                + \tfrac12 \operatorname{mean}_{\text{across}} (\alpha_i - d_{ij})_+^2

    Pairs inside have the same label, pairs across have different labels. A mean over no pairs is 0.

    Source: Kim & Song 2021, Eq. (4) and (7); the tiles are this library's.

    Args:
        embeddings: shape ``(B, D)``. Half precision is computed in float32.
        labels: integers, shape ``(B,)``.
        margin: :math:`\alpha`: a number, a 0-dim tensor, or one per row, shape ``(B,)``. With one per row, each pair
            across counts twice, once with the margin of each row.
        ref_emb: pairs take one row from ``embeddings`` and one from here, shape ``(R, D)``, instead: all such pairs,
            even if both rows are the same.
        ref_labels: their labels, shape ``(R,)``.
        distance: d: ``"squared_l2"``, ``"l2"``, or ``"cosine"``: the similarity s of the normalised rows, which counts
            as the distance -s; both margins are then similarities, and the hinges are :math:`(\beta - s)_+` and
            :math:`(s - \alpha)_+`; or ``"dot"``, the same for rows that are already normalised, none longer than 1.
        pos_margin: :math:`\beta`.
        over_active: whether the attraction is a mean over the pairs with :math:`d > \beta`, or over all pairs inside.
        second_moment: whether to compute :math:`\Omega` (it needs more products).
        only_first: labels are 0 and 1, and only label 0 has pairs inside.
        ignore_label: rows with this label are left out of everything.
        counts: whether to count the pairs; zeros otherwise.

    Returns:
        ``attraction``, ``repulsion``, ``second_moment`` (0 unless requested): 0-dim, float32 or float64; and
        ``counts``: int64, shape ``(3,)``: the pairs inside (unordered, without ``ref_emb``), those across, and the
        ordered (anchor, negative) pairs within the margin. Each term has a gradient for the embeddings, for ``ref_emb``
        and for the margin. There is no second derivative; requesting one raises an error.

    Raises:
        ValueError: shapes that do not match, NaN or infinity, numbers whose squares overflow. On CUDA and in
            compiled code the last two are device-side assertions, so that nothing waits for the device.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.5]])
        >>> attraction, repulsion, _, counts = pair_terms(x, torch.tensor([0, 0, 1]), margin=1.0)
        >>> attraction, repulsion  # 1², and 1 - 0.5² (the other pair across is beyond the margin)
        (tensor(1.), tensor(0.7500))
        >>> counts
        tensor([1, 2, 2])
    """
    if distance != "dot":
        check_choice("distance", distance, ("squared_l2", "l2", "cosine"))
    if not math.isfinite(pos_margin):
        raise ValueError(problem("pos_margin", "finite", pos_margin, "stock losses use 0 for distances"))
    check_matrix("embeddings", embeddings)
    check_labels("labels", labels, len(embeddings))
    if ref_emb is not None:
        check_matrix("ref_emb", ref_emb)
        check_same_features("ref_emb", ref_emb, "embeddings", embeddings)
        if ref_labels is None:
            raise ValueError(problem("ref_labels", "given with ref_emb", "None", "pass the labels of ref_emb"))
        check_labels("ref_labels", ref_labels, len(ref_emb), of="ref_emb")
    options = Options(distance, float(pos_margin), over_active, second_moment, only_first, ignore_label, counts=counts)
    return terms_of(embeddings, ref_emb, margin, labels, ref_labels, options)


def terms_of(
    x: Tensor,
    y: Tensor | None,
    margin: float | Tensor,
    labels: Tensor | None,
    ref_labels: Tensor | None,
    options: Options,
) -> PairTerms:
    """:func:`pair_terms` of checked arguments."""
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return terms_of(x, y, margin, labels, ref_labels, options)
    if x.dtype == torch.float16:
        options = options.but(gradient_limit=torch.finfo(x.dtype).max)
    x = at_least_float32(x)
    y = None if y is None else y.to(x)
    labels = None if labels is None else labels.long()  # an unsigned 255 equals an ignore_label of -1
    ref_labels = None if ref_labels is None else ref_labels.long()
    margin = as_margin(margin, x)
    check_fits("pos_margin", options.pos_margin, x.dtype, UNIT)
    if options.distance == "cosine":
        x = _unit("embeddings", x, labels, options.ignore_label)
        y = None if y is None else _unit("ref_emb", y, ref_labels, options.ignore_label)
    if options.distance in ("cosine", "dot"):  # a similarity s counts as the distance -s
        margin, options = -margin, options.but(pos_margin=-options.pos_margin, distance="cosine")
    ref_gradients = y is not None and y.requires_grad
    gradients = torch.is_grad_enabled() and (x.requires_grad or margin.requires_grad or ref_gradients)
    options = options.but(
        gradients=gradients, ref_gradients=ref_gradients, margin_gradients=gradients and margin.requires_grad
    )
    return PairTerms(*_PairTerms.apply(x, y, margin, labels, ref_labels, options))


def as_margin(margin: float | Tensor, x: Tensor) -> Tensor:
    """A margin as a finite tensor of ``x``'s dtype and device, of shape ``()`` or with one value per row."""
    if not isinstance(margin, Tensor):
        check_fits("margin", margin, x.dtype, UNIT)
        return x.new_full((), margin)
    if margin.shape not in ((), (len(x),)):
        expected = f"one number, or one per row: of shape () or ({len(x)},)"
        remedy = "pass a margin of granularity 'batch' or 'anchor'"
        raise ValueError(problem("margin", expected, f"shape {tuple(margin.shape)}", remedy))
    margin = margin.to(x)
    if margin.ndim > 0 or is_blind(margin):
        check_finite("margin", margin)
        return margin
    as_margin(margin.item(), x)  # a number's check is quicker
    return margin


def _unit(argument: str, x: Tensor, labels: Tensor | None, ignore_label: int | None) -> Tensor:
    """Rows divided by their norms, as ``torch.nn.functional.normalize`` does."""
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    if len(x) > 0:
        _check_squares(argument, _rows(x.detach(), x), labels, ignore_label)
    unit: Tensor = x / norms.clamp(min=1e-12)
    return unit


def pair_hinge_means(
    embeddings: Tensor,
    labels: Tensor,
    pos_margin: float,
    neg_margin: float | Tensor,
    distance: Distance = "l2",
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The two terms of pytorch-metric-learning's ``ContrastiveLoss`` with its ``AvgNonZeroReducer``, in tiles.

    .. math::
        \operatorname{mean}_{>0}\, (d_{ij} - m_+)_+ \text{ over pairs of one label}, \qquad
        \operatorname{mean}_{>0}\, (m_- - d_{ij})_+ \text{ over pairs of two}

    each over the pairs whose hinge is above 0, and 0 if there are none; for similarities :math:`(m_+ - s_{ij})_+` and
    :math:`(s_{ij} - m_-)_+`.

    Source: Hadsell, Chopra & LeCun 2006, as in pytorch-metric-learning 2.9.

    Args:
        embeddings: shape ``(B, D)``. For a distance of normalised rows the caller must normalise them, except for
            ``"cosine"``.
        labels: integers, shape ``(B,)``.
        pos_margin: :math:`m_+`.
        neg_margin: :math:`m_-`: a number, a 0-dim tensor, or one per anchor, shape ``(B,)``.
        distance: ``"l2"``, ``"squared_l2"``, or a similarity, ``"cosine"`` or ``"dot"``. At an L2 distance of 0 the
            gradient is 0.
        ref_emb: pairs take their second row from here, shape ``(R, D)``: all such pairs, as in the host with a
            reference set.
        ref_labels: their labels, shape ``(R,)``.

    Returns:
        Two 0-dim tensors, float32 or float64, with gradients for all tensor arguments.

    Raises:
        ValueError: as for :func:`pair_terms`.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.5]])
        >>> pair_hinge_means(x, torch.tensor([0, 0, 1]), pos_margin=0, neg_margin=1.0)
        (tensor(1.), tensor(0.5000))
    """
    terms = pair_terms(
        embeddings,
        labels,
        neg_margin,
        ref_emb=ref_emb,
        ref_labels=ref_labels,
        distance=distance,
        pos_margin=pos_margin,
        over_active=True,
        counts=False,
    )
    return terms.attraction, terms.repulsion
