from __future__ import annotations

import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cv2", reason="videos need OpenCV")

from adaptive_margin.affect import load_aff_wild
from adaptive_margin.affect.aff_wild import (
    could_be_off,
    decide_indexing,
    read_box,
    read_labels,
    read_pts,
    survey_aff_wild,
)
from adaptive_margin.images.decode import read_face, read_image
from adaptive_margin.images.errors import LabelFileError, LayoutError, UnreadableError, UnwritableError
from adaptive_margin.images.video import extract, timeline
from adaptive_margin.messages import is_expected

from ..images.videos import UNEVEN, damage_avi, jpeg, skip_in_avi, write
from .export import export_aff_wild
from .faces import forbid_writing, number_of, samples


@pytest.mark.parametrize("spelling", ["bboxes", "bboxs"])
@pytest.mark.parametrize("doubled", [False, True])
def test_every_frame_has_its_own_label_and_box(tmp_path, spelling, doubled):
    faces = samples(40, videos=2)
    export_aff_wild(tmp_path, faces, spelling=spelling, doubled=doubled)
    records, report = load_aff_wild(tmp_path)
    assert report.rows_read == report.rows_used == 40
    assert report.identity_kind == "video"
    assert report.videos == report.identities == 2
    for record, face in zip(records, faces, strict=True):
        assert record.path.name == f"{record.frame:06d}.jpg"
        assert read_face(record).size == (64, 64)
        assert number_of(read_face(record)) == number_of(face.image)
        assert record.raw == (face.valence, face.arousal)
    assert list(records.key)[:2] == ["105/000001", "105/000002"]
    assert {path.suffix for path in tmp_path.glob("videos/**/*.*")} == {".avi", ".mp4"}


def test_planted_defects_are_counted_exactly(tmp_path):
    faces = samples(32, videos=2)
    expected = export_aff_wild(tmp_path, faces, defects=True, doubled=True)["train"]
    with pytest.raises(UnreadableError, match=r"33 of 100 rows unreadable, none allowed"):
        load_aff_wild(tmp_path)
    with pytest.raises(UnreadableError, match="at most 32 allowed"):
        load_aff_wild(tmp_path, skip_unreadable=32)
    records, report = load_aff_wild(tmp_path, skip_unreadable=33)
    assert expected.differences(report) == []
    # By hand: 32 honest lines; 14 for 16 frames, 8 for 16, 17 for 16, 10 for 16, 16 without arousal, 16 without video.
    assert report.rows_read == 32 + 14 + 8 + 17 + 10 + 16 + 16
    assert report.dropped == {
        "missing annotation": 16,
        "undecodable": 16,
        "refused video": 10,
        "label without a frame": 1,
        "label not a number": 1,
        "no face": 1,
        "unreadable annotation": 1,
    }
    notes = "\n".join(report.notes)
    assert "video 107: 14 label lines, 16 frames, 15 boxes: lines taken as frames although they differ" in notes
    assert "8 label lines, 16 frames, 8 boxes: lines taken as frames with a face" in notes
    assert "10 label lines, 16 frames, 16 boxes: the lines match neither" in notes
    assert "2 frames of 1 video after the last label" in notes
    assert "1 video without labels" not in notes  # the test video is in another folder
    truth = {number_of(face.image): face for face in faces}
    for record in records:  # in the planted videos, too, each picture has its own label
        picture = read_face(record)
        if picture.size == (76, 76):  # the box that sticks out takes the border in
            picture = picture.crop((6, 6, 70, 70))
        face = truth[number_of(picture)]
        assert record.raw == pytest.approx((face.valence, face.arousal))
    again = load_aff_wild(tmp_path, skip_unreadable=33)
    assert again.records.digest() == records.digest()
    assert again.report == report


def test_frames_are_extracted_once_and_outlive_the_videos(tmp_path):
    export_aff_wild(tmp_path, samples(20, videos=2))
    first, _ = load_aff_wild(tmp_path)
    stamps = {record.path: record.path.stat().st_mtime_ns for record in first}
    again, _ = load_aff_wild(tmp_path)
    assert {record.path: record.path.stat().st_mtime_ns for record in again} == stamps
    shutil.rmtree(tmp_path / "videos")
    without, _ = load_aff_wild(tmp_path)
    assert without.digest() == first.digest()


