"""Which of this library's losses the host's wrappers admit: those whose wrapped loss they admit."""

from __future__ import annotations

from functools import wraps
from typing import Any

from pytorch_metric_learning.losses.base_loss_wrapper import BaseLossWrapper


def look_inside() -> None:
    """``CrossBatchMemory`` and ``SelfSupervisedLoss`` ask for a loss's class name; a guest's is its host's.

    For the host's own losses, and in the host's lists of names, nothing changes.
    """
    construct = BaseLossWrapper.__init__

    @wraps(construct)
    def __init__(self: Any, loss: Any, **kwargs: Any) -> None:
        construct(self, loss=getattr(loss, "_admitted_as", loss), **kwargs)

    BaseLossWrapper.__init__ = __init__
