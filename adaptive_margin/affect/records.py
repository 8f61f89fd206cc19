"""Labelled faces as columns: the file, the labels and the person of each image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..images.image_list import Box, Floats, ImageList, Integers, StoredImage, Strings, strings
from ..messages import problem

Doubles = npt.NDArray[np.float64]

EXPRESSIONS = (
    "neutral",
    "happy",
    "sad",
    "surprise",
    "fear",
    "disgust",
    "anger",
    "contempt",
    "none",
    "uncertain",
    "no face",
)
"""AffectNet's expression codes 0 to 10."""


def codes(names: Strings) -> Integers:
    """One number per row, equal for equal names, in the order in which they appear; −1 for ``None``.

    Example:
        >>> codes(strings(["ann", None, "ann", "bob"]))
        array([ 0, -1,  0,  1])
    """
    seen: dict[str, int] = {}
    return np.array([-1 if name is None else seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Record(StoredImage):
    """One labelled face.

    Attributes:
        valence: rescaled from the data set's scale to [−1, 1], never clipped.
        arousal: likewise.
        raw: (valence, arousal) as in the label file.
        identity: the person, or ``None`` if the data set does not say.
        video: the video of the frame, or ``None``.
        frame: the frame's number, counted as in the data set's file names, or ``None``.
        expression: AffectNet's code, or ``None``.
    """

    valence: float
    arousal: float
    raw: tuple[float, float]
    identity: str | None = None
    video: str | None = None
    frame: int | None = None
    expression: int | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Records(ImageList):
    """The usable rows of a data set, as columns: those of :class:`~adaptive_margin.images.ImageList`, and labels.

    Attributes:
        labels: (valence, arousal) in this order, shape ``(N, 2)``, float32, in [−1, 1] unless the data are outside.
        raw: the two numbers as in the label file, shape ``(N, 2)``, float64.
        identity: the person; ``None`` if unknown.
        video: the video; ``None`` for single images.
        frame: the frame's number in its video, shape ``(N,)``; −1 for single images.
        expression: AffectNet's code, shape ``(N,)``, int16; −1 if there is none.
        identity_kind: the meaning of an identity: ``"actor"``, ``"video"``, ``"source video"``, or ``None`` if unknown.

    Raises:
        ValueError: a column has another length, or two rows share a key.
    """

    labels: Floats
    raw: Doubles
    identity: Strings
    video: Strings
    frame: Integers
    expression: npt.NDArray[np.int16]
    identity_kind: str | None

    _widths: ClassVar[dict[str, int]] = {**ImageList._widths, "labels": 2, "raw": 2}

    def __post_init__(self) -> None:
        super().__post_init__()
        seen: set[str] = set()
        for key in self.key:
            if key in seen:
                raise ValueError(problem("key", "different for every row", f"{key!r} twice", "name each row once"))
            seen.add(key)

    def __getitem__(self, index: int) -> Record:
        frame, expression = int(self.frame[index]), int(self.expression[index])
        return Record(
            **self._stored(index),
            valence=float(self.labels[index, 0]),
            arousal=float(self.labels[index, 1]),
            raw=(float(self.raw[index, 0]), float(self.raw[index, 1])),
            identity=self.identity[index],
            video=self.video[index],
            frame=None if frame < 0 else frame,
            expression=None if expression < 0 else expression,
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def identity_codes(self) -> Integers:
        """One integer per row, equal for equal identities, shape ``(N,)``.

        Raises:
            ValueError: a row's identity is unknown.
        """
        numbers = codes(self.identity)
        if unknown := int((numbers < 0).sum()):
            got = f"{unknown:,} of {len(self):,} rows of {self.dataset} without one"
            raise ValueError(
                problem("identity", "known for every row", got, "use a data set that says who is in each picture")
            )
        return numbers

    def digest(self) -> str:
        """SHA-256 (hexadecimal) over keys, paths, labels, boxes and identities: equal lists, equal digests."""
        state = hashlib.sha256(self.dataset.encode())
        for column in (self.key, self.path, self.identity, self.video):
            state.update(b"\x00column\x00")
            for value in column:
                state.update(b"\x01" if value is None else value.encode("utf-8", "surrogateescape"))
                state.update(b"\x00")
        for numbers in (self.labels, self.raw, self.frame, self.box, self.expression, self.stretch):
            state.update(str(numbers.dtype).encode() + np.ascontiguousarray(numbers).tobytes())
        return state.hexdigest()


class RecordBuilder:
    """Collects rows one at a time and builds :class:`Records` from them."""

    def __init__(self, dataset: str, root: Path, identity_kind: str | None = None) -> None:
        self.dataset, self.root, self.identity_kind = dataset, root, identity_kind
        self._rows: list[tuple[Any, ...]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        key: str,
        path: str,
        labels: tuple[float, float],
        *,
        raw: tuple[float, float] | None = None,
        identity: str | None = None,
        video: str | None = None,
        frame: int | None = None,
        box: Box | None = None,
        expression: int | None = None,
        stretch: float = 1.0,
    ) -> None:
        """Appends a row; ``path`` is relative to the root, ``raw`` is ``labels`` by default."""
        numbers = (-1 if frame is None else frame, -1 if expression is None else expression)
        box = (float("nan"),) * 4 if box is None else box
        self._rows.append((key, path, labels, labels if raw is None else raw, identity, video, *numbers, box, stretch))

    def build(self) -> Records:
        """The rows collected so far."""
        rows = len(self._rows)
        key, path, labels, raw, identity, video, frame, expression, box, stretch = (
            zip(*self._rows, strict=True) if rows else ((),) * 10
        )
        return Records(
            dataset=self.dataset,
            root=self.root,
            key=strings(key),
            path=strings(path),
            labels=np.array(labels, dtype=np.float32).reshape(rows, 2),
            raw=np.array(raw, dtype=np.float64).reshape(rows, 2),
            identity=strings(identity),
            video=strings(video),
            frame=np.array(frame, dtype=np.int64),
            box=np.array(box, dtype=np.float32).reshape(rows, 4),
            expression=np.array(expression, dtype=np.int16),
            identity_kind=self.identity_kind,
            stretch=np.array(stretch, dtype=np.float32),
        )


def concatenate(parts: Sequence[Records]) -> Records:
    """The rows of several lists of one data set under one root, in order.

    Raises:
        ValueError: no parts, parts of different data sets or roots, or a key that occurs in two of them.
    """
    if not parts:
        raise ValueError(problem("parts", "at least one list of records", "none", "pass what the loaders returned"))
    first, *others = ((part.dataset, part.root, part.identity_kind) for part in parts)
    for other in others:
        if other != first:
            raise ValueError(problem("parts", f"all of {first}", other, "keep data sets apart: their labels differ"))

    columns = {name: [getattr(part, name) for part in parts] for name in parts[0].columns()}
    joined: dict[str, Any] = {name: np.concatenate(each) for name, each in columns.items()}
    return replace(parts[0], **joined)
