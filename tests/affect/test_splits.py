from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_margin.affect import (
    LeakError,
    Split,
    check_apart,
    frame_split,
    group_folds,
    group_holdout,
    load_afew_va,
    load_affectnet_2017,
    stratified_holdout,
)
from adaptive_margin.affect.records import RecordBuilder, Records
from adaptive_margin.affect.splits import quadrant, same_content
from adaptive_margin.images.errors import LabelFileError

from .export import export_afew_va, export_affectnet_2017
from .faces import samples


def people(sizes, *, root=Path("/data"), kind="actor") -> Records:
    rows = RecordBuilder("mine", root, kind)
    for who, size in enumerate(sizes):
        for frame in range(size):
            name = f"p{who}"
            rows.add(f"{name}/{frame}", f"{name}/{frame}.png", (0.0, 0.0), identity=name, video=f"v{who}", frame=frame)
    return rows.build()


def unknown() -> Records:
    rows = RecordBuilder("affectnet-2017", Path("/data"))
    for row in range(10):
        rows.add(f"train/{row}", f"{row}.jpg", (0.1, 0.1), expression=1)
    return rows.build()


sizes = st.lists(st.integers(1, 60), min_size=5, max_size=40)


@given(sizes, st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_folds_part_people_and_balance_rows(sizes, folds, seed):
    records = people(sizes)
    split = group_folds(records, folds, seed=seed)
    rows = split.rows(records)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(records)))
    check_apart(records, rows, "identity")
    counts = [len(part) for part in rows.values()]
    assert max(counts) - min(counts) <= max(sizes)
    assert split.independent == "actor"
    assert not split.leaks


def test_folds_follow_from_the_seed_alone():
    records = people([5, 9, 3, 7, 7, 2, 8, 4, 6, 1])
    split = group_folds(records, seed=1)
    assert split == group_folds(records, seed=1)
    assert split.parts == group_folds(records.subset(np.arange(len(records))[::-1]), seed=1).parts  # whatever the order
    assert len({group_folds(records, seed=seed).digest() for seed in range(10)}) > 5


def test_a_round_of_cross_validation():
    records = people([5, 5, 5, 5, 5])
    split = group_folds(records, 5)
    train, test = split.train_test(records, "fold3")
    assert len(train) == 20
    assert len(test) == 5
    assert not set(train) & set(test)
    assert len(split.train_test(records, ["fold0", "fold1"])[1]) == 10
    for wrong in ("fold9", ["fold0", "fold1", "fold2", "fold3", "fold4"]):
        with pytest.raises(ValueError, match="not all"):
            split.train_test(records, wrong)


@given(sizes, st.floats(0.05, 0.6), st.integers(0, 100))
def test_holdouts_part_videos(sizes, share, seed):
    records = people(sizes)
    split = group_holdout(records, share, seed=seed)
    rows = split.rows(records)
    check_apart(records, rows, "video")
    check_apart(records, rows, "identity")
    assert sorted(np.concatenate([rows["train"], rows["test"]])) == list(range(len(records)))
    assert abs(len(rows["test"]) - share * len(records)) <= max(sizes)


def test_nobody_named_nobody_parted():
    for split in (group_folds, group_holdout):
        with pytest.raises(ValueError, match="identity must be known for every row, got None for 10 of 10 rows of aff"):
            split(unknown(), unit="identity")
    with pytest.raises(ValueError, match="video must be known"):
        group_holdout(unknown())
    with pytest.raises(ValueError, match="identity must be known"):
        check_apart(unknown(), {"train": [0], "test": [1]}, "identity")
    rows = RecordBuilder("mine", Path("/data"), "actor")
    rows.add("a", "a", (0, 0), identity="p")
    rows.add("b", "b", (0, 0))
    with pytest.raises(ValueError, match="None for 1 of 2 rows"):
        group_folds(rows.build(), 2)


def test_a_frame_split_says_that_it_leaks(tmp_path):
    records = people([20, 20])
    with pytest.warns(UserWarning, match="frame_split leaks"):
        split = frame_split(records, 0.25, seed=3)
    assert split.leaks
    assert "LEAKING" in split.protocol
    rows = split.rows(records)
    assert (len(rows["train"]), len(rows["test"])) == (30, 10)
    with pytest.raises(LeakError, match="without a common video, got v0, v1"):
        check_apart(records, rows, "video")
    split.write(tmp_path / "split.json")
    assert json.loads((tmp_path / "split.json").read_text())["leaks"] is True


def affectnet(count=4000, seed=0) -> Records:
    rng = np.random.default_rng(seed)
    rows = RecordBuilder("affectnet-2017", Path("/data"))
    labels = rng.uniform(-0.7, 0.7, (count, 2))
    codes = rng.choice(9, count, p=[0.3, 0.3, 0.1, 0.1, 0.05, 0.05, 0.05, 0.02, 0.03])
    for row in range(count):
        path = f"{row // 2 if row < 200 else row}.jpg"  # the first hundred pictures have two faces each
        rows.add(f"train/{row:06d}", path, (labels[row, 0], labels[row, 1]), expression=int(codes[row]))
    return rows.build()


