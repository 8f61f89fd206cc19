"""Remedies of the trainer of image retrieval: its options, data sets, networks and results."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from adaptive_margin.command import main
from adaptive_margin.command.train_retrieval import required_root
from adaptive_margin.dml.backbones import build_network
from adaptive_margin.dml.batches import ClassBatches, Pixels
from adaptive_margin.dml.competitors import AutoMarginLoss
from adaptive_margin.dml.config import SMALL, DMLConfig
from adaptive_margin.dml.datasets import load_cars, load_cub
from adaptive_margin.dml.embedded import digits
from adaptive_margin.dml.labelled_images import LabelledImages, fold_classes, split_classes
from adaptive_margin.dml.objectives import build_objective
from adaptive_margin.dml.omniglot import omniglot
from adaptive_margin.dml.report import chosen_metrics, write_report
from adaptive_margin.dml.results import read_runs
from adaptive_margin.dml.trainer import load_images, run
from adaptive_margin.metrics.comparison import paired

from ..dml import stand_ins
from ..dml.test_comparison import finished
from ..dml.test_omniglot import ONE, SMALL1, SMALL2, TWO, drawing, packed
from .following import follow

FEW = ["--loss", "contrastive", "--epochs", "1", "--steps-per-epoch", "1", "--no-measure"]
ORIGINAL = "get the original archive"
CHARACTER = f"{SMALL1}/Balinese/character01/0067_02.png"
SHARED = f"{SMALL1}/Greek/character01/0072_02.png"
CPU = torch.device("cpu")
Y = np.repeat(np.arange(6), 2)


def config(**options: Any) -> bool:
    found = DMLConfig(**options)
    return all(getattr(found, name) == value for name, value in options.items())


def six(**options: Any) -> LabelledImages:
    """Six classes of two images in memory, two of them for the test."""
    given: dict[str, Any] = {
        "name": "six",
        "labels": Y,
        "class_names": tuple("abcdef"),
        "test_classes": frozenset({4, 5}),
        "pixels": np.zeros((12, 8, 8, 1), dtype=np.uint8),
    }
    return LabelledImages(**given | options)


def has(**options: Any) -> bool:
    return len(six(**options)) == 12


def split(validation: float = 0.5, **options: Any) -> bool:
    return len(split_classes(six(**options), validation=validation).train) > 0


def network(backbone: Any, **options: Any) -> bool:
    side, channels = (16, options.get("channels", 3)) if backbone == "small" else (32, 3)
    built = build_network(backbone, embedding_size=8, **{"weights": "none", **options}).eval()
    return built(torch.ones(1, channels, side, side)).shape == (1, 8)


def loaded(folder: Path, state: Any) -> bool:
    torch.save(state, folder / "weights.pt")
    return network("resnet18", weights=str(folder / "weights.pt"))


@functools.cache
def resnet18() -> dict[str, Any]:
    from torchvision.models import resnet18

    return resnet18().state_dict()


def without_timm(backbone: Any) -> bool:
    with mock.patch.dict(sys.modules, timm=None):
        return network(backbone)


def objective(**options: Any) -> bool:
    return build_objective(replace(SMALL, **options), classes=6).loss is not None


def letters(folder: Path, spoilt: dict[str, bytes] | None = None, **options: Any) -> bool:
    """Small archives as Omniglot's, with some files spoilt."""
    packed(folder, SMALL1, {**ONE, **(spoilt or {})})
    packed(folder, SMALL2, TWO)
    return len(omniglot(folder, **{"counts": None, **options})) == len({**ONE, **TWO}) - 9


def half_an_archive(folder: Path) -> None:
    letters(folder)
    archive = folder / f"{SMALL1}.zip"
    archive.write_bytes(archive.read_bytes()[:500])
    omniglot(folder, counts=None)


def two_lists(folder: Path, renamed: bool = False) -> bool:
    """Cars196's list, fetched twice under a browser's names."""
    if not (folder / "car_ims").exists():
        stand_ins.cars(folder, "A")
        content = (folder / "cars_annos.mat").read_bytes()
        (folder / "cars_annos.mat").unlink()
        for number in (1, 2):
            (folder / f"cars_annos ({number}).mat").write_bytes(content)
    if renamed:
        (folder / "cars_annos (2).mat").rename(folder / "cars_annos.mat")
    return len(load_cars(folder, counts=None)) == 24


