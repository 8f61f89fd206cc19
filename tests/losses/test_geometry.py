"""units="geometry": at a threshold a pair's squared distance is α̂, and gaps are what their formulas say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners
from torch import Tensor

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, AdaptiveMarginMiner, ContrastiveVDMLoss, Margin
from adaptive_margin.losses import geometry

from .cases import HOSTS, batch, call

F64 = torch.float64
ALPHAS = (0.01, 0.36, 1.0, 1.9)


class Given(Margin):
    """A margin that leads, of a given squared distance."""

    unit = "squared distance"
    may_lead = True

    def __init__(self, alpha: float, granularity: Any = "batch") -> None:
        super().__init__()
        self.number, self.granularity = alpha, granularity

    def forward(self, embeddings: Tensor, labels: Any = None, indices_tuple: Any = None, *args: Any) -> Tensor:
        shape = {"batch": (), "anchor": (len(embeddings),)}.get(self.granularity)
        return embeddings.new_full(shape if shape is not None else (len(indices_tuple[-1]),), self.number)


def at(*squares: float) -> Tensor:
    """Unit vectors: the first, and one at each squared distance from it."""
    angles = torch.tensor([0.0, *(math.acos(1 - square / 2) for square in squares)], dtype=F64)
    return torch.stack([angles.cos(), angles.sin()], 1)


# --- by hand --------------------------------------------------------------------------------------------------------


BY_HAND = {  # α̂ = 0.36: a distance of 0.6, a cosine of 0.82
    "ContrastiveLoss": 0.6,
    "TripletMarginLoss": 0.09,
    "MarginLoss": 0.6,
    "LiftedStructureLoss": 0.6,
    "GeneralizedLiftedStructureLoss": 0.6,
    "SignalToNoiseRatioContrastiveLoss": 0.36,
    "CosFaceLoss": 0.18,
    "ArcFaceLoss": math.acos(0.82) / 4,
    "SubCenterArcFaceLoss": math.acos(0.82) / 4,
    "SoftTripleLoss": 0.18,
    "ProxyAnchorLoss": 0.09,
    "MultiSimilarityLoss": 0.82,
    "CircleLoss": 0.41,
    "TupletMarginLoss": math.acos(0.82) / 4,
    "RankedListLoss": 0.18,
    "ThresholdConsistentMarginLoss": 0.82,
    "ManifoldLoss": 0.18,
    "TripletMarginMiner": 0.09,
    "PairMarginMiner": 0.6,
    "MultiSimilarityMiner": 0.18,
}


@pytest.mark.parametrize("name", [*AdaptiveMarginLoss.supported(), *AdaptiveMarginMiner.supported()])
def test_numbers_by_hand(name: str) -> None:
    row = {**AdaptiveMarginLoss.supported(), **AdaptiveMarginMiner.supported()}[name]
    module = HOSTS[name].build() if name in HOSTS else getattr(miners, name)()
    scale = row.scale_of(module)
    value = row.geometry(0.36, scale, module)
    assert value == pytest.approx(BY_HAND[name], rel=1e-12)
    alpha = torch.tensor(0.36, dtype=F64, requires_grad=True)
    tensor = row.geometry(alpha, scale, module)  # with a gradient: the slope of the same formula
    assert tensor.item() == pytest.approx(value, rel=1e-12)  # type: ignore[union-attr]
    (slope,) = torch.autograd.grad(tensor, alpha)  # type: ignore[arg-type]
    more, less = (row.geometry(0.36 + step, scale, module) for step in (1e-6, -1e-6))
    assert slope.item() == pytest.approx((more - less) / 2e-6, rel=1e-5)  # type: ignore[operator]
    batch_of = torch.tensor(ALPHAS, dtype=F64)
    each = [row.geometry(number, scale, module) for number in ALPHAS]
    torch.testing.assert_close(row.geometry(batch_of, scale, module), torch.tensor(each, dtype=F64))


# --- thresholds -----------------------------------------------------------------------------------------------------


EUCLIDEAN = {
    "D": distances.LpDistance(),
    "D squared": distances.LpDistance(power=2),
    "D cubed": distances.LpDistance(power=3),
    "cosine": distances.CosineSimilarity(),
    "dot product": distances.DotProductSimilarity(),
    "raw D": distances.LpDistance(normalize_embeddings=False),
}


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("distance", EUCLIDEAN)
@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
def test_a_contrastive_hinge_ends_where_the_squared_distance_is_the_margin(
    alpha: float, distance: str, granularity: Any
) -> None:
    stock = losses.ContrastiveLoss(distance=EUCLIDEAN[distance])
    loss = AdaptiveMarginLoss(stock, Given(alpha, granularity), units="geometry")
    labels = torch.tensor([0, 1, 0])
    pairs = tuple(torch.tensor([row, row]) for row in (0, 2, 0, 1))  # twice: the host takes a single pair for none
    positive = at(0.0)[1:]
    for square, active in ((alpha * (1 - 1e-6), True), (alpha, False), (alpha * (1 + 1e-6), False)):
        value = loss(torch.cat([at(square), positive]), labels, pairs).item()
        assert (value > 1e-10) == active
        if not active:
            assert value == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("distance", EUCLIDEAN)
def test_a_miner_takes_the_pairs_inside_the_squared_distance(alpha: float, distance: str) -> None:
    miner = AdaptiveMarginMiner(miners.PairMarginMiner(distance=EUCLIDEAN[distance]), Given(alpha), units="geometry")
    squares = [alpha * (1 + step) for step in (-1e-6, 1e-6, -0.5, 0.05)]
    _, _, anchors, negatives = miner(at(*squares), torch.tensor([0, 1, 1, 1, 1]))
    assert negatives[anchors == 0].tolist() == [1, 3]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_margin_loss_keeps_pairs_that_far_from_its_boundary(alpha: float) -> None:
    beta = 1.5
    loss = AdaptiveMarginLoss(losses.MarginLoss(beta=beta), Given(alpha), units="geometry", collect_stats=True)
    loss(at(0.1, 0.5), torch.tensor([0, 0, 1]))
    assert loss.current_margin**2 == pytest.approx(alpha)


# --- gaps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("distance", ["D squared", "cosine", "dot product"])
def test_squared_distances_of_a_triplet_end_the_margin_apart(alpha: float, distance: str) -> None:
    loss = AdaptiveMarginLoss(losses.TripletMarginLoss(distance=EUCLIDEAN[distance]), Given(alpha), units="geometry")
    triplet = tuple(torch.tensor([row]) for row in (0, 1, 2))
    for gap, active in ((alpha - 1e-6, True), (alpha + 1e-6, False)):
        value = loss(at(0.3, 0.3 + gap), torch.tensor([0, 0, 1]), triplet).item()
        assert (value > 1e-10) == active


@pytest.mark.parametrize("alpha", ALPHAS)
def test_distances_whose_squares_are_the_margin_apart_are_the_gap_of_all_triplets_apart(alpha: float) -> None:
    loss = AdaptiveMarginLoss(losses.TripletMarginLoss(), Given(alpha), units="geometry", collect_stats=True)
    loss(*batch())
    positive = torch.linspace(0, 4 - alpha, 100, dtype=F64)
    gaps = (positive + alpha).sqrt() - positive.sqrt()
    assert gaps.min() >= loss.current_margin == pytest.approx(alpha / 4)
    assert gaps.min() < alpha / 2  # of two distances that add up to 4 at most: no bound without embeddings


@pytest.mark.parametrize("alpha", ALPHAS)
def test_ranked_lists_boundaries_are_squared_distances_apart(alpha: float) -> None:
    row = AdaptiveMarginLoss.supported()["RankedListLoss"]
    derived = losses.RankedListLoss(margin=0.4, Tn=4)
    values = row.values(derived, row.geometry(alpha, "distance", derived))
    negative = values["alpha"]
    assert negative**2 - (negative - values["margin"]) ** 2 == pytest.approx(alpha)  # type: ignore[operator]
    chosen = losses.RankedListLoss(margin=0.4, Tn=4, alpha=1.5)
    values = row.values(chosen, row.geometry(alpha, "distance", chosen))
    assert set(values) == {"margin"}
    assert 1.5**2 - (1.5 - values["margin"]) ** 2 == pytest.approx(alpha)  # type: ignore[operator]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_cosine_boundaries_are_half_the_margin_apart(alpha: float) -> None:
    row, circle = AdaptiveMarginLoss.supported()["CircleLoss"], losses.CircleLoss()
    values = row.values(circle, row.geometry(alpha, "cosine", circle))
    assert values["delta_p"] - values["delta_n"] == pytest.approx(alpha / 2)  # type: ignore[operator]
    assert geometry.cosine_gap(alpha, "cosine", None) == alpha / 2
    assert 2 * geometry.half_cosine_gap(alpha, "cosine", None) == alpha / 2


def test_margins_out_of_reach_stay_finite() -> None:
    for name, row in AdaptiveMarginLoss.supported().items():
        module = HOSTS[name].build()
        for alpha in (-1e-9, 0.0, 4.0, 5.7, 50.0):  # MI at its cap and more: no unit vectors are that far apart
            for number in (alpha, torch.tensor(alpha)):
                assert math.isfinite(float(row.geometry(number, row.scale_of(module), module))), (name, alpha)


# --- which units ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTS)
def test_two_labels_have_the_units_of_evidence_to_the_bit_and_three_have_geometry(name: str) -> None:
    host = HOSTS[name]
    evidence = list(host.translations)[1]
    embeddings, _ = batch()
    for classes, units in ((2, evidence), (3, "geometry")):
        labels = torch.arange(12) % classes
        args = (embeddings, labels) if host.labels else (embeddings, None, labels)
        default = call(AdaptiveMarginLoss(host.build(), AdaptiveMargin()), *args)
        rule = "hoeffding" if classes == 2 else "remaining"
        said = call(AdaptiveMarginLoss(host.build(), AdaptiveMargin(neighbourhood=rule), units=units), *args)  # type: ignore[arg-type]
        assert torch.equal(default.value, said.value)
        for ours, theirs in zip(default.grads, said.grads, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
def test_two_labels_have_hoeffdings_margin_to_the_bit(granularity: Any) -> None:
    for rows in (2, 3, 16, 40, 200):
        x, y = torch.randn(rows, 6), torch.arange(rows) % 2
        for more in ((), (None, x + 1, y)):
            auto, evidence = (
                AdaptiveMargin(neighbourhood=rule, granularity=granularity)(x, y, *more)
                for rule in ("auto", "hoeffding")
            )
            assert torch.equal(auto, evidence)


@pytest.mark.parametrize(
    ("distance", "why"),
    [
        (distances.LpDistance(p=1), r"LpDistance\(p=1\), which is not Euclidean"),
        (
            distances.DotProductSimilarity(normalize_embeddings=False),
            "similarities of embeddings that are not normalised",
        ),
    ],
)
def test_where_no_euclidean_distance_is_it_is_refused_when_asked_for(distance: Any, why: str) -> None:
    for loss in (losses.ContrastiveLoss, losses.TripletMarginLoss):
        with pytest.raises(ValueError, match=f"units must be .*{why}, got 'geometry'; a squared distance of unit"):
            AdaptiveMarginLoss(loss(distance=distance), units="geometry")
        assert AdaptiveMarginLoss(loss(distance=distance)).units != "geometry"
    with pytest.raises(ValueError, match=why):
        AdaptiveMarginMiner(miners.PairMarginMiner(distance=distance), units="geometry")


def test_a_gap_between_powers_and_a_margin_in_the_losses_unit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"units must be .* for gaps in LpDistance\(power=3\), got 'geometry'"):
        AdaptiveMarginLoss(losses.TripletMarginLoss(distance=distances.LpDistance(power=3)), units="geometry")
    with pytest.raises(ValueError, match="units must be 'replace' or 'offset' for a margin in the unit of Triplet"):
        AdaptiveMarginLoss(losses.TripletMarginLoss(), 0.2, units="geometry")


@pytest.mark.parametrize("name", ["ContrastiveLoss", "TripletMarginLoss", "MarginLoss", "MultiSimilarityLoss"])
def test_a_margin_with_a_gradient_is_the_same_number(name: str) -> None:
    embeddings, labels = batch(dtype=F64)
    plain = AdaptiveMarginLoss(HOSTS[name].build(), AdaptiveMargin())(embeddings, labels)
    with_gradient = AdaptiveMarginLoss(HOSTS[name].build(), AdaptiveMargin(detach=False))(embeddings, labels)
    torch.testing.assert_close(with_gradient, plain)


@pytest.mark.parametrize(("name", "classes"), [("ContrastiveLoss", 3), ("TripletMarginLoss", 2)])
def test_compiled_it_is_what_it_is(name: str, classes: int) -> None:
    embeddings, labels = batch()[0].detach(), torch.arange(12) % classes
    loss = AdaptiveMarginLoss(HOSTS[name].build(), AdaptiveMargin())
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="eager")(embeddings, labels)
    torch.testing.assert_close(compiled, loss(embeddings, labels))


# --- bad input ------------------------------------------------------------------------------------------------------


LOSSES: dict[str, Any] = {
    "contrastive": lambda: AdaptiveMarginLoss(losses.ContrastiveLoss()),
    "triplet": lambda: AdaptiveMarginLoss(losses.TripletMarginLoss()),
    "multi-similarity": lambda: AdaptiveMarginLoss(losses.MultiSimilarityLoss()),
    "attainable": lambda: AdaptiveMarginLoss(losses.ContrastiveLoss(), AdaptiveMargin(neighbourhood="attainable")),
    "vdm": lambda: ContrastiveVDMLoss(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_odd_labels_give_a_finite_loss(name: str) -> None:
    embeddings, _ = batch()
    for labels in (torch.zeros(12, dtype=torch.int64), torch.arange(12), torch.arange(12) % 3 - 7):
        value = LOSSES[name]()(embeddings, labels)
        assert torch.isfinite(value)
        (grad,) = torch.autograd.grad(value, embeddings, allow_unused=True)
        assert grad is None or torch.isfinite(grad).all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "vdm"])
def test_a_class_that_the_reference_lacks_gives_a_finite_loss(name: str) -> None:
    embeddings, labels = batch()
    ref_emb, ref_labels = batch(9, seed=1)
    there = ref_labels != 2
    assert torch.isfinite(LOSSES[name]()(embeddings, labels, None, ref_emb[there], ref_labels[there]))


@pytest.mark.parametrize("name", LOSSES)
def test_labels_that_are_no_integers_are_refused(name: str) -> None:
    embeddings, labels = batch()
    for bad in (labels * math.nan, labels + 0.5):
        with pytest.raises((TypeError, ValueError), match="labels must be"):
            LOSSES[name]()(embeddings, bad)


def test_ignored_labels_have_no_part_in_the_margin() -> None:
    embeddings, labels = batch()
    ignored = labels.clone()
    ignored[::4] = -1
    kept = ignored != -1
    loss = ContrastiveVDMLoss(ignore_label=-1)
    torch.testing.assert_close(loss(embeddings, ignored), ContrastiveVDMLoss()(embeddings[kept], labels[kept]))
    assert torch.isfinite(loss(embeddings, torch.full((12,), -1)))
