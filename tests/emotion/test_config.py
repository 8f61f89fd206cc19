"""Options: the presets hold the papers' numbers, and what makes no sense is refused."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive_margin.emotion.config import (
    DATASETS,
    FACES,
    PAPER,
    PRESETS,
    QUICK,
    RELEASED,
    AdamConfig,
    EmotionConfig,
    preset_for,
)
from adaptive_margin.emotion.nets import build_encoder, check_size
from adaptive_margin.emotion.trainer import run
from adaptive_margin.training.command_line import from_yaml, parse, to_yaml


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
        (
            {"root": "x"},
            r"root must be left out for faces, .* got 'x'; pass --dataset \(dataset=\), too, one of affectnet",
        ),
        ({"dataset": "afew-va", "root": "x", "fold": 5}, "fold must be from 0 to 4"),
        (
            {"crop": "none"},
            "crop must be left at its default, None, with dataset faces, got 'none'; .* dataset affectnet, afew-va",
        ),
        ({"expressions": (1,)}, "expressions must be left at its default, None, with dataset faces"),
        ({"dataset": "aff-wild2", "root": "x", "crop": "box"}, "crop must be left at its default, None, with"),
        ({"dataset": "afew-va", "root": "x", "crop": "box"}, "crop of afew-va must be"),
        ({"dataset": "affectnet", "root": "x", "annotations": "6th"}, "annotations must be left .*dataset aff-wild2$"),
        ({"dataset": "aff-wild", "root": "x", "same_actor": (("a", "b"),)}, "same_actor must be left at its default"),
        ({"dataset": "affectnet", "root": "x", "expressions": ()}, "expressions must be codes from 0 to 10"),
        ({"dataset": "affectnet", "root": "x", "expressions": (11,)}, "expressions must be codes from 0 to 10"),
        ({"encoder": "resnet19"}, "encoder must be .* got 'resnet19'; did you mean 'resnet18'"),
        (
            {"pretrained": "no/such.pt"},
            "pretrained must be an existing file, .* got 'no/such.pt'; 'resnet18' has IMAGENET1K_V1",
        ),
        ({"encoder": "small", "pretrained": "DEFAULT"}, "'small' has no published weights"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0, or None, got 0.0"),
        ({"clip_norm": -1.0}, "clip_norm must be above 0, or None"),
        ({"clip_norm": float("nan")}, "clip_norm must be above 0, or None"),
        ({"penalty": 0.0, "critic": "fisher"}, "penalty must be above 0, or None"),
        ({"max_radius": -0.5}, "max_radius must be above 0, or None"),
        ({"lr_decay": 0.0}, "lr_decay must be above 0"),
        ({"lr_decay": -0.8}, "lr_decay must be above 0"),
        (
            {"dataset": "afew-va", "root": "x", "every": 5},
            "every must be left at its default.*only with dataset aff-wild, aff-wild2$",
        ),
        ({"dataset": "affectnet", "root": "x", "every": 5}, "every must be left .* dataset affectnet, got 5"),
        ({"dataset": "aff-wild", "root": "x", "every": 0}, "every must be at least 1"),
        ({"images_per_person": 0}, "images_per_person must be at least 1"),
        ({"people": 2}, "people must be at least 3"),
        ({"margin": "constant", "constant": -0.1}, "constant must be at least 0"),
        ({"repulsion": float("nan")}, "repulsion must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"split_seed": -1}, "split_seed must be at least 0"),
        ({"person_scale": True}, "person_norm, with person_scale, must be on, got off"),
        ({"dataset": "afew-va", "root": "x", "skip_unreadable": 1.5}, "skip_unreadable must be a number of rows"),
        ({"dataset": "afew-va", "root": "x", "skip_unreadable": -1}, "skip_unreadable must be a number of rows"),
        (
            {"dataset": "affectnet", "root": "x", "per_person": 2},
            "dataset must be one that identifies people, for per_person, got affectnet; .* or leave per_person out",
        ),
        (
            {"dataset": "affectnet-reduced", "root": "x", "term": "elim"},
            "dataset must be one that identifies people, for term elim",
        ),
        ({"shuffle_people": True}, "shuffle_people must be off where no option uses people, got on"),
        ({"shuffle_people": True, "term": "label-distance"}, "shuffle_people must be off where no option uses people"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PAPER, **options)


@pytest.mark.parametrize(
    ("options", "with_"),
    [
        ({"fold": 1}, {"dataset": "afew-va"}),
        ({"people": 300}, {"dataset": "faces"}),
        ({"images_per_person": 7}, {"dataset": "faces"}),
        ({"person_effect": 2.0}, {"dataset": "faces"}),
        ({"margin": "linear", "critic": "fisher"}, {"critic": "caf"}),
        ({"constant": 0.3}, {"margin": "constant"}),
        ({"repulsion": 0.5, "critic": "gramnet"}, {"critic": "caf"}),
        ({"regularizer": "chi2", "critic": "fisher"}, {"critic": "caf"}),
        ({"penalty": 0.5}, {"regularizer": "fisher"}),
        ({"penalty": 0.5}, {"critic": "fisher"}),
        ({"critic_normalize": True, "critic": "fisher"}, {"critic": "sphere"}),
        ({"term_weight": 0.5}, {"term": "grl"}),
        ({"term_warm_up": 5}, {"term": "label-distance"}),
        ({"weak_batch_norm": "whole", "order": "joint"}, {"order": "paper"}),
        ({"adversarial_adam": AdamConfig(lr=0.5), "order": "joint"}, {"order": "paper"}),
    ],
)
def test_an_option_without_effect_is_refused(options: dict[str, Any], with_: dict[str, str]) -> None:
    name, (other, value) = next(iter(options)), next(iter(with_.items()))
    elsewhere = {"dataset": "aff-wild", "root": "x"} if with_ == {"dataset": "faces"} else {}
    with pytest.raises(ValueError, match=rf"{name} must be left .* an effect only with .*{other} [\w, -]*{value}"):
        EmotionConfig(**(options | elsewhere))
    places = {"root": "x"} if with_ == {"dataset": "afew-va"} else {}
    assert getattr(EmotionConfig(**(options | with_ | places)), name) == options[name]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("critic", ["none", "caf", "fisher"])
def test_a_preset_goes_with_every_data_set_and_critic(preset: str, dataset: str, critic: str, tmp_path: Path) -> None:
    root = None if dataset == "faces" else "x"
    config = dataclasses.replace(PRESETS[preset], dataset=dataset, root=root, critic=critic, order="joint")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_yaml(EmotionConfig, tmp_path / "config.yaml", QUICK) == config


def test_a_file_and_flags_are_checked_together(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for text, words in (
        ("every: 5\n", ["--dataset", "aff-wild", "--root", "x"]),
        ("dataset: afew-va", ["--root", "x"]),
    ):
        file.write_text(text)
        with pytest.raises(SystemExit):
            parse(EmotionConfig, PRESETS, argv=["--config", str(file)])
        assert parse(EmotionConfig, PRESETS, argv=["--config", str(file), *words]).root == "x"


@pytest.mark.parametrize("given", ["3", "0.01", "1", "1.0", "0"])
def test_unreadable_images_are_a_number_or_a_share_on_command_lines_and_in_files(given: str, tmp_path: Path) -> None:
    known = ["--dataset", "afew-va", "--root", "x"]
    by_flag = parse(EmotionConfig, PRESETS, argv=[*known, "--skip-unreadable", given])
    file = tmp_path / "mine.yaml"
    file.write_text(f"skip_unreadable: {given}\n")  # without a data set the option would have no effect
    by_file = parse(EmotionConfig, PRESETS, argv=[*known, "--config", str(file)])
    file.write_text(to_yaml(by_flag))
    for found in (by_flag, by_file, from_yaml(EmotionConfig, file)):
        assert repr(found.skip_unreadable) == given


def test_loader_options_come_from_flags_and_files(tmp_path: Path) -> None:
    words = ["--dataset", "affectnet", "--root", "x", "--expressions", "0", "1", "7", "--crop", "none"]
    by_flags = parse(EmotionConfig, PRESETS, argv=words)
    assert (by_flags.expressions, by_flags.crop) == ((0, 1, 7), "none")
    other = parse(
        EmotionConfig, PRESETS, argv=["--dataset", "afew-va", "--root", "x", "--same-actor", "jane do", "jane doe"]
    )
    assert other.same_actor == (("jane do", "jane doe"),)
    third = parse(EmotionConfig, PRESETS, argv=["--dataset", "aff-wild2", "--root", "x", "--annotations", "6th ABAW"])
    assert third.annotations == "6th ABAW"
    for config in (by_flags, other, third):
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        assert from_yaml(EmotionConfig, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": -1e-4}, "lr must be above 0"),
        ({"beta1": 1.0}, r"beta1 and beta2 must be in \[0, 1\)"),
        ({"beta2": -0.1}, r"beta1 and beta2 must be in \[0, 1\)"),
    ],
)
def test_an_adam_that_cannot_learn_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamConfig(**options)


def test_timm_is_missed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        dataclasses.replace(PAPER, encoder="timm:resnet10t")


def test_paper_has_the_papers_numbers_for_each_encoder_and_data_set() -> None:
    def chosen(**options: Any) -> tuple[int, int]:
        preset = preset_for("paper", dataclasses.replace(PAPER, **options))
        return preset.batch_size, preset.iterations

    assert chosen() == (128, 50_000)
    assert chosen(encoder="alexnet") == (256, 50_000)
    assert chosen(dataset="aff-wild", root="x") == (128, 100_000)
    assert chosen(encoder="alexnet", dataset="aff-wild", root="x") == (256, 100_000)
    assert preset_for("faces", dataclasses.replace(FACES, encoder="alexnet")) == FACES


def test_a_config_is_plain_values() -> None:
    plain = EmotionConfig().plain()
    assert plain["regression_adam"] == {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999}


@pytest.mark.parametrize(("encoder", "least"), [("alexnet", 63), ("vgg11", 32), ("inception_v3", 75)])
def test_a_size_that_the_encoder_cannot_take(encoder: str, least: int, tmp_path: Path) -> None:
    config = dataclasses.replace(PAPER, encoder=encoder, size=least - 1, output=tmp_path / "run")
    message = rf"size must be one that the encoder {encoder} .*; the smallest size is {least}"
    with pytest.raises(ValueError, match=message):
        run(config)
    assert not (tmp_path / "run").exists()
    before = torch.get_rng_state()
    check_size(encoder, least)  # the remedy
    assert torch.equal(torch.get_rng_state(), before)
    net = build_encoder(encoder).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 3, least, least)).shape == (1, net.features)
