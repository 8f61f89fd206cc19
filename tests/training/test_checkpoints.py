"""Checkpoints that come back as they were, and damaged ones that do not come back at all."""

from __future__ import annotations

import errno
import os
import resource
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_margin.stored import short_digest
from adaptive_margin.training import CheckpointError, Checkpoints, DiskSpaceError, write_atomically
from adaptive_margin.training.checkpoints import check_plain
from tests.platforms import needs_processes

from .processes import finish, start


def state(value: float) -> dict[str, object]:
    return {"weight": torch.full((500,), value), "lr": [value, None], "name": ("a", True)}


def values(checkpoints: Checkpoints) -> tuple[int, float]:
    found = checkpoints.latest()
    assert found is not None
    return found[0], float(found[1]["weight"][0])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "new" / "folder")
    assert checkpoints.latest() is None
    assert checkpoints.best() is None
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2, dtype=torch.float64))])
    given = state(1.0) | {"optimizer": optimizer.state_dict(), "net": torch.nn.BatchNorm1d(3).state_dict()}
    checkpoints.save(7, given)
    step, found = checkpoints.latest() or (0, {})
    assert step == 7
    assert list(found) == list(given)
    assert torch.equal(found["weight"], torch.ones(500))
    assert (found["lr"], found["name"], found["optimizer"]) == (given["lr"], given["name"], given["optimizer"])
    assert found["net"]["num_batches_tracked"].dtype == torch.int64
    (file,) = (path for _, path in checkpoints.files())
    assert torch.load(file, weights_only=True)["step"] == 7  # anyone can read it


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    checkpoints = Checkpoints(tmp_path, keep)
    for step in (1, 2, 3, 40):
        checkpoints.save(step, state(step))
    assert [step for step, _ in checkpoints.files()] == [1, 2, 3, 40][-keep:]
    assert len(list(tmp_path.iterdir())) == keep


def test_the_same_step_again_takes_the_place(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 3)
    for value in (1.0, 1.0, 2.0):
        checkpoints.save(5, state(value))
    assert [step for step, _ in checkpoints.files()] == [5]
    assert values(checkpoints) == (5, 2.0)


def test_later_steps_are_of_an_abandoned_run(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 3)
    for step in (10, 20, 30):
        checkpoints.save(step, state(step))
    checkpoints.save(15, state(15))
    assert [step for step, _ in checkpoints.files()] == [10, 15]


@pytest.mark.parametrize("damage", ["truncated", "a bit", "empty", "half a header"])
def test_a_damaged_one_is_recognised(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    newest = checkpoints.save(2, state(2))
    content = bytearray(newest.read_bytes())
    if damage == "a bit":
        content[len(content) // 2] ^= 1
    newest.write_bytes(content[: {"truncated": -1, "empty": 0, "half a header": 2}.get(damage, len(content))])
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged.*trying the one before it"):
        assert values(checkpoints) == (1, 1.0)
    newest.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert values(checkpoints) == (1, 1.0)


def test_an_unreadable_one_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    newest = checkpoints.save(2, state(2))
    newest.unlink()
    newest.mkdir()
    with pytest.warns(UserWarning, match="cannot be read"):
        assert values(checkpoints) == (1, 1.0)


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        os.truncate(checkpoints.save(step, state(step)), 100)
    message = r"no checkpoint in .* can be read \(2 files, "
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(CheckpointError, match=message):
        checkpoints.latest()


def test_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save_best(3, state(3), 0.5)
    checkpoints.save_best(6, state(6), 0.75)
    for step in (6, 9, 12):
        checkpoints.save(step, state(step))
    step, found, score = checkpoints.best() or (0, {}, 0.0)
    assert (step, float(found["weight"][0]), score) == (6, 6.0, 0.75)
    assert [step for step, _ in checkpoints.files()] == [12]
    checkpoints.save_best(8, state(8), 0.9, before=6)
    assert [(checkpoints.best(step) or (0,))[0] for step in (None, 8, 6, 3)] == [8, 8, 6, 0]
    checkpoints.save(8, state(8), best=6)  # the run went on from before step 8
    assert [(checkpoints.best(step) or (0,))[0] for step in (None, 8, 6)] == [6, 0, 6]
    checkpoints.save_best(4, state(4), 0.8)  # the run went on from an earlier step
    step, _, score = checkpoints.best() or (0, {}, 0.0)
    assert (step, score) == (4, 0.8)
    (file,) = tmp_path.glob("best-*")
    os.truncate(file, 100)
    with pytest.raises(CheckpointError, match=file.name):
        checkpoints.best()
    with pytest.raises(ValueError, match="score must be a number, got nan"):
        checkpoints.save_best(5, state(5), float("nan"))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_space_leaves_what_there_is(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state(step))
    before = names(tmp_path)
    with largest_file(1000), pytest.raises(DiskSpaceError, match="older files are intact: free some space") as error:
        checkpoints.save(3, state(3))
    assert error.value.errno == errno.EFBIG
    assert error.value.needed > 2000
    assert "step-000000003" in str(error.value)
    assert names(tmp_path) == before
    assert values(checkpoints) == (2, 2.0)
    checkpoints.save(3, state(3))
    assert values(checkpoints) == (3, 3.0)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount")
def test_a_full_disk(tmp_path: Path) -> None:
    if os.system(f"mount -t tmpfs -o size=64k none {tmp_path} 2>/dev/null") != 0:
        pytest.skip("this root cannot mount either")
    try:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, state(1))
        before = names(tmp_path)
        with pytest.raises(DiskSpaceError, match=r"No space left on device: .*step-000000002.* MiB are free") as error:
            checkpoints.save(2, {"weight": torch.zeros(50_000)})
        assert error.value.errno == errno.ENOSPC
        assert error.value.needed > 200_000
        assert names(tmp_path) == before
        assert values(checkpoints) == (1, 1.0)
    finally:
        os.system(f"umount {tmp_path}")


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failure_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    write_atomically(tmp_path / "file", b"old")

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, where, refuse)
    with pytest.raises(OSError, match="Input/output error") as error:
        write_atomically(tmp_path / "file", b"new")
    monkeypatch.undo()
    assert not isinstance(error.value, DiskSpaceError)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def die_while_it_saves(folder: Path) -> None:
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    Checkpoints(folder).save(1, state(1))


