"""Which hosts have a margin, what it means to them, and what is refused, and why."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning import distances, losses, miners
from pytorch_metric_learning.utils import distributed

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, AdaptiveMarginMiner, ConstantMargin, LinearMargin
from adaptive_margin.losses.swap import HostScalar, exchanged, find_swap

from .cases import HOSTS, SIZES, batch


def test_the_table_lists_every_host_with_its_constructor_argument() -> None:
    supported = AdaptiveMarginLoss.supported()
    assert set(supported) == set(HOSTS)
    for name, row in supported.items():
        assert row.attribute == HOSTS[name].attribute
        assert row.attribute in _arguments(getattr(losses, name))
        leading, waiting = list(HOSTS[name].translations)[:2]
        assert row.units == leading == "geometry"
        waits = AdaptiveMargin(neighbourhood="hoeffding")
        assert AdaptiveMarginLoss(HOSTS[name].build(), waits).units == waiting, f"{name} has another default"
        assert row.elementwise == HOSTS[name].elementwise


def _arguments(cls: type) -> set[str]:
    return {name for base in cls.__mro__ for name in inspect.signature(base.__init__).parameters}


def test_the_table_is_a_copy() -> None:
    AdaptiveMarginLoss.supported().clear()
    AdaptiveMarginMiner.supported().clear()
    assert AdaptiveMarginLoss.supported()
    assert AdaptiveMarginMiner.supported()


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda: losses.SphereFaceLoss(**SIZES), "integer"),
        (lambda: losses.LargeMarginSoftmaxLoss(**SIZES), "integer"),
        (lambda: losses.DynamicSoftMarginLoss(), "its own margin"),
        (lambda: losses.NTXentLoss(), "none known. Supported: ContrastiveLoss, TripletMarginLoss, MarginLoss"),
        (lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), 4), r"CrossBatchMemory\(AdaptiveMarginLoss"),
        (lambda: losses.MultipleLosses([losses.ContrastiveLoss()]), r"MultipleLosses\(AdaptiveMarginLoss"),
        (lambda: losses.SelfSupervisedLoss(losses.ContrastiveLoss()), r"SelfSupervisedLoss\(AdaptiveMarginLoss"),
        (lambda: distributed.DistributedLossWrapper(losses.ContrastiveLoss()), r"Wrapper\(AdaptiveMarginLoss"),
        (lambda: AdaptiveMarginLoss(losses.ContrastiveLoss()), "none known"),
        (lambda: torch.nn.TripletMarginLoss(), "torch.nn's; pass the TripletMarginLoss of pytorch_metric_learning"),
        (lambda: miners.TripletMarginMiner(), "none known"),
        (
            lambda: losses.TripletMarginLoss,
            r"it is the class; pass one .*, AdaptiveMarginLoss\(TripletMarginLoss\(\)\)",
        ),
        (lambda: str, "str: it has none known"),
    ],
)
def test_what_has_no_margin_of_this_kind_is_refused_with_the_reason(loss: object, reason: str) -> None:
    with pytest.raises(TypeError, match=f"AdaptiveMarginLoss cannot exchange the margin of .*{reason}"):
        AdaptiveMarginLoss(loss())


def test_a_namesake_from_elsewhere_is_refused() -> None:
    class TripletMarginLoss(torch.nn.Module):
        margin = 0.2

    with pytest.raises(TypeError, match=r"tests\.losses's; pass the TripletMarginLoss of pytorch_metric_learning"):
        AdaptiveMarginLoss(TripletMarginLoss())


@pytest.mark.parametrize(
    ("margin", "got"),
    [
        (torch.rand(4), "4 of them"),
        (torch.rand(1, 4), "4 of them"),
        (np.full(4, 0.2), "4 of them"),
        ([0.1, 0.2, 0.3, 0.4], "4 of them"),
        (torch.nn.Parameter(torch.tensor(0.2)), "a learned one"),
        (torch.tensor(0.2, requires_grad=True), "a learned one"),
    ],
)
def test_margins_for_each_class_and_learned_ones_are_refused(margin: object, got: str) -> None:
    loss = losses.CosFaceLoss(**SIZES)
    loss.margin = margin
    with pytest.raises(TypeError, match=f"CosFaceLoss.margin must be one plain number, got {got}; "):
        AdaptiveMarginLoss(loss)


@pytest.mark.parametrize("own", [np.float32(0.35), torch.tensor(0.35), torch.tensor([0.35])])
def test_one_number_in_whatever_box_is_a_margin(own: object) -> None:
    embeddings, labels = batch()
    loss = losses.CosFaceLoss(**SIZES)
    loss.margin = own
    wrapped = AdaptiveMarginLoss(loss, 0.1, units="offset")
    value = wrapped(embeddings, labels)
    assert loss.margin is own
    loss.margin = 0.45
    torch.testing.assert_close(value, loss(embeddings, labels))


def test_a_subclass_has_its_parents_margin() -> None:
    class Mine(losses.TripletMarginLoss):
        def compute_loss(self, *args: object) -> object:
            self.seen = self.margin
            return super().compute_loss(*args)

    embeddings, labels = batch()
    loss = Mine(margin=0.3)
    value = AdaptiveMarginLoss(loss, 0.7)(embeddings, labels)
    assert loss.seen == 0.7
    assert loss.margin == 0.3
    assert torch.equal(value, losses.TripletMarginLoss(margin=0.7)(embeddings, labels))


def test_a_subclass_of_a_refused_loss_is_refused_for_the_same_reason() -> None:
    class Mine(losses.SphereFaceLoss):
        pass

    with pytest.raises(TypeError, match="SphereFaceLoss: its margin is an integer"):
        AdaptiveMarginLoss(Mine(**SIZES))


@pytest.mark.parametrize("number", [1, 0.25, np.float64(0.25), np.float32(0.25), np.int64(1), torch.tensor(0.25)])
def test_any_plain_number_is_a_constant_margin(number: float) -> None:
    embeddings, labels = batch()
    ours = AdaptiveMarginLoss(losses.TripletMarginLoss(), number)
    assert isinstance(ours.margin, ConstantMargin)
    assert torch.equal(ours(embeddings, labels), losses.TripletMarginLoss(margin=float(number))(embeddings, labels))


@pytest.mark.parametrize("margin", ["0.2", None.__class__, [0.2], torch.rand(3), torch.nn.Linear(1, 1)])
def test_what_is_neither_margin_nor_number_is_refused(margin: object) -> None:
    with pytest.raises(TypeError, match=r"must be a Margin or a number, got (the class )?\w+; AdaptiveMargin\(\) is"):
        AdaptiveMarginLoss(losses.TripletMarginLoss(), margin)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_margin_that_is_not_finite_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match=r"margin must be finite, got (nan|inf); "):
        AdaptiveMarginLoss(losses.TripletMarginLoss(), number)


DEFAULTS = [  # distance, units for a gap of a margin that waits for evidence; of one that leads: geometry
    (distances.LpDistance(), "sqrt"),
    (distances.LpDistance(normalize_embeddings=False), "sqrt"),
    (distances.LpDistance(power=2), "replace"),
    (distances.CosineSimilarity(), "replace"),
    (distances.DotProductSimilarity(), "replace"),
    (distances.SNRDistance(), "replace"),
]


@pytest.mark.parametrize(("distance", "gap"), DEFAULTS)
def test_the_default_units_follow_role_and_distance(distance: object, gap: str) -> None:
    for neighbourhood in ("hoeffding", "auto", "remaining", "attainable"):
        margin, waits = AdaptiveMargin(neighbourhood=neighbourhood), neighbourhood == "hoeffding"
        expected = (gap, "offset") if waits else ("geometry", "geometry")
        for of_gap, of_threshold in (
            (
                AdaptiveMarginLoss(losses.TripletMarginLoss(distance=distance), margin),
                AdaptiveMarginLoss(losses.ContrastiveLoss(distance=distance), margin),
            ),
            (
                AdaptiveMarginMiner(miners.TripletMarginMiner(distance=distance), margin),
                AdaptiveMarginMiner(miners.PairMarginMiner(distance=distance), margin),
            ),
        ):
            assert (of_gap.units, of_threshold.units) == expected


@pytest.mark.parametrize(("distance", "gap"), DEFAULTS)
def test_the_default_units_follow_a_distance_assigned_later(distance: object, gap: str) -> None:
    waits = AdaptiveMargin(neighbourhood="hoeffding")
    loss = AdaptiveMarginLoss(losses.ContrastiveLoss(pos_margin=1, neg_margin=0), waits)
    miner = AdaptiveMarginMiner(miners.TripletMarginMiner(), waits)
    loss.distance = miner.distance = distance
    assert loss.loss.distance is loss.distance is distance
    assert miner.miner.distance is miner.distance is distance
    assert loss.units == "offset"
    assert miner.units == gap
    embeddings, labels = batch()
    fresh = AdaptiveMarginLoss(losses.ContrastiveLoss(pos_margin=1, neg_margin=0, distance=distance), waits)
    assert torch.equal(loss(embeddings, labels), fresh(embeddings, labels))


def test_a_power_that_is_neither_distance_nor_square_needs_units() -> None:
    cubed = distances.LpDistance(power=3)
    with pytest.raises(ValueError, match=r"units must be given .* got none, for LpDistance\(power=3\)"):
        AdaptiveMarginLoss(losses.TripletMarginLoss(distance=cubed))
    assert AdaptiveMarginLoss(losses.TripletMarginLoss(distance=cubed), units="replace").units == "replace"
    assert AdaptiveMarginLoss(losses.TripletMarginLoss(distance=cubed), 0.1).units == "replace"


@pytest.mark.parametrize("name", ["ArcFaceLoss", "SubCenterArcFaceLoss", "TupletMarginLoss"])
def test_a_constant_offset_on_an_angle_is_in_degrees_as_in_the_constructor(name: str) -> None:
    embeddings, labels = batch()
    loss = AdaptiveMarginLoss(HOSTS[name].build(margin=20.0), ConstantMargin(5), units="offset", collect_stats=True)
    loss(embeddings, labels)
    assert loss.current_margin == pytest.approx(math.radians(25))


def test_units_can_be_assigned_and_are_checked() -> None:
    loss = AdaptiveMarginLoss(losses.ContrastiveLoss(), units="replace")
    loss.units = "offset"
    assert loss.units == "offset"
    with pytest.raises(ValueError, match="units must be one of 'geometry', 'replace', 'sqrt', 'offset', got 'root'"):
        loss.units = "root"
    assert loss.units == "offset"


def test_margins_in_the_losses_own_unit_replace_by_default() -> None:
    for margin in (0.2, ConstantMargin(0.2), LinearMargin()):
        assert AdaptiveMarginLoss(losses.TripletMarginLoss(), margin).units == "replace"
    assert AdaptiveMarginLoss(losses.TripletMarginLoss(), AdaptiveMargin()).units == "geometry"


@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "CosFaceLoss", "SignalToNoiseRatioContrastiveLoss"])
def test_a_root_means_nothing_to_similarities_cosines_and_ratios(name: str) -> None:
    attribute = HOSTS[name].attribute
    with pytest.raises(
        ValueError, match=f"units must be 'geometry', 'replace' or 'offset' for {name}, whose {attribute} is a "
    ):
        AdaptiveMarginLoss(HOSTS[name].build(), units="sqrt")


def test_a_similarity_without_norm_has_no_threshold_to_replace() -> None:
    raw = distances.DotProductSimilarity(normalize_embeddings=False)
    for build in (
        lambda **kwargs: AdaptiveMarginLoss(losses.ContrastiveLoss(distance=raw), **kwargs),
        lambda **kwargs: AdaptiveMarginMiner(miners.PairMarginMiner(distance=raw), **kwargs),
    ):
        with pytest.raises(ValueError, match="units must be 'offset' for similarities of embeddings that are not"):
            _ = build(units="replace").units
        assert build().units == build(units="offset").units == "offset"
        assert build(margin=3.0).units == "replace"  # the caller's own number in the loss's own unit


@pytest.mark.parametrize("units", ["root", "", 1, True])
def test_unknown_units_are_refused(units: object) -> None:
    with pytest.raises(ValueError, match="units must be one of 'geometry', 'replace', 'sqrt', 'offset', got"):
        AdaptiveMarginLoss(losses.TripletMarginLoss(), units=units)


def test_an_exchange_is_made_on_a_stand_in_whatever_happens() -> None:
    module = losses.CircleLoss()
    before = dict(vars(module))

    def interrupted() -> None:
        with exchanged(module, {"m": 0.1, "op": 1.1}) as stand_in:
            assert (stand_in.m, stand_in.op, stand_in.on) == (0.1, 1.1, -0.4)
            assert (module.m, module.op) == (0.4, 1.4)
            assert stand_in.loss_method.__self__ is stand_in  # a method that the host keeps as an attribute
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert vars(module) == before
    assert module.loss_method.__self__ is module
    with pytest.raises(KeyError), exchanged(module, {"m": 0.2, "no such attribute": 1}):
        pytest.fail("an attribute that the module lacks was exchanged")
    assert vars(module) == before


def test_what_is_written_to_a_stand_in_goes_to_the_module() -> None:
    module = losses.ArcFaceLoss(num_classes=3, embedding_size=2)
    weights, other = module.W, torch.nn.Parameter(torch.zeros(2, 3))
    with exchanged(module, {"margin": 0.1}) as stand_in:
        assert stand_in.W is weights
        stand_in.avg_angle = 45.0  # a statistic
        stand_in.margin = 0.3
        stand_in.W = other
    assert (module.avg_angle, module.W) == (45.0, other)
    assert module.margin == pytest.approx(math.radians(28.6))


def test_a_tensor_margin_answers_numpy_with_torch() -> None:
    plain = torch.tensor(0.5, requires_grad=True)
    margin = plain.as_subclass(HostScalar)
    for ours, theirs in (
        (np.sin(margin), torch.sin(plain)),
        (np.deg2rad(180) - margin, math.pi - plain),
        (np.float64(2) * margin, 2 * plain),
        (margin * np.sin(margin), plain * torch.sin(plain)),
    ):
        assert type(ours) is torch.Tensor
        torch.testing.assert_close(ours, theirs, check_dtype=False)
        (ours_grad,) = torch.autograd.grad(ours, plain)
        (theirs_grad,) = torch.autograd.grad(theirs, plain)
        torch.testing.assert_close(ours_grad, theirs_grad)


def test_the_nearest_host_of_a_class_decides() -> None:
    table = AdaptiveMarginLoss.supported()
    assert find_swap(losses.SignalToNoiseRatioContrastiveLoss(), table, "").scale == "ratio"  # a ContrastiveLoss too
    assert find_swap(losses.SubCenterArcFaceLoss(**SIZES), table, "").host == "SubCenterArcFaceLoss"  # an ArcFaceLoss
