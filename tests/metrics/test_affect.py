from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import distributed as dist

from adaptive_margin import functional as F
from adaptive_margin.metrics import AffectMetrics, affect_intervals, bootstrap_interval, feasible, rmse_bounds
from adaptive_margin.metrics.affect import FIGURES
from tests.references.concordance import ccc_slow, covariance, pcc_slow, rmse_slow, sagr_slow
from tests.training.processes import start_together

SLOW = {"rmse": rmse_slow, "sagr": sagr_slow, "pcc": pcc_slow, "ccc": ccc_slow}
SCALES = [1e-20, 1e-7, 1.0, 1e7, 1e18]
UNITLESS = ("sagr", "pcc", "ccc")
degenerate_is_fine = pytest.mark.filterwarnings("ignore:all .* PCC is undefined")


def scores(y: torch.Tensor, p: torch.Tensor, sizes: list[int] | None = None) -> dict[str, dict[str, float]]:
    metrics = AffectMetrics([f"label {i}" for i in range(y.shape[1])])
    for a, b in zip(y.split(sizes or len(y)), p.split(sizes or len(y)), strict=True):
        metrics.update(a, b)
    assert metrics.count == len(y)
    return metrics.compute()


@st.composite
def label_pairs(draw, least=1):
    n = draw(st.integers(least, 20))
    numbers = draw(st.sampled_from([st.floats(-1, 1, width=32), st.integers(-3, 3), st.just(0.1)]))
    y = draw(st.lists(st.tuples(numbers, numbers), min_size=n, max_size=n))
    near = draw(st.booleans())  # predictions near the labels, where cancellation would show
    p = draw(st.lists(st.tuples(numbers, numbers), min_size=n, max_size=n))
    y, p = torch.tensor(y, dtype=torch.float64), torch.tensor(p, dtype=torch.float64)
    return y, (y + 1e-3 * p if near else p)


@st.composite
def shards(draw, n):
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=4)))
    return [b - a for a, b in zip([0, *cuts], [*cuts, n], strict=True)]


@degenerate_is_fine
@given(label_pairs(), st.sampled_from(SCALES))
def test_matches_the_loop(pair, scale):
    y, p = (x * scale for x in pair)
    ours = scores(y, p)
    for name, slow in SLOW.items():
        unit = scale if name == "rmse" else 1
        for i in range(2):
            expected = slow(y[:, i].tolist(), p[:, i].tolist())
            assert ours[name][f"label {i}"] / unit == pytest.approx(expected / unit, rel=1e-9, abs=1e-12)
        both = [ours[name]["label 0"], ours[name]["label 1"]]
        assert ours[name]["mean"] == pytest.approx(sum(both) / 2, rel=1e-15)
    for i in range(2):
        variance = covariance(y[:, i].tolist(), y[:, i].tolist())
        assert ours["label_sd"][f"label {i}"] / scale == pytest.approx(math.sqrt(variance) / scale, abs=1e-12)
    assert "mean" not in ours["label_sd"]


@degenerate_is_fine
@given(label_pairs(), st.sampled_from(SCALES), st.data())
def test_any_split_into_uneven_shards_gives_the_same_figures(pair, scale, data):
    y, p = (x * scale for x in pair)
    whole, parts = scores(y, p), scores(y, p, data.draw(shards(len(y))))
    for name in whole:
        unit = 1 if name in UNITLESS else scale
        for label in whole[name]:
            assert parts[name][label] / unit == pytest.approx(whole[name][label] / unit, rel=1e-12, abs=1e-12)


@degenerate_is_fine
@given(label_pairs(least=2), st.sampled_from(SCALES))
def test_no_rmse_is_less_than_the_correlation_allows(pair, scale):
    """RMSE² >= (1 − PCC²)·Var(label), which most rows of the published AffectNet table break."""
    y, p = (x * scale for x in pair)
    ours = scores(y, p)
    for label, sd in ours["label_sd"].items():
        rmse, pcc, ccc = (ours[name][label] for name in ("rmse", "pcc", "ccc"))
        assert rmse**2 >= (1 - pcc**2) * sd**2 * (1 - 1e-9) - 1e-12 * scale**2
        assert abs(ccc) <= abs(pcc) + 1e-12
        rounded = [round(x / unit, 3) for x, unit in ((rmse, scale), (pcc, 1), (ccc, 1))]
        assert feasible(rounded[0], rounded[1], sd / scale, rounding=5e-4, ccc=rounded[2])


