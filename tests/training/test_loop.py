"""Runs that are killed, stopped, spoilt or out of space, against one that nothing happens to."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import termios
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive_margin.training import (
    CheckpointError,
    Checkpoints,
    NonFiniteError,
    RunFolder,
    RunFolderError,
    Stopped,
    Summary,
    World,
    best_state,
    ignore_interrupts,
    read_scalars,
    seed_everything,
    train,
)
from adaptive_margin.training.loop import _Window
from tests.platforms import needs_processes

from .processes import finish, in_ranks, start
from .toy import STEPS, Toy, outcome, run


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("unbroken")
    run(path)
    return outcome(path)


def assert_same(found: Any, expected: Any) -> None:
    """To the bit."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def run_and_die(path: Path, faults: dict[str, Any]) -> None:
    run(path, **faults)


def run_and_die_in_fsync(path: Path, number: int) -> None:
    """Dies when something is to be made durable for the n-th time: before a file has its name, or just after."""
    calls = 0

    def fsync(descriptor: int, really: Callable[[int], None] = os.fsync) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        really(descriptor)

    os.fsync = fsync
    run(path)


def run_in_a_small_space(path: Path, size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    run(path)


def test_the_end_of_an_unbroken_run(unbroken: dict[str, Any]) -> None:
    assert unbroken["step"] == STEPS
    assert unbroken["curves"]["loss"][0] == list(range(3, STEPS + 1, 3))
    assert unbroken["curves"]["score"][0] == [7, 14, 21, 28, 30]
    best_step, _, best = unbroken["best"]
    assert best == max(unbroken["curves"]["score"][1])
    assert unbroken["state"]["best_step"] == best_step


def test_means_since_the_last_row(tmp_path: Path) -> None:
    class Counting(Toy):
        def step(self, step: int) -> Mapping[str, Any]:
            return {"step": float(step), "even": torch.tensor(step)} if step % 2 == 0 else {"step": float(step)}

    world = World()
    with RunFolder(tmp_path, {}, world=world) as folder:
        train(Counting(world), steps=6, folder=folder, world=world, checkpoint_every=6, evaluate_every=6, log_every=3)
    curves = read_scalars(tmp_path)
    assert curves["step"].values == [1.0, 4.0]
    assert curves["even"].values == [1.0, 4.0]


@needs_processes
@pytest.mark.parametrize("step", [0, 4, 19])
def test_killed_in_a_step(tmp_path: Path, unbroken: dict[str, Any], step: int) -> None:
    assert finish(start(run_and_die, tmp_path, {"kill": step})) == [-signal.SIGKILL]
    summary = run(tmp_path)
    assert summary.resumed_from == step // 4 * 4
    assert_same(outcome(tmp_path), unbroken)


@pytest.mark.slow
@needs_processes
def test_killed_again_and_again_while_it_saves(tmp_path: Path, unbroken: dict[str, Any]) -> None:
    """Each process gets a little further than the one before, and dies before or after some file has its name."""
    for number in range(1, 40, 3):
        (code,) = finish(start(run_and_die_in_fsync, tmp_path, number))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    else:
        pytest.fail("never came to the end")
    assert number > 10
    assert_same(outcome(tmp_path), unbroken)
    assert not list(tmp_path.rglob(".*.tmp"))


@needs_processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_stopped_by_a_signal(tmp_path: Path, unbroken: dict[str, Any], number: signal.Signals) -> None:
    errors = tmp_path / "errors"
    process = start(run_and_die, tmp_path / "run", {"slow": 0.05})
    _wait_for_a_row(tmp_path / "run")
    os.kill(process.pid or 0, number)
    assert finish(process) == [128 + number]
    found = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    assert found is not None
    assert 3 <= found[0] < STEPS
    assert not errors.exists()
    assert run(tmp_path / "run").resumed_from == found[0]
    assert_same(outcome(tmp_path / "run"), unbroken)


@needs_processes
def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    process = start(run_and_die, tmp_path / "run", {"slow": 0.4}, errors=tmp_path / "errors")
    try:
        _wait_for_a_row(tmp_path / "run")
        os.kill(process.pid or 0, signal.SIGINT)
        _wait(lambda: "finishing this step" in (tmp_path / "errors").read_text())
        os.kill(process.pid or 0, signal.SIGINT)
    finally:
        (code,) = finish(process)
    assert code not in (0, 128 + signal.SIGINT)
    assert "KeyboardInterrupt" in (tmp_path / "errors").read_text()


def run_in_a_terminal(path: Path, terminal: str) -> None:
    os.setsid()
    descriptor = os.open(terminal, os.O_RDWR)
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
    for stream in range(3):
        os.dup2(descriptor, stream)
    run(path, slow=0.05)


@needs_processes
def test_a_terminal_that_is_gone(tmp_path: Path, unbroken: dict[str, Any]) -> None:
    """A dropped connection: SIGHUP, and whatever is said from then on is an error."""
    ours, theirs = os.openpty()
    process = start(run_in_a_terminal, tmp_path / "run", os.ttyname(theirs))
    _wait_for_a_row(tmp_path / "run")
    os.close(theirs)
    os.close(ours)
    assert finish(process) == [128 + signal.SIGHUP]
    found = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    assert found is not None
    assert 3 <= found[0] < STEPS
    assert run(tmp_path / "run").resumed_from == found[0]
    assert_same(outcome(tmp_path / "run"), unbroken)


@needs_processes
@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2"])
@pytest.mark.parametrize("kind", ["ignored", "handled"])
def test_a_signal_that_the_caller_ignores_or_handles_stays_the_callers(tmp_path: Path, name: str, kind: str) -> None:
    number, came = getattr(signal, name), []

    class Interrupted(Toy):
        def step(self, step: int) -> Mapping[str, Any]:
            if step == 5:
                os.kill(os.getpid(), number)
            return super().step(step)

    handler = signal.SIG_IGN if kind == "ignored" else lambda *_: came.append(number)  # as nohup does
    before, world = signal.signal(number, handler), World()
    try:
        with RunFolder(tmp_path, {}, world=world) as folder:
            options = {"steps": 9, "checkpoint_every": 9, "evaluate_every": 9, "log_every": 9}
            assert train(Interrupted(world), folder=folder, world=world, **options).steps == 9
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert came == ([] if kind == "ignored" else [number])


@needs_processes
@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_what_a_stopped_run_says(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    number = getattr(signal, name)

    class Interrupted(Toy):
        def step(self, step: int) -> Mapping[str, Any]:
            if step == 5:
                os.kill(os.getpid(), number)
            return super().step(step)

    before = signal.getsignal(number)
    world = World()
    folder = RunFolder(tmp_path, {}, world=world)
    with pytest.raises(Stopped) as error:
        train(
            Interrupted(world), steps=9, folder=folder, world=world, checkpoint_every=9, evaluate_every=9, log_every=9
        )
    assert error.value.code == 128 + number
    assert f"stopped after step 6 of 9, saved in {tmp_path}; the same command" in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_a_step_that_the_signal_breaks_is_not_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(Toy):
        def step(self, step: int) -> Mapping[str, Any]:
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
                raise RuntimeError("a worker is gone")
            return super().step(step)

    world = World()
    options = {"steps": 9, "world": world, "checkpoint_every": 4, "evaluate_every": 9, "log_every": 9}
    with RunFolder(tmp_path, {}, world=world) as folder:
        with pytest.raises(Stopped) as error:
            train(Broken(world), folder=folder, **options)
        assert error.value.code == 143
        assert [step for step, _ in folder.checkpoints.files()] == [4]
    said = capsys.readouterr().err
    assert "step 6 could not be finished: RuntimeError: a worker is gone" in said
    assert "resumes from the checkpoint of step 4" in said


def _one_rank_is_stopped(world: World, path: Path) -> object:
    class Interrupted(Toy):
        def step(self, step: int) -> Mapping[str, Any]:
            if step == 5 and self.world.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().step(step)

    options = {"steps": 20, "world": world, "checkpoint_every": 20, "evaluate_every": 20, "log_every": 4}
    with RunFolder(path, {}, world=world) as folder, pytest.raises(Stopped) as error:
        train(Interrupted(world), folder=folder, **options)
    return error.value.code


@needs_processes
def test_ranks_stop_together_when_one_is_told_to(tmp_path: Path) -> None:
    assert in_ranks(_one_rank_is_stopped, tmp_path / "ranks", tmp_path / "run") == [143, 143]
    assert [step for step, _ in Checkpoints(tmp_path / "run" / "checkpoints").files()] == [8]


def test_a_finished_run_does_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path, steps=8)
    files = {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "environment" not in path.name
    }
    again = run(tmp_path, steps=8)
    assert "all 8 steps are already done; nothing to do" in capsys.readouterr().err
    assert (again.steps, again.resumed_from, again.metrics, again.best) == (8, 8, first.metrics, first.best)
    assert files == {path: path.read_bytes() for path in files}
    assert run(tmp_path, steps=10).resumed_from == 8
    with pytest.raises(RunFolderError, match=r"steps must be at least the 10 that .*, got 8; ask for as many"):
        run(tmp_path, steps=8)


@pytest.mark.parametrize("damage", ["gone", "renamed", "cut short", "of another step"])
def test_the_best_is_had_or_missed(tmp_path: Path, damage: str) -> None:
    summary = run(tmp_path, steps=14)
    with RunFolder(tmp_path, {"seed": 3, "steps": 14}, world=World()) as folder:
        state = best_state(folder, summary, world=World(), remedy="do this")
        _, expected, _ = folder.checkpoints.best() or (0, {}, 0.0)
        assert_same(state, expected)
        (best,) = folder.checkpoints.folder.glob("best-*")
        if damage == "gone":
            best.unlink()
        elif damage == "renamed":
            best.rename(best.with_name("mine.pt"))
        elif damage == "cut short":
            os.truncate(best, 1000)
        else:
            folder.checkpoints.save_best(1, state, -9.0)
        message = r"is damaged.*; do this$" if damage == "cut short" else r"after step \d+, is not in .*; do this$"
        with pytest.raises(CheckpointError, match=message):
            best_state(folder, summary, world=World(), remedy="do this")
        with pytest.raises(CheckpointError, match="no evaluation had a score that is a number; do this"):
            best_state(folder, replace(summary, best=None, best_step=None), world=World(), remedy="do this")


def test_a_checkpoint_of_another_trainer(tmp_path: Path) -> None:
    run(tmp_path, steps=4)
    Checkpoints(tmp_path / "checkpoints").save(5, {"job": {}, "mine": 1})
    with pytest.raises(CheckpointError, match=r"of step 5 .* belongs to another trainer: it lacks random, window"):
        run(tmp_path, steps=8)


def test_numbers_of_a_checkpoint_meet_those_of_a_device() -> None:
    window = _Window(frozenset())
    window.load_state_dict({"loss": [(0, 1.0)]})
    window.add(1, {"loss": torch.zeros((), device="meta")})  # in CUDA's place
    assert window.seen["loss"][1][1].device.type == "meta"  # nothing has waited for it


def test_a_window_of_an_older_checkpoint_is_read() -> None:
    window = _Window(frozenset())
    window.load_state_dict([[["loss", "mi"], [3.0, 0.5], 2]])  # names, sums, of how many steps
    window.add(7, {"loss": torch.tensor(6.0), "mi": 0.25})
    assert window.means() == {"loss": 3.0, "mi": 0.25}


def test_how_often_one_evaluates_changes_no_weights(tmp_path: Path) -> None:
    world = World()
    nets = []
    for every in (1, 5):
        seed_everything(0)
        job = Toy(world)
        with RunFolder(tmp_path / str(every), {}, world=world) as folder:
            train(job, steps=5, folder=folder, world=world, checkpoint_every=5, evaluate_every=every, log_every=5)
        nets.append(dict(job.net.state_dict()))
    assert len(read_scalars(tmp_path / "1")["score"].steps) == 5
    assert_same(nets[0], nets[1])


def test_a_spoilt_loss_stops_the_run_before_it_is_saved(tmp_path: Path) -> None:
    message = (
        "loss was not finite in step 11; the same command resumes from the checkpoint of step 8; a run with a lower"
    )
    with pytest.raises(NonFiniteError, match=message):
        run(tmp_path, nan=10)
    found = Checkpoints(tmp_path / "checkpoints").latest()
    assert found is not None
    assert found[0] == 8
    assert all(value.isfinite().all() for value in found[1]["job"]["net"].values())
    assert max(read_scalars(tmp_path)["loss"].steps) == 9


def test_a_spoilt_loss_before_the_first_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="there is no checkpoint yet"):
        run(tmp_path, nan=1)


