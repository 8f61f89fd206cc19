"""The paper's loss: a contrastive loss that is a variational bound on the divergence of two groups."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction, ContrastiveLoss
from pytorch_metric_learning.reducers import AvgNonZeroReducer, DoNothingReducer, MeanReducer, MultipleReducers
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from ..choices import Regularizer
from ..functional.checks import at_least_float32, check_number, is_blind, is_transforming
from ..functional.contrastive import FISHER_PENALTY, check_options, multiplier_step, regularization
from ..functional.pair_tiles import terms_of
from ..functional.pair_tiles.options import Options, PairTerms
from ..functional.pair_tiles.rows import ties_of_pairs
from ..functional.small_distances import shared_distances
from ..margins import Margin
from ..margins.base import IndicesTuple
from ..messages import check_choice, problem
from .batch import Batch
from .contrastive_in_tiles import (
    CHOICES,
    PairMemory,
    SumOfReduced,
    already_reduced,
    distance_in_tiles,
    tell_statistics,
    uses_tiles,
    why_not_tiled,
)
from .gradient_guard import GradientGuard
from .swap import LOSSES, check_margin_fits
from .transparent import TakesMargin

Pairs = tuple[Tensor, Tensor, Tensor, Tensor]
Kept = tuple[Tensor, Tensor] | None
"""Which rows and which reference rows are not ignored; None if all are used."""


class ContrastiveVDMLoss(TakesMargin, BaseMetricLossFunction):
    r"""Pulls each group together and pushes groups apart to the margin of the batch.

    .. math::
        L_c = \operatorname{mean}_{i<j,\ y_i = y_j} D^2_{ij}
            + w \operatorname{mean}_{y_i \ne y_j,\ D^2_{ij} < \hat\alpha} (\hat\alpha - D^2_{ij}) + R(\Omega)

    The first mean is over all pairs of a group, the second over the pairs within the margin; a mean over no pairs is 0.
    With a constant margin this is pytorch-metric-learning's ``ContrastiveLoss`` on squared distances, except that pairs
    of identical embeddings stay in the first mean (the host's default reducer drops zeros).

    Source: Kim & Song, AAAI 2021, Eq. (4) to (8). It differs in one point: the literal Eq. (7) has w = ½
    (``repulsion=0.5``); under the mixture (P + Q)/2 of Eq. (3) the mean carries weight 1. See
    :func:`~adaptive_margin.functional.vdm_contrastive_loss` for two groups, and for R.

    Args:
        margin: :math:`\hat\alpha` in units of D²: a :class:`~adaptive_margin.Margin`, or a number; by default
            ``AdaptiveMargin()``. A margin per anchor or per pair is used in the hinge of that anchor or pair.
        repulsion: w, at least 0.
        regularizer: ``"none"``; ``"chi2"``, the third term of Eq. (3), which the paper leaves out; or ``"fisher"``, the
            constraint :math:`\Omega = 1` of Fisher GAN, whose multiplier is a buffer in ``state_dict`` that is updated
            by every call in training mode (not inside :mod:`torch.func`, whose functions must not change state).
            Processes do not share it: in a ``DistributedLossWrapper`` all see the joined batch and agree; with
            ``efficient=True`` each has its own rows and its own multiplier.
        compact_label: only this label is pulled together, and pairs of different groups are those between it and all
            others. With groups 1 (strong) and 0 (weak), ``compact_label=1`` is the paper's two-group loss. ``None``
            pulls every class together.
        ignore_label: rows with this label are left out of everything. By default -1 with a ``compact_label`` (an
            ``OtsuGrouper`` gives it to samples of neither group), else ``None``: all labels are classes, as in the
            host; on CUDA this also avoids one synchronisation per call.
        regularizer_weight: :math:`\lambda` of ``"chi2"``.
        penalty: :math:`\rho` of ``"fisher"``; its multiplier moves by :math:`\min(\rho, 0.01) \min(\Omega - 1, 1)` per
            step. 10 keeps :math:`\Omega` within 0.5 to 2 in most steps if groups overlap and the margin is a constant;
            if they separate completely nothing can, because f is 0 there. The authors' released code has 1e-6.
        pair_memory: ``"tiled"`` computes value and gradient in tiles, in memory that grows with the batch; ``"pairs"``
            lists all pairs like the host; ``"auto"`` uses tiles if distance, reducer and margin allow it: squared or
            plain L2 or cosine, no custom reducer, no index tuple, no margin per pair.
        kwargs: ``distance``, ``reducer``, ``embedding_regularizer``, ``embedding_reg_weight``, ``collect_stats`` as for
            any loss of the host. The default distance is ``LpDistance(p=2, power=2, normalize_embeddings=False)``:
            embeddings are used as given. Another distance replaces D² in its own unit; a cosine similarity s stands for
            :math:`D^2 = 2 - 2s`. A reducer stays the caller's own object and is not copied.

    Shapes:
        ``loss(embeddings (B, D), labels (B,), indices_tuple=None, ref_emb (R, D)=None, ref_labels (R,)=None)`` gives a
        0-dim tensor of the embeddings' dtype (or whatever your own reducer returns). Half precision is computed in
        float32. Labels may be left out if an index tuple says which pairs are positive.

    Statistics, when ``collect_stats`` is on: ``alpha``, the margin (its mean), also called ``current_margin``;
    ``active_pairs``, ordered pairs within it; ``omega`` and ``multiplier`` for the regularisers; ``in_tiles``, 1 if the
    last call was tiled; and ``mi``, ``eta``, ``delta`` and ``k`` of the margin, whose ``collect_stats`` it turns on.
    Without it, reading one is an error that says so; ``statistics()`` has them all. ``pair_path`` always says in words
    which path the last call took.

    Raises:
        ValueError: shapes that do not match, NaN or infinity, unknown options, ``pair_memory="tiled"`` where tiles
            cannot be used, a loss that is not finite.

    Example:
        >>> loss = ContrastiveVDMLoss()
        >>> value = loss(torch.randn(32, 16, requires_grad=True), torch.arange(32) % 4)
        >>> value.backward()
        >>> two_groups = ContrastiveVDMLoss(margin=1.0, compact_label=1)
        >>> two_groups(torch.tensor([[0.0], [1.0], [1.5]]), torch.tensor([1, 1, 0]))  # 1² + (1 - 0.5²)
        tensor(1.7500)
    """

    recorded = ("alpha", "current_margin", "active_pairs", "omega", "multiplier", "in_tiles")
    alpha: float
    current_margin: float
    active_pairs: float
    omega: float
    multiplier: float
    in_tiles: float
    multiplier_value: Tensor
    _admitted_as = ContrastiveLoss()
    """The host's wrappers take it where they take that."""

    def __init__(
        self,
        margin: Margin | float | None = None,
        repulsion: float = 1.0,
        regularizer: Regularizer = "none",
        compact_label: int | None = None,
        ignore_label: int | Literal["auto"] | None = "auto",
        regularizer_weight: float = 1.0,
        penalty: float = FISHER_PENALTY,
        pair_memory: PairMemory = "auto",
        **kwargs: Any,
    ) -> None:
        check_options(repulsion, regularizer, regularizer_weight, penalty)
        check_choice("pair_memory", pair_memory, CHOICES)
        if ignore_label == "auto":
            ignore_label = None if compact_label is None else -1
        for name, label in (("compact_label", compact_label), ("ignore_label", ignore_label)):
            remedy = "pass one of the labels"
            if label is not None and not check_number(name, label, "a whole number or None", remedy).is_integer():
                raise ValueError(problem(name, "a whole number or None", label, remedy))
        if compact_label is not None and compact_label == ignore_label:
            remedy = "a label cannot be pulled together and ignored"
            raise ValueError(
                problem("compact_label", f"other than ignore_label ({ignore_label})", compact_label, remedy)
            )
        self.regularizer = regularizer  # the host asks for the names of the sub-losses while it builds itself
        super().__init__(**kwargs)
        self.margin = margin  # type: ignore[assignment]
        self.repulsion = repulsion
        self.compact_label = compact_label
        self.ignore_label = ignore_label
        self.regularizer_weight = regularizer_weight
        self.penalty = penalty
        self.pair_memory = pair_memory
        self.pair_path: Literal["none yet", "tiled", "pairs"] = "none yet"
        if self.distance.is_inverted and not self.distance.normalize_embeddings:
            remedy = "use CosineSimilarity, or LpDistance"
            expected = "a distance, or a similarity of normalised embeddings"
            raise ValueError(problem("distance", expected, type(self.distance).__name__, remedy))
        uses_tiles(pair_memory, self._why_not_tiled())
        self.register_buffer("multiplier_value", torch.zeros((), dtype=torch.float64))
        self.add_to_recordable_attributes(list_of_names=["repulsion"], is_stat=False)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        """The loss of this batch."""
        # All is computed in float32: what can leave it is Ω, and float16 the gradient of a row that vanishes before it
        # is normalised.
        guard = GradientGuard(type(self).__name__, only_half=self.regularizer == "none" and self._alone)
        given = embeddings, labels, indices_tuple, ref_emb, ref_labels
        return guard.note(super().forward(*Batch.checked(self, guard, *given, own_dtype=True).arguments))

    def compute_loss(
        self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Tensor, ref_labels: Any
    ) -> dict[str, Any]:
        """The host's dictionary of losses: ``pos_loss``, ``neg_loss`` and, with a regulariser, ``reg_loss``."""
        if len(embeddings) == 0 or len(ref_emb) == 0:
            nothing: dict[str, Any] = self.zero_losses()
            return nothing
        dtype = at_least_float32(embeddings).dtype
        check_options(self.repulsion, self.regularizer, self.regularizer_weight, self.penalty, dtype=dtype)
        tiled = uses_tiles(self.pair_memory, self._why_not_tiled(indices_tuple))
        self.pair_path = "tiled" if tiled else "pairs"
        batch = self._with_references(Batch(self, embeddings, labels, indices_tuple, ref_emb, ref_labels))
        seen = batch.seen(once=tiled)
        if not tiled:
            return self._from_pairs(batch, seen)
        with shared_distances(seen.embeddings):
            return self._from_tiles(batch, seen)

    def _why_not_tiled(self, indices: Any = None) -> str:
        return why_not_tiled(self, self.margin, indices) or (
            "a reducer of your own wants the loss of every pair" if self.own_reducer else ""
        )

    def _with_references(self, batch: Batch) -> Batch:
        """In at least float32, with labels; its own rows are the references only if they have its own labels."""
        own_rows = not batch.others
        if own_rows and (batch.labels is None or batch.ref_labels is None):
            batch = batch.changed(ref_labels=batch.labels)
        if batch.labels is None:
            if batch.indices is None:
                remedy = "pass one label per row; for continuous targets make groups with OtsuGrouper"
                raise ValueError(problem("labels", "given where indices_tuple is not", "None", remedy))
            if self.compact_label is not None:
                raise ValueError(problem("labels", "given with compact_label", "None", "pass one label per row"))
            batch = batch.grouped()
        elif batch.ref_labels is None:
            raise ValueError(problem("ref_labels", "given with ref_emb", "None", "pass the labels of ref_emb"))
        rows = at_least_float32(batch.embeddings)
        if own_rows and batch.ref_labels is batch.labels:
            return batch.changed(embeddings=rows, ref_emb=rows)
        assert batch.ref_emb is not None
        ref_rows = at_least_float32(batch.ref_emb).to(rows)
        ref_rows = ref_rows.view_as(ref_rows) if own_rows else ref_rows  # with its own labels it is a different set
        # the host takes one object for one set, without its diagonal
        ref_labels = batch.ref_labels.clone() if batch.ref_labels is batch.labels else batch.ref_labels
        return batch.changed(embeddings=rows, ref_emb=ref_rows, ref_labels=ref_labels)

    # --- all pairs, in tiles ------------------------------------------------------------------------------------------

    def _from_tiles(self, batch: Batch, seen: Batch) -> dict[str, Any]:
        assert batch.ref_emb is not None
        tell_statistics(self.distance, batch.embeddings, batch.ref_emb, seen)
        unseen = not self.margin.needs_batch and is_blind(batch.labels)  # nothing else has to wait for the device
        kept = None if unseen else self._kept(batch)
        alpha = self._margin_of(seen, None, kept)
        all_count = self.ignore_label is None or not (unseen or kept)
        distance = distance_in_tiles(self.distance)
        assert distance is not None
        similarity = distance == "dot"  # s stands for D² = 2 - 2s: half of it is within 1 - s, and half the margin
        options = Options(
            distance,
            pos_margin=1.0 if similarity else 0.0,
            second_moment=self.regularizer != "none",
            only_first=self.compact_label is not None,
            ignore_label=None if all_count else self.ignore_label if self.compact_label is None else -1,
            counts=self.collect_stats or self.regularizer != "none",
        )
        margin = 1 - alpha / 2 if similarity else alpha
        groups = self._groups(batch.labels), None if batch.itself else self._groups(batch.ref_labels)
        terms = terms_of(seen.embeddings, seen.ref_emb, margin, *groups, options)
        if similarity:
            terms = PairTerms(2 * terms.attraction, 2 * terms.repulsion, 4 * terms.second_moment, terms.counts)
        unweighted = self.repulsion == 1 and not isinstance(self.repulsion, Tensor)
        repulsion = terms.repulsion if unweighted else self.repulsion * terms.repulsion
        return self._loss_dict(terms, already_reduced(terms.attraction), already_reduced(repulsion))

    def _groups(self, labels: Tensor) -> Tensor:
        """Labels as tiles take them: with a compact label, 0 for it, 1 for the rest and -1 for ignored rows."""
        if self.compact_label is None:
            return labels
        groups = (labels != self.compact_label).to(torch.int64)
        return groups if self.ignore_label is None else torch.where(labels == self.ignore_label, -1, groups)

    # --- listed pairs -------------------------------------------------------------------------------------------------

    def _from_pairs(self, batch: Batch, seen: Batch) -> dict[str, Any]:
        a1, p, a2, n = pairs = self._wanted(batch)
        explicit = batch.indices is not None or self.margin.granularity == "pair"
        kept = self._kept(batch) if self.margin.needs_batch else None
        alpha = self._margin_of(seen, pairs if explicit else None, kept)
        if self.margin.granularity == "anchor":
            alpha = alpha[a2]
        kind = batch.embeddings.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            distances = self.distance(batch.embeddings, batch.ref_emb)
        if self.distance.is_inverted:
            distances = 2 - 2 * distances  # squared distance of unit vectors
        attraction = distances[a1, p]
        hinge = alpha - distances[a2, n]
        ref_seen = seen.embeddings if seen.ref_emb is None else seen.ref_emb
        ties = ties_of_pairs(seen.embeddings, ref_seen, a2, alpha, distance_in_tiles(self.distance))
        hinge = torch.where(hinge > ties, hinge, 0.0)  # a pair on the margin is not within it
        listed = torch.tensor([len(a1), len(a2)], device=hinge.device)
        counts = torch.cat([listed, (hinge.detach() > 0).sum()[None]])
        omega = 0.5 * (_mean(attraction.square()) + _mean(hinge.square()))
        terms = PairTerms(attraction, hinge, omega, counts)
        return self._loss_dict(
            terms,
            _listed(attraction, (a1, p), "pos_pair", counts[0]),
            _listed(self.repulsion * hinge, (a2, n), "neg_pair", counts[2]),
        )

    def _wanted(self, batch: Batch) -> Pairs:
        """The pairs that count: no ignored row; with a compact label, those inside it and those leaving it."""
        labels, ref_labels = batch.labels, batch.ref_labels
        a1, p, a2, n = lmu.convert_to_pairs(batch.indices, labels, ref_labels)
        if self.ignore_label is not None:
            valid, ref_valid = labels != self.ignore_label, ref_labels != self.ignore_label
            inside, across = valid[a1] & ref_valid[p], valid[a2] & ref_valid[n]
            a1, p, a2, n = a1[inside], p[inside], a2[across], n[across]
        if self.compact_label is not None:
            compact, ref_compact = labels == self.compact_label, ref_labels == self.compact_label
            inside, across = compact[a1] & ref_compact[p], compact[a2] != ref_compact[n]
            a1, p, a2, n = a1[inside], p[inside], a2[across], n[across]
        return a1, p, a2, n

    # --- what both share ----------------------------------------------------------------------------------------------

    def _loss_dict(self, terms: PairTerms, pos_loss: Any, neg_loss: Any) -> dict[str, Any]:
        losses = {"pos_loss": pos_loss, "neg_loss": neg_loss}
        if self.regularizer != "none":
            multiplier = self.multiplier_value.to(
                terms.second_moment, copy=True
            )  # it moves on before the backward pass
            value = regularization(terms, self.regularizer, self.regularizer_weight, multiplier, self.penalty)
            losses["reg_loss"] = already_reduced(value)
        if self.regularizer == "fisher" and self.training and torch.is_grad_enabled() and not is_transforming():
            self.multiplier_value += multiplier_step(terms, self.penalty).to(self.multiplier_value)  # dual ascent
        if self.collect_stats:
            self.active_pairs = float(terms.counts[2])
            self.omega, self.multiplier = float(terms.second_moment.detach()), float(self.multiplier_value)
            self.in_tiles = float(self.pair_path == "tiled")
        return losses

    def _margin_of(self, seen: Batch, pairs: Pairs | None, kept: Kept) -> Tensor:
        """The margin of the rows that count, one a row also for those that do not."""
        if not self.margin.needs_batch:
            alpha: Tensor = self.margin(seen.embeddings)
        else:
            ref_labels = None if seen.ref_labels is None else self._margin_labels(seen.ref_labels)
            batch = seen.changed(labels=self._margin_labels(seen.labels), indices=pairs, ref_labels=ref_labels)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.margin.detach):
                alpha = torch.as_tensor(self.margin(*(batch if kept is None else _only(batch, *kept)).arguments))
            if kept is not None and self.margin.granularity == "anchor":
                alpha = alpha.new_zeros(len(kept[0])).masked_scatter(kept[0], alpha)
        if self.collect_stats and (kept is None or all(bool(each.any()) for each in kept)):
            self.alpha = self.current_margin = float(alpha.detach().mean())  # NaN without pairs
        check_margin_fits(self.margin, alpha, seen.embeddings.dtype)
        return alpha.to(seen.embeddings.dtype)

    def _kept(self, batch: Batch) -> Kept:
        if self.ignore_label is None:
            return None
        kept = batch.labels != self.ignore_label
        ref_kept = kept if batch.itself else batch.ref_labels != self.ignore_label
        everybody = bool(kept.all()) and (ref_kept is kept or bool(ref_kept.all()))
        return None if everybody else (kept, ref_kept)

    def _margin_labels(self, labels: Tensor) -> Tensor:
        """The margin sees the groups that the loss separates: two, with a compact label."""
        return labels if self.compact_label is None else (labels == self.compact_label).to(torch.int64)

    def set_reducer(self, reducer: Any) -> None:
        """The caller's own reducer for every sub-loss (the host would copy it); by default a mean over all pairs of a
        group and one over the pairs within the margin.
        """
        self.own_reducer = reducer is not None
        if isinstance(reducer, MultipleReducers | DoNothingReducer):
            self.reducer = reducer
        elif reducer is not None:
            self.reducer = MultipleReducers(dict.fromkeys(self.sub_loss_names(), reducer))
        else:
            defaults = {name: MeanReducer() for name in self.sub_loss_names()}
            self.reducer = SumOfReduced({**defaults, "neg_loss": AvgNonZeroReducer()})

    def get_default_distance(self) -> LpDistance:
        """Squared L2 of the embeddings, not normalised."""
        return LpDistance(p=2, power=2, normalize_embeddings=False)

    def _sub_loss_names(self) -> list[str]:
        return ["pos_loss", "neg_loss"] + (["reg_loss"] if self.regularizer != "none" else [])

    def extra_repr(self) -> str:
        """The margin's unit and the options, for ``print(loss)``."""
        scale = "squared distance, 2 - 2s" if self.distance.is_inverted else LOSSES["ContrastiveLoss"].scale_of(self)
        return (
            f"margin: a threshold in {scale}\n"
            f"repulsion={self.repulsion}, regularizer={self.regularizer!r}, compact_label={self.compact_label}, "
            f"pair_memory={self.pair_memory!r}"
        )


def _only(batch: Batch, kept: Tensor, ref_kept: Tensor) -> Batch:
    """The rows to keep. Index tuples have no others; theirs move up."""
    place, ref_place = kept.cumsum(0) - 1, ref_kept.cumsum(0) - 1
    indices = batch.indices and tuple((place, ref_place)[i % 2][index] for i, index in enumerate(batch.indices))
    ref_rows = None if batch.ref_emb is None else batch.ref_emb[ref_kept]
    ref_labels = None if batch.ref_labels is None else batch.ref_labels[ref_kept]
    return Batch(batch.host, batch.embeddings[kept], batch.labels[kept], indices, ref_rows, ref_labels)


def _listed(losses: Tensor, indices: tuple[Tensor, Tensor], reduction_type: str, divisor: Tensor) -> dict[str, Any]:
    if len(losses) == 0:
        return already_reduced(0)
    return {"losses": losses, "indices": indices, "reduction_type": reduction_type, "divisor": divisor}


def _mean(x: Tensor) -> Tensor:
    return x.mean() if len(x) else x.sum()
