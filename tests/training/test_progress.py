"""What is said about a run, where, and by whom."""

from __future__ import annotations

import sys
import time

import pytest

from adaptive_margin.training import Progress, World


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_lines_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10_000, 1_000, world=World(), every=30) as progress:
        for second in range(1, 61):
            clock.now = float(second)
            progress.update(1_000 + 50 * second, waited=100 + second / 4, losses={"loss": 1 / second})
        progress.write("done")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 2,500 of 10,000, 50 steps/s, 2 minutes left, waiting for data 24%, loss 0.03333",
        "step 4,000 of 10,000, 50 steps/s, 2 minutes left, waiting for data 25%, loss 0.01667",
        "done",
    ]


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(10, 2, world=World()) as progress:
        progress.update(3, waited=0.0)
        time.sleep(0.2)  # the bar is drawn at most ten times a second
        progress.update(4, waited=0.1, losses={"loss": 0.25, "margin": 2.0})
        progress.write("a line of its own")
    shown = capsys.readouterr().err
    assert "4/10" in shown
    assert "step/s" in shown or "s/step" in shown
    assert "waiting for data" in shown
    assert "loss 0.25, margin 2" in shown
    assert "a line of its own\n" in shown


def test_other_ranks_are_silent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, world=World(rank=1, size=2), every=0) as progress:
        clock.now = 100.0
        progress.update(5, waited=0.0, losses={"loss": 1.0})
        progress.write("nothing")
    assert capsys.readouterr() == ("", "")
