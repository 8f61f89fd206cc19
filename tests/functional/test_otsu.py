from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from adaptive_margin import functional as F
from tests.references.otsu import otsu_split_slow, otsu_threshold_slow

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SCALES = [1e-20, 1e-7, 1.0, 3.0, 1e7, 1e18]
grids = st.lists(st.integers(-30, 30), min_size=1, max_size=24)
numbers = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=24)


def groups(values: torch.Tensor, threshold: torch.Tensor) -> list[int]:
    return (values >= threshold).int().tolist()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 1.0], 0.5),
        ([0.0, 0.0, 1.0, 1.0], 0.5),
        # 1 | 2 3: 2/9·1.5² = 0.5; 1 2 | 3: 2/9·1.5² = 0.5: tied, the lowest wins
        ([1.0, 2.0, 3.0], 1.5),
        # 0 | 4 4 8: 3/16·(16/3)² = 5.33; no split between the two 4s; 0 4 4 | 8: 5.33 again
        ([0.0, 4.0, 4.0, 8.0], 2.0),
        # 0 1 3 | 10 11: 6/25·(10.5 − 4/3)² = 20.2; 0 1 3 10 | 11: 4/25·(11 − 3.5)² = 9; the others are less
        ([10.0, 0.0, 3.0, 11.0, 1.0], 6.5),
        ([-2.0, -1.0, 7.0], 3.0),
        ([5.0, 5.0, 5.0], 5.0),
        ([5.0], 5.0),
        ([2.0, -2.0], 0.0),
    ],
)
def test_worked_by_hand(values, expected):
    assert F.otsu_threshold(torch.tensor(values)).item() == expected


@given(grids | numbers, st.sampled_from(SCALES), st.sampled_from(DTYPES[:2]))
def test_matches_every_split_tried_in_fractions(values, scale, dtype):
    x = torch.tensor(values, dtype=dtype) * scale
    expected = torch.tensor(otsu_threshold_slow(x.tolist()), dtype=torch.float64)
    split = otsu_split_slow(x.tolist())
    actual = F.otsu_threshold(x)
    assert actual.dtype == dtype
    assert_close(actual.double(), expected, rtol=float(torch.finfo(dtype).eps), atol=float(torch.finfo(dtype).tiny))
    if split is not None:
        assert split[0] < actual.item() <= split[1]


