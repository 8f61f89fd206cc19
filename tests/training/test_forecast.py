"""What a run will take is said before it starts, costs little, changes nothing, and more than a day is refused."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_margin.command import main
from adaptive_margin.dml import trainer as retrieval
from adaptive_margin.dml.config import SMALL
from adaptive_margin.dml.embedded import digits
from adaptive_margin.dml.trainer import work
from adaptive_margin.emotion import trainer
from adaptive_margin.emotion.config import QUICK
from adaptive_margin.training import Checkpoints, World
from adaptive_margin.training.forecast import DAY, Forecast, Work, announce, forecast, seconds_a_step, steps_done

from .toy import Toy


class Slow:
    """A job whose steps take time by a clock of the test; the first one longer, as on a device that has to warm up."""

    now = 0.0

    def __init__(self, first: float, others: float) -> None:
        self.seconds, self.steps = (first, others), 0

    def step(self, step: int) -> Mapping[str, torch.Tensor | float]:
        Slow.now += self.seconds[step > 0]
        self.steps += 1
        return {"loss": 0.0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptive_margin.training.forecast.time", SimpleNamespace(perf_counter=lambda: Slow.now))


@pytest.mark.usefixtures("clock")
def test_a_short_run_spends_little_on_its_forecast() -> None:
    job: Any = Slow(0.2, 0.05)
    assert seconds_a_step(job, 10) == pytest.approx(0.05)
    assert job.steps <= 4
    short: Any = Slow(0.2, 0.1)
    assert seconds_a_step(short, 1) == pytest.approx(0.1)
    assert short.steps == 2


@pytest.mark.usefixtures("clock")
def test_it_adds_up_what_is_left() -> None:
    works = [
        Work(job=lambda: Slow(0.02, 0.02), iterations=100, runs=2, disk=lambda job: 10),  # type: ignore[arg-type,return-value]
        Work(job=lambda: Slow(0.04, 0.04), iterations=50, disk=lambda job: 100),  # type: ignore[arg-type,return-value]
        Work(job=lambda: pytest.fail("nothing is left of it"), iterations=0, runs=0),
    ]
    found = forecast(works)
    assert (found.runs, found.iterations, found.disk) == (3, 150, 120)
    assert found.seconds == pytest.approx(4.0)
    assert forecast(works[1:], jobs=8).seconds == pytest.approx(2.0)  # one run cannot be in two processes


def test_random_states_and_threads_are_left_as_they_were() -> None:
    def numbers() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    seed()
    expected, threads = numbers(), torch.get_num_threads()
    seed()
    forecast([Work(job=lambda: Toy(World()), iterations=10)], threads=threads + 1)
    assert numbers() == expected
    assert torch.get_num_threads() == threads


TRAIN_FACES = ["train-faces", "--people", "14", "--images-per-person", "6", "--resize", "32", "--size", "28"]
TRAIN_FACES += ["--encoder", "small"]
TRAIN_FACES += ["--batch-size", "8", "--iterations", "6", "--checkpoint-every", "2", "--device", "cpu", "--output"]
TRAIN_RETRIEVAL = ["train-retrieval", "digits", "--epochs", "2", "--steps-per-epoch", "3", "--device", "cpu"]
TRAIN_RETRIEVAL += ["--loss", "margin", "--margin", "adaptive", "--out"]


def plain(value: Any) -> Any:
    """A state in types that `==` compares, tensors by their bytes."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def left_by(words: list[str], folder: Path) -> tuple[Any, set[str]]:
    assert main([*words, str(folder)]) == 0
    latest = Checkpoints(folder / "checkpoints").latest()
    assert latest is not None
    state = {name: value for name, value in latest[1].items() if name != "seconds"}
    names = {path.relative_to(folder).parts[0] for path in folder.rglob("*")}
    return plain(state), names


