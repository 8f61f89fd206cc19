"""The formulas: tensors in, tensors out, nothing but torch."""

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
from .neighbourhood import (
    chernoff_significant,
    confidence_term,
    empirical_bias_k,
    hoeffding_significant,
    released_confidence_term,
    released_significant,
)
from .pair_tiles import PairTerms, pair_hinge_means, pair_terms

__all__ = [
    "PairTerms",
    "centred_kernel_alignment",
    "chernoff_significant",
    "class_correlations",
    "confidence_term",
    "empirical_bias_k",
    "gaussian_correlation",
    "gaussian_kernel",
    "hoeffding_significant",
    "mutual_information",
    "pair_hinge_means",
    "pair_terms",
    "released_confidence_term",
    "released_significant",
    "row_correlation",
    "vdm_contrastive_loss",
    "zipped_correlation",
    "zipped_kernel_alignment",
]
