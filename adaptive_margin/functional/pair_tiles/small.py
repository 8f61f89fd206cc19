"""Few rows: one square matrix of all pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .layout import Tile, side_of_sizes
from .means import check_values, counts_of, mean_of, value_of
from .options import Kind, Number, Options
from .rows import ROUNDING, UNCLEAR, bounds_of, check_squares, rows_of, tie_inside, tie_of, unclear_of
from .sums import Buffers, Gradient, distances_of, wide


def measure_small(x: Tensor, margin: Tensor, labels: Tensor | None, options: Options) -> list[Tensor] | None:
    """:func:`measure_pairs` of one small set, without its second moment: a few operations on the matrix of all pairs.

    None if some distances need more precision than products of coordinates give.
    """
    labels = side_of_sizes(options.sizes or (), x.device).groups if labels is None else labels
    given = x
    x, same, valid = _pairs_of_small(x, labels, options)
    if options.distance != "cosine":
        x = x - x.mean(0)
    rows = rows_of(x, given)
    check_squares("embeddings", rows, labels, options.ignore_label)
    closed_form = not options.over_active and options.distance == "squared_l2" and options.pos_margin == 0
    kind: Kind = "inside" if options.over_active else "across"
    unclear = unclear_of(kind, rows, margin, options)
    whole = Tile(0, len(x), 0, len(x), True)
    d, near = distances_of(rows, rows, whole, options.distance, unclear, Buffers(x, len(x) ** 2))
    listed = None
    if near is not None:
        near = near & (same == 0) if closed_form else near | near.t()
        near = near if valid is None else near & valid[:, None] & valid
        if bool(near.any()):
            rounding = 2 * ROUNDING * torch.finfo(x.dtype).eps * rows.largest
            if options.distance != "l2" or rounding > UNCLEAR * bounds_of(margin)[0] ** 2:
                return None  # every pair may be too close to the margin
            i, j = near.nonzero().unbind(1)
            listed = _Listed(i, j, given[i] - given[j])
            d.index_put_((i, j), torch.linalg.vector_norm(listed.differences, dim=1))

    tie = tie_of(rows.squares, margin, options.distance)
    weights = torch.sub((margin - tie)[:, None], d)
    weights.sub_(same, alpha=torch.finfo(x.dtype).max).clamp_(min=0)  # pairs inside are out of reach
    if valid is not None:
        weights.mul_(valid[:, None]).mul_(valid)
    total = wide(weights.sum())
    active_of = weights.sign_().sum(1)  # of ordered pairs, here and below
    total, active = total + wide(active_of.dot(tie)), wide(active_of.sum())
    repulsion, scale = mean_of(total, active)
    gradients, of_margin = [], []
    if options.margin_gradients:
        of_margin = [active_of * scale if margin.ndim == 1 else value_of(active * scale, x)]
    if options.gradients:
        if margin.ndim == 1:
            weights, scale = weights + weights.t(), 0.5 * scale
        gradients = [_gradient_of_small(weights, x, d, listed, options.distance, -2 * scale)]

    if options.only_first:
        same.mul_((labels == 0)[:, None])
    if valid is not None:
        same.mul_(valid[:, None]).mul_(valid)
    inside: Number = 0.0
    if options.counts or not options.over_active:
        partners = same.sum(1)
        together = wide(partners.sum())  # including each row with itself
        rows_in = len(x) if valid is None else wide(valid.sum())
        members = wide(same.diagonal().sum()) if options.only_first else rows_in
        inside = together - members
    if closed_form:
        _, scale = mean_of(0.0, inside)
        # The sum over ordered pairs is 2 · sum of n |x_i - mean of the group|², the gradient 4n times that difference.
        sizes = partners.clamp(min=1) if options.only_first or valid is not None else partners
        apart = torch.addcdiv(x, torch.mm(same, x), sizes[:, None], value=-1)
        pull = apart * partners.mul_(scale)[:, None]
        attraction = wide(apart.mul_(pull).sum()) * 2
        if options.gradients:
            gradients.insert(0, pull.mul_(4))
    else:
        edge = margin.new_full((), options.pos_margin)
        ties = tie_inside(rows, edge, options)
        weights = torch.sub(d, edge if ties is None else (edge + ties)[:, None]).clamp_(min=0)
        total = wide(weights.mul_(same.fill_diagonal_(0)).sum())
        weights.sign_()
        count = wide(weights.sum()) if options.over_active and ties is None else inside
        if ties is not None:
            active_of = weights.sum(1)
            total, count = total + wide(active_of.dot(ties)), wide(active_of.sum())
        attraction, scale = mean_of(total, count)
        if options.gradients:
            gradients.insert(0, _gradient_of_small(weights, x, d, listed, options.distance, 2 * scale))
    check_values([attraction, repulsion], x.dtype)
    counts = x.new_zeros(3, dtype=torch.int64)
    if options.counts:
        across = 2 * members * (rows_in - members) if options.only_first else rows_in * rows_in - together
        counts = counts_of(0.5 * inside, 0.5 * across, active)
    return [value_of(attraction, x), value_of(repulsion, x), x.new_zeros(()), counts, *gradients, *of_margin]


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
    """Sums of w_ij ∂d_ij/∂x_i, for symmetric weights, times ``factor``."""
    if distance == "l2":
        weights = weights.div_(d).nan_to_num_(0.0, 0.0, 0.0)  # at distance 0 the gradient is 0
    if listed is None:
        return Gradient.finished(x, torch.mm(weights, x), weights.sum(1), distance, factor)
    pulls = listed.differences * weights[listed.i, listed.j][:, None]
    weights.index_put_((listed.i, listed.j), weights.new_zeros(()))
    sums = torch.mm(weights, x).index_add_(0, listed.i, pulls, alpha=-1)
    return Gradient.finished(x, sums, weights.sum(1), distance, factor)


class _Listed(NamedTuple):
    """Pairs (i, j) of a small set that are too close for products of coordinates."""

    i: Tensor
    j: Tensor
    differences: Tensor  # x_i - x_j