def test_a_changed_video_or_box_is_extracted_anew(tmp_path):
    export_aff_wild(tmp_path, samples(12, videos=1))
    first, _ = load_aff_wild(tmp_path)
    assert number_of(read_face(first[0])) == 0
    shutil.rmtree(tmp_path / "videos")
    export_aff_wild(tmp_path, samples(12, videos=1, start=100))
    second, _ = load_aff_wild(tmp_path)
    assert number_of(read_face(second[0])) == 100
    (tmp_path / "bboxes" / "train" / "105" / "3.pts").unlink()
    assert load_aff_wild(tmp_path).report.dropped == {"no face": 1}


def test_an_interrupted_extraction_starts_again(tmp_path, monkeypatch):
    export_aff_wild(tmp_path, samples(12, videos=1))
    import adaptive_margin.images.video as video

    written = []
    name = video.frame_name

    def stop(number):
        written.append(number)
        if number == 5:
            raise KeyboardInterrupt
        return name(number)

    monkeypatch.setattr(video, "frame_name", stop)
    with pytest.raises(KeyboardInterrupt):
        load_aff_wild(tmp_path)
    folder = tmp_path / "extracted_frames" / "faces"
    assert written == [1, 2, 3, 4, 5]
    assert list(folder.iterdir()) == []
    monkeypatch.undo()
    partial = folder / ".105.partial"  # as a killed process leaves it
    partial.mkdir()
    (partial / "000001.jpg").write_bytes(b"half")
    records, _ = load_aff_wild(tmp_path)
    assert [number_of(read_face(record)) for record in records] == list(range(12))
    assert not partial.exists()


def test_a_full_disk_leaves_no_half_video(tmp_path, monkeypatch):
    import errno
    from pathlib import Path

    export_aff_wild(tmp_path, samples(12, videos=1))
    write = Path.write_bytes

    def full(self, data):
        if self.name == "000007.jpg":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        load_aff_wild(tmp_path)
    assert list((tmp_path / "extracted_frames" / "faces").iterdir()) == []


def test_a_deleted_frame_is_missing(tmp_path):
    export_aff_wild(tmp_path, samples(6, videos=1))
    records, _ = load_aff_wild(tmp_path)
    records[2].path.unlink()
    with pytest.raises(UnreadableError, match=r"105/000003: 105/000003\.jpg \(delete the folder"):
        load_aff_wild(tmp_path)


def test_whole_frames_and_every_second(tmp_path):
    export_aff_wild(tmp_path, samples(10, videos=1))
    records, report = load_aff_wild(tmp_path, crop="none", every=2)
    assert records.frame.tolist() == [1, 3, 5, 7, 9]
    assert report.dropped == {"not selected": 5}
    assert records[0].box is None
    assert read_face(records[0]).size == (76, 76)
    assert [number_of(np.asarray(read_face(record))[6:-6, 6:-6]) for record in records] == [0, 2, 4, 6, 8]


