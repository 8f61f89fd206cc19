"""The lifted structure loss pair by pair against the host's matrix of pairs by pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, losses, reducers

from adaptive_margin import AdaptiveMarginLoss
from adaptive_margin.dml.lifted import PairwiseLiftedStructureLoss

DISTANCES = {
    "l2": distances.LpDistance,
    "squared": lambda: distances.LpDistance(power=2),
    "cosine": distances.CosineSimilarity,
}
BATCHES = {
    "few": torch.arange(24) % 3,
    "many": torch.arange(24) % 12,
    "uneven": torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 4, 4, 4, 4]),
    "one class": torch.zeros(5, dtype=torch.long),
    "no pair": torch.arange(6),
}


def value(loss: Any, embeddings: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a loss, and its gradient."""
    x = embeddings.clone().requires_grad_()
    out = loss(x, *arguments)
    out.sum().backward()
    assert x.grad is not None
    return out.detach(), x.grad


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("options", [{}, {"neg_margin": 0.4, "pos_margin": 0.1}], ids=["default", "margins"])
def test_it_is_the_hosts(distance: str, batch: str, options: dict[str, float]) -> None:
    labels = BATCHES[batch]
    embeddings = torch.randn(len(labels), 6, dtype=torch.float64)
    mine, hosts = (
        kind(**options, distance=DISTANCES[distance](), reducer=reducers.DoNothingReducer())
        for kind in (PairwiseLiftedStructureLoss, losses.LiftedStructureLoss)
    )
    if batch in ("one class", "no pair"):
        assert mine(embeddings, labels)["loss"]["losses"] == hosts(embeddings, labels)["loss"]["losses"] == 0
        return
    got, expected = (loss(embeddings, labels)["loss"]["losses"].squeeze(-1) for loss in (mine, hosts))
    torch.testing.assert_close(got, expected.squeeze(), rtol=1e-12, atol=1e-12)
    for loss in (mine, hosts):
        loss.reducer = loss.get_default_reducer()
    for one, other in zip(value(mine, embeddings, labels), value(hosts, embeddings, labels), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


def test_with_references_and_listed_pairs() -> None:
    x, y = torch.randn(10, 4, dtype=torch.float64), torch.arange(10) % 3
    r, z = torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 3
    pairs = tuple(torch.tensor(part) for part in ([0, 1, 2], [3, 1, 5], [0, 0, 4, 4], [1, 2, 0, 6]))
    for arguments in ((y, None, r, z), (y, pairs, r, z), (y, pairs)):
        got = value(PairwiseLiftedStructureLoss(), x, *arguments)
        for one, other in zip(got, value(losses.LiftedStructureLoss(), x, *arguments), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("margin", [None, 0.3], ids=["adaptive", "constant"])
def test_wrapped_it_is_the_host_wrapped(margin: float | None) -> None:
    x, y = torch.randn(24, 6), torch.arange(24) % 4
    mine, hosts = (
        AdaptiveMarginLoss(kind(), margin) for kind in (PairwiseLiftedStructureLoss, losses.LiftedStructureLoss)
    )
    for one, other in zip(value(mine, x, y), value(hosts, x, y), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_large_distances_stay_finite() -> None:
    x = torch.tensor([[0.0], [1.0], [1e4], [1e4 + 1]])
    loss = PairwiseLiftedStructureLoss(distance=distances.LpDistance(normalize_embeddings=False))
    assert all(part.isfinite().all() for part in value(loss, x, torch.tensor([0, 0, 1, 1])))
