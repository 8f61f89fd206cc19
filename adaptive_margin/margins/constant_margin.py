"""A constant margin: the control in every comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional.checks import check_fits, check_number
from .base import IndicesTuple, Margin

REMEDY = "the paper's best constant is 0.2"


class ConstantMargin(Margin):
    r"""The same margin for every batch, :math:`\kappa`.

    Source: Kim & Song 2021, Table 4, "Ours w/ constant :math:`\kappa`", whose best value was 0.2.

    Args:
        value: the margin, in the unit of the loss that uses it (degrees for ArcFace, for instance): inside
            :class:`~adaptive_margin.AdaptiveMarginLoss` it acts as the same number given to the loss's constructor.

    Raises:
        TypeError: ``value`` is no number.
        ValueError: ``value`` is not finite, or, in a call, not in the dtype of the embeddings: 1e39 is in float64 only.

    Example:
        >>> ConstantMargin(0.2)(torch.randn(4, 8))
        tensor(0.2000)
    """

    needs_batch = False

    def __init__(self, value: float = 0.2, collect_stats: bool | None = None) -> None:
        super().__init__(collect_stats=collect_stats)
        self.value = check_number("value", value, "a number", REMEDY)
        check_fits("value", self.value, torch.float64, REMEDY)
        self.add_to_recordable_attributes(name="value", is_stat=False)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The constant, as a 0-dim tensor of the embeddings' dtype and device."""
        check_fits("margin", self.value, embeddings.dtype, REMEDY)
        return torch.full((), self.value, dtype=embeddings.dtype, device=embeddings.device)

    def extra_repr(self) -> str:
        """The value, for ``print(loss)``."""
        return f"value={self.value}"
