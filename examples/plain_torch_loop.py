"""The margin in a plain PyTorch loop, without any library's loss, miner or trainer: one line for the margin.

``AdaptiveMargin`` takes a batch of embeddings and labels and returns the squared distance that should currently
separate its classes. The loop decides how to use this number: here it is the margin of PyTorch's
``TripletMarginWithDistanceLoss``, whose distance is also squared.

The data are generated: classes are points of a small space that is folded into a large one. Half of the classes are for
training; the nearest neighbours are searched among the other half, which is never seen in training.

    python examples/plain_torch_loop.py      # under a minute on a CPU, no download
"""

from __future__ import annotations

import argparse
import time

if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="training steps of each margin")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--classes", type=int, default=64, help="half of them are for training; at least 32")
    options = parser.parse_args()
    for name, least, most in (("steps", 1, 10**6), ("seeds", 1, 10**4), ("classes", 32, 2048)):
        if not least <= getattr(options, name) <= most:
            parser.error(f"--{name} must be from {least} to {most}, got {getattr(options, name)}")

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from adaptive_margin import AdaptiveMargin


def folded_classes(classes: int, each: int, seed: int) -> tuple[Tensor, Tensor]:
    """Samples of shape (classes · each, 64) and their classes; irrelevant factors vary more than relevant ones."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(each)
    matters = torch.randn(classes, 6, generator=generator)[labels]
    matters = matters + 0.3 * torch.randn(len(labels), 6, generator=generator)
    nuisance = 2 * torch.randn(len(labels), 6, generator=generator)
    fold = torch.randn(12, 64, generator=torch.Generator().manual_seed(0)) / 4  # the same for all seeds
    return torch.tanh(torch.cat([matters, nuisance], dim=1) @ fold), labels


def triplets(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One positive and one negative, drawn for each anchor."""
    same = labels[:, None] == labels
    positives = (same & ~torch.eye(len(labels), dtype=torch.bool)).double().multinomial(1)[:, 0]
    return torch.arange(len(labels)), positives, (~same).double().multinomial(1)[:, 0]


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """Row by row."""
    return (x - y).square().sum(1)


def recall_at_1(embeddings: Tensor, labels: Tensor) -> float:
    """How often the nearest other sample is of the same class."""
    distances = torch.cdist(embeddings, embeddings).fill_diagonal_(torch.inf)
    return (labels[distances.argmin(1)] == labels).double().mean().item()


def train(x: Tensor, labels: Tensor, margin: float | AdaptiveMargin, steps: int, seed: int) -> tuple[nn.Module, Tensor]:
    """The network, and the margin of each step."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 16))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    margins = torch.zeros(steps)
    for step in range(steps):
        # 8 samples of each of 16 classes
        classes = torch.randperm(int(labels.max()) + 1)[:16]
        rows = torch.cat([(labels == c).nonzero()[:, 0][torch.randperm(int((labels == c).sum()))[:8]] for c in classes])
        embeddings = normalize(net(x[rows]))

        # The whole recipe: the margin of this batch, a 0-dim tensor without a gradient.
        alpha = margin(embeddings, labels[rows]) if isinstance(margin, AdaptiveMargin) else torch.tensor(margin)

        a, p, n = triplets(labels[rows])
        gap = squared_distance(embeddings[a], embeddings[p]) - squared_distance(embeddings[a], embeddings[n])
        loss = torch.relu(gap + alpha).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        margins[step] = alpha
    return net.eval(), margins


def main(steps: int = 300, seeds: int = 3, classes: int = 64) -> dict[str, list[float]]:
    """Prints, and returns, Recall@1 on unseen classes, one figure a seed, for constant margins and the adaptive one."""
    start = time.perf_counter()
    results: dict[str, list[float]] = {}
    for seed in range(seeds):
        x, labels = folded_classes(classes, 16, seed)
        seen = labels < classes // 2
        unseen, unseen_labels = x[~seen], labels[~seen]
        results.setdefault("no training", []).append(recall_at_1(unseen, unseen_labels))
        for name, margin in {
            "margin 0.1": 0.1,
            "margin 0.4": 0.4,
            "margin 1.6": 1.6,
            "adaptive": AdaptiveMargin(collect_stats=True),
        }.items():
            net, margins = train(x[seen], labels[seen], margin, steps, seed)
            with torch.no_grad():
                figure = recall_at_1(normalize(net(unseen)), unseen_labels)
            results.setdefault(name, []).append(figure)
            if isinstance(margin, AdaptiveMargin):
                print(
                    f"seed {seed}: α̂ {margins[0]:.3f} at the first step, {margins[-1]:.3f} at the last "
                    f"(there MI {margin.mi:.3f} + Δ {margin.delta:.3f})",
                    flush=True,
                )
    print(f"\nRecall@1 on {classes - classes // 2} unseen classes, mean ± sd of {seeds} seeds")
    for name, figures in results.items():
        column = torch.tensor(figures, dtype=torch.float64)
        print(f"{name:<14}{column.mean():.3f} ± {column.std(correction=min(1, seeds - 1)):.3f}")
    print(f"{time.perf_counter() - start:.0f} s")
    return results


if __name__ == "__main__":
    main(**vars(options))
