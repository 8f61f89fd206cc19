"""The run of some seconds, to be killed, or shared by two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from adaptive_margin.emotion.trainer import run
from adaptive_margin.training.world import World

from .cases import tiny


def train_tiny(folder: Path, options: dict[str, Any]) -> int | None:
    """Trains on one thread; returns the step that the run went on from."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(tiny(output=str(folder), device="cpu", **options)).summary.resumed_from
    finally:
        torch.set_num_threads(threads)


def in_world(world: World, folder: Path, options: dict[str, Any]) -> None:
    """The same by a process of several."""
    train_tiny(folder, options)
