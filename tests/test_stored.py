"""Files that say when they are not what was written: truncated, flipped, zeroed, crafted, and older than digests."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_margin.atomic import TEMPORARY, remove_temporaries, temporaries, write_atomically
from adaptive_margin.stored import (
    DamagedFileError,
    read_arrays,
    read_json,
    read_tensors,
    sealed,
    tensors,
    write_arrays,
    write_json,
)

WEIGHTS = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
VALUES: dict[str, Any] = {
    "figure": 0.1 + 0.2,
    "name": "Zoë \udc80",
    "nothing": None,
    "rows": [1, [2.5]],
    "infinite": 1e400,
}
KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], dict[str, Any]]]] = {
    "tensors": (lambda path: write_atomically(path, tensors({"weight": WEIGHTS, "step": 3})), read_tensors),
    "arrays": (lambda path: write_arrays(path, {"weight": WEIGHTS.numpy(), "word": np.array("ja")}), read_arrays),
    "json": (lambda path: write_json(path, VALUES), read_json),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    pairs = [(found[name], value) for name, value in expected.items()]
    return all(np.array_equal(one, two) if hasattr(two, "shape") else one == two for one, two in pairs)


@kinds
def test_what_comes_back(tmp_path: Path, kind: str) -> None:
    write, read = KINDS[kind]
    write(tmp_path / "file")
    assert same(read(tmp_path / "file"), VALUES if kind == "json" else {"weight": WEIGHTS})


def test_anybody_can_read_them(tmp_path: Path) -> None:
    for kind, (write, _) in KINDS.items():
        write(tmp_path / kind)
    assert torch.equal(torch.load(tmp_path / "tensors", weights_only=True)["weight"], WEIGHTS)
    assert torch.equal(torch.load(tmp_path / "tensors", weights_only=True, mmap=True)["weight"], WEIGHTS)
    with np.load(tmp_path / "arrays") as stored:
        assert np.array_equal(stored["weight"], WEIGHTS)
    assert json.loads((tmp_path / "json").read_text(encoding="utf-8"))["rows"] == [1, [2.5]]


@kinds
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path, kind: str) -> None:
    write, read = KINDS[kind]
    path = tmp_path / "file"
    write(path)
    whole, expected = path.read_bytes(), read(path)
    draw = random.Random(1)
    places = {draw.randrange(8 * len(whole)) for _ in range(300)}
    refused = []
    for place in places:
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            found = read(path)
        except DamagedFileError as error:
            refused.append(error.path == path and str(path) in str(error))
        else:  # a space became a tab, or the word before the digest another one
            assert same(found, expected)
    assert all(refused)
    assert len(refused) > len(places) * (0.6 if kind == "json" else 0.95)


@kinds
@pytest.mark.parametrize("damage", ["cut short", "empty", "half zeroed", "end zeroed", "another file"])
def test_larger_damage(tmp_path: Path, kind: str, damage: str) -> None:
    write, read = KINDS[kind]
    path = tmp_path / "file"
    write(path)
    data = path.read_bytes()
    half = len(data) // 2
    spoilt = {
        "cut short": data[:half],
        "empty": b"",
        "half zeroed": data[:half] + bytes(len(data) - half),
        "end zeroed": data[:-60] + bytes(60),
        "another file": b"\xff\xfe no such thing",
    }
    path.write_bytes(spoilt[damage])
    with pytest.raises(DamagedFileError, match=r"file is damaged.*; say so") as error:
        read(path, remedy="say so")  # type: ignore[call-arg]
    assert error.value.path == path


@pytest.mark.parametrize("kind", ["tensors", "arrays"])
def test_an_archive_without_its_end_is_refused_though_others_read_it(tmp_path: Path, kind: str) -> None:
    write, read = KINDS[kind]
    path = tmp_path / "file"
    write(path)
    whole = path.read_bytes()
    for ending in (whole[:-1], whole[:-64], whole[:-86], whole[:-87], whole[:-1] + b"\0", whole[:-100] + bytes(100)):
        path.write_bytes(ending)
        with pytest.raises(DamagedFileError, match=r"file is damaged"):
            read(path)


def test_files_from_before_there_were_digests(tmp_path: Path) -> None:
    torch.save({"weight": WEIGHTS}, tmp_path / "old.pt")
    np.savez(tmp_path / "old.npz", weight=WEIGHTS.numpy())
    (tmp_path / "old.json").write_text('{"figure": 1.5}')
    assert torch.equal(read_tensors(tmp_path / "old.pt")["weight"], WEIGHTS)
    assert np.array_equal(read_arrays(tmp_path / "old.npz")["weight"], WEIGHTS)
    assert read_json(tmp_path / "old.json") == {"figure": 1.5}


def test_one_that_has_a_digest_in_its_name(tmp_path: Path) -> None:
    torch.save({"weight": WEIGHTS}, tmp_path / "step-000000001-0123456789abcdef.pt")
    with pytest.raises(DamagedFileError, match="do not match the checksum in its name"):
        read_tensors(tmp_path / "step-000000001-0123456789abcdef.pt")


def test_deep_or_other_json(tmp_path: Path) -> None:
    (tmp_path / "deep").write_text("[" * 100_000)
    (tmp_path / "list").write_text("[1]")
    with pytest.raises(DamagedFileError, match="deep is damaged"):
        read_json(tmp_path / "deep")
    with pytest.raises(DamagedFileError, match="list holds no mapping but list"):
        read_json(tmp_path / "list")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


def test_only_an_archive_is_sealed_and_only_once() -> None:
    archive = io.BytesIO()
    torch.save({}, archive)
    sealed(archive)
    for wrong in (archive, io.BytesIO(b"short")):
        with pytest.raises(ValueError, match="not a zip archive without a comment"):
            sealed(wrong)


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    guessed = iter(["0" * 16, "1" * 16])
    monkeypatch.setattr("adaptive_margin.atomic.secrets.token_hex", lambda _: next(guessed))
    (tmp_path / f".unfinished-{'0' * 16}").symlink_to(victim)
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to(victim)  # as such files were called before
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", b"new")
    write_atomically(tmp_path / "file", b"new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert not (tmp_path / "file").is_symlink()


def test_writers_of_one_name_do_not_share_a_file(tmp_path: Path) -> None:
    """As two containers do that have one process id: here two threads of one process."""
    contents = [bytes([number]) * 200_000 for number in range(8)]

    def write(content: bytes) -> None:
        for _ in range(5):
            remove_temporaries(tmp_path)
            write_atomically(tmp_path / "file", content)
            assert (tmp_path / "file").read_bytes() in contents

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write, contents))  # raises what a thread raised
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_somebody_is_writing_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".mine.tmp").write_text("a user's")
    (tmp_path / ".unfinished-0123456789abcdef").write_text("of a killed process")
    fsync, seen = os.fsync, []

    def meanwhile(descriptor: int) -> None:
        if not seen:
            remove_temporaries(tmp_path)
            seen.extend(temporaries(tmp_path))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_atomically(tmp_path / "file", b"new")
    assert len(seen) == 1
    assert seen[0].match(TEMPORARY)
    assert {path.name for path in tmp_path.iterdir()} == {"file", ".mine.tmp"}


def test_every_flipped_bit_of_a_json_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"figure": 0.1, "names": ["a", "b"], "none": None}, indent=1)
    good = path.read_bytes()
    passed = []
    for at in range(len(good)):
        for bit in range(8):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
            with contextlib.suppress(DamagedFileError):
                passed.append((at, read_json(path)))
    path.write_bytes(good)
    assert all(
        good[at] in b" \n" and content == read_json(path) for at, content in passed
    )  # other spaces, same content


def test_files_older_than_digests_are_read(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    for content in ({}, {"rows": 3}, {"key": "ab" * 32, "rows": 3}, {"commit": "ab" * 20}):
        path.write_text(json.dumps(content))
        assert read_json(path) == content
