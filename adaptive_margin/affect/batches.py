"""Batches of faces: from the image cache, augmented on the training device; or decoded one by one, as in the paper."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..images.cache import ImageCache
from ..images.decode import check_decoder, read_face
from ..images.image_list import Bytes, Integers
from ..images.pixels import CachedPixels, read_ahead, seeded
from ..images.transforms import Crops, centre_crops, check_sizes, normalise, paper_transform, random_crops
from ..messages import check_count, problem
from .records import Records


class Batch(NamedTuple):
    """Faces ready for the network.

    Attributes:
        images: float32, shape ``(B, 3, size, size)``, normalised, on the requested device.
        labels: (valence, arousal), float32, shape ``(B, 2)``, on the same device.
        rows: the position of each face in the records, int64, shape ``(B,)``, on the CPU.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor


class FaceImages(Dataset[tuple[Tensor, Tensor, int]]):
    """Faces decoded on demand with Pillow, with the paper's preprocessing.

    For use with a ``DataLoader``. Only (seed, epoch, row) determine the random crop of a face: the number of workers
    and the order do not change it.

    Args:
        records: the rows.
        train: random crop and flip rather than the centre.
        resize: the shorter side, pixels.
        size: the crop's side, pixels.
        seed: random seed of the crops.
        exif: rotate images according to their EXIF orientation; published results do not.

    A missing or damaged image raises :class:`ImageError`: find such images beforehand with :func:`verify_images`, which
    counts them and leaves them out.
    """

    def __init__(
        self,
        records: Records,
        *,
        train: bool,
        resize: int = 256,
        size: int = 224,
        seed: int = 0,
        exif: bool = False,
    ) -> None:
        check_sizes(resize, size)
        check_decoder()
        self.records, self.train, self.seed, self.exif = records, train, seed, exif
        self.resize, self.size = resize, size
        epoch = torch.zeros((), dtype=torch.int64)
        epoch.share_memory_()  # type: ignore[no-untyped-call]
        self._epoch = epoch  # shared: workers that persist must see it change

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch for the random crops, in this process and in its workers."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, int]:
        """The face in row ``row``: image ``(3, size, size)``, labels ``(2,)``, and the row."""
        generator = seeded(self.seed, int(self._epoch), row) if self.train else None
        face = read_face(self.records[row], self.exif)
        image = paper_transform(face, train=self.train, generator=generator, resize=self.resize, size=self.size)
        return image, torch.from_numpy(self.records.labels[row].copy()), row


