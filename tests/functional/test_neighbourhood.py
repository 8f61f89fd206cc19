"""K and Δ: numbers by hand, the sorted loop, the claims of the method, invariances, tiles, edges."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from adaptive_margin import AdaptiveMargin
from adaptive_margin import functional as F
from adaptive_margin.functional import own_neighbours
from tests.references import margin as slow

RULES = [
    (F.hoeffding_significant, slow.hoeffding),
    (F.chernoff_significant, slow.chernoff),
    (F.released_significant, slow.released),
]
RULE_NAMES = ["hoeffding", "chernoff", "released"]


def line(*points: float) -> torch.Tensor:
    """Samples on a line, where neighbours can be counted by eye."""
    return torch.tensor(points, dtype=torch.float32)[:, None]


def sizes_of(x: torch.Tensor, labels: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    args = [a.tolist() if isinstance(a, torch.Tensor) else a for a in args]
    return torch.tensor(slow.neighbourhood_sizes(x.tolist(), labels.tolist(), *args, **kwargs))


def half_separated(n: int = 60, features: int = 3, labels: int = 2, dtype: torch.dtype = torch.float32):
    """Groups that overlap: some neighbourhoods are evidence, some are not."""
    y = torch.arange(n) % labels
    x = torch.randn(n, features, dtype=dtype)
    x[:, 0] += 1.5 * y
    return x, y


# --- Δ --------------------------------------------------------------------------------------------------------------


def test_confidence_term_by_hand():
    # log(256/0.05) = log 5120 = 8.5409; over 2·10
    assert_close(F.confidence_term(256, 10).item(), 0.427046, rtol=0, atol=1e-6)
    assert_close(F.confidence_term(128, 16).item(), math.log(2560) / 32, rtol=1e-6, atol=0)
    assert F.confidence_term(1, 3, confidence=1.0) == 0
    k = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert_close(F.confidence_term(100, k, 0.1), math.log(1000) / (2 * k))
    assert F.confidence_term(100, torch.tensor([[1, 2]])).shape == (1, 2)
    assert_close(F.confidence_term(torch.tensor(100.0), 4), F.confidence_term(100, 4))
    assert_close(F.confidence_term(2**40, 2**40).item(), (40 * math.log(2) + math.log(20)) / 2**41, rtol=1e-6, atol=0)


def test_confidence_term_is_the_square_of_hoeffdings_bound():
    # the rule: bias ≥ √(log(N/c)/2k), so bias² = Δ(N, k) is exactly at the edge
    for k in range(1, 60):
        bias = math.sqrt(F.confidence_term(128, torch.tensor(k, dtype=torch.float64)).item())
        share = torch.tensor([[0.5 + bias * (1 - 1e-9), 0.5 + bias * (1 + 1e-9)]], dtype=torch.float64)
        at = torch.tensor([k, k], dtype=torch.float64)
        two = torch.tensor(2.0, dtype=torch.float64)
        assert F.hoeffding_significant(share, at, 128, two, 0.05).tolist() == [[False, True]]


def test_released_confidence_term_by_hand():
    assert_close(F.released_confidence_term(4), torch.tensor(0.35))
    assert_close(F.released_confidence_term(torch.tensor([1, 49])), torch.tensor([0.7, 0.1]))
    assert_close(F.released_confidence_term(9, scale=3.0), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((0, 1), ValueError, "n must be at least 1, got 0; count samples"),
        ((1, 0), ValueError, "k must be at least 1, got 0; count samples"),
        ((math.nan, 1), ValueError, "n must be at least 1, got nan; "),
        ((1, 1, 0.0), ValueError, r"confidence must be in \(0, 1\], got 0.0; the paper uses 0.05"),
        ((1, 1, 1.5), ValueError, r"confidence must be in \(0, 1\], got 1.5; "),
        ((1, 1, -0.1), ValueError, r"confidence must be in \(0, 1\], got -0.1; "),
        ((1, 1, math.nan), ValueError, r"confidence must be in \(0, 1\], got nan; "),
        ((1, 1, None), TypeError, r"confidence must be in \(0, 1\], got None; "),
        ((1, 1, "5%"), TypeError, r"confidence must be in \(0, 1\], got '5%'; "),
    ],
)
def test_bad_confidence_terms(args, error, message):
    with pytest.raises(error, match=message):
        F.confidence_term(*args)


# --- the rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "slow_rule"), RULES, ids=RULE_NAMES)
@pytest.mark.parametrize("labels", [1, 2, 3, 32])
def test_rules_match_the_loop(rule, slow_rule, labels):
    k = torch.arange(1, 41, dtype=torch.float64)
    own = torch.arange(41, dtype=torch.float64)[:, None]
    share = (own / k).clamp(max=1)
    got = rule(share, k, 128, torch.tensor(float(labels), dtype=torch.float64), 0.05)
    for i, row in enumerate(share.tolist()):
        for j, value in enumerate(row):
            assert got[i, j].item() == slow_rule(value, j + 1, 128, labels, 0.05)
    assert got.any() == (labels > 1)
    assert not got.all()


def test_rules_by_hand():
    pure = torch.ones(1, 40)
    k = torch.arange(1.0, 41)

    def first(rule, labels, n=128, c=0.05):
        return int(rule(pure, k, n, torch.tensor(float(labels)), c).to(torch.uint8).argmax()) + 1

    # log(2560) = 7.848. Hoeffding, C = 2: ¼ ≥ 7.848/2k, so k ≥ 15.7. Chernoff: k log 2 ≥ 7.848, k ≥ 11.3.
    assert first(F.hoeffding_significant, 2) == 16
    assert first(F.chernoff_significant, 2) == 12
    # C = 32: (31/32)² ≥ 7.848/2k, k ≥ 4.18; k log 32 ≥ 7.848, k ≥ 2.26
    assert first(F.hoeffding_significant, 32) == 5
    assert first(F.chernoff_significant, 32) == 3
    # the released rule: ½ > 0.7/√k, k > 1.96
    assert first(F.released_significant, 2) == 2


def test_rules_are_one_sided():
    # nothing but strangers is no evidence, however many
    strangers, k = torch.zeros(1, 1000), torch.arange(1.0, 1001)
    for rule, _ in RULES:
        assert not rule(strangers, k, 1001, torch.tensor(2.0), 0.05).any()


# --- K by hand ------------------------------------------------------------------------------------------------------


def test_two_far_groups_of_six():
    # c = 1, N = 12: log 12 = 2.485, pure from k ≥ 2·2.485, so K = 5, just the number of own neighbours
    x, y = line(*range(6), *range(100, 106)), torch.arange(12) // 6
    assert F.empirical_bias_k(x, y, confidence=1.0).tolist() == [5] * 12
    # c = 0.9: log(13.3) = 2.59 asks for 6, and the sixth neighbour is a stranger: 5/6 - ½ < √(2.59/12); none: N - 1
    assert F.empirical_bias_k(x, y, confidence=0.9).tolist() == [11] * 12


def test_one_stranger_costs_the_evidence():
    # the stranger at 2.6 is among the first six of everyone in the left group: at k = 7 the bias is 6/7 - ½ = 0.357
    # and the bound √(2.485/14) = 0.421; beyond there are strangers alone
    x = line(*range(7), 2.6, *range(100, 104))
    y = torch.tensor([0] * 7 + [1] * 5)
    assert F.empirical_bias_k(x, y, confidence=1.0).tolist() == [11] * 12


def test_released_rule_by_hand():
    # pairs count: ½ > 0.7/√2. At 0, 1, 2 and 10, 11, 12 both nearest are own; at 2.5 (label 1) none is at first,
    # and with 7 samples (3 own of 6) the share never exceeds ½; 2 has 2.5 first, then 1, 0: 2/3 - ½ < 0.7/√3,
    # then strangers
    x, y = line(0, 1, 2, 10, 11, 12, 2.5), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    k = F.empirical_bias_k(x, y, significant=F.released_significant)
    assert k.tolist() == [2, 2, 6, 2, 2, 2, 6]


def test_own_rule():
    x, y = line(0, 1, 3, 7), torch.tensor([0, 1, 0, 0])

    def third(share, k, n, labels, confidence):
        assert share.shape == (4, 3)
        assert k.tolist() == [1, 2, 3]
        assert (n, labels.item(), confidence) == (4, 2, 0.25)
        # 0: 1 no, 3 own, 7 own; 1: 0, 3, 7 are strangers; 3: 1 no, 0 own, 7 own; 7: 3 own, 1 no, 0 own
        third = 1 / 3
        assert_close(share, torch.tensor([[0, 0.5, 2 * third], [0, 0, 0], [0, 0.5, 2 * third], [1, 0.5, 2 * third]]))
        return (k == 2).expand_as(share)

    assert F.empirical_bias_k(x, y, 0.25, significant=third).tolist() == [2, 2, 2, 2]


def test_in_a_tie_other_labels_come_first():
    def half(share, k, n, labels, confidence):
        return share >= 0.5

    # the first sample stands between one of its own and a stranger, wherever they are in the batch
    for x, y in (
        (line(0, -1, 1, 50), torch.tensor([0, 0, 1, 1])),
        (line(0, -1, 1, 50), torch.tensor([0, 1, 0, 1])),
        (line(0, 3, 3, 50), torch.tensor([0, 1, 0, 1])),
        (line(7, 7, 7, 50), torch.tensor([0, 1, 0, 1])),
        (torch.tensor([[0.3, 0.1], [0.1, 0.3], [0.3, 0.1], [0.9, 0.9]])[[1, 0, 2, 3]], torch.tensor([0, 0, 1, 1])),
    ):
        assert F.empirical_bias_k(x, y, significant=half)[0] == 2


# --- the sorted loop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "slow_rule"), RULES, ids=RULE_NAMES)
@pytest.mark.parametrize("labels", [2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_k_matches_the_loop(rule, slow_rule, labels, dtype):
    x, y = half_separated(labels=labels, dtype=dtype)
    got = F.empirical_bias_k(x, y, 0.3, significant=rule)
    assert got.dtype == torch.int64
    assert torch.equal(got, sizes_of(x, y, c=0.3, significant=slow_rule))
    assert len(got.unique()) > 3  # not all at the end


@pytest.mark.parametrize("levels", [2, 3, 7])
@pytest.mark.parametrize("scale", [1.0, 8.0, 2.0**-60, 2.0**58])
@pytest.mark.parametrize("offset", [0, -5])
def test_entries_on_a_grid_tie_as_they_do_on_paper(levels, scale, offset):
    for features in (1, 2, 3, 8):
        x = torch.randint(levels, (70, features))
        y = (x[:, 0] * 2 + torch.randint(levels, (70,)) > 1.5 * (levels - 1)).long()
        want = sizes_of(x, y, c=0.3)
        shuffled = torch.randperm(70)
        moved = (x + offset) * scale
        assert torch.equal(F.empirical_bias_k(moved, y, 0.3), want)
        assert torch.equal(F.empirical_bias_k(moved[shuffled], y[shuffled], 0.3), want[shuffled])


@pytest.mark.parametrize(
    "codes", [torch.eye(48), torch.where(torch.arange(48)[:, None] >> torch.arange(6) & 1 == 1, 1.0, -1.0)]
)
def test_one_hot_and_binary_codes_tie(codes):
    y = torch.arange(48) % 3 // 2
    assert torch.equal(F.empirical_bias_k(codes, y, 1.0), sizes_of(codes, y, c=1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("features", [1, 3, 33])
def test_copies_with_other_labels(dtype, features):
    # a matrix product may round the same row differently in another place
    x, y = half_separated(30, features, dtype=dtype)
    x, y = torch.cat([x, x, x]), torch.cat([y, 1 - y, y])
    want = sizes_of(x, y, c=0.5)
    shuffled = torch.randperm(90)
    assert torch.equal(F.empirical_bias_k(x, y, 0.5), want)
    assert torch.equal(F.empirical_bias_k(x[shuffled], y[shuffled], 0.5), want[shuffled])


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-20, 1e18])
def test_all_equal(value):
    # strangers first, then own: the majority label passes late, the other never
    y = torch.tensor([0] * 60 + [1] * 3)
    x = torch.full((63, 5), value)
    want = sizes_of(x, y)
    assert torch.equal(F.empirical_bias_k(x, y), want)
    assert want[0] < 62
    assert want[-1] == 62
    shuffled = torch.randperm(63)
    assert torch.equal(F.empirical_bias_k(x, y[shuffled]), want[shuffled])


def test_order_groups_names_and_scale_do_not_matter():
    x, y = half_separated(120)
    k = F.empirical_bias_k(x, y)
    assert len(k.unique()) > 5
    shuffled = torch.randperm(120)
    assert torch.equal(F.empirical_bias_k(x[shuffled], y[shuffled]), k[shuffled])
    assert torch.equal(F.empirical_bias_k(x, 1 - y), k)
    assert torch.equal(F.empirical_bias_k(x, y * 1000 - 7), k)
    assert torch.equal(F.empirical_bias_k(x, y.bool()), k)
    assert torch.equal(F.empirical_bias_k(x @ torch.linalg.qr(torch.randn(3, 3))[0], y), k)
    for scale in (1e-20, 1e-3, 1e18):
        assert torch.equal(F.empirical_bias_k(x * scale, y), k)
    assert torch.equal(F.empirical_bias_k(x + 1000, y), F.empirical_bias_k((x + 1000) - 1000, y))


def test_far_off_embeddings_keep_their_neighbours():
    # spread 1e-3 around 1: uncentred products of float32 would see no distance at all
    x, y = half_separated(100)
    x = 1 + 1e-3 * x
    assert torch.equal(F.empirical_bias_k(x, y), F.empirical_bias_k(x.double(), y))
    assert len(F.empirical_bias_k(x, y).unique()) > 3


def test_constant_columns_and_one_tiny_column():
    x, y = half_separated(60)
    k = F.empirical_bias_k(x, y)
    assert torch.equal(F.empirical_bias_k(torch.cat([x, torch.full((60, 2), 3.7)], dim=1), y), k)
    tiny = torch.cat([torch.ones(60, 1), x[:, :1] * 1e-38], dim=1)  # lost beside 1: no distance, all tie
    assert torch.equal(F.empirical_bias_k(tiny, y), F.empirical_bias_k(torch.zeros(60, 1), y))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_that_of_the_rounded_values(half):
    x, y = (half_separated(100)[0] * 3).to(half), torch.arange(100) % 2
    assert torch.equal(F.empirical_bias_k(x, y), F.empirical_bias_k(x.double(), y))


def test_subnormal_entries_still_have_neighbours():
    x, y = torch.zeros(128, 2), torch.arange(128) % 2
    x[y == 1] = 2.0**-140  # float32 has no smaller exponent to scale by
    assert F.empirical_bias_k(x, y).tolist() == [16] * 128


def test_layout_and_gradient_do_not_matter():
    x, y = half_separated(50, 4)
    k = F.empirical_bias_k(x, y)
    wide = torch.zeros(50, 8)
    wide[:, ::2] = x
    assert torch.equal(F.empirical_bias_k(wide[:, ::2], y), k)
    assert torch.equal(F.empirical_bias_k(x.T.contiguous().T, y.repeat_interleave(2)[::2]), k)
    assert torch.equal(F.empirical_bias_k(x.requires_grad_(), y), k)


# --- the claims of the method ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [40, 64, 128, 256])
def test_pure_groups_have_k_of_the_bound(n):
    x, y = torch.randn(n, 4), torch.arange(n) % 2
    x[:, 0] += 1000 * y
    k = F.empirical_bias_k(x, y)
    assert k.tolist() == [math.ceil(2 * math.log(n / 0.05))] * n  # 16 at N = 128


@pytest.mark.parametrize("n", [12, 13, 32, 101])
@pytest.mark.parametrize("distance", [0.0, 1.0, 3.0, 1e3])
@pytest.mark.parametrize("strong", [1, 3, 5])
def test_delta_of_two_groups_has_its_range(n, distance, strong):
    y = (torch.arange(n) < strong * n // 6).long()
    x = torch.randn(n, 3)
    x[:, 0] += distance * y
    delta = F.confidence_term(n, F.empirical_bias_k(x, y).double())
    assert (delta >= math.log(n / 0.05) / (2 * (n - 1)) - 1e-12).all()
    assert (delta <= 0.25 + 1e-12).all()


def test_four_images_a_class():
    y = torch.arange(128) // 4
    x = torch.randn(128, 8) * 1e-3 + 10 * torch.randn(32, 8)[y]  # all classes pure: nothing could be clearer
    assert F.empirical_bias_k(x, y).tolist() == [127] * 128
    assert F.empirical_bias_k(x, y, significant=F.chernoff_significant).tolist() == [3] * 128


def test_a_sample_among_strangers_has_no_evidence():
    x, y = line(*range(40), *range(1000, 1040)), torch.arange(80) // 40
    y[20] = 1
    assert F.empirical_bias_k(x, y)[20] == 79


# --- a reference set ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "slow_rule"), RULES, ids=RULE_NAMES)
def test_reference_matches_the_loop(rule, slow_rule):
    x, y = half_separated(20)
    ref, ref_y = half_separated(70, labels=3)  # the batch and its reference need not have the same labels
    got = F.empirical_bias_k(x, y, 0.3, significant=rule, ref_emb=ref, ref_labels=ref_y)
    assert torch.equal(got, sizes_of(x, y, ref, ref_y, c=0.3, significant=slow_rule))
    assert len(got.unique()) > 2


def test_labels_are_counted_in_the_reference():
    # the batch has a label that the reference lacks, between two that it has: C = 2
    x, y = half_separated(30, labels=3)
    ref, ref_y = half_separated(60)
    ref_y = 2 * ref_y
    got = F.empirical_bias_k(x, y, 0.3, ref_emb=ref, ref_labels=ref_y)
    assert torch.equal(got, sizes_of(x, y, ref, ref_y, c=0.3))
    assert (got[y == 1] == 60).all()
    assert (got[y != 1] < 60).any()


def test_one_exact_copy_is_left_out():
    def first_two(share, k, n, labels, confidence):
        return share * k == 2

    ref, ref_y = line(0, 0, 0, 1, 2), torch.tensor([0, 1, 0, 0, 0])
    # 0 with label 0: of its two copies one goes; the stranger's comes first, then the copy, then 1: two own at k = 3
    x, y = line(0), torch.tensor([0])
    assert F.empirical_bias_k(x, y, significant=first_two, ref_emb=ref, ref_labels=ref_y).tolist() == [3]
    # 0 with label 1: its copy goes, and there is no other with label 1: all four others
    y = torch.tensor([1])
    assert F.empirical_bias_k(x, y, significant=first_two, ref_emb=ref, ref_labels=ref_y).tolist() == [4]
    # a label that the reference does not have: nothing is left out
    y = torch.tensor([9])
    assert F.empirical_bias_k(x, y, significant=first_two, ref_emb=ref, ref_labels=ref_y).tolist() == [5]


@pytest.mark.parametrize("overlap", [0.0, 1.0])
def test_the_batch_as_its_own_reference(overlap):
    x, y = half_separated(80)
    x = x if overlap else torch.randn_like(x)  # without a tendency some samples have no neighbourhood: N - 1
    k = F.empirical_bias_k(x, y)
    assert torch.equal(F.empirical_bias_k(x, y, ref_emb=x, ref_labels=y), k)
    assert torch.equal(F.empirical_bias_k(x, y, ref_emb=x.clone(), ref_labels=y.clone()), k)
    shuffled = torch.randperm(80)
    assert torch.equal(F.empirical_bias_k(x, y, ref_emb=x[shuffled], ref_labels=y[shuffled]), k)
    assert torch.equal(F.empirical_bias_k(x[:7], y[:7], ref_emb=x, ref_labels=y), k[:7])
    assert k.max() == 79


def test_the_batch_with_other_labels_is_another_reference():
    x, y = torch.randn(40, 3) + 5.0 * (torch.arange(40) % 2)[:, None], torch.arange(40) % 2
    sizes = F.empirical_bias_k(x, y, ref_emb=x, ref_labels=1 - y)
    assert torch.equal(sizes, F.empirical_bias_k(x, y, ref_emb=x.clone(), ref_labels=1 - y))
    assert not torch.equal(sizes, F.empirical_bias_k(x, y))


def test_reference_in_another_precision():
    x, y = half_separated(30)
    ref, ref_y = half_separated(50)
    k = F.empirical_bias_k(x, y, ref_emb=ref.double(), ref_labels=ref_y)
    assert torch.equal(k, F.empirical_bias_k(x, y, ref_emb=ref, ref_labels=ref_y))
    k = F.empirical_bias_k(x.half(), y, ref_emb=ref.half(), ref_labels=ref_y.int())
    assert torch.equal(k, F.empirical_bias_k(x.half().float(), y, ref_emb=ref.half().float(), ref_labels=ref_y))


def test_a_reference_longer_than_int32_pairs():
    # 46 341² pairs would overflow: the number of pairs is not a tensor anywhere
    ref = torch.cat([torch.zeros(30_000, 1), torch.ones(30_000, 1)])
    ref_y = ref[:, 0].long()
    k = F.empirical_bias_k(torch.tensor([[0.1], [0.9]]), torch.tensor([0, 1]), ref_emb=ref, ref_labels=ref_y)
    assert k.tolist() == [math.ceil(2 * math.log(60_000 / 0.05))] * 2


# --- tiles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tile_rows", [1, 4, 8, 20, 41]
)  # 41 rows: 41 tiles, 10 and 5 and 2 with one row left, one tile
@pytest.mark.parametrize("grid", [False, True])
def test_tiles_do_not_matter(monkeypatch, tile_rows, grid):
    x, y = half_separated(41, labels=3)
    x = (2 * x).round() if grid else x
    ref, ref_y = half_separated(57, labels=3)
    ref[3], ref_y[3] = x[40], y[40]  # the last row finds its copy
    alone = F.empirical_bias_k(x, y, 1.0), F.empirical_bias_k(x, y, 1.0, ref_emb=ref, ref_labels=ref_y)
    assert len(alone[0].unique()) > 3
    for index, others in enumerate((41, 57)):
        monkeypatch.setitem(own_neighbours.TILE_ENTRIES, "cpu", tile_rows * others)
        monkeypatch.setattr(own_neighbours, "FEWEST_ROWS", 1)
        kwargs = {"ref_emb": ref, "ref_labels": ref_y} if index else {}
        assert torch.equal(F.empirical_bias_k(x, y, 1.0, **kwargs), alone[index])
        unknown = lambda *arguments: F.hoeffding_significant(*arguments)  # noqa: E731 - a bound not known to be pure
        assert torch.equal(F.empirical_bias_k(x, y, 1.0, significant=unknown, **kwargs), alone[index])


def test_a_tile_smaller_than_a_row(monkeypatch):
    x, y = half_separated(30)
    k = F.empirical_bias_k(x, y)
    monkeypatch.setitem(own_neighbours.TILE_ENTRIES, "cpu", 1)
    monkeypatch.setattr(own_neighbours, "FEWEST_ROWS", 1)
    assert torch.equal(F.empirical_bias_k(x, y), k)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bound", [F.hoeffding_significant, F.chernoff_significant, F.released_significant])
@pytest.mark.parametrize("sizes", [(3, 4, 2, 60), (4,) * 17, (1,) * 69, (12, 57)])  # from no group to all large enough
def test_distances_beyond_every_group_do_not_matter(monkeypatch, sizes, bound, threads):
    monkeypatch.setattr(own_neighbours, "ENTRIES_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    x = 0.3 * torch.randn(len(y), 3) + y[:, None]
    for kwargs in ({}, {"ref_emb": x[::2].clone(), "ref_labels": y[::2]}):
        every_k = lambda *arguments: bound(*arguments)  # noqa: E731 - a bound not known to be pure looks at all of them
        expected = F.empirical_bias_k(x, y, 1.0, significant=every_k, **kwargs)
        assert torch.equal(F.empirical_bias_k(x, y, 1.0, significant=bound, **kwargs), expected)


# --- edges ----------------------------------------------------------------------------------------------------------


def test_empty_one_and_two():
    x, y = torch.randn(2, 3), torch.tensor([0, 1])
    assert F.empirical_bias_k(x[:0], y[:0]).tolist() == []
    assert F.empirical_bias_k(x[:0], y[:0]).dtype == torch.int64
    assert F.empirical_bias_k(x[:1], y[:1]).tolist() == [1]
    assert F.empirical_bias_k(x, y).tolist() == [1, 1]
    assert F.empirical_bias_k(x, y * 0).tolist() == [1, 1]
    assert F.empirical_bias_k(x[:0], y[:0], ref_emb=x, ref_labels=y).tolist() == []
    assert F.empirical_bias_k(x, y, ref_emb=x[:0], ref_labels=y[:0]).tolist() == [1, 1]
    assert F.empirical_bias_k(x, y, ref_emb=x[:1].clone(), ref_labels=y[:1]).tolist() == [1, 1]


@pytest.mark.parametrize(("rule", "_slow"), RULES, ids=RULE_NAMES)
def test_one_class_is_never_above_chance(rule, _slow):
    x = torch.randn(50, 3)
    assert F.empirical_bias_k(x, torch.zeros(50).long(), significant=rule).tolist() == [49] * 50


@pytest.mark.parametrize(
    ("x", "y", "kwargs", "error", "message"),
    [
        (torch.rand(3), torch.zeros(3).long(), {}, ValueError, r"embeddings must be a matrix .* got shape \(3,\); "),
        (
            torch.rand(3, 2),
            torch.zeros(2).long(),
            {},
            ValueError,
            r"labels must be as long as embeddings \(3 rows\), got 2",
        ),
        (
            torch.rand(3, 2),
            torch.zeros(3),
            {},
            TypeError,
            r"labels must be integers, got torch.float32; group continuous",
        ),
        (torch.rand(3, 2), None, {}, TypeError, r"labels must be a torch.Tensor, got NoneType; "),
        (torch.full((3, 2), math.nan), torch.zeros(3).long(), {}, ValueError, r"embeddings must be finite, got 6 NaN"),
        (
            torch.rand(3, 2),
            torch.zeros(3).long(),
            {"confidence": 2},
            ValueError,
            r"confidence must be in \(0, 1\], got 2; ",
        ),
        (
            torch.rand(3, 2),
            torch.zeros(3).long(),
            {"ref_emb": torch.rand(4, 2)},
            ValueError,
            r"ref_labels must be given with",
        ),
        (
            torch.rand(3, 2),
            torch.zeros(3).long(),
            {"ref_emb": torch.rand(4, 3), "ref_labels": torch.zeros(4).long()},
            ValueError,
            r"ref_emb must be of the 2 features of embeddings, got 3 features; ",
        ),
        (
            torch.rand(3, 2),
            torch.zeros(3).long(),
            {"ref_emb": torch.rand(4, 2), "ref_labels": torch.zeros(3).long()},
            ValueError,
            r"ref_labels must be as long as ref_emb \(4 rows\), got 3 labels; ",
        ),
        (
            torch.rand(3, 2),
            torch.zeros(3).long(),
            {"ref_emb": torch.full((4, 2), math.inf), "ref_labels": torch.zeros(4).long()},
            ValueError,
            r"ref_emb must be finite, got 8 NaN or infinite of 8 values",
        ),
    ],
)
def test_errors_name_argument_expected_got_remedy(x, y, kwargs, error, message):
    with pytest.raises(error, match=message):
        F.empirical_bias_k(x, y, **kwargs)


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(0, 30),
    features=st.integers(1, 5),
    labels=st.integers(1, 31),
    exponent=st.integers(-20, 18),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    levels=st.sampled_from([None, 1, 2, 4]),
    rule=st.sampled_from([rule for rule, _ in RULES]),
    with_ref=st.booleans(),
)
def test_any_batch_has_sizes(seed, rows, features, labels, exponent, dtype, levels, rule, with_ref):
    torch.manual_seed(seed)
    x = torch.randn(rows, features) if levels is None else torch.randint(levels, (rows, features)).float()
    x, y = (x * 10.0**exponent).to(dtype), torch.randint(labels, (rows,))
    kwargs = {"ref_emb": x.flip(0)[: rows // 2 + 1], "ref_labels": y.flip(0)[: rows // 2 + 1]} if with_ref else {}
    others = len(kwargs["ref_emb"]) if with_ref else rows - 1
    k = F.empirical_bias_k(x, y, significant=rule, **kwargs)
    assert k.shape == (rows,)
    assert ((k >= 1) & (k <= max(1, others))).all()
    shuffled = torch.randperm(rows)
    assert torch.equal(F.empirical_bias_k(x[shuffled], y[shuffled], significant=rule, **kwargs), k[shuffled])


GRIDS = ((64, 2, 6), (64, 3, 4), (128, 2, 11), (40, 16, 3))  # rows, features, levels


def grid_of(seed):
    n, features, levels = GRIDS[seed]
    torch.manual_seed(seed)
    labels = torch.arange(n) % 4
    return torch.randint(0, levels, (n, features)) + 2 * labels[:, None], labels


@functools.cache
def grid_sizes(seed, significant):
    """K of each row, one neighbour at a time, by whole numbers: in a tie, other labels first."""
    grid, labels = grid_of(seed)
    n, classes = len(grid), len(labels.unique())
    squares, same = (grid[:, None] - grid).square().sum(2).tolist(), (labels[:, None] == labels).tolist()
    sizes = []
    for i in range(n):
        others = sorted((squares[i][j], same[i][j]) for j in range(n) if j != i)
        own = torch.tensor([flag for _, flag in others], dtype=torch.float64).cumsum(0)
        k = torch.arange(1, n, dtype=torch.float64)
        passed = significant((own / k)[None], k, n, torch.tensor(float(classes)).double(), 0.05)[0]
        sizes.append(int(passed.int().argmax()) + 1 if passed.any() else n - 1)
    return sizes


@pytest.mark.parametrize("significant", [F.released_significant, F.chernoff_significant, F.hoeffding_significant])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("step", [0.1, 1 / 3, 1 / 255])
@pytest.mark.parametrize("with_ref", [False, True])
def test_equal_distances_on_any_grid_are_equal(step, dtype, significant, with_ref):
    for seed in range(len(GRIDS)):
        grid, labels = grid_of(seed)
        n, x = len(grid), grid.to(dtype) * step
        expected = grid_sizes(seed, significant)
        order = torch.randperm(n)
        for rows, transposed in ((torch.arange(n), False), (order, False), (order, True)):
            given = x[rows].T.contiguous().T if transposed else x[rows]
            reference = {"ref_emb": x.clone(), "ref_labels": labels.clone()} if with_ref else {}
            sizes = F.empirical_bias_k(given, labels[rows], significant=significant, **reference)
            if with_ref:  # of n references and not n - 1 others: but for a size that is none's
                reached = torch.tensor([expected[row] < n - 1 for row in rows.tolist()])
                assert torch.equal(sizes[reached], torch.tensor(expected)[rows][reached])
            else:
                assert sizes.tolist() == [expected[row] for row in rows.tolist()]


@pytest.mark.parametrize("rule", ["released", "hoeffding", "remaining"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_margin_of_a_grid_does_not_depend_on_the_order(dtype, rule):
    margin = AdaptiveMargin(neighbourhood=rule)
    for seed in range(12):
        torch.manual_seed(seed)
        step = (0.1, 1 / 3, 1 / 255)[seed % 3]
        x, labels = torch.randint(0, 6, (64, 1 + seed % 4)).to(dtype) * step, torch.randint(0, 4, (64,))
        order = torch.randperm(64)
        assert_close(margin(x[order], labels[order]), margin(x, labels), rtol=1e-6, atol=0)
        assert_close(margin(x.T.contiguous().T, labels), margin(x, labels), rtol=1e-6, atol=0)
