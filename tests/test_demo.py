"""The demo end to end, on few steps: what it prints, writes and leaves behind."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["demo"]


def test_one_network_learns_something(demo):
    result = demo.train_and_measure(demo.Run("TripletMarginLoss", "adaptive", seed=0, steps=30))
    assert len(result["curves"]["alpha"]) == 30
    curves = result["curves"]
    sums = [mi + delta for mi, delta in zip(curves["mi"], curves["delta"], strict=True)]
    assert curves["alpha"] == pytest.approx(sums, abs=2e-5)
    assert result["precision_at_1"] > 0.5
    again = demo.train_and_measure(demo.Run("TripletMarginLoss", "adaptive", seed=0, steps=30))
    assert again == result


def test_paired_differences(demo):
    import numpy as np

    mean, half = demo.paired(np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 5.0]))
    assert mean == pytest.approx(4 / 3)
    assert half == pytest.approx(4.302652729911275 * np.std([1, 1, 2], ddof=1) / np.sqrt(3))


@pytest.mark.slow
def test_the_whole_demo_twice(demo, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--seeds", "2", "--steps", "3", "--workers", "1"]
    runs = [
        subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300)
        for _ in range(2)
    ]
    for run in runs:
        assert run.returncode == 0, run.stderr
        assert all(loss in run.stdout for loss in demo.LOSSES)
        assert "adaptive − own" in run.stdout
        assert f"Wrote {tmp_path}" in run.stdout
    assert "Overwriting" not in runs[0].stdout
    assert "Overwriting the results of an earlier run" in runs[1].stdout
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["complete"]
    assert document["versions"]["torch"]
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(rows) == 2 * (2 * len(demo.LOSSES) + 1)
    assert (tmp_path / "margin.png").stat().st_size > 10_000


def test_wrong_options_are_refused(demo, capsys):
    with pytest.raises(SystemExit):
        demo.main(["--seeds", "0"])
    assert "--seeds must be at least 1, got 0" in capsys.readouterr().err
