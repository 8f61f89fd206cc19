"""What a run's folder holds, and what it refuses."""

from __future__ import annotations

import errno
import os
import random
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adaptive_margin.stored import read_json
from adaptive_margin.training import DiskSpaceError, RunFolder, RunFolderError, World, read_scalars
from tests.platforms import needs_processes

from .processes import finish, in_ranks, start


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
    here = read_json(folder.path / "environment.json")
    assert {"torch", "pytorch-metric-learning", "numpy", "python", "adaptive-margin"} <= set(here["versions"])
    assert {"device", "threads", "commit", "command", "started", "processes"} <= set(here)
    assert (folder.path / "results" / "split.json").read_text() == "{}"
    open_folder(folder.path, Config(root=Path("x")))
    again = read_json(folder.path / "environment.json")
    assert {**again, "resumed": None} == {**here, "resumed": None}
    assert len(again["resumed"]) == 1


def test_curves_go_on_where_the_run_does(tmp_path: Path) -> None:
    with open_folder(tmp_path) as folder:
        for step in (10, 20, 30):
            folder.log(step, {"loss, mean": 1 / step, "é": float(step)}, seconds=step)
    with open(tmp_path / "scalars.csv", "ab") as file:
        file.write(b"40,loss,0.12")  # a process was killed here
    assert max(read_scalars(tmp_path)["é"].steps) == 30
    time.sleep(1 - time.time() % 1)  # TensorBoard reads files in the order of the seconds in their names
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
    with pytest.raises(RunFolderError, match="already holds a run"):
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


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_other_files_is_left_as_it_is(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "e", "f", ".notes.tmp", ".unfinished-0123456789abcdef"):
        (tmp_path / name).write_text(name)
    before = files(tmp_path)
    with pytest.raises(RunFolderError, match=r"other files \(\.notes\.tmp, a, b, c, d, \.\.\.\) and no run"):
        open_folder(tmp_path)
    assert files(tmp_path) == before
    for name in ("a", "b", "c", "d", "e", "f", ".notes.tmp"):
        (tmp_path / name).unlink()
    open_folder(tmp_path).close()  # what a process left that was killed while it began
    assert ".unfinished-0123456789abcdef" not in files(tmp_path)


