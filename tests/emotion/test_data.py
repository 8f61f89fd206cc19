"""Every data set from its files to the trainer: exports with the real defects planted, divided without a leak."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from adaptive_margin.affect import Split
from adaptive_margin.emotion.config import EmotionConfig
from adaptive_margin.emotion.data import load_data
from adaptive_margin.emotion.trainer import run
from adaptive_margin.images.errors import LayoutError
from adaptive_margin.training.world import World

from ..affect import export as exports
from ..affect.faces import number_of, samples
from .cases import tiny


def _config(tmp_path: Path, dataset: str, **options: object) -> EmotionConfig:
    places = {"root": str(tmp_path / "root"), "cache": str(tmp_path / "cache"), "output": str(tmp_path / "run")}
    return tiny(dataset=dataset, skip_unreadable=0.5, iterations=2, **places, **options)


def test_drawn_people_are_in_one_part_only() -> None:
    data = load_data(tiny())
    people = [set(part.people.tolist()) for part in (data.train, data.val, data.test)]
    assert sum(map(len, people)) == len(set().union(*people)) == 14
    assert data.independent == "person"
    assert data.train.picture(3).shape == (32, 32, 3)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["affectnet", "affectnet-reduced", "afew-va", "aff-wild", "aff-wild2"])
def test_a_data_set_is_trained_on_from_its_files(dataset: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    if dataset.startswith("affectnet"):
        faces = samples(120) + samples(20, split="validation", start=120)
        write = exports.export_affectnet_2017 if dataset == "affectnet" else exports.export_affectnet_reduced
    elif dataset == "aff-wild2":
        faces = samples(120, videos=12, people=12) + samples(20, videos=2, people=2, split="validation", start=120)
        write = exports.export_aff_wild2
    else:
        faces = samples(120, videos=20, people=20)
        write = exports.export_afew_va if dataset == "afew-va" else exports.export_aff_wild
    write(root, faces, defects=True)
    config = _config(tmp_path, dataset)
    data = load_data(config)
    parts = (data.train, data.val, data.test)
    assert all(len(part) for part in parts)
    assert all(part.labels.shape == (len(part), 2) for part in parts)
    assert data.reports
    if dataset in ("afew-va", "aff-wild", "aff-wild2"):
        videos = [set(part.videos) for part in parts]
        assert sum(map(len, videos)) == len(set().union(*videos))
    if dataset == "afew-va":
        assert data.independent == "actor"
        people = [set(part.people.tolist()) for part in parts]
        assert sum(map(len, people)) == len(set().union(*people))
    result = run(config, data=data, world=World())
    assert np.isfinite(result.result["test"]["figures"]["rmse"]["mean"])
    assert {path.name for path in (result.folder / "splits").iterdir()} == set(data.splits)
    assert (result.folder / "data-0.txt").read_text().strip() == data.reports[0].strip()


@pytest.mark.parametrize("dataset", ["affectnet", "aff-wild2"])
def test_a_published_validation_set_is_in_the_splits_as_the_test_part(dataset: str, tmp_path: Path) -> None:
    videos = {"videos": 6, "people": 6} if dataset == "aff-wild2" else {}
    faces = samples(60, **videos) + samples(10, split="validation", start=60, **videos)
    write = exports.export_affectnet_2017 if dataset == "affectnet" else exports.export_aff_wild2
    write(tmp_path / "root", faces)
    config = _config(tmp_path, dataset, critic="none")
    data = load_data(config)
    assert not set(data.splits["test.json"].parts["test"]) & {
        unit for units in data.splits["validation.json"].parts.values() for unit in units
    }
    assert len(data.splits["test.json"].parts["test"]) == (10 if dataset == "affectnet" else 6)
    folder = run(config, data=data, world=World()).folder
    again = run(dataclasses.replace(config, iterations=3), data=data, world=World())
    assert again.summary.resumed_from == 2
    assert {path.name: Split.read(path) for path in (folder / "splits").iterdir()} == data.splits
    assert again.result["test"]["identity"] == again.result["seen"]["identity"] == again.result["independent"]
    assert again.result["independent"] == {"affectnet": "picture", "aff-wild2": "source video"}[dataset]


def test_a_test_part_that_shares_videos_with_training_is_said_to(tmp_path: Path) -> None:
    faces = samples(60, videos=6, people=6)
    apart = samples(10, videos=2, people=2, split="validation", start=60)
    again = [dataclasses.replace(sample, video=f"v3_{number // 3 + 1}") for number, sample in enumerate(apart[:6])]
    exports.export_aff_wild2(tmp_path / "root", [*faces, *apart[6:], *again])
    data = load_data(_config(tmp_path, "aff-wild2"))
    assert data.splits["test.json"].protocol.endswith("; 1 of its 2 identity units are in training too (v3)")
    assert data.independent == "nothing"
    assert data.splits["test.json"].leaks


@pytest.mark.parametrize("dataset", ["affectnet", "affectnet-reduced"])
def test_expressions_are_chosen(dataset: str, tmp_path: Path) -> None:
    codes = [(0, 1, 7)[number % 3] for number in range(70)]
    faces = [
        dataclasses.replace(sample, expression=code)
        for sample, code in zip(samples(60) + samples(10, split="validation", start=60), codes, strict=True)
    ]
    write = exports.export_affectnet_2017 if dataset == "affectnet" else exports.export_affectnet_reduced
    write(tmp_path / "root", faces)
    data = load_data(_config(tmp_path, dataset, expressions=(0, 7)))
    assert len(data.train) + len(data.val) == sum(code != 1 for code in codes[:60])
    assert len(data.test) == sum(code != 1 for code in codes[60:])


def test_the_crop_is_chosen(tmp_path: Path) -> None:
    exports.export_affectnet_2017(tmp_path / "root", samples(60) + samples(10, split="validation", start=60))
    box, whole = (load_data(_config(tmp_path, "affectnet", crop=crop)) for crop in (None, "none"))
    assert len(box.test) == len(whole.test) == 10
    assert number_of(box.test.picture(3)) == 63
    assert not np.array_equal(box.test.picture(3), whole.test.picture(3))


def test_two_spellings_of_one_actor_are_one_person(tmp_path: Path) -> None:
    faces = [
        dataclasses.replace(sample, identity={"Person 0": "Jane Doe", "Person 1": "Jane Do"}.get(name, name))
        for sample in samples(60, videos=10, people=10)
        if (name := sample.identity)
    ]
    exports.export_afew_va(tmp_path / "root", faces)
    apart = load_data(_config(tmp_path, "afew-va"))
    joined = load_data(_config(tmp_path, "afew-va", same_actor=(("jane do", "jane doe"),)))
    assert [sum(len(part) for part in data.splits["test.json"].parts.values()) for data in (apart, joined)] == [10, 9]


@pytest.mark.parametrize("below", ["", "VA_Estimation_Challenge", "VA_Estimation_Challenge/Train_Set"])
def test_one_of_two_editions_is_chosen(below: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for edition, count in (("3rd ABAW Annotations", 24), ("6th ABAW Annotations", 36)):
        faces = samples(count, videos=6, people=6) + samples(8, videos=2, people=2, split="validation", start=count)
        exports.export_aff_wild2(root, faces, edition=edition)
    with pytest.raises(LayoutError, match=r"3rd ABAW Annotations/.*6th ABAW Annotations/.*--annotations"):
        load_data(_config(tmp_path, "aff-wild2"))
    for edition, count in (("3rd ABAW Annotations", 24), ("6th ABAW Annotations", 36)):
        data = load_data(_config(tmp_path, "aff-wild2", annotations=f"{edition}/{below}"))
        assert (len(data.train) + len(data.val), len(data.test)) == (count, 8)
    with pytest.raises(LayoutError, match=r"annotations must be a folder with one .* got '9th'; in the root are 3rd"):
        load_data(_config(tmp_path, "aff-wild2", annotations="9th"))


@pytest.mark.parametrize("dataset", ["affectnet", "afew-va"])
def test_pictures_that_cannot_be_decoded_are_named_and_counted(dataset: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    if dataset == "affectnet":
        exports.export_affectnet_2017(root, samples(60) + samples(10, split="validation", start=60))
        pictures = sorted((root / "Manually_Annotated_Images").rglob("*.jpg"))
    else:
        exports.export_afew_va(root, samples(60, videos=10, people=10))
        pictures = sorted(root.rglob("*.png"))
    assert pictures
    before = load_data(_config(tmp_path, dataset))
    for path in pictures[:4]:
        os.truncate(path, path.stat().st_size // 2)
    after = load_data(_config(tmp_path, dataset))
    rows = [sum(len(part) for part in (data.train, data.val, data.test)) for data in (before, after)]
    assert rows[0] - rows[1] == 4
    used = [int(n) for report in after.reports for n in re.findall(r"rows read, (\d+) used", report)]
    assert sum(used) == rows[1]
    text = "\n".join(after.reports)
    assert sum(map(int, re.findall(r"dropped +(\d+)  undecodable", text))) == 4
    assert text.count("  left out: ") == 4
    assert len(re.findall(r"  left out: \S+: undecodable: .+", text)) == 4
    assert "left out" not in "\n".join(before.reports)


def test_a_wrong_root_is_answered_with_the_layout_expected(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(LayoutError, match="Expected:"):
        load_data(_config(tmp_path, "afew-va"))


def _held(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_frames_are_extracted_into_the_cache_unless_the_root_has_them(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="videos need OpenCV")
    root, cache = tmp_path / "root", tmp_path / "cache"
    exports.export_aff_wild(root, samples(24, videos=8, people=8))

    def extracted(**options: object) -> dict[str, int]:
        """How many frames the cache has after training on the root, by their kind; nothing changes in the root."""
        before = _held(root)
        data = load_data(_config(tmp_path, "aff-wild", **options))
        assert len(data.train) + len(data.val) + len(data.test) == 24 // int(str(options.get("every", 1)))
        assert _held(root) == before
        return {path.name: len(list(path.glob("*/*.jpg"))) for path in (cache / "extracted_frames").glob("faces*")}

    assert extracted() == {"faces": 24}
    shutil.move(cache / "extracted_frames", root / "extracted_frames")
    shutil.rmtree(cache)
    assert extracted() == {}
    assert extracted(every=3) == {"faces-every3": 8}
    next((root / "extracted_frames" / "faces").glob("*/*.jpg")).write_bytes(b"damaged")
    assert extracted() == {"faces": 24, "faces-every3": 8}
    shutil.rmtree(next(path for path in root.rglob("videos")))
    assert extracted(every=3)["faces-every3"] == 8


def test_the_index_lies_in_the_cache_unless_the_root_has_it(tmp_path: Path) -> None:
    root, cache = tmp_path / "root", tmp_path / "cache"
    exports.export_affectnet_reduced(root, samples(60) + samples(10, split="validation", start=60))
    before = sorted(root.rglob("*"))
    data = load_data(_config(tmp_path, "affectnet-reduced"))
    assert sorted(root.rglob("*")) == before
    indexes = sorted(cache.glob("affectnet-reduced-*/*.csv"))
    assert len(indexes) == 2
    assert "no index could be kept" not in "".join(data.reports)
    for path in indexes:
        path.rename(root / path.name)
    before = _held(root)
    load_data(_config(tmp_path, "affectnet-reduced"))
    assert not list(cache.glob("affectnet-reduced-*/*.csv"))
    assert _held(root) == before
    stale = next(root.glob("adaptive_margin_index_*.csv"))
    stale.write_text("of another folder")
    before = _held(root)
    load_data(_config(tmp_path, "affectnet-reduced"))
    assert [path.name for path in cache.glob("affectnet-reduced-*/*.csv")] == [stale.name]
    assert _held(root) == before
