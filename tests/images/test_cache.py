from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import adaptive_margin.images.cache as module
from adaptive_margin.affect.records import RecordBuilder, Records
from adaptive_margin.images.cache import BLOCK, ImageCache, cache_bytes, cache_key
from adaptive_margin.images.errors import CacheSpaceError, UnreadableError

from ..affect.faces import number_of, numbered

SIZE = 32


def pictures(root: Path, count: int, *, damaged: tuple[int, ...] = (), missing: tuple[int, ...] = ()) -> Records:
    root.mkdir(parents=True, exist_ok=True)
    rows = RecordBuilder("mine", root)
    for number in range(count):
        path = root / f"{number}.png"
        if number not in missing and not path.exists():
            Image.fromarray(numbered(number % 256)).save(path)
            if number in damaged:
                path.write_bytes(path.read_bytes()[:60])
        rows.add(f"row{number}", f"{number}.png", (number / 1000, -number / 1000))
    return rows.build()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_the_cache_has_the_decoded_images(tmp_path):
    records = pictures(tmp_path / "data", 20)
    cache = ImageCache.open(records, tmp_path / "cache", size=SIZE)
    assert cache.images.shape == (20, SIZE, SIZE, 3)
    assert cache.images.dtype == np.uint8
    assert not cache.images.flags.writeable
    assert cache.bytes_on_disk == cache_bytes(20, SIZE) == 20 * SIZE * SIZE * 3
    assert [number_of(image) for image in cache.take(range(20))] == list(range(20))
    assert [number_of(image) for image in cache.take([7, 3, 7])] == [7, 3, 7]
    direct = Image.open(tmp_path / "data" / "5.png").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert np.array_equal(cache.take([5])[0], np.asarray(direct))
    assert files(tmp_path / "cache") == {"images.u8", "index.json"}


def test_it_is_built_once(tmp_path, monkeypatch):
    records = pictures(tmp_path / "data", 10)
    done = []
    ImageCache.open(records, tmp_path / "cache", size=SIZE, progress=lambda *counts: done.append(counts))
    assert done == [(0, 10), (10, 10)]

    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(module, "read_face", fail)
    again = ImageCache.open(records, tmp_path / "cache", size=SIZE)
    assert number_of(again.take([9])[0]) == 9


def test_whatever_changes_the_pictures_changes_the_key(tmp_path):
    records = pictures(tmp_path / "data", 6)
    keys = {
        cache_key(records, 32),
        cache_key(records, 33),
        cache_key(records, 32, exif=True),
        cache_key(records.subset([1, 0, 2, 3, 4, 5]), 32),
        cache_key(records.subset([0, 1, 2, 3, 4]), 32),
    }
    assert cache_key(records, 32) == cache_key(pictures(tmp_path / "data", 6), 32)
    boxed = pictures(tmp_path / "data", 6)
    object.__setattr__(boxed, "box", np.zeros_like(boxed.box))
    keys.add(cache_key(boxed, 32))
    relabelled = pictures(tmp_path / "data", 6)
    object.__setattr__(relabelled, "labels", relabelled.labels + 0.1)
    assert cache_key(relabelled, 32) == cache_key(records, 32)  # labels are not in the cache
    path = tmp_path / "data" / "3.png"
    Image.fromarray(numbered(99)).save(path)
    keys.add(cache_key(records, 32))
    os.utime(path, ns=(1, 1))
    keys.add(cache_key(records, 32))
    path.unlink()
    keys.add(cache_key(records, 32))
    assert len(keys) == 9


def test_a_changed_picture_is_never_served_from_the_old_cache(tmp_path):
    records = pictures(tmp_path / "data", 4)
    old = ImageCache.open(records, tmp_path / "cache", size=SIZE)
    Image.fromarray(numbered(200)).save(tmp_path / "data" / "2.png")
    new = ImageCache.open(records, tmp_path / "cache", size=SIZE)
    assert new.folder != old.folder
    assert number_of(new.take([2])[0]) == 200


