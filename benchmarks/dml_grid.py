"""The cost of an untuned margin: losses × data × batches × lengths of training, in one command that can be stopped and
resumed at any time.

A cell is a loss in one setting: a data set, a composition of batches and a number of steps. In each cell:

1. ``tune``: eight constants, one seed that no other run has (100), by MAP@R on validation classes.
2. ``compare``: five seeds, measured once on the test classes at the evaluation that was best on validation classes:
   the loss's own constant (``default``), the constant that tuning chose here (``tuned here``), the one that tuning
   chose in the loss's next cell (``tuned elsewhere``, as for people who tune once), ``remaining``, ``attainable``, and
   Hoeffding's evidence for two losses.

Cells come in rounds. Each round has every loss once, in settings that differ from loss to loss; round r + 1 gives a
loss another data set, another composition and, as a rule, another length. So after any number of rounds, every loss has
the same number of cells, and no choice depends on results. The next cell of a loss is its cell of the next round, which
is tuned first.

    python benchmarks/dml_grid.py --omniglot DIR --rounds 6 --jobs 2
    python benchmarks/dml_grid.py --print

Rows are added to ``benchmarks/dml/results/grid.jsonl`` (``--results``) one by one; rows that exist are not run again.

The network is small and trained from scratch. With ``--network pretrained`` it is pretrained on ImageNet (see
``dml_pretrained.py``), and the rows go to ``grid-pretrained.jsonl``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from json_lines import add_lines, check_lines, read_lines
from script import Parser, is_figure

from adaptive_margin.dml.config import SMALL, DMLConfig
from adaptive_margin.messages import problem, said_plainly
from adaptive_margin.processes import Workers, ends_in_order
from adaptive_margin.training.command_line import check_output

RESULTS = Path(__file__).parent / "dml" / "results"
FILES = {"small": "grid.jsonl", "pretrained": "grid-pretrained.jsonl"}
"""Results of each network."""
SETTINGS = (  # in the order of rounds
    ("digits", "many", 240),
    ("fonts", "few", 960),
    ("omniglot", "many", 240),
    ("digits", "few", 960),
    ("fonts", "many", 240),
    ("omniglot", "few", 960),
    ("digits", "many", 960),
    ("fonts", "few", 240),
    ("omniglot", "many", 960),
    ("digits", "few", 240),
    ("fonts", "many", 960),
    ("omniglot", "few", 240),
)


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__)
    parser.add_argument("--omniglot", type=Path, help="folder of Omniglot's archives")
    parser.add_argument("--rounds", type=int, default=min(6, len(SETTINGS)), help=f"from 1 to {len(SETTINGS)}")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time, one thread each")
    parser.add_argument("--network", choices=FILES, default="small", help="the network to train")
    parser.add_argument("--results", type=Path, help="file of rows to continue (default: the network's, see above)")
    parser.add_argument(
        "--print", action="store_true", help="print tables of the existing rows, in Markdown; runs nothing"
    )
    parser.add_argument("--yes", action="store_true", help="start although it will take more than a day")
    parser.add_argument("--figure", type=Path, help="with --print: where to draw the regret of every cell")
    options = parser.parse_args(argv)
    if not 1 <= options.rounds <= len(SETTINGS):
        parser.error(f"--rounds must be from 1 to {len(SETTINGS)}, got {options.rounds}")
    parser.at_least_one(options, "jobs")
    return options


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import torch
from dml_pretrained import WIDTH, FeatureJob, features
from torch import Tensor

from adaptive_margin import AdaptiveMarginLoss
from adaptive_margin.dml.embedded import digits, fonts
from adaptive_margin.dml.labelled_images import LabelledImages, split_classes
from adaptive_margin.dml.objectives import LOSSES
from adaptive_margin.dml.omniglot import omniglot
from adaptive_margin.dml.trainer import DMLJob, load_images
from adaptive_margin.metrics import RetrievalMetrics
from adaptive_margin.training import World, environment
from adaptive_margin.training.forecast import Work, announce, forecast

GRID_LOSSES = (
    "contrastive",
    "triplet-distance",
    "margin",
    "multi-similarity",
    "proxy-anchor",
    "vdm",
    "triplet",
    "cosface",
    "arcface",
    "lifted",
)
BATCHES = {  # classes, images of each
    ("digits", "many"): (16, 8),
    ("digits", "few"): (8, 16),
    ("fonts", "many"): (32, 4),
    ("fonts", "few"): (8, 16),
    ("omniglot", "many"): (32, 4),
    ("omniglot", "few"): (8, 16),
}
EVIDENCE_LOSSES = ("contrastive", "margin")
SEEDS, TUNING_SEED = (0, 1, 2, 3, 4), 100
STEPS_AN_EPOCH = 40
EVALUATE_EVERY = {240: 40, 960: 80}
SCORE = "mean_average_precision_at_r"


@dataclass(frozen=True)
class Cell:
    """A loss in one setting."""

    loss: str
    data: str
    batches: str
    steps: int


@dataclass(frozen=True)
class Run:
    """One network: a cell, its margin (a constant, or the rule of an adaptive one) and a seed."""

    cell: Cell
    margin: float | str
    seed: int

    def config(self) -> DMLConfig:
        """All of its options."""
        classes, per_class = BATCHES[self.cell.data, self.cell.batches]
        adaptive = {"margin": "adaptive", "neighbourhood": self.margin}
        return replace(
            SMALL,
            loss=self.cell.loss,
            classes=classes,
            per_class=per_class,
            epochs=self.cell.steps // STEPS_AN_EPOCH,
            steps_per_epoch=STEPS_AN_EPOCH,
            seed=self.seed,
            measure=self.seed != TUNING_SEED,
            **(adaptive if isinstance(self.margin, str) else {"margin": self.margin}),
        )

    @property
    def key(self) -> tuple[Any, ...]:
        """The key that identifies it in the file of results."""
        return (*asdict(self.cell).values(), self.margin, self.seed)


def cell_of(loss: str, number: int) -> Cell:
    """A loss's cell in a round."""
    return Cell(loss, *SETTINGS[(number + GRID_LOSSES.index(loss)) % len(SETTINGS)])


