"""Margins that the batch decides: a plugin for pytorch-metric-learning."""

from . import functional
from .grouping import Grouper, KMeansGrouper, OtsuGrouper
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
from .metrics import RetrievalMetrics
from .miners import AdaptiveMarginMiner, TiledBatchHardMiner, TiledDistanceWeightedMiner

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
    "Grouper",
    "HoeffdingRule",
    "KMeansGrouper",
    "LinearMargin",
    "Margin",
    "NeighbourhoodRule",
    "OtsuGrouper",
    "ReleasedRule",
    "RetrievalMetrics",
    "TiledBatchHardMiner",
    "TiledDistanceWeightedMiner",
    "functional",
]
