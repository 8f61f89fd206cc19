"""The terms of a loss, from the sums over its pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from ...messages import problem
from .layout import Layout, Meeting, meeting_of
from .options import SMALLER, Number, Options, PairTerms
from .rows import Rows, rows_of, shortness_of
from .sums import Sums, hinge_sums, wide

NEVER_WITHIN = {"squared_l2": 0.0, "cosine": -1.0}
"""The margin that no pair inside is within, so that a closed form applies; a similarity counts as its negative."""


class Term:
    """A mean over pairs, with its gradients for the rows, the columns (if there are two sets) and the margin."""

    def __init__(self, value: Number, gradients: list[Tensor], of_margin: Tensor | None = None) -> None:
        self.value, self.gradients, self.of_margin = value, gradients, of_margin


def repulsion_of(across: Sums, margin: Tensor, options: Options) -> Term:
    """The mean hinge of the active pairs across groups."""
    value, scale = mean_of(across.total, across.active)
    if across.gradient is None:
        return Term(value, [])
    active = across.active_of if across.active_of is not None else margin.new_ones(()) * across.active
    return Term(value, across.gradient.finish(options.distance, -1 * scale), active * scale)


def inside_of(
    layout: Layout,
    rows: Rows,
    cols: Rows,
    pairs: tuple[Number, Number],
    across: Sums,
    margin: Tensor,
    options: Options,
) -> tuple[Term, Term]:
    """Attraction, and the second moment, whose other half comes from the pairs across groups."""
    closed_form = not options.over_active and options.pos_margin == NEVER_WITHIN.get(options.distance)
    own = meeting_of(layout.cols.groups, layout.cols.groups)
    met = own if layout.symmetric else meeting_of(layout.rows.groups, layout.cols.groups)
    centred = rows, cols
    if options.distance != "cosine" or closed_form:
        centred = _centred_on_groups(rows, cols, met, own)
    second_moment = Term(0.0, [])
    inside = Sums()
    if not closed_form or options.second_moment:
        pos_margin = margin.new_full((), options.pos_margin)
        pair = (rows, cols) if options.distance == "cosine" else centred
        inside = hinge_sums("inside", layout, *pair, pos_margin, options, first_order=not closed_form)
    if options.second_moment:
        second_moment = _second_moment(inside, across, pairs, layout.symmetric, margin, options)
    if closed_form:
        _, scale = mean_of(0.0, pairs[0])
        term = _inside_in_closed_form(layout, *centred, met, own, scale, options)
        if options.distance == "cosine":
            _of_similarities(term, layout, rows, cols, met, scale, options)
        return term, second_moment
    value, scale = mean_of(inside.total, inside.active if options.over_active else pairs[0])
    gradients = [] if inside.gradient is None else inside.gradient.finish(options.distance, scale)
    return Term(value, gradients), second_moment


def _second_moment(
    inside: Sums, across: Sums, pairs: tuple[Number, Number], symmetric: bool, margin: Tensor, options: Options
) -> Term:
    """½ (mean of f² inside + mean of f² across), over all pairs of each kind; f is -d inside and the hinge across."""
    ends = 2 if margin.ndim == 1 and symmetric else 1
    of_inside, inside_scale = mean_of(inside.squares, pairs[0])
    of_across, across_scale = mean_of(across.squares, pairs[1] * ends)
    value = 0.5 * (of_inside + of_across)
    if inside.square_gradient is None or across.square_gradient is None:
        return Term(value, [])
    gradients = inside.square_gradient.finish(options.distance, inside_scale)  # 0.5 · ∂f² = f · ∂f
    of_across_gradients = across.square_gradient.finish(options.distance, -1 * across_scale)
    for gradient, other in zip(gradients, of_across_gradients, strict=True):
        gradient.add_(other)
    total = across.total_of if across.total_of is not None else margin.new_ones(()) * across.total
    return Term(value, gradients, total * across_scale)


def _centred_on_groups(rows: Rows, columns: Rows, met: Meeting, own: Meeting) -> tuple[Rows, Rows]:
    """Rows and columns relative to the mean of their group's columns, so that small distances inside it are exact."""
    x, y = rows.x, columns.x
    sums = torch.zeros_like(y).index_add_(0, own.first, y)
    centres = sums.index_select(0, own.first).div_(own.partners[:, None])
    cols = rows_of(torch.sub(y, centres, out=centres), columns.given)
    if met is own:
        return cols, cols
    centres = sums.index_select(0, met.first).div_(met.partners.clamp(min=1)[:, None])
    return rows_of(torch.sub(x, centres, out=centres), rows.given), cols


