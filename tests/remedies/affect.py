"""Remedies of the data sets of faces: their files, lists, splits and batches."""

from __future__ import annotations

import dataclasses
import functools
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image, ImageFile

from adaptive_margin.affect import (
    Split,
    check_apart,
    concatenate,
    group_folds,
    group_holdout,
    load_afew_va,
    load_aff_wild,
    load_aff_wild2,
    load_aff_wild2_list,
    load_affectnet_2017,
    load_affectnet_reduced,
    stratified_holdout,
)
from adaptive_margin.affect.aff_wild import read_box, read_pts
from adaptive_margin.affect.aff_wild2 import edition_labels, read_labels
from adaptive_margin.affect.affectnet_reduced import read_landmarks
from adaptive_margin.affect.batches import CachedBatches
from adaptive_margin.affect.check import check, detect
from adaptive_margin.affect.records import RecordBuilder, Records
from adaptive_margin.affect.report import LoadedSplit
from adaptive_margin.affect.splits import training_splits
from adaptive_margin.command import main
from adaptive_margin.images.cache import ImageCache
from adaptive_margin.images.decode import check_decoder, read_image, square_box
from adaptive_margin.images.transforms import centre_crops, crop_flip, normalise, paper_transform
from adaptive_margin.messages import allowed

from ..affect.export import (
    export_afew_va,
    export_aff_wild,
    export_aff_wild2,
    export_affectnet_2017,
    export_affectnet_reduced,
)
from ..affect.faces import numbered, samples
from ..affect.test_splits import people, unknown
from .following import follow

SKIP = "0 raises at the first, 5 skips up to five, 0.01 up to one in a hundred"
PICTURES = np.zeros((6, 32, 32, 3), dtype=np.uint8)
LABELS = np.zeros((6, 2), dtype=np.float32)
BYTES = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
PEOPLE = people([3, 3, 3])


@functools.cache
def loaded() -> LoadedSplit:
    """AffectNet's training split of four faces; the files are gone."""
    with tempfile.TemporaryDirectory() as folder:
        export_affectnet_2017(Path(folder), samples(4))
        return load_affectnet_2017(folder, "train")


def affectnet(folder: Path, **options: Any) -> bool:
    root = folder / "AffectNet"
    if not root.exists():
        export_affectnet_2017(root, [*samples(4), *samples(2, split="validation", start=20)])
    return load_affectnet_2017(root, **{"split": "train", **options}).report.rows_used == 4


def reduced(folder: Path, **options: Any) -> bool:
    root = folder / "reduced"
    if not root.exists():
        export_affectnet_reduced(root, samples(4))
    return load_affectnet_reduced(root, "train", index_dir=folder, **options).report.rows_used == 4


def relisted(folder: Path, change: Callable[[str], str]) -> bool:
    """AffectNet's list, with a change."""
    affectnet(folder)
    path = next(folder.rglob("training.csv"))
    text = path.read_text()
    path.write_text(change(text))
    try:
        return affectnet(folder)
    finally:
        path.write_text(text)


def landmarks(folder: Path, numbers: np.ndarray | None) -> bool:
    reduced(folder)
    path = next(folder.rglob("0_lnd.npy"))
    whole = path.read_bytes()
    if numbers is None:
        path.unlink()
    else:
        np.save(path, numbers)
    try:
        return read_landmarks(load_affectnet_reduced(folder / "reduced", "train").records[0]).shape == (68, 2)
    finally:
        path.write_bytes(whole)


def restored_landmarks(folder: Path) -> bool:
    return read_landmarks(load_affectnet_reduced(folder / "reduced", "train").records[0]).shape == (68, 2)


def afew(folder: Path, **options: Any) -> bool:
    root = folder / "AFEW-VA"
    if not root.exists():
        export_afew_va(root, samples(4, videos=2, people=2))
    return load_afew_va(root, **options).report.rows_used == 4


def clip_twice(folder: Path) -> None:
    afew(folder)
    export_afew_va(folder / "AFEW-VA", samples(4, videos=2, people=2), layout="parts")
    afew(folder)


def clip_once(folder: Path) -> bool:
    for path in (folder / "AFEW-VA").glob("00?"):
        shutil.rmtree(path)
    return afew(folder)


