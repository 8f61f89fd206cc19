"""For whom and for which emotions predictions are wrong."""

from __future__ import annotations

import numpy as np
import pytest

from adaptive_margin.metrics import affect_breakdown


def _labels(rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(2)
    radius = np.where(np.arange(rows) % 2, 0.8, 0.1) + random.uniform(-0.05, 0.05, rows)
    angle = random.uniform(0, 2 * np.pi, rows)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), np.arange(rows) % 2 == 1


def test_perfect_predictions() -> None:
    truth, _ = _labels()
    found = affect_breakdown(truth, truth, np.arange(60) % 5)
    assert found.strong_rmse == found.weak_rmse == found.worst_decile == 0
    assert found.strong_ccc == found.weak_ccc == pytest.approx(1)
    assert found.slope == pytest.approx((1, 1))
    assert found.offset == pytest.approx((0, 0))


def test_strong_and_weak_emotions_apart() -> None:
    truth, strong = _labels()
    found = affect_breakdown(truth, truth + 0.2 * strong[:, None])
    assert found.strong_rmse == pytest.approx(0.2)
    assert found.weak_rmse == pytest.approx(0)
    assert 0.2 < found.radius < 0.75
    assert np.isnan(found.person_error)
    assert found.to_dict()["worst_decile"] is None


def test_the_worst_tenth_of_the_people() -> None:
    truth, people = np.zeros((40, 2)), np.arange(40) // 2  # 20 people
    wrong = np.where(people < 2, 0.5, 0.1) + np.where(people == 0, 0.2, 0.0)
    found = affect_breakdown(truth, np.stack([wrong, 0 * wrong], axis=1), people)
    assert found.people == 20
    assert found.worst_decile == pytest.approx((0.7 + 0.5) / 2)
    assert found.person_error == pytest.approx((0.7 + 0.5 + 18 * 0.1) / 20)


def test_calibration() -> None:
    truth, _ = _labels()
    found = affect_breakdown(truth, np.stack([2 * truth[:, 0] + 0.1, np.full(60, 0.3)], axis=1))
    assert found.slope == pytest.approx((0.5, 0))
    assert found.offset == pytest.approx((-0.05, truth[:, 1].mean()))
