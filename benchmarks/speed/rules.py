"""The cost of each rule of the margin with many classes, compared with the losses that use it.

    python benchmarks/speed/rules.py            # a minute; writes results/rules.json
    python benchmarks/speed/rules.py --print    # its table, in Markdown

Four images per class, 128 features, unit vectors scattered around the centre of their class. Every figure is the median
over calls in one process; ratios are within that process. Losses are forward and backward.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import ends_in_order

sys.path.insert(0, str(Path(__file__).parents[1]))  # for modules in the folder above
from script import Parser, print_results, read_results, write_results


def parsed() -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__, Path(__file__).parent / "results" / "rules.json")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import torch
from margin import milliseconds
from pytorch_metric_learning import distances, losses
from run import about
from torch import Tensor
from torch.nn.functional import normalize

from adaptive_margin import AdaptiveMargin, ContrastiveVDMLoss
from adaptive_margin.training.command_line import check_output, json_with

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


STOCK, TILES = "ContrastiveLoss of the host, squared L2", "ContrastiveVDMLoss, constant margin"


def table(milliseconds: dict[str, dict[str, float]]) -> str:
    """Milliseconds of each rule, and their share of the host's loss."""
    lines = ["| rows | host's loss | tiles | " + " | ".join(RULES) + " |", "|---:" * (3 + len(RULES)) + "|"]
    for rows, times in milliseconds.items():
        cells = [f"{times[rule]:.1f} ({100 * times[rule] / times[STOCK]:.1f} %)" for rule in RULES]
        lines.append(f"| {int(rows):,} | {times[STOCK]:.1f} | {times[TILES]:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@ends_in_order("nothing is written")
@said_plainly()
def main() -> None:
    arguments = parsed()
    if arguments.print:
        print_results(arguments.out, lambda: table(read_results(arguments.out)["milliseconds"]))
        return
    check_output("--out", arguments.out, file=True, replaces=json_with("milliseconds"))
    torch.set_num_threads(arguments.threads)
    squared = distances.LpDistance(power=2)
    found: dict[str, dict[str, float]] = {}
    for rows in SIZES:
        x, labels = batch(rows)
        calls = 50 if rows < 4096 else 7
        times = {rule: milliseconds(partial(AdaptiveMargin(neighbourhood=rule), x, labels), calls) for rule in RULES}
        times[STOCK] = milliseconds(step(losses.ContrastiveLoss(distance=squared), x, labels), max(3, calls // 5))
        times[TILES] = milliseconds(step(ContrastiveVDMLoss(margin=0.5), x, labels), calls)
        found[str(rows)] = times
    print(table(found))
    write_results(arguments.out, {"milliseconds": found, **about(arguments.threads)})


if __name__ == "__main__":
    main()