def exchanged(folder: Path) -> bool:
    """Two clips' label files, each where the other belongs; once more, and they are back."""
    if not (folder / "AFEW-VA").exists():
        afew(folder)
    one, two = (folder / "AFEW-VA" / name / f"{name}.json" for name in ("001", "002"))
    texts = one.read_text(), two.read_text()
    one.write_text(texts[1])
    two.write_text(texts[0])
    return afew(folder)


def wild(folder: Path, **options: Any) -> bool:
    root = folder / "Aff-Wild"
    if not root.exists():
        export_aff_wild(root, samples(6, videos=2))
    found = load_aff_wild(root, **{"frames_dir": folder / "frames", **options})
    return 0 < found.report.rows_used <= 6


def held_out(folder: Path) -> bool:
    wild(folder)
    records = load_aff_wild(folder / "Aff-Wild", frames_dir=folder / "frames").records
    return set(group_holdout(records, 0.5).parts) == {"train", "test"}


def without_labels(folder: Path) -> None:
    wild(folder)
    for path in (folder / "Aff-Wild" / "annotations").rglob("*.txt"):
        path.rename(path.with_suffix(".part"))
    wild(folder)


def unpacked_again(folder: Path) -> bool:
    shutil.rmtree(folder / "Aff-Wild")
    return wild(folder)


def points(folder: Path, text: str, box: bool = False) -> bool:
    path = folder / "000001.pts"
    path.write_text(text)
    return read_box(path) == (10, 20, 30, 40) if box else read_pts(path).shape == (2, 2)


BOX = "version: 1\nn_points: 2\n{\n10 20\n30 40\n}\n"


def wild2(folder: Path, *editions: str, **options: Any) -> bool:
    root = folder / "Aff-Wild2"
    for edition in editions if not root.exists() else ():
        export_aff_wild2(root, samples(4, videos=1), edition=edition)
    return load_aff_wild2(root, "train", **options).report.rows_used == 4


EDITIONS = ("3rd ABAW Annotations", "6th ABAW Annotations")


def edition(folder: Path, name: str) -> Path:
    if not folder.joinpath("Aff-Wild2").exists():
        for each in EDITIONS:
            export_aff_wild2(folder / "Aff-Wild2", samples(4, videos=1), edition=each)
    return edition_labels(folder / "Aff-Wild2", name, "train")


def those_there(folder: Path) -> bool:
    """Each of the editions that the message names, as it names them."""
    try:
        edition(folder, "4th")
    except ValueError as error:
        names = re.split(r", ", str(error).rpartition("in the root are ")[2])
    return len(names) == 2 and all(edition(folder, name).is_dir() for name in names)


def as_listed(folder: Path) -> bool:
    """Each of the editions that the loader's message names, as it names them."""
    try:
        wild2(folder)
    except ValueError as error:
        names = re.findall(r"\d\w\w ABAW[^,;]*", str(error).partition(", got ")[2])
    return len(names) == 2 and all(wild2(folder, annotations=name) for name in names)


def of_header(folder: Path, header: str) -> bool:
    path = folder / "v1.txt"
    path.write_text(f"{header}\n0.1,0.2\n")
    return read_labels(path)[0].tolist() == [[0.1, 0.2]]


def listed(folder: Path, header: str, place: str) -> bool:
    wild2(folder, "6th ABAW Annotations")
    path = folder / "list.csv"
    path.write_text(f"{header}\n{place},0.5,-0.5\n")
    return load_aff_wild2_list(folder / "Aff-Wild2", path, split="mine").report.rows_used == 1


LIST = "image_location,valence,arousal"


def batches(images: Any = PICTURES, labels: Any = LABELS, **options: Any) -> bool:
    given = {"batch_size": 2, "train": False, "size": 32, "prefetch": 0, **options}
    return sum(len(batch.images) for batch in CachedBatches(images, labels, **given)) > 0


def epoch(number: int) -> bool:
    made = CachedBatches(PICTURES, LABELS, batch_size=2, train=True, size=32, prefetch=0)
    return len(list(made.epoch(number))) == 3


def cached(folder: Path, rows: int = 4, size: Any = 32) -> bool:
    export_affectnet_2017(folder / "AffectNet", samples(4))
    records = load_affectnet_2017(folder / "AffectNet", "train").records
    made = ImageCache.open(records.subset(range(rows)), folder / "cache", size=size, workers=1)
    return made.images.shape == (rows, size, size, 3)


def decoder(truncated: bool) -> bool:
    with mock.patch.object(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated):
        return check_decoder() is None


