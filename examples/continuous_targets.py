"""A continuous target drives stock pytorch-metric-learning losses.

Those losses take class labels, which a regression target does not have. ``OtsuGrouper`` splits the target where its two
halves differ most, and the groups serve as labels. The data are generated recordings of a machine. The task is to
estimate its wear, from 0 to 1, at any speed and load. Speed and load shape the recording more than wear does, so the
nearest recordings are those of the same speed and load, until an embedding is trained on the groups.

    python examples/continuous_targets.py      # under a minute on a CPU, no download
"""

from __future__ import annotations

import argparse
import time

if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000, help="recordings to train on")
    parser.add_argument("--steps", type=int, default=400, help="training steps of each loss")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for name, least, most in (("samples", 40, 20_000), ("steps", 1, 10**6), ("seeds", 1, 10**4)):
        if not least <= getattr(options, name) <= most:
            parser.error(f"--{name} must be from {least} to {most}, got {getattr(options, name)}")

import torch
from pytorch_metric_learning import losses
from scipy.stats import spearmanr
from torch import Tensor, nn

from adaptive_margin import OtsuGrouper


def recordings(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Recordings of 64 time steps, shape (samples, 64), and the wear of each, shape (samples,)."""
    generator = torch.Generator().manual_seed(seed)
    wear, speed, load, phase = torch.rand(4, samples, 1, generator=generator)
    wear = wear**2  # most machines are in good order
    angle = torch.linspace(0, 1, 64) * (3 + 2 * speed) * 2 * torch.pi + torch.pi * phase
    hum = (0.5 + 2 * load) * angle.sin()
    rattle = 0.6 * wear * (5 * angle).sin() * (angle.sin() > 0)  # only while the tool is in contact
    noise = 0.1 * torch.randn(samples, 64, generator=generator)
    return hum + rattle + noise, wear[:, 0]


def train(x: Tensor, groups: Tensor, loss: nn.Module, steps: int, seed: int) -> nn.Module:
    """An embedding of the recordings, trained on groups as if they were classes."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 16))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        loss(net(x[batch]), groups[batch]).backward()
        optimizer.step()
    return net.eval()


def measure(train_set: tuple[Tensor, Tensor, Tensor], test_set: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """Of (embedding, wear, group) triples: how often the nearest neighbour has the same group, and the rank correlation
    of the wear with the mean wear of the ten nearest.
    """
    (known, known_wear, known_group), (query, wear, group) = train_set, test_set
    nearest = (
        torch.cdist(nn.functional.normalize(query), nn.functional.normalize(known)).topk(10, largest=False).indices
    )
    recall = (known_group[nearest[:, 0]] == group).double().mean().item()
    return recall, float(spearmanr(known_wear[nearest].mean(dim=1), wear).statistic)


def main(samples: int = 4000, steps: int = 400, seeds: int = 3) -> dict[str, list[tuple[float, float]]]:
    """Prints, and returns, what each loss reached on recordings it was not trained on, one pair of figures per seed."""
    start = time.perf_counter()
    results: dict[str, list[tuple[float, float]]] = {}
    for seed in range(seeds):
        x, wear = recordings(samples, seed)
        x_test, wear_test = recordings(samples // 2, 1000 + seed)

        # The whole recipe. Fitted, not batch by batch: a recording's group must not depend on its neighbours in the
        # batch.
        grouper = OtsuGrouper().fit(wear)
        groups, groups_test = grouper(wear), grouper(wear_test)

        if seed == 0:
            strong = groups.double().mean().item()
            print(f"{samples} recordings, threshold of wear {grouper.radius:.3f}, {strong:.0%} above it")
        compared = {
            "no training": None,
            "ContrastiveLoss": losses.ContrastiveLoss(),
            "TripletMarginLoss": losses.TripletMarginLoss(),
            "MultiSimilarityLoss": losses.MultiSimilarityLoss(),
        }
        for name, loss in compared.items():
            net = nn.Identity() if loss is None else train(x, groups, loss, steps, seed)
            with torch.no_grad():
                figures = measure((net(x), wear, groups), (net(x_test), wear_test, groups_test))
            results.setdefault(name, []).append(figures)
            print(f"  seed {seed}  {name:<20} recall@1 {figures[0]:.3f}  rank correlation {figures[1]:.3f}", flush=True)

    print(
        f"\n{'mean ± sd of ' + str(seeds) + ' seeds':<22}{'recall@1 of the group':>24}{'rank correlation of wear':>28}"
    )
    for name, figures_of_seeds in results.items():
        columns = torch.tensor(figures_of_seeds, dtype=torch.float64).T
        cells = [f"{c.mean():.3f} ± {c.std(correction=min(1, seeds - 1)):.3f}" for c in columns]
        print(f"{name:<22}{cells[0]:>24}{cells[1]:>28}")
    print(f"{time.perf_counter() - start:.0f} s")
    return results


if __name__ == "__main__":
    main(**vars(options))
