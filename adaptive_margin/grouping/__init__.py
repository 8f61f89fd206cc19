"""Which samples belong together: continuous labels in, groups that any loss accepts out."""

from .base import Grouper
from .kmeans_grouper import KMeansGrouper
from .otsu_grouper import OtsuGrouper

__all__ = ["Grouper", "KMeansGrouper", "OtsuGrouper"]
