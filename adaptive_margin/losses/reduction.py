"""Adds up sub-losses that come reduced."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning.reducers import MultipleReducers
from torch import Tensor


def reduced_sum(loss_dict: dict[str, Any], embeddings: Tensor) -> Tensor | None:
    """The sum of sub-losses that are all reduced, in the dtype of the embeddings; None where one is not.

    The host writes each into a vector and sums that: with its backward pass a tenth of the loss of a small batch.
    """
    if any(part["reduction_type"] != "already_reduced" for part in loss_dict.values()):
        return None
    losses = [part["losses"] for part in loss_dict.values()]
    if not all(isinstance(loss, Tensor) and loss.ndim == 0 for loss in losses):
        return None
    total: Tensor = sum(loss.to(embeddings.dtype) for loss in losses)
    return total


class SumOfReduced(MultipleReducers):
    """The host's ``MultipleReducers``, which only add where there is nothing to reduce and no statistics to collect."""

    def forward(self, loss_dict: dict[str, Any], embeddings: Tensor, labels: Tensor) -> Any:
        """The loss."""
        watched = self.collect_stats or any(reducer.collect_stats for reducer in self.reducers.values())
        total = None if watched else reduced_sum(loss_dict, embeddings)
        return super().forward(loss_dict, embeddings, labels) if total is None else total
