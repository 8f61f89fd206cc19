"""Losses × margins × data sets × seeds, in one command that goes on wherever it was stopped.

Two data sets that need no download, small networks from scratch on one core each. In this order:

1. ``tune``: eight margins of every loss, on validation classes, one seed that no other run has; the test classes are
   not looked at.
2. ``choose``: the adaptive margin's rule for K and its units, on the same classes and seed: six networks a loss at
   most.
3. ``main``: five seeds; each loss with its own margin, with its tuned one, and with the adaptive margin under both
   rules.
4. ``more``: the rule and units chosen for each loss; a constant of the mean height of that adaptive margin (what
   adapting itself is worth); one margin an anchor and a pair; the confidence term alone, and another estimate of
   dependence; AutoMargin, the dynamic soft margin, and learned boundaries.

Every network is chosen among its evaluations by MAP@R on validation classes and then measured once on the test classes.
Each run has a folder with its result; finished ones are skipped, a killed one starts again. The merged file is
written at the end, and by ``--merge`` from what is there.

    python benchmarks/dml_grid.py --out runs/grid [--jobs 2] [--only digits] [--until main]
    python benchmarks/dml_grid.py --out runs/grid --merge
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from adaptive_margin import RetrievalMetrics
from adaptive_margin.dml.backbones import build_network
from adaptive_margin.dml.config import SMALL, DMLConfig
from adaptive_margin.dml.embedded import digits, fonts
from adaptive_margin.dml.labelled_images import LabelledImages, split_classes
from adaptive_margin.dml.objectives import LOSSES
from adaptive_margin.dml.results import read_runs
from adaptive_margin.dml.trainer import run
from adaptive_margin.training import World

RESULTS = Path(__file__).parent / "dml" / "results" / "grid.json"
DATA = {"digits": digits, "fonts": fonts}
BATCHES = {"digits": (16, 8), "fonts": (32, 4)}
GRID_LOSSES = ("contrastive", "triplet-distance", "margin", "multi-similarity", "proxy-anchor", "vdm")
ELEMENTWISE = ("contrastive", "triplet-distance", "margin", "vdm")  # take a margin an anchor or a pair
UNITS = {  # to choose from; the first are those of the main arms
    **dict.fromkeys(("contrastive", "triplet-distance", "margin"), ("sqrt", "replace", "offset")),
    "multi-similarity": ("replace", "offset"),
    "proxy-anchor": ("offset", "replace"),
    "vdm": ("default",),  # D² itself
}
RULES = ("hoeffding", "chernoff")
SEEDS, TUNING_SEED = (0, 1, 2, 3, 4), 100
SCORE = "validation/mean_average_precision_at_r"
STAGES = ("tune", "choose", "main", "more")


@dataclass(frozen=True)
class Arm:
    """One network: its place in the grid and what differs from the preset."""

    stage: str
    data: str
    loss: str
    arm: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.data}/{self.loss}/{self.arm}/seed-{self.seed}"

    def config(self, out: Path) -> DMLConfig:
        """All of its options."""
        classes, per_class = BATCHES[self.data]
        shown = self.seed == SEEDS[0] and self.stage == "main"
        return replace(
            SMALL,
            loss=self.loss,
            seed=self.seed,
            classes=classes,
            per_class=per_class,
            measure=self.seed != TUNING_SEED,
            keep_embeddings=shown,
            out=out / self.name,
            **self.options,
        )


def tuning(data: str) -> list[Arm]:
    return [
        Arm("tune", data, loss, f"margin {margin:g}", TUNING_SEED, {"margin": margin})
        for loss in GRID_LOSSES
        for margin in LOSSES[loss].candidates
    ]


def choosing(data: str) -> list[Arm]:
    return [
        Arm("choose", data, loss, f"{rule} {units}", TUNING_SEED, adaptive(rule, units=units))
        for loss in GRID_LOSSES
        for units in UNITS[loss]
        for rule in RULES
    ]


def adaptive(rule: str, **options: Any) -> dict[str, Any]:
    return {"margin": "adaptive", "neighbourhood": rule, **options}


def main_arms(data: str, out: Path) -> list[Arm]:
    """Its own, the tuned and the adaptive margins of every loss."""
    arms = []
    for loss in GRID_LOSSES:
        tuned = best(tuning_arms(data, loss), out).options
        kinds = {"default": {}, "tuned": tuned, **{rule: adaptive(rule, units=UNITS[loss][0]) for rule in RULES}}
        arms += [Arm("main", data, loss, kind, seed, options) for seed in SEEDS for kind, options in kinds.items()]
    return arms


def more_arms(data: str, out: Path) -> list[Arm]:
    """What explains the figures of the main arms."""
    arms = []
    for loss in GRID_LOSSES:
        kinds = {
            "chosen": best(choosing_arms(data, loss), out).options,
            "confidence alone": adaptive("chernoff", max_mi=1e-6, units=UNITS[loss][0]),
            "alignment": adaptive("chernoff", dependence="alignment", units=UNITS[loss][0]),
        }
        if loss in ELEMENTWISE:
            grains = ("anchor", "pair")
            kinds |= {grain: adaptive("chernoff", granularity=grain, units=UNITS[loss][0]) for grain in grains}
        arms += [Arm("more", data, loss, kind, seed, options) for kind, options in kinds.items() for seed in SEEDS]
    rivals = {"auto-margin": {}, "dynamic-soft-margin": {}, "margin": {"learn_beta": True}}
    names = {"margin": "learned beta"}
    arms += [
        Arm("more", data, loss, names.get(loss, "default"), seed, options)
        for loss, options in rivals.items()
        for seed in SEEDS
    ]
    return arms


def matched_arms(data: str, out: Path) -> list[Arm]:
    """A constant as high as the chosen adaptive margin of the same seed was on average."""
    arms = []
    for loss in GRID_LOSSES:
        for seed in SEEDS:
            result = load(out / f"{data}/{loss}/chosen/seed-{seed}")
            height = float(np.mean(result["curves"]["margin"]["values"]))
            arms.append(Arm("more", data, loss, "matched constant", seed, {"margin": round(height, 4)}))
    return arms


def tuning_arms(data: str, loss: str) -> list[Arm]:
    return [arm for arm in tuning(data) if arm.loss == loss]


def choosing_arms(data: str, loss: str) -> list[Arm]:
    return [arm for arm in choosing(data) if arm.loss == loss]


def best(arms: list[Arm], out: Path) -> Arm:
    """The arm with the highest validation score; of equal ones the first."""
    return max(arms, key=lambda arm: load(out / arm.name)["selected"]["score"])


def load(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def work(item: tuple[Arm, Path]) -> str:
    """Trains one network in a worker."""
    arm, out = item
    torch.set_num_threads(1)
    config = arm.config(out)
    shutil.rmtree(config.out, ignore_errors=True)  # of a killed run: ten seconds are not worth a resumption
    with contextlib.redirect_stderr(io.StringIO()):
        run(config, DATA[arm.data](), world=World())
    for leftover in ("checkpoints", "tensorboard"):
        shutil.rmtree(config.out / leftover, ignore_errors=True)
    return arm.name


class Clock:
    """Says how far the grid is and how long it will take."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.done, self.began = jobs, 0, time.monotonic()

    def tick(self, name: str, left: int) -> None:
        """One more is done."""
        self.done += 1
        each = (time.monotonic() - self.began) / self.done
        minutes = round(each * left / 60)
        print(f"{name}: {self.done} done now, {left} left, {each:.1f} s each, {minutes} min left", flush=True)


