from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptive_margin.affect import LoadedSplit, load_aff_wild, load_affectnet_2017, load_affectnet_reduced
from adaptive_margin.affect._known import (
    AFFECTNET_TRAIN,
    AFFECTNET_VALIDATION,
    CLASS_MEANS,
    REDUCED_TRAIN,
    REDUCED_VALIDATION,
    VALIDATION_LABELS,
    compare_splits,
    compare_with_known,
)
from adaptive_margin.affect.check import check, detect
from adaptive_margin.affect.records import RecordBuilder
from adaptive_margin.affect.report import Tally
from adaptive_margin.command import main as command
from adaptive_margin.emotion.config import EmotionConfig
from adaptive_margin.emotion.data import check_root, load_data
from adaptive_margin.images.errors import LayoutError

from .export import (
    Sample,
    export_afew_va,
    export_aff_wild2,
    export_affectnet_2017,
    export_affectnet_reduced,
)
from .faces import numbered, samples


def main(words):
    return command(["check", *words])


BOTH = [*samples(30), *samples(4, split="validation", start=40)]


def test_each_release_is_recognised(tmp_path):
    export_affectnet_2017(tmp_path / "a", BOTH, spelling="nested")
    export_affectnet_reduced(tmp_path / "b", BOTH)
    export_afew_va(tmp_path / "c", samples(6, videos=2), layout="parts")
    export_aff_wild2(tmp_path / "d", samples(6, videos=2))
    assert [detect(tmp_path / name) for name in "abcd"] == [
        ["affectnet-2017"],
        ["affectnet-reduced"],
        ["afew-va"],
        ["aff-wild2"],
    ]


def test_aff_wild_is_checked_without_writing(tmp_path):
    pytest.importorskip("cv2", reason="videos need OpenCV")
    from .export import export_aff_wild

    expected = export_aff_wild(tmp_path, samples(32, videos=2), defects=True)["train"]
    before = sorted(path for path in tmp_path.rglob("*"))
    assert detect(tmp_path) == ["aff-wild"]
    quick = check(tmp_path)
    assert any("come from the containers" in note for note in quick.reports[0].notes)
    full = check(tmp_path, decode=None)
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert expected.differences(full.reports[0]) == []
    assert full.fatal == (
        "aff-wild, train: 33 rows unreadable, 0 allowed: restore the files, or train with --skip-unreadable 33 "
        "(skip_unreadable=33) or more",
    )
    assert check(tmp_path, decode=None, skip_unreadable=33).fatal == ()


def test_aff_wild_is_checked_after_its_videos_were_deleted(tmp_path):
    pytest.importorskip("cv2", reason="videos need OpenCV")
    from .export import export_aff_wild

    root, frames = tmp_path / "root", tmp_path / "cache" / "extracted_frames"
    export_aff_wild(root, samples(40, videos=4))
    load_aff_wild(root, frames_dir=frames)
    shutil.rmtree(next(path for path in root.rglob("videos")))
    assert main([str(root)]) == 1
    assert "--frames-dir" in check(root).fatal[0]
    assert main([str(root), "--frames-dir", str(frames)]) == 0
    shutil.copytree(frames, root / "extracted_frames")
    found = check(root)
    assert (found.fatal, found.reports[0].rows_used) == ((), 40)
    assert found.decoded == {"aff-wild, train": (40, 40)}


def test_aff_wild_is_checked_by_every_nth_frame_if_only_those_are_left(tmp_path):
    pytest.importorskip("cv2", reason="videos need OpenCV")
    from .export import export_aff_wild

    export_aff_wild(tmp_path, samples(40, videos=4))
    load_aff_wild(tmp_path, every=5)
    assert check(tmp_path).reports[0].rows_used == 40  # the videos are there
    shutil.rmtree(next(path for path in tmp_path.rglob("videos")))
    found = check(tmp_path)
    assert (found.fatal, found.reports[0].rows_used) == ((), 8)


