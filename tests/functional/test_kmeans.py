from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch.testing import assert_close

from adaptive_margin import functional as F
from tests.references.otsu import kmeans_clusters_slow, mean

SCALES = [1e-20, 1e-7, 1.0, 3.0, 1e7, 1e18]
grids = st.lists(st.integers(-30, 30), min_size=1, max_size=9)


def sum_of_squares(x: torch.Tensor, centers: torch.Tensor) -> float:
    return float((x[:, None] - centers).square().amin(dim=1).sum())


@pytest.mark.parametrize(
    ("values", "k", "centers"),
    [
        ([0.0, 1.0, 8.0, 9.0], 2, [0.5, 8.5]),
        ([0.0, 0.0, 1.0, 8.0, 9.0, 20.0], 3, [1 / 3, 8.5, 20.0]),
        ([1.0, 2.0, 3.0], 2, [1.0, 2.5]),  # tied with 1 2 | 3: the lowest split wins
        ([4.0, 4.0, 4.0, 7.0], 3, [4.0, 7.0]),  # two distinct values, two clusters
        ([4.0], 5, [4.0]),
        ([-1.0, 1.0], 5, [-1.0, 1.0]),
        # two close pairs and a far point: as three clusters they stand alone, as two the far point pulls its pair away
        ([0.0, 1.0, 10.0, 11.0, 100.0], 2, [5.5, 100.0]),
    ],
)
def test_worked_by_hand(values, k, centers):
    x = torch.tensor(values)
    assert_close(F.kmeans_centers(x, k), torch.tensor(centers))
    assert_close(F.kmeans_threshold(x, k), torch.tensor(sum(centers) / len(centers)))


@given(grids, st.integers(2, 5), st.sampled_from(SCALES))
def test_matches_every_partition_tried_in_fractions(values, k, scale):
    x = torch.tensor(values, dtype=torch.float64) * scale
    least, clusters = kmeans_clusters_slow(x.tolist(), k)
    centers = F.kmeans_centers(x, k)
    assert len(centers) == len(clusters)
    assert (centers.diff() > 0).all()
    spread = float((x - x.mean()).square().sum())
    assert sum_of_squares(x, centers) == pytest.approx(float(least), rel=1e-9, abs=1e-12 * spread)
    assert_close(F.kmeans_threshold(x, k), centers.mean(), rtol=1e-13, atol=1e-13 * scale)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=9, unique=True), st.integers(2, 4))
def test_matches_every_partition_of_unequal_numbers(values, k):
    x = torch.tensor(values, dtype=torch.float64)
    least, clusters = kmeans_clusters_slow(x.tolist(), k)
    centers = F.kmeans_centers(x, k)
    expected = torch.tensor([float(mean(cluster)) for cluster in clusters], dtype=torch.float64)
    if not torch.allclose(
        centers, expected, rtol=1e-9, atol=1e-12
    ):  # then it is another partition, as good to rounding
        spread = float((x - x.mean()).square().sum())
        assert sum_of_squares(x, centers) == pytest.approx(float(least), rel=1e-9, abs=1e-11 * spread)


@given(st.lists(st.integers(-30, 30), min_size=2, max_size=60), st.sampled_from(SCALES))
def test_two_clusters_are_otsus_groups(values, scale):
    x = torch.tensor(values, dtype=torch.float64) * scale
    if x.min() == x.max():
        return
    above = x >= F.otsu_threshold(x)
    expected = torch.stack([x[~above].mean(), x[above].mean()])
    assert_close(F.kmeans_centers(x, 2), expected, rtol=1e-11, atol=1e-12 * scale)


@pytest.mark.parametrize("k", [2, 3, 5, 8])
def test_never_worse_than_scikit_learn(k):
    x = torch.randn(300, dtype=torch.float64) ** 3
    theirs = KMeans(k, n_init=10, random_state=0).fit(x[:, None].numpy())
    assert sum_of_squares(x, F.kmeans_centers(x, k)) <= theirs.inertia_ * (1 + 1e-12)


def test_equal_to_scikit_learn_on_clusters_apart():
    x = torch.cat([torch.randn(40, dtype=torch.float64) * 0.1 + 3 * j for j in range(4)])
    theirs = KMeans(4, n_init=10, random_state=0).fit(x[:, None].numpy())
    expected = torch.from_numpy(theirs.cluster_centers_).flatten().sort().values
    assert_close(F.kmeans_centers(x, 4), expected)


