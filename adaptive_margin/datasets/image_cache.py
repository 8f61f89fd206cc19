"""Decoded faces in one file that every worker and process maps: decoding is paid once, not every epoch.

A cache is a folder ``fer-<key>`` with ``images.u8`` (uint8, ``(N, size, size, 3)``, nothing else) and ``index.json``.
The key is a hash of the list of images (path, length and time of change, box) and of how they are prepared; a cache
made for anything else is never opened. Labels are not in it: they come from the records.

Building survives what goes wrong. It writes ``images.partial`` and, after each block is on the disk, one line with its
checksum to ``progress.jsonl``; a build that was killed goes on after the last block whose checksum holds. A lock that
the operating system releases with the process keeps a second build waiting for the first. The space is reserved before
the first image is decoded. Only when all is written and synchronised are the two files renamed, ``index.json`` last.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from filelock import FileLock

from ..atomic import write_atomically
from ..functional.checks import problem
from .errors import CacheSpaceError, ImageError
from .images import Progress, check_decoder, enforce, read_face
from .records import Integers, Records
from .transforms import centre_square, resize_shorter

FORMAT = 1
BLOCK = 128  # images between two lines of progress: 25 MB at 256 pixels

Bytes = npt.NDArray[np.uint8]


def cache_key(records: Records, size: int, exif: bool = False) -> str:
    """What a cache of these images would be called: 64 hexadecimal digits.

    Hashed are, in order, each file's path below the root, its length and time of change, box and stretch, then the
    size, the EXIF option and the format. Labels and identities are not: relabelling keeps the cache.
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


@dataclass(frozen=True)
class _Block:
    """One line of ``progress.jsonl``."""

    first: int
    checksum: int
    unreadable: tuple[tuple[int, str], ...]  # (row, why)

    def line(self) -> bytes:
        return (json.dumps([self.first, self.checksum, self.unreadable], ensure_ascii=True) + "\n").encode()

    @classmethod
    def parse(cls, line: bytes) -> _Block:
        first, checksum, unreadable = json.loads(line)
        return cls(int(first), int(checksum), tuple((int(row), str(why)) for row, why in unreadable))


