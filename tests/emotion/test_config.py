"""Options: the presets hold the papers' numbers, and what makes no sense is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from adaptive_margin.emotion.config import FACES, PAPER, PRESETS, QUICK, RELEASED, EmotionConfig


def test_paper_is_the_training_configuration_of_the_paper() -> None:
    adams = (PAPER.regression_adam, PAPER.critic_adam, PAPER.adversarial_adam)
    assert {adam.lr for adam in adams} == {1e-4}
    assert (PAPER.lr_decay, PAPER.lr_decay_every, PAPER.iterations) == (0.8, 10_000, 50_000)
    assert (PAPER.encoder, PAPER.batch_size, PAPER.pretrained) == ("resnet18", 128, None)
    assert (PAPER.resize, PAPER.size, PAPER.correlation_weight) == (256, 224, 0.5)
    assert (PAPER.critic, PAPER.margin, PAPER.grouping, PAPER.order) == ("caf", "adaptive", "otsu", "paper")
    assert PAPER.weak_batch_norm == "weak"
    assert (PAPER.adversarial_weight, PAPER.repulsion, PAPER.regularizer) == (1.0, 1.0, "none")


def test_released_is_the_released_code() -> None:
    adams = (RELEASED.regression_adam, RELEASED.critic_adam, RELEASED.adversarial_adam)
    assert {(adam.lr, adam.beta1, adam.beta2) for adam in adams} == {(1e-4, 0.5, 0.9)}
    assert (RELEASED.lr_decay, RELEASED.lr_decay_every) == (0.9, 5_000)
    assert (RELEASED.encoder, RELEASED.batch_size) == ("alexnet", 256)
    assert (RELEASED.adversarial_weight, RELEASED.shared_moments) == (0.1, True)
    assert (RELEASED.regularizer, RELEASED.penalty, RELEASED.margin) == ("fisher", 1e-6, "released")
    assert RELEASED.iterations == round(131 * -(-320_739 // 256), -3)


def test_embedded_presets_need_no_root() -> None:
    assert {FACES.dataset, QUICK.dataset} == {"faces"}
    assert QUICK.iterations < FACES.iterations
    assert set(PRESETS) == {"paper", "released", "faces", "quick"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "affectnet"}, "root must be given for affectnet"),
        ({"dataset": "afewva"}, "dataset must be"),
        ({"size": 300}, "size must be from 1 to resize"),
        ({"critic": "wgan"}, "critic must be"),
        ({"order": "both"}, "order must be"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"leaky_slope": 1.0}, r"leaky_slope must be in \[0, 1\)"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"adversarial_weight": -1.0}, "adversarial_weight must be at least 0"),
        ({"fold": 5}, "fold must be from 0 to 4"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PAPER, **options)


def test_a_config_is_plain_values() -> None:
    plain = EmotionConfig().plain()
    assert plain["regression_adam"] == {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999}