class CachedBatches:
    """Batches of decoded images, the same on every device and for any number of processes.

    (seed, e) determines the order of the rows in epoch ``e``, and (seed, e, b) the crops and flips of its batch ``b``.
    So an interrupted run continues with ``epoch(e, start=b)``, and with ``world_size`` processes each rank gets a
    contiguous share of the batch that a single process would get.

    Args:
        images: uint8, shape ``(slots, H, H, 3)``: a cache's memory map, or an array.
        labels: (valence, arousal) of each row, shape ``(N, 2)``.
        slots: which image belongs to each row, shape ``(N,)``; by default row ``i`` has image ``i``.
        batch_size: rows in a whole batch, over all processes.
        train: shuffle, crop at random and flip; otherwise keep the order and take centre crops.
        size: side of the crops, pixels.
        seed: random seed of order and crops.
        device: device of the batches.
        rank: which process this is.
        world_size: number of processes.
        drop_last: leave out a last batch that is not full; the paper's code keeps it.
        people: number of each row's person, shape ``(N,)``; only for ``per_person``.
        per_person: pictures of a person that stand together in training, 0 for any order. Each epoch deals every
            person's rows into hands of this many and shuffles the hands; hands that are not full come last. A batch
            of whole hands has ``batch_size / per_person`` of them.
        prefetch: batches read ahead by a thread; 0 reads in the caller's thread.

    Attributes:
        wait_seconds: time spent waiting for images since the object was created.

    Raises:
        TypeError: images that are not uint8, or a number that is not whole.
        ValueError: shapes that do not match, an empty list, or a number out of range.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
        >>> batches = CachedBatches(images, torch.zeros(10, 2), batch_size=4, train=True, size=56)
        >>> [tuple(batch.images.shape) for batch in batches.epoch(0)]
        [(4, 3, 56, 56), (4, 3, 56, 56), (2, 3, 56, 56)]
    """

    def __init__(
        self,
        images: Bytes,
        labels: Tensor | npt.NDArray[np.float32],
        *,
        slots: Sequence[int] | Integers | None = None,
        batch_size: int,
        train: bool,
        size: int = 224,
        seed: int = 0,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        people: Integers | None = None,
        per_person: int = 0,
        prefetch: int = 2,
    ) -> None:
        self.pixels = CachedPixels(images, size=size, device=device)
        if images.shape[3] != 3:
            raise ValueError(problem("images", "of shape (slots, H, H, 3)", images.shape, "pass squares in RGB"))
        where = np.arange(len(images), dtype=np.int64) if slots is None else np.asarray(slots, dtype=np.int64)
        if where.ndim != 1 or not len(where) or where.min() < 0 or where.max() >= len(images):
            expected = f"positions from 0 to {len(images) - 1}, at least one"
            raise ValueError(problem("slots", expected, f"shape {where.shape}", "pass cache.slots or a part of it"))
        target = torch.as_tensor(labels, dtype=torch.float32).cpu()
        if target.shape != (len(where), 2):
            expected = f"of shape ({len(where)}, 2): valence and arousal of each row"
            raise ValueError(problem("labels", expected, tuple(target.shape), "pass records.labels of the same rows"))
        self.batch_size = check_count("batch_size", batch_size, 1)
        self.world_size = check_count("world_size", world_size, 1)
        self.prefetch = check_count("prefetch", prefetch, 0)
        self.per_person = check_count("per_person", per_person, 0)
        if not 0 <= rank < world_size:
            raise ValueError(problem("rank", f"from 0 to {world_size - 1}", rank, "pass torch.distributed.get_rank()"))
        if drop_last and len(where) < batch_size:
            remedy = "keep the last batch, or make batches smaller (training: --batch-size)"
            raise ValueError(problem("batch_size", f"at most {len(where)} with drop_last", batch_size, remedy))
        if per_person and (people is None or len(people) != len(where)):
            got = "none" if people is None else f"{len(people)}"
            raise ValueError(problem("people", f"one for each of {len(where)} rows", got, "or leave per_person out"))
        if per_person and batch_size % per_person:
            remedy = "a batch holds whole hands of pictures"
            raise ValueError(problem("batch_size", f"a multiple of per_person ({per_person})", batch_size, remedy))
        self.images, self.labels, self.slots, self.people = images, target, where, people
        self.train, self.size, self.seed, self.rank, self.drop_last = train, size, seed, rank, drop_last
        self.device, self.wait_seconds = self.pixels.device, 0.0

    @classmethod
    def of(
        cls, cache: ImageCache[Records], rows: Sequence[int] | Integers | None = None, **options: Any
    ) -> CachedBatches:
        """Batches of some rows of a cache (positions in ``cache.records``); a batch's ``rows`` index these."""
        where = np.arange(len(cache), dtype=np.int64) if rows is None else np.asarray(rows, dtype=np.int64)
        return cls(cache.images, cache.records.labels[where], slots=cache.slots[where], **options)

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        full, rest = divmod(len(self.slots), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def order(self, epoch: int) -> Integers:
        """The rows in the order in which this epoch visits them, shape ``(N,)``."""
        if not self.train:
            return np.arange(len(self.slots), dtype=np.int64)
        generator = seeded(self.seed, epoch)
        if not self.per_person:
            shuffled: Integers = torch.randperm(len(self.slots), generator=generator).numpy()
            return shuffled
        assert self.people is not None
        hands, left = dealt(self.people, self.per_person, generator)
        return np.concatenate(
            [part[torch.randperm(len(part), generator=generator).numpy()].ravel() for part in (hands, left)]
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's share of the batches of an epoch, from batch ``start`` on.

        Args:
            epoch: which one, from 0.
            start: number of batches to skip at the beginning, when a run resumes.

        Raises:
            ValueError: a negative epoch, or a start beyond the epoch's end.
        """
        if epoch < 0 or not 0 <= start <= len(self):
            expected = f"an epoch from 0 and a start from 0 to {len(self)}"
            raise ValueError(problem("epoch and start", expected, (epoch, start), "take them from the checkpoint"))
        read = partial(self._read, self.order(epoch), epoch)
        with closing(read_ahead(read, range(start, len(self)), self.prefetch)) as ahead:
            while True:
                began = time.perf_counter()
                item = next(ahead, None)
                self.wait_seconds += time.perf_counter() - began
                if item is None:
                    return
                pixels, crops, rows = item
                images, where = self.pixels.place(pixels, crops), torch.from_numpy(rows)
                yield Batch(normalise(images), self.labels[where].to(self.device, non_blocking=True), where)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def _read(self, order: Integers, epoch: int, number: int) -> tuple[Tensor, Crops, Integers]:
        """What is read ahead of one batch: its bytes, its crops and the rows."""
        whole = order[number * self.batch_size : (number + 1) * self.batch_size]
        side = self.images.shape[1]
        if self.train:
            crops = random_crops(len(whole), side, self.size, seeded(self.seed, epoch, number + 1))
        else:
            crops = centre_crops(len(whole), side, self.size)
        mine = slice(len(whole) * self.rank // self.world_size, len(whole) * (self.rank + 1) // self.world_size)
        return self.pixels.read(self.slots[whole[mine]], crops[mine]), crops[mine], whole[mine]


def dealt(people: Integers, count: int, generator: torch.Generator) -> tuple[Integers, Integers]:
    """Every person's rows, shuffled, in hands of ``count``: shape ``(H, count)``; and the rows that fill no hand."""
    shuffled: Integers = torch.randperm(len(people), generator=generator).numpy()
    rows = shuffled[np.argsort(people[shuffled], kind="stable")]
    _, counts = np.unique(people, return_counts=True)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    full = within < np.repeat(counts - counts % count, counts)
    return rows[full].reshape(-1, count), rows[~full]


def hands_of(people: Integers, count: int | None, seed: int = 0) -> Integers:
    """The number of each row's hand, shape ``(N,)``: ``count`` pictures of a person, or what is left of them.

    With ``count`` None, a hand has all of a person's pictures.

    Example:
        >>> np.bincount(hands_of(np.array([7, 7, 7, 7, 7, 9]), 2)).tolist()
        [2, 2, 1, 1]
    """
    _, who = np.unique(people, return_inverse=True)
    number = who.astype(np.int64)
    if count is not None:
        hands, left = dealt(people, count, seeded(seed))
        number[hands] = np.arange(len(hands))[:, None]
        number[left] = len(hands) + np.unique(who[left], return_inverse=True)[1]
    return number
