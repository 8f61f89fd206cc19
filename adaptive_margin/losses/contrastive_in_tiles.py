"""When and how a contrastive loss runs in tiles: in memory that grows with the batch, without a list of pairs."""

from __future__ import annotations

from functools import partial, reduce
from numbers import Real
from operator import add
from typing import Any, Literal

from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.losses import ContrastiveLoss
from pytorch_metric_learning.reducers import AvgNonZeroReducer, MultipleReducers
from torch import Tensor

from ..functional.checks import is_transforming
from ..functional.pair_tiles import terms_of
from ..functional.pair_tiles.options import Distance, Options
from ..margins import Margin
from ..messages import problem
from .batch import Batch
from .swap import Value

PairMemory = Literal["auto", "tiled", "pairs"]
CHOICES = ("auto", "tiled", "pairs")


def distance_in_tiles(distance: Any) -> Distance | None:
    """What the tiles of :func:`~adaptive_margin.functional.pair_terms` call a distance of the host, of rows as that has
    normalised them; None for others.
    """
    if type(distance) is CosineSimilarity:
        return "dot"
    if type(distance) is not LpDistance or distance.p != 2:
        return None
    names: dict[float, Distance] = {1: "l2", 2: "squared_l2"}
    return names.get(distance.power)


def why_not_tiled(loss: Any, margin: Margin, indices: Any = None) -> str:
    """Why a contrastive loss cannot use tiles; empty if it can. Without ``indices``, for any batch."""
    if distance_in_tiles(loss.distance) is None:
        return f"tiles know L2, squared L2 and cosine, not {type(loss.distance).__name__}"
    if margin.granularity == "pair":
        return "a margin a pair is as large as the list of pairs"
    if is_transforming():
        return "tiles make their own gradient, which torch.func does not see"
    return "an index tuple lists its own pairs" if indices is not None else ""


def why_host_not_tiled(loss: Any) -> str:
    """Why a loss of the host cannot use them, whatever its margin; empty if it can."""
    if type(loss) is not ContrastiveLoss:
        return f"tiles know ContrastiveLoss, not {type(loss).__name__}"
    if not isinstance(loss.pos_margin, Real):
        return "tiles take a plain number for pos_margin"
    reducers = loss.reducer.reducers if isinstance(loss.reducer, MultipleReducers) else {}
    means = [reducers[name] for name in ("pos_loss", "neg_loss") if name in reducers]
    if len(means) != 2 or any(type(mean) is not AvgNonZeroReducer or mean.collect_stats for mean in means):
        return "a reducer of your own, or one that collects statistics, wants the loss of every pair"
    return ""


def why_host_not_tiled_here(batch: Batch) -> str:
    """Why the result of the host's own loss would differ from that of tiles for this batch; empty if it would not."""
    if not batch.itself and (batch.ref_emb is batch.embeddings or batch.ref_labels is batch.labels):
        return "the host leaves some pairs out where embeddings or labels alone are their own reference"
    references = batch.embeddings if batch.ref_emb is None else batch.ref_emb
    return "the host takes a single pair of each kind for none" if len(batch.embeddings) * len(references) <= 2 else ""


def uses_tiles(pair_memory: PairMemory, why_not: str) -> bool:
    """Whether tiles are used; a ``ValueError`` if the caller insists on them where they cannot be."""
    if pair_memory == "tiled" and why_not:
        raise ValueError(problem("pair_memory", "'auto' or 'pairs'", "'tiled'", why_not))
    return pair_memory != "pairs" and not why_not


def host_in_tiles(batch: Batch, seen: Batch, margin: Value) -> dict[str, Any]:
    """What replaces methods of the host's ``ContrastiveLoss`` for one call, so that it runs in tiles.

    ``margin`` is in the loss's unit, one number or one for each row. A hook of the loss can change the batch.
    """
    loss: Any = batch.host
    return {"compute_loss": partial(_compute_loss, batch, seen, margin), "reducer": partial(_reduce, loss.reducer)}


def _compute_loss(
    given: Batch,
    seen: Batch,
    margin: Value,
    embeddings: Tensor,
    labels: Tensor,
    indices_tuple: None,
    ref_emb: Tensor,
    ref_labels: Any,
) -> dict[str, Any]:
    """The two means of the host's ``ContrastiveLoss`` over all pairs, in the place of its ``compute_loss``."""
    loss: Any = given.host
    given_ref = given.embeddings if given.ref_emb is None else given.ref_emb
    if embeddings is not given.embeddings or ref_emb is not given_ref:
        seen = Batch(loss, embeddings, labels, None, ref_emb, ref_labels).seen(once=True)
    tell_statistics(loss.distance, embeddings, ref_emb, seen)
    distance = distance_in_tiles(loss.distance)
    assert distance is not None
    x, ref_x = seen.embeddings, seen.ref_emb
    ref_labels = None if ref_x is None else ref_labels
    options = Options(distance, float(loss.pos_margin), over_active=True, counts=False)
    terms = terms_of(x, ref_x, margin, labels, ref_labels, options)
    return {
        name: already_reduced(mean if mean.dtype == embeddings.dtype else mean.to(embeddings.dtype))
        for name, mean in (("pos_loss", terms.attraction), ("neg_loss", terms.repulsion))
    }


def tell_statistics(distance: Any, embeddings: Tensor, ref_emb: Tensor, seen: Batch) -> None:
    """Records in a distance of the host the statistics that its matrix would have recorded."""
    distance.reset_stats()
    ref_seen = seen.embeddings if seen.ref_emb is None else seen.ref_emb
    distance.set_default_stats(embeddings, ref_emb, seen.embeddings, ref_seen)


def already_reduced(value: Tensor | int) -> dict[str, Any]:
    """An entry of the host's dictionary of losses."""
    return {"losses": value, "indices": None, "reduction_type": "already_reduced"}


def _reduce(reducer: Any, loss_dict: dict[str, Any], embeddings: Tensor, labels: Any) -> Any:
    """The host's reduction of means, in fewer steps if it would only add them."""
    total = _sum(reducer, loss_dict, embeddings) if type(reducer) is MultipleReducers else None
    return reducer(loss_dict, embeddings, labels) if total is None else total


class SumOfReduced(MultipleReducers):
    """The host's ``MultipleReducers``, but it only adds if there is nothing to reduce."""

    def forward(self, loss_dict: dict[str, Any], embeddings: Tensor, labels: Tensor) -> Any:
        """The loss."""
        total = _sum(self, loss_dict, embeddings)
        return super().forward(loss_dict, embeddings, labels) if total is None else total


def _sum(reducer: MultipleReducers, loss_dict: dict[str, Any], embeddings: Tensor) -> Tensor | None:
    """The sum of sub-losses that are all reduced, in the dtype of the embeddings.

    The host writes each into a vector and sums it; with the backward pass this takes a tenth of the time of a small
    batch's loss. None if a sub-loss is not reduced, or a reducer collects statistics: then the host must do it.
    """
    if reducer.collect_stats or any(each.collect_stats for each in reducer.reducers.values()):
        return None
    losses = [part["losses"] for part in loss_dict.values() if part["reduction_type"] == "already_reduced"]
    if len(losses) < len(loss_dict) or not all(isinstance(loss, Tensor) and loss.ndim == 0 for loss in losses):
        return None
    total: Tensor | None = reduce(add, losses) if losses else None
    return total if total is None or total.dtype == embeddings.dtype else total.to(embeddings.dtype)
