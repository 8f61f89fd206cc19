"""What a loss or miner is called with: checked, moved and cast once, in one place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.distances import LpDistance
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from ..functional.checks import (
    assert_blindly,
    at_least_float32,
    check_indices,
    check_labels,
    check_matrix,
    check_same_features,
    check_values,
    is_blind,
    largest_number,
)
from ..functional.normalised import normalised
from ..margins.base import IndicesTuple
from ..messages import problem
from .gradient_guard import GradientGuard

HALF = {torch.float16, torch.bfloat16}


@dataclass(eq=False)  # not frozen: torch.compile cannot follow that before 2.9
class Batch:
    """The arguments of one call of a loss or miner, on one device, in the dtype that the host computes in.

    What was one object stays one: the host then leaves out comparisons of a row with itself.

    Attributes:
        host: the loss or miner.
        embeddings: shape ``(B, D)``.
        labels: int64, shape ``(B,)``, or None where ``indices`` say which pairs are positive.
        indices: an index tuple, or None for all pairs.
        ref_emb: shape ``(R, D)``, or None without references.
        ref_labels: shape ``(R,)``, or None.
        tiled: whether the loss of this batch runs in tiles, if it asked.
    """

    host: nn.Module
    embeddings: Tensor
    labels: Any = None
    indices: Any = None
    ref_emb: Tensor | None = None
    ref_labels: Any = None
    tiled: bool = False

    @classmethod
    def checked(
        cls,
        host: nn.Module,
        guard: GradientGuard | None,
        *arguments: Any,
        check: Check | None = None,
        own_dtype: bool = False,
        takes_tiles: Callable[[Batch], bool] | None = None,
        alone: bool = False,
    ) -> Batch:
        """A batch from the five arguments of a call, or an error that names one of them.

        Args:
            host: the loss or miner.
            guard: watches the embeddings; None if they get no gradient from this.
            arguments: embeddings, labels, index tuple, ref_emb, ref_labels.
            check: by default :func:`check_batch`.
            own_dtype: the host computes half precision in float32 by itself.
            takes_tiles: whether the loss of a batch that is not empty runs in tiles.
            alone: whether nothing beside the loss's formula has a gradient. In tiles, which compute in float32, only a
                float16 gradient can then fail to be finite.
        """
        embeddings, labels, indices, ref_emb, ref_labels = arguments
        for name, x in (("embeddings", embeddings), ("ref_emb", ref_emb)):
            if isinstance(x, Tensor):
                check_values(name, x)
        if guard is not None:
            embeddings, ref_emb = _both(guard.settled, embeddings, ref_emb)
        labels, ref_labels = as_classes(labels, ref_labels)
        indices = as_index_tuple(indices)
        given = cls(host, embeddings, labels, indices, ref_emb, ref_labels)
        (check or check_batch)(given, own_dtype)
        if isinstance(indices, (tuple, list)):  # torch 2.6 does not compile a union
            indices = placed(given)
        tiled = takes_tiles is not None and len(embeddings) > 0 and takes_tiles(given)
        if guard is not None and tiled and alone:
            guard.only_half = True

        def ready(x: Tensor) -> Tensor:
            watched = x if guard is None else guard.watch(x)
            return watched if own_dtype else watched.to(host_dtype(host, x.dtype))

        if given.others and not own_dtype:  # the host wants one dtype; the finer one holds both
            finer = torch.promote_types(embeddings.dtype, ref_emb.dtype)
            embeddings, ref_emb = embeddings.to(finer), ref_emb.to(embeddings.device, finer)
        rows = _both(ready, embeddings, ref_emb)
        labels, ref_labels = _both(lambda y: y.to(embeddings.device), labels, ref_labels)
        return cls(host, rows[0], labels, indices, rows[1], ref_labels, tiled)

    @property
    def arguments(self) -> tuple[Any, Any, Any, Any, Any]:
        """All five, in the host's order."""
        return self.embeddings, self.labels, self.indices, self.ref_emb, self.ref_labels

    def changed(self, **changes: Any) -> Batch:
        """The same with other attributes."""
        names = ("host", "embeddings", "labels", "indices", "ref_emb", "ref_labels", "tiled")
        # torch 2.6 does not compile dataclasses.replace
        return Batch(**{name: changes[name] if name in changes else getattr(self, name) for name in names})

    @property
    def itself(self) -> bool:
        """Whether it is compared only with itself: no reference, or the same object without its own labels.

        The host tests whether the labels are one object; with different labels the same rows are a different set.
        """
        own_labels = self.ref_labels is None or self.ref_labels is self.labels
        return self.ref_emb is None or (self.ref_emb is self.embeddings and own_labels)

    @property
    def others(self) -> bool:
        """Whether the references are other rows than its own."""
        return self.ref_emb is not None and self.ref_emb is not self.embeddings

    @property
    def empty(self) -> bool:
        """Whether there are no rows, or no references: then there is no margin either."""
        return len(self.embeddings) == 0 or (self.ref_emb is not None and len(self.ref_emb) == 0)

    def grouped(self) -> Batch:
        """With labels, if only its index tuple says what belongs together."""
        if self.labels is not None or self.indices is None:
            return self
        ref_rows = None if self.ref_emb is None or self.ref_emb is self.embeddings else len(self.ref_emb)
        labels, ref_labels = labels_from_indices(self.indices, len(self.embeddings), ref_rows)
        return self.changed(labels=labels, ref_labels=ref_labels)

    def seen(self, once: bool = False) -> Batch:
        """As the host's distance sees it: normalised if it normalises, in at least float32; its own reference as none.

        A margin takes these rows. ``once`` if nobody asks for a second derivative.
        """
        distance: Any = self.host.distance
        euclidean = distance.normalize_embeddings and distance.p == 2
        normalise = normalised if once and euclidean else distance.maybe_normalize

        def as_seen(x: Tensor) -> Tensor:
            rows: Tensor = normalise(at_least_float32(x))
            return rows

        if self.itself:
            return self.changed(embeddings=as_seen(self.embeddings), ref_emb=None, ref_labels=None)
        rows, ref_rows = _both(as_seen, self.embeddings, self.ref_emb)
        return self.changed(embeddings=rows, ref_emb=ref_rows)


