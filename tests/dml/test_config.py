"""Options that nothing would read are refused; what presets hold is nobody's mistake."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest
import torch

from adaptive_margin.command import main
from adaptive_margin.dml.backbones import build_network
from adaptive_margin.dml.config import DATA, OF_PROXIES, PRESETS, RANGES, SMALL, WU2017, DMLConfig, presets_of
from adaptive_margin.dml.objectives import LOSSES, build_objective
from adaptive_margin.training.command_line import parse

ALL = {**PRESETS, "small": SMALL}


IDLE: list[tuple[dict[str, Any], str, dict[str, Any]]] = [  # which does nothing, where, and what the remedy changes
    ({"units": "offset"}, "without the adaptive margin", {"margin": "adaptive"}),
    ({"granularity": "pair", "margin": 0.2}, "without the adaptive margin", {"margin": "adaptive"}),
    ({"neighbourhood": "released"}, "without the adaptive margin", {"margin": "adaptive"}),
    ({"confidence": 0.1}, "without the adaptive margin", {"margin": "adaptive"}),
    ({"max_mi": 1.0}, "without the adaptive margin", {"margin": "adaptive"}),
    ({"dependence": "none"}, "without the adaptive margin", {"margin": "adaptive"}),
    (
        {"confidence": 0.1, "margin": "adaptive", "neighbourhood": "released"},
        "rule released",
        {"neighbourhood": "auto"},
    ),
    ({"max_mi": 1.0, "margin": "adaptive", "dependence": "none"}, "without dependence", {"dependence": "gaussian"}),
    ({"dependence": "alignment", "margin": "adaptive", "granularity": "pair"}, "of pairs", {"granularity": "anchor"}),
    ({"beta": 0.7, "loss": "triplet"}, "for triplet", {"loss": "margin"}),
    ({"nonzero_loss_cutoff": 1.0, "loss": "contrastive"}, "for contrastive", {"loss": "margin"}),
    ({"triplets_per_anchor": 3, "loss": "triplet"}, "for triplet", {"loss": "margin"}),
    ({"loss_rate": 0.7, "loss": "vdm"}, "for vdm", {"loss": "proxy-anchor"}),
    ({"loss_rate": 0.7, "learn_beta": False}, "for margin", {"learn_beta": True}),
    ({"area": 0.5, "augment": "crop"}, "for crops of fixed size", {"augment": "resized-crop"}),
    ({"adam_epsilon": 0.1, "optimizer": "rmsprop"}, "for rmsprop", {"optimizer": "adam"}),
    ({"halve_at": (3,), "schedule": "cosine"}, "for the cosine schedule", {"schedule": "constant"}),
    ({"folds": 4, "validation": 0.5}, "with folds", {"folds": 0}),
    ({"folds": 4, "keep_embeddings": False}, "with folds", {"folds": 0}),
    ({"score": "recall_at_1", "select": "last"}, "for the last network", {"select": "validation"}),
    ({"evaluate_every": 2, "select": "last", "validation": 0.0}, "without validation classes", {"validation": 0.2}),
]


@pytest.mark.parametrize("preset", ALL)
@pytest.mark.parametrize(("options", "where", "remedy"), IDLE)
def test_an_option_that_does_nothing_is_refused(
    preset: str, options: dict[str, Any], where: str, remedy: dict[str, Any]
) -> None:
    base = replace(ALL[preset], folds=0)
    name = next(iter(options)) if "folds" not in options else list(options)[1]
    ((flag, value),) = remedy.items()
    with pytest.raises(ValueError, match=f"^{name} must be left alone .*{where}.*, where it does nothing") as said:
        replace(base, **options)
    default = getattr(DMLConfig, name)
    assert str(said.value).endswith(f"; pass --{flag.replace('_', '-')} {value}, or leave it at its default, {default}")
    replace(base, **options | remedy)


@pytest.mark.parametrize("preset", ALL)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "vdm", "margin": "adaptive", "units": "offset"}, "units must be 'default' for vdm"),
        ({"loss": "contrastive", "learn_beta": True}, "learn_beta must be False or 'auto' for contrastive"),
    ],
)
def test_what_a_loss_does_not_have_is_refused(preset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ALL[preset], **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"learning_rate": -1.0}, "at least 0"),
        ({"learning_rate": math.inf}, "finite, at least 0"),
        ({"learning_rate": math.nan}, "finite, at least 0"),
        ({"backbone_rate": -1.0}, "at least 0"),
        ({"loss_rate": -1.0}, "at least 0"),
        ({"weight_decay": -1.0}, "at least 0"),
        ({"adam_epsilon": 0.0}, "above 0"),
        ({"flip": 7.0}, "from 0 to 1"),
        ({"area": 3.0}, "above 0 and at most 1"),
        ({"area": 0.0}, "above 0 and at most 1"),
        ({"steps_per_epoch": 0}, "at least 1"),
        ({"epochs": 0}, "at least 1"),
        ({"seed": -1}, "at least 0"),
        ({"checkpoint_every": -1}, "at least 0"),
        ({"validation": 1.0}, "at least 0 and below 1"),
        ({"validation": -0.1}, "at least 0 and below 1"),
        ({"folds": 1}, "0, or at least 2"),
        ({"folds": -2}, "0, or at least 2"),
        ({"beta": 0.0}, "above 0"),
        ({"nonzero_loss_cutoff": 0.0}, "above 0"),
        ({"triplets_per_anchor": 0}, "at least 1"),
        ({"halve_at": (0,)}, "at least 1"),
        ({"halve_at": (999,), "schedule": "constant"}, "epochs before the last of "),
        ({"ks": (0, 1)}, "at least 1"),
        ({"ks": (1, 1)}, "different numbers of neighbours"),
        ({"confidence": 2.0, "margin": "adaptive"}, "above 0 and at most 1"),
        ({"max_mi": 0.0, "margin": "adaptive"}, "above 0"),
    ],
)
@pytest.mark.parametrize("preset", ALL)
def test_a_number_out_of_range_is_refused_at_once(preset: str, options: dict[str, Any], expected: str) -> None:
    (name, *_) = options
    with pytest.raises(ValueError, match=f"^{name} must be {expected}"):
        replace(ALL[preset], **options)


def test_every_number_has_a_range() -> None:
    known = {name for *_, names in RANGES for name in names} | {"resize", "skip_unreadable", "margin"}
    hints = {name: get_type_hints(DMLConfig)[name] for name in DMLConfig.__dataclass_fields__}
    numbers = {name for name, hint in hints.items() if {int, float} & {hint, *get_args(hint)}}
    assert numbers == known


def test_the_presets_of_a_data_set_are_nobodys_mistake() -> None:
    for data in DATA:
        for preset in presets_of(data).values():
            for loss in LOSSES:
                replace(preset, loss=loss)


@pytest.mark.parametrize(
    "words",
    [
        ["digits", "--root", "x"],
        ["digits", "--cache", "x"],
        ["fonts", "--skip-unreadable", "0.1"],
        ["fonts", "--crop-to-box"],
        ["omniglot", "--download"],
        ["folder", "--download"],
    ],
)
def test_an_option_that_a_data_set_has_no_use_for_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train-retrieval", *words])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {words[1]} must be left alone for {words[0]}, where it does nothing, got ")
    assert said.endswith("; leave it out\n")


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_that_cannot_teach_is_refused(loss: str) -> None:
    with pytest.raises(ValueError, match="classes must be at least 2, got 1; negatives come from other classes"):
        DMLConfig(loss=loss, classes=1)  # type: ignore[arg-type]
    numbers = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(8, 128, generator=numbers), dim=1).requires_grad_()
    objective = build_objective(replace(SMALL, loss=loss, embedding_size=128), classes=8)
    value = objective(x, torch.arange(8))  # one image a class
    if loss in OF_PROXIES:
        DMLConfig(loss=loss, per_class=1)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(value, x)
        assert gradient.abs().sum() > 1
    else:
        with pytest.raises(ValueError, match=rf"per_class must be at least 2 for {loss}, got 1; a batch without two"):
            DMLConfig(loss=loss, per_class=1)  # type: ignore[arg-type]
        assert value.item() == 0  # at every step


@pytest.mark.parametrize("preset", ALL)
def test_what_presets_hold_is_not(preset: str) -> None:
    for loss in LOSSES:
        replace(ALL[preset], loss=loss)
    replace(ALL[preset], folds=4)
    replace(ALL[preset], schedule="cosine")
    replace(ALL[preset], margin="adaptive", units="offset", granularity="pair", neighbourhood="released")


def test_a_whole_number_is_a_margin_too() -> None:
    assert isinstance(DMLConfig(margin=1).margin, float)  # type: ignore[arg-type]
    for margin in (0, 1):
        loss = build_objective(DMLConfig(margin=margin), classes=4).loss  # type: ignore[arg-type]
        assert loss.margin == margin


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "recall_at_3"}, "score must be one of recall_at_1, .*, got 'recall_at_3'"),
        ({"weights": "none"}, "freeze_batch_norm must be False where weights are none, .*--no-freeze-batch-norm"),
    ],
)
def test_what_would_spoil_a_run_late_is_said_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DMLConfig(**options)


def test_the_protocols_learn_boundaries_where_there_are_any() -> None:
    small = replace(WU2017, embedding_size=8)
    learned = build_objective(small, 6)
    assert learned.loss.beta.requires_grad
    assert learned.loss.beta.shape == (6,)
    assert not list(build_objective(replace(small, loss="contrastive"), 6).parameters())
    for words, value in (([], "auto"), (["--learn-beta", "True"], True), (["--learn-beta", "False"], False)):
        assert parse(DMLConfig, PRESETS, argv=words).learn_beta == value


def test_the_reality_checks_boundaries_are_those_of_a_beta_a_class() -> None:
    preset = PRESETS["realitycheck"]
    assert (preset.loss_rate, preset.beta) == (2.65e-4, 0.9796)
    assert build_objective(preset, 3).loss.beta.tolist() == pytest.approx([0.9796] * 3)


@pytest.mark.parametrize(
    ("backbone", "size", "right"), [("small", 24, 16), ("vit-small", 256, 224), ("googlenet", 14, 15)]
)
def test_a_size_that_the_backbone_cannot_take(backbone: str, size: int, right: int) -> None:
    base = DMLConfig(backbone=backbone, weights="none", freeze_batch_norm=False, size=right, resize=256)
    with pytest.raises(ValueError, match=rf"size must be .*{right} for .*{backbone}, got {size}"):
        replace(base, size=size)
    if backbone != "vit-small":  # which needs timm
        build_network(backbone, weights="none")(torch.zeros(2, 3, right, right))


@pytest.mark.parametrize("given", ["3", "0.01", "0"])
def test_unreadable_images_are_a_number_or_a_share(given: str) -> None:
    found = parse(DMLConfig, {"same": SMALL}, argv=["--skip-unreadable", given]).skip_unreadable
    assert repr(found) == given
    with pytest.raises(ValueError, match="skip_unreadable must be a number of rows"):
        replace(SMALL, skip_unreadable=1.5)
