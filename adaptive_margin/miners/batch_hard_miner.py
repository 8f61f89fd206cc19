"""The hardest positive and the hardest negative of every anchor, in row tiles."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor

from ..functional.neighbours import TILE_ENTRIES, check_tile_entries, row_tiles
from ..losses.batch import as_classes
from ._inputs import check_mining, in_single_precision

STATISTICS = (
    "easiest_triplet",
    "hardest_triplet",
    "easiest_pos_pair",
    "hardest_pos_pair",
    "easiest_neg_pair",
    "hardest_neg_pair",
)


class TiledBatchHardMiner(BaseMiner):
    r"""Batch-hard mining: one triplet per anchor, with its farthest positive and its nearest negative.

    .. math:: p(a) = \arg\max_{p \ne a,\ y_p = y_a} d(a, p), \qquad n(a) = \arg\min_{y_n \ne y_a} d(a, n)

    The output of pytorch-metric-learning's ``BatchHardMiner``, for any of its distances (for a similarity, far and near
    are swapped), without the index tuples of all pairs. That miner holds four int64 indices, a mask and a copy of the
    matrix for B × R pairs; this one holds a block of rows. Ties go to the lower index. Half-precision embeddings are
    compared in float32. Anchors without a positive or without a negative are left out.

    Source: Hermans, Beyer & Leibe 2017, *In Defense of the Triplet Loss*, Eq. (5). On CUDA there is one
    synchronisation, for the number of triplets.

    Args:
        distance: the host's distance; ``LpDistance(p=2)`` without one.
        collect_stats: record the host's statistics, ``hardest_triplet`` and so on (synchronises).
        tile_entries: distances held at once.

    The call takes ``embeddings`` ``(B, D)``, ``labels`` ``(B,)`` and optionally ``ref_emb`` ``(R, D)``, ``ref_labels``
    ``(R,)``, from which positives and negatives are then taken. If ``ref_labels`` is the same tensor object as
    ``labels``, the references are the batch and an anchor is not its own positive, as in the host. It returns ``(a, p,
    n)``, three int64 tensors of shape ``(T,)``, ``T <= B``.

    Raises:
        TypeError: an embedding is not a floating-point tensor, or a label not a tensor of integers.
        ValueError: a wrong shape, a value that is not finite, references without labels, or an invalid tile size.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
        >>> TiledBatchHardMiner()(embeddings, torch.tensor([0, 0, 0, 1]))
        (tensor([0, 1, 2]), tensor([2, 2, 0]), tensor([3, 3, 3]))
    """

    def __init__(self, tile_entries: int = TILE_ENTRIES, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_tile_entries(tile_entries)
        self.tile_entries = tile_entries
        self.add_to_recordable_attributes(list_of_names=list(STATISTICS), is_stat=True)

    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The triplets ``(anchor, positive, negative)`` of this batch."""
        labels, ref_labels = as_classes(labels, ref_labels)
        check_mining(embeddings, labels, ref_emb, ref_labels)
        return super().forward(embeddings, labels, ref_emb, ref_labels)

    def mine(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The host's hook, called without gradients and with the references filled in."""
        own = ref_labels is labels
        embeddings, ref_emb = in_single_precision(embeddings, ref_emb)
        inverted = self.distance.is_inverted  # a similarity: the hardest positive is the smallest
        rows, references = len(embeddings), len(ref_emb)
        if rows == 0 or references == 0:
            return _no_triplets(embeddings)
        never_positive, never_negative = (torch.inf, -torch.inf) if inverted else (-torch.inf, torch.inf)
        positive, negative = (torch.empty(rows, dtype=torch.int64, device=embeddings.device) for _ in range(2))
        positive_distance, negative_distance = (embeddings.new_empty(rows) for _ in range(2))
        complete = torch.empty(rows, dtype=torch.bool, device=embeddings.device)  # both a positive and a negative exist
        for start, end in row_tiles(rows, references, self.tile_entries):
            # The host's products stay in single precision where the caller's forward pass is under autocast.
            with torch.autocast(embeddings.device.type, enabled=False):
                distances = self.distance(embeddings[start:end], ref_emb)  # (r, R)
            largest = torch.finfo(distances.dtype).max
            distances = distances.clamp(-largest, largest)  # SNR's of a constant row is infinite, and not masked
            same = labels[start:end].unsqueeze(1) == ref_labels.unsqueeze(0)
            among_negatives = distances.masked_fill(same, never_negative)
            complete[start:end] = (same.sum(1) > int(own)) & ~same.all(1)
            among_positives = distances.masked_fill_(same.logical_not_(), never_positive)
            if own:
                among_positives[:, start:end].fill_diagonal_(never_positive)
            for out, index, values, farthest in (
                (positive_distance, positive, among_positives, not inverted),
                (negative_distance, negative, among_negatives, inverted),
            ):
                hardest = values.max(dim=1) if farthest else values.min(dim=1)
                out[start:end], index[start:end] = hardest.values, hardest.indices
        anchor = complete.nonzero().squeeze(1)
        if self.collect_stats:
            self._record(positive_distance[anchor], negative_distance[anchor])
        return anchor, positive[anchor], negative[anchor]

    def _record(self, positive: Tensor, negative: Tensor) -> None:
        if len(positive) == 0:
            return
        easiest, hardest = (torch.max, torch.min) if self.distance.is_inverted else (torch.min, torch.max)
        self.easiest_triplet = easiest(positive - negative).item()
        self.hardest_triplet = hardest(positive - negative).item()
        self.easiest_pos_pair, self.hardest_pos_pair = easiest(positive).item(), hardest(positive).item()
        self.easiest_neg_pair, self.hardest_neg_pair = hardest(negative).item(), easiest(negative).item()


def _no_triplets(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, p, n = (torch.empty(0, dtype=torch.int64, device=like.device) for _ in range(3))
    return a, p, n
