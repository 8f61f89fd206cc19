"""The effect of sampling anchors: the confidence term from some rows compared with that from all rows.

    python benchmarks/speed/anchors.py         # a minute; prints a table, in Markdown

Two groups and four images per class, unit vectors around the centre of their class, at three distances between classes:
the largest error over those and over five seeds, beside the largest standard error by the rule's documentation.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch.nn.functional import normalize

from adaptive_margin import AdaptiveMargin
from adaptive_margin.margins import ChernoffRule, HoeffdingRule, RemainingRule

RULES = {"hoeffding": HoeffdingRule, "chernoff": ChernoffRule, "remaining": RemainingRule}
FEATURES, SPREADS = 128, (0.0, 0.5, 2.0)
LAYOUTS = {"two groups": lambda n: torch.arange(n) % 2, "4 a class": lambda n: torch.arange(n) // 4}


def bound(rule: str, labels: int, anchors: int) -> float:
    """The largest standard error."""
    largest = {"hoeffding": (1 - 1 / labels) ** 2, "chernoff": math.log(labels) / 2, "remaining": 1.0}[rule]
    return largest / (2 * math.sqrt(anchors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    arguments = parser.parse_args()
    print("| rule | labels | anchors | largest error | standard error at most | time of all rows |")
    print("|---|---|---:|---:|---:|---:|")
    for name, rule in RULES.items():
        for layout, label in LAYOUTS.items():
            worst, took = 0.0, {"all": 0.0, "some": 0.0}
            margins = {
                "all": AdaptiveMargin(neighbourhood=rule("all"), dependence="none"),
                "some": AdaptiveMargin(neighbourhood=rule(), dependence="none"),
            }
            labels = label(arguments.rows)
            for spread in SPREADS:
                for seed in range(5):
                    torch.manual_seed(seed)
                    centres = torch.randn(int(labels.max()) + 1, FEATURES)
                    x = normalize(torch.randn(arguments.rows, FEATURES) + spread * centres[labels], dim=1)
                    found = {}
                    for way, margin in margins.items():
                        began = time.perf_counter()
                        found[way] = float(margin(x, labels))
                        took[way] += time.perf_counter() - began
                    worst = max(worst, abs(found["all"] - found["some"]))
            anchors, allowed = rule().anchors, bound(name, int(labels.max()) + 1, rule().anchors)
            cells = f"{worst:.4f} | {allowed:.4f} | {took['all'] / took['some']:.1f} times as long"
            print(f"| {name} | {layout} | {anchors:,} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
