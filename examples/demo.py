"""Three stock losses on real images, each with its own margin and with the margin of the batch: ``make demo``.

A small convolutional network learns an embedding of scikit-learn's 8×8 digits, each turned by up to 45° either way.
Six of the ten classes are seen in training, the other four measure it; each seed draws another split, initialisation,
batches and turns, and both margins of a loss get the same ones. Nothing is selected: the network after the last step is
the one that is measured. The pixels themselves are measured beside it, as a network that has learned nothing.

    python examples/demo.py [--seeds 5] [--steps 200] [--out runs/demo] [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import multiprocessing
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from adaptive_margin import AdaptiveMarginLoss
from adaptive_margin.metrics import student_interval

LOSSES: dict[str, Callable[[], nn.Module]] = {
    "ContrastiveLoss": losses.ContrastiveLoss,
    "TripletMarginLoss": losses.TripletMarginLoss,
    "MarginLoss": losses.MarginLoss,
}
MARGINS = ("own", "adaptive")
METRICS = {"precision_at_1": "Recall@1", "mean_average_precision_at_r": "MAP@R", "NMI": "NMI"}
CURVES = {"mi": "MI", "delta": "Δ", "alpha": "α̂ = MI + Δ"}
FILES = ("results.json", "results.csv", "margin.png")
SEEN_CLASSES, IMAGES_PER_CLASS, EMBEDDING_SIZE, LEARNING_RATE = 6, 8, 64, 1e-3


@dataclass(frozen=True)
class Run:
    """One network: a loss, the margin it gets, and the seed of everything random."""

    loss: str
    margin: str
    seed: int
    steps: int


def turned(images: Tensor, degrees: float = 45.0) -> Tensor:
    """Each image turned by up to 45°, moved by up to a pixel and scaled by up to a tenth."""
    n, size = len(images), images.shape[-1]
    angle = (torch.rand(n) * 2 - 1) * torch.pi * degrees / 180
    scale = 1 + (torch.rand(n) * 2 - 1) / 10
    move = (torch.rand(n, 2) * 2 - 1) * 2 / size
    rows = (
        torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(n, 2, 2) * scale[:, None, None]
    )
    grid = functional.affine_grid(torch.cat([rows, move[:, :, None]], dim=2), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def network() -> nn.Module:
    """Two convolutions and a linear layer: 84,416 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 4 * 4, EMBEDDING_SIZE)),
    )


def split_digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """Seeds everything; training images and labels, turned test images and labels, and the unseen classes."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the host's sampler draws from the global generator
    digits = load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32)[:, None] / 16  # (1797, 1, 8, 8) in [0, 1]
    labels = torch.as_tensor(digits.target)
    unseen = np.sort(np.random.default_rng(seed).permutation(10)[SEEN_CLASSES:])
    held_out = torch.isin(labels, torch.as_tensor(unseen))
    return images[~held_out], labels[~held_out], turned(images[held_out]), labels[held_out], unseen.tolist()


def measure(embeddings: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
    """Retrieval among the test images, each in turn the query, and k-means clusters against their classes."""
    calculator = AccuracyCalculator(
        include=tuple(METRICS),
        k="max_bin_count",
        knn_func=CustomKNN(LpDistance()),
        kmeans_func=lambda x, k: torch.as_tensor(KMeans(k, n_init=10, random_state=seed).fit_predict(x)),
    )
    with threadpool_limits(1):
        scores = calculator.get_accuracy(functional.normalize(embeddings), labels)
    return {name: scores[name] for name in METRICS}


def measure_pixels(seed: int) -> dict[str, Any]:
    """What a network that has learned nothing would score."""
    _, _, images, labels, unseen = split_digits(seed)
    row = {"loss": "pixels", "margin": "none", "seed": seed, "steps": 0, "unseen": unseen}
    return {**row, **measure(images.flatten(1), labels, seed)}


def train_and_measure(run: Run, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Trains one network on the seen classes and measures it on the unseen ones."""
    torch.set_num_threads(1)  # two networks at a time are faster than one on two cores
    images, labels, test_images, test_labels, unseen = split_digits(run.seed)
    model = network()
    loss = LOSSES[run.loss]()
    if run.margin == "adaptive":
        loss = AdaptiveMarginLoss(loss)  # the one line
        loss.collect_stats = loss.margin.collect_stats = True  # for the plot
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    batch = SEEN_CLASSES * IMAGES_PER_CLASS
    sampler = MPerClassSampler(labels, m=IMAGES_PER_CLASS, batch_size=batch, length_before_new_iter=batch * run.steps)
    curves: dict[str, list[float]] = {name: [] for name in (*CURVES, "in_loss")}
    for rows in torch.as_tensor(list(sampler)).split(batch):
        value = loss(model(turned(images[rows])), labels[rows])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if run.margin == "adaptive":
            for name in CURVES:
                curves[name].append(round(getattr(loss.margin, name), 5))
            curves["in_loss"].append(round(loss.current_margin, 5))
        tick()
    with torch.no_grad():
        scores = measure(model(test_images), test_labels, run.seed)
    return {**asdict(run), "unseen": unseen, **scores, "curves": curves}


