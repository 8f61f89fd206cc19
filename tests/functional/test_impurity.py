"""The share of a sample's class-sized neighbourhood that is not its class: by hand, by slow loops, on every path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from adaptive_margin import AdaptiveMargin
from adaptive_margin.functional import neighbourhood_impurity, own_neighbours
from tests.references import margin as slow

F64 = torch.float64


def expected(x: Tensor, y: Tensor, ref: Tensor | None = None, ref_y: Tensor | None = None) -> Tensor:
    args = (x.tolist(), y.tolist()) if ref is None else (x.tolist(), y.tolist(), ref.tolist(), ref_y.tolist())  # type: ignore[union-attr]
    return torch.tensor([slow.impurity(i, *args) for i in range(len(x))], dtype=F64)


def check(x: Tensor, y: Tensor, ref: Tensor | None = None, ref_y: Tensor | None = None) -> None:
    found = neighbourhood_impurity(x, y, ref_emb=ref, ref_labels=ref_y)
    assert found.dtype == (F64 if x.dtype == F64 else torch.float32)
    assert found.shape == (len(x),)
    assert_close(found.double(), expected(x, y, ref, ref_y), rtol=0, atol=1e-6)


@pytest.fixture(params=["host", "sorted"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a CPU takes, and what CUDA, compiled code and ``torch.func`` take."""
    if request.param == "sorted":
        monkeypatch.setattr(own_neighbours, "is_blind", lambda x: True)
    return str(request.param)


# --- by hand --------------------------------------------------------------------------------------------------------


def test_by_hand(path: str) -> None:
    # classes of 3, 2 and 1 on a line: their 2, 1 and no nearest
    x, y = torch.tensor([0.0, 1.0, 6.0, 5.0, 9.0, 20.0])[:, None], torch.tensor([4, 4, 4, 7, 7, -1])
    #  0: 1 own, 5 other; 1: 0 own, 5 other; 6: 5 other, 9 other; 5: 6 other; 9: 6 other (3 away); alone: 1 - 1/6
    assert_close(neighbourhood_impurity(x, y), torch.tensor([0.5, 0.5, 1.0, 1.0, 1.0, 5 / 6]))


def test_a_reference_set_by_hand(path: str) -> None:
    x, y = torch.tensor([[0.0], [10.0], [3.0]]), torch.tensor([0, 1, 5])
    ref, ref_y = torch.tensor([[1.0], [2.0], [9.0], [4.0]]), torch.tensor([0, 1, 0, 1])
    # 0: nearest two 1 (own), 2 (other); 10: 9 (other), 4 (own); the last one's class is not there
    assert_close(neighbourhood_impurity(x, y, ref_emb=ref, ref_labels=ref_y), torch.tensor([0.5, 0.5, 1.0]))
    # with the first sample itself in it, one copy is left out: m is still 2 without it
    both, both_y = torch.cat([x[:1], ref]), torch.cat([y[:1], ref_y])
    assert_close(neighbourhood_impurity(x, y, ref_emb=both, ref_labels=both_y)[0].item(), 0.5)
    # a copy of another label is a neighbour
    other = torch.cat([torch.ones_like(y[:1]), ref_y])
    assert_close(neighbourhood_impurity(x, y, ref_emb=both, ref_labels=other)[0].item(), 0.5)
    assert_close(neighbourhood_impurity(x[:1], y[:1], ref_emb=x[:1], ref_labels=1 - y[:1])[0].item(), 1.0)


def test_a_tie_is_with_the_others(path: str) -> None:
    x, y = torch.zeros(6, 2), torch.tensor([0, 0, 0, 1, 1, 1])
    assert_close(neighbourhood_impurity(x, y), torch.ones(6))  # all equally near: the three others first
    assert_close(neighbourhood_impurity(x, torch.tensor([0, 0, 0, 0, 0, 1])), torch.tensor([0.25] * 5 + [5 / 6]))


def test_apart_it_is_0_and_unrelated_it_is_what_is_attainable(path: str) -> None:
    y = torch.arange(400) % 8
    x = torch.randn(400, 4)
    assert_close(neighbourhood_impurity(x + 100 * y[:, None], y), torch.zeros(400))
    assert_close(neighbourhood_impurity(x, y).mean().item(), 7 / 8, atol=0.03, rtol=0)


def test_edges(path: str) -> None:
    x = torch.randn(7, 3)
    assert_close(neighbourhood_impurity(x, torch.zeros(7, dtype=torch.int64)), torch.zeros(7))  # one label
    assert_close(neighbourhood_impurity(x, torch.arange(7)), torch.full((7,), 6 / 7))  # each row a class
    assert_close(neighbourhood_impurity(x[:1], torch.tensor([3])), torch.zeros(1))  # q = 1
    assert neighbourhood_impurity(x[:0], torch.arange(0)).shape == (0,)
    nothing = neighbourhood_impurity(x, torch.arange(7), ref_emb=x[:0], ref_labels=torch.arange(0))
    assert_close(nothing, torch.ones(7))
    none = neighbourhood_impurity(x[:0], torch.arange(0), ref_emb=x, ref_labels=torch.arange(7))
    assert none.shape == (0,)
    one = neighbourhood_impurity(x, torch.arange(7) % 2, ref_emb=x[:1], ref_labels=torch.tensor([0]))
    assert_close(one, torch.tensor([0.0, 1, 0, 1, 0, 1, 0]))  # the first: itself alone, a class that is all there is


