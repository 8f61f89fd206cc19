"""The tiles: equal to one pair at a time, in every layout; exact counts; no look at data on a device."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.losses import ContrastiveLoss
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from adaptive_margin.functional import pair_hinge_means, pair_terms, pair_tiles
from adaptive_margin.functional.pair_tiles import layout, terms_of
from adaptive_margin.functional.pair_tiles.layout import NO_GROUP
from adaptive_margin.functional.pair_tiles.options import Options
from tests.references.contrastive import pair_terms_slow

LABELS = {
    "two-groups": torch.tensor([1, 0, 0, 1, 0, 1, 1, 0, 0, 0, 1]),
    "few-a-class": torch.tensor([3, 9, 3, 0, 9, 7, 0, 3, 7, 5, 9]),
    "singletons": torch.arange(11),
    "one-class": torch.full((11,), 4),
    "some-ignored": torch.tensor([0, -1, 1, 1, 0, 2, -1, 0, 1, 2, 0]),
}
REF_LABELS = torch.tensor([0, 3, 1, -1, 9, 0, 2])
TILES = {  # rows in one matrix, rows and entries of a tile, and whether looking at labels is free
    "one-matrix": (512, 512, 2**19, True),  # as configured for small batches
    "one-tile": (0, 512, 2**19, True),  # as for larger ones
    "tiny-tiles": (0, 4, 12, True),  # the last of one row
    "blind": (0, 4, 12, False),  # laid out as on a device, where looking at labels would synchronise
}


@pytest.fixture(params=TILES)
def _tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    small, rows, entries, look = TILES[request.param]
    monkeypatch.setattr(pair_tiles.small, "SMALL", small)
    monkeypatch.setitem(pair_tiles.layout.TILE_ROWS, "cpu", rows)
    monkeypatch.setitem(pair_tiles.layout.TILE_ENTRIES, "cpu", entries)
    if not look:
        side = layout.side_of
        monkeypatch.setattr(layout, "side_of", lambda labels, ignore, look: side(labels, ignore, False))


CASES = [  # distance, pos_margin, over_active, second_moment, only_first
    ("squared_l2", 0.0, False, False, False),
    ("squared_l2", 0.0, False, True, False),
    ("squared_l2", 0.0, False, True, True),
    ("squared_l2", 0.7, True, False, True),
    ("l2", 0.0, False, True, False),
    ("l2", 0.0, False, False, True),
    ("l2", 0.7, True, False, False),
    ("cosine", 0.99, True, False, False),
]


@lru_cache
def _worked(name: str, ref: bool, per_row: bool, case: int) -> tuple[list[Any], list[Tensor], list[int], list[Tensor]]:
    """Arguments of terms_of, and its terms, counts and gradients, one pair at a time."""
    torch.manual_seed(0)
    distance, pos_margin, over_active, second_moment, only_first = CASES[case]
    labels, ref_labels = LABELS[name], REF_LABELS
    if only_first:
        labels, ref_labels = (torch.where(given < 0, -1, (given != 0).long()) for given in (labels, ref_labels))
    x = (torch.randn(len(labels), 3, dtype=torch.float64) + 3).requires_grad_()
    y = (torch.randn(len(REF_LABELS), 3, dtype=torch.float64) + 3).requires_grad_() if ref else None
    margin = 4 * torch.rand(len(labels), dtype=torch.float64) if per_row else torch.tensor(2.5, dtype=torch.float64)
    margin = (0.9 + 0.05 * margin if distance == "cosine" else margin).requires_grad_()
    ignore_label = -1 if name == "some-ignored" else None
    options = Options(distance, pos_margin, over_active, second_moment, only_first, ignore_label)
    arguments = [x, y, margin, labels, ref_labels if ref else None, options]
    slow = pair_terms_slow(x, labels, margin, y, arguments[4], *CASES[case][:3], only_first, ignore_label)
    terms = [slow.attraction, slow.repulsion, slow.second_moment if second_moment else 0 * slow.attraction]
    gradients = torch.autograd.grad(_weighted(terms), [x, margin] if y is None else [x, y, margin])
    return arguments, terms, [slow.inside, slow.across, slow.active], list(gradients)


def _weighted(terms: Sequence[Tensor]) -> Tensor:
    return 1.3 * terms[0] + 0.7 * terms[1] + 0.4 * terms[2]


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("per_row", [False, True], ids=["one-margin", "margin-a-row"])
@pytest.mark.parametrize("ref", [False, True], ids=["itself", "reference"])
@pytest.mark.parametrize("name", LABELS)
def test_values_gradients_and_counts_are_those_of_one_pair_at_a_time(name: str, ref: bool, per_row: bool) -> None:
    for case in range(len(CASES)):
        arguments, expected, counts, expected_gradients = _worked(name, ref, per_row, case)
        terms = terms_of(*arguments)
        assert_close(list(terms[:3]), expected, rtol=1e-10, atol=1e-12)
        assert terms.counts.tolist() == counts
        gradients = torch.autograd.grad(_weighted(terms), [x for x in arguments[:3] if x is not None])
        assert_close(list(gradients), expected_gradients, rtol=1e-10, atol=1e-11)


@pytest.mark.usefixtures("_tiles")
def test_numbers_worked_by_hand() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]], requires_grad=True)
    terms = pair_terms(x, torch.tensor([5, 5, 2]), margin=4.0, second_moment=True)
    # Inside: 25. Across: 1 within the margin, 9 + 9 = 18 beyond it.
    assert_close(terms.attraction, torch.tensor(25.0))
    assert_close(terms.repulsion, torch.tensor(3.0))
    assert_close(terms.second_moment, torch.tensor(0.5 * 625 + 0.5 * (3.0**2 + 0) / 2))
    assert terms.counts.tolist() == [1, 2, 2]
    (gradient,) = torch.autograd.grad(terms.attraction + terms.repulsion, x)
    assert_close(gradient, torch.tensor([[-6.0, -8.0 + 2.0], [6.0, 8.0], [0.0, -2.0]]))


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("ref", [False, True])
@pytest.mark.parametrize("distance", ["squared_l2", "l2", "cosine"])
def test_gradcheck(distance: str, ref: bool, per_row: bool) -> None:
    labels = torch.tensor([0, 1, 0, 2, 1])
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(4, 3, dtype=torch.float64, requires_grad=True) if ref else None
    base = 0.0 if distance == "cosine" else 2.0
    margin = (base + 0.3 * torch.rand(5 if per_row else (), dtype=torch.float64)).requires_grad_()
    ref_labels = torch.tensor([1, 0, 2, 2]) if ref else None

    def terms(x: Tensor, margin: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
        second = distance != "cosine"
        options = {"distance": distance, "second_moment": second, "over_active": not second, "pos_margin": 0.0}
        if not second:
            options["pos_margin"] = 0.5
        return pair_terms(x, labels, margin, ref_emb=y, ref_labels=ref_labels, **options)[: 3 if second else 2]

    assert torch.autograd.gradcheck(terms, (x, margin, y))


def test_a_second_derivative_is_refused() -> None:
    x = torch.randn(6, 3, requires_grad=True)
    terms = pair_terms(x, torch.arange(6) % 2, 1.0)
    (gradient,) = torch.autograd.grad(terms.attraction, x, create_graph=True)
    assert_close(gradient.detach(), torch.autograd.grad(pair_terms(x, torch.arange(6) % 2, 1.0).attraction, x)[0])
    with pytest.raises(RuntimeError, match="no second derivative; build the loss with pair_memory='pairs'"):
        gradient.sum().backward()


# --- layout -----------------------------------------------------------------------------------------------------------


def _covered(pairs: layout.Layout, kind: str, height: int, entries: int) -> Tensor:
    seen = torch.zeros(len(pairs.rows.groups), len(pairs.cols.groups))
    for tile in pairs.tiles(kind, height, entries):
        assert tile.bottom - tile.top in range(1, height + 1)
        assert 1 <= (tile.bottom - tile.top) * (tile.right - tile.left) <= max(entries, height)
        window = seen[tile.top : tile.bottom, tile.left : tile.right]
        window += pairs.mask(kind, tile, torch.empty_like(window)) if tile.masked else 1
    return seen


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.integers(1, 9),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
)
def test_every_pair_is_in_exactly_one_tile(
    sizes: list[int], height: int, entries: int, look: bool, only_first: bool
) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    if only_first:
        labels = labels.clamp(max=1)
    side = layout.side_of(labels, None, look)
    pairs = layout.Layout(side, side, True, only_first)
    same = labels[:, None] == labels
    pulled = same & (labels == 0) if only_first else same
    assert_close(_covered(pairs, "inside", height, entries), pulled.float().triu(1))
    assert_close(_covered(pairs, "across", height, entries), (~same).float().triu())


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.integers(1, 9),
    st.booleans(),
)
def test_every_pair_with_a_reference_is_in_exactly_one_tile(
    labels: list[int], ref_labels: list[int], height: int, look: bool
) -> None:
    rows, cols = (layout.side_of(torch.tensor(x), None, look) for x in (labels, ref_labels))
    pairs = layout.Layout(rows, cols, False, False)
    same = rows.groups[:, None] == cols.groups
    assert_close(_covered(pairs, "inside", height, 20), same.float())
    assert_close(_covered(pairs, "across", height, 20), (~same).float())


def test_two_groups_have_no_mixed_tile_across() -> None:
    labels = torch.arange(2000) % 2
    side = layout.side_of(labels, None, True)
    tiles = list(layout.Layout(side, side, True, False).tiles("across", 512, 2**18))
    assert not any(tile.masked for tile in tiles)
    assert sum((t.bottom - t.top) * (t.right - t.left) for t in tiles) == 1000 * 1000


def test_many_classes_are_mixed_only_along_the_diagonal() -> None:
    side = layout.side_of(torch.arange(4096) // 4, None, True)
    tiles = list(layout.Layout(side, side, True, False).tiles("across", 512, 2**19))
    mixed = sum((t.bottom - t.top) * (t.right - t.left) for t in tiles if t.masked)
    assert mixed <= 4096 * 520
    heights = {t.top: t.bottom - t.top for t in tiles}
    assert len(heights) == 8  # bands of 512 rows, however many classes they hold


def test_rows_to_ignore_are_dropped_or_kept_apart() -> None:
    labels = torch.tensor([2, -1, 0, 2])
    looking, blind = (layout.side_of(labels, -1, look) for look in (True, False))
    assert looking.groups.tolist() == [0, 2, 2]
    assert looking.starts == [0, 1, 3]
    assert blind.groups.tolist() == [0, 2, 2, NO_GROUP]
    assert blind.starts is None


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", [True, False])
def test_the_layouts_counts_beyond_int32(look: bool) -> None:
    n = 100_000  # labels only: no matrix of pairs
    labels = torch.arange(n) % 2
    side = layout.side_of(labels, None, look)
    inside, across = layout.Layout(side, side, True, False).counts()
    assert int(inside) == 2 * (50_000 * 49_999 // 2)
    assert int(across) == 50_000 * 50_000
    strong, _ = layout.Layout(side, side, True, True).counts()
    assert int(strong) == 50_000 * 49_999 // 2
    inside, across = layout.Layout(side, side, False, False).counts()
    assert int(inside) == int(across) == 2 * 50_000 * 50_000


# --- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_tiles")
def test_non_contiguous_rows() -> None:
    base = torch.randn(3, 22, dtype=torch.float64)
    labels = LABELS["few-a-class"]
    for x in (base.t()[::2], base.t()[:11], base[:, :11].t().flip(0)):
        assert_close(pair_terms(x, labels, 2.0), pair_terms(x.contiguous(), labels, 2.0))


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x, labels = torch.randn(11, 3).to(dtype), LABELS["few-a-class"]
    half, single = x.clone().requires_grad_(), x.float().requires_grad_()
    for leaf in (half, single):
        terms = pair_terms(leaf, labels, torch.tensor(2.0, dtype=dtype), second_moment=True)
        assert terms.attraction.dtype == torch.float32
        (terms.attraction + terms.repulsion + terms.second_moment).backward()
    assert half.grad is not None
    assert half.grad.dtype == dtype
    assert_close(half.grad, single.grad.to(dtype))


@pytest.mark.usefixtures("_tiles")
def test_a_common_offset_costs_no_accuracy() -> None:
    x, labels = torch.randn(11, 3), LABELS["two-groups"]
    far = x + 4096.0
    exact = pair_terms((far - 4096.0).double(), labels, 2.0)
    assert_close(pair_terms(far, labels, 2.0)[:2], tuple(t.float() for t in exact[:2]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("features", [1, 2, 64])
def test_tight_groups_far_apart_attract_and_never_repel(features: int) -> None:
    labels = torch.arange(128) % 2
    x = torch.randn(128, features) * 1e-2 + torch.where(labels == 0, 100.0, -100.0)[:, None]
    x.requires_grad_()
    for options in ({}, {"only_first": True}, {"ignore_label": 1}):
        exact = x.detach().double().requires_grad_()
        value, wanted = (pair_terms(z, labels, 0.0, **options).attraction for z in (x, exact))  # type: ignore[arg-type]
        assert value >= 0
        assert_close(value.double(), wanted, rtol=1e-3, atol=0)
        (slope,), (wanted,) = torch.autograd.grad(value, x), torch.autograd.grad(wanted, exact)
        assert_close(slope.double(), wanted, rtol=1e-2, atol=2e-2 * wanted.abs().max().item())


def test_tight_groups_keep_their_small_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_tiles.small, "SMALL", 0)
    labels = torch.arange(64) % 2
    x = (torch.randn(64, 8) * 1e-4 + 3.0 * labels[:, None]).float()
    exact = pair_terms(x.double(), labels, 2.0).attraction
    assert_close(pair_terms(x, labels, 2.0).attraction.double(), exact, rtol=1e-3, atol=0)
    assert_close(pair_terms(x, labels, 2.0, distance="l2").attraction.double() ** 2, exact, rtol=0.2, atol=0)


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("distance", ["squared_l2", "l2", "cosine"])
def test_equal_rows_are_at_distance_0_with_gradient_0(distance: str) -> None:
    x = torch.randn(1, 16).repeat(40, 1).requires_grad_()
    pos, neg = pair_hinge_means(x, torch.arange(40) % 2, 1.0 if distance == "cosine" else 0.0, 0.5, distance)
    (pos + neg).backward()
    assert_close(pos, torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(neg, torch.tensor(0.5), atol=1e-6, rtol=0)
    assert_close(x.grad, torch.zeros_like(x), atol=1e-6, rtol=0)


@pytest.mark.usefixtures("_tiles")
def test_equal_rows_among_others_have_no_l2_distance() -> None:
    x = torch.randn(5, 16).repeat(8, 1).requires_grad_()  # each row eight times, all of one label
    pos, _ = pair_hinge_means(x, torch.arange(40) % 5, 0.0, 0.5, "l2")
    pos.backward()
    assert pos.item() == 0
    assert_close(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("ref", [False, True])
def test_nothing_to_compare_is_a_zero_with_a_graph(rows: int, ref: bool) -> None:
    x = torch.randn(rows, 4, requires_grad=True)
    y = torch.randn(0, 4) if ref else None
    labels = torch.zeros(rows, dtype=torch.long)
    terms = pair_terms(x, labels, 1.0, ref_emb=y, ref_labels=labels[:0] if ref else None, second_moment=True)
    (terms.attraction + terms.repulsion + terms.second_moment).backward()
    assert [t.item() for t in terms[:3]] == [0, 0, 0]
    assert terms.counts.tolist() == [0, 0, 0]
    assert_close(x.grad, torch.zeros_like(x))


def test_all_rows_ignored() -> None:
    x = torch.randn(5, 4, requires_grad=True)
    terms = pair_terms(x, torch.full((5,), -1), 1.0, ignore_label=-1)
    (terms.attraction + terms.repulsion).backward()
    assert_close(x.grad, torch.zeros_like(x))


@pytest.mark.usefixtures("_tiles")
@pytest.mark.usefixtures("_tiles")
def test_an_unsigned_label_is_none_below_zero() -> None:
    x = torch.tensor([[0.0], [1.0], [1.5]])
    labels = torch.tensor([0, 0, 255], dtype=torch.uint8)  # torch takes 255 for -1
    terms = pair_terms(x, labels, 1.0, ignore_label=-1)
    assert (terms.attraction, terms.repulsion, terms.counts.tolist()) == (1, 0.75, [1, 2, 2])
    terms = pair_terms(x, labels, 1.0, ref_emb=x, ref_labels=labels, ignore_label=-1)
    assert terms.counts.tolist() == [5, 4, 2]


def test_what_is_ignored_may_be_anything() -> None:
    x, labels = torch.randn(11, 3), LABELS["some-ignored"]
    x[labels == -1] = torch.nan
    kept = labels != -1
    ignoring = pair_terms(x, labels, 2.0, ignore_label=-1)
    assert_close(ignoring, pair_terms(x[kept], labels[kept], 2.0))


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.nan, "embeddings must be finite, got 1 NaN or infinite of 33 values"),
        (torch.inf, "embeddings must be finite, got 1 NaN or infinite of 33 values"),
        (1e30, "embeddings must be small enough to be squared in torch.float32, got a largest absolute value of"),
    ],
)
def test_embeddings_that_are_no_numbers(bad: float, message: str) -> None:
    x = torch.zeros(11, 3)
    x[3, 1] = bad
    with pytest.raises(ValueError, match=message):
        pair_terms(x, LABELS["few-a-class"], 2.0)
    with pytest.raises(ValueError, match=message):
        pair_terms(x, LABELS["few-a-class"], 0.2, distance="cosine", over_active=True)


def test_a_loss_beyond_its_dtype_is_an_error() -> None:
    x = 1e15 * torch.randn(11, 3)
    with pytest.raises(ValueError, match=r"embeddings must be small enough for a loss .* got a mean second_moment of"):
        pair_terms(x, LABELS["few-a-class"], 2.0, second_moment=True)
    half = torch.tensor([[-6e4], [6e4]], dtype=torch.float16, requires_grad=True)
    with pytest.raises(
        ValueError, match=r"embeddings must be small enough for gradients up to 65504, got a gradient of"
    ):
        pair_terms(half, torch.zeros(2, dtype=torch.long), 1.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(4, dtype=torch.long)}, ValueError, "labels must be as long as embeddings"),
        ({"labels": torch.zeros(5)}, TypeError, "labels must be integers"),
        ({"margin": torch.ones(4)}, ValueError, r"margin must be one number, or one per row: of shape \(\) or \(5,\)"),
        ({"margin": float("nan")}, ValueError, "margin must be finite"),
        ({"margin": torch.tensor(torch.inf)}, ValueError, "margin must be finite"),
        ({"margin": torch.full((5,), torch.nan)}, ValueError, "margin must be finite"),
        ({"pos_margin": float("inf")}, ValueError, "pos_margin must be finite"),
        ({"distance": "l1"}, ValueError, "distance must be one of 'squared_l2', 'l2', 'cosine', got 'l1'"),
        ({"ref_emb": torch.zeros(5, 3)}, ValueError, "ref_labels must be given with ref_emb"),
        ({"ref_emb": torch.zeros(5, 4), "ref_labels": torch.zeros(5).long()}, ValueError, "ref_emb must be of the 3"),
        ({"embeddings": torch.zeros(5)}, ValueError, r"embeddings must be a matrix of shape \(rows, features\)"),
    ],
)
def test_errors_name_what_is_wrong(change: dict[str, object], error: type[Exception], message: str) -> None:
    given_: dict[str, object] = {"embeddings": torch.zeros(5, 3), "labels": torch.arange(5), "margin": 1.0, **change}
    with pytest.raises(error, match=message):
        pair_terms(**given_)  # type: ignore[arg-type]


def test_the_rows_themselves_as_references_have_labels_of_their_own() -> None:
    x, labels = torch.tensor([[0.0], [1.0], [1.5]]), torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match="ref_labels must be given with ref_emb"):
        pair_terms(x, labels, 1.0, ref_emb=x)
    assert pair_terms(x, labels, 1.0, ref_emb=x, ref_labels=labels, counts=True).counts[0] == 5  # and each with itself


@given(
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(-20, 18),
    st.integers(0, 9),
    st.integers(1, 4),
    st.sampled_from(["squared_l2", "l2", "cosine"]),
    st.sampled_from(["random", "equal", "zero", "one far"]),
    st.integers(0, 2**16),
)
def test_every_scale_gives_a_finite_loss_or_an_error(
    dtype: torch.dtype, exponent: int, rows: int, classes: int, distance: str, pattern: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator)
    if pattern == "equal" and rows:
        x = x[:1].repeat(rows, 1)
    elif pattern == "zero":
        x = torch.zeros_like(x)
    elif pattern == "one far" and rows:
        x[0] *= 1e3
    x = (x * 10.0**exponent).to(dtype).requires_grad_()
    labels = torch.randint(0, classes, (rows,), generator=generator)
    margin = torch.tensor(0.3, dtype=dtype)
    over_active = distance == "cosine"
    try:
        terms = pair_terms(x, labels, margin, distance=distance, over_active=over_active, second_moment=not over_active)
    except ValueError as error:
        assert "small enough" in str(error)  # noqa: PT017
        assert exponent >= 8
        return
    loss = terms.attraction + terms.repulsion + terms.second_moment
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


@pytest.mark.usefixtures("_tiles")
def test_the_order_of_rows_does_not_matter() -> None:
    x, labels = torch.randn(11, 3, dtype=torch.float64), LABELS["few-a-class"]
    margin = torch.rand(11, dtype=torch.float64) * 3
    order = torch.randperm(11)
    assert_close(pair_terms(x, labels, margin), pair_terms(x[order], labels[order], margin[order]))


def test_gradients_only_where_they_are_wanted() -> None:
    labels = torch.arange(6) % 2
    x, y = torch.randn(6, 3), torch.randn(6, 3, requires_grad=True)
    with torch.no_grad():
        assert not pair_terms(y, labels, 1.0).attraction.requires_grad
    terms = pair_terms(x, labels, 1.0, ref_emb=y, ref_labels=labels)
    terms.attraction.backward()
    assert y.grad is not None
    assert not pair_terms(x, labels, 1.0).repulsion.requires_grad


# --- the stock loss ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("ref", [False, True], ids=["itself", "reference"])
@pytest.mark.parametrize("per_row", [False, True], ids=["one-margin", "margin-a-row"])
@pytest.mark.parametrize("distance", ["l2", "squared_l2", "cosine"])
def test_pair_hinge_means_are_the_stock_contrastive_loss(distance: str, per_row: bool, ref: bool) -> None:
    stock_distance = {
        "l2": LpDistance(normalize_embeddings=False),
        "squared_l2": LpDistance(normalize_embeddings=False, power=2),
        "cosine": CosineSimilarity(),
    }[distance]
    pos_margin, neg_margin = (0.9, 0.1) if distance == "cosine" else (0.4, 1.9)
    labels = LABELS["few-a-class"]
    x = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
    y, ref_labels = (torch.randn(7, 3, dtype=torch.float64, requires_grad=True), REF_LABELS) if ref else (None, None)
    neg: float | Tensor = neg_margin
    stock = ContrastiveLoss(pos_margin, neg_margin, distance=stock_distance)
    if per_row:
        neg = neg_margin + 0.1 * torch.rand(11, dtype=torch.float64)
        different = labels[:, None] != (ref_labels if ref else labels)
        stock.neg_margin = neg[different.nonzero()[:, 0]]
    expected = stock(x, labels, ref_emb=y, ref_labels=ref_labels)
    ours = sum(pair_hinge_means(x, labels, pos_margin, neg, distance, y, ref_labels))
    assert_close(ours, expected, rtol=1e-10, atol=0)
    inputs = [x] if y is None else [x, y]
    assert_close(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), rtol=1e-10, atol=1e-12)


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake_cuda_works")
@pytest.mark.parametrize("rows", [40, 600])
@pytest.mark.parametrize("distance", ["squared_l2", "l2"])
def test_nothing_on_cuda_waits_for_the_device(rows: int, distance: str) -> None:
    with FakeTensorMode():  # raises at whatever needs a number from the device
        x = torch.randn(rows, 8, device="cuda", requires_grad=True)
        y = torch.randn(rows, 8, device="cuda", requires_grad=True)
        labels = torch.arange(rows, device="cuda") % 3
        for margin in (0.2, torch.rand((), device="cuda"), torch.rand(rows, device="cuda", requires_grad=True)):
            for options in (
                {"second_moment": True, "ignore_label": -1},
                {"over_active": True, "ignore_label": -1},
                {"second_moment": True, "ref_emb": y, "ref_labels": labels, "ignore_label": -1},
                {"only_first": True},
            ):
                terms = pair_terms(x, labels, margin, distance=distance, **options)  # type: ignore[arg-type]
                assert terms.attraction.requires_grad  # its gradient is made here, not in backward
                assert terms.counts.device.type == "cuda"


@pytest.mark.cuda
@pytest.mark.parametrize("rows", [40, 3000])
@pytest.mark.parametrize("distance", ["squared_l2", "l2", "cosine"])
def test_cuda_is_the_cpu(rows: int, distance: str) -> None:
    x, labels = torch.randn(rows, 8, dtype=torch.float64), torch.randint(-1, 5, (rows,))
    over_active = distance == "cosine"
    options = {"distance": distance, "over_active": over_active, "ignore_label": -1, "second_moment": not over_active}
    results = []
    for device in ("cpu", "cuda"):
        leaf = x.to(device).detach().requires_grad_()
        terms = pair_terms(leaf, labels.to(device), 0.5, **options)  # type: ignore[arg-type]
        (terms.attraction + terms.repulsion + terms.second_moment).backward()
        results.append([*(t.cpu() for t in terms), leaf.grad.cpu()])
    assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)


@pytest.mark.cuda
@pytest.mark.parametrize("rows", [40, 3000])
def test_cuda_does_not_synchronise(rows: int) -> None:
    x = torch.randn(rows, 8, device="cuda", requires_grad=True)
    labels = torch.arange(rows, device="cuda") % 3
    pair_terms(x, labels, torch.tensor(0.5, device="cuda")).attraction.backward()  # handles and workspaces
    torch.cuda.set_sync_debug_mode("error")
    try:
        terms = pair_terms(x, labels, torch.tensor(0.5, device="cuda"), second_moment=True, ignore_label=-1)
        (terms.attraction + terms.repulsion + terms.second_moment).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_autocast_does_not_reach_the_products() -> None:
    x, labels = torch.randn(11, 3, requires_grad=True), LABELS["few-a-class"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = pair_terms(x, labels, 2.0, second_moment=True)
    assert_close(under, pair_terms(x, labels, 2.0, second_moment=True))


@pytest.mark.parametrize("rows", [11, 600])
def test_compiled_without_a_graph_break(rows: int) -> None:
    def loss(x: Tensor, labels: Tensor, margin: Tensor) -> Tensor:
        terms = pair_terms(x, labels, margin, second_moment=True, ignore_label=-1)
        return terms.attraction + terms.repulsion + terms.second_moment

    x = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True)
    labels, margin = torch.randint(-1, 4, (rows,)), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, expected = compiled(x, labels, margin), loss(x, labels, margin)
    assert_close(ours, expected)
    assert_close(torch.autograd.grad(ours, (x, margin)), torch.autograd.grad(expected, (x, margin)))


@pytest.mark.parametrize("distance", ["l2", "squared_l2", "cosine"])
def test_a_small_set_has_the_gradient_of_either_term_and_of_both(
    distance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is computed in the backward pass, where the weights of the terms are known."""
    x = torch.randn(11, 3, dtype=torch.float64)
    x[4] = x[1]  # a pair across groups at distance 0

    def gradients() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        terms = pair_hinge_means(leaf, LABELS["few-a-class"], 0.2, 0.9, distance)
        sums = terms[0], terms[1], 2 * terms[0] - 0.5 * terms[1]
        return [torch.autograd.grad(each, leaf, retain_graph=True)[0] for each in (*sums, *sums)]

    late = gradients()
    for once, again in zip(late[:3], late[3:], strict=True):
        assert torch.equal(once, again)
    monkeypatch.setattr(pair_tiles.small, "SMALL", 0)
    for found, expected in zip(late, gradients(), strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("distance", ["l2", "squared_l2", "dot"])
def test_rows_that_change_before_the_backward_pass_do_not_change_the_gradient(distance: Any) -> None:
    found = []
    for changes in (False, True):
        x = torch.nn.functional.normalize(torch.randn(11, 3, generator=torch.Generator().manual_seed(1)), dim=1)
        terms = pair_hinge_means(x.requires_grad_(), LABELS["few-a-class"], 0.2, 0.9, distance)
        if changes:
            x.detach().mul_(3)
        found.append(torch.autograd.grad(sum(terms), x)[0])
    assert torch.equal(*found)


def test_a_small_set_is_freed_by_its_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """As what autograd saves: a sum of losses over an epoch does not keep a matrix a batch."""
    measured: list[Any] = []

    def watched(*arguments: Any) -> Any:
        small = pair_tiles.small.small_pairs(*arguments)
        assert small is not None
        measured.extend([weakref.ref(small), weakref.ref(small.of_rows[0])])
        return small

    monkeypatch.setattr(pair_tiles.autograd, "small_pairs", watched)
    x = torch.randn(11, 3, requires_grad=True)
    gc.disable()
    try:
        loss = torch.stack(pair_hinge_means(x, LABELS["few-a-class"], 0.2, 0.9)).sum()
        small, weights = measured
        assert small() is None
        assert weights() is not None
        loss.backward()
        assert weights() is None
    finally:
        gc.enable()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_gradients_of_many_weights_at_once(distance: Any) -> None:
    x = torch.randn(11, 3, dtype=torch.float64)

    def terms(rows: Tensor) -> Tensor:
        return torch.stack(pair_hinge_means(rows, LABELS["few-a-class"], 0.2, 0.9, distance))

    one, many = (torch.autograd.functional.jacobian(terms, x, vectorize=each) for each in (False, True))
    assert one.any()
    assert_close(one, many)
