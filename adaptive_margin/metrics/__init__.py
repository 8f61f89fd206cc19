"""Evaluation that other libraries lack, or define differently."""

from .affect import AffectMetrics, Interval, bootstrap_interval, feasible, rmse_bounds
from .clustering import adjusted_mutual_information, kmeans, normalized_mutual_information
from .comparison import Comparison, compared, holm, paired, student_interval
from .identity_leakage import IdentityLeakage, identity_leakage
from .retrieval import RetrievalMetrics

__all__ = [
    "AffectMetrics",
    "Comparison",
    "IdentityLeakage",
    "Interval",
    "RetrievalMetrics",
    "adjusted_mutual_information",
    "bootstrap_interval",
    "compared",
    "feasible",
    "holm",
    "identity_leakage",
    "kmeans",
    "normalized_mutual_information",
    "paired",
    "rmse_bounds",
    "student_interval",
]
