"""What to compute over the pairs of a batch, and the result."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Distance = Literal["squared_l2", "l2", "cosine", "dot"]


Kind = Literal["inside", "across"]


Number = float | Tensor
"""A Python number if reading data is free (CPU), a 0-dim tensor if it would wait for the device."""


class PairTerms(NamedTuple):
    """The terms of contrastive losses; see :func:`pair_terms`."""

    attraction: Tensor
    repulsion: Tensor
    second_moment: Tensor
    counts: Tensor


class Options(NamedTuple):
    """The options of a measurement: everything that is not a tensor."""

    distance: str = "squared_l2"
    pos_margin: float = 0.0
    over_active: bool = False
    """Whether the mean attraction is over the pairs beyond ``pos_margin`` only, or over all pairs of a group."""
    second_moment: bool = False
    only_first: bool = False
    """Groups are 0 and 1, and only group 0 is pulled together."""
    ignore_label: int | None = None
    sizes: tuple[int, ...] | None = None
    """Sizes of the groups, if the rows are already sorted; then there are no labels."""
    counts: bool = True
    gradient_limit: float = math.inf
    """The largest number of the dtype in which the gradients are returned."""
    gradients: bool = True
    ref_gradients: bool = True
    margin_gradients: bool = True

    def but(self, **changes: Any) -> Options:
        """A copy with some options changed: ``_replace``, which torch 2.6 does not compile."""
        values = [changes.get(name, value) for name, value in zip(Options._fields, self, strict=True)]
        return Options(*values)  # type: ignore[arg-type]


def count_pairs(sizes: Tensor, ref_sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The numbers of pairs inside groups and across groups.

    Args:
        sizes: rows in each group, integers of shape ``(G,)``.
        ref_sizes: rows of a reference set in each group; a pair then takes one row from either set.

    Returns:
        Two 0-dim int64 tensors: pairs inside a group (without a reference set: unordered, no row with itself) and pairs
        across groups. Exact up to 2³¹ rows: 65,536 rows already have more pairs than int32 holds.

    Example:
        >>> count_pairs(torch.tensor([32768, 32768], dtype=torch.int32))
        (tensor(1073709056), tensor(1073741824))
    """
    sizes = sizes.to(torch.int64)
    if ref_sizes is None:
        inside = (sizes * (sizes - 1) // 2).sum()
        return inside, sizes.sum() * (sizes.sum() - 1) // 2 - inside
    ref_sizes = ref_sizes.to(torch.int64)
    inside = (sizes * ref_sizes).sum()
    return inside, sizes.sum() * ref_sizes.sum() - inside


UNIT = "pass a number in the unit of the distance"


SMALLER = "normalise or scale the embeddings, or pass them in float64"
