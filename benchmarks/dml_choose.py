"""How the default margin of many classes was chosen: candidates on validation classes, never on the test.

Digits and characters, small networks from scratch, 240 and 960 steps, two seeds that no other benchmark uses. A
candidate is a squared distance of unit vectors (the form of Δ, and which MI is added) and its unit in the loss. If the
candidate has one margin per triplet, or a second hinge, the loss over all triplets is computed here.

    python benchmarks/dml_choose.py --jobs 2             # continues where it was stopped python
    benchmarks/dml_choose.py --print

Rows go to ``benchmarks/dml/results/choices.jsonl``. Omniglot is not used here: it confirms the choice.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from json_lines import add_lines, check_lines, read_lines
from script import Parser

from adaptive_margin.dml.config import SMALL
from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import Workers, ends_in_order

RESULTS = Path(__file__).parent / "dml" / "results" / "choices.jsonl"
Arm = str | tuple[str, ...]
"""``"default"``; a constant; (squared distance, unit); or the name of one of :class:`AllTriplets`."""
QUESTIONS: dict[str, dict[str, list[Arm]]] = {
    "Which MI is added?": {
        "contrastive": [
            "default",
            "0.5",
            *((f"remaining{mi}", "root") for mi in ("", "+class", "+pair", "+nearest")),
            ("running mean", "root"),
        ],
        "vdm": ["default", *((f"remaining{mi}", "itself") for mi in ("", "+class", "+nearest"))],
        "margin": ["default", "0.8", ("remaining", "root"), ("remaining+class", "root"), ("remaining", "half root")],
    },
    "What is a gap between distances?": {
        "triplet": [
            "default",
            "0.2",
            ("evidence", "root"),
            *(("remaining", unit) for unit in ("root", "from a right angle", "quarter")),
            *(("all triplets", kind) for kind in ("share 30", "share 60", "grows", "second hinge")),
        ],
        "triplet-distance": ["default", *(("remaining", unit) for unit in ("root", "from a right angle", "quarter"))],
        "triplet-semihard": ["default", *(("remaining", unit) for unit in ("root", "from a right angle", "quarter"))],
    },
    "Does a margin an anchor help where classes are of unequal size?": {
        f"{loss}, long tail": ["default", ("batch", "remaining"), ("anchor", "remaining"), ("anchor", "attainable")]
        for loss in ("contrastive", "margin", "triplet")
    },
    "What is a gap between cosines and angles?": {
        "arcface": ["default", ("remaining", "half angle"), ("remaining", "quarter angle")],
        "cosface": ["default", ("remaining", "half"), ("remaining", "quarter")],
        "proxy-anchor": ["default", ("remaining", "quarter"), ("remaining", "eighth")],
        "multi-similarity": ["default", ("attainable", "cosine"), ("remaining", "cosine"), ("remaining", "half less")],
    },
}


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time, one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of rows to continue")
    parser.add_argument("--losses", nargs="+", choices=[loss for part in QUESTIONS.values() for loss in part])
    parser.add_argument("--yes", action="store_true", help="start although it will take more than a day")
    parser.add_argument("--print", action="store_true", help="print the tables in Markdown; runs nothing")
    asked = parser.parse_args(argv)
    parser.at_least_one(asked, "jobs")
    return asked


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import numpy as np
import torch
from torch import Tensor, nn

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, Margin
from adaptive_margin import functional as F
from adaptive_margin.dml.embedded import digits, fonts
from adaptive_margin.dml.labelled_images import split_classes
from adaptive_margin.dml.objectives import LOSSES
from adaptive_margin.dml.trainer import DMLJob, load_images
from adaptive_margin.functional.groups import class_sizes, group_index
from adaptive_margin.training import World, environment
from adaptive_margin.training.forecast import Work, announce, forecast

DATA = {"digits": digits, "fonts": fonts}
BATCHES = {"digits": (16, 8), "fonts": (32, 4)}
STEPS, SEEDS, STEPS_AN_EPOCH = (960, 240), (100, 101), 40
EVALUATE_EVERY = {240: 40, 960: 80}
KEYS = ("loss", "data", "steps", "seed", "arm")


# --- candidates: what the margin is -----------------------------------------------------------------------------------


def remaining(embeddings: Tensor, labels: Tensor) -> float:
    """Mean square of what is missing in class-sized neighbourhoods, and the floor."""
    n = len(labels)
    return float(F.neighbourhood_impurity(embeddings, labels).square().mean()) + math.log(n / 0.05) / (2 * (n - 1))


def attainable(embeddings: Tensor, labels: Tensor) -> float:
    """The same for embeddings without any information."""
    index = group_index(labels)
    return float((1 - class_sizes(index, index).float() / len(labels)).square().mean())


def evidence(embeddings: Tensor, labels: Tensor) -> float:
    """The paper's margin with Hoeffding's bound."""
    return float(AdaptiveMargin(neighbourhood="hoeffding")(embeddings, labels))


def class_information(embeddings: Tensor, labels: Tensor) -> float:
    """MI of each class with the rest: the library's."""
    margin = AdaptiveMargin(neighbourhood="hoeffding", collect_stats=True)
    margin(embeddings, labels)
    return margin.mi


