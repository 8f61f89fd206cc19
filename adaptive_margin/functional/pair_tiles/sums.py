"""Sums over the hinges of one kind of pairs, tile by tile, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .layout import TILE_ENTRIES, TILE_ROWS, Layout, Tile
from .options import Kind, Number, Options
from .rows import Rows, lengths_of, over_lengths, tie_inside, tie_of, unclear_of


class Gradient:
    """Sums of w_ij ∂d_ij/∂x_i over the pairs of many tiles, for rows and for columns."""

    def __init__(self, x: Tensor, y: Tensor, of_columns: bool) -> None:
        """For one set, ``x`` is ``y``: a pair adds to the gradients of both its rows."""
        self.x, self.y = x, y
        self.of_rows: tuple[Tensor, Tensor] = (torch.zeros_like(x), x.new_zeros(len(x)))
        self.of_columns: tuple[Tensor, Tensor] | tuple[()] = self.of_rows
        if y is not x:
            self.of_columns = (torch.zeros_like(y), y.new_zeros(len(y))) if of_columns else ()

    def add(self, weights: Tensor, tile: Tile) -> None:
        """Adds w_ij ∂d_ij/∂x_i of a tile; factors that are the same for all pairs are left to :meth:`finish`."""
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
        """The gradient for rows (for two sets, also for columns), times ``factor``, in the buffers of the sums."""
        gradients = [self.finished(self.x, *self.of_rows, distance, factor)]
        if self.of_columns and self.of_columns is not self.of_rows:
            gradients.append(self.finished(self.y, *self.of_columns, distance, factor))
        return gradients

    @staticmethod
    def finished(x: Tensor, sums: Tensor, totals: Tensor, distance: str, factor: Number) -> Tensor:
        """The gradient of weighted sums of the other rows and of the weights' totals."""
        sums.neg_()  # ∂(-x·y)/∂x = -y
        if distance != "cosine":  # ∂|x - y|²/∂x = 2(x - y), ∂|x - y|/∂x = (x - y)/|x - y|
            sums.addcmul_(x, totals[:, None])
        return sums.mul_(2 * factor if distance == "squared_l2" else factor)


class Sums:
    """Sums over the hinges of one kind of pairs."""

    def __init__(self) -> None:
        self.total: Number = 0.0
        self.active: Number = 0.0
        self.squares: Number = 0.0
        self.gradient: Gradient | None = None
        self.square_gradient: Gradient | None = None
        self.active_of: Tensor | None = None  # per row, for a margin of each row
        self.total_of: Tensor | None = None


def distances_of(
    rows: Rows, cols: Rows, tile: Tile, distance: str, unclear: Tensor | None, buffers: Buffers
) -> tuple[Tensor, Tensor | None]:
    """Distances of a tile's rows and columns, in the first buffer; a similarity counts as the distance -s.

    The second result says which are too inexact: those whose square is at most ``unclear``; None if there are none.
    """
    out = buffers.take(0, tile)
    x, y = rows.x[tile.top : tile.bottom], cols.x[tile.left : tile.right]
    if distance == "cosine":
        return torch.mm(x, y.t(), out=out).neg_(), None
    squares = rows.squares[tile.top : tile.bottom, None]
    torch.add(squares, cols.squares[tile.left : tile.right], out=out).addmm_(x, y.t(), alpha=-2).clamp_(min=0)
    near = None
    if unclear is not None:  # on a CPU, where numpy compares in half the time
        near = torch.from_numpy(np.less_equal(out.numpy(), unclear[tile.top : tile.bottom, None].numpy()))
        if rows is cols and tile.left < tile.bottom:
            near.diagonal(tile.top - tile.left).fill_(False)  # a row does not pair with itself
        near = near if near.numpy().any() else None
    if distance == "squared_l2":
        return out, near
    if out.device.type != "cpu":
        # Equal rows must be at distance 0, not at the root of a rounding error, which is not small.
        told_apart = torch.gt(out, squares * (8 * torch.finfo(x.dtype).eps), out=buffers.take(1, tile))
        out.mul_(told_apart)
    return out.sqrt_(), near


