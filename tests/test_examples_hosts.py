"""The examples of hosts other than pytorch-metric-learning run, and do what they show."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, pairwise_distance

from adaptive_margin import AdaptiveMargin

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.mark.parametrize(
    ("name", "settings", "variants", "says"),
    [
        (
            "plain_torch_loop",
            {"steps": 30, "seeds": 1},
            ["margin 0.1", "margin 0.4", "margin 1.6", "adaptive"],
            "Recall@1 on 32 unseen classes, mean ± sd of 1 seeds",
        ),
        (
            "embedding_triplets",
            {"steps": 60, "seeds": 1},
            ["margin 0.05", "margin 0.2", "margin 0.8", "adaptive", "one a triplet", "adaptive, released rule"],
            "Accuracy on new triplets, mean ± sd of 1 seeds",
        ),
        (
            "open_metric_learning",
            {"steps": 20, "seeds": 1},
            ["margin 0.1", "margin 0.2", "margin 0.5", "adaptive"],
            "CMC@1 on 32 unseen classes, mean ± sd of 1 seeds",
        ),
    ],
)
def test_an_example_trains_and_prints_what_it_measured(
    name: str, settings: dict[str, int], variants: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = load(name)["main"](**settings)
    assert list(results) == ["no training", *variants]
    printed = capsys.readouterr().out
    assert says in printed
    (untrained,) = results["no training"]
    for variant in variants:
        (figure,) = results[variant]
        assert figure > untrained + 0.03, f"{variant} did not learn"
        assert f"{figure:.3f} ± 0.000" in printed
    told = [line for line in printed.splitlines() if "at the first step" in line][-1]  # of the adaptive margin
    first, last = re.search(r"(\d\.\d+) at the first step, (\d\.\d+) at the last", told).groups()  # type: ignore[union-attr]
    assert first != last, "the margin did not move"


def test_the_sentence_loss_is_a_triplet_loss_with_the_margin_of_the_batch() -> None:
    example = load("embedding_triplets")

    class Model(torch.nn.Module):
        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"sentence_embedding": features["x"]}

    a, p, n = torch.randn(3, 16, 8, requires_grad=True)
    features = [{"x": x} for x in (a, p, n)]
    unit = [normalize(x) for x in (a, p, n)]
    gap = torch.linalg.norm(unit[0] - unit[1], dim=1) - torch.linalg.norm(unit[0] - unit[2], dim=1)
    loss = example["AdaptiveTripletLoss"](Model(), 0.3)
    losses = torch.relu(gap + 0.3)
    torch.testing.assert_close(loss(features, torch.zeros(16)), losses[losses > 0].mean())
    rows = torch.arange(16)
    groups = torch.cat([rows, rows, 100 + rows])  # anchor and positive belong together
    alpha = AdaptiveMargin()(torch.cat(unit), groups, (rows, rows + 16, rows + 32))
    losses = torch.relu(gap + alpha / 4)
    value = example["AdaptiveTripletLoss"](Model())(features)
    torch.testing.assert_close(value, losses[losses > 0].mean())
    value.backward()


def test_the_oml_criterion_has_the_margin_of_the_batch_and_then_its_own() -> None:
    example = load("open_metric_learning")
    features, labels = normalize(torch.randn(24, 8)), torch.arange(24) % 4
    criterion = example["TripletLossWithMiner"](margin=0.2)
    same = labels[:, None] == labels
    gaps = [
        pairwise_distance(features[a : a + 1], features[p : p + 1])
        - pairwise_distance(features[a : a + 1], features[n : n + 1])
        for a in range(24)
        for p in range(24)
        for n in range(24)
        if a != p and same[a, p] and not same[a, n]
    ]
    root = AdaptiveMargin()(features, labels).sqrt()
    adaptive = example["WithAdaptiveMargin"](criterion)
    expected = torch.relu(torch.cat(gaps) + root).mean()
    for given in (labels, labels.tolist()):  # OML takes either
        torch.testing.assert_close(adaptive(features, given), expected)
    torch.testing.assert_close(criterion(features, labels), torch.relu(torch.cat(gaps) + 0.2).mean())

    class Failing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tri_loss = example["TripletLoss"](0.2)

        def forward(self, features: Tensor, labels: Tensor) -> Tensor:
            assert self.tri_loss.margin == pytest.approx(root.item())
            raise KeyboardInterrupt

    failing = Failing()
    with pytest.raises(KeyboardInterrupt):
        example["WithAdaptiveMargin"](failing)(features, labels)
    assert failing.tri_loss.margin == 0.2
