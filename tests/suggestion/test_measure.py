"""What is suggested: numbers by hand, agreement with margins and losses, samples, mistakes."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, suggest
from adaptive_margin.suggestion import measure
from adaptive_margin.suggestion.measure import STRATEGIES, _Rows

X = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(96) % 8
Z = torch.nn.functional.normalize(X)
WHOLE = suggest(X, Y)  # one batch


def of(found: Any, loss: str) -> Any:
    return next(each for each in found.losses if each.loss == loss)


def test_by_hand() -> None:
    """Unit vectors at 0° and 90° (class 0), 180° and 180° (class 1), 270° (class 2, alone)."""
    x = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [-5.0, 0.0], [0.0, -1.0]])
    found = suggest(x, torch.tensor([10, 10, 20, 20, 30]), loss="ContrastiveLoss", margin=1.5)
    assert (found.rows, found.features, found.classes, found.normalized) == (5, 2, 3, True)
    assert (found.sizes.smallest, found.sizes.median, found.sizes.largest, found.sizes.alone) == (1, 2, 2, 1)
    assert found.sizes.imbalance == 2
    assert found.sizes.effective == pytest.approx(math.exp(-(0.8 * math.log(0.4) + 0.2 * math.log(0.2))))
    assert (found.within.pairs, found.within.every) == (2, True)
    assert found.within.mean == pytest.approx(math.sqrt(2) / 2)  # √2 and 0
    assert (found.between.pairs, found.between.every) == (8, True)
    # 0°: 2, 2, √2; 90°: √2, √2, 2; 180°: √2, √2
    assert found.between.mean == pytest.approx((3 * 2 + 5 * math.sqrt(2)) / 8)
    assert found.between.quantiles[0.5] == pytest.approx(math.sqrt(2))
    # of 2 × 8 comparisons, √2 within against the five √2 between is not in order
    assert found.misordered == pytest.approx(5 / 16)
    # 0°: a tie of 90° and 270°, others first: 1; 90°: 1; 180°: 0, 0; alone: 1 − 1/5
    assert found.impurity == pytest.approx((1 + 1 + 0 + 0 + 0.8) / 5)
    assert found.pure == pytest.approx(0.4)
    assert found.present is not None
    assert found.present.active == {"negative pairs": pytest.approx(5 / 8)}
    assert found.present.differences["default"] == 0.5
    assert found.strategies["attainable"].delta == pytest.approx((4 * 0.6**2 + 0.8**2) / 5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_margins_are_those_of_the_wrapped_losses(strategy: Any) -> None:
    """As it records them, and angles in degrees."""
    assert WHOLE.strategies[strategy].alpha == pytest.approx(float(AdaptiveMargin(neighbourhood=strategy)(Z, Y)))
    hosts = {
        "ContrastiveLoss": losses.ContrastiveLoss(),
        "TripletMarginLoss": losses.TripletMarginLoss(),
        "MarginLoss": losses.MarginLoss(),
        "ArcFaceLoss": losses.ArcFaceLoss(8, 8),
        "CircleLoss": losses.CircleLoss(),
        "MultiSimilarityLoss": losses.MultiSimilarityLoss(),
    }
    for name, host in hosts.items():
        loss = AdaptiveMarginLoss(host, AdaptiveMargin(neighbourhood=strategy), collect_stats=True)
        loss(X, Y)
        margin = math.degrees(loss.current_margin) if name == "ArcFaceLoss" else loss.current_margin
        assert of(WHOLE, name).margins[strategy] == pytest.approx(margin, rel=1e-5)


def test_the_marked_rule_is_that_of_the_wrapper() -> None:
    for host in (losses.ContrastiveLoss(), losses.MultiSimilarityLoss()):
        loss = AdaptiveMarginLoss(host, collect_stats=True)
        loss(X, Y)
        assert WHOLE.margin_for(type(host).__name__) == pytest.approx(loss.current_margin, rel=1e-5)
    two = suggest(X, Y % 2)
    loss = AdaptiveMarginLoss(losses.ContrastiveLoss(), collect_stats=True)
    loss(X, Y % 2)
    assert of(two, "ContrastiveLoss").rule == "hoeffding"
    assert two.margin_for("ContrastiveLoss") == pytest.approx(loss.current_margin, rel=1e-5)


def test_a_margin_that_was_not_measured_is_named() -> None:
    with pytest.raises(ValueError, match=r"loss must be one of .*'TripletMarginLoss'.*, got 'TripletLoss'"):
        WHOLE.margin_for("TripletLoss")
    with pytest.raises(ValueError, match=r"strategy must be one of 'default', .*'remaining'.*, got 'auto'"):
        WHOLE.margin_for("ContrastiveLoss", "auto")
    assert WHOLE.margin_for("ContrastiveLoss", "default") == of(WHOLE, "ContrastiveLoss").margins["default"]


def share(losses_of_terms: Tensor) -> float:
    return float((losses_of_terms > 0).double().mean())


@pytest.mark.parametrize("strategy", ["default", *STRATEGIES])
def test_a_stock_loss_with_the_margin_keeps_that_share_active(strategy: str) -> None:
    def margin(name: str) -> float:
        return float(of(WHOLE, name).margins[strategy])

    distances, different = torch.cdist(Z, Z, compute_mode="donot_use_mm_for_euclid_dist"), Y[:, None] != Y
    plain = float((distances[different] < margin("ContrastiveLoss")).double().mean())
    stock = losses.ContrastiveLoss(neg_margin=margin("ContrastiveLoss")).compute_loss(X, Y, None, X, Y)
    found = of(WHOLE, "ContrastiveLoss").active
    assert set(found) == {"negative pairs"}
    assert found["negative pairs"][strategy] == share(stock["neg_loss"]["losses"])
    assert found["negative pairs"][strategy] == pytest.approx(plain, abs=1e-3)
    stock = losses.TripletMarginLoss(margin=margin("TripletMarginLoss")).compute_loss(X, Y, None, X, Y)
    assert of(WHOLE, "TripletMarginLoss").active["triplets"][strategy] == share(stock["loss"]["losses"])
    stock = losses.MarginLoss(margin=margin("MarginLoss")).compute_loss(X, Y, None, X, Y)
    assert of(WHOLE, "MarginLoss").active["triplets"][strategy] == share(stock["margin_loss"]["losses"])


@pytest.mark.filterwarnings("error")
def test_the_loss_in_use_may_have_its_own_distance_and_margin() -> None:
    own = losses.TripletMarginLoss(margin=0.7, distance=LpDistance(normalize_embeddings=False, power=2))
    found = suggest(X, Y, loss=own)
    assert not found.normalized
    assert found.present is not None
    assert (found.present.loss, found.present.margin) == ("TripletMarginLoss", 0.7)
    assert found.present.active["triplets"] == share(own.compute_loss(X, Y, None, X, Y)["loss"]["losses"])
    assert of(found, "TripletMarginLoss").margins["attainable"] == pytest.approx(
        float(AdaptiveMargin(neighbourhood="attainable")(X, Y))
    )
    assert own.margin == 0.7
    assert suggest(X, Y, loss="ArcFaceLoss").present.margin == pytest.approx(28.6)  # type: ignore[union-attr]


def test_batches_are_those_of_the_seed() -> None:
    x = torch.randn(600, 4, generator=torch.Generator().manual_seed(1))
    y = torch.arange(600) % 60
    first, again, other = (suggest(x, y, seed=seed, batches=2, batch_size=32) for seed in (0, 0, 1))
    assert first.samples["rows a batch"] == 32
    same = [{**each.to_dict(), "seconds": 0} for each in (first, again, other)]
    assert same[0] == same[1]
    assert same[0] != same[2]
    rows = _Rows(y.numpy(), np.bincount(y)).batches(32, 4, 3, np.random.default_rng(0))
    for batch in rows:
        assert len(set(batch.tolist())) == 32
        assert sorted(np.bincount(y[batch]).tolist())[-9:] == [0, *[4] * 8]


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    suggest(X, Y)
    assert torch.equal(before, torch.get_rng_state())


def test_few_classes_have_more_rows_in_a_batch() -> None:
    y = np.arange(600) % 2
    batch = _Rows(y, np.bincount(y)).batches(32, 4, 1, np.random.default_rng(0))[0]
    assert np.bincount(y[batch]).tolist() == [16, 16]


@pytest.mark.parametrize("own", [True, False])
def test_drawn_pairs_are_uniform(monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    y = np.array([0, 1, 1, 1, 2, 2, 0, 3])
    rows = _Rows(y, np.bincount(y))
    first, second, every = rows.pairs(own, np.random.default_rng(0))
    all_pairs = {(i, j) for i in range(8) for j in range(i) if (y[i] == y[j]) == own}
    assert every
    assert sorted((max(i, j), min(i, j)) for i, j in zip(first, second, strict=True)) == sorted(all_pairs)
    monkeypatch.setattr(measure, "ANCHORS", 0)
    monkeypatch.setattr(measure, "PAIRS", 40_000)
    first, second, every = rows.pairs(own, np.random.default_rng(0))
    assert not every
    counts = dict.fromkeys(all_pairs, 0)
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        counts[max(i, j), min(i, j)] += 1
    expected = 40_000 / len(all_pairs)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_samples_of_a_large_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PAIRS", 500)
    monkeypatch.setattr(measure, "ANCHORS", 60)
    monkeypatch.setattr(measure, "CLASSES", 5)
    monkeypatch.setattr(measure, "ROWS", 40)
    found = suggest(X, Y)
    assert found.samples == {
        "pairs within": 500,
        "pairs between": 500,
        "neighbourhoods": 60,
        "rows for OPIS": 40,
        "batches": 1,
        "rows a batch": 96,
    }
    assert found.impurity == pytest.approx(WHOLE.impurity, abs=0.1)
    assert found.between.mean == pytest.approx(WHOLE.between.mean, abs=0.1)


def test_it_prints_and_becomes_json() -> None:
    found = suggest(X, Y, loss="RankedListLoss", margin=0.3)
    text = str(found)
    assert "remaining" in text
    assert "RankedListLoss(margin=0.3)" in text
    assert "with seed 0" in text
    assert max(map(len, text.splitlines())) <= 120
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["losses"][0]["margins"]["default"] == 1.0
    assert next(each for each in content["losses"] if each["loss"] == "RankedListLoss")["margins"]["default"] is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    found = suggest(X.to(dtype), Y.to(torch.int32))
    assert found.margin_for("ContrastiveLoss") == pytest.approx(WHOLE.margin_for("ContrastiveLoss"), abs=0.05)


def test_identical_rows_are_finite() -> None:
    found = suggest(torch.ones(12, 3), torch.arange(12) % 3)
    assert found.misordered == 1.0
    assert all(
        math.isfinite(value) for each in found.losses for rule, value in each.margins.items() if rule in STRATEGIES
    )


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"labels must be two classes or more.*got 1 with at most 96"):
        suggest(X, torch.zeros(96, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got 96 with at most 1"):
        suggest(X, torch.arange(96))
    with pytest.raises(ValueError, match="labels must be as long as embeddings"):
        suggest(X, Y[:5])
    with pytest.raises(ValueError, match="embeddings must be finite"):
        suggest(X.masked_fill(Y[:, None] == 0, math.nan), Y)
    with pytest.raises(TypeError, match=r"labels must be a torch\.Tensor"):
        suggest(X, Y.tolist())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the nearest: TripletMarginLoss"):
        suggest(X, Y, loss="TripletMargin")
    with pytest.raises(TypeError, match="NTXentLoss: it has none known"):
        suggest(X, Y, loss=losses.NTXentLoss())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": "64"}, "batch_size must be an integer, got str"),
        ({"batch_size": 64.0}, "batch_size must be an integer, got float"),
        ({"samples_per_class": 1}, "samples_per_class must be at least 2, got 1"),
        ({"batches": None}, "batches must be an integer, got NoneType"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": "a"}, "seed must be an integer, got str"),
    ],
)
def test_numbers_that_are_none_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        suggest(X, Y, **options)


def test_large_labels_stay_apart() -> None:
    labels = torch.tensor([2**53, 2**53 + 1] * 10)  # in float64 they are one number
    assert suggest(X[:20], labels).classes == 2
