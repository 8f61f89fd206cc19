"""CUB-200-2011, Cars196, Stanford Online Products and folders of class folders, in the splits of metric learning.

Classes are split, not images: the first half of the classes is for training, the second half for the test. Boxes, parts
and attributes are not used (boxes are kept for the one protocol that crops images to them). Every loader joins label
files and images by name, checks that each named file exists, and compares the counts with the published ones. So a copy
that lacks images, or the classification split that some converters write, is not mistaken for the benchmark.

The host has classes for three of these, which only download here: each reads one of the layouts in use, without boxes,
joins lists by position and does not notice a missing image.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import sys
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from ..images._layout import Folders, checked_root, endings, identity, natural, said_endings, subfolders, wrong_layout
from ..images.errors import FetchError, LabelFileError, LayoutError
from ..images.image_list import Floats
from ..messages import counted, printable, problem
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
    readers = (_cub_lists,), (_class_folders(r"\d{3}\."),)  # whose names begin with the numbers of the classes
    return _load("cub", "CUB-200-2011", root, counts, CUB_LAYOUT, "images.txt", ("CUB_200_2011", "cub200"), *readers)


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
    missing = "cars_annos.mat, devkit/cars_train_annos.mat, anno_train.csv or images/<class name>/"
    readers = (_cars_consolidated, _cars_devkit, _cars_kaggle), (_class_folders(),)
    return _load("cars", "Cars196", root, counts, CARS_LAYOUT, missing, ("cars196",), *readers)


def load_sop(root: str | os.PathLike[str], *, counts: Counts | None = SOP_COUNTS) -> LabelledImages:
    """Stanford Online Products: 59,551 images of 11,318 classes for training, 60,502 of 11,316 others for the test.

    Args:
        root: ``Stanford_Online_Products``, or the folder that contains it.
        counts: as for :func:`load_cub`.

    Raises:
        LayoutError: files are missing, a class is in both lists, or the counts are not those of the benchmark.
        LabelFileError: a list is not in the documented format.
    """
    names = ("Stanford_Online_Products", "online_products")
    inner = (*names, *(f"{name}/Info_Files" for name in names), "Info_Files")
    return _load("sop", "Stanford Online Products", root, counts, SOP_LAYOUT, "Ebay_train.txt", inner, (_sop_lists,))


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
    passed_over: Counter[str] = Counter()
    found = _pictures_below(top, passed_over)
    if passed_over:
        what = said_endings(dict(passed_over.most_common()))
        warnings.warn(
            f"{printable(str(top))}: {counted(sum(passed_over.values()), 'file')} skipped, without the extension of a "
            f"picture that Pillow can open: {what}; convert or rename the pictures among them",
            RuntimeWarning,
            stacklevel=2,
        )
    if len(found) < 4:
        raise wrong_layout(top, "a data set of class folders", FOLDER_LAYOUT, "at least four folders with images")
    count = min(max(1, round(test * len(found))), len(found) - 2)
    drawn = np.random.default_rng(seed).permutation(len(found))[len(found) - count :]
    return LabelledImages(
        name or f"folder-{top.resolve().name}",
        np.repeat(np.arange(len(found)), [len(paths) for _, paths in found]),
        tuple(folder for folder, _ in found),
        frozenset(drawn.tolist()),
        root=top,
        paths=tuple(path for _, paths in found for path in paths),
        passed_over=dict(passed_over.most_common()),
    )


DOWNLOADS = {
    "cub": ("CUB", CUB_LAYOUT),
    "cars": ("Cars196", CARS_LAYOUT),
    "sop": ("StanfordOnlineProducts", SOP_LAYOUT),
}
"""The host's class for each data set, and the layout that it downloads."""