def picture(folder: Path, most: int | None = None) -> bool:
    """A picture, where Pillow takes as many pixels."""
    path = folder / "face.png"
    Image.fromarray(numbered(3)).save(path)
    with mock.patch.object(Image, "MAX_IMAGE_PIXELS", most):
        return read_image(path).size == (64, 64)


def checked(folder: Path, *words: str) -> bool:
    if not (folder / "whole").exists():
        export_affectnet_2017(folder / "whole", [*samples(26), *samples(2, split="validation", start=30)])
    return main(["check", str(folder / "whole"), "--decode", "1", *words]) == 0


def exported(export: Any, folder: Path, faces: Any) -> bool:
    return bool(export(folder / f"copy {len(list(folder.iterdir()))}", faces))


def changed(faces: Any, **options: Any) -> Any:
    """The faces, the last of them changed."""
    return [*faces[:-1], dataclasses.replace(faces[-1], **options)]


VIDEOS = samples(4, videos=2)


def records(*keys: str) -> Records:
    rows = RecordBuilder("mine", Path("/data"))
    for key in keys:
        rows.add(key, f"{key}.png", (0.0, 0.0))
    return rows.build()


def parts(**units: tuple[str, ...]) -> bool:
    return Split("mine", "by hand", "video", "video", 0, units).parts == units


def written(folder: Path, old: str = "", new: str = "") -> bool:
    path = folder / "split.json"
    split = group_holdout(PEOPLE, 0.3)
    split.write(path)
    path.write_text(path.read_text().replace(old, new))
    return Split.read(path) == split


def deep(folder: Path, kind: type) -> bool:
    """A picture of these numbers: no float says which of them is white."""
    Image.fromarray((np.arange(64 * 64).reshape(64, 64) % 256 - (kind == np.float32)).astype(kind)).save(
        folder / "a.tif"
    )
    return read_image(folder / "a.tif").size == (64, 64)


def grey(folder: Path, rgb: bool) -> bool:
    path = folder / "grey.png"
    Image.fromarray(numbered(3)).convert("L").save(path)
    image = read_image(path) if rgb else Image.open(path)
    return paper_transform(image, train=False, resize=48, size=40).shape == (3, 40, 40)