def finish(arms: list[Arm], later: int, out: Path, pool: Any, clock: Clock) -> None:
    """Runs those of ``arms`` that have no result yet; ``later`` are known to come after."""
    todo = [arm for arm in arms if not (out / arm.name / "result.json").exists()]
    for number, name in enumerate(pool.imap_unordered(work, [(arm, out) for arm in todo]), 1):
        clock.tick(name, len(todo) - number + later)


def baselines(data: str) -> Iterator[dict[str, Any]]:
    """What the pixels and a network that has not been trained find on the test classes."""
    images: LabelledImages = DATA[data]()
    test = split_classes(images, seed=0).test
    edge = (SMALL.resize - SMALL.size) // 2
    middle = slice(edge, edge + SMALL.size)
    pixels = torch.from_numpy(images.pixels[test][:, middle, middle]).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.from_numpy(images.labels[test])
    flat = pixels.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    metrics = RetrievalMetrics(clustering="kmeans")
    rows = {("pixels", 0): flat, ("pixels, contrast normalised", 0): nn.functional.normalize(centred, dim=1)}
    for seed in SEEDS:
        torch.manual_seed(seed)
        network = build_network("small", weights="none", embedding_size=SMALL.embedding_size, channels=1).eval()
        with torch.no_grad():
            rows[("untrained network", seed)] = torch.cat([network(part) for part in pixels.split(512)])
    for (name, seed), embeddings in rows.items():
        test_figures = shorter(metrics(embeddings, labels))
        yield {"data": data, "loss": "none", "arm": name, "seed": seed, "stage": "baseline", "test": test_figures}


