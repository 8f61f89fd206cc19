"""Adaptive margins from the literature: AdaTriplet's AutoMargin, and a dynamic soft margin that can be checkpointed."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import BaseMetricLossFunction, DynamicSoftMarginLoss
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from ..messages import problem


class AutoMarginLoss(BaseMetricLossFunction):  # type: ignore[misc] # the host is untyped
    r"""AdaTriplet with AutoMargin: a triplet loss on cosines whose two margins follow the last epoch's similarities.

    .. math:: \ell = [\phi_{an} - \phi_{ap} + \varepsilon]_+ + \lambda\,[\phi_{an} - \beta]_+, \qquad
        \varepsilon = \max\bigl(0, \tfrac1K \operatorname{mean}(\phi_{ap} - \phi_{an})\bigr), \quad
        \beta = 1 - \tfrac1{K_{an}} \bigl(1 - \operatorname{mean}\phi_{an}\bigr)

    over all triplets. Both means are over the previous ``epoch`` calls, after which the margins are updated. The first
    epoch has :math:`\varepsilon = 0` and :math:`\beta = 1`, which no similarity exceeds. Each term is averaged over the
    triplets where it is positive.

    Source: Nguyen et al., MICCAI 2022, *AdaTriplet: Adaptive Gradient Triplet Loss with Automatic Margin Learning*, and
    its authors' code. It differs in one point: the means are running sums, so that memory does not grow with the epoch.

    Args:
        epoch: calls in training mode between two updates of the margins.
        k: :math:`K`.
        k_negative: :math:`K_{an}`.
        weight: :math:`\lambda`.

    Example:
        >>> loss = AutoMarginLoss(epoch=2)
        >>> for _ in range(2):
        ...     value = loss(torch.randn(8, 4, requires_grad=True), torch.arange(8) % 2)
        >>> loss.beta < 1
        True
    """

    def __init__(self, epoch: int, k: float = 2.0, k_negative: float = 2.0, weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if epoch < 1:
            raise ValueError(problem("epoch", "at least 1 call", epoch, "pass the steps of an epoch"))
        self.epoch, self.k, self.k_negative, self.weight = epoch, k, k_negative, weight
        # epsilon, beta, sum of the gaps, sum of the negatives' similarities, triplets, calls
        self.register_buffer("state", torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64))

    @property
    def margin(self) -> float:
        """The current epsilon."""
        return float(self.state[0])

    @property
    def beta(self) -> float:
        """The current beta."""
        return float(self.state[1])

    def compute_loss(
        self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Tensor, ref_labels: Any
    ) -> dict[str, Any]:
        """The host's dictionary."""
        a, p, n = lmu.convert_to_triplets(indices_tuple, labels, ref_labels, t_per_anchor="all")
        if len(a) == 0:
            nothing: dict[str, Any] = self.zero_losses()
            return nothing
        cosine = self.distance(embeddings, ref_emb)
        gap, negative = cosine[a, p] - cosine[a, n], cosine[a, n]
        epsilon, beta = self.state[0].to(gap), self.state[1].to(gap)
        loss = _active_mean(torch.relu(epsilon - gap)) + self.weight * _active_mean(torch.relu(negative - beta))
        if self.training and torch.is_grad_enabled():
            self._remember(gap.detach(), negative.detach())
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}

    def _remember(self, gap: Tensor, negative: Tensor) -> None:
        seen = torch.stack([gap.double().sum(), negative.double().sum()])
        self.state[2:4] += seen.to(self.state)
        self.state[4] += len(gap)
        self.state[5] += 1
        if int(self.state[5]) == self.epoch:
            means = self.state[2:4] / self.state[4]
            self.state[0] = (means[0] / self.k).clamp(min=0)
            self.state[1] = 1 - (1 - means[1]) / self.k_negative
            self.state[2:] = 0

    def get_default_distance(self) -> CosineSimilarity:
        """Cosine similarity."""
        return CosineSimilarity()


class DynamicSoftMargin(DynamicSoftMarginLoss):  # type: ignore[misc]
    """pytorch-metric-learning's ``DynamicSoftMarginLoss`` with its histogram as a buffer, so that runs can resume.

    Source: Zhang & Rusinkiewicz, ICCV 2019, *Learning Local Descriptors with a CDF-Based Dynamic Soft Margin*. The host
    keeps the histogram as a plain attribute, which ``state_dict`` leaves out and which keeps the graph of every call
    alive.

    Example:
        >>> sorted(DynamicSoftMargin().state_dict())
        ['hist_']
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        histogram = self.hist_
        del self.hist_
        self.register_buffer("hist_", histogram)

    def update_histogram(self, data: Tensor) -> None:
        """The host's update of the histogram, but outside the graph and only with finite gaps within its range."""
        with torch.no_grad():
            largest = abs(self.min_val) - 1e-4 * self.delta
            super().update_histogram(data.clamp(-largest, largest - self.delta))


def _active_mean(values: Tensor) -> Tensor:
    return values.sum() / (values > 0).sum().clamp(min=1)