def _row_correlations(embeddings: Tensor) -> Tensor:
    rows = nn.functional.normalize(embeddings - embeddings.mean(1, keepdim=True), dim=1)
    return rows @ rows.T


def pair_information(embeddings: Tensor, labels: Tensor) -> float:
    """MI of the plain rows of each pair of different labels; negative correlations count as 0."""
    eta = _row_correlations(embeddings)[labels[:, None] != labels].clamp(0, 1)
    return float(F.mutual_information(eta, 2.5).mean())


def nearest_information(embeddings: Tensor, labels: Tensor) -> float:
    """The same of each row with the rows of its nearest other class."""
    index = group_index(labels)
    classes = int(index.max()) + 1
    sums = torch.zeros(classes, embeddings.shape[1]).index_add(0, index, embeddings)
    to_centres = torch.cdist(embeddings, sums / torch.bincount(index, minlength=classes)[:, None])
    to_centres[torch.arange(len(embeddings)), index] = math.inf
    eta = _row_correlations(embeddings)[index[None, :] == to_centres.argmin(1)[:, None]].clamp(0, 1)
    return float(F.mutual_information(eta, 2.5).mean())


Squared = Callable[[Tensor, Tensor], float]
SQUARED: dict[str, Squared] = {
    "remaining": remaining,
    "remaining+class": lambda z, y: remaining(z, y) + class_information(z, y),
    "remaining+pair": lambda z, y: remaining(z, y) + pair_information(z, y),
    "remaining+nearest": lambda z, y: remaining(z, y) + nearest_information(z, y),
    "attainable": attainable,
    "evidence": evidence,
}


def angle(alpha: float) -> float:
    """Degrees between unit vectors of this squared distance."""
    return math.degrees(math.acos(max(-1, 1 - alpha / 2)))


UNITS: dict[str, Callable[[float], float]] = {
    "root": lambda alpha: math.sqrt(max(alpha, 0)),
    "half root": lambda alpha: math.sqrt(max(alpha, 0)) / 2,
    "from a right angle": lambda alpha: math.sqrt(2) - math.sqrt(max(0, 2 - min(alpha, 2))),
    "itself": lambda alpha: alpha,
    "half": lambda alpha: alpha / 2,
    "quarter": lambda alpha: alpha / 4,
    "eighth": lambda alpha: alpha / 8,
    "cosine": lambda alpha: 1 - alpha / 2,
    "half less": lambda alpha: 0.5 - alpha / 2,
    "half angle": lambda alpha: angle(alpha) / 2,
    "quarter angle": lambda alpha: angle(alpha) / 4,
}
"""Names of what the loss is given; degrees for angles."""


class Candidate(Margin):
    """A squared distance in a unit of the loss, as a margin of the library."""

    def __init__(self, squared: Squared, unit: Callable[[float], float], decay: float = 0.0) -> None:
        super().__init__()
        self.squared, self.in_unit, self.decay, self.mean = squared, unit, decay, math.nan

    def forward(
        self,
        embeddings: Tensor,
        labels: Any = None,
        indices_tuple: Any = None,
        ref_emb: Any = None,
        ref_labels: Any = None,
    ) -> Tensor:
        """One number per batch; with a decay, from the running mean over batches."""
        with torch.no_grad():
            now = self.squared(embeddings.detach().float(), labels)
        self.mean = now if math.isnan(self.mean) else self.decay * self.mean + (1 - self.decay) * now
        return torch.full((), self.in_unit(self.mean), dtype=embeddings.dtype)


