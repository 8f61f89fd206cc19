"""Each recipe, end to end, on data in the exact real layout."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adaptive_margin.dml import datasets

from . import stand_ins

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHORT = [*stand_ins.TINY, "--embedding-size", "8"]
SHORT += ["--classes", "2", "--per-class", "2", "--epochs", "1", "--steps-per-epoch", "2", "--device", "cpu"]


def recipe(monkeypatch: pytest.MonkeyPatch, name: str, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as Python does for a script
    try:
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "counts"),
    [
        ("dml_cub.py", stand_ins.cub, "CUB_COUNTS"),
        ("dml_cars.py", lambda root: stand_ins.cars(root, "C"), "CARS_COUNTS"),
        ("dml_sop.py", stand_ins.sop, "SOP_COUNTS"),
        ("dml_folder.py", stand_ins.folders, None),
    ],
)
def test_a_recipe_runs_end_to_end(
    name: str,
    make: Callable[[Path], Path],
    counts: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    if counts is not None:  # a stand-in has other counts than the benchmark
        loader = f"load_{name[4:-3]}"
        true = getattr(datasets, loader)
        monkeypatch.setattr(datasets, loader, lambda place: true(place, counts=None))
    options = ["--root", root, "--out", tmp_path / "run", "--loss", "margin", "--margin", "adaptive", *SHORT]
    recipe(monkeypatch, name, *options)
    printed = capsys.readouterr().out
    assert "chosen by validation MAP@R" in printed
    assert ("Recall@1000" in printed) == (name == "dml_sop.py")
    assert "weights before training: none" in printed
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["weights"] == "none"
    recipe(monkeypatch, name, *options)
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_the_other_protocols_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    stand_ins.folders(root, classes=16, each=4)
    for preset, more in (("wu2017", ["--no-crop-to-box"]), ("realitycheck", ["--folds", "2"])):
        options = ["--preset", preset, "--root", root, "--out", tmp_path / preset, *SHORT, *more]
        recipe(monkeypatch, "dml_folder.py", *options)
        assert json.loads((tmp_path / preset / "result.json").read_text())["test"]["recall_at_1"] > 0


def test_a_recipe_without_a_root_shows_the_layout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        recipe(monkeypatch, "dml_sop.py")
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --root must be the folder of the data set, got nothing")
    assert "Ebay_train.txt" in said


@pytest.mark.parametrize("name", ["dml_cub.py", "dml_cars.py", "dml_sop.py", "dml_folder.py", "dml_omniglot.py"])
def test_what_goes_wrong_is_said_without_a_traceback(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        recipe(monkeypatch, name, "--root", tmp_path)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: root must be the folder of")


def test_a_download_that_does_nothing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as end:
        recipe(monkeypatch, "dml_cub.py", "--root", tmp_path, "--download", "--device", "cpu")
    assert end.value.code == 2
    said, error = capsys.readouterr().err.split("\n", 1)
    assert said.startswith(f"nothing is downloaded, as {tmp_path} is not empty: what is in it is used; a new folder")
    assert error.startswith("error: root must be the folder of CUB-200-2011")


def test_weights_that_cannot_be_fetched_are_said_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision import models

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(models, "resnet50", refuse)
    stand_ins.folders(tmp_path / "data")
    with pytest.raises(SystemExit) as end:
        recipe(monkeypatch, "dml_folder.py", "--root", tmp_path / "data", "--classes", "2", "--device", "cpu")
    assert end.value.code == 1
    assert "could not be fetched (no route to host); pass --weights FILE" in capsys.readouterr().err


def test_what_the_margin_answers_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "1", "2", "--losses", "vdm", "--out", tmp_path / "cause.json"]
    recipe(monkeypatch, "dml_cause.py", *options)
    document = json.loads((tmp_path / "cause.json").read_text())
    assert [row["step"] for row in document["training"]] == [1, 2]
    spread, pure = document["made to order"][0], document["made to order"][3]
    assert pure["delta_chernoff"] > 1 > spread["delta_chernoff"]
    printed = capsys.readouterr().out
    recipe(monkeypatch, "dml_cause.py", "--print", *options[-2:])
    assert printed == capsys.readouterr().out + f"written to {tmp_path / 'cause.json'}\n"
