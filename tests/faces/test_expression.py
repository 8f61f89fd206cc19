"""From a feeling to action units, and from these to a person's face."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptive_margin.faces import action_units, face_geometry, face_shape, sample_identities

from .reference import action_units_slow

RING = [(np.cos(t), np.sin(t)) for t in np.linspace(0, 2 * np.pi, 16, endpoint=False)]


@pytest.mark.parametrize("style", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("radius", [0.0, 0.5, 1.0])
def test_matches_the_formulas(style: float, radius: float) -> None:
    v, a = (radius * np.array(x) for x in zip(*RING, strict=True))
    units = action_units(v, a, style)
    for row in range(len(v)):
        for name, value in action_units_slow(float(v[row]), float(a[row]), style).items():
            assert getattr(units, name)[row] == pytest.approx(value, abs=1e-12), name


def test_neutral_is_no_movement() -> None:
    units = action_units([0.0], [0.0])
    assert all(float(getattr(units, name)[0]) == 0 for name in units.__dataclass_fields__)


def test_intensities_lie_between_0_and_1() -> None:
    rng = np.random.default_rng(0)
    angle, radius = rng.random(5000) * 2 * np.pi, np.sqrt(rng.random(5000))
    units = action_units(radius * np.cos(angle), radius * np.sin(angle), rng.random(5000))
    for name in units.__dataclass_fields__:
        column = getattr(units, name)
        assert column.min() >= 0, name
        assert column.max() <= 1 + 1e-12, name


def test_prototypes() -> None:
    """Happiness 6+12, surprise 1+2+5+26, anger 4+7+24, fear 1+4+20, sadness 1+4+15."""

    def active(v: float, a: float, style: float = 0.5) -> set[str]:
        units = action_units([v], [a], style)
        return {name for name in units.__dataclass_fields__ if getattr(units, name)[0] > 0.25}

    assert {"au6", "au12"} <= active(0.9, 0.1)
    assert {"au1", "au2", "au5", "au26"} <= active(0.0, 0.9)
    assert {"au4", "au7", "au24"} <= active(-0.7, 0.7, 1.0)
    assert {"au1", "au4", "au20"} <= active(-0.7, 0.7, 0.0)
    assert {"au1", "au4", "au15"} <= active(-0.7, -0.4)
    assert "au12" not in active(-0.7, -0.4)


def test_a_neutral_person_at_rest_shows_the_resting_face() -> None:
    people = sample_identities(30, 0)
    shape = face_shape(people, np.zeros(30), np.zeros(30))
    np.testing.assert_allclose(shape.corner, people.rest_corner / (1 + 0.3 * abs(people.rest_corner)), rtol=1e-6)
    np.testing.assert_allclose(shape.lid_upper, people.rest_lids / (1 + 0.3 * abs(people.rest_lids)), rtol=1e-6)


def test_the_same_mouth_means_another_feeling_on_another_person() -> None:
    two = sample_identities(1, 0).take([0, 0]).replace(expressivity=1.0, rest_corner=[-0.3, 0.3])
    other = 0.5 - 0.6 / float(two.mouth_gain[0])  # AU12 - AU15 that makes up for the resting mouths
    other = other if other > 0 else other / 0.9  # AU15 is 0.9 n without arousal
    corner = face_shape(two, [0.5, other], [0.0, 0.0]).corner
    assert corner[0] == pytest.approx(corner[1], abs=1e-6)
    assert abs(0.5 - other) > 0.4


def test_expressivity_scales_the_movement() -> None:
    people = sample_identities(1, 0).take([0, 0]).replace(expressivity=[0.5, 1.0], rest_corner=0.0)
    weak, strong = face_shape(people, [0.6, 0.6], [0.0, 0.0]).corner
    assert strong > 1.7 * weak


def test_a_closed_smile_has_closed_lips() -> None:
    people = sample_identities(1, 0).take([0, 0]).replace(smile_closed=[0.0, 1.0], rest_open=0.0)
    parted, closed = face_shape(people, [0.8, 0.8], [0.0, 0.0]).open
    assert parted > 0.1
    assert closed == pytest.approx(0, abs=1e-6)


def corners(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Height of the mouth's corners above its middle, pixels."""
    return (points[:, 62, 1] + points[:, 66, 1]) / 2 - (points[:, 48, 1] + points[:, 54, 1]) / 2


@pytest.mark.parametrize("arousal", [-0.5, 0.0, 0.5])
def test_corners_of_the_mouth_rise_with_valence(arousal: float) -> None:
    people, a = sample_identities(40, 4), np.full(40, arousal)
    felt = [np.full(40, v) for v in np.linspace(-0.8, 0.8, 9)]
    moved = [face_shape(people, v, a).corner for v in felt]
    drawn = [corners(face_geometry(people, v, a, size=256, disturb=False)[0]) for v in felt]
    assert (np.diff(moved, axis=0) > 0).all()
    assert (np.diff(drawn, axis=0) > 0).all()


def test_eyes_open_with_arousal() -> None:
    people = sample_identities(40, 5)
    for valence in (-0.6, 0.0, 0.6):
        openings = []
        for arousal in np.linspace(-0.75, 0.75, 9):
            v, a = np.full(40, valence), np.full(40, arousal)
            p = face_geometry(people, v, a, size=256, disturb=False)[0]
            openings.append(p[:, 40, 1] + p[:, 41, 1] - p[:, 37, 1] - p[:, 38, 1])
        assert (np.diff(openings, axis=0) >= -1e-3).all()
        assert (openings[-1] > openings[0] + 2).all()


def test_mouth_opens_with_arousal() -> None:
    people = sample_identities(40, 6)
    for valence in (-0.6, 0.0, 0.6):
        openings = []
        for arousal in np.linspace(0, 0.75, 6):
            p = face_geometry(people, np.full(40, valence), np.full(40, arousal), size=256, disturb=False)[0]
            openings.append(p[:, 66, 1] - p[:, 62, 1])
        assert (np.diff(openings, axis=0) >= -1e-3).all()
        assert (openings[-1] > openings[0]).all()


@pytest.mark.parametrize(
    ("v", "a", "message"),
    [
        ([0.9], [0.9], r"inside the unit disc, got \(0.9, 0.9\) in row 0; divide both"),
        ([0.0, float("nan")], [0.0, 0.0], "in row 1"),
        ([[0.1]], [0.1], r"valence must be one-dimensional, got shape \(1, 1\)"),
        ([0.1, 0.2], [0.1], r"arousal must be as long as valence \(2\), got 1"),
    ],
)
def test_label_errors(v: object, a: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        action_units(v, a)  # type: ignore[arg-type]


def test_people_and_labels_must_match() -> None:
    with pytest.raises(ValueError, match=r"people must be as many as labels \(3\), got 2 rows; repeat people"):
        face_shape(sample_identities(2, 0), np.zeros(3), np.zeros(3))
