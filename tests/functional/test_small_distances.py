"""Distances of small sets: right, and measured once for a margin and a loss, but never of other numbers."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from torch.testing import assert_close

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, ConstantMargin, ContrastiveVDMLoss
from adaptive_margin.functional import pair_tiles, small_batch
from adaptive_margin.functional import small_distances as module
from adaptive_margin.functional.small_distances import shared_distances, small_distances
from adaptive_margin.margins.base import Margin

LABELS = torch.arange(24) % 3


def rows(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(24, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)


def distances_of(x: Tensor) -> Any:
    return small_distances(x.numpy(force=True))


def squared_l2() -> LpDistance:
    return LpDistance(p=2, power=2, normalize_embeddings=False)


def measured(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The rows of every measurement from here on."""
    found: list[np.ndarray] = []
    measure = module._measured

    def watched(x: np.ndarray) -> Any:
        found.append(x)
        return measure(x)

    monkeypatch.setattr(module, "_measured", watched)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_distances_are_those_of_differences(dtype: torch.dtype, offset: float) -> None:
    x = rows(dtype=dtype) + offset
    found = distances_of(x)
    differences = x.double()[:, None] - x.double()
    assert_close(torch.from_numpy(found.d).double(), differences.square().sum(2), rtol=1e-4, atol=1e-5)
    assert_close(torch.from_numpy(found.x), x - x.mean(0), rtol=1e-4, atol=1e-3)
    assert_close(torch.from_numpy(found.squares), torch.from_numpy(found.x).square().sum(1))
    assert (found.d >= 0).all()


def test_rows_are_measured_once_in_a_block_and_never_outside_it() -> None:
    x = rows()
    assert distances_of(x) is not distances_of(x)
    with shared_distances(x):
        first = distances_of(x)
        assert distances_of(x.detach().clone()) is first
        with shared_distances(x):
            assert distances_of(x) is not first
        assert distances_of(x) is first
    assert distances_of(x) is not first


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x[:12],
        lambda x: x[:, :2],
        lambda x: x.view(20, 6),
        lambda x: x.view(12, 2, 5)[:, 0],
        lambda x: x.view(torch.int32).bitwise_and(0x7FFFFFF0).view(torch.float32),
    ],
    ids=["part", "columns", "reshaped", "every other", "other values"],
)
def test_other_rows_are_measured_again(other: Any) -> None:
    x = rows()
    with shared_distances(x):
        distances_of(x)
        again = distances_of(other(x))
    assert_close(again.d, distances_of(other(x).clone()).d)


def test_a_view_with_a_pending_sign_is_other_numbers() -> None:
    """It has the memory, shape and strides of the view without."""
    z = torch.view_as_complex(rows()[:, :4].reshape(24, 2, 2).contiguous())
    x, negative = z.imag, z.conj().imag
    assert x.data_ptr() == negative.data_ptr()
    with shared_distances(x):
        assert_close(distances_of(x).x, -distances_of(negative).x)


def test_an_error_ends_the_block() -> None:
    x = rows()

    def fail() -> None:
        with shared_distances(x):
            distances_of(x)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert distances_of(x) is not distances_of(x)


def test_threads_do_not_share() -> None:
    x = rows()
    found: list[Any] = []
    with shared_distances(x):
        first = distances_of(x)
        thread = threading.Thread(target=lambda: found.extend([distances_of(x), distances_of(x)]))
        thread.start()
        thread.join()
    assert found[0] is not first
    assert found[0] is not found[1]


@pytest.mark.parametrize(
    "change",
    [lambda x: x.mul_(2), lambda x: x.data.mul_(2), lambda x: np.multiply(x.numpy(), 2, out=x.numpy())],
    ids=["counted", "of .data", "by numpy"],
)
@pytest.mark.parametrize("inference", [False, True])
def test_rows_that_are_changed_are_measured_again(change: Any, inference: bool) -> None:
    """Also by means that PyTorch does not count."""
    with torch.inference_mode(inference):
        x = rows()
        with shared_distances(x):
            first = distances_of(x)
            change(x)
            assert_close(distances_of(x).d, 4 * first.d)


def test_the_same_numbers_in_another_dtype_are_measured_again() -> None:
    x = torch.arange(12.0).reshape(4, 3)
    with shared_distances(x):
        assert [distances_of(x.to(dtype)).d.dtype for dtype in (torch.float32, torch.float64)] == ["f4", "f8"]


LOSSES: dict[str, Any] = {
    "ContrastiveVDMLoss": ContrastiveVDMLoss,
    "ContrastiveVDMLoss, L2": lambda margin: ContrastiveVDMLoss(margin, distance=LpDistance()),
    "AdaptiveMarginLoss": lambda margin: AdaptiveMarginLoss(losses.ContrastiveLoss(), margin),
    "AdaptiveMarginLoss, squared L2": lambda margin: AdaptiveMarginLoss(
        losses.ContrastiveLoss(distance=squared_l2()), margin
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("rule", ["hoeffding", "chernoff", "remaining"])
def test_margin_and_loss_measure_a_batch_once(monkeypatch: pytest.MonkeyPatch, name: str, rule: Any) -> None:
    loss = LOSSES[name](AdaptiveMargin(neighbourhood=rule))
    found = measured(monkeypatch)
    for seed in range(2):
        x = rows(seed).requires_grad_()
        loss(x, LABELS).backward()
        assert len(found) == seed + 1
        assert x.grad is not None
        assert x.grad.abs().max() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_shared_measurement_gives_the_loss_and_gradient_of_two(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = []
    for shared in (True, False):
        x = rows(2).requires_grad_()
        if not shared:
            monkeypatch.setattr(small_batch, "small_distances", module._measured)
            monkeypatch.setattr(pair_tiles.small, "small_distances", module._measured)
        value = LOSSES[name](AdaptiveMargin(neighbourhood="chernoff"))(x, LABELS)
        found.append((value, *torch.autograd.grad(value, x)))
    for once, twice in zip(*found, strict=True):
        assert torch.equal(once, twice)


class Shrinking(Margin):
    """A margin that changes the rows it was given, after it has measured them."""

    unit = "squared distance"

    def __init__(self) -> None:
        super().__init__()
        self.inner = AdaptiveMargin(neighbourhood="chernoff")

    def forward(self, embeddings: Tensor, labels: Any = None, *others: Any) -> Tensor:
        alpha = self.inner(embeddings, labels, *others)
        embeddings.data.mul_(0.5)
        return alpha


def test_rows_that_a_margin_changes_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch)
    x = rows(3)
    margin = AdaptiveMargin(neighbourhood="chernoff")(x, LABELS)
    value = ContrastiveVDMLoss(Shrinking())(x.clone(), LABELS)
    assert len(found) == 3
    assert_close(value, ContrastiveVDMLoss(ConstantMargin(float(margin)))(0.5 * x, LABELS))


@pytest.mark.parametrize("exponent", [-120, -30, -21, -19, 0, 19, 21, 30, 120])
def test_the_margin_of_a_batch_does_not_depend_on_its_scale(exponent: int) -> None:
    """Also where squares would overflow or vanish; powers of two change nothing but exponents."""
    x = rows(4)
    for rule in ("hoeffding", "chernoff", "remaining"):
        margin = AdaptiveMargin(neighbourhood=rule)  # type: ignore[arg-type]
        assert torch.equal(margin(x * 2.0**exponent, LABELS), margin(x, LABELS))