def refused(folder: RunFolder) -> None:
    raise RunFolderError("other data")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": Config(steps=20)}, "steps: 10 there, 20 now"),
        ({"resume": False}, "already holds a run"),
        ({"config": Config(steps=20), "may_change": ["steps"], "check": refused}, "other data"),
    ],
)
def test_a_run_that_is_refused_is_left_as_it_is(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with open_folder(tmp_path, outcomes=["result.json"]) as folder:
        folder.log(1, {"x": 1.0}, seconds=0)
        folder.write_json("result.json", {})
        folder.checkpoints.save(1, {})
    (tmp_path / ".lock").unlink()  # as in a copy
    (tmp_path / ".mine.tmp").write_text("a user's")
    (tmp_path / ".unfinished-0123456789abcdef").write_text("of a killed process")
    before = files(tmp_path)
    with pytest.raises(RunFolderError, match=message):
        open_folder(tmp_path, options.pop("config", None), outcomes=["result.json"], **options)
    assert files(tmp_path) == before
    open_folder(tmp_path, outcomes=["result.json"]).close()
    assert files(tmp_path).keys() == before.keys() - {".unfinished-0123456789abcdef"} | {".lock"}


def test_a_finished_run_whose_checkpoints_are_gone(tmp_path: Path) -> None:
    with open_folder(tmp_path, outcomes=["result.json", "model.pt"]) as folder:
        folder.log(1, {"x": 1.0}, seconds=0)
        folder.write_json("result.json", {})
        folder.checkpoints.save(1, {})
    for path in folder.checkpoints.folder.iterdir():
        path.rename(path.with_name(f"old {path.name}"))
    before = files(tmp_path)
    message = r"finished run \(result.json\) whose checkpoints are gone: restore .*checkpoints, .* remove result"
    with pytest.raises(RunFolderError, match=message):
        open_folder(tmp_path, outcomes=["result.json", "model.pt"])
    assert files(tmp_path) == before
    (tmp_path / "result.json").unlink()  # as the message says
    with open_folder(tmp_path, outcomes=["result.json", "model.pt"]) as folder:
        with pytest.warns(
            UserWarning,
            match="has no checkpoint: the run starts again; its old curves are kept in .*before",
        ):
            folder.resume_at(0)
        folder.log(1, {"x": 2.0}, seconds=0)
    assert read_scalars(tmp_path)["x"].values == [2.0]
    assert read_scalars(tmp_path / "scalars.csv.before")["x"].values == [1.0]


def some_curves(path: Path) -> None:
    with open_folder(path) as folder:
        for step in range(1, 41):
            folder.log(step, {"x": step / 7, "y, z": -step}, seconds=step)


def spoil(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(b"\n20,x,") + 6  # a digit of a value
    lines = bytes(data).splitlines(keepends=True)
    spoilt = {
        "a digit": data[:place] + b"9" + data[place + 1 :],
        "a bad line": b"".join([*lines[:10], b"what is this\n", *lines[10:]]),
        "half zeroed": data[:place] + bytes(len(data) - place),
        "cut short": data[:place],
        "cut between rows": b"".join(lines[:38]),
        "not text": data[:place] + b"\xff" + data[place + 1 :],
        "all zero": bytes(len(data)),
        "empty": b"",
    }
    path.write_bytes(spoilt[damage])


@pytest.mark.parametrize(
    ("damage", "said", "kept"),
    [
        ("a digit", "is damaged in 1 of 80 rows, first in line 40", 59),
        ("a bad line", "is damaged in 1 of 81 rows, first in line 11", 60),
        ("half zeroed", "is damaged in 1 of 38 rows, first in line 40", 38),
        ("cut short", "lacks 22 of 60 rows up to step 30", 38),
        ("cut between rows", "lacks 23 of 60 rows up to step 30", 37),
        ("not text", "is damaged in 1 of 80 rows", 59),
        ("all zero", "is damaged: its first line is not what was written", 0),
        ("empty", "is damaged: its first line is not what was written", 0),
    ],
)
def test_damaged_curves_are_named_and_the_others_kept(tmp_path: Path, damage: str, said: str, kept: int) -> None:
    some_curves(tmp_path)
    curves = tmp_path / "scalars.csv"
    spoil(curves, damage)
    spoilt = curves.read_bytes()
    if not damage.startswith("cut"):  # whose end nobody else knows
        with pytest.warns(UserWarning, match=f"scalars.csv {said}.*; the curves are shown without them"):
            found = read_scalars(tmp_path)
        assert all(value == step / 7 for step, value in zip(*found["x"][:2], strict=True)) if found else kept == 0
    with open_folder(tmp_path) as folder:
        with pytest.warns(UserWarning, match=f"scalars.csv {said}.*; .* kept as .*scalars.csv.damaged"):
            folder.resume_at(30, 60)
        assert folder.rows == kept
        folder.log(31, {"x": 0.5}, seconds=1)
    assert (tmp_path / "scalars.csv.damaged").read_bytes() == spoilt
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_scalars(tmp_path)
    assert sum(len(curve.steps) for curve in found.values()) == kept + 1


def test_curves_that_are_gone_are_missed(tmp_path: Path) -> None:
    some_curves(tmp_path)
    (tmp_path / "scalars.csv").unlink()
    with open_folder(tmp_path) as folder, pytest.warns(UserWarning, match="lacks 60 of 60 rows up to step 30; the run"):
        folder.resume_at(30, 60)


def test_no_flipped_bit_changes_a_curve(tmp_path: Path) -> None:
    some_curves(tmp_path)
    path, draw = tmp_path / "scalars.csv", random.Random(0)
    whole, expected = path.read_bytes(), read_scalars(tmp_path)
    true = {(name, step, value) for name, curve in expected.items() for step, value in zip(*curve[:2], strict=True)}
    for place in draw.sample(range(8 * len(whole)), 200):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        with (
            pytest.warns(UserWarning, match="scalars.csv is damaged") if place < 8 * (len(whole) - 1) else nullcontext()
        ):
            found = read_scalars(tmp_path)
        assert {(n, step, value) for n, curve in found.items() for step, value in zip(*curve[:2], strict=True)} <= true


def test_curves_from_before_their_rows_had_checksums(tmp_path: Path) -> None:
    (tmp_path / "scalars.csv").write_text('step,name,value,seconds\n1,"a, b",0.5,1.000\n2,"a, b",0.25,2.000\n3,"a, b",')
    assert read_scalars(tmp_path)["a, b"].values == [0.5, 0.25]
    open_folder(tmp_path / "run").close()
    os.replace(tmp_path / "scalars.csv", tmp_path / "run" / "scalars.csv")
    with open_folder(tmp_path / "run") as folder:
        folder.resume_at(1, 1)
        folder.log(2, {"a, b": 3.0}, seconds=2)
    assert read_scalars(tmp_path / "run")["a, b"].values == [0.5, 3.0]


@pytest.mark.parametrize("content", [b"\0" * 300, b'{"versions": {}', b"[]", b"", b'{"resumed": 3}'])
def test_a_damaged_history_is_named_and_kept(tmp_path: Path, content: bytes) -> None:
    open_folder(tmp_path).close()
    (tmp_path / "environment.json").write_bytes(content)
    with pytest.warns(
        UserWarning, match=r"environment.json .*; the run continues without it; the damaged file is kept"
    ):
        open_folder(tmp_path).close()
    assert (tmp_path / "environment.json.damaged").read_bytes() == content
    assert "versions" in read_json(tmp_path / "environment.json")


@pytest.mark.parametrize("content", [b"\0" * 300, b"steps: [", b"- 1", b"steps: 2020-01-01", b"\xff\xfe"])
def test_a_damaged_configuration_is_named(tmp_path: Path, content: bytes) -> None:
    open_folder(tmp_path).close()
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(
        RunFolderError, match=r"(?s)config.yaml cannot be read \(.*\): restore it .*, or choose another"
    ):
        open_folder(tmp_path)


def test_another_rank_writes_nothing(tmp_path: Path) -> None:
    folder = RunFolder.__new__(RunFolder)
    folder.path, folder.world = tmp_path, World(rank=1, size=2)
    folder._file = folder._board = folder._lock = None
    folder.rows = 0
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


def fail(world: World, path: Path, error: BaseException) -> tuple[str, str]:
    def check(folder: RunFolder) -> None:
        raise error

    with pytest.raises(BaseException) as raised:  # noqa: PT011 - the ranks' differ
        RunFolder(path, {"seed": 0}, world=world, check=check)
    return type(raised.value).__name__, str(raised.value)


@needs_processes
@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), MemoryError("too large")], ids=type)
def test_no_rank_waits_for_a_main_rank_that_fails(tmp_path: Path, error: Exception) -> None:
    with open_folder(tmp_path / "run", {"seed": 0}) as folder:
        folder.checkpoints.save(1, {"a": 1})
    (name, text), other = in_ranks(fail, tmp_path / "ranks", tmp_path / "run", error)
    assert (name, text) == (type(error).__name__, str(error))
    assert other == ("MainProcessError", f"the main process stopped: {name}: {text}")
    open_folder(tmp_path / "run", {"seed": 0}).close()  # nothing is locked any more


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
    options: dict[str, Any] = {
        "world": World(),
        "may_change": ["steps", "device"],
        "outcomes": ["result.json", "model.pt"],
        "outcome_options": ["steps"],
    }
    with RunFolder(tmp_path, {"steps": 4, "device": "cuda"}, **options) as folder:
        folder.write("result.json", "{}")
        folder.write("other.json", "{}")
        folder.checkpoints.save(4, {})
    with RunFolder(tmp_path, {"steps": 4, "device": "cpu"}, **options):  # bears on nothing: they stay
        assert (tmp_path / "result.json").exists()
    with RunFolder(tmp_path, {"steps": 8, "device": "cpu"}, **options):
        assert not (tmp_path / "result.json").exists()
        assert (tmp_path / "result.json.before").read_text() == "{}"  # nothing is lost
        assert not (tmp_path / "model.pt.before").exists()
        assert (tmp_path / "other.json").exists()


