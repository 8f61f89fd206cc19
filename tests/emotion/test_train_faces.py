"""``adaptive-margin train-faces``: what it is asked for, and what it says of mistakes."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive_margin.command import main
from adaptive_margin.emotion import data, trainer
from adaptive_margin.emotion.config import QUICK, EmotionConfig
from adaptive_margin.messages import problem
from adaptive_margin.training import Checkpoints, World, to_yaml
from adaptive_margin.training.checkpoints import CheckpointError
from adaptive_margin.training.run_folder import RunFolderError


def code_of(words: list[str]) -> int:
    """The exit code of a command that goes wrong."""
    with pytest.raises(SystemExit) as end:
        main(["train-faces", *words])
    return int(end.value.code)


class Asked(Exception):
    """Raised in place of training."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the command line would train."""

    def configuration(*words: str) -> EmotionConfig:
        found: list[EmotionConfig] = []

        def run(config: EmotionConfig, world: World) -> None:
            found.append(config)
            raise Asked

        monkeypatch.setattr(trainer, "works", lambda *_, **__: [])
        monkeypatch.setattr(data, "check_root", lambda _: None)
        monkeypatch.setattr(trainer, "run", run)
        with pytest.raises(Asked):
            main(["train-faces", *words])
        return found[0]

    return configuration


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_data(*_: Any) -> None:
        raise AssertionError("images were looked for before the options were")

    monkeypatch.setattr(trainer, "load_data", load_data)


def test_nothing_asked_for_trains_nothing(nothing_is_loaded: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of([]) == 2
    said = capsys.readouterr()
    assert "--encoder" in said.out
    assert "--preset quick" in said.err


def test_the_paper_preset_follows_encoder_and_data_set(asked: Any, tmp_path: Path) -> None:
    def numbers(*words: str) -> tuple[int, int]:
        config = asked("--preset", "paper", *words)
        return config.batch_size, config.iterations

    aff_wild = ("--dataset", "aff-wild", "--root", str(tmp_path))
    assert numbers("--encoder", "resnet18") == (128, 50_000)
    assert numbers("--encoder", "alexnet") == (256, 50_000)
    assert numbers(*aff_wild) == (128, 100_000)
    assert numbers("--encoder", "alexnet", *aff_wild) == (256, 100_000)
    assert numbers("--encoder", "alexnet", "--batch-size", "128", *aff_wild, "--iterations", "50000") == (128, 50_000)
    file = tmp_path / "mine.yaml"
    file.write_text("encoder: alexnet\n")
    assert numbers("--config", str(file)) == (256, 50_000)
    file.write_text("encoder: alexnet\nbatch_size: 128\niterations: 50000\n")
    assert numbers("--config", str(file), *aff_wild) == (128, 50_000)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encoder", "resnet19"], "did you mean 'resnet18'"),
        (["--pretrained", "no/such.pt"], "pretrained must be an existing file"),
        (["--clip-norm", "-1"], "clip_norm must be above 0"),
        (["--regression-adam.lr", "0"], "lr must be above 0"),
    ],
)
def test_wrong_options_are_said_before_anything_is_loaded(
    words: list[str], message: str, nothing_is_loaded: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(["--preset", "paper", *words]) == 2
    assert message in capsys.readouterr().err


def test_weights_that_do_not_fit_are_said_before_anything_is_loaded(
    nothing_is_loaded: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--preset", "quick", "--device", "cpu", "--output", str(tmp_path / "run"), "--pretrained"]
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "other.pt")
    assert code_of([*words, str(tmp_path / "other.pt")]) == 2
    assert "error: pretrained must be weights of small, got a file without" in capsys.readouterr().err
    (tmp_path / "broken.pt").write_text("not weights")
    assert code_of([*words, str(tmp_path / "broken.pt")]) == 2
    assert "error: pretrained must be weights of small, got another kind of file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ("notes", "holds other files (notes.txt) and no run"),
        ("options", "holds a run with another configuration:\n  seed: 5 there, 0 now"),
        ("longer", "iterations must be at least the 900 that"),
        ("finished", "holds a finished run (result.json) whose checkpoints are gone"),
    ],
)
def test_a_folder_of_something_else_is_said_before_anything_is_read(
    held: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def early(*_: Any, **__: Any) -> None:
        raise AssertionError("something was read or timed before the folder was looked at")

    for module, name in ((data, "check_root"), (trainer, "works"), (trainer, "load_data")):
        monkeypatch.setattr(module, name, early)
    run = tmp_path / "run"
    config = dataclasses.replace(QUICK, output=str(run), device="cpu", seed=5 if held == "options" else 0)
    run.mkdir()
    (run / ("notes.txt" if held == "notes" else "config.yaml")).write_text(to_yaml(config))
    if held == "longer":
        Checkpoints(run / "checkpoints").save(900, {})
    if held == "finished":
        (run / "result.json").write_text("{}")
    before = sorted(run.rglob("*"))
    assert code_of(["--preset", "quick", "--output", str(run), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer.run(dataclasses.replace(config, seed=0))
    assert sorted(run.rglob("*")) == before


def test_options_without_effect_do_not_make_another_run(tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, output=str(tmp_path), critic="fisher", device="cpu")
    older = {**config.plain(), "fold": 2, "term_weight": 0.3}
    (tmp_path / "config.yaml").write_text(json.dumps(older))
    trainer.check_before(config)
    (tmp_path / "config.yaml").write_text(json.dumps({**older, "penalty": 2.0}))
    with pytest.raises(RunFolderError, match=r"another configuration:\n  penalty: 2.0 there, None now\nchoose"):
        trainer.check_before(config)


def test_a_data_set_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--preset", "quick", "--dataset", "afew-va", "--root", str(tmp_path), "--device", "cpu"]
    assert code_of([*words, "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckpointError("none can be read"), 1),
        (PermissionError(13, "Permission denied", "/somewhere"), 1),
        (ImportError("logging needs TensorBoard: pip install '.[train]'"), 2),
        (ValueError(problem("batch_size", "at most 7 with drop_last", 8, "make batches smaller")), 2),
    ],
)
def test_an_error_in_its_own_words_needs_no_traceback(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: EmotionConfig, world: World) -> None:
        raise error

    monkeypatch.setattr(trainer, "works", lambda *_, **__: [])
    monkeypatch.setattr(trainer, "run", run)
    assert code_of(["--preset", "quick"]) == code
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize(
    "error", [ValueError("x must be y, got z; so it says"), KeyError("x"), ImportError("cannot import name 'x'")]
)
def test_a_fault_of_the_program_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: EmotionConfig, world: World) -> None:
        raise error

    monkeypatch.setattr(trainer, "works", lambda *_, **__: [])
    monkeypatch.setattr(trainer, "run", run)
    with pytest.raises(type(error)):
        main(["train-faces", "--preset", "quick"])
