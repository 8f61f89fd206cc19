"""η and MI: numbers by hand, slow loops, gradients, invariances, edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.testing import assert_close

from adaptive_margin import functional as F
from adaptive_margin.functional.dependence import class_alignments, segment_correlations, unit_rows, zipped_partners
from tests.references import margin as slow

TOL = {torch.float64: 1e-11, torch.float32: 1e-4}  # rounding of sums; definitions are exact


def two_groups(strong: int = 7, weak: int = 4, features: int = 3, dtype: torch.dtype = torch.float64):
    """Groups whose η is not near 0: the columns have means of their own, shared by both."""
    columns = torch.randn(features, dtype=dtype)
    return (
        columns + 0.5 * torch.randn(strong, features, dtype=dtype),
        columns + 0.5 * torch.randn(weak, features, dtype=dtype),
    )


# --- g --------------------------------------------------------------------------------------------------------------


def test_kernel_by_hand():
    # entries 0 and 2: mean 1, variance 1, so g = exp(-z²/2)
    (g,) = F.gaussian_kernel(torch.tensor([[0.0, 2.0]]))
    assert_close(g, torch.tensor([[1.0, math.exp(-2)]]))
    # entries -3 and 3: mean 0, variance 9, z²/2σ² = 1/2
    (g,) = F.gaussian_kernel(torch.tensor([[-3.0], [3.0]]))
    assert_close(g, torch.full((2, 1), math.exp(-0.5)))


def test_kernel_pools_the_groups():
    # alone either group is constant; together the entries are 0, 0, 2, 2 with variance 1
    strong, weak = F.gaussian_kernel(torch.zeros(1, 2), torch.full((1, 2), 2.0))
    assert_close(strong, torch.ones(1, 2))
    assert_close(weak, torch.full((1, 2), math.exp(-2)))
    # of unequal sizes: 0, 0, 0, 4 have mean 1, variance (3·1 + 9)/4 = 3, so g(4) = exp(-16/6)
    strong, weak = F.gaussian_kernel(torch.zeros(3, 1), torch.full((1, 1), 4.0))
    assert_close(weak, torch.full((1, 1), math.exp(-16 / 6)))


def test_kernel_with_a_number():
    (g,) = F.gaussian_kernel(torch.tensor([[0.0, 3.0, -6.0]]), bandwidth=3.0)
    assert_close(g, torch.tensor([[1.0, math.exp(-0.5), math.exp(-2)]]))


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("bandwidth", ["std", 0.7])
def test_kernel_matches_the_loop(dtype, bandwidth):
    strong, weak = two_groups(dtype=dtype)
    got = F.gaussian_kernel(strong, weak, bandwidth=bandwidth)
    want = slow.gaussian([strong.tolist(), weak.tolist()], bandwidth)
    for g, rows in zip(got, want, strict=True):
        assert g.dtype == dtype
        assert_close(g, torch.tensor(rows, dtype=dtype), rtol=0, atol=TOL[dtype])


def test_kernel_of_nothing_and_of_equal_entries():
    assert F.gaussian_kernel(torch.empty(0, 3))[0].shape == (0, 3)
    for value in (0.0, 1e-20, 0.1, -7.3, 1e18):
        for shape in ((1, 1), (5, 3), (64, 33)):
            assert torch.equal(F.gaussian_kernel(torch.full(shape, value))[0], torch.ones(shape))


@pytest.mark.filterwarnings("error")
def test_kernel_of_nothing_does_not_warn():
    F.gaussian_kernel(torch.empty(0, 3))
    F.gaussian_correlation(torch.empty(0, 3), torch.empty(0, 3))


@pytest.mark.parametrize("bandwidth", [1e-300, 1e-30, 1e30, 1e300])
def test_kernel_of_an_extreme_bandwidth_stays_in_range(bandwidth):
    z = torch.tensor([[0.0, 1e-20, 1.0, -1e18]])
    (g,) = F.gaussian_kernel(z, bandwidth=bandwidth)
    assert g[0, 0] == 1
    assert ((g >= 0) & (g <= 1)).all()


# --- η --------------------------------------------------------------------------------------------------------------


def test_row_correlation_by_hand():
    # pairs (0,0) (0,1) (1,2) (1,3): covariance 1/2, variances 1/4 and 5/4, so 2/√5
    eta = F.row_correlation(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 3.0]]))
    assert_close(eta, torch.tensor(2 / math.sqrt(5)))
    # reversed features: the same with a minus
    eta = F.row_correlation(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 3.0]]))
    assert_close(eta, torch.tensor(-2 / math.sqrt(5)))


def test_gaussian_correlation_by_hand():
    # σ = 1: g² is of entries 0 and √(2 log 2): 1 and 1/2. Strong rows (1, ½), (1, ½); weak rows (½, 1), (1, 1).
    # Columns: strong 1, ½; weak ¾, 1. Covariance ½(¼·(-⅛) + (-¼)·⅛) = -1/32.
    # Variances: strong 1/16; weak entries ½, 1, 1, 1 with mean 7/8: 3/64. η = -(1/32) / √(3/1024) = -1/√3.
    z = math.sqrt(2 * math.log(2))
    strong = torch.tensor([[0.0, z], [0.0, -z]], dtype=torch.float64)
    weak = torch.tensor([[z, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert_close(F.gaussian_correlation(strong, weak, bandwidth=1.0).item(), -1 / math.sqrt(3))
    # zipped: (1,½) (½,1) (1,1) (½,1): covariance mean of (¼)(-⅜) (-¼)(⅛) (¼)(⅛) (-¼)(⅛) = -1/32: the same here
    assert_close(F.gaussian_correlation(strong, weak, bandwidth=1.0, pairing="zip").item(), -1 / math.sqrt(3))
    # the longer group cut: only the first rows (1, ½) and (½, 1) meet
    assert_close(F.gaussian_correlation(strong[:1], weak, bandwidth=1.0, pairing="zip").item(), -1.0)


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("bandwidth", ["std", 0.7])
@pytest.mark.parametrize(("strong", "weak"), [(7, 4), (1, 9), (5, 5), (1, 1)])
def test_gaussian_correlation_matches_the_loops(dtype, bandwidth, strong, weak):
    s, w = two_groups(strong, weak, dtype=dtype)
    g_s, g_w = slow.gaussian([s.tolist(), w.tolist()], bandwidth)
    for pairing, eta in (("all", slow.eta_of_triples), ("zip", slow.eta_zipped)):
        got = F.gaussian_correlation(s, w, bandwidth=bandwidth, pairing=pairing)
        assert got.dtype == dtype
        assert got.shape == ()
        assert_close(got.item(), eta(g_s, g_w), rtol=0, atol=TOL[dtype])


def test_all_pairs_are_the_mean_over_random_pairings():
    s, w = two_groups(5, 5)
    g_s, g_w = slow.gaussian([s.tolist(), w.tolist()])
    assert abs(slow.eta_of_every_pairing(g_s, g_w)) > 0.05
    assert_close(F.gaussian_correlation(s, w).item(), slow.eta_of_every_pairing(g_s, g_w), rtol=0, atol=1e-12)


def test_all_pairs_ignore_the_order_of_rows_and_repetition():
    s, w = two_groups(9, 6)
    eta = F.gaussian_correlation(s, w, bandwidth=0.7)
    assert_close(F.gaussian_correlation(s[torch.randperm(9)], w[torch.randperm(6)], bandwidth=0.7), eta)
    assert_close(F.gaussian_correlation(w, s, bandwidth=0.7), eta)
    assert_close(F.gaussian_correlation(torch.cat([s, s, s]), w, bandwidth=0.7), eta)  # unequal sizes do not matter
    assert_close(F.gaussian_correlation(s.repeat(2, 1), w.repeat(2, 1)), F.gaussian_correlation(s, w))


@pytest.mark.parametrize("scale", [1e-20, 1e-9, 3.0, 1e9, 1e18])
@pytest.mark.parametrize("dtype", TOL, ids=str)
def test_std_bandwidth_ignores_scale(scale, dtype):
    s, w = two_groups(dtype=dtype)
    assert_close(
        F.gaussian_correlation(s * scale, w * scale), F.gaussian_correlation(s, w), rtol=0, atol=TOL[dtype] / 10
    )


def test_a_number_scales_with_the_entries():
    s, w = two_groups()
    assert_close(F.gaussian_correlation(1e6 * s, 1e6 * w, bandwidth=0.7e6), F.gaussian_correlation(s, w, bandwidth=0.7))


@pytest.mark.parametrize("pairing", ["all", "zip"])
def test_eta_of_degenerate_groups_is_zero(pairing):
    z = torch.randn(4, 3)
    for strong, weak in (
        (z[:0], z),
        (z, z[:0]),
        (z[:0], z[:0]),
        (torch.ones(2, 3), torch.ones(5, 3)),
        (torch.zeros(2, 3), torch.zeros(5, 3)),
        (torch.zeros(2, 3), z),  # g(0) = 1 everywhere
    ):
        eta = F.gaussian_correlation(strong, weak, pairing=pairing)
        assert eta.item() == 0


def test_constant_columns_are_no_trouble():
    s, w = two_groups(6, 5, 4, torch.float32)
    s[:, 1] = w[:, 1] = 2.0
    eta = F.gaussian_correlation(s, w)
    g = slow.gaussian([s.tolist(), w.tolist()])
    assert_close(eta.item(), slow.eta_of_triples(*g), rtol=0, atol=1e-5)


def test_mixed_precision_takes_the_finer():
    s, w = two_groups()
    eta = F.gaussian_correlation(s.float(), w)
    assert eta.dtype == torch.float64
    assert_close(eta, F.gaussian_correlation(s, w), rtol=0, atol=1e-6)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_accumulates_in_float32(half):
    s, w = (z.to(half) for z in two_groups(300, 200, 16))
    eta = F.gaussian_correlation(s, w)
    assert eta.dtype == torch.float32
    assert_close(eta.double(), F.gaussian_correlation(s.double(), w.double()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pairing", ["all", "zip"])
@pytest.mark.parametrize("bandwidth", ["std", 0.7])
def test_gaussian_correlation_gradient(pairing, bandwidth):
    s, w = (z.requires_grad_() for z in two_groups(5, 3))
    assert gradcheck(lambda a, b: F.gaussian_correlation(a, b, bandwidth, pairing), (s, w))


@pytest.mark.parametrize("dtype", TOL, ids=str)
def test_rounding_alone_is_no_correlation(dtype):
    # the same noise of one unit in the last place on both sides
    eps = torch.finfo(dtype).eps
    g = 0.3 + 0.25 * eps * torch.randint(-1, 2, (6, 5)).to(dtype)
    assert g.unique().numel() == 3
    assert F.row_correlation(g, g) == 0
    assert F.zipped_correlation(g, g) == 0
    assert torch.equal(unit_rows(g), torch.zeros_like(g))
    assert F.zipped_correlation(0.3 + 1e4 * (g - 0.3), g) == 0


@pytest.mark.parametrize("dtype", TOL, ids=str)
def test_a_correlation_never_exceeds_one(dtype):
    above = 0
    for _ in range(200):
        g = torch.rand(1, 7, dtype=dtype)
        for measure in (F.row_correlation, F.zipped_correlation, F.centred_kernel_alignment):
            assert 1 - 1e-5 < measure(g, 0.1 + 0.7 * g) <= 1
        deviations = (g - g.mean()) / g.std(correction=0)
        above += (deviations * deviations).mean() > 1
    assert above > 20  # unguarded, rounding goes beyond


# --- every class at once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(
    ("all_of_classes", "eta", "of_groups"),
    [
        (F.class_correlations, slow.eta_of_triples, F.row_correlation),
        (class_alignments, slow.alignment, F.centred_kernel_alignment),
    ],
)
def test_all_classes_match_the_loop(dtype, reference, all_of_classes, eta, of_groups):
    g, index = torch.rand(11, 4, dtype=dtype), torch.tensor([0, 1, 2, 2, 1, 0, 2, 2, 2, 4, 1])  # class 3 has no rows
    ref_g, ref_index = (
        (torch.rand(9, 4, dtype=dtype), torch.tensor([0, 0, 1, 2, 3, 3, 0, 1, 1])) if reference else (g, index)
    )
    got = all_of_classes(g, index, ref_g, ref_index, 6)
    assert got.dtype == dtype
    for c in range(6):
        own, rest = g[index == c], ref_g[ref_index != c]
        want = eta(own.tolist(), rest.tolist()) if len(own) else 0.0
        assert_close(got[c].item(), want, rtol=0, atol=TOL[dtype])
        assert_close(got[c], of_groups(own, rest), rtol=0, atol=TOL[dtype])


@pytest.mark.parametrize("all_of_classes", [F.class_correlations, class_alignments])
def test_one_class_has_no_rest(all_of_classes):
    g = torch.rand(5, 3, dtype=torch.float64)
    index = torch.zeros(5, dtype=torch.int64)
    assert torch.equal(all_of_classes(g, index, g, index, 1), torch.zeros(1, dtype=torch.float64))
    assert torch.equal(all_of_classes(g, index, g, index, 3), torch.zeros(3, dtype=torch.float64))
    g, index = torch.rand(203, 37, dtype=torch.float64), torch.full((203,), 2)  # large enough for sums to round apart
    assert torch.equal(all_of_classes(g, index, g, index, 3), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("noise", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize(
    ("all_of_classes", "of_groups"),
    [(F.class_correlations, F.row_correlation), (class_alignments, F.centred_kernel_alignment)],
)
def test_a_collapsed_class_is_measured_as_exactly_as_alone(noise, all_of_classes, of_groups):
    # the difference of sums of squares must not drown a class that has nearly become a point
    pattern = torch.randn(8)
    g = torch.cat(
        [0.9 + noise * (pattern + 0.1 * torch.randn(32, 8)), 0.5 + 0.07 * pattern + 0.05 * torch.randn(32, 8)]
    )
    index = torch.arange(64) // 32
    want = of_groups(g[:32].double(), g[32:].double())
    assert want > 0.5
    assert_close(all_of_classes(g, index, g, index, 2).double(), want.expand(2), rtol=0, atol=1e-3)


@pytest.mark.parametrize("all_of_classes", [F.class_correlations, class_alignments])
@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("sizes", [(1, 1), (1, 60), (30, 31)])
def test_a_constant_class_has_no_correlation(all_of_classes, dtype, sizes):
    index = torch.repeat_interleave(torch.arange(2), torch.tensor(sizes))
    g = torch.rand(len(index), 5, dtype=dtype)
    none = torch.zeros(2, dtype=dtype)
    for constant in (0.0, 0.1, 1 / 3, 1.0):
        g[index == 0] = constant
        assert_close(all_of_classes(g, index, g, index, 2), none, rtol=0, atol=1e-6)
    g[index == 1] = 0.7  # both, apart
    assert_close(all_of_classes(g, index, g, index, 2), none, rtol=0, atol=1e-6)
    g[:] = torch.rand((), dtype=dtype)
    assert torch.equal(all_of_classes(g, index, g, index, 2), none)


@pytest.mark.parametrize("all_of_classes", [F.class_correlations, class_alignments])
def test_all_classes_have_a_gradient(all_of_classes):
    g, index = torch.rand(7, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 2, 1, 0, 2])
    ref_g, ref_index = torch.rand(5, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 3, 1])
    assert gradcheck(lambda a: all_of_classes(a, index, a, index, 4), (g,))
    assert gradcheck(lambda a, b: all_of_classes(a, index, b, ref_index, 4), (g, ref_g))


def test_many_classes_go_through_in_parts():
    # more classes than fit one part of the alignment: 5 classes of 600 rows and 400 features
    g, index = torch.rand(600, 400, dtype=torch.float64), torch.arange(600) % 5
    want = torch.stack([F.centred_kernel_alignment(g[index == c], g[index != c]) for c in range(5)])
    assert_close(class_alignments(g, index, g, index, 5), want, rtol=1e-9, atol=0)


# --- listed pairs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOL, ids=str)
def test_listed_pairs_match_the_loop(dtype):
    first, second = torch.rand(6, 3, dtype=dtype), torch.rand(8, 3, dtype=dtype)
    a, n, segment = torch.randint(6, (20,)), torch.randint(8, (20,)), torch.tensor([0, 2] * 9 + [3, 3])
    got = segment_correlations(first, second, a, n, segment, 5)
    for s in range(5):
        at = segment == s
        want = slow.eta_zipped(first[a[at]].tolist(), second[n[at]].tolist())
        assert_close(got[s].item(), want, rtol=0, atol=TOL[dtype])
        assert_close(F.zipped_correlation(first[a[at]], second[n[at]]).item(), want, rtol=0, atol=TOL[dtype])


def test_more_pairs_than_are_held_at_once():
    g = torch.rand(50, 2, dtype=torch.float64)
    a, n = torch.randint(50, (40_001,)), torch.randint(50, (40_001,))
    got = segment_correlations(g, g, a, n, torch.zeros_like(a), 1)
    assert_close(got[0], F.zipped_correlation(g[a], g[n]), rtol=0, atol=1e-12)


def test_no_pairs_have_no_correlation():
    g, none = torch.rand(4, 2), torch.empty(0, dtype=torch.int64)
    assert torch.equal(segment_correlations(g, g, none, none, none, 2), torch.zeros(2))
    assert F.zipped_correlation(g[:0], g[:0]) == 0
    assert F.zipped_kernel_alignment(g[:0], g[:0]) == 0


def test_listed_pairs_have_a_gradient():
    first, second = (torch.rand(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    a, n, segment = torch.randint(5, (9,)), torch.randint(5, (9,)), torch.tensor([0, 1, 1] * 3)
    assert gradcheck(lambda f, s: segment_correlations(f, s, a, n, segment, 3), (first, second))


@pytest.mark.parametrize("reference", [False, True])
def test_zipped_partners_are_the_rest_in_order(reference):
    for _ in range(30):
        index = torch.randint(4, (int(torch.randint(1, 12, ())),))
        ref_index = torch.randint(5, (int(torch.randint(1, 12, ())),)) if reference else index
        partner, there = zipped_partners(index, ref_index)
        pairs = {(i, j) for i, (j, found) in enumerate(zip(partner.tolist(), there.tolist(), strict=True)) if found}
        want = set()
        for c in range(5):
            own = [i for i, label in enumerate(index.tolist()) if label == c]
            rest = [j for j, label in enumerate(ref_index.tolist()) if label != c]
            want |= set(zip(own, rest, strict=False))
        assert pairs == want


def test_unit_rows_by_hand():
    # (0, 3, 0) centred is (-1, 2, -1), of length √6; a constant row is nothing
    unit = unit_rows(torch.tensor([[0.0, 3.0, 0.0], [0.7, 0.7, 0.7]]))
    assert_close(unit, torch.tensor([[-1.0, 2.0, -1.0], [0.0, 0.0, 0.0]]) / math.sqrt(6))
    g = torch.rand(5, 4, dtype=torch.float64)
    cross = unit_rows(g) @ unit_rows(g).T
    for i in range(5):
        for j in range(5):
            assert_close(cross[i, j].item(), slow.eta_zipped([g[i].tolist()], [g[j].tolist()]))


# --- centred kernel alignment ---------------------------------------------------------------------------------------


def test_alignment_by_hand():
    # one row each: the absolute correlation of (1, -1, 0) and (1, 0, -1), ½
    a, b, w = torch.tensor([[1.0, -1.0, 0.0]]), torch.tensor([[0.0, 1.0, -1.0]]), torch.tensor([[1.0, 0.0, -1.0]])
    assert_close(F.centred_kernel_alignment(a, w), torch.tensor(0.5))
    assert_close(F.centred_kernel_alignment(a, -w), torch.tensor(0.5))
    # two rows against one: <M_s, M_w> = (a·w)² + (b·w)² = 2, |M_s|² = 4 + 2·1 + 4 = 10, |M_w| = 2: η² = 1/√10
    assert_close(F.centred_kernel_alignment(torch.cat([a, b]), w), torch.tensor(10**-0.25))
    # rows shared, one feature: the absolute correlation of the columns (0, 1, 2) and (0, 2, 1), ½
    columns = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [2.0], [1.0]])
    assert_close(F.zipped_kernel_alignment(*columns), torch.tensor(0.5))


@pytest.mark.parametrize("dtype", TOL, ids=str)
def test_alignment_matches_the_loops(dtype):
    s, w = torch.rand(6, 4, dtype=dtype), torch.rand(3, 4, dtype=dtype)
    assert_close(
        F.centred_kernel_alignment(s, w).item(), slow.alignment(s.tolist(), w.tolist()), rtol=TOL[dtype], atol=0
    )
    s, w = torch.rand(6, 4, dtype=dtype), torch.rand(6, 2, dtype=dtype)  # zipped, the features need not correspond
    want = slow.alignment_zipped(s.tolist(), w.tolist())
    assert_close(F.zipped_kernel_alignment(s, w).item(), want, rtol=TOL[dtype], atol=0)


@pytest.mark.parametrize("measure", [F.centred_kernel_alignment, F.zipped_kernel_alignment])
def test_alignment_is_one_with_itself_and_zero_with_a_constant(measure):
    z = torch.rand(6, 4, dtype=torch.float64)
    assert_close(measure(z, z).item(), 1.0)
    assert_close(measure(z, 3 - 2 * z).item(), 1.0)
    assert measure(z, torch.full_like(z, 0.3)) == 0
    assert measure(z[:0], z[:0]) == 0


@pytest.mark.parametrize("measure", [F.centred_kernel_alignment, F.zipped_kernel_alignment])
def test_alignment_gradient(measure):
    s, w = (torch.rand(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert gradcheck(measure, (s, w))


# --- MI -------------------------------------------------------------------------------------------------------------


def test_mutual_information_by_hand():
    # 1 - 0.8² = 0.36, -½ log 0.36 = log(1/0.6); the sign of η does not matter
    eta = torch.tensor([0.0, 0.6, 0.8, -0.8, 1.0, -1.0], dtype=torch.float64)
    want = [0.0, math.log(1 / 0.8), math.log(1 / 0.6), math.log(1 / 0.6), 2.5, 2.5]
    assert_close(F.mutual_information(eta), torch.tensor(want, dtype=torch.float64))


def test_the_cap_begins_where_mi_reaches_it():
    edge = math.sqrt(1 - math.exp(-1.0))  # MI = ½
    eta = torch.tensor([edge - 1e-3, edge, edge + 1e-3], dtype=torch.float64)
    mi = F.mutual_information(eta, max_mi=0.5)
    assert mi[0] < 0.4995
    assert_close(mi[1:], torch.full((2,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("max_mi", [None, 1e-3, 2.5, 1e6, math.inf])
def test_information_is_finite_and_not_negative(dtype, max_mi):
    eta = torch.tensor([-1.0, -0.5, -0.0, 0.0, 1e-30, 0.999, 1.0], dtype=dtype)
    mi = F.mutual_information(eta, max_mi)
    assert mi.dtype == dtype
    assert mi.isfinite().all()
    assert (mi >= 0).all()
    assert not torch.signbit(mi).any()
    if max_mi is not None:
        assert (mi <= max_mi * (1 + 4 * torch.finfo(dtype).eps) + torch.finfo(dtype).eps).all()


def test_information_gradient_is_finite_at_the_ends():
    eta = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    F.mutual_information(eta).sum().backward()
    assert torch.equal(eta.grad, torch.zeros(3))
    eta = torch.tensor([-0.9, 0.3], dtype=torch.float64, requires_grad=True)
    assert gradcheck(F.mutual_information, (eta,))


@pytest.mark.parametrize("max_mi", [0, -1.0, math.nan])
def test_bad_cap(max_mi):
    with pytest.raises(ValueError, match=r"max_mi must be positive or None, got .*; the paper's code caps at 2.5 nats"):
        F.mutual_information(torch.zeros(()), max_mi)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strong", "weak", "kwargs", "error", "message"),
    [
        (
            torch.rand(3),
            torch.rand(3, 2),
            {},
            ValueError,
            r"strong must be a matrix .* got shape \(3,\); pass one row per",
        ),
        (torch.rand(3, 2), torch.rand(3, 2, 1), {}, ValueError, r"weak must be a matrix .* got shape \(3, 2, 1\)"),
        (
            torch.rand(3, 0),
            torch.rand(3, 0),
            {},
            ValueError,
            r"strong must be .* at least one feature, got shape \(3, 0\)",
        ),
        (
            torch.rand(3, 2),
            torch.rand(3, 4),
            {},
            ValueError,
            r"weak must be of the 2 features of strong, got 4 features; ",
        ),
        (torch.ones(3, 2).long(), torch.rand(3, 2), {}, TypeError, r"strong must be floating point, got torch.int64; "),
        ([[1.0]], torch.rand(3, 1), {}, TypeError, r"strong must be a torch.Tensor, got list; convert it with"),
        (
            torch.tensor([[math.nan]]),
            torch.rand(1, 1),
            {},
            ValueError,
            r"strong must be finite, got 1 NaN or infinite of 1",
        ),
        (
            torch.rand(1, 1),
            torch.tensor([[math.inf]]),
            {},
            ValueError,
            r"weak must be finite, got 1 .* the first at \(0, 0\)",
        ),
        (
            torch.rand(1, 1),
            torch.rand(1, 1),
            {"pairing": "any"},
            ValueError,
            r"pairing must be one of 'all', 'zip', got 'any'",
        ),
        (
            torch.rand(1, 1),
            torch.rand(1, 1),
            {"bandwidth": "iqr"},
            ValueError,
            r"bandwidth must be 'std' or a pos.* got 'iqr'; ",
        ),
        (
            torch.rand(1, 1),
            torch.rand(1, 1),
            {"bandwidth": 0.0},
            ValueError,
            r"bandwidth must be 'std' or a pos.* got 0.0; ",
        ),
        (
            torch.rand(1, 1),
            torch.rand(1, 1),
            {"bandwidth": -1},
            ValueError,
            r"bandwidth must be 'std' or a pos.* got -1; ",
        ),
        (torch.rand(1, 1), torch.rand(1, 1), {"bandwidth": math.nan}, ValueError, r"bandwidth must be .* got nan; "),
        (torch.rand(1, 1), torch.rand(1, 1), {"bandwidth": math.inf}, ValueError, r"bandwidth must be .* got inf; "),
        (
            torch.rand(1, 1),
            torch.rand(1, 1),
            {"bandwidth": None},
            TypeError,
            r"bandwidth must be .* got None; 'std' takes",
        ),
        (
            torch.rand(1, 1),
            torch.rand(1, 1),
            {"bandwidth": [1.0]},
            TypeError,
            r"bandwidth must be .* got \[1.0\]; 'std'",
        ),
    ],
)
def test_errors_name_argument_expected_got_remedy(strong, weak, kwargs, error, message):
    with pytest.raises(error, match=message):
        F.gaussian_correlation(strong, weak, **kwargs)


# --- anything at all ------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**31),
    rows=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    features=st.integers(1, 6),
    exponent=st.integers(-20, 18),
    pairing=st.sampled_from(["all", "zip"]),
    bandwidth=st.sampled_from(["std", 1e-3, 1.0, 1e10]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    repeated=st.booleans(),
)
def test_any_groups_have_an_eta(seed, rows, features, exponent, pairing, bandwidth, dtype, repeated):
    torch.manual_seed(seed)
    scale = 10.0**exponent
    s, w = (torch.randn(r, features, dtype=dtype) * scale for r in rows)
    if repeated:
        s, w = s[:1].expand_as(s), w[:1].expand_as(w)
    s, w = s.clone().requires_grad_(), w.clone().requires_grad_()
    eta = F.gaussian_correlation(s, w, bandwidth, pairing)
    assert -1 <= eta <= 1
    eta.backward()
    assert s.grad.isfinite().all()
    assert w.grad.isfinite().all()


def test_a_class_whose_variance_is_rounding_has_no_correlation():
    """In float64 the difference of two sums is noise long before it is smaller than the dtype's own rounding."""
    generator = torch.Generator().manual_seed(0)
    g = torch.rand(12, 5, dtype=torch.float64, generator=generator)
    index = torch.arange(12) % 3
    for spread in (1e-9, 1e-12, 0.0):
        g[index == 1] = 0.25 + spread * torch.randn(4, 5, dtype=torch.float64, generator=generator)
        eta = F.class_correlations(g, index, g, index, 3)
        assert eta[1] == 0.0
        assert (eta[[0, 2]].abs() > 1e-3).all()
