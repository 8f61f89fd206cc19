"""Labelled faces as columns: the file, the labels and the person of each image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..functional.checks import problem

Box = tuple[float, float, float, float]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

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


class Strings:
    """An immutable column of strings in one block of bytes, so that a million strings need no more memory than their
    letters.

    Example:
        >>> names = Strings(["a.png", "bé.png"])
        >>> len(names), names[1], list(names)
        (2, 'bé.png', ['a.png', 'bé.png'])
    """

    __slots__ = ("_ends", "_letters")

    def __init__(self, values: Iterable[str]) -> None:
        encoded = [value.encode("utf-8", "surrogateescape") for value in values]
        self._ends: Integers = np.cumsum([len(item) for item in encoded], dtype=np.int64)
        self._letters = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(problem("index", f"a position among {len(self)} strings", index, "look at len()"))
        index %= len(self)
        start = int(self._ends[index - 1]) if index else 0
        return self._letters[start : int(self._ends[index])].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def take(self, positions: Integers) -> Strings:
        """The strings at ``positions``, in that order."""
        return Strings(self[int(index)] for index in positions)


@dataclass(frozen=True, eq=False)
class Categories:
    """A column of repeated names: one number per row, −1 for ``None``.

    Attributes:
        codes: the index of each row's name, shape ``(N,)``; −1 if it has none.
        names: the names, each once, in order of first appearance.

    Example:
        >>> people = Categories.of(["ann", None, "ann", "bob"])
        >>> people.codes.tolist(), people.names, people[1]
        ([0, -1, 0, 1], ('ann', 'bob'), None)
    """

    codes: npt.NDArray[np.int32]
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Iterable[str | None]) -> Categories:
        """The column that holds ``values``."""
        seen: dict[str, int] = {}
        codes = [-1 if value is None else seen.setdefault(value, len(seen)) for value in values]
        return cls(np.array(codes, dtype=np.int32), tuple(seen))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> str | None:
        code = int(self.codes[index])
        return None if code < 0 else self.names[code]

    def __iter__(self) -> Iterator[str | None]:
        return (self[index] for index in range(len(self)))

    def take(self, positions: Integers) -> Categories:
        """The rows at ``positions``; names that no longer occur are dropped."""
        return Categories.of(self[int(index)] for index in positions)


@dataclass(frozen=True)
class Record:
    """One labelled face.

    Attributes:
        key: identifies the row in its data set, independent of where the data are stored.
        path: the image file.
        valence: rescaled from the data set's scale to [−1, 1], never clipped.
        arousal: likewise.
        raw: (valence, arousal) as in the label file.
        identity: the person, or ``None`` if the data set does not say.
        video: the video of the frame, or ``None``.
        frame: the frame's number, counted as in the data set's file names, or ``None``.
        box: (left, top, right, bottom) of the face in pixels of the file, or ``None`` for the whole image.
        expression: AffectNet's code, or ``None``.
        stretch: the factor by which to widen a pixel for display; 1 for square pixels.
    """

    key: str
    path: Path
    valence: float
    arousal: float
    raw: tuple[float, float]
    identity: str | None = None
    video: str | None = None
    frame: int | None = None
    box: Box | None = None
    expression: int | None = None
    stretch: float = 1.0


@dataclass(frozen=True, eq=False)
class Records:
    """The usable rows of a data set, as columns.

    Attributes:
        dataset: the release, ``"affectnet-2017"`` for instance.
        root: the folder to which ``path`` is relative.
        key: unique keys of the rows.
        path: image files relative to ``root``, with forward slashes.
        labels: (valence, arousal) in this order, shape ``(N, 2)``, float32, in [−1, 1] unless the data are outside.
        raw: the two numbers as in the label file, shape ``(N, 2)``, float64.
        identity: the person; ``None`` if unknown.
        video: the video; ``None`` for single images.
        frame: the frame's number in its video, shape ``(N,)``; −1 for single images.
        box: left, top, right, bottom in pixels of the file, shape ``(N, 4)``, float32; NaN for the whole image.
        expression: AffectNet's code, shape ``(N,)``, int16; −1 if there is none.
        identity_kind: the meaning of an identity: ``"actor"``, ``"video"``, ``"source video"``, or ``None`` if unknown.
        stretch: the factor by which to widen a pixel for display, shape ``(N,)``; 1 for square pixels.

    Raises:
        ValueError: a column has another length, or two rows share a key.
    """

    dataset: str
    root: Path
    key: Strings
    path: Strings
    labels: Floats
    raw: Doubles
    identity: Categories
    video: Categories
    frame: Integers
    box: Floats
    expression: npt.NDArray[np.int16]
    identity_kind: str | None
    stretch: Floats

    def __post_init__(self) -> None:
        rows = len(self.key)
        shapes = {
            "path": (len(self.path),),
            "labels": self.labels.shape,
            "raw": self.raw.shape,
            "identity": (len(self.identity),),
            "video": (len(self.video),),
            "frame": self.frame.shape,
            "box": self.box.shape,
            "expression": self.expression.shape,
            "stretch": self.stretch.shape,
        }
        wide = {"labels": 2, "raw": 2, "box": 4}
        for name, shape in shapes.items():
            expected = (rows, wide[name]) if name in wide else (rows,)
            if shape != expected:
                raise ValueError(problem(name, f"of shape {expected}", shape, "give every column one entry per row"))
        seen: set[str] = set()
        for key in self.key:
            if key in seen:
                raise ValueError(problem("key", "different for every row", f"{key!r} twice", "name each row once"))
            seen.add(key)

    def __len__(self) -> int:
        return len(self.key)

    def __getitem__(self, index: int) -> Record:
        box, frame, expression = self.box[index], int(self.frame[index]), int(self.expression[index])
        return Record(
            key=self.key[index],
            path=self.root / self.path[index],
            valence=float(self.labels[index, 0]),
            arousal=float(self.labels[index, 1]),
            raw=(float(self.raw[index, 0]), float(self.raw[index, 1])),
            identity=self.identity[index],
            video=self.video[index],
            frame=None if frame < 0 else frame,
            box=None if np.isnan(box[0]) else (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
            expression=None if expression < 0 else expression,
            stretch=float(self.stretch[index]),
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def subset(self, positions: Sequence[int] | npt.NDArray[Any]) -> Records:
        """The rows at ``positions`` (integers, or one bool per row), in that order.

        Raises:
            ValueError: a mask of another length, or a position outside the rows.
        """
        where = np.asarray(positions)
        if where.dtype == np.bool_:
            if where.shape != (len(self),):
                expected = f"a mask of shape ({len(self)},)"
                raise ValueError(problem("positions", expected, where.shape, "give one bool per row"))
            where = np.flatnonzero(where)
        where = where.astype(np.int64)
        if where.ndim != 1 or (len(where) and (where.min() < 0 or where.max() >= len(self))):
            expected = f"positions from 0 to {len(self) - 1}"
            raise ValueError(problem("positions", expected, f"{where.shape} {where[:5]}…", "look at len(records)"))
        return Records(
            dataset=self.dataset,
            root=self.root,
            key=self.key.take(where),
            path=self.path.take(where),
            labels=self.labels[where],
            raw=self.raw[where],
            identity=self.identity.take(where),
            video=self.video.take(where),
            frame=self.frame[where],
            box=self.box[where],
            expression=self.expression[where],
            identity_kind=self.identity_kind,
            stretch=self.stretch[where],
        )

    def identity_codes(self) -> Integers:
        """One integer per row, equal for equal identities, shape ``(N,)``.

        Raises:
            ValueError: a row's identity is unknown.
        """
        unknown = int((self.identity.codes < 0).sum())
        if unknown:
            got = f"{unknown:,} of {len(self):,} rows of {self.dataset} without one"
            raise ValueError(problem("identity", "known for every row", got, "use a data set that says who is on it"))
        return self.identity.codes.astype(np.int64)

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
        self._key: list[str] = []
        self._path: list[str] = []
        self._labels: list[tuple[float, float]] = []
        self._raw: list[tuple[float, float]] = []
        self._identity: list[str | None] = []
        self._video: list[str | None] = []
        self._frame: list[int] = []
        self._box: list[Box] = []
        self._expression: list[int] = []
        self._stretch: list[float] = []

    def __len__(self) -> int:
        return len(self._key)

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
        self._key.append(key)
        self._path.append(path)
        self._labels.append(labels)
        self._raw.append(labels if raw is None else raw)
        self._identity.append(identity)
        self._video.append(video)
        self._frame.append(-1 if frame is None else frame)
        self._box.append((float("nan"),) * 4 if box is None else box)
        self._expression.append(-1 if expression is None else expression)
        self._stretch.append(stretch)

    def build(self) -> Records:
        """The rows collected so far."""
        rows = len(self._key)
        return Records(
            dataset=self.dataset,
            root=self.root,
            key=Strings(self._key),
            path=Strings(self._path),
            labels=np.array(self._labels, dtype=np.float32).reshape(rows, 2),
            raw=np.array(self._raw, dtype=np.float64).reshape(rows, 2),
            identity=Categories.of(self._identity),
            video=Categories.of(self._video),
            frame=np.array(self._frame, dtype=np.int64).reshape(rows),
            box=np.array(self._box, dtype=np.float32).reshape(rows, 4),
            expression=np.array(self._expression, dtype=np.int16).reshape(rows),
            identity_kind=self.identity_kind,
            stretch=np.array(self._stretch, dtype=np.float32).reshape(rows),
        )


def concatenate(parts: Sequence[Records]) -> Records:
    """The rows of several lists of one data set under one root, in order.

    Raises:
        ValueError: no parts, parts of different data sets or roots, or a key that occurs in two of them.
    """
    if not parts:
        raise ValueError(problem("parts", "at least one list of records", "none", "pass what the loaders returned"))
    first = parts[0]
    for other in parts[1:]:
        mine, theirs = (
            (first.dataset, first.root, first.identity_kind),
            (other.dataset, other.root, other.identity_kind),
        )
        if mine != theirs:
            raise ValueError(problem("parts", f"all of {mine}", theirs, "keep data sets apart: their labels differ"))

    def chain(column: Callable[[Records], Iterable[Any]]) -> Iterator[Any]:
        return (value for part in parts for value in column(part))

    return Records(
        dataset=first.dataset,
        root=first.root,
        key=Strings(chain(lambda part: part.key)),
        path=Strings(chain(lambda part: part.path)),
        labels=np.concatenate([part.labels for part in parts]),
        raw=np.concatenate([part.raw for part in parts]),
        identity=Categories.of(chain(lambda part: part.identity)),
        video=Categories.of(chain(lambda part: part.video)),
        frame=np.concatenate([part.frame for part in parts]),
        box=np.concatenate([part.box for part in parts]),
        expression=np.concatenate([part.expression for part in parts]),
        identity_kind=first.identity_kind,
        stretch=np.concatenate([part.stretch for part in parts]),
    )
