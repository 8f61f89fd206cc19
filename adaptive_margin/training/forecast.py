"""How long training will take on this device and what it will write: said before it starts, from a few timed steps."""

from __future__ import annotations

import gc
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..messages import counted, duration, problem
from .loop import Job, tensors_of
from .world import World

DAY = 24 * 3600.0
ENOUGH = 10.0  # seconds of timed steps
MOST = 3  # timed steps, after a first one that counts only if the run is too short for others
SHARE = 0.05  # of a run that its forecast may take, beyond the first step


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a command is about to do.

    Attributes:
        runs: networks to train, those that resume included.
        iterations: of all of them together that are still to do.
        seconds: their estimated duration.
        disk: bytes of the checkpoints and models of all runs; 0 if they keep only figures.
        picture: bytes of a decoded picture in the cache; 0 if there is none.
        measured: where the seconds come from.
    """

    runs: int
    iterations: int
    seconds: float
    disk: int = 0
    picture: int = 0
    measured: str = "by timed iterations, without evaluations"

    def __str__(self) -> str:
        """One line.

        Example:
            >>> print(Forecast(runs=2, iterations=100_000, seconds=9000.0, disk=2**30, picture=196_608))
            2 runs, 100,000 iterations: about 2.5 hours on this device (by timed iterations, without evaluations); disk:
            1.0 GiB, and 192 KiB a decoded picture
        """
        written = f"{self.disk / 2**30:,.1f} GiB" if self.disk >= 2**30 / 10 else f"{max(1, self.disk >> 20)} MiB"
        cached = f", and {self.picture / 2**10:.0f} KiB a decoded picture" if self.picture else ""
        return (
            f"{counted(self.runs, 'run')}, {counted(self.iterations, 'iteration')}: about {duration(self.seconds)} "
            f"on this device ({self.measured}); disk: {written if self.disk else 'figures, no checkpoints'}{cached}"
        )


@dataclass(frozen=True, kw_only=True)
class Work:
    """Runs of one kind, whose iterations take equally long.

    Attributes:
        job: makes a job of this kind that has taken no step. It is thrown away, so its data may be noise.
        iterations: those that are left in all runs together.
        runs: how many of them are not finished.
        disk: bytes that each run keeps, from its job after a step; None if it keeps only figures.
    """

    job: Callable[[], Job]
    iterations: int
    runs: int = 1
    disk: Callable[[Any], int] | None = None


def forecast(works: Iterable[Work], *, jobs: int = 1, threads: int | None = None, picture: int = 0) -> Forecast:
    """Times a few steps of each kind, and adds up what is left to do.

    Nothing that a run depends on is changed: the jobs are thrown away, random states and threads are restored. After
    the first step, which may be slow, at most a twentieth of the estimated time and ten seconds a kind are spent.

    Args:
        works: kinds of runs.
        jobs: runs at the same time.
        threads: PyTorch's number in each of them; None leaves it.
        picture: bytes of a decoded picture in the cache.
    """
    python, legacy, before = random.getstate(), np.random.get_state(), torch.get_num_threads()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    runs, iterations, seconds, disk = 0, 0, 0.0, 0
    try:
        with torch.random.fork_rng(devices):
            if threads is not None:
                torch.set_num_threads(threads)
            for work in works:
                if work.iterations < 1:
                    continue
                job = work.job()
                seconds += work.iterations * seconds_a_step(job, work.iterations)
                disk += work.runs * work.disk(job) if work.disk else 0
                runs, iterations = runs + work.runs, iterations + work.iterations
                del job
    finally:
        torch.set_num_threads(before)
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        gc.collect()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
    together = max(1, min(jobs, runs, os.cpu_count() or 1))
    return Forecast(runs=runs, iterations=iterations, seconds=seconds / together, disk=disk, picture=picture)


def seconds_a_step(job: Job, steps: int) -> float:
    """Seconds of one of so many steps: the median of three, or the first step where more would take too long."""
    first = _timed(job, 0)
    took: list[float] = []
    while len(took) < MOST and sum(took) < min(ENOUGH, SHARE * steps * first):
        took.append(_timed(job, 1 + len(took)))
    return statistics.median(took or [first])


def _timed(job: Job, step: int) -> float:
    began = time.perf_counter()
    for number in job.step(step).values():
        float(number.detach() if isinstance(number, torch.Tensor) else number)  # waits for the device
    return time.perf_counter() - began


def announce(found: Forecast, yes: bool, world: World | None = None) -> None:
    """Prints a forecast to stderr, unless nothing is left to do, and stops what would take more than a day.

    Args:
        found: what is about to be done.
        yes: whether ``--yes`` was given.
        world: the processes, of which one prints.

    Raises:
        ValueError: it takes more than a day, and ``yes`` is False.
    """
    if found.runs and (world is None or world.is_main):
        print(found, file=sys.stderr, flush=True)
    if found.seconds > DAY and not yes:
        got = f"about {found.seconds / DAY:,.1f} days without it"
        remedy = "pass --yes to start all the same, or fewer runs or iterations"
        raise ValueError(problem("--yes", "given for more than a day of training", got, remedy))


def steps_done(folder: str | Path) -> int:
    """How far the run in a folder has come, from the last row of its log; 0 if there is none."""
    try:
        with open(Path(folder) / "scalars.csv", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 200))
            return int(file.read().splitlines()[-1].split(b",")[0])
    except (OSError, ValueError, IndexError):
        return 0


def size_of(state: Any) -> int:
    """Bytes of the tensors in a state, at any depth.

    Example:
        >>> size_of({"net": {"weight": torch.ones(2, 3)}, "step": 4, "more": [torch.ones(2)]})
        32
    """
    return sum(tensor.nbytes for _, tensor in tensors_of(state))
