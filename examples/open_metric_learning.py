"""The margin for users of open-metric-learning (OML): its triplet criterion with the margin of each batch.

OML's ``TripletLossWithMiner(margin=…, miner=…)`` is called with features and labels, mines triplets, and passes anchor,
positive and negative to its ``tri_loss``, a ``TripletLoss`` with a ``margin``. :class:`WithAdaptiveMargin` is called in
the same way and sets that margin for the duration of the call.

    criterion = WithAdaptiveMargin(oml.losses.TripletLossWithMiner(margin=0.2, miner=AllTripletsMiner()))
    loss = criterion(features, labels)

The two classes with that interface are written out below, so that you need not install OML; if you have OML, leave them
out. (OML's documentation also uses losses of pytorch-metric-learning: ``AdaptiveMarginLoss`` works with those
directly.)

    python examples/open_metric_learning.py      # under a minute on a CPU, no download
"""

from __future__ import annotations

import argparse
import time
from typing import Any

if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="training steps of each margin")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--classes", type=int, default=64, help="half of them are for training; at least 32")
    options = parser.parse_args()
    for name, least, most in (("steps", 1, 10**6), ("seeds", 1, 10**4), ("classes", 32, 2048)):
        if not least <= getattr(options, name) <= most:
            parser.error(f"--{name} must be from {least} to {most}, got {getattr(options, name)}")

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pairwise_distance

from adaptive_margin import AdaptiveMargin, Margin


class WithAdaptiveMargin(nn.Module):
    """A triplet criterion with OML's interface and the margin of the batch.

    Args:
        criterion: called with features and labels; the batch decides its ``tri_loss.margin``. It remains the caller's
            object, and its margin is restored after each call.
        margin: by default :class:`AdaptiveMargin`. It is a squared distance of unit vectors, and OML's triplet loss has
            a gap between distances: a quarter, as for all triplets of a batch (``docs/units.md``). Features should be
            normalised, as OML's extractors do on request. A margin in the loss's own unit (``ConstantMargin``,
            ``LinearMargin``) is taken as OML takes its number.

    Raises:
        ValueError: OML's soft triplet loss (``margin=None``), which has no margin that could be exchanged.
    """

    def __init__(self, criterion: Any, margin: Margin | None = None) -> None:
        super().__init__()
        if criterion.tri_loss.margin is None:
            raise ValueError(
                "criterion.tri_loss.margin must be a number, got None; the soft triplet loss has no margin"
            )
        self.criterion = criterion
        self.margin = AdaptiveMargin() if margin is None else margin
        self.current = 0.0

    def forward(self, features: Tensor, labels: Tensor | list[int]) -> Tensor:
        """The criterion's loss at the margin of this batch."""
        labels = torch.as_tensor(labels, device=features.device)

        # The whole recipe.
        own = self.criterion.tri_loss.margin
        alpha = float(self.margin(features, labels))
        self.criterion.tri_loss.margin = self.current = alpha if self.margin.unit == "own" else alpha / 4
        try:
            return self.criterion(features, labels)
        finally:
            self.criterion.tri_loss.margin = own


class TripletLoss(nn.Module):
    """Stands in for OML's: ``relu(margin + d(anchor, positive) - d(anchor, negative))``."""

    def __init__(self, margin: float, reduction: str = "mean") -> None:
        super().__init__()
        self.margin = margin
        self.reduction = reduction

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Three matrices of one shape."""
        gap = pairwise_distance(anchor, positive) - pairwise_distance(anchor, negative)
        losses = torch.relu(self.margin + gap)
        return losses.mean() if self.reduction == "mean" else losses


class TripletLossWithMiner(nn.Module):
    """Stands in for OML's with ``AllTripletsMiner``: the mean over all triplets of a batch."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.tri_loss = TripletLoss(margin, reduction="none")

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Features of shape (B, D) and their labels."""
        same = labels[:, None] == labels
        others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        a, p, n = torch.where(others[:, :, None] & ~same[:, None, :])
        loss: Tensor = self.tri_loss(anchor=features[a], positive=features[p], negative=features[n])
        return loss.mean()


def folded_classes(classes: int, each: int, seed: int) -> tuple[Tensor, Tensor]:
    """Samples of shape (classes · each, 64) and their classes; what makes no difference varies more than what does."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(each)
    matters = torch.randn(classes, 6, generator=generator)[labels]
    matters = matters + 0.3 * torch.randn(len(labels), 6, generator=generator)
    nuisance = 2 * torch.randn(len(labels), 6, generator=generator)
    fold = torch.randn(12, 64, generator=torch.Generator().manual_seed(0)) / 4  # the same for all seeds
    return torch.tanh(torch.cat([matters, nuisance], dim=1) @ fold), labels


class Extractor(nn.Module):
    """Features of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 16))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, 64) to (B, 16)."""
        return normalize(self.layers(x))


def cmc_at_1(features: Tensor, labels: Tensor) -> float:
    """How often the nearest other sample is of the same class: OML's CMC@1."""
    distances = torch.cdist(features, features).fill_diagonal_(torch.inf)
    return (labels[distances.argmin(1)] == labels).double().mean().item()


def main(steps: int = 200, seeds: int = 3, classes: int = 64) -> dict[str, list[float]]:
    """Prints, and returns, CMC@1 on unseen classes, one figure a seed, for constant margins and the adaptive one."""
    start = time.perf_counter()
    results: dict[str, list[float]] = {}
    for seed in range(seeds):
        x, labels = folded_classes(classes, 16, seed)
        seen = labels < classes // 2
        for name, criterion in {
            "margin 0.1": TripletLossWithMiner(margin=0.1),
            "margin 0.2": TripletLossWithMiner(margin=0.2),
            "margin 0.5": TripletLossWithMiner(margin=0.5),
            "adaptive": WithAdaptiveMargin(TripletLossWithMiner(margin=0.2)),
        }.items():
            torch.manual_seed(seed)
            extractor = Extractor()
            results.setdefault("no training", []).append(cmc_at_1(extractor(x[~seen]), labels[~seen]))
            optimizer = torch.optim.Adam(extractor.parameters(), lr=1e-3)
            margins = []
            for _ in range(steps):
                chosen = torch.randperm(classes // 2)[:12]  # as OML's balanced sampler: labels times instances
                batch = (chosen[:, None] * 16 + torch.rand(12, 16).argsort(1)[:, :4]).flatten()
                loss = criterion(extractor(x[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                margins.append(getattr(criterion, "current", 0.0))
            with torch.no_grad():
                results.setdefault(name, []).append(cmc_at_1(extractor(x[~seen]), labels[~seen]))
            if margins[-1]:
                print(
                    f"seed {seed}: margin {margins[0]:.3f} at the first step, {margins[-1]:.3f} at the last", flush=True
                )
    results["no training"] = results["no training"][:: len(results) - 1]
    print(f"\nCMC@1 on {classes - classes // 2} unseen classes, mean ± sd of {seeds} seeds")
    for name, figures in results.items():
        column = torch.tensor(figures, dtype=torch.float64)
        print(f"{name:<14}{column.mean():.3f} ± {column.std(correction=min(1, seeds - 1)):.3f}")
    print(f"{time.perf_counter() - start:.0f} s")
    return results


if __name__ == "__main__":
    main(**vars(options))
