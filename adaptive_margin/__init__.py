"""Margins that are computed from each batch: a plugin for pytorch-metric-learning."""

from typing import TYPE_CHECKING

from ._lazy import on_demand

if TYPE_CHECKING:
    from . import functional
    from .grouping import Grouper, KMeansGrouper, OtsuGrouper
    from .losses import AdaptiveMarginLoss, ContrastiveVDMLoss, LabelDistanceLoss
    from .margin_recorder import MarginRecorder
    from .margins import (
        AdaptiveMargin,
        AttainableRule,
        AutoRule,
        CentredKernelAlignment,
        ChernoffRule,
        ConstantMargin,
        Dependence,
        GaussianCorrelation,
        HoeffdingRule,
        Independence,
        LinearMargin,
        Margin,
        NeighbourhoodRule,
        ReleasedRule,
        RemainingRule,
    )
    from .metrics import RetrievalMetrics
    from .miners import AdaptiveMarginMiner, TiledBatchHardMiner, TiledDistanceWeightedMiner
    from .suggestion import Suggestion, suggest

__version__ = "0.1.0"
__all__ = [
    "AdaptiveMargin",
    "AdaptiveMarginLoss",
    "AdaptiveMarginMiner",
    "AttainableRule",
    "AutoRule",
    "CentredKernelAlignment",
    "ChernoffRule",
    "ConstantMargin",
    "ContrastiveVDMLoss",
    "Dependence",
    "GaussianCorrelation",
    "Grouper",
    "HoeffdingRule",
    "Independence",
    "KMeansGrouper",
    "LabelDistanceLoss",
    "LinearMargin",
    "Margin",
    "MarginRecorder",
    "NeighbourhoodRule",
    "OtsuGrouper",
    "ReleasedRule",
    "RemainingRule",
    "RetrievalMetrics",
    "Suggestion",
    "TiledBatchHardMiner",
    "TiledDistanceWeightedMiner",
    "functional",
    "suggest",
]
__getattr__ = on_demand(
    __name__,
    __all__,
    ("functional", "grouping", "losses", "margin_recorder", "margins", "metrics", "miners", "suggestion"),
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