_steps_done: Any = None


def _start_worker(steps_done: Any) -> None:
    global _steps_done
    _steps_done = steps_done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, which ends its workers


def _in_worker(run: Run) -> dict[str, Any]:
    def tick() -> None:
        with _steps_done.get_lock():
            _steps_done.value += 1

    return train_and_measure(run, tick)


def train_all(runs: Sequence[Run], workers: int, finished: list[dict[str, Any]]) -> None:
    """Appends each run's result to ``finished`` as it comes; results do not depend on the number of workers."""
    context = multiprocessing.get_context("spawn")
    steps_done = context.Value("q", 0)
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C while they import is not theirs
    pool = context.Pool(min(workers, len(runs)), _start_worker, (steps_done,))
    signal.signal(signal.SIGINT, on_interrupt)
    seconds_between_bars = 0.2 if sys.stderr.isatty() else 10
    bar = tqdm(
        total=sum(run.steps for run in runs),
        desc=f"{len(runs)} networks",
        unit=" steps",
        smoothing=0.05,
        mininterval=seconds_between_bars,
    )
    with bar, pool:  # leaving it ends the workers
        results = pool.imap_unordered(_in_worker, runs)
        while len(finished) < len(runs):
            with contextlib.suppress(multiprocessing.TimeoutError):
                finished.append(results.next(timeout=0.2))
            bar.update(steps_done.value - bar.n)


def scores_of(results: Sequence[dict[str, Any]], loss: str, margin: str, metric: str) -> np.ndarray:
    """One number a seed, in per cent, in the order of the seeds."""
    rows = [r for r in results if (r["loss"], r["margin"]) == (loss, margin)]
    return np.array([100 * r[metric] for r in sorted(rows, key=lambda r: r["seed"])])


def paired(own: np.ndarray, adaptive: np.ndarray) -> tuple[float, float]:
    """Mean of the paired differences and half the width of its 95 % interval (Student's; infinite for one pair)."""
    if len(own) < 2:
        return float((adaptive - own).mean()), float("inf")
    mean, _, high = student_interval(adaptive - own)
    return mean, high - mean


def table(results: Sequence[dict[str, Any]]) -> str:
    """What was measured on the unseen classes, for the seeds that both margins of a loss have."""
    seeds = sorted({r["seed"] for r in results})
    lines = [
        f"Unseen classes, in per cent: mean ± standard deviation over {len(seeds)} seeds;",
        "below them the mean of the paired differences and its 95 % interval.",
        "",
        _row("loss", "margin", list(METRICS.values())),
    ]
    pixels = [scores_of(results, "pixels", "none", metric) for metric in METRICS]
    lines.append(_row("no network", "pixels", [_spread(x) for x in pixels]))
    better: list[str] = []
    worse: list[str] = []
    for loss, make in LOSSES.items():
        swap = AdaptiveMarginLoss.supported()[loss]
        named = {"own": f"own, {getattr(make(), swap.attribute)}", "adaptive": f"adaptive, {swap.units}"}
        scores = {margin: [scores_of(results, loss, margin, metric) for metric in METRICS] for margin in MARGINS}
        for margin in MARGINS:
            lines.append(_row(loss, named[margin], [_spread(x) for x in scores[margin]]))
        cells = []
        for metric, own, adaptive in zip(METRICS.values(), scores["own"], scores["adaptive"], strict=True):
            mean, half = paired(own, adaptive)
            cells.append(f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]")
            if abs(mean) > half:
                (better if mean > 0 else worse).append(f"{loss} {metric}")
        lines.append(_row("", "adaptive − own", cells))
    lines += [
        "",
        f"Better with the adaptive margin, the interval above zero: {', '.join(better) or 'none'}.",
        f"Worse, the interval below zero: {', '.join(worse) or 'none'}.",
    ]
    return "\n".join(lines)


def _row(loss: str, margin: str, cells: Sequence[str]) -> str:
    return f"{loss:<18} {margin:<16}" + "".join(f"{cell:>24}" for cell in cells)


