"""Three losses, each with its default margin, the best of eight constants, and an untuned one: ``make demo``.

The data are distorted characters of 16 fonts: 255 classes, half of them for the test, which no network sees. On raw
pixels 17 % of the nearest neighbours of the test classes are right, so there is something to learn. A small network is
trained on the other half, once with each margin:

- ``own``: the default constant of the loss;
- ``best``: the one of eight constants that is best on validation classes, with a seed that nothing else uses;
- ``adaptive``: ``AdaptiveMarginLoss(loss)`` with its defaults.

Five seeds determine initialisation, batches and crops, the same for all three margins. The network after the last step
is measured, once.

    python examples/demo.py [--seeds 5] [--steps 160] [--jobs 2] [--output runs/demo]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from adaptive_margin.dml.config import SMALL
from adaptive_margin.messages import problem, said_plainly
from adaptive_margin.processes import Workers, ends_in_order

TUNING_SEED = 100


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, at least 2 for an interval (5)")
    parser.add_argument("--steps", type=int, default=160, help="training steps of each network (160)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="networks at a time (2)")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write to (runs/demo)")
    parser.add_argument("--yes", action="store_true", help="start although it will take more than a day")
    parser.add_argument("--print", type=Path, help="print the tables of this results.json; trains nothing")
    options = parser.parse_args(argv)
    if options.print:
        return options
    for name, least, most in (("seeds", 2, TUNING_SEED), ("steps", 1, 100_000), ("jobs", 1, 60)):
        if not least <= getattr(options, name) <= most:
            parser.error(f"--{name} must be from {least} to {most}, got {getattr(options, name)}")
    if options.output.exists() and not options.output.is_dir():
        parser.error(f"--output must be a folder, got the file {options.output}")
    return options


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import torch
from torch.nn import functional
from tqdm import tqdm

from adaptive_margin.dml.batches import Pixels
from adaptive_margin.dml.embedded import fonts
from adaptive_margin.dml.labelled_images import split_classes
from adaptive_margin.dml.objectives import LOSSES
from adaptive_margin.dml.trainer import DMLJob
from adaptive_margin.metrics import RetrievalMetrics
from adaptive_margin.metrics.comparison import Comparison, compared, signed
from adaptive_margin.training import World, environment, write_atomically
from adaptive_margin.training.command_line import check_output, json_with
from adaptive_margin.training.forecast import Forecast, Work, announce, forecast

SQUARED = {  # a constant in the unit that the adaptive margin has: a squared distance of unit vectors
    "contrastive": lambda margin: margin**2,  # how far negatives are pushed
    "triplet": lambda margin: 4 * margin,  # over all triplets: by how much negatives are farther than positives
    "margin": lambda margin: margin**2,  # how far pairs have to stay from a boundary
}
METRICS = {"mean_average_precision_at_r": "MAP@R", "recall_at_1": "Recall@1"}
ARMS = {"own": "the loss's own constant", "best": "best of eight constants", "adaptive": "adaptive, untuned"}
FILES = ("results.json", "demo.png")
UNFINISHED = "unfinished.json"
"""Numbers of a run that was stopped; those of an earlier run stay beside them."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One network: a loss, its margin (a constant in the loss's own unit, or ``"adaptive"``) and a seed."""

    loss: str
    margin: float | str
    seed: int
    steps: int


def job_of(run: Run) -> DMLJob:
    """The job that trains a network."""
    config = replace(SMALL, loss=run.loss, margin=run.margin, seed=run.seed, epochs=run.steps, steps_per_epoch=1)
    data = fonts()
    split = split_classes(data, validation=config.validation, seed=run.seed)
    return DMLJob(config, data, data.pixels, split, World())


