"""AdaptiveMargin: numbers by hand, the slow loops, gradients, invariances, statistics, errors, edges."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils import common_functions as c_f
from torch.autograd import gradcheck
from torch.testing import assert_close

from adaptive_margin import (
    AdaptiveMargin,
    AttainableRule,
    AutoRule,
    CentredKernelAlignment,
    ChernoffRule,
    Dependence,
    GaussianCorrelation,
    HoeffdingRule,
    Independence,
    Margin,
    NeighbourhoodRule,
    ReleasedRule,
    RemainingRule,
)
from adaptive_margin import functional as F
from adaptive_margin.functional import own_neighbours
from tests.references import margin as slow

TOL = {torch.float64: 1e-10, torch.float32: 1e-4}


def batch(n: int = 24, features: int = 3, labels: int = 2, dtype: torch.dtype = torch.float64, shift: float = 2.0):
    """Classes of unequal size that overlap and whose columns have means in common: neither MI nor Δ is trivial."""
    y = torch.randint(labels, (n,))
    y[:labels] = torch.arange(labels)
    x = torch.randn(n, features, dtype=dtype) * 0.7 + torch.linspace(-1, 1, features, dtype=dtype)
    x[:, 0] += shift * y
    return x, y


def pairs_of(y: torch.Tensor, ref_y: torch.Tensor, count: int = 30):
    """Random pairs of different labels."""
    a, n = (y[:, None] != ref_y).nonzero(as_tuple=True)
    some = torch.randint(len(a), (count,))
    return a[some], n[some]


# --- by hand --------------------------------------------------------------------------------------------------------


def test_by_hand():
    # two groups of two on a line: g with σ = 1, √(2 log 2) -> ½ and 0 -> 1. One feature has one column mean: η = 0.
    # N = 4: no neighbourhood can be evidence, K = 3, Δ = log(80)/6.
    z = math.sqrt(2 * math.log(2))
    x, y = torch.tensor([[0.0], [z], [50.0], [51.0]]), torch.tensor([0, 0, 1, 1])
    assert_close(AdaptiveMargin(bandwidth=1.0)(x, y).item(), math.log(80) / 6)
    # two features, one row a group: rows of g (1, ½) and (½, 1), η = -1, MI at its cap; N = 2, K = 1, Δ = log(40)/2
    x, y = torch.tensor([[0.0, z], [z, 0.0]]), torch.tensor([0, 1])
    assert_close(AdaptiveMargin(bandwidth=1.0)(x, y).item(), 2.5 + math.log(40) / 2)
    assert_close(AdaptiveMargin(bandwidth=1.0, max_mi=0.5, confidence=1.0)(x, y).item(), 0.5 + math.log(2) / 2)
    # the groups of tests/functional/test_dependence.py: η = -1/√3, MI = -½ log ⅔; K = 3
    x = torch.tensor([[0.0, z], [0.0, -z], [z, 0.0], [0.0, 0.0]])
    y = torch.tensor([5, 5, -1, -1])
    margin = AdaptiveMargin(bandwidth=1.0, collect_stats=True)
    assert_close(margin(x, y).item(), -0.5 * math.log(2 / 3) + math.log(80) / 6)
    assert_close(margin.eta, -1 / math.sqrt(3), rtol=1e-6, atol=0)
    assert_close(margin.mi, -0.5 * math.log(2 / 3), rtol=1e-5, atol=0)
    assert_close(margin.delta, math.log(80) / 6, rtol=1e-6, atol=0)
    assert_close(margin.k, 3.0, rtol=1e-6, atol=0)


def test_the_harmonic_mean_by_hand():
    # released rule: K = 2, 2, 6, 2, 2, 2, 6 (tests/functional/test_neighbourhood.py): harmonic 7 / (5/2 + 2/6) = 42/17
    x, y = torch.tensor([0, 1, 2, 10, 11, 12, 2.5])[:, None], torch.tensor([0, 0, 0, 1, 1, 1, 1])
    margin = AdaptiveMargin(neighbourhood="released", collect_stats=True)
    margin(x, y)
    assert_close(margin.k, 42 / 17, rtol=1e-6, atol=0)
    assert_close(margin.delta, 0.7 / math.sqrt(42 / 17), rtol=1e-6, atol=0)
    per_sample = AdaptiveMargin(neighbourhood="released", granularity="anchor")(x, y)
    assert_close(per_sample[[0, 2]], torch.tensor([0.7 / math.sqrt(2), 0.7 / math.sqrt(6)]))


def test_delta_takes_over_when_groups_separate():
    x, y = torch.randn(128, 16), torch.arange(128) % 2
    x[y == 1] += 100
    margin = AdaptiveMargin(collect_stats=True)
    assert_close(margin(x, y).item(), margin.mi + math.log(128 / 0.05) / 32)
    assert margin.mi < 0.01
    assert margin.k == 16


# --- the slow loops -------------------------------------------------------------------------------------------------


OPTIONS = [
    ({}, {}),
    ({"bandwidth": 0.7}, {"bandwidth": 0.7}),
    ({"pairing": "zip"}, {"eta": slow.eta_zipped}),
    ({"confidence": 0.4}, {"c": 0.4}),
    ({"max_mi": 0.01}, {"max_mi": 0.01}),
    ({"neighbourhood": "chernoff", "confidence": 0.3}, {"delta": slow.DELTAS["chernoff"], "c": 0.3}),
    ({"neighbourhood": "hoeffding", "confidence": 0.4}, {"delta": slow.DELTAS["hoeffding"], "c": 0.4}),
    ({"neighbourhood": "remaining"}, {"delta": slow.DELTAS["remaining"]}),
    ({"neighbourhood": "attainable"}, {"delta": slow.DELTAS["attainable"]}),
    ({"dependence": "none"}, {"eta": lambda own, rest: 0.0, "pair_eta": lambda first, second: 0.0}),
    ({"dependence": "alignment"}, {"eta": slow.alignment, "pair_eta": slow.alignment_zipped}),
    (
        {"dependence": "alignment", "pairing": "zip"},
        {
            "eta": lambda own, rest: slow.alignment_zipped(
                own[: min(len(own), len(rest))], rest[: min(len(own), len(rest))]
            ),
            "pair_eta": slow.alignment_zipped,
        },
    ),
]


@pytest.mark.parametrize(("options", "slow_options"), OPTIONS, ids=[str(options) for options, _ in OPTIONS])
@pytest.mark.parametrize("labels", [2, 4])
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("mined", [False, True])
def test_batch_and_anchor_match_the_loops(options, slow_options, labels, reference, mined):
    x, y = batch(labels=labels)
    ref, ref_y = batch(31, labels=labels + 1) if reference else (x, y)
    a, n = pairs_of(y, ref_y) if mined else (None, None)
    tuple_of = (a, a, n) if mined else None
    slow_pairs = list(zip(a.tolist(), n.tolist(), strict=True)) if mined else None
    slow_ref = (ref.tolist(), ref_y.tolist()) if reference else (None, None)
    kwargs = {"indices_tuple": tuple_of} | ({"ref_emb": ref, "ref_labels": ref_y} if reference else {})
    got = AdaptiveMargin(**options)(x, y, **kwargs)
    want = slow.batch_margin(x.tolist(), y.tolist(), *slow_ref, slow_pairs, **slow_options)
    assert got.shape == ()
    assert_close(got.item(), want, rtol=0, atol=1e-9)
    if mined and any(not (y[a] == label).any() for label in range(labels)):
        pytest.skip("a class without pairs")
    got = AdaptiveMargin(granularity="anchor", **options)(x, y, **kwargs)
    want = slow.anchor_margins(x.tolist(), y.tolist(), *slow_ref, slow_pairs, **slow_options)
    assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("options", "slow_options"), OPTIONS[:2] + OPTIONS[3:9])
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("mined", [False, True])
def test_pairs_match_the_loops(options, slow_options, reference, mined):
    x, y = batch(14, labels=3)
    ref, ref_y = batch(11, labels=4) if reference else (x, y)
    a, n = pairs_of(y, ref_y) if mined else (None, None)
    slow_pairs = list(zip(a.tolist(), n.tolist(), strict=True)) if mined else None
    slow_ref = (ref.tolist(), ref_y.tolist()) if reference else (None, None)
    kwargs = {"ref_emb": ref, "ref_labels": ref_y} if reference else {}
    got = AdaptiveMargin(granularity="pair", **options)(x, y, (a, a, n) if mined else None, **kwargs)
    want = slow.pair_margins(x.tolist(), y.tolist(), *slow_ref, slow_pairs, **slow_options)
    assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
def test_float32_is_as_the_loops(granularity):
    x, y = batch(40, 8, 3, torch.float32)
    of = {"batch": slow.batch_margin, "anchor": slow.anchor_margins, "pair": slow.pair_margins}[granularity]
    got = AdaptiveMargin(granularity=granularity)(x, y)
    assert got.dtype == torch.float32
    assert_close(got, torch.tensor(of(x.tolist(), y.tolist())), rtol=0, atol=1e-4)


@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
@pytest.mark.parametrize("dependence", ["gaussian", "alignment"])
def test_pairs_and_triplets_say_the_same(granularity, dependence):
    x, y = batch()
    a, n = pairs_of(y, y)
    margin = AdaptiveMargin(granularity=granularity, dependence=dependence)
    other = torch.randint(24, (9,))  # positives do not take part
    assert torch.equal(margin(x, y, (a, a.flip(0), n)), margin(x, y, (other, other, a, n)))


def test_classes_without_pairs_have_no_information():
    x, y = batch(30, 3, 3)
    a, n = pairs_of(y, y)
    a, n = a[y[a] == 1], n[y[a] == 1]
    for dependence in ("gaussian", "alignment"):
        margin = AdaptiveMargin(granularity="anchor", dependence=dependence, neighbourhood="hoeffding")
        alpha = margin(x, y, (a, a, n))
        delta = F.confidence_term(30, F.empirical_bias_k(x, y).double())
        assert torch.equal(alpha[y != 1], delta[y != 1])
        assert (alpha[y == 1] > delta[y == 1]).all()


# --- what it is made of ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairing", ["all", "zip"])
@pytest.mark.parametrize("bandwidth", ["std", 0.7])
def test_two_groups_are_the_functional_formulas(pairing, bandwidth):
    x, y = batch(50)
    margin = AdaptiveMargin(pairing=pairing, bandwidth=bandwidth, collect_stats=True)
    alpha = margin(x, y)
    eta = F.gaussian_correlation(x[y == 1], x[y == 0], bandwidth, pairing)
    delta = F.confidence_term(50, F.empirical_bias_k(x, y).double()).mean()
    assert_close(margin.eta, eta.item())
    assert_close(alpha, F.mutual_information(eta) + delta)


def test_delta_is_the_mean_of_the_samples_own():
    x, y = batch(80, shift=3.0)
    k = F.empirical_bias_k(x, y)
    assert len(k.unique()) > 3
    margin = AdaptiveMargin(collect_stats=True)
    margin(x, y)
    assert_close(margin.delta, F.confidence_term(80, k.double()).mean().item())
    assert_close(margin.k, 80 / (1 / k.double()).sum().item())


def test_the_mean_of_anchors_is_the_batch():
    for labels in (2, 5):
        x, y = batch(60, labels=labels)
        assert_close(AdaptiveMargin(granularity="anchor")(x, y).mean(), AdaptiveMargin()(x, y))


def test_two_labels_are_two_groups_whatever_their_names():
    x, y = batch(40)
    for granularity in ("batch", "anchor"):
        margin = AdaptiveMargin(granularity=granularity)
        alpha = margin(x, y)
        assert_close(margin(x, 1 - y), alpha)
        assert_close(margin(x, y * 77 - 13), alpha)
        assert_close(margin(x, y.bool()), alpha)
        assert_close(margin(x, y.to(torch.uint8)), alpha)


def test_pairs_are_in_row_major_order():
    x, y = batch(12, labels=3)
    a, n = (y[:, None] != y).nonzero(as_tuple=True)
    margin = AdaptiveMargin(granularity="pair")
    assert_close(margin(x, y), margin(x, y, (a, a, n)))


def test_the_released_zip_depends_on_the_order_and_all_pairs_do_not():
    x, y = batch(40)
    shuffled = torch.randperm(40)
    for pairing, same in (("zip", False), ("all", True)):
        margin = AdaptiveMargin(pairing=pairing)
        assert torch.allclose(margin(x, y), margin(x[shuffled], y[shuffled]), atol=1e-9) == same


# --- strategies -----------------------------------------------------------------------------------------------------


def test_names_choose_strategies():
    margin = AdaptiveMargin()
    assert isinstance(margin.dependence, GaussianCorrelation)
    assert isinstance(margin.neighbourhood, AutoRule)
    assert isinstance(margin.neighbourhood.few, HoeffdingRule)
    assert isinstance(margin.neighbourhood.many, RemainingRule)
    assert isinstance(AdaptiveMargin(neighbourhood="hoeffding").neighbourhood, HoeffdingRule)
    assert isinstance(AdaptiveMargin(neighbourhood="remaining").neighbourhood, RemainingRule)
    assert isinstance(AdaptiveMargin(neighbourhood="attainable").neighbourhood, AttainableRule)
    assert isinstance(AdaptiveMargin(dependence="none").dependence, Independence)
    assert isinstance(AdaptiveMargin(dependence="alignment").dependence, CentredKernelAlignment)
    assert isinstance(AdaptiveMargin(neighbourhood="chernoff").neighbourhood, ChernoffRule)
    assert isinstance(AdaptiveMargin(neighbourhood="released").neighbourhood, ReleasedRule)
    own = CentredKernelAlignment()
    assert AdaptiveMargin(dependence=own).dependence is own


class MeanGap(Dependence):
    """A dependence of one's own: how close two group means are, nothing overridden."""

    def forward(self, strong, weak):
        return 1 - (strong.mean() - weak.mean()).abs()