def test_agrees_with_the_functions_on_a_large_set_in_batches():
    y = torch.rand(5000, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    p = (y + torch.randn(5000, 2, generator=torch.Generator().manual_seed(1)) * 0.3).half()
    metrics = AffectMetrics()
    for a, b in zip(y.split(16), p.split(16), strict=True):
        metrics.update(a, b)
    ours = metrics.compute()
    functions = {
        "rmse": F.root_mean_square_error,
        "sagr": F.sign_agreement,
        "pcc": F.pearson_correlation,
        "ccc": F.concordance_correlation,
    }
    for name, function in functions.items():
        valence, arousal = function(y, p, dtype=torch.float64).tolist()
        assert ours[name]["valence"] == pytest.approx(valence, rel=1e-12)
        assert ours[name]["arousal"] == pytest.approx(arousal, rel=1e-12)


def test_the_rmse_is_not_the_mean_of_batches():
    """The authors' released code averages over batches of 16, which is less."""
    y = torch.rand(320, 2, generator=torch.Generator().manual_seed(0)).double()
    p = torch.rand(320, 2, generator=torch.Generator().manual_seed(1)).double()
    of_batches = torch.stack([F.root_mean_square_error(a, b) for a, b in zip(y.split(16), p.split(16), strict=True)])
    ours = scores(y, p, [16] * 20)["rmse"]["label 0"]
    assert ours == pytest.approx(F.root_mean_square_error(y, p)[0].item())
    assert of_batches.mean(dim=0)[0] < ours * 0.999


def test_a_large_offset_loses_nothing():
    y = torch.rand(200, 1, generator=torch.Generator().manual_seed(0)).double()
    p = torch.rand(200, 1, generator=torch.Generator().manual_seed(1)).double()
    near, far = scores(y, p, [7] * 28 + [4]), scores(y + 2**20, p + 2**20, [7] * 28 + [4])
    for name in ("rmse", "pcc", "ccc"):
        assert far[name]["label 0"] == pytest.approx(near[name]["label 0"], rel=1e-8)


def test_merging_is_updating():
    y, p = torch.randn(30, 2), torch.randn(30, 2)
    first, second = AffectMetrics(), AffectMetrics()
    first.update(y[:11], p[:11])
    second.update(y[11:], p[11:])
    assert first.merge(second) is first
    assert first.count == 30
    assert second.count == 19
    whole = AffectMetrics()
    whole.update(y, p)
    for name, of_label in whole.compute().items():
        assert first.compute()[name] == pytest.approx(of_label, rel=1e-12)
    with pytest.raises(ValueError, match=r"other must be of the labels .* merge like with like"):
        first.merge(AffectMetrics(["arousal", "valence"]))


def test_takes_what_predictions_come_as():
    y, p = np.random.default_rng(0).normal(size=(2, 12, 2)).astype(np.float32)
    expected = AffectMetrics()
    expected.update(y, p)
    for target, prediction in (
        (torch.from_numpy(y), torch.from_numpy(p).requires_grad_()),
        (y.tolist(), p.tolist()),
        (np.asfortranarray(y), p[::-1][::-1]),
    ):
        metrics = AffectMetrics()
        metrics.update(target, prediction)
        assert metrics.compute() == expected.compute()
    one = AffectMetrics(["intensity"])
    one.update(y[:, 0], p[:, 0])
    assert one.compute()["ccc"]["intensity"] == pytest.approx(expected.compute()["ccc"]["valence"], rel=1e-14)


def test_reset_and_empty_batches():
    metrics = AffectMetrics()
    metrics.update(torch.empty(0, 2), torch.empty(0, 2))
    with pytest.raises(ValueError, match="compute must be called after update, got no samples"):
        metrics.compute()
    metrics.update(torch.randn(3, 2), torch.randn(3, 2))
    metrics.reset()
    assert metrics.count == 0


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([0.5, 0.1, 0.3], [0.1, 0.1, 0.1], "all 3 predictions of intensity are 0.1: its PCC is undefined"),
        ([0.1, 0.1, 0.1], [0.5, 0.1, 0.3], "all 3 labels of intensity are 0.1"),
        ([0.7], [0.2], "all 1 (labels|predictions) of intensity are 0.[72]"),
    ],
)
def test_degenerate_input_warns_and_has_a_defined_value(y, p, message):
    metrics = AffectMetrics(["intensity"])
    for a, b in zip(y, p, strict=True):  # one at a time: a constant stays one when means are merged
        metrics.update([a], [b])
    with pytest.warns(UserWarning, match=message) as caught:
        ours = metrics.compute()
    assert caught[0].filename == __file__
    assert ours["pcc"] == ours["ccc"] == {"intensity": 0.0, "mean": 0.0}
    assert ours["rmse"]["intensity"] == pytest.approx(rmse_slow(y, p))


