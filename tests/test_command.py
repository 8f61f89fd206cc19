"""The command line: what it prints, what it returns, and that unknown options are errors."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptive_margin import __version__
from adaptive_margin.command import main
from adaptive_margin.emotion.model_file import Preprocessing, save_model
from adaptive_margin.emotion.nets import emotion_net


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "model.pt"
    save_model(path, emotion_net("small"), Preprocessing(resize=48, size=40))
    return path


@pytest.mark.parametrize(
    "words", [[], ["train"], ["predict"], ["report", "x", "--colour", "red"], ["export-onnx", "--checkpoint", "x"]]
)
def test_wrong_words_are_errors(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "usage: adaptive-margin" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "export-onnx", "report", "check"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: adaptive-margin {command}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert __version__ in capsys.readouterr().out


def test_predict(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((50, 50, 3), dtype=np.uint8)).save(tmp_path / "face.png")
    words = ["predict", str(tmp_path / "face.png"), "--checkpoint", str(model), "--output", str(tmp_path / "out")]
    assert main([*words, "--crops"]) == 0
    assert "1 faces in 1 files" in capsys.readouterr().out
    assert (tmp_path / "out" / "predictions.csv").read_text().count("\n") == 2
    assert main([*words[:1], str(tmp_path / "nothing.png"), *words[2:], "--crops"]) == 1
    assert "source must be a file or folder" in capsys.readouterr().err
    (tmp_path / "broken.png").write_bytes(b"")
    assert main([*words[:1], str(tmp_path / "broken.png"), *words[2:], "--crops"]) == 1


def test_export_replaces_no_file_unasked_and_never_its_checkpoint(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, mine = model.read_bytes(), tmp_path / "mine.onnx"
    mine.write_bytes(b"mine")
    for output, words, expected in (
        (mine, [], "output must be a file that is not there yet, got .*; pass another --output, or --overwrite"),
        (model, [], "output must be another file than the checkpoint"),
        (model, ["--overwrite"], "output must be another file than the checkpoint"),
    ):
        assert main(["export-onnx", "--checkpoint", str(model), "--output", str(output), *words]) == 1
        assert re.search(expected, capsys.readouterr().err)
    assert (model.read_bytes(), mine.read_bytes()) == (before, b"mine")
    pytest.importorskip("onnxruntime")
    assert main(["export-onnx", "--checkpoint", str(model), "--output", str(mine), "--overwrite"]) == 0
    assert mine.read_bytes() != b"mine"


def test_report_and_check_say_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "adaptive-margin report: folder must be" in capsys.readouterr().err
    assert main(["check", str(tmp_path)]) == 1
    assert "FATAL" in capsys.readouterr().out


def test_the_help_says_how_to_train_with_what_a_wheel_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "python -m adaptive_margin.emotion" in said
    assert "benchmarks" not in said
