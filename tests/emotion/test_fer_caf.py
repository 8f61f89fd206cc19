"""The benchmark as its user runs it: a table and a report, stopped and taken up, and what it says of wrong options."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fer_caf.py"
TINY = """
people: 16
images_per_person: 6
batch_size: 16
evaluate_every: 12
checkpoint_every: 4
log_every: 2
"""


def start(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [sys.executable, str(SCRIPT), "--config", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "out")]
    return subprocess.Popen(
        [*command, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests may run where it is ignored
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_stopped_ablation_goes_on_and_ends_with_its_table_and_report(tmp_path: Path) -> None:
    words = ("--arms", "caf", "--seeds", "1", "--iterations", "12", "--jobs", "1")  # none comes by itself
    stopped = start(tmp_path, *words)
    log = tmp_path / "out" / "runs" / "none" / "seed0" / "scalars.csv"
    until = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 2) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(stopped.pid, signal.SIGINT)  # as a terminal does
    assert stopped.wait(60) == 130
    assert not (tmp_path / "out" / "results.json").exists()

    said, error = (going_on := start(tmp_path, *words)).communicate(timeout=120)
    assert going_on.returncode == 0, error[-2000:]
    assert "difference from 'none', seed by seed" in said
    assert "identity in the features of unseen people" in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for arm in ("none", "caf"):
        assert [one["seed"] for one in results["arms"][arm]["seeds"]] == [0]
    assert results["arms"]["caf"]["config"]["critic"] == "caf"
    caf, none = (results["arms"][arm]["seeds"][0]["test"]["figures"]["ccc"]["mean"] for arm in ("caf", "none"))
    assert results["arms"]["caf"]["difference"]["ccc"]["mean"] == pytest.approx(caf - none)
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "table.txt").read_text().strip() in said


def test_a_root_that_is_no_data_set_is_said(tmp_path: Path) -> None:
    said, error = (wrong := start(tmp_path, "--dataset", "afew-va", "--root", str(tmp_path))).communicate(timeout=60)
    assert wrong.returncode == 2, said
    assert error.startswith("error: ")
    assert str(tmp_path) in error
