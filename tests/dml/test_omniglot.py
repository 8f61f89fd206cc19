"""Omniglot's published layout, on small archives and folders that are drawn here."""

from __future__ import annotations

import io
import json
import runpy
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptive_margin.dml.labelled_images import LabelledImages, split_classes
from adaptive_margin.dml.omniglot import OMNIGLOT_COUNTS, omniglot
from adaptive_margin.images.errors import LayoutError

SMALL1, SMALL2 = "images_background_small1", "images_background_small2"
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def drawing(height: int, width: int, top: int = 20, left: int = 20, *, side: int = 105, mode: str = "1") -> bytes:
    """A PNG with a black rectangle on white."""
    image = Image.new("1", (side, side), 1)
    image.paste(0, (left, top, left + width, top + height))
    memory = io.BytesIO()
    image.convert(mode).save(memory, "PNG")
    return memory.getvalue()


def release(name: str, alphabets: Mapping[str, int], drawers: int = 3) -> dict[str, bytes]:
    """Paths and images of an archive; each drawing has a size of its own, the same in every archive."""
    return {
        f"{name}/{alphabet}/character{c:02d}/{ord(alphabet[0]) + c:04d}_{d:02d}.png": drawing(
            10 * c + d, ord(alphabet[0]) - 60
        )
        for alphabet, characters in alphabets.items()
        for c in range(1, characters + 1)
        for d in range(1, drawers + 1)
    }


