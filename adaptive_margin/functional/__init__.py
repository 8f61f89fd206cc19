"""The formulas: tensors in, tensors out, nothing but torch."""

from .concordance import (
    affect_loss,
    concordance_correlation,
    pearson_correlation,
    root_mean_square_error,
    sign_agreement,
)
from .kmeans import kmeans_centers, kmeans_threshold, kmeans_thresholds
from .otsu import otsu_threshold, otsu_thresholds

__all__ = [
    "affect_loss",
    "concordance_correlation",
    "kmeans_centers",
    "kmeans_threshold",
    "kmeans_thresholds",
    "otsu_threshold",
    "otsu_thresholds",
    "pearson_correlation",
    "root_mean_square_error",
    "sign_agreement",
]
