"""Checks of inputs that the host omits: shapes, dtypes, magnitudes, gradients, labels behind index tuples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from ..functional.checks import (
    assert_blindly,
    at_least_float32,
    check_labels,
    check_matrix,
    check_same_features,
    is_blind,
    largest_magnitude,
    problem,
)
from ..functional.pair_tiles.options import Distance
from ..margins.base import IndicesTuple

HALF = {torch.float16, torch.bfloat16}


def check_batch(
    embeddings: Tensor,
    labels: Tensor | None,
    indices_tuple: IndicesTuple | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    host: nn.Module | None = None,
) -> None:
    """Raises unless the five arguments of a loss or miner match each other and contain numbers that it can use.

    Without a host, they are for a loss that computes in at least float32.
    """
    check_embeddings("embeddings", embeddings, host)
    if labels is not None:
        check_labels("labels", labels, len(embeddings))
    elsewhere = ref_emb is not None and ref_emb is not embeddings
    if ref_emb is not None and elsewhere:
        check_embeddings("ref_emb", ref_emb, host)
        check_same_features("ref_emb", ref_emb, "embeddings", embeddings)
    if ref_labels is not None:
        check_labels("ref_labels", ref_labels, len(embeddings if ref_emb is None else ref_emb), of="ref_emb")
    if indices_tuple is not None:
        check_indices(indices_tuple)
    elif labels is None:
        remedy = "pass one label per row, or, to a loss, an indices_tuple"
        raise ValueError(problem("labels", "given", "None", remedy))
    elif elsewhere and ref_labels is None:
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


def check_indices(indices_tuple: Any) -> None:
    """Raises unless these are triplets (a, p, n) or pairs (a1, p, a2, n) of indices."""
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


def host_dtype(host: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """The dtype to which a batch is cast for a host.

    Losses with class weights cast them permanently to the dtype of each batch: one half-precision batch would convert
    the weights, and their optimiser updates, to half precision. So the batch is cast instead (float32 and float64 are
    left to the host). The host skips its cast only under CUDA autocast, whatever the device of the batch. Also,
    ``cdist``, which its L_p distances use, does not support bfloat16.
    """
    weight = next(host.parameters(), None) if hasattr(host, "cast_types") else None
    if weight is not None and not torch.is_autocast_enabled() and not HALF.isdisjoint((dtype, weight.dtype)):
        return weight.dtype
    if dtype == torch.bfloat16 and isinstance(host.distance, LpDistance):
        return torch.float32
    return dtype


def casts(host: nn.Module, x: Tensor) -> dict[str, Any]:
    """What replaces a host's cast of its class weights, where there is nothing to cast.

    The host assigns ``W.data`` in each call. With several threads torch can then wait for itself: the assignment holds
    the interpreter and waits for the weight's lock, another thread holds that lock and waits for the interpreter.
    """
    if not hasattr(host, "cast_types"):
        return {}
    own = [value for value in vars(host).values() if isinstance(value, Tensor) and value.is_floating_point()]
    done = all((tensor.dtype, tensor.device) == (x.dtype, x.device) for tensor in (*host.parameters(), *own))
    return {"cast_types": _leave} if done else {}


def _leave(dtype: torch.dtype, device: torch.device) -> None:
    """In the place of ``cast_types``."""


def check_embeddings(argument: str, x: Tensor, host: nn.Module | None = None) -> None:
    """Raises unless this is a finite matrix whose norms fit the host's dtype: larger rows would become zero."""
    check_matrix(argument, x)
    largest = largest_magnitude(argument, x)
    if is_blind(x) or x.numel() == 0:
        return
    dtype = torch.promote_types(x.dtype, torch.float32) if host is None else host_dtype(host, x.dtype)
    remedy = "scale the embeddings, or normalise them before the loss"
    if dtype != torch.float16:
        bound = math.sqrt(torch.finfo(dtype).max / (4 * x.shape[1]))
        if largest.item() > bound:
            expected = f"below {bound:.1e} in magnitude, or squared distances overflow {dtype}"
            raise ValueError(problem(argument, expected, f"{largest.item():.1e}", remedy))
    elif host is not None and host.distance.normalize_embeddings:  # type: ignore[union-attr]
        norms = x.detach().float().norm(dim=1)
        smallest, most = 2.0**-24, torch.finfo(dtype).max  # F.normalize divides by what float16 rounds to 0 or ∞
        if norms.amin().item() < smallest or norms.amax().item() > most:
            expected = f"of rows with norms from {smallest:.0e} to {most:.0f}, or {dtype} cannot normalise them"
            raise ValueError(problem(argument, expected, f"{norms.amin():.1e} to {norms.amax():.1e}", remedy))


def is_own_reference(embeddings: Tensor, labels: Any, ref_emb: Tensor | None, ref_labels: Any) -> bool:
    """Whether a batch is compared only with itself: no reference, or the same object without its own labels.

    The host tests whether the labels are one object; with different labels the same rows are a different set.
    """
    return ref_emb is None or (ref_emb is embeddings and (ref_labels is None or ref_labels is labels))


