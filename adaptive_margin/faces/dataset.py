"""Data sets of drawn faces: pictures, feelings and people as arrays, split by person."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic import write_atomically
from ..messages import check_choice, check_count, problem
from ._geometry import boxes
from ._rows import Streams, check_seed, mix
from .draw import SIZES, draw_faces, face_geometry
from .identity import check_effect, sample_identities, vary
from .labels import sample_labels

SPLITS = ("train", "val", "test")


def split_people(
    n_people: int, seed: int, fractions: Sequence[float] = (0.7, 0.15, 0.15)
) -> dict[str, NDArray[np.int64]]:
    """Divides people among train, val and test; no person is in two of them.

    Args:
        n_people: How many people there are.
        seed: Random seed of the division.
        fractions: Shares of train, val and test, which sum to 1. A split with a positive share gets at least one
            person.

    Returns:
        Sorted numbers of people by split.

    Raises:
        ValueError: ``fractions`` are not shares, or there are fewer people than splits.

    Example:
        >>> {name: len(people) for name, people in split_people(20, seed=0).items()}
        {'train': 14, 'val': 3, 'test': 3}
    """
    n_people, seed = check_count("n_people", n_people, 1), check_seed("seed", seed)
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (3,) or not (shares >= 0).all() or abs(float(shares.sum()) - 1) > 1e-6:
        remedy = "pass shares such as (0.7, 0.15, 0.15)"
        raise ValueError(problem("fractions", "three non-negative numbers that sum to 1", tuple(fractions), remedy))
    wanted = int((shares > 0).sum())
    if n_people < wanted:
        remedy = "ask for more people, or give a split the share 0"
        raise ValueError(problem("n_people", f"at least {wanted}, one for each split", n_people, remedy))
    exact = shares * n_people + 1e-9
    counts = np.where(shares > 0, np.maximum(np.floor(exact), 1), 0).astype(np.int64)
    while counts.sum() < n_people:  # the split that lacks most gets the next person
        counts[int((exact - counts).argmax())] += 1
    while counts.sum() > n_people:
        counts[int(counts.argmax())] -= 1
    order = np.argsort(Streams().words(seed, 6, n_people), kind="stable")
    bounds = np.cumsum(counts)[:-1]
    return {name: np.sort(part) for name, part in zip(SPLITS, np.split(order, bounds), strict=True)}


@functools.cache
def _drawing() -> str:
    """A hash of this package's source: what another version drew is drawn again."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