def merged(out: Path) -> dict[str, Any]:
    """Every result in one document; curves of the margin are kept at the ends of epochs."""
    rows = []
    for row in read_runs(out):
        commit = load(Path(row["folder"]))["environment"]["commit"] or "unknown"
        kept = {name: value for name, value in row.items() if name not in ("folder", "selected_by")}
        rows.append({**kept, "commit": commit[:7]})
    for row in rows:
        # A constant is one number, and tuning's trajectories are nobody's.
        curves = {name: curve for name, curve in row["curves"].items() if name != "loss" and row["test"]}
        row["curves"] = {name: curve if len(set(curve)) > 1 else curve[:1] for name, curve in curves.items()}
        if row["margin"] == "adaptive" and row["units"] == "default":
            # Of arms that left the units to the library, when its defaults were those of the main arms.
            row["units"] = UNITS[row["loss"]][0]
    environment = load(next(out.glob("*/*/*/seed-*/result.json")).parent)["environment"]
    for data in DATA:
        if any(row["data"] == data for row in rows):
            rows += baselines(data)
    classes = {name: f"{c} classes x {m} images" for name, (c, m) in BATCHES.items()}
    preset = {k: v for k, v in json.loads(json.dumps(vars(SMALL), default=str)).items() if k not in ("out", "root")}
    return {
        "command": "python benchmarks/dml_grid.py --out runs/grid",
        "versions": environment.get("versions"),
        "device": f"{environment.get('device')}, one thread a network, on a machine that others used",
        "commits": dict(Counter(row["commit"] for row in rows if "commit" in row).most_common()),
        "preset": preset,
        "batches": classes,
        "tuning_budget": "8 margins a loss and data set, one seed (100), MAP@R on validation classes",
        "candidates": {loss: LOSSES[loss].candidates for loss in GRID_LOSSES},
        "seeds": SEEDS,
        "runs": rows,
    }


def shorter(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in figures.items()}


def main(argv: list[str] | None = None) -> int:
    """Runs what is missing, then writes the merged file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/grid"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time, one thread each")
    parser.add_argument("--only", choices=DATA, help="one data set")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to run")
    parser.add_argument("--merge", action="store_true", help="write the merged file from the runs that are there")
    parser.add_argument("--results", type=Path, help="the merged file; OUT/grid.json unless given")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    out: Path = options.out
    sets = [options.only] if options.only else list(DATA)
    if not options.merge:
        stages = STAGES[: STAGES.index(options.until) + 1]
        with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
            clock = Clock(options.jobs)
            sizes = {"tune": 48, "choose": 28, "main": 120, "more": 175}  # networks a data set
            later = sum(sizes[stage] for stage in stages) * len(sets)
            for stage in stages:
                later -= sizes[stage] * len(sets)
                steps = {
                    "tune": lambda: [arm for data in sets for arm in tuning(data)],
                    "choose": lambda: [arm for data in sets for arm in choosing(data)],
                    "main": lambda: sorted(
                        (arm for data in sets for arm in main_arms(data, out)), key=lambda a: a.seed
                    ),
                    "more": lambda: [arm for data in sets for arm in more_arms(data, out)],
                }
                arms = steps[stage]()
                finish(arms, later + (30 * len(sets) if stage == "more" else 0), out, pool, clock)
                if stage == "more":
                    finish([arm for data in sets for arm in matched_arms(data, out)], 0, out, pool, clock)
    results = options.results or out / "grid.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    document = merged(out)
    head = {name: value for name, value in document.items() if name != "runs"}
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in document["runs"])
    text = json.dumps(head, ensure_ascii=False, indent=1)[:-2] + ',\n "runs": [\n' + lines + "\n]}\n"
    results.write_text(text, encoding="utf-8")
    print(f"wrote {len(document['runs'])} rows to {results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
