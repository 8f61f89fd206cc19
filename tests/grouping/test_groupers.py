"""What both groupers share; each has its own file for the rest."""

from __future__ import annotations

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils import logging_presets

from adaptive_margin import Grouper, KMeansGrouper, OtsuGrouper
from adaptive_margin import functional as F
from tests.references.otsu import groups_slow, kmeans_threshold_slow, otsu_threshold_slow

GROUPERS = {
    "otsu": (OtsuGrouper, otsu_threshold_slow),
    "k=2": (lambda **options: KMeansGrouper(k=2, **options), lambda v: kmeans_threshold_slow(v, 2)),
    "k=3": (lambda **options: KMeansGrouper(k=3, **options), lambda v: kmeans_threshold_slow(v, 3)),
}
every_grouper = pytest.mark.parametrize("name", GROUPERS)
SCALES = [1e-20, 1e-7, 1.0, 3.0, 1e7, 1e18]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@st.composite
def label_rows(draw, least=1):
    columns = draw(st.integers(1, 3))
    numbers = draw(st.sampled_from([st.integers(-10, 10), st.integers(0, 2), st.just(7)]))
    return draw(st.lists(st.tuples(*[numbers] * columns), min_size=least, max_size=12))


@every_grouper
@given(label_rows(), st.sampled_from(SCALES), st.booleans())
def test_matches_algorithm_1_sample_by_sample(name, rows, scale, magnitude):
    make, threshold = GROUPERS[name]
    y = torch.tensor(rows, dtype=torch.float64) * scale
    grouper = make(on_empty="keep", magnitude=magnitude)
    groups = grouper(y)
    assert groups.dtype == torch.int64
    expected = groups_slow(y.tolist(), threshold, magnitude)
    r, radius = y.norm(dim=1), grouper.radius
    undecided = ((r - radius).abs() <= 1e-12 * (radius + scale)).tolist()  # on the threshold to rounding
    differ = [a != b and not u for a, b, u in zip(groups.tolist(), expected, undecided, strict=True)]
    assert not any(differ)


@every_grouper
@given(label_rows(least=2), st.sampled_from(DTYPES), st.sampled_from(["median", "keep"]), st.sampled_from([None, 5.0]))
def test_groups_are_where_the_radius_says(name, rows, dtype, on_empty, max_radius):
    y = torch.tensor(rows).to(dtype)
    grouper = GROUPERS[name][0](on_empty=on_empty, max_radius=max_radius)
    groups = grouper(y)
    r = y.double().square().sum(dim=1).sqrt()
    expected = (r >= grouper.radius).long()
    if max_radius is not None:
        expected[r >= max_radius] = -1
    assert torch.equal(groups, expected)
    assert isinstance(grouper.radius, float)
    assert grouper.thresholds.shape == (y.shape[1],)
    assert grouper.thresholds.dtype == dtype


@every_grouper
@given(label_rows(least=2), st.sampled_from([torch.float64, torch.float32]), st.sampled_from(SCALES))
def test_median_leaves_no_group_empty_that_can_be_filled(name, rows, dtype, scale):
    y = torch.tensor(rows, dtype=dtype) * scale
    groups = GROUPERS[name][0](on_empty="median")(y)
    kept = GROUPERS[name][0](on_empty="keep")(y)
    if len(set(kept.tolist())) == 2:
        assert torch.equal(groups, kept)
    r = y.double().square().sum(dim=1).sqrt()
    if r.min() < r.max():
        assert set(groups.tolist()) == {0, 1}
    else:
        assert set(groups.tolist()) == set(kept.tolist())


def test_median_halves_a_batch_whose_groups_come_out_empty():
    y = torch.tensor([[0.5, 0.7], [0.9, 0.6], [0.2, 1.0], [0.5, 0.6]])  # radii .86 1.08 1.02 .78, threshold 1.10
    keep, median = OtsuGrouper(on_empty="keep"), OtsuGrouper()
    assert keep(y).tolist() == [0, 0, 0, 0]
    assert keep.radius == pytest.approx(math.hypot(0.7, 0.85))
    assert median(y).tolist() == [0, 1, 1, 0]
    assert median.radius == pytest.approx((math.hypot(0.5, 0.7) + math.hypot(0.2, 1.0)) / 2)
    assert torch.equal(median.thresholds, keep.thresholds)


