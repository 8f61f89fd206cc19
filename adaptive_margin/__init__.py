"""Margins that the batch decides: a plugin for pytorch-metric-learning."""

from . import functional
from .margins import ConstantMargin, LinearMargin, Margin
from .metrics import RetrievalMetrics
from .miners import TiledBatchHardMiner, TiledDistanceWeightedMiner

__version__ = "0.1.0"
__all__ = [
    "ConstantMargin",
    "LinearMargin",
    "Margin",
    "RetrievalMetrics",
    "TiledBatchHardMiner",
    "TiledDistanceWeightedMiner",
    "functional",
]
