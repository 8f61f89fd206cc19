"""The demo end to end, on few steps: what it prints, writes and leaves behind."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}  # the checkout's own package, installed or not
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
        subprocess.run(
            [*command, "--out", str(tmp_path)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
        )
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


def test_an_interrupted_run_keeps_what_is_finished(demo, tmp_path, capsys, monkeypatch):
    def interrupted(runs, workers, finished):
        finished.append(demo.train_and_measure(runs[0]))
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train_all", interrupted)
    (tmp_path / "margin.png").write_text("of an earlier run")
    assert demo.main(["--seeds", "1", "--steps", "1", "--out", str(tmp_path)]) == 130
    printed = capsys.readouterr().out
    assert "Stopped after 1 of 6 networks" in printed
    assert str(tmp_path / "results.json") in printed
    document = json.loads((tmp_path / "results.json").read_text())
    assert not document["complete"]
    assert len(document["runs"]) == 1
    assert not (tmp_path / "margin.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a process group")
@pytest.mark.parametrize("after", [0.0, 8.0], ids=["while workers start", "while they train"])
def test_ctrl_c_ends_it_without_a_traceback(tmp_path, after):
    command = [sys.executable, "-u", str(ROOT / "examples" / "demo.py"), "--seeds", "1", "--steps", "100000"]
    demo = subprocess.Popen(
        [*command, "--workers", "1", "--out", str(tmp_path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, which gets the signal as a terminal would send it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests may run where it is ignored
    )
    stderr = demo.stderr.read(len("6 networks"))  # the bar is there, so the workers are on their way
    time.sleep(after)
    os.killpg(demo.pid, signal.SIGINT)
    stdout, rest = demo.communicate(timeout=120)  # which waits for the workers too: they hold the same pipes
    assert demo.returncode == 130
    assert "Stopped after 0 of 6 networks. Nothing was written." in stdout
    assert "Traceback" not in stderr + rest
    assert not list(tmp_path.iterdir())
