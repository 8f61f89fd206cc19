"""The formulas: tensors in, tensors out, nothing but torch."""

from .otsu import otsu_threshold, otsu_thresholds

__all__ = ["otsu_threshold", "otsu_thresholds"]
