"""Checks of tensors and numbers, in one place; :mod:`adaptive_margin.messages` words what they say."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..messages import problem

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_matrix(argument: str, x: Tensor) -> None:
    """Raises unless ``x`` is a floating-point matrix of shape ``(rows, features)`` with at least one feature."""
    if not isinstance(x, Tensor):
        raise TypeError(problem(argument, "a torch.Tensor", type(x).__name__, "convert it with torch.as_tensor"))
    if x.ndim != 2 or x.shape[1] == 0:
        expected = "a matrix of shape (rows, features) with at least one feature"
        raise ValueError(problem(argument, expected, f"shape {tuple(x.shape)}", "pass one row per sample"))
    if not x.is_floating_point():
        raise TypeError(problem(argument, "floating point", x.dtype, f"convert it with {argument}.float()"))
    if x.dtype not in FLOATS:  # of eight bits, with which torch stores and does not compute
        expected = "float16, bfloat16, float32 or float64"
        raise TypeError(problem(argument, expected, x.dtype, f"use {argument}.float() to compute in float32"))


def check_columns(argument: str, x: Tensor, ndims: tuple[int, ...] = (1, 2), empty: bool = False) -> None:
    """Raises unless ``x`` is real, of shape ``(N,)`` or ``(N, L)`` as ``ndims`` say; without rows only if ``empty``."""
    if not isinstance(x, Tensor):
        raise TypeError(problem(argument, "a torch.Tensor", type(x).__name__, "convert it with torch.as_tensor"))
    if x.is_complex():
        remedy = f"pass {argument}.abs() for magnitudes"
        if 2 in ndims:
            remedy = "pass real and imaginary part as columns"
        raise TypeError(problem(argument, "real numbers", x.dtype, remedy))
    if x.ndim not in ndims or 0 in x.shape[int(empty) :]:
        shapes = " or ".join(("(N,)", "(N, L)")[ndim - 1] for ndim in ndims)
        expected = f"of shape {shapes}{' with L >= 1' if empty else ', not empty'}"
        columns = "pass one row per sample and one column per label"
        remedy = "pass at least one number" if x.ndim == 1 in ndims else columns
        raise ValueError(problem(argument, expected, f"shape {tuple(x.shape)}", remedy))


def check_number(argument: str, value: object, expected: str, remedy: str) -> float:
    """Raises a ``TypeError`` unless ``value`` is one real number; returns it as a float."""
    try:
        if not isinstance(value, str):
            return float(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer of more than 308 digits
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(problem(argument, expected, repr(value), remedy))


def check_values(argument: str, x: Tensor) -> None:
    """Raises unless ``x`` has values that can be computed with: dense ones, on a device that stores them."""
    if x.layout != torch.strided:
        raise TypeError(problem(argument, "dense", x.layout, f"convert it with {argument}.to_dense()"))
    if x.is_meta:
        raise ValueError(problem(argument, "on a device with values", "meta", "make the batch on the CPU or a GPU"))


def check_fits(argument: str, value: float, dtype: torch.dtype, remedy: str) -> None:
    """Raises a ``ValueError`` unless a number is finite, also in ``dtype``."""
    if not abs(value) <= torch.finfo(dtype).max:
        expected = f"finite in {dtype}" if math.isfinite(value) else "finite"
        raise ValueError(problem(argument, expected, value, remedy))


def is_blind(x: Tensor) -> bool:
    """Whether reading the values of ``x`` would wait for a device, or break a compiled graph or a transformation."""
    return torch.compiler.is_compiling() or not x.is_cpu or torch._C._are_functorch_transforms_active()


def is_transforming() -> bool:
    """Whether a transformation of :mod:`torch.func` (``grad``, ``jacrev``, ``vmap``) is active."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def is_many(x: Tensor) -> bool:
    """Whether ``x`` stands for many gradients at once (``is_grads_batched=True``), so that it cannot be read."""
    return is_transforming() or torch._C._functorch.is_legacy_batchedtensor(x)


def assert_blindly(condition: Tensor, message: str) -> None:
    """A device-side assertion that all of ``condition`` is true; also works inside transformations."""
    if is_transforming():
        while torch._C._functorch.is_functorch_wrapped_tensor(condition):
            condition = torch._C._functorch.get_unwrapped(condition)
        condition = condition.all()
    torch._assert_async(condition, message)


def check_finite(argument: str, x: Tensor) -> None:
    """Raises a ``ValueError`` if ``x`` contains NaN or infinity.

    On CUDA and inside ``torch.compile`` a Python branch on data would stop the device or break the graph:
    there the same condition is a device-side assertion, which fails at the next synchronisation.
    """
    largest_number(argument, x)


