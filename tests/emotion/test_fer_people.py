"""``benchmarks/fer_people.py`` and ``fer_headroom.py``: runs from beginning to end, and the figures of their tables."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from adaptive_margin.emotion.data import load_data
from adaptive_margin.processes import Workers
from adaptive_margin.stored import read_arrays

from .cases import TINY

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _here(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A benchmark whose preset is tiny and whose workers are this process."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module(name)
    monkeypatch.setitem(module.PRESETS, "quick", TINY)
    monkeypatch.setattr(importlib.import_module("fer_people"), "start_pool", lambda jobs: Workers(0))
    importlib.import_module("fer_caf").shared_data.cache_clear()
    return module


def test_arms_are_chosen_on_validation_people_and_tested_on_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = _here("fer_people", monkeypatch)
    given = ["--arms", "person-norm", "--seeds", "2", "--iterations", "2", "--output", str(tmp_path)]
    assert people.main(["choose", *given]) == 0
    content = json.loads((tmp_path / "choose.json").read_text())
    assert content["people"] == "validation"
    both = "person-norm, by all pictures of a person"
    assert list(content["arms"]) == ["none", "none-together", "person-norm", both]
    alone, together = (content["arms"][arm]["seeds"][0] for arm in ("person-norm", both))
    assert alone["ccc"] != together["ccc"]
    low, high = content["differences"][both]["ccc_by_people"]
    assert low <= high
    printed = capsys.readouterr().out
    assert "| `person-norm`, by all pictures of a person | 2 |" in printed

    asked: Any = people.read(people.Asked, prog="", argv=["--stage", "test", *given], description="")
    chosen: Any = people.read(people.Asked, prog="", argv=["--stage", "choose", *given], description="")
    assert people.arms_of(asked)[:4] == ("none", "none-together", "person-norm", "person-norm-shuffled")
    one, two = people.config_of(chosen, "none", 0), people.config_of(asked, "none", 0)
    assert one.split_seed != two.split_seed  # other people
    assert one.seed != two.seed
    parts = {name: set(getattr(load_data(one), name).people) for name in ("val", "test")}
    stored = read_arrays(Path(one.output) / "alone.npz")
    assert set(stored["person"]) == parts["val"]
    assert not set(stored["person"]) & parts["test"]

    runs = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert people.main(["choose", *given]) == 0  # nothing is trained again
    assert "0 runs to train" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")} == runs


def test_headroom_is_measured_for_each_setting_of_the_dial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    headroom = _here("fer_headroom", monkeypatch)
    given = ["--effects", "0", "2", "--seeds", "1", "--iterations", "2", "--output", str(tmp_path)]
    assert headroom.main(given) == 0
    content = json.loads((tmp_path / "headroom.json").read_text())
    assert [row["person_effect"] for row in content["effects"]] == [0, 2]
    asked: Any = headroom.read(headroom.Asked, prog="", argv=given, description="")
    for row in content["effects"]:
        folders = [headroom.config_of(asked, row["person_effect"], 0, kind).output for kind in headroom.TRAINED]
        held_out, shared = (read_arrays(Path(folder) / "predictions.npz") for folder in folders)
        assert np.array_equal(held_out["truth"], shared["truth"])  # the same test
        assert not np.array_equal(held_out["prediction"], shared["prediction"])
        assert row["seeds"][0]["held out"] == headroom.ccc(folders[0])
        assert row["seeds"][0]["recentred"] == headroom.ccc(folders[0], corrected=True)
    capsys.readouterr()
    figure = tmp_path / "headroom.png"
    assert headroom.main(["--print", str(tmp_path / "headroom.json"), "--figure", str(figure)]) == 0
    assert "| 0 |" in capsys.readouterr().out
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_documentation_has_the_committed_headroom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    headroom = _here("fer_headroom", monkeypatch)
    assert headroom.main(["--print", str(BENCHMARKS / "fer_caf" / "results" / "headroom.json")]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    page = (BENCHMARKS.parent / "docs" / "people.md").read_text(encoding="utf-8").splitlines()
    assert len(printed) == 4
    assert set(printed) <= set(page)
