"""The input checks of both miners."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional.checks import check_finite
from ..functional.labelled_sets import check_sets
from ..messages import problem


def check_mining(embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None) -> None:
    """Raises a TypeError or a ValueError that names the argument, before the host gets it."""
    if (ref_emb is None) != (ref_labels is None):
        remedy = "the labels of the references say which of them are positives"
        raise ValueError(problem("ref_emb, ref_labels", "given together or not at all", "only one of them", remedy))
    check_sets(embeddings, labels, ref_emb, ref_labels)
    check_finite("embeddings", embeddings)
    if ref_emb is not None:
        check_finite("ref_emb", ref_emb)


def in_single_precision(embeddings: Tensor, ref_emb: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype, half precision as float32: the host's distances have no half-precision path."""
    dtype = torch.promote_types(torch.promote_types(embeddings.dtype, ref_emb.dtype), torch.float32)
    return embeddings.to(dtype), ref_emb.to(dtype)
