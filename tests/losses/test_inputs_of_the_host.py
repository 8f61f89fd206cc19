"""What a stock loss accepts, a wrapped one accepts, with the same result; what it refuses is in docs/margin-loss.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from adaptive_margin import AdaptiveMarginLoss, ContrastiveVDMLoss

from .cases import HOSTS, assert_identical, batch, call

X, Y = batch()
REF, REF_Y = (each.detach() for each in batch(9, seed=5))
PAIRS = lmu.get_all_pairs_indices(Y)
TRIPLETS = lmu.get_all_triplets_indices(Y)
COMPARED = [name for name, host in HOSTS.items() if host.reference]
"""Losses that compare embeddings with each other."""


def none(n: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (torch.empty(0, dtype=dtype),) * n


Arguments = Callable[[], tuple[Any, ...]]
LABELS: dict[str, Arguments] = {  # other names for the same classes
    "float": lambda: (X, Y.float()),
    "double": lambda: (X, Y.double()),
    "half": lambda: (X, Y.half()),
    "float with a gradient": lambda: (X, Y.float().requires_grad_()),
    "int32": lambda: (X, Y.int()),
    "int16": lambda: (X, Y.short()),
    "int8": lambda: (X, Y.to(torch.int8)),
    "uint8": lambda: (X, Y.byte()),
    "negative": lambda: (X, Y - 2),
    "far apart": lambda: (X, Y * 10**12),
}
OTHERS: dict[str, Arguments] = {
    "bool labels": lambda: (X, Y > 1),
    "one class": lambda: (X, torch.zeros_like(Y)),
    "nobody alike": lambda: (X, torch.arange(len(Y))),
    "one row": lambda: (X[:1], Y[:1]),
    "no rows": lambda: (X[:0], Y[:0]),
    "no gradient": lambda: (X.detach(), Y),
    "not contiguous": lambda: (torch.stack([X, X], 2)[:, :, 0], Y),
    "a parameter": lambda: (torch.nn.Parameter(X.detach().clone()), Y),
    "triplets": lambda: (X, Y, TRIPLETS),
    "pairs": lambda: (X, Y, PAIRS),
    "a list of tensors": lambda: (X, Y, list(PAIRS)),
    "int32 indices": lambda: (X, Y, tuple(each.int() for each in PAIRS)),
    "no triplets": lambda: (X, Y, none(3, torch.int64)),
    "no pairs": lambda: (X, Y, none(4, torch.int64)),
    "no pairs, of floats": lambda: (X, Y, none(4, torch.float32)),
    "no positives": lambda: (X, Y, none(2, torch.int64) + PAIRS[2:]),
    "no negatives": lambda: (X, Y, PAIRS[:2] + none(2, torch.int64)),
    "no labels": lambda: (X, None, PAIRS),
    "float labels and references": lambda: (X, Y.float(), None, REF, REF_Y.float()),
    "labels and references of two dtypes": lambda: (X, Y.float(), None, REF, REF_Y.int()),
    "itself as reference": lambda: (X, Y, None, X, Y),
    "labels of no references": lambda: (X, Y, None, None, (Y + 1) % 4),
    "double": lambda: (X.double(), Y),
}


@pytest.mark.parametrize("given", {**LABELS, **OTHERS})
@pytest.mark.parametrize("name", COMPARED)
def test_a_constant_margin_is_the_stock_loss_for_whatever_it_accepts(name: str, given: str) -> None:
    host, number = HOSTS[name], HOSTS[name].numbers[-1]
    arguments = {**LABELS, **OTHERS}[given]()
    if not arguments[0].requires_grad:
        value = AdaptiveMarginLoss(host.build(), number)(*arguments)
        assert torch.equal(value, host.build(margin=number)(*arguments))
        return
    assert_identical(
        call(AdaptiveMarginLoss(host.build(), number), *arguments), call(host.build(margin=number), *arguments)
    )


@pytest.mark.parametrize("given", LABELS)
@pytest.mark.parametrize("name", ["vdm", *COMPARED])
def test_the_names_of_classes_change_nothing(name: str, given: str) -> None:
    def build() -> Any:
        return ContrastiveVDMLoss() if name == "vdm" else AdaptiveMarginLoss(HOSTS[name].build())

    assert_identical(call(build(), *LABELS[given]()), call(build(), X, Y))


@pytest.mark.parametrize("given", OTHERS)
@pytest.mark.parametrize("name", ["vdm", *COMPARED])
def test_an_adaptive_margin_accepts_what_the_stock_loss_accepts(name: str, given: str) -> None:
    loss = ContrastiveVDMLoss() if name == "vdm" else AdaptiveMarginLoss(HOSTS[name].build())
    assert torch.isfinite(loss(*OTHERS[given]()))


@pytest.mark.parametrize("kind", ["arrays", "lists", "empty lists"])
def test_triplets_may_be_arrays_or_lists_as_in_the_stock_loss(kind: str) -> None:
    convert = {"arrays": Tensor.numpy, "lists": Tensor.tolist, "empty lists": lambda each: []}[kind]
    triplets = tuple(convert(each) for each in TRIPLETS)
    stock = losses.TripletMarginLoss(margin=0.3)
    assert torch.equal(AdaptiveMarginLoss(losses.TripletMarginLoss(), 0.3)(X, Y, triplets), stock(X, Y, triplets))
    plain = tuple(each[: len(triplets[0])] for each in TRIPLETS)
    for loss in (AdaptiveMarginLoss(losses.TripletMarginLoss()), ContrastiveVDMLoss()):
        assert torch.equal(loss(X, Y, triplets), loss(X, Y, plain))


@pytest.mark.parametrize("name", [name for name, host in HOSTS.items() if host.weights])
def test_a_loss_with_classes_takes_labels_that_its_stock_version_does_not(name: str) -> None:
    """It uses labels as indices, which are int64 there."""
    host = HOSTS[name]
    expected = call(AdaptiveMarginLoss(host.build(), 0.3), X, Y)
    for given in ("float", "double", "half", "int32", "int16", "int8", "uint8"):
        assert_identical(call(AdaptiveMarginLoss(host.build(), 0.3), *LABELS[given]()), expected)


def test_what_only_the_stock_loss_accepts() -> None:
    """The table of docs/margin-loss.md."""
    stock, ours = losses.TripletMarginLoss(margin=0.3), AdaptiveMarginLoss(losses.TripletMarginLoss(), 0.3)
    refused: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((X, Y + 0.5), TypeError, "labels must be integers, got torch.float32; group continuous targets first"),
        ((X, torch.where(Y == 0, torch.nan, Y)), TypeError, "labels must be integers"),
        ((X * torch.nan, Y), ValueError, "embeddings must be finite"),
        ((X, Y, None, None, Y[:5]), ValueError, "ref_labels must be as long as ref_emb"),
    ]
    for arguments, kind, says in refused:
        assert isinstance(stock(*arguments), Tensor)
        with pytest.raises(kind, match=says):
            ours(*arguments)
