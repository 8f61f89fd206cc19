"""A run of a few steps, for tests that start processes: ``python -m tests.dml.steps OUT [--slow S] [--loss NAME]``."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from adaptive_margin.dml.config import OF_PROXIES, SMALL, DMLConfig
from adaptive_margin.dml.embedded import digits
from adaptive_margin.dml.trainer import DMLJob, run


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--loss", default="margin")
    options = parser.parse_args()
    torch.set_num_threads(1)
    step = DMLJob.step

    def slow(self: DMLJob, number: int) -> object:
        time.sleep(options.slow)
        return step(self, number)

    DMLJob.step = slow  # type: ignore[method-assign]
    run(few(options.out, options.loss), digits())
