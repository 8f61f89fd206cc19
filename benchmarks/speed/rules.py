"""The cost of each rule of the margin with many classes, compared with the losses that use it.

    python benchmarks/speed/rules.py        # a minute; writes results/rules.json

Four images per class, 128 features, unit vectors scattered around the centre of their class. Every figure is the median
over calls in one process; ratios are within that process. Losses are forward and backward.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from margin import milliseconds
from pytorch_metric_learning import distances, losses
from run import about
from torch import Tensor
from torch.nn.functional import normalize

from adaptive_margin import AdaptiveMargin, ContrastiveVDMLoss

SIZES, FEATURES, EACH = (128, 1024, 4096), 128, 4
RULES = ("remaining", "attainable", "hoeffding", "chernoff")


def batch(rows: int) -> tuple[Tensor, Tensor]:
    """Embeddings and labels."""
    torch.manual_seed(0)
    labels = torch.arange(rows) // EACH
    return normalize(torch.randn(rows, FEATURES) + torch.randn(rows // EACH, FEATURES)[labels], dim=1), labels


def step(loss: Any, x: Tensor, labels: Tensor) -> Callable[[], None]:
    """Forward and backward."""
    leaf = x.clone().requires_grad_()

    def call() -> None:
        leaf.grad = None
        loss(leaf, labels).backward()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu"], default="cpu", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rules.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    squared = distances.LpDistance(power=2)
    stock, tiles = "ContrastiveLoss of the host, squared L2", "ContrastiveVDMLoss, constant margin"
    found = {}
    for rows in SIZES:
        x, labels = batch(rows)
        calls = 50 if rows < 4096 else 7
        times = {rule: milliseconds(partial(AdaptiveMargin(neighbourhood=rule), x, labels), calls) for rule in RULES}
        times[stock] = milliseconds(step(losses.ContrastiveLoss(distance=squared), x, labels), max(3, calls // 5))
        times[tiles] = milliseconds(step(ContrastiveVDMLoss(margin=0.5), x, labels), calls)
        found[rows] = times
        shares = ", ".join(
            f"{rule} {times[rule]:.2f} ms ({100 * times[rule] / times[stock]:.1f}% of the host's loss, "
            f"{100 * times[rule] / times[tiles]:.0f}% of the tiles')"
            for rule in RULES
        )
        print(f"N = {rows}: host {times[stock]:.1f} ms, tiles {times[tiles]:.1f} ms; {shares}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"milliseconds": found, **about(arguments)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