@needs_processes
def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".notes.txt.tmp").write_text("mine too")
    assert finish(start(die_while_it_saves, tmp_path)) == [-signal.SIGKILL]
    (half,) = names(tmp_path) - {"notes.txt", ".notes.txt.tmp"}
    assert half.startswith(".unfinished-")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    file = checkpoints.save(1, state(1))
    assert names(tmp_path) == {file.name, "notes.txt", ".notes.txt.tmp"}


class Foreign:
    """What ``weights_only`` refuses to make."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"step": 2, "state": Foreign()}, "holds more than tensors and plain values"),
        ([1, 2], "holds no mapping but list"),
        ({"step": 2}, "is not a checkpoint of step 2, despite its name"),
        ({"step": 1, "state": {}}, "is not a checkpoint of step 2, despite its name"),
    ],
)
def test_a_crafted_one_of_a_valid_name_is_damaged_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, state(1))
    for kind in ("step", "best"):
        torch.save(content, tmp_path / "crafted.pt")
        digest = short_digest((tmp_path / "crafted.pt").read_bytes())
        os.rename(tmp_path / "crafted.pt", checkpoints.folder / f"{kind}-000000002-{digest}.pt")
    with pytest.warns(UserWarning, match=message):
        assert values(checkpoints) == (1, 1.0)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.best()
    assert not (tmp_path / "ran").exists()


def test_a_renamed_one_is_not_taken_for_another_step(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    newest = checkpoints.save(2, state(2))
    newest.rename(tmp_path / newest.name.replace("000000002", "000000009"))
    with pytest.warns(UserWarning, match="is not a checkpoint of step 9"):
        assert values(checkpoints) == (1, 1.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"a": [1, {"b": np.float64(1)}]}, r"state\['a'\]\[1\]\['b'\] must be a tensor.*got numpy.float64"),
        ({"a": np.zeros(2)}, r"state\['a'\] must be .* got numpy.ndarray"),
        ({"a": {Path("x"): 1}}, r"a key of state\['a'\]"),
        ({"a": Path("x")}, "Path"),
    ],
)
def test_what_would_not_come_back_is_refused(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Checkpoints(tmp_path).save(1, wrong)
    assert not list(tmp_path.iterdir())


def test_wrong_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1"):
        Checkpoints(tmp_path, 0)
    with pytest.raises(ValueError, match="step must be at least 0"):
        Checkpoints(tmp_path).save(-1, {})
    check_plain({"size": torch.Size([2]), 3: b"x", (1, "a"): None})
