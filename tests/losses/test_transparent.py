"""What a wrapped loss or miner has is read, set, called and loaded through the wrapper."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers

from adaptive_margin import (
    AdaptiveMargin,
    AdaptiveMarginLoss,
    AdaptiveMarginMiner,
    ConstantMargin,
    ContrastiveVDMLoss,
    LinearMargin,
)

from .cases import HOSTS, SIZES, assert_identical, batch, call

SETTINGS: dict[str, dict[str, Any]] = {  # one a host, of those that change its value
    "ContrastiveLoss": {"pos_margin": 0.4},
    "TripletMarginLoss": {"swap": True, "smooth_loss": True},
    "MarginLoss": {"beta": torch.tensor([0.9]), "nu": 0.5},
    "LiftedStructureLoss": {"pos_margin": 0.3},
    "GeneralizedLiftedStructureLoss": {"pos_margin": 0.3},
    "SignalToNoiseRatioContrastiveLoss": {"pos_margin": 0.3},
    "CosFaceLoss": {"scale": 1},
    "ArcFaceLoss": {"scale": 1, "W": torch.nn.Parameter(torch.ones(8, 4))},
    "SubCenterArcFaceLoss": {"scale": 2.0},
    "SoftTripleLoss": {"la": 5, "gamma": 3.0},
    "ProxyAnchorLoss": {"alpha": 8, "proxies": torch.nn.Parameter(torch.eye(4, 8))},
    "MultiSimilarityLoss": {"alpha": 3, "beta": 10},
    "CircleLoss": {"gamma": 20},
    "TupletMarginLoss": {"scale": 4},
    "RankedListLoss": {"imbalance": 0.1, "Tn": 2},
    "ThresholdConsistentMarginLoss": {"lambda_plus": 3.0, "margin_plus": 0.95},
    "ManifoldLoss": {"alpha": 0.4},
}


@pytest.mark.parametrize("name", HOSTS)
def test_what_is_set_on_the_wrapper_is_set_on_the_host(name: str) -> None:
    host, number = HOSTS[name], HOSTS[name].numbers[-1]
    ours, stock = AdaptiveMarginLoss(host.build(), number), host.build(margin=number)
    args = batch() if host.labels else batch()[:1]
    before = call(stock, *args).value
    names = set(dict(ours.named_parameters()))
    for setting, value in SETTINGS[name].items():
        for loss in (ours, stock):
            setattr(loss, setting, value)
        assert getattr(ours, setting) is getattr(ours.loss, setting) is value
    assert set(dict(ours.named_parameters())) == names
    assert call(stock, *args).value != before
    assert_identical(call(ours, *args), call(stock, *args))


@pytest.mark.parametrize("name", HOSTS)
def test_what_each_call_replaces_cannot_be_set_on_the_wrapper(name: str) -> None:
    loss = AdaptiveMarginLoss(HOSTS[name].build(), 0.3)
    for replaced in set(loss.exchange.values(loss.loss, 0.3)) - {"margin"}:
        before = getattr(loss.loss, replaced)
        if name == "RankedListLoss":  # a boundary of its own takes the place of the derived one
            loss.alpha = before + 0.3
            assert loss.loss.alpha == before + 0.3
            continue
        with pytest.raises(AttributeError, match=rf"{replaced} must be left to the margin, .* got 0\.9; set \.margin"):
            setattr(loss, replaced, 0.9)
        assert getattr(loss.loss, replaced) == before


def test_the_margin_of_a_wrapped_miner_cannot_be_set_on_the_wrapper() -> None:
    miner = AdaptiveMarginMiner(miners.PairMarginMiner(neg_margin=0.8), 0.3)
    with pytest.raises(AttributeError, match=r"neg_margin must be left .* or \.miner\.neg_margin for what units="):
        miner.neg_margin = 0.5
    assert miner.miner.neg_margin == miner.neg_margin == 0.8


def test_the_weight_of_a_regulariser_is_the_wrapped_losses() -> None:
    ours, stock = (
        build(losses.TripletMarginLoss(margin=0.2, embedding_regularizer=regularizers.LpRegularizer()))
        for build in (lambda loss: AdaptiveMarginLoss(loss, 0.2), lambda loss: loss)
    )
    before = stock(*batch())
    assert ours.embedding_regularizer is ours.loss.embedding_regularizer
    for loss in (ours, stock):
        loss.embedding_reg_weight = 10
    assert stock(*batch()) > 2 * before
    assert_identical(call(ours, *batch()), call(stock, *batch()))
    for loss in (ours, stock):
        loss.embedding_regularizer = None
    assert_identical(call(ours, *batch()), call(stock, *batch()))


def test_what_the_host_has_is_read_and_called() -> None:
    loss = AdaptiveMarginLoss(losses.SubCenterArcFaceLoss(**SIZES))
    embeddings, labels = batch()
    assert loss.W is loss.loss.W
    assert (loss.num_classes, loss.sub_centers, loss.scale) == (4, 3, 64)
    assert torch.equal(loss.get_logits(embeddings), loss.loss.get_logits(embeddings))
    for ours, theirs in zip(
        loss.get_outliers(embeddings, labels), loss.loss.get_outliers(embeddings, labels), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert AdaptiveMarginLoss(losses.ProxyAnchorLoss(**SIZES)).proxies.shape == (4, 8)
    assert AdaptiveMarginLoss(losses.MarginLoss(beta=1.1)).beta.item() == pytest.approx(1.1)
    with pytest.raises(AttributeError, match="no attribute 'get_logits'"):
        AdaptiveMarginLoss(losses.TripletMarginLoss()).get_logits  # noqa: B018
    assert not hasattr(loss, "no_such_thing")


@pytest.mark.parametrize("name", HOSTS)
def test_what_the_hosts_base_class_has_answers_for_the_wrapped_loss(name: str) -> None:
    ours = AdaptiveMarginLoss(HOSTS[name].build(embedding_regularizer=regularizers.LpRegularizer()))
    stock = ours.loss
    assert type(ours.get_default_distance()) is type(stock.get_default_distance())
    assert type(ours.get_default_reducer()) is type(stock.get_default_reducer())
    names = stock.all_regularization_loss_names()
    assert ours.all_regularization_loss_names() == names
    assert "embedding_reg_loss" in names or name == "SubCenterArcFaceLoss"  # which the host's 2.8 builds without it
    assert ours.sub_loss_names() == stock.sub_loss_names()
    assert ours.zero_losses() == stock.zero_losses()


def test_no_reducer_is_the_wrapped_losses_own_default() -> None:
    stock, ours = losses.TripletMarginLoss(margin=0.2), AdaptiveMarginLoss(losses.TripletMarginLoss(), 0.2)
    args = batch()
    ours.set_reducer(reducers.MeanReducer())
    assert ours(*args) < stock(*args)
    assert isinstance(ours.loss.reducer, reducers.MeanReducer)
    ours.set_reducer(None)
    assert isinstance(ours.reducer, reducers.AvgNonZeroReducer)
    assert torch.equal(ours(*args), stock(*args))


def test_the_hosts_swap_is_the_hosts() -> None:
    loss = AdaptiveMarginLoss(losses.TripletMarginLoss(swap=True))
    assert loss.swap is True
    assert (loss.exchange.host, loss.exchange.attribute) == ("TripletMarginLoss", "margin")
    loss.swap = False
    assert loss.loss.swap is False


def test_statistics_of_the_last_call_are_read_on_the_wrapper() -> None:
    margin = AdaptiveMargin(collect_stats=True)
    loss = AdaptiveMarginLoss(losses.MultiSimilarityLoss(alpha=3), margin, collect_stats=True)
    loss(*batch())
    assert (loss.alpha, loss.mi, loss.delta, loss.k) == (margin.alpha, margin.mi, margin.delta, margin.k)
    assert loss.alpha == pytest.approx(loss.mi + loss.delta)
    assert loss.current_margin == pytest.approx(1 - loss.alpha / 2)
    with pytest.raises(AttributeError, match=r"alpha must be read only.*; set \.loss\.alpha to change that of Multi"):
        loss.alpha = 4
    loss.loss.alpha = 4
    assert loss.loss.alpha == 4
    constant = AdaptiveMarginLoss(losses.MultiSimilarityLoss(alpha=3), 0.4)
    assert constant.alpha == 3  # a constant has no statistics
    miner = AdaptiveMarginMiner(miners.TripletMarginMiner(), margin)
    miner(*batch())
    assert miner.k == margin.k


BUILDERS: dict[str, Any] = {
    "loss": lambda margin: AdaptiveMarginLoss(losses.TripletMarginLoss(), margin),
    "miner": lambda margin: AdaptiveMarginMiner(miners.TripletMarginMiner(), margin),
    "vdm": lambda margin: ContrastiveVDMLoss(margin),
}


@pytest.mark.parametrize("what", BUILDERS)
def test_a_margin_set_later_means_what_it_means_in_the_constructor(what: str) -> None:
    build = BUILDERS[what]
    args = batch()
    for margin in (0.3, None, LinearMargin(0.1), torch.tensor(0.7)):
        later = build(0.9)
        later.margin = margin
        assert type(later.margin) is type(build(margin).margin)
        assert set(later._modules) == set(build(margin)._modules)
        given, expected = later(*args), build(margin)(*args)
        assert all(map(torch.equal, given, expected)) if what == "miner" else torch.equal(given, expected)
    with pytest.raises(TypeError, match="margin must be a Margin or a number, got str"):
        later.margin = "0.3"


@pytest.mark.parametrize("granularity", ["anchor", "pair"])
def test_a_granularity_set_later_is_refused_as_in_the_constructor(granularity: Any) -> None:
    built = [AdaptiveMarginLoss(losses.CosFaceLoss(**SIZES)), AdaptiveMarginMiner(miners.TripletMarginMiner())]
    for wrapper in built:
        before = wrapper.margin
        with pytest.raises(ValueError, match=r"margin\.granularity must be 'batch', got"):
            wrapper.margin = AdaptiveMargin(granularity=granularity)
        assert wrapper.margin is before
        wrapper.margin.granularity = granularity
        with pytest.raises(ValueError, match=r"margin\.granularity must be 'batch', got"):
            wrapper(*batch())


def test_units_that_a_later_margin_cannot_have_are_refused() -> None:
    raw = distances.DotProductSimilarity(normalize_embeddings=False)
    loss = AdaptiveMarginLoss(losses.MultiSimilarityLoss(distance=raw), 0.4, "replace")
    with pytest.raises(ValueError, match="units must be 'offset' for similarities of embeddings that are not norm"):
        loss.margin = AdaptiveMargin()
    assert isinstance(loss.margin, ConstantMargin)


def test_another_loss_set_later_is_looked_up() -> None:
    loss = AdaptiveMarginLoss(losses.TripletMarginLoss(), 0.4)
    loss.loss = losses.ContrastiveLoss()
    assert loss.exchange.attribute == "neg_margin"
    assert torch.equal(loss(*batch()), losses.ContrastiveLoss(neg_margin=0.4)(*batch()))
    with pytest.raises(TypeError, match="cannot exchange the margin of NTXentLoss"):
        loss.loss = losses.NTXentLoss()


@pytest.mark.parametrize("name", [name for name, host in HOSTS.items() if host.build().state_dict()])
def test_a_stock_checkpoint_loads_into_the_wrapper(name: str) -> None:
    stock = HOSTS[name].build()
    with torch.no_grad():
        for weight in stock.parameters():
            weight.uniform_()
    for wrapped in (False, True):  # inside other modules, too
        fresh: Any = AdaptiveMarginLoss(HOSTS[name].build(), 0.3)
        whole, given = (torch.nn.ModuleList([fresh]), torch.nn.ModuleList([stock])) if wrapped else (fresh, stock)
        whole.load_state_dict(given.state_dict())
        for ours, theirs in zip(fresh.loss.parameters(), stock.parameters(), strict=True):
            assert torch.equal(ours, theirs)
    again = AdaptiveMarginLoss(HOSTS[name].build(), 0.3)
    again.load_state_dict(fresh.state_dict())  # its own, as before
    assert all(map(torch.equal, again.parameters(), stock.parameters()))
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"nonsense\""):
        again.load_state_dict({**stock.state_dict(), "nonsense": torch.zeros(1)})


def test_copies_and_pickles_are_transparent_to_their_own_host() -> None:
    loss = AdaptiveMarginLoss(losses.ArcFaceLoss(**SIZES))
    for other in (copy.copy(loss), copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other.W is other.loss.W
        other.scale = 2
        assert other.loss.scale == 2
    assert copy.deepcopy(loss).loss is not loss.loss


def test_hooks_of_the_wrapped_loss_are_called() -> None:
    loss = AdaptiveMarginLoss(losses.TripletMarginLoss(), 0.3)
    seen = []
    handle = loss.loss.register_forward_hook(lambda module, args, value: seen.append((module.margin, value.item())))
    value = loss(*batch())
    assert seen == [(0.3, value.item())]
    handle.remove()
    loss(*batch())
    assert len(seen) == 1
    loss.loss.register_forward_hook(lambda module, args, value: setattr(module, "noted", value.item()))
    assert loss(*batch()).item() == loss.loss.noted == loss.noted


def test_a_method_that_the_caller_replaces_is_the_hosts() -> None:
    loss = AdaptiveMarginLoss(losses.TripletMarginLoss(), 0.3)
    loss.get_default_reducer = reducers.SumReducer
    loss.set_reducer(None)
    assert isinstance(loss.loss.reducer, reducers.SumReducer)
