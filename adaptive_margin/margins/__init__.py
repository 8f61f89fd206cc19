"""Modules that compute how large a margin is, from the batch."""

from .adaptive_margin import AdaptiveMargin
from .base import Margin
from .constant_margin import ConstantMargin
from .dependence import CentredKernelAlignment, Dependence, GaussianCorrelation, Independence
from .linear_margin import LinearMargin
from .neighbourhood import (
    AttainableRule,
    AutoRule,
    ChernoffRule,
    HoeffdingRule,
    NeighbourhoodRule,
    ReleasedRule,
    RemainingRule,
)

__all__ = [
    "AdaptiveMargin",
    "AttainableRule",
    "AutoRule",
    "CentredKernelAlignment",
    "ChernoffRule",
    "ConstantMargin",
    "Dependence",
    "GaussianCorrelation",
    "HoeffdingRule",
    "Independence",
    "LinearMargin",
    "Margin",
    "NeighbourhoodRule",
    "ReleasedRule",
    "RemainingRule",
]
