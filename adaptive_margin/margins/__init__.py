"""How large a margin is: modules that look at the batch and say."""

from .adaptive_margin import AdaptiveMargin
from .base import Margin
from .constant_margin import ConstantMargin
from .dependence import CentredKernelAlignment, Dependence, GaussianCorrelation
from .linear_margin import LinearMargin
from .neighbourhood import ChernoffRule, HoeffdingRule, NeighbourhoodRule, ReleasedRule

__all__ = [
    "AdaptiveMargin",
    "CentredKernelAlignment",
    "ChernoffRule",
    "ConstantMargin",
    "Dependence",
    "GaussianCorrelation",
    "HoeffdingRule",
    "LinearMargin",
    "Margin",
    "NeighbourhoodRule",
    "ReleasedRule",
]
