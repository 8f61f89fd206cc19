"""A benchmark's case in a process of its own: its result, its limits, and nothing left of it."""

from __future__ import annotations

import importlib
import subprocess
import time
from pathlib import Path
from types import ModuleType

import pytest

SLEEPS = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("limited")


def is_left(path: Path) -> bool:
    """Whether the process that wrote its number there is at work; false if it had no time to write."""
    number = path.read_text() if path.exists() else ""
    return bool(number) and Path(f"/proc/{number}").exists()


def test_the_result_is_the_last_line(limited: ModuleType) -> None:
    code = "import sys; print('x' * 10**6); print('{\"ms\": 1.5}'); print('aside', file=sys.stderr)"
    assert limited.run_limited(["-c", code], gib=1, minutes=1) == ({"ms": 1.5}, "", "", "aside\n")


def test_a_case_that_fails_is_its_last_words(limited: ModuleType) -> None:
    ended = limited.run_limited(["-c", "raise MemoryError('too large')"], gib=1, minutes=1)
    assert (ended.result, ended.stopped, ended.why) == ({}, "", "MemoryError: too large")
    assert "Traceback" in ended.errors
    assert limited.run_limited(["-c", "raise SystemExit(3)"], gib=1, minutes=1).why == "exit 3"


@pytest.mark.parametrize("why", ["time", "memory"])
def test_a_case_beyond_a_limit_is_stopped(limited: ModuleType, why: str, tmp_path: Path) -> None:
    limits = {"gib": 1e-4, "minutes": 1} if why == "memory" else {"gib": 8, "minutes": 2 / 60}
    if why == "memory" and not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    ended = limited.run_limited(["-c", SLEEPS, tmp_path / "pid"], **limits)
    assert ended.stopped == why
    assert ended.why == {"time": "more than 0.0333333 min", "memory": "more than 0.0001 GiB"}[why]
    assert not is_left(tmp_path / "pid")


def test_nothing_is_left_when_it_is_interrupted(
    limited: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(child: subprocess.Popen[str], timeout: float) -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(limited.subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        limited.run_limited(["-c", SLEEPS, tmp_path / "pid"], gib=8, minutes=1)
    assert not is_left(tmp_path / "pid")
