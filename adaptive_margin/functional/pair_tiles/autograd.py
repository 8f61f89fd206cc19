"""The terms as functions that autograd and ``torch.compile`` know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...messages import problem
from ..checks import is_blind
from .measure import measure_pairs, shapes_of
from .options import SMALLER, Options


class PairTermsFunction(torch.autograd.Function):
    """Terms whose gradients are computed in the same pass: backward only adds them up."""

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
        if torch.compiler.is_compiling():
            found = _measure_op(x, y, margin, labels, ref_labels, *options)
        else:
            found = measure_pairs(x, y, margin, labels, ref_labels, options)
        attraction, repulsion, second_moment, counts, *gradients = found
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
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
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


def _check_gradient(gradient: Tensor, limit: float) -> None:
    largest = gradient.abs().amax().item() if gradient.numel() else 0.0
    if not largest <= limit:
        expected = f"small enough for gradients up to {limit:.5g}"
        raise ValueError(problem("embeddings", expected, f"a gradient of {largest:.3g}", SMALLER))


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
