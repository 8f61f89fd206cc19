"""Processes of a test's own: forked from a clean one that has imported everything, so that each starts in no time."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from adaptive_margin.training import World

PATIENCE = 100.0  # seconds until a hanging process is ended
IMPORTED = [
    "torch._dynamo",
    "torch.utils.tensorboard",
    "adaptive_margin.emotion",
    "adaptive_margin.dml",
    "tests.conftest",
]
"""What takes long to import: an optimiser, for instance, imports torch's compiler."""


def start(target: Callable[..., Any], *arguments: Any, errors: Path | None = None) -> ForkServerProcess:
    """Runs ``target(*arguments)`` in a process, its standard error in a file."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED])
    process = context.Process(target=_child, args=(target, arguments, errors), daemon=True)
    process.start()
    return process


def start_together(target: Callable[..., Any], *arguments: Any, size: int = 2) -> None:
    """Runs ``target(rank, *arguments)`` in several processes and waits for them; raises what one of them raises."""
    method = "spawn" if sys.platform == "win32" else "forkserver"
    if method == "forkserver":
        multiprocessing.get_context(method).set_forkserver_preload([*IMPORTED])
    torch.multiprocessing.start_processes(target, args=arguments, nprocs=size, start_method=method)


def finish(*processes: ForkServerProcess) -> list[int | None]:
    """Waits for processes and returns their exit codes; ends those that hang."""
    end = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
        process.join()
    assert not hanging, "a process hangs"
    return [process.exitcode for process in processes]


def in_ranks(target: Callable[..., Any], folder: Path, *arguments: Any, size: int = 2) -> list[Any]:
    """What ``target(world, *arguments)`` returns in each of several processes that form one world."""
    folder.mkdir(parents=True)
    codes = finish(*[start(_rank, target, rank, size, folder, arguments) for rank in range(size)])
    assert codes == [0] * size
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _child(target: Callable[..., Any], arguments: tuple[Any, ...], errors: Path | None) -> None:
    torch.set_num_threads(1)
    if errors is not None:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    target(*arguments)


def _rank(target: Callable[..., Any], rank: int, size: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=size)
    with World.from_environment(device="cpu") as world:
        torch.save(target(world, *arguments), folder / f"{rank}.pt")
        world.barrier()
    assert dist.is_initialized()  # it was not the world that joined
    dist.destroy_process_group()
