"""Two processes with a share each, against one with the whole batch: weights after some steps of Algorithm 1."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from adaptive_margin.training.checkpoints import Checkpoints
from adaptive_margin.training.world import World
from tests.platforms import needs_processes
from tests.training.processes import in_ranks, start_together

from .cases import faces, iteration, state, who
from .train_tiny import in_world, train_tiny

RANKS, STEPS = 2, 3
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"caf {encoder} {mode}": ("paper", {"encoder": encoder, "weak_batch_norm": mode})
        for encoder in ("plain", "small")
        for mode in ("whole", "weak", "running")
    },
    "caf plain joint": ("joint", {"encoder": "plain"}),
    "caf small joint": ("joint", {"encoder": "small"}),
    "caf small shared": ("paper", {"encoder": "small", "shared": True, "adversarial_weight": 0.1}),
    "caf small clipped": ("paper", {"encoder": "small", "clip_norm": 0.01}),
    **{
        f"{critic} small": ("paper", {"critic": critic, "encoder": "small"})
        for critic in ("fisher", "sphere", "gramnet", "none")
    },
    **{
        f"{critic} small joint": ("joint", {"critic": critic, "encoder": "small"})
        for critic in ("fisher", "sphere", "gramnet")
    },
}
TERMS = ("grl", "uniform-id", "label-distance")
CASES |= {
    "caf cross-person": ("paper", {"encoder": "small", "cross_person": True}),
    **{f"{term} small": ("paper", {"critic": "none", "term": term}) for term in TERMS},
    "grl joint": ("joint", {"critic": "none", "term": "grl"}),
}
ROWS = (18, 17, 7)  # of the steps' batches: shares of 9 and 9, 8 and 9, 3 and 4


def _train(case: str, world: World) -> dict[str, torch.Tensor]:
    order, options = CASES[case]
    it = iteration(world=world, **options)
    for number, rows in enumerate(ROWS):
        images, labels = faces(rows, seed=number)
        mine = world.shard(rows)
        take = it.paper_step if order == "paper" else it.joint_step
        take(images[mine], labels[mine], who(rows)[mine])
    modules = {"net": it.net, "critic": it.critic, "term": it.term}
    return {f"{name}.{n}": v for name, module in modules.items() for n, v in state(module).items()}


def _worker(rank: int, folder: str) -> None:
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    world = World(rank=rank, size=RANKS)
    torch.save({case: _train(case, world) for case in CASES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    start_together(_worker, str(folder), size=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_with_the_weights_of_one(ranks: Any, case: str) -> None:
    expected = _train(case, World())
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            continue
        for rank in range(RANKS):
            torch.testing.assert_close(
                ranks[rank][case][name], value, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
        assert torch.equal(ranks[0][case][name], ranks[1][case][name]), name


@needs_processes
def test_a_run_of_two_processes_is_one(tmp_path: Path) -> None:
    options = {"iterations": 4, "batch_size": 7}
    train_tiny(tmp_path / "one", options)
    in_ranks(in_world, tmp_path / "ranks", tmp_path / "two", options)
    one, two = (Checkpoints(tmp_path / name / "checkpoints").latest() for name in ("one", "two"))
    assert one is not None
    assert two is not None
    for part in ("net", "critic"):  # float32: shares round otherwise, and Adam divides small by small
        whole, shared = (
            torch.cat([v.flatten() for v in found[1]["job"][part].values() if v.is_floating_point()])
            for found in (one, two)
        )
        assert (shared - whole).norm() < 5e-3 * whole.norm()
        assert not torch.equal(whole[:1000], torch.zeros(1000))
