"""The terms as functions that autograd and ``torch.compile`` know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ...messages import problem
from ..checks import is_blind, is_many
from ..once_only import once_only
from .measure import measure_pairs, measure_tiles, shapes_of
from .options import SMALLER, Options
from .small import late_gradient, small_pairs


class PairTermsFunction(torch.autograd.Function):
    """Terms whose gradients are computed in the same pass: backward only adds them up.

    For a small set on a CPU, it is faster to compute their sum there.
    """

    @staticmethod
    def forward(  # noqa: D102 - as autograd has it
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        margin: Tensor,
        labels: Tensor | None,
        ref_labels: Tensor | None,
        options: Options,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.late = None
        if torch.compiler.is_compiling():
            found = _measure_op(x, y, margin, labels, ref_labels, *options)
        else:
            late = options.over_active and not options.margin_gradients and options.gradient_limit == math.inf
            small = small_pairs(x, y, margin, labels, options) if late else None
            if small is not None:
                if options.gradients:
                    ctx.late = options.distance, small.scales
                    ctx.save_for_backward(*small.saved())
                attraction, repulsion, second_moment, counts = small.values(x)
                ctx.mark_non_differentiable(counts)
                return attraction, repulsion, second_moment, counts
            measure = measure_tiles if late else measure_pairs  # it is not measured twice
            found = measure(x, y, margin, labels, ref_labels, options)
        attraction, repulsion, second_moment, counts, *gradients = found
        for gradient in gradients if options.gradient_limit < math.inf and not is_blind(x) else ():
            _check_gradient(gradient, options.gradient_limit)
        ctx.save_for_backward(*gradients)
        ctx.terms = (3 if options.second_moment else 2) if options.gradients else 0
        ctx.has_columns = y is not None and options.ref_gradients
        ctx.has_margin = options.margin_gradients
        ctx.mark_non_differentiable(counts)
        return attraction, repulsion, second_moment, counts

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        saved = ctx.saved_tensors
        if ctx.late is not None:
            distance, scales = ctx.late
            return once_only(_late(saved, distance, scales, upstream[:2])), None, None, None, None, None
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
        found = (None if gradient is None else once_only(gradient) for gradient in (of_rows, of_cols, of_margin))
        return *found, None, None, None


def _late(saved: Sequence[Tensor], distance: str, scales: Any, upstream: Sequence[Tensor | None]) -> Tensor:
    """The gradient of a small set for its rows."""
    with torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext():
        if any(weight is not None and is_many(weight) for weight in upstream):
            parts = [late_gradient(saved, distance, scales, *of) for of in ((1, 0), (0, 1))]
            weighted = (part * weight for part, weight in zip(parts, upstream, strict=True) if weight is not None)
            return sum(weighted, torch.zeros_like(saved[0]))
        first, second = (0.0 if weight is None else weight.detach().item() for weight in upstream)
        return late_gradient(saved, distance, scales, first, second)


def _check_gradient(gradient: Tensor, limit: float) -> None:
    largest = gradient.abs().amax().item() if gradient.numel() else 0.0
    if not largest <= limit:
        expected = f"small enough for gradients up to {limit:.5g}"
        raise ValueError(problem("embeddings", expected, f"a gradient of {largest:.3g}", SMALLER))


def _combine(weights: Sequence[Tensor | None], gradients: Sequence[Tensor]) -> Tensor | None:
    result: Tensor | None = None
    for weight, gradient in zip(weights, gradients, strict=True):
        if weight is not None:
            result = gradient * weight if result is None else result.addcmul_(gradient, weight)
    return result


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
    """:func:`measure_pairs` as one operator, opaque to ``torch.compile``."""
    return measure_pairs(x, y, margin, labels, ref_labels, Options(*options))


@_measure_op.register_fake
def _(
    x: Tensor, y: Tensor | None, margin: Tensor, labels: Tensor | None, ref_labels: Tensor | None, *options: Any
) -> list[Tensor]:
    return [x.new_empty(shape, dtype=dtype) for shape, dtype in shapes_of(x, y, margin, Options(*options))]
