"""Groupers turn continuous labels into groups that any loss accepts."""

from .base import Grouper
from .kmeans_grouper import KMeansGrouper
from .otsu_grouper import OtsuGrouper

__all__ = ["Grouper", "KMeansGrouper", "OtsuGrouper"]
