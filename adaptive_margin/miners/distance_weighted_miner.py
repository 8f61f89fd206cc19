"""Negatives drawn evenly over all distances, in row tiles."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor

from ..functional.distance_weights import check_cutoffs, distance_log_weights
from ..functional.neighbours import check_tile_entries, row_tiles
from ..losses.batch import as_classes
from ..messages import problem
from ._inputs import check_mining, in_single_precision

TILE_ENTRIES = 1 << 21  # an entry takes about 40 bytes here: its distance, weight and cumulative weight


class TiledDistanceWeightedMiner(BaseMiner):
    r"""Distance-weighted sampling: each negative with probability proportional to :math:`1 / q(d)`.

    .. math:: P(n \mid a) \propto q(d_{an})^{-1}, \qquad q(r) = r^{D - 2} \bigl(1 - \tfrac14 r^2\bigr)^{(D - 3) / 2}

    Source: Wu, Manmatha, Smola & Krähenbühl 2017, *Sampling Matters in Deep Embedding Learning*, section 4; the
    weights are :func:`~adaptive_margin.functional.distance_log_weights`. The draws are independent, with replacement.
    It differs from pytorch-metric-learning's ``DistanceWeightedMiner`` in these points:

    - The class is masked before the maximum is subtracted, and the maximum is that of the row: no row underflows to a
      sum of zero, and opposite points do not give infinity.
    - An anchor whose negatives are all at or beyond ``nonzero_loss_cutoff`` draws among them uniformly. The host drops
      it; the authors' code draws among all samples, including its own class.
    - By default each anchor is paired with each of its positives once, :math:`k - 1` triplets for :math:`k` images per
      class, as in the authors' code. The host draws :math:`k` positives with replacement.
    - No loop over classes, no B × R weights: a block of rows at a time.

    The random numbers come from torch's global generator of the embeddings' device, at most two per triplet, all before
    the first tile: a seed gives the same triplets for every tile size. Weights below :math:`2^{-40}` of the row's
    largest are zero. On CUDA there is one synchronisation, for the number of triplets.

    Args:
        cutoff: distances below it count as equal to it, in [0, 1.999): it bounds the variance of the draws.
        nonzero_loss_cutoff: negatives at this distance or farther are not drawn (if there are others); None: no limit.
            At or below ``cutoff`` all remaining distances count as equal, so the draw is uniform. The default suits a
            margin loss with beta 1.2 and margin 0.2, where farther negatives have no loss.
        triplets_per_anchor: None: one for each positive; or a number of triplets, whose positives are drawn uniformly
            with replacement.
        distance: ``LpDistance(p=2)``, the only distance for which :math:`q` is valid: that of unit vectors.
        collect_stats: record the host's statistics.
        tile_entries: distances held at once.

    The call takes ``embeddings`` ``(B, D)``, ``labels`` ``(B,)`` and optionally ``ref_emb`` ``(R, D)``, ``ref_labels``
    ``(R,)``, from which positives and negatives are then taken. If ``ref_labels`` is the same tensor object as
    ``labels``, the references are the batch and an anchor is not its own positive, as in the host. It returns ``(a, p,
    n)``, three int64 tensors of shape ``(T,)``, anchors ascending. Anchors without a positive or without a sample of
    another class are left out.

    Raises:
        TypeError: the distance is not an ``LpDistance``, an embedding not a floating-point tensor, or a label not a
            tensor of integers.
        ValueError: an invalid cutoff or distance option, a wrong shape, a value that is not finite, or references
            without labels.

    Example:
        >>> embeddings, labels = torch.randn(6, 16), torch.tensor([0, 0, 0, 1, 1, 2])
        >>> a, p, n = TiledDistanceWeightedMiner()(embeddings, labels)
        >>> a, p
        (tensor([0, 0, 1, 1, 2, 2, 3, 4]), tensor([1, 2, 0, 2, 0, 1, 4, 3]))
        >>> bool((labels[n] != labels[a]).all())
        True
    """

    def __init__(
        self,
        cutoff: float = 0.5,
        nonzero_loss_cutoff: float | None = 1.4,
        triplets_per_anchor: int | None = None,
        tile_entries: int = TILE_ENTRIES,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_cutoffs(cutoff, nonzero_loss_cutoff)
        if triplets_per_anchor is not None and (
            isinstance(triplets_per_anchor, bool) or not isinstance(triplets_per_anchor, int) or triplets_per_anchor < 1
        ):
            expected, remedy = "an integer >= 1 or None", "None makes one for each positive"
            raise ValueError(problem("triplets_per_anchor", expected, repr(triplets_per_anchor), remedy))
        check_tile_entries(tile_entries)
        _check_distance(self.distance)
        self.cutoff = float(cutoff)
        self.nonzero_loss_cutoff = None if nonzero_loss_cutoff is None else float(nonzero_loss_cutoff)
        self.triplets_per_anchor = triplets_per_anchor
        self.tile_entries = tile_entries
        self.add_to_recordable_attributes(list_of_names=["cutoff", "nonzero_loss_cutoff"], is_stat=False)

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
        tiles = list(row_tiles(len(embeddings), len(ref_emb), self.tile_entries))
        anchors, positives, ends = self._pairs(labels, ref_labels, own, tiles)
        negatives = torch.empty_like(anchors)
        uniforms = torch.rand(len(anchors), dtype=torch.float64, device=anchors.device)
        begin = 0
        for (start, stop), end in zip(tiles, ends, strict=True):
            if end > begin:
                weights = self._weights(embeddings[start:stop], labels[start:stop], ref_emb, ref_labels)
                negatives[begin:end] = draw(weights, anchors[begin:end] - start, uniforms[begin:end])
            begin = end
        return anchors, positives, negatives

    def _pairs(
        self, labels: Tensor, ref_labels: Tensor, own: bool, tiles: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Every anchor with its positives, and the cumulative number of pairs at the end of every tile."""
        by_class = ref_labels.argsort(stable=True)  # a class is one run of references, ascending
        ordered = ref_labels[by_class]
        first = torch.searchsorted(ordered, labels)  # (B,)
        size = torch.searchsorted(ordered, labels, right=True) - first
        positives = size - int(own)
        drawn = positives if self.triplets_per_anchor is None else torch.full_like(size, self.triplets_per_anchor)
        drawn = torch.where((positives > 0) & (size < len(ref_labels)), drawn, 0)
        until = drawn.cumsum(0)
        step = tiles[0][1] if tiles else 1
        ends: list[int] = torch.cat([until[step - 1 : -1 : step], until[-1:]]).tolist()  # the one synchronisation
        total = ends[-1] if ends else 0
        anchors = torch.arange(len(labels), device=labels.device).repeat_interleave(drawn, output_size=total)  # (T,)
        if self.triplets_per_anchor is None:
            at = torch.arange(total, device=labels.device) - (until - drawn)[anchors]
        else:
            uniforms = torch.rand(total, dtype=torch.float64, device=labels.device)
            at = (uniforms * positives[anchors]).long()  # below positives: double has room for 1 - 2^-53 times it
        if own:
            place = torch.empty_like(by_class)
            place[by_class] = torch.arange(len(by_class), device=labels.device)
            at += at >= (place - first)[anchors]  # step over the anchor itself
        return anchors, by_class[first[anchors] + at], ends

    def _weights(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Tensor:
        """Weights of one tile of rows, ``(r, R)``, scaled so that the largest of every row is 1.

        A row without a negative would be NaN. This cannot happen here: all references would then be of one class,
        anchors of other classes would have no positive, and no triplet would be drawn at all.
        """
        distances = self.distance(embeddings, ref_emb)  # cdist: float32 under autocast too
        different = labels.unsqueeze(1) != ref_labels.unsqueeze(0)
        dimension = embeddings.shape[1]
        log_weights = distance_log_weights(distances, different, dimension, self.cutoff, self.nonzero_loss_cutoff)
        largest = log_weights.amax(dim=1, keepdim=True)
        return log_weights.sub_(largest).exp_()


def draw(weights: Tensor, rows: Tensor, uniforms: Tensor) -> Tensor:
    """One column for each of ``rows``, with probability proportional to its weight, by inverting the cumulative sum.

    The sum is computed in integers, of weights in units of ``2**-bits``. It is exact for any order of a parallel sum,
    so a column of weight zero can never be drawn. ``weights`` ``(r, R)`` in [0, 1]; the result has the shape of
    ``rows``. A row whose weights are all zero must not be requested.

    Example:
        >>> weights = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
        >>> draw(weights, torch.tensor([0, 0, 1]), torch.tensor([0.4, 0.6, 0.9]))
        tensor([0, 2, 1])
    """
    columns = weights.shape[1]
    bits = min(40, 62 - (weights.numel() - 1).bit_length())  # the sum over the tile stays below 2^63
    cumulative = weights.double().mul_(2.0**bits).long().flatten().cumsum(0)  # (r·R,)
    upper = cumulative[columns - 1 :: columns]  # (r,)
    lower = torch.cat([upper.new_zeros(1), upper[:-1]])
    total = (upper - lower)[rows]
    target = (uniforms.double() * total).long() + lower[rows]  # u <= 1 - 2^-53: the product stays below the total
    return torch.searchsorted(cumulative, target, right=True) - rows * columns


def _check_distance(distance: object) -> None:
    remedy = "pass distance=LpDistance(p=2) or none"
    if not isinstance(distance, LpDistance):
        raise TypeError(problem("distance", "an LpDistance", type(distance).__name__, remedy))
    got = {name: getattr(distance, name) for name in ("p", "power", "normalize_embeddings")}
    if got != {"p": 2, "power": 1, "normalize_embeddings": True}:
        raise ValueError(problem("distance", "L2 between unit vectors: p=2, power=1, normalised", got, remedy))