def test_the_honest_holdout_is_stratified_and_parts_pictures():
    records = affectnet()
    split = stratified_holdout(records, 0.1, seed=0)
    rows = split.rows(records)
    check_apart(records, rows, "picture")
    assert split.independent == "picture"
    strata: dict[tuple[int, int], list[int]] = {}
    held = set(rows["validation"].tolist())
    seen = set()
    for row, record in enumerate(records):
        if record.path in seen:
            continue
        seen.add(record.path)
        strata.setdefault((record.expression, quadrant(record.valence, record.arousal)), []).append(row in held)
    assert len(strata) == 36
    for inside in strata.values():
        assert abs(sum(inside) - 0.1 * len(inside)) < 1  # to the row in every stratum
    assert len(split.parts["validation"]) == round(0.1 * 3900)
    assert split == stratified_holdout(records.subset(np.arange(len(records))[::-1]), 0.1, seed=0)
    assert split.digest() != stratified_holdout(records, 0.1, seed=1).digest()


def test_copies_of_a_picture_stay_together(tmp_path):
    faces = [*samples(30), *samples(30)]  # every picture is there twice, under two names
    export_affectnet_2017(tmp_path, faces)
    records, _ = load_affectnet_2017(tmp_path, "train")
    content = same_content(records)
    assert len(content) == 60
    assert len(set(content.values())) == 30
    split = stratified_holdout(records, 0.3, seed=0, same_picture=content)
    rows = split.rows(records)
    numbers = {name: {row % 30 for row in part.tolist()} for name, part in rows.items()}
    assert not numbers["train"] & numbers["validation"]
    assert len(rows["validation"]) == 18
    plain = stratified_holdout(records, 0.3, seed=0).rows(records)
    apart = {name: {row % 30 for row in part.tolist()} for name, part in plain.items()}
    assert apart["train"] & apart["validation"]  # without it, copies are torn apart


def test_a_split_comes_back_exactly(tmp_path):
    records = people([4, 5, 6, 7, 8])
    split = group_folds(records, 3, seed=7)
    path = tmp_path / "runs" / "split.json"
    split.write(path)
    again = Split.read(path)
    assert again == split
    for name, rows in split.rows(records).items():
        assert np.array_equal(again.rows(records)[name], rows)
    split.write(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["split.json"]  # no drafts are left


def test_a_split_survives_rows_that_are_lost():
    records = people([4, 5, 6])
    split = group_folds(records, 3)
    fewer = records.subset([row for row in range(len(records)) if row != 5])
    parts = split.rows(fewer)
    assert sum(map(len, parts.values())) == len(records) - 1
    check_apart(fewer, parts, "identity")


def test_a_split_of_other_rows_is_refused():
    split = group_folds(people([4, 5, 6]), 3)
    with pytest.raises(ValueError, match=r"2 rows of 1 that no part names \(p3\)"):
        split.rows(people([4, 5, 6, 2]))
    with pytest.raises(ValueError, match="records must be of mine, got affectnet-2017"):
        split.rows(unknown())


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda plain: plain["parts"]["fold0"].append("p99"), LabelFileError, "another digest"),
        (
            lambda plain: plain["parts"]["fold0"].append(plain["parts"]["fold1"][0]),
            LeakError,
            "in one part of the split, got it in 'fold0' and",
        ),
        (lambda plain: plain.pop("unit"), LabelFileError, "KeyError: 'unit'"),
        (lambda plain: plain.update(format=9), LabelFileError, "format 1, got 9"),
        (lambda plain: plain["parts"].update(fold0=[]), ValueError, "part 'fold0' must be not empty"),
        (lambda plain: plain.update(parts=3), LabelFileError, "AttributeError"),
    ],
)
def test_a_changed_file_is_refused(tmp_path, change, error, says):
    path = tmp_path / "split.json"
    group_folds(people([4, 5, 6]), 3).write(path)
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    with pytest.raises(error, match=says):
        Split.read(path)
    path.write_text("{")
    with pytest.raises(LabelFileError, match="JSONDecodeError"):
        Split.read(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "split.json"
    path.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        group_holdout(people([3, 3]), 0.5).write(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["split.json"]


def test_options_out_of_range():
    records = people([3, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for split in (group_holdout, frame_split, stratified_holdout):
            for share in (0.0, 1.0, -0.1, float("nan")):
                with pytest.raises(ValueError, match="share must be above 0 and below 1"):
                    split(records, share)
    for folds in (1, 3):
        with pytest.raises(ValueError, match="folds must be from 2 to the number of identity units"):
            group_folds(records, folds)
    with pytest.raises(ValueError, match="unit must be one of"):
        group_folds(records, 2, unit="row")
    with pytest.raises(ValueError, match="at least two video units"):
        group_holdout(people([9]))
    with pytest.raises(ValueError, match="part 'validation' must be not empty"):
        stratified_holdout(unknown(), 0.01)


def test_afew_va_by_actor(tmp_path):
    export_afew_va(tmp_path, samples(60, videos=12, people=6), defects=True)
    records, _ = load_afew_va(tmp_path, skip_unreadable=1)
    split = group_folds(records, 5, seed=0)
    assert split.protocol == "5 folds by actor, balanced by rows"
    parts = split.rows(records)
    check_apart(records, parts, "identity")
    check_apart(records, parts, "video")  # a clip has one actor, so clips are parted as well