class ImageCache:
    """The decoded images of a list of records, mapped into memory.

    Make one with :meth:`open`. It can be sent to other processes: they map the same file, and the operating system
    keeps one copy of it for all.

    Attributes:
        folder: where it lies.
        records: the rows whose images could be read, in the order asked for.
        unreadable: key of the row → why, for the others.
        size: side of the images, pixels.
        slots: which image of the file belongs to each record, shape ``(len(records),)``.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from adaptive_margin.datasets import ImageCache
        >>> from adaptive_margin.datasets.records import RecordBuilder
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (40, 30), "red").save(root / "one.png")
        >>> rows = RecordBuilder("mine", root)
        >>> rows.add("one", "one.png", (0.5, 0.25))
        >>> cache = ImageCache.open(rows.build(), root / "cache", size=16)
        >>> cache.take([0]).shape, cache.take([0])[0, 0, 0].tolist()
        ((1, 16, 16, 3), [255, 0, 0])
    """

    def __init__(self, folder: Path, records: Records, size: int, slots: Integers, unreadable: dict[str, str]) -> None:
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
        """Without the map: the other process opens its own."""
        return {**self.__dict__, "_images": None}

    def take(self, rows: Sequence[int] | Integers) -> Bytes:
        """Copies of the images of ``rows`` (positions in :attr:`records`), shape ``(B, size, size, 3)``, uint8."""
        return self.images[self.slots[np.asarray(rows, dtype=np.int64)]]

    @property
    def bytes_on_disk(self) -> int:
        """Length of the image file."""
        return (self.folder / "images.u8").stat().st_size

    def damaged(self, progress: Progress | None = None) -> list[int]:
        """Reads the whole file and compares checksums: the first slot of each block that changed since the build."""
        checksums = json.loads((self.folder / "index.json").read_text())["checksums"]
        found = []
        for number, checksum in enumerate(checksums):
            if zlib.crc32(self.images[number * BLOCK : (number + 1) * BLOCK].tobytes()) != checksum:
                found.append(number * BLOCK)
            if progress is not None:
                progress(number + 1, len(checksums))
        return found

    @classmethod
    def open(
        cls,
        records: Records,
        folder: str | os.PathLike[str],
        *,
        size: int = 256,
        skip_unreadable: int | float = 0,
        exif: bool = False,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> ImageCache:
        """The cache of these images below ``folder``, built now if it is not there.

        Each face is cut out, brought to ``size`` pixels on its shorter side, and of that the central square is
        kept. Calls from several processes are safe: one builds, the others wait for it.

        Args:
            records: the rows; their images are cached in this order.
            folder: where caches live; made if missing. N · size² · 3 bytes are needed there.
            size: side of the cached squares, pixels. The paper crops 224 out of 256.
            skip_unreadable: how many images may be missing or damaged: a number, or a share of the rows. They
                are left out of :attr:`records` and named in :attr:`unreadable`.
            exif: turn images as their EXIF orientation says.
            workers: decoding threads; as many as there are processors unless given.
            progress: called with (images done, of how many) after each block.

        Raises:
            ValueError: no records, or a size below 1.
            UnreadableError: more images are unreadable than allowed. What was decoded is kept for the next call.
            CacheSpaceError: the disk is too small or fills up; nothing is left there.
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
        index = _complete(place, key, len(records), size)
        if index is None:
            with FileLock(parent / f"fer-{key[:24]}.lock"):
                index = _complete(place, key, len(records), size)  # another process may have built it meanwhile
                if index is None:
                    build = _Build(place, key, records, size, exif)
                    index = build.run(workers or os.cpu_count() or 1, skip_unreadable, progress)
        bad = {int(row): str(why) for row, why in index["unreadable"]}
        unreadable = {records.key[row]: why for row, why in bad.items()}
        enforce(unreadable, len(records), skip_unreadable, records.dataset)
        good = np.array([row for row in range(len(records)) if row not in bad], dtype=np.int64)
        kept = records if not bad else records.subset(good)
        return cls(place, kept, size, good, unreadable)


def _complete(place: Path, key: str, rows: int, size: int) -> dict[str, Any] | None:
    """The index of a finished cache, or ``None`` where there is none that can be used."""
    try:
        index: dict[str, Any] = json.loads((place / "index.json").read_text())
        expected, found = rows * size * size * 3, (place / "images.u8").stat().st_size
        good = index["key"] == key and index["rows"] == rows and index["size"] == size
        if good and found == expected:
            return index
        why = f"images.u8 has {found:,} bytes, not {expected:,}" if good else "index.json belongs to another cache"
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        why = f"index.json cannot be read: {error}"
    warnings.warn(f"the image cache {place} is damaged ({why}) and is built again", RuntimeWarning, stacklevel=3)
    return None


class _Build:
    """Builds one cache; the caller holds its lock."""

    def __init__(self, place: Path, key: str, records: Records, size: int, exif: bool) -> None:
        self.place, self.key, self.records, self.size, self.exif = place, key, records, size, exif
        self.image_bytes = size * size * 3
        self.total = len(records) * self.image_bytes
        self.partial, self.log = place / "images.partial", place / "progress.jsonl"

    def run(self, workers: int, skip_unreadable: int | float, progress: Progress | None) -> dict[str, Any]:
        """Decodes what is still missing and returns the index of the finished cache."""
        self.place.mkdir(exist_ok=True)
        (self.place / "index.json").unlink(missing_ok=True)  # of a damaged cache
        (self.place / "images.u8").unlink(missing_ok=True)
        with self._space(), open(self.partial, "r+b" if self.partial.exists() else "w+b", buffering=0) as images:
            self._reserve(images.fileno())
            blocks = self._done(images)
            with open(self.log, "wb") as log, ThreadPoolExecutor(max_workers=workers) as pool:
                for block in blocks:
                    log.write(block.line())
                log.flush()
                os.fsync(log.fileno())
                found = [item for block in blocks for item in block.unreadable]
                for first in range(len(blocks) * BLOCK, len(self.records), BLOCK):
                    if progress is not None:
                        progress(first, len(self.records))
                    block = self._decode(first, pool, images)
                    log.write(block.line())
                    log.flush()
                    os.fsync(log.fileno())
                    blocks.append(block)
                    if block.unreadable:
                        found += block.unreadable
                        named = {self.records.key[row]: why for row, why in found}
                        enforce(named, len(self.records), skip_unreadable, self.records.dataset)
            os.fsync(images.fileno())
            index = {
                "format": FORMAT,
                "key": self.key,
                "dataset": self.records.dataset,
                "rows": len(self.records),
                "size": self.size,
                "unreadable": found,
                "checksums": [block.checksum for block in blocks],
                "pillow": PIL.__version__,
            }
            self._finish(index)
        if progress is not None:
            progress(len(self.records), len(self.records))
        return index

    @contextlib.contextmanager
    def _space(self) -> Iterator[None]:
        """Takes a full disk back to where it was, and says so."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            shutil.rmtree(self.place, ignore_errors=True)
            free = shutil.disk_usage(self.place.parent).free
            raise CacheSpaceError(self.place.parent, self.total, free) from error

    def _reserve(self, file: int) -> None:
        """Takes all the space at once, so that a disk too small is found before the work and not after it."""
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

    def _done(self, file: RawIOBase) -> list[_Block]:
        """The blocks that an interrupted build left, up to the first whose bytes are not what was logged."""
        blocks: list[_Block] = []
        try:
            lines = self.log.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return blocks
        for line in lines:
            try:
                block = _Block.parse(line)
            except (ValueError, TypeError):
                break  # the line that was being written
            first = len(blocks) * BLOCK
            length = min(BLOCK, len(self.records) - first) * self.image_bytes
            if not line.endswith(b"\n") or block.first != first or length <= 0:
                break
            if zlib.crc32(_read(file, length, first * self.image_bytes)) != block.checksum:
                break
            blocks.append(block)
        return blocks

    def _decode(self, first: int, pool: ThreadPoolExecutor, file: RawIOBase) -> _Block:
        """Decodes one block and puts it on the disk; a slot that cannot be read stays zero and is never served."""
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
        unreadable = tuple((first + slot, why) for slot, why in enumerate(reasons) if why is not None)
        return _Block(first, zlib.crc32(pixels.data), unreadable)

    def _finish(self, index: dict[str, Any]) -> None:
        """Makes the cache visible: the images first, the index last."""
        os.replace(self.partial, self.place / "images.u8")
        write_atomically(self.place / "index.json", json.dumps(index).encode())
        self.log.unlink()


def _read(file: RawIOBase, length: int, offset: int) -> bytes:
    """``length`` bytes from ``offset``, fewer at the end of the file."""
    file.seek(offset)
    pieces = []
    while length > 0 and (piece := file.read(length)):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def cache_bytes(rows: int, size: int = 256) -> int:
    """How long the image file of a cache is.

    Args:
        rows: images.
        size: their side, pixels.

    Example:
        >>> f"{cache_bytes(320_739) / 2**30:.1f} GiB"
        '58.7 GiB'
    """
    return math.prod((rows, size, size, 3))