@given(numbers, st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_gives_the_groups_of_its_own_values(values, dtype):
    x = torch.tensor(values, dtype=dtype)
    threshold = F.otsu_threshold(x)
    assert threshold.dtype == dtype
    assert groups(x, threshold) == groups(x.double(), F.otsu_threshold(x.double()))


@given(st.lists(st.floats(0.9375, 1, width=32), min_size=2, max_size=6), st.integers(0, 3))
def test_neighbouring_floats_are_still_separated(values, ulps):
    low = torch.tensor(values, dtype=torch.float32)
    high = low.clone()
    for _ in range(ulps + 1):
        high = torch.nextafter(high, torch.tensor(2.0))
    x = torch.cat([low[:1], high[:1]])  # one to four units in the last place apart
    assert groups(x, F.otsu_threshold(x)) == [0, 1]


@given(grids, st.randoms(use_true_random=False))
def test_order_does_not_matter(values, random):
    x = torch.tensor(values, dtype=torch.float32) / 7
    shuffled = random.sample(range(len(values)), len(values))
    assert torch.equal(F.otsu_threshold(x), F.otsu_threshold(x[shuffled]))


@given(grids, st.sampled_from(SCALES), st.integers(-100, 100))
def test_scales_and_shifts_with_the_sample(values, scale, shift):
    x = torch.tensor(values, dtype=torch.float64)
    expected = (F.otsu_threshold(x) + shift) * scale
    assert_close(F.otsu_threshold((x + shift) * scale), expected, rtol=1e-12, atol=1e-12 * scale)


@pytest.mark.parametrize("middle", [1, 4, 5, 7])
@pytest.mark.parametrize("scale", [1e-20, 0.1, 1 / 3, 0.7, 1e18])
@pytest.mark.parametrize("shift", [0.0, 0.1, 0.7, -1 / 3])
def test_ties_go_to_the_lowest_split_in_any_unit(middle, scale, shift):
    x = (
        torch.tensor([-1.0, *[0.0] * middle, 1.0], dtype=torch.float64) + shift
    ) * scale  # two splits, equal but rounded
    expected = [0] + [1] * (middle + 1)
    assert groups(x, F.otsu_threshold(x)) == expected
    assert groups(x, F.otsu_threshold(x, bins=10)) == expected


@pytest.mark.parametrize("offset", [2.0**51, -(2.0**51)])
def test_an_offset_at_the_end_of_float64_changes_nothing(offset):
    generator = torch.Generator().manual_seed(0)
    for n in range(3, 40):  # small integers and their halves are exact there, their mean is not
        x = torch.randint(-30, 31, (n,), generator=generator).double()
        assert F.otsu_threshold(x + offset) == F.otsu_threshold(x) + offset


@given(grids, st.sampled_from([2.0**-600, 2.0**600]), st.sampled_from([None, 8]))
def test_squares_do_not_leave_float64(values, scale, bins):
    x = torch.tensor(values, dtype=torch.float64)
    assert F.otsu_threshold(x * scale, bins=bins) == F.otsu_threshold(x, bins=bins) * scale


@given(grids)
def test_copies_of_the_sample_do_not_matter(values):
    x = torch.tensor(values, dtype=torch.float32)
    assert torch.equal(F.otsu_threshold(x), F.otsu_threshold(x.repeat(3)))


def test_columns_are_independent():
    x = torch.randn(37, 3) ** 3
    x[:, 1] = 4.0
    together = F.otsu_thresholds(x)
    assert together.shape == (3,)
    assert torch.equal(together, torch.stack([F.otsu_threshold(column) for column in x.T]))
    assert together[1] == 4.0


@pytest.mark.parametrize("values", [torch.tensor([0, 1, 9, 10]), torch.tensor([0, 1, 9, 10], dtype=torch.uint8)])
def test_integers(values):
    assert_close(F.otsu_threshold(values), torch.tensor(5.0))
    assert_close(F.otsu_threshold(values > 5), torch.tensor(0.5))


def test_no_gradient_and_no_change_of_the_input():
    x = torch.randn(9, requires_grad=True)
    before = x.detach().clone()
    assert not F.otsu_threshold(x).requires_grad
    assert torch.equal(x, before)


@given(grids | numbers, st.sampled_from([2, 3, 8, 256]), st.sampled_from(SCALES))
def test_histogram_finds_the_best_split_on_a_bin_edge(values, bins, scale):
    x = torch.tensor(values, dtype=torch.float64) * scale
    threshold = F.otsu_threshold(x, bins=bins)
    if x.min() == x.max():
        assert threshold == x[0]
        return
    # the same bins, one number a bin: the exact threshold of the bins' means, weighted by their counts, cuts there too
    bin_of = ((x - x.min()) / (x.max() - x.min()) * bins).long().clamp(max=bins - 1)
    best = max(
        (float(below.sum() * (~below).sum() * (x[below].mean() - x[~below].mean()).div(scale).square()), edge)
        for edge in range(1, bins)
        if 0 < (below := bin_of < edge).sum() < len(x)
    )[0]
    below = x < threshold
    assert 0 < below.sum() < len(x)
    reached = float(below.sum() * (~below).sum() * (x[below].mean() - x[~below].mean()).div(scale).square())
    assert reached == pytest.approx(best, rel=1e-9)
    assert_close(threshold, (x[below].max() + x[~below].min()) / 2, rtol=1e-15, atol=0)


def test_histogram_is_exact_where_the_gap_is_wider_than_a_bin():
    x = torch.cat([torch.randn(500) - 4, torch.randn(700) + 4])
    assert torch.equal(F.otsu_threshold(x, bins=64), F.otsu_threshold(x))


def test_histogram_columns_are_independent():
    x = torch.randn(50, 2) ** 3
    assert torch.equal(F.otsu_thresholds(x, bins=16)[1], F.otsu_threshold(x[:, 1], bins=16))


def test_two_gaussians_are_cut_between_them():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(np.concatenate([rng.normal(-2, 0.5, 4000), rng.normal(3, 0.5, 4000)]))
    assert F.otsu_threshold(x).item() == pytest.approx(0.5, abs=0.3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: F.otsu_threshold(torch.empty(0)),
            ValueError,
            r"values must be of shape \(N,\), not empty, got shape \(0,\)",
        ),
        (lambda: F.otsu_threshold(torch.ones(3, 2)), ValueError, "values must be one-dimensional.*otsu_thresholds"),
        (lambda: F.otsu_threshold(torch.tensor(1.0)), ValueError, "values must be one-dimensional"),
        (lambda: F.otsu_thresholds(torch.ones(3)), ValueError, r"values must be of shape \(N, L\).*one row per sample"),
        (lambda: F.otsu_thresholds(torch.ones(3, 0)), ValueError, r"values must be of shape \(N, L\), not empty"),
        (lambda: F.otsu_threshold(torch.tensor([1.0, torch.nan])), ValueError, "values must be finite, got 1 NaN"),
        (lambda: F.otsu_threshold(torch.tensor([1.0, torch.inf])), ValueError, "values must be finite"),
        (lambda: F.otsu_threshold(torch.ones(3), bins=1), ValueError, "bins must be at least 2, or None, got 1"),
        (lambda: F.otsu_threshold([0.0, 1.0]), TypeError, "values must be a torch.Tensor, got list"),
        (lambda: F.otsu_threshold(torch.ones(3, dtype=torch.complex64)), TypeError, "values must be real"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("bins", [None, 32])
def test_compiles_without_a_graph_break(bins):
    compiled = torch.compile(F.otsu_thresholds, backend="eager", fullgraph=True)
    x = torch.randn(33, 2)
    assert torch.equal(compiled(x, bins=bins), F.otsu_thresholds(x, bins=bins))


@pytest.mark.cuda
@pytest.mark.parametrize("bins", [None, 32])
def test_cuda_agrees_and_does_not_synchronise(bins):
    x = torch.randn(1000, 2)
    on_device = x.cuda()
    F.otsu_thresholds(on_device, bins=bins)
    torch.cuda.set_sync_debug_mode("error")
    try:
        threshold = F.otsu_thresholds(on_device, bins=bins)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(threshold.cpu(), F.otsu_thresholds(x, bins=bins))
