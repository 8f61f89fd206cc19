"""Raises where a loss, or the gradient of a batch, is not finite."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..functional.checks import assert_blindly, is_blind
from ..messages import problem


class GradientGuard:
    """Raises if a loss or the gradient of a batch is not finite: some host formulas have no finite value if embeddings
    coincide.

    It checks gradients only where this needs no synchronisation: not on CUDA or in compiled code. Overflow in float16,
    or under autocast, is left to the loss scaler: embeddings that are not finite then give a loss and gradients of NaN,
    and a loss that is not finite is passed on, so that the scaler skips the step.

    Args:
        of: the name of the host.
        only_half: whether only the gradients of float16 batches can fail to be finite.
    """

    def __init__(self, of: str, only_half: bool = False) -> None:
        self.of = of
        self.only_half = only_half
        self.expected = False
        self.scaled = False
        self.overflow: list[Tensor] = []

    def settled(self, x: Any) -> Any:
        """The batch; if a scaler handles overflow and the batch is not finite, ones instead of it."""
        if not isinstance(x, Tensor) or not x.is_floating_point() or not _overflow_is_expected(x):
            return x
        self.expected = True
        overflow = ~torch.isfinite(x.detach()).all()
        if not is_blind(x) and not overflow.item():
            return x
        self.overflow.append(overflow)
        settled: Tensor = _Settled.apply(x, overflow)
        return settled

    def watch(self, x: Tensor) -> Tensor:
        """The batch, watched."""
        aside = is_blind(x) or torch.is_autocast_enabled(x.device.type) or (self.only_half and x.dtype != torch.float16)
        if aside or not (x.requires_grad and torch.is_grad_enabled()):
            return x
        guarded: Tensor = _Guarded.apply(x, self)
        return guarded

    def note(self, value: Any) -> Any:
        """The loss, checked; the guard records whether it is scaled."""
        if not self.expected:
            return check_loss(value, self.of)
        if isinstance(value, Tensor):
            if value.requires_grad and not is_blind(value):
                value.register_hook(self._note)
            for overflow in self.overflow:
                value = value * torch.where(overflow, math.nan, 1.0).to(value.dtype)
        return value

    def _note(self, grad: Tensor) -> None:
        self.scaled = not bool(grad.abs().max() <= 1)

    def check(self, grad: Tensor) -> None:
        """Raises a ``ValueError`` unless the gradient is finite."""
        scalers_business = self.overflow or (grad.dtype == torch.float16 and self.scaled)
        if grad.numel() and not scalers_business and not math.isfinite(grad.detach().abs().amax().item()):
            remedy = "its formula has none where embeddings coincide or vanish; remove duplicates or add noise"
            raise ValueError(problem(f"the gradient of {self.of}", "finite", "NaN or infinity", remedy))


class _Settled(torch.autograd.Function):
    """Ones instead of a batch that overflowed, and NaN as its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, overflow: Tensor) -> Tensor:
        ctx.overflow = overflow
        return torch.where(overflow, torch.ones_like(x), x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (grad,) = grads
        return torch.where(ctx.overflow, torch.full_like(grad, math.nan), grad), None


class _Guarded(torch.autograd.Function):
    """The identity, whose gradient is checked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, guard: GradientGuard) -> Tensor:
        ctx.guard = guard
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (grad,) = grads
        ctx.guard.check(grad)
        return grad, None


def check_loss(value: Any, of: str) -> Any:
    """Returns a loss, or raises a ``ValueError`` if it is not finite; on CUDA a device-side assertion."""
    if isinstance(value, dict):  # the host's DoNothingReducer returns its losses as they are
        for part in value.values():
            check_loss(part["losses"] if isinstance(part, dict) else part, of)
    if not isinstance(value, Tensor):
        return value
    if is_blind(value):
        assert_blindly(torch.isfinite(value.detach()).all(), f"the value of {of} must be finite")
    elif not (math.isfinite(value.item()) if value.numel() == 1 else torch.isfinite(value.detach()).all()):
        remedy = (
            "its formula has no value here: look for identical or vanishing embeddings, or too large a scale or margin"
        )
        got = value.item() if value.numel() == 1 else f"NaN or infinity among {value.numel()}"
        raise ValueError(problem(f"the value of {of}", "finite", got, remedy))
    return value


def _overflow_is_expected(x: Tensor) -> bool:
    """Whether a loss scaler checks for overflow and skips the step: in float16, and under float16 autocast."""
    kind = x.device.type
    return x.dtype == torch.float16 or (
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    )
