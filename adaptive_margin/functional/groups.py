"""Labels as consecutive indices, without a host-device synchronisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checks import is_blind


def group_index(labels: Tensor) -> Tensor:
    """Numbers the distinct labels 0, 1, … in increasing order of label.

    Like ``torch.unique(labels, return_inverse=True)[1]``, but the shape of the output does not depend on the data, so
    it neither waits for the device nor breaks a compiled graph.

    Example:
        >>> group_index(torch.tensor([7, -1, 7, 40]))
        tensor([1, 0, 1, 2])
    """
    if len(labels) == 0:
        return labels.to(torch.int64)
    if not is_blind(labels):
        return torch.from_numpy(index_on_host(labels))
    ordered, order = torch.sort(labels)
    first_of_group = torch.zeros_like(order)
    first_of_group[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(order).scatter_(0, order, first_of_group.cumsum(0))


def index_on_host(labels: Tensor) -> NDArray[Any]:
    """:func:`group_index` as an array, for at least one label whose values can be read without waiting."""
    numbers = labels.numpy().astype(np.int64)
    if numbers.min() < 0 or numbers.max() > 4 * len(numbers):
        return np.unique(numbers, return_inverse=True)[1]
    there = np.bincount(numbers) > 0
    return numbers if there.all() else (there.cumsum() - 1)[numbers]


def group_slots(index: Tensor, rows: int) -> int:
    """The number of groups to allocate: their number, or the safe bound ``rows`` if counting would synchronise."""
    if is_blind(index):
        return rows
    return int(index.max()) + 1 if len(index) else 0


def rows_at_once(x: Tensor) -> int:
    """How many rows to convert to a wider dtype at a time: about a million numbers."""
    return max(1, 2**20 // max(1, x[0].numel())) if len(x) else 1


def group_sums(x: Tensor, index: Tensor, groups: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Sums the rows of each group in ``dtype``, a few thousand rows at a time.

    Args:
        x: shape ``(B, D)`` or ``(B,)``.
        index: the group of each row, int64 of shape ``(B,)``, in ``[0, groups)``.
        groups: G, the number of sums to return.
        dtype: dtype of the sums; float64 keeps them exact enough to subtract.

    Returns:
        Shape ``(G, D)`` or ``(G,)``; zero for a group without rows.

    Example:
        >>> group_sums(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 1, 0]), 2)
        tensor([[5.], [2.]], dtype=torch.float64)
    """
    sums = torch.zeros((groups, *x.shape[1:]), dtype=dtype, device=x.device)
    rows = rows_at_once(x)
    if len(x) <= rows:
        return sums.index_add(0, index, x.to(dtype))
    for part, part_index in zip(torch.split(x, rows), torch.split(index, rows), strict=True):
        sums = sums.index_add(0, part_index, part.to(dtype))
    return sums


def class_sizes(index: Tensor, ref_index: Tensor) -> Tensor:
    """How many rows of a reference set share the label of each row, int64; 0 for a label that is not in it.

    Labels are numbered from 0 over rows ``(B,)`` and references ``(R,)`` together.

    Example:
        >>> class_sizes(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
        tensor([2, 1, 0])
    """
    if ref_index is index:
        slots = group_slots(index, len(index))
    else:
        slots = max(group_slots(part, len(index) + len(ref_index)) for part in (index, ref_index))
    counts = torch.zeros(slots, dtype=torch.int64, device=index.device)
    return counts.index_add(0, ref_index, torch.ones_like(ref_index))[index]


def more_labels_than(number: int, labels: Tensor) -> bool | Tensor:
    """Whether there are more than ``number`` distinct labels; a 0-dim bool tensor if a Python bool would synchronise.

    Example:
        >>> more_labels_than(2, torch.tensor([7, 7, 9, -1]))
        True
    """
    if not is_blind(labels):
        rest = labels.numpy()
        for _ in range(number):
            if len(rest) == 0:
                return False
            rest = rest[rest != rest[0]]
        return len(rest) > 0
    ordered = torch.sort(labels).values
    return (ordered[1:] != ordered[:-1]).sum() >= number
