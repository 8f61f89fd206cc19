"""The pictures: bytes, edges, sizes, what changes them and what does not."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from adaptive_margin.faces import (
    draw_faces,
    draw_frames,
    face_geometry,
    sample_identities,
    sample_nuisance,
    still_nuisance,
)
from adaptive_margin.faces._lens import _blur
from adaptive_margin.faces._raster import Frame, Grid, Window, band, bump, edge, enlarge, wave

from .reference import blur_slow, coverage_slow


def felt(n: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Feelings all over the disc, half of them on its rim."""
    rng = np.random.default_rng(seed)
    angle, radius = rng.random(n) * 2 * np.pi, np.where(rng.random(n) < 0.5, 1.0, rng.random(n))
    return radius * np.cos(angle), radius * np.sin(angle)


# -- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "n"), [(32, 150), (96, 80), (97, 40), (160, 12)])
def test_bytes_do_not_depend_on_batch_or_order(size: int, n: int) -> None:
    people, (v, a) = sample_identities(n, size), felt(n)
    people = people.replace(expressivity=np.where(np.arange(n) % 3 == 0, 1.65, people.expressivity))  # large movements
    together = draw_faces(people, v, a, size=size)
    order = np.random.default_rng(1).permutation(n)
    shuffled = draw_faces(people.take(order), v[order], a[order], size=size, nuisance_seeds=order)
    np.testing.assert_array_equal(shuffled, together[order])
    for k in range(0, n, 3):
        alone = draw_faces(people.take([k]), v[[k]], a[[k]], size=size, nuisance_seeds=[k])
        np.testing.assert_array_equal(alone[0], together[k], err_msg=f"picture {k}")


def test_bytes_are_those_recorded() -> None:
    """Guards published results: another picture for the same seed is a change for the changelog."""
    pictures = draw_faces(sample_identities(6, 0), *felt(6), size=64)
    assert hashlib.sha256(pictures.tobytes()).hexdigest()[:16] == RECORDED


RECORDED = "691c9264ce920772"


@pytest.mark.slow
def test_bytes_do_not_depend_on_workers() -> None:
    n = 1100
    people, (v, a) = sample_identities(20, 0).take(np.arange(n) % 20), felt(n)
    alone = draw_faces(people, v, a, size=32)
    np.testing.assert_array_equal(draw_faces(people, v, a, size=32, workers=2), alone)


def test_seeds_change_the_picture_and_nothing_else_does() -> None:
    person = sample_identities(1, 0)
    one, other = (draw_faces(person, [0.1], [0.1], nuisance_seeds=[seed]) for seed in (0, 1))
    assert (one != other).mean() > 0.5
    still = [draw_faces(person, [0.1], [0.1], nuisance_seeds=[seed], disturb=False) for seed in (0, 1)]
    np.testing.assert_array_equal(*still)


def test_inputs_stay_as_they_were() -> None:
    people, (v, a) = sample_identities(3, 0), felt(3)
    before = {name: getattr(people, name).copy() for name in people.__dataclass_fields__}
    kept = v.copy(), a.copy()
    draw_faces(people, v, a, size=48)
    for name, column in before.items():
        np.testing.assert_array_equal(getattr(people, name), column, err_msg=name)
    np.testing.assert_array_equal(kept, (v, a))


# -- identity, expression, disturbance --------------------------------------------------------------------------------


def test_a_feeling_changes_the_face_and_nothing_around_it() -> None:
    people = sample_identities(8, 3)
    neutral = draw_faces(people, np.zeros(8), np.zeros(8), disturb=False).astype(int)
    happy = draw_faces(people, np.full(8, 0.9), np.zeros(8), disturb=False).astype(int)
    changed = abs(happy - neutral).max(axis=3) > 0
    points, _ = face_geometry(people, np.zeros(8), np.zeros(8), disturb=False)
    for k in range(8):
        rows, columns = np.nonzero(changed[k])
        assert len(rows) > 100
        assert rows.min() > 10  # crown and hair on it
        assert columns.min() >= np.floor(points[k, :17, 0].min()) - 2
        assert columns.max() <= np.ceil(points[k, :17, 0].max()) + 2


def test_identity_changes_far_more_than_a_feeling() -> None:
    people = sample_identities(20, 3)
    neutral = draw_faces(people, np.zeros(20), np.zeros(20), disturb=False).astype(float)
    angry = draw_faces(people, np.full(20, -0.6), np.full(20, 0.6), disturb=False).astype(float)
    within = abs(angry - neutral).mean()
    between = abs(neutral[1:] - neutral[:-1]).mean()
    assert between > 5 * within > 0


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("yaw", 0.3),
        ("pitch", 0.2),
        ("roll", 0.2),
        ("scale", 0.75),
        ("shift_x", 0.05),
        ("light_x", 1.0),
        ("gain", 0.8),
        ("contrast", 1.5),
        ("blur", 1.0),
        ("noise", 6.0),
        ("occlusion", 2.0),
        ("gaze", 1.0),
        ("clothes", 0.9),
        ("background", 0.1),
    ],
)
def test_every_disturbance_disturbs(column: str, value: float) -> None:
    person, still = sample_identities(1, 0).replace(hair_density=0.0), still_nuisance(1)  # hair may hide clothes
    clean = draw_frames(person, [0.2], [0.2], still)
    disturbed = draw_frames(person, [0.2], [0.2], still.replace(**{column: value}, occluder=[0.1, 0.2, 0.5, 0.1]))
    assert (clean != disturbed).any()


