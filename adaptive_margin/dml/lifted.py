"""The host's lifted structure loss, computed pair by pair."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.losses import LiftedStructureLoss
from torch import Tensor


class PairwiseLiftedStructureLoss(LiftedStructureLoss):  # type: ignore[misc]
    r"""Lifted structure loss with the sum over negatives computed once per anchor.

    .. math:: \ell_{ij} = \tfrac12 \max(0,\ D_{ij} - m^+ + \log(S_i + S_j))^2, \qquad
        S_i = \sum_{(i,k) \in \mathcal{N}} e^{m - D_{ik}}

    The host forms a matrix of every positive pair by every negative pair; with 16 images in each of 8 classes that is
    1,920 by 14,336 entries per step. Each of the two sums depends on one anchor, so here it is computed once per
    anchor. This gives the same value up to rounding, in the time of a distance matrix. Source: Oh Song et al. 2016, Eq.
    (4), in the host's form. Arguments are those of the host.

    Example:
        >>> x, y = torch.nn.functional.normalize(torch.randn(12, 4), dim=1), torch.arange(12) % 3
        >>> torch.allclose(PairwiseLiftedStructureLoss()(x, y), LiftedStructureLoss()(x, y))
        True
    """

    def _compute_loss(self, pos_pairs: Tensor, neg_pairs: Tensor, indices_tuple: Any) -> Any:
        anchors, positives, others, _ = indices_tuple
        if len(anchors) == 0 or len(others) == 0:
            return self.zero_losses()
        count = 1 + int(torch.stack([part.max() for part in (anchors, positives, others)]).max())
        gaps = self.distance.margin(self.neg_margin, neg_pairs)  # (N,), m - D in the distance's own sense
        sums = _logsumexp(gaps, others, count)  # (count,)
        both = torch.logaddexp(sums[anchors], sums[positives])
        both = torch.where(anchors == positives, sums[anchors], both)  # a reference may have an anchor's number
        has = torch.zeros(count, dtype=torch.bool, device=others.device).index_fill_(0, others, True)
        both = both.masked_fill(~(has[anchors] | has[positives]), 0)  # as in the host, if a pair has no negative
        losses = torch.relu(both + self.distance.margin(pos_pairs, self.pos_margin)) ** 2 / 2  # each pair comes twice
        return {"loss": {"losses": losses, "indices": (anchors, positives), "reduction_type": "pos_pair"}}


def _logsumexp(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Logarithm of the sum of exponentials in each group, shape ``(count,)``; a very small value for an empty group."""
    lowest = torch.finfo(values.dtype).min / 4
    top = values.detach().new_full((count,), lowest).scatter_reduce(0, groups, values.detach(), "amax")
    total = torch.zeros_like(top).index_add(0, groups, (values - top[groups]).exp())
    return torch.where(total > 0, total, 1).log() + top
