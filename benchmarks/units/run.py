"""Which units and which neighbourhood rule an untuned adaptive margin should have, loss by loss.

Two settings of real images that need no download, with validation classes that no network is trained on:

- ``digits``: scikit-learn's 8×8 digits, turned by up to 45°. Few classes with many images: 4 classes to train, 2 to
  validate, batches of 4 × 12. They are the six classes that `examples/demo.py` sees in training: the classes that
  measure the demo play no part here.
- ``glyphs``: characters of the fonts that ship with matplotlib. Many classes with few images: batches of 32 × 4 from
  half of the characters that are not set aside for tests, the other half validates.

Every arm of a setting has the same network, seeds, batches and steps; the network after the last step is measured.
Writes ``results/units.json`` (config, versions, device, one row a network) and prints the table.

    python benchmarks/units/run.py [--seeds 3] [--steps 150] [--workers 1] [--only glyphs]
    python benchmarks/units/run.py --print        # the table of the results that are there
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import cache
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
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss

RESULTS = Path(__file__).parent / "results" / "units.json"
EMBEDDING_SIZE, LEARNING_RATE = 64, 1e-3
RULES = ("hoeffding", "chernoff")
METRICS = {"precision_at_1": "Recall@1", "mean_average_precision_at_r": "MAP@R"}
LOSSES: dict[str, tuple[Callable[[int], nn.Module], tuple[str, ...]]] = {  # the units that mean something to each
    "ContrastiveLoss": (lambda classes: losses.ContrastiveLoss(), ("replace", "sqrt", "offset")),
    "TripletMarginLoss": (lambda classes: losses.TripletMarginLoss(), ("replace", "sqrt", "offset")),
    "MarginLoss": (lambda classes: losses.MarginLoss(), ("replace", "sqrt", "offset")),
    "MultiSimilarityLoss": (lambda classes: losses.MultiSimilarityLoss(), ("replace", "offset")),
    "CosFaceLoss": (lambda classes: losses.CosFaceLoss(classes, EMBEDDING_SIZE), ("replace", "offset")),
    "ArcFaceLoss": (lambda classes: losses.ArcFaceLoss(classes, EMBEDDING_SIZE), ("replace", "sqrt", "offset")),
    "ProxyAnchorLoss": (lambda classes: losses.ProxyAnchorLoss(classes, EMBEDDING_SIZE), ("replace", "offset")),
}
SETTINGS = {"digits": (4, 12), "glyphs": (32, 4)}  # classes and images of each in a batch


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


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and validation images and labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.as_tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.as_tensor(data.target)
    seen = torch.as_tensor(np.random.default_rng(seed).permutation(10)[:6])  # as the demo splits them
    return _parts(images, labels, seen[:4], seen[4:])


def glyphs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for characters; a third of them is set aside for tests, the same third for every seed."""
    images, labels = _rendered()
    characters = torch.as_tensor(np.random.default_rng(2021).permutation(int(labels.max()) + 1))
    characters = characters[len(characters) // 3 :]
    characters = characters[torch.as_tensor(np.random.default_rng(seed).permutation(len(characters)))]
    return _parts(images, labels, characters[: len(characters) // 2], characters[len(characters) // 2 :])


def _parts(images: Tensor, labels: Tensor, train: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    in_train, in_valid = torch.isin(labels, train), torch.isin(labels, valid)
    index = torch.empty(int(labels.max()) + 1, dtype=torch.int64)
    index[train] = torch.arange(len(train))  # proxies count classes from 0
    return images[in_train], index[labels[in_train]], images[in_valid], labels[in_valid]


@cache
def _rendered() -> tuple[Tensor, Tensor]:
    """Letters and digits of Latin, Greek and Cyrillic, 12×12, in 16 fonts; look-alikes in the first font are one."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted(
        [*folder.glob("DejaVuSans*.ttf"), *folder.glob("DejaVuSerif*.ttf"), *folder.glob("STIXGeneral*.ttf")]
    )
    fonts = [ImageFont.truetype(str(file), 40) for file in files if "Display" not in file.name]  # they have few letters
    images, labels, looks = [], [], set()
    codes = [*range(0x30, 0x3A), *range(0x41, 0x5B), *range(0x61, 0x7B), *range(0x391, 0x3CA), *range(0x410, 0x450)]
    for code in codes:
        drawn = []
        for font in fonts:
            canvas = Image.new("L", (48, 48))
            ImageDraw.Draw(canvas).text((24, 24), chr(code), fill=255, font=font, anchor="mm")
            drawn.append(np.asarray(canvas.resize((12, 12), Image.Resampling.BOX), dtype=np.float32) / 255)
        look = drawn[0].tobytes()
        if chr(code).isalnum() and look not in looks:
            looks.add(look)
            images += drawn
            labels += [len(looks) - 1] * len(drawn)
    return torch.as_tensor(np.stack(images))[:, None], torch.as_tensor(labels)


def train_and_measure(row: dict[str, Any]) -> dict[str, Any]:
    """Trains one network and measures it on validation classes."""
    torch.set_num_threads(1)
    classes, per_class = SETTINGS[row["setting"]]
    turn = turned if row["setting"] == "digits" else lambda images: images
    images, labels, valid_images, valid_labels = {"digits": digits, "glyphs": glyphs}[row["setting"]](row["seed"])
    torch.manual_seed(row["seed"])
    np.random.seed(row["seed"])  # noqa: NPY002 - the host's sampler draws from the global generator
    valid_images = turn(valid_images)
    size = images.shape[-1] // 2
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * size * size, EMBEDDING_SIZE)),
    )
    loss = LOSSES[row["loss"]][0](int(labels.max()) + 1)
    if row["units"] != "own":
        margin = AdaptiveMargin(neighbourhood=row["rule"], collect_stats=True)
        loss = AdaptiveMarginLoss(loss, margin, units=row["units"], collect_stats=True)
    groups = [{"params": model.parameters()}, {"params": list(loss.parameters()), "lr": 10 * LEARNING_RATE}]
    optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE)
    batch = classes * per_class
    sampler = MPerClassSampler(labels, m=per_class, batch_size=batch, length_before_new_iter=batch * row["steps"])
    start = time.process_time()
    for rows in torch.as_tensor(list(sampler)).split(batch):
        value = loss(model(turn(images[rows])), labels[rows])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    seconds = time.process_time() - start
    with torch.no_grad():
        embeddings = torch.cat([model(part) for part in valid_images.split(512)])
    calculator = AccuracyCalculator(include=tuple(METRICS), k="max_bin_count", knn_func=CustomKNN(LpDistance()))
    scores = calculator.get_accuracy(embeddings, valid_labels)
    last = (
        {name: round(getattr(loss.margin, name), 5) for name in ("mi", "delta", "k")} if row["units"] != "own" else {}
    )
    if last:
        last["in_loss"] = round(loss.current_margin, 5)
    scores = {name: round(100 * scores[name], 3) for name in METRICS}
    return {**row, **scores, **last, "cpu_seconds": round(seconds, 2)}


def arms() -> list[tuple[str, str, str]]:
    """(loss, units, rule): each loss's own margin, then every meaningful combination."""
    combinations = []
    for name, (_, units) in LOSSES.items():
        combinations += [(name, "own", "")] + [(name, unit, rule) for unit in units for rule in RULES]
    return combinations


def table(document: dict[str, Any]) -> str:
    """Mean ± standard deviation, and the paired difference to the loss's own margin with its standard error."""
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in document["runs"]):
        runs = [row for row in document["runs"] if row["setting"] == setting]
        seeds = sorted({row["seed"] for row in runs})
        lines += [f"### {setting}: validation classes, per cent, {len(seeds)} seeds", ""]
        lines += ["| loss | units | rule | Recall@1 | MAP@R | MAP@R − own | margin in the loss | MI | Δ |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for loss, units, rule in arms():
            of = [
                r
                for s in seeds
                for r in runs
                if (r["loss"], r["units"], r["rule"], r["seed"]) == (loss, units, rule, s)
            ]
            own = [r for s in seeds for r in runs if (r["loss"], r["units"], r["seed"]) == (loss, "own", s)]
            cells = []
            for metric in METRICS:
                values = np.array([r[metric] for r in of])
                cells.append(f"{values.mean():.1f} ± {values.std(ddof=1) if len(values) > 1 else np.nan:.1f}")
            if units == "own":
                cells += ["", "", "", ""]
            else:
                gap = np.array([r[metric] for r in of]) - np.array([r[metric] for r in own])
                error = gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else np.nan
                cells.append(f"{gap.mean():+.1f} ± {error:.1f}")
                cells += [f"{np.mean([r[name] for r in of]):.3f}" for name in ("in_loss", "mi", "delta")]
            lines.append(f"| {loss} | {units} | {rule} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for and keeps the rest of an earlier file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", choices=SETTINGS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args()
    if options.print:
        print(table(json.loads(options.out.read_text(encoding="utf-8"))))
        return
    settings = [options.only] if options.only else list(SETTINGS)
    rows = [
        {"setting": setting, "loss": loss, "units": units, "rule": rule, "seed": seed, "steps": options.steps}
        for setting in settings
        for seed in range(options.seeds)
        for loss, units, rule in arms()
    ]
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        runs = list(tqdm(pool.imap(train_and_measure, rows), total=len(rows), mininterval=5))
    if options.out.exists():
        old = json.loads(options.out.read_text(encoding="utf-8"))["runs"]
        runs = [row for row in old if row["setting"] not in settings] + runs
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    document = {
        "command": "python benchmarks/units/run.py " + " ".join(sys.argv[1:]),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "seconds": round(time.perf_counter() - start),
        "cpu_seconds_training": round(sum(row["cpu_seconds"] for row in runs)),
        "config": {
            "seeds": options.seeds,
            "steps": options.steps,
            "batches": {name: f"{c} classes × {m} images" for name, (c, m) in SETTINGS.items()},
            "embedding_size": EMBEDDING_SIZE,
            "learning_rate": LEARNING_RATE,
            "learning_rate_of_proxies": 10 * LEARNING_RATE,
        },
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("torch", "pytorch-metric-learning", "numpy", "scikit-learn", "matplotlib")
            },
        },
        "device": f"cpu, {platform.machine()}, {os.cpu_count()} cores, one thread a network",
        "runs": runs,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(document))


if __name__ == "__main__":
    main()
