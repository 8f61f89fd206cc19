"""Image files as columns: where each is, and which part of it to decode; no labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from ..messages import problem

Box = tuple[float, float, float, float]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Strings = npt.NDArray[np.object_]
Self = TypeVar("Self", bound="ImageList")


def strings(values: Iterable[str | None]) -> Strings:
    """A column of strings (or ``None``), shape ``(N,)``.

    Example:
        >>> strings(["a.png", "bé.png"])[np.array([1, 1])]
        array(['bé.png', 'bé.png'], dtype=object)
    """
    return np.array(list(values), dtype=object)


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """One image file.

    Attributes:
        key: identifies the row in its data set, independent of where the data are stored.
        path: the image file.
        box: (left, top, right, bottom) of the part to keep in pixels of the file, or ``None`` for the whole image.
        stretch: the factor by which to widen a pixel for display; 1 for square pixels.
    """

    key: str
    path: Path
    box: Box | None = None
    stretch: float = 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageList:
    """Image files, as columns.

    Attributes:
        dataset: name of the data set.
        root: the folder to which ``path`` is relative.
        key: names of the rows, for messages.
        path: image files relative to ``root``, with forward slashes.
        box: left, top, right, bottom in pixels of the file, shape ``(N, 4)``, float32; NaN for the whole image.
        stretch: the factor by which to widen a pixel for display, shape ``(N,)``; 1 for square pixels.

    Raises:
        ValueError: a column has another length.

    Example:
        >>> birds = ImageList.of("birds", Path("/data"), ["a.jpg", "b.jpg"], np.array([[0, 0, 9, 9], [1, 2, 5, 6]]))
        >>> len(birds), birds[1].path.as_posix(), birds[1].box
        (2, '/data/b.jpg', (1.0, 2.0, 5.0, 6.0))
    """

    dataset: str
    root: Path
    key: Strings
    path: Strings
    box: Floats
    stretch: Floats

    _widths: ClassVar[dict[str, int]] = {"box": 4}
    """Columns with several numbers per row."""

    @staticmethod
    def of(dataset: str, root: Path, paths: Sequence[str], boxes: npt.NDArray[Any] | None = None) -> ImageList:
        """A list of files, each named by its path; without boxes, whole images."""
        rows, path = len(paths), strings(paths)
        box = np.full((rows, 4), np.nan, np.float32) if boxes is None else boxes.astype(np.float32)
        return ImageList(dataset=dataset, root=root, key=path, path=path, box=box, stretch=np.ones(rows, np.float32))

    def __post_init__(self) -> None:
        for name, column in self.columns().items():
            expected = (len(self), self._widths[name]) if name in self._widths else (len(self),)
            if column.shape != expected:
                remedy = "give every column one entry per row"
                raise ValueError(problem(name, f"of shape {expected}", column.shape, remedy))

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The columns, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def __len__(self) -> int:
        return len(self.key)

    def __getitem__(self, index: int) -> StoredImage:
        return StoredImage(**self._stored(index))

    def _stored(self, index: int) -> dict[str, Any]:
        left, top, right, bottom = self.box[index].tolist()
        return {
            "key": self.key[index],
            "path": self.root / self.path[index],
            "box": None if np.isnan(left) else (left, top, right, bottom),
            "stretch": float(self.stretch[index]),
        }

    def subset(self: Self, positions: Sequence[int] | npt.NDArray[Any]) -> Self:
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
        taken: dict[str, Any] = {name: column[where] for name, column in self.columns().items()}
        return replace(self, **taken)