def test_unreadable_images_are_named_counted_and_never_blank(tmp_path):
    records = pictures(tmp_path / "data", 12, damaged=(3, 7), missing=(10,))
    with pytest.raises(UnreadableError, match="3 of 12 rows unreadable, none allowed") as raised:
        ImageCache.open(records, tmp_path / "cache", size=SIZE)
    assert "row3: undecodable: " in str(raised.value)
    assert "row10: missing file: no such file" in str(raised.value)
    with pytest.raises(UnreadableError, match="at most 2 allowed"):
        ImageCache.open(records, tmp_path / "cache", size=SIZE, skip_unreadable=2)
    cache = ImageCache.open(records, tmp_path / "cache", size=SIZE, skip_unreadable=0.25)
    assert set(cache.unreadable) == {3, 7, 10}
    assert len(cache) == 9
    good = [0, 1, 2, 4, 5, 6, 8, 9, 11]
    assert list(cache.records.key) == [f"row{number}" for number in good]
    assert [number_of(image) for image in cache.take(range(9))] == good
    assert cache.slots.tolist() == good
    with pytest.raises(UnreadableError):  # the limit holds for a cache that is there, too
        ImageCache.open(records, tmp_path / "cache", size=SIZE)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda place: os.truncate(place / "images.u8", 1000),
        lambda place: os.truncate(place / "images.u8", 10**6),
        lambda place: (place / "index.json").write_text('{"key": "ab'),
        lambda place: (place / "index.json").write_text('{"key": "other", "rows": 5, "size": 32}'),
        lambda place: (place / "index.json").write_text("[]"),
    ],
    ids=["short", "long", "torn index", "another's index", "no index"],
)
def test_a_damaged_cache_is_noticed_and_built_again(tmp_path, spoil):
    records = pictures(tmp_path / "data", 5)
    cache = ImageCache.open(records, tmp_path / "cache", size=SIZE)
    spoil(cache.folder)
    with pytest.warns(RuntimeWarning, match="is damaged .*; the damaged part is built again"):
        again = ImageCache.open(records, tmp_path / "cache", size=SIZE)
    assert [number_of(image) for image in again.take(range(5))] == list(range(5))


def test_a_missing_part_is_built_again(tmp_path):
    records = pictures(tmp_path / "data", 5)
    cache = ImageCache.open(records, tmp_path / "cache", size=SIZE)
    (cache.folder / "images.u8").unlink()
    again = ImageCache.open(records, tmp_path / "cache", size=SIZE)
    assert number_of(again.take([4])[0]) == 4


@pytest.mark.parametrize(
    ("start", "length", "again"),
    [
        (BLOCK + 3, 1, [1]),  # one picture of the second block
        (0, BLOCK + 5, [0, 1]),
        (2 * BLOCK, 10, [2]),  # the last block, which is shorter
    ],
    ids=["a picture", "half of it", "the end"],
)
def test_a_cache_that_was_zeroed_is_decoded_again_where_it_was(tmp_path, monkeypatch, start, length, again):
    count = 2 * BLOCK + 10
    records = pictures(tmp_path / "data", count)
    cache = ImageCache.open(records, tmp_path / "cache", size=16)
    whole = cache.images.tobytes()
    each = 16 * 16 * 3
    with open(cache.folder / "images.u8", "r+b") as file:
        file.seek(start * each)
        file.write(bytes(length * each))
    decoded = []
    original = module.read_face

    def watch(record, exif):
        decoded.append(int(record.key[3:]))
        return original(record, exif)

    monkeypatch.setattr(module, "read_face", watch)
    with pytest.warns(RuntimeWarning, match=rf"{len(again)} of 3 blocks of images.u8 do not match their checksums"):
        mended = ImageCache.open(records, tmp_path / "cache", size=16)
    rows = [row for block in again for row in range(block * BLOCK, min(count, (block + 1) * BLOCK))]
    assert sorted(decoded) == rows
    assert mended.images.tobytes() == whole
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageCache.open(records, tmp_path / "cache", size=16)
    assert files(tmp_path / "cache") == {"images.u8", "index.json"}


def test_no_flipped_bit_is_trained_on(tmp_path):
    records = pictures(tmp_path / "data", 12, damaged=(3,))
    cache = ImageCache.open(records, tmp_path / "cache", size=8, skip_unreadable=1)
    expected, draw = cache.take(range(11)), random.Random(0)
    for name in ["images.u8", "index.json"] * 15:
        path = cache.folder / name
        data = bytearray(path.read_bytes())
        place = draw.randrange(8 * len(data))
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = ImageCache.open(records, tmp_path / "cache", size=8, skip_unreadable=1)
        assert again.slots.tolist() == cache.slots.tolist()
        assert np.array_equal(again.take(range(11)), expected)


def test_unreadable_rows_of_a_damaged_cache_are_remembered(tmp_path):
    records = pictures(tmp_path / "data", BLOCK + 10, damaged=(2, BLOCK + 1))
    cache = ImageCache.open(records, tmp_path / "cache", size=16, skip_unreadable=2)
    with open(cache.folder / "images.u8", "r+b") as file:
        file.write(b"\xff")
    with pytest.warns(RuntimeWarning, match="1 of 2 blocks"):
        again = ImageCache.open(records, tmp_path / "cache", size=16, skip_unreadable=2)
    assert again.unreadable == cache.unreadable
    assert set(again.unreadable) == {2, BLOCK + 1}


