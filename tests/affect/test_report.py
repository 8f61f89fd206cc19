from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adaptive_margin.affect import LoadedSplit
from adaptive_margin.affect.records import RecordBuilder
from adaptive_margin.affect.report import SENTINEL, LabelSummary, Tally
from adaptive_margin.images._layout import Folders, nested, tree
from adaptive_margin.images.errors import MISSING, ImageError, UnreadableError
from adaptive_margin.messages import allowed

LABELS = [(0.0, 0.5), (0.8, 0.8), (-1.2, 0.0), (0.3, -0.4)]


def loaded(skip=0.0, missing=0) -> LoadedSplit:
    tally, rows = Tally("mine", "train"), RecordBuilder("mine", Path("/data"))
    for place, label in enumerate(LABELS):
        tally.read()
        tally.category(place)
        rows.add(f"row{place}", f"{place}.png", label, expression=place)
    tally.read(3 + missing)
    tally.drop(SENTINEL, "rows 5 to 7", 3)
    for place in range(missing):
        tally.drop(MISSING, f"file{place}")
    return tally.finish(rows.build(), skip)


def test_statistics_are_those_of_the_rows_used():
    report = loaded().report
    assert (report.rows_read, report.rows_used, report.dropped) == (7, 4, {"sentinel": 3})
    labels = np.array(LABELS, dtype=np.float32).astype(np.float64)
    assert report.valence == LabelSummary(
        low=labels[:, 0].min(),
        high=labels[:, 0].max(),
        mean=pytest.approx(labels[:, 0].mean()),
        sd=pytest.approx(labels[:, 0].std(ddof=0)),
        zeros=1,
        beyond=1,
    )
    assert report.arousal.zeros == 1
    assert report.outside_circle == 2
    assert report.identities is None
    assert "identities: unknown" in str(report)
    assert "dropped         3  sentinel  (rows 5 to 7, 3 rows)" in str(report)
    assert "expressions read: neutral 1, happy 1, sad 1, surprise 1" in str(report)
    assert json.loads(report.to_json())["valence"]["beyond"] == 1


def test_rows_must_add_up():
    with pytest.raises(ValueError, match="rows_read must be used plus dropped"):
        replace(loaded().report, rows_read=8)


def test_the_limit_counts_damage_and_nothing_else():
    assert loaded(skip=2, missing=2).report.dropped == {"sentinel": 3, "missing file": 2}
    assert loaded(skip=0.34, missing=2).report.rows_used == 4  # two of six
    with pytest.raises(UnreadableError, match="2 of 6 rows unreadable, at most 1 allowed") as raised:
        loaded(skip=1, missing=2)
    assert raised.value.count == 2
    assert raised.value.names == ("file0: missing file", "file1: missing file")
    again = pickle.loads(pickle.dumps(raised.value))  # as a worker process sends it
    assert str(again) == str(raised.value)
    with pytest.raises(UnreadableError, match="25 of 29 rows unreadable, none allowed") as raised:
        loaded(missing=25)
    assert str(raised.value).count("missing file") == 10  # the first ten are named


def test_image_errors_survive_a_pickle():
    error = ImageError(Path("a.png"), "undecodable", "cut short")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "a.png: undecodable (cut short)"
    assert again.path == Path("a.png")


@pytest.mark.parametrize("skip", [-1, -0.1, 1.1, float("nan")])
def test_limits_out_of_range(skip):
    with pytest.raises(ValueError, match="skip_unreadable must be"):
        allowed(skip, 10)


@pytest.mark.parametrize("skip", [True, "5", None])
def test_limits_of_another_type(skip):
    with pytest.raises(TypeError, match="skip_unreadable must be"):
        allowed(skip, 10)


def test_rows_found_unreadable_later():
    split = loaded()
    assert split.without({}) is split
    less = split.without({1: "undecodable: cut short", 3: "missing file: no such file"})
    assert list(less.records.key) == ["row0", "row2"]
    assert less.report.dropped == {"sentinel": 3, "undecodable": 1, "missing file": 1}
    assert less.report.rows_used == 2
    assert less.report.valence.high == 0
    assert "row1: undecodable: cut short" in str(less.report)
    with pytest.raises(ValueError, match="positions from 0 to 3, got 9"):
        split.without({9: "undecodable"})


def test_an_empty_split_has_a_report():
    rows = RecordBuilder("mine", Path("/data"), "actor")
    report = Tally("mine", "train").finish(rows.build(), 0).report
    assert report.identities == 0
    assert np.isnan(report.valence.mean)
    assert json.loads(report.to_json())["valence"]["mean"] is None
    assert "0 rows read, 0 used" in str(report)


def test_listings(tmp_path):
    for name in ("a.JPG", "b.jpeg", "c.jpg", "c.png", "d.txt", "._a.jpg", ".DS_Store"):
        (tmp_path / name).touch()
    listings = Folders()
    assert listings.images(tmp_path) == ["a.JPG", "b.jpeg", "c.jpg", "c.png"]
    assert listings.find(tmp_path, "a.jpg") == "a.JPG"
    assert listings.find(tmp_path, "b.png") == "b.jpeg"
    assert listings.find(tmp_path, "c.png") == "c.png"
    assert listings.find(tmp_path, "c.bmp") is None  # two candidates: neither is taken
    assert listings.find(tmp_path / "none", "a.jpg") is None


def test_doubled_folders_and_trees(tmp_path):
    (tmp_path / "Videos" / "train" / "train").mkdir(parents=True)
    for number in range(9):
        (tmp_path / "Videos" / "train" / "train" / f"{number}.avi").touch()
    found = [path.relative_to(tmp_path).as_posix() for path in nested(tmp_path, "videos", "train")]
    assert found == ["Videos/train/train", "Videos/train"]
    assert tree(tmp_path / "Videos" / "train", width=4).splitlines() == [
        "  train/",
        "    0.avi",
        "    1.avi",
        "    2.avi",
        "    3.avi",
        "    … 5 more",
    ]
