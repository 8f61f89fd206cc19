"""Margins that the batch decides: a plugin for pytorch-metric-learning."""

from . import functional
from .margins import ConstantMargin, LinearMargin, Margin

__version__ = "0.1.0"
__all__ = ["ConstantMargin", "LinearMargin", "Margin", "functional"]
