"""A miner of pytorch-metric-learning with the margin of each batch."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor

from ..losses.batch import Batch
from ..losses.swap import MINERS, Swap, Units, Value, exchanged
from ..losses.transparent import Transparent
from ..margins import Margin

COUNTS = {"num_pos_pairs", "num_neg_pairs", "num_triplets"}
"""Statistics that every miner of the host records."""


class AdaptiveMarginMiner(Transparent, BaseMiner, wraps="miner", base=BaseMiner, table=MINERS):
    r"""Mines with the margin of the batch.

    Source: Kim & Song, AAAI 2021, "DML with adaptive margin". Like :class:`~adaptive_margin.AdaptiveMarginLoss`, but
    for miners whose threshold is a margin. The wrapped miner is the caller's own object and is never changed.

    Args:
        miner: one of :meth:`supported`, or a subclass of one.
        margin: a :class:`~adaptive_margin.Margin` with one margin per batch, or a number; by default
            ``AdaptiveMargin()``.
        units: as for :class:`~adaptive_margin.AdaptiveMarginLoss`.
        collect_stats: whether to record ``current_margin``, the margin in the miner's unit, and the margin's own
            statistics, as for :class:`~adaptive_margin.AdaptiveMarginLoss`.

    Shapes:
        The same as for the wrapped miner: ``miner(embeddings (B, D), labels (B,), ref_emb=None, ref_labels=None)``
        gives an index tuple.

    Raises:
        TypeError: the miner has no margin of this kind; the message says what is supported.
        ValueError: units that mean nothing to the miner, one margin per anchor or per pair, shapes that do not fit, NaN
            or infinity, a margin that is not finite (in a call: in the dtype of the batch).

    Example:
        >>> from pytorch_metric_learning import miners
        >>> miner = AdaptiveMarginMiner(miners.TripletMarginMiner(type_of_triplets="semihard"))
        >>> anchors, positives, negatives = miner(torch.randn(32, 16), torch.arange(32) % 4)
    """

    def __init__(
        self,
        miner: BaseMiner,
        margin: Margin | float | None = None,
        units: Units | None = None,
        collect_stats: bool | None = None,
    ) -> None:
        self._wrap(miner, margin, collect_stats)
        self.units = units
        for attribute in ("_record_these", "_record_these_stats"):  # the host's records do not look inside a miner
            theirs = [name for name in getattr(miner, attribute, ()) if not self._is_own(name)]
            if theirs:
                setattr(self, attribute, theirs + self.__dict__.get(attribute, []))
        self.add_to_recordable_attributes(list_of_names=[*COUNTS], is_stat=True)
        self._warn_of_unused()

    @classmethod
    def supported(cls) -> dict[str, Swap]:
        """The miners whose margin can be replaced, by name: ``attribute``, its ``unit`` and the default ``units``.

        Example:
            >>> AdaptiveMarginMiner.supported()["MultiSimilarityMiner"].attribute
            'epsilon'
        """
        return dict(MINERS)

    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> Any:
        """The wrapped miner's index tuple with the margin of this batch."""
        self.reset_stats()
        self._check_granularity(self.margin)
        batch = Batch.checked(self.miner, None, embeddings, labels, None, ref_emb, ref_labels)
        alpha: Value = 0.0
        if not self.margin.needs_batch:
            alpha = self.margin.value
        elif len(batch.embeddings):
            with torch.no_grad():
                alpha = self.margin(*batch.seen().arguments)
        value = self._in_host_unit(alpha, batch)
        if batch.empty:
            self.forget()
        with exchanged(self.miner, self.exchange.values(self.miner, value)) as miner:
            output = miner(batch.embeddings, batch.labels, batch.ref_emb, batch.ref_labels)
        for name in COUNTS & vars(miner).keys():
            setattr(self, name, getattr(miner, name))
        return output
