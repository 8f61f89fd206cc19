"""The tiles where numbers are hard: rows of very different size, pairs on the margin, rows of no direction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from adaptive_margin.functional import pair_hinge_means, pair_terms, pair_tiles


@pytest.fixture(params=[0, 512], ids=["tiles", "one-matrix"], autouse=True)
def _small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_tiles.small, "SMALL", request.param)


def hinge_means(x: Tensor, labels: Tensor, margin: float, power: int) -> tuple[Tensor, Tensor]:
    """The attraction over all pairs of a group, the repulsion over those within the margin, from differences."""
    squares = (x[:, None] - x).square().sum(2)
    distances = squares if power == 2 else torch.where(squares > 0, squares.clamp(min=1e-300).sqrt(), 0.0)
    same = labels[:, None] == labels
    hinges = (margin - distances)[~same]
    within = hinges[hinges > 1e-9]
    return distances[same.triu(1)].mean(), within.mean() if len(within) else hinges.sum() * 0


def gradients(terms: tuple[Tensor, Tensor], x: Tensor) -> list[Tensor]:
    return [torch.autograd.grad(term, x, retain_graph=True)[0].double() for term in terms]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("size", [1e4, 1e6])
def test_one_large_row_does_not_spoil_the_others(size: float, power: int) -> None:
    torch.manual_seed(0)
    x = 0.3 * torch.randn(64, 8)
    x[0] = size * torch.randn(8)
    check_against_differences(x, torch.arange(64) % 2, power)


@pytest.mark.parametrize("power", [1, 2])
def test_rows_of_every_scale_keep_their_distances(power: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(48, 8) * 10 ** (7 * torch.rand(48, 1) - 2)
    x[1] = x[0] + 0.1  # near each other, far from all others
    x[3] = x[2] + 0.1
    check_against_differences(x, torch.tensor([0, 0, 0, 1]).repeat(12), power)


def check_against_differences(x: Tensor, labels: Tensor, power: int) -> None:
    distance = "squared_l2" if power == 2 else "l2"
    x, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    terms = pair_terms(x, labels, 1.0, distance=distance)[:2]  # type: ignore[arg-type]
    expected = hinge_means(exact, labels, 1.0, power)
    for value, number in zip(terms, expected, strict=True):
        assert_close(value.double(), number, rtol=1e-5, atol=1e-6)
    for gradient, true in zip(gradients(terms, x), gradients(expected, exact), strict=True):
        assert_close(gradient[1:], true[1:], rtol=1e-4, atol=1e-5 * float(true[1:].abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [0.1, 1 / 3, 1 / 255])
def test_a_pair_on_the_margin_is_not_within_it(step: float, dtype: torch.dtype) -> None:
    # Points of a grid: of the pairs across, those at distance 0 and 1 step are within a margin of two steps.
    torch.manual_seed(0)
    grid = torch.randint(0, 5, (60, 2))
    labels = torch.arange(60) % 2
    squares = (grid[:, None] - grid).square().sum(2)[labels[:, None] != labels]
    x = (grid.to(dtype) + 3) * step
    terms = pair_terms(x, labels, 4 * step**2)
    assert terms.counts[2] == (squares < 4).sum()
    assert_close(terms.repulsion.item(), (4 - squares[squares < 4]).double().mean().item() * step**2, rtol=1e-5, atol=0)
    roots = squares[squares < 4].double().sqrt()
    _, repulsion = pair_hinge_means(x, labels, 0.0, 2 * step)
    assert_close(repulsion.item(), (2 - roots).mean().item() * step, rtol=1e-5, atol=0)


def test_unit_vectors_along_the_axes_are_on_the_margin() -> None:
    x = torch.eye(6).repeat(4, 1) / 2**0.5  # at squared distance 0.99999994 of each other, as float32 has it
    labels = torch.arange(24) % 5
    own = (x[:, None] == x).all(2)[labels[:, None] != labels].sum()
    terms = pair_terms(x, labels, 1.0)
    assert terms.counts[2] == own
    assert_close(terms.repulsion, torch.tensor(1.0))


@pytest.mark.parametrize("distance", ["squared_l2", "l2"])
def test_copies_are_not_apart(distance: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 16).repeat_interleave(2, 0)  # each with its copy, in one group of four
    labels = torch.arange(40) // 4
    attraction, _ = pair_hinge_means(x, labels, 0.0, 1.0, distance)  # type: ignore[arg-type]
    squares = (x[:, None] - x).square().sum(2)[(labels[:, None] == labels).triu(1)]
    apart = squares[squares > 0] if distance == "squared_l2" else squares[squares > 0].sqrt()
    assert_close(attraction, apart.mean())


def test_a_row_of_no_direction_is_orthogonal_to_all() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0], [6e-13, 0.0]], dtype=torch.float64, requires_grad=True)
    attraction, repulsion, _, counts = pair_terms(x, torch.tensor([0, 0, 1, 1]), -0.1, distance="cosine", pos_margin=1)
    # Similarities: inside 0 and 0; across 0, 0, 0 and, of a row of 6e-13, which the host divides by 1e-12, 0.6.
    assert_close(attraction.item(), 1.0)
    assert_close(repulsion.item(), (0.1 * 3 + 0.7) / 4)
    assert counts.tolist() == [2, 4, 8]
    (gradient,) = torch.autograd.grad(attraction, x)
    assert_close(gradient[0], torch.tensor([-0.5, 0.0], dtype=torch.float64) / 1e-12)  # ½ · -(unit row 1), over 1e-12
    assert_close(gradient[3], torch.tensor([0.0, -0.5], dtype=torch.float64) / 1e-12)


def test_a_mean_beyond_a_positive_margin() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0]])  # squared distances 1, 4 and 9, of which the margin takes 2
    attraction = pair_terms(x, torch.zeros(3).long(), 1.0, pos_margin=2.0).attraction
    assert_close(attraction, torch.tensor((0.0 + 2.0 + 7.0) / 3))


def clusters(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Rows of one label that are closer to each other than the rounding of their distances from products."""
    torch.manual_seed(0)
    base = torch.randn(4, 8, dtype=dtype)
    near = base + 1e2 * torch.finfo(dtype).eps ** 0.5 * torch.randn(4, 8, dtype=dtype) / 350
    return torch.cat([base, near, base + 0.5 * torch.randn(4, 8, dtype=dtype)]), torch.arange(4).repeat(3)


