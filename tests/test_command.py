"""The command line: what it prints, what it returns, and that mistakes are one line, said before PyTorch is loaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptive_margin import __version__
from adaptive_margin.command import COMMANDS, main
from adaptive_margin.emotion.model_file import Preprocessing, save_model
from adaptive_margin.emotion.nets import emotion_net
from adaptive_margin.stored import write_json
from adaptive_margin.training.config_files import to_yaml
from adaptive_margin.training.model_card import described


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "model.pt"
    save_model(path, emotion_net("small"), Preprocessing(resize=48, size=40))
    return path


def code_of(words: list[str]) -> int:
    """What the process would end with."""
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)


WRONG = {
    "train": "unknown command train; the nearest: train-faces, train-retrieval",
    "predict": "IMAGE|FOLDER|VIDEO and --checkpoint must be given, got nothing; see adaptive-margin predict --help",
    "report x --colour red": "unknown option --colour; see adaptive-margin report --help",
    "report x --outptu y": "unknown option --outptu; the nearest: --output",
    "report x y": "'y' is an unexpected argument; see adaptive-margin report --help",
    "export-onnx --checkpoint x": "--output must be given, got nothing; see adaptive-margin export-onnx --help",
    "export-hub x": "FOLDER must be given, got nothing; see adaptive-margin export-hub --help",
    "predict x --checkpoint y --margin much": "--margin must be a number, got 'much'; see adaptive-margin predict ",
    "check x --decode some": "--decode must be of the form N|all|none, got 'some'; see adaptive-margin check --help",
    "check x --workers 0": "--workers must be at least 1, got 0; pass a number of threads",
    "train-faces --preset quik": "unknown preset quik; the nearest: quick",
    "train-faces --preset quick --encodr small": "unknown option --encodr; the nearest: --encoder",
    "train-faces --preset quick --critic cat": "--critic must be one of caf, fisher, sphere, gramnet, none, got 'cat'",
    "train-retrieval birds": "unknown data set birds; ",
    "train-retrieval cub --losss margin": "unknown option --losss; the nearest: --loss",
    "train-retrieval digits --device gpu": "--device must be one of auto, cpu, cuda, got 'gpu'",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_mistake_is_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(words.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {WRONG[words]}")
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of([command, "--help"]) == 0
    assert f"usage: adaptive-margin {command}" in capsys.readouterr().out


def test_help_and_version_of_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert (code_of([]), code_of(["--help"])) == (2, 0)
    said = capsys.readouterr().out
    assert all(command in said for command in COMMANDS)
    assert code_of(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "own"),
    [(["train-faces", "--preset", "quick"], {"output": "runs/emotion"}), (["train-retrieval", "digits"], {})],
    ids=["faces", "retrieval"],
)
def test_the_configuration_of_a_run_starts_another(
    words: list[str], own: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of its own; that of a file elsewhere is meant, and so is one that is asked for."""
    kind = import_module(f"adaptive_margin.command.{words[0].replace('-', '_')}")
    seen = []

    def stop(flag: str, path: object) -> None:
        seen.append(str(path))
        raise SystemExit(77)

    monkeypatch.setattr(kind, "check_output", stop)
    option = "output" if own else "out"
    file = tmp_path / "config.yaml"
    file.write_text(f"seed: 5\n{option}: {tmp_path}\n" + ("" if own else "data: other 123\n"))
    assert code_of([*words, "--config", str(file)]) == 77
    write_json(tmp_path / "environment.json", {})  # as in the folder of a run
    assert code_of([*words, "--config", str(file), f"--{option}", "elsewhere"]) == 77
    if own:
        assert code_of([*words, "--config", str(file)]) == 77
    assert seen == [str(tmp_path), "elsewhere", *own.values()]


ANSWERED = [["--help"], ["tran"], ["predict", "--help"], ["report", "x", "--colour"], ["check", "--help"]]
ANSWERED += [["suggest", "--help"], ["suggest", "x.npy", "--margin", "0.2"]]
ANSWERED += [["export-hub", "--help"], ["export-hub", "x"]]
ANSWERED += [["train-faces", "--help"], ["train-faces", "--preset", "quick", "--steps", "3"]]
ANSWERED += [["train-retrieval", "cub", "--help"], ["train-retrieval", "sop", "--loss", "marginal"]]


def test_help_and_mistakes_need_no_torch() -> None:
    code = f"""
import sys
from adaptive_margin.command import main
for words in {ANSWERED}:
    try:
        main(words)
    except SystemExit:
        pass
    assert "torch" not in sys.modules, words
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100, capture_output=True)


def test_the_package_imports_its_names_when_they_are_asked_for() -> None:
    code = """