def test_noise_has_the_strength_it_says_and_no_bias() -> None:
    person, still = sample_identities(1, 0).take(np.zeros(30, dtype=int)), still_nuisance(30)
    noisy = draw_frames(person, np.zeros(30), np.zeros(30), still.replace(noise=6.0, key=np.arange(30)), size=64)
    clean = draw_frames(person.take([0]), [0.0], [0.0], still.take([0]), size=64)
    middle = (clean[0] > 40).all(axis=2) & (clean[0] < 215).all(axis=2)
    difference = (noisy.astype(float) - clean)[:, middle, 0]
    assert difference.std() == pytest.approx(6, rel=0.03)
    assert abs(difference.mean()) < 0.1
    pairs = np.corrcoef(difference) - np.eye(30)
    assert abs(pairs).max() < 4.5 / np.sqrt(middle.sum())


# -- edges ------------------------------------------------------------------------------------------------------------


def test_edges_are_smooth() -> None:
    """A shift of a quarter pixel changes no pixel by much more than a quarter of what a whole one changes."""
    person, still = sample_identities(1, 1), still_nuisance(1)
    pictures = [
        draw_frames(person, [0.0], [0.0], still.replace(shift_x=k * 2 / 96 / 4), size=96)[0].astype(int)
        for k in range(5)
    ]
    whole = abs(pictures[4] - pictures[0])
    steps = [abs(b - a) for a, b in itertools.pairwise(pictures)]
    assert whole.max() > 60
    assert max(step.max() for step in steps) < 0.6 * whole.max()


def test_outlines_have_intermediate_values() -> None:
    person = sample_identities(1, 0).replace(hair_density=0.0, skin_colour=[0.9, 0.9, 0.9])
    still = still_nuisance(1).replace(background=0.0, clothes=0.0)
    row = draw_frames(person, [0.0], [0.0], still, size=96)[0, 20, :, 1].astype(int)  # black, skin, black
    inside = np.flatnonzero(row > 100)
    left, right = row[inside[0] - 1], row[inside[-1] + 1]
    assert row[0] == row[-1] == 0
    assert 0 < left < row[inside[0] + 3] or 0 < right < row[inside[-1] - 3]


def test_edge_is_the_coverage_of_a_half_plane() -> None:
    inside = np.array([[-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]], dtype=np.float32)
    np.testing.assert_array_equal(edge(inside, np.float32(1)), [[0, 0, 0.25, 0.5, 0.75, 1, 1]])


@pytest.mark.parametrize(("top", "bottom"), [(0.31, 0.34), (0.1, 0.73), (0.42, 0.40), (-1.0, 2.0)])
def test_band_is_the_share_of_each_pixel(top: float, bottom: float) -> None:
    per_unit = 10.0
    y = ((np.arange(10) + 0.5) / per_unit).astype(np.float32)[None]
    column = lambda x: np.full((1, 1), x, dtype=np.float32)  # noqa: E731
    covered = band(y, column(top), column(bottom), column(per_unit))[0]
    np.testing.assert_allclose(covered, [coverage_slow(top, bottom, row, per_unit) for row in range(10)], atol=2e-3)


def test_bump_is_compact_and_smooth() -> None:
    x = np.linspace(-1.5, 1.5, 301, dtype=np.float32)
    height, slope = bump(x, np.zeros_like(x))
    assert height.max() == 1
    assert (height[abs(x) >= 1] == 0).all()
    gradient = np.gradient(height.astype(float), x.astype(float))
    np.testing.assert_allclose(gradient[1:-1], (-4 * slope * x)[1:-1], atol=0.02)


def test_wave_is_a_triangle() -> None:
    np.testing.assert_allclose(
        wave(np.array([0, 0.25, 0.5, 1.0, -0.25, 7.5], dtype=np.float32)), [0, 0.5, 1, 0, 0.5, 1]
    )


@pytest.mark.parametrize("size", [32, 33])
def test_enlarging_keeps_linear_functions(size: int) -> None:
    coarse = Grid(size, 2).at
    field = (2 * coarse[None, None, :] + 3 * coarse[None, :, None] + 1).astype(np.float32)
    fine = Grid(size).at
    expected = 2 * fine[None, None, :] + 3 * fine[None, :, None] + 1
    np.testing.assert_allclose(enlarge(field, size)[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-5)


@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.5, 3.0])
def test_blur_matches_the_loop_and_its_variance(sigma: float) -> None:
    rng = np.random.default_rng(0)
    picture = np.repeat(rng.random((1, 1, 64)), 64, axis=1).repeat(3, axis=0).astype(np.float32)
    line = picture[0, 0].tolist()
    left, d = sigma**2, 1
    while left > 1e-4:
        k = min(0.25, left / (2 * d * d))
        left -= 2 * k * d * d
        line = blur_slow(line, k, d)
        d *= 2
    _blur(picture, sigma)
    np.testing.assert_allclose(picture, np.broadcast_to(line, picture.shape), atol=1e-5)
    point = np.zeros((3, 65, 65), dtype=np.float32)
    point[:, 32, 32] = 1
    _blur(point, sigma)
    offset = np.arange(65) - 32
    assert (point[0].sum(axis=0) * offset**2).sum() == pytest.approx(sigma**2, rel=1e-3)


