"""The margin over a run: what is recorded is what each call had; files give it back; a plot shows it."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from adaptive_margin import (
    AdaptiveMargin,
    AdaptiveMarginLoss,
    AdaptiveMarginMiner,
    ContrastiveVDMLoss,
    MarginRecorder,
)

from .losses.cases import batch

BUILDERS: dict[str, Any] = {
    "loss": lambda on: AdaptiveMarginLoss(losses.TripletMarginLoss(), collect_stats=on),
    "constant": lambda on: AdaptiveMarginLoss(losses.TripletMarginLoss(), 0.3, collect_stats=on),
    "vdm": lambda on: ContrastiveVDMLoss(collect_stats=on),
    "miner": lambda on: AdaptiveMarginMiner(miners.TripletMarginMiner(), collect_stats=on),
    "margin": lambda on: AdaptiveMargin(collect_stats=on),
    "distributed": lambda on: DistributedLossWrapper(AdaptiveMarginLoss(losses.ContrastiveLoss(), collect_stats=on)),
    "memory": lambda on: losses.CrossBatchMemory(AdaptiveMarginLoss(losses.ContrastiveLoss(), collect_stats=on), 8),
}
quiet = pytest.mark.filterwarnings("ignore:DistributedLossWrapper is being used")


def recorded(steps: int = 3) -> MarginRecorder:
    loss, recorder = BUILDERS["loss"](True), MarginRecorder()
    for step in range(steps):
        loss(*batch(seed=step))
        recorder(loss)
    return recorder


@quiet
@pytest.mark.parametrize("name", BUILDERS)
def test_it_keeps_what_each_call_had(name: str) -> None:
    module, recorder = BUILDERS[name](True), MarginRecorder()
    seen = []
    for step in range(3):
        module(*batch(seed=step))
        inner = module if hasattr(module, "statistics") else module.loss
        seen.append(inner.statistics())
        assert recorder(module) == seen[-1]
    assert recorder.rows == [{"step": step, **each} for step, each in enumerate(seen)]
    assert recorder["step"] == [0, 1, 2]
    if name not in ("constant",):
        assert len(set(recorder["alpha"])) == 3
        sums = [mi + delta for mi, delta in zip(recorder["mi"], recorder["delta"], strict=True)]
        assert recorder["alpha"] == pytest.approx(sums)


@quiet
@pytest.mark.parametrize("name", BUILDERS)
def test_attached_it_turns_recording_on_and_leaves_validation_out(name: str) -> None:
    module, recorder = BUILDERS[name](False), MarginRecorder()
    handle = recorder.attach(module)
    module(*batch(seed=0))
    with torch.no_grad():
        module(*batch(seed=1))
    module(*batch(seed=2))
    handle.remove()
    module(*batch(seed=3))
    expected, by_hand = BUILDERS[name](True), MarginRecorder()
    for seed in (0, 2):
        if name == "memory" and seed == 2:  # what validation put into it
            expected(*batch(seed=1))
        expected(*batch(seed=seed))
        by_hand(expected)
    assert recorder.rows == by_hand.rows


def test_steps_are_counted_or_given() -> None:
    loss, recorder = BUILDERS["loss"](True), MarginRecorder()
    loss(*batch())
    for step in (None, 10, None, 0):
        recorder(loss, step)
    assert recorder["step"] == [0, 10, 11, 0]


@quiet
@pytest.mark.parametrize("how", ["called", "attached"])
@pytest.mark.parametrize("name", sorted(BUILDERS.keys() - {"memory"}))  # which has what it remembers
def test_an_empty_batch_leaves_a_gap(name: str, how: str) -> None:
    """It had no margin: that of the batch before it is not repeated."""
    module, recorder = BUILDERS[name](True), MarginRecorder()
    handle = recorder.attach(module) if how == "attached" else None
    empty = torch.zeros(0, 16, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    for step, given in enumerate((batch(seed=0), empty, batch(seed=2))):
        module(*given)
        if handle is None:
            found = recorder(module)
            assert bool(found) is (step != 1)
    constant = name == "constant"
    assert recorder["step"] == [0, 1, 2]
    assert recorder.rows[1] == {"step": 1}
    column = recorder["current_margin" if constant else "alpha"]
    assert [math.isnan(value) for value in column] == [False, True, False]


def test_a_batch_without_pairs_leaves_a_gap(tmp_path: Path) -> None:
    """The loss ignores every row, or has a margin for each of no pairs."""
    for loss, labels in (
        (ContrastiveVDMLoss(compact_label=1, collect_stats=True), torch.full((12,), -1)),
        (ContrastiveVDMLoss(AdaptiveMargin(granularity="pair"), collect_stats=True), torch.zeros(12).long()),
    ):
        recorder = MarginRecorder()
        rows, groups = batch()
        for given in (groups % 2, labels, groups % 2):
            loss(rows[: len(given)], given[: len(rows)])
            recorder(loss)
        assert "alpha" in recorder.rows[0]
        assert {"alpha", "current_margin", "mi", "delta"}.isdisjoint(recorder.rows[1])
        assert recorder.rows[2]["alpha"] == recorder.rows[0]["alpha"]
        for ending in ("csv", "json"):
            recorder.save(tmp_path / f"a.{ending}")
            assert MarginRecorder.load(tmp_path / f"a.{ending}").rows == recorder.rows


def test_a_batch_without_a_statistic_has_nan_in_its_place() -> None:
    recorder = MarginRecorder([{"step": 0, "alpha": 0.5}, {"step": 1, "current_margin": 0.25}])
    assert recorder.columns == ("step", "alpha", "current_margin")
    assert recorder["alpha"][0] == 0.5
    assert math.isnan(recorder["alpha"][1])
    with pytest.raises(KeyError, match="beta"):
        recorder["beta"]


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_a_file_gives_it_back_and_is_plain(tmp_path: Path, ending: str) -> None:
    recorder, path = recorded(), tmp_path / "new" / f"margin.{ending}"
    recorder.save(path)
    again = MarginRecorder.load(path)
    assert again.rows == recorder.rows  # to the bit
    assert all(type(step) is int for step in again["step"])
    if ending == "csv":
        table = list(csv.DictReader(path.open()))
        assert [float(row["alpha"]) for row in table] == recorder["alpha"]
    else:
        assert json.loads(path.read_text())["alpha"] == recorder["alpha"]
    loss = BUILDERS["loss"](True)
    loss(*batch(seed=9))
    again(loss)
    assert again["step"] == [0, 1, 2, 3]  # it continues
    gaps = MarginRecorder([{"step": 0, "alpha": 0.5}, {"step": 1, "current_margin": 0.25}])
    gaps.save(path)
    assert MarginRecorder.load(path).rows == gaps.rows
    MarginRecorder().save(path)
    assert MarginRecorder.load(path).rows == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "some,thing\n1,2\n"),
        ("a.csv", "step,alpha\n0,red\n"),
        ("a.json", "[1, 2]"),
        ("a.json", "{"),
        ("a.json", '{"step": [0, 1], "alpha": [0.5]}'),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"must be a recorded margin, got other content \(.*pass a file that save\(\)"):
        MarginRecorder.load(tmp_path / name)


def test_a_plot_shows_the_parts_and_the_margin_in_the_losses_unit(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    recorder, path = recorded(), tmp_path / "plots" / "margin.png"
    figure = recorder.plot(path)
    assert path.stat().st_size > 5000
    parts, own = figure.axes
    assert [line.get_label() for line in parts.lines] == ["α̂ = MI + Δ", "MI", "Δ"]
    assert list(parts.lines[1].get_ydata()) == recorder["mi"]
    assert list(own.lines[0].get_ydata()) == recorder["current_margin"]
    assert list(own.lines[0].get_xdata()) == [0, 1, 2]
    (only,) = MarginRecorder([{"step": 0, "current_margin": 0.3}]).plot().axes  # a constant
    assert only.get_ylabel() == "in the loss's unit"
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize("how", ["one chart", "a chart each"])
def test_the_statistics_go_to_tensorboard_in_one_line(tmp_path: Path, how: str) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    loss, recorder = BUILDERS["loss"](True), MarginRecorder()
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(3):
            loss(*batch(seed=step))
            recorder(loss)
            if how == "one chart":
                writer.add_scalars("margin", loss.statistics(), step)
            else:
                for name, value in loss.statistics().items():
                    writer.add_scalar(f"margin/{name}", value, step)
    events = EventAccumulator(str(tmp_path / "margin_alpha" if how == "one chart" else tmp_path))
    events.Reload()
    tag = "margin" if how == "one chart" else "margin/alpha"
    assert [each.value for each in events.Scalars(tag)] == pytest.approx(recorder["alpha"])
    assert [each.step for each in events.Scalars(tag)] == [0, 1, 2]