def birds(folder: Path, whole: bool = False) -> bool:
    place = folder / ("whole" if whole else "part")
    stand_ins.cub(place)
    if not whole:
        (place / "CUB_200_2011" / "image_class_labels.txt").unlink()
    return len(load_cub(place, counts=None)) == 48


def files(folder: Path, loader: bool = True, **options: Any) -> bool:
    """Pictures on disk, from a loader or named by hand without a root."""
    data = load_cub(stand_ins.cub(folder / "cub"), counts=None)
    data = data if loader else replace(data, root=None)
    if not options.pop("boxes", True):
        data = replace(data, boxes=None)
    found, unreadable = load_images(data, replace(SMALL, cache=folder / "cache", **options))
    return len(found) == 48 and not unreadable


def trained(folder: Path, data: str | None = None) -> bool:
    few = {"loss": "contrastive", "classes": 4, "epochs": 1, "steps_per_epoch": 1, "clustering": False}
    return "test" in run(replace(SMALL, out=folder / "run", data=data, **few), digits())


def of_pairs(folder: Path, train: int = 4, test: int = 4, **options: Any) -> bool:
    """A run on noise: eight classes for training, four for the test, each with so many images."""
    labels = np.repeat(np.arange(12), [train] * 8 + [test] * 4)
    noise = np.random.default_rng(0).integers(0, 256, (len(labels), 20, 20, 1), dtype=np.uint8)
    data = LabelledImages("noise", labels, tuple("abcdefghijkl"), frozenset({8, 9, 10, 11}), pixels=noise)
    few = {"loss": "contrastive", "classes": 2, "per_class": 2, "epochs": 1, "steps_per_epoch": 1, "clustering": False}
    result = run(replace(SMALL, out=folder / "run", **few | options), data)
    return result["test"] is None or result["test"]["recall_at_1"] >= 0


def done(folder: Path, name: str = "one", measured: bool = True, **options: Any) -> Path:
    """The folder of runs, with one that is finished."""
    finished(folder / name, replace(SMALL, loss="contrastive", **options))
    if not measured:
        result = folder / name / "result.json"
        result.write_text(result.read_text().replace('"test": {"recall_at_1": 0.5}', '"test": null'))
    return folder


def page(folder: Path) -> bool:
    return len(write_report(folder, folder / "page.html", ["recall_at_1"])) == 1


def colliding(folder: Path) -> None:
    """Two margins that a table would call the same."""
    done(folder, "one", margin=0.2)
    read_runs(done(folder, "two", margin=0.2 + 1e-9))