@pytest.mark.parametrize("value", [0.1, 0.7, -1 / 3])
@pytest.mark.parametrize("sizes", [[7], [10, 3], [97, 1, 1000]])
def test_the_mean_of_a_constant_has_no_rounding(value, sizes):
    """Or else rounding errors would be correlated with the labels."""
    metrics = AffectMetrics(["intensity"])
    for n in sizes:
        metrics.update(torch.randn(n), torch.full((n,), value, dtype=torch.float64))
    with pytest.warns(UserWarning, match=f"all {sum(sizes)} predictions of intensity are {value:.6g}"):
        ours = metrics.compute()
    assert ours["pcc"]["intensity"] == ours["ccc"]["intensity"] == 0


def test_merging_what_has_seen_nothing():
    metrics = AffectMetrics(["intensity"]).merge(AffectMetrics(["intensity"]))
    metrics.update([0.1, 0.5], [0.2, 0.4])
    metrics.merge(AffectMetrics(["intensity"]))
    ours = metrics.compute()
    assert ours["rmse"]["intensity"] == pytest.approx(0.1)
    assert ours["pcc"]["intensity"] == pytest.approx(1.0)
    assert ours["ccc"]["intensity"] == pytest.approx(2 * 0.02 / (0.04 + 0.01))


def test_a_perfect_constant_is_still_no_evidence_of_agreement():
    metrics = AffectMetrics(["intensity"])
    metrics.update([0.3] * 5, [0.3] * 5)
    with pytest.warns(UserWarning, match="PCC is undefined"):
        ours = metrics.compute()
    assert [ours[name]["intensity"] for name in ("rmse", "sagr", "pcc", "ccc")] == [0.0, 1.0, 0.0, 0.0]


def test_sound_input_does_not_warn():
    metrics = AffectMetrics()
    metrics.update(torch.randn(5, 2), torch.randn(5, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.compute()


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        (
            torch.ones(3),
            torch.ones(3),
            r"target must be of shape \(N, 2\), a column for each of valence, arousal, got shape",
        ),
        (torch.ones(3, 2), torch.ones(3, 3), "prediction must be of shape"),
        (torch.ones(3, 2), torch.ones(4, 2), r"prediction must be of target's shape \(3, 2\), got shape \(4, 2\)"),
        (torch.full((3, 2), torch.nan), torch.ones(3, 2), "target must be finite, got 6 NaN"),
        (torch.ones(3, 2), np.full((3, 2), np.inf), "prediction must be finite"),
    ],
)
def test_bad_update(y, p, message):
    metrics = AffectMetrics()
    with pytest.raises(ValueError, match=message):
        metrics.update(y, p)
    assert metrics.count == 0


@pytest.mark.parametrize("labels", [[], ["valence", "valence"], ["mean"]])
def test_bad_labels(labels):
    with pytest.raises(ValueError, match="labels must be one or more different names, none of them 'mean'"):
        AffectMetrics(labels)


# Processes


