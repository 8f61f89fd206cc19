"""A contrastive loss for continuous labels: its margin is the distance of two labels."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.reducers import MeanReducer
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from ..functional.checks import at_least_float32, check_same_features
from ..functional.label_distance import check_continuous_labels, check_label_distance, label_distance_margin
from ..margins.base import IndicesTuple
from ..messages import problem
from .batch import Batch, as_index_tuple, check_embeddings, check_index_tuple, placed


class LabelDistanceLoss(BaseMetricLossFunction):
    r"""Contrastive loss of continuous labels, over all pairs, without classes.

    .. math:: L = \operatorname{mean}_{ij} (m_{ij} - d_{ij})_+ + a \operatorname{mean}_{ij} (d_{ij} - m_{ij} - t)_+,
              \qquad m_{ij} = s\,\|y_i - y_j\|

    For regression targets, ratings, poses or ages, which pytorch-metric-learning's losses do not take. The formula is
    that of :func:`~adaptive_margin.functional.label_distance_loss`, with the distance and the reducer of your choice.

    Source: ours, after Hadsell, Chopra & LeCun 2006, with the label's distance in place of same and different.

    Args:
        scale: s, distance of embeddings per distance of labels, above 0.
        attraction: a, at least 0.
        slack: t, by how much a pair may be too far apart, at least 0, in the distance's unit.
        kwargs: the host's: ``distance`` (by default L2, of embeddings that are not normalised), ``reducer`` (by default
            the mean over pairs), ``embedding_regularizer``.

    Shapes:
        ``loss(embeddings (B, D), labels (B,) or (B, L))``; with ``ref_emb (R, D)``, ``ref_labels`` of as many columns,
        all B · R pairs count. With a tuple of pairs or triplets, the pairs in it: a miner for classes says nothing
        here, since every pair is pulled or pushed as its labels say.

    Raises:
        TypeError: embeddings or labels are no tensor, or an option is no number.
        ValueError: no labels, labels of another shape, NaN or infinity in labels or embeddings, an option out of range,
            or a similarity instead of a distance.

    Example:
        >>> loss = LabelDistanceLoss(scale=2.0)
        >>> loss(torch.tensor([[0.0], [1.0]]), torch.tensor([0.1, 0.9]))  # 2 · 0.8 − 1
        tensor(0.6000)
    """

    def __init__(self, scale: float = 1.0, attraction: float = 1.0, slack: float = 0.0, **kwargs: Any) -> None:
        check_label_distance(scale, attraction, slack)
        super().__init__(**kwargs)
        if self.distance.is_inverted:
            remedy = "use LpDistance"
            raise ValueError(problem("distance", "a distance", type(self.distance).__name__, remedy))
        self.scale, self.attraction, self.slack = scale, attraction, slack
        self.add_to_recordable_attributes(list_of_names=["scale", "attraction", "slack"], is_stat=False)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        """The loss of this batch."""
        self.reset_stats()  # the host's forward, but for its check that labels have one dimension
        check_embeddings("embeddings", embeddings)
        if ref_emb is not None:
            check_embeddings("ref_emb", ref_emb)
            check_same_features("ref_emb", ref_emb, "embeddings", embeddings)
        for name, of, rows, values in (
            ("labels", "embeddings", embeddings, labels),
            ("ref_labels", "ref_emb", ref_emb, ref_labels),
        ):
            if rows is None:
                continue
            if values is None:
                remedy = "pass one number per row, or a row of several"
                raise ValueError(problem(name, f"one for each of {len(rows)} rows", "None", remedy))
            check_continuous_labels(name, values, len(rows), of)
        assert labels is not None
        labels = labels.to(embeddings.device)
        indices_tuple = as_index_tuple(indices_tuple)
        if indices_tuple is not None:
            check_index_tuple(indices_tuple)
            indices_tuple = placed(Batch(self, embeddings, indices=indices_tuple, ref_emb=ref_emb))
        own = ref_emb is None
        others = embeddings if own else ref_emb
        other_labels = labels if own else ref_labels.to(embeddings.device)  # type: ignore[union-attr]
        losses = self.compute_loss(embeddings, labels, indices_tuple, others, other_labels)
        self.add_embedding_regularization_to_loss_dict(losses, embeddings)
        return self.reducer(losses, embeddings, labels)

    def compute_loss(
        self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Any, ref_labels: Any
    ) -> dict[str, Any]:
        """The host's dictionary of losses: ``pos_loss`` pulls pairs that are too far apart, ``neg_loss`` pushes."""
        margin = label_distance_margin(labels, self.scale, ref_labels)  # (B, R)
        if indices_tuple is None:
            pairs = torch.ones_like(margin, dtype=torch.bool)
            if ref_emb is embeddings:
                pairs.fill_diagonal_(False)
            rows, columns = torch.nonzero(pairs, as_tuple=True)
        else:
            a1, p, a2, n = lmu.convert_to_pairs(indices_tuple, labels, ref_labels)
            rows, columns = torch.cat([a1, a2]), torch.cat([p, n])
        if not len(rows):
            nothing: dict[str, Any] = self.zero_losses()
            return nothing
        z = at_least_float32(embeddings)
        other = z if ref_emb is embeddings else at_least_float32(ref_emb).to(z)
        gap = margin[rows, columns].to(z) - self.distance(z, other)[rows, columns]
        found = {"pos_loss": self.attraction * torch.relu(-gap - self.slack), "neg_loss": torch.relu(gap)}
        kinds = {"pos_loss": "pos_pair", "neg_loss": "neg_pair"}
        return {
            name: {"losses": losses, "indices": (rows, columns), "reduction_type": kinds[name]}
            for name, losses in found.items()
        }

    def get_default_distance(self) -> LpDistance:
        """L2 of the embeddings, not normalised: labels have lengths too."""
        return LpDistance(p=2, power=1, normalize_embeddings=False)

    def get_default_reducer(self) -> MeanReducer:
        """The mean over pairs."""
        return MeanReducer()

    def _sub_loss_names(self) -> list[str]:
        return ["pos_loss", "neg_loss"]

    def extra_repr(self) -> str:
        """The options, for ``print(loss)``."""
        return f"scale={self.scale}, attraction={self.attraction}, slack={self.slack}"