def train(run: Run) -> Row:
    """Trains one network on one thread; its figures, and the course of an adaptive margin as a squared distance."""
    torch.set_num_threads(1)  # two networks at a time are faster than one on two cores
    began = time.process_time()
    job = job_of(run)
    curve = []
    for step in range(run.steps):
        figures = job.step(step)
        if run.margin == "adaptive":
            curve.append(round(figures["mi"] + figures["delta"], 4))
    part = "validation" if run.seed == TUNING_SEED else "test"
    found = RetrievalMetrics((1,))(*job.embed(part))
    scores = {metric: round(found[metric], 5) for metric in METRICS}
    return {**asdict(run), "part": part, **scores, "curve": curve, "cpu_seconds": round(time.process_time() - began, 1)}


def train_all(seeds: int, steps: int, jobs: int, finished: list[Row]) -> dict[str, float]:
    """Tunes a constant for each loss, trains every arm with every seed; ``finished`` gets each network's row.

    Returns the constants that tuning chose. Rows do not depend on ``jobs``.
    """
    own = {loss: LOSSES[loss].default for loss in SQUARED}
    first = [Run(loss, margin, TUNING_SEED, steps) for loss in SQUARED for margin in LOSSES[loss].candidates]
    first += [Run(loss, m, seed, steps) for seed in range(seeds) for loss in SQUARED for m in (own[loss], "adaptive")]
    total = len(first) + seeds * len(SQUARED)
    seconds_between_lines = 0.5 if sys.stderr.isatty() else 10
    bar = tqdm(total=total, desc=f"{total} networks", unit=" networks", mininterval=seconds_between_lines)
    with bar, Workers(jobs) as workers:

        def do(runs: Sequence[Run]) -> None:
            for _, row in workers.results(train, [(run,) for run in runs]):
                finished.append(row)
                bar.update()

        do(first)
        best = {loss: tuned(loss, finished) for loss in SQUARED}
        better = {loss: margin for loss, margin in best.items() if margin != own[loss]}  # the others already exist
        last = [Run(loss, margin, seed, steps) for seed in range(seeds) for loss, margin in better.items()]
        bar.total = len(first) + len(last)
        do(last)
    return best


def expected(seeds: int, steps: int, jobs: int) -> Forecast:
    """What the networks will take, at most: tuning may choose the loss's own constant, which then exists."""
    works = []
    for loss in SQUARED:
        count = len(LOSSES[loss].candidates) + 3 * seeds
        run = Run(loss, "adaptive", 0, steps)
        works.append(Work(job=partial(job_of, run), iterations=count * steps, runs=count))
    return forecast(works, jobs=jobs, threads=1)


def tuned(loss: str, rows: Sequence[Row]) -> float:
    """The constant that is best on validation classes."""
    tried = {row["margin"]: row for row in rows if row["loss"] == loss and row["part"] == "validation"}
    return max(sorted(tried), key=lambda margin: [tried[margin][metric] for metric in METRICS])


