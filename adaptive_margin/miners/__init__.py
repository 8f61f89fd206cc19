"""Miners with the host's interface, whose memory grows with the batch and not with its square."""

from .batch_hard_miner import TiledBatchHardMiner
from .distance_weighted_miner import TiledDistanceWeightedMiner

__all__ = ["TiledBatchHardMiner", "TiledDistanceWeightedMiner"]