def packed(root: Path, name: str, files: Mapping[str, bytes]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in sorted({path.rsplit("/", 1)[0] + "/" for path in files}):
            archive.writestr(folder, b"")
        for path, content in files.items():
            archive.writestr(path, content)


def unpacked(root: Path, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


ONE = release(SMALL1, {"Balinese": 2, "Greek": 3})
TWO = release(SMALL2, {"Greek": 3, "Korean": 1, "Tagalog": 2})


def both(root: Path) -> LabelledImages:
    packed(root, SMALL1, ONE)
    packed(root, SMALL2, TWO)
    return omniglot(root, counts=None)


def test_the_counts_are_the_published_ones() -> None:
    assert OMNIGLOT_COUNTS == {
        "images_background": (19_280, 964),
        "images_evaluation": (13_180, 659),
        "images_background_small1": (2_720, 136),
        "images_background_small2": (3_120, 156),
    }


def test_archives_are_joined_and_an_image_in_both_is_taken_once(tmp_path: Path) -> None:
    data = both(tmp_path)
    assert data.name == "omniglot"
    assert data.class_names == (
        "Balinese/character01",
        "Balinese/character02",
        "Greek/character01",
        "Greek/character02",
        "Greek/character03",
        "Korean/character01",
        "Tagalog/character01",
        "Tagalog/character02",
    )
    assert data.labels.tolist() == np.repeat(np.arange(8), 3).tolist()
    assert data.drawers is not None
    assert data.drawers.tolist() == 8 * [1, 2, 3]
    assert data.pixels is not None
    assert data.pixels.shape == (24, 20, 20, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{SMALL1}.zip", f"{SMALL2}.zip"]  # nothing unpacked


def test_whole_alphabets_are_the_test_and_the_validation(tmp_path: Path) -> None:
    data = both(tmp_path)
    assert data.groups.tolist() == [0, 0, 1, 1, 1, 2, 3, 3]
    assert data.test_classes == {5, 6, 7}  # Korean and Tagalog, the second half by name
    sides = set()
    for seed in range(8):
        split = split_classes(data, validation=0.3, seed=seed)
        validation, train = set(data.labels[split.validation]), set(data.labels[split.train])
        assert {frozenset(validation), frozenset(train)} == {frozenset({0, 1}), frozenset({2, 3, 4})}
        assert set(data.labels[split.test]) == {5, 6, 7}
        sides.add(min(validation))
    assert sides == {0, 2}


@pytest.mark.parametrize("inner", ["", "python", "omniglot-py"])
def test_folders_and_a_mixture_are_the_same_data_set(tmp_path: Path, inner: str) -> None:
    expected = both(tmp_path / "archives").fingerprint
    unpacked(tmp_path / "folders" / inner, {**ONE, **TWO, f"{SMALL1}/.DS_Store": b"litter"})
    assert omniglot(tmp_path / "folders", counts=None).fingerprint == expected
    unpacked(tmp_path / "mixed" / inner, ONE)
    packed(tmp_path / "mixed" / inner, SMALL1, ONE)
    packed(tmp_path / "mixed" / inner, SMALL2, {**TWO, f"__MACOSX/{SMALL2}/._0001_01.png": b"litter"})
    assert omniglot(tmp_path / "mixed", counts=None).fingerprint == expected


def test_a_drawing_is_centred_widened_and_averaged(tmp_path: Path) -> None:
    # 3 x 63 pixels: rows 58 to 60 of 120 and columns 28 to 90; widened rows 57 to 61 and columns 27 to 91
    unpacked(tmp_path, {f"{SMALL1}/{name}/character01/0001_01.png": drawing(3, 63, 5, 40) for name in "AB"})
    data = omniglot(tmp_path, counts=None)
    assert data.pixels is not None
    rows, columns = np.zeros(20), np.zeros(20)
    rows[9], rows[10] = 3 / 6, 2 / 6
    columns[4], columns[5:15], columns[15] = 3 / 6, 1, 2 / 6
    np.testing.assert_array_equal(data.pixels[0, ..., 0], np.round(255 * np.outer(rows, columns)))


def test_where_a_drawing_lies_and_how_it_is_stored_do_not_matter(tmp_path: Path) -> None:
    images = {"A": drawing(31, 12, 0, 0), "B": drawing(31, 12, 74, 93), "C": drawing(31, 12, mode="RGB")}
    unpacked(tmp_path, {f"{SMALL1}/{name}/character01/0001_01.png": image for name, image in images.items()})
    data = omniglot(tmp_path, counts=None)
    assert data.pixels is not None
    np.testing.assert_array_equal(data.pixels[0], data.pixels[1])
    np.testing.assert_array_equal(data.pixels[0], data.pixels[2])


def test_the_largest_drawing_keeps_its_edges(tmp_path: Path) -> None:
    frame = Image.new("1", (105, 105), 0)
    frame.paste(1, (1, 1, 104, 104))
    memory = io.BytesIO()
    frame.save(memory, "PNG")
    unpacked(tmp_path, {f"{SMALL1}/{name}/character01/0001_01.png": memory.getvalue() for name in "AB"})
    data = omniglot(tmp_path, counts=None)
    assert data.pixels is not None
    # the frame is at pixel 7 and at 111 of 120, widened 6 to 8 and 110 to 112
    np.testing.assert_array_equal(data.pixels[0, 10, [0, 1, 2, 17, 18, 19], 0], [0, 128, 0, 0, 128, 0])


def test_other_images_in_two_archives_are_an_error(tmp_path: Path) -> None:
    path = f"{SMALL2}/Greek/character02/0073_03.png"
    assert path in TWO
    packed(tmp_path, SMALL1, ONE)
    packed(tmp_path, SMALL2, {**TWO, path: drawing(50, 50)})
    with pytest.raises(
        LayoutError, match=rf"{SMALL2}\.zip: {path} must be the same image as .*{SMALL1}\.zip: .*0073_03"
    ):
        omniglot(tmp_path, counts=None)


def test_a_part_of_an_archive_is_not_the_benchmark(tmp_path: Path) -> None:
    packed(tmp_path, SMALL1, ONE)
    with pytest.raises(LayoutError, match=r"small1\.zip must be 2,720 images of 136 characters, got 15 of 5; get the"):
        omniglot(tmp_path)
    data = omniglot(tmp_path, counts={SMALL1: (15, 5)})
    assert data.test_classes == {2, 3, 4}


def test_nothing_there_shows_the_layout(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"no such folder(.|\n)*images_background_small2\.zip"):
        omniglot(tmp_path / "nowhere")
    with pytest.raises(LayoutError, match=r"no archive or folder of Omniglot's(.|\n)*Expected:(.|\n)*small2\.zip"):
        omniglot(tmp_path)
    packed(tmp_path, SMALL1, release(SMALL1, {"Greek": 3}))
    with pytest.raises(LayoutError, match="no second alphabet: whole alphabets are split"):
        omniglot(tmp_path, counts=None)


@pytest.mark.parametrize("damage", ["cut", "front", "flipped", "other"])
def test_a_damaged_archive_is_named(tmp_path: Path, damage: str) -> None:
    packed(tmp_path, SMALL1, ONE)
    file = tmp_path / f"{SMALL1}.zip"
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
    damaged = {"cut": content[:middle], "front": content[-200:], "flipped": flipped, "other": b"<html>"}
    file.write_bytes(damaged[damage])
    with pytest.raises(LayoutError, match=rf"{SMALL1}\.zip must be a zip archive, got .*; get the original archive"):
        omniglot(tmp_path, counts=None)


@pytest.mark.parametrize(
    "path",
    [
        f"{SMALL1}/../character01/0001_01.png",
        f"/{SMALL1}/Greek/character01/0001_01.png",
        f"{SMALL2}/Greek/character01/0001_01.png",
        f"{SMALL1}/Greek/0001_01.png",
        f"{SMALL1}/Greek/character01/0001.png",
        f"{SMALL1}/Greek/character01/0001_01.txt",
    ],
)
def test_an_odd_path_is_named(tmp_path: Path, path: str) -> None:
    packed(tmp_path, SMALL1, {**ONE, path: drawing(5, 5)})
    with pytest.raises(LayoutError, match=rf"\.zip: {path} must be {SMALL1}/<alphabet>.*got another path; remove it"):
        omniglot(tmp_path, counts=None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (drawing(5, 5, side=28), "105×105 pixels, got 28×28"),
        (drawing(0, 0), "a black drawing on white, got black on 0% of the pixels"),
        (drawing(100, 100, 0, 0), "a black drawing on white, got black on 91% of the pixels"),
        (b"no picture", "an image, got no such"),
        (drawing(5, 5)[:60], "an image, got no such"),
    ],
    ids=["size", "white", "inverted", "text", "cut"],
)
def test_a_wrong_image_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = f"{SMALL1}/Greek/character01/0072_02.png"
    assert path in ONE
    packed(tmp_path, SMALL1, {**ONE, path: content})
    with pytest.raises(LayoutError, match=rf"\.zip: {path} must be {said}.*; get the original archive"):
        omniglot(tmp_path, counts=None)


def test_drawers_are_one_an_image() -> None:
    pixels = np.zeros((2, 4, 4, 1), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"drawers must be one per image \(2\), got \(3,\)"):
        LabelledImages("two", np.arange(2), ("a", "b"), frozenset({1}), pixels=pixels, drawers=np.arange(3))


def test_the_recipe_trains_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"Balinese": 2, "Greek": 3, "Korean": 2, "Tagalog": 3}
    packed(tmp_path, SMALL1, release(SMALL1, names))
    monkeypatch.setitem(OMNIGLOT_COUNTS, SMALL1, (30, 10))  # those of the stand-in
    options = ["--loss", "contrastive", "--margin", "adaptive", "--classes", "2", "--epochs", "1"]
    options += ["--steps-per-epoch", "2", "--root", str(tmp_path), "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["dml_omniglot.py", *options])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(BENCHMARKS / "dml_omniglot.py"), run_name="__main__")
    assert "test classes, per cent: Recall@1" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["data"]["test"] == {"images": 15, "classes": 5}
    assert result["data"]["train"]["classes"] + result["data"]["validation"]["classes"] == 5
