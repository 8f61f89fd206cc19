"""Where the parts of a face are, and that they are drawn there."""

from __future__ import annotations

import numpy as np
import pytest

from adaptive_margin.faces import draw_faces, face_geometry, face_shape, landmarks, sample_identities, still_nuisance
from adaptive_margin.faces._geometry import Camera, outline_radius, parts

from .reference import head_function


def test_landmarks_of_the_jaw_lie_on_the_outline() -> None:
    people = sample_identities(20, 0)
    shape = face_shape(people, np.zeros(20), np.full(20, 0.5))
    chin = parts(people, shape)["chin"]
    angle = np.linspace(-0.2, np.pi + 0.2, 15)
    cos, sin = (np.broadcast_to(f, (20, 15)) for f in (np.cos(angle), np.sin(angle)))
    radius = outline_radius(people, chin, cos, sin)
    for row in range(20):
        who = [float(getattr(people, name)[row]) for name in ("jaw_taper", "jaw_square")]
        for k in range(15):
            x, y = cos[row, k] * radius[row, k], sin[row, k] * radius[row, k]
            assert head_function(x, y, float(people.head_width[row]), chin[row], *who) == pytest.approx(1, abs=2e-3)


def test_still_faces_are_symmetric() -> None:
    people = sample_identities(10, 1).replace(lopsided=0.0)
    points = landmarks(people, face_shape(people, np.full(10, 0.3), np.zeros(10)), still_nuisance(10), 200)
    mirrored = points.copy()
    mirrored[:, :, 0] = 200 - mirrored[:, :, 0]
    np.testing.assert_allclose(mirrored[:, :17], points[:, :17][:, ::-1], atol=1e-2)  # jaw
    np.testing.assert_allclose(mirrored[:, 17:22], points[:, 22:27][:, ::-1], atol=1e-3)  # brows
    np.testing.assert_allclose(mirrored[:, [36, 37, 38, 39, 40, 41]], points[:, [45, 44, 43, 42, 47, 46]], atol=1e-3)
    np.testing.assert_allclose(mirrored[:, 48], points[:, 54], atol=1e-3)


def test_turning_moves_the_nose_more_than_the_eyes() -> None:
    person = sample_identities(1, 2)
    shape = face_shape(person, [0.0], [0.0])
    still, turned = (landmarks(person, shape, still_nuisance(1).replace(yaw=yaw), 200)[0] for yaw in (0.0, 0.3))
    moved = turned[:, 0] - still[:, 0]
    assert moved[33] > moved[36:48].mean() > 0
    assert abs(moved[0]) < moved[33] / 3  # the outline stays


def test_roll_turns_all_points_about_the_centre() -> None:
    person = sample_identities(1, 2)
    shape = face_shape(person, [0.0], [0.0])
    level, rolled = (landmarks(person, shape, still_nuisance(1).replace(roll=roll), 200)[0] for roll in (0.0, 0.2))
    centre = (1 + np.array([still_nuisance(1).shift_x[0], still_nuisance(1).shift_y[0]])) * 100
    turn = np.array([[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]])
    np.testing.assert_allclose((level - centre) @ turn.T + centre, rolled, atol=1e-2)


def test_frames_invert() -> None:
    people = sample_identities(5, 0)
    nuisance = still_nuisance(5).replace(yaw=0.3, pitch=-0.1, roll=0.1)
    frame = Camera(people, nuisance).on_face(np.full(5, 0.2), np.full(5, 0.3))
    identity = np.einsum("nij,njk->nik", frame.forward, frame.inverse)
    np.testing.assert_allclose(identity, np.broadcast_to(np.eye(2), (5, 2, 2)), atol=1e-12)


def test_landmarks_scale_with_the_picture() -> None:
    people = sample_identities(4, 3)
    small, large = (face_geometry(people, np.zeros(4), np.zeros(4), size=size)[0] for size in (64, 192))
    np.testing.assert_allclose(3 * small, large, rtol=1e-5)


def test_boxes_are_square_and_hold_the_landmarks() -> None:
    people = sample_identities(200, 4)
    rng = np.random.default_rng(0)
    points, boxes = face_geometry(people, rng.uniform(-0.7, 0.7, 200), rng.uniform(-0.7, 0.7, 200), size=96)
    np.testing.assert_array_equal(boxes[:, 2], boxes[:, 3])
    assert boxes[:, :2].min() >= 0
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= 96 + 1e-3
    inside = (points >= boxes[:, None, :2]) & (points <= boxes[:, None, :2] + boxes[:, None, 2:])
    assert inside.mean() > 0.999  # a chin may leave the picture


def test_what_is_drawn_is_where_the_landmarks_are() -> None:
    """The pupil is the darkest spot of the eye; a mole apart, the lips are redder than the cheek."""
    people = sample_identities(60, 5)
    people = people.take(
        np.flatnonzero((people.skin_colour[:, 0] > 0.8) & (people.glasses == 0) & (people.beard_lip == 0))
    )
    n = len(people)
    assert n > 5
    pictures = draw_faces(people, np.zeros(n), np.full(n, 0.4), size=200, disturb=False).astype(float)
    points, _ = face_geometry(people, np.zeros(n), np.full(n, 0.4), size=200, disturb=False)
    for k in range(n):
        x, y = points[k, 36:42].mean(axis=0).astype(int)
        eye, cheek = pictures[k, y - 3 : y + 4, x - 3 : x + 4], pictures[k, y + 25 : y + 30, x - 3 : x + 4]
        assert eye.min() < 0.5 * cheek.min()
        x, y = ((points[k, 57] + points[k, 66]) / 2).astype(int)
        lip = pictures[k, y, x]
        assert lip[0] - lip[1] > (cheek[..., 0] - cheek[..., 1]).mean()
