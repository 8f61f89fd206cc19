"""One wrapped loss or miner, many threads: each gets its own values, and none sees another's margin."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses, miners

from adaptive_margin import AdaptiveMarginLoss, AdaptiveMarginMiner, ContrastiveVDMLoss

from .cases import HOSTS, batch

CALLS = 25


@pytest.fixture
def _eager_threads() -> Iterator[None]:
    """Threads that change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(call: Callable[[int], Any], looks: Callable[[], bool]) -> tuple[list[list[Any]], bool]:
    """Results of four threads, each with its own batch, and whether a fifth never saw what it should not."""
    results: list[list[Any]] = [[] for _ in range(4)]
    over, clean = threading.Event(), []

    def work(i: int) -> None:
        results[i] = [call(i) for _ in range(CALLS)]

    def watch() -> None:
        good = True
        while not over.is_set():
            good &= looks()
            time.sleep(1e-5)  # else it would hold the interpreter for as long as it is let
        clean.append(good)

    watcher = threading.Thread(target=watch)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    watcher.join()
    return results, clean == [True]


@pytest.mark.usefixtures("_eager_threads")
@pytest.mark.parametrize("margin", [None, 0.3], ids=["adaptive", "constant"])
@pytest.mark.parametrize("name", [name for name, host in HOSTS.items() if host.labels])
def test_a_loss_in_four_threads(name: str, margin: Any) -> None:
    host = HOSTS[name]
    loss = AdaptiveMarginLoss(host.build(), margin)
    before = dict(vars(loss.loss))
    batches = [batch(12 + 4 * i, seed=i) for i in range(4)]

    def value(i: int) -> tuple[float, list[float]]:
        embeddings = batches[i][0].detach().requires_grad_()
        out = loss(embeddings, batches[i][1])
        (grad,) = torch.autograd.grad(out, embeddings)
        return out.item(), grad.flatten().tolist()

    alone = [value(i) for i in range(4)]
    results, unchanged = in_threads(value, lambda: getattr(loss.loss, host.attribute) == before[host.attribute])
    for i, got in enumerate(results):
        assert got == [alone[i]] * CALLS
    assert unchanged
    assert vars(loss.loss) == before


@pytest.mark.parametrize("name", [name for name, host in HOSTS.items() if hasattr(host.build(), "cast_types")])
def test_class_weights_are_assigned_only_where_they_change(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assigning them in each call, as the host does, can block torch for ever where several threads do."""
    loss = AdaptiveMarginLoss(HOSTS[name].build())
    embeddings, labels = batch()
    cast, calls = type(loss.loss).cast_types, []
    monkeypatch.setattr(type(loss.loss), "cast_types", lambda self, *kind: (calls.append(kind), cast(self, *kind))[1])
    loss(embeddings, labels)
    assert calls == []
    loss(embeddings.double(), labels)  # as the host has it, the weights become float64
    assert [kind[0] for kind in calls] == [torch.float64]
    assert all(weight.dtype == torch.float64 for weight in loss.parameters())


@pytest.mark.usefixtures("_eager_threads")
@pytest.mark.parametrize("build", [miners.TripletMarginMiner, miners.PairMarginMiner, miners.MultiSimilarityMiner])
def test_a_miner_in_four_threads(build: Any) -> None:
    miner = AdaptiveMarginMiner(build())
    attribute = miner.exchange.attribute
    own = getattr(miner.miner, attribute)
    batches = [batch(12 + 4 * i, seed=i) for i in range(4)]

    def mined(i: int) -> list[list[int]]:
        return [index.tolist() for index in miner(*batches[i])]

    alone = [mined(i) for i in range(4)]
    results, unchanged = in_threads(mined, lambda: getattr(miner.miner, attribute) == own)
    for i, got in enumerate(results):
        assert got == [alone[i]] * CALLS
    assert unchanged


@pytest.mark.usefixtures("_eager_threads")
def test_the_papers_loss_in_four_threads() -> None:
    loss = ContrastiveVDMLoss()
    batches = [batch(12 + 4 * i, seed=i) for i in range(4)]
    alone = [loss(*batches[i]).item() for i in range(4)]
    results, _ = in_threads(lambda i: loss(*batches[i]).item(), lambda: True)
    assert results == [[value] * CALLS for value in alone]


def test_a_validation_thread_beside_training_sees_the_stock_loss() -> None:
    stock = losses.ContrastiveLoss()
    loss = AdaptiveMarginLoss(stock, pair_memory="pairs")
    embeddings, labels = batch()
    expected = stock(embeddings, labels).item()
    seen = []

    def validate(module: Any, _: Any) -> None:
        if module is not stock:  # in the middle of a call
            thread = threading.Thread(target=lambda: seen.append(stock(embeddings, labels)))
            thread.start()
            thread.join()

    stock.register_forward_pre_hook(validate)
    assert loss(embeddings, labels).item() != expected
    assert [value.item() for value in seen] == [expected]