class FacesDataset:
    """Drawn faces of many people, with felt valence and arousal: the data set that needs no download.

    A map-style data set for :class:`torch.utils.data.DataLoader`, and a set of arrays. Labels are available
    immediately; pictures are drawn all together when :attr:`images` is first read, or one by one by indexing before
    that. The bytes are the same in both cases, and they do not depend on ``split``: person 7 looks and feels the same
    in every split.

    Args:
        n_people: People in all splits together.
        n_images_per_person: Pictures of each.
        size: Side of the pictures in pixels, 32 to 256.
        seed: Random seed of everything.
        split: ``"train"``, ``"val"``, ``"test"`` (no person is in two of them) or ``"all"``.
        fractions: Shares of people in train, val and test.
        disturb: Pose, light, background, blur, noise and occlusion, or none of them.
        workers: Processes that draw :attr:`images`; 0 draws in this one.
        person_effect: How much the feeling behind a face depends on who it is, from 0 to 3: scales how resting faces,
            ways of showing emotion (:func:`~adaptive_margin.faces.vary`) and moods differ between people. 1 draws the
            people of :func:`~adaptive_margin.faces.sample_identities` as they are.
        cache: Folder in which :attr:`images` are kept for the next time; None keeps nothing.

    Attributes:
        av: Felt valence and arousal, float32, shape ``(n, 2)``, inside the unit disc.
        person: Int64, shape ``(n,)``: the person's number among all ``n_people``.
        people: Numbers of the people of this split, sorted.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Example:
        >>> from adaptive_margin.faces import FacesDataset
        >>> train = FacesDataset(10, 4, size=32, split="train")
        >>> train.images.shape, train.av.shape, train.person.shape
        ((28, 32, 32, 3), (28, 2), (28,))
        >>> image, av, person = train[0]
    """

    def __init__(
        self,
        n_people: int = 100,
        n_images_per_person: int = 50,
        *,
        size: int = 96,
        seed: int = 0,
        split: str = "all",
        fractions: Sequence[float] = (0.7, 0.15, 0.15),
        disturb: bool = True,
        workers: int = 0,
        person_effect: float = 1.0,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self.n_people = check_count("n_people", n_people, 1)
        self.n_images_per_person = check_count("n_images_per_person", n_images_per_person, 1)
        self.size, self.seed = check_count("size", size, *SIZES), check_seed("seed", seed)
        self.workers = check_count("workers", workers, 0)
        check_choice("split", split, (*SPLITS, "all"))
        self.split, self.disturb, self.cache = split, disturb, cache
        self.person_effect = check_effect(person_effect)
        everyone = np.arange(self.n_people)
        self.people = everyone if split == "all" else split_people(self.n_people, self.seed, fractions)[split]
        self.identities = vary(sample_identities(self.n_people, self.seed).take(self.people), self.person_effect)
        labels = [
            sample_labels(self.seed, person, self.n_images_per_person, self.person_effect)
            for person in self.people.tolist()
        ]
        self.av: NDArray[np.float32] = np.concatenate(labels) if labels else np.empty((0, 2), dtype=np.float32)
        self.person: NDArray[np.int64] = np.repeat(self.people, self.n_images_per_person)
        self._row = np.repeat(np.arange(len(self.people)), self.n_images_per_person)
        number = np.tile(np.arange(self.n_images_per_person), len(self.people))
        self.nuisance_seeds: NDArray[np.uint64] = mix(self.seed, self.person, number)

    def __len__(self) -> int:
        return len(self.person)

    def _of(self, rows: slice, function: Callable[..., Any], **options: Any) -> Any:
        """What a function of people, feelings and seeds returns for some rows."""
        v, a = self.av[rows].T
        seeds, people = self.nuisance_seeds[rows], self.identities.take(self._row[rows])
        return function(people, v, a, size=self.size, nuisance_seeds=seeds, disturb=self.disturb, **options)

    @functools.cached_property
    def images(self) -> NDArray[np.uint8]:
        """All pictures, shape ``(n, size, size, 3)``; drawn on first use and kept, or read from ``cache``, which does
        not change with them.
        """
        return self._draw() if self.cache is None else self._kept(Path(self.cache))

    def _draw(self) -> NDArray[np.uint8]:
        pictures: NDArray[np.uint8] = self._of(slice(None), draw_faces, workers=self.workers)
        return pictures

    def _kept(self, folder: Path) -> NDArray[np.uint8]:
        """Pictures from ``folder``, else drawn and left there.

        The file's name holds what is drawn, by which version of the drawing, and a checksum of its bytes: a damaged
        file is drawn again. Several processes may draw at once; they write the same bytes.
        """
        what = (self.n_people, self.n_images_per_person, self.size, self.seed, self.people.tolist())
        state = repr(((*what, self.disturb, self.person_effect), _drawing()))
        key = hashlib.sha256(state.encode()).hexdigest()[:20]
        for path in sorted(folder.glob(f"faces-{key}-*.npy")):
            with contextlib.suppress(OSError, ValueError, EOFError):
                pictures: NDArray[np.uint8] = np.load(path, mmap_mode="c")  # as drawn ones: yours to change
                fits = pictures.shape == (len(self), self.size, self.size, 3)
                if fits and path.stem.endswith(f"-{zlib.crc32(pictures.data):08x}"):
                    return pictures
        drawn, data = self._draw(), io.BytesIO()
        np.save(data, drawn)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / f"faces-{key}-{zlib.crc32(drawn.data):08x}.npy", data.getvalue())
        except OSError as error:
            warnings.warn(f"drawn faces are not kept in {folder}: {error}", stacklevel=4)
        return drawn

    @functools.cached_property
    def landmarks(self) -> NDArray[np.float32]:
        """68 points per face (order of iBUG), pixels, shape ``(n, 68, 2)``."""
        points: NDArray[np.float32] = self._of(slice(None), face_geometry)[0]
        return points

    @functools.cached_property
    def boxes(self) -> NDArray[np.float32]:
        """Face boxes ``(x, y, width, height)``, pixels, shape ``(n, 4)``."""
        return boxes(self.landmarks, self.size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], int]:
        """One picture ``(size, size, 3)``, its ``(valence, arousal)`` and its person."""
        if not -len(self) <= index < len(self):
            raise IndexError(
                problem("index", f"between {-len(self)} and {len(self) - 1}", index, "stop before len(dataset)")
            )
        if "images" in self.__dict__:
            image = self.images[index]
        else:
            image = self._of(slice(index % len(self), index % len(self) + 1), draw_faces)[0]
        return image, self.av[index], int(self.person[index])

    def __repr__(self) -> str:
        return (
            f"FacesDataset({self.split}: {len(self)} pictures of {len(self.people)} people, "
            f"size={self.size}, seed={self.seed}, disturb={self.disturb}, person_effect={self.person_effect:g})"
        )
