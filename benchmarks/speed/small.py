"""Small batches: the losses compared with the host's, with and without numpy for the margin.

    python benchmarks/speed/small.py            # six minutes; prints a table
    python benchmarks/speed/small.py --print    # that of results/small.json, which is in docs/memory.md

Losses take turns in one process, so that other work on the machine slows all of them alike; a figure is the tenth
percentile of a loss's times, forward and backward, relative to that of the host's contrastive loss on squared
distances.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import ends_in_order

sys.path.insert(0, str(Path(__file__).parents[1]))  # for modules in the folder above
from script import Parser, print_results, read_results, write_results


def parsed() -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__, Path(__file__).parent / "results" / "small.json")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rows", type=int, nargs="+", default=[128, 512, 640])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each layout and number of rows")
    return parser.parse_args()


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import torch
from pytorch_metric_learning import losses
from run import LAYOUTS, MARGIN, about, batch, squared_l2, step

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, ContrastiveVDMLoss
from adaptive_margin.functional.small_batch import SmallBatch
from adaptive_margin.training.command_line import check_output, json_with

CASES = {
    "PML Contrastive, squared L2": lambda: losses.ContrastiveLoss(neg_margin=MARGIN, distance=squared_l2()),
    "PML Contrastive": losses.ContrastiveLoss,
    "ContrastiveVDMLoss, constant": lambda: ContrastiveVDMLoss(margin=MARGIN),
    "ContrastiveVDMLoss": ContrastiveVDMLoss,
    "ContrastiveVDMLoss, Chernoff": lambda: ContrastiveVDMLoss(AdaptiveMargin(neighbourhood="chernoff")),
    "ContrastiveVDMLoss, attainable": lambda: ContrastiveVDMLoss(AdaptiveMargin(neighbourhood="attainable")),
    "AdaptiveMarginLoss(Contrastive)": lambda: AdaptiveMarginLoss(losses.ContrastiveLoss()),
    "AdaptiveMarginLoss(Contrastive, squared L2)": lambda: AdaptiveMarginLoss(
        losses.ContrastiveLoss(distance=squared_l2())
    ),
}
STOCK = next(iter(CASES))
WARM_UP = 5  # calls of each turn that are not counted: the first are slower, after another loss


def times(layout: str, rows: int, seconds: float) -> dict[tuple[str, bool], float]:
    """Tenth percentile of each loss in milliseconds, with and without numpy for small batches."""
    x, labels = batch(rows, layout, "cpu")
    suits = SmallBatch.suits
    built = {name: make() for name, make in CASES.items()}
    found: dict[tuple[str, bool], list[float]] = {(name, numpy): [] for name in CASES for numpy in (True, False)}
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for (name, numpy), each in found.items():
            SmallBatch.suits = suits if numpy else staticmethod(lambda x: False)
            for number in range(10):
                start = time.perf_counter()
                step(built[name], x, labels)
                if number >= WARM_UP:
                    each.append(1e3 * (time.perf_counter() - start))
    SmallBatch.suits = suits
    return {key: statistics.quantiles(each[3:], n=10)[0] for key, each in found.items()}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Shares of the time of the host's loss on squared distances, with numpy and, in parentheses, without."""
    lines = ["| | " + " | ".join(found) + " |", "|---" + "|---:" * len(found) + "|"]
    for name in CASES:
        cells = [f"{each[name]['numpy']:.2f} ({each[name]['torch']:.2f})" for each in found.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@ends_in_order("nothing is written")
@said_plainly()
def main() -> None:
    arguments = parsed()
    if arguments.print:
        print_results(arguments.out, lambda: table(read_results(arguments.out)["shares"]))
        return
    check_output("--out", arguments.out, file=True, replaces=json_with("shares"))
    torch.set_num_threads(arguments.threads)
    shares: dict[str, dict[str, Any]] = {}
    for rows, layout in itertools.product(arguments.rows, LAYOUTS):
        found = times(layout, rows, arguments.seconds)
        stock = statistics.mean(found[STOCK, numpy] for numpy in (True, False))  # the same loss either way
        shares[f"{rows}, {layout}"] = {
            name: {way: found[name, way == "numpy"] / stock for way in ("numpy", "torch")} for name in CASES
        }
        shares[f"{rows}, {layout}"]["milliseconds of the host's"] = stock
    print(table(shares))
    content = {"shares": shares, "rows": arguments.rows, **about(arguments.threads)}
    write_results(arguments.out, content)


if __name__ == "__main__":
    main()
