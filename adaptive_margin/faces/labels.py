"""Feelings: every person has a distribution over the valence-arousal disc."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ._rows import Streams, mix

# Where feelings gather, how wide, and how often on average: most faces in the wild are neutral or pleased, strong
# negative feelings and low arousal are rare (AffectNet). Columns: valence, arousal, spread, share.
FEELINGS = np.array(
    [
        (0.00, 0.02, 0.10, 0.28),  # neutral
        (0.65, 0.12, 0.16, 0.30),  # happy
        (0.40, -0.35, 0.14, 0.06),  # calm
        (0.25, 0.68, 0.14, 0.09),  # surprised, excited
        (-0.20, 0.70, 0.14, 0.05),  # afraid
        (-0.50, 0.50, 0.15, 0.09),  # angry
        (-0.65, -0.25, 0.15, 0.09),  # sad
        (-0.15, -0.50, 0.15, 0.04),  # tired
    ]
)


def sample_labels(seed: int, person: int, count: int, person_effect: float = 1.0) -> NDArray[np.float32]:
    r"""Feelings of one person.

    A mixture of eight Gaussians around the usual positions of basic emotions. Each person's shares are the average ones
    times :math:`e^{\tau z}`, :math:`z` standard normal, so that one person is mostly cheerful and another mostly tense.
    Radii above 0.8 are compressed smoothly, :math:`0.8 + 0.19\,x/(1+x)` with :math:`x = (r - 0.8)/0.19`, so that all
    labels are inside the disc.

    Args:
        seed: Seed of the data set.
        person: Number of the person in it.
        count: Number of feelings.
        person_effect: :math:`\tau`; with 0 everybody has the same distribution.

    Returns:
        Shape ``(count, 2)``: valence, arousal. The first labels of a person are the same for every ``count``.

    Example:
        >>> labels = sample_labels(0, 3, 500)
        >>> labels.shape, bool((labels**2).sum(axis=1).max() < 1)
        ((500, 2), True)
    """
    streams, key = Streams(), int(mix(seed, person))
    shares = FEELINGS[:, 3] * np.exp(person_effect * streams.normal(key, 4, len(FEELINGS)))
    numbers = streams.uniform(key, 5, 3 * count).reshape(count, 3)
    bounds = np.cumsum(shares / shares.sum())[:-1]
    which = np.searchsorted(bounds, numbers[:, 0], side="right")
    av = FEELINGS[which, :2] + FEELINGS[which, 2:3] * ndtri(numbers[:, 1:])
    radius = np.sqrt((av * av).sum(axis=1))
    over = np.maximum(radius - 0.8, 0) / 0.19
    pressed = np.where(radius > 0.8, 0.8 + 0.19 * over / (1 + over), radius)
    return np.asarray(av * (pressed / np.maximum(radius, 1e-9))[:, None], dtype=np.float32)