def _inside_in_closed_form(
    layout: Layout, rows: Rows, cols: Rows, met: Meeting, own: Meeting, scale: Number, options: Options
) -> Term:
    """Mean squared distance inside the groups, of rows and columns centred on their groups; writes into their buffers.

    For one set, sum over i < j of |x_i - x_j|² = n · sum of |x_i|². For two, whose columns have mean 0, sum over i and
    j of |x_i - y_j|² = m · sum of |x_i|² + n · sum of |y_j|², for n rows and m columns.
    """
    weights = layout.pulled(layout.rows, met.partners).to(rows.x.dtype).mul_(scale)
    total = (weights * rows.squares).sum(dtype=torch.float64)
    if layout.symmetric:
        return Term(wide(total), [rows.x.mul_(weights.mul_(2)[:, None])] if options.gradients else [])
    met_by = meeting_of(layout.cols.groups, layout.rows.groups)
    col_weights = layout.pulled(layout.cols, met_by.partners).to(cols.x.dtype).mul_(scale)
    total = total + (col_weights * cols.squares).sum(dtype=torch.float64)
    gradients = []
    if options.gradients and options.ref_gradients:
        to_group = (weights > 0).to(weights.dtype).mul_(scale)
        sums = torch.zeros_like(cols.x).index_add_(0, met.first, rows.x * to_group[:, None])
        gradients.append(cols.x.mul_(col_weights[:, None]).sub_(sums.index_select(0, own.first)).mul_(2))
    if options.gradients:
        gradients.insert(0, rows.x.mul_(weights.mul_(2)[:, None]))
    return Term(wide(total), gradients)


def _of_similarities(
    term: Term, layout: Layout, rows: Rows, cols: Rows, met: Meeting, scale: Number, options: Options
) -> None:
    """Turns the mean squared distance of unit rows into that of 1 - s, where some rows are shorter, zero rows above
    all.

    1 - x·y = ½ (|x - y|² + (1 - |x|²) + (1 - |y|²)). The gradient of a unit row along itself cancels.
    """
    weights = layout.pulled(layout.rows, met.partners).to(rows.x.dtype)
    weights = (weights - (weights > 0).to(weights.dtype) if layout.symmetric else weights).mul_(scale)
    sides = [(rows, weights)]
    if not layout.symmetric:
        met_by = meeting_of(layout.cols.groups, layout.rows.groups)
        sides.append((cols, layout.pulled(layout.cols, met_by.partners).to(rows.x.dtype).mul_(scale)))
    for side, weight in sides:
        term.value = term.value + wide((weight * shortness_of(side)).sum())
    term.value = 0.5 * term.value
    for gradient, (side, weight) in zip(term.gradients, sides, strict=False):
        short = shortness_of(side) > 0
        gradient.mul_(0.5).addcmul_(side.x, (weight * short)[:, None], value=-1)


def mean_of(total: Number, count: Number) -> tuple[Number, Number]:
    """A mean that is 0 where there is nothing to average, and the weight of one summand in it."""
    scale = 1 / count.double().clamp_(min=1) if isinstance(count, Tensor) else 1 / max(count, 1)
    return total * scale, scale


def value_of(number: Number, like: Tensor) -> Tensor:
    """A 0-dim tensor of a sum."""
    if isinstance(number, Tensor):
        return number.to(like.dtype)
    return torch.scalar_tensor(number, dtype=like.dtype, device=like.device)


def counts_of(*numbers: Number) -> Tensor:
    """Numbers of pairs as int64, shape ``(3,)``."""
    if isinstance(numbers[-1], Tensor):
        return torch.stack([torch.as_tensor(n, device=numbers[-1].device).to(torch.int64) for n in numbers])
    return torch.tensor([int(n) for n in numbers])


def check_values(values: list[Number], dtype: torch.dtype) -> None:
    """Raises if a term does not fit its dtype."""
    for name, value in zip(PairTerms._fields, values, strict=False):
        if isinstance(value, Tensor):
            fits = torch.isfinite(value.to(dtype))
            torch._assert_async(fits, f"embeddings must be small enough for a loss that fits {dtype}")
        elif not abs(value) <= torch.finfo(dtype).max:
            expected = f"small enough for a loss that fits {dtype}"
            raise ValueError(problem("embeddings", expected, f"a mean {name} of {value:.3g}", SMALLER))