def test_median_moves_above_a_tie_at_the_smallest_radius():
    # |first| 3 3 4 5 5 is cut at 3.5 or 4.5, |second| 0 0 3 4 4.1 at 1.5: the radius is below every r, and four are 5
    y = torch.tensor([[3.0, 4.0], [4.0, 3.0], [5.0, 0.0], [5.0, 0.0], [3.0, 4.1]])
    grouper = OtsuGrouper(on_empty="median")
    assert OtsuGrouper(on_empty="keep")(y).tolist() == [1, 1, 1, 1, 1]
    assert grouper(y).tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("rows", [[[0.3, 0.4]], [[0.3, 0.4]] * 5, [[0.0, 0.0]] * 3, [[0.3, 0.4], [0.4, -0.3]]])
@every_grouper
def test_radii_that_are_all_equal_stay_one_strong_group(name, rows):
    y = torch.tensor(rows)
    for on_empty in ("median", "keep"):
        assert GROUPERS[name][0](on_empty=on_empty)(y[:1]).tolist() == [1]
        assert set(GROUPERS[name][0](on_empty=on_empty)(y).tolist()) == {1}
    with pytest.raises(
        ValueError, match=r"av must be of strong and weak samples, got no weak sample among \d; use larger"
    ):
        GROUPERS[name][0](on_empty="raise")(y)


@every_grouper
def test_raise_is_silent_where_both_groups_have_samples(name):
    y = torch.tensor([0.1, 0.2, 0.8, 0.9])
    assert GROUPERS[name][0](on_empty="raise")(y).tolist() == [0, 0, 1, 1]


@every_grouper
def test_max_radius(name):
    y = torch.tensor([[0.1, 0.1], [0.6, 0.6], [0.0, 1.0], [0.9, 0.9], [0.2, 0.0]])
    make = GROUPERS[name][0]
    limited, free = make(max_radius=1.0)(y), make()(y)
    assert limited.tolist() == [0, 1, -1, -1, 0]  # r = 1 belongs to neither group, as in the paper
    assert free.tolist() == [0, 1, 1, 1, 0]


def test_median_of_those_within_the_largest_radius():
    y = torch.tensor([0.2, 0.3, 0.4, 1.0, 1.0, 1.0, 1.0, 1.0])  # cut at 0.7: all strong ones are beyond
    assert OtsuGrouper(max_radius=1.0, on_empty="keep")(y).tolist() == [0, 0, 0, -1, -1, -1, -1, -1]
    assert OtsuGrouper(max_radius=1.0)(y).tolist() == [0, 1, 1, -1, -1, -1, -1, -1]
    grouper = OtsuGrouper(max_radius=1.0)
    assert grouper(torch.tensor([0.2, 0.2, 1.0, 1.5])).tolist() == [0, 0, -1, -1]  # equal within: nothing to split
    assert grouper.radius == pytest.approx(0.6)


def test_everything_beyond_the_largest_radius():
    grouper = OtsuGrouper(max_radius=0.5)
    assert grouper(torch.tensor([[1.0, 1.0], [2.0, 0.0]])).tolist() == [-1, -1]
    with pytest.raises(ValueError, match="no strong sample among 2"):
        OtsuGrouper(max_radius=0.5, on_empty="raise")(torch.tensor([[1.0, 1.0], [2.0, 0.0]]))


