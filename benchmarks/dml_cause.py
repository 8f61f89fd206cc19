"""Why the adaptive margin behaves as it does in metric learning: what MI and Δ respond to while a network learns.

On the drawn characters, batches of 32 classes × 4, one seed, for some losses and margins and at some steps:

- MI of the batch, and MI of the same embeddings with shuffled labels: what remains does not come from the labels;
- Δ under both rules, and shuffled;
- the length of the mean embedding (1: all point one way), the dimensions in use (participation ratio of the second
  moments), distances within and across classes, Recall@1 on validation classes.

The same without a network, for constructed embeddings. Takes four minutes on one core:

    python benchmarks/dml_cause.py              # writes benchmarks/dml/results/cause.json
    python benchmarks/dml_cause.py --print      # the tables of the committed numbers
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from script import Parser, print_results, read_results, write_results

from adaptive_margin.dml.config import SMALL
from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import ends_in_order

RESULTS = Path(__file__).parent / "dml" / "results" / "cause.json"
STEPS = (1, 10, 20, 40, 80, 160, 240)


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__, RESULTS)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="training steps at which to measure")
    parser.add_argument("--losses", nargs="+", help="only these losses")
    parser.add_argument("--yes", action="store_true", help="start although it will take more than a day")
    return parser.parse_args(argv)


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import torch
from torch import Tensor
from torch.nn.functional import normalize

from adaptive_margin import AdaptiveMargin
from adaptive_margin.dml.embedded import fonts
from adaptive_margin.dml.labelled_images import split_classes
from adaptive_margin.dml.trainer import DMLJob
from adaptive_margin.training import World, environment
from adaptive_margin.training.command_line import check_output, json_with
from adaptive_margin.training.forecast import Work, announce, forecast


def adaptive(units: str, **options: Any) -> dict[str, Any]:
    """The adaptive margin in explicit units, since the library's default may change."""
    return {"margin": "adaptive", "neighbourhood": "chernoff", "units": units, **options}


ARMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("contrastive", {"margin": "default"}),
    ("contrastive", adaptive("sqrt")),
    ("contrastive", adaptive("sqrt", max_mi=1e-6)),
    ("triplet-distance", {"margin": "default"}),
    ("triplet-distance", adaptive("sqrt")),
    ("margin", adaptive("sqrt")),
    ("multi-similarity", adaptive("replace")),
    ("proxy-anchor", {"margin": "default"}),
    ("proxy-anchor", adaptive("offset")),
    ("vdm", adaptive("default")),  # the squared distance itself
)
COLUMNS = {
    "mi": "MI",
    "mi_shuffled": "MI, labels shuffled",
    "delta_hoeffding": "Δ Hoeffding",
    "delta_chernoff": "Δ Chernoff",
    "delta_shuffled": "Δ Chernoff, labels shuffled",
    "mean_length": "length of the mean",
    "dimensions": "dimensions in use",
    "within": "distance within",
    "across": "distance across",
    "recall": "Recall@1, per cent",
}


