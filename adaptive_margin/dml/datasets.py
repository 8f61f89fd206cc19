"""CUB-200-2011, Cars196, Stanford Online Products and folders of class folders, in the splits of metric learning.

Classes are split, not images: the first half of the classes is for training, the second half for the test. Boxes, parts
and attributes are not used (boxes are kept for the one protocol that crops images to them). Every loader joins label
files and images by name, checks that each named file exists, and compares the counts with the published ones. So a copy
that lacks images, or the classification split that some converters write, is not mistaken for the benchmark.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..functional.checks import problem
from ..images._layout import Folders, checked_root, endings, natural, said_endings, subfolders, wrong_layout
from ..images._text import printable
from ..images.errors import FetchError, LabelFileError, LayoutError
from ..images.image_list import Floats
from .labelled_images import LabelledImages

CUB_COUNTS = {"train": (5_864, 100), "test": (5_924, 100)}
CARS_COUNTS = {"train": (8_054, 98), "test": (8_131, 98)}
SOP_COUNTS = {"train": (59_551, 11_318), "test": (60_502, 11_316)}

CUB_LAYOUT = """  CUB_200_2011/ (or cub200/, or the root itself)
    images/001.Black_footed_Albatross/*.jpg ... 200.*
    images.txt              "<image id> <class folder>/<file>.jpg"
    image_class_labels.txt  "<image id> <class id, 1 to 200>"
    bounding_boxes.txt      "<image id> <x> <y> <width> <height>" (only for --crop-to-box)
  or these folders of images without any list"""
CARS_LAYOUT = """  one of
  A  cars_annos.mat, car_ims/000001.jpg ... 016185.jpg
  B  devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat (here or in devkit/),
     cars_train/00001.jpg ... 08144.jpg, cars_test/00001.jpg ... 08041.jpg
  C  names.csv, anno_train.csv, anno_test.csv, car_data/car_data/{train,test}/<class name>/<file>
     (Kaggle's, which pytorch-metric-learning downloads)
  D  images/<class name>/<file> (here or in cars196/), without any list or box
  A list may also be called "<name> (1).mat", and devkit/ be car_devkit/devkit/."""
SOP_LAYOUT = """  Stanford_Online_Products/ (or online_products/)
    Ebay_train.txt, Ebay_test.txt    "image_id class_id super_class_id path", a header line first
    bicycle_final/*.JPG ... toaster_final/*.JPG"""
FOLDER_LAYOUT = """  a folder for each class, with its images (in any depth):
    cat/1.jpg, cat/2.jpg, dog/1.png, ..."""

Counts = Mapping[str, tuple[int, int]]


@contextlib.contextmanager
def _showing(layout: str) -> Iterator[None]:
    """Adds the expected layout to error messages about files."""
    try:
        yield
    except (LabelFileError, LayoutError) as error:
        if layout in str(error):
            raise
        raise type(error)(f"{error}\nExpected:\n{layout}") from error


@_showing(CUB_LAYOUT)
def load_cub(root: str | os.PathLike[str], *, counts: Counts | None = CUB_COUNTS) -> LabelledImages:
    """CUB-200-2011: classes 1 to 100 for training (5,864 images), 101 to 200 for the test (5,924).

    ``train_test_split.txt`` is the split of another benchmark, with shared classes, and is not read. Images are opened
    as RGB: at least eight are grey.

    Args:
        root: ``CUB_200_2011``, or the folder that contains it.
        counts: expected images and classes of each part; None accepts any, with half of the classes as the test.

    Raises:
        LayoutError: files are missing, or the counts are not those of the benchmark.
        LabelFileError: a label file is not in the documented format.
    """
    top = checked_root(root, "CUB-200-2011", CUB_LAYOUT)
    places = [place for place in (top, top / "CUB_200_2011", top / "cub200") if place.is_dir()]
    listed, unlisted = ([partial(read, place, counts) for place in places] for read in (_cub_lists, _cub_class_folders))
    found = _that_fits(listed, unlisted, counts)
    if found is None:
        raise wrong_layout(top, "CUB-200-2011", CUB_LAYOUT, "images.txt")
    return found


def _cub_lists(place: Path, counts: Counts | None) -> LabelledImages | None:
    listed = _listed(place, "images.txt")
    if not listed.exists():
        return None
    names = _pairs(listed, 2)
    classes = _pairs(_listed(place, "image_class_labels.txt"), 2)
    if names.keys() != classes.keys():
        alone = sorted(names.keys() ^ classes.keys())
        raise LabelFileError(f"{place}: images.txt and image_class_labels.txt differ in {len(alone)} ids: {alone[:5]}")
    paths = [f"images/{row[0]}" for row in names.values()]
    ids = [_class_id(classes[key][0], place / "image_class_labels.txt") for key in names]
    boxes = None
    if (place / "bounding_boxes.txt").exists():
        corners = _pairs(place / "bounding_boxes.txt", 5)
        if absent := sorted(names.keys() - corners.keys()):
            raise LabelFileError(f"{place / 'bounding_boxes.txt'} lacks {len(absent)} ids of images.txt: {absent[:5]}")
        sides = np.array([_numbers(corners[key], place / "bounding_boxes.txt") for key in names], dtype=np.float32)
        boxes = np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], axis=1)
    folders = {number: path.split("/")[1] for number, path in zip(ids, paths, strict=True)}
    return _checked("cub", place, paths, ids, folders.__getitem__, CUB_LAYOUT, counts, boxes)


def _cub_class_folders(place: Path, counts: Counts | None) -> LabelledImages | None:
    """Only ``images``: the names of the folders begin with the numbers of the classes."""
    found = _images_by_class(place)
    if not found or not all(re.match(r"\d{3}\.", name) for name, _ in found):
        return None
    paths = [path for _, files in found for path in files]
    ids = [int(name[:3]) for name, files in found for _ in files]
    return _checked("cub", place, paths, ids, {int(n[:3]): n for n, _ in found}.__getitem__, CUB_LAYOUT, counts, None)


@_showing(CARS_LAYOUT)
def load_cars(root: str | os.PathLike[str], *, counts: Counts | None = CARS_COUNTS) -> LabelledImages:
    """Cars196: classes 1 to 98 for training (8,054 images), 99 to 196 for the test (8,131), from both official parts.

    The common layouts are supported: the consolidated one, the one with a devkit, Kaggle's class folders, and class
    folders without a list, whose alphabetical order is the order of the classes. The same file name can be a different
    image in another layout. Fields are read by name, since their order differs too. If the root has the lists of
    several layouts, the one whose images exist is used.

    Args:
        root: the folder of the data set.
        counts: as for :func:`load_cub`.

    Raises:
        LayoutError: files are missing, or the counts are not those of the benchmark.
        LabelFileError: a label file is not in the documented format.
    """
    top = checked_root(root, "Cars196", CARS_LAYOUT)

    def fitting(read: Callable[[Path], _Cars | None], place: Path) -> LabelledImages | None:
        found = read(place)
        if found is None:
            return None
        paths, ids, names, boxes = found
        named = dict(enumerate(names, 1))
        return _checked("cars", place, paths, ids, named.__getitem__, CARS_LAYOUT, counts, boxes)

    readers = (_cars_consolidated, _cars_devkit, _cars_class_folders)
    places = [place for place in (top, top / "cars196") if place.is_dir()]
    listed = [partial(fitting, read, place) for place in places for read in readers]
    data = _that_fits(listed, [partial(fitting, _cars_images, place) for place in places], counts)
    if data is None:
        missing = "cars_annos.mat, devkit/cars_train_annos.mat, anno_train.csv or images/<class name>/"
        raise wrong_layout(top, "Cars196", CARS_LAYOUT, missing)
    return data


@_showing(SOP_LAYOUT)
def load_sop(root: str | os.PathLike[str], *, counts: Counts | None = SOP_COUNTS) -> LabelledImages:
    """Stanford Online Products: 59,551 images of 11,318 classes for training, 60,502 of 11,316 others for the test.

    Args:
        root: ``Stanford_Online_Products``, or the folder that contains it.
        counts: as for :func:`load_cub`.

    Raises:
        LayoutError: files are missing, a class is in both lists, or the counts are not those of the benchmark.
        LabelFileError: a list is not in the documented format.
    """
    top = checked_root(root, "Stanford Online Products", SOP_LAYOUT)
    names = ("Stanford_Online_Products", "online_products")
    inner = (*names, *(f"{name}/Info_Files" for name in names), "Info_Files")
    place = _first(top, "Ebay_train.txt", inner)
    if place is None:
        raise wrong_layout(top, "Stanford Online Products", SOP_LAYOUT, "Ebay_train.txt")
    images = place.parent if place.name == "Info_Files" else place
    prefix = "images/" if (images / "images").is_dir() else ""
    paths: list[str] = []
    ids: list[int] = []
    parts: list[set[int]] = []
    for name in ("Ebay_train.txt", "Ebay_test.txt"):
        rows = _lines(_listed(place, name))
        if rows[:1] != [["image_id", "class_id", "super_class_id", "path"]]:
            raise LabelFileError(
                f"{place / name}, line 1: the header 'image_id class_id super_class_id path' is expected"
            )
        for number, row in enumerate(rows[1:], 2):
            if len(row) != 4:
                raise LabelFileError(f"{place / name}, line {number}: 4 columns are expected, got {len(row)}")
            ids.append(_class_id(row[1], place / name))
            paths.append(prefix + row[3])
        parts.append(set(ids[-(len(rows) - 1) :]))
    if parts[0] & parts[1]:
        raise LayoutError(f"{place}: {len(parts[0] & parts[1])} classes are in both lists; classes must not be shared")
    return _checked("sop", images, paths, ids, str, SOP_LAYOUT, counts, None, test=parts[1])


def load_class_folders(
    root: str | os.PathLike[str], *, test: float = 0.5, seed: int = 0, name: str | None = None
) -> LabelledImages:
    """Any folder of class folders: a share of the classes, drawn by a seed, is for the test.

    Args:
        root: the folder; each folder in it is a class, with images at any depth.
        test: share of the classes for the test.
        seed: random seed: classes in natural order are permuted, and the last ones are for the test.
        name: name of the data set in results; by default ``folder-`` and the folder's own name, so that two folders
            differ.

    Files count as pictures if they have an extension that Pillow can open. The others are counted in ``passed_over``,
    and a warning names their extensions.

    Raises:
        LayoutError: fewer than four class folders with images.

    Warns:
        RuntimeWarning: some files are skipped.
    """
    top = checked_root(root, "a data set of class folders", FOLDER_LAYOUT)
    paths: list[str] = []
    ids: list[int] = []
    names: list[str] = []
    passed_over: Counter[str] = Counter()
    for folder, found in _pictures_below(top, passed_over):
        names.append(folder)
        paths += found
        ids += [len(names) - 1] * len(found)
    if passed_over:
        what = said_endings(dict(passed_over.most_common()))
        warnings.warn(
            f"{printable(str(top))}: {sum(passed_over.values()):,} files are no pictures that Pillow can open by their "
            f"endings and are passed over: {what}; convert or rename those that are",
            RuntimeWarning,
            stacklevel=2,
        )
    if len(names) < 4:
        raise wrong_layout(top, "a data set of class folders", FOLDER_LAYOUT, "four folders with images at least")
    count = min(max(1, round(test * len(names))), len(names) - 2)
    drawn = np.random.default_rng(seed).permutation(len(names))[len(names) - count :]
    return LabelledImages(
        name or f"folder-{top.resolve().name}",
        np.array(ids, dtype=np.int64),
        tuple(names),
        frozenset(drawn.tolist()),
        root=top,
        paths=tuple(paths),
        passed_over=dict(passed_over.most_common()),
    )


DOWNLOADS = {"cub": "CUB", "cars": "Cars196", "sop": "StanfordOnlineProducts"}


def download(name: str, root: str | os.PathLike[str]) -> None:
    """Downloads a data set into ``root`` as pytorch-metric-learning does; does nothing if files exist already.

    If there are several processes, one downloads and the others wait. Until the download is complete, everything is in
    a folder beside ``root``. The remains of an interrupted download are never used as a data set, and the next call
    starts again. An archive that contains anything except files and folders, or a path that leads out of it, is
    rejected as a whole. The data are compared with the published counts when they are loaded, before any training.

    Args:
        name: ``"cub"``, ``"cars"`` or ``"sop"``.
        root: the folder, created if necessary.

    Raises:
        FetchError: it could not be downloaded; the message says which files to put where instead.
    """
    from filelock import FileLock
    from pytorch_metric_learning import datasets

    path = Path(root)
    if _holds_files(path):
        return
    layout = {"cub": CUB_LAYOUT, "cars": CARS_LAYOUT, "sop": SOP_LAYOUT}[name]
    host: Any = getattr(datasets, DOWNLOADS[name])
    try:
        place = path.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.parent / f".{place.name}.lock"):
            if _holds_files(place):
                return  # another process has fetched it meanwhile
            mounted = place.is_mount()  # it can be neither replaced nor reached by a rename
            draft = (place if mounted else place.parent) / f".{place.name}.partial"
            shutil.rmtree(draft, ignore_errors=True)  # of an interrupted download
            with _guarded_archives(host):
                host(root=str(draft), split="train+test", download=True)
            if mounted:
                for entry in sorted(draft.iterdir()):
                    entry.rename(place / entry.name)
                draft.rmdir()
                return
            if place.exists():
                place.rmdir()
            draft.rename(place)
    except Exception as error:  # urllib, ssl, tarfile, zipfile, and what a changed page unpacks to
        raise FetchError(
            f"{name} could not be downloaded from {host.DOWNLOAD_URL} ({type(error).__name__}: {error}).\n"
            f"Get it by hand (its licence may ask for that), unpack it in {path}, and leave out --download:\n{layout}"
        ) from error


class UnsafeArchiveError(ValueError):
    """An archive has a member that could be written outside its folder."""


class _GuardedTar(tarfile.TarFile):
    """A tar archive that is unpacked only if all of it stays in the folder; Python's own default since 3.14."""

    def extractall(self, path: Any = ".", members: Any = None, **options: Any) -> None:
        for member in self.getmembers():
            parts = re.split(r"[\\/]", member.name)
            if not (member.isreg() or member.isdir()) or ".." in parts or parts[0] == "" or ":" in parts[0]:
                kind = "a file" if member.isreg() else "a folder" if member.isdir() else "neither a file nor a folder"
                raise UnsafeArchiveError(f"its member {printable(repr(member.name))}, {kind}, could leave the folder")
        if hasattr(tarfile, "data_filter"):  # modes and owners are left out, too
            options["filter"] = "data"
        super().extractall(path, members, **options)


@contextlib.contextmanager
def _guarded_archives(host: Any) -> Iterator[None]:
    """Gives the module of a host's data set a ``tarfile`` that unpacks with :class:`_GuardedTar`. Its ``zipfile`` needs
    no guard: it removes ``..`` and a leading slash from names, and creates no links.
    """
    module = sys.modules[host.__module__]
    theirs = getattr(module, "tarfile", None)
    if theirs is None:
        yield
        return
    module.tarfile = SimpleNamespace(open=_GuardedTar.open)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.tarfile = theirs  # type: ignore[attr-defined]


def _holds_files(path: Path) -> bool:
    return path.is_dir() and any(not entry.name.endswith(".partial") for entry in path.iterdir())


_Cars = tuple[list[str], list[int], Sequence[str], Floats | None]


def _cars_consolidated(top: Path) -> _Cars | None:
    listed = _listed(top, "cars_annos.mat")
    if not listed.exists():
        return None
    content = _mat(listed)
    rows = _fields(content, "annotations", "relative_im_path", listed)
    paths = [str(_value(row["relative_im_path"])) for row in rows]
    ids = [int(_value(row["class"])) for row in rows]
    return paths, ids, _cars_names(content, ids), _cars_boxes(rows)


def _cars_devkit(top: Path) -> _Cars | None:
    kits = (top / "devkit", top / "car_devkit" / "devkit", top)
    kit = next((kit for kit in kits if _listed(kit, "cars_train_annos.mat").exists()), None)
    if kit is None:
        return None
    tests = (_listed(place, "cars_test_annos_withlabels.mat") for place in (top, kit))
    labelled = next((file for file in tests if file.exists()), None)
    if labelled is None:
        lacking = "cars_test_annos_withlabels.mat: the devkit's own cars_test_annos.mat has no classes"
        raise wrong_layout(top, "Cars196", CARS_LAYOUT, lacking)
    paths: list[str] = []
    ids: list[int] = []
    boxes: list[Floats] = []
    for part, file in (("train", _listed(kit, "cars_train_annos.mat")), ("test", labelled)):
        rows = _fields(_mat(file), "annotations", "fname", file)
        folder = f"cars_{part}/cars_{part}" if (top / f"cars_{part}" / f"cars_{part}").is_dir() else f"cars_{part}"
        paths += [f"{folder}/{_value(row['fname'])}" for row in rows]
        ids += [int(_value(row["class"])) for row in rows]
        boxes.append(_cars_boxes(rows))
    meta = _listed(kit, "cars_meta.mat")
    content = _mat(meta) if meta.exists() else {}
    return paths, ids, _cars_names(content, ids), np.concatenate(boxes)


def _cars_names(content: Mapping[str, Any], ids: Sequence[int]) -> list[str]:
    """The names of the classes from a file of the devkit; without them, their numbers."""
    if "class_names" not in content:
        return [f"class {number}" for number in range(1, max(ids) + 1)]
    return [str(np.asarray(name).ravel()[0]) for name in np.asarray(content["class_names"]).ravel()]


def _cars_images(top: Path) -> _Cars | None:
    """Only ``images``: the names of the classes in alphabetical order, which is how the devkit numbers them."""
    found = _images_by_class(top)
    if not found:
        return None
    paths = [path for _, files in found for path in files]
    ids = [number for number, (_, files) in enumerate(found, 1) for _ in files]
    return paths, ids, [name for name, _ in found], None


def _cars_class_folders(top: Path) -> _Cars | None:
    lists = next((p for p in (top, top / "devkit") if _listed(p, "anno_train.csv").exists()), None)
    if lists is None:
        return None
    names = [line.strip().strip('"') for line in _text(_listed(lists, "names.csv")).splitlines() if line]
    data = "car_data/car_data" if (top / "car_data" / "car_data").is_dir() else "car_data"
    paths: list[str] = []
    ids: list[int] = []
    boxes: list[list[float]] = []
    for part in ("train", "test"):
        file = _listed(lists, f"anno_{part}.csv")
        for number, line in enumerate(_text(file).splitlines(), 1):
            cells = line.split(",")
            if len(cells) != 6 or not cells[5].strip().isdecimal() or not 0 < int(cells[5]) <= len(names):
                raise LabelFileError(f"{file}, line {number}: 'fname,x1,y1,x2,y2,class' is expected, got {line!r}")
            ids.append(int(cells[5]))
            boxes.append(_numbers(cells[1:5], file))
            paths.append(f"{data}/{part}/{names[ids[-1] - 1].replace('/', '-')}/{cells[0]}")
    return paths, ids, names, np.array(boxes, dtype=np.float32)


def _mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        content: dict[str, Any] = loadmat(path)
    except Exception as error:  # of the many kinds that scipy has for damaged files
        raise LabelFileError(f"{path} is no file of Matlab's, version 5 ({type(error).__name__}: {error})") from error
    return content


def _fields(content: dict[str, Any], variable: str, field: str, path: Path) -> Sequence[Any]:
    rows = np.asarray(content.get(variable, np.empty(0))).ravel()
    wanted = {field, "class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"}
    if not wanted <= set(rows.dtype.names or ()):
        raise LabelFileError(f"{path}: {variable} with the fields {sorted(wanted)} is expected, got {rows.dtype.names}")
    return list(rows)


def _value(cell: Any) -> Any:
    """The content of a Matlab cell, which may be nested in arrays of one element."""
    while isinstance(cell, np.ndarray):
        cell = cell.ravel()[0]
    return cell


def _cars_boxes(rows: Sequence[Any]) -> Floats:
    sides = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    return np.array([[float(_value(row[side])) for side in sides] for row in rows], dtype=np.float32)


def _checked(
    name: str,
    root: Path,
    paths: list[str],
    ids: list[int],
    class_name: Callable[[int], str],
    layout: str,
    counts: Counts | None,
    boxes: Floats | None,
    test: set[int] | None = None,
) -> LabelledImages:
    """The data set, if every file exists and the counts are right; class ids are renumbered from 0 in their order."""
    listing = Folders()
    absent = [path for path in paths if os.path.basename(path) not in listing.names((root / path).parent)]
    if absent:
        raise LayoutError(
            f"{root}: {len(absent):,} of {len(paths):,} images that the label files name are not there, the first is "
            f"{absent[0]}: unpack the archive again, or give the folder of one release alone\nExpected:\n{layout}"
        )
    known, labels = np.unique(np.array(ids), return_inverse=True)
    half = len(known) // 2
    test_classes = (
        set(range(half, len(known))) if test is None else set(np.flatnonzero(np.isin(known, list(test))).tolist())
    )
    names = tuple(class_name(int(number)) for number in known)
    data = LabelledImages(
        name,
        labels.astype(np.int64),
        names,
        frozenset(test_classes),
        root=root,
        paths=tuple(paths),
        boxes=boxes,
    )
    if counts is not None:
        tested = np.isin(data.labels, list(test_classes))
        found = {
            "train": (int((~tested).sum()), len(known) - len(test_classes)),
            "test": (int(tested.sum()), len(test_classes)),
        }
        if found != dict(counts):
            said = "; ".join(f"{part}: {i:,} images of {c:,} classes" for part, (i, c) in counts.items())
            got = "; ".join(f"{part}: {i:,} of {c:,}" for part, (i, c) in found.items())
            raise LayoutError(
                f"{root} is not the whole benchmark: expected {said}; got {got}: get the original archive"
            )
    return data


def _first(top: Path, file: str, inner: Sequence[str]) -> Path | None:
    return next((place for place in (top, *(top / name for name in inner)) if _listed(place, file).exists()), None)


def _listed(folder: Path, name: str) -> Path:
    """The list called ``name``, or its name after a repeated download by a browser: ``"<name> (1).mat"``.

    Raises:
        LayoutError: there are several of those, but none with the exact name.
    """
    exact = folder / name
    if exact.exists() or not folder.is_dir():
        return exact
    stem, suffix = os.path.splitext(name)
    copies = sorted(
        other for other in os.listdir(folder) if re.fullmatch(rf"{re.escape(stem)} ?\(\d+\){suffix}", other)
    )
    if len(copies) > 1:
        raise LayoutError(problem(name, f"one file in {folder}", ", ".join(copies), f"rename the right one {name}"))
    return folder / copies[0] if copies else exact


_Readers = Sequence[Callable[[], LabelledImages | None]]


def _that_fits(listed: _Readers, unlisted: _Readers, counts: Counts | None) -> LabelledImages | None:
    """The result of the first reader that finds its lists and its images; the first error if none does.

    Folders without a list show which images exist, not which should: beside a list that does not match they are used
    only if ``counts`` confirms that they are complete.
    """
    complaint: LabelFileError | LayoutError | None = None
    for place, read in enumerate((*listed, *unlisted)):
        if place >= len(listed) and complaint is not None and counts is None:
            break
        try:
            found = read()
        except (LabelFileError, LayoutError) as error:
            complaint = complaint or error
            continue
        if found is not None:
            return found
    if complaint is not None:
        raise complaint
    return None


def _images_by_class(top: Path) -> list[tuple[str, list[str]]]:
    """Class folders in ``images`` and the files of each, relative to ``top``, both in alphabetical order."""
    found = _pictures_below(top / "images", Counter())
    return sorted((name, [f"images/{path}" for path in paths]) for name, paths in found)


def _pictures_below(top: Path, passed_over: Counter[str]) -> list[tuple[str, list[str]]]:
    """Folders with pictures at any depth, and the pictures relative to ``top``; other files are counted."""
    listing = Folders()
    found = []
    for folder in subfolders(top):
        pictures = []
        for place in _all_folders(folder, (_identity(top),), passed_over):
            images = listing.images(place)
            within = {inner.name for inner in subfolders(place)}
            passed_over.update(endings(listing.names(place) - set(images) - within))
            pictures += [f"{place.relative_to(top).as_posix()}/{image}" for image in images]
        if pictures:
            found.append((folder.name, pictures))
    return found


def _lines(path: Path) -> list[list[str]]:
    return [line.split() for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    if not path.exists():
        raise LayoutError(problem(path.name, f"in {path.parent}", "no such file", "unpack the whole archive"))
    return path.read_text(encoding="utf-8")


def _pairs(path: Path, columns: int) -> dict[str, list[str]]:
    """Rows indexed by their first column."""
    rows: dict[str, list[str]] = {}
    for number, row in enumerate(_lines(path), 1):
        if len(row) != columns or row[0] in rows:
            what = f"id {row[0]} occurs twice" if row[0] in rows else f"{columns} columns are expected, got {len(row)}"
            raise LabelFileError(f"{path}, line {number}: {what}")
        rows[row[0]] = row[1:]
    return rows


def _class_id(text: str, path: Path) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise LabelFileError(f"{path}: class ids are whole numbers from 1, got {text!r}")
    return int(text)


def _numbers(cells: Sequence[str], path: Path) -> list[float]:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        raise LabelFileError(f"{path}: the sides of a box are numbers, got {' '.join(cells)!r}") from None


def _all_folders(folder: Path, above: tuple[tuple[int, int], ...], passed_over: Counter[str]) -> list[Path]:
    """``folder`` and its subfolders at any depth; a link back to one ``above``, which would never end, is counted."""
    identity = _identity(folder)
    if identity in above:
        passed_over["links in a circle"] += 1
        return []
    inside = [inner for each in subfolders(folder) for inner in _all_folders(each, (*above, identity), passed_over)]
    return sorted([folder, *inside], key=lambda place: natural(str(place)))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