@every_grouper
@given(label_rows(), st.randoms(use_true_random=False), st.sampled_from([1e-20, 0.5, 8.0, 1e18]))
def test_order_unit_and_signs_do_not_matter(name, rows, random, scale):
    y = torch.tensor(rows, dtype=torch.float32)
    make = GROUPERS[name][0]
    groups = make()(y)
    shuffled = random.sample(range(len(rows)), len(rows))
    assert torch.equal(make()(y[shuffled]), groups[shuffled])
    power = 2.0 ** round(math.log2(scale))  # exact, so that ties stay ties
    assert torch.equal(make()(y * power), groups)
    signs = torch.tensor([random.choice([-1.0, 1.0]) for _ in range(y.numel())]).reshape(y.shape)
    assert torch.equal(make()(y * signs), groups)
    if name == "otsu":  # whose thresholds of integers are exact, so that their squares can be summed in any order
        columns = random.sample(range(y.shape[1]), y.shape[1])
        assert torch.equal(make()(y[:, columns]), groups)


@every_grouper
def test_one_column_is_the_label_itself(name):
    y = torch.randn(40) ** 3
    grouper = GROUPERS[name][0]()
    assert torch.equal(grouper(y), grouper(y[:, None]))
    assert torch.equal(grouper(y), (y.abs() >= grouper.thresholds[0]).long())
    assert grouper.radius == grouper.thresholds.item()


@every_grouper
def test_takes_what_labels_come_as(name):
    y = np.round(np.random.default_rng(0).normal(0, 3, (30, 2)))
    make = GROUPERS[name][0]
    expected = make()(torch.from_numpy(y))
    read_only = y.copy()
    read_only.flags.writeable = False
    for labels in (
        y.astype(np.float32),
        y.astype(int),
        y.astype(np.int8),
        y.astype(">f4"),
        np.asfortranarray(y),
        y[::-1][::-1],
        read_only,
        y.tolist(),
        torch.from_numpy(y).long(),
        torch.from_numpy(y).float().requires_grad_(),
        torch.from_numpy(y).bfloat16(),
    ):
        assert torch.equal(make()(labels), expected)
    assert make()([0.1, 0.9]).tolist() == [0, 1]
    assert make()(np.array([False, True])).tolist() == [0, 1]


@every_grouper
def test_labels_are_not_altered(name):
    y = torch.randn(9, 2)
    array = y.numpy().copy()
    before = y.clone()
    GROUPERS[name][0]()(y)
    GROUPERS[name][0]()(array)
    assert torch.equal(y, before)
    assert np.array_equal(array, before.numpy())


def test_empty_batch():
    grouper = OtsuGrouper()
    grouper(torch.tensor([[0.1, 0.2], [0.9, 0.8]]))
    before = grouper.thresholds, grouper.radius
    for empty in (torch.empty(0, 2), torch.empty(0), np.empty((0, 2))):
        groups = grouper(empty)
        assert groups.shape == (0,)
        assert groups.dtype == torch.int64
    assert (grouper.thresholds, grouper.radius) == before
    with pytest.raises(ValueError, match="no strong sample among 0"):
        OtsuGrouper(on_empty="raise")(torch.empty(0, 2))


# A fitted grouper


@every_grouper
def test_fit_is_a_call_whose_thresholds_stay(name):
    everything = torch.randn(200, 2) ** 3
    called, fitted = GROUPERS[name][0](), GROUPERS[name][0]()
    assert not fitted.fitted
    assert fitted.fit(everything) is fitted
    assert fitted.fitted
    groups = called(everything)
    assert torch.equal(fitted(everything), groups)
    assert torch.equal(fitted.thresholds, called.thresholds)
    assert fitted.radius == called.radius
    one_by_one = torch.cat([fitted(row[None]) for row in everything])
    assert torch.equal(one_by_one, groups)
    assert torch.equal(fitted.thresholds, called.thresholds)


def test_median_does_not_move_a_fitted_threshold():
    grouper = OtsuGrouper(on_empty="median").fit([0.0, 0.1, 0.9, 1.0])
    assert grouper(torch.tensor([0.1, 0.2, 0.3])).tolist() == [0, 0, 0]
    assert grouper.radius == 0.5
    with pytest.raises(ValueError, match="no strong sample among 3"):
        OtsuGrouper(on_empty="raise").fit([0.0, 0.1, 0.9, 1.0])(torch.tensor([0.1, 0.2, 0.3]))