def test_a_video_cut_short_is_refused(tmp_path):
    export_aff_wild(tmp_path, samples(40, videos=2))
    path = next((tmp_path / "videos" / "train").glob("*.avi"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 0 < len(timeline(path).numbers) < 16
    _, report = load_aff_wild(tmp_path)
    assert report.dropped == {"refused video": 20}
    assert any("the lines match neither" in note for note in report.notes)


def test_a_missing_video_is_unreadable(tmp_path):
    export_aff_wild(tmp_path, samples(20, videos=2))
    next((tmp_path / "videos" / "train").glob("*.avi")).unlink()
    with pytest.raises(UnreadableError, match="10 of 20 rows unreadable"):
        load_aff_wild(tmp_path)
    assert load_aff_wild(tmp_path, skip_unreadable=0.5).report.dropped == {"missing file": 10}


@pytest.mark.parametrize(
    ("lines", "frames", "boxes", "how", "noted"),
    [
        (1000, 1000, 800, "frame", False),
        (998, 1000, 800, "frame", False),
        (985, 1000, 800, "frame", True),
        (1015, 1000, 1000, "frame", True),
        (990, 1000, 990, "frame", True),
        (802, 1000, 800, "face", True),
        (900, 1000, 800, "refused", True),
        (1000, 0, 990, "refused", True),
        (20, 5, 20, "refused", True),
        (5, 7, None, "frame", True),
        (5, 8, None, "refused", True),
        (20, 1000, 0, "refused", True),
    ],
)
def test_which_frame_a_line_belongs_to(lines, frames, boxes, how, noted):
    choice = decide_indexing(lines, frames, boxes)
    assert choice.how == how
    assert bool(choice.note) == noted


def test_numbering_from_zero_is_understood(tmp_path):
    faces = samples(6, videos=1)
    export_aff_wild(tmp_path, faces)
    folder = tmp_path / "bboxes" / "train" / "105"
    for number in range(1, 7):
        (folder / f"{number}.pts").rename(folder / f"{number - 1:05d}.pts")
    records, report = load_aff_wild(tmp_path)
    assert report.rows_used == 6
    assert [number_of(read_face(record)) for record in records] == list(range(6))


def test_a_small_face_in_a_large_frame(tmp_path):
    """What is kept around the face is cut off again by the box, wherever the face is."""
    faces = samples(6, videos=1)
    wide = []
    for place, face in enumerate(faces):
        image = np.full((200, 320, 3), 128, dtype=np.uint8)
        image[60 : 60 + 64, 100 + 10 * place : 164 + 10 * place] = face.image
        wide.append(replace(face, image=image))
    export_aff_wild(tmp_path, wide)
    folder = tmp_path / "bboxes" / "train" / "105"
    for place in range(6):  # the exporter's border is 32 and 20 pixels wide
        left, top = 132 + 10 * place, 80
        corners = f"{left} {top}\n{left + 64} {top + 64}\n{left + 64} {top}\n{left} {top + 64}"
        (folder / f"{place + 1}.pts").write_text(f"version: 1\nn_points: 4\n{{\n{corners}\n}}\n")
    records, _ = load_aff_wild(tmp_path)
    for record, face in zip(records, faces, strict=True):
        assert read_image(record.path).size == (128, 128)  # twice the box
        assert record.box == (32, 32, 96, 96)
        assert read_face(record).size == (64, 64)
        assert number_of(read_face(record)) == number_of(face.image)


def test_label_files(tmp_path):
    path = tmp_path / "1.txt"
    path.write_bytes(b"\xef\xbb\xbf0.5\r\n\r\n-1.5e-1\r\nx\r\n\r\n\r\n")
    assert np.array_equal(read_labels(path), [0.5, np.nan, -0.15, np.nan], equal_nan=True)


def test_box_files(tmp_path):
    path = tmp_path / "1.pts"
    path.write_text("version: 1\nn_points: 4\n{\n30 40\n10 40\n10 20.5\n30 20.5\n}\n")
    assert read_box(path) == (10, 20.5, 30, 40)
    assert read_pts(path).shape == (4, 2)
    for text in (
        "",
        "version: 1\nn_points: 4\n{\n1 2\n",
        "n_points: 4\n{\n1 2\n3 4\n}",
        "{\n1 2 3\n}",
        "{\n1 x\n}",
        "{\n}",
    ):
        path.write_text(text)
        with pytest.raises(LabelFileError, match="points between braces"):
            read_pts(path)
    path.write_text("{\n1 2\n1 2\n}")
    with pytest.raises(LabelFileError, match="corners of a box"):
        read_box(path)


def test_wrong_roots(tmp_path):
    with pytest.raises(LayoutError, match=r"annotations/train/valence/<id>\.txt"):
        load_aff_wild(tmp_path)
    export_aff_wild(tmp_path, samples(4, videos=1))
    with pytest.raises(ValueError, match="its labels were never released"):
        load_aff_wild(tmp_path, "test")
    (tmp_path / "bboxes").rename(tmp_path / "frames_of_faces")
    with pytest.raises(LayoutError, match=r"bboxes/train/ \(crop='none' takes whole frames\)"):
        load_aff_wild(tmp_path)
    assert load_aff_wild(tmp_path, crop="none").report.rows_used == 4
    shutil.rmtree(tmp_path / "videos")
    with pytest.raises(LayoutError, match="videos/train/"):
        load_aff_wild(tmp_path, frames_dir=tmp_path / "other", crop="none")


def test_without_opencv_the_error_says_what_to_install(tmp_path, monkeypatch):
    export_aff_wild(tmp_path, samples(4, videos=1))
    first, _ = load_aff_wild(tmp_path)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert load_aff_wild(tmp_path).records.digest() == first.digest()  # frames that are there need no decoder
    with pytest.raises(ImportError, match=r"pip install -e '.*\[fer\]'"):
        load_aff_wild(tmp_path, frames_dir=tmp_path / "other")


def test_a_folder_that_cannot_be_made(tmp_path):
    export_aff_wild(tmp_path, samples(4, videos=1))
    (tmp_path / "extracted_frames").touch()
    with pytest.raises(OSError, match=r"frames cannot be stored in .*pass frames_dir="):
        load_aff_wild(tmp_path)


def test_extraction_reports_what_the_container_says(tmp_path):
    export_aff_wild(tmp_path, samples(9, videos=1))
    path = next((tmp_path / "videos" / "train").glob("*.avi"))
    done = extract(path, tmp_path / "out", boxes=None)
    assert (done.frames, done.width, done.height, done.boxes) == (9, 76, 76, -1)
    assert done.fps == pytest.approx(30000 / 1001, rel=1e-3)  # 29.97: a rate that ceil() would have shifted
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 9


def test_a_root_that_cannot_be_written(tmp_path, monkeypatch):
    export_aff_wild(tmp_path / "root", samples(6, videos=2))
    forbid_writing(monkeypatch, tmp_path / "root")
    with pytest.raises(
        UnwritableError, match=r"Read-only .*frames cannot be stored in .*\(training: --cache\)"
    ) as caught:
        load_aff_wild(tmp_path / "root")
    assert is_expected(caught.value)  # no traceback on a command line
    monkeypatch.undo()
    first, _ = load_aff_wild(tmp_path / "root")
    forbid_writing(monkeypatch, tmp_path / "root")
    assert load_aff_wild(tmp_path / "root").records.digest() == first.digest()
    shutil.rmtree(next((tmp_path / "root" / "extracted_frames" / "faces").iterdir()))
    with pytest.raises(UnwritableError, match="--cache"):
        load_aff_wild(tmp_path / "root")


def test_a_damaged_frame_costs_its_own_line(tmp_path):
    faces = samples(30, videos=1)
    export_aff_wild(tmp_path, faces)
    damage_avi(tmp_path / "videos" / "train" / "105.avi", 9)
    for _ in range(2):  # while it is extracted, and from what was
        records, report = load_aff_wild(tmp_path)
        assert records.frame.tolist() == [number for number in range(1, 31) if number != 9]
        assert [number_of(read_face(record)) for record in records] == [number for number in range(30) if number != 8]
        assert report.dropped == {"damaged frame": 1}
        assert report.examples["damaged frame"] == ("105/000009: this frame of the video does not decode",)
    read = survey_aff_wild(tmp_path, decode=True)
    assert read.report.dropped == {"damaged frame": 1}


def test_a_skipped_frame_shifts_no_label(tmp_path):
    """The line of a frame that the container skips gets the picture that is shown at its time."""
    faces = samples(30, videos=1)
    export_aff_wild(tmp_path, faces)
    skip_in_avi(tmp_path / "videos" / "train" / "105.avi", 9)
    records, report = load_aff_wild(tmp_path)
    assert report.dropped == {}
    pictures = [number_of(read_face(record)) for record in records]
    assert pictures == [7 if number == 8 else number for number in range(30)]
    assert "video 105: 1 numbers have no frame and show the one before, 0 frames are repeated" in report.notes


@pytest.mark.parametrize("half", [False, True], ids=["zeroed", "half zeroed"])
def test_damaged_extracted_frames_are_extracted_again(tmp_path, half):
    export_aff_wild(tmp_path, samples(12, videos=1))
    first, _ = load_aff_wild(tmp_path)
    file = tmp_path / "extracted_frames" / "faces" / "105" / "000004.jpg"
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2 * half].ljust(len(good), b"\0"))
    records, report = load_aff_wild(tmp_path)
    assert file.read_bytes() == good
    assert records.digest() == first.digest()
    assert any("000004.jpg" in note and "damaged; it is extracted again" in note for note in report.notes)
    assert not load_aff_wild(tmp_path).report.notes