def data_of_ranks() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Uneven: 23 samples, and 5, of which the first process has a constant part."""
    generator = torch.Generator().manual_seed(0)
    y, p = torch.randn(28, 2, generator=generator), torch.randn(28, 2, generator=generator)
    return [(y[:23], p[:23]), (y[23:], p[23:])]


def evaluate(rank: int, directory: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    metrics = AffectMetrics()
    if rank == 0:
        metrics.update(*data_of_ranks()[0])
    first = metrics.synchronize().compute()  # when the other process has seen nothing
    if rank == 1:
        metrics.update(*data_of_ranks()[1])
    both = metrics.synchronize().compute()
    again = metrics.synchronize().compute()  # counts nobody twice
    torch.save((metrics.count, first, both, again), f"{directory}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    start_together(evaluate, str(tmp_path))
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert [count for count, *_ in results] == [23, 5]
    assert results[0][1:] == results[1][1:]  # the same bits everywhere
    _, first, both, again = results[0]
    assert both == again
    whole = AffectMetrics()
    for joined, (y, p) in zip((first, both), data_of_ranks(), strict=True):
        whole.update(y, p)
        for name, of_label in whole.compute().items():
            assert joined[name] == pytest.approx(of_label, rel=1e-12)


def test_synchronize_without_processes_is_a_copy():
    metrics = AffectMetrics()
    metrics.update(torch.randn(5, 2), torch.randn(5, 2))
    joined = metrics.synchronize()
    assert joined.compute() == metrics.compute()
    joined.reset()
    assert metrics.count == 5


# Feasibility

# Kim & Song 2021, Table 1: RMSE, PCC, CCC of valence and arousal; whether they can be pooled figures of the usual
# 3,999 validation labels, whose standard deviations are 0.466 and 0.380.
VALENCE, AROUSAL = 0.466, 0.380
PUBLISHED = [
    ("Kossaifi 2020, valence", 0.35, 0.71, 0.71, VALENCE, True),
    ("Kossaifi 2020, arousal", 0.32, 0.63, 0.63, AROUSAL, True),
    ("BReG-NeXt, valence", 0.2668, 0.78, 0.74, VALENCE, False),
    ("BReG-NeXt, arousal", 0.2482, 0.86, 0.85, AROUSAL, False),
    ("CAF ResNet18, valence", 0.2186, 0.86, 0.83, VALENCE, False),
    ("CAF ResNet18, arousal", 0.1873, 0.85, 0.84, AROUSAL, False),
    ("CAF AlexNet, valence", 0.2216, 0.81, 0.80, VALENCE, False),
    ("CAF AlexNet, arousal", 0.1916, 0.86, 0.85, AROUSAL, True),
]


@pytest.mark.parametrize(("row", "rmse", "pcc", "ccc", "sd", "possible"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_the_published_table(row, rmse, pcc, ccc, sd, possible):
    assert feasible(rmse, pcc, sd, rounding=0.005, ccc=ccc) == possible


@pytest.mark.parametrize(
    ("pcc", "ccc", "sd", "low", "high"),
    [
        (0.86, 0.83, VALENCE, 0.238, 0.330),
        (0.85, 0.84, AROUSAL, 0.197, 0.246),
        (0.81, 0.80, VALENCE, 0.270, 0.338),
        (0.86, 0.85, AROUSAL, 0.190, 0.238),
        (0.78, 0.74, VALENCE, 0.290, 0.421),
    ],
)
def test_bounds_of_the_published_table(pcc, ccc, sd, low, high):
    assert rmse_bounds(pcc, sd, ccc, rounding=0.005) == pytest.approx((low, high), abs=1e-3)


def test_the_label_sd_a_published_row_would_need():
    # ResNet18 valence, 0.2186 at PCC 0.86 (at most 0.865): sd of at most 0.2186 / sqrt(1 − 0.865²) = 0.436
    assert rmse_bounds(0.865, 0.4356)[0] < 0.2186 < rmse_bounds(0.865, 0.4358)[0]


@given(label_pairs(least=2), st.sampled_from([1, 2, 3]))
def test_bounds_hold_what_predictions_reach(pair, digits):
    y, p = (x[:, 0].tolist() for x in pair)
    rmse, ccc = rmse_slow(y, p), ccc_slow(y, p)
    pcc = max(-1.0, min(1.0, pcc_slow(y, p)))
    sd = math.sqrt(covariance(y, y))
    low, high = rmse_bounds(round(pcc, digits), sd, round(ccc, digits), rounding=0.5 * 10**-digits)
    assert low * (1 - 1e-9) - 1e-9 <= rmse <= high * (1 + 1e-9) + 1e-9
    assert feasible(rmse, pcc, sd, rounding=1e-9)


@pytest.mark.parametrize("side", [-1, 1])
def test_bounds_are_reached(side):
    """Predictions on a line through the mean, of either of the two scales that have this PCC and CCC."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=50)
    noise = rng.normal(size=50)
    noise -= noise.mean() + (y - y.mean()) * np.cov(y, noise, bias=True)[0, 1] / y.var()
    p = y - y.mean() + noise * y.std() / noise.std()  # PCC = 1/√2
    p = p / p.std() * y.std() * (0.5 if side < 0 else 2.0) + y.mean()
    rmse, pcc, ccc = (slow(y.tolist(), p.tolist()) for slow in (rmse_slow, pcc_slow, ccc_slow))
    low, high = rmse_bounds(pcc, float(y.std()), ccc)
    assert pcc == pytest.approx(math.sqrt(0.5))
    assert rmse == pytest.approx(low if side < 0 else high, rel=1e-9)


