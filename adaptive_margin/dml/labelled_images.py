"""Images and their classes, and splits in which no class is in two parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..images.image_list import Bytes, Floats, Integers
from ..messages import problem

Part = Literal["train", "validation", "test"]


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """A data set for metric learning: images, the class of each, and which classes are for the test.

    Attributes:
        name: of the data set.
        labels: class of each image, shape ``(N,)``, int64, from 0.
        class_names: one for each class.
        test_classes: the classes that neither training nor model selection may see.
        root: the folder to which ``paths`` are relative; ``None`` if images are in memory.
        paths: image files with forward slashes, one per image; empty if images are in memory.
        pixels: uint8, shape ``(N, H, H, C)``, if images are in memory.
        boxes: left, top, right and bottom of the object in pixels of the file, shape ``(N, 4)``; ``None`` without
            boxes.
        groups: classes with the same number stay in one part of every split, shape ``(C,)``; by default each class is
            its own group.
        drawers: who made each image, shape ``(N,)``; ``None`` if unknown.
        passed_over: file extension → number of files in the folder that are not pictures by extension, and of circular
            links.

    Raises:
        ValueError: shapes that do not match, a class without images, or test classes that are all classes or none.
    """

    name: str
    labels: Integers
    class_names: tuple[str, ...]
    test_classes: frozenset[int]
    root: Path | None = None
    paths: tuple[str, ...] = ()
    pixels: Bytes | None = None
    boxes: Floats | None = None
    groups: Integers = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    drawers: Integers | None = None
    passed_over: Mapping[str, int] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """A fingerprint of files, labels and test classes (of pixels if in memory) that identifies the data set."""
        digest = hashlib.sha256("\n".join((*self.class_names, "", *self.paths)).encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(self.labels, dtype=np.int64).tobytes())
        digest.update(json.dumps(sorted(self.test_classes)).encode())
        if self.pixels is not None:
            digest.update(np.ascontiguousarray(self.pixels).tobytes())
        return digest.hexdigest()[:12]

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        counts = np.bincount(self.labels, minlength=classes)
        if len(counts) != classes or (counts == 0).any():
            got = f"labels up to {len(counts) - 1} and {int((counts == 0).sum())} classes without images"
            raise ValueError(problem("labels", f"each of the {classes} classes", got, "number the classes from 0"))
        images = len(self.paths) if self.pixels is None else len(self.pixels)
        if images != len(self.labels):
            raise ValueError(problem("labels", f"one per image ({images})", len(self.labels), "join them on the name"))
        if self.drawers is not None and self.drawers.shape != self.labels.shape:
            raise ValueError(
                problem("drawers", f"one per image ({images})", self.drawers.shape, "join them on the name")
            )
        if not 0 < len(self.test_classes) < classes:
            got = f"{len(self.test_classes)} of {classes}"
            raise ValueError(problem("test_classes", "some and not all of the classes", got, "split the classes"))
        if not len(self.groups):
            object.__setattr__(self, "groups", np.arange(classes))

    def __len__(self) -> int:
        return len(self.labels)

    def rows_of(self, classes: Sequence[int] | frozenset[int] | Integers) -> Integers:
        """Positions of the images of ``classes``."""
        return np.flatnonzero(np.isin(self.labels, np.fromiter(classes, dtype=np.int64)))


@dataclass(frozen=True, eq=False)
class ClassSplit:
    """Positions of the images for training, validation (none if nothing is held out) and test, which share no class."""

    train: Integers
    validation: Integers
    test: Integers

    def __getitem__(self, part: Part) -> Integers:
        rows: Integers = getattr(self, part)
        return rows

    def without(self, rows: Iterable[int]) -> ClassSplit:
        """The same parts without the images at ``rows``."""
        out = np.fromiter(rows, dtype=np.int64)
        return ClassSplit(*(np.setdiff1d(part, out) for part in (self.train, self.validation, self.test)))

    def describe(self, data: LabelledImages) -> dict[str, Any]:
        """Images and classes of each part, for the record of a run."""
        parts: tuple[Part, ...] = ("train", "validation", "test")
        return {part: {"images": len(self[part]), "classes": len(set(data.labels[self[part]]))} for part in parts}


def split_classes(data: LabelledImages, *, validation: float = 0.5, seed: int = 0) -> ClassSplit:
    """Holds out a share of the training classes for validation; the test classes are those of the data set.

    Args:
        data: the images.
        validation: share of the groups of training classes to hold out, at least one of them; 0 for none.
        seed: random seed.

    Raises:
        ValueError: a share that leaves no class for training.

    Example:
        >>> import numpy as np
        >>> labels = np.repeat(np.arange(6), 2)
        >>> pixels = np.zeros((12, 8, 8, 1), "u1")
        >>> data = LabelledImages("six", labels, tuple("abcdef"), frozenset({4, 5}), pixels=pixels)
        >>> split = split_classes(data, seed=1)
        >>> data.labels[split.validation].tolist(), data.labels[split.test].tolist()
        ([0, 0, 1, 1], [4, 4, 5, 5])
    """
    groups = _training_groups(data)
    held = 0 if validation == 0 else max(1, round(validation * len(groups)))
    if not 0 <= held < len(groups):
        expected = f"a share that leaves some of the {len(groups)} groups of training classes"
        raise ValueError(problem("validation", expected, validation, "a half is usual"))
    drawn = np.random.default_rng(seed).permutation(groups)
    return _split(data, drawn[:held])


def fold_classes(data: LabelledImages, fold: int, *, folds: int = 4) -> ClassSplit:
    """One fold of a class-disjoint cross-validation: contiguous blocks of the training classes are held out in turn.

    Source: Musgrave et al. 2020, *A Metric Learning Reality Check*, section 3.2: the first half of the classes in four
    parts, each of which is the validation part once.

    Raises:
        ValueError: the fold does not exist, or there are more folds than classes.

    Example:
        >>> import numpy as np
        >>> labels = np.arange(8)
        >>> pixels = np.zeros((8, 8, 8, 1), "u1")
        >>> data = LabelledImages("eight", labels, tuple("abcdefgh"), frozenset({4, 5, 6, 7}), pixels=pixels)
        >>> [fold_classes(data, fold).validation.tolist() for fold in range(4)]
        [[0], [1], [2], [3]]
    """
    groups = _training_groups(data)
    if not 0 <= fold < folds <= len(groups) or folds < 2:
        expected = f"a fold below folds, at least 2 folds and at most {len(groups)}"
        raise ValueError(problem("fold", expected, f"{fold} of {folds}", "the protocol has 4"))
    return _split(data, np.array_split(groups, folds)[fold])


def _training_groups(data: LabelledImages) -> Integers:
    test = np.fromiter(data.test_classes, dtype=np.int64)
    groups = np.unique(data.groups[np.setdiff1d(np.arange(len(data.class_names)), test)])
    if np.isin(groups, data.groups[test]).any():
        raise ValueError(problem("groups", "on one side of the test", "some on both", "move whole groups to the test"))
    return groups


def _split(data: LabelledImages, validation_groups: Integers) -> ClassSplit:
    classes = np.arange(len(data.class_names))
    held = classes[np.isin(data.groups, validation_groups)]
    test = np.fromiter(sorted(data.test_classes), dtype=np.int64)
    rest = np.setdiff1d(classes, np.concatenate([held, test]))
    return ClassSplit(data.rows_of(rest), data.rows_of(held), data.rows_of(test))