def test_median_splits_the_fitted_data_where_a_group_would_be_empty():
    y = torch.tensor([[0.5, 0.7], [0.9, 0.6], [0.2, 1.0], [0.5, 0.6]])
    assert OtsuGrouper().fit(y)(y).tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="no strong sample among 4"):
        OtsuGrouper(on_empty="raise").fit(y)


def test_fit_again_replaces_the_first_fit():
    grouper = OtsuGrouper().fit([[0.0, 0.0], [1.0, 1.0]])
    grouper.fit([0.0, 8.0])
    assert grouper.thresholds.tolist() == [4.0]
    assert grouper([3.0, 5.0]).tolist() == [0, 1]


@every_grouper
def test_state_dict_round_trip(name):
    y = torch.randn(50, 3)
    make = GROUPERS[name][0]
    fitted = make().fit(y)
    file = io.BytesIO()
    torch.save(fitted.state_dict(), file)
    file.seek(0)
    fresh = make()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.fitted
    assert torch.equal(fresh.thresholds, fitted.thresholds)
    assert fresh.radius == fitted.radius
    assert torch.equal(fresh(y[:7]), fitted(y[:7]))
    other = make().fit(torch.randn(5, 1).double())  # of other labels, in another dtype
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(other(y), fitted(y))
    other.load_state_dict(make().state_dict())
    assert not other.fitted


def test_state_dict_inside_a_module():
    inside = torch.nn.ModuleDict({"grouper": OtsuGrouper().fit(torch.randn(20, 2))})
    fresh = torch.nn.ModuleDict({"grouper": OtsuGrouper()})
    fresh.load_state_dict(inside.state_dict())
    assert fresh["grouper"].radius == inside["grouper"].radius


def test_an_unfitted_grouper_has_no_state_of_its_batches():
    grouper = OtsuGrouper()
    before = copy.deepcopy(grouper.state_dict())
    grouper(torch.randn(9, 2))
    after = grouper.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@every_grouper
def test_copies_and_pickles(name):
    if name != "otsu":
        fitted = KMeansGrouper(k=int(name[-1])).fit(torch.randn(20, 2))
    else:
        fitted = OtsuGrouper().fit(torch.randn(20, 2))
    for twin in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert twin.radius == fitted.radius
        assert torch.equal(twin.thresholds, fitted.thresholds)


# The host


def test_statistics_are_recorded_when_asked_for():
    y = torch.tensor([[0.1, 0.1], [0.6, 0.6], [0.0, 1.0], [0.2, 0.0]])
    grouper = OtsuGrouper(max_radius=1.0, collect_stats=True)
    assert grouper._record_these_stats == ["share_strong", "share_weak", "share_neither"]
    grouper(y)
    assert (grouper.share_strong, grouper.share_weak, grouper.share_neither) == (0.25, 0.5, 0.25)
    grouper(y[:0])
    assert (grouper.share_strong, grouper.share_weak, grouper.share_neither) == (0, 0, 0)
    assert not hasattr(OtsuGrouper(collect_stats=False), "share_strong")


def test_the_hosts_record_keeper_logs_a_grouper(tmp_path):
    pytest.importorskip("tensorboard")
    keeper, _, _ = logging_presets.get_record_keeper(str(tmp_path / "csv"), str(tmp_path / "board"))
    grouper = OtsuGrouper(collect_stats=True)
    keeper.update_records({"grouper": grouper}, 0)
    grouper(torch.tensor([[0.1, 0.1], [0.9, 0.6]]))
    keeper.update_records({"grouper": grouper}, 1)
    record = keeper.get_record("grouper_OtsuGrouper")
    assert record["radius"][1] == pytest.approx(math.hypot(0.5, 0.35))
    assert record["thresholds"][1] == pytest.approx([0.5, 0.35])
    assert record["share_strong"] == {0: 0, 1: 0.5}


