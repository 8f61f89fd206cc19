"""The formulas: functions from tensors to tensors that need only torch."""

from .concordance import (
    affect_loss,
    concordance_correlation,
    pearson_correlation,
    root_mean_square_error,
    sign_agreement,
)
from .contrastive import vdm_contrastive_loss
from .dependence import (
    centred_kernel_alignment,
    class_correlations,
    gaussian_correlation,
    gaussian_kernel,
    mutual_information,
    row_correlation,
    zipped_correlation,
    zipped_kernel_alignment,
)
from .distance_weights import distance_log_weights
from .impurity import neighbourhood_impurity
from .kmeans import kmeans_centers, kmeans_threshold, kmeans_thresholds
from .label_distance import label_distance_loss, label_distance_margin
from .neighbourhood import (
    chernoff_significant,
    confidence_term,
    empirical_bias_k,
    hoeffding_significant,
    released_confidence_term,
    released_significant,
)
from .neighbours import nearest_neighbours
from .otsu import otsu_threshold, otsu_thresholds
from .pair_tiles import pair_hinge_means, pair_terms
from .pair_tiles.options import PairTerms

__all__ = [
    "PairTerms",
    "affect_loss",
    "centred_kernel_alignment",
    "chernoff_significant",
    "class_correlations",
    "concordance_correlation",
    "confidence_term",
    "distance_log_weights",
    "empirical_bias_k",
    "gaussian_correlation",
    "gaussian_kernel",
    "hoeffding_significant",
    "kmeans_centers",
    "kmeans_threshold",
    "kmeans_thresholds",
    "label_distance_loss",
    "label_distance_margin",
    "mutual_information",
    "nearest_neighbours",
    "neighbourhood_impurity",
    "otsu_threshold",
    "otsu_thresholds",
    "pair_hinge_means",
    "pair_terms",
    "pearson_correlation",
    "released_confidence_term",
    "released_significant",
    "root_mean_square_error",
    "row_correlation",
    "sign_agreement",
    "vdm_contrastive_loss",
    "zipped_correlation",
    "zipped_kernel_alignment",
]
