"""Our losses where stock losses go: memories, wrappers, miners, reducers, regularisers, trainers and their logs."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers, trainers
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import logging_presets
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor
from torch.nn.functional import normalize

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, AdaptiveMarginMiner, LinearMargin

from .cases import CLASSES, FEATURES, GUESTS, HOSTS, SIZES, assert_identical, assert_near, batch, call

every_guest = pytest.mark.parametrize("guest", GUESTS)
F64 = torch.float64


# CrossBatchMemory


def _memory_indices(labels: Tensor, mem_labels: Tensor, here: int) -> tuple[Tensor, ...]:
    """All pairs of the batch with the memory, without each row and the copy of it that has just been stored."""
    a1, p, a2, n = lmu.get_all_pairs_indices(labels, mem_labels)
    other = p != a1 + here
    return a1[other], p[other], a2, n


@every_guest
def test_a_memory_of_past_batches_is_seen(guest: str) -> None:
    host, direct = losses.CrossBatchMemory(GUESTS[guest](), FEATURES, memory_size=24), GUESTS[guest]()
    seen: list[Tensor] = []
    for step in range(3):  # the third batch takes the place of the first
        embeddings, labels = batch(12, seed=step)
        seen = [*seen, embeddings.detach()][-2:]
        memory = torch.cat(seen if step < 2 else seen[::-1])  # a ring
        mem_labels = labels.repeat(len(seen))
        indices = _memory_indices(labels, mem_labels, 12 if step == 1 else 0)
        stored = call(host, embeddings, labels)
        assert_identical(stored, call(direct, embeddings, labels, indices, memory, mem_labels))
        assert stored.grads[0].any()


def test_the_margin_of_a_memory_is_of_its_neighbours_and_not_of_copies() -> None:
    embeddings, labels = batch(24, dtype=F64)
    loss = AdaptiveMarginLoss(losses.ContrastiveLoss(), AdaptiveMargin(collect_stats=True), collect_stats=True)
    memory = losses.CrossBatchMemory(loss, FEATURES, memory_size=64)
    memory(embeddings, labels)
    alone = AdaptiveMargin(collect_stats=True)
    seen = normalize(embeddings.detach())
    alone(seen, labels, _memory_indices(labels, labels, 0), seen.clone(), labels)
    margin: Any = loss.margin
    assert (margin.mi, margin.k) == (pytest.approx(alone.mi), pytest.approx(alone.k))
    first = loss.current_margin
    more, more_labels = batch(24, seed=1, dtype=F64)
    memory(more, more_labels)
    assert margin.k != alone.k  # 48 samples to look among
    assert loss.current_margin != first


def test_a_memory_with_an_adaptive_miner() -> None:
    miner = AdaptiveMarginMiner(miners.TripletMarginMiner())
    host = losses.CrossBatchMemory(GUESTS["triplet"](), FEATURES, memory_size=48, miner=miner)
    first, labels = batch(12, seed=1)
    host(first, labels)
    second, _ = batch(12, seed=2)
    memory, mem_labels = torch.cat([first, second]).detach(), labels.repeat(2)
    mined = AdaptiveMarginMiner(miners.TripletMarginMiner())(second, labels, memory, mem_labels)
    indices = lmu.remove_self_comparisons(mined, torch.arange(12, 24), 48)
    assert len(indices[0]) > 0
    direct = call(GUESTS["triplet"](), second, labels, indices, memory, mem_labels)
    assert_identical(call(host, second, labels), direct)


def test_a_memory_filled_by_a_mask() -> None:
    host, direct = losses.CrossBatchMemory(GUESTS["contrastive"](), FEATURES), GUESTS["contrastive"]()
    embeddings, labels = batch(24)
    mask = torch.arange(24) >= 12
    stored = call(host, embeddings, labels, enqueue_mask=mask)
    now, past = embeddings[:12], embeddings[12:].detach()
    expected = direct(now, labels[:12], lmu.get_all_pairs_indices(labels[:12], labels[12:]), past, labels[12:])
    torch.testing.assert_close(stored.value, expected.detach())


@pytest.mark.parametrize("name", [name for name, host in HOSTS.items() if host.reference])
def test_a_memory_around_a_constant_margin_is_the_stock_memory(name: str) -> None:
    host, number = HOSTS[name], HOSTS[name].numbers[-1]
    ours = losses.CrossBatchMemory(AdaptiveMarginLoss(host.build(), number), FEATURES)
    stock = losses.CrossBatchMemory(host.build(margin=number), FEATURES)
    for step in range(2):
        embeddings, labels = batch(12, seed=step)
        assert_identical(call(ours, embeddings, labels), call(stock, embeddings, labels))


@pytest.mark.parametrize("name", ["ArcFaceLoss", "RankedListLoss", "ThresholdConsistentMarginLoss", "ManifoldLoss"])
def test_what_takes_no_reference_says_so(name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=r"not supported|ref_emb must be None|labels must be"):
        AdaptiveMarginLoss(HOSTS[name].build())(*batch(), None, *batch(seed=1))


@pytest.mark.parametrize("margin", [0.3, None], ids=["constant", "adaptive"])
def test_swapped_triplets_take_no_references(margin: Any) -> None:
    loss = AdaptiveMarginLoss(losses.TripletMarginLoss(swap=True), margin)
    embeddings, labels = batch()
    reference, ref_labels = batch(8, seed=1)
    with pytest.raises(ValueError, match=r"ref_emb must be None, got a tensor; .*swap=True.* issue 748"):
        loss(embeddings, labels, None, reference, ref_labels)
    with pytest.raises(ValueError, match="issue 748"):
        losses.CrossBatchMemory(loss, FEATURES)(embeddings, labels)
    assert torch.equal(loss(embeddings, labels, None, embeddings, labels), loss(embeddings, labels))
    if margin is not None:  # the host's own value where it is right
        assert torch.equal(loss(embeddings, labels), losses.TripletMarginLoss(0.3, swap=True)(embeddings, labels))
    loss.swap = False
    assert torch.isfinite(loss(embeddings, labels, None, reference, ref_labels))


@pytest.mark.parametrize("name", HOSTS)
def test_a_wrapped_loss_is_admitted_where_it_is_admitted_by_itself(name: str) -> None:
    for build in (lambda loss: losses.CrossBatchMemory(loss, FEATURES), losses.SelfSupervisedLoss):
        refusals = []
        for loss in (HOSTS[name].build(), AdaptiveMarginLoss(HOSTS[name].build())):
            try:
                assert build(loss).loss is loss
            except Exception as error:  # the host's own kind
                refusals.append(str(error))
        assert len(refusals) in (0, 2)
        assert len(set(refusals)) <= 1
        if refusals:
            assert refusals[0].endswith(f"not supported for {name}")


def test_a_subclass_of_a_host_is_as_unknown_as_without_the_wrapper() -> None:
    class Mine(losses.TripletMarginLoss):
        pass

    for loss in (Mine(), AdaptiveMarginLoss(Mine())):
        with pytest.raises(Exception, match="CrossBatchMemory not supported for Mine"):
            losses.CrossBatchMemory(loss, FEATURES)


def test_the_hosts_lists_are_its_own() -> None:
    known = {name for name, cls in vars(losses).items() if isinstance(cls, type)}
    for wrapper in (losses.CrossBatchMemory, losses.SelfSupervisedLoss):
        assert set(wrapper.supported_losses()) <= known - {"AdaptiveMarginLoss", "ContrastiveVDMLoss"}
        assert wrapper.__dict__["supported_losses"].__func__.__module__ == wrapper.__module__


# MultipleLosses, SelfSupervisedLoss


def test_several_losses_add_up() -> None:
    embeddings, labels = batch()
    direct = {name: build()(embeddings, labels).item() for name, build in GUESTS.items()}
    weights = {name: 1 + i / 4 for i, name in enumerate(GUESTS)}
    total = sum(weights[name] * value for name, value in direct.items())
    by_name = losses.MultipleLosses({name: build() for name, build in GUESTS.items()}, weights=weights)
    by_place = losses.MultipleLosses([build() for build in GUESTS.values()], weights=list(weights.values()))
    for host in (by_name, by_place):
        value = host(embeddings, labels)
        assert value.item() == pytest.approx(total, rel=1e-6)
        (grad,) = torch.autograd.grad(value, embeddings)
        assert grad.any()


def test_several_losses_with_miners_of_their_own() -> None:
    embeddings, labels = batch()
    pair_miner, triplet_miner = miners.PairMarginMiner(0.3, 1.2), AdaptiveMarginMiner(miners.TripletMarginMiner())
    total = 0.0
    for name, build in GUESTS.items():
        mined = {"contrastive": pair_miner, "triplet": triplet_miner}.get(name)
        total += build()(embeddings, labels, None if mined is None else mined(embeddings, labels)).item()
    by_name = losses.MultipleLosses(
        {name: build() for name, build in GUESTS.items()}, {"contrastive": pair_miner, "triplet": triplet_miner}
    )
    assert by_name(embeddings, labels).item() == pytest.approx(total, rel=1e-6)
    mined_first = losses.MultipleLosses([GUESTS["contrastive"](), GUESTS["triplet"]()], [pair_miner, triplet_miner])
    expected = GUESTS["contrastive"]()(embeddings, labels, pair_miner(embeddings, labels)) + GUESTS["triplet"]()(
        embeddings, labels, triplet_miner(embeddings, labels)
    )
    assert mined_first(embeddings, labels).item() == pytest.approx(expected.item(), rel=1e-6)


@every_guest
@pytest.mark.parametrize("symmetric", [True, False])
def test_two_views_without_labels(guest: str, symmetric: bool) -> None:
    if guest == "margin":
        with pytest.raises(Exception, match="SelfSupervisedLoss not supported for MarginLoss"):
            losses.SelfSupervisedLoss(GUESTS[guest](), symmetric=symmetric)
        return
    embeddings, _ = batch(10)
    views = (embeddings.detach() + 0.3 * torch.randn(10, FEATURES)).requires_grad_()
    rows = torch.arange(10)
    value = losses.SelfSupervisedLoss(GUESTS[guest](), symmetric=symmetric)(embeddings, views)
    if symmetric:
        expected = GUESTS[guest]()(torch.cat([embeddings, views]), rows.repeat(2))
    else:
        expected = GUESTS[guest]()(embeddings, rows, None, views, rows.clone())  # one object would mean one set
    assert torch.equal(value, expected)
    grads = torch.autograd.grad(value, (embeddings, views))
    assert all(grad.any() and torch.isfinite(grad).all() for grad in grads)


# Miners


def _miners() -> dict[str, Any]:
    return {
        "angular": miners.AngularMiner(angle=10),
        "hard": miners.BatchHardMiner(),
        "easy hard": miners.BatchEasyHardMiner(),
        "all easy": miners.BatchEasyHardMiner(pos_strategy="all", neg_strategy="easy"),
        "distance weighted": miners.DistanceWeightedMiner(),
        "packaged": miners.EmbeddingsAlreadyPackagedAsTriplets(),
        "hdc": miners.HDCMiner(),
        "multi similarity": miners.MultiSimilarityMiner(),
        "pair margin": miners.PairMarginMiner(0.3, 1.2),
        "triplet margin": miners.TripletMarginMiner(0.3),
        "uniform": miners.UniformHistogramMiner(num_bins=10, pos_per_bin=3, neg_per_bin=3),
        "adaptive": AdaptiveMarginMiner(miners.TripletMarginMiner()),
    }


MINERS = tuple(_miners())


def test_these_are_all_the_hosts_miners() -> None:
    stock = {
        cls
        for cls in vars(miners).values()
        if isinstance(cls, type) and issubclass(cls, miners.BaseMiner) and cls is not miners.BaseMiner
    }
    assert {type(miner) for miner in _miners().values()} >= stock


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    """Rows that every miner finds something in; every third, second and first make a triplet."""
    embeddings, _ = batch(12, dtype=F64, spread=0.7)
    return embeddings, torch.tensor([0, 0, 1] * 2 + [2, 2, 3] * 2)


@pytest.mark.parametrize("miner", MINERS)
def test_every_miner_goes_with_every_guest(miner: str, rows: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = rows
    mined = _miners()[miner](embeddings, labels)
    assert len(mined[0]) > 0
    for build in GUESTS.values():
        result = call(build(), embeddings, labels, mined)
        assert result.value > 0
        assert result.grads[0].any()
        # the loss of a set of pairs or triplets: their order does not matter
        parts = (mined,) if len(mined) == 3 else (mined[:2], mined[2:])
        shuffled = [index[order] for part in parts for order in [torch.randperm(len(part[0]))] for index in part]
        assert_near(call(build(), embeddings, labels, tuple(shuffled)), result)


@pytest.mark.parametrize("miner", MINERS)
def test_every_miner_goes_with_every_host(miner: str, rows: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = rows
    mined = _miners()[miner](embeddings, labels)
    alpha = AdaptiveMargin()(normalize(embeddings), labels, mined).item()
    for host in HOSTS.values():
        number = host.numbers[-1]
        if not host.tuples:
            with pytest.raises((ValueError, TypeError), match=r"indices_tuple (is not supported|must be)"):
                AdaptiveMarginLoss(host.build(F64), number)(embeddings, labels if host.labels else None, mined)
            continue
        stock = call(host.build(F64, margin=number), embeddings, labels, mined)
        assert_identical(call(AdaptiveMarginLoss(host.build(F64), number), embeddings, labels, mined), stock)
        units, translated = next(iter({**host.translations, **host.of_chosen}.items()))
        stock = call(host.build(F64, margin=translated(alpha)), embeddings, labels, mined)
        guest = AdaptiveMarginLoss(host.build(F64), AdaptiveMargin(), units=units)
        assert_near(call(guest, embeddings, labels, mined), stock)


# Reducers


REDUCERS: dict[str, Any] = {
    "mean": lambda: reducers.MeanReducer(),
    "sum": lambda: reducers.SumReducer(),
    "above zero": lambda: reducers.AvgNonZeroReducer(),
    "threshold": lambda: reducers.ThresholdReducer(low=0.1, high=0.9),
    "classes": lambda: reducers.ClassWeightedReducer(torch.tensor([1.0, 2.0, 0.5, 0.0])),
    "anchors": lambda: reducers.PerAnchorReducer(),
    "sums of anchors": lambda: reducers.PerAnchorReducer(reducers.SumReducer()),
    "divisor": lambda: reducers.DivisorReducer(),
    "nothing": lambda: reducers.DoNothingReducer(),
    "multiple": lambda: reducers.MultipleReducers(
        {name: reducers.SumReducer() for name in ("loss", "pos_loss", "margin_loss")}, reducers.MeanReducer()
    ),
}


def test_these_are_all_the_hosts_reducers() -> None:
    stock = {
        cls
        for cls in vars(reducers).values()
        if isinstance(cls, type) and issubclass(cls, reducers.BaseReducer) and cls is not reducers.BaseReducer
    }
    assert {type(build()) for build in REDUCERS.values()} == stock


def _attempt(loss: Any, embeddings: Tensor, labels: Any) -> Any:
    torch.manual_seed(3)
    try:
        return loss(embeddings, labels)
    except (NotImplementedError, KeyError, AssertionError, RuntimeError) as error:
        return type(error)  # the host has no such reduction for this loss


@pytest.mark.parametrize("reducer", REDUCERS)
def test_every_reducer_does_what_it_does_with_the_stock_loss(reducer: str) -> None:
    embeddings, labels = batch()
    reduced = 0
    for host in HOSTS.values():
        number, given = host.numbers[-1], labels if host.labels else None
        stock = _attempt(host.build(margin=number, reducer=REDUCERS[reducer]()), embeddings, given)
        ours = _attempt(AdaptiveMarginLoss(host.build(reducer=REDUCERS[reducer]()), number), embeddings, given)
        if isinstance(stock, dict):
            assert ours.keys() == stock.keys()
            for name, part in stock.items():
                assert ours[name]["reduction_type"] == part["reduction_type"]
                torch.testing.assert_close(ours[name]["losses"], part["losses"], rtol=0, atol=0)
        elif isinstance(stock, Tensor):
            assert torch.equal(ours, stock)
        else:
            assert ours is stock
            continue
        reduced += 1
    assert reduced >= 3


@every_guest
@pytest.mark.parametrize("reducer", REDUCERS)
def test_every_reducer_reduces_a_guests_own_losses(guest: str, reducer: str) -> None:
    embeddings, labels = batch()
    loss = GUESTS[guest]()
    unreduced = loss.compute_loss(embeddings, labels, None, embeddings, labels)
    several = len(loss.sub_loss_names()) > 1 and reducer not in ("nothing", "multiple")
    built = REDUCERS[reducer]()
    if several:  # as the host's constructors do
        built = reducers.MultipleReducers({name: REDUCERS[reducer]() for name in loss.sub_loss_names()})
    assert set(unreduced) == set(loss.sub_loss_names())
    try:
        expected = built(unreduced, embeddings, labels)
    except (NotImplementedError, KeyError) as error:
        loss.reducer = built
        with pytest.raises(type(error)):
            loss(embeddings, labels)
        return
    loss.reducer = built
    value = loss(embeddings, labels)
    if reducer == "nothing":
        assert value.keys() == expected.keys()
        for name, part in expected.items():
            torch.testing.assert_close(value[name]["losses"], part["losses"], rtol=0, atol=0)
    elif getattr(loss, "pair_path", "pairs") == "tiled":
        torch.testing.assert_close(value, expected)
    else:
        assert torch.equal(value, expected)


def test_an_empty_batch_through_a_reducer_that_does_nothing_is_a_dictionary() -> None:
    loss = AdaptiveMarginLoss(losses.ContrastiveLoss(reducer=reducers.DoNothingReducer()))
    value = loss(torch.zeros(0, FEATURES), torch.zeros(0, dtype=torch.int64))
    assert set(value) == {"pos_loss", "neg_loss"}


# Regularisers


REGULARISERS: dict[str, Any] = {
    "lp": lambda: regularizers.LpRegularizer(p=1, power=2),
    "zero mean": lambda: regularizers.ZeroMeanRegularizer(),
    "centre invariant": lambda: regularizers.CenterInvariantRegularizer(),
    "regular face": lambda: regularizers.RegularFaceRegularizer(),
    "sparse centres": lambda: regularizers.SparseCentersRegularizer(CLASSES, 3),
}


def test_these_are_all_the_hosts_regularisers() -> None:
    stock = {
        cls
        for cls in vars(regularizers).values()
        if isinstance(cls, type) and issubclass(cls, regularizers.BaseRegularizer)
    } - {regularizers.BaseRegularizer}
    assert {type(build()) for build in REGULARISERS.values()} == stock


@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_every_regulariser_of_embeddings_stays(regulariser: str) -> None:
    embeddings, labels = batch()
    kwargs = {"embedding_regularizer": REGULARISERS[regulariser](), "embedding_reg_weight": 0.5}
    extra = 0.5 * REGULARISERS[regulariser]()(embeddings)
    assert extra.item() != 0
    for host in HOSTS.values():
        args, number = (labels,) if host.labels else (), host.numbers[-1]
        stock = host.build(margin=number, **kwargs)
        ours = AdaptiveMarginLoss(host.build(**kwargs), number)
        value = call(stock, embeddings, *args)
        assert_identical(call(ours, embeddings, *args), value)
        assert ours.sub_loss_names() == stock.sub_loss_names()
        if host.name != "SubCenterArcFaceLoss":  # which drops the regulariser before version 2.9 of the host
            assert "embedding_reg_loss" in ours.sub_loss_names()
            without = call(host.build(margin=number), embeddings, *args).value
            torch.testing.assert_close(value.value, without + extra)


@pytest.mark.parametrize(
    "name", ["CosFaceLoss", "ArcFaceLoss", "SubCenterArcFaceLoss", "SoftTripleLoss", "ProxyAnchorLoss"]
)
@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_every_regulariser_of_weights_stays(name: str, regulariser: str) -> None:
    embeddings, labels = batch()
    host, number = HOSTS[name], HOSTS[name].numbers[-1]
    per_class = {"SubCenterArcFaceLoss": {"sub_centers": 3}, "SoftTripleLoss": {"centers_per_class": 3}}.get(name, {})
    if regulariser == "sparse centres" and not per_class:
        per_class = {"num_classes": 3 * CLASSES}

    def build(**kwargs: Any) -> Any:
        weighed = {"weight_regularizer": REGULARISERS[regulariser](), "weight_reg_weight": 0.5}
        return host.build(**weighed, **per_class, **kwargs)

    ours, stock = AdaptiveMarginLoss(build(), number), build(margin=number)
    assert_identical(call(ours, embeddings, labels), call(stock, embeddings, labels))
    assert ours.sub_loss_names() == stock.sub_loss_names()
    if name != "SubCenterArcFaceLoss":  # which drops the regulariser before version 2.9 of the host
        assert "weight_reg_loss" in ours.sub_loss_names()


# Trainers, with the host's logs


class _Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, views: int = 1) -> None:
        embeddings, self.labels = batch(32, spread=0.5)
        self.embeddings = embeddings.detach()
        self.views = views

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Any:
        return *(self.embeddings[i],) * self.views, self.labels[i]


def _trainer(cls: Any, loss: Any, miner: Any, hook: Any, data: Any = None, **more: Any) -> Any:
    trunk = torch.nn.Linear(FEATURES, FEATURES)
    optimizers = {"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1)}
    if list(loss.parameters()):
        optimizers["metric_loss_optimizer"] = torch.optim.SGD(loss.parameters(), lr=0.1)
    return cls(
        models={"trunk": trunk, "embedder": torch.nn.Identity(), **more.pop("models", {})},
        optimizers=optimizers,
        batch_size=16,
        loss_funcs={"metric_loss": loss, **more.pop("loss_funcs", {})},
        dataset=data or _Rows(),
        mining_funcs={"tuple_miner": miner} if miner else {},
        iterations_per_epoch=3,
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
        end_of_iteration_hook=hook,
        **more,
    )


@pytest.fixture
def collect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's switch for statistics, on."""
    monkeypatch.setattr(c_f, "COLLECT_STATS", True)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")