@pytest.mark.parametrize(("step", "kept"), [(12, 8), (14, 12), (28, 24)])  # saves, evaluates, does both
def test_a_spoilt_gradient_is_not_saved_with_its_finite_loss(
    tmp_path: Path, unbroken: dict[str, Any], step: int, kept: int
) -> None:
    message = (
        rf"net\.0\.weight was not finite in step {step}; .* resumes from the checkpoint of step {kept}; a run with a"
    )
    with pytest.raises(NonFiniteError, match=message):
        run(tmp_path, nan_gradient=step - 1)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert [there for there, _ in checkpoints.files()] == [kept - 4, kept]
    best = checkpoints.best()
    assert best is None or best[0] < step
    assert run(tmp_path).resumed_from == kept
    assert_same(outcome(tmp_path), unbroken)


def _one_rank_has_a_spoilt_gradient(world: World, path: Path) -> str:
    with pytest.raises(NonFiniteError) as error:
        run(path, steps=8, world=world, nan_gradient=7 if world.rank == 1 else -1)
    return str(error.value)


@needs_processes
def test_ranks_stop_together_at_a_spoilt_gradient(tmp_path: Path) -> None:
    first, second = in_ranks(_one_rank_has_a_spoilt_gradient, tmp_path / "ranks", tmp_path / "run")
    assert first == second
    assert "net.0.weight was not finite in step 8" in first
    assert [step for step, _ in Checkpoints(tmp_path / "run" / "checkpoints").files()] == [4]


