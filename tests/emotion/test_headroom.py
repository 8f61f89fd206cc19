"""What not knowing people costs: who is trained on, and what right offsets would give."""

from __future__ import annotations

import numpy as np
import pytest

from adaptive_margin.emotion.data import Part
from adaptive_margin.emotion.headroom import divided, recentred


def _part(counts: list[int], videos: bool = False) -> Part:
    people = np.repeat(np.arange(len(counts)), counts)
    rows = len(people)
    names = tuple(f"{person}-{row % 3}" if videos else None for row, person in enumerate(people))
    return Part(
        images=np.zeros((rows, 8, 8, 3), dtype=np.uint8),
        slots=np.arange(rows),
        labels=np.zeros((rows, 2), dtype=np.float32),
        people=people,
        identity="person",
        videos=names,
        frames=np.full(rows, -1),
    )


@pytest.mark.parametrize("seed", range(4))
def test_both_train_on_as_many_pictures_of_as_many_people_and_never_on_the_test(seed: int) -> None:
    part = _part([6, 9, 7, 8, 5, 10, 6, 8])
    training, test = divided(part, seed=seed)
    held_out, shared = (part.people[training[name]] for name in ("held out", "shared"))
    tested = set(part.people[test])
    assert len(tested) == 2
    assert not tested & set(held_out)
    assert tested <= set(shared)
    assert len(held_out) == len(shared)
    assert len(set(held_out)) == len(set(shared)) == 6
    for rows in training.values():
        assert len(np.unique(rows)) == len(rows)
        assert not set(rows) & set(test)


def test_a_video_is_on_one_side() -> None:
    part = _part([12] * 8, videos=True)
    training, test = divided(part)
    assert not {part.videos[row] for row in training["shared"]} & {part.videos[row] for row in test}


def test_right_offsets_leave_no_persons_mean_wrong_and_keep_what_is_within() -> None:
    random = np.random.default_rng(0)
    truth, people = random.normal(size=(20, 2)), np.arange(20) % 4
    offset = random.normal(size=(4, 2))
    assert recentred(truth, truth + offset[people], people) == pytest.approx(truth)
    guess = random.normal(size=(20, 2))
    moved = recentred(truth, guess, people)
    for person in range(4):
        mine = people == person
        assert moved[mine].mean(axis=0) == pytest.approx(truth[mine].mean(axis=0))
        assert moved[mine] - moved[mine].mean(axis=0) == pytest.approx(guess[mine] - guess[mine].mean(axis=0))
