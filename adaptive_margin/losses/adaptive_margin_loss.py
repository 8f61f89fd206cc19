"""Any loss of pytorch-metric-learning that has a margin, with the margin of each batch."""

from __future__ import annotations

import math
from functools import partial
from numbers import Real
from typing import Any, Literal

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction, ContrastiveLoss
from pytorch_metric_learning.reducers import AvgNonZeroReducer, MultipleReducers
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from ..functional.checks import check_choice, check_labels, is_transforming, problem
from ..functional.pair_tiles import pair_hinge_means
from ..margins import Margin
from ..margins.base import IndicesTuple
from .host_inputs import (
    GradientGuard,
    as_classes,
    as_seen,
    casts,
    check_batch,
    check_embeddings,
    distance_in_tiles,
    host_dtype,
    is_own_reference,
    labels_from_indices,
)
from .host_wrappers import look_inside
from .reduction import reduced_sum
from .swap import LOSSES, Swap, Units, Value, check_margin_fits, exchanged, for_host, in_host_unit, resolve_units
from .transparent import Transparent


class AdaptiveMarginLoss(Transparent, BaseMetricLossFunction, wraps="loss", base=BaseMetricLossFunction, table=LOSSES):
    r"""Computes a pytorch-metric-learning loss with the margin of the batch.

    .. math:: \ell_{\hat\alpha}(Z, y), \qquad \hat\alpha = \mathrm{MI} + \Delta \text{ of this batch}

    Source: Kim & Song, AAAI 2021, "DML with adaptive margin": the margin of Eq. (8) in other losses. The paper's
    supplement replaces the number; ``units`` has the other ways in which a loss can use a squared distance.

    The wrapped loss is the caller's own object, with its reducer, distance, regularisers, weights and statistics. It is
    never changed: each call puts the margin into a shallow copy, so threads can share a loss. Attributes of the wrapped
    loss are read and set through this one (``loss.W``, ``loss.scale = 1``); ``alpha``, ``mi``, ``delta`` and ``k`` are
    those of the margin's last call. The margin sees the same embeddings as the loss's distance: normalised if the
    distance normalises them.

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
            per pair), and ``in_tiles``, 1 if the last call was tiled. ``pair_path`` always says in words which path the
            last call took.

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
        >>> loss.loss.margin
        0.05
    """

    def __init__(
        self,
        loss: BaseMetricLossFunction,
        margin: Margin | float | None = None,
        units: Units | None = None,
        pair_memory: Literal["auto", "tiled", "pairs"] = "auto",
        collect_stats: bool | None = None,
    ) -> None:
        check_choice("pair_memory", pair_memory, ("auto", "tiled", "pairs"))
        self._wrap(loss, margin, collect_stats)
        self.units = units
        self.pair_memory = pair_memory
        self.pair_path: Literal["none yet", "tiled", "pairs"] = "none yet"
        self.current_margin = self.in_tiles = math.nan
        self.add_to_recordable_attributes(list_of_names=["current_margin", "in_tiles"], is_stat=True)
        if pair_memory == "tiled" and (why_not := self._why_not_tiled()):
            raise ValueError(problem("pair_memory", "'auto' or 'pairs'", "'tiled'", why_not))

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
        guard = GradientGuard(self.exchange.host)
        itself = ref_emb is embeddings  # identical objects stay identical: the host then leaves out self-comparisons
        embeddings = guard.settled(embeddings)
        ref_emb = embeddings if itself else guard.settled(ref_emb)
        labels, ref_labels = as_classes(labels, ref_labels)
        self._check_margin(self.margin)
        self._check(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        if len(embeddings) == 0:
            return self.loss.reducer(self.loss.zero_losses(), embeddings, labels)
        batch = guard.watch(embeddings).to(host_dtype(self.loss, embeddings.dtype))
        if itself:
            ref_emb = batch
        elif ref_emb is not None:
            ref_emb = guard.watch(ref_emb).to(host_dtype(self.loss, ref_emb.dtype))
        if ref_labels is labels:
            ref_labels = labels = None if labels is None else labels.to(batch.device)
        else:
            labels = None if labels is None else labels.to(batch.device)
            ref_labels = None if ref_labels is None else ref_labels.to(batch.device)
        if isinstance(indices_tuple, tuple | list):
            indices_tuple = tuple(index.to(batch.device) for index in indices_tuple)  # type: ignore[assignment]
        tiled = self._takes_tiles(batch, labels, indices_tuple, ref_emb, ref_labels)
        self.pair_path, self.in_tiles = ("tiled", 1.0) if tiled else ("pairs", 0.0)
        if tiled:
            seen = as_seen(self.loss, batch, None if ref_emb is batch else ref_emb)
            indices_tuple, margin = None, self._margin_of_rows(*seen, labels, ref_labels)
        else:
            indices_tuple, margin = self._margin_of(batch, labels, indices_tuple, ref_emb, ref_labels)
        check_margin_fits(self.margin, margin, seen[0].dtype if tiled else batch.dtype)
        values: dict[str, Any] = {**self.exchange.values(self.loss, margin), **casts(self.loss, batch)}
        if tiled:
            given = batch, batch if ref_emb is None else ref_emb
            values["compute_loss"] = partial(self._compute_loss_in_tiles, margin, given, seen)
            values["reducer"] = partial(self._reduced, self.loss.reducer)
        with exchanged(self.loss, values) as loss:
            return guard.note(loss(batch, labels, indices_tuple, ref_emb, ref_labels))

    def _takes_tiles(
        self, batch: Tensor, labels: Any, indices_tuple: Any, ref_emb: Tensor | None, ref_labels: Any
    ) -> bool:
        if self.pair_memory == "pairs":
            return False
        why_not = self._why_not_tiled() or ("an index tuple lists its own pairs" if indices_tuple is not None else "")
        itself = is_own_reference(batch, labels, ref_emb, ref_labels)
        if not why_not and not itself and (ref_emb is batch or ref_labels is labels):
            why_not = "the host leaves some pairs out where embeddings or labels alone are their own reference"
        if not why_not and is_transforming():
            why_not = "tiles make their own gradient, which torch.func does not see"
        if not why_not and len(batch) * len(batch if ref_emb is None else ref_emb) <= 2:
            why_not = "the host takes a single pair of each kind for none"
        if self.pair_memory == "tiled" and why_not:
            raise ValueError(problem("pair_memory", "'auto' or 'pairs'", "'tiled'", why_not))
        return not why_not and (self.pair_memory == "tiled" or self.margin.needs_batch)

    def _why_not_tiled(self) -> str:
        """Why this loss cannot use tiles, for any batch; empty if it can."""
        if type(self.loss) is not ContrastiveLoss:
            return f"tiles know ContrastiveLoss, not {type(self.loss).__name__}"
        if distance_in_tiles(self.distance) is None:
            return f"tiles know L2, squared L2 and cosine, not {type(self.distance).__name__}"
        if not isinstance(self.loss.pos_margin, Real):
            return "tiles take a plain number for pos_margin"
        reducers = self.reducer.reducers if isinstance(self.reducer, MultipleReducers) else {}
        means = [reducers[name] for name in ("pos_loss", "neg_loss") if name in reducers]
        if len(means) != 2 or any(type(mean) is not AvgNonZeroReducer or mean.collect_stats for mean in means):
            return "a reducer of your own, or one that collects statistics, wants the loss of every pair"
        return "a margin a pair is as large as the list of pairs" if self.margin.granularity == "pair" else ""

    def _margin_of_rows(self, seen: Tensor, ref_seen: Tensor | None, labels: Any, ref_labels: Any) -> Value:
        """The margin in the loss's unit: one number, or one for each row."""
        if not self.margin.needs_batch:
            return self._translated(self.margin.value)
        alpha = self._alpha_of_seen(seen, labels, None, ref_seen, ref_labels)
        return self._translated(alpha, labels, ref_labels)

    def _compute_loss_in_tiles(
        self,
        margin: Value,
        given: tuple[Tensor, Tensor],
        seen_given: tuple[Tensor, Tensor | None],
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: None,
        ref_emb: Tensor,
        ref_labels: Any,
    ) -> dict[str, Any]:
        """The two means of the wrapped ``ContrastiveLoss`` over all pairs, in the place of its ``compute_loss``.

        ``seen_given`` is what was given as the distance sees it; a hook of the wrapped loss can have changed that.
        """
        seen, ref_seen = seen_given
        if embeddings is not given[0] or ref_emb is not given[1]:
            seen, ref_seen = as_seen(self.loss, embeddings, None if ref_emb is embeddings else ref_emb)
        self.distance.reset_stats()
        self.distance.set_default_stats(embeddings, ref_emb, seen, seen if ref_seen is None else ref_seen)
        distance = distance_in_tiles(self.distance)
        assert distance is not None
        means = pair_hinge_means(
            seen,
            labels,
            float(self.loss.pos_margin),
            margin,
            distance,
            ref_emb=ref_seen,
            ref_labels=None if ref_seen is None else ref_labels,
        )
        return {
            name: {"losses": mean.to(embeddings.dtype), "indices": None, "reduction_type": "already_reduced"}
            for name, mean in zip(("pos_loss", "neg_loss"), means, strict=True)
        }

    @staticmethod
    def _reduced(reducer: Any, loss_dict: dict[str, Any], embeddings: Tensor, labels: Any) -> Any:
        """The host's reduction of means, in fewer steps if it would only add them."""
        total = reduced_sum(reducer, loss_dict, embeddings) if type(reducer) is MultipleReducers else None
        return reducer(loss_dict, embeddings, labels) if total is None else total

    def _check(
        self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Tensor | None, ref_labels: Any
    ) -> None:
        host = self.exchange.host
        if host != "ManifoldLoss":
            check_batch(embeddings, labels, indices_tuple, ref_emb, ref_labels, self.loss)
            if ref_emb is not None and ref_emb is not embeddings:
                self._check_reference(host)
            return
        check_embeddings("embeddings", embeddings, self.loss)  # its indices are random classes, one a row
        if indices_tuple is not None:
            check_labels("indices_tuple", indices_tuple, len(embeddings))
        elif 0 < len(embeddings) < self.loss.K:
            got = len(embeddings)
            raise ValueError(problem("embeddings", f"at least {self.loss.K} rows for K proxies", got, "lower K"))

    def _check_reference(self, host: str) -> None:
        """Raises if the host would mistake rows of the references for rows of the batch."""
        if host == "ThresholdConsistentMarginLoss":
            raise ValueError(problem("ref_emb", "None", "a tensor", f"{host} takes all pairs from embeddings"))
        if host == "TripletMarginLoss" and self.loss.swap:
            remedy = f"{host}(swap=True) takes positives for rows of embeddings (the host's issue 748); use swap=False"
            raise ValueError(problem("ref_emb", "None", "a tensor", remedy))

    def _margin_of(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Any,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
    ) -> tuple[Any, Value]:
        """The margin in the loss's unit and, if there is more than one, the indices to which they belong."""
        if not self.margin.needs_batch:
            return indices_tuple, self._translated(self.margin.value)
        if self.exchange.host == "ManifoldLoss":
            indices_tuple = self._meta_classes(embeddings, indices_tuple)
            alpha = self._alpha(embeddings, indices_tuple, None, None, None)
            return indices_tuple, self._translated(alpha, indices_tuple)
        groups: Tensor | None = labels
        ref_groups = ref_labels
        if groups is None and indices_tuple is not None:
            rows = None if ref_emb is None or ref_emb is embeddings else len(ref_emb)
            groups, ref_groups = labels_from_indices(indices_tuple, len(embeddings), rows)
        if self.margin.granularity == "batch":
            alpha = self._alpha(embeddings, groups, indices_tuple, ref_emb, ref_groups)
            value = self._translated(alpha, groups, ref_groups, indices_tuple is not None)
            if self.exchange.host == "SoftTripleLoss" and isinstance(value, Tensor):
                value = value.to(embeddings.dtype)  # the host writes it into a matrix of that dtype
            return indices_tuple, value
        explicit = self._explicit(labels, indices_tuple, ref_emb, ref_labels)
        anchors = explicit[0] if len(explicit) == 3 else explicit[2]
        if self.margin.granularity == "pair":
            alpha = self._alpha(embeddings, groups, explicit, ref_emb, ref_groups)
        else:
            alpha = self._alpha(embeddings, groups, indices_tuple, ref_emb, ref_groups)[anchors]
        chosen = indices_tuple is not None
        return explicit, self._translated(alpha.to(embeddings.dtype), groups, ref_groups, chosen)

    def _alpha(
        self, embeddings: Tensor, groups: Any, indices_tuple: Any, ref_emb: Tensor | None, ref_groups: Any
    ) -> Tensor:
        if is_own_reference(embeddings, groups, ref_emb, ref_groups):
            ref_emb = ref_groups = None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.margin.detach):
            seen, ref_seen = as_seen(self.loss, embeddings, ref_emb)
        return self._alpha_of_seen(seen, groups, indices_tuple, ref_seen, ref_groups)

    def _alpha_of_seen(
        self, seen: Tensor, groups: Any, indices_tuple: Any, ref_seen: Tensor | None, ref_groups: Any
    ) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.margin.detach):
            alpha: Tensor = self.margin(seen, groups, indices_tuple, ref_seen, ref_groups)
            return alpha

    def _explicit(
        self, labels: Any, indices_tuple: Any, ref_emb: Tensor | None, ref_labels: Tensor | None
    ) -> IndicesTuple:
        """The pairs or triplets that the loss would make for itself, so that each can have its margin."""
        ref_labels = labels if ref_emb is None else ref_labels
        if hasattr(self.loss, "triplets_per_anchor"):  # the host's converter samples 100 an anchor unless told
            return lmu.convert_to_triplets(indices_tuple, labels, ref_labels, self.loss.triplets_per_anchor)
        return lmu.convert_to_pairs(indices_tuple, labels, ref_labels)

    def _meta_classes(self, embeddings: Tensor, indices_tuple: Tensor | None) -> Tensor:
        """The manifold loss's random classes, drawn as it draws them, so that margin and loss see the same."""
        if indices_tuple is not None:
            return indices_tuple
        rows, proxies = len(embeddings), self.loss.K
        classes = torch.cat((torch.arange(proxies), torch.randint(0, proxies, (rows - proxies,))))
        return classes[torch.randperm(rows)].to(embeddings.device)

    def _translated(
        self, alpha: Value, labels: Tensor | None = None, ref_labels: Tensor | None = None, chosen: bool = False
    ) -> Value:
        """The margin in the loss's unit, recorded."""
        row, loss = self.exchange, self.loss
        value = in_host_unit(for_host(alpha, row), self._units, self.margin, row, loss, labels, ref_labels, chosen)
        value = for_host(value, row)
        if self.collect_stats:
            if isinstance(value, Tensor):
                self.current_margin = float(value.detach().mean()) if value.numel() else 0.0
            else:
                self.current_margin = value
        return value

    def compute_loss(
        self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Tensor, ref_labels: Any
    ) -> dict[str, Any]:
        """The wrapped loss's dictionary of unreduced losses with the margin of this batch."""
        indices_tuple, value = self._margin_of(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        check_margin_fits(self.margin, value, embeddings.dtype)
        values = {**self.exchange.values(self.loss, value), **casts(self.loss, embeddings)}
        with exchanged(self.loss, values) as loss:
            loss_dict: dict[str, Any] = loss.compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            return loss_dict

    @property
    def units(self) -> Units:
        """How the loss uses the margin: as requested, or the default for this margin and the current distance."""
        return resolve_units(self._units, self.margin, self.exchange, self.loss)

    @units.setter
    def units(self, units: Units | None) -> None:
        resolve_units(units, self.margin, self.exchange, self.loss)
        self._units = units

    def _check_margin(self, margin: Margin) -> None:
        if margin.granularity != "batch" and not self.exchange.elementwise:
            able = ", ".join(name for name, row in LOSSES.items() if row.elementwise)
            remedy = f"{self.exchange.host} has one margin a batch; one an anchor or a pair goes into {able}"
            raise ValueError(problem("margin.granularity", "'batch'", f"{margin.granularity!r}", remedy))
        if "_units" in self.__dict__:
            resolve_units(self._units, margin, self.exchange, self.loss)

    @property
    def _admitted_as(self) -> Any:
        return self.loss

    def extra_repr(self) -> str:
        """The replaced attribute, for ``print(loss)``."""
        return f"{self.exchange.host}.{self.exchange.attribute}, units={self.units!r}"


look_inside()
