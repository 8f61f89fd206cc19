"""What a run will take is said before it starts, and more than a day is asked about."""

from __future__ import annotations

import dataclasses
import io
import sys

import pytest

from adaptive_margin.emotion.config import QUICK
from adaptive_margin.emotion.forecast import DAY, Forecast, confirm, forecast, measured

SMALL = dataclasses.replace(QUICK, batch_size=8, iterations=100, device="cpu")


def test_it_adds_up_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {"none": (1.0, 10), "caf": (3.0, 100)}
    monkeypatch.setattr("adaptive_margin.emotion.forecast.measured", lambda config: cost[config.critic])
    plain = dataclasses.replace(SMALL, critic="none")
    configs = {"a": plain, "b": SMALL, "c": SMALL}
    found = forecast(configs, {"a": 100, "b": 40, "c": 0}, jobs=2)
    assert (found.runs, found.iterations, found.disk, found.picture) == (2, 160, 210, 0)
    assert found.seconds == (60 * 3 + 100 * 3) / 2
    assert forecast({"a": plain}, {"a": 0}, jobs=8).seconds == 100.0  # one run cannot be in two processes
    stored = dataclasses.replace(SMALL, dataset="affectnet", root="AffectNet", resize=256)
    assert forecast({"a": stored}, {}).picture == 196_608


def test_a_critic_costs_time_and_disk() -> None:
    plain, caf = (measured(dataclasses.replace(SMALL, critic=critic)) for critic in ("none", "caf"))
    assert 0 < plain[0] < 10
    assert caf[1] > plain[1] > 100_000  # a second Adam and the critic's own


def test_a_day_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    long = Forecast(runs=1, iterations=1, seconds=3 * DAY, disk=0, picture=0)
    confirm(dataclasses.replace(long, seconds=DAY), yes=False)
    confirm(long, yes=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(ValueError, match=r"--yes must be given .* got about 3\.0 days without it; pass --yes"):
        confirm(long, yes=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    asked: list[str] = []
    for answer, starts in (("y", True), ("", False)):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: asked.append(question) or answer)
        if starts:
            confirm(long, yes=False)
        else:
            with pytest.raises(ValueError, match="the answer must be y to start"):
                confirm(long, yes=False)
    assert asked == ["That is about 3.0 days. Start? [y/N] "] * 2
