"""Small batches: the losses compared with the host's, with and without numpy for the margin.

    python benchmarks/speed/small.py            # six minutes; prints a table
    python benchmarks/speed/small.py --print    # that of results/small.json, which is in docs/memory.md

Losses take turns in one process, so that other work on the machine slows all of them alike. A figure is a loss's time,
forward and backward, relative to that of the host's contrastive loss on squared distances in the same turn.
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
WARM_UP, COUNTED = 5, 5  # calls in a turn: the first are slower, after another loss


def shares(layout: str, rows: int, seconds: float, *, numpy: bool) -> tuple[dict[str, float], float]:
    """Of each loss the median share, over the turns, of the time of the host's loss, and that loss's milliseconds.

    A time is the least of a turn. The host's loss is there twice, and its time is the mean of both; its own share shows
    how well times can be compared.
    """
    x, labels = batch(rows, layout, "cpu")
    built = [*((name, make()) for name, make in CASES.items()), ("again", CASES[STOCK]())]
    found: dict[str, list[float]] = {name: [] for name, _ in built}
    suits = SmallBatch.suits
    SmallBatch.suits = suits if numpy else staticmethod(lambda x: False)
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for name, loss in built:
            turn = []
            for _ in range(WARM_UP + COUNTED):
                start = time.perf_counter()
                step(loss, x, labels)
                turn.append(1e3 * (time.perf_counter() - start))
            found[name].append(min(turn[WARM_UP:]))
    SmallBatch.suits = suits
    stock = [statistics.mean(both) for both in zip(found[STOCK], found["again"], strict=True)]
    of_turns = {name: [a / b for a, b in zip(found[name], stock, strict=True)] for name in CASES}
    return {name: statistics.median(each) for name, each in of_turns.items()}, statistics.median(stock)


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
    found: dict[str, dict[str, Any]] = {}
    for rows, layout in itertools.product(arguments.rows, LAYOUTS):
        cell = found[f"{rows}, {layout}"] = {name: {} for name in CASES}
        for way in ("numpy", "torch"):
            of_losses, stock = shares(layout, rows, arguments.seconds / 2, numpy=way == "numpy")
            for name, share in of_losses.items():
                cell[name][way] = share
            cell.setdefault("milliseconds of the host's", {})[way] = stock
    print(table(found))
    content = {"shares": found, "rows": arguments.rows, **about(arguments.threads)}
    write_results(arguments.out, content)


if __name__ == "__main__":
    main()
