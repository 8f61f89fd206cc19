"""Miners of pytorch-metric-learning."""

from .adaptive_margin_miner import AdaptiveMarginMiner
from .batch_hard_miner import TiledBatchHardMiner
from .distance_weighted_miner import TiledDistanceWeightedMiner

__all__ = ["AdaptiveMarginMiner", "TiledBatchHardMiner", "TiledDistanceWeightedMiner"]
