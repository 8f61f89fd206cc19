"""Losses of pytorch-metric-learning with an adaptive margin."""

from .adaptive_margin_loss import AdaptiveMarginLoss
from .contrastive_vdm_loss import ContrastiveVDMLoss
from .label_distance_loss import LabelDistanceLoss

__all__ = ["AdaptiveMarginLoss", "ContrastiveVDMLoss", "LabelDistanceLoss"]