def largest_magnitude(argument: str, x: Tensor) -> Tensor:
    """The largest absolute value of a finite ``x``, 0-dim, 0 if it is empty; raises like :func:`check_finite`."""
    largest = largest_number(argument, x)
    return largest if isinstance(largest, Tensor) else x.new_full((), largest)


def largest_number(argument: str, x: Tensor) -> float | Tensor:
    """:func:`largest_magnitude` as a Python number where reading it does not wait for a device."""
    check_values(argument, x)
    if x.numel() == 0:
        return 0.0
    low, high = torch.aminmax(x.detach())  # NaN and infinity propagate
    if is_blind(x):
        largest = torch.maximum(-low, high)
        assert_blindly(torch.isfinite(largest), f"{argument} must be finite, got NaN or infinity")
        return largest
    number = max(-low.item(), high.item())
    if not math.isfinite(number):
        broken = ~torch.isfinite(x.detach())
        first = tuple(broken.nonzero()[0].tolist())
        got = f"{int(broken.sum())} NaN or infinite of {x.numel()} values, the first at {first}"
        raise ValueError(problem(argument, "finite", got, "look for a diverged network or a broken input"))
    return number


TO_LABELS = "convert it with torch.as_tensor; turn names into numbers with np.unique(names, return_inverse=True)[1]"


def check_labels(argument: str, labels: Tensor, rows: int, of: str = "embeddings") -> None:
    """Raises unless ``labels`` is one integer label for each of ``rows`` rows."""
    if not isinstance(labels, Tensor):
        raise TypeError(problem(argument, "a torch.Tensor", type(labels).__name__, TO_LABELS))
    check_values(argument, labels)
    if labels.ndim != 1:
        remedy = "pass one integer label per row"
        raise ValueError(problem(argument, "one-dimensional", f"shape {tuple(labels.shape)}", remedy))
    if len(labels) != rows:
        expected = f"as long as {of} ({rows} rows)"
        raise ValueError(problem(argument, expected, f"{len(labels)} labels", f"pass one label per row of {of}"))
    if labels.dtype == torch.uint64:  # as int64 they would be negative, perhaps -1, the mark of no group
        _check_below_2_63(argument, labels)
    if labels.is_floating_point() or labels.is_complex():
        remedy = "group continuous targets first, with OtsuGrouper for instance"
        raise TypeError(problem(argument, "integers", labels.dtype, remedy))


def _check_below_2_63(argument: str, labels: Tensor) -> None:
    negative = labels.view(torch.int64) < 0
    if is_blind(labels):
        torch._assert_async(~negative.any(), f"{argument} must be below 2**63")
    elif bool(negative.any()):
        raise ValueError(problem(argument, "below 2**63", "a larger one", "number the labels from 0"))


def check_indices(argument: str, indices: Tensor, rows: int, of: str = "embeddings") -> None:
    """Raises unless ``indices`` are indices into ``rows`` rows; if reading would wait, like :func:`check_finite`."""
    expected, remedy = "a one-dimensional tensor of integers", "pass a miner's output"
    if not isinstance(indices, Tensor):
        raise TypeError(problem(argument, expected, type(indices).__name__, remedy))
    if indices.ndim != 1:
        raise ValueError(problem(argument, expected, f"shape {tuple(indices.shape)}", remedy))
    if indices.dtype not in (torch.int64, torch.int32):
        raise TypeError(problem(argument, expected, f"{indices.dtype} of shape {tuple(indices.shape)}", remedy))
    if is_blind(indices):
        inside = ((indices >= 0) & (indices < rows)).all()
        assert_blindly(inside, f"{argument} must be in [0, {rows}) for the {rows} rows of {of}")
    elif len(indices):
        low, high = (int(bound) for bound in torch.aminmax(indices))
        if low < 0 or high >= rows:
            expected = f"in [0, {rows}) for the {rows} rows of {of}"
            raise ValueError(problem(argument, expected, f"{low} to {high}", "mine pairs of this batch and reference"))


def check_same_features(argument: str, x: Tensor, other_argument: str, other: Tensor) -> None:
    """Raises unless two matrices have the same number of features."""
    if x.shape[1] != other.shape[1]:
        expected = f"of the {other.shape[1]} features of {other_argument}"
        raise ValueError(problem(argument, expected, f"{x.shape[1]} features", "embed both with the same network"))


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32, anything finer stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
