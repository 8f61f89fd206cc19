"""A miner with the margin of the batch: the index tuple of the stock miner built with that margin."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses, miners
from torch import Tensor
from torch.nn.functional import normalize

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, AdaptiveMarginMiner, ConstantMargin, LinearMargin
from tests.losses.cases import CLASSES, FEATURES, batch

F64 = torch.float64
Build = Callable[..., Any]
STOCK: dict[str, tuple[Build, tuple[float, ...]]] = {  # with numbers that are not the default
    "all": (lambda **kw: miners.TripletMarginMiner(**kw), (0.0, 0.05, 1)),
    "hard": (lambda **kw: miners.TripletMarginMiner(type_of_triplets="hard", **kw), (-0.3, -0.1)),
    "semihard": (lambda **kw: miners.TripletMarginMiner(type_of_triplets="semihard", **kw), (0.05, 0.5)),
    "easy": (lambda **kw: miners.TripletMarginMiner(type_of_triplets="easy", **kw), (0.05, 0.5)),
    "pairs": (lambda margin=0.8, **kw: miners.PairMarginMiner(neg_margin=margin, **kw), (0.4, 1.2)),
    "similar": (lambda margin=0.1, **kw: miners.MultiSimilarityMiner(epsilon=margin, **kw), (0.0, 0.4)),
}
every_miner = pytest.mark.parametrize("name", STOCK)


def names(distance: Any) -> list[str]:
    return [name for name in STOCK if name != "similar" or distance.is_inverted]


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    assert len(ours) == len(theirs)
    for mine, stock in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.int64
        assert torch.equal(mine, stock)


def both() -> list[tuple[Any, ...]]:
    """A batch, and a batch with a reference set."""
    embeddings, labels = batch(dtype=F64, spread=0.8)
    ref_emb, ref_labels = batch(9, seed=1, dtype=F64, spread=0.8)
    return [(embeddings, labels), (embeddings, labels, ref_emb, ref_labels)]


def test_the_table_lists_every_miner_with_its_constructor_argument() -> None:
    supported = AdaptiveMarginMiner.supported()
    expected = {
        "TripletMarginMiner": ("margin", "sqrt"),
        "PairMarginMiner": ("neg_margin", "offset"),
        "MultiSimilarityMiner": ("epsilon", "replace"),
    }
    assert {name: row.attribute for name, row in supported.items()} == {name: it for name, (it, _) in expected.items()}
    for name, (_, waiting) in expected.items():
        stock = getattr(miners, name)()
        assert AdaptiveMarginMiner(stock).units == supported[name].units == "geometry"
        assert AdaptiveMarginMiner(stock, AdaptiveMargin(neighbourhood="hoeffding")).units == waiting
    for name, row in supported.items():
        assert row.attribute in inspect.signature(getattr(miners, name).__init__).parameters


@pytest.mark.parametrize(
    "miner",
    [
        miners.AngularMiner(),
        miners.BatchHardMiner(),
        miners.DistanceWeightedMiner(),
        miners.HDCMiner(),
        losses.TripletMarginLoss(),
        AdaptiveMarginMiner(miners.TripletMarginMiner()),
        "semihard",
    ],
    ids=lambda miner: type(miner).__name__,
)
def test_what_has_no_margin_is_refused(miner: object) -> None:
    message = (
        r"AdaptiveMarginMiner cannot exchange the margin of \w+: it has none known. Supported: TripletMarginMiner, "
    )
    with pytest.raises(TypeError, match=message):
        AdaptiveMarginMiner(miner)


@pytest.mark.parametrize("granularity", ["anchor", "pair"])
def test_one_margin_a_batch_is_all_that_a_miner_takes(granularity: Any) -> None:
    message = f"margin.granularity must be 'batch', got '{granularity}'; TripletMarginMiner .* a pair goes into"
    with pytest.raises(ValueError, match=message):
        AdaptiveMarginMiner(miners.TripletMarginMiner(), AdaptiveMargin(granularity=granularity))


@every_miner
@pytest.mark.parametrize("units", [None, "replace"])
def test_a_constant_margin_is_the_stock_miner(name: str, units: Any) -> None:
    build, numbers = STOCK[name]
    for args in both():
        for number in numbers:
            stock = build(margin=number)(*args)
            for margin in (number, ConstantMargin(number), LinearMargin(number - 0.01, 0.01)):
                miner = AdaptiveMarginMiner(build(), margin, units)
                if isinstance(margin, LinearMargin):
                    margin.step_epoch()
                    assert margin.value == pytest.approx(number)
                    assert_same(miner(*args), build(margin=margin.value)(*args))
                else:
                    assert_same(miner(*args), stock)
            sizes = [len(index) for index in stock]
            assert sizes != [len(index) for index in build()(*args)], f"{number} is no test of {name}"


DISTANCES: list[tuple[Any, dict[str, Any]]] = [
    # the distance; of units, the threshold and the gap that α̂ means, own margin m
    (
        distances.LpDistance(),
        {
            "default": (lambda a, m: math.sqrt(a), lambda a, m: a / 4),
            "sqrt": (lambda a, m: math.sqrt(a), lambda a, m: math.sqrt(a)),
            "replace": (lambda a, m: a, lambda a, m: a),
            "offset": (lambda a, m: m + a, lambda a, m: m + a),
        },
    ),
    (
        distances.LpDistance(power=2),
        {
            "default": (lambda a, m: a, lambda a, m: a),
            "replace": (lambda a, m: a, lambda a, m: a),
            "sqrt": (lambda a, m: math.sqrt(a), lambda a, m: math.sqrt(a)),
        },
    ),
    (
        distances.CosineSimilarity(),
        {
            "default": (lambda a, m: 1 - a / 2, lambda a, m: a / 2),
            "replace": (lambda a, m: 1 - a / 2, lambda a, m: a),
            "offset": (lambda a, m: m - a / 2, lambda a, m: m + a),
        },
    ),
    (
        distances.SNRDistance(),
        {"default": (lambda a, m: a, lambda a, m: a), "offset": (lambda a, m: m + a, lambda a, m: m + a)},
    ),
]


@pytest.mark.parametrize(
    ("name", "distance", "of"),
    [
        pytest.param(name, distance, of, id=f"{name}-{type(distance).__name__}-{distance.power}")
        for distance, of in DISTANCES
        for name in names(distance)
    ],
)
def test_an_adaptive_margin_is_the_stock_miner_built_with_it(name: str, distance: Any, of: dict[str, Any]) -> None:
    build, _ = STOCK[name]
    for args in both():
        seen = [x if i % 2 else normalize(x) for i, x in enumerate(args)]
        alpha = AdaptiveMargin()(seen[0], seen[1], None, *seen[2:]).item()
        for units, meanings in of.items():
            translated = meanings[0 if name == "pairs" else 1](alpha, 0.15)
            stock = build(distance=distance, margin=translated)(*args)
            miner = AdaptiveMarginMiner(
                build(distance=distance, margin=0.15), None, None if units == "default" else units, collect_stats=True
            )
            assert_same(miner(*args), stock)
            assert miner.current_margin == pytest.approx(translated)


@every_miner
@pytest.mark.parametrize("margin", [0.3, AdaptiveMargin()], ids=["0.3", "adaptive"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_wrapped_miner_is_left_as_it_was(name: str, margin: Any, fails: bool) -> None:
    build, _ = STOCK[name]
    stock = build()
    own = dict(vars(stock))
    miner = AdaptiveMarginMiner(stock, margin)
    assert miner.miner is stock
    attribute = miner.exchange.attribute
    inside = []

    def look(module: Any, _: Any) -> None:
        inside.append(getattr(module, attribute))
        if fails:
            raise KeyboardInterrupt

    hook = stock.register_forward_pre_hook(look)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            miner(*batch())
    else:
        miner(*batch())
    hook.remove()
    assert inside
    assert inside != [own[attribute]]
    counts = {"num_triplets", "num_pos_pairs", "num_neg_pairs"}  # the host's own statistics of the call
    assert {key: value for key, value in vars(stock).items() if key not in counts} == {
        key: value for key, value in own.items() if key not in counts
    }


def test_nothing_is_copied_and_a_new_distance_reaches_the_miner() -> None:
    distance, margin = distances.LpDistance(), AdaptiveMargin()
    stock = miners.TripletMarginMiner(distance=distance)
    miner = AdaptiveMarginMiner(stock, margin)
    assert miner.miner is stock
    assert miner.margin is margin
    assert miner.distance is stock.distance is distance
    assert set(miner._modules) == {"miner", "margin"}
    other = distances.CosineSimilarity()
    miner.distance = other
    assert miner.distance is stock.distance is other


def test_a_subclass_has_its_parents_margin() -> None:
    class Mine(miners.PairMarginMiner):
        pass

    assert_same(AdaptiveMarginMiner(Mine(), 1.2)(*batch()), miners.PairMarginMiner(neg_margin=1.2)(*batch()))


@every_miner
def test_a_reference_that_is_the_batch_is_the_batch(name: str) -> None:
    build, numbers = STOCK[name]
    embeddings, labels = batch(dtype=F64)
    for margin in (numbers[0], AdaptiveMargin()):
        miner = AdaptiveMarginMiner(build(), margin)
        assert_same(miner(embeddings, labels, embeddings, labels), miner(embeddings, labels))
    stock = build(margin=numbers[0])(embeddings, labels, embeddings, labels)
    assert_same(AdaptiveMarginMiner(build(), numbers[0])(embeddings, labels, embeddings, labels), stock)


def test_the_batch_with_labels_of_its_own_is_another_reference() -> None:
    embeddings, labels = batch(dtype=F64)
    miner = AdaptiveMarginMiner(miners.PairMarginMiner(), collect_stats=True)
    margins = []
    for reference in (embeddings, embeddings.clone()):
        miner(embeddings, labels, reference, labels.roll(1))
        margins.append(miner.current_margin)
    miner(embeddings, labels)
    assert margins[0] == pytest.approx(margins[1])
    assert margins[0] != pytest.approx(miner.current_margin)


@every_miner
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_half_precision_works(name: str, dtype: torch.dtype) -> None:
    build, numbers = STOCK[name]
    embeddings, labels = batch(dtype=dtype)
    mined = AdaptiveMarginMiner(build())(embeddings, labels)
    assert all(index.dtype == torch.int64 for index in mined)
    # the host's distance has no kernel for bfloat16, and works in float32 on such a batch
    as_host_sees = embeddings.float() if dtype == torch.bfloat16 and name != "similar" else embeddings
    assert_same(
        AdaptiveMarginMiner(build(), numbers[0])(embeddings, labels), build(margin=numbers[0])(as_host_sees, labels)
    )


def test_mining_leaves_no_graph() -> None:
    embeddings, labels = batch()
    seen = []

    class Looking(AdaptiveMargin):
        def forward(self, embeddings: Tensor, *args: Any) -> Tensor:  # type: ignore[override]
            alpha = super().forward(embeddings, *args)
            seen.append(alpha.requires_grad)
            return alpha

    mined = AdaptiveMarginMiner(miners.TripletMarginMiner(), Looking(detach=False))(embeddings, labels)
    assert seen == [False]
    assert not any(index.requires_grad for index in mined)


def test_statistics() -> None:
    embeddings, labels = batch()
    quiet = AdaptiveMarginMiner(miners.TripletMarginMiner())
    mined = quiet(embeddings, labels)
    with pytest.raises(AttributeError, match="collect_stats must be True to read current_margin, got False; pass coll"):
        quiet.current_margin  # noqa: B018
    assert quiet.num_triplets == quiet.miner.num_triplets == len(mined[0])
    miner = AdaptiveMarginMiner(miners.PairMarginMiner(), collect_stats=True)
    mined = miner(embeddings, labels)
    assert miner.current_margin == pytest.approx(math.sqrt(miner.margin.alpha))  # type: ignore[arg-type]
    assert (miner.num_pos_pairs, miner.num_neg_pairs) == (len(mined[0]), len(mined[2]))
    assert "current_margin" in miner._record_these_stats
    with pytest.raises(ValueError, match="embeddings must be finite"):
        miner(embeddings * math.nan, labels)
    assert math.isnan(miner.current_margin)
    assert miner.num_pos_pairs == 0  # the host's way: reset before each call


def test_as_a_module() -> None:
    args = batch()
    miner = AdaptiveMarginMiner(miners.TripletMarginMiner(), LinearMargin(0.0, 0.1))
    first = miner(*args)
    miner.margin.step_epoch()  # type: ignore[operator]
    expected = miner(*args)
    assert len(first[0]) != len(expected[0])
    for other in (copy.deepcopy(miner), pickle.loads(pickle.dumps(miner))):
        assert other.miner is not miner.miner
        assert_same(other(*args), expected)
    fresh = AdaptiveMarginMiner(miners.TripletMarginMiner(), LinearMargin(0.0, 0.1))
    assert set(miner.state_dict()) == {"margin.epoch"}
    fresh.load_state_dict(miner.state_dict())
    assert_same(fresh(*args), expected)
    assert "TripletMarginMiner.margin, units='replace'" in repr(miner)
    assert "LinearMargin(start=0.0, slope=0.1)" in repr(miner)


@every_miner
def test_mined_indices_go_into_an_adaptive_loss(name: str) -> None:
    embeddings, labels = batch(dtype=F64)
    miner = AdaptiveMarginMiner(STOCK[name][0]())
    mined = miner(embeddings, labels)
    assert sum(len(index) for index in mined) > 0
    for stock in (losses.TripletMarginLoss(), losses.ContrastiveLoss(), losses.MultiSimilarityLoss()):
        value = AdaptiveMarginLoss(stock)(embeddings, labels, mined)
        (grad,) = torch.autograd.grad(value, embeddings)
        assert torch.isfinite(value)
        assert torch.isfinite(grad).all()


Z, Y = torch.randn(12, FEATURES), torch.arange(12) % CLASSES


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((Z * math.nan, Y), ValueError, "embeddings must be finite, got 96 NaN"),
        ((Z[0], Y), ValueError, "embeddings must be a matrix"),
        ((Z.long(), Y), TypeError, "embeddings must be floating point"),
        ((Z + 1e30, Y), ValueError, "embeddings must be below .* in magnitude"),
        ((Z, Y[:5]), ValueError, r"labels must be as long as embeddings \(12 rows\), got 5 labels"),
        ((Z, Y[:, None]), ValueError, "labels must be one-dimensional"),
        ((Z, Y + 0.5), TypeError, "labels must be integers"),
        ((Z, None), ValueError, "labels must be given, got None"),
        ((Z, Y, Z[:5, :3], Y[:5]), ValueError, "ref_emb must be of the 8 features of embeddings"),
        ((Z, Y, Z[:5], Y[:4]), ValueError, r"ref_labels must be as long as ref_emb \(5 rows\), got 4 labels"),
        ((Z, Y, Z[:5]), ValueError, "ref_labels must be given with ref_emb, got None"),
        ((Z, Y, Z[:5] * math.inf, Y[:5]), ValueError, "ref_emb must be finite"),
    ],
)
def test_bad_input_is_refused_by_name(args: Any, error: type[Exception], message: str) -> None:
    for build, numbers in STOCK.values():
        for margin in (None, numbers[0]):
            with pytest.raises(error, match=message):
                AdaptiveMarginMiner(build(), margin)(*args)


@every_miner
def test_few_samples_and_coinciding_samples(name: str) -> None:
    build, numbers = STOCK[name]
    none = torch.zeros(0, dtype=torch.int64)
    for margin in (None, numbers[0]):
        for embeddings, labels in (
            (Z[:0], none),
            (Z[:1], Y[:1]),
            (Z[:2], Y[:2]),
            (Z[:2], Y[:1].expand(2)),
            (Z, Y * 0),
            (Z[:4], Y[:4]),
        ):
            miner = AdaptiveMarginMiner(build(), margin, collect_stats=True)
            mined = miner(embeddings, labels)
            assert math.isfinite(miner.current_margin) is (len(embeddings) > 0)
            assert len(mined[0]) == 0 or len(set(labels.tolist())) == 1  # there are no triplets; pairs of one class
        for embeddings in (Z[:1].repeat(12, 1), Z * 0):
            mined = AdaptiveMarginMiner(build(), margin)(embeddings, Y)
            assert all(((index >= 0) & (index < 12)).all() for index in mined)


@every_miner
@settings(max_examples=20)
@given(
    rows=st.integers(0, 9),
    scale=st.floats(-20, 18).map(lambda power: 10**power),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, F64]),
    classes=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_indices_are_right_or_the_input_is_refused(
    name: str, rows: int, scale: float, dtype: torch.dtype, classes: int, seed: int
) -> None:
    torch.manual_seed(seed)
    embeddings, labels = (torch.randn(rows, FEATURES).double() * scale).to(dtype), torch.randint(0, classes, (rows,))
    miner = AdaptiveMarginMiner(STOCK[name][0](), collect_stats=True)
    try:
        mined = miner(embeddings, labels)
    except ValueError as error:
        refusal = str(error)
    else:
        assert rows == 0 or math.isfinite(miner.current_margin)
        anchors, negatives = mined[-2 if len(mined) == 4 else 0], mined[-1]
        assert (labels[mined[0]] == labels[mined[1]]).all()
        assert (mined[0] != mined[1]).all()
        assert (labels[anchors] != labels[negatives]).all()
        return
    assert dtype == torch.float16
    assert "embeddings must be " in refusal


@pytest.mark.cuda
@every_miner
def test_cuda_agrees_with_the_cpu(name: str) -> None:
    for args in both():
        expected = AdaptiveMarginMiner(STOCK[name][0]())(*args)
        on_device = [x.detach().cuda() if x.is_floating_point() else x for x in args]  # labels stay on the CPU
        mined = AdaptiveMarginMiner(STOCK[name][0]())(*on_device)
        assert all(index.is_cuda for index in mined)
        assert_same(tuple(index.cpu() for index in mined), expected)
