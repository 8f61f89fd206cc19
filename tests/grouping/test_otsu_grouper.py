from __future__ import annotations

import math

import pytest
import torch

from adaptive_margin import OtsuGrouper
from adaptive_margin import functional as F


def test_worked_by_hand():
    # |arousal| 0.1 0.9 0.0 0.7: cut between 0.1 and 0.7; |valence| 0.1 0.8 0.2 0.9: between 0.2 and 0.8
    av = torch.tensor([[0.1, 0.1], [-0.9, 0.8], [0.0, 0.2], [0.7, -0.9]])
    grouper = OtsuGrouper()
    assert grouper(av).tolist() == [0, 1, 0, 1]
    assert grouper.thresholds.tolist() == pytest.approx([0.4, 0.5])
    assert grouper.radius == pytest.approx(math.sqrt(0.4**2 + 0.5**2))


def test_the_literal_reading_cuts_signed_labels_near_zero():
    # arousal −0.9 0.0 0.1 0.7: cut between −0.9 and 0.0 (δ = −0.45); valence −0.9 0.1 0.2 0.8: at −0.4
    av = torch.tensor([[0.1, 0.1], [-0.9, 0.8], [0.0, 0.2], [0.7, -0.9]])
    grouper = OtsuGrouper(magnitude=False)
    assert grouper(av).tolist() == [0, 1, 0, 1]
    assert grouper.thresholds.tolist() == pytest.approx([-0.45, -0.4])
    assert grouper.radius == pytest.approx(math.hypot(0.45, 0.4))


def test_symmetric_labels_are_nearly_all_strong_in_the_literal_reading():
    av = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).clamp(-2, 2) / 2.5
    literal, magnitude = OtsuGrouper(magnitude=False), OtsuGrouper()
    assert literal(av).double().mean() > 0.95
    assert 0.2 < magnitude(av).double().mean() < 0.6
    assert literal.radius < 0.1 < magnitude.radius


def test_thresholds_are_those_of_each_label():
    av = torch.randn(64, 3)
    grouper = OtsuGrouper()
    grouper(av)
    assert torch.equal(grouper.thresholds, F.otsu_thresholds(av.abs()))
    assert grouper.radius == pytest.approx(grouper.thresholds.norm().item(), rel=1e-6)


def test_thresholds_follow_each_batch():
    grouper = OtsuGrouper()
    grouper([0.0, 1.0])
    grouper([0.0, 4.0])
    assert grouper.radius == 2.0


def test_bins():
    av = torch.randn(500, 2)
    grouper = OtsuGrouper(bins=16)
    groups = grouper(av)
    assert torch.equal(grouper.thresholds, F.otsu_thresholds(av.abs(), bins=16))
    assert not torch.equal(grouper.thresholds, F.otsu_thresholds(av.abs()))
    assert 0 < groups.sum() < 500
    with pytest.raises(ValueError, match="bins must be at least 2, or None, got 1"):
        OtsuGrouper(bins=1)


def test_before_the_first_call():
    grouper = OtsuGrouper()
    assert grouper.radius == 0.0
    assert grouper.thresholds.tolist() == [0.0]


def test_prints_its_options():
    expected = "OtsuGrouper(magnitude=True, on_empty='keep', max_radius=1.0, bins=None)"
    assert repr(OtsuGrouper(on_empty="keep", max_radius=1.0)) == expected