def test_a_number_that_may_be_undefined(tmp_path: Path) -> None:
    class Undefined(Toy):
        def step(self, step: int) -> Mapping[str, Any]:
            return {"radius": torch.tensor(float("nan") if step == 1 else 1.0), "loss": 1.0}

    world = World()
    options = {"steps": 4, "world": world, "checkpoint_every": 4, "evaluate_every": 4, "log_every": 2}
    with RunFolder(tmp_path / "may", {}, world=world) as folder:
        train(Undefined(world), folder=folder, may_be_undefined=["radius"], **options)
    with (
        RunFolder(tmp_path / "not", {}, world=world) as folder,
        pytest.raises(NonFiniteError, match=r"radius .* step 2;"),
    ):
        train(Undefined(world), folder=folder, **options)


@needs_processes
def test_no_space_for_a_checkpoint(tmp_path: Path, unbroken: dict[str, Any]) -> None:
    run(tmp_path / "run", steps=9)
    before = Checkpoints(tmp_path / "run" / "checkpoints").files()
    size = before[-1][1].stat().st_size
    (code,) = finish(start(run_in_a_small_space, tmp_path / "run", size // 2, errors=tmp_path / "errors"))
    assert code == 1
    said = (tmp_path / "errors").read_text()
    assert "DiskSpaceError" in said
    assert "free some space" in said
    assert Checkpoints(tmp_path / "run" / "checkpoints").files() == before
    assert not list(tmp_path.rglob(".*.tmp"))


def test_a_truncated_newest_checkpoint(tmp_path: Path, unbroken: dict[str, Any]) -> None:
    run(tmp_path, steps=10)  # checkpoints of steps 8 and 10
    _, newest = Checkpoints(tmp_path / "checkpoints").files()[-1]
    os.truncate(newest, newest.stat().st_size // 2)
    with pytest.warns(UserWarning, match=newest.name):
        summary = run(tmp_path, steps=10)
    assert summary.resumed_from == 8
    run(tmp_path / "other", steps=10)
    assert_same(outcome(tmp_path), outcome(tmp_path / "other"))


@pytest.mark.slow
@needs_processes
def test_two_ranks_go_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    in_ranks(_run_in_world, tmp_path / "a", tmp_path / "unbroken", STEPS)
    in_ranks(_run_in_world, tmp_path / "b", tmp_path / "resumed", 12)
    steps = in_ranks(_run_in_world, tmp_path / "c", tmp_path / "resumed", STEPS)
    assert steps == [(12, STEPS), (12, STEPS)]
    found, expected = outcome(tmp_path / "resumed"), outcome(tmp_path / "unbroken")
    assert_same(found["state"]["job"], expected["state"]["job"])
    assert_same(found["state"]["random"], expected["state"]["random"])
    assert found["curves"]["loss"] == expected["curves"]["loss"]
    first, second = (states["torch"] for states in found["state"]["random"])
    assert not torch.equal(first, second)


def _run_in_world(world: World, path: Path, steps: int) -> tuple[int, int]:
    summary = run(path, steps=steps, world=world)
    return summary.resumed_from, summary.steps


def _wait_for_a_row(path: Path) -> None:
    def there() -> bool:
        return (path / "scalars.csv").exists() and len((path / "scalars.csv").read_text().splitlines()) > 1

    _wait(there)


def _wait(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not there():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    run(tmp_path, steps=4)
    with pytest.raises(RunFolderError, match="seed: 3 there, 4 now"):
        RunFolder(tmp_path, {"seed": 4, "steps": 4}, world=World())


@pytest.mark.parametrize("name", ["steps", "checkpoint_every", "evaluate_every", "log_every"])
def test_numbers_out_of_range(tmp_path: Path, name: str) -> None:
    world = World()
    options = {"steps": 1, "checkpoint_every": 1, "evaluate_every": 1, "log_every": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        train(Toy(world), folder=RunFolder(tmp_path, {}, world=world), world=world, **options)


def test_an_unknown_score(tmp_path: Path) -> None:
    world = World()
    options = {"steps": 1, "checkpoint_every": 1, "evaluate_every": 1, "log_every": 1, "score": "ccc"}
    with (
        RunFolder(tmp_path, {}, world=world) as folder,
        pytest.raises(ValueError, match="a figure of the evaluation: score"),
    ):
        train(Toy(world), folder=folder, world=world, **options)


def test_the_lowest_score_can_be_the_best(tmp_path: Path) -> None:
    world = World()
    with RunFolder(tmp_path, {}, world=world) as folder:
        summary = train(
            Toy(world),
            steps=12,
            folder=folder,
            world=world,
            checkpoint_every=4,
            evaluate_every=3,
            log_every=3,
            score="score",
            higher_is_better=False,
        )
    curve = read_scalars(tmp_path)["score"]
    assert summary.best == min(curve.values)
    assert summary.best_step == curve.steps[curve.values.index(min(curve.values))]
    best = folder.checkpoints.best()
    assert best is not None
    assert (best[0], best[2]) == (summary.best_step, summary.best)


class Scored(Toy):
    """Its evaluations have given scores, by step."""

    def __init__(self, scores: dict[int, float], **faults: Any) -> None:
        super().__init__(World(), **faults)
        self.scores, self.done = scores, 0

    def step(self, step: int) -> Mapping[str, Any]:
        self.done = step + 1
        return super().step(step)

    def evaluate(self) -> Mapping[str, float]:
        return {"score": self.scores[self.done]}


def run_scored(path: Path, scores: dict[int, float], kill: int = -1) -> tuple[Summary, dict[str, Any]]:
    with RunFolder(path, {}, world=World()) as folder:
        every = {"steps": 8, "checkpoint_every": 4, "evaluate_every": 2, "log_every": 2, "score": "score"}
        summary = train(Scored(scores, kill=kill), folder=folder, world=World(), **every)
        return summary, best_state(folder, summary, world=World(), remedy="do this")


@needs_processes
def test_the_best_is_there_until_a_checkpoint_refers_to_a_better_one(tmp_path: Path) -> None:
    """Step 6 is better than step 4, but not in the run that goes on from there: on a GPU no two runs are the same."""
    killed = start(run_scored, tmp_path, {2: 1.0, 4: 2.0, 6: 3.0}, 6)
    assert finish(killed) == [-signal.SIGKILL]
    summary, state = run_scored(tmp_path, {6: 0.0, 8: 0.0})
    assert (summary.resumed_from, summary.best_step, summary.best) == (4, 4, 2.0)
    assert state["schedule"]["last_epoch"] == 4
    (best,) = (tmp_path / "checkpoints").glob("best-*")
    assert best.name.startswith("best-000000004-")


def test_workers_can_be_deaf_to_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        ignore_interrupts(0)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
