from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from adaptive_margin.affect import DerivedCopyError, load_affectnet_2017, verify_images
from adaptive_margin.affect.affectnet import COLUMNS
from adaptive_margin.images.decode import read_face
from adaptive_margin.images.errors import LabelFileError, LayoutError, UnreadableError

from .export import Sample, export_affectnet_2017
from .faces import number_of, numbered, samples


@pytest.mark.parametrize("spelling", ["flat", "nested"])
@pytest.mark.parametrize("inside", [False, True])
def test_both_spellings_give_every_face_its_own_label(tmp_path, spelling, inside):
    faces = [*samples(6), *samples(4, split="validation", start=20)]
    export_affectnet_2017(tmp_path / "AffectNet" if inside else tmp_path, faces, spelling=spelling)
    for split in ("train", "validation"):
        records, report = load_affectnet_2017(tmp_path, split)
        mine = [face for face in faces if face.split == split]
        assert report.rows_read == report.rows_used == len(records) == len(mine)
        assert report.dropped == {}
        assert report.identities is None
        for record, face in zip(records, mine, strict=True):
            assert number_of(read_face(record)) == number_of(face.image)
            assert read_face(record).size == (64, 64)  # the box cuts the border off
            assert (record.valence, record.arousal) == (np.float32(face.valence), np.float32(face.arousal))
            assert record.raw == (face.valence, face.arousal)
            assert record.identity is None
            assert record.expression == face.code
        assert records.labels.dtype == np.float32


def test_planted_defects_are_counted_exactly(tmp_path):
    every_code = [Sample(numbered(37 + code), 0.01 * code, -0.02 * code, expression=code) for code in range(11)]
    expected = export_affectnet_2017(tmp_path, every_code, defects=True)["train"]
    with pytest.raises(UnreadableError, match="1 of 23 rows unreadable, none allowed") as raised:
        load_affectnet_2017(tmp_path, "train")
    assert "training.csv line" in str(raised.value)
    loaded = load_affectnet_2017(tmp_path, "train", skip_unreadable=1)
    assert expected.differences(loaded.report) == []
    report = loaded.report
    # The same by hand: eleven rows with a face each, twenty planted.
    assert report.rows_read == 31
    assert report.dropped == {"sentinel": 5, "no face": 2, "missing file": 1, "label not a number": 1}
    assert report.rows_used == 22
    assert report.outside_circle == 1
    assert report.valence.high == pytest.approx(0.9)
    assert report.valence.beyond == 0
    assert report.classes == {0: 2, 1: 16, 2: 1, 3: 1, 4: 2, 5: 1, 6: 1, 7: 1, 8: 2, 9: 2, 10: 2}
    assert any("1 row of a further face in the picture of an earlier row" in note for note in report.notes)
    assert any("1 file found with another extension" in note for note in report.notes)
    with pytest.raises(UnreadableError, match="2 of 22 rows unreadable, at most 1 allowed"):
        verify_images(loaded, skip_unreadable=1)
    verified = verify_images(loaded, skip_unreadable=0.1)
    assert verified.report.dropped["undecodable"] == expected.undecodable == 2
    assert verified.report.rows_used == len(verified.records) == 20
    assert verified.report.rows_read == 31
    assert len(set(verified.records.key)) == 20
    for record in verified.records:  # grey, palette, CMYK, RGBA, wrong extension, box that sticks out
        face = read_face(record)
        assert face.mode == "RGB"
        if face.size == (76, 76):
            face = face.crop((6, 6, 70, 70))
        assert number_of(face) in range(37, 46)


def test_expressions_select_and_the_rest_is_counted(tmp_path):
    export_affectnet_2017(tmp_path, [Sample(numbered(code), 0.1, 0.1, expression=code) for code in range(11)])
    report = load_affectnet_2017(tmp_path, "train").report
    assert report.rows_used == 9
    assert report.dropped == {"sentinel": 2}
    report = load_affectnet_2017(tmp_path, "train", expressions=range(8)).report
    assert report.rows_used == 8
    assert report.dropped == {"sentinel": 2, "category": 1}
    with pytest.raises(ValueError, match="codes from 0 to 10"):
        load_affectnet_2017(tmp_path, "train", expressions=[11])
    with pytest.raises(ValueError, match="at least one of them, got all dropped"):
        load_affectnet_2017(tmp_path, "train", expressions=[9])


def test_crops(tmp_path):
    export_affectnet_2017(tmp_path, samples(2))
    whole = load_affectnet_2017(tmp_path, "train", crop="none").records
    assert whole[0].box is None
    assert read_face(whole[0]).size == (76, 76)
    marked = load_affectnet_2017(tmp_path, "train", crop="landmarks").records
    assert marked[0].box == pytest.approx((6, 6, 70, 70), abs=1e-3)  # an extent of 64 / 1.25, times 1.25


def test_columns_are_read_by_name(tmp_path):
    faces = samples(3)
    export_affectnet_2017(tmp_path, faces)
    path = tmp_path / "Manually_Annotated_file_lists" / "training.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    order = [8, 0, 6, 7, 5, 1, 2, 3, 4]  # arousal first
    path.write_text("\ufeff" + "\r\n".join(",".join(row[place] for place in order) for row in rows) + "\r\n")
    records, _ = load_affectnet_2017(tmp_path, "train")
    assert np.allclose(records.raw, [(face.valence, face.arousal) for face in faces])


