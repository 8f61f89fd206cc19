from __future__ import annotations

import numpy as np
import pytest

from adaptive_margin.affect import load_affectnet_reduced, verify_images
from adaptive_margin.affect.affectnet_reduced import read_landmarks
from adaptive_margin.images.decode import read_face
from adaptive_margin.images.errors import LabelFileError, LayoutError, UnreadableError

from .export import export_affectnet_reduced
from .faces import number_of, samples

TRAIN_IDS = ["0", "1", "3", "4", "7", "8", "10"]


def test_every_form_of_annotation_is_read(tmp_path):
    faces = [*samples(7), *samples(3, split="validation", start=40)]
    expected = export_affectnet_reduced(tmp_path, faces)
    for split in ("train", "validation"):
        mine = [face for face in faces if face.split == split]
        records, report = load_affectnet_reduced(tmp_path, split)
        assert expected[split].differences(report) == []
        assert list(records.key) == [f"{split}/{name}" for name in TRAIN_IDS[: len(mine)]]  # gaps, and numbers shared
        assert np.array_equal(records.labels, np.array([(f.valence, f.arousal) for f in mine], dtype=np.float32))
        assert [number_of(read_face(record)) for record in records] == [number_of(face.image) for face in mine]
        for record in records:
            points = read_landmarks(record)
            assert points.shape == (68, 2)
            assert points[:, 0].max() == pytest.approx(32 + 32 / 1.2, abs=1e-3)


def test_planted_defects_are_counted_exactly(tmp_path):
    expected = export_affectnet_reduced(tmp_path, samples(5), defects=True)["train"]
    with pytest.raises(UnreadableError, match="3 of 10 rows unreadable, none allowed"):
        load_affectnet_reduced(tmp_path, "train")
    loaded = load_affectnet_reduced(tmp_path, "train", skip_unreadable=3)
    assert expected.differences(loaded.report) == []
    assert loaded.report.rows_read == 13
    assert loaded.report.rows_used == 7
    assert loaded.report.dropped == {
        "sentinel": 1,
        "category": 1,
        "label not a number": 1,
        "missing annotation": 1,
        "unreadable annotation": 1,
        "missing file": 1,
    }
    assert any("1 image without an annotation" in note for note in loaded.report.notes)
    verified = verify_images(loaded, skip_unreadable=1)
    assert verified.report.dropped["undecodable"] == 1
    assert len(verified.records) == 6


def test_the_index_is_used_and_checked(tmp_path):
    export_affectnet_reduced(tmp_path, samples(9))
    read = []
    first = load_affectnet_reduced(tmp_path, "train", progress=lambda done, total: read.append(done))
    assert read == list(range(1, 10))
    index = tmp_path / "adaptive_margin_index_train.csv"
    assert index.read_text().splitlines()[1] == "split,id,exp,val,aro,problem"
    read.clear()
    again = load_affectnet_reduced(tmp_path, "train", progress=lambda done, total: read.append(done))
    assert read == []  # nothing was read anew
    assert again.records.digest() == first.records.digest()
    assert again.report == first.report


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda index, folder: index.write_text(index.read_text()[:-30]), "rows and not|is damaged"),
        (lambda index, folder: index.write_text(index.read_text().replace("train,3,", "val,3,")), "row 3 is damaged"),
        (lambda index, folder: np.save(folder / "3_val.npy", np.array("0.75")), "annotations of 3 have changed"),
        (lambda index, folder: [path.unlink() for path in folder.glob("4_*")], "other identifiers"),
        (lambda index, folder: index.write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    ],
)
def test_a_stale_index_is_made_again(tmp_path, spoil, why):
    export_affectnet_reduced(tmp_path, samples(6))
    load_affectnet_reduced(tmp_path, "train")
    index = tmp_path / "adaptive_margin_index_train.csv"
    spoil(index, tmp_path / "train_set" / "annotations")
    records, report = load_affectnet_reduced(tmp_path, "train")
    assert any("made again" in note and __import__("re").search(why, note) for note in report.notes), report.notes
    fresh, _ = load_affectnet_reduced(tmp_path, "train", index_dir=tmp_path / "elsewhere")
    assert fresh.digest() == records.digest()


def test_a_repaired_annotation_is_noticed(tmp_path):
    export_affectnet_reduced(tmp_path, samples(4))
    path = tmp_path / "train_set" / "annotations" / "1_aro.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    assert load_affectnet_reduced(tmp_path, "train", skip_unreadable=1).report.dropped == {"unreadable annotation": 1}
    path.write_bytes(whole)
    assert load_affectnet_reduced(tmp_path, "train").report.rows_used == 4


def test_python_objects_are_never_unpickled(tmp_path):
    export_affectnet_reduced(tmp_path, samples(4))
    folder = tmp_path / "train_set" / "annotations"
    np.save(folder / "1_val.npy", np.array(["0.5"], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableError, match="allow_pickle"):
        load_affectnet_reduced(tmp_path, "train")
    np.save(folder / "0_lnd.npy", np.array([0.5] * 136, dtype=object), allow_pickle=True)
    records, _ = load_affectnet_reduced(tmp_path, "train", skip_unreadable=1)
    with pytest.raises(LabelFileError, match="allow_pickle"):
        read_landmarks(records[0])


def test_an_index_that_cannot_be_kept_is_noted(tmp_path, monkeypatch):
    export_affectnet_reduced(tmp_path, samples(3))

    def refuse(path, text):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("adaptive_margin.affect.affectnet_reduced.write_atomically", refuse)
    report = load_affectnet_reduced(tmp_path, "train").report
    assert report.rows_used == 3
    assert any("no index could be kept (Permission denied)" in note for note in report.notes)


def test_wrong_roots(tmp_path):
    with pytest.raises(LayoutError, match="train_set/annotations/") as raised:
        load_affectnet_reduced(tmp_path, "train")
    assert "<id>_exp.npy" in str(raised.value)
    export_affectnet_reduced(tmp_path, samples(3))
    with pytest.raises(LayoutError, match="val_set/annotations/"):
        load_affectnet_reduced(tmp_path, "validation")
    (tmp_path / "train_set" / "images").rename(tmp_path / "train_set" / "pictures")
    with pytest.raises(LayoutError, match="train_set/images/"):
        load_affectnet_reduced(tmp_path, "train")
    with pytest.raises(ValueError, match="split must be one of 'train', 'validation', got 'test'"):
        load_affectnet_reduced(tmp_path, "test")