@pytest.mark.parametrize("name", ["000004.jpg", "boxes.npy", "frames.json"])
def test_damaged_extracted_frames_without_their_video_are_not_used(tmp_path, name):
    export_aff_wild(tmp_path, samples(12, videos=1))
    load_aff_wild(tmp_path)
    next((tmp_path / "videos" / "train").glob("*.avi")).unlink()
    load_aff_wild(tmp_path)
    file = tmp_path / "extracted_frames" / "faces" / "105" / name
    file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.raises(
        UnreadableError, match=r"000004\.jpg is not the frame" if "4" in name else "its extraction is damaged"
    ):
        load_aff_wild(tmp_path)
    if "4" in name:
        records, report = load_aff_wild(tmp_path, skip_unreadable=1)
        assert 4 not in records.frame.tolist()
        assert len(records) == 11
        assert any("what is left of it is used" in note for note in report.notes)


def uneven_root(root):
    """Fourteen frames at variable rate, a label line for each."""
    for label in ("valence", "arousal"):
        folder = root / "annotations" / "train" / label
        folder.mkdir(parents=True)
        (folder / "105.txt").write_text("".join(f"{k / 20}\n" for k in range(14)))
    write(root / "videos" / "train" / "105.mkv", [jpeg(number) for number in range(1, 15)], UNEVEN)
    return root


