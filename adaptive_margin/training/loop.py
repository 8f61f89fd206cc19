"""The loop of every trainer: steps, logs, evaluations, checkpoints, and an orderly end in all cases."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from torch import Tensor

from ..messages import problem
from .checkpoints import CheckpointError
from .progress import Progress
from .randomness import random_states, restore_random_states
from .run_folder import RunFolder, RunFolderError
from .world import World

SAVED = ("random", "window", "seconds", "metrics", "best", "best_step")
"""What a checkpoint holds in addition to the job."""


class Job(Protocol):
    """What a trainer provides; the loop does the rest."""

    @property
    def waited(self) -> float:
        """Seconds spent waiting for data since the process began."""

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        """Takes one step of training.

        Args:
            step: number of steps taken before; it determines the position in the data.

        Returns:
            Named losses and statistics of the global batch, each a scalar on any device: the same on all ranks.
        """

    def evaluate(self) -> Mapping[str, float]:
        """Named figures of the current model; called on every rank."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: models, optimisers, schedules, scaler, thresholds. Called on the main rank."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores such a state, whose tensors are on the CPU; called on every rank."""


class Parts:
    """A base class for jobs whose state is that of their parts."""

    def parts(self) -> Mapping[str, Any]:
        """Modules, optimisers and scaler by name; None for one that this run does not have."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The states of all parts by name."""
        return {name: part.state_dict() for name, part in self.parts().items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores such a state."""
        for name, part in self.parts().items():
            if part is not None:
                part.load_state_dict(state[name])


class NonFiniteError(RuntimeError):
    """A loss, or a tensor of the job's state, became NaN or infinite; the message names it and the step.

    Attributes:
        step: number of the step, from 1.
        name: name of the loss, or place of the tensor in the state.
    """

    def __init__(self, step: int, name: str, advice: str) -> None:
        super().__init__(step, name, advice)
        self.step, self.name, self.advice = step, name, advice

    def __str__(self) -> str:
        return f"{self.name} was not finite in step {self.step}; {self.advice}"


class Stopped(SystemExit):
    """The run was stopped by Ctrl-C or another signal and has saved its state; its code is 128 + the signal."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended.

    Attributes:
        steps: steps done.
        resumed_from: the step from which this process resumed the run, 0 for a new run.
        seconds: seconds of training and evaluation, over all resumptions.
        metrics: metrics of the last evaluation.
        best: the best score.
        best_step: the step of the best score.
    """

    steps: int
    resumed_from: int
    seconds: float
    metrics: Mapping[str, float]
    best: float | None
    best_step: int | None


def train(
    job: Job,
    *,
    steps: int,
    folder: RunFolder,
    world: World,
    checkpoint_every: int,
    evaluate_every: int,
    log_every: int,
    score: str | None = None,
    higher_is_better: bool = True,
    may_be_undefined: Collection[str] = (),
) -> Summary:
    """Trains a job to the end, resuming where it stopped before.

    Every ``log_every`` steps the mean of each named number since the last time is logged; evaluations and checkpoints
    have their own intervals, and both are also done at the end. If the process is killed, the same call resumes from
    the newest intact checkpoint. On the CPU it ends with the same bits as an uninterrupted run: checkpoints hold the
    job, the random states of all ranks, and the sums not yet logged. For a finished run the call does nothing and says
    so.

    SIGINT (Ctrl-C) and SIGTERM: the step is finished, a checkpoint is written, and the process ends with exit code 130
    or 143. The same happens for other signals that end a process by default: SIGHUP (129, the terminal or connection is
    gone), and SIGUSR1, SIGUSR2 and SIGXCPU, by which batch systems announce the end. If the caller ignores or handles
    one of these, that does not change. A second SIGINT ends the process immediately. Several processes agree on the
    step every ``log_every`` steps. An evaluation does not change the random states, so the frequency of evaluations
    does not affect training.

    Args:
        job: what to train.
        steps: total number of steps, including those of earlier processes.
        folder: folder of the run.
        world: the processes.
        checkpoint_every: steps between checkpoints.
        evaluate_every: steps between evaluations.
        log_every: steps between rows of the log, and between checks for values that are not finite and for a request to
            stop.
        score: name of the figure that decides which evaluation was best; the checkpoint of that evaluation is kept.
            None keeps none.
        higher_is_better: whether a higher score is better.
        may_be_undefined: names that may be NaN or infinite; a step's other numbers must be finite.

    Raises:
        NonFiniteError: a loss is not finite, or a weight is not finite after a step that ends in an evaluation or
            checkpoint; no checkpoint of the bad state was written.
        Stopped: a signal stopped the run.
        ValueError: a number is less than 1, or ``score`` is not a figure of the evaluation.
        DiskSpaceError, CheckpointError: a checkpoint could not be written, or none could be read.
        RunFolderError: the folder's run is longer than ``steps`` already.
    """
    lengths = {"steps": steps, "checkpoint_every": checkpoint_every, "evaluate_every": evaluate_every}
    for name, number in (lengths | {"log_every": log_every}).items():
        if number < 1:
            raise ValueError(problem(name, "at least 1", number, "count steps"))
    run = _Run(job, steps, folder, world, score, higher_is_better, _Window(frozenset(may_be_undefined)))
    run.resume()
    check_length(folder.path, run.done, steps)
    if run.done == steps:
        folder.check_curves(run.done, run.rows)
        if world.is_main:
            print(f"{folder.path}: all {steps:,} steps are already done; nothing to do", file=sys.stderr)
        return run.summary()
    folder.resume_at(run.done, run.rows)

    with _signals(world) as caught, Progress(steps, run.done, world=world) as progress:
        while run.done < steps:
            try:
                numbers = job.step(run.done)
            except Exception as error:
                if not caught:
                    raise
                progress.write(f"step {run.done + 1:,} could not be finished: {type(error).__name__}: {error}")
                progress.write(f"not saved; the same command resumes from {run.last_checkpoint()}")
                raise Stopped(128 + caught[-1]) from error
            run.window.add(run.done, numbers)
            run.done += 1
            progress.update(run.done, waited=job.waited)

            last = run.done == steps
            looks = run.done % log_every == 0
            evaluates = last or run.done % evaluate_every == 0
            saves = last or run.done % checkpoint_every == 0
            agrees = looks or evaluates or saves or world.size == 1  # several must ask each other, which takes time
            stops = agrees and world.any(bool(caught))
            if looks or evaluates or saves or stops:
                run.check_finite()
            if evaluates or saves or stops:
                run.check_state()
            if looks:
                progress.update(run.done, waited=job.waited, losses=run.log())
            if evaluates and (figures := run.evaluate()):
                progress.write(f"step {run.done:,}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
            if saves or stops:
                run.save()
            if stops and not last:
                where = f"stopped after step {run.done:,} of {steps:,}, saved in {folder.path}"
                progress.write(f"{where}; the same command resumes from there")
                folder.close()
                raise Stopped(128 + max(world.gather_object(caught[-1] if caught else 0)))
    folder.flush()
    return run.summary()


def check_length(folder: Path, done: int, steps: int, name: str = "steps") -> None:
    """Raises if a run is already longer than requested: its result would be mistaken for that of a shorter one.

    Raises:
        RunFolderError: the run is longer.
    """
    if done > steps:
        remedy = "ask for as many, or choose another folder"
        raise RunFolderError(problem(name, f"at least the {done:,} that {folder} has", steps, remedy))


def best_state(folder: RunFolder, summary: Summary, *, world: World, remedy: str) -> dict[str, Any]:
    """The job's state at the best evaluation, on every rank.

    Args:
        folder: folder of the run.
        summary: summary of the run.
        world: the processes.
        remedy: what to do if it is not available.

    Raises:
        CheckpointError: no evaluation had a defined score, or the best one's checkpoint is gone or damaged; on every
            rank.
    """

    def read() -> dict[str, Any] | str:
        if summary.best_step is None:
            return "no evaluation had a score that is a number"
        try:
            best = folder.checkpoints.best(summary.best_step)
        except CheckpointError as error:
            return str(error)
        if best is not None:
            return best[1]
        where = folder.checkpoints.folder
        return f"the checkpoint of the best evaluation, after step {summary.best_step:,}, is not in {where}"

    found = world.from_main(read)
    if isinstance(found, str):
        raise CheckpointError(f"{found}; {remedy}")
    return found


def ignore_interrupts(worker: int = 0) -> None:
    """A ``DataLoader``'s ``worker_init_fn``: its workers leave Ctrl-C to the main process.

    SIGTERM still ends them, as it should; torchrun passes it on to them, and the step in which this happens is lost.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass
class _Run:
    """The state of a run in addition to the job's, with its operations."""

    job: Job
    steps: int
    folder: RunFolder
    world: World
    score: str | None
    higher_is_better: bool
    window: _Window
    done: int = 0
    resumed_from: int = 0
    seconds_before: float = 0.0
    began: float = field(default_factory=time.perf_counter)
    metrics: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    best_step: int | None = None
    best_saved: int | None = None  # the best step that the newest checkpoint refers to
    rows: int | None = None

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.began

    def resume(self) -> None:
        """Resumes from the newest intact checkpoint, which the main rank reads and sends to the others."""
        found = self.world.from_main(self.folder.checkpoints.latest)
        if found is None:
            return
        self.done, state = found
        if lacking := [name for name in ("job", *SAVED) if name not in state]:
            what = f"the checkpoint of step {self.done:,} in {self.folder.path} belongs to another trainer"
            raise CheckpointError(f"{what}: it lacks {', '.join(lacking)}; choose another folder")
        self.resumed_from = self.done
        self.job.load_state_dict(state["job"])
        self.window.load_state_dict(state["window"])
        self.seconds_before, self.metrics = state["seconds"], state["metrics"]
        self.best, self.best_step = state["best"], state["best_step"]
        self.best_saved = self.best_step
        self.rows = state.get("rows")  # which older ones do not say
        if self.world.rank < len(state["random"]):
            restore_random_states(state["random"][self.world.rank])
        self.began = time.perf_counter()

    def check_finite(self) -> None:
        """Stops every rank if a number on any rank is not finite."""
        own = self.window.first_undefined()
        if not self.world.any(own is not None):
            return
        step, name = next(each for each in self.world.gather_object(own) if each is not None)
        raise NonFiniteError(step + 1, name, self.advice())

    def check_state(self) -> None:
        """Stops every rank if a tensor of the state is not finite: a gradient can be NaN although the loss is finite.

        Otherwise only the loss of the next step would show it, when the checkpoint is already affected.
        """
        state = self.job.state_dict() if self.world.is_main else {}
        bad = (place for place, tensor in tensors_of(state) if not tensor.isfinite().all())
        where = self.world.broadcast_object(next(bad, None))
        if where is not None:
            raise NonFiniteError(self.done, where, self.advice())

    def advice(self) -> str:
        other = "a run with a lower learning rate or clipped gradients needs another folder"
        return f"the same command resumes from {self.last_checkpoint()}; {other}"

    def last_checkpoint(self) -> str:
        files = self.folder.checkpoints.files()
        return f"the checkpoint of step {files[-1][0]:,}" if files else "the beginning: there is no checkpoint yet"

    def log(self) -> dict[str, float]:
        means = self.window.means()
        self.window.seen = {}
        self.folder.log(self.done, means, seconds=self.seconds)
        return means

    def evaluate(self) -> dict[str, float]:
        states = random_states()
        self.metrics = {name: float(value) for name, value in self.job.evaluate().items()}
        restore_random_states(states)
        self.folder.log(self.done, self.metrics, seconds=self.seconds)
        if self.score is not None:
            if self.score not in self.metrics:
                expected = f"a figure of the evaluation: {', '.join(self.metrics)}"
                raise ValueError(problem("score", expected, self.score, "name one of them"))
            value = self.metrics[self.score]
            sign = 1 if self.higher_is_better else -1
            better = not math.isnan(value) and (self.best is None or sign * value > sign * self.best)
            if better:
                self.best, self.best_step = value, self.done
            keep = self.folder.checkpoints.save_best
            self.world.from_main(
                lambda: keep(self.done, self.job.state_dict(), value, self.best_saved) if better else None
            )
        return self.metrics

    def save(self) -> None:
        states = self.world.gather_object(random_states())

        def write() -> None:
            self.folder.flush()
            state = {"job": self.job.state_dict(), "random": states, "window": self.window.fetched(), **self.kept()}
            state["rows"] = self.folder.rows
            self.folder.checkpoints.save(self.done, state, self.best_step)

        self.world.from_main(write)
        self.best_saved = self.best_step

    def kept(self) -> dict[str, Any]:
        """What checkpoint and summary have in common."""
        return {"seconds": self.seconds, "metrics": self.metrics, "best": self.best, "best_step": self.best_step}

    def summary(self) -> Summary:
        return Summary(steps=self.done, resumed_from=self.resumed_from, **self.kept())


def tensors_of(state: Any, where: str = "") -> Iterator[tuple[str, Tensor]]:
    """Place and tensor of every tensor in a state, at any depth.

    Example:
        >>> [place for place, _ in tensors_of({"net": {"weight": torch.ones(2)}, "step": 4, "more": [torch.ones(2)]})]
        ['net.weight', 'more.0']
    """
    if isinstance(state, Tensor):
        yield where, state
    elif isinstance(state, (Mapping, list, tuple)):
        for name, value in state.items() if isinstance(state, Mapping) else enumerate(state):
            yield from tensors_of(value, f"{where}.{name}" if where else str(name))


class _Window:
    """Named numbers since the last row of the log, on their device until they are needed, so that no step waits."""

    def __init__(self, may_be_undefined: frozenset[str]) -> None:
        self.may_be_undefined = may_be_undefined
        self.seen: dict[str, list[tuple[int, Tensor | float]]] = {}

    def add(self, step: int, values: Mapping[str, Tensor | float]) -> None:
        for name, value in values.items():
            self.seen.setdefault(name, []).append((step, value.detach() if isinstance(value, Tensor) else value))

    def fetched(self) -> dict[str, list[tuple[int, float]]]:
        """(step, number) by name, on the CPU."""
        found = {name: [(step, float(value)) for step, value in seen] for name, seen in self.seen.items()}
        self.seen = {name: list(seen) for name, seen in found.items()}
        return found

    def first_undefined(self) -> tuple[int, str] | None:
        """The first step in which a number was not finite, and its name."""
        found = [
            (step, name)
            for name, seen in self.fetched().items()
            for step, value in seen
            if name not in self.may_be_undefined and not math.isfinite(value)
        ]
        return min(found, default=None)

    def means(self) -> dict[str, float]:
        return {name: sum(value for _, value in seen) / len(seen) for name, seen in self.fetched().items()}

    def load_state_dict(self, state: Any) -> None:
        if isinstance(state, list):  # as older checkpoints have it: names, their sums, and of how many numbers
            parts = ((name, x / n, n) for names, sums, n in state for name, x in zip(names, sums, strict=True))
            state = {name: [(0, mean)] * n for name, mean, n in parts}
        self.seen = state


@contextmanager
def _signals(world: World) -> Iterator[list[int]]:
    """Catches the signals that ask a process to end, in a list; restores the handlers afterwards."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield caught
        return
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a worker that was forked off: as it would have been
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            caught.append(number)
            if world.is_main:
                with suppress(OSError):  # the terminal itself may be gone
                    os.write(2, b"\nfinishing this step, then saving; Ctrl-C ends at once\n")

    others = (getattr(signal, name, None) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"))
    deadly = [number for number in others if number is not None and signal.getsignal(number) is signal.SIG_DFL]
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, *deadly)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