def _spread(x: np.ndarray) -> str:
    return f"{x.mean():.1f} ± {x.std(ddof=1):.1f}" if len(x) > 1 else f"{x.mean():.1f}"


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """MI, Δ and α̂ over training, and what the loss makes of α̂: the mean over seeds, and their range."""
    import matplotlib

    matplotlib.use("Agg")  # here, not above: the workers need neither
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(LOSSES), figsize=(4 * len(LOSSES), 3.4), sharey=True, layout="constrained")
    for panel, loss in zip(panels, LOSSES, strict=True):
        curves = [r["curves"] for r in results if (r["loss"], r["margin"]) == (loss, "adaptive")]
        swap = AdaptiveMarginLoss.supported()[loss]
        for name, label in {**CURVES, "in_loss": "in the loss's own unit"}.items():
            values = np.array([c[name] for c in curves])  # (seeds, steps)
            (line,) = panel.plot(values.mean(0), label=label, lw=1.2, ls=":" if name == "in_loss" else "-")
            panel.fill_between(range(values.shape[1]), values.min(0), values.max(0), color=line.get_color(), alpha=0.15)
        panel.set(title=f"{loss} ({swap.units})", xlabel="step")
    panels[0].set_ylabel("margin (squared distance)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write_numbers(out: Path, results: Sequence[dict[str, Any]], options: argparse.Namespace, seconds: float) -> None:
    """``results.json`` with everything, ``results.csv`` with one row a network."""
    packages = ("adaptive-margin", "torch", "pytorch-metric-learning", "numpy", "scikit-learn")
    order = ("pixels", *LOSSES)
    rows = sorted(results, key=lambda r: (order.index(r["loss"]), r["seed"], ("none", *MARGINS).index(r["margin"])))
    document = {
        "command": "python examples/demo.py " + " ".join(options.given),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "complete": len(results) == (len(LOSSES) * len(MARGINS) + 1) * options.seeds,
        "config": {
            "seeds": options.seeds,
            "steps": options.steps,
            "seen_classes": SEEN_CLASSES,
            "images_per_class": IMAGES_PER_CLASS,
            "embedding_size": EMBEDDING_SIZE,
            "learning_rate": LEARNING_RATE,
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "device": f"cpu, {platform.machine()}, {os.cpu_count()} cores, {options.workers} networks at a time",
        "runs": rows,
    }
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    with (out / "results.csv").open("w", newline="", encoding="utf-8") as file:
        columns = ["loss", "margin", "seed", "unseen", *METRICS]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, "unseen": " ".join(map(str, row["unseen"]))} for row in rows)


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:  # run from a checkout that is not installed
        return "not installed"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, paired between margins (5)")
    parser.add_argument("--steps", type=int, default=200, help="training steps of each network (200)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write to (runs/demo)")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="networks at a time (2)")
    parser.add_argument(
        "--quick", action="store_true", help="2 seeds of 20 steps: does it run? The scores mean nothing"
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.seeds, options.steps = 2, 20
    for name in ("seeds", "steps", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    options.given = list(argv)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, measures, prints and writes; returns the exit status."""
    options = parse(sys.argv[1:] if argv is None else argv)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    old = [out / name for name in FILES if (out / name).exists()]
    if old:
        print(f"Overwriting the results of an earlier run in {out}/.")
    for path in old:
        path.unlink()  # an interrupted run must not leave another run's plot beside its own numbers
    print(f"{SEEN_CLASSES} of the 10 digits are seen in training, the other {10 - SEEN_CLASSES} measure it.")
    runs = [
        Run(loss, margin, seed, options.steps) for seed in range(options.seeds) for loss in LOSSES for margin in MARGINS
    ]
    results: list[dict[str, Any]] = []
    start = time.perf_counter()
    try:
        train_all(runs, options.workers, results)
    except KeyboardInterrupt:
        print(f"\nStopped after {len(results)} of {len(runs)} networks.", end=" ")
        if results:
            write_numbers(out, results, options, time.perf_counter() - start)
        print(f"Wrote their numbers to {out / FILES[0]} and {FILES[1]}." if results else "Nothing was written.")
        return 130
    results += [measure_pixels(seed) for seed in range(options.seeds)]
    seconds = time.perf_counter() - start
    print(f"\n{table(results)}\n")
    write_numbers(out, results, options, seconds)
    plot(results, out / "margin.png")
    print(
        f"{seconds:.0f} s. Wrote {out}/: {FILES[0]} (every number, versions), {FILES[1]} (one row a network), "
        f"{FILES[2]} (MI, Δ and α̂ over training)."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