def test_a_video_without_a_grid_is_named_with_what_could_be_off(tmp_path):
    root = uneven_root(tmp_path)
    # were labels evenly spaced, line k would be the frame shown at (k - ½)/14 of 2.39 s
    begins = [stamp / 1000 for stamp in UNEVEN]
    shown = [sum(begin <= (k + 0.5) * 2.39 / 14 for begin in begins) for k in range(14)]
    off = sum(frame != k + 1 for k, frame in enumerate(shown))
    most = max(abs(frame - k - 1) for k, frame in enumerate(shown))
    assert off > 5
    survey = survey_aff_wild(root, decode=True, crop="none")
    reports = [load_aff_wild(root, crop="none").report for _ in range(2)]  # extracted, and from what was
    for report in (survey.report, *reports):
        (note,) = [note for note in report.notes if "no grid" in note]
        assert note.startswith(
            "video 105: its time stamps lie on no grid, so label line k is taken for its k-th frame;"
        )
        assert f"{off} of 14 labels would belong to another frame, by up to {most} frames" in note


def test_a_video_on_a_grid_has_no_such_note(tmp_path):
    root = uneven_root(tmp_path)
    write(root / "videos" / "train" / "105.mkv", [jpeg(k) for k in range(1, 15)], [40 * k for k in range(14)])
    assert not any("grid" in note for note in load_aff_wild(root, crop="none").report.notes)


def test_labels_evenly_spaced_in_time_are_never_off_in_an_even_video():
    seconds = [k / 30 for k in range(300)]
    assert could_be_off(300, None, range(1, 301), seconds, 10.0) == (0, 0, 0.0)
    assert could_be_off(150, range(2, 301, 2), range(1, 301), seconds, 10.0)[0] <= 150