@pytest.mark.usefixtures("collect")
@pytest.mark.parametrize("granularity", ["batch", "anchor"])
def test_the_hosts_trainer_logs_the_margin(tmp_path: Path, granularity: Any) -> None:
    pytest.importorskip("record_keeper")
    pytest.importorskip("tensorboard")
    keeper, _, _ = logging_presets.get_record_keeper(str(tmp_path))
    hooks = logging_presets.get_hook_container(keeper, log_freq=1)
    loss = AdaptiveMarginLoss(losses.ContrastiveLoss(), AdaptiveMargin(granularity=granularity))
    miner = AdaptiveMarginMiner(miners.PairMarginMiner())
    trainer = _trainer(trainers.MetricLossOnly, loss, miner, hooks.end_of_iteration_hook)
    before = trainer.models["trunk"].weight.detach().clone()
    trainer.train(num_epochs=1)
    keeper.save_records()
    assert not torch.equal(trainer.models["trunk"].weight, before)
    logged = {path.stem: list(csv.DictReader(path.open())) for path in tmp_path.glob("*.csv")}
    of_loss = logged["metric_loss_AdaptiveMarginLoss"]
    (of_margin,) = (table for name, table in logged.items() if name.endswith("margin_AdaptiveMargin"))
    (of_wrapped,) = (table for name, table in logged.items() if name.endswith("loss_ContrastiveLoss"))
    of_miner = logged["tuple_miner_AdaptiveMarginMiner"]
    assert of_miner[0].keys() >= {"neg_margin", "pos_pair_dist", "neg_pair_dist", "num_pos_pairs"}  # the wrapped one's
    assert 0 < float(of_miner[0]["pos_pair_dist"]) < float(of_miner[0]["neg_pair_dist"])
    assert [len(table) for table in (of_loss, of_margin, of_wrapped, of_miner)] == [3, 3, 3, 3]
    for step in range(3):
        margin = {name: float(of_margin[step][name]) for name in ("mi", "eta", "delta", "k", "alpha", "confidence")}
        assert margin["confidence"] == 0.05
        assert margin["alpha"] == pytest.approx(margin["mi"] + margin["delta"])
        assert margin["delta"] > 0
        assert margin["k"] >= 1
        current = float(of_loss[step]["current_margin"])
        if granularity == "batch":
            assert current == pytest.approx(margin["alpha"] ** 0.5)
            assert 0 < current < 2
        else:  # of the mined negatives: a batch can have none
            assert math.isnan(current) or 0 <= current < 2
        assert float(of_wrapped[step]["neg_margin"]) == 1  # its own, which it has back
        assert 0 < float(of_miner[step]["current_margin"]) < 2
    assert len({row["alpha"] for row in of_margin}) == 3  # every batch has its own
    assert float(logged["loss_histories"][0]["metric_loss"]) > 0


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")
@every_guest
def test_every_guest_trains_in_the_hosts_trainers(guest: str) -> None:
    for cls in (trainers.MetricLossOnly, trainers.TrainWithClassifier, trainers.TwoStreamMetricLoss):
        seen: list[float] = []
        more: dict[str, Any] = {}
        if cls is trainers.TrainWithClassifier:
            more = {
                "models": {"classifier": torch.nn.Linear(FEATURES, CLASSES)},
                "loss_funcs": {"classifier_loss": torch.nn.CrossEntropyLoss()},
            }
        data = _Rows(2 if cls is trainers.TwoStreamMetricLoss else 1)

        def note(trainer: Any, seen: list[float] = seen) -> None:
            seen.append(trainer.losses["metric_loss"].item())

        trainer = _trainer(cls, GUESTS[guest](), miners.TripletMarginMiner(0.5), note, data, **more)
        before = trainer.models["trunk"].weight.detach().clone()
        trainer.train(num_epochs=1)
        assert len(seen) == 3
        assert all(math.isfinite(value) and value > 0 for value in seen)
        assert not torch.equal(trainer.models["trunk"].weight, before)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")
