"""The formulas: tensors in, tensors out, nothing but torch."""

from .kmeans import kmeans_centers, kmeans_threshold, kmeans_thresholds
from .otsu import otsu_threshold, otsu_thresholds

__all__ = ["kmeans_centers", "kmeans_threshold", "kmeans_thresholds", "otsu_threshold", "otsu_thresholds"]
