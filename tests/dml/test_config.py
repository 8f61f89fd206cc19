"""Options that nothing would read are refused; what presets hold is nobody's mistake."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from adaptive_margin.dml.backbones import build_network
from adaptive_margin.dml.config import OF_PROXIES, PRESETS, SMALL, WU2017, DMLConfig
from adaptive_margin.dml.objectives import LOSSES, build_objective
from adaptive_margin.training.command_line import parse

ALL = {**PRESETS, "small": SMALL}


@pytest.mark.parametrize("preset", ALL)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": "offset"}, "units must be 'default' without the adaptive margin, got 'offset'; pass --margin"),
        ({"granularity": "pair", "margin": 0.2}, "granularity must be 'batch' without the adaptive margin"),
        ({"neighbourhood": "released"}, "neighbourhood must be '.*' without the adaptive margin"),
        ({"confidence": 0.1}, "confidence must be 0.05 without the adaptive margin"),
        ({"loss": "vdm", "margin": "adaptive", "units": "offset"}, "units must be 'default' for vdm"),
        ({"loss": "contrastive", "learn_beta": True}, "learn_beta must be False or 'auto' for contrastive"),
        ({"folds": 4, "validation": 0.5}, "validation must be left alone with folds, got 0.5"),
        ({"halve_at": (3,), "schedule": "cosine"}, "halve_at must be empty with the cosine schedule"),
    ],
)
def test_an_option_that_does_nothing_is_refused(preset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ALL[preset], **options)


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
        ({"ks": (0, 1)}, "ks must be numbers of neighbours, at least 1"),
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