def test_automatic_list_without_a_header(tmp_path):
    faces = samples(4)
    export_affectnet_2017(tmp_path, faces)
    lists, images = tmp_path / "Automatically_annotated_file_list", tmp_path / "Automatically_Annotated_Images"
    (tmp_path / "Manually_Annotated_file_lists").rename(lists)
    nested = images / "Automatically_Annotated_Images"
    images.mkdir()
    (tmp_path / "Manually_Annotated_Images").rename(nested)
    lines = (lists / "training.csv").read_text().splitlines()
    (lists / "automatically_annotated.csv").write_text("\n".join(lines[1:]))
    records, report = load_affectnet_2017(tmp_path, "automatic")
    assert report.rows_read == len(records) == 4
    assert any("no header line" in note for note in report.notes)
    assert number_of(read_face(records[3])) == 3
    with pytest.raises(LayoutError, match=r"there is no training\.csv"):
        load_affectnet_2017(tmp_path, "train")


def test_other_columns_are_refused(tmp_path):
    export_affectnet_2017(tmp_path, samples(2))
    path = tmp_path / "Manually_Annotated_file_lists" / "training.csv"
    path.write_text(path.read_text().replace("arousal", "excitement", 1))
    with pytest.raises(LabelFileError, match=r"training\.csv line 1 must be the header subDirectory_filePath"):
        load_affectnet_2017(tmp_path, "train")
    path.write_text("")
    with pytest.raises(LabelFileError, match="an empty file"):
        load_affectnet_2017(tmp_path, "train")


@pytest.mark.parametrize("header", [True, False])
def test_lines_are_those_of_the_file_where_a_field_spans_several(tmp_path, header):
    export_affectnet_2017(tmp_path, samples(4))
    path = tmp_path / "Manually_Annotated_file_lists" / "training.csv"
    lines = [line.split(",") for line in path.read_text().splitlines()]
    lines[1][5] = '"' + lines[1][5].replace(";", ";\n", 2) + '"'  # landmarks, on three lines
    lines[3][6] = "happy"
    path.write_text("\n".join(",".join(cells) for cells in lines[0 if header else 1 :]))
    with pytest.raises(UnreadableError, match=rf"training\.csv line {6 if header else 5}: expression 'happy'"):
        load_affectnet_2017(tmp_path, "train")


def test_a_list_cut_short_is_unreadable_in_its_last_row(tmp_path):
    export_affectnet_2017(tmp_path, samples(3))
    path = tmp_path / "Manually_Annotated_file_lists" / "training.csv"
    path.write_text(path.read_text()[:-600])
    with pytest.raises(UnreadableError, match=r"training\.csv line 4"):
        load_affectnet_2017(tmp_path, "train")
    report = load_affectnet_2017(tmp_path, "train", skip_unreadable=1).report
    assert report.dropped == {"unreadable annotation": 1}


@pytest.mark.parametrize(
    ("fill", "says"),
    [
        (lambda root: None, r"\(empty\)"),
        (lambda root: (root / "photos").mkdir(), "photos/"),
    ],
)
def test_a_wrong_root_shows_what_was_expected_and_found(tmp_path, fill, says):
    fill(tmp_path)
    with pytest.raises(LayoutError, match=says) as raised:
        load_affectnet_2017(tmp_path, "train")
    assert "Manually_Annotated_file_lists/" in str(raised.value)
    with pytest.raises(LayoutError, match="no such folder"):
        load_affectnet_2017(tmp_path / "nowhere", "train")


def test_lists_without_images_name_the_folder(tmp_path):
    export_affectnet_2017(tmp_path, samples(2))
    (tmp_path / "Manually_Annotated_Images").rename(tmp_path / "pictures")
    with pytest.raises(LayoutError, match="there is no Manually_Annotated_Images/"):
        load_affectnet_2017(tmp_path, "train")


def _class_folders(root, names, size):
    for name in names:
        (root / name).mkdir(parents=True)
        Image.fromarray(numbered(1, size)).save(root / name / "image0000001.png")


@pytest.mark.parametrize(
    ("part", "names", "size", "says"),
    [
        (
            "",
            ["anger", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise"],
            96,
            "96x96 pixel version",
        ),
        ("train", ["0", "1", "2", "3", "4", "5", "6", "7"], 120, "folder per emotion"),
        ("Train", ["Anger", "Contempt", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"], 224, "per emotion"),
    ],
)
def test_class_folder_copies_are_refused(tmp_path, part, names, size, says):
    _class_folders(tmp_path / part, names, size)
    with pytest.raises(DerivedCopyError, match=says) as raised:
        load_affectnet_2017(tmp_path, "train")
    assert "no valence and arousal" in str(raised.value)


def test_relabelled_and_repartitioned_copies_are_refused(tmp_path):
    _class_folders(tmp_path / "hq", ["anger", "disgust", "fear", "happy", "sad"], 200)
    (tmp_path / "hq" / "labels.csv").write_text(",pth,label,relFCs\n0,anger/image0000001.png,anger,0.87\n")
    with pytest.raises(DerivedCopyError, match="AffectNet-HQ"):
        load_affectnet_2017(tmp_path / "hq", "train")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "split.csv").write_text("name,valence,arousal,age,gender,race\n")
    with pytest.raises(DerivedCopyError, match="re-partition"):
        load_affectnet_2017(tmp_path / "parts", "train")


def test_header_of_the_documentation():
    assert COLUMNS[7:] == ("valence", "arousal")
