from __future__ import annotations

import errno
import struct

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from adaptive_margin.images.decode import IMAGE_SUFFIXES, check_decoder, read_image, square_box, to_rgb
from adaptive_margin.images.errors import ImageError

from ..affect.faces import numbered


def saved(path, image, **options):
    Image.fromarray(image).save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = numbered(0b10110010)
    image = Image.fromarray(grey)
    if mode in ("I;16", "I"):
        image = Image.fromarray(grey[:, :, 0].astype(np.uint16) * 257)
        assert image.mode == "I;16"
    else:
        image = image.quantize(64) if mode == "P" else image.convert(mode)
    suffix = {"CMYK": "tif", "YCbCr": "tif"}.get(mode, "png")
    image.save(tmp_path / f"a.{suffix}")
    read = read_image(tmp_path / f"a.{suffix}")
    assert read.mode == "RGB"
    found = np.asarray(read).astype(int)
    if mode == "1":
        assert set(np.unique(found)) <= {0, 255}
    else:
        assert np.abs(found - grey.astype(int)).max() <= 2


@pytest.mark.parametrize(
    ("name", "kind", "white"),
    [
        ("a.tif", np.float32, 1),
        ("a.tif", np.float32, 255),
        ("a.pfm", np.float32, 1),
        ("a.tif", np.int32, 255),
        ("a.tif", np.int32, 65535),
    ],
)
def test_grey_of_32_bits_is_not_read_as_black(tmp_path, name, kind, white):
    path = saved(tmp_path / name, grey := (np.arange(64 * 64).reshape(64, 64) / 4095 * white).astype(kind))
    found = np.asarray(read_image(path)).astype(int)
    assert np.abs(found - grey[..., None] / white * 255).max() <= 1.01
    part = np.asarray(read_image(path, (0, 0, 64, 4)))  # dark, and read as in the whole
    assert np.array_equal(part, found[:4])


@pytest.mark.parametrize("wrong", [-1.0, 1e6, np.nan, np.inf, -(2**31)])
def test_grey_whose_white_nobody_knows_is_refused(tmp_path, wrong):
    grey = np.full((8, 8), 0.5, dtype=np.float32)
    grey[3, 3] = wrong
    path = saved(tmp_path / "a.tif", grey.astype(np.int32) if wrong == -(2**31) else grey)
    with pytest.raises(ImageError, match=r"of values from 0 to 1, 255 or 65,535, got from .*; save it with 8 or 16"):
        read_image(path)


def test_alpha_is_left_out_not_painted_over():
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert to_rgb(image).getpixel((0, 0)) == (10, 20, 30)
    palette = image.convert("RGB").quantize(4)
    palette.info["transparency"] = b"\0" * 4
    assert to_rgb(palette).getpixel((0, 0)) == (10, 20, 30)


def test_content_decides_not_the_extension(tmp_path):
    saved(tmp_path / "a.png", numbered(9)).rename(tmp_path / "a.jpg")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.jpg")), numbered(9))


def test_boxes_are_clamped(tmp_path):
    path = saved(tmp_path / "a.png", numbered(1))
    assert read_image(path, (-5, -5, 30.4, 1000)).size == (30, 64)
    assert read_image(path, (9.6, 0, 20, 20)).size == (10, 20)
    for box in ((100, 0, 120, 20), (-30, 0, -10, 20), (5, 5, 5.4, 20)):
        with pytest.raises(ImageError, match=r"undecodable \(the box"):
            read_image(path, box)


