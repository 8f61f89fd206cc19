"""What to compute over the pairs of a batch, and the result."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

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


UNIT = "pass a number in the unit of the distance"


SMALLER = "normalise or scale the embeddings, or pass them in float64"
