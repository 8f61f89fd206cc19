"""Videos whose every byte is known: Matroska with a JPEG picture in each block, at any time, damaged if asked."""

from __future__ import annotations

import io
import struct
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def level(number: int) -> int:
    """How bright frame ``number`` is."""
    return 10 + 5 * number


def element(tag: str, body: bytes) -> bytes:
    """One element of EBML."""
    return bytes.fromhex(tag) + struct.pack(">Q", len(body) | 1 << 56) + body


def _number(tag: str, value: int) -> bytes:
    return element(tag, struct.pack(">Q", value))


def jpeg(number: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """Frame ``number``."""
    data = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), level(number), dtype=np.uint8)).save(data, "JPEG", quality=95)
    return data.getvalue()


def write(path: Path, pictures: Sequence[bytes], milliseconds: Sequence[int], size: tuple[int, int] = (64, 48)) -> Path:
    """A video of JPEG pictures at these times; as of many recorders, the header states no rate."""
    head = _number("4286", 1) + _number("42F7", 1) + _number("42F2", 4) + _number("42F3", 8)
    head += element("4282", b"matroska") + _number("4287", 4) + _number("4285", 2)
    length = element("4489", struct.pack(">d", milliseconds[-1] + 40.0))
    about = element("1549A966", _number("2AD7B1", 1_000_000) + element("4D80", b"x") + element("5741", b"x") + length)
    shape = element("E0", _number("B0", size[0]) + _number("BA", size[1]))
    entry = _number("D7", 1) + _number("73C5", 1) + _number("83", 1) + element("86", b"V_MJPEG") + shape
    blocks = b"".join(
        element("1F43B675", _number("E7", time) + element("A3", b"\x81\0\0\x80" + picture))
        for picture, time in zip(pictures, milliseconds, strict=True)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        element("1A45DFA3", head) + element("18538067", about + element("1654AE6B", element("AE", entry)) + blocks)
    )
    return path


def steady(path: Path, frames: int, *, damaged: Container[int] = (), without: Container[int] = ()) -> Path:
    """25 frames a second, numbered from 1; those ``damaged`` do not decode, those ``without`` are not in the file."""
    numbers = [number for number in range(1, frames + 1) if number not in without]
    pictures = [jpeg(number)[:30] if number in damaged else jpeg(number) for number in numbers]
    return write(path, pictures, [40 * (number - 1) for number in numbers])


UNEVEN = (0, 33, 199, 301, 444, 599, 777, 901, 1003, 1300, 1555, 1800, 2100, 2350)
"""Milliseconds of a recording of variable rate; OpenCV takes its clock for the rate: 1000 frames a second."""


def damage_avi(path: Path, number: int) -> None:
    """Overwrites frame ``number`` of a Motion JPEG AVI file."""
    data = bytearray(path.read_bytes())
    place = data.find(b"movi") + 4
    for _ in range(number):
        place = data.find(b"00dc", place)
        (length,) = struct.unpack_from("<I", data, place + 4)
        start, place = place + 8, place + 8 + length
    data[start:place] = bytes(length)
    path.write_bytes(data)


def skip_in_avi(path: Path, number: int) -> None:
    """Empties frame ``number`` of a Motion JPEG AVI file: the one before is to be shown on."""
    data = bytearray(path.read_bytes())
    place = data.find(b"movi") + 4
    for _ in range(number):
        place = data.find(b"00dc", place)
        (length,) = struct.unpack_from("<I", data, place + 4)
        start, place = place, place + 8 + length
    padded = length + length % 2
    struct.pack_into("<4sI4sI", data, start, b"00dc", 0, b"JUNK", padded - 8)
    struct.pack_into("<I", data, data.find(b"idx1") + 8 + 16 * (number - 1) + 12, 0)
    path.write_bytes(data)