@pytest.mark.parametrize(
    "words", [pytest.param(TRAIN_FACES, marks=pytest.mark.slow), TRAIN_RETRIEVAL], ids=lambda each: each[0]
)
def test_results_are_the_same_with_and_without(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_it = left_by(words, tmp_path / "with")
    assert capsys.readouterr().err.startswith("1 run, 6 iterations: about ")
    nothing = Forecast(runs=0, iterations=0, seconds=0.0)
    monkeypatch.setattr("adaptive_margin.training.forecast.forecast", lambda works: nothing)
    without = left_by(words, tmp_path / "without")
    assert "1 run, 6 iterations" not in capsys.readouterr().err
    assert with_it == without
    assert steps_done(tmp_path / "with") == 6
    assert main([*words, str(tmp_path / "with")]) == 0  # it is finished: nothing is timed
    assert "iterations: about" not in capsys.readouterr().err


@pytest.mark.parametrize(("words", "length"), [(TRAIN_FACES, "--iterations"), (TRAIN_RETRIEVAL, "--epochs")])
def test_more_than_a_day_is_refused_before_anything_is_written(
    words: list[str], length: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*words, str(tmp_path / "out"), length, "1000000000"]
    with pytest.raises(SystemExit) as end:
        main(given)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "hours on this device" in said
    assert "error: --yes must be given for more than a day of training, got about" in said
    assert not (tmp_path / "out").exists()

    class Started(Exception):
        pass

    def start(*_: object, **__: object) -> None:
        raise Started

    monkeypatch.setattr(trainer, "run", start)
    monkeypatch.setattr(retrieval, "run", start)
    with pytest.raises(Started):
        main([*given, "--yes"])


def test_a_critic_costs_time_and_disk_and_the_disk_is_about_right(tmp_path: Path) -> None:
    small = dataclasses.replace(QUICK, batch_size=8, iterations=100, device="cpu", output=str(tmp_path / "none"))
    plain, caf = (forecast(trainer.works([dataclasses.replace(small, critic=c)])) for c in ("none", "caf"))
    assert 0 < plain.seconds < 1000
    assert caf.disk > plain.disk > 100_000  # a second Adam and the critic's own
    many = [dataclasses.replace(small, critic=critic, seed=seed) for critic in ("none", "caf") for seed in range(3)]
    assert [(each.runs, each.iterations) for each in trainer.works(many)] == [(3, 300)] * 2

    out = tmp_path / "out"
    config = dataclasses.replace(small, people=14, images_per_person=6, iterations=6, checkpoint_every=2)
    config = dataclasses.replace(config, evaluate_every=3, output=str(out))
    expected = forecast(trainer.works([config])).disk
    trainer.run(config)
    written = sum(path.stat().st_size for path in (*out.glob("checkpoints/*"), out / "model.pt"))
    assert 0.8 < expected / written < 1.25


def test_a_run_of_metric_learning_is_as_long_as_its_folds(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, epochs=2, steps_per_epoch=3, device="cpu", classes=16, out=tmp_path / "out")
    one = work(config, digits())
    assert (one.runs, one.iterations) == (1, 6)
    folds = work(dataclasses.replace(config, folds=4), digits(), 2)
    assert (folds.runs, folds.iterations) == (4, 24)
    disk: Callable[[Any], int] = lambda job: folds.disk(job) if folds.disk else 0  # noqa: E731
    assert disk(folds.job()) > 0
    for place, step in (("fold-0-of-4", 6), ("fold-1-of-4", 2)):
        (tmp_path / "out" / place).mkdir(parents=True)
        (tmp_path / "out" / place / "scalars.csv").write_text(f"step,seconds,name,value\n{step},1.0,loss,0.5\n")
    left = work(dataclasses.replace(config, folds=4), digits())
    assert (left.runs, left.iterations) == (3, 16)


def test_a_day_needs_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    long = Forecast(runs=1, iterations=1, seconds=3 * DAY)
    announce(dataclasses.replace(long, seconds=DAY), yes=False)
    announce(long, yes=True)
    assert capsys.readouterr().err.splitlines() == [
        f"1 run, 1 iteration: about {hours}.0 hours on this device (by timed iterations, without evaluations); "
        "disk: figures, no checkpoints"
        for hours in (24, 72)
    ]
    with pytest.raises(ValueError, match=r"--yes must be given .* got about 3\.0 days without it; pass --yes"):
        announce(long, yes=False, world=World(rank=1, size=2))
    announce(Forecast(runs=0, iterations=0, seconds=0.0), yes=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "a second"), (60, "60 s"), (600, "10 minutes"), (5400, "1.5 hours"), (9e6, "2,500.0")]
)
def test_durations_are_said_in_words(seconds: float, said: str) -> None:
    assert f"about {said}" in str(Forecast(runs=1, iterations=1, seconds=seconds))
