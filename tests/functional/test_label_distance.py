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
