"""The formulas: tensors in, tensors out, nothing but torch."""

from .neighbours import nearest_neighbours

__all__ = ["nearest_neighbours"]