def test_a_ccc_above_the_pcc_is_infeasible():
    assert not feasible(0.1, 0.5, 0.4, ccc=0.6, rounding=0.005)
    with pytest.raises(ValueError, match="ccc must be at most pcc"):
        rmse_bounds(0.5, 0.4, 0.6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pcc": 1.2}, r"pcc must be finite and in \[-1.0, 1.0\], got 1.2"),
        ({"ccc": -2.0}, "ccc must be finite"),
        ({"label_sd": -0.1}, "label_sd must be finite"),
        ({"rounding": math.nan}, "rounding must be finite"),
        ({"rmse": -0.1}, "rmse must be finite and at least 0"),
    ],
)
def test_bad_figures(options, message):
    with pytest.raises(ValueError, match=message):
        feasible(**{"rmse": 0.3, "pcc": 0.5, "label_sd": 0.4, **options})


# Intervals


def noisy(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n, 2))
    return torch.from_numpy(y), torch.from_numpy(y + rng.normal(size=(n, 2)))


def test_interval_agrees_with_scipy():
    y, p = noisy(150)
    ours = bootstrap_interval(F.concordance_correlation, y, p, resamples=4000)
    assert torch.equal(ours.estimate, F.concordance_correlation(y, p))

    def ccc(target, prediction):
        return ccc_slow(target.tolist(), prediction.tolist())

    for i in range(2):
        data = (y[:, i].numpy(), p[:, i].numpy())
        theirs = stats.bootstrap(
            data,
            ccc,
            paired=True,
            vectorized=False,
            n_resamples=2000,
            method="percentile",
            random_state=np.random.default_rng(1),
        ).confidence_interval
        width = theirs.high - theirs.low
        assert ours.low[i].item() == pytest.approx(theirs.low, abs=0.1 * width)
        assert ours.high[i].item() == pytest.approx(theirs.high, abs=0.1 * width)