def as_seen(host: nn.Module, embeddings: Tensor, ref_emb: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Embeddings as the host's distance sees them, normalised if it normalises, in at least float32; if they are one
    object, the same object twice.
    """
    distance: Any = host.distance
    seen = distance.maybe_normalize(at_least_float32(embeddings))
    if ref_emb is None or ref_emb is embeddings:
        return seen, None if ref_emb is None else seen
    return seen, distance.maybe_normalize(at_least_float32(ref_emb))


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


def check_loss(value: Any, of: str) -> Any:
    """Returns a loss, or raises a ``ValueError`` if it is not finite; on CUDA a device-side assertion."""
    if isinstance(value, dict):  # the host's DoNothingReducer returns its losses as they are
        for part in value.values():
            check_loss(part["losses"] if isinstance(part, dict) else part, of)
    if not isinstance(value, Tensor):
        return value
    if is_blind(value):
        assert_blindly(torch.isfinite(value.detach()).all(), f"the value of {of} must be finite")
    elif not (math.isfinite(value.item()) if value.numel() == 1 else torch.isfinite(value.detach()).all()):
        remedy = (
            "its formula has no value here: look for identical or vanishing embeddings, or too large a scale or margin"
        )
        got = value.item() if value.numel() == 1 else f"NaN or infinity among {value.numel()}"
        raise ValueError(problem(f"the value of {of}", "finite", got, remedy))
    return value


def _overflow_is_expected(x: Tensor) -> bool:
    """Whether a loss scaler checks for overflow and skips the step: in float16, and under float16 autocast."""
    kind = x.device.type
    return x.dtype == torch.float16 or (
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    )


class GradientGuard:
    """Raises if a loss or the gradient of a batch is not finite: some host formulas have no finite value if embeddings
    coincide.

    It checks gradients only where this needs no synchronisation: not on CUDA or in compiled code. Overflow in float16,
    or under autocast, is left to the loss scaler: embeddings that are not finite then give a loss and gradients of NaN,
    and a loss that is not finite is passed on, so that the scaler skips the step.

    Args:
        of: the name of the host.
    """

    def __init__(self, of: str) -> None:
        self.of = of
        self.expected = False
        self.scaled = False
        self.overflow: list[Tensor] = []

    def settled(self, x: Any) -> Any:
        """The batch; if a scaler handles overflow and the batch is not finite, ones instead of it."""
        if not isinstance(x, Tensor) or not x.is_floating_point() or not _overflow_is_expected(x):
            return x
        self.expected = True
        overflow = ~torch.isfinite(x.detach()).all()
        if not is_blind(x) and not overflow.item():
            return x
        self.overflow.append(overflow)
        settled: Tensor = _Settled.apply(x, overflow)
        return settled

    def watch(self, x: Tensor) -> Tensor:
        """The batch, watched."""
        aside = is_blind(x) or torch.is_autocast_enabled(x.device.type)
        if aside or not (x.requires_grad and torch.is_grad_enabled()):
            return x
        guarded: Tensor = _Guarded.apply(x, self)
        return guarded

    def note(self, value: Any) -> Any:
        """The loss, checked; the guard records whether it is scaled."""
        if not self.expected:
            return check_loss(value, self.of)
        if isinstance(value, Tensor):
            if value.requires_grad and not is_blind(value):
                value.register_hook(self._note)
            for overflow in self.overflow:
                value = value * torch.where(overflow, math.nan, 1.0).to(value.dtype)
        return value

    def _note(self, grad: Tensor) -> None:
        self.scaled = not bool(grad.abs().max() <= 1)

    def check(self, grad: Tensor) -> None:
        """Raises a ``ValueError`` unless the gradient is finite."""
        scalers_business = self.overflow or (grad.dtype == torch.float16 and self.scaled)
        if grad.numel() and not scalers_business and not math.isfinite(grad.detach().abs().amax().item()):
            remedy = "its formula has none where embeddings coincide or vanish; remove duplicates or add noise"
            raise ValueError(problem(f"the gradient of {self.of}", "finite", "NaN or infinity", remedy))


class _Settled(torch.autograd.Function):
    """Ones instead of a batch that overflowed, and NaN as its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, overflow: Tensor) -> Tensor:
        ctx.overflow = overflow
        return torch.where(overflow, torch.ones_like(x), x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (grad,) = grads
        return torch.where(ctx.overflow, torch.full_like(grad, math.nan), grad), None


class _Guarded(torch.autograd.Function):
    """The identity, whose gradient is checked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, guard: GradientGuard) -> Tensor:
        ctx.guard = guard
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (grad,) = grads
        ctx.guard.check(grad)
        return grad, None


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
    anchors, positives = (index.detach().cpu().numpy() for index in indices_tuple[:2])
    nodes = rows + (ref_rows or 0)
    links = coo_array(
        (np.ones(len(anchors), dtype=np.int8), (anchors, positives + (rows if ref_rows is not None else 0))),
        shape=(nodes, nodes),
    )
    components = connected_components(links, directed=False)[1]
    labels = torch.as_tensor(components, dtype=torch.int64, device=indices_tuple[0].device)
    return labels[:rows], (labels[rows:] if ref_rows is not None else labels)