# --- the slow loops -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 24),
    features=st.integers(1, 4),
    classes=st.integers(1, 26),
    grid=st.booleans(),
    reference=st.sampled_from(["none", "other", "with copies", "the batch, copied"]),
    dtype=st.sampled_from([torch.float32, F64]),
    blind=st.booleans(),
)
def test_it_is_the_slow_loop(
    seed: int, n: int, features: int, classes: int, grid: bool, reference: str, dtype: torch.dtype, blind: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def rows(count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, features, generator=generator, dtype=F64)
        if grid:  # ties, and rows that are the same
            x = (2 * x).round()
        return x.to(dtype), torch.randint(classes, (count,), generator=generator).clamp(max=n) - 2

    x, y = rows(n)
    given_reference: tuple[Tensor, ...] = ()
    if reference == "other":
        given_reference = rows(1 + seed % 13)
    elif reference == "with copies":
        ref, ref_y = rows(5)
        given_reference = torch.cat([ref, x[::2], x[:1]]), torch.cat([ref_y, y[::2], y[:1]])
    elif reference == "the batch, copied":
        given_reference = x.clone(), y.clone()
    with pytest.MonkeyPatch.context() as patch:
        if blind:
            patch.setattr(own_neighbours, "is_blind", lambda x: True)
        check(x, y, *given_reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_exact_in_float32(path: str, dtype: torch.dtype) -> None:
    x, y = torch.randn(30, 5).to(dtype), torch.arange(30) % 7
    check(x, y)
    assert torch.equal(neighbourhood_impurity(x, y), neighbourhood_impurity(x.float(), y))
    ref = torch.randn(12, 5).to(dtype)
    check(x, y, ref, torch.arange(12) % 7)
    mixed = neighbourhood_impurity(x.float(), y, ref_emb=ref, ref_labels=torch.arange(12) % 7)  # of another dtype
    assert_close(mixed, neighbourhood_impurity(x, y, ref_emb=ref, ref_labels=torch.arange(12) % 7))


@pytest.mark.parametrize("sizes", [(40, 1), (3, 30, 1, 7), (1,) * 20 + (9,), (2,) * 20, (25, 25)])
def test_class_sizes_of_every_kind(path: str, sizes: tuple[int, ...]) -> None:
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[torch.randperm(sum(sizes))]
    check(torch.randn(len(y), 3, dtype=F64) + y[:, None] % 3, y)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int8, torch.int16, torch.bool])
def test_labels_of_any_integer_type(path: str, dtype: torch.dtype) -> None:
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    assert torch.equal(neighbourhood_impurity(x, y.to(dtype)), neighbourhood_impurity(x, y))
    ref, ref_y = torch.randn(9, 3), torch.arange(9) % 2
    of_both = neighbourhood_impurity(x, y.to(dtype), ref_emb=ref, ref_labels=ref_y)
    assert torch.equal(of_both, neighbourhood_impurity(x, y, ref_emb=ref, ref_labels=ref_y))


def test_labels_that_are_negative_and_far_apart(path: str) -> None:
    x, y = torch.randn(20, 3), torch.arange(20) % 4
    names = torch.tensor([-(2**62), -1, 0, 2**62])
    assert torch.equal(neighbourhood_impurity(x, names[y]), neighbourhood_impurity(x, y))


# --- invariances ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [False, True])
def test_order_does_not_matter(path: str, reference: bool) -> None:
    x, y = (2 * torch.randn(40, 2)).round(), torch.randint(6, (40,))  # with ties
    ref, ref_y = (2 * torch.randn(30, 2)).round(), torch.randint(6, (30,))
    more = {"ref_emb": ref, "ref_labels": ref_y} if reference else {}
    plain = neighbourhood_impurity(x, y, **more)  # type: ignore[arg-type]
    order, ref_order = torch.randperm(40), torch.randperm(30)
    more = {"ref_emb": ref[ref_order], "ref_labels": ref_y[ref_order]} if reference else {}
    assert torch.equal(neighbourhood_impurity(x[order], y[order], **more), plain[order])  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [2.0**-120, 2.0**-40, 1.0, 2.0**40, 2.0**120])
def test_scale_does_not_matter(path: str, scale: float) -> None:
    x, y = torch.randn(40, 3), torch.arange(40) % 5
    assert torch.equal(neighbourhood_impurity(x * scale, y), neighbourhood_impurity(x, y))


def test_shift_does_not_matter(path: str) -> None:
    x, y = torch.randn(40, 3, dtype=F64), torch.arange(40) % 5
    assert_close(neighbourhood_impurity(x + 1000, y), neighbourhood_impurity(x, y))
    grid = (2 * torch.randn(40, 3)).round()
    assert_close(neighbourhood_impurity(grid + 4096, y), neighbourhood_impurity(grid, y))


