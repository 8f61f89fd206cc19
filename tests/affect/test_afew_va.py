from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from adaptive_margin.affect import load_afew_va, verify_images
from adaptive_margin.images.decode import read_face
from adaptive_margin.images.errors import LabelFileError, LayoutError, UnreadableError

from .export import export_afew_va
from .faces import number_of, numbered, samples


@pytest.mark.parametrize("layout", ["flat", "parts"])
def test_both_layouts_join_on_the_frame(tmp_path, layout):
    faces = samples(12, videos=3)
    export_afew_va(tmp_path, faces, layout=layout)
    records, report = load_afew_va(tmp_path)
    assert report.rows_read == report.rows_used == 12
    assert report.videos == 3
    assert report.identities == 3
    assert report.identity_kind == "actor"
    for record, face in zip(records, faces, strict=True):
        assert np.array_equal(np.asarray(read_face(record)), face.image)  # PNG, and the box is the face exactly
        assert record.raw == (round(10 * face.valence), round(10 * face.arousal))
        assert record.valence == np.float32(record.raw[0] / 10)
        assert record.identity == face.identity.casefold()
    assert [record.key for record in records][:5] == ["001/00000", "001/00001", "001/00002", "001/00003", "002/00000"]
    assert records.frame.tolist() == [0, 1, 2, 3] * 3


@pytest.mark.parametrize("layout", ["flat", "parts"])
def test_planted_defects_are_counted_exactly(tmp_path, layout):
    expected = export_afew_va(tmp_path, samples(18, videos=3), defects=True, layout=layout)["all"]
    with pytest.raises(UnreadableError, match="1 of 41 rows unreadable, none allowed") as raised:
        load_afew_va(tmp_path)
    assert "00000.png" in str(raised.value)
    loaded = load_afew_va(tmp_path, skip_unreadable=1)
    assert expected.differences(loaded.report) == []
    report = loaded.report
    # By hand: 18 frames, and three clips of eight: one with ±10, one without a name, one with the defects.
    assert report.rows_read == 42
    assert report.dropped == {"missing file": 1, "label not a number": 1}
    assert report.rows_used == 40
    assert report.outside_circle == 8
    assert report.valence.low == -1
    assert report.valence.high == 1
    assert report.videos == 6
    assert report.identities == 4  # three actors, one of them in two spellings, and the clip without a name
    assert any(
        "1 clip without an actor's name, each counted as a separate person: 005" in note for note in report.notes
    )
    assert any("1 image without a label" in note for note in report.notes)
    assert any("1 *_cropped folder skipped" in note for note in report.notes)
    verified = verify_images(loaded, skip_unreadable=1)
    assert verified.report.dropped["undecodable"] == expected.undecodable == 1
    people = {loaded.records.identity[row] for row in range(len(loaded.records))}
    assert people == {"person 0", "person 1", "person 2", "clip 005"}


def test_similar_names_are_listed_and_joined_on_request(tmp_path):
    faces = samples(8, videos=4, people=4)
    export_afew_va(tmp_path, faces)
    names = ["Helena Bonham", "helena  bonham ", "Helen Bonham", "John Doe"]
    for place, name in enumerate(names, 1):
        path = tmp_path / f"{place:03d}" / f"{place:03d}.json"
        content = json.loads(path.read_text())
        content["actor"] = name
        path.write_text(json.dumps(content))
    report = load_afew_va(tmp_path).report
    assert report.identities == 3
    assert any("'helen bonham' and 'helena bonham'" in note for note in report.notes)
    joined = load_afew_va(tmp_path, same_actor={"helen bonham": "helena bonham"})
    assert joined.report.identities == 2
    again = load_afew_va(tmp_path, same_actor={" Helen  BONHAM": "Helena Bonham"})  # as the JSON files have them
    assert again.records.digest() == joined.records.digest()
    everybody = [("helen bonham", "helena bonham"), ("John Doe", "helen bonham")]
    chained = load_afew_va(tmp_path, same_actor=everybody)
    assert set(chained.records.identity) == {"helena bonham"}
    assert set(load_afew_va(tmp_path, same_actor=everybody[::-1]).records.identity) == {"helena bonham"}


