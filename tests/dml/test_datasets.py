"""The real layouts, on small stand-ins: splits, joins, grey images, and errors that show what was expected."""

from __future__ import annotations

import io
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from adaptive_margin.dml.config import SMALL
from adaptive_margin.dml.datasets import (
    CARS_COUNTS,
    CUB_COUNTS,
    SOP_COUNTS,
    download,
    load_cars,
    load_class_folders,
    load_cub,
    load_sop,
)
from adaptive_margin.dml.trainer import load_images
from adaptive_margin.images.errors import FetchError, LabelFileError, LayoutError, UnreadableError

from . import stand_ins


def test_the_counts_are_the_benchmarks() -> None:
    assert CUB_COUNTS == {"train": (5_864, 100), "test": (5_924, 100)}
    assert CARS_COUNTS == {"train": (8_054, 98), "test": (8_131, 98)}
    assert SOP_COUNTS == {"train": (59_551, 11_318), "test": (60_502, 11_316)}


def test_cub_splits_by_class_id(tmp_path: Path) -> None:
    data = load_cub(stand_ins.cub(tmp_path), counts={"train": (24, 4), "test": (24, 4)})
    assert data.class_names[0] == "001.Bird_1"
    assert data.test_classes == {4, 5, 6, 7}
    assert len(data) == 48  # without ._x.jpg
    for path, label in zip(data.paths, data.labels, strict=True):
        assert path.startswith(f"images/{label + 1:03d}.")
    np.testing.assert_array_equal(data.boxes[0], [8, 8, 30, 26])
    direct = load_cub(tmp_path / "CUB_200_2011", counts=None)
    assert direct.paths == data.paths


def test_an_incomplete_copy_is_not_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"not the whole benchmark: expected train: 5,864 images of 100 classes.*got"):
        load_cub(stand_ins.cub(tmp_path))


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    stand_ins.cub(tmp_path)
    (tmp_path / "CUB_200_2011" / "images" / "002.Bird_2" / "Bird_2_0001_1.jpg").unlink()
    with pytest.raises(LayoutError, match=r"1 of 48 images .* the first is images/002\.Bird_2/Bird_2_0001_1\.jpg"):
        load_cub(tmp_path, counts=None)


def test_label_files_that_do_not_join(tmp_path: Path) -> None:
    stand_ins.cub(tmp_path)
    labels = tmp_path / "CUB_200_2011" / "image_class_labels.txt"
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(LabelFileError, match="differ in 1 ids"):
        load_cub(tmp_path, counts=None)
    labels.write_text("\n".join([*lines[:-1], "48 x"]) + "\n")
    with pytest.raises(LabelFileError, match="class ids are whole numbers from 1, got 'x'"):
        load_cub(tmp_path, counts=None)


@pytest.mark.parametrize("loader", [load_cub, load_cars, load_sop, load_class_folders])
def test_an_empty_folder_shows_the_layout(loader, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="Expected:"):
        loader(tmp_path)
    with pytest.raises(LayoutError, match="no such folder"):
        loader(tmp_path / "nowhere")


def test_cars_are_the_same_in_every_layout(tmp_path: Path) -> None:
    pixels = {}
    for layout in "ABC":
        root = tmp_path / layout
        root.mkdir()
        data = load_cars(stand_ins.cars(root, layout), counts={"train": (12, 3), "test": (12, 3)})
        assert data.test_classes == {3, 4, 5}
        assert list(data.class_names) == stand_ins.CARS_NAMES
        np.testing.assert_array_equal(data.boxes[0], [8, 8, 30, 26])
        config = SMALL.__class__(resize=32, size=24, cache=tmp_path / "cache")
        images = load_images(data, config)[0]
        pixels[layout] = {int(label): np.sort(images[data.labels == label].sum((1, 2, 3))) for label in range(6)}
    for label in range(6):
        np.testing.assert_array_equal(pixels["A"][label], pixels["B"][label])
        np.testing.assert_array_equal(pixels["A"][label], pixels["C"][label])


