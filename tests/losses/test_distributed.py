"""Two processes with half a batch each, against one process with the whole."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from torch import Tensor

from adaptive_margin import AdaptiveMarginLoss, AdaptiveMarginMiner
from tests.training.processes import start_together

from .cases import CLASSES, FEATURES, GUESTS, HOSTS, batch

ROWS, RANKS = 24, 2
Ranks = list[dict[str, tuple[Tensor, list[Tensor]]]]  # of each process: by case, the loss and averaged gradients
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")

LOSSES: dict[str, Any] = {
    **GUESTS,
    "arcface": lambda: AdaptiveMarginLoss(HOSTS["ArcFaceLoss"].build(torch.float64)),
    "constant": lambda: AdaptiveMarginLoss(losses.TripletMarginLoss(), 0.3),
}
TAKES_A_REFERENCE = tuple(name for name in LOSSES if name != "arcface")


def _miner() -> AdaptiveMarginMiner:
    return AdaptiveMarginMiner(miners.TripletMarginMiner(), units="offset")


def _network() -> torch.nn.Linear:
    torch.manual_seed(5)
    return torch.nn.Linear(FEATURES, FEATURES).double()


def _data(step: int = 0) -> tuple[Tensor, Tensor]:
    inputs, _ = batch(ROWS, seed=20 + step, dtype=torch.float64)
    generator = torch.Generator().manual_seed(step)
    return inputs.detach(), torch.randint(0, CLASSES, (ROWS,), generator=generator)  # the halves differ in classes


def _half(rank: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x[rank * ROWS // RANKS : (rank + 1) * ROWS // RANKS] for x in tensors)


def _case(name: str, efficient: bool, mined: bool) -> str:
    return f"{name}, efficient={efficient}, mined={mined}"


def _worker(rank: int, folder: str) -> None:
    """One of the processes: every case, its values and gradients into a file."""
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    results: dict[str, tuple[Tensor, list[Tensor]]] = {}

    def note(case: str, value: Tensor, *modules: torch.nn.Module) -> None:
        value.backward()
        grads = [weight.grad for module in modules for weight in module.parameters() if weight.grad is not None]
        for grad in grads:  # as DistributedDataParallel does
            dist.all_reduce(grad)
            grad /= RANKS
        results[case] = value.detach(), grads

    inputs, labels = _half(rank, *_data())
    for name, build in LOSSES.items():
        for efficient in (False, True):
            for mined in (False, True):
                if name not in TAKES_A_REFERENCE and efficient:
                    continue
                network, inner = _network(), build()
                embeddings = network(inputs)
                indices = DistributedMinerWrapper(_miner(), efficient)(embeddings, labels) if mined else None
                value = DistributedLossWrapper(inner, efficient)(embeddings, labels, indices)
                note(_case(name, efficient, mined), value, network, inner)
    network = _network()
    memory = DistributedLossWrapper(losses.CrossBatchMemory(GUESTS["contrastive"](), FEATURES, memory_size=60))
    for step in range(2):
        inputs, labels = _half(rank, *_data(step))
        network.zero_grad()
        note(f"memory {step}", memory(network(inputs), labels), network)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What each of the two processes found."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    start_together(_worker, str(folder), size=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def _compare(ranks: Ranks, case: str, values: list[Tensor], grads: list[Tensor]) -> None:
    for found, value in zip(ranks, values, strict=True):
        torch.testing.assert_close(found[case][0], value.detach(), rtol=1e-9, atol=1e-12)
        assert len(found[case][1]) == len(grads)
        for ours, expected in zip(found[case][1], grads, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-12)
    assert grads[0].any()


@pytest.mark.parametrize("mined", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_equal_one_on_the_joined_batch(ranks: Ranks, name: str, mined: bool) -> None:
    network, loss = _network(), LOSSES[name]()
    inputs, labels = _data()
    embeddings = network(inputs)
    value = loss(embeddings, labels, _miner()(embeddings, labels) if mined else None)
    value.backward()
    # the host multiplies by the number of processes, over which gradients are averaged: right for what each process
    # holds a share of, the embeddings, and as many times too large for weights of the loss, here as in stock losses
    grads = [weight.grad for weight in network.parameters()] + [RANKS * weight.grad for weight in loss.parameters()]
    _compare(ranks, _case(name, False, mined), [RANKS * value] * RANKS, grads)


@pytest.mark.parametrize("mined", [False, True])
@pytest.mark.parametrize("name", TAKES_A_REFERENCE)
def test_the_efficient_way_takes_the_joined_batch_as_reference(ranks: Ranks, name: str, mined: bool) -> None:
    network = _network()
    values = []
    for rank in range(RANKS):
        (inputs, labels), (others, other_labels) = _half(rank, *_data()), _half(1 - rank, *_data())
        embeddings = network(inputs)
        reference = torch.cat([embeddings, network(others).detach()])
        ref_labels = torch.cat([labels, other_labels])
        if mined:
            indices = _miner()(embeddings, labels, reference, ref_labels)
        else:
            indices = lmu.get_all_pairs_indices(labels, ref_labels)
        indices = lmu.remove_self_comparisons(indices, torch.arange(len(labels)), ROWS)
        values.append(RANKS * LOSSES[name]()(embeddings, labels, indices, reference, ref_labels))
    grads = torch.autograd.grad(sum(values) / RANKS, list(network.parameters()))  # type: ignore[arg-type]
    _compare(ranks, _case(name, True, mined), values, list(grads))


def test_a_memory_of_both_processes_equals_one_of_the_joined_batches(ranks: Ranks) -> None:
    network = _network()
    memory = losses.CrossBatchMemory(GUESTS["contrastive"](), FEATURES, memory_size=60)
    for step in range(2):
        inputs, labels = _data(step)
        value = memory(network(inputs), labels)
        grads = torch.autograd.grad(value, list(network.parameters()))
        _compare(ranks, f"memory {step}", [RANKS * value] * RANKS, list(grads))


def test_without_processes_the_wrapper_is_the_loss() -> None:
    embeddings, labels = batch()
    with pytest.warns(UserWarning, match="non-distributed"):
        value = DistributedLossWrapper(GUESTS["triplet"]())(embeddings, labels)
    assert torch.equal(value, GUESTS["triplet"]()(embeddings, labels))


def test_only_losses_and_miners_are_taken_and_ours_are_such() -> None:
    assert isinstance(DistributedLossWrapper(GUESTS["triplet"](), efficient=True).loss, losses.BaseMetricLossFunction)
    assert isinstance(DistributedMinerWrapper(_miner()).miner, miners.BaseMiner)
    with pytest.raises(TypeError, match="must extend BaseMetricLossFunction"):
        DistributedLossWrapper(_miner())