def test_a_host_with_weights_trains_them(tmp_path: Path) -> None:
    loss = AdaptiveMarginLoss(losses.ArcFaceLoss(**SIZES), LinearMargin(20, 1))
    before = loss.loss.W.detach().clone()
    trainer = _trainer(trainers.MetricLossOnly, loss, None, None)
    trainer.train(num_epochs=1)
    assert not torch.equal(loss.loss.W, before)
    loss.margin.step_epoch()  # type: ignore[operator]
    c_f.save_dict_of_models(trainer.loss_funcs, "1", str(tmp_path))  # as the host's hooks save and load
    fresh = AdaptiveMarginLoss(losses.ArcFaceLoss(**SIZES), LinearMargin(20, 1))
    c_f.load_dict_of_models({"metric_loss": fresh}, "1", str(tmp_path), torch.device("cpu"), assert_success=True)
    assert_identical(call(fresh, *batch()), call(loss, *batch()))


@pytest.mark.usefixtures("collect")
@every_guest
def test_statistics_on_everywhere_change_no_value(guest: str) -> None:
    embeddings, labels = batch()
    counted = call(GUESTS[guest](), embeddings, labels)
    c_f.COLLECT_STATS = False  # the fixture puts it back
    assert_near(counted, call(GUESTS[guest](), embeddings, labels), rtol=1e-4, atol=1e-5)  # tiles or not: rounding