class AllTriplets(nn.Module):
    """Triplet loss over all triplets, mean over the active ones, with a margin that the host has no place for.

    ``"share 30"`` keeps 30 % of the triplets active, at least at a twentieth of the mean distance (after DAMS 2026 and
    AdaTriplet 2022); ``"grows"`` is α̂/2 times the negative's cosine, without gradient; ``"second hinge"`` is α̂/4 and
    beside it the mean hinge of negatives nearer than √α̂ (AdaTriplet's second term).
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def record(self, on: bool) -> None:
        """Nothing is recorded."""

    def statistics(self) -> dict[str, float]:
        """None."""
        return {}

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        cosines = embeddings @ embeddings.T
        distances = (2 - 2 * cosines).clamp(min=1e-8).sqrt()
        same = labels[:, None] == labels
        anchors, positives = (same & ~torch.eye(len(labels), dtype=torch.bool)).nonzero(as_tuple=True)
        gaps, negatives = distances[anchors, positives][:, None] - distances[anchors], ~same[anchors]
        with torch.no_grad():
            alpha = remaining(embeddings, labels)
            margin: Any = alpha / 4
            if self.kind.startswith("share"):
                some = -gaps[negatives]
                some = some[torch.randint(len(some), (4000,))]
                share = float(self.kind.split()[1]) / 100
                margin = max(float(torch.quantile(some, share)), 0.05 * float(distances.mean()))
            elif self.kind == "grows":
                margin = alpha / 2 * cosines[anchors].clamp(min=0)
        loss = _active_mean(torch.relu(gaps + margin) * negatives)
        if self.kind == "second hinge":
            loss = loss + _active_mean(torch.relu(math.sqrt(alpha) - distances) * ~same)
        return loss


def _active_mean(hinges: Tensor) -> Tensor:
    return hinges.sum() / (hinges > 0).sum().clamp(min=1)


# --- trials: networks that answer the questions -----------------------------------------------------------------------

LONG_TAIL = ", long tail"
"""Training classes have from all of their images down to two, and batches are drawn from the images, not by class."""


class LongTail:
    """Rows of a training set whose classes shrink geometrically, and batches drawn from them at random."""

    def __init__(self, labels: np.ndarray, seed: int, batch: int) -> None:
        numbers = np.random.default_rng(seed)
        classes = numbers.permutation(np.unique(labels))
        kept = []
        for place, name in enumerate(classes):
            rows = numbers.permutation(np.flatnonzero(labels == name))
            share = (2 / len(rows)) ** (place / (len(classes) - 1))
            kept.append(rows[: max(2, round(share * len(rows)))])
        self.kept, self.seed, self.batch = np.concatenate(kept), seed, batch

    def rows(self, step: int) -> np.ndarray:
        """The rows of the batch of a step."""
        return np.random.default_rng([self.seed, step]).choice(self.kept, self.batch, replace=False)


@dataclass(frozen=True)
class Trial:
    """One network."""

    loss: str
    data: str
    steps: int
    seed: int
    arm: Arm

    @property
    def key(self) -> str:
        """As in the file."""
        return json.dumps([self.loss, self.data, self.steps, self.seed, self.arm])


def trials() -> Iterable[Trial]:
    """All trials, one seed at a time."""
    for seed in SEEDS:
        for losses in QUESTIONS.values():
            for loss, arms in losses.items():
                yield from (Trial(loss, data, steps, seed, arm) for data in DATA for steps in STEPS for arm in arms)


def job_of(trial: Trial) -> DMLJob:
    """The job that trains a network."""
    data = DATA[trial.data]()
    classes, per_class = BATCHES[trial.data]
    loss: Any = trial.loss.removesuffix(LONG_TAIL)
    constant = isinstance(trial.arm, str)
    margin: Any = "adaptive"
    if constant:
        margin = LOSSES[loss].default if trial.arm == "default" else float(trial.arm)
    config = replace(
        SMALL,
        loss=loss,
        margin=margin,
        seed=trial.seed,
        classes=classes,
        per_class=per_class,
        epochs=trial.steps // STEPS_AN_EPOCH,
        steps_per_epoch=STEPS_AN_EPOCH,
        measure=False,
    )
    job = DMLJob(
        config, data, load_images(data, config)[0], split_classes(data, validation=0.3, seed=trial.seed), World()
    )
    if not constant:
        _give(job, trial.arm)  # type: ignore[arg-type]
    if trial.loss.endswith(LONG_TAIL):
        job.batches = LongTail(job.labels, trial.seed, config.batch)  # type: ignore[assignment]
    return job


def train(trial: Trial) -> dict[str, Any]:
    """Trains one network on one thread; validation figures at every evaluation."""
    torch.set_num_threads(1)
    job = job_of(trial)
    curve = []
    for step in range(trial.steps):
        job.step(step)
        if (step + 1) % EVALUATE_EVERY[trial.steps] == 0:
            found = job.evaluate()
            names = ("mean_average_precision_at_r", "recall_at_1")
            curve.append([round(found[f"validation/{name}"], 4) for name in names])
    return {**{name: getattr(trial, name) for name in KEYS}, "validation": curve}


def _give(job: DMLJob, arm: tuple[str, str]) -> None:
    """Replaces the library's margin with a candidate."""
    what, unit = arm
    if what in ("batch", "anchor"):  # the library's own
        job.objective.loss.margin = AdaptiveMargin(neighbourhood=unit, granularity=what)
        return
    if what == "all triplets":
        job.objective = AllTriplets(unit)  # type: ignore[assignment]
        return
    squared, decay = (remaining, 0.9) if what == "running mean" else (SQUARED[what], 0.0)
    candidate = Candidate(squared, UNITS[unit], decay)
    for holder in (job.objective.loss, job.objective.miner):
        if isinstance(getattr(holder, "margin", None), Margin):
            holder.margin = candidate
        if isinstance(holder, AdaptiveMarginLoss) or hasattr(holder, "miner"):
            holder.units = "replace"


