"""The training, validation and test parts of a run, which share no person, or no unit that the data set identifies.

| data set | test | validation | kept separate |
|---|---|---|---|
| faces | 15% of the people | 15% | people |
| affectnet, affectnet-reduced | the published validation set, as is usual | 2% of training | pictures |
| afew-va | one of five folds | 10% of the rest | actors |
| aff-wild | 20% of the videos | 10% of the rest | videos |
| aff-wild2 | the published validation set | 10% of training | source videos |
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..affect import (
    CachedBatches,
    LoadedSplit,
    Records,
    Split,
    check_apart,
    load_afew_va,
    load_aff_wild,
    load_aff_wild2,
    load_affectnet_2017,
    load_affectnet_reduced,
)
from ..affect.aff_wild2 import edition_labels
from ..affect.records import codes
from ..affect.splits import training_splits, units_of
from ..faces import FacesDataset
from ..images.cache import ImageCache
from ..images.errors import LayoutError
from ..images.image_list import Bytes, Integers
from ..messages import problem, shorten
from ..training.world import World
from .config import EmotionConfig

DATA_OPTIONS = (
    "dataset",
    "root",
    "cache",
    "skip_unreadable",
    "resize",
    "split_seed",
    "fold",
    "every",
    "expressions",
    "crop",
    "same_actor",
    "annotations",
    "people",
    "images_per_person",
    "person_effect",
    "disturb",
)
"""The options that :func:`load_data` uses: runs that agree in them can share its result."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """Faces of one part, in order.

    Attributes:
        images: decoded, uint8, shape ``(slots, H, H, 3)``, possibly more than those of this part.
        slots: the index of each row's image, shape ``(N,)``.
        labels: (valence, arousal), float32, shape ``(N, 2)``.
        people: number of each row's person, or of the unit that stands for one, shape ``(N,)``; −1 if unknown.
        identity: the meaning of such a number: ``"person"``, ``"actor"``, ``"video"`` or ``"source video"``;
            ``"picture"`` if people are not identified.
        videos: name of each row's video; None for single images.
        frames: number in the video, shape ``(N,)``; −1 for single images.
    """

    images: Bytes
    slots: Integers
    labels: npt.NDArray[np.float32]
    people: Integers
    identity: str
    videos: tuple[str | None, ...]
    frames: Integers

    def __len__(self) -> int:
        return len(self.slots)

    def picture(self, row: int) -> npt.NDArray[np.uint8]:
        """The picture of a row, uint8, ``(H, H, 3)``."""
        picture: npt.NDArray[np.uint8] = self.images[self.slots[row]]
        return picture

    def batches(self, **options: Any) -> CachedBatches:
        """Batches of this part; see :class:`~adaptive_margin.affect.CachedBatches`."""
        return CachedBatches(self.images, self.labels, slots=self.slots, **options)

    def check_people(self, needed: str) -> None:
        """Raises a ``ValueError`` unless it is known who is in every picture; ``needed`` says what for."""
        unknown = int((self.people < 0).sum())
        if self.identity == "picture" or unknown:
            anonymous = self.identity == "picture"
            got = "a data set that does not identify people" if anonymous else f"{unknown} rows without one"
            remedy = "use faces, afew-va, aff-wild or aff-wild2, or leave it out"
            raise ValueError(problem(f"people, for {needed},", "known for every row", got, remedy))

    def take(self, rows: Integers) -> Part:
        """Some of the rows."""
        columns = {name: getattr(self, name)[rows] for name in ("slots", "labels", "people", "frames")}
        return dataclasses.replace(self, videos=tuple(self.videos[row] for row in rows.tolist()), **columns)


@dataclass(frozen=True, eq=False, kw_only=True)
class EmotionData:
    """The three parts, how they were divided, and what happened to every row.

    Attributes:
        train: the training part.
        val: the validation part, for decisions.
        test: the test part, for the reported figures.
        splits: file name → the split to write there.
        independent: the units that the parts do not share, in words.
        reports: what happened to every row, as text, one for each loaded split. Pictures that could not be decoded are
            counted with the rows that the loader dropped, and all of them are named at the end.
    """

    train: Part
    val: Part
    test: Part
    splits: Mapping[str, Split]
    independent: str
    reports: tuple[str, ...] = field(default=())


def check_root(config: EmotionConfig) -> None:
    """Raises what :func:`load_data` would for a root without the data set, before any image is decoded.

    Aff-Wild is left to that function: reading its labels extracts frames.
    """
    if config.dataset not in ("faces", "aff-wild"):
        loaded = _load(config, "all" if config.dataset == "afew-va" else "train")
        training_splits(loaded.records, fold=config.fold, seed=config.split_seed)


def load_data(config: EmotionConfig, world: World | None = None) -> EmotionData:
    """Loads, decodes (once, into the cache) and divides a data set.

    Raises:
        LayoutError, LabelFileError, UnreadableError, CacheSpaceError: from the loaders and the cache; each message says
            what was expected.
    """
    if config.dataset == "faces":
        return _faces(config)
    world = world or World()
    if config.dataset in ("affectnet", "affectnet-reduced", "aff-wild2"):
        loaded, tested = (_load(config, split) for split in ("train", "validation"))
        (cache, report), (test_cache, test_report) = _cache(loaded, config, world), _cache(tested, config, world)
        _, val_split = training_splits(cache.records, seed=config.split_seed)
        return _of_two(cache, test_cache, val_split, (report, test_report))
    cache, report = _cache(_load(config, "all" if config.dataset == "afew-va" else "train"), config, world)
    split, val_split = training_splits(cache.records, fold=config.fold, seed=config.split_seed)
    assert split is not None
    rest, test = split.train_test(cache.records, f"fold{config.fold}" if config.dataset == "afew-va" else "test")
    within = val_split.rows(cache.records.subset(rest))
    parts = {"train": rest[within["train"]], "val": rest[within["test"]], "test": test}
    check_apart(cache.records, parts, split.unit)
    everything = _part(cache)
    return EmotionData(
        **{name: everything.take(rows) for name, rows in parts.items()},
        splits={"test.json": split, "validation.json": val_split},
        independent=split.independent,
        reports=(report,),
    )


def _faces(config: EmotionConfig) -> EmotionData:
    sets = {
        name: FacesDataset(
            config.people,
            config.images_per_person,
            size=config.resize,
            seed=config.split_seed,
            split=name,
            disturb=config.disturb,
            person_effect=config.person_effect,
            cache=_cache_folder(config),
        )
        for name in ("train", "val", "test")
    }
    parts = {
        name: Part(
            images=faces.images,
            slots=np.arange(len(faces)),
            labels=faces.av,
            people=faces.person,
            identity="person",
            videos=(None,) * len(faces),
            frames=np.full(len(faces), -1),
        )
        for name, faces in sets.items()
    }
    split = Split(
        dataset="faces",
        protocol="70, 15 and 15% of the people",
        unit="identity",
        independent="person",
        seed=config.split_seed,
        parts={name: tuple(str(person) for person in faces.people) for name, faces in sets.items()},
    )
    return EmotionData(**parts, splits={"split.json": split}, independent="person", reports=())


def _cache_folder(config: EmotionConfig) -> Path:
    return Path(config.cache or Path(config.output).parent / "cache")


def _load(config: EmotionConfig, split: str) -> LoadedSplit:
    """One split of the data set, from its own loader. Nothing is written to the root.

    Frames of Aff-Wild are extracted to a folder in the cache, unless the root has them all; so is the index of the
    reduced AffectNet.
    """
    root = str(config.root)
    chosen = {name: value for name in ("expressions", "crop") if (value := getattr(config, name)) is not None}
    options: dict[str, Any] = {"split": split, "skip_unreadable": config.skip_unreadable, **chosen}
    if config.dataset == "affectnet":
        return load_affectnet_2017(root, **options)
    if config.dataset == "affectnet-reduced":
        return load_affectnet_reduced(root, index_dir=_index_folder(config), **options)
    if config.dataset == "afew-va":
        return load_afew_va(root, same_actor=config.same_actor, **options)
    options["every"] = config.every
    if config.dataset == "aff-wild2":
        edition = config.annotations
        labels = None if edition is None else edition_labels(root, edition, split)
        return load_aff_wild2(root, annotations=labels, **options)
    if Path(root, "extracted_frames").is_dir():
        with contextlib.suppress(FileNotFoundError, LayoutError):
            return load_aff_wild(root, extract=False, **options)
    return load_aff_wild(root, frames_dir=_cache_folder(config) / "extracted_frames", **options)


def _index_folder(config: EmotionConfig) -> Path:
    """A folder in the cache for this root."""
    root = Path(str(config.root)).resolve()
    return _cache_folder(config) / f"affectnet-reduced-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}"


def _cache(loaded: LoadedSplit, config: EmotionConfig, world: World) -> tuple[ImageCache[Records], str]:
    """The decoded images, and the report of the remaining rows.

    The main process of each machine builds the cache; the others wait for it at a lock.
    """
    folder = _cache_folder(config)
    cache = ImageCache.open(loaded.records, folder, size=config.resize, skip_unreadable=config.skip_unreadable)
    world.barrier()
    names = [f"  left out: {loaded.records.key[row]}: {why}" for row, why in cache.unreadable.items()]
    return cache, "\n".join([str(loaded.without(cache.unreadable).report), *names])


def _part(cache: ImageCache[Records]) -> Part:
    records = cache.records
    return Part(
        images=cache.images,
        slots=cache.slots,
        labels=records.labels,
        people=codes(records.identity),
        identity=records.identity_kind or "picture",
        videos=tuple(records.video),
        frames=records.frame,
    )


def _of_two(
    cache: ImageCache[Records], test_cache: ImageCache[Records], val_split: Split, reports: tuple[str, str]
) -> EmotionData:
    """Training and validation from one cache, the published validation set as the test."""
    rows = val_split.rows(cache.records)
    everything = _part(cache)
    tested, known = (set(units_of(one.records, val_split.unit)) for one in (test_cache, cache))
    both = sorted(tested & known)
    what = f"; {len(both):,} of its {len(tested):,} {val_split.unit} units are in training too ({shorten(both)})"
    test_split = Split(
        dataset=val_split.dataset,
        protocol="the published validation set" + (what if both else ""),
        unit=val_split.unit,
        independent="nothing" if both else val_split.independent,
        seed=0,  # nothing is drawn
        parts={"test": tuple(sorted(tested))},
    )
    return EmotionData(
        train=everything.take(rows["train"]),
        val=everything.take(rows["validation" if "validation" in rows else "test"]),
        test=_part(test_cache),
        splits={"test.json": test_split, "validation.json": val_split},
        independent=test_split.independent,
        reports=reports,
    )