def test_a_sound_root_can_be_trained_on(tmp_path):
    export_affectnet_2017(tmp_path, BOTH)
    report = check(tmp_path)
    assert report.releases == ("affectnet-2017",)
    assert report.fatal == ()
    assert [(one.split, one.rows_used) for one in report.reports] == [("train", 30), ("validation", 4)]
    assert report.decoded == {"affectnet-2017, train": (30, 30), "affectnet-2017, validation": (4, 4)}
    assert report.differences > 10  # ten faces are not AffectNet
    shared = {finding.what: finding for finding in report.findings["affectnet-2017"]}
    assert shared["pictures in both train and validation"].agrees
    assert "This root can be trained on" in str(report)


def test_planted_defects_are_in_the_report(tmp_path):
    expected = export_affectnet_2017(tmp_path, BOTH, defects=True)["train"]
    report = check(tmp_path)
    train = report.reports[0]
    assert train.rows_read == expected.read
    assert train.rows_used == expected.used - expected.undecodable
    assert train.dropped == {**expected.dropped, "undecodable": expected.undecodable}
    assert len(report.fatal) == 1
    assert "3 rows unreadable, 0 allowed" in report.fatal[0]
    assert check(tmp_path, skip_unreadable=3).fatal == ()
    assert check(tmp_path, decode=0, skip_unreadable=1).fatal == ()  # nothing is decoded: one file is missing
    part = check(tmp_path, decode=4)
    assert part.decoded["affectnet-2017, train"][0] == 4