def rmse(target: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    return (target - prediction).square().mean(dim=0).sqrt()


def test_interval_covers_the_truth_as_often_as_it_says():
    # the noise has standard deviation 1, the RMSE's true value. Of 200 intervals of 80%, 160 ± 5.7 hold it
    hits = 0
    for seed in range(200):
        y, p = noisy(80, seed)
        interval = bootstrap_interval(rmse, y[:, 0], p[:, 0], confidence=0.8, resamples=100, seed=seed)
        hits += bool(interval.low <= 1.0 <= interval.high)
    assert 140 <= hits <= 178


def test_seed_decides():
    y, p = noisy(40)
    first, second, other = (bootstrap_interval(F.pearson_correlation, y, p, resamples=50, seed=s) for s in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.low, other.low)
    assert torch.equal(first.estimate, other.estimate)


def test_confidence_widens():
    y, p = noisy(40)
    wide, narrow = (bootstrap_interval(F.root_mean_square_error, y, p, confidence=c) for c in (0.99, 0.5))
    assert (wide.low < narrow.low).all()
    assert (narrow.high < wide.high).all()


def test_groups_are_drawn_whole():
    """Ten copies of each sample, grouped, say no more than the samples; ungrouped, they pretend to."""
    y, p = noisy(60)
    people = [f"person {i:02d}" for i in range(60)]
    single = bootstrap_interval(F.concordance_correlation, y, p, resamples=300)
    grouped = bootstrap_interval(
        F.concordance_correlation, y.repeat(10, 1), p.repeat(10, 1), groups=people * 10, resamples=300
    )
    for a, b in zip(single, grouped, strict=True):
        assert a.tolist() == pytest.approx(b.tolist(), rel=1e-9)
    pretended = bootstrap_interval(F.concordance_correlation, y.repeat(10, 1), p.repeat(10, 1), resamples=300)
    assert ((pretended.high - pretended.low) < 0.5 * (grouped.high - grouped.low)).all()


def test_groups_of_unequal_size_keep_all_their_rows():
    y = torch.tensor([1.0, 1.0, 1.0, 5.0, 7.0, 7.0]).double()
    groups = np.array([2, 2, 2, -1, 9, 9])
    seen = []

    def record(target, prediction):
        seen.append(target.tolist())
        return target.mean()

    bootstrap_interval(record, y, y, groups=groups, resamples=100)
    drawn = {tuple(sorted(sample)) for sample in seen}
    whole = [[1.0] * 3, [5.0], [7.0] * 2]
    possible = {tuple(sorted(a + b + c)) for a in whole for b in whole for c in whole}
    assert drawn <= possible
    assert len(drawn) == len(possible) == 10


def test_metric_of_any_shape():
    y, p = noisy(30)
    mean = bootstrap_interval(lambda a, b: F.concordance_correlation(a, b).mean(), y, p, resamples=20)
    assert mean.low.shape == ()
    assert mean.low <= mean.estimate <= mean.high
    assert bootstrap_interval(F.affect_loss, y.numpy(), p.numpy(), resamples=20).estimate.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 1.0}, "confidence must be between 0 and 1, got 1.0"),
        ({"prediction": torch.tensor([1.0, 2, torch.nan, 4, 5])}, "prediction must be finite"),
        ({"target": torch.tensor([1.0, 2, 3, 4, torch.inf])}, "target must be finite"),
        ({"resamples": 0}, "resamples must be at least 1"),
        ({"groups": [1, 2]}, r"groups must be one for each of 5 rows, got shape \(2,\)"),
        ({"groups": [1] * 5}, "groups must be two or more to draw from, got 1"),
        ({"prediction": torch.ones(4)}, r"target and prediction must be of one shape.* \(5,\) and \(4,\)"),
        ({"target": torch.ones(1), "prediction": torch.ones(1)}, "target must be two or more to draw from"),
    ],
)
def test_bad_options_of_the_bootstrap(options, message):
    arguments = {"target": torch.ones(5), "prediction": torch.ones(5), **options}
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(F.pearson_correlation, **arguments)


def test_intervals_of_a_prediction_that_is_no_number_are_none() -> None:
    y = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"prediction must be finite.*\(7, 0\)"):
        affect_intervals(y, y.index_put((torch.tensor(7), torch.tensor(0)), torch.tensor(torch.nan)))


def _all_figures(y: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Slow: the figures one by one, then their means."""
    rows = torch.stack([figure(y, p) for figure in FIGURES.values()])
    return torch.cat([rows, rows.mean(dim=1, keepdim=True)], dim=1)


@pytest.mark.parametrize("groups", [None, np.arange(60) % 7, np.repeat([3, 1, 8], [50, 9, 1])])
@pytest.mark.parametrize("shape", ["noisy", "offset", "constant", "nearly constant", "tiny", "perfect"])
def test_all_figures_at_once_have_the_intervals_of_each(groups: np.ndarray | None, shape: str) -> None:
    draw = np.random.default_rng(0)
    y = draw.normal(size=(60, 2))
    p = y + draw.normal(size=(60, 2))
    match shape:
        case "offset":
            y, p = y + 1e4, p + 1e4
        case "constant":
            p = np.full_like(p, 0.3)
        case "nearly constant":
            p = 0.3 + 1e-9 * p
        case "tiny":
            y, p = 1e-12 * y, 1e-12 * p
        case "perfect":
            p = y
    found = affect_intervals(y, p, groups=groups, resamples=40, seed=3)
    expected = bootstrap_interval(_all_figures, y, p, groups=groups, resamples=40, seed=3)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-13 if shape == "tiny" else 1e-7)


def test_all_figures_at_once_refuse_what_one_figure_refuses() -> None:
    with pytest.raises(ValueError, match="target"):
        affect_intervals(torch.zeros(4), torch.zeros(4))
    with pytest.raises(ValueError, match="groups"):
        affect_intervals(torch.zeros(4, 2), torch.zeros(4, 2), groups=[1, 1, 1, 1])