class Learned(MeanGap):
    """With a parameter, as a neural estimator would have."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, strong, weak):
        return self.weight * super().forward(strong, weak)


@pytest.mark.parametrize("pairing", ["all", "zip"])
@pytest.mark.parametrize("mined", [False, True])
def test_own_dependence(pairing, mined):
    def gap(own, rest):
        rows = min(len(own), len(rest)) if pairing == "zip" or mined else None
        return 1 - abs(
            slow.mean([z for row in own[:rows] for z in row]) - slow.mean([z for row in rest[:rows] for z in row])
        )

    x, y = batch(labels=3)
    a, n = pairs_of(y, y)
    pairs = list(zip(a.tolist(), n.tolist(), strict=True)) if mined else None
    got = AdaptiveMargin(dependence=MeanGap(), pairing=pairing)(x, y, (a, a, n) if mined else None)
    assert_close(got.item(), slow.batch_margin(x.tolist(), y.tolist(), pairs=pairs, eta=gap, pair_eta=gap))


def test_own_dependence_sees_only_classes_with_a_rest():
    x, y = batch()
    alpha = AdaptiveMargin(dependence=MeanGap())(x, y * 0)
    assert_close(alpha.item(), math.log(24 / 0.05) / 46)  # MI = 0, K = N - 1
    assert torch.equal(AdaptiveMargin(dependence=MeanGap(), pairing="zip")(x, y * 0), alpha)


def test_own_dependence_can_learn():
    dependence = Learned()
    margin = AdaptiveMargin(dependence=dependence, detach=False)
    assert [p is dependence.weight for p in margin.parameters()] == [True]
    margin(*batch()).backward()
    assert dependence.weight.grad.abs() > 0
    again = AdaptiveMargin(dependence=Learned())
    dependence.weight.data.fill_(0.25)
    again.load_state_dict(margin.state_dict())
    assert again.dependence.weight == 0.25


def test_margins_of_pairs_know_every_named_dependence_and_no_other() -> None:
    x, y = torch.randn(12, 6), torch.arange(12) % 3
    gaussian, alignment, alone = (
        AdaptiveMargin(granularity="pair", dependence=name)(x, y) for name in ("gaussian", "alignment", "none")
    )
    assert_close(alignment, gaussian)
    assert_close(alone, AdaptiveMargin(granularity="anchor", dependence="none")(x, y).repeat_interleave(8))
    assert bool((gaussian > alone).any())
    with pytest.raises(ValueError, match="dependence must be 'gaussian', 'alignment' or 'none' for margins of pairs"):
        AdaptiveMargin(granularity="pair", dependence=MeanGap())


@pytest.mark.parametrize("rows", [32, 512])
def test_an_own_delta_may_learn_for_batches_of_any_size(rows: int) -> None:
    class Weighted(RemainingRule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.ones(1, 1, requires_grad=True)

        def delta(self, n, k, confidence):
            return torch.nn.functional.linear(super().delta(n, k, confidence).reshape(1, 1), self.weight).reshape(())

    x, y = torch.randn(rows, 4), torch.arange(rows) % 4
    rule = Weighted()
    alpha = AdaptiveMargin(neighbourhood=rule, dependence="none")(x, y)
    assert_close(alpha, AdaptiveMargin(neighbourhood="remaining", dependence="none")(x, y))
    alpha.backward()
    assert_close(rule.weight.grad, alpha.detach().reshape(1, 1))
    rule.delta = lambda n, k, confidence: k * 0 + 0.125
    assert AdaptiveMargin(neighbourhood=rule, dependence="none")(x, y) == 0.125


def test_own_rule():
    class Eighth(NeighbourhoodRule):
        def significant(self, share, k, n, labels, confidence):
            assert (n, labels.item(), confidence) == (24, 2, 0.2)
            return (k == 8).expand_as(share)

    class WithOwnDelta(Eighth):
        def delta(self, n, k, confidence):
            return n * k * confidence

    x, y = batch()
    mi = AdaptiveMargin(collect_stats=True)
    mi(x, y)
    assert_close(AdaptiveMargin(0.2, neighbourhood=Eighth())(x, y).item(), mi.mi + math.log(24 / 0.2) / 16)
    assert_close(AdaptiveMargin(0.2, neighbourhood=WithOwnDelta())(x, y).item(), mi.mi + 24 * 8 * 0.2)
    anchors = AdaptiveMargin(0.2, neighbourhood=WithOwnDelta(), granularity="anchor")(x, y)
    assert_close(anchors, torch.full((24,), mi.mi + 24 * 8 * 0.2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("rule", "each", "passes", "fails"),
    [  # the smallest classes, and the batches, that docs/margin.md names
        ("hoeffding", 6, [30, 972], [24, 978]),
        ("hoeffding", 8, [24, 59904], [16, 59912]),
        ("hoeffding", 5, [], range(10, 2000, 5)),
        ("chernoff", 4, [36], [32]),
        ("chernoff", 3, [180, 9999], [177]),
        ("chernoff", 2, [], range(4, 2000, 2)),
        ("released", 2, [8, 9998], [6]),
    ],
)
def test_the_smallest_class_that_is_evidence(rule, each, passes, fails):
    significant = AdaptiveMargin(neighbourhood=rule).neighbourhood.significant
    k = torch.arange(1, each, dtype=torch.float64)
    for sizes, evidence in ((passes, True), (fails, False)):
        for n in sizes:
            pure = significant(torch.ones_like(k), k, n, torch.tensor(n // each, dtype=torch.float64), 0.05)
            assert bool(pure.any()) == evidence


def test_two_views_of_each_sample_take_the_released_rule():
    x = torch.randn(64, 3, dtype=torch.float64)
    views, y = torch.cat([x, x + 1e-6]), torch.arange(64).repeat(2)
    k = {}
    for rule in ("hoeffding", "chernoff", "released"):
        margin = AdaptiveMargin(neighbourhood=rule, collect_stats=True)
        margin(views, y)
        k[rule] = margin.k
    assert k == pytest.approx({"hoeffding": 127, "chernoff": 127, "released": 1})


def test_four_images_a_class():
    y = torch.arange(128) // 4
    x = 1e-3 * torch.randn(128, 8) + 10 * torch.randn(32, 8)[y]
    for rule, k in (("hoeffding", 127), ("chernoff", 3)):
        margin = AdaptiveMargin(neighbourhood=rule, collect_stats=True)
        margin(x, y)
        assert margin.k == pytest.approx(k)
        assert margin.delta == pytest.approx(math.log(128 / 0.05) / (2 * k))


# --- gradient -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
def test_a_margin_is_a_constant_of_the_graph(granularity):
    x, y = batch()
    assert not AdaptiveMargin(granularity=granularity)(x.requires_grad_(), y).requires_grad
    assert AdaptiveMargin(granularity=granularity, detach=False)(x, y).requires_grad
    ref = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    call = x.detach(), y, None, ref, torch.arange(9) % 2
    assert not AdaptiveMargin(granularity=granularity)(*call).requires_grad
    assert AdaptiveMargin(granularity=granularity, detach=False)(*call).requires_grad


@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
@pytest.mark.parametrize("dependence", ["gaussian", "alignment"])
@pytest.mark.parametrize("options", [{}, {"bandwidth": 0.7}, {"pairing": "zip"}], ids=str)
@pytest.mark.parametrize("labels", [2, 3])
def test_gradient_of_the_information(granularity, dependence, options, labels):
    x, y = batch(9, 2, labels)
    margin = AdaptiveMargin(granularity=granularity, dependence=dependence, detach=False, **options)
    assert gradcheck(lambda z: margin(z, y), (x.requires_grad_(),))


@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
@pytest.mark.parametrize("dependence", ["gaussian", "alignment"])
def test_gradient_with_a_reference_and_pairs(granularity, dependence):
    x, y = batch(6, 2)
    ref, ref_y = batch(7, 2, 3)
    a, n = pairs_of(y, ref_y, 8)
    margin = AdaptiveMargin(granularity=granularity, dependence=dependence, detach=False)
    x.requires_grad_(), ref.requires_grad_()
    assert gradcheck(lambda z, r: margin(z, y, None, r, ref_y), (x, ref))
    assert gradcheck(lambda z, r: margin(z, y, (a, a, n), r, ref_y), (x, ref))


@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
@pytest.mark.parametrize("dependence", ["gaussian", "alignment"])
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(6, 3),
        torch.ones(6, 3),
        torch.full((6, 3), 1e18),
        torch.eye(6)[:, :3],
        torch.randn(6, 1).expand(6, 3).clone(),
        torch.randn(1, 3).expand(6, 3).clone(),
        torch.randn(6, 3) * 1e-20,
        1 + 1e-6 * torch.randn(6, 3),
    ],
    ids=["zeros", "ones", "huge", "one-hot", "constant rows", "copies", "tiny", "nearly equal"],
)
def test_gradient_of_degenerate_batches_is_finite(granularity, dependence, x):
    x = x.clone().requires_grad_()
    alpha = AdaptiveMargin(granularity=granularity, dependence=dependence, detach=False)(x, torch.arange(6) % 3)
    alpha.sum().backward()
    assert alpha.isfinite().all()
    assert x.grad.isfinite().all()


# --- invariances ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["batch", "anchor"])
@pytest.mark.parametrize("dependence", ["gaussian", "alignment"])
@pytest.mark.parametrize("kind", ["generic", "grid", "copies", "all equal"])
@pytest.mark.parametrize("dtype", TOL, ids=str)
def test_the_order_of_the_samples_does_not_matter(granularity, dependence, kind, dtype):
    x, y = batch(60, labels=3, dtype=dtype)
    if kind == "grid":
        x = x.round()
    if kind == "copies":
        x, y = torch.cat([x, x[:30]]), torch.cat([y, (y[:30] + 1) % 3])
    if kind == "all equal":
        x = torch.full_like(x, 0.1)
    margin = AdaptiveMargin(0.5, granularity=granularity, dependence=dependence)
    alpha = margin(x, y)
    for _ in range(3):
        shuffled = torch.randperm(len(x))
        want = alpha if granularity == "batch" else alpha[shuffled]
        assert_close(margin(x[shuffled], y[shuffled]), want, rtol=0, atol=TOL[dtype] / 10)


@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("scale", [1e-20, 1e-10, 0.3, 7.0, 1e9, 1e18, -1.0])
def test_scale_does_not_matter(granularity, dtype, scale):
    x, y = batch(50, labels=3, dtype=dtype)
    margin = AdaptiveMargin(0.5, granularity=granularity)
    assert_close(margin(x * scale, y), margin(x, y), rtol=0, atol=TOL[dtype])
    power = 2.0 ** round(math.log2(abs(scale)))
    assert torch.equal(margin(x * power, y), margin(x, y))


def test_a_number_as_bandwidth_has_the_unit_of_the_entries():
    x, y = batch()
    assert_close(AdaptiveMargin(bandwidth=7e5)(x * 1e6, y), AdaptiveMargin(bandwidth=0.7)(x, y))
    assert not torch.isclose(AdaptiveMargin(bandwidth=0.7)(x * 3, y), AdaptiveMargin(bandwidth=0.7)(x, y))


def test_repeating_every_sample_keeps_the_information():
    x, y = batch(labels=3)
    margin = AdaptiveMargin(collect_stats=True)
    margin(x, y)
    mi, eta = margin.mi, margin.eta
    margin(torch.cat([x] * 3), torch.cat([y] * 3))
    assert_close((margin.mi, margin.eta), (mi, eta))


def test_unequal_groups_keep_the_correlation():
    x, y = batch(40)
    margin = AdaptiveMargin(bandwidth=0.7, collect_stats=True)
    margin(x, y)
    eta = margin.eta
    margin(torch.cat([x, x[y == 1], x[y == 1]]), torch.cat([y, y[y == 1], y[y == 1]]))
    assert_close(margin.eta, eta)


# --- a reference set ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
def test_the_batch_as_its_own_reference(granularity):
    x, y = batch(40, labels=3)
    margin = AdaptiveMargin(granularity=granularity)
    alpha = margin(x, y)
    assert torch.equal(margin(x, y, None, x, y), alpha)
    assert torch.equal(margin(x, y, None, x), alpha)
    assert_close(margin(x, y, None, x.clone(), y.clone()), alpha, rtol=0, atol=1e-9)


@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
def test_the_batch_with_other_labels_is_another_reference(granularity):
    x, y = batch(40, labels=3)
    other = (y + torch.arange(40) % 2) % 3
    margin = AdaptiveMargin(granularity=granularity)
    alpha = margin(x, y, None, x, other)
    assert_close(alpha, margin(x, y, None, x.clone(), other))
    assert not torch.equal(alpha.mean(), margin(x, y).mean())


def test_a_memory_that_holds_the_batch():
    # as CrossBatchMemory passes it: the rows of the batch are in it, each left out of its own neighbours alone
    memory, memory_y = batch(50)
    x, y = memory[20:30].clone(), memory_y[20:30].clone()
    margin = AdaptiveMargin(granularity="anchor")
    mi = AdaptiveMargin(granularity="anchor", neighbourhood=_NoEvidence())
    got = margin(x, y, None, memory, memory_y) - mi(x, y, None, memory, memory_y)
    want = margin(memory, memory_y) - mi(memory, memory_y)
    assert_close(got, want[20:30])


class _NoEvidence(NeighbourhoodRule):
    def significant(self, share, k, n, labels, confidence):
        return torch.zeros_like(share, dtype=torch.bool)

    def delta(self, n, k, confidence):
        return torch.zeros_like(k)


def test_n_is_the_size_of_the_reference():
    x, y = batch(5)
    ref, ref_y = torch.randn(200, 3, dtype=torch.float64), torch.arange(200) % 2
    margin = AdaptiveMargin(neighbourhood=_Always(), collect_stats=True)
    margin(x, y, None, ref, ref_y)
    assert_close(margin.delta, math.log(200 / 0.05) / 2)


class _Always(NeighbourhoodRule):
    def significant(self, share, k, n, labels, confidence):
        return torch.ones_like(share, dtype=torch.bool)


# --- statistics -----------------------------------------------------------------------------------------------------


NAMES = ["mi", "eta", "delta", "k", "alpha"]


@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
def test_statistics_are_of_the_last_call(granularity):
    margin = AdaptiveMargin(granularity=granularity, collect_stats=True)
    assert margin._record_these_stats == NAMES
    assert margin._record_these == ["confidence"]
    for shift in (0.5, 3.0):
        x, y = batch(40, shift=shift)
        alpha = margin(x, y)
        assert all(type(getattr(margin, name)) is float for name in NAMES)
        assert_close(margin.alpha, alpha.mean().item())
        assert_close(margin.alpha, margin.mi + margin.delta)
        assert 1 <= margin.k <= 39
        assert -1 <= margin.eta <= 1
    margin.reset_stats()
    assert all(math.isnan(getattr(margin, name)) for name in NAMES)


def test_no_statistics_unless_asked():
    margin = AdaptiveMargin()
    assert not hasattr(margin, "_record_these_stats")
    margin(*batch())
    for name in NAMES:
        with pytest.raises(AttributeError, match=f"collect_stats must be True to read {name}, got False; .* to Adap"):
            getattr(margin, name)
    with pytest.raises(AttributeError, match="collect_stats must be True"):
        margin.statistics()


def test_statistics_can_be_switched_at_any_time():
    margin = AdaptiveMargin()
    margin.collect_stats = True
    assert margin._record_these_stats == NAMES
    assert all(math.isnan(each) for each in margin.statistics().values())  # no call yet
    margin(*batch())
    assert margin.statistics() == {name: getattr(margin, name) for name in NAMES}
    assert margin.alpha == margin.mi + margin.delta > 0
    margin.collect_stats = False
    margin(*batch())
    assert margin._record_these_stats == []  # the host's hooks find nothing old
    assert not any(hasattr(margin, name) for name in NAMES)


def test_the_hosts_switch(monkeypatch):
    for collect in (True, False):
        monkeypatch.setattr(c_f, "COLLECT_STATS", collect)
        margin = AdaptiveMargin()
        margin(*batch())
        assert hasattr(margin, "mi") is collect
        assert AdaptiveMargin(collect_stats=not collect).collect_stats is not collect


def test_a_call_that_fails_leaves_no_old_statistics():
    margin = AdaptiveMargin(collect_stats=True)
    x, y = batch()
    margin(x, y)
    with pytest.raises(ValueError, match="finite"):
        margin(x * math.nan, y)
    assert math.isnan(margin.alpha)


def test_nothing_has_no_statistics():
    margin = AdaptiveMargin(collect_stats=True)
    margin(*batch())
    margin(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert all(math.isnan(getattr(margin, name)) for name in NAMES)
    x, y = batch()
    margin = AdaptiveMargin(granularity="pair", collect_stats=True)
    margin(x, y * 0)  # no pairs: means of nothing
    assert all(math.isnan(getattr(margin, name)) for name in NAMES)


# --- as a module ----------------------------------------------------------------------------------------------------


def test_is_a_margin_in_squared_distance():
    margin = AdaptiveMargin(granularity="anchor")
    assert isinstance(margin, Margin)
    assert margin.unit == "squared distance"
    assert margin.granularity == "anchor"
    assert margin.state_dict() == {}
    assert "confidence=0.05, granularity='anchor', neighbourhood=AutoRule" in repr(margin)


def test_copies_and_pickles():
    x, y = batch()
    margin = AdaptiveMargin(0.3, neighbourhood="chernoff", dependence="alignment")
    for again in (copy.deepcopy(margin), pickle.loads(pickle.dumps(margin))):
        assert torch.equal(again(x, y), margin(x, y))


def test_inputs_and_global_state_stay_as_they_were():
    x, y = batch()
    before, labels, state = x.clone(), y.clone(), torch.get_rng_state()
    for granularity in ("batch", "anchor", "pair"):
        AdaptiveMargin(granularity=granularity)(x, y)
    assert torch.equal(x, before)
    assert torch.equal(y, labels)
    assert torch.equal(torch.get_rng_state(), state)


def test_tiles_do_not_matter(monkeypatch):
    x, y = batch(41, labels=3)
    alpha = AdaptiveMargin(1.0, granularity="anchor")(x, y)
    assert len(alpha.unique()) > 4
    for rows in (1, 8, 20):  # 8 and 20 leave one row for the last tile
        monkeypatch.setitem(own_neighbours.TILE_ENTRIES, "cpu", rows * 41)
        assert torch.equal(AdaptiveMargin(1.0, granularity="anchor")(x, y), alpha)


def test_inside_no_grad_and_inference_mode():
    x, y = batch()
    alpha = AdaptiveMargin()(x, y)
    with torch.no_grad():
        assert torch.equal(AdaptiveMargin(detach=False)(x, y), alpha)
    with torch.inference_mode():
        assert torch.equal(AdaptiveMargin()(x.clone(), y.clone()), alpha)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"confidence": 0}, ValueError, r"confidence must be in \(0, 1\], got 0; the paper uses 0.05"),
        ({"confidence": 1.01}, ValueError, r"confidence must be in \(0, 1\], got 1.01; "),
        ({"confidence": math.nan}, ValueError, r"confidence must be in \(0, 1\], got nan; "),
        ({"confidence": None}, TypeError, r"confidence must be in \(0, 1\], got None; the paper uses 0.05"),
        (
            {"bandwidth": "median"},
            ValueError,
            r"bandwidth must be 'std' or a positive number, got 'median'; 'std' takes",
        ),
        ({"bandwidth": 0}, ValueError, r"bandwidth must be 'std' or a positive number, got 0; "),
        ({"bandwidth": math.nan}, ValueError, r"bandwidth must be 'std' or a positive number, got nan; "),
        ({"bandwidth": None}, TypeError, r"bandwidth must be 'std' or a positive number, got None; "),
        ({"max_mi": 0.0}, ValueError, r"max_mi must be positive or None, got 0.0; the paper's code caps at 2.5 nats"),
        ({"max_mi": math.nan}, ValueError, r"max_mi must be positive or None, got nan; "),
        ({"max_mi": "2.5"}, TypeError, r"max_mi must be positive or None, got '2.5'; "),
        ({"pairing": "random"}, ValueError, r"pairing must be one of 'all', 'zip', got 'random'; pick one of them"),
        ({"granularity": "class"}, ValueError, r"granularity must be one of 'batch', 'anchor', 'pair', got 'class'; "),
        (
            {"dependence": "hsic"},
            ValueError,
            r"dependence must be one of 'gaussian', 'alignment', 'none' or a Dependence",
        ),
        (
            {"dependence": MeanGap},
            ValueError,
            r"dependence must be .* subclass adaptive_margin.Dependence for your own",
        ),
        (
            {"neighbourhood": "knn"},
            ValueError,
            r"neighbourhood must be one of 'auto', 'remaining', 'attainable', 'hoeffding', 'chernoff', 'released' or",
        ),
        (
            {"neighbourhood": None},
            ValueError,
            r"neighbourhood must be .* got None; subclass adaptive_margin.Neighbourhood",
        ),
    ],
)
def test_bad_options(kwargs, error, message):
    with pytest.raises(error, match=message):
        AdaptiveMargin(**kwargs)


X, Y = torch.ones(4, 2), torch.tensor([0, 0, 1, 1])
T = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (([[1.0]], Y), TypeError, "embeddings must be a torch.Tensor, got list; convert it with torch.as_tensor"),
        (
            (X[0], Y),
            ValueError,
            r"embeddings must be a matrix of shape \(rows, features\).*, got shape \(2,\); pass one row",
        ),
        ((X[:, :0], Y), ValueError, r"embeddings must be .* at least one feature, got shape \(4, 0\); "),
        (
            (X.long(), Y),
            TypeError,
            r"embeddings must be floating point, got torch.int64; convert it with embeddings.float",
        ),
        (
            (X * math.nan, Y),
            ValueError,
            r"embeddings must be finite, got 8 NaN or infinite of 8 values, the first at \(0, 0\)",
        ),
        ((X / 0, Y), ValueError, r"embeddings must be finite, got 8 NaN or infinite of 8 values"),
        (
            (X,),
            ValueError,
            r"labels must be given, got None; the margin compares groups; for continuous targets .* OtsuGr",
        ),
        ((X, Y.tolist()), TypeError, "labels must be a torch.Tensor, got list; "),
        ((X, Y.float()), TypeError, "labels must be integers, got torch.float32; group continuous targets first"),
        (
            (X, Y[:3]),
            ValueError,
            r"labels must be as long as embeddings \(4 rows\), got 3 labels; pass one label per row",
        ),
        ((X, Y[:, None]), ValueError, r"labels must be one-dimensional, got shape \(4, 1\); "),
        (
            (X, Y, None, X.clone()),
            ValueError,
            "ref_labels must be given with ref_emb, got None; pass the labels of ref_emb",
        ),
        ((X, Y, None, X[:3], Y), ValueError, r"ref_labels must be as long as ref_emb \(3 rows\), got 4 labels; "),
        (
            (X, Y, None, X[:, :1], Y),
            ValueError,
            "ref_emb must be of the 2 features of embeddings, got 1 features; embed",
        ),
        ((X, Y, None, X / 0, Y), ValueError, "ref_emb must be finite, got 8 NaN or infinite of 8 values"),
        ((X, Y, None, X[0], Y), ValueError, r"ref_emb must be a matrix .*, got shape \(2,\); "),
        ((X, Y, None, X + 1, Y.float()), TypeError, "ref_labels must be integers, got torch.float32; "),
        (
            (X, Y, (T, T)),
            ValueError,
            r"indices_tuple must be triplets \(a, p, n\) or pairs \(a1, p, a2, n\), got 2 tensors; ",
        ),
        (
            (X, Y, (T, T, T[:1])),
            ValueError,
            "indices_tuple must be one negative an anchor, got 2 anchors and 1 negatives; ",
        ),
        (
            (X, Y, (T, T, T + 3)),
            ValueError,
            r"negatives must be in \[0, 4\) for the 4 rows of embeddings, got 3 to 4; mine",
        ),
        ((X, Y, (T - 1, T, T)), ValueError, r"indices_tuple's anchors must be in \[0, 4\) .* got -1 to 0; mine pairs"),
        (
            (X, Y, (T, T, T + 1), X[:2] + 1, Y[:2]),
            ValueError,
            r"negatives must be in \[0, 2\) for the 2 rows of ref_emb",
        ),
        (
            (X, Y, (T.float(), T, T)),
            TypeError,
            "anchors must be a one-dimensional tensor of integers, got torch.float32",
        ),
        ((X, Y, (T, T, T.bool())), TypeError, "negatives must be a one-dimensional tensor of integers, got torch.bool"),
        (
            (X, Y, (T[:, None], T, T)),
            ValueError,
            r"anchors must be a one-dimensional tensor of integers, got shape \(2, 1\)",
        ),
        (
            (X, Y, ([0], [1], [2])),
            TypeError,
            "anchors must be a one-dimensional tensor of integers, got list; pass a miner",
        ),
        (
            (X, Y, 3),
            TypeError,
            r"indices_tuple must be triplets \(a, p, n\) or pairs \(a1, p, a2, n\), got int; pass a miner",
        ),
    ],
)
@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
def test_bad_batches(args, error, message, granularity):
    with pytest.raises(error, match=message):
        AdaptiveMargin(granularity=granularity)(*args)


# --- edges ----------------------------------------------------------------------------------------------------------


EVERY = [
    {"granularity": granularity, "dependence": dependence, "pairing": pairing}
    for granularity in ("batch", "anchor", "pair")
    for dependence in ("gaussian", "alignment")
    for pairing in ("all", "zip")
]


@pytest.mark.parametrize("options", EVERY, ids=[" ".join(options.values()) for options in EVERY])
def test_small_batches(options):
    margin = AdaptiveMargin(**options)
    x, y = torch.randn(9, 3), torch.arange(9)
    one = math.log(1 / 0.05) / 2  # K = 1
    empty = margin(x[:0], y[:0])
    assert empty.shape == {"batch": (), "anchor": (0,), "pair": (0,)}[options["granularity"]]
    assert empty.sum() == 0
    assert_close(margin(x[:1], y[:1]).sum().item(), {"batch": one, "anchor": one, "pair": 0.0}[options["granularity"]])
    for groups in ((2,), (1, 1), (1, 2), (1, 8), (3, 6), (1,) * 9, (9,)):
        labels = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(groups))
        alpha = margin(x[: len(labels)], labels)
        assert alpha.isfinite().all()
        assert (alpha >= 0).all()
        assert (alpha <= 2.5 + math.log(len(labels) / 0.05) / 2 + 1e-6).all()
        if options["granularity"] != "pair":
            assert (alpha > 0).all()


def test_one_class_has_no_information():
    x = torch.randn(30, 4)
    for options in EVERY[:8]:
        alpha = AdaptiveMargin(**options)(x, torch.zeros(30).long())
        assert_close(alpha, torch.full_like(alpha, math.log(600) / 58))
    assert AdaptiveMargin(granularity="pair")(x, torch.zeros(30).long()).shape == (0,)


def test_an_empty_reference_or_an_empty_batch():
    x, y = torch.randn(3, 2), torch.tensor([0, 1, 1])
    for granularity, shape in (("batch", ()), ("anchor", (3,)), ("pair", (0,))):
        assert torch.equal(AdaptiveMargin(granularity=granularity)(x, y, None, x[:0], y[:0]), torch.zeros(shape))
    for granularity, shape in (("batch", ()), ("anchor", (0,)), ("pair", (0,))):
        assert torch.equal(AdaptiveMargin(granularity=granularity)(x[:0], y[:0], None, x, y), torch.zeros(shape))


def test_a_miner_that_found_nothing():
    x, y = batch()
    none = torch.empty(0, dtype=torch.int64)
    delta = F.confidence_term(24, F.empirical_bias_k(x, y).double())
    for mined in ((none, none, none), (none, none, none, none)):
        for dependence in ("gaussian", "alignment", MeanGap()):
            assert_close(AdaptiveMargin(dependence=dependence)(x, y, mined), delta.mean())
            assert_close(AdaptiveMargin(dependence=dependence, granularity="anchor")(x, y, mined), delta)
            if isinstance(dependence, str):
                assert AdaptiveMargin(dependence=dependence, granularity="pair")(x, y, mined).shape == (0,)


@pytest.mark.parametrize("options", EVERY, ids=[" ".join(options.values()) for options in EVERY])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e-20, 1e18, 3e38])
def test_all_equal(options, value):
    x, y = torch.full((20, 5), value), torch.arange(20) % 2
    alpha = AdaptiveMargin(**options)(x, y)
    # nothing varies: MI = 0; all tie, 10 strangers before 9 own: never above chance, K = 19
    assert_close(alpha, torch.full_like(alpha, math.log(400) / 38))


def test_constant_columns():
    x, y = batch(40)
    x = torch.cat([x, torch.full((40, 3), 0.4, dtype=x.dtype)], dim=1)
    assert_close(AdaptiveMargin()(x, y).item(), slow.batch_margin(x.tolist(), y.tolist()), rtol=0, atol=1e-9)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(0, 12),
    features=st.integers(1, 5),
    labels=st.integers(1, 13),
    exponent=st.integers(-20, 18),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    kind=st.sampled_from(["generic", "grid", "equal", "constant columns", "one far", "two points"]),
    granularity=st.sampled_from(["batch", "anchor", "pair"]),
    dependence=st.sampled_from(["gaussian", "alignment"]),
    pairing=st.sampled_from(["all", "zip"]),
    rule=st.sampled_from(["hoeffding", "chernoff"]),
    bandwidth=st.sampled_from(["std", "std", 1.0, 1e-8]),
    max_mi=st.sampled_from([2.5, 0.1]),
    reference=st.integers(0, 2),
    mined=st.booleans(),
)
def test_any_batch_has_a_margin(
    seed,
    rows,
    features,
    labels,
    exponent,
    dtype,
    kind,
    granularity,
    dependence,
    pairing,
    rule,
    bandwidth,
    max_mi,
    reference,
    mined,
):
    torch.manual_seed(seed)
    if dtype == torch.float16:
        exponent = max(-3, min(exponent, 3))  # what it can hold, and its inverse, which a gradient is
    x, y = torch.randn(rows, features, dtype=torch.float64), torch.randint(labels, (rows,))
    if kind == "grid":
        x = x.round()
    elif kind == "equal":
        x = x[:1].expand_as(x)
    elif kind == "constant columns":
        x = torch.cat([x[:, :1], torch.ones_like(x)], dim=1)
    elif kind == "one far" and rows:
        x[0] *= 1e3 if dtype == torch.float16 else 1e12
    elif kind == "two points":
        x = torch.where(y[:, None] == 0, 1.0, torch.full_like(x, 2.0))
    x = x * 10.0**exponent
    if dtype == torch.float16:
        x = x.clamp(-6e4, 6e4)
    x = x.to(dtype).requires_grad_()
    ref, ref_y = [(None, None), (x, y), (x[: rows // 2 + 1].detach().clone(), y[: rows // 2 + 1])][reference]
    n = rows if ref is None else len(ref)
    indices = None
    if mined and rows and n:
        a, b = torch.randint(rows, (7,)), torch.randint(n, (7,))
        indices = (a, a, b)
    margin = AdaptiveMargin(
        granularity=granularity,
        dependence=dependence,
        pairing=pairing,
        neighbourhood=rule,
        bandwidth=bandwidth,
        max_mi=max_mi,
        detach=False,
    )
    alpha = margin(x, y, indices, ref, ref_y)
    assert alpha.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert alpha.isfinite().all()
    assert (alpha >= 0).all()
    if n:
        assert (alpha <= max_mi + math.log(n / 0.05) / 2 + 1e-5).all()
    if alpha.requires_grad:
        (grad,) = torch.autograd.grad(alpha.sum(), x, allow_unused=True)
        assert grad is None or grad.isfinite().all()


# --- large batches ----------------------------------------------------------------------------------------------------


RULES = {"remaining": RemainingRule, "hoeffding": HoeffdingRule, "chernoff": ChernoffRule, "released": ReleasedRule}


@pytest.mark.parametrize("dependence", ["none", "gaussian"])  # with this in numpy, where there is no reference set
@pytest.mark.parametrize("rule", RULES)
def test_a_large_batch_is_judged_by_evenly_spaced_anchors(rule, dependence):
    x, y = batch(50, 3, 7)
    reference = batch(60, 3, 7)
    for against in ((), (None, *reference)):
        by_anchor = AdaptiveMargin(neighbourhood=rule, confidence=1.0, granularity="anchor", dependence="none")
        deltas = by_anchor(x, y, *against)
        order = torch.argsort(y, stable=True)
        for anchors, every in ((10, 5), (25, 2), (26, 1), (50, 1), ("all", 1), (1, 50)):
            options = {"confidence": 1.0, "dependence": dependence, "collect_stats": True}
            margin = AdaptiveMargin(neighbourhood=RULES[rule](anchors), **options)
            some = deltas[order[every // 2 :: every]]
            mean = some.mean() if rule != "released" else some.square().mean().sqrt()  # of 0.7/√K that of 1/K
            assert_close(margin(x, y, *against) - margin.mi, mean, rtol=0, atol=1e-12)


def test_of_a_sample_each_label_has_its_share():
    rows = own_neighbours.evenly_spaced(torch.arange(96) % 3, 12)
    assert torch.bincount(rows % 3).tolist() == [4, 4, 4]
    assert torch.equal(rows, rows.unique().sort().values[torch.argsort(rows.unique() % 3, stable=True)])
    assert own_neighbours.evenly_spaced(torch.arange(23), 12) is None
    assert len(own_neighbours.evenly_spaced(torch.arange(24), 12)) == 12


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shift", [0.0, 1.5, 6.0])
def test_the_error_of_a_sample_is_within_its_bound(rule, shift):
    """Within three standard errors of all rows, and in the order of the bound where labels alternate or come sorted."""
    x, y = batch(1024, 3, 2, shift=shift)
    y = y.sort().values if rule == "hoeffding" else y
    every = AdaptiveMargin(neighbourhood=RULES[rule]("all"), dependence="none")(x, y)
    some = AdaptiveMargin(neighbourhood=RULES[rule](256), dependence="none")(x, y)
    largest = {"remaining": 1.0, "hoeffding": 0.25, "chernoff": math.log(2) / 2, "released": 0.7}[rule]
    assert abs(some - every) < 3 * largest / (2 * 256**0.5)


def test_by_default_large_batches_are_sampled():
    assert [RULES[rule]().anchors for rule in RULES] == [1024, 256, 512, 512]
    x, y = batch(1100, 3, 2, dtype=torch.float32)
    every = torch.argsort(y, stable=True)[2::4]
    deltas = AdaptiveMargin(granularity="anchor", dependence="none")(x, y)
    assert_close(AdaptiveMargin(dependence="none")(x, y), deltas[every].mean())


@pytest.mark.parametrize("anchors", [0, -3, 1.5, "some", None])
def test_anchors_that_are_none(anchors):
    with pytest.raises(ValueError, match="anchors must be 'all' or at least 1, got"):
        RemainingRule(anchors=anchors)


def test_a_view_with_a_pending_sign_is_read_as_it_is() -> None:
    x = torch.randn(32, 8, dtype=torch.complex64).conj().imag
    labels = torch.arange(32) % 4
    assert x.is_neg()
    assert torch.equal(AdaptiveMargin()(x, labels), AdaptiveMargin()(x.clone(), labels))
