"""Decoded images in one file that every worker and process memory-maps: images are decoded once, not every epoch.

A cache is a folder ``fer-<key>`` with ``images.u8`` (uint8, ``(N, size, size, 3)``, nothing else) and ``index.json``.
The key is a hash of the list of images (path, length and modification time, box) and of their preparation; a cache made
for anything else is never opened. Labels are not part of it. Every name begins with ``fer-``, also for retrieval
images, so that existing caches can still be used.

Building survives interruptions. It writes ``images.partial`` and, after each block is on disk, a line with its checksum
to ``progress.jsonl``. A killed build resumes after the last block whose checksum is correct. A second build waits for
the first at a lock, which the operating system releases if the process ends. The space is reserved before the first
image is decoded. The two files are renamed only when everything is written and synced, ``index.json`` last.

Opening a cache reads all of it once and compares checksums: a damaged cache becomes an unfinished one, and only the
damaged blocks are decoded again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import RawIOBase
from pathlib import Path
from typing import IO, Any, Generic, NamedTuple, TypeVar

import numpy as np
import PIL
from filelock import FileLock

from ..atomic import FULL, write_atomically
from ..messages import problem
from ..stored import DamagedFileError, read_json, write_json
from .decode import Progress, check_decoder, read_face
from .errors import CacheSpaceError, ImageError, enforce
from .image_list import Bytes, ImageList, Integers
from .transforms import centre_square, resize_shorter

FORMAT = 1
BLOCK = 128  # images between two lines of progress: 25 MB at 256 pixels

Images = TypeVar("Images", bound=ImageList)


def cache_key(records: ImageList, size: int, exif: bool = False) -> str:
    """The key of a cache of these images: 64 hexadecimal digits.

    The hash covers, in this order, each file's path relative to the root, its length and modification time, box and
    stretch, then the size, the EXIF option and the format.
    """
    head = {"format": FORMAT, "dataset": records.dataset, "size": size, "exif": exif, "rows": len(records)}
    state = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    state.update(str(records.root.resolve()).encode("utf-8", "surrogateescape"))
    stamps: dict[str, bytes] = {}
    for name in records.path:
        if name not in stamps:
            try:
                status = os.stat(records.root / name)
                stamps[name] = f"\0{name}\0{status.st_size} {status.st_mtime_ns}\0".encode("utf-8", "surrogateescape")
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # a link to itself is no file either
                    raise
                stamps[name] = f"\0{name}\0missing\0".encode("utf-8", "surrogateescape")
        state.update(stamps[name])
    state.update(np.ascontiguousarray(records.box).tobytes())
    state.update(np.ascontiguousarray(records.stretch).tobytes())
    return state.hexdigest()


class _Block(NamedTuple):
    """One line of ``progress.jsonl``."""

    first: int
    checksum: int
    unreadable: list[tuple[int, str]]  # (row, why)

    def line(self) -> bytes:
        return (json.dumps(self) + "\n").encode()


class ImageCache(Generic[Images]):
    """The decoded images of a list of files, memory-mapped.

    Create one with :meth:`open`. It can be sent to other processes: they map the same file, of which the operating
    system keeps one copy for all.

    Attributes:
        folder: its folder.
        records: the images that could be read, in the requested order: a list of the requested kind.
        unreadable: position in the requested list → why, for the others.
        size: side of the images, pixels.
        slots: the index in the file of each record's image, shape ``(len(records),)``.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from adaptive_margin.images import ImageCache, ImageList
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (40, 30), "red").save(root / "one.png")
        >>> cache = ImageCache.open(ImageList.of("mine", root, ["one.png"]), root / "cache", size=16)
        >>> cache.take([0]).shape, cache.take([0])[0, 0, 0].tolist()
        ((1, 16, 16, 3), [255, 0, 0])
    """

    def __init__(self, folder: Path, records: Images, size: int, slots: Integers, unreadable: dict[int, str]) -> None:
        self.folder, self.records, self.size, self.slots, self.unreadable = folder, records, size, slots, unreadable
        self._images: Bytes | None = None

    @property
    def images(self) -> Bytes:
        """The whole file as a read-only memory map, shape ``(slots of the file, size, size, 3)``, uint8."""
        if self._images is None:
            self._images = np.memmap(self.folder / "images.u8", np.uint8, "r").reshape(-1, self.size, self.size, 3)
        return self._images

    def __len__(self) -> int:
        return len(self.records)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the map: the other process opens its own."""
        return {**self.__dict__, "_images": None}

    def take(self, rows: Sequence[int] | Integers) -> Bytes:
        """Copies of the images of ``rows`` (positions in :attr:`records`), shape ``(B, size, size, 3)``, uint8."""
        return self.images[self.slots[np.asarray(rows, dtype=np.int64)]]

    @property
    def bytes_on_disk(self) -> int:
        """Length of the image file."""
        return (self.folder / "images.u8").stat().st_size

    @classmethod
    def open(
        cls,
        records: Images,
        folder: str | os.PathLike[str],
        *,
        size: int = 256,
        skip_unreadable: int | float = 0,
        exif: bool = False,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> ImageCache[Images]:
        """The cache of these images in ``folder``, built if it does not exist, verified if it does.

        Each image is cropped and resized to ``size`` pixels on its shorter side, and the central square is kept. Calls
        from several processes are safe: one builds, the others wait for it. Verification reads the whole file, at the
        speed of the disk; damaged blocks are decoded again.

        Args:
            records: the images, cached in this order.
            folder: folder for caches, created if necessary. It needs N · size² · 3 bytes of space.
            size: side of the cached squares, pixels. The paper crops 224 from 256.
            skip_unreadable: how many images may be missing or damaged: a number, or a share of the rows. They
                are left out of :attr:`records` and named in :attr:`unreadable`.
            exif: rotate images according to their EXIF orientation.
            workers: threads that decode and verify; by default the number of processors.
            progress: called with (images done, total) after each block.

        Raises:
            ValueError: no records, or a size below 1.
            UnreadableError: more images are unreadable than allowed. The decoded images are kept for the next call.
            CacheSpaceError: the disk is too small or fills up; nothing is left there.

        Warns:
            RuntimeWarning: the cache was damaged.
        """
        if not len(records):
            raise ValueError(problem("records", "at least one row", "none", "look at the loader's report"))
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(problem("size", "a whole number of pixels, at least 1", size, "the paper uses 256"))
        check_decoder()
        parent = Path(folder)
        parent.mkdir(parents=True, exist_ok=True)
        key = cache_key(records, size, exif)
        place = parent / f"fer-{key[:24]}"
        threads = workers or os.cpu_count() or 1
        build = _Build(place, key, records, size, exif)
        index = build.finished(threads)
        if index is None:
            with FileLock(parent / f"fer-{key[:24]}.lock"):
                # another may have built it meanwhile
                index = build.finished(threads) or build.run(threads, skip_unreadable, progress)
        unreadable = {int(row): str(why) for row, why in index["unreadable"]}
        enforce(unreadable, records.key, skip_unreadable, records.dataset)
        good = np.setdiff1d(np.arange(len(records)), list(unreadable))
        return cls(place, records.subset(good) if unreadable else records, size, good, unreadable)


def _blocks(index: Mapping[str, Any]) -> list[_Block]:
    """The blocks listed in an index."""
    rows: dict[int, list[tuple[int, str]]] = {}
    for row, why in index["unreadable"]:
        rows.setdefault(int(row) // BLOCK, []).append((int(row), str(why)))
    sums = [int(checksum) for checksum in index["checksums"]]
    if len(sums) != -(-int(index["rows"]) // BLOCK):
        raise ValueError(f"{len(sums)} checksums of {index['rows']} rows")
    return [_Block(number * BLOCK, checksum, rows.get(number, [])) for number, checksum in enumerate(sums)]


def _keep(log: IO[bytes], *blocks: _Block) -> None:
    """Writes lines of ``progress.jsonl`` to disk."""
    log.write(b"".join(block.line() for block in blocks))
    log.flush()
    os.fsync(log.fileno())


class _Build:
    """Verifies one cache and, while the caller holds its lock, builds it."""

    def __init__(self, place: Path, key: str, records: ImageList, size: int, exif: bool) -> None:
        self.place, self.key, self.records, self.size, self.exif = place, key, records, size, exif
        self.image_bytes = size * size * 3
        self.total = len(records) * self.image_bytes
        self.partial, self.log = place / "images.partial", place / "progress.jsonl"

    def finished(self, threads: int) -> dict[str, Any] | None:
        """The index of a finished, undamaged cache; ``None`` if there is none that can be used."""
        images, own = self.place / "images.u8", (self.key, len(self.records), self.size)
        try:
            index = read_json(self.place / "index.json")
            found = images.stat().st_size
            if (index["key"], index["rows"], index["size"]) != own:
                why = "index.json belongs to another cache"
            elif found != self.total:
                why = f"images.u8 has {found:,} bytes, not {self.total:,}"
            else:
                blocks = _blocks(index)
                with ThreadPoolExecutor(max_workers=threads) as pool:
                    wrong = sum(pool.map(lambda block: not self._holds(images, block), blocks))
                if not wrong:
                    return index
                why = f"{wrong:,} of {len(blocks):,} blocks of images.u8 do not match their checksums"
        except FileNotFoundError:
            return None
        except DamagedFileError as error:
            why = f"index.json {error.why}"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"index.json cannot be read: {error}"
        text = f"the image cache {self.place} is damaged ({why}); the damaged part is built again"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
        return None

    def _holds(self, images: Path, block: _Block) -> bool:
        """Whether a block of a file is as it was written; False if the disk cannot read it."""
        offset = block.first * self.image_bytes
        with contextlib.suppress(OSError), open(images, "rb") as file:
            file.seek(offset)
            return zlib.crc32(file.read(min(BLOCK * self.image_bytes, self.total - offset))) == block.checksum
        return False

    def run(self, workers: int, skip_unreadable: int | float, progress: Progress | None) -> dict[str, Any]:
        """Decodes what is still missing and returns the index of the finished cache."""
        self.place.mkdir(exist_ok=True)
        with self._space():
            self._take_back()
            with open(self.partial, "r+b" if self.partial.exists() else "w+b", buffering=0) as images:
                self._reserve(images.fileno())
                blocks = self._done()
                with open(self.log, "wb") as log, ThreadPoolExecutor(max_workers=workers) as pool:
                    _keep(log, *blocks.values())
                    for first in range(0, len(self.records), BLOCK):
                        if first in blocks:
                            continue
                        if progress is not None:
                            progress(first, len(self.records))
                        blocks[first] = self._decode(first, pool, images)
                        _keep(log, blocks[first])
                        if blocks[first].unreadable:
                            found = dict(self._unreadable(blocks))
                            enforce(found, self.records.key, skip_unreadable, self.records.dataset)
                os.fsync(images.fileno())
            index = {
                "format": FORMAT,
                "key": self.key,
                "dataset": self.records.dataset,
                "rows": len(self.records),
                "size": self.size,
                "unreadable": self._unreadable(blocks),
                "checksums": [blocks[first].checksum for first in sorted(blocks)],
                "pillow": PIL.__version__,
            }
            os.replace(self.partial, self.place / "images.u8")  # the index, which makes it visible, comes last
            write_json(self.place / "index.json", index)
            self.log.unlink()
        if progress is not None:
            progress(len(self.records), len(self.records))
        return index

    def _take_back(self) -> None:
        """Turns a damaged cache into an unfinished one; blocks with correct checksums are kept."""
        index, images = self.place / "index.json", self.place / "images.u8"
        if images.exists():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                content = read_json(index)
                if content["key"] == self.key:
                    write_atomically(self.log, b"".join(block.line() for block in _blocks(content)))
        index.unlink(missing_ok=True)
        if images.exists():
            os.replace(images, self.partial)

    @staticmethod
    def _unreadable(blocks: Mapping[int, _Block]) -> list[tuple[int, str]]:
        return [item for first in sorted(blocks) for item in blocks[first].unreadable]

    @contextlib.contextmanager
    def _space(self) -> Iterator[None]:
        """On a full disk, removes what was written and raises."""
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            shutil.rmtree(self.place, ignore_errors=True)
            free = shutil.disk_usage(self.place.parent).free
            raise CacheSpaceError(self.place.parent, self.total, free) from error

    def _reserve(self, file: int) -> None:
        """Reserves all the space at once, so that a disk that is too small is detected before the work starts."""
        status = os.fstat(file)
        held = getattr(status, "st_blocks", 0) * 512  # blocks, not length: a hole holds no space
        if self.total - held > shutil.disk_usage(self.place).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file, 0, self.total)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # a file system without it
                    raise
        os.ftruncate(file, self.total)

    def _done(self) -> dict[int, _Block]:
        """The blocks of an interrupted build whose bytes match the log, by their first row."""
        blocks: dict[int, _Block] = {}
        for line in self.log.read_bytes().splitlines(keepends=True) if self.log.exists() else []:
            try:
                block = _Block(*json.loads(line))
            except (ValueError, TypeError):
                break  # the line that was being written
            if not line.endswith(b"\n") or block.first not in range(0, len(self.records), BLOCK):
                break
            if self._holds(self.partial, block):
                blocks[block.first] = block
        return blocks

    def _decode(self, first: int, pool: ThreadPoolExecutor, file: RawIOBase) -> _Block:
        """Decodes one block and writes it to disk; a slot that cannot be read stays zero and is never used."""
        count = min(BLOCK, len(self.records) - first)
        pixels = np.zeros((count, self.size, self.size, 3), dtype=np.uint8)

        def one(slot: int) -> str | None:
            try:
                face = read_face(self.records[first + slot], self.exif)
            except ImageError as error:
                return f"{error.reason}: {error.detail}"
            pixels[slot] = np.asarray(centre_square(resize_shorter(face, self.size), self.size))
            return None

        reasons = list(pool.map(one, range(count)))
        data = pixels.data.cast("B")
        file.seek(first * self.image_bytes)
        while len(data):  # write, not a writable map: on a full disk a map ends the process with SIGBUS
            data = data[file.write(data) :]
        os.fsync(file.fileno())
        unreadable = [(first + slot, why) for slot, why in enumerate(reasons) if why is not None]
        return _Block(first, zlib.crc32(pixels.data), unreadable)


def cache_bytes(rows: int, size: int = 256) -> int:
    """Length of the image file of a cache, in bytes.

    Args:
        rows: number of images.
        size: their side, pixels.

    Example:
        >>> f"{cache_bytes(320_739) / 2**30:.1f} GiB"
        '58.7 GiB'
    """
    return math.prod((rows, size, size, 3))
