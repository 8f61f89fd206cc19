"""What a stock loss accepts, a wrapped one accepts, with the same result; what it refuses is in docs/margin-loss.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from adaptive_margin import (
    AdaptiveMargin,
    AdaptiveMarginLoss,
    ContrastiveVDMLoss,
    KMeansGrouper,
    LabelDistanceLoss,
    OtsuGrouper,
    TiledDistanceWeightedMiner,
)

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


# --- what no host can take is named ------------------------------------------------------------------------------


TAKERS = {
    "loss": lambda: AdaptiveMarginLoss(losses.TripletMarginLoss()),
    "tiled": lambda: AdaptiveMarginLoss(losses.ContrastiveLoss()),
    "constant": lambda: AdaptiveMarginLoss(losses.ContrastiveLoss(), 0.3),
    "proxies": lambda: AdaptiveMarginLoss(losses.ArcFaceLoss(8, 16)),
    "vdm": ContrastiveVDMLoss,
    "vdm of one class": lambda: ContrastiveVDMLoss(compact_label=1),
    "label distance": LabelDistanceLoss,
    "margin": AdaptiveMargin,
}
ONE = torch.tensor([1])


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (lambda x: x.to("meta"), ValueError, "must be on a device with values, got meta; make the batch on the CPU"),
        (lambda x: x.to_sparse(), TypeError, r"must be dense, got torch\.sparse_coo; convert it with .*to_dense\(\)"),
        (lambda x: x.to(torch.float8_e4m3fn), TypeError, "must be float16, bfloat16, float32 or float64, got .*float8"),
    ],
)
def test_embeddings_without_values_to_compute_with(taker: str, wrong: Any, error: type[Exception], said: str) -> None:
    rows, labels = batch()
    with pytest.raises(error, match=f"embeddings {said}"):
        TAKERS[taker]()(wrong(rows.detach()), labels)
    if taker != "proxies":
        with pytest.raises(error, match=f"ref_emb {said}"):
            TAKERS[taker]()(rows, labels, None, wrong(rows.detach()), labels)
    if wrong(torch.ones(1)).device.type == "meta":
        with pytest.raises(error, match=f"labels {said}"):
            TAKERS[taker]()(rows, wrong(labels))


@pytest.mark.parametrize("taker", sorted(TAKERS.keys() - {"margin"}))  # it looks at anchors and negatives alone
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("index", [torch.tensor([1, 12]), torch.tensor([-1, 0]), ONE.bool(), ONE.byte(), ONE.float()])
def test_indices_that_are_none_are_named(taker: str, place: int, index: torch.Tensor) -> None:
    """A bool or a byte would be a mask, a negative one the row from the end; the host looks at no tuple of one pair."""
    given = [torch.zeros(len(index), dtype=torch.int64)] * 3
    given[place] = index
    name = ("anchors", "positives", "negatives")[place]
    with pytest.raises((ValueError, TypeError), match=rf"indices_tuple's {name} must be (in \[0, 12\)|a one)"):
        TAKERS[taker]()(*batch(), tuple(given))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("taker", ["loss", "tiled", "constant", "vdm", "label distance"])
def test_references_of_another_dtype(taker: str, dtype: torch.dtype) -> None:
    (rows, labels), (others, other_labels) = batch(), batch(9, seed=1)
    others = others.detach().to(dtype)
    found = TAKERS[taker]()(rows, labels, None, others, other_labels)
    same = TAKERS[taker]()(rows.double(), labels, None, others.double(), other_labels)
    assert found.item() == pytest.approx(same.item(), rel=1e-4)
    (gradient,) = torch.autograd.grad(found, rows)
    assert gradient.dtype == rows.dtype


@pytest.mark.parametrize("label", ["a", 1.5, [1], float("nan")])
@pytest.mark.parametrize("name", ["compact_label", "ignore_label"])
def test_a_label_that_no_row_can_have(name: str, label: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{name} must be a whole number or None"):
        ContrastiveVDMLoss(**{name: label})


@pytest.mark.parametrize("name", ["repulsion", "regularizer_weight", "penalty"])
def test_a_weight_that_is_no_number(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a number of at least 0, got '1'"):
        ContrastiveVDMLoss(**{name: "1"})


def test_other_options_that_are_no_numbers() -> None:
    with pytest.raises(TypeError, match="max_radius must be a positive number or None, got '1'"):
        OtsuGrouper(max_radius="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cutoff must be a number, got '1'"):
        TiledDistanceWeightedMiner(cutoff="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="nonzero_loss_cutoff must be a number, or None, got '1'"):
        TiledDistanceWeightedMiner(nonzero_loss_cutoff="1")  # type: ignore[arg-type]


def test_labels_whose_squares_overflow_are_named() -> None:
    av = batch()[0].detach().double()
    for grouper in (OtsuGrouper(), KMeansGrouper()):
        assert torch.equal(grouper(av * 1e100), grouper(av))
        with pytest.raises(ValueError, match=r"av must be below .* in magnitude, or sums of squares overflow"):
            grouper(av * 1e300)  # all lengths were infinite, and all groups one