def test_the_devkit_alone_has_no_test_classes(tmp_path: Path) -> None:
    stand_ins.cars(tmp_path, "B")
    (tmp_path / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(LayoutError, match="has no classes"):
        load_cars(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_sop_takes_its_parts_from_the_lists(tmp_path: Path, packed: bool) -> None:
    data = load_sop(stand_ins.sop(tmp_path, packed=packed), counts={"train": (16, 6), "test": (18, 6)})
    assert {data.class_names[c] for c in data.test_classes} == {"7", "8", "9", "10", "11", "12"}
    assert all(path.endswith(".JPG") for path in data.paths)


def test_sop_refuses_shared_classes_and_lost_headers(tmp_path: Path) -> None:
    stand_ins.sop(tmp_path)
    place = tmp_path / "Stanford_Online_Products"
    lines = (place / "Ebay_train.txt").read_text()
    (place / "Ebay_test.txt").write_text(lines)
    with pytest.raises(LayoutError, match="6 classes are in both lists"):
        load_sop(tmp_path, counts=None)
    (place / "Ebay_train.txt").write_text(lines.split("\n", 1)[1])
    with pytest.raises(LabelFileError, match="the header"):
        load_sop(tmp_path, counts=None)


def test_class_folders_are_split_by_seed(tmp_path: Path) -> None:
    stand_ins.folders(tmp_path)
    data = load_class_folders(tmp_path, seed=0)
    assert len(data) == 48
    assert "class 1/inner/0.png" in data.paths
    assert data.test_classes == load_class_folders(tmp_path, seed=0).test_classes
    assert any(data.test_classes != load_class_folders(tmp_path, seed=seed).test_classes for seed in (1, 2, 3))
    assert len(data.test_classes) == 4
    assert data.name == f"folder-{tmp_path.name}"  # two such sets are two in a report


def test_grey_images_and_boxes_reach_the_network_as_rgb(tmp_path: Path) -> None:
    data = load_cub(stand_ins.cub(tmp_path), counts=None)
    config = SMALL.__class__(resize=32, size=24, cache=tmp_path / "cache")
    whole = load_images(data, config)[0]
    assert whole.shape == (48, 32, 32, 3)
    assert np.ptp(whole[1].astype(int), axis=2).max() == 0  # the grey one
    cut = load_images(data, SMALL.__class__(resize=32, size=24, cache=tmp_path / "cache", crop_to_box=True))[0]
    assert cut[0].mean() > whole[0].mean() + 10  # the bright square fills the box


def test_a_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_metric_learning import datasets

    def refuse(self: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.CUB, "download_and_remove", refuse)
    with pytest.raises(FetchError, match=r"(?s)could not be downloaded.*no route to host.*unpack it in.*images\.txt"):
        download("cub", tmp_path / "new")
    stand_ins.cub(tmp_path)
    assert not download("cub", tmp_path)  # something is there: nothing to do


def test_an_interrupted_download_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_metric_learning import datasets

    def break_off(self: datasets.CUB) -> None:
        Path(self.root).mkdir(exist_ok=True)
        (Path(self.root) / "CUB_200_2011.tgz").write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets.CUB, "download_and_remove", break_off)
    root = tmp_path / "birds"
    root.mkdir()  # an empty folder is no data set
    with pytest.raises(KeyboardInterrupt):
        download("cub", root)
    assert list(root.iterdir()) == []
    monkeypatch.setattr(datasets.CUB, "download_and_remove", lambda self: stand_ins.cub(Path(self.root)))
    assert download("cub", root)
    assert sorted(path.name for path in root.iterdir()) == ["CUB_200_2011"]
    assert len(load_cub(root, counts=None)) == 48


def test_a_download_into_a_mounted_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename onto a mount point is refused by the system: here by a patch that says which folder is one."""
    from pytorch_metric_learning import datasets

    root = tmp_path / "birds"
    root.mkdir()
    rename, rmdir = Path.rename, Path.rmdir

    def busy(self: Path, *target: Path) -> object:
        if root in (self, *target):
            raise OSError(16, "Device or resource busy")
        return (rename if target else rmdir)(self, *target)

    monkeypatch.setattr(Path, "is_mount", lambda self: self == root)
    monkeypatch.setattr(Path, "rename", busy)
    monkeypatch.setattr(Path, "rmdir", busy)
    monkeypatch.setattr(datasets.CUB, "download_and_remove", lambda self: stand_ins.cub(Path(self.root)))
    assert download("cub", root)
    assert sorted(path.name for path in root.iterdir()) == ["CUB_200_2011"]
    assert len(load_cub(root, counts=None)) == 48


def test_one_of_several_processes_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_metric_learning import datasets

    calls, errors = [], []

    def fetch(self: datasets.CUB) -> None:
        calls.append(self.root)
        stand_ins.cub(Path(self.root))
        time.sleep(0.2)  # long enough for the others to ask

    def ask() -> None:
        try:
            download("cub", tmp_path / "birds")
            load_cub(tmp_path / "birds", counts=None)  # whole, for whoever waited too
        except Exception as error:  # a thread keeps it for itself
            errors.append(error)

    monkeypatch.setattr(datasets.CUB, "download_and_remove", fetch)
    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert errors == []
    assert len(calls) == 1


def test_what_is_said_about_files_shows_the_layout(tmp_path: Path) -> None:
    top = stand_ins.cub(tmp_path) / "CUB_200_2011"
    with pytest.raises(LayoutError, match=r"(?s)not the whole benchmark.*Expected:.*image_class_labels\.txt"):
        load_cub(tmp_path)
    boxes = (top / "bounding_boxes.txt").read_text().splitlines()
    (top / "bounding_boxes.txt").write_text("\n".join(boxes[1:]))
    with pytest.raises(LabelFileError, match=r"(?s)bounding_boxes\.txt lacks 1 ids of images\.txt: \['1'\]\nExpected:"):
        load_cub(tmp_path, counts=None)
    (top / "bounding_boxes.txt").write_text("\n".join([*boxes[1:], "1 a b c d"]))
    with pytest.raises(LabelFileError, match=r"(?s)the sides of a box are numbers, got 'a b c d'\nExpected:"):
        load_cub(tmp_path, counts=None)
    (top / "image_class_labels.txt").unlink()
    with pytest.raises(LayoutError, match=r"(?s)image_class_labels\.txt must be in .*Expected:"):
        load_cub(tmp_path, counts=None)


@pytest.mark.parametrize("file", ["names.csv", "anno_test.csv"])
def test_class_folders_of_cars_without_a_list(tmp_path: Path, file: str) -> None:
    stand_ins.cars(tmp_path, "C")
    (tmp_path / file).unlink()
    with pytest.raises(LayoutError, match=rf"(?s){file} must be in .*Expected:.*car_data"):
        load_cars(tmp_path, counts=None)


def test_sop_without_its_second_list(tmp_path: Path) -> None:
    stand_ins.sop(tmp_path)
    (tmp_path / "Stanford_Online_Products" / "Ebay_test.txt").unlink()
    with pytest.raises(LayoutError, match=r"(?s)Ebay_test\.txt must be in .*Expected:"):
        load_sop(tmp_path, counts=None)


@pytest.mark.parametrize("file", ["cars_annos.mat", "devkit/cars_meta.mat"])
def test_cars_without_names_have_numbers(tmp_path: Path, file: str) -> None:
    stand_ins.cars(tmp_path, "B" if "devkit" in file else "A")
    content = loadmat(tmp_path / file)
    fields = {name: value for name, value in content.items() if name != "class_names" and name[0] != "_"}
    savemat(tmp_path / file, fields)
    data = load_cars(tmp_path, counts=None)
    assert list(data.class_names) == [f"class {number}" for number in range(1, 7)]


def test_a_damaged_file_of_matlabs(tmp_path: Path) -> None:
    stand_ins.cars(tmp_path, "A")
    (tmp_path / "cars_annos.mat").write_bytes(b"half")
    with pytest.raises(LabelFileError, match=r"(?s)cars_annos\.mat is not a Matlab 5 file.*Expected:"):
        load_cars(tmp_path, counts=None)


def test_a_list_without_its_images_keeps_no_other_layout_from_being_tried(tmp_path: Path) -> None:
    """Kaggle's copy has the consolidated list beside the images of the devkit, and a list that a browser renamed."""
    counts = {"train": (12, 3), "test": (12, 3)}
    stand_ins.cars(tmp_path, "B")
    stand_ins.cars(tmp_path / "A", "A")
    (tmp_path / "A" / "cars_annos.mat").rename(tmp_path / "cars_annos.mat")
    (tmp_path / "cars_test_annos_withlabels.mat").rename(tmp_path / "cars_test_annos_withlabels (1).mat")
    (tmp_path / "car_devkit").mkdir()
    (tmp_path / "devkit").rename(tmp_path / "car_devkit" / "devkit")
    assert load_cars(tmp_path, counts=counts).paths[0] == "cars_train/cars_train/00001.jpg"
    (tmp_path / "cars_test_annos_withlabels (2).mat").touch()
    with pytest.raises(LayoutError, match=r"24 of 24 images .* missing, the first is car_ims/000001\.jpg"):
        load_cars(tmp_path, counts=counts)  # the first complaint, where nothing fits
    (tmp_path / "cars_annos.mat").unlink()
    with pytest.raises(LayoutError, match=r"one file in .*\(1\)\.mat, .*\(2\)\.mat; rename the right one"):
        load_cars(tmp_path, counts=counts)
    (tmp_path / "cars_test_annos_withlabels (1).mat").rename(tmp_path / "cars_test_annos_withlabels.mat")  # the remedy
    assert len(load_cars(tmp_path, counts=counts)) == 24


@pytest.mark.parametrize("inside", ["cars196", "."])
def test_cars_in_class_folders_without_a_list(tmp_path: Path, inside: str) -> None:
    names = sorted(name.replace("/", "-") for name in stand_ins.CARS_NAMES)
    for klass, name in enumerate(names, 1):
        for number in range(3):
            stand_ins.picture(tmp_path / inside / "images" / name / f"{number}.jpg", klass, number)
    data = load_cars(tmp_path, counts={"train": (9, 3), "test": (9, 3)})
    assert (list(data.class_names), data.test_classes) == (names, {3, 4, 5})
    assert data.paths[0] == "images/AM General Hummer SUV 2000/0.jpg"
    assert data.boxes is None
    with pytest.raises(LayoutError, match="not the whole benchmark"):
        load_cars(tmp_path)


def test_cub_in_class_folders_without_a_list(tmp_path: Path) -> None:
    listed = load_cub(stand_ins.cub(tmp_path), counts=None)
    top = tmp_path / "CUB_200_2011"
    top.rename(tmp_path / "cub200")
    for file in (tmp_path / "cub200").glob("*.txt"):
        file.unlink()
    found = load_cub(tmp_path, counts={"train": (24, 4), "test": (24, 4)})
    assert (sorted(found.paths), found.class_names, found.test_classes) == (
        sorted(listed.paths),
        listed.class_names,
        listed.test_classes,
    )
    (tmp_path / "cub200" / "images" / "002.Bird_2" / "Bird_2_0001_1.jpg").unlink()
    with pytest.raises(LayoutError, match="not the whole benchmark"):
        load_cub(tmp_path, counts={"train": (24, 4), "test": (24, 4)})


def test_sop_under_its_other_name(tmp_path: Path) -> None:
    stand_ins.sop(tmp_path, packed=True)
    (tmp_path / "Stanford_Online_Products").rename(tmp_path / "online_products")
    assert load_sop(tmp_path, counts=None).root == tmp_path / "online_products"


def test_class_folders_take_every_ending_that_pillow_opens(tmp_path: Path) -> None:
    stand_ins.folders(tmp_path, classes=4, each=2)
    for ending, kind in (("jfif", "JPEG"), ("jpe", "JPEG"), ("ppm", "PPM"), ("jp2", "JPEG2000")):
        Image.new("RGB", (30, 30)).save(tmp_path / "class 0" / f"more.{ending}", kind)
    for name in ("a.heic", "b.HEIC", "list.txt"):
        (tmp_path / "class 1" / "inner" / name).touch()
    with pytest.warns(RuntimeWarning, match=r"3 files skipped, .*Pillow can open: 2 \.heic, 1 \.txt; convert"):
        data = load_class_folders(tmp_path)
    assert np.bincount(data.labels).tolist() == [6, 2, 2, 2]
    assert data.passed_over == {".heic": 2, ".txt": 1}


def test_a_link_in_a_circle_brings_no_other_class(tmp_path: Path) -> None:
    stand_ins.folders(tmp_path, classes=4, each=2)
    whole = load_class_folders(tmp_path)
    (tmp_path / "class 2" / "all").symlink_to(tmp_path)
    (tmp_path / "class 3" / "itself").symlink_to(tmp_path / "class 3" / "itself")
    (tmp_path / "class 3" / "itself.png").symlink_to(tmp_path / "class 3" / "itself.png")
    with pytest.warns(RuntimeWarning, match=r"1 links in a circle"):
        data = load_class_folders(tmp_path)
    assert data.labels.tolist() == [*whole.labels, 3]
    config = SMALL.__class__(resize=32, size=24, cache=tmp_path / "cache")
    with pytest.raises(UnreadableError, match=r"1 of 9 rows unreadable"):
        load_images(data, config)[0]


@pytest.mark.parametrize("kind", ["above", "absolute", "link", "hard link", "overwrite"])
def test_an_archive_writes_only_into_its_folder(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_metric_learning.datasets import cub

    aim = tmp_path / "aim"
    aim.write_text("mine")

    def fetch(url: str, filename: str) -> None:
        def add(name: str, link: str = "", type_: bytes = tarfile.REGTYPE, data: bytes = b"") -> None:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = type_, link, len(data)
            archive.addfile(member, io.BytesIO(data))

        with tarfile.open(filename, "w:gz") as archive:
            if kind == "above":
                add("../../aim", data=b"theirs")
            elif kind == "absolute":
                add(str(aim), data=b"theirs")
            elif kind == "hard link":
                add("CUB_200_2011", str(aim), tarfile.LNKTYPE)
            else:
                add("CUB_200_2011", str(tmp_path if kind == "link" else aim), tarfile.SYMTYPE)
                add("CUB_200_2011/aim" if kind == "link" else "CUB_200_2011", data=b"theirs")

    monkeypatch.setattr(cub, "_urlretrieve", fetch)
    with pytest.raises(FetchError, match="could leave the folder"):
        download("cub", tmp_path / "birds")
    assert aim.read_text() == "mine"
    assert not (tmp_path / "birds").exists()
    assert cub.tarfile is tarfile


def test_an_honest_archive_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_metric_learning.datasets import cub

    stand_ins.cub(tmp_path / "made")

    def fetch(url: str, filename: str) -> None:
        with tarfile.open(filename, "w:gz") as archive:
            archive.add(tmp_path / "made" / "CUB_200_2011", "CUB_200_2011")

    monkeypatch.setattr(cub, "_urlretrieve", fetch)
    download("cub", tmp_path / "birds")
    assert len(load_cub(tmp_path / "birds", counts=None)) == 48
    with pytest.raises(LayoutError, match="not the whole benchmark"):  # nothing is trained on it
        load_cub(tmp_path / "birds")