import pickle
import sys
import adaptive_margin
assert "torch" not in sys.modules
assert adaptive_margin.margins.AdaptiveMargin
assert set(adaptive_margin.__all__) <= set(dir(adaptive_margin))
from adaptive_margin import *
from adaptive_margin import AdaptiveMargin, functional
assert all(hasattr(adaptive_margin, name) for name in adaptive_margin.__all__)
assert pickle.loads(pickle.dumps(AdaptiveMargin)) is adaptive_margin.margins.AdaptiveMargin
try:
    adaptive_margin.AdaptiveMargins
except AttributeError as error:
    assert "no attribute 'AdaptiveMargins'" in str(error)
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_predict(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((50, 50, 3), dtype=np.uint8)).save(tmp_path / "face.png")
    words = ["predict", str(tmp_path / "face.png"), "--checkpoint", str(model), "--output", str(tmp_path / "out")]
    assert main([*words, "--crops"]) == 0
    assert "1 face in 1 file: " in capsys.readouterr().out
    assert (tmp_path / "out" / "predictions.csv").read_text().count("\n") == 2
    assert code_of([*words[:1], str(tmp_path / "nothing.png"), *words[2:], "--crops"]) == 2
    assert "source must be a file or folder" in capsys.readouterr().err
    (tmp_path / "broken.png").write_bytes(b"")
    assert main([*words[:1], str(tmp_path / "broken.png"), *words[2:], "--crops", "--overwrite"]) == 1


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu"])
def test_a_device_that_is_not_there_is_said_first(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    words = ["predict", str(tmp_path), "--checkpoint", str(tmp_path / "none.pt"), "--device", device]
    assert code_of(words) == 2
    assert re.fullmatch(rf"error: device must be cpu.*, got '{device}'; pass device cpu\n", capsys.readouterr().err)
    assert code_of(["train-faces", "--preset", "quick", "--output", str(tmp_path / "run"), "--device", device]) == 2
    assert re.fullmatch(rf"error: device must be cpu.*, got '{device}'; pass device cpu\n", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "x", "--checkpoint", "y", "--output"],
        ["train-faces", "--preset", "quick", "--output"],
        ["train-retrieval", "digits", "--out"],
    ],
)
def test_an_output_that_is_a_file_or_below_one_is_explained(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "deep" / "run"):
        assert code_of([*words, str(place)]) == 2
        assert f"must be a folder, got the file {tmp_path / 'file'}; pass another" in capsys.readouterr().err


def test_export_replaces_no_file_unasked_and_never_its_checkpoint(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, mine = model.read_bytes(), tmp_path / "mine.onnx"
    mine.write_bytes(b"mine")
    for output, words, expected in (
        (mine, [], "--output must be a file that does not exist yet, got .*; pass another --output, or --overwrite"),
        (model, [], "--output must be a file other than those that are read"),
        (model, ["--overwrite"], "--output must be a file other than those that are read"),
        (tmp_path, [], "--output must be a file, got the folder .*; pass the name of a file in it"),
    ):
        assert code_of(["export-onnx", "--checkpoint", str(model), "--output", str(output), *words]) == 2
        assert re.search(expected, capsys.readouterr().err)
    assert (model.read_bytes(), mine.read_bytes()) == (before, b"mine")
    pytest.importorskip("onnxruntime")
    assert main(["export-onnx", "--checkpoint", str(model), "--output", str(mine), "--overwrite"]) == 0
    assert f"wrote {mine}: " in capsys.readouterr().out
    assert mine.read_bytes() != b"mine"
    card = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert 'onnxruntime.InferenceSession("mine.onnx")' in card
    assert described(tmp_path / "MODEL_CARD.md") == "mine.onnx"


def test_export_replaces_no_file_of_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "runs" / "run" / "model.pt", emotion_net("small"), Preprocessing(resize=48, size=40))
    run = tmp_path / "runs" / "run"
    for name in ("result.json", "checkpoints/step-1.pt"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(b"a run's")
    (tmp_path / "link.onnx").symlink_to(run / "model.pt")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("adaptive_margin.emotion.export_onnx.export_onnx", pytest.fail)
    for checkpoint in (run, tmp_path / "runs", run / "model.pt"):
        for output in files:
            words = ["--checkpoint", str(checkpoint), "--output", str(output), "--overwrite"]
            assert code_of(["export-onnx", *words]) == 2
            assert "--output must be a file other than those that are read" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in files} == files


def test_no_command_replaces_what_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, x = tmp_path / "run", tmp_path / "x.npz"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml({"critic": "caf", "seed": 0}))
    np.savez(x, embeddings=np.eye(4), labels=np.array([0, 0, 1, 1]))
    before = x.read_bytes()
    for words, expected in (
        (["suggest", str(x), "--html", str(x)], "--html must be a file other than those that are read"),
        (["suggest", str(x), "--json", str(x)], "--json must be a file other than those that are read"),
        (
            ["report", str(run), "--output", str(run / "config.yaml")],
            "--output must be a new file, or one that ends in",
        ),
        (
            ["check", str(tmp_path), "--json", str(x)],
            "--json must be a file that does not exist yet, or an earlier one",
        ),
    ):
        assert code_of([*words, "--overwrite"]) == 2
        assert expected in capsys.readouterr().err
    for flag in ("--output", "--page"):  # the option that was given is named
        assert code_of(["report", str(run), flag, str(x)]) == 2
        assert f"error: {flag} must be a file that does not exist yet, or an earlier report" in capsys.readouterr().err
    assert x.read_bytes() == before
    assert "critic: caf" in (run / "config.yaml").read_text()


