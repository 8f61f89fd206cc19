"""Whether a data set says who is in its pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..messages import problem


def check_people(people: NDArray[np.int64], identity: str, needed: str) -> None:
    """Raises a ``ValueError`` unless it is known who is in every picture."""
    unknown = int((people < 0).sum())
    if identity == "picture" or unknown:
        got = "a data set that does not identify people" if identity == "picture" else f"{unknown} rows without one"
        remedy = "use faces, afew-va, aff-wild or aff-wild2, or leave it out"
        raise ValueError(problem(f"people, for {needed},", "known for every row", got, remedy))
