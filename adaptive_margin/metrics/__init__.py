"""Evaluation that others do not provide, or define differently."""

from .clustering import adjusted_mutual_information, kmeans, normalized_mutual_information
from .retrieval import RetrievalMetrics

__all__ = ["RetrievalMetrics", "adjusted_mutual_information", "kmeans", "normalized_mutual_information"]
