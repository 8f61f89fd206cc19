"""Losses of pytorch-metric-learning with a margin that the batch decides."""

from .adaptive_margin_loss import AdaptiveMarginLoss

__all__ = ["AdaptiveMarginLoss"]