def tuning(cell: Cell) -> list[Run]:
    """Eight constants on validation classes."""
    return [Run(cell, margin, TUNING_SEED) for margin in LOSSES[cell.loss].candidates]


def arms(cell: Cell, tuned_here: float, tuned_elsewhere: float) -> dict[str, float | str]:
    """The margins that a cell compares, by name; two arms can be one constant, which is trained once."""
    own = LOSSES[cell.loss].default
    assert own is not None
    constants = {"default": own, "tuned here": tuned_here, "tuned elsewhere": tuned_elsewhere}
    evidence = {"evidence": "hoeffding"} if cell.loss in EVIDENCE_LOSSES else {}
    host = LOSSES[cell.loss].host
    relaxes = host is None or AdaptiveMarginLoss.supported()[host].relaxes
    adaptive = {"adaptive": "remaining" if relaxes else "attainable"}
    return {**constants, **adaptive, "remaining": "remaining", "attainable": "attainable", **evidence}


def comparing(cell: Cell, tuned_here: float, tuned_elsewhere: float) -> list[Run]:
    """Five seeds of every arm."""
    margins = dict.fromkeys(arms(cell, tuned_here, tuned_elsewhere).values())
    return [Run(cell, margin, seed) for seed in SEEDS for margin in margins]


@cache
def images_of(data: str, root: Path | None) -> LabelledImages:
    """A data set, loaded once per process."""
    if data != "omniglot":
        return {"digits": digits, "fonts": fonts}[data]()
    if root is None:
        raise ValueError(problem("--omniglot", "the folder of Omniglot's archives", "nothing", "pass --omniglot DIR"))
    return omniglot(root)


@cache
def features_of(data: str, root: Path | None) -> Tensor:
    """A data set's features, computed once per process."""
    return features(images_of(data, root))


def job_of(run: Run, network: str, root: Path | None, computed: Tensor | None = None) -> DMLJob:
    """The job that trains a run; ``computed`` are features in place of those of the pretrained network."""
    config, data = run.config(), images_of(run.cell.data, root)
    split = split_classes(data, validation=config.validation, seed=config.seed)
    pixels = load_images(data, config)[0]
    if network == "small":
        return DMLJob(config, data, pixels, split, World())
    computed = features_of(run.cell.data, root) if computed is None else computed
    return FeatureJob(computed, config, data, pixels, split, World())


def train(run: Run, network: str, root: Path | None) -> dict[str, Any]:
    """Trains one network on one thread; its row."""
    torch.set_num_threads(1)
    began = time.process_time()
    job = job_of(run, network, root)
    config = job.config
    every = EVALUATE_EVERY[run.cell.steps]
    curve, margins, best = [], [], None
    for step in range(run.cell.steps):
        figures = job.step(step)
        if (step + 1) % every:
            continue
        margins.append(figures.get("margin"))
        found = job.evaluate()
        scores = (found[f"validation/{SCORE}"], found["validation/recall_at_1"])
        curve.append([round(score, 4) for score in scores])
        if best is None or scores > best[0]:
            best = (scores, {name: tensor.clone() for name, tensor in job.network.state_dict().items()})
    assert best is not None
    test = None
    if config.measure:
        job.network.load_state_dict(best[1])
        measured = RetrievalMetrics(config.ks)(*job.embed("test"))
        test = {name: round(value, 5) for name, value in measured.items()}
    row = {**asdict(run.cell), "margin": run.margin, "seed": run.seed, "validation": curve, "test": test}
    if isinstance(run.margin, str):
        row["margins"] = [None if value is None else round(value, 4) for value in margins]
    return row | {"cpu_seconds": round(time.process_time() - began, 1)}


