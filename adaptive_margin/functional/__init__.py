"""The formulas: tensors in, tensors out, nothing but torch."""

from .distance_weights import distance_log_weights
from .neighbours import nearest_neighbours

__all__ = ["distance_log_weights", "nearest_neighbours"]
