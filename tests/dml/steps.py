"""A run of a few steps, also for processes that tests start."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from adaptive_margin.dml.config import OF_PROXIES, SMALL, DMLConfig
from adaptive_margin.dml.embedded import digits
from adaptive_margin.dml.trainer import DMLJob, run
from adaptive_margin.training import World


def few(out: Path, loss: str = "margin") -> DMLConfig:
    return replace(
        SMALL,
        out=out,
        loss=loss,
        margin="adaptive" if loss != "auto-margin" else "default",
        neighbourhood="attainable" if loss == "proxy-anchor" else "auto",  # smooth: rounding tips no neighbour over
        learn_beta=loss == "margin",
        loss_optimizer="sgd" if loss == "margin" else "same",
        loss_rate=0.01 if loss in ("margin", *OF_PROXIES) else SMALL.loss_rate,
        classes=8,
        per_class=4,
        epochs=3,
        steps_per_epoch=4,
        checkpoint_every=1,
        clustering=False,
    )


def train_slowly(out: Path, loss: str) -> None:
    """Trains with a pause before each step."""
    step = DMLJob.step

    def slow(self: DMLJob, number: int) -> object:
        time.sleep(0.3)
        return step(self, number)

    DMLJob.step = slow  # type: ignore[method-assign]
    run(few(out, loss), digits())


def in_world(world: World, out: Path, loss: str) -> None:
    """Trains by a process of several."""
    run(few(out, loss), digits())