def test_orientation_only_when_asked(tmp_path):
    image = Image.fromarray(numbered(3)[:32])
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert read_image(tmp_path / "a.jpg").size == (64, 32)
    assert read_image(tmp_path / "a.jpg", exif=True).size == (32, 64)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillows(tmp_path, orientation):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 32, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png", exif=True)), expected)


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [
        (0x011A, 10, struct.pack("<ii", -1, 0)),  # XResolution −1/0
        (0x011A, 2, b"text here\0"),
        (0x0128, 2, b"inches\0\0"),  # ResolutionUnit
        (0x0100, 2, b"wide\0\0\0\0"),  # ImageWidth
        (0x0110, 12, b"\xff" * 8),  # a camera's name that is a number, and none
    ],
)
def test_only_the_orientation_turns_a_photo(tmp_path, tag, kind, value):
    """Pillow's own way writes all tags back, and fails on one that has nothing to do with it."""
    size = {2: 1, 10: 8, 12: 8}[kind]
    entries = [
        (0x0112, 3, 1, struct.pack("<HH", 6, 0)),
        (tag, kind, len(value) // size, struct.pack("<I", 8 + 2 + 24 + 4)),
    ]
    rows = b"".join(struct.pack("<HHI", *row[:3]) + row[3] for row in sorted(entries))
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + rows + struct.pack("<I", 0) + value
    Image.fromarray(numbered(3)[:32]).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert read_image(tmp_path / "a.jpg").size == (64, 32)
    assert read_image(tmp_path / "a.jpg", exif=True).size == (32, 64)


def test_exif_that_cannot_be_parsed_turns_nothing(tmp_path):
    image = Image.fromarray(numbered(3)[:32])
    for number, exif in enumerate((b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense")):
        image.save(tmp_path / f"{number}.jpg", exif=exif, quality=95)
        assert read_image(tmp_path / f"{number}.jpg", exif=True).size == (64, 32)


def test_a_picture_too_large_for_the_memory_is_not_decoded(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", numbered(1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ImageError, match=r"got 64x64; raise PIL\.Image\.MAX"),
    ):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)  # the remedy
    assert read_image(path).size == (64, 64)


def test_the_endings_are_pillows():
    assert {".jpg", ".jfif", ".jpe", ".ppm", ".pgm", ".webp", ".tiff", ".bmp", ".gif"} <= IMAGE_SUFFIXES
    assert not {".pdf", ".mpg", ".h5", ".eps", ".txt", ".mp4"} & IMAGE_SUFFIXES


def test_stretching(tmp_path):
    path = saved(tmp_path / "a.png", numbered(1))
    assert read_image(path, stretch=4 / 3).size == (85, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_truncated_files_are_never_grey(tmp_path, kind):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path / "a.jpg", noise, format=kind)
    whole = path.read_bytes()
    assert read_image(path).size == (64, 64)
    for share in (0.0, 0.01, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ImageError, match="undecodable") as raised:
            read_image(path)
        assert raised.value.path == path


@pytest.mark.parametrize("data", [b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"<html>", b"\0" * 1000])
def test_damaged_headers(tmp_path, data):
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(ImageError, match="undecodable"):
        read_image(tmp_path / "a.jpg")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(ImageError, match="missing file"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="undecodable"):
        read_image(tmp_path)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_the_machines_failures_are_not_the_files(tmp_path, monkeypatch, code):
    path = saved(tmp_path / "a.png", numbered(1))

    def fail(file):
        raise OSError(code, "no")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match="no") as raised:
        read_image(path)
    assert not isinstance(raised.value, ImageError)


def test_a_decoder_set_to_guess_is_refused(monkeypatch):
    check_decoder()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES must be False"):
        check_decoder()


def test_decompression_bombs_are_undecodable(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", numbered(1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="decompression bomb"):
        read_image(path)


def test_square_boxes():
    points = np.array([[0.0, 0.0], [60.0, 80.0]])
    assert square_box(points, 1.0) == (-10, 0, 70, 80)
    left, top, right, bottom = square_box(points, 1.0, stretch=4 / 3)
    assert (right - left) * 4 / 3 == pytest.approx(bottom - top) == pytest.approx(80)
    for bad in (np.zeros((0, 2)), np.zeros((3, 3)), np.array([[np.nan, 0.0]]), np.zeros((68, 2))):
        with pytest.raises(ValueError, match="points must be"):
            square_box(bad, 1.3)