@pytest.mark.parametrize("pair", [("person 0", "preson 1"), ("preson 1", "person 0"), ("person 0", " ")])
def test_a_name_to_join_that_no_clip_has_is_refused(tmp_path, pair):
    export_afew_va(tmp_path, samples(4, videos=2, people=2))
    near = "known names are 'person 0', 'person 1'" if " " in pair else r"similar names are 'person 1'"
    with pytest.raises(ValueError, match=rf"same_actor must be .*, got '(preson 1| )'; {near}"):
        load_afew_va(tmp_path, same_actor=[pair])


def test_a_frame_without_landmarks_has_no_face(tmp_path):
    faces = samples(4, videos=1)
    faces[1] = type(faces[1])(**{**vars(faces[1]), "face": False})
    export_afew_va(tmp_path, faces)
    report = load_afew_va(tmp_path).report
    assert report.dropped == {"no face": 1}
    assert load_afew_va(tmp_path, crop="none").report.rows_used == 4


@pytest.mark.parametrize(
    "text", ['{"video_id": "002", "frames": {"000', "[]", '{"video_id": "002", "frames": 3}', "", None]
)
def test_a_damaged_json_is_named_and_its_frames_counted(tmp_path, text):
    export_afew_va(tmp_path, samples(9, videos=3))
    path = tmp_path / "002" / "002.json"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(UnreadableError, match=r"3 of 9 rows unreadable, none allowed:\n  002/002.json"):
        load_afew_va(tmp_path)
    report = load_afew_va(tmp_path, skip_unreadable=0.4).report
    assert report.dropped == {"unreadable annotation": 3}
    assert report.rows_used == 6


def test_a_json_in_another_clips_folder_is_an_error(tmp_path):
    export_afew_va(tmp_path, samples(4, videos=2))
    path = tmp_path / "002" / "002.json"
    path.write_text(path.read_text().replace('"002"', '"001"', 1))
    with pytest.raises(LabelFileError, match="must be of clip 002, got video_id '001'"):
        load_afew_va(tmp_path, skip_unreadable=1.0)


def test_a_clip_that_lies_there_twice_is_an_error(tmp_path):
    export_afew_va(tmp_path, samples(2, videos=1))
    export_afew_va(tmp_path, samples(2, videos=1), layout="parts")
    with pytest.raises(LabelFileError, match="clip 001 must be there once"):
        load_afew_va(tmp_path)


def test_wide_pixels_are_stretched_only_when_asked(tmp_path):
    export_afew_va(tmp_path, samples(2, videos=1))
    folder = tmp_path / "001"
    points = [[360 + 60 * np.cos(angle), 288 + 80 * np.sin(angle)] for angle in np.linspace(0, 2 * np.pi, 69)[:-1]]
    content = json.loads((folder / "001.json").read_text())
    for stem, frame in content["frames"].items():
        frame["landmarks"] = points  # 120 wide and 160 high as stored: 160 by 160 as shown
        Image.fromarray(np.resize(numbered(5, 720), (576, 720, 3))).save(folder / f"{stem}.png")
    (folder / "001.json").write_text(json.dumps(content))
    plain = load_afew_va(tmp_path, margin=1.0).records[0]
    assert plain.stretch == 1
    assert read_face(plain).size == (160, 160)  # the square around 120 by 160
    fixed = load_afew_va(tmp_path, margin=1.0, aspect_fix=True).records[0]
    assert fixed.stretch == pytest.approx(4 / 3)
    assert fixed.box == pytest.approx((300, 208, 420, 368), abs=1e-3)
    assert abs(read_face(fixed).size[0] - 160) <= 2  # outward rounding of the box
    small = load_afew_va(export_again(tmp_path / "small"), aspect_fix=True).records
    assert small.stretch.tolist() == [1.0, 1.0]  # other sizes have square pixels


def export_again(root):
    export_afew_va(root, samples(2, videos=1))
    return root


def test_wrong_roots(tmp_path):
    with pytest.raises(LayoutError, match=r"001/001\.json, 00000\.png"):
        load_afew_va(tmp_path)
    (tmp_path / "001").mkdir()
    with pytest.raises(LayoutError, match=r"001/ with 001\.json"):
        load_afew_va(tmp_path)
    with pytest.raises(ValueError, match="margin must be at least 1"):
        load_afew_va(tmp_path, margin=0.5)


def test_names_of_numbers_is_a_fair_test():
    assert [number_of(numbered(number)) for number in (0, 1, 128, 255)] == [0, 1, 128, 255]
