"""What not knowing a person costs: the same training with and without the people who are tested, and their offsets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..messages import problem
from .data import Part

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


def check_people(people: NDArray[np.int64], identity: str, needed: str) -> None:
    """Raises a ``ValueError`` unless it is known who is in every picture."""
    unknown = int((people < 0).sum())
    if identity == "picture" or unknown:
        got = "a data set that does not identify people" if identity == "picture" else f"{unknown} rows without one"
        remedy = "use faces, afew-va, aff-wild or aff-wild2, or leave it out"
        raise ValueError(problem(f"people, for {needed},", "known for every row", got, remedy))


def divided(part: Part, *, share: float = 0.25, seed: int = 0) -> tuple[dict[str, Rows], Rows]:
    """Two training sets, with and without the people who are tested, and the rows to test on.

    Tested people are drawn, and half of the pictures of each (of the videos, where a person has several) are the test.
    ``"shared"`` trains on the other half; ``"held out"`` has as many pictures of another person in its place, whom
    ``"shared"`` lacks. All others are in both.

    Args:
        part: rows with known people.
        share: of the people who are tested, above 0 and at most a half.
        seed: of the draw.

    Returns:
        Name → training rows, of equal number; and the test rows, all sorted.

    Raises:
        ValueError: unknown people, a share out of range, or nobody with two pictures.
    """
    check_people(part.people, part.identity, "headroom")
    if not 0 < share <= 0.5:
        raise ValueError(problem("share", "above 0 and at most 0.5", share, "0.25 tests a quarter of the people"))
    draw = np.random.default_rng(seed)
    people = draw.permutation(np.unique(part.people))
    count = min(max(1, round(share * len(people))), len(people) // 2)
    videos = np.array([video or f"\0{row}" for row, video in enumerate(part.videos)])
    known, instead, tested = [], [], []
    for person, other in zip(people[:count], people[count : 2 * count], strict=True):
        rows, theirs = np.flatnonzero(part.people == person), np.flatnonzero(part.people == other)
        units = draw.permutation(np.unique(videos[rows]))
        if len(units) < 2:  # a single video: its first frames and its last
            half = np.arange(len(rows)) < len(rows) // 2
        else:
            half = np.isin(videos[rows], units[: len(units) // 2])
        size = min(int(half.sum()), len(theirs))
        known.append(draw.permutation(rows[half])[:size])
        instead.append(draw.permutation(theirs)[:size])
        tested.append(rows[~half])
    if count == 0 or not sum(map(len, known)):
        got = f"{len(people)} people, {len(part)} pictures"
        raise ValueError(problem("part", "of two people with two pictures each, or more", got, "use more pictures"))
    common = np.flatnonzero(np.isin(part.people, people[2 * count :]))
    training = {
        name: np.sort(np.concatenate([common, *own])) for name, own in (("held out", instead), ("shared", known))
    }
    return training, np.sort(np.concatenate(tested))


def recentred(truth: Floats, prediction: Floats, people: Rows) -> Floats:
    r"""Predictions of which each person's mean is moved to that of the person's labels, which nobody knows.

    .. math:: \hat y_i \leftarrow \hat y_i - \bar{\hat y}_{p(i)} + \bar y_{p(i)}

    Source: ours; the most that a correction by a constant per person could win.

    Args:
        truth: labels, shape ``(N, L)``.
        prediction: of these, likewise.
        people: of each row, shape ``(N,)``.

    Returns:
        Shape ``(N, L)``.

    Example:
        >>> recentred(np.array([[0.0], [1.0]]), np.array([[2.0], [2.5]]), np.array([7, 7])).tolist()
        [[0.25], [0.75]]
    """
    moved = np.array(prediction, dtype=np.float64)
    for person in np.unique(people):
        mine = people == person
        moved[mine] += (truth[mine].astype(np.float64) - moved[mine]).mean(axis=0)
    return moved
