"""The face detector, where one is installed; and what is said where none is."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from adaptive_margin.emotion.detect import NoDetectorError, enlarged, face_detector
from adaptive_margin.faces import draw_faces, face_geometry, sample_identities


def installed() -> bool:
    try:
        face_detector()
    except NoDetectorError:
        return False
    return True


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
        centres = [((a + c) / 2, (b + d) / 2) for a, b, c, d in detect(image)]
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
        face_detector()


def test_a_box_is_enlarged_about_its_centre() -> None:
    assert enlarged((0, 0, 20, 10), 2.0) == (-10, -15, 30, 25)


@needs_detector
def test_small_faces_in_a_large_picture_are_found() -> None:
    """Twenty faces an eleventh as high as a picture of 1,000 pixels: an eighth was the limit once, which found none."""
    people = sample_identities(20, seed=5)
    faces = draw_faces(people, np.zeros(20), np.zeros(20), size=160, nuisance_seeds=np.arange(20), disturb=False)
    scene = np.full((1000, 1400, 3), 150, dtype=np.uint8)
    for number, face in enumerate(faces):
        row, column = 40 + 240 * (number // 5), 60 + 260 * (number % 5)
        scene[row : row + 160, column : column + 160] = face
    found = face_detector()(scene)
    assert max(right - left for left, _, right, _ in found) < 1000 / 8
    assert 18 <= len(found) <= 22
    assert face_detector(smallest=200)(scene) == []
    with pytest.raises(ValueError, match="smallest must be None or at least 24, got 10"):
        face_detector(smallest=10)
