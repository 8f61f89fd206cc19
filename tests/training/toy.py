"""A small job with what a resumed run can lose: dropout, momentum, a schedule, a threshold, odd numbers in the log."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptive_margin.training import (
    Checkpoints,
    RunFolder,
    Summary,
    World,
    backward_and_step,
    read_scalars,
    seed_everything,
    train,
)

STEPS = 30


class Toy:
    """Regression of noise on noise."""

    def __init__(
        self, world: World, *, slow: float = 0.0, nan: int = -1, nan_gradient: int = -1, kill: int = -1
    ) -> None:
        self.world, self.slow, self.nan, self.nan_gradient, self.kill = world, slow, nan, nan_gradient, kill
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))
        world.broadcast(self.net)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.99)
        self.threshold = 0.0
        self.waited = 0.0

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        time.sleep(self.slow)
        batch = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        noise = float(np.random.rand()) + random.random()  # noqa: NPY002 - as the host samples
        output = self.world.gather(self.net(batch[self.world.shard(6)]))
        loss = (output - noise).square().mean()
        if step == self.nan:
            loss = loss * float("nan")
        if step == self.nan_gradient:
            output.register_hook(lambda gradient: gradient * float("nan"))
        parameters = self.net.parameters()
        backward_and_step(loss, self.optimizer, parameters_before_gather=parameters, world=self.world, clip_norm=1.0)
        if step == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        self.schedule.step()
        self.threshold = 0.9 * self.threshold + 0.1 * float(loss.detach())
        statistics: dict[str, Tensor | float] = {"loss": loss, "threshold": self.threshold}
        return statistics if step % 2 else statistics | {"now_and_then": output.mean()}

    def evaluate(self) -> Mapping[str, float]:
        torch.rand(3)  # an evaluation may draw numbers: training must not notice
        with torch.no_grad():
            self.net.eval()
            score = float(self.net(torch.ones(1, 4)))
            self.net.train()
        return {"score": score}

    def state_dict(self) -> dict[str, Any]:
        parts = {"net": self.net, "optimizer": self.optimizer, "schedule": self.schedule}
        return {name: part.state_dict() for name, part in parts.items()} | {"threshold": self.threshold}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.threshold = state["threshold"]


def run(path: str | Path, *, steps: int = STEPS, world: World | None = None, **faults: Any) -> Summary:
    world = world or World()
    seed_everything(3, rank=world.rank)
    job = Toy(world, **faults)
    with RunFolder(path, {"seed": 3, "steps": steps}, world=world, may_change=["steps"]) as folder:
        return train(
            job,
            steps=steps,
            folder=folder,
            world=world,
            checkpoint_every=4,
            evaluate_every=7,
            log_every=3,
            score="score",
        )


def outcome(path: str | Path) -> dict[str, Any]:
    """All that a run leaves, but for the time it took."""
    checkpoints = Checkpoints(Path(path) / "checkpoints")
    step, state = checkpoints.latest() or (0, {})
    state.pop("seconds")
    curves = {name: (curve.steps, curve.values) for name, curve in read_scalars(path).items()}
    return {"step": step, "state": state, "best": checkpoints.best(), "curves": curves}
