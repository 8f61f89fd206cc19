"""Evaluation that other libraries lack, or define differently."""

from .affect import AffectMetrics, Interval, affect_intervals, bootstrap_interval, feasible, rmse_bounds
from .affect_breakdown import AffectBreakdown, affect_breakdown
from .clustering import adjusted_mutual_information, kmeans, normalized_mutual_information
from .comparison import Comparison, compared, holm, paired, student_interval
from .identity_leakage import IdentityLeakage, identity_leakage
from .retrieval import RetrievalMetrics
from .thresholds import ThresholdConsistency, operating_point_inconsistency

__all__ = [
    "AffectBreakdown",
    "AffectMetrics",
    "Comparison",
    "IdentityLeakage",
    "Interval",
    "RetrievalMetrics",
    "ThresholdConsistency",
    "adjusted_mutual_information",
    "affect_breakdown",
    "affect_intervals",
    "bootstrap_interval",
    "compared",
    "feasible",
    "holm",
    "identity_leakage",
    "kmeans",
    "normalized_mutual_information",
    "operating_point_inconsistency",
    "paired",
    "rmse_bounds",
    "student_interval",
]