def test_curves_whose_end_is_gone(tmp_path: Path) -> None:
    with open_folder(tmp_path) as folder:
        for step in range(1, 9):
            folder.log(step, {"x": float(step)}, seconds=0)
        folder.flush()
        folder.log(9, {"x": 9.0}, seconds=0)  # since the last checkpoint
    curves = tmp_path / "scalars.csv"
    assert len(read_scalars(tmp_path)["x"].steps) == 9
    whole = curves.read_bytes().splitlines(keepends=True)
    curves.write_bytes(b"".join(whole[:9]))  # a process killed after the checkpoint: no damage
    assert len(read_scalars(curves)["x"].steps) == 8
    curves.write_bytes(b"".join(whole[:5]))
    with pytest.warns(UserWarning, match="scalars.csv lacks 4 of 8 rows; the curves are shown without them"):
        assert len(read_scalars(tmp_path)["x"].steps) == 4
    with open_folder(tmp_path) as folder:
        with pytest.warns(UserWarning, match="scalars.csv lacks 4 of 8 rows up to step 8; the rest of the run"):
            folder.check_curves(8, 8)
        assert curves.read_bytes() == b"".join(whole[:5])
        with pytest.warns(UserWarning, match="lacks 4 of 8 rows up to step 8; the run continues without"):
            folder.resume_at(8, 8)
        assert len(read_scalars(tmp_path)["x"].steps) == 4  # said once: now it is what the run has
    (tmp_path / "scalars.json").write_bytes(b"nonsense")
    assert len(read_scalars(tmp_path)["x"].steps) == 4
