"""Makes the host's wrappers accept this library's losses if they accept the wrapped loss."""

from __future__ import annotations

from functools import wraps
from typing import Any

from pytorch_metric_learning.losses.base_loss_wrapper import BaseLossWrapper


def look_inside() -> None:
    """``CrossBatchMemory`` and ``SelfSupervisedLoss`` check a loss's class name; for a wrapper they get that of its
    host.

    For the host's own losses, and in the host's lists of names, nothing changes.
    """
    construct = BaseLossWrapper.__init__

    @wraps(construct)
    def __init__(self: Any, loss: Any, **kwargs: Any) -> None:
        construct(self, loss=getattr(loss, "_admitted_as", loss), **kwargs)

    BaseLossWrapper.__init__ = __init__