def active_means(
    x: Tensor, labels: Tensor, pos_margin: float, margin: float, power: int, taken: Tensor
) -> tuple[Tensor, Tensor]:
    """Both means over active pairs of the rows that are taken, from differences."""
    squares = (x[:, None] - x).square().sum(2)
    d = squares if power == 2 else torch.where(squares > 0, squares.clamp(min=1e-300).sqrt(), 0.0)
    same, counted = labels[:, None] == labels, (taken[:, None] & taken).triu(1)
    inside, across = (d - pos_margin)[same & counted], (margin - d)[~same & counted]
    return inside[inside > 0].mean(), across[across > 0].mean()


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("pos_margin", [0.0, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [1, 2])
def test_close_pairs_of_one_label_are_active(power: int, dtype: torch.dtype, pos_margin: float, ignored: bool) -> None:
    x, labels = clusters(dtype)
    taken = labels != 3 if ignored else torch.ones(12, dtype=torch.bool)
    x[~taken] *= 1e4  # ignored rows do not make the others inexact
    pos_margin = pos_margin if dtype == torch.float32 else pos_margin * 1e-4
    x, exact = x.requires_grad_(), x.detach().double().requires_grad_()
    distance = "squared_l2" if power == 2 else "l2"
    terms = pair_terms(
        x,
        labels,
        30.0,
        distance=distance,  # type: ignore[arg-type]
        pos_margin=pos_margin**power,
        over_active=True,
        ignore_label=3 if ignored else None,
    )[:2]
    expected = active_means(exact, labels, pos_margin**power, 30.0, power, taken)
    for value, number in zip(terms, expected, strict=True):
        assert_close(value.double(), number, rtol=1e-5, atol=0)
    for gradient, true in zip(gradients(terms, x), gradients(expected, exact), strict=True):
        assert_close(gradient, true, rtol=1e-4, atol=1e-5 * float(true.abs().max()))


def test_a_sum_over_pairs_that_fits_although_twice_the_sum_does_not() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 4, dtype=torch.float64)
    x *= (0.75 * torch.finfo(torch.float32).max / torch.pdist(x).square().sum()).sqrt()
    attraction, _ = pair_hinge_means(x.float(), torch.zeros(300).long(), 0.0, 1e36, "squared_l2")
    assert_close(attraction.double(), torch.pdist(x).square().mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("features", [1, 2, 8])
@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [(torch.float32, -exponent) for exponent in (33, 63, 73, 83, 100, 120)]
    + [(torch.float64, -exponent) for exponent in (500, 600, 1000)],
)
def test_small_distances_under_l2_do_not_vanish(dtype: torch.dtype, exponent: int, features: int) -> None:
    torch.manual_seed(0)
    size, labels = 2.0**exponent, torch.arange(12) % 3
    exact = torch.randn(12, features).double().requires_grad_()
    x = (exact.detach() * size).to(dtype).requires_grad_()
    terms = pair_hinge_means(x, labels, 0.0, 5 * size, "l2")
    expected = active_means(exact, labels, 0.0, 5.0, 1, torch.ones(12, dtype=torch.bool))
    for value, number in zip(terms, expected, strict=True):
        assert_close(value.item() / size, number.item(), rtol=1e-4, atol=0)
    for gradient, true in zip(gradients(terms, x), gradients(expected, exact), strict=True):
        assert_close(gradient, true, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("gap", "scale"), [(1e-39, 1.0), (1e-35, 65536.0)])