Check = Callable[[Batch, bool], None]


def _both(of: Callable[[Any], Any], first: Any, second: Any) -> tuple[Any, Any]:
    """A function of both that are given; of one object twice, the same object twice."""
    changed = None if first is None else of(first)
    return changed, changed if second is first else None if second is None else of(second)


def check_batch(batch: Batch, own_dtype: bool = False) -> None:
    """Raises unless the five arguments of a loss or miner match each other and contain numbers that it can use."""
    embeddings, labels, indices, ref_emb, ref_labels = batch.arguments
    host = None if own_dtype else batch.host
    check_embeddings("embeddings", embeddings, host)
    if labels is not None:
        check_labels("labels", labels, len(embeddings))
    if batch.others:
        check_embeddings("ref_emb", ref_emb, host)
        check_same_features("ref_emb", ref_emb, "embeddings", embeddings)
    if ref_labels is not None:
        check_labels("ref_labels", ref_labels, len(embeddings if ref_emb is None else ref_emb), of="ref_emb")
    if indices is not None:
        check_index_tuple(indices)
    elif labels is None:
        remedy = "pass one label per row, or, to a loss, an indices_tuple"
        raise ValueError(problem("labels", "given", "None", remedy))
    elif batch.others and ref_labels is None:
        raise ValueError(problem("ref_labels", "given with ref_emb", "None", "pass the labels of ref_emb"))


def as_classes(labels: Any, ref_labels: Any = None) -> tuple[Any, Any]:
    """Labels, and those of references, as int64, which the host's losses use as indices; if they are one object, the
    same object twice.

    Whole numbers in any dtype are accepted. Other values are left unchanged, so that the checks reject them.
    """
    integers = _as_integers("labels", labels)
    return integers, integers if ref_labels is labels else _as_integers("ref_labels", ref_labels)


def _as_integers(argument: str, labels: Any) -> Any:
    if not isinstance(labels, Tensor) or labels.dtype == torch.int64 or labels.is_complex():
        return labels
    integers = labels.detach().long()
    if labels.is_floating_point() or labels.dtype == torch.uint64:
        fits = integers == labels if labels.is_floating_point() else integers >= 0
        if is_blind(labels):
            assert_blindly(fits.all(), f"{argument} must be whole numbers of int64")
        elif not fits.all():
            if labels.is_floating_point():
                return labels
            remedy = "number the classes from 0"
            raise ValueError(problem(argument, "below 2**63", int(integers.min()) % 2**64, remedy))
    return integers


def as_index_tuple(indices_tuple: Any) -> Any:
    """An index tuple of arrays or lists as one of tensors, and with integers where it is empty, as the host's triplet
    losses take it. Anything else is left unchanged, for the checks.
    """
    if not isinstance(indices_tuple, (tuple, list)):  # torch 2.6 does not compile a union
        return indices_tuple
    try:
        indices = [torch.as_tensor(x) if isinstance(x, (np.ndarray, list)) else x for x in indices_tuple]
    except (TypeError, ValueError):  # of no numbers
        return indices_tuple
    empty = [isinstance(x, Tensor) and x.is_floating_point() and x.numel() == 0 for x in indices]
    return tuple(x.long() if nothing else x for x, nothing in zip(indices, empty, strict=True))


