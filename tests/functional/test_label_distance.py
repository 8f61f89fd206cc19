"""A margin that grows with the distance of continuous labels."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from adaptive_margin.functional import label_distance_loss, label_distance_margin

TOL = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def _slow(z: Tensor, y: Tensor, scale: float, attraction: float, slack: float) -> Tensor:
    losses = []
    for i, j in itertools.combinations(range(len(z)), 2):
        margin, distance = scale * (y[i] - y[j]).norm(), (z[i] - z[j]).norm()
        losses.append((margin - distance).clamp(min=0) + attraction * (distance - margin - slack).clamp(min=0))
    return torch.stack(losses).mean()


def _rows(rows: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 4, generator=generator).to(dtype), torch.rand(rows, 2, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("options", [(1.0, 1.0, 0.0), (3.0, 0.5, 0.2), (2.0, 0.0, 0.0)])
def test_matches_the_loop(dtype: torch.dtype, options: tuple[float, float, float]) -> None:
    z, y = _rows(dtype=dtype)
    scale, attraction, slack = options
    found = label_distance_loss(z, y, scale, attraction=attraction, slack=slack)
    assert_close(found.to(dtype), _slow(z, y, *options), rtol=TOL[dtype], atol=TOL[dtype])


def test_by_hand() -> None:
    z, y = torch.tensor([[0.0], [3.0], [3.5]]), torch.tensor([0.0, 1.0, 3.0])
    # pairs: d 3, 3.5, 0.5 and m 1, 3, 2: too far by 2 and 0.5, too close by 1.5
    assert float(label_distance_loss(z, y)) == pytest.approx((2 + 0.5 + 1.5) / 3)
    assert float(label_distance_loss(z, y, attraction=0.0)) == pytest.approx(1.5 / 3)
    assert float(label_distance_loss(z, y, slack=1.0)) == pytest.approx((1 + 0 + 1.5) / 3)


def test_gradients() -> None:
    z, y = _rows()
    assert torch.autograd.gradcheck(lambda x: label_distance_loss(x, y, 2.0), z.requires_grad_())


def test_alike_labels_attract_and_others_repel() -> None:
    z = torch.tensor([[0.0], [1.0]], requires_grad=True)
    same = torch.autograd.grad(label_distance_loss(z, torch.tensor([0.5, 0.5])), z)[0]
    apart = torch.autograd.grad(label_distance_loss(z, torch.tensor([0.0, 2.0])), z)[0]
    assert same.flatten().tolist() == [-1, 1]  # a step against it brings them together
    assert apart.flatten().tolist() == [1, -1]


def test_order_moves_and_turns_change_nothing() -> None:
    z, y = _rows()
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    order = torch.randperm(7)
    assert_close(label_distance_loss((z @ turn + 5)[order], y[order]), label_distance_loss(z, y))


@pytest.mark.parametrize("rows", [0, 1])
def test_without_pairs_it_is_a_zero_with_a_graph(rows: int) -> None:
    z = torch.zeros(rows, 3, requires_grad=True)
    loss = label_distance_loss(z, torch.zeros(rows, 2))
    loss.backward()
    assert float(loss) == 0


def test_embeddings_at_one_point_have_a_finite_gradient() -> None:
    z = torch.ones(5, 3, requires_grad=True)
    loss = label_distance_loss(z, torch.arange(5.0))
    loss.backward()
    assert float(loss) == pytest.approx(2.0)  # the mean label distance
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_one_number_or_several_a_row() -> None:
    y = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert label_distance_margin(y, 0.5).tolist() == [[0, 2.5], [2.5, 0]]
    assert torch.equal(label_distance_margin(y[:, 0]), label_distance_margin(y[:, :1]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool])
def test_whole_numbers_of_any_dtype(dtype: torch.dtype) -> None:
    y = torch.tensor([1, 0, 0]) if dtype == torch.bool else torch.tensor([200, 0, 3])
    found = label_distance_margin(y.to(dtype), 0.5)
    assert torch.equal(found, label_distance_margin(y.float(), 0.5))
    assert torch.equal(label_distance_margin(y.to(dtype), 1.0, torch.tensor([0.25])), (y.float() - 0.25).abs()[:, None])


def test_large_whole_numbers_keep_their_differences() -> None:
    y = torch.tensor([1_700_000_001, 1_700_000_000])  # seconds; float32 has one number for both
    assert label_distance_margin(y)[0, 1] == 1


def test_labels_get_no_gradient() -> None:
    z, y = _rows()
    label_distance_loss(z.requires_grad_(), y.requires_grad_()).backward()
    assert z.grad is not None
    assert y.grad is None


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("argument", ["labels", "ref_labels", "scale", "attraction", "slack"])
def test_what_is_not_finite_is_named(argument: str, value: float) -> None:
    y = torch.tensor([0.0, value, 1.0])
    calls = {
        "labels": lambda: label_distance_loss(torch.zeros(3, 2), y),
        "ref_labels": lambda: label_distance_margin(torch.zeros(3), 1.0, y),
    }
    option = lambda: label_distance_loss(torch.zeros(3, 2), torch.zeros(3), **{argument: value})  # noqa: E731
    with pytest.raises(ValueError, match=f"{argument} must be .*finite.*got"):
        calls.get(argument, option)()


def test_wrong_types_are_named() -> None:
    z, y = torch.zeros(3, 2), torch.zeros(3)
    with pytest.raises(TypeError, match=r"labels must be a torch\.Tensor, got list; convert it with torch\.as_tensor"):
        label_distance_loss(z, [0.0, 1.0, 2.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"ref_labels must be a torch\.Tensor, got list"):
        label_distance_margin(y, 1.0, [0.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="labels must be real numbers, got torch"):
        label_distance_margin(y.to(torch.complex64))
    with pytest.raises(ValueError, match=r"labels must be of shape \(N,\) or \(N, L\) with L >= 1, got shape \(3, 0\)"):
        label_distance_margin(torch.zeros(3, 0))
    with pytest.raises(TypeError, match="scale must be a number, got '2'"):
        label_distance_margin(y, "2")  # type: ignore[arg-type]
