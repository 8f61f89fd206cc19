"""Margins that the batch decides: a plugin for pytorch-metric-learning."""

from . import functional
from .grouping import Grouper, KMeansGrouper, OtsuGrouper
from .margins import ConstantMargin, LinearMargin, Margin

__version__ = "0.1.0"
__all__ = ["ConstantMargin", "Grouper", "KMeansGrouper", "LinearMargin", "Margin", "OtsuGrouper", "functional"]
