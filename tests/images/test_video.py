"""Frames have the number and the second of their time stamp, whatever fails to decode before them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adaptive_margin.images.video import decode, extract, shown, timeline

from .videos import UNEVEN, damage_avi, jpeg, level, skip_in_avi, steady, write

cv2 = pytest.importorskip("cv2")


def seen(frames) -> dict[int, int]:
    """Number of each frame → the frame that its brightness says it is."""
    return {number: round((float(frame.mean()) - level(0)) / 5) for number, frame in frames}


def avi(path: Path, frames: int, rate: float = 25.0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, (64, 48))
    for number in range(1, frames + 1):
        writer.write(np.full((48, 64, 3), level(number), dtype=np.uint8))
    writer.release()
    return path


def test_a_failed_read_is_not_the_end(tmp_path):
    path = avi(tmp_path / "a.avi", 30)
    damage_avi(path, 9)
    times = timeline(path)
    assert times.lost == (9,)
    assert times.numbers == tuple(number for number in range(1, 31) if number != 9)
    assert (times.total, times.held, times.repeated, times.even, times.rate) == (30, 0, 0, True, 25)
    assert seen(decode(path)) == {number: number for number in range(1, 31) if number != 9}
    assert seen(shown(path, times)) == seen(decode(path))
    assert len(timeline(path).numbers) == 29


@pytest.mark.parametrize("damaged", [(1,), (1, 2, 3), (5, 6, 7, 8), tuple(range(2, 46, 2)), tuple(range(2, 40))])
def test_any_frames_may_be_damaged(tmp_path, damaged):
    path = steady(tmp_path / "a.mkv", 46, damaged=damaged)
    times = timeline(path)
    assert times.lost == damaged
    assert seen(decode(path)) == {number: number for number in range(1, 47) if number not in damaged}
    assert times.seconds == pytest.approx([(number - 1) / 25 for number in times.numbers])


def test_a_skipped_frame_shifts_none(tmp_path):
    path = avi(tmp_path / "a.avi", 30)
    skip_in_avi(path, 9)
    times = timeline(path)
    assert (times.lost, times.held, times.total) == ((), 1, 30)
    assert seen(decode(path)) == {number: number for number in range(1, 31) if number != 9}
    assert seen(shown(path, times)) == {number: 8 if number == 9 else number for number in range(1, 31)}
    path = steady(tmp_path / "b.mkv", 14, without=(4, 8, 9))
    assert seen(shown(path, timeline(path))) == {n: {4: 3, 8: 7, 9: 7}.get(n, n) for n in range(1, 15)}


def test_a_repeated_frame_shifts_none(tmp_path):
    numbers = [1, 2, 3, 3, 4, 5, 6]
    path = write(tmp_path / "a.mkv", [jpeg(number) for number in numbers], [40 * (number - 1) for number in numbers])
    times = timeline(path)
    assert (times.repeated, times.total) == (1, 6)
    assert seen(decode(path, times)) == {number: number for number in range(1, 7)}


def test_a_clock_is_no_rate(tmp_path):
    """OpenCV says 1000 frames a second and 2,390 frames of a recording of 14 in 2.39 seconds."""
    path = write(tmp_path / "a.mkv", [jpeg(number) for number in range(1, 15)], UNEVEN)
    times = timeline(path)
    assert times.stated == 2390
    assert not times.even
    assert times.seconds == pytest.approx([stamp / 1000 for stamp in UNEVEN])
    assert times.duration == pytest.approx(2.39)
    assert times.rate == pytest.approx(13 / 2.35)
    assert seen(decode(path, times)) == {number: number for number in range(1, 15)}


@pytest.mark.parametrize("rate", [24000 / 1001, 25, 30000 / 1001, 60, 240])
def test_time_stamps_may_be_rounded(tmp_path, rate):
    """Matroska's are whole milliseconds: no step of them is 1001/30 of one."""
    path = write(
        tmp_path / "a.mkv", [jpeg(number % 40) for number in range(200)], [round(1000 * k / rate) for k in range(200)]
    )
    times = timeline(path)
    assert times.numbers == tuple(range(1, 201))
    assert times.even
    assert times.rate == pytest.approx(rate, rel=2e-3)


def test_a_nonsense_time_stamp_makes_no_million_frames(tmp_path):
    path = write(tmp_path / "a.mkv", [jpeg(k) for k in range(1, 7)], [0, 40, 80, 120, 160, 90_000_000])
    assert timeline(path).numbers == (1, 2, 3, 4, 5, 6)


def test_no_video_has_no_frames(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    times = timeline(tmp_path / "a.mp4")
    assert (times.numbers, times.total, times.lost, times.duration) == ((), 0, (), 0)
    assert list(decode(tmp_path / "a.mp4")) == []
    steady(tmp_path / "b.mkv", 1)
    assert timeline(tmp_path / "b.mkv").numbers == (1,)


def test_extracted_frames_keep_their_numbers(tmp_path):
    path = steady(tmp_path / "a.mkv", 12, damaged=(5,), without=(8,))
    done = extract(path, tmp_path / "out", boxes=None)
    assert (done.frames, done.lost, done.held, done.repeated) == (12, (5,), 1, 0)
    files = sorted(file.name for file in (tmp_path / "out").glob("*.jpg"))
    assert files == [f"{number:06d}.jpg" for number in range(1, 13) if number != 5]
    pictures = {number: cv2.imread(str(tmp_path / "out" / f"{number:06d}.jpg")) for number in (4, 6, 8, 9)}
    assert seen(pictures.items()) == {4: 4, 6: 6, 8: 7, 9: 9}