@dataclass(frozen=True)
class Outcome:
    """Every network's row, and the constants that tuning chose."""

    rows: Sequence[Row]
    best: dict[str, float]

    def margin(self, loss: str, arm: str) -> float | str:
        """Of an arm, in the loss's own unit."""
        return {"own": LOSSES[loss].default, "best": self.best[loss], "adaptive": "adaptive"}[arm]

    def of(self, loss: str, arm: str, figure: str) -> dict[int, Any]:
        """A figure of an arm's networks, by seed."""
        which = (loss, self.margin(loss, arm), "test")
        return {row["seed"]: row[figure] for row in self.rows if (row["loss"], row["margin"], row["part"]) == which}

    def scores(self, loss: str, arm: str, metric: str) -> dict[int, float]:
        """Of an arm's networks on unseen classes, per cent, by seed."""
        return {seed: 100 * score for seed, score in self.of(loss, arm, metric).items()}

    def compare(self, arm: str, baseline: str, metric: str) -> dict[str, Comparison]:
        """Points between two arms in each loss, corrected for the number of losses."""
        pairs = ((self.scores(loss, arm, metric), self.scores(loss, baseline, metric)) for loss in SQUARED)
        return dict(zip(SQUARED, compared(pairs), strict=True))

    def table(self) -> str:
        """Losses down; margins, gain on the loss's own and regret against the best across."""
        lines = ["Unseen classes, per cent, mean over seeds (constant). Gains and regrets: points, mean of the paired"]
        lines += ["differences [its interval] and p after Holm's correction for three losses, 0.001 or less as 0.001."]
        line = "{:<12}{:>13}{:>15}{:>10}{:>31}{:>31}".format
        for metric, name in METRICS.items():
            head = ("own", "best of eight", "adaptive", "gain: adaptive − own", "regret: best − adaptive")
            lines += ["", line(name, *head)]
            differences = [self.compare(*arms, metric) for arms in (("adaptive", "own"), ("best", "adaptive"))]
            for loss in SQUARED:
                means = {arm: f"{mean(self.scores(loss, arm, metric).values()):.1f}" for arm in ARMS}
                shown = [f"{means[arm]} ({self.margin(loss, arm):g})" for arm in ("own", "best")]
                found = [f"{each[loss]}  p={max(each[loss].p, 0.001):.3f}" for each in differences]
                lines.append(line(loss, *shown, means["adaptive"], *found))
        return "\n".join(lines)

    def lesson(self) -> str:
        """What a user learns, gains and losses alike: those with a corrected p below 0.05."""

        def said(losses: list[str]) -> str:
            return " and ".join(f"{loss} loss" for loss in losses) if len(losses) < len(SQUARED) else "all three losses"

        parts = []
        for metric, name in METRICS.items():
            for baseline, words in (
                ("own", f"in {name} better than the loss's own"),
                ("best", "than the best of eight"),
            ):
                found = self.compare("adaptive", baseline, metric).items()
                better, worse = ([loss for loss, each in found if each.verdict == word] for word in ("better", "worse"))
                parts.append(f"{words} for {said(better) or 'none'} and worse for {said(worse) or 'none'}")
            gap, loss = max((-each.mean, loss) for loss, each in found)
            parts[-1] = f"better {parts[-1]} (largest regret {signed(gap)} points, {loss} loss)"
        return (
            f"Untuned, the adaptive margin is {', '.join(parts[:2])}; {', '.join(parts[2:])}. That is where p < 0.05."
        )


def said(outcome: Outcome, untrained: dict[str, float]) -> str:
    """The table, the scores of the pixels alone, and the lesson."""
    without = ", ".join(f"{name} {100 * untrained[metric]:.1f}" for metric, name in METRICS.items())
    return f"{outcome.table()}\n\nPixels, without any network: {without}.\n\n{outcome.lesson()}"


def pixels() -> dict[str, float]:
    """The scores of the test images' pixels as embeddings: the result without learning."""
    data = fonts()
    rows = split_classes(data, validation=SMALL.validation, seed=0)["test"]
    images = torch.cat(list(Pixels(data.pixels, SMALL, torch.device("cpu")).evaluation(rows)))
    found = RetrievalMetrics((1,))(functional.normalize(images.flatten(1)), torch.from_numpy(data.labels[rows]))
    return {metric: round(found[metric], 5) for metric in METRICS}


