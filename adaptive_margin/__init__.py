"""Margins that the batch decides: a plugin for pytorch-metric-learning."""

from . import functional
from .losses import AdaptiveMarginLoss, ContrastiveVDMLoss
from .margins import (
    AdaptiveMargin,
    CentredKernelAlignment,
    ChernoffRule,
    ConstantMargin,
    Dependence,
    GaussianCorrelation,
    HoeffdingRule,
    LinearMargin,
    Margin,
    NeighbourhoodRule,
    ReleasedRule,
)
from .miners import AdaptiveMarginMiner

__version__ = "0.1.0"
__all__ = [
    "AdaptiveMargin",
    "AdaptiveMarginLoss",
    "AdaptiveMarginMiner",
    "CentredKernelAlignment",
    "ChernoffRule",
    "ConstantMargin",
    "ContrastiveVDMLoss",
    "Dependence",
    "GaussianCorrelation",
    "HoeffdingRule",
    "LinearMargin",
    "Margin",
    "NeighbourhoodRule",
    "ReleasedRule",
    "functional",
]
