"""Miners of pytorch-metric-learning."""

from .adaptive_margin_miner import AdaptiveMarginMiner

__all__ = ["AdaptiveMarginMiner"]
