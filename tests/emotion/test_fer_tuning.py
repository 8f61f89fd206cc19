"""``benchmarks/fer_tuning.py``: its runs, its figures, its committed table."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from adaptive_margin.metrics.comparison import signed
from adaptive_margin.processes import Workers

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("fer_tuning")


def test_figures_are_those_of_the_validation_people_after_the_last_step(
    tuning: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = dataclasses.replace(
        tuning.BASE, people=12, images_per_person=4, batch_size=8, iterations=4, evaluate_every=2, log_every=1
    )
    monkeypatch.setattr(tuning, "BASE", short)
    monkeypatch.setattr(importlib.import_module("fer_caf"), "start_pool", lambda jobs: Workers(0))
    assert tuning.main(["--out", str(tmp_path), "--seeds", "1", "--only", "joint, w = 1"]) == 0
    runs = json.loads((tmp_path / "tuning.json").read_text())["runs"]
    assert [row["variant"] for row in runs] == ["no critic", "joint, w = 1"]  # the baseline comes along
    for row in runs:
        lines = (tuning.config_of(row["variant"], 0, tmp_path).output + "/scalars.csv",)
        last = [line for line in Path(lines[0]).read_text().splitlines() if line.startswith("4,val/ccc,")]
        assert row["ccc"] == pytest.approx(float(last[0].split(",")[2]), abs=1e-4)
    gap = runs[1]["ccc"] - runs[0]["ccc"]
    line = f"| joint, w = 1 | {runs[1]['ccc']:.3f} | {runs[1]['rmse']:.3f} | {signed(gap, 3)} |"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--seeds", "0"], ["--jobs", "-1"], ["--only", "caf"]])
def test_what_makes_no_sense_is_refused(tuning: ModuleType, words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        tuning.main(words)
    assert end.value.code == 2