def check_index_tuple(indices_tuple: Any) -> None:
    """Raises unless these are triplets (a, p, n) or pairs (a1, p, a2, n) of vectors."""
    expected = "triplets (a, p, n) or pairs (a1, p, a2, n)"
    if not isinstance(indices_tuple, tuple | list) or not all(isinstance(x, Tensor) for x in indices_tuple):
        got = type(indices_tuple).__name__
        raise TypeError(problem("indices_tuple", f"a tuple of tensors: {expected}", got, "pass a miner's output"))
    if len(indices_tuple) not in (3, 4):
        raise ValueError(problem("indices_tuple", expected, f"{len(indices_tuple)} tensors", "pass a miner's output"))
    sizes = [tuple(x.shape) for x in indices_tuple]
    groups = (sizes,) if len(sizes) == 3 else (sizes[:2], sizes[2:])
    if any(x.ndim != 1 for x in indices_tuple) or any(len(set(group)) != 1 for group in groups):
        got = f"shapes {', '.join(map(str, sizes))}"
        raise ValueError(problem("indices_tuple", f"one-dimensional {expected} of one length", got, "see its miner"))


def placed(batch: Batch) -> Any:
    """The index tuple of a batch on its device; raises unless they are indices into its rows and references."""
    names = ("anchors", "positives", *(("anchors",) if len(batch.indices) == 4 else ()), "negatives")
    moved = []
    for name, index in zip(names, batch.indices, strict=True):
        check_values(f"indices_tuple's {name}", index)
        moved.append(index.to(batch.embeddings.device))
        of, rows = "embeddings", batch.embeddings
        if name != "anchors" and batch.ref_emb is not None:
            of, rows = "ref_emb", batch.ref_emb
        check_indices(f"indices_tuple's {name}", moved[-1], len(rows), of)
    return tuple(moved)


def check_embeddings(argument: str, x: Tensor, host: nn.Module | None = None) -> None:
    """Raises unless this is a finite matrix whose norms fit the host's dtype: larger rows would become zero."""
    check_matrix(argument, x)
    largest = largest_number(argument, x)
    if isinstance(largest, Tensor) or x.numel() == 0:
        return
    dtype = torch.promote_types(x.dtype, torch.float32) if host is None else host_dtype(host, x.dtype)
    remedy = "scale the embeddings, or normalise them before the loss"
    if dtype != torch.float16:
        bound = math.sqrt(torch.finfo(dtype).max / (4 * x.shape[1]))
        if largest > bound:
            expected = f"below {bound:.1e} in magnitude, or squared distances overflow {dtype}"
            raise ValueError(problem(argument, expected, f"{largest:.1e}", remedy))
    elif host is not None and host.distance.normalize_embeddings:  # type: ignore[union-attr]
        norms = x.detach().float().norm(dim=1)
        smallest, most = 2.0**-24, torch.finfo(dtype).max  # F.normalize divides by what float16 rounds to 0 or ∞
        if norms.amin().item() < smallest or norms.amax().item() > most:
            expected = f"of rows with norms from {smallest:.0e} to {most:.0f}, or {dtype} cannot normalise them"
            raise ValueError(problem(argument, expected, f"{norms.amin():.1e} to {norms.amax():.1e}", remedy))


def host_dtype(host: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """The dtype to which a batch is cast for a host.

    Losses with class weights cast them permanently to the dtype of each batch: one half-precision batch would convert
    the weights, and their optimiser updates, to half precision. So the batch is cast instead (float32 and float64 are
    left to the host). The host skips its cast only under CUDA autocast, whatever the device of the batch. Also,
    ``cdist``, which its L_p distances use, does not support bfloat16.
    """
    weight = next(host.parameters(), None) if hasattr(type(host), "cast_types") else None
    if weight is not None and not torch.is_autocast_enabled() and not HALF.isdisjoint((dtype, weight.dtype)):
        return weight.dtype
    if dtype == torch.bfloat16 and isinstance(host.distance, LpDistance):
        return torch.float32
    return dtype


def labels_from_indices(indices_tuple: IndicesTuple, rows: int, ref_rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Groups for embeddings with index tuples and no labels: rows connected by positive pairs belong together.

    Args:
        indices_tuple: triplets ``(a, p, n)`` or pairs ``(a1, p, a2, n)``.
        rows: B, the number of embeddings that ``a`` indexes.
        ref_rows: R, if ``p`` and ``n`` index another set; ``None`` if they index the same set.

    Returns:
        int64 labels ``(B,)`` and reference labels ``(R,)`` (the same labels if there is no other set).

    Example:
        >>> labels, _ = labels_from_indices((torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([3, 3])), 4)
        >>> labels
        tensor([0, 0, 0, 1])
    """
    # 32 bits: scipy 1.11 finds no components in others, and only prints why
    anchors, positives = (index.detach().cpu().numpy().astype(np.int32) for index in indices_tuple[:2])
    nodes = rows + (ref_rows or 0)
    links = coo_array(
        (np.ones(len(anchors), dtype=np.int8), (anchors, positives + (rows if ref_rows is not None else 0))),
        shape=(nodes, nodes),
    )
    components = connected_components(links, directed=False)[1]
    labels = torch.as_tensor(components, dtype=torch.int64, device=indices_tuple[0].device)
    return (labels, labels) if ref_rows is None else (labels[:rows], labels[rows:])
