"""A batch as the adaptive margin computes with it: checked, scaled, labels numbered, mapped through the Gaussian."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional.checks import check_indices
from ..functional.dependence import Bandwidth, scaled_gaussian_kernel, unit_rows
from ..functional.groups import group_slots
from ..functional.labelled_sets import check_sets, labelled_sets
from ..functional.small_batch import SmallBatch
from ..messages import problem
from .base import IndicesTuple

Pairs = tuple[Tensor, Tensor]
"""Anchors and negatives of an index tuple."""


@dataclass(eq=False)  # not frozen: torch.compile cannot follow that before 2.9
class PreparedBatch:
    """Rows, their reference set (themselves, where there is no other), and the pairs of an index tuple.

    Attributes:
        x: embeddings divided by a power of two, at least float32, shape ``(B, D)``.
        index: labels numbered from 0 over rows and references together, shape ``(B,)``.
        g: the rows mapped through the Gaussian, shape ``(B, D)``.
        y: the reference set, shape ``(R, D)``.
        ref_index: its labels, shape ``(R,)``.
        ref_g: the same mapped, shape ``(R, D)``.
        pairs: the (anchor, negative) pairs to compare instead of classes; None without an index tuple.
    """

    x: Tensor
    index: Tensor
    g: Tensor
    y: Tensor
    ref_index: Tensor
    ref_g: Tensor
    pairs: Pairs | None

    @property
    def empty(self) -> bool:
        """Whether there are no rows, or no references."""
        return len(self.x) == 0 or len(self.y) == 0

    @property
    def classes(self) -> int:
        """How many labels to allocate for, at least 1."""
        both = self.index if self.y is self.x else torch.cat([self.index, self.ref_index])
        return max(1, group_slots(both, len(self.x) + len(self.y)))

    def as_tensor(self, value: float | Tensor) -> Tensor:
        """A margin of this batch, a tensor already."""
        return torch.as_tensor(value)

    def anchors(self) -> Tensor:
        """The anchor of each (anchor, negative) pair: of the index tuple's, or of all pairs of different labels."""
        return self._different().nonzero()[:, 0] if self.pairs is None else self.pairs[0]

    def pair_correlations(self) -> Tensor:
        """The correlation of the two rows of g of each such pair."""
        unit, ref_unit = unit_rows(self.g), unit_rows(self.ref_g)
        if self.pairs is None:
            return (unit @ ref_unit.T)[self._different()].clamp(-1, 1)
        parts = zip(*(torch.split(rows, 2**14) for rows in self.pairs), strict=True)
        return torch.cat([(unit[a] * ref_unit[n]).sum(1) for a, n in parts]).clamp(-1, 1)

    def _different(self) -> Tensor:
        return self.index[:, None] != self.ref_index  # (B, R)


def prepare(
    embeddings: Tensor,
    labels: Tensor | None,
    indices_tuple: IndicesTuple | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    detach: bool,
    bandwidth: Bandwidth,
    small: bool,
) -> PreparedBatch | SmallBatch:
    """A batch from the arguments of a margin, or an error that names one of them.

    ``detach`` if the margin has no gradient, ``small`` if a batch for which numpy is faster may be prepared for it.
    """
    if labels is None:
        remedy = "the margin compares groups; for continuous targets make some with OtsuGrouper"
        raise ValueError(problem("labels", "given", "None", remedy))
    ref_emb, ref_labels = check_sets(embeddings, labels, ref_emb, ref_labels)
    pairs = None if indices_tuple is None else _pairs_of(indices_tuple, embeddings, ref_emb)
    rows = embeddings.detach() if detach else embeddings
    ref_rows = rows if ref_emb is embeddings else ref_emb.detach() if detach else ref_emb
    if small and pairs is None and ref_rows is rows and ref_labels is labels and SmallBatch.suits(rows):
        return SmallBatch(rows, labels.to(rows.device))
    x, index, y, ref_index, scale = labelled_sets(rows, labels, ref_rows, ref_labels)
    if y is x:
        (g,) = (ref_g,) = scaled_gaussian_kernel((x,), scale, bandwidth)
    else:
        g, ref_g = scaled_gaussian_kernel((x, y), scale, bandwidth)
    return PreparedBatch(x, index, g, y, ref_index, ref_g, pairs)


def _pairs_of(indices_tuple: IndicesTuple, embeddings: Tensor, ref_emb: Tensor) -> Pairs:
    """(anchor, negative) of triplets (a, p, n) or pairs (a1, p, a2, n)."""
    expected = "triplets (a, p, n) or pairs (a1, p, a2, n)"
    if not isinstance(indices_tuple, (tuple, list)):  # torch 2.6 does not compile a union
        raise TypeError(problem("indices_tuple", expected, type(indices_tuple).__name__, "pass a miner's output"))
    if len(indices_tuple) not in (3, 4):
        raise ValueError(problem("indices_tuple", expected, f"{len(indices_tuple)} tensors", "pass a miner's output"))
    anchors, negatives = indices_tuple[-2 if len(indices_tuple) == 4 else 0], indices_tuple[-1]
    check_indices("indices_tuple's anchors", anchors, len(embeddings))
    check_indices(
        "indices_tuple's negatives", negatives, len(ref_emb), of="embeddings" if ref_emb is embeddings else "ref_emb"
    )
    if len(anchors) != len(negatives):
        got = f"{len(anchors)} anchors and {len(negatives)} negatives"
        raise ValueError(problem("indices_tuple", "one negative an anchor", got, "pass a miner's output"))
    if anchors.device != embeddings.device:
        remedy = "move it to the embeddings' device"
        raise ValueError(problem("indices_tuple", f"on {embeddings.device}", anchors.device, remedy))
    return anchors, negatives