# What every guest keeps


@every_guest
def test_the_order_of_the_samples_does_not_matter(guest: str) -> None:
    embeddings, labels = batch(dtype=F64)
    order = torch.randperm(12)
    here, there = call(GUESTS[guest](), embeddings, labels), call(GUESTS[guest](), embeddings[order], labels[order])
    torch.testing.assert_close(there.value, here.value)


@every_guest
def test_the_names_of_the_labels_do_not_matter(guest: str) -> None:
    embeddings, labels = batch()
    renamed = torch.tensor([7, -3, 10**12, 0])[labels]
    ours, theirs = (call(GUESTS[guest](), embeddings, names) for names in (renamed, labels))
    assert_near(ours, theirs, rtol=1e-6, atol=1e-8)  # tiles add up a class at a time, in the order of their names


@every_guest
def test_the_callers_tensors_are_left_alone(guest: str) -> None:
    embeddings, labels = batch()
    mined = miners.TripletMarginMiner(0.4)(embeddings, labels)
    copies = [x.detach().clone() for x in (embeddings, labels, *mined)]
    loss = GUESTS[guest]()
    loss(embeddings, labels, mined).backward()
    assert all(torch.equal(x, y) for x, y in zip((embeddings, labels, *mined), copies, strict=True))
    state = torch.random.get_rng_state()
    loss(embeddings, labels)
    assert torch.equal(torch.random.get_rng_state(), state)


@every_guest
def test_a_guest_warns_of_nothing(guest: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = GUESTS[guest]()
        loss(*batch()).backward()


def test_distances_are_shared_with_the_host() -> None:
    distance = distances.LpDistance(power=2)
    loss = AdaptiveMarginLoss(losses.TripletMarginLoss(distance=distance))
    memory = losses.CrossBatchMemory(
        loss, FEATURES, miner=AdaptiveMarginMiner(miners.TripletMarginMiner(distance=distance))
    )
    assert memory.loss.distance is memory.miner.distance is distance
