"""Gradients that have no gradient of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def once_only(gradient: Tensor) -> Tensor:
    """A gradient that may be used but not differentiated: without this, a penalty on it would silently do nothing."""
    if not torch.is_grad_enabled():  # without create_graph=True
        return gradient
    used: Tensor = _OnceOnly.apply(gradient.detach().requires_grad_())
    return used


class _OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        remedy = "build the loss with pair_memory='pairs' where a gradient of the gradient is needed"
        raise RuntimeError(f"sums over tiles of pairs have no second derivative; {remedy}")
