"""What not knowing people costs: who is trained on, and what right offsets would give."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from adaptive_margin.emotion.data import Part


@pytest.fixture
def headroom(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("fer_headroom")


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
def test_both_train_on_as_many_pictures_of_as_many_people_and_never_on_the_test(
    headroom: ModuleType, seed: int
) -> None:
    part = _part([6, 9, 7, 8, 5, 10, 6, 8])
    training, test = headroom.divided(part, seed=seed)
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


def test_a_video_is_on_one_side(headroom: ModuleType) -> None:
    part = _part([12] * 8, videos=True)
    training, test = headroom.divided(part)
    assert not {part.videos[row] for row in training["shared"]} & {part.videos[row] for row in test}


def test_right_offsets_leave_no_persons_mean_wrong_and_keep_what_is_within(headroom: ModuleType) -> None:
    random = np.random.default_rng(0)
    truth, people = random.normal(size=(20, 2)), np.arange(20) % 4
    offset = random.normal(size=(4, 2))
    assert headroom.recentred(truth, truth + offset[people], people) == pytest.approx(truth)
    guess = random.normal(size=(20, 2))
    moved = headroom.recentred(truth, guess, people)
    for person in range(4):
        mine = people == person
        assert moved[mine].mean(axis=0) == pytest.approx(truth[mine].mean(axis=0))
        assert moved[mine] - moved[mine].mean(axis=0) == pytest.approx(guess[mine] - guess[mine].mean(axis=0))
    worked = headroom.recentred(np.array([[0.0], [1.0]]), np.array([[2.0], [2.5]]), np.array([7, 7]))
    assert worked.tolist() == [[0.25], [0.75]]


def test_what_cannot_be_divided_is_said_with_what_can(headroom: ModuleType) -> None:
    part = _part([2, 2])
    with pytest.raises(ValueError, match=r"0\.25 tests a quarter of the people"):
        headroom.divided(part, share=0.9)
    with pytest.raises(ValueError, match="use more pictures"):
        headroom.divided(part.take(np.array([0, 1])))
    assert len(headroom.divided(part, share=0.25)[1]) == 1