def download(name: str, root: str | os.PathLike[str]) -> bool:
    """Downloads a data set into ``root`` as pytorch-metric-learning does; does nothing if files exist already.

    Returns whether it was downloaded, by this process or by another in the meantime.

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
        return False
    host: Any = getattr(datasets, DOWNLOADS[name][0])
    try:
        place = path.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.parent / f".{place.name}.lock"):
            if _holds_files(place):
                return True  # another process has fetched it meanwhile
            mounted = place.is_mount()  # it can be neither replaced nor reached by a rename
            draft = (place if mounted else place.parent) / f".{place.name}.partial"
            shutil.rmtree(draft, ignore_errors=True)  # of an interrupted download
            with _guarded_archives(host):
                host(root=str(draft), split="train+test", download=True)
            if mounted:
                for entry in sorted(draft.iterdir()):
                    entry.rename(place / entry.name)
                draft.rmdir()
                return True
            if place.exists():
                place.rmdir()
            draft.rename(place)
        return True
    except Exception as error:  # urllib, ssl, tarfile, zipfile, and what a changed page unpacks to
        raise FetchError(
            f"{name} could not be downloaded from {host.DOWNLOAD_URL} ({type(error).__name__}: {error}).\n"
            f"Download it by hand (its licence may require that), unpack it in {path}, and leave out --download:\n"
            f"{DOWNLOADS[name][1]}"
        ) from error


class UnsafeArchiveError(ValueError):
    """An archive has a member that could be written outside its folder."""


class _GuardedTar(tarfile.TarFile):
    """A tar archive that is unpacked only if all of it is files and folders that stay in the folder."""

    def extractall(self, path: Any = ".", members: Any = None, **options: Any) -> None:
        for member in self.getmembers():
            parts = re.split(r"[\\/]", member.name)
            if not (member.isreg() or member.isdir()) or ".." in parts or parts[0] == "" or ":" in parts[0]:
                raise UnsafeArchiveError(f"its member {printable(repr(member.name))} could leave the folder")
        if hasattr(tarfile, "data_filter"):  # from Python 3.10.12 on; modes and owners are left out, too
            options["filter"] = "data"
        super().extractall(path, members, **options)


@contextlib.contextmanager
def _guarded_archives(host: Any) -> Iterator[None]:
    """Gives the module of a host's data set a ``tarfile`` that unpacks with :class:`_GuardedTar`. Its ``zipfile`` needs
    no guard: it removes ``..`` and a leading slash from names, and creates no links.
    """
    module: Any = sys.modules[host.__module__]
    theirs = getattr(module, "tarfile", None)
    module.tarfile = SimpleNamespace(open=_GuardedTar.open)
    try:
        yield
    finally:
        module.tarfile = theirs


def _holds_files(path: Path) -> bool:
    return path.is_dir() and any(not entry.name.endswith(".partial") for entry in path.iterdir())


class _Found(NamedTuple):
    """What one layout says: the folder to which paths are relative, and for each image its path and class id."""

    root: Path
    paths: list[str]
    ids: list[int]
    class_name: Callable[[int], str]
    boxes: Floats | None = None
    test: frozenset[int] | None = None  # class ids; the second half if not given


_Reader = Callable[[Path], _Found | None]
"""Reads a folder in one layout; ``None`` if it has no list (or no images) of this layout."""


def _load(
    name: str,
    title: str,
    root: str | os.PathLike[str],
    counts: Counts | None,
    layout: str,
    missing: str,
    inner: Sequence[str],
    listed: Sequence[_Reader],
    unlisted: Sequence[_Reader] = (),
) -> LabelledImages:
    """The result of the first reader that finds its lists and images in ``root``, or in one of the ``inner`` folders to
    which archives unpack; the first error if none does.

    Folders without a list show which images exist, not which should: beside a list that does not match they are used
    only if ``counts`` confirms that they are complete.
    """
    top = checked_root(root, title, layout)
    places = [place for place in (top, *(top / folder for folder in inner)) if place.is_dir()]
    complaint: LabelFileError | LayoutError | None = None
    for readers in (listed, unlisted):
        if complaint is not None and counts is None:
            break
        for place, read in itertools.product(places, readers):
            try:
                found = read(place)
                if found is not None:
                    return _checked(name, found, counts)
            except (LabelFileError, LayoutError) as error:
                complaint = complaint or error
    if complaint is None:
        raise wrong_layout(top, title, layout, missing)
    if layout in str(complaint):
        raise complaint
    raise type(complaint)(f"{complaint}\nExpected:\n{layout}") from complaint


def _checked(name: str, found: _Found, counts: Counts | None) -> LabelledImages:
    """The data set, if every file exists and the counts are right; class ids are renumbered from 0 in their order."""
    root, paths, listing = found.root, found.paths, Folders()
    absent = [path for path in paths if os.path.basename(path) not in listing.names((root / path).parent)]
    if absent:
        raise LayoutError(
            f"{root}: {len(absent):,} of {len(paths):,} images that the label files name are missing, the first is "
            f"{absent[0]}: unpack the archive again, or give the folder of one release alone"
        )
    known, labels = np.unique(np.array(found.ids), return_inverse=True)
    second_half = np.arange(len(known)) >= len(known) // 2
    tested = second_half if found.test is None else np.isin(known, list(found.test))
    if counts is not None:
        images = tested[labels]
        got = {"train": (int((~images).sum()), int((~tested).sum())), "test": (int(images.sum()), int(tested.sum()))}
        if got != dict(counts):
            parts = "; ".join(f"{part}: {i:,} images of {c:,} classes" for part, (i, c) in counts.items())
            had = "; ".join(f"{part}: {i:,} of {c:,}" for part, (i, c) in got.items())
            raise LayoutError(
                f"{root} is not the whole benchmark: expected {parts}; got {had}: get the original archive"
            )
    return LabelledImages(
        name,
        labels.astype(np.int64),
        tuple(found.class_name(int(number)) for number in known),
        frozenset(np.flatnonzero(tested).tolist()),
        root=root,
        paths=tuple(paths),
        boxes=found.boxes,
    )


def _cub_lists(place: Path) -> _Found | None:
    listed = _listed(place, "images.txt")
    if not listed.exists():
        return None
    names, classes = _keyed(listed, 2), _keyed(_listed(place, "image_class_labels.txt"), 2)
    if names.keys() != classes.keys():
        alone = sorted(names.keys() ^ classes.keys())
        raise LabelFileError(f"{place}: images.txt and image_class_labels.txt differ in {len(alone)} ids: {alone[:5]}")
    ids = [_class_id(classes[key][0], place / "image_class_labels.txt") for key in names]
    folders = {number: row[0].split("/")[0] for number, row in zip(ids, names.values(), strict=True)}
    boxes, file = None, place / "bounding_boxes.txt"
    if file.exists():
        corners = _keyed(file, 5)
        if absent := sorted(names.keys() - corners.keys()):
            raise LabelFileError(f"{file} lacks {len(absent)} ids of images.txt: {absent[:5]}")
        boxes = _boxes([corners[key] for key in names], file)
        boxes[:, 2:] += boxes[:, :2]
    return _Found(place, [f"images/{row[0]}" for row in names.values()], ids, folders.__getitem__, boxes)


def _class_folders(beginning: str = "") -> _Reader:
    """Reads only ``images``: the names of the classes in alphabetical order, which is how their lists number them."""

    def read(place: Path) -> _Found | None:
        found = sorted(_pictures_below(place / "images", Counter()))
        if not found or not all(re.match(beginning, name) for name, _ in found):
            return None
        paths = [f"images/{path}" for _, files in found for path in files]
        ids = [number for number, (_, files) in enumerate(found, 1) for _ in files]
        return _Found(place, paths, ids, lambda number: found[number - 1][0])

    return read


def _cars_consolidated(top: Path) -> _Found | None:
    listed = _listed(top, "cars_annos.mat")
    if not listed.exists():
        return None
    paths, ids, boxes = _annotations(listed, "relative_im_path")
    return _Found(top, paths, ids, _cars_names(listed), boxes)


def _cars_devkit(top: Path) -> _Found | None:
    kits = (top / "devkit", top / "car_devkit" / "devkit", top)
    kit = next((kit for kit in kits if _listed(kit, "cars_train_annos.mat").exists()), None)
    if kit is None:
        return None
    tests = (_listed(place, "cars_test_annos_withlabels.mat") for place in (top, kit))
    labelled = next((file for file in tests if file.exists()), None)
    if labelled is None:
        lacking = "cars_test_annos_withlabels.mat: the devkit's own cars_test_annos.mat has no classes"
        raise wrong_layout(top, "Cars196", CARS_LAYOUT, lacking)
    folders = (f"cars_{part}/cars_{part}" for part in ("train", "test"))
    folders = (name if (top / name).is_dir() else name.partition("/")[0] for name in folders)
    parts = [_annotations(file, "fname") for file in (_listed(kit, "cars_train_annos.mat"), labelled)]
    paths = [f"{folder}/{name}" for folder, part in zip(folders, parts, strict=True) for name in part[0]]
    names = _cars_names(_listed(kit, "cars_meta.mat"))
    return _Found(top, paths, [*parts[0][1], *parts[1][1]], names, np.concatenate([part[2] for part in parts]))


def _cars_kaggle(top: Path) -> _Found | None:
    lists = next((p for p in (top, top / "devkit") if _listed(p, "anno_train.csv").exists()), None)
    if lists is None:
        return None
    names = [line.strip().strip('"') for line in _text(_listed(lists, "names.csv")).splitlines() if line]
    data = "car_data/car_data" if (top / "car_data" / "car_data").is_dir() else "car_data"
    files = {part: _listed(lists, f"anno_{part}.csv") for part in ("train", "test")}
    rows = [(part, *row) for part, file in files.items() for row in _table(file, 6, separator=",")]
    ids = [_class_id(row[6].strip(), files[row[0]], len(names)) for row in rows]
    folders = [f"{data}/{row[0]}/{names[number - 1].replace('/', '-')}" for number, row in zip(ids, rows, strict=True)]
    paths = [f"{folder}/{row[1]}" for folder, row in zip(folders, rows, strict=True)]
    return _Found(top, paths, ids, lambda number: names[number - 1], _boxes([row[2:6] for row in rows], lists))


def _cars_names(path: Path) -> Callable[[int], str]:
    """The names of the classes from a file of the devkit; without them, their numbers."""
    names = np.atleast_1d(_mat(path).get("class_names", [])) if path.exists() else np.empty(0)
    return (lambda number: str(names[number - 1])) if len(names) else "class {}".format


def _mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        content: dict[str, Any] = loadmat(path, simplify_cells=True)
    except Exception as error:  # of the many kinds that scipy has for damaged files
        raise LabelFileError(f"{path} is not a Matlab 5 file ({type(error).__name__}: {error})") from error
    return content


def _annotations(path: Path, name: str) -> tuple[list[str], list[int], Floats]:
    """Images, class ids and boxes in a file of the devkit that calls images ``name``."""
    rows = np.atleast_1d(_mat(path).get("annotations", [])).tolist()
    sides = [f"bbox_{side}" for side in ("x1", "y1", "x2", "y2")]
    wanted, had = {name, "class", *sides}, set(rows[0]) if rows and isinstance(rows[0], dict) else set()
    if not wanted <= had:
        raise LabelFileError(f"{path}: annotations with the fields {sorted(wanted)} is expected, got {sorted(had)}")
    boxes = _boxes([[row[side] for side in sides] for row in rows], path)
    return [str(row[name]) for row in rows], [int(row["class"]) for row in rows], boxes


def _sop_lists(place: Path) -> _Found | None:
    if not _listed(place, "Ebay_train.txt").exists():
        return None
    images = place.parent if place.name == "Info_Files" else place
    prefix = "images/" if (images / "images").is_dir() else ""
    paths: list[str] = []
    ids: list[int] = []
    parts: list[frozenset[int]] = []
    for name in ("Ebay_train.txt", "Ebay_test.txt"):
        rows = _table(_listed(place, name), 4, header="image_id class_id super_class_id path")
        found = [_class_id(row[1], place / name) for row in rows]
        ids += found
        paths += [prefix + row[3] for row in rows]
        parts.append(frozenset(found))
    if parts[0] & parts[1]:
        raise LayoutError(f"{place}: {len(parts[0] & parts[1])} classes are in both lists; classes must not be shared")
    return _Found(images, paths, ids, str, test=parts[1])


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


def _pictures_below(top: Path, passed_over: Counter[str]) -> list[tuple[str, list[str]]]:
    """Folders with pictures at any depth, and the pictures relative to ``top``; other files are counted."""
    listing = Folders()
    found = []
    for folder in subfolders(top):
        pictures = []
        for place in _all_folders(folder, (identity(top),), passed_over):
            images = listing.images(place)
            within = {inner.name for inner in subfolders(place)}
            passed_over.update(endings(listing.names(place) - set(images) - within))
            pictures += [f"{place.relative_to(top).as_posix()}/{image}" for image in images]
        if pictures:
            found.append((folder.name, pictures))
    return found


def _text(path: Path) -> str:
    if not path.exists():
        raise LayoutError(problem(path.name, f"in {path.parent}", "no such file", "unpack the whole archive"))
    return path.read_text(encoding="utf-8")


def _table(path: Path, columns: int, *, separator: str | None = None, header: str = "") -> list[list[str]]:
    """The cells of each line; blank lines do not count."""
    lines = [(n, line.split(separator)) for n, line in enumerate(_text(path).splitlines(), 1) if line.strip()]
    if header and (not lines or lines.pop(0)[1] != header.split()):
        raise LabelFileError(f"{path}, line 1: expected the header {header!r}")
    for number, cells in lines:
        if len(cells) != columns:
            raise LabelFileError(f"{path}, line {number}: {columns} columns expected, got {len(cells)}")
    return [cells for _, cells in lines]


def _keyed(path: Path, columns: int) -> dict[str, list[str]]:
    """Rows by their first column."""
    table = _table(path, columns)
    rows = {row[0]: row[1:] for row in table}
    if len(rows) < len(table):
        ((twice, _),) = Counter(row[0] for row in table).most_common(1)
        raise LabelFileError(f"{path}: id {twice} occurs twice")
    return rows


def _class_id(text: str, path: Path, most: int | None = None) -> int:
    if not re.fullmatch(r"[1-9]\d*", text) or (most is not None and int(text) > most):
        end = "" if most is None else f" to {most}"
        raise LabelFileError(f"{path}: class ids are whole numbers from 1{end}, got {text!r}")
    return int(text)


def _boxes(rows: Sequence[Sequence[Any]], path: Path) -> Floats:
    """Four numbers of each row, shape ``(N, 4)``."""
    for row in rows:
        try:
            [float(cell) for cell in row]
        except ValueError:
            raise LabelFileError(f"{path}: the sides of a box are numbers, got {' '.join(row)!r}") from None
    return np.array(rows, dtype=np.float32)


def _all_folders(folder: Path, above: tuple[tuple[int, int], ...], passed_over: Counter[str]) -> list[Path]:
    """``folder`` and its subfolders at any depth; a link back to one ``above``, which would never end, is counted."""
    own = identity(folder)
    if own in above:
        passed_over["links in a circle"] += 1
        return []
    inside = [inner for each in subfolders(folder) for inner in _all_folders(each, (*above, own), passed_over)]
    return sorted([folder, *inside], key=lambda place: natural(str(place)))
