"""Remedies of errors that are worded where they are raised, and not by ``problem``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from pytorch_metric_learning import losses

from adaptive_margin import AdaptiveMarginLoss
from adaptive_margin.affect import load_afew_va, load_aff_wild
from adaptive_margin.dml.backbones import build_network
from adaptive_margin.dml.datasets import load_cub
from adaptive_margin.training import Checkpoints, RunFolder, World, from_yaml, read_options, seed_everything, train

from ..affect.export import export_afew_va, export_aff_wild
from ..affect.faces import samples
from ..dml import stand_ins
from ..training.toy import Toy
from .following import follow

X = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4


@dataclass(frozen=True)
class Options:
    width: int
    rate: float = 0.1


def options(folder: Path, text: str) -> bool:
    (folder / "options.yaml").write_text(text)
    return from_yaml(Options, folder / "options.yaml") == Options(width=3)


def trained(folder: Path, name: str = "run", *, rate: float = 0.1, resume: bool = True, **faults: Any) -> bool:
    seed_everything(0)
    world, every = World(), {"checkpoint_every": 2, "evaluate_every": 2, "log_every": 1}
    config = {"rate": rate, "seed": 0}
    with RunFolder(folder / name, config, world=world, resume=resume, outcomes=["result.json"]) as place:
        summary = train(Toy(world, **faults), steps=6, folder=place, world=world, score="score", **every)
    return summary.steps == 6


def then(change: Callable[[Path], object], **again: Any) -> Callable[[Path], bool]:
    """A run of which something changes before it goes on."""

    def call(folder: Path) -> bool:
        trained(folder)
        change(folder / "run")
        return trained(folder, **again)

    return call


def spoil(run: Path, kind: str = "*") -> None:
    for path in (run / "checkpoints").glob(f"{kind}.pt"):
        path.write_bytes(b"spoilt")


def remove_checkpoints(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        path.unlink()


def end_without_checkpoints(run: Path) -> None:
    (run / "result.json").write_text("{}")
    remove_checkpoints(run)


def spoilt_best(folder: Path) -> None:
    trained(folder)
    spoil(folder / "run", "best*")
    Checkpoints(folder / "run" / "checkpoints").best()


def after(change: Callable[[Path], object], **again: Any) -> Callable[[Path], bool]:
    """What a reader changes in the run that was refused, and the run again."""

    def call(folder: Path) -> bool:
        change(folder / "run")
        return trained(folder, **again)

    return call


def nothing(run: Path) -> None:
    """As it is."""


def put(name: str, text: str) -> Callable[[Path], object]:
    return lambda run: (run.mkdir(exist_ok=True), (run / name).write_text(text))


def others_files(folder: Path) -> bool:
    put("notes.txt", "mine")(folder / "run")
    return trained(folder)


def loss(wrapped: Any) -> bool:
    return bool(torch.isfinite(wrapped(X, Y)))


def penalised(pair_memory: Any) -> bool:
    """A penalty on the gradient of a loss."""
    x = X.clone().requires_grad_()
    value = AdaptiveMarginLoss(losses.ContrastiveLoss(), pair_memory=pair_memory)(x, Y)
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    gradient.square().sum().backward()
    return bool(torch.isfinite(x.grad).all())


def offline(folder: Path, weights: str, freeze: bool = True) -> bool:
    """A network where nothing can be fetched."""
    from torchvision.models import resnet18

    if weights == "FILE":
        weights = str(folder / "weights.pt")
        torch.save(resnet18().state_dict(), weights)
    with mock.patch("torchvision.models._api.load_state_dict_from_url", side_effect=OSError("no network")):
        net = build_network("resnet18", weights=weights, embedding_size=8, freeze_batch_norm=freeze).eval()
    return net(torch.ones(1, 3, 32, 32)).shape == (1, 8)


def birds(folder: Path, missing: bool = False) -> bool:
    place = folder / ("part" if missing else "whole")
    stand_ins.cub(place)
    if missing:
        next(place.rglob("Bird_3_0001_1.jpg")).unlink()
    return len(load_cub(place, counts=None)) == 48


def afew(folder: Path, keep: Callable[[Path], object] = lambda path: None, **options: Any) -> bool:
    """A data set of eight frames, one of which may be lost."""
    root = folder / "AFEW-VA"
    if not root.exists():
        export_afew_va(root, samples(8, videos=2))
    keep(root / "001" / "00001.png")
    return load_afew_va(root, **options).report.rows_read == 8


def lose(path: Path) -> None:
    path.rename(path.with_name("kept"))


def restore(path: Path) -> None:
    path.with_name("kept").rename(path)


def wild(folder: Path, **options: Any) -> bool:
    root = folder / "Aff-Wild"
    if not root.exists():
        export_aff_wild(root, samples(6, videos=2))
        (root / "bboxes").rename(root / "elsewhere")
    return load_aff_wild(root, frames_dir=folder / "frames", **options).report.rows_used == 6


CASES = [
    # run_folder.py
    follow(
        "choose another folder, or empty it",
        others_files,
        lambda folder: trained(folder, "another"),
        after(lambda run: (run / "notes.txt").unlink()),
    ),
    follow(
        "resume it, or choose another folder",
        then(nothing, resume=False),
        lambda folder: trained(folder),
        lambda folder: trained(folder, "another", resume=False),
    ),
    follow(
        "choose another folder, or remove result.json to train from the beginning",
        then(end_without_checkpoints),
        lambda folder: trained(folder, "another"),
        after(lambda run: (run / "result.json").unlink()),
    ),
    follow(
        "restore it from a backup, or choose another folder",
        then(put("config.yaml", "[")),
        after(put("config.yaml", "rate: 0.1\nseed: 0\n")),
        lambda folder: trained(folder, "another"),
    ),
    follow(
        "choose another folder, or give the options that the run there was started with",
        then(nothing, rate=0.2),
        lambda folder: trained(folder, "another", rate=0.2),
        lambda folder: trained(folder, rate=read_options(folder / "run" / "config.yaml")["rate"]),
    ),
    # checkpoints.py, loop.py
    follow(
        "restore the folder from a backup, or delete it to train from the beginning",
        then(spoil),
        after(lambda run: shutil.rmtree(run / "checkpoints")),
    ),
    follow(
        "or use the newest checkpoint",
        spoilt_best,
        lambda folder: Checkpoints(folder / "run" / "checkpoints").latest()[0] == 6,
    ),
    follow(
        "resumes from the checkpoint of step 4; a run with a lower learning rate or clipped gradients",
        lambda folder: trained(folder, nan=4),
        lambda folder: trained(folder),
        lambda folder: trained(folder, "another", rate=0.01),
    ),
    # config_files.py
    follow(
        "the nearest: width",
        lambda folder: options(folder, "widht: 3"),
        lambda folder: options(folder, "width: 3"),
    ),
    follow(
        "option width is missing; it has no default",
        lambda folder: options(folder, "rate: 0.1"),
        lambda folder: options(folder, "rate: 0.1\nwidth: 3"),
    ),
    # losses, functional
    follow(
        "wrap each of them instead, as in CrossBatchMemory(AdaptiveMarginLoss(…))",
        lambda: AdaptiveMarginLoss(losses.CrossBatchMemory(losses.ContrastiveLoss(), 8)),
        lambda: loss(losses.CrossBatchMemory(AdaptiveMarginLoss(losses.ContrastiveLoss()), 8, memory_size=64)),
    ),
    follow(
        "wrap each of them instead, as in MultipleLosses(AdaptiveMarginLoss(…))",
        lambda: AdaptiveMarginLoss(losses.MultipleLosses([losses.ContrastiveLoss()])),
        lambda: loss(losses.MultipleLosses([AdaptiveMarginLoss(losses.ContrastiveLoss())])),
    ),
    follow(
        "build the loss with pair_memory='pairs' where a gradient of the gradient is needed",
        lambda: penalised("tiled"),
        lambda: penalised("pairs"),
    ),
    # data sets, weights
    follow(
        "pass --weights FILE with a state dict, or --weights none --no-freeze-batch-norm to train from scratch",
        lambda folder: offline(folder, "torchvision"),
        lambda folder: offline(folder, "FILE"),
        lambda folder: offline(folder, "none", freeze=False),
    ),
    follow(
        "unpack the archive again, or give the folder of one release alone",
        lambda folder: birds(folder, missing=True),
        birds,
    ),
    follow(
        "restore these files, or pass skip_unreadable= (a number of rows or a share of them)",
        lambda folder: afew(folder, lose),
        lambda folder: afew(folder, skip_unreadable=1),
        lambda folder: afew(folder, skip_unreadable=0.2),
        lambda folder: afew(folder, restore),
    ),
    follow(
        "(crop='none' takes whole frames)",
        wild,
        lambda folder: wild(folder, crop="none"),
    ),
]
