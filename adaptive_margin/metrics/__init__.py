"""Evaluation that other libraries lack, or define differently."""

from .affect import AffectMetrics, Interval, bootstrap_interval, feasible, rmse_bounds
from .clustering import adjusted_mutual_information, kmeans, normalized_mutual_information
from .identity_leakage import IdentityLeakage, identity_leakage
from .retrieval import RetrievalMetrics
from .student import student_interval

__all__ = [
    "AffectMetrics",
    "IdentityLeakage",
    "Interval",
    "RetrievalMetrics",
    "adjusted_mutual_information",
    "bootstrap_interval",
    "feasible",
    "identity_leakage",
    "kmeans",
    "normalized_mutual_information",
    "rmse_bounds",
    "student_interval",
]
