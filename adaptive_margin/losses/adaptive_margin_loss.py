"""Any loss of pytorch-metric-learning that has a margin, with the margin of each batch."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from ..functional.small_distances import shared_distances
from ..margins import Margin
from ..margins.base import IndicesTuple
from ..messages import check_choice
from .batch import Batch
from .contrastive_in_tiles import (
    CHOICES,
    PairMemory,
    host_in_tiles,
    uses_tiles,
    why_host_not_tiled,
    why_host_not_tiled_here,
    why_not_tiled,
)
from .gradient_guard import GradientGuard
from .host_wrappers import look_inside
from .swap import LOSSES, Swap, Units, Value, casts, exchanged
from .transparent import Transparent


class AdaptiveMarginLoss(Transparent, BaseMetricLossFunction, wraps="loss", base=BaseMetricLossFunction, table=LOSSES):
    r"""Computes a pytorch-metric-learning loss with the margin of the batch.

    .. math:: \ell_{\hat\alpha}(Z, y), \qquad \hat\alpha = \mathrm{MI} + \Delta \text{ of this batch}

    Source: Kim & Song, AAAI 2021, "DML with adaptive margin": the margin of Eq. (8) in other losses. The paper's
    supplement replaces the number; ``units`` has the other ways in which a loss can use a squared distance.

    The wrapped loss is the caller's own object, with its reducer, distance, regularisers, weights and statistics. It is
    never changed: each call puts the margin into a shallow copy, so threads can share a loss. Attributes of the wrapped
    loss are read and set through this one (``loss.W``, ``loss.scale = 1``); ``alpha``, ``mi``, ``delta`` and ``k`` are
    those of the margin's last call, recorded while ``collect_stats`` is on. The margin sees the same embeddings as the
    loss's distance: normalised if the distance normalises them.

    Args:
        loss: one of :meth:`supported`, or a subclass of one.
        margin: a :class:`~adaptive_margin.Margin`, or a number for a constant one; by default ``AdaptiveMargin()``.
        units: how the loss uses a margin that is a squared distance: ``"geometry"`` (a squared distance of unit vectors
            is converted to the loss's unit; :meth:`supported` has the formula for each loss), ``"replace"`` (the number
            unchanged, for angles in radians; for a similarity threshold :math:`1 - \hat\alpha/2`), ``"sqrt"`` (its
            root, for losses on distances) or ``"offset"`` (added to the loss's own margin; for a similarity threshold
            :math:`-\hat\alpha/2`). The default is ``"geometry"`` for a margin that leads (``"remaining"``,
            ``"attainable"``, and ``"auto"`` with three labels or more). For a margin that waits for evidence, the
            default is ``"offset"`` if the loss's margin is a threshold, a cosine or an angle, ``"sqrt"`` if it is a gap
            between distances, and otherwise ``"replace"``. The same holds for any margin if the loss cannot use a
            Euclidean distance (L1, similarities of embeddings that are not normalised). A margin in the loss's own unit
            (``ConstantMargin``, ``LinearMargin``) acts as the same number given to the loss's constructor.
        pair_memory: ``"tiled"`` computes a ``ContrastiveLoss`` over all pairs in tiles, in memory that grows with the
            batch; ``"pairs"`` calls the host; ``"auto"`` uses tiles if loss, distance, reducer and margin allow it:
            exactly this class, L2, squared L2 or cosine, the default reducer, no index tuple, no margin per pair. It
            leaves ``ConstantMargin`` and ``LinearMargin`` to the host, because they promise the host's result to the
            bit.
        collect_stats: whether to record ``current_margin``, the margin in the loss's unit (its mean, if there is one
            per pair), ``in_tiles``, 1 if the last call was tiled, and the margin's own statistics: True turns on those
            of ``margin``, too. Without it, reading one is an error that says so. ``statistics()`` has them all.
            ``pair_path`` always says in words which path the last call took.

    A margin that was set in the wrapped loss and has no effect (``TripletMarginLoss(margin=0.3)`` with a margin that
    replaces it) is a warning. ``print(loss)`` says what becomes of the loss's own margin.

    Shapes:
        The same as for the wrapped loss: ``loss(embeddings (B, D), labels (B,), indices_tuple, ref_emb (R, D),
        ref_labels (R,))``. With an index tuple and no labels, rows connected by its positive pairs form a class.
        Margins per anchor or pair work with the losses whose formula takes them (contrastive, triplet, margin loss).

    Raises:
        TypeError: the loss has no margin of this kind (the message says why and what is supported), or labels are not
            whole numbers.
        ValueError: units that mean nothing to the loss, a granularity it cannot take, shapes that do not fit,
            references that the loss would take for the batch, NaN or infinity in the embeddings, a margin that is not
            finite (in a call: in the dtype of the batch), a loss or a gradient without a finite value. In float16, and
            under autocast in float16, what is not finite is handed on to the loss scaler.

    For a loss with weights (ArcFace, ProxyAnchor, …) half-precision batches are cast to the dtype of its weights,
    because the host would permanently cast the weights to half precision. For a loss on an L_p distance bfloat16 is
    cast to float32, because the host's distance has no kernel for it.

    Example:
        >>> from pytorch_metric_learning import losses
        >>> loss = AdaptiveMarginLoss(losses.TripletMarginLoss())
        >>> value = loss(torch.randn(32, 16, requires_grad=True), torch.arange(32) % 4)
        >>> value.backward()
        >>> print(loss.extra_repr())  # print(loss) has it, too
        TripletMarginLoss.margin, units='geometry' ('sqrt' with two labels), a gap in distance
        its own margin=0.05 is not used
    """

    recorded = ("current_margin", "in_tiles")
    in_tiles: float

    def __init__(
        self,
        loss: BaseMetricLossFunction,
        margin: Margin | float | None = None,
        units: Units | None = None,
        pair_memory: PairMemory = "auto",
        collect_stats: bool | None = None,
    ) -> None:
        check_choice("pair_memory", pair_memory, CHOICES)
        self._wrap(loss, margin, collect_stats)
        self.units = units
        self.pair_memory = pair_memory
        self.pair_path: Literal["none yet", "tiled", "pairs"] = "none yet"
        uses_tiles(pair_memory, self._why_not_tiled())
        self._warn_of_unused()

    @classmethod
    def supported(cls) -> dict[str, Swap]:
        """The losses whose margin can be replaced, by name: ``attribute``, its ``unit`` and the default ``units``.

        Example:
            >>> row = AdaptiveMarginLoss.supported()["ArcFaceLoss"]
            >>> row.attribute, row.unit, row.units
            ('margin', 'gap in angle (degrees at construction, radians inside)', 'geometry')
        """
        return dict(LOSSES)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        """The wrapped loss with the margin of this batch: the value that its reducer returns."""
        self.reset_stats()
        self._check_granularity(self.margin)  # a margin's own can have been changed
        guard = GradientGuard(self.exchange.host)
        given = embeddings, labels, indices_tuple, ref_emb, ref_labels
        check, tiles = self.exchange.check, self._takes_tiles
        batch = Batch.checked(self.loss, guard, *given, check=check, takes_tiles=tiles, alone=self._alone)
        if len(batch.embeddings) == 0:
            return self.loss.reducer(self.loss.zero_losses(), batch.embeddings, batch.labels)
        seen = batch.seen(once=batch.tiled)
        self.__dict__["pair_path"] = "tiled" if batch.tiled else "pairs"  # the wrapper's own, without looking for it
        if self.collect_stats:
            self.in_tiles = float(batch.tiled)
        with shared_distances(seen.embeddings) if batch.tiled else nullcontext():
            batch, margin = self._margin_of(batch, seen, each_row=batch.tiled)
            values = {**self.exchange.values(self.loss, margin), **casts(self.loss, batch.embeddings)}
            if batch.tiled:
                values.update(host_in_tiles(batch, seen, margin))
            if batch.empty:
                self.forget()
            with exchanged(self.loss, values) as loss:
                return guard.note(loss(*batch.arguments))

    def compute_loss(
        self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Tensor, ref_labels: Any
    ) -> dict[str, Any]:
        """The wrapped loss's dictionary of unreduced losses with the margin of this batch."""
        batch = Batch(self.loss, embeddings, labels, indices_tuple, ref_emb, ref_labels)
        batch, margin = self._margin_of(batch, batch.seen())
        with exchanged(self.loss, {**self.exchange.values(self.loss, margin), **casts(self.loss, embeddings)}) as loss:
            loss_dict: dict[str, Any] = loss.compute_loss(*batch.arguments)
            return loss_dict

    def _takes_tiles(self, batch: Batch) -> bool:
        why_not = self._why_not_tiled(batch.indices) or why_host_not_tiled_here(batch)
        insists = self.pair_memory == "tiled"
        return uses_tiles(self.pair_memory, why_not) and (insists or self.margin.needs_batch)

    def _why_not_tiled(self, indices: Any = None) -> str:
        return why_host_not_tiled(self.loss) or why_not_tiled(self.loss, self.margin, indices)

    def _margin_of(self, batch: Batch, seen: Batch, each_row: bool = False) -> tuple[Batch, Value]:
        """The margin in the loss's unit, and the batch; if there is a margin for each pair, with the pairs as indices.

        ``each_row`` leaves margins per anchor as they are, one for each row.
        """
        if not self.margin.needs_batch:
            return batch, self._in_host_unit(self.margin.value, seen if each_row else batch)
        chosen, given = batch.indices is not None, batch.indices
        if self.exchange.draws is not None:  # its index tuple is a class for each row
            batch = self.exchange.draws(batch)
            seen, given = seen.changed(labels=batch.indices, indices=None), None
        seen = seen.grouped()
        explicit = self.margin.granularity != "batch" and not each_row
        if explicit:
            batch = batch.changed(indices=self._explicit(batch))
            given = batch.indices if self.margin.granularity == "pair" else given
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.margin.detach):
            alpha: Tensor = self.margin(*seen.changed(indices=given).arguments)
        if explicit and self.margin.granularity == "anchor":
            alpha = alpha[batch.indices[0 if len(batch.indices) == 3 else 2]]
        return batch, self._in_host_unit(alpha, seen if each_row else batch, seen, chosen)

    def _explicit(self, batch: Batch) -> IndicesTuple:
        """The pairs or triplets that the loss would make for itself, so that each can have its margin."""
        ref_labels = batch.labels if batch.ref_emb is None else batch.ref_labels
        if hasattr(self.loss, "triplets_per_anchor"):  # the host's converter samples 100 an anchor unless told
            return lmu.convert_to_triplets(batch.indices, batch.labels, ref_labels, self.loss.triplets_per_anchor)
        return lmu.convert_to_pairs(batch.indices, batch.labels, ref_labels)

    @property
    def _admitted_as(self) -> Any:
        return self.loss


look_inside()