def hinge_sums(
    kind: Kind, layout: Layout, rows: Rows, cols: Rows, margin: Tensor, options: Options, first_order: bool = True
) -> Sums:
    """Sums of (d - m)₊ over the pairs inside groups, or of (m - d)₊ over those across groups, and their gradients.

    With a margin per row (0-dim otherwise), each pair across groups counts once from each end; with two sets, from its
    row only. A pair that equals the margin to rounding has a hinge of 0.
    """
    inside = kind == "inside"
    if inside:
        tie = tie_inside(rows, margin, options)
    else:
        tie = tie_of(rows.squares, margin, options.distance, rows.given.dtype)
    edge = margin if tie is None else margin + tie if inside else margin - tie
    sums = Sums()
    look = rows.x.device.type == "cpu"
    device = "cpu" if look else "cuda"
    sides = ("row", "col") if margin.ndim == 1 and layout.symmetric else ("row",)
    if options.gradients:
        sums.gradient = Gradient(rows.x, cols.x, options.ref_gradients) if first_order else None
        sums.square_gradient = Gradient(rows.x, cols.x, options.ref_gradients) if options.second_moment else None
        if options.margin_gradients and margin.ndim == 1:
            sums.active_of, sums.total_of = torch.zeros_like(margin), torch.zeros_like(margin)
    height, entries = TILE_ROWS[device], TILE_ENTRIES[device]
    buffers = Buffers(rows.x, min(entries, len(rows.x) * len(cols.x)))
    unclear = unclear_of(kind, rows, margin, options)
    for tile in layout.tiles(kind, height, entries):
        d, near = distances_of(rows, cols, tile, options.distance, unclear, buffers)
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
            part = wide(h.sum())
            if look and part == 0:
                continue  # no active pair: nothing to add to anything
            if options.second_moment:
                w = torch.sign(h, out=buffers.take(3, tile))
                if tie is not None:
                    h.addcmul_(w, tie[at, None] if side == "row" else tie[at])
                sums.squares = sums.squares + wide(torch.linalg.vector_norm(h).double().square())
            else:
                w = h.sign_()
            active = w.sum(1 if side == "row" else 0)
            sums.total = sums.total + part + (0.0 if tie is None else wide(active.dot(tie[at])))
            sums.active = sums.active + wide(active.sum())
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
    sums: Sums,
    kind: Kind,
    layout: Layout,
    rows: Rows,
    cols: Rows,
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
        d = lengths_of(difference)
        if options.distance == "l2":
            difference = over_lengths(difference, d)  # ∂d/∂x; of a square half of it
        else:
            d = d.square()
        for side in sides:
            at = i_part if side == "row" else j_part
            m = margin if margin.ndim == 0 else margin[at]
            h = d - m if inside else m - d
            w = (h > 8 * torch.finfo(d.dtype).eps * m.abs()).to(d.dtype)
            h.mul_(w)
            sums.total = sums.total + wide(h.sum())
            sums.active = sums.active + wide(w.sum())
            if options.second_moment:
                sums.squares = sums.squares + wide(torch.linalg.vector_norm(h).double().square())
            if sums.active_of is not None and sums.total_of is not None:
                sums.active_of.index_add_(0, at, w)
                sums.total_of.index_add_(0, at, h)
            for gradient, weights in ((sums.gradient, w), (sums.square_gradient, h)):
                if gradient is not None:
                    gradient.add_listed(difference * weights[:, None], i_part, j_part)


def wide(part: Tensor) -> Number:
    """For sums of many tiles: a Python number, or a float64 tensor on a device."""
    return part.item() if part.device.type == "cpu" else part.double()


class Buffers:
    """Buffers for tiles, allocated once."""

    def __init__(self, like: Tensor, size: int) -> None:
        self.like, self.size = like, size
        self.held: dict[int, Tensor] = {}

    def take(self, which: int, tile: Tile) -> Tensor:
        """One of them, as large as a tile."""
        if which not in self.held:
            self.held[which] = self.like.new_empty(self.size)
        height, width = tile.bottom - tile.top, tile.right - tile.left
        return self.held[which][: height * width].view(height, width)