CASES = [
    # config.py
    follow("leave it out for the default", lambda: config(epochs=0), lambda: config() and DMLConfig().epochs == 150),
    follow("negatives come from other classes", lambda: config(classes=1), lambda: config(classes=2)),
    follow(
        "a batch without two images of a class has no positive pair",
        lambda: config(per_class=1),
        lambda: config(per_class=2),
        lambda: config(per_class=1, loss="arcface"),
    ),
    follow("224 of 256 is usual", lambda: config(size=300), lambda: config(size=224, resize=256)),
    follow(
        "pass --size 224 --resize 256, or choose resnet18",
        lambda: config(backbone="vit-small", size=112),
        lambda: config(backbone="vit-small", size=224, resize=256),
        lambda: config(backbone="resnet18", size=112),
    ),
    follow(
        "224 is usual",
        lambda: config(backbone="googlenet", size=8),
        lambda: config(backbone="googlenet", size=224),
    ),
    follow(
        "hold classes out with --validation, or --select last; --select test flatters results",
        lambda: config(validation=0),
        lambda: config(validation=0.2),
        lambda: config(validation=0, select="last"),
        lambda: config(validation=0, select="test"),
    ),
    follow("'default' is the loss's own", lambda: config(margin=float("nan")), lambda: config(margin="default")),
    follow("1 2 4 8 is usual", lambda: config(ks=()), lambda: config(ks=(1, 2, 4, 8))),
    follow(
        "or change --ks",
        lambda: config(score="recall_at_3"),
        lambda: config(score="recall_at_3", ks=(1, 3)),
        lambda: config(score="recall_at_4"),
    ),
    follow(
        "pass --no-freeze-batch-norm",
        lambda: config(weights="none"),
        lambda: config(weights="none", freeze_batch_norm=False),
    ),
    follow(
        "pass more --epochs, or leave it out",
        lambda: config(halve_at=(7,), epochs=5),
        lambda: config(halve_at=(7,), epochs=8),
        lambda: config(epochs=5),
    ),
    follow(
        "pass --margin adaptive, or leave it at its default, batch",
        lambda: config(granularity="anchor"),
        lambda: config(granularity="anchor", margin="adaptive"),
        lambda: config(),
    ),
    follow(
        "leave it out",
        lambda: config(loss="vdm", margin="adaptive", units="sqrt"),
        lambda: config(loss="vdm", margin="adaptive"),
    ),
    follow(
        "only the margin loss has boundaries: leave it out",
        lambda: config(loss="triplet", learn_beta=True),
        lambda: config(loss="triplet"),
        lambda: config(loss="margin", learn_beta=True),
    ),
    # labelled_images.py
    follow(
        "number the classes from 0",
        lambda: has(labels=Y + 1),
        lambda: has(labels=np.unique(Y + 1, return_inverse=True)[1]),
    ),
    follow("join them on the name", lambda: has(labels=Y[[0, 2, 4, 6, 8, 10]]), lambda: has(labels=Y)),
    follow("join them on the name", lambda: has(drawers=Y[:3]), lambda: has(drawers=Y)),
    follow("split the classes", lambda: has(test_classes=frozenset()), lambda: has(test_classes=frozenset({3, 4, 5}))),
    follow("a half is usual", lambda: split(validation=1.0), lambda: split(validation=0.5)),
    follow(
        "the protocol has 4",
        lambda: fold_classes(six(), 0, folds=9),
        lambda: len(fold_classes(six(), 0, folds=4).validation) == 2,
    ),
    follow(
        "move whole groups to the test",
        lambda: split(groups=np.array([0, 1, 2, 3, 3, 4])),
        lambda: split(groups=np.array([0, 1, 2, 3, 3, 4]), test_classes=frozenset({3, 4, 5})),
    ),
    # batches.py, comparison.py, competitors.py, objectives.py
    follow(
        "pass --classes, or hold out less",
        lambda: ClassBatches(Y[:8], classes=5, per_class=2, seed=0),
        lambda: len(ClassBatches(Y[:8], classes=4, per_class=2, seed=0).rows(0)) == 8,
        lambda: len(ClassBatches(Y[:10], classes=5, per_class=2, seed=0).rows(0)) == 10,
    ),
    follow(
        "pass the images' size as --resize",
        lambda: Pixels(np.zeros((2, 24, 24, 1), dtype=np.uint8), SMALL, CPU),
        lambda: Pixels(np.zeros((2, 24, 24, 1), dtype=np.uint8), replace(SMALL, resize=24), CPU).config.resize == 24,
    ),
    follow(
        "train both arms with them",
        lambda: paired({0: 0.5}, {0: 0.4}),
        lambda: paired({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.4}).n == 2,
    ),
    follow(
        "leave that seed out",
        lambda: paired({0: 0.5, 1: 0.6, 2: float("nan")}, {0: 0.4, 1: 0.4, 2: 0.1}),
        lambda: paired({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.4, 2: 0.1}).n == 2,
    ),
    follow("pass the steps of an epoch", lambda: AutoMarginLoss(0), lambda: AutoMarginLoss(10).epoch == 10),
    follow(
        "leave it out: it has no margin to compare",
        lambda: objective(loss="auto-margin", margin=0.1),
        lambda: objective(loss="auto-margin"),
    ),
    # backbones.py
    follow(
        "pass --weights none: it is trained from scratch",
        lambda: network("small", weights="torchvision"),
        lambda: network("small", weights="none"),
    ),
    follow(
        "use the small network, or RGB images",
        lambda: network("resnet18", channels=1),
        lambda: network("small", channels=1),
        lambda: network("resnet18", channels=3),
    ),
    follow("pip install timm, or choose resnet50", lambda: without_timm("vit-small"), lambda: without_timm("resnet50")),
    follow(
        "pass the path of an existing one",
        lambda: network("resnet18", weights="imagenet"),
        lambda folder: loaded(folder, resnet18()),
        lambda: network("resnet18", weights="none"),
    ),
    follow(
        "pass resnet18's own state dict, or the backbone to which they belong",
        lambda folder: loaded(folder, [1, 2]),
        lambda folder: loaded(folder, resnet18()),
    ),
    follow(
        "pass resnet18's own state dict, or the backbone to which they belong",
        lambda folder: loaded(folder, {"features.weight": torch.ones(1)}),
        lambda folder: loaded(folder, resnet18()),
    ),
    # datasets.py, omniglot.py
    follow("rename the right one cars_annos.mat", two_lists, lambda folder: two_lists(folder, renamed=True)),
    follow("unpack the whole archive", birds, lambda folder: birds(folder, whole=True)),
    follow(
        "keep the one of the original archive",
        lambda folder: letters(folder, {SHARED: drawing(50, 50)}),
        letters,
    ),
    follow(ORIGINAL, lambda folder: letters(folder, counts={SMALL1: (99, 9)}), letters),
    follow(ORIGINAL, half_an_archive, letters),
    follow(
        "remove it, or get the original archive",
        lambda folder: letters(folder, {f"{SMALL1}/Greek/0001_01.png": drawing(5, 5)}),
        letters,
    ),
    follow(ORIGINAL, lambda folder: letters(folder, {CHARACTER: b"no picture"}), letters),
    follow(ORIGINAL, lambda folder: letters(folder, {CHARACTER: drawing(5, 5, side=28)}), letters),
    follow(ORIGINAL, lambda folder: letters(folder, {CHARACTER: drawing(0, 0)}), letters),
    # train_retrieval.py, trainer.py
    follow(
        "leave it out",
        lambda folder: main(["train-retrieval", "digits", "--root", str(folder), *FEW, "--out", str(folder / "run")]),
        lambda folder: main(["train-retrieval", "digits", *FEW, "--out", str(folder / "run")]) == 0,
    ),
    follow(
        "lay it out as\nCUB/",
        lambda: required_root(SMALL, "CUB/"),
        lambda folder: required_root(replace(SMALL, root=folder), "CUB/") == folder,
    ),
    follow("leave it out", lambda folder: trained(folder, "another data set"), trained),
    follow(
        "pass --classes 4, or hold out less",
        lambda folder: of_pairs(folder, classes=5, validation=0.5),
        lambda folder: of_pairs(folder, classes=4, validation=0.5),
        lambda folder: of_pairs(folder / "more", classes=5, validation=0.25),
    ),
    follow(
        "pass --classes 6, or more --folds",
        lambda folder: of_pairs(folder, classes=7, folds=4),
        lambda folder: of_pairs(folder, classes=6, folds=4),
        lambda folder: of_pairs(folder / "more", classes=7, folds=8),
    ),
    follow(
        "add some, or pass --no-measure --select last",
        lambda folder: of_pairs(folder, test=1),
        lambda folder: of_pairs(folder, test=2),
        lambda folder: of_pairs(folder / "more", test=1, measure=False, select="last"),
    ),
    follow(
        "add some, or pass --validation 0 --folds 0 --select last",
        lambda folder: of_pairs(folder, train=1, folds=2),
        lambda folder: of_pairs(folder, train=2, folds=2),
        lambda folder: of_pairs(folder / "more", train=1, validation=0.0, folds=0, select="last"),
    ),
    follow("use one of the loaders", lambda folder: files(folder, loader=False), files),
    follow(
        "pass --no-crop-to-box, or a copy with its boxes",
        lambda folder: files(folder, boxes=False, crop_to_box=True),
        lambda folder: files(folder, boxes=False, crop_to_box=False),
        lambda folder: files(folder, boxes=True, crop_to_box=True),
    ),
    # results.py, report.py
    follow("run first", lambda folder: read_runs(folder), lambda folder: len(read_runs(done(folder))) == 1),
    follow(
        "report on them one by one",
        colliding,
        lambda folder: [len(read_runs(folder / name)) for name in ("one", "two")] == [1, 1],
    ),
    follow(
        "these are what the runs measured",
        lambda folder: chosen_metrics(read_runs(done(folder)), ["map"]),
        lambda folder: chosen_metrics(read_runs(folder), ["Recall_at_1"]) == ("recall_at_1",),
    ),
    follow(
        "finish one without --no-measure first",
        lambda folder: page(done(folder / "not", measured=False)),
        lambda folder: page(done(folder / "measured")),
    ),
]
