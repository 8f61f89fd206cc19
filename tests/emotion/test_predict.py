"""Prediction on files: every kind of picture, videos, Ctrl-C, and what is drawn."""

from __future__ import annotations

import builtins
import csv
import errno
import json
import os
import shutil
import struct
import subprocess
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from adaptive_margin.command import main
from adaptive_margin.emotion import predict as predict_module
from adaptive_margin.emotion.model_file import Preprocessing, save_model
from adaptive_margin.emotion.nets import EmotionNet, emotion_net
from adaptive_margin.emotion.predict import (
    COLUMNS,
    DRAWN,
    PERSON,
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
from adaptive_margin.images.transforms import paper_transform

from ..images.videos import UNEVEN, damage_avi, jpeg, write

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

        def several(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().several(images)

    outcome = predict(folder, Impatient(NET, HOW), tmp_path / "out", batch_size=1, tell=lambda line: None)
    assert outcome.interrupted
    assert len(rows_of(tmp_path / "out")) == 2
    assert "interrupted" in summary(outcome)


@pytest.fixture
def without_permission(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Forbids reading a file, to root as well, who may read everything."""
    original, forbidden = builtins.open, set()

    def guarded(file: Any, *rest: Any, **options: Any) -> Any:
        if str(file) in forbidden:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return original(file, *rest, **options)

    monkeypatch.setattr(builtins, "open", guarded)
    return lambda path: forbidden.add(str(path))


@pytest.mark.parametrize("same_person", [False, True])
def test_one_file_that_may_not_be_read_is_one_file(
    tmp_path: Path, same_person: bool, without_permission: Callable[[Path], None]
) -> None:
    pytest.importorskip("cv2")
    place = tmp_path / "in"
    album(place, 3)
    without_permission(place / "1.png")
    without_permission(video(place / "film.avi"))
    told: list[str] = []
    predictor = Predictor(person_net(), HOW)
    outcome = predict(place, predictor, tmp_path / "out", same_person=same_person, tell=told.append)
    assert [row["source"] for row in rows_of(tmp_path / "out")] == ["0.png", "2.png"]
    assert told == [f"{name}: unreadable (Permission denied), skipped" for name in ("1.png", "film.avi")]
    assert "2 unreadable, skipped" in summary(outcome)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file here that cannot be read")
def test_a_failing_disk_is_one_file(tmp_path: Path) -> None:
    album(tmp_path / "in", 2)
    (tmp_path / "in" / "1.jpg").symlink_to("/proc/self/mem")  # reading its first byte is an EIO
    outcome = predict(tmp_path / "in", Predictor(NET, HOW), tmp_path / "out", tell=lambda line: None)
    assert outcome.unreadable == {"1.jpg": "unreadable: Input/output error"}
    assert [row["source"] for row in rows_of(tmp_path / "out")] == ["0.png", "1.png"]


@pytest.mark.parametrize("same_person", [False, True])
def test_what_was_read_before_an_error_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_person: bool
) -> None:
    album(tmp_path / "in", 4)
    original = predict_module.read_image

    def few_files(path: Path, **options: Any) -> Image.Image:
        if path.name == "2.png":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return original(path, **options)

    monkeypatch.setattr(predict_module, "read_image", few_files)
    told: list[str] = []
    options = {"same_person": same_person, "as_json": True, "tell": told.append}
    with pytest.raises(OSError, match="Too many open files"):
        predict(tmp_path / "in", Predictor(person_net(), HOW), tmp_path / "out", **options)
    assert [row["source"] for row in rows_of(tmp_path / "out")] == ["0.png", "1.png"]
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 2
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["0.png", "1.png"]
    assert told == [f"stopped by an error: what was found before it is in {tmp_path / 'out' / 'predictions.csv'}"]


def test_ctrl_c_leaves_no_part_of_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    album(tmp_path / "in", 2)
    original = Image.Image.save

    def slow(image: Image.Image, file: Any, *rest: Any, **options: Any) -> None:
        original(image, file, *rest, **options)
        file.truncate(100)
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", slow)
    outcome = predict(tmp_path / "in", Predictor(NET, HOW), tmp_path / "out")
    assert outcome.interrupted
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.csv"]


def test_links_in_a_folder_are_read_or_said(tmp_path: Path) -> None:
    album(tmp_path / "in", 2)
    album(tmp_path / "elsewhere", 1)
    links = {"3.png": "0.png", "folder": "../elsewhere", "nowhere.png": "none.png", "loop.png": "loop.png"}
    links["other.png"] = "../elsewhere/0.png"
    for name, target in links.items():
        (tmp_path / "in" / name).symlink_to(target)
    told: list[str] = []
    place = tmp_path / "in"
    outcome = predict(place, Predictor(NET, HOW), tmp_path / "out", tell=told.append)
    assert [row["source"] for row in rows_of(tmp_path / "out")] == ["0.png", "1.png", "other.png"]
    assert sorted(outcome.unreadable) == ["loop.png", "nowhere.png"]
    assert told.pop(2).startswith("loop.png: undecodable (")
    assert told == [
        f"{place / 'folder'}: a link to a folder, skipped (pass the folder itself, too)",
        f"{place / '3.png'}: the same file as {place / '0.png'}, read once",
        "nowhere.png: missing file (no such file), skipped",
    ]
    assert predict([place, place / "folder"], Predictor(NET, HOW), tmp_path / "again").pictures == 3


def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    album(tmp_path / "in", 1)
    album(tmp_path / "in" / "closed", 1)
    original = os.scandir

    def guarded(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", guarded)
    told: list[str] = []
    assert predict(tmp_path / "in", Predictor(NET, HOW), tmp_path / "out", tell=told.append).pictures == 1
    assert told == [f"{tmp_path / 'in' / 'closed'}: the folder cannot be read (Permission denied), skipped"]


def test_no_earlier_json_stays_beside_a_new_table(tmp_path: Path) -> None:
    album(tmp_path / "in", 2)
    out = tmp_path / "out"
    predict(tmp_path / "in", Predictor(NET, HOW), out, as_json=True)
    (tmp_path / "in" / "1.png").unlink()
    predict(tmp_path / "in", Predictor(NET, HOW), out, overwrite=True)
    assert [row["source"] for row in json.loads((out / "predictions.json").read_text())] == ["0.png"]
    for path in out.iterdir():
        if path.suffix != ".json":
            path.unlink()
    with pytest.raises(ValueError, match=r"without files named like the results, got one with .*predictions\.json"):
        predict(tmp_path / "in", Predictor(NET, HOW), out)


def test_long_names_are_cut(tmp_path: Path) -> None:
    """A name of 255 bytes that gets another ending, or a number, would be longer than a disk takes."""
    (tmp_path / "in").mkdir()
    for name in ("a" * 250 + ".jpeg", "a" * 250 + ".webp", "ä" * 125 + "aa.im", "ä" * 125 + ".webp"):
        Image.fromarray(picture()).save(tmp_path / "in" / name, "PNG")
    outcome = predict(tmp_path / "in", Predictor(NET, HOW), tmp_path / "out")
    assert outcome.pictures == 4
    written = [path.name for path in (tmp_path / "out").glob("*.png")]
    assert len(written) == 4
    assert all(len(os.fsencode(name)) <= 255 for name in written)


def test_a_face_is_missing(folder: Path, tmp_path: Path) -> None:
    outcome = predict(folder / "plain.png", Predictor(NET, HOW, lambda image: []), tmp_path / "out")
    assert outcome.without_face == ["plain.png"]
    assert rows_of(tmp_path / "out") == []
    assert (tmp_path / "out" / "plain.png").exists()


def test_sources(folder: Path, tmp_path: Path) -> None:
    predictor = Predictor(NET, HOW)
    with pytest.raises(ValueError, match="source must be a file or folder"):
        predict(tmp_path / "nowhere", predictor, tmp_path / "out")
    with pytest.raises(ValueError, match="output must be a folder other than"):
        predict(folder, predictor, folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="source must be a folder with files that end in"):
        predict(tmp_path / "none", predictor, tmp_path / "out")
    with pytest.raises(ValueError, match="margin must be positive"):
        Predictor(NET, HOW, margin=0)
    quiet = dict.fromkeys(["tell"], lambda line: None)
    first = predict(folder, predictor, folder / "out", **quiet)
    again = predict(folder, predictor, folder / "out", overwrite=True, **quiet)  # what was written is not read
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
    monkeypatch.setattr("adaptive_margin.emotion.predict.CODECS", ("none",))  # nobody's: OpenCV opens no file with it
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

    outcome = predict(video(tmp_path / "film.avi"), Predictor(NET, HOW, detector), tmp_path / "out", batch_size=1)
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


def test_a_damaged_frame_is_not_the_end(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    film = video(tmp_path / "film.avi", 6)
    damage_avi(film, 4)
    told: list[str] = []
    outcome = predict(film, Predictor(NET, HOW), tmp_path / "out", tell=told.append)
    rows = rows_of(tmp_path / "out")
    assert [row["frame"] for row in rows] == ["1", "2", "3", "5", "6"]
    assert [row["seconds"] for row in rows] == ["0.000", "0.080", "0.160", "0.320", "0.400"]
    assert outcome.lost == {"film.avi": (4,)}
    assert told == ["film.avi: frame 4 cannot be decoded, left out"]
    assert "1 frame of 1 video cannot be decoded" in summary(outcome)
    capture = cv2.VideoCapture(str(tmp_path / "out" / "film.mp4"))
    assert sum(1 for _ in iter(lambda: capture.read()[0], False)) == 6  # the third is shown on


def test_a_video_of_variable_rate_keeps_its_length(tmp_path: Path) -> None:
    """OpenCV takes the clock of its time stamps for its rate: 14 frames at 1000 a second."""
    cv2 = pytest.importorskip("cv2")
    film = write(tmp_path / "film.mkv", [jpeg(number) for number in range(1, 15)], UNEVEN)
    predict(film, Predictor(NET, HOW), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [row["frame"] for row in rows] == [str(number) for number in range(1, 15)]
    assert [float(row["seconds"]) for row in rows] == [stamp / 1000 for stamp in UNEVEN]
    capture = cv2.VideoCapture(str(tmp_path / "out" / "film.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == 30
    assert sum(1 for _ in iter(lambda: capture.read()[0], False)) == round(2.39 * 30)


def test_what_is_there_already_is_kept(tmp_path: Path) -> None:
    face, out = tmp_path / "face.jpg", tmp_path / "out"
    Image.fromarray(picture()).save(face)
    out.mkdir()
    for name in ("predictions.csv", "face.jpg"):
        (out / name).write_text("somebody's")
        with pytest.raises(ValueError, match=rf"output must be a folder without files .*{name}; pass .*--overwrite"):
            predict(face, Predictor(NET, HOW), out)
        assert [path.read_text() for path in out.iterdir()] == ["somebody's"]
        predict(face, Predictor(NET, HOW), out, overwrite=True)  # the remedy
        assert rows_of(out)[0]["source"] == "face.jpg"
        for path in out.iterdir():
            path.unlink()


def test_nothing_is_written_behind_a_link(tmp_path: Path) -> None:
    source, out, other = tmp_path / "in", tmp_path / "out", tmp_path / "other"
    for folder in (source / "below", out, other):
        folder.mkdir(parents=True)
    Image.fromarray(picture()).save(source / "below" / "face.jpg")
    (out / "below").symlink_to(other)
    with pytest.raises(
        ValueError, match=r"a folder without links that lead out of it.*below leads to .*other; remove the link"
    ):
        predict(source, Predictor(NET, HOW), out, overwrite=True)
    (out / "below").unlink()
    (other / "kept").write_text("kept")
    (out / "below").mkdir()
    for name in ("predictions.csv", "below/face.jpg"):
        (out / name).symlink_to(other / "kept")
    with pytest.raises(ValueError, match="--overwrite"):
        predict(source, Predictor(NET, HOW), out)
    predict(source, Predictor(NET, HOW), out, overwrite=True)
    assert (other / "kept").read_text() == "kept"
    assert not (out / "predictions.csv").is_symlink()
    assert sorted(path.name for path in other.iterdir()) == ["kept"]


def test_a_name_is_not_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, a spreadsheet's formula, a terminal's command: each is written and ends nothing."""
    source = tmp_path / "in"
    source.mkdir()
    for name in (b"a.png", b"b\xff.png", b"=1+1.png", b"c\x1b[31m.png", b"d\n.png", "é.png".encode()):
        with open(os.path.join(os.fsencode(source), name), "wb") as file:
            Image.fromarray(picture()).save(file, "PNG")
    (source / "broken\x1b[2J.png").write_bytes(b"")
    told: list[str] = []
    outcome = predict(source, Predictor(NET, HOW), tmp_path / "out", tell=told.append)
    assert sorted(row["source"] for row in rows_of(tmp_path / "out")) == [
        "./=1+1.png", "a.png", "b\\xff.png", "c\\x1b[31m.png", "d\\x0a.png", "é.png",
    ]  # fmt: skip
    assert outcome.pictures == 6
    assert told[0].startswith("broken\\x1b[2J.png: undecodable")
    assert "\x1b" not in summary(outcome) + str(outcome.unreadable)


def test_every_ending_that_pillow_opens(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    names = ("a.jfif", "b.jpe", "c.ppm", "d.webp", "e.TIF", "f.jp2", "g.pgm", "h.tga")
    kinds = {"jfif": "JPEG", "jpe": "JPEG", "TIF": "TIFF", "jp2": "JPEG2000", "pgm": "PPM"}
    for name in names:
        Image.fromarray(picture()).convert("L").save(source / name, kinds.get(name[2:]))
    for name in ("x.heic", "y.HEIC", "z.txt", "none"):
        (source / name).touch()
    outcome = predict(source, Predictor(NET, HOW), tmp_path / "out")
    assert outcome.pictures == len(names)
    assert outcome.passed_over == {".heic": 2, "none": 1, ".txt": 1}
    assert "4 other files skipped: 2 .heic, 1 without an ending, 1 .txt" in summary(outcome)
    for name in names:
        (source / name).unlink()
    with pytest.raises(ValueError, match=r"with only other files: 2 \.heic, .*convert them"):
        predict(source, Predictor(NET, HOW), tmp_path / "again")


def test_one_bomb_is_one_file(tmp_path: Path) -> None:
    """30,000 × 30,000 and 13,000 × 13,000 pixels of one colour, a few kilobytes: refused before they are decoded."""
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(picture()).save(source / "face.png")
    for name, side in (("one.png", 30_000), ("two.png", 13_000)):
        bomb(source / name, side)
    told: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        outcome = predict(source, Predictor(NET, HOW), tmp_path / "out", tell=told.append)
    assert outcome.pictures == 1
    assert sorted(outcome.unreadable) == ["one.png", "two.png"]
    assert "of at most 89,478,485 pixels, got 13000x13000; raise PIL.Image.MAX_IMAGE_PIXELS" in told[1]


def bomb(path: Path, side: int) -> None:
    """A PNG of ``side`` black bits squared."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side), 1)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


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


def test_several_sources(tmp_path: Path) -> None:
    """Named by where they are below the folder that holds them all; what is in two sources is read once."""
    for name in ("a/face.png", "b/face.png", "b/c/face.png", "left.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(len(name))).save(tmp_path / name)
    sources = [tmp_path / "b", tmp_path / "a" / "face.png", tmp_path / "b" / "face.png"]
    outcome = predict(sources, Predictor(NET, HOW), tmp_path / "out")
    assert outcome.pictures == 3
    assert [row["source"] for row in rows_of(tmp_path / "out")] == ["b/c/face.png", "b/face.png", "a/face.png"]
    assert (tmp_path / "out" / "b" / "c" / "face.png").is_file()
    with pytest.raises(ValueError, match="source must be one or more, got none"):
        predict([], Predictor(NET, HOW), tmp_path / "none")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        predict(sources, Predictor(NET, HOW), tmp_path / "none", batch_size=0)
    assert not (tmp_path / "none").exists()


def test_a_batch_is_what_its_pictures_are(folder: Path, tmp_path: Path) -> None:
    tables = []
    for batch_size in (1, 2, 16):
        out = tmp_path / str(batch_size)
        predict(folder, Predictor(NET, HOW), out, annotate=False, batch_size=batch_size, tell=lambda line: None)
        tables.append(rows_of(out))
    for table in tables[1:]:
        assert [row["source"] for row in table] == [row["source"] for row in tables[0]]
        for name in ("valence", "arousal"):
            found, alone = ([float(row[name]) for row in each] for each in (table, tables[0]))
            assert found == pytest.approx(alone, abs=2e-6)


def test_the_table_as_json(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(folder, Predictor(NET, HOW), out, as_json=True, tell=lambda line: None)
    listed, rows = json.loads((out / "predictions.json").read_text(encoding="utf-8")), rows_of(out)
    assert [tuple(row) for row in listed] == [COLUMNS] * len(rows)
    for plain, row in zip(listed, rows, strict=True):
        assert plain["source"] == row["source"]
        assert plain["valence"] == float(row["valence"])
        assert plain["frame"] is None
        assert plain["right"] == float(row["right"])
    with pytest.raises(ValueError, match=r"predictions\.csv"):
        predict(folder, Predictor(NET, HOW), out, as_json=True)


def test_the_warning_is_on_every_output(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    source = tmp_path / "in"
    source.mkdir()
    grey = np.full((300, 300, 3), 128, dtype=np.uint8)
    Image.fromarray(grey).save(source / "face.png")
    video(source / "film.avi", 2)
    nobody = Predictor(NET, HOW, lambda image: [], warning=DRAWN)
    told = summary(predict(source, Predictor(NET, HOW, warning=DRAWN), tmp_path / "out", as_json=True))
    assert DRAWN in told
    assert {row["warning"] for row in rows_of(tmp_path / "out")} == {DRAWN}
    assert DRAWN in (tmp_path / "out" / "predictions.json").read_text(encoding="utf-8")
    predict(source, nobody, tmp_path / "warned")
    predict(source, Predictor(NET, HOW, lambda image: []), tmp_path / "plain")
    for name in ("warned", "plain"):
        shown = np.asarray(Image.open(tmp_path / name / "face.png"))[:12, 150:300].astype(int)
        red = (shown[:, :, 0] - shown[:, :, 2] > 40).mean()
        assert (red > 0.5) == (name == "warned")
        film = cv2.VideoCapture(str(tmp_path / name / "film.mp4")).read()[1][:12].astype(int)
        assert ((film[:, :, 2] - film[:, :, 0] > 25).mean() > 0.25) == (name == "warned")
    assert "warning:" not in summary(predict(source, Predictor(NET, HOW), tmp_path / "third"))
    assert {row["warning"] for row in rows_of(tmp_path / "third")} == {""}


def test_a_turned_face_is_seen_upright() -> None:
    image = np.kron(picture(3, 10, 10), np.ones((8, 8, 1), dtype=np.uint8))
    plain = cut(image, (16, 16, 64, 64))
    for turns, roll in ((1, -90), (2, 180), (3, 90)):  # rot90 turns anticlockwise
        seen = cut(np.ascontiguousarray(np.rot90(image, turns)), (16, 16, 64, 64), roll)
        assert seen.shape == plain.shape
        assert np.abs(seen.astype(int) - plain)[2:-2, 2:-2].mean() < 12
    turned = Predictor(NET, HOW, lambda image: [(16, 16, 64, 64, 180.0)], margin=1.0)
    (face,) = turned(np.ascontiguousarray(np.rot90(image, 2)))
    (upright,) = Predictor(NET, HOW, lambda image: [(16, 16, 64, 64, 10.0)], margin=1.0)(image)
    assert (face.roll, upright.roll) == (180.0, 0.0)
    assert face.valence == pytest.approx(upright.valence, abs=0.05)
    assert annotated(image, [face]).shape == (320, 320, 3)


def test_videos_are_vp9(tmp_path: Path) -> None:
    """Chromium and Firefox play VP9 in MP4; what OpenCV writes by default, MPEG-4 Part 2, they do not."""
    cv2 = pytest.importorskip("cv2")
    predict(video(tmp_path / "film.avi"), Predictor(NET, HOW), tmp_path / "out")
    code = int(cv2.VideoCapture(str(tmp_path / "out" / "film.mp4")).get(cv2.CAP_PROP_FOURCC))
    assert code.to_bytes(4, "little").lower() in (b"vp09", b"vp90")


def test_without_vp9_another_codec_is_used_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setattr("adaptive_margin.emotion.predict.CODECS", ("none", "mp4v"))
    told: list[str] = []
    predict(video(tmp_path / "film.avi"), Predictor(NET, HOW), tmp_path / "out", tell=told.append)
    assert told == ["videos are written as mp4v, which browsers do not play: this OpenCV has no VP9"]
    capture = cv2.VideoCapture(str(tmp_path / "out" / "film.mp4"))
    assert sum(1 for _ in iter(lambda: capture.read()[0], False)) == 5


PLAYER = """<title>film</title><video muted src="{name}"></video><script>
const film = document.querySelector("video"), say = text => document.body.append(text)
film.addEventListener("loadeddata", () => say(`shows ${{film.videoWidth}} x ${{film.videoHeight}}`))
film.addEventListener("error", () => say(`cannot show it`))
</script>"""


@pytest.mark.parametrize(("codec", "says"), [("vp09", "shows 384 x 288"), ("mp4v", "cannot show it")])
def test_chromium_plays_what_is_written(codec: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what was written before, which shows that the test can tell."""
    pytest.importorskip("cv2")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    monkeypatch.setattr("adaptive_margin.emotion.predict.CODECS", (codec,))
    predict(video(tmp_path / "film.avi"), Predictor(NET, HOW), tmp_path / "out")
    page = tmp_path / "out" / "film.html"
    page.write_text(PLAYER.format(name="film.mp4"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert says in done.stdout.replace("\n", " ").split("</script>")[-1], done.stderr[-500:]


def test_the_command_takes_several_inputs_and_the_old_name_of_an_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "run" / "model.pt", NET, HOW, config={"dataset": "faces"})
    for name in ("a.png", "b/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture()).save(tmp_path / name)
    words = ["predict", str(tmp_path / "a.png"), "--checkpoint", str(tmp_path), str(tmp_path / "b")]
    assert main([*words, "--crops", "--json", "--smallest-face", "30", "--output", str(tmp_path / "out")]) == 0
    assert [row["source"] for row in rows_of(tmp_path / "out")] == ["a.png", "b/b.png"]
    assert f"warning: {DRAWN}" in capsys.readouterr().out


def test_every_character_drawn_is_in_the_font(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, xy: Any, words: str, **how: Any) -> None:
        said.append(words)
        draw(self, xy, words, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    annotated(picture(height=300, width=300), [Face((10, 10, 90, 90), -0.25, -0.001)], warning=DRAWN)
    assert "V -0.25  A +0.00" in said
    font = ImageFont.load_default(size=20)
    unknown = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != unknown for letter in set("".join(said)) - {" "})


def person_net(scale: bool = False) -> EmotionNet:
    torch.manual_seed(1)
    net = emotion_net("small", leaky_slope=0.1, person_norm=True, person_scale=scale)
    assert net.person_norm is not None
    net.person_norm.running_mean += 1.0  # training remembers people who look different
    return net.eval()


def album(folder: Path, count: int = 5) -> list[np.ndarray]:
    """Pictures of one person, in files."""
    folder.mkdir(parents=True)
    seen = [picture(seed) for seed in range(count)]
    for number, image in enumerate(seen):
        Image.fromarray(image).save(folder / f"{number}.png")
    return seen


@pytest.mark.parametrize("scale", [False, True])
def test_pictures_of_one_person_are_read_by_each_other(tmp_path: Path, scale: bool) -> None:
    seen = album(tmp_path / "in")
    net = person_net(scale)
    images = torch.stack([paper_transform(Image.fromarray(each), train=False, resize=48, size=40) for each in seen])
    with torch.no_grad():
        features = net.encoder(images)
        assert net.person_norm is not None
        with net.person_norm.known(torch.zeros(len(seen))):
            expected = net.regressor(features)
        alone = net.regressor(features)
    assert not torch.allclose(expected, alone, atol=1e-3)

    outcome = predict(
        tmp_path / "in", Predictor(net, HOW), tmp_path / "out", batch_size=2, same_person=True, as_json=True
    )
    rows = rows_of(tmp_path / "out")
    assert list(rows[0]) == [*COLUMNS[:9], *PERSON, *COLUMNS[9:]]
    assert [row["source"] for row in rows] == [f"{number}.png" for number in range(5)]
    for names, truth in (((*COLUMNS[7:9],), alone), (PERSON, expected)):
        found = [[float(row[name]) for name in names] for row in rows]
        np.testing.assert_allclose(found, truth.numpy(), atol=2e-6)
    listed = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [list(row) for row in listed] == [list(row) for row in rows]
    assert (outcome.of_person, outcome.in_company, outcome.faces, outcome.pictures) == (5, 0, 5, 5)
    assert "person_valence and person_arousal: normalised by the 5 faces of this person" in summary(outcome)

    faces = Predictor(net, HOW).several(seen, same_person=True)
    np.testing.assert_allclose([of[0].by_person for of in faces], expected.numpy(), atol=1e-6)
    assert [of[0].shown for of in faces] == [of[0].by_person for of in faces]
    shown = [np.asarray(Image.open(tmp_path / "out" / f"{number}.png")) for number in range(5)]
    for image, drawn, of in zip(seen, shown, faces, strict=True):
        np.testing.assert_array_equal(drawn, annotated(image, of))


def test_a_video_and_pictures_of_one_person(tmp_path: Path) -> None:
    """The person is the largest face; the frames of a video count as its other pictures do."""
    pytest.importorskip("cv2")
    album(tmp_path / "in", 2)
    film = video(tmp_path / "in" / "film.avi", 3)
    damage_avi(video(tmp_path / "in" / "hurt.avi", 3), 2)
    (tmp_path / "in" / "broken.png").write_bytes(b"")
    calls = []

    def detector(image: np.ndarray) -> list[tuple[float, float, float, float]]:
        calls.append(image.shape)
        return [(5, 5, 45, 45), (0, 0, 12, 12)] if len(calls) % 3 else []

    told: list[str] = []
    predictor = Predictor(person_net(), HOW, detector)
    outcome = predict(tmp_path / "in", predictor, tmp_path / "out", same_person=True, tell=told.append)
    assert len(calls) == 7  # faces are looked for once
    assert [line.split(":")[0] for line in told] == ["broken.png", "hurt.avi"]
    assert (outcome.of_person, outcome.in_company, outcome.pictures) == (5, 5, 4)
    assert "5 with several faces: the largest is taken for the person" in summary(outcome)
    rows = rows_of(tmp_path / "out")
    assert [bool(row["person_valence"]) for row in rows] == [True, False] * 5
    assert (tmp_path / "out" / film.name).with_suffix(".mp4").is_file()


def test_what_was_unreadable_before_ctrl_c_is_in_the_summary(tmp_path: Path) -> None:
    album(tmp_path / "in", 3)
    (tmp_path / "in" / "0.png").write_bytes(b"")
    looked = []

    def detector(image: np.ndarray) -> list[tuple[float, float, float, float]]:
        looked.append(image)
        if len(looked) == 2:
            raise KeyboardInterrupt
        return [(5, 5, 45, 45)]

    predictor = Predictor(person_net(), HOW, detector)
    outcome = predict(tmp_path / "in", predictor, tmp_path / "out", same_person=True, batch_size=1)
    assert outcome.interrupted
    assert list(outcome.unreadable) == ["0.png"]
    assert [row["source"] for row in rows_of(tmp_path / "out")] == ["1.png"]


@pytest.mark.parametrize("count", [0, 1])
def test_one_face_has_nothing_to_be_normalised_by(tmp_path: Path, count: int) -> None:
    album(tmp_path / "in", 1)
    predictor = Predictor(person_net(), HOW, lambda image: [(5, 5, 45, 45)] * count)
    outcome = predict(tmp_path / "in", predictor, tmp_path / "out", same_person=True)
    assert outcome.of_person == count
    assert "are empty: they need two faces of this person or more" in summary(outcome)
    assert [row["person_valence"] for row in rows_of(tmp_path / "out")] == [""] * count
    assert [face.by_person for face in predictor.several([picture()], same_person=True)[0]] == [None] * count


def test_a_network_without_person_norm_reads_nobody_by_their_pictures(tmp_path: Path) -> None:
    album(tmp_path / "in")
    with pytest.raises(ValueError, match=r"trained with person_norm, got another; train one with --person-norm, or "):
        predict(tmp_path / "in", Predictor(NET, HOW), tmp_path / "out", same_person=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="person_norm"):
        Predictor(NET, HOW).several([picture()], same_person=True)


@pytest.mark.parametrize(("call", "sources"), [(0, []), (2, ["0.png", "1.png"]), (5, ["0.png", "1.png", "2.png"])])
def test_interrupted_looking_at_one_person(tmp_path: Path, call: int, sources: list[str]) -> None:
    """Files that were looked at to their end are in the table, read by each other."""
    pytest.importorskip("cv2")
    album(tmp_path / "in", 3)
    video(tmp_path / "in" / "film.avi", 6)
    calls = iter(range(20))

    def detector(image: np.ndarray) -> list[tuple[float, float, float, float]]:
        if next(calls) == call:
            raise KeyboardInterrupt
        return [(8, 8, 40, 40)]

    predictor = Predictor(person_net(), HOW, detector)
    outcome = predict(tmp_path / "in", predictor, tmp_path / "out", batch_size=2, same_person=True)
    assert outcome.interrupted
    rows = rows_of(tmp_path / "out")
    assert [row["source"] for row in rows] == sources
    assert all(row["person_arousal"] for row in rows)
    assert outcome.of_person == len(sources)
