"""OPIS: numbers worked by hand, a slow reference, and edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adaptive_margin.metrics import operating_point_inconsistency


def slow(x: torch.Tensor, labels: torch.Tensor, false_accepts: tuple[float, float], thresholds: int) -> float:
    """Pair by pair, threshold by threshold."""
    distance, n = torch.cdist(x, x), len(x)
    between = sorted(float(distance[i, j]) for i in range(n) for j in range(n) if labels[i] != labels[j])
    low, high = (between[int(np.ceil(share * len(between))) - 1] for share in false_accepts)
    classes = [c for c in labels.unique().tolist() if int((labels == c).sum()) > 1]
    variances = []
    for d in np.linspace(low, high, thresholds):
        utilities = []
        for c in classes:
            rows = [i for i in range(n) if labels[i] == c]
            own = [float(distance[i, j]) <= d for i in rows for j in rows if i != j]
            other = [float(distance[i, j]) > d for i in rows for j in range(n) if labels[j] != c]
            accept, reject = float(np.mean(own)), float(np.mean(other))
            utilities.append(2 * accept * reject / (accept + reject) if accept + reject else 0.0)
        variances.append(np.var(utilities))
    return float(np.mean(variances))


def test_by_hand() -> None:
    """Between: 3, 4, 5, 6 each twice. At d = 3 and 4, class 0 (own 1): accepts 1; class 1 (own 2): accepts 1.

    Row 0 at 0, 1 | 5, 7 → between 5, 7, 4, 6; thresholds 4 (a quarter accepted) and 5 (a half).
    """
    x = torch.tensor([[0.0], [1.0], [5.0], [7.0]], dtype=torch.float64)
    found = operating_point_inconsistency(x, torch.tensor([4, 4, 9, 9]), false_accepts=(0.25, 0.5), thresholds=2)
    assert (found.low, found.high, found.best, found.classes) == (4.0, 5.0, 4.0, 2)
    assert found.opis == 0  # both accept all of their own, and reject 3/4, then 1/2
    assert found.utility == pytest.approx(2 * 0.75 / 1.75)
    wider = torch.tensor([[0.0], [1.0], [5.0], [9.5]], dtype=torch.float64)  # within 1, 4.5; between 5, 9.5, 4, 8.5
    found = operating_point_inconsistency(wider, torch.tensor([4, 4, 9, 9]), false_accepts=(0.25, 0.5), thresholds=2)
    first, second = 2 * 0.75 / 1.75, 2 * 0.5 / 1.5  # at 4 class 9 accepts nothing: utility 0; at 5 both are equal
    assert found.opis == pytest.approx(((first / 2) ** 2 + 0) / 2)
    assert found.best == 5.0
    assert found.utility == pytest.approx(second)


@pytest.mark.parametrize("seed", range(3))
def test_matches_the_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 9, (40,), generator=generator)
    labels[0] = 77  # alone
    found = operating_point_inconsistency(x + labels[:, None] / 4, labels, false_accepts=(0.05, 0.3), thresholds=7)
    assert found.opis == pytest.approx(slow(x + labels[:, None] / 4, labels, (0.05, 0.3), 7), rel=1e-9)


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(50) % 7
    whole = operating_point_inconsistency(x, labels)
    monkeypatch.setattr("adaptive_margin.metrics.thresholds.ENTRIES", 150)
    tiled = operating_point_inconsistency(x, labels)
    assert tiled.opis == pytest.approx(whole.opis, rel=1e-9)
    assert tiled.classes == whole.classes


def test_identical_rows_are_finite() -> None:
    found = operating_point_inconsistency(torch.zeros(8, 2), torch.arange(8) % 2)
    assert (found.opis, found.utility, found.low) == (0.0, 0.0, 0.0)
