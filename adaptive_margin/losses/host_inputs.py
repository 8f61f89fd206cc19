"""What the host leaves unsaid about its inputs: labels behind index tuples, dtypes, gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..functional.checks import check_labels, check_matrix, check_same_features, largest_magnitude, problem
from ..margins.base import IndicesTuple


def check_batch(
    embeddings: Tensor,
    labels: Tensor | None,
    indices_tuple: IndicesTuple | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
) -> None:
    """Raises unless the five arguments of a host loss fit together and are finite."""
    check_matrix("embeddings", embeddings)
    _check_magnitude("embeddings", embeddings)
    if labels is not None:
        check_labels("labels", labels, len(embeddings))
    if ref_emb is not None and ref_emb is not embeddings:
        check_matrix("ref_emb", ref_emb)
        check_same_features("ref_emb", ref_emb, "embeddings", embeddings)
        _check_magnitude("ref_emb", ref_emb)
    if ref_labels is not None:
        check_labels("ref_labels", ref_labels, len(embeddings if ref_emb is None else ref_emb), of="ref_emb")
    if indices_tuple is not None and not isinstance(indices_tuple, Tensor) and len(indices_tuple) not in (3, 4):
        expected = "triplets (a, p, n) or pairs (a1, p, a2, n)"
        raise ValueError(problem("indices_tuple", expected, f"{len(indices_tuple)} tensors", "pass a miner's output"))


def _check_magnitude(argument: str, x: Tensor) -> None:
    """Finite, and small enough that a row's squared norm is: the host would normalise larger rows to zero."""
    largest = largest_magnitude(argument, x)
    if x.is_cuda or torch.compiler.is_compiling() or x.dtype in (torch.float16, torch.bfloat16):
        return  # norms of half-precision rows are taken in float32
    bound = math.sqrt(torch.finfo(x.dtype).max / (4 * x.shape[1]))
    if largest.item() > bound:
        remedy = "scale the embeddings down, or normalise them before the loss"
        expected = f"below {bound:.1e} in magnitude, or squared distances overflow {x.dtype}"
        raise ValueError(problem(argument, expected, f"{largest.item():.1e}", remedy))


def check_loss(value: Any, of: str) -> Any:
    """Returns a loss, or raises a ``ValueError`` where it is not finite; on CUDA a device-side assertion."""
    if not isinstance(value, Tensor):
        return value  # the host's DoNothingReducer returns a dictionary
    if value.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(torch.isfinite(value).all(), f"the value of {of} must be finite")
    elif not math.isfinite(value.item()):
        remedy = "its formula has no value here: look for identical or vanishing embeddings, or too large a scale"
        raise ValueError(problem(f"the value of {of}", "finite", value.item(), remedy))
    return value


class FiniteGradient(torch.autograd.Function):
    """The identity, whose gradient is checked: some host formulas have none where embeddings coincide."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, of: str) -> Tensor:
        """The input."""
        ctx.of = of
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        """The gradient, or a ``ValueError``."""
        (grad,) = grads
        if grad.numel() and not math.isfinite(grad.detach().abs().amax().item()):
            remedy = "its formula has none where embeddings coincide; remove duplicates or add noise"
            raise ValueError(problem(f"the gradient of {ctx.of}", "finite", "NaN or infinity", remedy))
        return grad, None


def with_finite_gradient(x: Tensor, of: str) -> Tensor:
    """Guards the gradient where that waits for nothing and an infinity is not a loss scaler's business."""
    precise = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)
    if x.requires_grad and precise and not x.is_cuda and not torch.compiler.is_compiling():
        guarded: Tensor = FiniteGradient.apply(x, of)
        return guarded
    return x


def in_weight_dtype(loss: torch.nn.Module, x: Tensor) -> Tensor:
    """Embeddings in the dtype of the loss's own weights.

    A host loss with weights casts them, for good, to the dtype of each batch: one half-precision batch would turn
    them, and what an optimiser does to them, half. The batch is cast instead. Under autocast the host casts nothing.
    """
    weight = next(loss.parameters(), None)
    if weight is None or x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(weight.dtype)


def labels_from_indices(indices_tuple: IndicesTuple, rows: int, ref_rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Groups for embeddings that come with index tuples and no labels: what positive pairs connect belongs together.

    Args:
        indices_tuple: triplets ``(a, p, n)`` or pairs ``(a1, p, a2, n)``.
        rows: B, the number of embeddings that ``a`` indexes.
        ref_rows: R, where ``p`` and ``n`` index another set; ``None`` where they index the same.

    Returns:
        int64 labels ``(B,)`` and reference labels ``(R,)`` (the same labels where there is no other set).

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
