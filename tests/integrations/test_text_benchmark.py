"""The table of the benchmark of text losses, from rows that are made up."""

from __future__ import annotations

import importlib.util
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from adaptive_margin.processes import Workers

RUN = Path(__file__).parents[2] / "benchmarks" / "text" / "run.py"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("text_benchmark", RUN)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["text_benchmark"] = module  # data classes look themselves up
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def row(run: Any, score: float) -> dict[str, Any]:
    part = "validation" if run.seed == 100 else "test"
    names = {name: getattr(run, name) for name in ("form", "loss", "margin", "seed")}
    return {**names, "part": part, "mean_average_precision_at_r": score, "recall_at_1": score / 2}


def test_constants_are_tuned_and_seeds_are_those_that_all_arms_have(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "names.jsonl"
    rows = {}
    for run in benchmark.tuning():
        rows[run.key] = row(run, 0.5 if run.margin == 0.2 else 0.4)
    assert [benchmark.best(form, rows) for form in benchmark.TUNED] == [0.2, 0.2]
    for run in benchmark.final(rows):
        gain = {"adaptive": 0.02, 0.2: 0.02, 5.0: 0.0, "none": 0.03}[run.margin]
        noise = 0.001 * (run.seed % 2) if run.margin == "adaptive" else 0.0
        rows[run.key] = row(run, 0.4 + 0.01 * run.seed + gain + noise)
    last = [each for each in rows.values() if each["seed"] == 4]
    kept = [each for each in rows.values() if each is not last[0]]
    file.write_text("".join(json.dumps(each) + "\n" for each in ({"versions": {}}, *kept)))
    assert benchmark.main(["--print", "--results", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "| TripletLoss, margin 0.2 | 50.0 | 25.0 |" in printed
    assert "| BatchAllTripletLoss, tuned margin 0.2 | labels | 43.5 ± 1.3 | 21.8 ± 0.6 |" in printed
    lines = {line.split(" | ")[0]: line for line in printed.splitlines() if "±" in line}
    assert lines["| TripletLoss, default margin 5"].endswith("| better |")
    assert lines["| MultipleNegativesRankingLoss"].endswith("| worse |")
    assert lines["| TripletLoss, tuned margin 0.2"].endswith("| no difference seen |")
    assert "mean ± sd of 4 seeds" in printed


def test_a_header_goes_with_new_rows_alone(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, trained = tmp_path / "names.jsonl", []

    def train(run: Any) -> dict[str, Any]:
        if len(trained) in stops:
            raise KeyboardInterrupt
        trained.append(run.key)
        return row(run, 0.5) | {"cpu_seconds": 1.0}

    monkeypatch.setattr(benchmark, "train", train)
    monkeypatch.setattr(benchmark, "version", lambda name: "1.0")
    monkeypatch.setattr(benchmark, "Workers", lambda jobs: Workers(0))
    for stops in ({0}, {3}, set()):  # before the first row, in between, and to the end
        with pytest.raises(KeyboardInterrupt) if stops else nullcontext():
            benchmark.main(["--results", str(file)])
    heads = ["versions" in json.loads(line) for line in file.read_text().splitlines()]
    assert heads == [True, False, False, False, True] + [False] * (len(trained) - 3)
    assert len(set(trained)) == len(trained)
    done = file.read_bytes()
    assert benchmark.main(["--results", str(file)]) == 0
    assert file.read_bytes() == done
    assert "nothing to do" in capsys.readouterr().out