def test_a_window_holds_the_coordinates_of_its_pixels() -> None:
    frame = Frame.of(np.array([[0.1, -0.2]]), np.array([[[0.4, -0.1], [0.1, 0.5]]]))
    grid = Grid(40)
    w = Window(frame, np.array([0]), (-0.5, 0.5, -0.3, 0.3), grid)
    picture = frame.to_picture(w.x.astype(float), w.y.astype(float))[0]
    pixel = (picture + 1) * 20 - 0.5
    np.testing.assert_allclose(pixel, np.round(pixel), atol=1e-3)
    seen = np.zeros((1, 40, 40), dtype=np.float32)
    w.add(seen, np.ones_like(w.x))
    corners = (frame.to_picture(np.array([[-0.5, 0.5, -0.5, 0.5]]), np.array([[-0.3, -0.3, 0.3, 0.3]]))[0] + 1) * 20
    for x, y in corners.astype(int):
        assert seen[0, y, x] == 1


# -- sizes and inputs -------------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(size=st.integers(32, 256), seed=st.integers(0, 2**64 - 1))
def test_any_size_and_seed(size: int, seed: int) -> None:
    people = sample_identities(2, seed)
    pictures = draw_faces(
        people, [1.0, -0.7], [0.0, 0.7], size=size, nuisance_seeds=np.array([seed, 0], dtype=np.uint64)
    )
    assert pictures.shape == (2, size, size, 3)
    assert pictures.dtype == np.uint8
    assert pictures.std() > 10


def test_sizes_show_the_same_picture() -> None:
    people, (v, a) = sample_identities(4, 7), felt(4)
    large, small = (draw_faces(people, v, a, size=size, disturb=False).astype(float) for size in (192, 64))
    shrunk = large.reshape(4, 64, 3, 64, 3, 3).mean(axis=(2, 4))
    assert abs(shrunk - small).mean() < 3


def test_no_pictures() -> None:
    nobody = sample_identities(1, 0).take(np.zeros(0, dtype=int))
    assert draw_faces(nobody, [], [], size=48).shape == (0, 48, 48, 3)
    points, boxes = face_geometry(nobody, [], [], size=48)
    assert points.shape == (0, 68, 2)
    assert boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"size": 31}, ValueError, "size must be between 32 and 256, got 31"),
        ({"size": 96.0}, TypeError, "size must be an integer, got float"),
        ({"valence": [0.1]}, ValueError, r"arousal must be as long as valence \(1\), got 2"),
        ({"valence": [0.1] * 3, "arousal": [0.1] * 3}, ValueError, r"as long as identities \(2 rows\), got 3; repeat"),
        ({"valence": [2.0, 0.0]}, ValueError, r"inside the unit disc, got \(2, 0\) in row 0"),
        ({"identities": None}, TypeError, "identities must be a FaceIdentity, got NoneType; make it with"),
        ({"nuisance_seeds": [1]}, ValueError, r"nuisance_seeds must be as long as identities \(2 rows\), got 1"),
        ({"nuisance_seeds": [0.5, 1.0]}, TypeError, "nuisance_seeds must be integers, got float64"),
        ({"nuisance_seeds": [-1, 0]}, ValueError, "nuisance_seeds must be non-negative, got -1"),
        ({"nuisance_seeds": [[0, 1]]}, ValueError, r"nuisance_seeds must be one-dimensional, got shape \(1, 2\)"),
        ({"workers": -1}, ValueError, "workers must be at least 0, got -1"),
    ],
)
def test_errors(change: dict[str, object], error: type[Exception], message: str) -> None:
    given: dict[str, object] = {"identities": sample_identities(2, 0), "valence": [0.0, 0.0], "arousal": [0.0, 0.0]}
    with pytest.raises(error, match=message):
        draw_faces(**(given | change))  # type: ignore[arg-type]


def test_frames_need_a_disturbance_each() -> None:
    with pytest.raises(ValueError, match=r"nuisance must be as long as people \(2 rows\), got 3"):
        draw_frames(sample_identities(2, 0), [0.0, 0.0], [0.0, 0.0], still_nuisance(3))


def test_disturbances_are_row_by_row_and_in_range() -> None:
    many, one = sample_nuisance(np.arange(500)), sample_nuisance([123])
    for name in many.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(many, name)[123], getattr(one, name)[0], err_msg=name)
    assert abs(many.yaw).max() <= 0.49
    assert many.background.min() >= 0
    assert many.background.max() <= 1
    assert 0.05 < (many.occlusion > 0).mean() < 0.2
