"""The examples of training frameworks: two processes learn what one learns from the whole batch, and log the margin."""

from __future__ import annotations

import csv
import functools
import json
import os
import runpy
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.processes import start_together

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {
    "ddp_loop": (),
    "accelerate_loop": ("accelerate", "tensorboard"),
    "lightning_loop": ("lightning",),
    "transformers_trainer": ("transformers", "accelerate"),
}
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


def _process(rank: int, world: int, port: int, name: str, settings: dict[str, Any], folder: str) -> None:
    """What torchrun starts; the weights, margins and logged values go into a file."""
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "NODE_RANK": 0}
    if world > 1 or name == "ddp_loop":
        os.environ.update({key: str(value) for key, value in given.items()})
    os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""})
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    os.chdir(folder)
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    torch.save(example["main"](**settings), f"{folder}/{rank}.pt")


def run(name: str, world: int, folder: Path, **settings: Any) -> list[tuple[torch.Tensor, list[float]]]:
    """The weights and margins that each process found."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    start_together(_process, world, port, name, settings, str(folder), size=world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def of_tensorboard(folder: Path) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.glob("runs/accelerate/margin/events*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert len(events.Scalars("train/current_margin")) == len(events.Scalars("train/loss")) == 20
    return [each.value for each in events.Scalars("train/alpha")]


def of_csv(folder: Path) -> list[float]:
    (file,) = folder.glob("runs/lightning/**/metrics.csv")
    return [float(row["alpha"]) for row in csv.DictReader(file.open())]


def of_trainer_state(folder: Path) -> list[float]:
    state = json.loads((folder / "runs" / "transformers" / "trainer_state.json").read_text())
    return [row["alpha"] for row in state["log_history"]]


LOGGED = {
    "accelerate_loop": of_tensorboard,
    "lightning_loop": of_csv,
    "transformers_trainer": of_trainer_state,
}


def needed(name: str) -> None:
    for library in NEEDS[name]:
        pytest.importorskip(library)


def examples() -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.hosts] if needs else []) for name, needs in NEEDS.items()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[torch.Tensor, list[float], Path]]:
    """What one process finds in two epochs, and where it logged."""

    @functools.cache
    def of(name: str) -> tuple[torch.Tensor, list[float], Path]:
        needed(name)
        folder = tmp_path_factory.mktemp(name) / "one"
        ((weights, margins),) = run(name, 1, folder, epochs=2)
        return weights, margins, folder

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", examples())
def test_two_processes_learn_what_one_learns(name: str, alone: Any, tmp_path: Path) -> None:
    weights, margins, folder = alone(name)
    assert len(margins) == 20
    assert margins[-1] < margins[0] / 2, "the classes did not part"
    if name in LOGGED:
        every = 5 if name == "transformers_trainer" else 1
        expected = margins[every - 1 :: every]
        assert LOGGED[name](folder)[: len(expected)] == pytest.approx(expected)
    both = run(name, 2, tmp_path / "two", epochs=2, **({"devices": 2} if name == "lightning_loop" else {}))
    for theirs, their_margins in both:
        torch.testing.assert_close(theirs, weights, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(torch.tensor(their_margins), torch.tensor(margins), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_without_gathering_each_process_has_a_margin_of_its_own(alone: Any, tmp_path: Path) -> None:
    weights, margins, _ = alone("ddp_loop")
    (one, first), (other, second) = run("ddp_loop", 2, tmp_path / "two", epochs=2, gather=False)
    torch.testing.assert_close(one, other, rtol=0, atol=0)  # gradients are averaged all the same
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert all(a != b for a, b in zip(first, margins, strict=True))
    assert (one - weights).abs().max() > 1e-2


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_has_fewer_than_60_lines(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 60
