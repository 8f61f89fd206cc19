"""A margin, or a weight, that the dtype of a batch cannot hold is named; the embeddings are not to blame."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn

from adaptive_margin import (
    AdaptiveMarginLoss,
    AdaptiveMarginMiner,
    ConstantMargin,
    ContrastiveVDMLoss,
    LinearMargin,
    Margin,
)
from adaptive_margin.functional import vdm_contrastive_loss

from .cases import HOSTS, batch, call

BIG = 1e39  # float64 holds it
WRAPPERS = {
    "contrastive": lambda margin: AdaptiveMarginLoss(losses.ContrastiveLoss(), margin),
    "tiled": lambda margin: AdaptiveMarginLoss(losses.ContrastiveLoss(), margin, pair_memory="tiled"),
    "vdm": lambda margin: ContrastiveVDMLoss(margin),
    "listed": lambda margin: ContrastiveVDMLoss(margin, pair_memory="pairs"),
    "miner": lambda margin: AdaptiveMarginMiner(miners.TripletMarginMiner(), margin),
}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


@every_wrapper
@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 10**400], ids=["inf", "-inf", "nan", "integer"])
def test_no_dtype_holds_it(wrap: Any, number: float) -> None:
    with pytest.raises(ValueError, match=r"^margin must be finite, got "):
        wrap(number)
    module = wrap(0.3)
    with pytest.raises(ValueError, match=r"^margin must be finite, got "):
        module.margin = number
    assert module.margin.value == 0.3


@every_wrapper
@pytest.mark.parametrize("assigned", [False, True], ids=["constructor", "assignment"])
def test_float32_does_not_hold_it(wrap: Any, assigned: bool) -> None:
    module = wrap(0.3 if assigned else BIG)
    if assigned:
        module.margin = BIG
    x, labels = batch()
    with pytest.raises(ValueError, match=r"^margin must be finite in torch\.float32, got 1e\+39"):
        module(x, labels)
    module(x.double(), labels)


@pytest.mark.parametrize("name", HOSTS)
def test_whatever_the_host(name: str) -> None:
    loss = AdaptiveMarginLoss(HOSTS[name].build(), BIG)
    x, labels = batch()
    with pytest.raises(ValueError, match=r"^margin must be finite in torch\.float32, got 1e\+39"):
        call(loss, x, labels if HOSTS[name].labels else None)


def test_float16_holds_less() -> None:
    loss = AdaptiveMarginLoss(losses.TripletMarginLoss(), 7e4)
    x, labels = batch()
    with pytest.raises(ValueError, match=r"^margin must be finite in torch\.float16, got 70000"):
        loss(x.half(), labels)
    assert torch.isfinite(loss(x, labels))


class _Given(Margin):
    granularity = "anchor"

    def __init__(self, value: float) -> None:
        super().__init__()
        self.given = nn.Parameter(torch.tensor(value))

    def forward(self, embeddings: Tensor, *_: Any) -> Tensor:
        return self.given.expand(len(embeddings))


@pytest.mark.parametrize("name", ["contrastive", "vdm", "listed"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_margin_of_ones_own(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"^margin must be finite"):
        WRAPPERS[name](_Given(value))(*batch())


def test_a_linear_margin_that_has_grown_too_far() -> None:
    margin = LinearMargin(0.1, 1e38)
    for _ in range(4):
        margin.step_epoch()
    x, labels = batch()
    for module in (margin, WRAPPERS["contrastive"](margin), WRAPPERS["vdm"](margin)):
        with pytest.raises(ValueError, match=r"finite in torch\.float32, got 4e\+38"):
            module(x, labels)
        module(x.double(), labels)


@pytest.mark.parametrize("margin", [ConstantMargin, LinearMargin])
def test_constructors_take_numbers(margin: type[Margin]) -> None:
    with pytest.raises(ValueError, match=r"must be finite, got inf; the paper"):
        margin(10**400)
    for value in (None, "0.2"):
        with pytest.raises(TypeError, match=r"must be a number, got .*; the paper"):
            margin(value)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("repulsion", {"repulsion": BIG}),
        ("penalty", {"penalty": BIG, "regularizer": "fisher"}),
        ("regularizer_weight", {"regularizer_weight": BIG, "regularizer": "chi2"}),
    ],
)
def test_weights_are_named_too(argument: str, options: dict[str, Any]) -> None:
    x, labels = batch()
    named = rf"^{argument} must be finite in torch\.float32, got 1e\+39"
    with pytest.raises(ValueError, match=named):
        ContrastiveVDMLoss(0.3, **options)(x, labels)
    with pytest.raises(ValueError, match=named):
        vdm_contrastive_loss(x[labels == 0], x[labels != 0], 0.3, **options)
    assert torch.isfinite(ContrastiveVDMLoss(0.3, **options)(x.double(), labels))
