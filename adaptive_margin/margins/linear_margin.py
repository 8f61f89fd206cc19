"""A margin that grows with the epoch: the paper compares the adaptive margin with it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional.checks import check_fits, check_number, is_blind
from .base import IndicesTuple, Margin

REMEDY = "the paper uses start=0.1, slope=0.005"


class LinearMargin(Margin):
    r"""A margin that grows linearly with the epoch, :math:`\kappa' = s + \text{epoch} \cdot r`.

    Source: Kim & Song 2021, Table 4, "Ours w/ linear model :math:`\kappa'`": :math:`0.1 + 0.005 \cdot` epoch.

    Args:
        start: :math:`s`, the margin before the first epoch has ended, in the unit of the loss that uses it.
        slope: :math:`r`, added by every :meth:`step_epoch`.

    Raises:
        TypeError: ``start`` or ``slope`` is no number.
        ValueError: ``start`` or ``slope`` is not finite; or, in a call, the margin is not in the embeddings' dtype.

    The epoch is a buffer: it is in ``state_dict`` and survives a checkpoint.

    Example:
        >>> margin = LinearMargin(start=0.1, slope=5e-3)
        >>> for _ in range(20):
        ...     margin.step_epoch()
        >>> margin(torch.randn(4, 8))
        tensor(0.2000)
    """

    needs_batch = False
    epoch: Tensor

    def __init__(self, start: float = 0.1, slope: float = 5e-3, collect_stats: bool | None = None) -> None:
        super().__init__(collect_stats=collect_stats)
        self.start = check_number("start", start, "a number", REMEDY)
        self.slope = check_number("slope", slope, "a number", REMEDY)
        for argument, number in (("start", self.start), ("slope", self.slope)):
            check_fits(argument, number, torch.float64, REMEDY)
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self.add_to_recordable_attributes(list_of_names=["start", "slope", "value"], is_stat=False)

    @property
    def value(self) -> float:  # type: ignore[override]
        """The margin of the present epoch."""
        return self.start + int(self.epoch) * self.slope

    def step_epoch(self) -> None:
        """Call this at the end of each pass over the training data."""
        self.epoch += 1

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The margin of the current epoch, as a 0-dim tensor of the embeddings' dtype and device."""
        value = self.start + self.epoch.double() * self.slope  # not self.value, which waits for the device
        if not is_blind(value):
            check_fits("start + epoch * slope", value.item(), embeddings.dtype, REMEDY)
        return value.to(embeddings.device, embeddings.dtype)

    def extra_repr(self) -> str:
        """The parameters, for ``print(loss)``."""
        return f"start={self.start}, slope={self.slope}"
