"""Rows with labels and the set that they are compared with, prepared for distances."""

from __future__ import annotations

import torch
from torch import Tensor

from ..messages import problem
from .checks import at_least_float32, check_labels, check_matrix, check_same_features, check_values, largest_magnitude
from .dependence import common_scale
from .groups import group_index


def check_sets(
    embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The reference set and its labels, the rows themselves where there is no other; raises unless all of them fit."""
    check_matrix("embeddings", embeddings)
    check_labels("labels", labels, len(embeddings))
    if ref_emb is None or (ref_emb is embeddings and ref_labels is None):
        return embeddings, labels
    if ref_labels is None:
        raise ValueError(problem("ref_labels", "given with ref_emb", "None", "pass the labels of ref_emb"))
    if ref_emb is not embeddings:
        check_matrix("ref_emb", ref_emb)
        check_values("ref_emb", ref_emb)
        check_same_features("ref_emb", ref_emb, "embeddings", embeddings)
    check_labels("ref_labels", ref_labels, len(ref_emb), of="ref_emb")
    return ref_emb, ref_labels


def labelled_sets(
    embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sets that :func:`check_sets` has passed, on one device; raises if an entry is not finite.

    Returns:
        Rows divided by a power of two, in at least float32, ``(B, D)``, and their labels, numbered from 0 over both
        sets, ``(B,)``; the same for the references, ``(R, D)`` and ``(R,)``, or the same two objects where the rows are
        their own; the power of two.
    """
    x = at_least_float32(embeddings)
    if ref_emb is embeddings and ref_labels is labels:
        scale = common_scale(largest_magnitude("embeddings", x))
        x, index = x / scale, group_index(labels.to(x.device))
        return x, index, x, index, scale
    y = at_least_float32(ref_emb).to(x)
    scale = common_scale(largest_magnitude("embeddings", x), largest_magnitude("ref_emb", y))
    both = group_index(torch.cat([labels.to(x.device), ref_labels.to(x.device)]))
    return x / scale, both[: len(x)], y / scale, both[len(x) :], scale
