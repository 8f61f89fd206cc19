"""Remedies of the losses for text models."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import losses
from torch import Tensor, nn

from adaptive_margin import AdaptiveMarginLoss, ContrastiveVDMLoss
from adaptive_margin.integrations.sentence_transformers import AdaptiveLabelLoss, AdaptivePairLoss, AdaptiveTripletLoss

from .following import follow

X = torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4


class _Known(nn.Module):
    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["x"]}


def ok(build: Any, columns: int, labels: Tensor | None = None, *arguments: Any, **options: Any) -> bool:
    """Whether a loss of this many columns is finite and has a gradient."""
    features = [{"x": x.clone().requires_grad_()} for x in X[:columns]]
    loss = build(_Known(), *arguments, **options)
    value = loss(features, labels)
    value.backward()
    return bool(value.isfinite() and all(each["x"].grad.isfinite().all() for each in features))  # type: ignore[union-attr]


CASES = [
    follow(
        "pass margin to that loss instead",
        lambda: ok(AdaptivePairLoss, 2, None, ContrastiveVDMLoss(), 0.5),
        lambda: ok(AdaptivePairLoss, 2, None, ContrastiveVDMLoss(0.5)),
    ),
    follow(
        "pass units to that loss instead",
        lambda: ok(AdaptivePairLoss, 2, None, AdaptiveMarginLoss(losses.ContrastiveLoss()), units="offset"),
        lambda: ok(AdaptivePairLoss, 2, None, AdaptiveMarginLoss(losses.ContrastiveLoss(), units="offset")),
    ),
    follow(
        "class weights and proxies need the same classes in every batch: use AdaptiveLabelLoss",
        lambda: ok(AdaptivePairLoss, 2, None, losses.CosFaceLoss(4, 8)),
        lambda: ok(AdaptiveLabelLoss, 1, Y, losses.CosFaceLoss(4, 8)),
    ),
    follow(
        "texts of one column and a label go with AdaptiveLabelLoss, pairs with AdaptivePairLoss",
        lambda: ok(AdaptiveTripletLoss, 1, Y),
        lambda: ok(AdaptiveLabelLoss, 1, Y),
        lambda: ok(AdaptivePairLoss, 2),
    ),
    follow(
        "remove the label column, or keep only the rows that are positive pairs",
        lambda: ok(AdaptivePairLoss, 2, Y),
        lambda: ok(AdaptivePairLoss, 2),
        lambda: ok(AdaptivePairLoss, 2, torch.ones(12)),
    ),
    follow(
        "pairs go with AdaptivePairLoss, triplets with AdaptiveTripletLoss",
        lambda: ok(AdaptiveLabelLoss, 2, Y),
        lambda: ok(AdaptivePairLoss, 2),
        lambda: ok(AdaptiveTripletLoss, 3),
    ),
    follow(
        "add a column 'label' of whole numbers to the data set, or use AdaptivePairLoss for pairs of texts",
        lambda: ok(AdaptiveLabelLoss, 1),
        lambda: ok(AdaptiveLabelLoss, 1, Y),
        lambda: ok(AdaptivePairLoss, 2),
    ),
]
