"""Makes the host's wrappers, which admit losses by class name, admit this library's."""

from __future__ import annotations

from pytorch_metric_learning.losses import CrossBatchMemory, SelfSupervisedLoss


def admit(name: str) -> None:
    """Adds a class name to the losses that ``CrossBatchMemory`` and ``SelfSupervisedLoss`` accept."""
    for wrapper in (CrossBatchMemory, SelfSupervisedLoss):
        stock = wrapper.supported_losses()
        if name not in stock:
            wrapper.supported_losses = staticmethod(lambda names=(*stock, name): list(names))
