"""Settings for the critic's training, compared on validation people only: learning rates, orders, weights, batch norm.

Every variant trains the same networks on the same drawn people (300, of whom 210 are for training and 45 for
validation) as the baseline without a critic, seed by seed. Each seed has its own people, different from those of
``fer_caf.py``. The output is the mean CCC and RMSE of valence and arousal on the validation people after the last step;
figures of test people are never printed. Finished runs are kept: the same command continues where it was stopped.

    python benchmarks/fer_tuning.py [--jobs 2] [--seeds 3] [--only "no critic" "caf, weak"]
    python benchmarks/fer_tuning.py --print         # the committed table
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from script import Parser, write_results

from adaptive_margin.emotion.config import QUICK, AdamConfig, EmotionConfig
from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import ends_in_order
from adaptive_margin.training.command_line import check_output, json_with

RESULTS = Path(__file__).parent / "fer_caf" / "results" / "tuning.json"
BASE = dataclasses.replace(
    QUICK,
    people=300,
    iterations=800,
    lr_decay_every=300,
    evaluate_every=800,
    checkpoint_every=800,
    leaky_slope=0.0,  # as when most of the committed results were made
)
WHOLE: dict[str, Any] = {"weak_batch_norm": "whole"}
VARIANTS: dict[str, dict[str, Any]] = {
    "no critic": {"critic": "none"},
    "no critic, leaky": {"critic": "none", "leaky_slope": 0.1},
    "caf, weak": {},
    "caf, whole": WHOLE,
    "caf, running": {"weak_batch_norm": "running"},
    "caf, whole, line 7 at 1e-5": WHOLE | {"adversarial_adam": AdamConfig(lr=1e-5)},
    "caf, whole, line 7 at 1e-3": WHOLE | {"adversarial_adam": AdamConfig(lr=1e-3)},
    "caf, weak, shared Adam, w = 0.1": {"shared_moments": True, "adversarial_weight": 0.1},
    "caf, weak, shared Adam, w = 1": {"shared_moments": True, "adversarial_weight": 1.0},
    "joint, w = 0.1": {"order": "joint", "adversarial_weight": 0.1},
    "joint, w = 1": {"order": "joint", "adversarial_weight": 1.0},
}
BASELINE = "no critic"
FIGURES = ("ccc", "rmse")


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/fer_tuning"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--yes", action="store_true", help="start although it will take more than a day")
    parser.add_argument("--print", action="store_true", help="print the committed table; trains nothing")
    asked = parser.parse_args(argv)
    parser.at_least_one(asked, "seeds", "jobs")
    return asked


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

from fer_caf import expect, train_all
from fer_people import options_of

from adaptive_margin.metrics.comparison import signed
from adaptive_margin.training import World, environment
from adaptive_margin.training.forecast import announce


def config_of(variant: str, seed: int, out: Path) -> EmotionConfig:
    """The options of one run."""
    folder = out / variant.replace(", ", "-").replace(" ", "-") / f"seed{seed}"
    return dataclasses.replace(BASE, **VARIANTS[variant], seed=seed, split_seed=seed, output=str(folder))


def validation(config: EmotionConfig) -> dict[str, float]:
    """Mean figures of both labels on the validation people after the last step."""
    with open(Path(config.output) / "scalars.csv", newline="", encoding="utf-8") as file:
        rows = {row["name"]: float(row["value"]) for row in csv.DictReader(file)}  # the last of each name
    return {name: round(rows[f"val/{name}"], 4) for name in FIGURES}


def table(runs: list[dict[str, Any]]) -> str:
    """A line for each variant, with differences from the baseline seed by seed."""
    of = {(row["variant"], row["seed"]): row for row in runs}
    lines = ["| what | CCC | RMSE | ΔCCC by seed | mean ΔCCC | mean ΔRMSE |", "|---|---|---|---|---|---|"]
    for variant in VARIANTS:
        rows = [row for row in runs if row["variant"] == variant and (BASELINE, row["seed"]) in of]
        if not rows:
            continue
        ccc, rmse = (statistics.mean(row[name] for row in rows) for name in FIGURES)
        cells = ["", "", ""]
        if variant != BASELINE:
            gaps = {name: [row[name] - of[BASELINE, row["seed"]][name] for row in rows] for name in FIGURES}
            cells = [", ".join(signed(gap, 3) for gap in gaps["ccc"])]
            cells += [signed(statistics.mean(gaps[name]), 3) for name in FIGURES]
        lines.append(f"| {variant} | {ccc:.3f} | {rmse:.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@ends_in_order()
@said_plainly()
def main(argv: list[str] | None = None) -> int:
    """Runs what is missing, then writes and prints all results."""
    asked = parsed(argv)
    if asked.print:
        print(table(json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]))
        return 0
    file = asked.out / "tuning.json"
    check_output("--out", asked.out)
    check_output("--out", file, file=True, replaces=json_with("what", "runs"))
    configs = {
        (variant, seed): config_of(variant, seed, asked.out)
        for seed in range(asked.seeds)
        for variant in dict.fromkeys((BASELINE, *asked.only))
    }
    announce(expect(configs, asked.jobs), asked.yes)
    failed = train_all(configs, asked.jobs)
    runs = [
        {"variant": variant, "seed": seed, **validation(config)}
        for (variant, seed), config in configs.items()
        if (variant, seed) not in failed
    ]
    document = {
        "what": "validation people only; test people were not looked at",
        "environment": environment(World()),
        "config": options_of(BASE),
        "runs": runs,
    }
    print(f"{table(runs)}\n")
    write_results(file, document, ensure_ascii=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