def draw(outcome: Outcome, path: Path) -> None:
    """Left, the margin over training; right, the cost of an untuned margin compared with the best of eight."""
    import matplotlib

    matplotlib.use("Agg")  # here, not above: the workers need neither
    from matplotlib import pyplot as plt

    colours = {"own": "#8a8a8a", "best": "#1f77b4", "adaptive": "#d95f02"}
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(12, 4.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.9, 1))
    panels = left.subplots(1, len(SQUARED), sharey=True)
    for panel, loss in zip(panels, SQUARED, strict=True):
        curves = torch.tensor(list(outcome.of(loss, "adaptive", "curve").values()))  # (seeds, steps)
        steps = range(1, curves.shape[1] + 1)
        panel.fill_between(steps, curves.amin(0), curves.amax(0), color=colours["adaptive"], alpha=0.25, lw=0)
        panel.plot(steps, curves.mean(0), color=colours["adaptive"], lw=2, label=ARMS["adaptive"] + " (mean, range)")
        for arm, style in (("own", "--"), ("best", ":")):
            squared = SQUARED[loss](outcome.margin(loss, arm))
            panel.axhline(squared, color=colours[arm], ls=style, lw=2, label=ARMS[arm])
        panel.set(title=f"{loss} loss", xlabel="training step")
    panels[0].set(ylabel="margin (squared distance of unit vectors)", ylim=(0, None))
    left.suptitle("The margin over training", fontweight="bold")
    panel = right.subplots()
    for shift, arm in ((-0.2, "own"), (0.2, "adaptive")):
        found = list(outcome.compare("best", arm, "mean_average_precision_at_r").values())
        at, means = [place + shift for place in range(len(found))], [each.mean for each in found]
        half = [each.high - each.mean for each in found]
        panel.bar(at, means, 0.36, yerr=half, color=colours[arm], capsize=4, label=ARMS[arm])
    panel.axhline(0, color=colours["best"], ls=":", lw=2)
    panel.set_xticks(range(len(SQUARED)), [f"{loss}\nloss" for loss in SQUARED])
    panel.set_ylabel("MAP@R below the best of eight (points)")
    right.suptitle("Regret on unseen classes", fontweight="bold")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write_numbers(path: Path, rows: Sequence[Row], **more: Any) -> None:
    """Writes every network, and what it was made with."""
    found = environment(World())
    facts = {name: found[name] for name in ("command", "versions", "device", "commit")}
    rows = sorted(rows, key=lambda row: (row["part"], row["loss"], row["seed"], str(row["margin"])))
    write_atomically(path, (json.dumps({**facts, **more, "rows": rows}) + "\n").encode())


def read_numbers(path: Path) -> str:
    """The tables of the file that a finished run wrote."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return said(Outcome(found["rows"], found["best"]), found["pixels"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        expected, remedy = f"the {FILES[0]} of a demo that has finished", "run the demo to its end, and pass that file"
        raise ValueError(problem("--print", expected, path, remedy)) from error


@ends_in_order()
@said_plainly()
def main(argv: Sequence[str] | None = None) -> int:
    """Trains, measures, prints and draws; returns the exit status."""
    options = parsed(argv)
    if options.print:
        print(read_numbers(options.print))
        return 0
    output: Path = options.output
    for name in (FILES[0], UNFINISHED):
        check_output("--output", output / name, file=True, replaces=json_with("rows"))
    rows: list[Row] = []
    try:
        announce(expected(options.seeds, options.steps, options.jobs), options.yes)
        output.mkdir(parents=True, exist_ok=True)
        if any((output / name).exists() for name in FILES):
            print(f"The results of an earlier run in {output}/ are replaced when this one ends.")
        began = time.perf_counter()
        best = train_all(options.seeds, options.steps, options.jobs, rows)
    except KeyboardInterrupt:
        print(f"\nStopped after {len(rows)} network{'s' * (len(rows) != 1)}.", end=" ")
        if rows:
            write_numbers(output / UNFINISHED, rows, complete=False)
        print(f"Wrote their numbers to {output / UNFINISHED}." if rows else "Nothing was written.")
        return 130
    outcome, untrained = Outcome(rows, best), pixels()
    print(f"\n{said(outcome, untrained)}\n")
    seconds = round(time.perf_counter() - began, 1)
    write_numbers(
        output / FILES[0], rows, complete=True, seconds=seconds, jobs=options.jobs, best=best, pixels=untrained
    )
    (output / UNFINISHED).unlink(missing_ok=True)
    draw(outcome, output / FILES[1])
    print(f"{seconds:.0f} s. Wrote {output}/: {FILES[0]} (every number, versions), {FILES[1]} (margins and regrets).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