def test_the_command_line(tmp_path, capsys):
    export_affectnet_reduced(tmp_path / "data", BOTH)
    where = tmp_path / "report.json"
    assert main([str(tmp_path / "data"), "--json", str(where), "--decode", "all", "--workers", "2"]) == 0
    out = capsys.readouterr().out
    assert "affectnet-reduced, train: 30 rows read, 30 used" in out
    assert "DIFFERS   rows: 30 (known: 287,651)" in out
    plain = json.loads(where.read_text())
    assert plain["releases"] == ["affectnet-reduced"]
    assert plain["reports"][0]["rows_used"] == 30
    assert main([str(tmp_path / "data"), "--strict"]) == 1
    next((tmp_path / "data" / "train_set" / "images").iterdir()).unlink()
    assert main([str(tmp_path / "data"), "--decode", "none"]) == 1
    assert "FATAL: affectnet-reduced, train: 1 row unreadable" in capsys.readouterr().out
    assert main([str(tmp_path / "data"), "--skip-unreadable", "0.2"]) == 0
    assert main([str(tmp_path / "data"), "--skip-unreadable", "1"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [["--decode", "some"], ["--decode", "-1"], ["--skip-unreadable", "2.5"], ["--workers", "0"], ["--unknown"]],
)
def test_wrong_options_end_with_two(tmp_path, arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        main([str(tmp_path), *arguments])
    assert raised.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_what_is_no_release_is_fatal(tmp_path, capsys):
    (tmp_path / "holiday").mkdir()
    with pytest.raises(LayoutError, match="has the layout of no known release"):
        detect(tmp_path)
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "holiday/" in out
    assert "train_set/" in out
    assert check(tmp_path / "nowhere").fatal == (
        f"root must be a folder, got {tmp_path / 'nowhere'}; pass the folder of a data set",
    )
    for name in ("anger", "fear", "happy", "sad", "neutral", "surprise"):
        (tmp_path / name).mkdir()
        Image.fromarray(numbered(1, 96)).save(tmp_path / name / "a.png")
    assert main([str(tmp_path)]) == 1
    assert "96x96 pixel version" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("release", "few", "enough", "message"),
    [
        (
            "affectnet",
            25,
            26,
            "affectnet-2017, train: what is usable of affectnet-2017 must be at least 26 .* 25 pictures;",
        ),
        ("affectnet-reduced", 25, 26, "what is usable of affectnet-reduced must be at least 26 pictures"),
        (
            "afew-va",
            4,
            5,
            "what is usable of afew-va must be clips of at least five actors, .* got 4 actors; unpack the rest",
        ),
        ("aff-wild", 2, 3, "what is usable of aff-wild must be at least three videos, .* got 2 videos"),
        ("aff-wild2", 1, 2, "what is usable of aff-wild2 must be at least two source videos, .* got 1 source video"),
    ],
)
def test_a_root_that_is_too_small_to_be_divided_is_fatal_as_in_training(tmp_path, release, few, enough, message):
    write = {
        "affectnet": export_affectnet_2017,
        "affectnet-reduced": export_affectnet_reduced,
        "afew-va": export_afew_va,
        "aff-wild2": export_aff_wild2,
    }
    if release == "aff-wild":
        pytest.importorskip("cv2", reason="videos need OpenCV")
        from .export import export_aff_wild

        write["aff-wild"] = export_aff_wild
    for units, fatal in ((few, True), (enough, False)):
        root = tmp_path / str(units)
        options = {} if release.startswith("affectnet") else {"videos": units, "people": units}
        faces = samples(26 if options else units, **options)
        if release in ("affectnet", "affectnet-reduced", "aff-wild2"):
            faces += samples(4, split="validation", start=40, **({"videos": 1, "people": 1} if options else {}))
        write[release](root, faces)
        found = check(root)
        config = EmotionConfig(
            dataset=release, root=str(root), encoder="small", resize=32, size=28, cache=str(tmp_path / f"cache{units}")
        )
        if fatal:
            (said,) = found.fatal
            assert re.search(message, said)
            with pytest.raises(ValueError, match=message.rpartition("train: ")[2]):
                load_data(config)
            if release != "aff-wild":
                with pytest.raises(ValueError, match=message.rpartition("train: ")[2]):
                    check_root(config)
        else:
            assert found.fatal == ()
            check_root(config)
            data = load_data(config)
            assert all(map(len, (data.train, data.val, data.test)))


def test_a_part_that_is_not_there_is_fatal(tmp_path):
    export_affectnet_2017(tmp_path, samples(26))
    report = check(tmp_path)
    assert len(report.reports) == 1
    assert len(report.fatal) == 1
    assert "affectnet-2017, validation" in report.fatal[0]
    assert "no validation.csv" in report.fatal[0]


def test_a_broken_list_is_fatal_and_the_rest_is_read(tmp_path):
    export_affectnet_2017(tmp_path, BOTH)
    (tmp_path / "Manually_Annotated_file_lists" / "training.csv").write_text("a,b\n1,2\n")
    (tmp_path / "Manually_Annotated_file_lists" / "validation.csv").rename(
        tmp_path / "Manually_Annotated_file_lists" / "Validation.csv"
    )
    report = check(tmp_path)
    assert [one.split for one in report.reports] == ["validation"]
    assert "training.csv line 1" in report.fatal[0]


def as_published(dataset: str, split: str, counts, *, swapped: bool = False) -> LoadedSplit:
    """A split with the published counts, and on validation with labels of the published statistics."""
    tally, rows = Tally(dataset, split), RecordBuilder(dataset, Path("/data"))
    for code, count in counts.items():
        tally.read(count)
        tally.classes[code] = count
        if code > 8 or split == "train":
            tally.drop("sentinel", "row", count)
            continue
        for row in range(count):
            rows.add(f"{code}/{row}", f"{code}/{row}", (0.0, 0.0), expression=code)
    records = rows.build()
    if split == "validation":
        labels = np.zeros((len(records), 2))
        for code, means in CLASS_MEANS.items():
            labels[records.expression == code] = means
        kept = records.expression <= 7
        noise = np.random.default_rng(0).normal(0, 0.2, labels.shape)
        for code in CLASS_MEANS:  # each class keeps its mean; the spread between them is the classes'
            inside = records.expression == code
            noise[inside] -= noise[inside].mean(axis=0)
        for column, (_, sd, _, _) in enumerate(VALIDATION_LABELS.values()):
            between = labels[kept, column].std()
            labels[kept, column] += (
                noise[kept, column] * np.sqrt(max(sd**2 - between**2, 0)) / noise[kept, column].std()
            )
        object.__setattr__(records, "labels", (labels[:, ::-1] if swapped else labels).astype(np.float32))
    return tally.finish(records, 0)


def test_the_published_counts_agree_with_themselves():
    assert sum(AFFECTNET_TRAIN.values()) == 414_799
    assert sum(AFFECTNET_VALIDATION.values()) == 5_500
    assert sum(REDUCED_TRAIN.values()) == 287_651
    assert sum(REDUCED_VALIDATION.values()) == 3_999
    assert sum(count for code, count in AFFECTNET_TRAIN.items() if code <= 8) == 320_739
    findings = compare_with_known(as_published("affectnet-2017", "train", AFFECTNET_TRAIN))
    assert len(findings) == 13
    assert all(finding.agrees for finding in findings)
    one_more = compare_with_known(as_published("affectnet-2017", "train", {**AFFECTNET_TRAIN, 1: 134_416}))
    assert all(finding.agrees for finding in one_more)  # the circulated copy with one "happy" more
    fewer = compare_with_known(as_published("affectnet-2017", "train", {**AFFECTNET_TRAIN, 5: 3_802}))
    assert [finding.what for finding in fewer if not finding.agrees] == [
        "rows",
        "rows of expression 5 (disgust)",
        "rows of codes 0 to 8",
    ]


@pytest.mark.parametrize(
    ("dataset", "counts"), [("affectnet-2017", AFFECTNET_VALIDATION), ("affectnet-reduced", REDUCED_VALIDATION)]
)
def test_the_validation_statistics_are_recognised(dataset, counts):
    findings = {finding.what: finding for finding in compare_with_known(as_published(dataset, "validation", counts))}
    assert findings["rows"].agrees
    assert findings["largest gap to the known class means"].agrees
    for name, (mean, sd, _, _) in VALIDATION_LABELS.items():
        found = findings[f"{name} of codes 0 to 7"].found
        assert found.startswith(f"mean {mean:+.3f}"[:9])  # the class means alone give the mean to two decimals
        assert f"sd {sd:.3f}" in found
    swapped = compare_with_known(as_published(dataset, "validation", counts, swapped=True))
    assert any("VALENCE AND AROUSAL LOOK SWAPPED" in finding.what for finding in swapped)


def test_pictures_in_both_parts_are_found(tmp_path):
    faces = [Sample(numbered(5), 0.3, 0.1), Sample(numbered(6), -0.3, 0.4, split="validation")]
    export_affectnet_2017(tmp_path, faces)
    train, validation = load_affectnet_2017(tmp_path, "train"), load_affectnet_2017(tmp_path, "validation")
    assert all(finding.agrees for finding in compare_splits(train, validation))
    lists = tmp_path / "Manually_Annotated_file_lists"
    rows = (lists / "training.csv").read_text().splitlines()
    (lists / "validation.csv").write_text((lists / "validation.csv").read_text() + rows[1] + "\n")
    findings = compare_splits(train, load_affectnet_2017(tmp_path, "validation"))
    assert not findings[0].agrees
    assert findings[0].found == "1"


def test_the_reduced_release_is_compared_on_all_its_rows(tmp_path):
    export_affectnet_reduced(tmp_path, BOTH)
    findings = compare_with_known(load_affectnet_reduced(tmp_path, "validation"))
    assert [finding.what for finding in findings][-3:] == [
        "rows with valence exactly 0",
        "rows with both labels 0",
        "rows outside the unit circle",
    ]
    assert findings[-1].agrees


def test_options():
    with pytest.raises(ValueError, match="decode must be None or a number"):
        check("nowhere", decode=-1)
    with pytest.raises(ValueError, match="skip_unreadable must be"):
        check("nowhere", skip_unreadable=-1)


def test_names_that_are_no_text_end_no_check(tmp_path, capsys):
    """Bytes that are no UTF-8 in a label file's name, and a terminal's command: printed and written as escapes."""
    root = Path(os.fsdecode(os.fsencode(tmp_path / "faces") + b"\xff\x1b[31m"))
    root.mkdir()
    assert main([str(root), "--json", str(tmp_path / "report.json")]) == 1
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"faces\xff\x1b[31m" in said
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["fatal"]
