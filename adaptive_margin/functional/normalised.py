"""Rows of length 1, for losses whose gradient is needed only once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import is_blind, is_many
from .once_only import once_only

SHORTEST = 1e-12
"""What shorter rows are divided by, as in :func:`torch.nn.functional.normalize`."""


def normalised(x: Tensor) -> Tensor:
    """:func:`torch.nn.functional.normalize` of rows, quicker on a CPU.

    There is no second derivative; requesting one raises an error.

    Example:
        >>> normalised(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    if is_blind(x):
        return torch.nn.functional.normalize(x, dim=1, eps=SHORTEST)
    unit: Tensor = _Normalised.apply(x)
    return unit


class _Normalised(torch.autograd.Function):
    """In numpy, which starts an operation in less time than torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows = x.numpy(force=True)
        with np.errstate(all="ignore"):  # as torch has it
            norms = np.sqrt(np.add.reduce(rows * rows, axis=1, keepdims=True))
        ctx.divisor = np.maximum(norms, rows.dtype.type(SHORTEST))
        ctx.turns = norms >= SHORTEST
        unit = torch.from_numpy(rows / ctx.divisor)
        ctx.save_for_backward(unit)
        return unit

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (unit,) = ctx.saved_tensors
        if is_many(grad):
            turns, divisor = torch.from_numpy(ctx.turns), torch.from_numpy(ctx.divisor)
            return once_only((grad - unit * ((grad * unit).sum(1, keepdim=True) * turns)) / divisor)
        unit, given = unit.numpy(force=True), grad.numpy(force=True)
        with np.errstate(all="ignore"):
            along = np.add.reduce(given * unit, axis=1, keepdims=True)
            return once_only(torch.from_numpy((given - unit * (along * ctx.turns)) / ctx.divisor))