def test_a_cache_from_before_its_index_had_a_digest(tmp_path):
    records = pictures(tmp_path / "data", 5)
    cache = ImageCache.open(records, tmp_path / "cache", size=SIZE)
    index = json.loads((cache.folder / "index.json").read_text())
    assert index.pop("sha256")
    (cache.folder / "index.json").write_text(json.dumps(index))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = ImageCache.open(records, tmp_path / "cache", size=SIZE)
    assert [number_of(image) for image in again.take(range(5))] == list(range(5))


FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def forked(work) -> int:
    """Runs ``work`` in a child process, which imports nothing anew; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException as error:
        os._exit(42 if isinstance(error, CacheSpaceError) else 1)
    os._exit(0)


@FORK
def test_a_killed_build_goes_on_where_it_stopped(tmp_path, monkeypatch):
    count = 3 * BLOCK + 20
    records = pictures(tmp_path / "data", count)
    original = module.read_face

    def slow(record, exif):
        time.sleep(0.005)
        return original(record, exif)

    def work():
        module.read_face = slow
        ImageCache.open(records, tmp_path / "cache", size=16, workers=1)

    child = forked(work)
    log = tmp_path / "cache" / f"fer-{cache_key(records, 16)[:24]}" / "progress.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not log.exists() or len(log.read_bytes().splitlines()) < 1):
        time.sleep(0.02)
    time.sleep(0.3)  # into the second block
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    place = log.parent
    assert files(place) == {"images.partial", "progress.jsonl"}
    done = len(log.read_bytes().splitlines())
    assert 1 <= done < 4
    decoded = []

    def watch(record, exif):
        decoded.append(record.key)
        return original(record, exif)

    monkeypatch.setattr(module, "read_face", watch)
    cache = ImageCache.open(records, tmp_path / "cache", size=16)
    assert sorted(decoded) == sorted(f"row{number}" for number in range(done * BLOCK, count))
    assert [number_of(image) for image in cache.take(range(count))] == [number % 256 for number in range(count)]
    assert files(tmp_path / "cache") == {"images.u8", "index.json"}


@pytest.mark.parametrize(
    ("spoil", "kept"),
    [
        (lambda place: None, 2),
        (lambda place: _edit(place / "progress.jsonl", lambda data: data[:-4]), 1),  # a line torn by a crash
        (lambda place: _edit(place / "progress.jsonl", lambda data: data + b"[256, 1"), 2),
        (lambda place: _edit(place / "images.partial", lambda data: b"\xff" + data[1:]), 0),  # bytes that never arrived
        (lambda place: os.truncate(place / "images.partial", (BLOCK + 5) * 16 * 16 * 3), 1),
        (lambda place: (place / "progress.jsonl").unlink(), 0),
        (lambda place: (place / "images.partial").unlink(), 0),
    ],
    ids=["as left", "torn line", "half a line", "lost bytes", "short", "no log", "no images"],
)
def test_an_interrupted_build_trusts_only_what_its_checksums_say(tmp_path, monkeypatch, spoil, kept):
    count = 2 * BLOCK + 30
    records = pictures(tmp_path / "data", count)
    original = module.read_face

    def stop(record, exif):
        if record.key == f"row{2 * BLOCK + 3}":
            raise KeyboardInterrupt
        return original(record, exif)

    monkeypatch.setattr(module, "read_face", stop)
    with pytest.raises(KeyboardInterrupt):
        ImageCache.open(records, tmp_path / "cache", size=16, workers=1)
    place = next((tmp_path / "cache").glob("fer-*/"))
    spoil(place)
    decoded = []

    def watch(record, exif):
        decoded.append(int(record.key[3:]))
        return original(record, exif)

    monkeypatch.setattr(module, "read_face", watch)
    cache = ImageCache.open(records, tmp_path / "cache", size=16, workers=1)
    assert min(decoded) == kept * BLOCK
    assert [number_of(image) for image in cache.take(range(count))] == [number % 256 for number in range(count)]


def _edit(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


def test_unreadable_rows_of_an_interrupted_build_are_remembered(tmp_path):
    records = pictures(tmp_path / "data", BLOCK + 10, damaged=(2, BLOCK + 1))
    with pytest.raises(UnreadableError, match="2 of 138 rows unreadable, at most 1 allowed"):
        ImageCache.open(records, tmp_path / "cache", size=16, skip_unreadable=1)
    cache = ImageCache.open(records, tmp_path / "cache", size=16, skip_unreadable=2)
    assert set(cache.unreadable) == {2, BLOCK + 1}


@FORK
def test_two_processes_build_one_cache(tmp_path):
    count = BLOCK + 40
    records = pictures(tmp_path / "data", count)
    log = tmp_path / "decoded"
    original = module.read_face

    def noted(record, exif):
        with open(log, "a") as file:
            file.write(f"{record.key}\n")
        time.sleep(0.002)
        return original(record, exif)

    def work():
        module.read_face = noted
        cache = ImageCache.open(records, tmp_path / "cache", size=16, workers=1)
        assert [number_of(image) for image in cache.take(range(count))] == list(range(count))

    for child in [forked(work) for _ in range(3)]:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(log.read_text().split()) == sorted(f"row{number}" for number in range(count))  # each decoded once
    assert files(tmp_path / "cache") == {"images.u8", "index.json"}


def test_a_disk_too_small_is_found_before_the_work(tmp_path, monkeypatch):
    records = pictures(tmp_path / "data", 10)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1000))

    def fail(*_):
        raise AssertionError("decoded before the space was there")

    monkeypatch.setattr(module, "read_face", fail)
    with pytest.raises(CacheSpaceError, match=r"the image cache needs 0\.0 MiB in .*, 0\.0 MiB are free") as raised:
        ImageCache.open(records, tmp_path / "cache", size=SIZE)
    assert raised.value.errno == errno.ENOSPC
    assert files(tmp_path / "cache") == set()


class FullDisk:
    """A file on a disk that fills up after some bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(data)
        return self.file.write(data)