def test_what_memory_looks_like_does_not_matter(path: str) -> None:
    x, y = torch.randn(30, 4), torch.arange(30) % 4
    plain = neighbourhood_impurity(x, y)
    assert torch.equal(neighbourhood_impurity(x.T.contiguous().T, y), plain)
    assert torch.equal(neighbourhood_impurity(x.repeat(1, 2)[:, :4], y.repeat_interleave(2)[::2]), plain)
    with_gradient = neighbourhood_impurity(x.requires_grad_(), y)
    assert torch.equal(with_gradient, plain)
    assert not with_gradient.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(neighbourhood_impurity(x, y), plain, atol=0.2, rtol=0)


def test_nothing_given_is_changed(path: str) -> None:
    x, y = torch.randn(30, 4), torch.arange(30) % 4
    before = x.clone(), y.clone()
    neighbourhood_impurity(x, y)
    neighbourhood_impurity(x, y, ref_emb=x.clone(), ref_labels=y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


# --- paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("per_class", [3, 40])
def test_many_tiles_are_one(path: str, monkeypatch: pytest.MonkeyPatch, reference: bool, per_class: int) -> None:
    y = torch.arange(120) // per_class
    x = torch.randn(120, 3, dtype=F64) + y[:, None] % 4
    more: dict[str, Any] = {"ref_emb": torch.cat([x[::3], x + 0.1]), "ref_labels": torch.cat([y[::3], y])}
    more = more if reference else {}
    whole = neighbourhood_impurity(x, y, **more)
    for rows in (1, 7, 119):
        monkeypatch.setitem(own_neighbours.TILE_ENTRIES, "cpu", 1)
        monkeypatch.setattr(own_neighbours, "FEWEST_ROWS", rows)
        assert torch.equal(neighbourhood_impurity(x, y, **more), whole)


def test_compiled_and_transformed_code_take_the_sorted_path() -> None:
    x, y = torch.randn(24, 3), torch.arange(24) % 5
    plain = neighbourhood_impurity(x, y)
    compiled = torch.compile(neighbourhood_impurity, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, y), plain)
    assert torch.equal(compiled(x, y, ref_emb=x.clone(), ref_labels=y), plain)
    (jacobian, value) = torch.func.jacrev(lambda z: (neighbourhood_impurity(z, y),) * 2, has_aux=True)(x)
    assert torch.equal(value, plain)
    assert jacobian.abs().max() == 0  # a count has no slope


@pytest.mark.parametrize("neighbourhood", ["remaining", "attainable", "auto"])
@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
@pytest.mark.parametrize("size", [1.0, 2.0**-100, 2.0**60])
def test_margins_of_odd_batches_are_finite(neighbourhood: Any, granularity: Any, size: float) -> None:
    margin = AdaptiveMargin(neighbourhood=neighbourhood, granularity=granularity, detach=False)
    for rows in (1, 2, 3, 9):
        x = (size * torch.randn(rows, 3)).requires_grad_()
        for labels in (torch.zeros(rows, dtype=torch.uint8), torch.arange(rows) - 5, torch.arange(rows) % 3):
            for more in (
                (),
                (None, x.detach()[:1].double(), labels[:1]),
                (None, size * torch.ones(4, 3), labels[:1].expand(4) - 1),
            ):
                alpha = margin(x, labels, *more)
                assert torch.isfinite(alpha).all()
                assert (alpha >= 0).all()
                if alpha.requires_grad:
                    (grad,) = torch.autograd.grad(alpha.sum(), x)
                    assert torch.isfinite(grad).all()


# --- errors ---------------------------------------------------------------------------------------------------------


X, Y = torch.ones(4, 2), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("args", "more", "error", "message"),
    [
        ((X[0], Y), {}, ValueError, "embeddings must be a matrix"),
        ((X.long(), Y), {}, TypeError, "embeddings must be floating point"),
        ((X, Y[:3]), {}, ValueError, r"labels must be as long as embeddings \(4 rows\), got 3 labels"),
        ((X, Y.float()), {}, TypeError, "labels must be integers, got torch.float32; group continuous"),
        ((X, Y * torch.nan), {}, TypeError, "labels must be integers, got torch.float32"),
        ((X, Y[:, None]), {}, ValueError, "labels must be one-dimensional"),
        ((X * torch.nan, Y), {}, ValueError, "embeddings must be finite, got 8 NaN or infinite of 8 values"),
        ((X, Y), {"ref_emb": X.clone()}, ValueError, "ref_labels must be given with ref_emb, got None"),
        ((X, Y), {"ref_emb": X[:, :1], "ref_labels": Y}, ValueError, "ref_emb must be of the 2 features"),
        ((X, Y), {"ref_emb": X / 0, "ref_labels": Y}, ValueError, "ref_emb must be finite"),
        ((X, Y), {"ref_emb": X.clone(), "ref_labels": Y[:2]}, ValueError, "ref_labels must be as long as ref_emb"),
    ],
)
def test_bad_input(args: Any, more: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        neighbourhood_impurity(*args, **more)
