"""Prediction on files: every kind of picture, videos, Ctrl-C, and what is drawn."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adaptive_margin.datasets.transforms import paper_transform
from adaptive_margin.emotion.model_file import Preprocessing
from adaptive_margin.emotion.nets import emotion_net
from adaptive_margin.emotion.predict import (
    COLUMNS,
    Face,
    Predictor,
    VideoWriterError,
    annotated,
    cut,
    followed,
    free_corner,
    output_names,
    predict,
    summary,
)

HOW = Preprocessing(resize=48, size=40)
NET = emotion_net("small").eval()


def picture(seed: int = 0, height: int = 60, width: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_network_sees_what_it_was_evaluated_on() -> None:
    image = picture(height=70)
    (face,) = Predictor(NET, HOW)(image)
    seen = paper_transform(Image.fromarray(image), train=False, resize=48, size=40)
    with torch.no_grad():
        expected = NET(seen[None])[0]
    assert (face.valence, face.arousal) == pytest.approx(expected.tolist(), abs=1e-6)
    assert face.box == (0, 0, 60, 70)


def test_preprocessing_of_the_model_file_is_used() -> None:
    plain = Preprocessing(resize=48, size=40, mean=(0, 0, 0), std=(1, 1, 1))
    assert Predictor(NET, plain)(picture())[0].valence != Predictor(NET, HOW)(picture())[0].valence


def test_faces_are_cut_out_with_a_margin() -> None:
    seen: list[tuple[int, ...]] = []

    def detector(image: np.ndarray) -> list[tuple[float, float, float, float]]:
        seen.append(image.shape)
        return [(20, 20, 40, 40), (0, 0, 10, 10)]

    image = picture(height=80, width=100)
    faces = Predictor(NET, HOW, detector, margin=2.0)(image)
    assert [face.box for face in faces] == [(10, 10, 50, 50), (-5, -5, 15, 15)]
    alone = Predictor(NET, HOW)(image[10:50, 10:50])
    assert (faces[0].valence, faces[0].arousal) == pytest.approx((alone[0].valence, alone[0].arousal), abs=1e-6)
    assert seen == [(80, 100, 3)]
    assert Predictor(NET, HOW, lambda image: [])(image) == []


def test_a_cut_beyond_the_edge_repeats_it() -> None:
    image = picture(height=4, width=5)
    out = cut(image, (-2, -1, 3, 4))
    assert out.shape == (5, 5, 3)
    np.testing.assert_array_equal(out[1:, 2:], image[:4, :3])
    np.testing.assert_array_equal(out[0], out[1])
    np.testing.assert_array_equal(out[:, 0], out[:, 2])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "in"
    (place / "below").mkdir(parents=True)
    image = picture(1, 50, 40)
    Image.fromarray(image).save(place / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: shown after a quarter turn clockwise
    Image.fromarray(np.rot90(image)).save(place / "turned.tiff", exif=exif)
    Image.fromarray(image).convert("L").save(place / "grey.png")
    Image.fromarray(image).convert("RGBA").save(place / "below" / "alpha.png")
    Image.fromarray(picture(2, 1, 1)).save(place / "dot.png")
    Image.fromarray(picture(2, 2, 300)).save(place / "strip.png")
    (place / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (place / "empty.png").touch()
    (place / "notes.txt").write_text("no picture")
    (place / ".hidden.png").write_bytes(b"")
    return place


def test_a_folder_of_all_kinds(folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    outcome = predict(folder, Predictor(NET, HOW), tmp_path / "out", tell=told.append)
    rows = rows_of(tmp_path / "out")
    assert tuple(rows[0]) == COLUMNS
    by_name = {row["source"]: row for row in rows}
    assert sorted(by_name) == ["below/alpha.png", "dot.png", "grey.png", "plain.png", "strip.png", "turned.tiff"]
    assert sorted(outcome.unreadable) == ["broken.jpg", "empty.png"]
    assert len(told) == 2
    assert "broken.jpg: undecodable" in told[0]
    assert (outcome.pictures, outcome.faces) == (6, 6)
    for name in ("below/alpha.png", "turned.tiff"):  # the same picture in other clothes
        assert by_name[name]["valence"] == by_name["plain.png"]["valence"]
        assert by_name[name]["right"] == "40.0"
    assert by_name["grey.png"]["valence"] != by_name["plain.png"]["valence"]
    drawn = np.asarray(Image.open(tmp_path / "out" / "turned.png"))
    assert drawn.shape == (350, 280, 3)  # enlarged seven times, the right way up
    assert Image.open(tmp_path / "out" / "dot.png").size == (256, 256)
    assert "2 unreadable, skipped" in summary(outcome)


def test_no_two_files_are_written_under_one_name(tmp_path: Path) -> None:
    sizes = {"a.bmp": 300, "a.png": 310, "a.jpg": 320, "a.jpeg": 330, "b/a.gif": 340, "c.bmp": 350, "c.tiff": 360}
    for name, side in sizes.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(side, side, side)).save(tmp_path / "in" / name)
    predict(tmp_path / "in", Predictor(NET, HOW, lambda image: []), tmp_path / "out")
    written = {
        path.relative_to(tmp_path / "out").as_posix(): Image.open(path).width
        for path in (tmp_path / "out").rglob("*.[jp][pn]g")
    }
    assert written == {
        "a.bmp.png": 300, "a.png": 310, "a.jpg": 320, "a.jpeg.png": 330, "b/a.png": 340, "c.bmp.png": 350,
        "c.tiff.png": 360,
    }  # fmt: skip


def test_output_names() -> None:
    names = ["a.bmp", "a.bmp.png", "a.png", "A.PNG", "d.JPG", "v.avi", "v.mp4", "w.x.mov"]
    found = output_names(names)
    assert list(found) == names
    assert len({target.casefold() for target in found.values()}) == len(names)
    assert {name: found[name] for name in ("a.bmp.png", "a.png", "d.JPG", "v.avi", "v.mp4", "w.x.mov")} == {
        "a.bmp.png": "a.bmp.png", "a.png": "a.png", "d.JPG": "d.jpg", "v.avi": "v.avi.mp4", "v.mp4": "v.mp4",
        "w.x.mov": "w.x.mp4",
    }  # fmt: skip


def test_no_pictures_are_written_if_not_asked(folder: Path, tmp_path: Path) -> None:
    predict(folder, Predictor(NET, HOW), tmp_path / "out", annotate=False, tell=lambda line: None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.csv"]


def test_interrupted(folder: Path, tmp_path: Path) -> None:
    class Impatient(Predictor):
        calls = 0

        def __call__(self, image: np.ndarray) -> list[Face]:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().__call__(image)

    outcome = predict(folder, Impatient(NET, HOW), tmp_path / "out", tell=lambda line: None)
    assert outcome.interrupted
    assert len(rows_of(tmp_path / "out")) == 2
    assert "interrupted" in summary(outcome)


def test_a_face_is_missing(folder: Path, tmp_path: Path) -> None:
    outcome = predict(folder / "plain.png", Predictor(NET, HOW, lambda image: []), tmp_path / "out")
    assert outcome.without_face == ["plain.png"]
    assert rows_of(tmp_path / "out") == []
    assert (tmp_path / "out" / "plain.png").exists()


def test_sources(folder: Path, tmp_path: Path) -> None:
    predictor = Predictor(NET, HOW)
    with pytest.raises(ValueError, match="source must be a file or folder"):
        predict(tmp_path / "nowhere", predictor, tmp_path / "out")
    with pytest.raises(ValueError, match="output must be another folder"):
        predict(folder, predictor, folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="source must be a folder with files that end in"):
        predict(tmp_path / "none", predictor, tmp_path / "out")
    with pytest.raises(ValueError, match="margin must be positive"):
        Predictor(NET, HOW, margin=0)
    quiet = dict.fromkeys(["tell"], lambda line: None)
    first = predict(folder, predictor, folder / "out", **quiet)
    again = predict(folder, predictor, folder / "out", **quiet)  # what was written is not read
    assert first.pictures == again.pictures


def test_no_source_is_written_over(tmp_path: Path) -> None:
    predictor = Predictor(NET, HOW)
    face = tmp_path / "face.jpg"
    Image.fromarray(picture()).save(face)
    before = face.read_bytes()
    with pytest.raises(ValueError, match=r"output must be a folder in which no source is .*face\.jpg is a source"):
        predict(face, predictor, tmp_path / "new" / "..")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "face.jpg").hardlink_to(face)
    with pytest.raises(ValueError, match="no source is overwritten"):
        predict(face, predictor, tmp_path / "linked")
    assert face.read_bytes() == before
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["face.jpg", "face.jpg", "linked"]
    outcome = predict(face, predictor, tmp_path, annotate=False)  # a table beside it harms nobody
    assert outcome.table == tmp_path / "predictions.csv"
    assert face.read_bytes() == before


def test_an_output_above_the_source(tmp_path: Path) -> None:
    place = tmp_path / "in"
    (place / "in").mkdir(parents=True)
    Image.fromarray(picture()).save(place / "a.png")
    assert predict(place, Predictor(NET, HOW), tmp_path).pictures == 1
    assert Image.open(tmp_path / "a.png").width == 300  # drawn in, enlarged
    Image.fromarray(picture(1)).save(place / "in" / "a.png")  # would be written to in/a.png
    with pytest.raises(ValueError, match="no source is overwritten"):
        predict(place, Predictor(NET, HOW), tmp_path)
    assert Image.open(place / "a.png").width == 60


def video(path: Path, frames: int = 5) -> Path:
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12.5, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 20 + 40 * number, dtype=np.uint8))
    writer.release()
    return path


def test_a_video(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    video(tmp_path / "film.avi")
    outcome = predict(tmp_path / "film.avi", Predictor(NET, HOW), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [row["frame"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert len({row["valence"] for row in rows}) == 5
    assert (outcome.pictures, outcome.faces) == (1, 5)
    capture = cv2.VideoCapture(str(tmp_path / "out" / "film.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    assert sum(1 for _ in iter(lambda: capture.read()[0], False)) == 5


def test_two_videos_of_one_name(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    for name, frames in (("film.avi", 3), ("film.mkv", 4)):
        (tmp_path / "in").mkdir(exist_ok=True)
        video(tmp_path / "in" / name, frames)
    predict(tmp_path / "in", Predictor(NET, HOW, lambda image: []), tmp_path / "out")
    for name, frames in (("film.avi.mp4", 3), ("film.mkv.mp4", 4)):
        capture = cv2.VideoCapture(str(tmp_path / "out" / name))
        assert sum(1 for _ in iter(lambda capture=capture: capture.read()[0], False)) == frames


def test_a_codec_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    monkeypatch.setattr("adaptive_margin.emotion.predict.CODEC", "none")  # nobody's: OpenCV opens no file with it
    source = video(tmp_path / "film.avi")
    with pytest.raises(VideoWriterError, match=r"film\.mp4 could not be .* the codec none by OpenCV.*: install"):
        predict(source, Predictor(NET, HOW), tmp_path / "out")
    outcome = predict(source, Predictor(NET, HOW), tmp_path / "out", annotate=False)
    assert outcome.faces == 5


def test_an_interrupted_video_can_be_played(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    calls = iter(range(9))

    def detector(image: np.ndarray) -> list[tuple[float, float, float, float]]:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return [(8, 8, 40, 40)]

    outcome = predict(video(tmp_path / "film.avi"), Predictor(NET, HOW, detector), tmp_path / "out")
    assert outcome.interrupted
    assert len(rows_of(tmp_path / "out")) == 3
    capture = cv2.VideoCapture(str(tmp_path / "out" / "film.mp4"))
    assert sum(1 for _ in iter(lambda: capture.read()[0], False)) == 3


def test_a_damaged_video(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    (tmp_path / "film.mp4").write_bytes(b"no video")
    told: list[str] = []
    outcome = predict(tmp_path / "film.mp4", Predictor(NET, HOW), tmp_path / "out", tell=told.append)
    assert list(outcome.unreadable) == ["film.mp4"]
    assert outcome.pictures == 0
    assert "no frame of it can be decoded" in told[0]


def test_what_is_drawn() -> None:
    grey = np.full((300, 400, 3), 128, dtype=np.uint8)
    one = annotated(grey, [Face((100, 120, 180, 200), 0.9, 0.0)])
    assert one.shape == grey.shape
    assert (one[120:200, 100:103] == (0x3B, 0x82, 0xC4)).all(axis=2).any()  # the square, in the first colour
    inset = one[:110, 290:]
    blue = (np.abs(inset.astype(int) - (0x3B, 0x82, 0xC4)) < 30).all(axis=2)
    left = (
        np.abs(annotated(grey, [Face((100, 120, 180, 200), -0.9, 0.0)])[:110, 290:].astype(int) - (0x3B, 0x82, 0xC4))
        < 30
    ).all(axis=2)
    assert np.nonzero(blue)[1].mean() > np.nonzero(left)[1].mean() + 50  # positive valence is on the right
    up = (
        np.abs(annotated(grey, [Face((100, 120, 180, 200), 0.0, 0.9)])[:110, 290:].astype(int) - (0x3B, 0x82, 0xC4))
        < 30
    ).all(axis=2)
    assert np.nonzero(up)[0].mean() < np.nonzero(blue)[0].mean() - 20  # high arousal is on top
    np.testing.assert_array_equal(grey, 128)  # the caller's picture is not drawn on
    assert annotated(grey, []).shape == grey.shape
    far = annotated(grey, [Face((-50, -50, 500, 500), 5.0, -7.0)], [[(0.0, 0.0), (5.0, -7.0)]])
    assert far.shape == grey.shape


def test_the_circumplex_covers_no_face() -> None:
    assert free_corner((100, 200), []) == 0
    everywhere = [Face((140, 0, 200, 60), 0, 0), Face((0, 0, 60, 60), 0, 0), Face((140, 50, 200, 100), 0, 0)]
    assert free_corner((100, 200), everywhere) == 3


def test_faces_are_followed() -> None:
    a, b, new = Face((0, 0, 10, 10), 0.1, 0.1), Face((20, 0, 30, 10), 0.2, 0.2), Face((50, 50, 60, 60), 0.3, 0.3)
    faces, trails = followed([new, b, a], [a, b], [[(0, 0)] * 24, [(1, 1)]])
    assert faces == [a, b, new]
    assert [len(trail) for trail in trails] == [24, 2, 1]
    faces, trails = followed([b], [a, b], [[(0, 0)], [(1, 1)]])
    assert (faces, trails) == ([b], [[(1, 1), (0.2, 0.2)]])