@every_grouper
@pytest.mark.parametrize("loss", [losses.ContrastiveLoss(), losses.TripletMarginLoss(), losses.MultiSimilarityLoss()])
def test_groups_are_labels_for_stock_losses(name, loss):
    target = torch.rand(24)
    embeddings = torch.randn(24, 8, requires_grad=True)
    value = loss(embeddings, GROUPERS[name][0]()(target))
    value.backward()
    assert value > 0
    assert torch.isfinite(embeddings.grad).all()


def test_a_subclass_needs_one_method():
    class MeanGrouper(Grouper):
        def label_thresholds(self, values):
            return values.mean(dim=0)

    assert MeanGrouper()(torch.tensor([0.0, 0.1, 0.1, 1.0])).tolist() == [0, 0, 0, 1]
    with pytest.raises(NotImplementedError):
        Grouper()(torch.ones(2))


# Bad input


@every_grouper
@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (
            torch.tensor([[0.1, torch.nan], [0.2, 0.3]]),
            ValueError,
            r"av must be finite, got 1 NaN or infinite of 4 .* \(0, 1\)",
        ),
        (torch.tensor([0.1, torch.inf]), ValueError, "av must be finite"),
        (np.array([0.1, -np.inf]), ValueError, "av must be finite"),
        (torch.ones(2, 3, 4), ValueError, r"av must be of shape \(N,\) or \(N, L\) with L >= 1, got shape \(2, 3, 4\)"),
        (torch.tensor(1.0), ValueError, r"av must be of shape .* got shape \(\); pass one row per sample"),
        (torch.ones(3, 0), ValueError, r"av must be of shape .* got shape \(3, 0\)"),
        ([[1.0, 2.0], [3.0]], ValueError, "got rows of unequal length; pass as many labels for each sample"),
        (["happy", "sad"], TypeError, "av must be numeric, got an array of <U5"),
        (torch.ones(2, dtype=torch.complex64), TypeError, "av must be real"),
    ],
)
def test_bad_labels(name, labels, error, message):
    make = GROUPERS[name][0]
    with pytest.raises(error, match=message):
        make()(labels)
    with pytest.raises(error, match=message):
        make().fit(labels)


def test_bad_fit():
    with pytest.raises(ValueError, match="av must be of at least one row"):
        OtsuGrouper().fit(torch.empty(0, 2))
    grouper = OtsuGrouper().fit(torch.randn(9, 2))
    with pytest.raises(ValueError, match="av must be of the 2 label columns it was fitted on, got 1 columns; call fit"):
        grouper(torch.randn(9))


@every_grouper
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_empty": "drop"}, "on_empty must be one of 'median', 'keep', 'raise', got 'drop'"),
        ({"max_radius": 0.0}, "max_radius must be a positive number or None, got 0.0"),
        ({"max_radius": math.nan}, "max_radius must be a positive number or None"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        GROUPERS[name][0](**options)


@every_grouper
def test_compiles_without_a_graph_break(name):
    grouper = GROUPERS[name][0]()
    y = torch.randn(33, 2)
    expected = grouper(y)
    compiled = torch.compile(grouper, backend="eager", fullgraph=True)
    assert torch.equal(compiled(y), expected)
    assert compiled.radius == grouper.radius


@every_grouper
@pytest.mark.cuda
def test_cuda_agrees_and_does_not_synchronise(name):
    y = torch.randn(256, 2)
    grouper = GROUPERS[name][0]()
    expected, radius = grouper(y), grouper.radius
    on_device = y.cuda()
    grouper(on_device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        groups = grouper(on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(groups.cpu(), expected)
    assert grouper.radius == pytest.approx(radius)
    fitted = GROUPERS[name][0]().fit(y).cuda()
    assert torch.equal(fitted(on_device).cpu(), expected)
    assert torch.equal(F.otsu_thresholds(on_device).cpu(), F.otsu_thresholds(y))
