"""What a run's folder holds, and what it refuses."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adaptive_margin.training import DiskSpaceError, RunFolder, RunFolderError, World, read_scalars

from .processes import finish, in_ranks, needs_processes, start


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    lr: float = 1e-5
    betas: tuple[float, float] = (0.5, 0.9)


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 10
    root: Path | None = None
    encoder: Optimizer = Optimizer()


def open_folder(path: Path, config: Any = None, **options: Any) -> RunFolder:
    return RunFolder(path, config or Config(), world=World(), **options)


def test_what_is_written_down(tmp_path: Path) -> None:
    with open_folder(tmp_path / "a" / "b", Config(root=Path("x"))) as folder:
        folder.write("results/split.json", "{}")
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == {
        "steps": 10,
        "root": "x",
        "encoder": {"lr": 1e-5, "betas": [0.5, 0.9]},
    }
    here = json.loads((folder.path / "environment.json").read_text())
    assert {"torch", "pytorch-metric-learning", "numpy", "python", "adaptive-margin"} <= set(here["versions"])
    assert {"device", "threads", "commit", "command", "started", "processes"} <= set(here)
    assert (folder.path / "results" / "split.json").read_text() == "{}"
    open_folder(folder.path, Config(root=Path("x")))
    again = json.loads((folder.path / "environment.json").read_text())
    assert {**again, "resumed": None} == {**here, "resumed": None}
    assert len(again["resumed"]) == 1


def test_curves_go_on_where_the_run_does(tmp_path: Path) -> None:
    with open_folder(tmp_path) as folder:
        for step in (10, 20, 30):
            folder.log(step, {"loss, mean": 1 / step, "é": float(step)}, seconds=step)
    with open(tmp_path / "scalars.csv", "ab") as file:
        file.write(b"40,loss,0.12")  # a process was killed here
    assert max(read_scalars(tmp_path)["é"].steps) == 30
    with open_folder(tmp_path) as folder:
        folder.resume_at(20)
        folder.log(25, {"loss, mean": 5.0}, seconds=2.5)
        folder.flush()
        curves = read_scalars(tmp_path / "scalars.csv")
    assert curves["loss, mean"] == ([10, 20, 25], [1 / 10, 1 / 20, 5.0], [10.0, 20.0, 2.5])
    assert curves["é"].steps == [10, 20]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss, mean")] == [10, 20, 25]


def test_numbers_come_back_to_the_bit(tmp_path: Path) -> None:
    numbers = [0.1 + 0.2, 1e-310, float("inf"), -0.0, 1 / 3]
    with open_folder(tmp_path) as folder:
        for step, number in enumerate(numbers, 1):
            folder.log(step, {"x": number}, seconds=0)
    assert list(map(repr, read_scalars(tmp_path)["x"].values)) == list(map(repr, numbers))


def test_another_configuration(tmp_path: Path) -> None:
    open_folder(tmp_path)
    other = Config(steps=20, encoder=Optimizer(lr=1e-3))
    with pytest.raises(RunFolderError) as error:
        open_folder(tmp_path, other)
    assert str(error.value).splitlines()[1:] == [
        "  steps: 10 there, 20 now",
        "  encoder.lr: 1e-05 there, 0.001 now",
        "choose another folder, or give the options that the run there was started with",
    ]
    open_folder(tmp_path, other, may_change=["steps", "encoder.lr"])
    with pytest.raises(RunFolderError, match="steps: 20 there, 10 now"):
        open_folder(tmp_path)
    with pytest.raises(RunFolderError, match="root: None there, 'not there' now"):
        open_folder(tmp_path, {"steps": 20})


def test_a_run_that_is_not_to_be_resumed(tmp_path: Path) -> None:
    open_folder(tmp_path, resume=False)
    with pytest.raises(RunFolderError, match="holds a run already"):
        open_folder(tmp_path, resume=False)


def claim(path: Path) -> None:
    open_folder(path)


@needs_processes
def test_a_folder_in_which_another_process_trains(tmp_path: Path) -> None:
    with open_folder(tmp_path) as folder:
        folder.log(1, {"x": 1.0}, seconds=0)
        folder.resume_at(1)  # closes files, and keeps the lock
        assert finish(start(claim, tmp_path, errors=tmp_path.parent / "errors")) == [1]
        assert f"another process is training in {tmp_path}: wait" in (tmp_path.parent / "errors").read_text()
    assert finish(start(claim, tmp_path)) == [0]


def test_a_folder_of_other_files(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / name).touch()
    with pytest.raises(RunFolderError, match=r"other files \(a, b, c, d, e, \.\.\.\) and no run"):
        open_folder(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} - {".lock"} == set("abcdef")


def test_another_rank_writes_nothing(tmp_path: Path) -> None:
    folder = RunFolder.__new__(RunFolder)
    folder.path, folder.world = tmp_path, World(rank=1, size=2)
    folder._file = folder._board = folder._lock = None
    folder.log(1, {"x": 1.0}, seconds=0)
    folder.resume_at(3)
    folder.write("name", "text")
    folder.flush()
    folder.close()
    assert not list(tmp_path.iterdir())


def refuse(world: World, path: Path) -> str:
    with pytest.raises(RunFolderError) as error:
        RunFolder(path, {"seed": 1}, world=world)
    return str(error.value)


@needs_processes
def test_all_ranks_refuse_together(tmp_path: Path) -> None:
    open_folder(tmp_path / "run", {"seed": 0})
    first, second = in_ranks(refuse, tmp_path / "ranks", tmp_path / "run")
    assert "seed: 0 there, 1 now" in first
    assert first == second


def test_no_space_for_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    with open_folder(tmp_path) as folder:
        folder.log(1, {"x": 1.0}, seconds=0)
        monkeypatch.setattr(folder, "_file", Full())
        with pytest.raises(DiskSpaceError, match=r"scalars\.csv"):
            folder.log(2, {"x": 1.0}, seconds=0)
    assert read_scalars(tmp_path)["x"].steps == [1]


def test_outcomes_of_a_shorter_run_are_not_a_longer_ones(tmp_path: Path) -> None:
    options: dict[str, Any] = {"world": World(), "may_change": ["steps"], "outcomes": ["result.json", "model.pt"]}
    with RunFolder(tmp_path, {"steps": 4}, **options) as folder:
        folder.write("result.json", "{}")
        folder.write("other.json", "{}")
    with RunFolder(tmp_path, {"steps": 4}, **options):
        assert (tmp_path / "result.json").exists()
    with RunFolder(tmp_path, {"steps": 8}, **options):
        assert not (tmp_path / "result.json").exists()
        assert (tmp_path / "other.json").exists()