@pytest.mark.parametrize("name", ["images.partial", "progress.jsonl"])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch, name):
    records = pictures(tmp_path / "data", 2 * BLOCK)
    room = {"images.partial": int(1.5 * BLOCK * 16 * 16 * 3), "progress.jsonl": 30}[name]

    def opened(path, *args, **options):
        file = open(path, *args, **options)  # noqa: SIM115
        return FullDisk(file, room) if Path(path).name == name else file

    monkeypatch.setattr(module, "open", opened, raising=False)
    with pytest.raises(CacheSpaceError, match="nothing was left behind: choose a folder on another disk"):
        ImageCache.open(records, tmp_path / "cache", size=16)
    assert files(tmp_path / "cache") == set()
    monkeypatch.undo()
    assert len(ImageCache.open(records, tmp_path / "cache", size=16)) == 2 * BLOCK


@FORK
def test_a_real_limit_on_the_file_size(tmp_path):
    """The kernel itself refuses the space: a limit on the size of files."""
    resource = pytest.importorskip("resource")
    records = pictures(tmp_path / "data", 40)

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        ImageCache.open(records, tmp_path / "cache", size=16)

    child = forked(work)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42  # CacheSpaceError
    assert files(tmp_path / "cache") == set()


def test_a_file_system_that_cannot_reserve_is_served(tmp_path, monkeypatch):
    records = pictures(tmp_path / "data", 5)

    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    assert len(ImageCache.open(records, tmp_path / "cache", size=SIZE)) == 5


def _numbers(cache: ImageCache, rows: list[int]) -> list[int]:
    assert isinstance(cache.images.base, np.memmap) or isinstance(cache.images, np.memmap)
    return [number_of(image) for image in cache.take(rows)]


@FORK
def test_workers_share_one_map(tmp_path):
    cache = ImageCache.open(pictures(tmp_path / "data", 8), tmp_path / "cache", size=SIZE)
    sent = pickle.dumps(cache)
    assert len(sent) < 5000  # the map is opened there, not sent
    assert _numbers(pickle.loads(sent), [0, 1]) == [0, 1]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(_numbers, [(cache, [0, 1]), (cache, [7])]) == [[0, 1], [7]]


def test_the_central_square_of_what_is_not_square(tmp_path):
    image = np.concatenate([np.zeros((64, 32, 3)), np.full((64, 64, 3), 200), np.zeros((64, 32, 3))], axis=1)
    Image.fromarray(image.astype(np.uint8)).save(tmp_path / "wide.png")
    rows = RecordBuilder("mine", tmp_path)
    rows.add("wide", "wide.png", (0.0, 0.0))
    cache = ImageCache.open(rows.build(), tmp_path / "cache", size=64)
    assert (cache.take([0]) == 200).all()


def test_options(tmp_path):
    records = pictures(tmp_path / "data", 2)
    with pytest.raises(ValueError, match="records must be at least one row"):
        ImageCache.open(records.subset([]), tmp_path)
    for size in (0, 2.5, True):
        with pytest.raises(ValueError, match="size must be a whole number of pixels"):
            ImageCache.open(records, tmp_path, size=size)


def test_the_index_says_what_it_was_made_with(tmp_path):
    cache = ImageCache.open(pictures(tmp_path / "data", 2), tmp_path / "cache", size=SIZE)
    index = json.loads((cache.folder / "index.json").read_text())
    assert (index["rows"], index["size"], index["dataset"], index["unreadable"]) == (2, SIZE, "mine", [])