def parts_of_the_margin(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """MI and Δ of a batch, with its labels and with shuffled ones, and how the embeddings lie."""
    torch.manual_seed(0)
    shuffled = labels[torch.randperm(len(labels))]
    margins = {rule: AdaptiveMargin(neighbourhood=rule, collect_stats=True) for rule in ("hoeffding", "chernoff")}
    for margin in margins.values():
        margin(embeddings, labels)
    blind = AdaptiveMargin(neighbourhood="chernoff", collect_stats=True)
    blind(embeddings, shuffled)
    moments = torch.linalg.eigvalsh(embeddings.double().T @ embeddings.double()).clamp(min=0)
    distances = torch.cdist(embeddings, embeddings)
    same = (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool)
    return {
        "mi": margins["chernoff"].mi,
        "mi_shuffled": blind.mi,
        "delta_hoeffding": margins["hoeffding"].delta,
        "delta_chernoff": margins["chernoff"].delta,
        "delta_shuffled": blind.delta,
        "mean_length": float(embeddings.mean(0).norm()),
        "dimensions": float(moments.sum().square() / moments.square().sum()),
        "within": float(distances[same].mean()),
        "across": float(distances[labels[:, None] != labels].mean()),
    }


def made_to_order() -> Iterator[dict[str, Any]]:
    """Embeddings without a network: 32 classes × 4 in 64 dimensions."""
    torch.manual_seed(0)
    labels = torch.arange(32).repeat_interleave(4)
    noise, classes, common = normalize(torch.randn(128, 64)), normalize(torch.randn(32, 64)), torch.randn(1, 64)
    common = normalize(common)
    made = {
        "no classes, evenly spread": noise,
        "no classes, half a common direction": normalize(noise + 0.5 * common),
        "no classes, mostly a common direction": normalize(noise + 2 * common),
        "pure classes": normalize(classes[labels] + 0.1 * noise),
        "pure classes, mostly a common direction": normalize(classes[labels] + 0.1 * noise + 2 * common),
    }
    for name, embeddings in made.items():
        yield {"embeddings": name, **parts_of_the_margin(embeddings, labels)}


def job_of(loss: str, options: dict[str, Any]) -> DMLJob:
    """The job that trains a network."""
    data = fonts()
    split = split_classes(data, validation=SMALL.validation, seed=0)
    return DMLJob(replace(SMALL, loss=loss, **options), data, data.pixels, split, World())


def training(loss: str, options: dict[str, Any], steps: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """The same while a network learns, on one batch of training classes in evaluation mode."""
    job = job_of(loss, options)
    for step in range(max(steps)):
        job.step(step)
        if step + 1 in steps:
            job.network.eval()
            images, rows = job.pixels.training, job.batches.rows(10**6)  # a batch that no step of training has
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                embeddings = job.network(images(job.split.train[rows], slice(None), generator))
            found = parts_of_the_margin(embeddings, torch.from_numpy(job.targets[rows]))
            recall = job.evaluate()["validation/recall_at_1"]
            yield {"loss": loss, **options, "step": step + 1, **found, "recall": 100 * recall}


def tables(document: dict[str, Any]) -> str:
    """Both in Markdown."""
    head = [name for name in COLUMNS if name != "recall"]
    lines = ["| embeddings | " + " | ".join(COLUMNS[name] for name in head) + " |", "|---" * (len(head) + 1) + "|"]
    for row in document["made to order"]:
        lines.append(f"| {row['embeddings']} | " + " | ".join(f"{row[name]:.3f}" for name in head) + " |")
    lines += ["", "| loss | margin | step | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 3) + "|"]
    for row in document["training"]:
        units = f", {row['units']}" if row.get("units", "default") != "default" else ""
        margin = f"{row['margin']}{units}{', Δ alone' if 'max_mi' in row else ''}"
        cells = " | ".join(
            f"{row[name]:.1f}" if name in ("recall", "dimensions") else f"{row[name]:.3f}" for name in COLUMNS
        )
        lines.append(f"| {row['loss']} | {margin} | {row['step']} | {cells} |")
    return "\n".join(lines)


@ends_in_order("nothing is written")
@said_plainly()
def main(argv: list[str] | None = None) -> int:
    """Measures, writes and prints."""
    options = parsed(argv)
    if options.print:
        print_results(options.out, lambda: tables(read_results(options.out)))
        return 0
    check_output("--out", options.out, file=True, replaces=json_with("made to order", "training"))
    torch.set_num_threads(1)
    wanted = [(loss, more) for loss, more in ARMS if options.losses is None or loss in options.losses]
    left = [Work(job=partial(job_of, *arm), iterations=max(options.steps)) for arm in wanted]
    announce(forecast(left), options.yes)
    rows = [row for loss, more in wanted for row in training(loss, more, tuple(options.steps))]
    here = environment(World())
    document = {
        "command": "python benchmarks/dml_cause.py",
        **{name: here[name] for name in ("versions", "device", "commit")},
        "made to order": [_rounded(row) for row in made_to_order()],
        "training": [_rounded(row) for row in rows],
    }
    print(tables(document))
    write_results(options.out, document, ensure_ascii=False)
    return 0


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 7) if isinstance(value, float) else value for name, value in row.items()}


if __name__ == "__main__":
    sys.exit(main())