@given(st.lists(st.integers(-30, 30), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_order_does_not_matter(values, random):
    x = torch.tensor(values, dtype=torch.float32) / 7
    shuffled = random.sample(range(len(values)), len(values))
    assert torch.equal(F.kmeans_threshold(x, 3), F.kmeans_threshold(x[shuffled], 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_columns_are_independent_in_every_dtype(dtype):
    x = (torch.randn(37, 3) ** 3).to(dtype)
    x[:, 1] = 4.0  # one distinct value beside columns that have many
    together = F.kmeans_thresholds(x, 3)
    assert together.dtype == dtype
    assert torch.equal(together, torch.stack([F.kmeans_threshold(column, 3) for column in x.T]))
    assert together[1] == 4.0


def test_equal_values_stay_together_beside_values_almost_equal():
    # 0 | 0 1e-7 would cost 5e-15 more than 0 0 | 1e-7, which rounding cannot tell apart from the spread of the sample
    x = torch.tensor([0.0, 0.0, 1e-7, 1.0], dtype=torch.float64)
    assert_close(F.kmeans_centers(x, 3), torch.tensor([0.0, 1e-7, 1.0], dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-20, 0.1, 1 / 3, 0.7, 1e18])
@pytest.mark.parametrize("shift", [0.0, 0.1, 0.7, -1 / 3])
def test_ties_go_to_the_lowest_split_in_any_unit(scale, shift):
    x = (
        torch.tensor([-1.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64) + shift
    ) * scale  # two splits as good to rounding
    expected = (torch.tensor([-1.0, 0.25], dtype=torch.float64) + shift) * scale
    assert_close(F.kmeans_centers(x, 2), expected, rtol=1e-12, atol=1e-12 * scale)


@given(grids, st.sampled_from([2.0**51, -(2.0**51)]))
def test_an_offset_at_the_end_of_float64_changes_nothing(values, offset):
    x = torch.tensor(values, dtype=torch.float64)
    moved = F.kmeans_centers(x + offset, 3) - offset
    assert_close(moved, F.kmeans_centers(x, 3), rtol=0, atol=0.5)  # a centre is rounded to a half there


@given(grids, st.sampled_from([2.0**-600, 2.0**600]))
def test_squares_do_not_leave_float64(values, scale):
    x = torch.tensor(values, dtype=torch.float64)
    assert torch.equal(F.kmeans_centers(x * scale, 3), F.kmeans_centers(x, 3) * scale)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 31, 32, 33, 64, 100])
def test_every_size_has_its_optimum(n):
    x = torch.randn(n, dtype=torch.float64)
    centers = F.kmeans_centers(x, 4)
    assert len(centers) == min(4, n)
    # any optimum is a fixed point: each centre is the mean of what is nearest to it
    nearest = (x[:, None] - centers).abs().argmin(dim=1)
    assert_close(torch.stack([x[nearest == j].mean() for j in range(len(centers))]), centers, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.kmeans_threshold(torch.ones(3), 1), "k must be an integer of at least 2, got 1"),
        (lambda: F.kmeans_threshold(torch.ones(3), 2.0), "k must be an integer"),
        (lambda: F.kmeans_threshold(torch.empty(0)), "values must be of shape"),
        (lambda: F.kmeans_threshold(torch.ones(3, 1)), r"values must be of shape \(N,\)"),
        (lambda: F.kmeans_thresholds(torch.ones(3)), r"values must be of shape \(N, L\)"),
        (lambda: F.kmeans_centers(torch.tensor([torch.nan])), "values must be finite"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_compiles_without_a_graph_break():
    compiled = torch.compile(F.kmeans_thresholds, backend="eager", fullgraph=True)
    x = torch.randn(33, 2)
    assert torch.equal(compiled(x, 3), F.kmeans_thresholds(x, 3))


@pytest.mark.cuda
def test_cuda_agrees_and_does_not_synchronise():
    x = torch.randn(300, 2)
    on_device = x.cuda()
    F.kmeans_thresholds(on_device, 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        threshold = F.kmeans_thresholds(on_device, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(threshold.cpu(), F.kmeans_thresholds(x, 3))
