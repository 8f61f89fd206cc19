"""The base class of all margins of this library."""

from __future__ import annotations

from typing import Literal

from pytorch_metric_learning.utils.module_with_records import ModuleWithRecords
from torch import Tensor

from .statistics import HasStatistics

IndicesTuple = tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]
Granularity = Literal["batch", "anchor", "pair"]


class Margin(HasStatistics, ModuleWithRecords):
    """A margin: a module that takes a batch and returns how far apart its groups should be.

    Subclasses implement :meth:`forward` with the signature below. ``unit`` is the meaning of the number: ``"squared
    distance"`` (the adaptive margin, which :class:`~adaptive_margin.AdaptiveMarginLoss` converts to the wrapped loss's
    own unit) or ``"own"`` (a number as the loss's constructor takes it). ``granularity`` determines the shape:
    ``"batch"`` gives a 0-dim tensor, ``"anchor"`` one value per row, ``"pair"`` one value per (anchor, negative) pair.
    """

    unit: Literal["squared distance", "own"] = "own"
    granularity: Granularity = "batch"
    needs_batch: bool = True
    """Whether the margin depends on the batch; if not, ``value`` has it without one."""
    value: float
    detach: bool = False
    """Whether the margin has no gradient for the embeddings."""
    may_lead: bool = False
    """Whether there are labels for which :meth:`leads` says yes."""

    def leads(self, labels: Tensor, ref_labels: Tensor | None = None) -> bool | Tensor:
        """Whether the margin of a batch with these labels is large from the start; see ``units`` of
        :class:`~adaptive_margin.AdaptiveMarginLoss`. A 0-dim bool tensor if a Python bool would need a device
        synchronisation.
        """
        return self.may_lead

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The margin of this batch."""
        raise NotImplementedError