def works(todo: list[Trial]) -> Iterable[Work]:
    """Networks that are left, by data set, each with the first loss."""
    for data in DATA:
        if same := [trial for trial in todo if trial.data == data]:
            yield Work(job=partial(job_of, same[0]), iterations=sum(trial.steps for trial in same), runs=len(same))


# --- rows and tables --------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a file, by trial."""
    rows = {}
    for row in read_lines(path):
        if "loss" in row:
            rows[json.dumps([row[name] for name in KEYS])] = row
    return rows


def table(rows: dict[str, dict[str, Any]]) -> str:
    """For each question and loss: MAP@R at the best evaluation, and Recall@1 there, mean over seeds, per cent.

    A column uses the seeds that all of its arms have; arms without any of them, and losses without rows, are left out.
    """
    lines = []
    for question, losses in QUESTIONS.items():
        lines += [f"### {question}", ""]
        for loss, arms in losses.items():
            columns = {}
            for data in DATA:
                for steps in sorted(STEPS):
                    found = {arm: _scores(rows, loss, data, steps, arm) for arm in arms}
                    seeds = set.intersection(*(set(scores) for scores in found.values() if scores), set(SEEDS))
                    if any(found.values()):
                        head = f"{data}, {steps} steps ({len(seeds)})"
                        columns[head] = {arm: _cell(scores, seeds) for arm, scores in found.items()}
            if not columns:
                lines += [f"{loss}: not run yet.", ""]
                continue
            lines += [f"| {loss} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
            for arm in arms:
                name = arm if isinstance(arm, str) else ", ".join(arm)
                lines.append(f"| {name} | " + " | ".join(cells[arm] for cells in columns.values()) + " |")
            lines.append("")
    return "\n".join([*lines, "MAP@R / Recall@1 of validation classes where MAP@R is best, mean (number of seeds)."])


def _scores(rows: dict[str, dict[str, Any]], loss: str, data: str, steps: int, arm: Arm) -> dict[int, list[float]]:
    """The best evaluation of each seed."""
    keys = {seed: Trial(loss, data, steps, seed, arm).key for seed in SEEDS}
    return {seed: max(rows[key]["validation"]) for seed, key in keys.items() if key in rows}


def _cell(scores: dict[int, list[float]], seeds: set[int]) -> str:
    if not seeds & scores.keys():
        return ""
    score, recall = np.mean([scores[seed] for seed in seeds], axis=0) * 100
    return f"{score:.1f} / {recall:.1f}"


@ends_in_order()
@said_plainly()
def main(argv: list[str] | None = None) -> int:
    """Runs what is missing."""
    options = parsed(argv)
    if not options.print:
        check_lines("--results", options.results)
    rows = read(options.results)
    if options.print:
        print(table(rows))
        return 0
    todo = [t for t in trials() if t.key not in rows and t.loss in (options.losses or [t.loss])]
    announce(forecast(works(todo), jobs=options.jobs, threads=1), options.yes)
    found = environment(World())
    unwritten = [{name: found[name] for name in ("versions", "device", "commit", "started")}]  # goes with the first row
    with Workers(options.jobs) as workers:
        for number, (_, row) in enumerate(workers.results(train, [(trial,) for trial in todo]), 1):
            add_lines(options.results, [*unwritten, row])
            unwritten = []
            print(f"{row['loss']} {row['data']} {row['steps']} {row['arm']}: {number} of {len(todo)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