def test_gradients_of_tiny_distances_are_finite(gap: float, scale: float) -> None:
    x = torch.tensor([[1.0], [2.0], [0.0], [gap]], requires_grad=True)
    attraction, _ = pair_hinge_means(x, torch.tensor([0, 0, 1, 1]), 0.0, 0.5, "l2")
    (gradient,) = torch.autograd.grad(attraction * scale, x)
    assert_close(gradient[:, 0] / scale, torch.tensor([-0.5, 0.5, -0.5, 0.5]))


@pytest.mark.parametrize("distance", ["squared_l2", "l2"])
def test_tight_groups_are_not_listed_pair_by_pair(distance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of all pairs are closer than rounding: their differences would take a gigabyte at 512 rows."""
    torch.manual_seed(0)
    labels = torch.arange(120) % 2
    x = torch.nn.functional.normalize(torch.randn(2, 256), dim=1)[labels] + 0.03 / 16 * torch.randn(120, 256)
    found, limit, measure = [], pair_tiles.small.MOST_LISTED, pair_tiles.small._Distances.measure_again
    listed: list[int] = []

    def watched(self: pair_tiles.small._Distances, near: np.ndarray, given: np.ndarray) -> None:
        measure(self, near, given)
        listed.append(self.again[2].size)

    monkeypatch.setattr(pair_tiles.small._Distances, "measure_again", watched)
    for most in (2**30, limit):
        monkeypatch.setattr(pair_tiles.small, "MOST_LISTED", most)
        rows = x.clone().requires_grad_()
        terms = pair_hinge_means(rows, labels, 0.0, 2.0, distance)  # type: ignore[arg-type]
        found.append((*terms, *gradients(terms, rows)))
    assert len(listed) == (pair_tiles.small.SMALL > 0)  # the first time
    assert all(size > limit for size in listed)
    for some, other in zip(*found, strict=True):
        assert_close(some, other, rtol=1e-4, atol=1e-6)