CASES = [
    # affectnet.py, affectnet_reduced.py
    follow(
        "range(9) has all labelled faces, range(8) the eight emotions",
        lambda folder: affectnet(folder, expressions=[12]),
        lambda folder: affectnet(folder, expressions=range(9)),
        lambda folder: affectnet(folder, expressions=range(8)),
    ),
    follow(
        "use the list as it was released",
        lambda folder: relisted(folder, lambda text: text.replace("arousal", "excitement", 1)),
        affectnet,
    ),
    follow(
        "use the list as it was released",
        lambda folder: relisted(folder, lambda text: text + "a" * 200_000 + "\n"),
        affectnet,
    ),
    follow(
        "range(8) has the eight emotions",
        lambda folder: reduced(folder, expressions=[]),
        lambda folder: reduced(folder, expressions=range(8)),
    ),
    follow("restore the file", lambda folder: landmarks(folder, None), restored_landmarks),
    follow("restore the file", lambda folder: landmarks(folder, np.zeros(4)), restored_landmarks),
    # afew_va.py
    follow("remove one of the two", clip_twice, clip_once),
    follow(
        "similar names are 'person 1'",
        lambda folder: afew(folder, same_actor=[("person 0", "preson 1")]),
        lambda folder: afew(folder, same_actor=[("person 0", "person 1")]),
    ),
    follow(
        "known names are 'person 0', 'person 1'",
        lambda folder: afew(folder, same_actor=[("person 0", " ")]),
        lambda folder: afew(folder, same_actor=[("person 0", "person 1")]),
    ),
    follow(
        "1.3 leaves some forehead", lambda folder: afew(folder, margin=0.5), lambda folder: afew(folder, margin=1.3)
    ),
    follow("move the file to the folder of its clip", exchanged, exchanged),
    # aff_wild.py, video.py
    follow("restore it", lambda folder: points(folder, BOX[:30]), lambda folder: points(folder, BOX)),
    follow(
        "restore it",
        lambda folder: points(folder, BOX.replace("30", "10"), box=True),
        lambda folder: points(folder, BOX, box=True),
    ),
    follow(
        "its labels were never released: use group_holdout",
        lambda folder: wild(folder, split="test"),
        held_out,
    ),
    follow("1 keeps all frames", lambda folder: wild(folder, every=0), lambda folder: wild(folder, every=1)),
    follow("unpack the archive", without_labels, unpacked_again),
    # aff_wild2.py
    follow("in the root are ", lambda folder: edition(folder, "4th"), those_there),
    follow(
        "the root has none either: unpack them there",
        lambda folder: edition_labels(folder, "4th", "train"),
        lambda folder: edition(folder, EDITIONS[0]).is_dir(),
    ),
    follow(
        "choose one with annotations= (training: --annotations)",
        lambda folder: wild2(folder, *EDITIONS),
        as_listed,
    ),
    follow(
        "1 keeps all frames",
        lambda folder: wild2(folder, EDITIONS[0], every=0),
        lambda folder: wild2(folder, every=1),
    ),
    follow(
        "use the file as released",
        lambda folder: of_header(folder, "expression"),
        lambda folder: of_header(folder, "valence,arousal"),
    ),
    follow(
        "use the list as released",
        lambda folder: listed(folder, "image,valence,arousal", "v0/00002.jpg"),
        lambda folder: listed(folder, LIST, "v0/00002.jpg"),
    ),
    follow(
        "use the list as released",
        lambda folder: listed(folder, LIST, "v0/first.jpg"),
        lambda folder: listed(folder, LIST, "v0/00002.jpg"),
    ),
    follow(
        "unpack the rest of the data set",
        lambda: training_splits(dataclasses.replace(people([3, 3, 3, 3]), dataset="afew-va")),
        lambda: training_splits(dataclasses.replace(people([3, 3, 3, 3, 3]), dataset="afew-va")),
    ),
    # batches.py
    follow(
        "cache decoded bytes and normalise in the batch",
        lambda: batches(PICTURES.astype(np.float32)),
        lambda: batches(PICTURES),
    ),
    follow("pass squares", lambda: batches(PICTURES[:, :9]), lambda: batches(PICTURES)),
    follow("pass squares in RGB", lambda: batches(PICTURES[..., :1]), lambda: batches(PICTURES)),
    follow(
        "pass cache.slots or a part of it",
        lambda: batches(slots=[0, 9], labels=LABELS[:2]),
        lambda: batches(slots=[0, 5], labels=LABELS[:2]),
    ),
    follow("pass records.labels of the same rows", lambda: batches(labels=LABELS[:3]), lambda: batches(labels=LABELS)),
    follow("choose a number in that range", lambda: batches(batch_size=0), lambda: batches(batch_size=1)),
    follow(
        "pass torch.distributed.get_rank()",
        lambda: batches(rank=2, world_size=2),
        *(lambda rank=rank: batches(rank=rank, world_size=2) for rank in (0, 1)),
    ),
    follow(
        "keep the last batch, or make batches smaller (training: --batch-size)",
        lambda: batches(batch_size=8, drop_last=True),
        lambda: batches(batch_size=8, drop_last=False),
        lambda: batches(batch_size=6, drop_last=True),
    ),
    follow("take them from the checkpoint", lambda: epoch(-1), lambda: epoch(3)),
    # check.py
    follow(
        "pass the folder of a data set",
        lambda folder: detect(folder / "none"),
        lambda folder: checked(folder) and detect(folder / "whole") == ["affectnet-2017"],
    ),
    follow(
        "pass the folder of a data set",
        lambda folder: main(["check", str(folder / "none")]),
        checked,
    ),
    follow(
        "None decodes all",
        lambda folder: check(folder, decode=-1),
        lambda folder: affectnet(folder) and bool(check(folder / "AffectNet", decode=None).to_dict()),
    ),
    follow(
        "pass a number of threads",
        lambda folder: checked(folder, "--workers", "0"),
        lambda folder: checked(folder, "--workers", "2"),
    ),
    # export.py
    follow(
        "pass some",
        lambda folder: exported(export_affectnet_2017, folder, []),
        lambda folder: exported(export_affectnet_2017, folder, samples(1)),
    ),
    follow(
        "convert it to RGB bytes",
        lambda folder: exported(export_affectnet_2017, folder, changed(samples(2), image=numbered(1) / 255)),
        lambda folder: exported(export_affectnet_2017, folder, changed(samples(2), image=numbered(1))),
    ),
    follow(
        "this layout is made of videos: name one",
        lambda folder: exported(export_aff_wild2, folder, changed(VIDEOS, video=None)),
        lambda folder: exported(export_aff_wild2, folder, changed(VIDEOS, video="v9")),
    ),
    follow(
        "give the videos of each split their own names",
        lambda folder: exported(export_aff_wild2, folder, changed(VIDEOS, split="validation")),
        lambda folder: exported(export_aff_wild2, folder, changed(VIDEOS, split="validation", video="v9")),
    ),
    follow(
        "resize them first",
        lambda folder: exported(export_aff_wild, folder, changed(VIDEOS, image=numbered(1, 96))),
        lambda folder: exported(export_aff_wild, folder, changed(VIDEOS, image=numbered(1, 64))),
    ),
    # image_cache.py, images.py
    follow("look at the loader's report", lambda folder: cached(folder, rows=0), cached),
    follow("the paper uses 256", lambda folder: cached(folder, size=0), lambda folder: cached(folder, size=256)),
    follow("set it back", lambda: decoder(True), lambda: decoder(False)),
    follow(
        "raise PIL.Image.MAX_IMAGE_PIXELS if it can be trusted",
        lambda folder: picture(folder, most=3000),
        lambda folder: picture(folder, most=5000),
    ),
    follow(
        "drop faces without them",
        lambda: square_box(np.empty((0, 2)), 1.3),
        lambda: square_box(np.array([[0.0, 0.0], [2.0, 2.0]]), 1.0) == (0, 0, 2, 2),
    ),
    follow(
        "drop faces without landmarks",
        lambda: square_box(np.ones((5, 2)), 1.3),
        lambda: square_box(np.array([[0.0, 0.0], [2.0, 2.0]]), 1.0) == (0, 0, 2, 2),
    ),
    # layout.py
    follow("expected:\n", lambda folder: load_affectnet_2017(folder / "none", "train"), affectnet),
    follow(
        "pick one of them",
        lambda folder: affectnet(folder, split="test"),
        lambda folder: affectnet(folder, split="train"),
    ),
    # records.py
    follow(
        "give every column one entry per row",
        lambda: dataclasses.replace(PEOPLE, labels=PEOPLE.labels[:2]),
        lambda: len(dataclasses.replace(PEOPLE, labels=PEOPLE.labels[:9])) == 9,
    ),
    follow("name each row once", lambda: records("a", "b", "a"), lambda: len(records("a", "b", "c")) == 3),
    follow(
        "give one bool per row",
        lambda: PEOPLE.subset(np.array([True, False])),
        lambda: len(PEOPLE.subset(np.arange(9) < 2)) == 2,
    ),
    follow(
        "look at len(records)",
        lambda: PEOPLE.subset([0, 9]),
        lambda: len(PEOPLE.subset([0, len(PEOPLE) - 1])) == 2,
    ),
    follow(
        "use a data set that says who is in each picture",
        lambda: unknown().identity_codes(),
        lambda: PEOPLE.identity_codes().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2],
    ),
    follow(
        "pass what the loaders returned", lambda: concatenate([]), lambda: len(concatenate([loaded().records])) == 4
    ),
    follow(
        "keep data sets apart: their labels differ",
        lambda: concatenate([PEOPLE, unknown()]),
        lambda: [len(concatenate([each])) for each in (PEOPLE, unknown())] == [9, 10],
    ),
    # report.py
    follow(SKIP, lambda: allowed("5", 100), *(lambda n=n: allowed(n, 100) == int(n) for n in (0, 5))),
    follow(SKIP, lambda: allowed(-1, 100), *(lambda n=n: allowed(n, 100) == n for n in (0, 5))),
    follow(SKIP, lambda: allowed(1.5, 100), lambda: allowed(0.01, 100) == 1),
    follow(
        "count all",
        lambda: dataclasses.replace(loaded().report, rows_read=9),
        lambda: dataclasses.replace(loaded().report, rows_read=4).rows_read == 4,
    ),
    follow(
        "use the records that were cached",
        lambda: loaded().without({4: "undecodable"}),
        lambda: len(loaded().without({1: "undecodable"}).records) == 3,
    ),
    follow(
        "look at the label file and the selection of expressions",
        lambda folder: affectnet(folder, expressions=[9]),
        lambda folder: affectnet(folder, expressions=range(9)),
    ),
    # splits.py
    follow(
        "stratified_holdout keeps only pictures apart, and says so",
        lambda: group_holdout(unknown(), unit="identity"),
        lambda: stratified_holdout(unknown(), 0.2).independent == "picture",
    ),
    follow(
        "make fewer parts, or larger ones",
        lambda: parts(train=("a", "b"), test=()),
        lambda: parts(train=("a", "b")),
        lambda: parts(train=("a",), test=("b",)),
    ),
    follow("make a new split", lambda: parts(train=("a",), test=("a",)), lambda: parts(train=("a",), test=("b",))),
    follow(
        "make a split for each data set",
        lambda: group_holdout(PEOPLE, 0.3).rows(unknown()),
        lambda: len(stratified_holdout(unknown(), 0.2).rows(unknown())) == 2,
    ),
    follow(
        "the file belongs to other rows: make a new split",
        lambda: group_holdout(PEOPLE, 0.3).rows(people([3, 3, 3, 3])),
        lambda: len(group_holdout(people([3, 3, 3, 3]), 0.3).rows(people([3, 3, 3, 3]))) == 2,
    ),
    follow(
        "name the parts to test on",
        lambda: group_folds(PEOPLE, 3).train_test(PEOPLE, "test"),
        lambda: (
            [*map(len, group_folds(PEOPLE, 3).train_test(PEOPLE, next(iter(group_folds(PEOPLE, 3).parts))))] == [6, 3]
        ),
    ),
    follow(
        "update adaptive-margin, or make a new split",
        lambda folder: written(folder, '"format": 1', '"format": 99'),
        written,
    ),
    follow("write it with Split.write", lambda folder: written(folder, "digest", "sum"), written),
    follow("make a new split", lambda folder: written(folder, '"v1"', '"v9"'), written),
    follow(
        "split anew",
        lambda: check_apart(PEOPLE, {"train": [0, 1, 2, 3], "test": [4, 5, 6, 7, 8]}, "identity"),
        lambda: check_apart(PEOPLE, group_holdout(PEOPLE, 0.3).rows(PEOPLE), "identity") is None,
    ),
    follow(
        "choose a number in that range",
        lambda: group_folds(PEOPLE, 1),
        lambda: len(group_folds(PEOPLE, 2).parts) == 2,
        lambda: len(group_folds(PEOPLE, 3).parts) == 3,
    ),
    follow(
        "0.2 holds out a fifth of the rows",
        lambda: group_holdout(people([2] * 5), 20),
        lambda: len(group_holdout(people([2] * 5), 0.2).rows(people([2] * 5))["test"]) == 2,
    ),
    follow(
        "pass records of more: there is nothing to hold out",
        lambda: group_holdout(people([8]), 0.2),
        lambda: len(group_holdout(people([8, 8]), 0.2).parts) == 2,
    ),
    # transforms.py
    follow(
        "the paper resizes to 256 and crops 224",
        lambda: paper_transform(Image.fromarray(numbered(1)), train=False, resize=224, size=256),
        lambda: paper_transform(Image.fromarray(numbered(1)), train=False, resize=256, size=224).shape == (3, 224, 224),
    ),
    follow(
        "normalise once, from the decoded bytes",
        lambda: normalise(normalise(BYTES)),
        lambda: normalise(BYTES).dtype == torch.float32,
    ),
    follow(
        "permute (B, H, W, 3) with images.permute(0, 3, 1, 2)",
        lambda: normalise(torch.from_numpy(PICTURES)),
        lambda: normalise(torch.from_numpy(PICTURES).permute(0, 3, 1, 2)).shape == (6, 3, 32, 32),
    ),
    follow(
        "draw len(images) of them",
        lambda: crop_flip(BYTES, centre_crops(3, 32, 24), 24),
        lambda: crop_flip(BYTES, centre_crops(len(BYTES), 32, 24), 24).shape == (2, 3, 24, 24),
    ),
    follow(
        "save it with 8 or 16 bits",
        lambda folder: deep(folder, np.float32),
        lambda folder: deep(folder, np.uint8),
        lambda folder: deep(folder, np.uint16),
    ),
    follow("open it with read_image", lambda folder: grey(folder, rgb=False), lambda folder: grey(folder, rgb=True)),
    follow(
        "or leave per_person out",
        lambda: batches(train=True, per_person=2),
        lambda: batches(train=True, per_person=2, people=np.arange(len(LABELS)) // 2),
        lambda: batches(train=True),
    ),
    follow(
        "a batch holds whole hands of pictures",
        lambda: batches(batch_size=3, train=True, per_person=2, people=np.arange(len(LABELS))),
        lambda: batches(batch_size=4, train=True, per_person=2, people=np.arange(len(LABELS))),
    ),
]
