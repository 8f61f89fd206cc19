"""How long training will take on this device and what it will write, from a few iterations on noise."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..messages import counted, problem
from ..training.world import World, device_of
from .config import EmotionConfig
from .data import EmotionData, Part
from .trainer import EmotionJob

DAY = 24 * 3600.0
ENOUGH = 10.0  # seconds of measured iterations
MOST = 3  # measured iterations, after one that is not counted


@dataclass(frozen=True)
class Forecast:
    """What a command is about to do.

    Attributes:
        runs: networks to train, those that resume included.
        iterations: of all of them together that are still to do.
        seconds: their estimated duration, without evaluations and without loading data.
        disk: bytes of the checkpoints and models of all runs.
        picture: bytes of a decoded picture in the cache; 0 if pictures are drawn.
    """

    runs: int
    iterations: int
    seconds: float
    disk: int
    picture: int

    def __str__(self) -> str:
        """One line.

        Example:
            >>> print(Forecast(runs=2, iterations=100_000, seconds=9000.0, disk=2**30, picture=196_608))
            2 runs, 100,000 iterations: about 2.5 hours of training here; disk: 1.0 GiB of checkpoints, and ... picture
        """
        took, large = self.seconds, self.disk >= 2**30 / 10
        long = f"{took / 3600:,.1f} hours" if took >= 3600 else f"{took / 60:.0f} minutes"
        if took < 90:
            long = f"{took:.0f} s"
        written = f"{self.disk / 2**30:,.1f} GiB" if large else f"{self.disk / 2**20:,.0f} MiB"
        text = f"{counted(self.runs, 'run')}, {counted(self.iterations, 'iteration')}: about {long} of training here; "
        cached = f", and {self.picture / 2**10:.0f} KiB a decoded picture" if self.picture else ""
        return f"{text}disk: {written} of checkpoints{cached}"


def forecast(
    configs: Mapping[Any, EmotionConfig], done: Mapping[Any, int], *, jobs: int = 1, threads: int | None = None
) -> Forecast:
    """Measures one configuration of each critic on noise, and adds up what is left to do.

    Args:
        configs: the runs.
        done: iterations that each of them has done already.
        jobs: runs at the same time.
        threads: of each of them; None leaves PyTorch's number.

    Example:
        >>> from adaptive_margin.emotion.config import QUICK
        >>> short = replace(QUICK, iterations=10, batch_size=8, device="cpu")
        >>> found = forecast({"a": short, "b": short}, {"a": 4, "b": 0})
        >>> found.runs, found.iterations, found.seconds > 0
        (2, 16, True)
    """
    before = torch.get_num_threads()
    each: dict[str, tuple[float, int]] = {}
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        for config in configs.values():
            if config.critic not in each:
                each[config.critic] = measured(config)
    finally:
        torch.set_num_threads(before)
    left = {name: max(0, config.iterations - done.get(name, 0)) for name, config in configs.items()}
    seconds = sum(left[name] * each[config.critic][0] for name, config in configs.items())
    disk = sum(each[config.critic][1] for config in configs.values())
    one = next(iter(configs.values()))
    open_runs = sum(1 for n in left.values() if n)
    return Forecast(
        runs=open_runs,
        iterations=sum(left.values()),
        seconds=seconds / max(1, min(jobs, open_runs)),
        disk=disk,
        picture=0 if one.dataset == "faces" else 3 * one.resize**2,
    )


def measured(config: EmotionConfig) -> tuple[float, int]:
    """Seconds of an iteration with the adversarial step, and bytes of a run's two checkpoints, best one and model."""
    rows = 2 * config.batch_size
    random = np.random.default_rng(0)
    noise = Part(
        images=random.integers(0, 256, (rows, config.resize, config.resize, 3), dtype=np.uint8),
        slots=np.arange(rows),
        labels=random.uniform(-0.7, 0.7, (rows, 2)).astype(np.float32),
        people=np.arange(rows),
        identity="person",
        videos=(None,) * rows,
        frames=np.full(rows, -1),
    )
    data = EmotionData(train=noise, val=noise, test=noise, splits={}, independent="")
    world = World(device=device_of(config.device))
    job = EmotionJob(replace(config, adversarial_start=0, pretrained=None), data, world)
    job.step(0)
    took: list[float] = []
    while len(took) < MOST and sum(took) < ENOUGH:
        began = time.perf_counter()
        for loss in job.step(1 + len(took)).values():
            float(loss)  # waits for the device
        took.append(time.perf_counter() - began)
    return statistics.median(took), 2 * _bytes(job.state_dict()) + 2 * _bytes(dict(job.iteration.net.state_dict()))


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


def confirm(found: Forecast, yes: bool) -> None:
    """Asks before more than a day of training; where nobody can be asked, ``--yes`` has to say it.

    Args:
        found: what is about to be done.
        yes: whether it was said in advance.

    Raises:
        ValueError: the answer is not yes, or nobody can be asked.
    """
    if yes or found.seconds <= DAY:
        return
    days = f"{found.seconds / DAY:,.1f} days"
    remedy = "pass --yes to start all the same, or fewer runs or iterations"
    if not sys.stdin.isatty():
        raise ValueError(problem("--yes", "given for more than a day of training", f"about {days} without it", remedy))
    if input(f"That is about {days}. Start? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ValueError(problem("the answer", "y to start", "another", remedy))
