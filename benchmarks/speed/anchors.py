"""The effect of sampling anchors: the confidence term from some rows compared with that from all rows.

    python benchmarks/speed/anchors.py         # a minute; prints a table, in Markdown
    python benchmarks/speed/anchors.py --print # that of results/anchors.json, which is in docs/memory.md

Two groups and four images per class, unit vectors around the centre of their class, at three distances between classes:
the largest error over those and over five seeds, beside the largest standard error by the rule's documentation.
"""

from __future__ import annotations

import argparse
import math
import os
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
    parser = Parser(__doc__, Path(__file__).parent / "results" / "anchors.json")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import torch
from run import about
from torch.nn.functional import normalize

from adaptive_margin import AdaptiveMargin
from adaptive_margin.margins import ChernoffRule, HoeffdingRule, RemainingRule
from adaptive_margin.training.command_line import check_output, json_with

RULES = {"hoeffding": HoeffdingRule, "chernoff": ChernoffRule, "remaining": RemainingRule}
FEATURES, SPREADS = 128, (0.0, 0.5, 2.0)
LAYOUTS = {"two groups": lambda n: torch.arange(n) % 2, "4 a class": lambda n: torch.arange(n) // 4}


def bound(rule: str, labels: int, anchors: int) -> float:
    """The largest standard error."""
    largest = {"hoeffding": (1 - 1 / labels) ** 2, "chernoff": math.log(labels) / 2, "remaining": 1.0}[rule]
    return largest / (2 * math.sqrt(anchors))


def errors(name: str, layout: str, rows: int) -> dict[str, Any]:
    """What a rule's sample of anchors changes, and saves, over all spreads and seeds."""
    rule, labels = RULES[name], LAYOUTS[layout](rows)
    margins = {
        "all": AdaptiveMargin(neighbourhood=rule("all"), dependence="none"),
        "some": AdaptiveMargin(neighbourhood=rule(), dependence="none"),
    }
    worst, took = 0.0, {"all": 0.0, "some": 0.0}
    for spread in SPREADS:
        for seed in range(5):
            torch.manual_seed(seed)
            centres = torch.randn(int(labels.max()) + 1, FEATURES)
            x = normalize(torch.randn(rows, FEATURES) + spread * centres[labels], dim=1)
            found = {}
            for way, margin in margins.items():
                began = time.perf_counter()
                found[way] = float(margin(x, labels))
                took[way] += time.perf_counter() - began
            worst = max(worst, abs(found["all"] - found["some"]))
    anchors = rule().anchors
    return {
        "rule": name,
        "labels": layout,
        "anchors": anchors,
        "largest error": worst,
        "standard error at most": bound(name, int(labels.max()) + 1, anchors),
        "time of all rows": took["all"] / took["some"],
    }


def table(found: list[dict[str, Any]]) -> str:
    """A row for each rule and layout of labels."""
    lines = ["| " + " | ".join(found[0]) + " |", "|---|---|---:|---:|---:|---:|"]
    for rule, labels, anchors, worst, allowed, longer in (row.values() for row in found):
        cells = f"{anchors:,} | {worst:.4f} | {allowed:.4f} | {longer:.1f} times as long"
        lines.append(f"| {rule} | {labels} | {cells} |")
    return "\n".join(lines)


@ends_in_order("nothing is written")
@said_plainly()
def main() -> None:
    arguments = parsed()
    if arguments.print:
        print_results(arguments.out, lambda: table(read_results(arguments.out)["rules"]))
        return
    check_output("--out", arguments.out, file=True, replaces=json_with("rules"))
    torch.set_num_threads(arguments.threads)
    found = [errors(name, layout, arguments.rows) for name in RULES for layout in LAYOUTS]
    print(table(found))
    content = {"rules": found, "rows": arguments.rows, **about(arguments.threads)}
    write_results(arguments.out, content)


if __name__ == "__main__":
    main()
