from __future__ import annotations

import numpy as np
import pytest

from adaptive_margin.affect import load_aff_wild2, load_aff_wild2_list
from adaptive_margin.affect.aff_wild2 import read_labels, source_video
from adaptive_margin.images.decode import read_face
from adaptive_margin.images.errors import LabelFileError, LayoutError, UnreadableError

from .export import export_aff_wild2
from .faces import number_of, samples


@pytest.mark.parametrize("edition", ["6th ABAW Annotations", "2020"])
def test_label_lines_and_crops_are_joined_on_the_number(tmp_path, edition):
    faces = [*samples(12, videos=2), *samples(5, videos=1, split="validation", start=50)]
    expected = export_aff_wild2(tmp_path, faces, edition=edition)
    for split in ("train", "validation"):
        records, report = load_aff_wild2(tmp_path, split)
        mine = [face for face in faces if face.split == split]
        assert expected[split].differences(report) == []
        for record, face in zip(records, mine, strict=True):
            assert number_of(read_face(record)) == number_of(face.image)
            assert record.raw == (face.valence, face.arousal)
            assert int(record.path.stem) == record.frame


def test_planted_defects_are_counted_exactly(tmp_path):
    faces = [*samples(12, videos=2), *samples(5, videos=1, split="validation", start=50)]
    expected = export_aff_wild2(tmp_path, faces, defects=True)
    with pytest.raises(
        UnreadableError, match=r"6 of 50 rows unreadable, none allowed:\n.*no folder of crops called 88"
    ):
        load_aff_wild2(tmp_path, "train")
    records, report = load_aff_wild2(tmp_path, "train", skip_unreadable=6)
    assert expected["train"].differences(report) == []
    # By hand: 12 honest lines, seven videos of six, one of them with a line too many.
    assert report.rows_read == 12 + 7 * 6 + 1
    assert report.dropped == {"missing file": 6, "sentinel": 3, "no face": 2}
    assert report.rows_used == 44
    people = {record.video: record.identity for record in records}
    assert (
        people["77-30-1280x720_left"] == people["77-30-1280x720_right"] == people["77-30-1280x720"] == "77-30-1280x720"
    )
    assert people["video45_3"] == people["video45_4"] == "video45"
    assert report.identities == 5  # v0, v1, 77-30-1280x720, video45, 102
    left = [record.frame for record in records if record.video == "77-30-1280x720_left"]
    assert left == [1, 2, 4, 5, 6]
    truth = {number_of(face.image): face for face in faces}
    for record in records:
        face = truth[number_of(read_face(record))]
        assert record.raw == (face.valence, face.arousal)
    notes = "\n".join(report.notes)
    assert "1 crop after the last label line" in notes
    assert "1 video from Aff-Wild: do not mix the two data sets (102)" in notes
    assert load_aff_wild2(tmp_path, "validation").report.rows_used == 5


def test_every_third_frame(tmp_path):
    export_aff_wild2(tmp_path, samples(7, videos=1))
    records, report = load_aff_wild2(tmp_path, "train", every=3)
    assert records.frame.tolist() == [1, 4, 7]
    assert report.dropped == {"not selected": 4}


def test_two_editions_must_be_told_apart(tmp_path):
    export_aff_wild2(tmp_path, samples(4, videos=1), edition="3rd ABAW Annotations")
    export_aff_wild2(tmp_path, samples(2, videos=1), edition="6th ABAW Annotations")
    with pytest.raises(ValueError, match=r"3rd ABAW Annotations/.*6th ABAW Annotations/.*annotations="):
        load_aff_wild2(tmp_path, "train")
    chosen = tmp_path / "3rd ABAW Annotations" / "VA_Estimation_Challenge" / "Train_Set"
    assert load_aff_wild2(tmp_path, "train", annotations=chosen).report.rows_used == 4


def test_crops_may_lie_elsewhere(tmp_path):
    export_aff_wild2(tmp_path / "one", samples(4, videos=1))
    (tmp_path / "one" / "cropped_aligned").rename(tmp_path / "crops")
    with pytest.raises(LayoutError, match="no cropped_aligned/"):
        load_aff_wild2(tmp_path / "one", "train")
    records, _ = load_aff_wild2(tmp_path / "one", "train", crops=[tmp_path / "crops"])
    assert [number_of(read_face(record)) for record in records] == [0, 1, 2, 3]


def test_headers(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("valence,arousal\n0.1,0.2\n\n0.3,x\n0.5,0.6\n\n")
    values, odd = read_labels(path)
    assert np.array_equal(values, [[0.1, 0.2], [np.nan] * 2, [0.3, np.nan], [0.5, 0.6]], equal_nan=True)
    assert odd == ""
    path.write_text("arousal, valence\n0.1,0.2\n")
    values, odd = read_labels(path)
    assert values.tolist() == [[0.2, 0.1]]
    assert "arousal first" in odd
    path.write_text("0.1,0.2\n0.3,0.4\n")
    values, odd = read_labels(path)
    assert values.tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert "no header" in odd
    for text in ("", "expression\n1\n"):
        path.write_text(text)
        with pytest.raises(LabelFileError, match="must be 'valence,arousal'"):
            read_labels(path)


def test_a_list_with_locations(tmp_path):
    faces = samples(6, videos=2)
    export_aff_wild2(tmp_path, faces)
    path = tmp_path / "list.csv"
    path.write_text("image_location,valence,arousal\nv1/00002.jpg,0.5,-0.5\nv0/00003.jpg,-5,-5\nv0/00009.jpg,0,0\n")
    records, report = load_aff_wild2_list(tmp_path, path, split="mine")
    assert list(records.key) == ["mine/v1/00002"]
    assert number_of(read_face(records[0])) == 4
    assert report.dropped == {"no face": 1, "sentinel": 1}
    path.write_text("image_location,valence,arousal\nv1/first.jpg,0.5,-0.5\n")
    with pytest.raises(LabelFileError, match="line 2 must be a location"):
        load_aff_wild2_list(tmp_path, path, split="mine")
    path.write_text("image,valence,arousal\n")
    with pytest.raises(LabelFileError, match="'image_location,valence,arousal'"):
        load_aff_wild2_list(tmp_path, path, split="mine")


def test_source_videos():
    names = ["video10_1_left", "10-60-1280x720", "135-24-1920x1080_right", "9-15-1920x1080-3", "video_5", "449", "5"]
    assert [source_video(name) for name in names] == [
        "video10", "10-60-1280x720", "135-24-1920x1080", "9-15-1920x1080", "video", "449", "5",
    ]  # fmt: skip


def test_wrong_roots(tmp_path):
    (tmp_path / "cropped_aligned").mkdir()
    with pytest.raises(LayoutError, match="VA_Estimation_Challenge/ or VA_Set/"):
        load_aff_wild2(tmp_path, "train")
    with pytest.raises(ValueError, match="every must be a whole number"):
        load_aff_wild2(tmp_path, "train", every=0)
