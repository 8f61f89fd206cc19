from __future__ import annotations

import pytest
import torch

from adaptive_margin import KMeansGrouper, OtsuGrouper
from adaptive_margin import functional as F


@pytest.mark.parametrize(
    ("k", "radius", "groups"),
    [
        # 0 1 | 8 9 | 20, then by two: 0 1 8 9 (4.5) | 20; and five clusters for five values
        (2, (4.5 + 20) / 2, [0, 0, 0, 0, 1]),
        (3, (0.5 + 8.5 + 20) / 3, [0, 0, 0, 0, 1]),
        (5, 38 / 5, [0, 0, 1, 1, 1]),
        (9, 38 / 5, [0, 0, 1, 1, 1]),
    ],
)
def test_worked_by_hand(k, radius, groups):
    grouper = KMeansGrouper(k=k)
    assert grouper(torch.tensor([0.0, 1.0, -8.0, 9.0, -20.0])).tolist() == groups
    assert grouper.radius == pytest.approx(radius)


def test_radius_of_two_labels():
    grouper = KMeansGrouper(k=2)
    # |arousal| 0 0 | 6, centres 0 and 6; |valence| 1 1 | 7, centres 1 and 7
    assert grouper(torch.tensor([[0.0, 1.0], [0.0, -1.0], [6.0, 7.0]])).tolist() == [0, 0, 1]
    assert grouper.thresholds.tolist() == [3.0, 4.0]
    assert grouper.radius == 5.0


@pytest.mark.parametrize("k", [2, 3, 5])
def test_thresholds_are_those_of_each_label(k):
    av = torch.randn(64, 3)
    grouper = KMeansGrouper(k=k, magnitude=False)
    grouper(av)
    assert torch.equal(grouper.thresholds, F.kmeans_thresholds(av, k))
    for column, threshold in zip(av.T, grouper.thresholds, strict=True):
        assert threshold.item() == pytest.approx(F.kmeans_centers(column, k).mean().item(), abs=1e-6)


def test_two_clusters_nearly_agree_with_otsu():
    """The same two clusters; the threshold is half way between their means instead of their nearest members."""
    av = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    agree = (KMeansGrouper(k=2)(av) == OtsuGrouper()(av)).double().mean()
    assert agree > 0.97


@pytest.mark.parametrize("k", [1, 0, -2, 2.0, None])
def test_bad_k(k):
    with pytest.raises(ValueError, match="k must be an integer of at least 2, got"):
        KMeansGrouper(k=k)


def test_prints_its_options():
    assert repr(KMeansGrouper(k=3)) == "KMeansGrouper(k=3, magnitude=True, on_empty='median', max_radius=None)"