def test_check_replaces_no_file_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    mine, deep = tmp_path / "mine.json", tmp_path / "a" / "b" / "report.json"
    mine.write_text('{"root": "mine"}')
    words = ["check", str(tmp_path / "data"), "--json"]
    with monkeypatch.context() as patch:
        patch.setattr("adaptive_margin.affect.check.check", pytest.fail)  # it is said before anything is read
        for place in (mine, os.devnull):
            assert code_of([*words, str(place)]) == 2
        assert "got the device /dev/null" in capsys.readouterr().err
    assert mine.read_text() == '{"root": "mine"}'
    assert code_of([*words, str(mine), "--overwrite"]) == 1
    assert code_of([*words, str(mine)]) == 1  # the earlier report
    assert code_of([*words, str(deep)]) == 1
    assert [path.name for path in deep.parent.iterdir()] == ["report.json"]
    assert set(json.loads(deep.read_text())) == set(json.loads(mine.read_text())) >= {"root", "fatal"}


def test_report_and_check_say_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["report", str(tmp_path)]) == 2
    assert "error: folder must be" in capsys.readouterr().err
    assert code_of(["report", str(tmp_path / "none")]) == 2
    assert "error: DIR must be a folder of runs" in capsys.readouterr().err
    assert main(["check", str(tmp_path)]) == 1
    assert "FATAL" in capsys.readouterr().out
    assert code_of(["check", str(tmp_path / "none")]) == 2
    assert "error: ROOT must be a folder, got" in capsys.readouterr().err


def test_report_is_that_of_the_runs_it_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, config in (("faces", {"critic": "caf", "seed": 0}), ("retrieval", {"loss": "margin", "seed": 0})):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "config.yaml").write_text(to_yaml(config))
    assert main(["report", str(tmp_path / "faces")]) == 0
    assert f"wrote {tmp_path / 'faces' / 'report.html'}" in capsys.readouterr().out
    assert code_of(["report", str(tmp_path / "faces"), "--print"]) == 2
    assert "--print and --metrics must be left out" in capsys.readouterr().err
    assert code_of(["report", str(tmp_path / "retrieval")]) == 2
    assert "with result.json below it" in capsys.readouterr().err
    rows = [
        {"data": "digits", "loss": "margin", "arm": arm, "seed": 0, "margin": margin, "test": {"recall_at_1": 0.5}}
        | {"units": "default", "rule": None, "weights": "none", "selected_by": "validation/x", "validation": 0.5}
        | {"step": 1, "seconds": 1.0, "curves": {}}
        for arm, margin in (("default", "default"), ("adaptive", "adaptive"))
    ]
    write_json(tmp_path / "retrieval" / "grid.json", {"runs": rows})
    words = ["report", str(tmp_path / "retrieval"), "--metrics", "recall_at_1"]
    assert main([*words, "--print"]) == 0
    assert "margin" in capsys.readouterr().out
    assert not (tmp_path / "retrieval" / "report.html").exists()
    assert main([*words, "--page", str(tmp_path / "page.html")]) == 0
    assert f"wrote {tmp_path / 'page.html'}" in capsys.readouterr().out
    (tmp_path / "retrieval" / "faces").mkdir()
    (tmp_path / "retrieval" / "faces" / "config.yaml").write_text(to_yaml({"critic": "caf", "seed": 0}))
    assert main([*words, "--print"]) == 0
    assert "runs on faces are left out" in capsys.readouterr().err


def test_sigterm_ends_it_as_ctrl_c_does() -> None:
    code = """
import os, signal, sys
from types import SimpleNamespace
from adaptive_margin import command
command.import_module = lambda *_: SimpleNamespace(main=lambda *_: os.kill(os.getpid(), signal.SIGTERM) or 0)
try:
    command.main(["check", "x"])
finally:
    print("cleaned up")
"""
    ended = subprocess.run([sys.executable, "-c", code], timeout=100, capture_output=True, text=True, env=os.environ)
    assert (ended.returncode, ended.stdout) == (143, "cleaned up\n")


@pytest.mark.parametrize("words", [["check"], ["report"], ["suggest"], ["check", ".", "--json"], ["export-hub", "."]])
def test_a_name_that_is_too_long_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words, "a" * 300 + ".npz"])
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "File name too long" in line