class Results:
    """The rows of a file, by run; new ones are written at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        self.heads: list[dict[str, Any]] = []
        for row in read_lines(path):
            if "loss" in row:
                key = tuple(row[name] for name in ("loss", "data", "batches", "steps", "margin", "seed"))
                self.rows[key] = row
            else:
                self.heads.append(row)

    def has(self, run: Run) -> bool:
        """Whether a run is finished."""
        return run.key in self.rows

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row."""
        add_lines(self.path, [row])
        self.rows[tuple(row[name] for name in ("loss", "data", "batches", "steps", "margin", "seed"))] = row

    def begin(self, network: str) -> None:
        """Writes once the versions and machine that all following rows were made with."""
        found = environment(World())
        head = {"network": network, **{name: found[name] for name in ("versions", "device", "commit", "started")}}
        preset = {name: str(value) for name, value in vars(SMALL).items() if name not in ("out", "root")}
        add_lines(self.path, [{**head, "threads": "one a network", "preset": preset}])

    def tuned(self, cell: Cell) -> float | None:
        """The constant with the best validation score in a cell; None while tuning is not finished."""
        runs = tuning(cell)
        if not all(self.has(run) for run in runs):
            return None
        return max(runs, key=lambda run: max(self.rows[run.key]["validation"])).margin  # type: ignore[return-value]


def stages(rounds: int, results: Results) -> Iterator[list[Run]]:
    """The runs to do, in order: tuning one round ahead, then that round's comparison."""
    losses = GRID_LOSSES
    yield [run for loss in losses for run in tuning(cell_of(loss, 0))]
    for number in range(rounds):
        yield [run for loss in losses for run in tuning(cell_of(loss, number + 1))]
        made = []
        for loss in losses:
            here, elsewhere = results.tuned(cell_of(loss, number)), results.tuned(cell_of(loss, number + 1))
            assert here is not None
            assert elsewhere is not None
            made += comparing(cell_of(loss, number), here, elsewhere)
        yield sorted(made, key=lambda run: run.seed)


def left(rounds: int, results: Results) -> list[Run]:
    """The runs that are still to do, at most: until a margin is tuned, it counts as one that no other arm has."""
    runs = [run for number in range(rounds + 1) for loss in GRID_LOSSES for run in tuning(cell_of(loss, number))]
    for number in range(rounds):
        for loss in GRID_LOSSES:
            tuned = [results.tuned(cell_of(loss, each)) for each in (number, number + 1)]
            constants = [-1.0 - place if margin is None else margin for place, margin in enumerate(tuned)]
            runs += comparing(cell_of(loss, number), *constants)
    return [run for run in dict.fromkeys(runs) if not results.has(run)]


def works(runs: list[Run], network: str, root: Path | None) -> Iterator[Work]:
    """Them by data set and batch, each with one of its losses."""
    kinds: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        kinds.setdefault((run.cell.data, run.cell.batches), []).append(run)
    for (data, _), same in kinds.items():

        def job(one: Run = same[0], data: str = data) -> DMLJob:
            noise = torch.randn(len(images_of(data, root)), WIDTH) if network == "pretrained" else None
            one = replace(one, margin=LOSSES[one.cell.loss].candidates[0])  # the margin is not known everywhere
            return job_of(one, network, root, noise)

        yield Work(job=job, iterations=sum(run.cell.steps for run in same), runs=len(same))


@ends_in_order()
@said_plainly()
def main(argv: list[str] | None = None) -> int:
    """Runs what is missing."""
    options = parsed(argv)
    place = options.results or RESULTS / FILES[options.network]
    if options.print:
        from dml_regret import draw, measured_cells, report  # beside this file

        places = {options.network: place} if options.results else {name: RESULTS / file for name, file in FILES.items()}
        cells = [cell for name, file in places.items() for cell in measured_cells(Results(file), name)]
        print(report(cells))
        if options.figure:
            check_output("--figure", options.figure, file=True, replaces=is_figure)
            draw(cells, options.figure)
        return 0
    check_lines("--results", place)
    results = Results(place)
    kinds = works(left(options.rounds, results), options.network, options.omniglot)
    announce(forecast(kinds, jobs=options.jobs, threads=1), options.yes)
    with Workers(options.jobs, tasks_each=60) as workers:  # memory grows
        began, done = time.monotonic(), 0
        for stage in stages(options.rounds, results):
            todo = [run for run in stage if not results.has(run)]
            if todo and not done:
                results.begin(options.network)
            items = [(run, options.network, options.omniglot) for run in todo]
            for _, row in workers.results(train, items):
                results.add(row)
                done += 1
                each = (time.monotonic() - began) / done
                where = f"{row['loss']} {row['data']} {row['batches']} {row['steps']}"
                what = f"{where} {row['margin']} seed {row['seed']}: {max(row['validation'])[0]:.3f}"
                print(f"{what}; {done} done now, {each:.1f} s each", flush=True)
    print(f"{len(results.rows)} rows in {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
