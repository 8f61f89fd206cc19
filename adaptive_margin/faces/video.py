"""Videos of one person whose feeling changes smoothly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..messages import check_count, problem
from ._geometry import boxes, landmarks
from ._rows import Floats, Streams, Table, check_seed, mix
from .draw import SIZES, draw_frames
from .expression import face_shape
from .identity import FaceIdentity, check_people
from .labels import sample_labels
from .nuisance import Nuisance, sample_nuisance, still_nuisance


@dataclass(frozen=True)
class FaceVideo(Table):
    """Frames of one person; every array has one row per frame."""

    images: NDArray[np.uint8]  # (n, size, size, 3)
    av: NDArray[np.float32]  # (n, 2) felt valence and arousal
    landmarks: NDArray[np.float32]  # (n, 68, 2) pixels
    boxes: NDArray[np.float32]  # (n, 4) x, y, width, height in pixels


def trajectory(seed: int, person: int, n_frames: int) -> NDArray[np.float32]:
    """Valence and arousal that move from one feeling of a person to another, frame by frame.

    Feelings come from the person's own distribution (:func:`~adaptive_margin.faces.sample_labels`); each is held for
    5 to 30 frames and reached in 12 to 40 along a straight line with smooth acceleration, ``3 s^2 - 2 s^3``.

    Args:
        seed: Decides everything.
        person: Number of the person.
        n_frames: How many frames.

    Returns:
        Shape ``(n_frames, 2)``, inside the unit disc. The first frames are the same whatever ``n_frames`` is.

    Example:
        >>> av = trajectory(0, 5, 200)
        >>> av.shape, bool(abs(av[1:] - av[:-1]).max() < 0.25)
        ((200, 2), True)
    """
    n_frames = check_count("n_frames", n_frames, 1)
    stops = n_frames // 17 + 2  # a stop takes at least 17 frames
    targets = sample_labels(seed, person, stops).astype(np.float64)
    paces = Streams().uniform(int(mix(seed, person)), 7, 2 * (stops - 1)).reshape(-1, 2)
    pieces: list[Floats] = []
    for k, (hold, move) in enumerate((paces * (26, 29) + (5, 12)).astype(np.int64)):
        here, there = targets[k], targets[k + 1]
        s = (np.arange(1, move + 1) / move)[:, None]
        pieces += [np.repeat(here[None], hold, axis=0), here + (there - here) * (3 * s * s - 2 * s * s * s)]
    return np.concatenate(pieces)[:n_frames].astype(np.float32)


def _wander(key: int, purpose: int, n_frames: int, channels: int) -> Floats:
    """Smooth movement of about unit variance: three slow sine waves per channel. Shape ``(n_frames, channels)``."""
    numbers = Streams().uniform(key, purpose, 6 * channels).reshape(2, 3, channels)
    period, phase = 40 + 220 * numbers[0], numbers[1]
    frames = np.arange(n_frames)[:, None, None]
    return np.asarray(np.sin(2 * np.pi * (frames / period + phase)).sum(axis=1) * np.sqrt(2 / 3))


def _moving_nuisance(key: int, n_frames: int) -> Nuisance:
    """One scene whose head and eyes move, whose noise changes every frame, and which is covered now and then."""
    base = sample_nuisance([key]).take(np.zeros(n_frames, dtype=np.int64))
    move = _wander(key, 8, n_frames, 7)
    return base.replace(
        yaw=np.clip(0.6 * base.yaw + 0.12 * move[:, 0], -0.49, 0.49),
        pitch=np.clip(0.6 * base.pitch + 0.07 * move[:, 1], -0.28, 0.28),
        roll=np.clip(0.6 * base.roll + 0.06 * move[:, 2], -0.25, 0.25),
        shift_x=0.6 * base.shift_x + 0.02 * move[:, 3],
        shift_y=base.shift_y + 0.01 * move[:, 4],
        gaze=np.clip(0.7 * move[:, 4:6], -1, 1),
        occlusion=np.where(move[:, 6] > 1.0, base.occlusion, 0),
        key=mix(key, np.arange(n_frames)),
    )


def draw_video(
    identity: FaceIdentity,
    n_frames: int,
    *,
    size: int = 96,
    seed: int = 0,
    person: int = 0,
    disturb: bool = True,
    workers: int = 0,
) -> FaceVideo:
    """A video of one person, frame by frame with what the person feels.

    Args:
        identity: One row.
        n_frames: How many frames.
        size: Side of a frame in pixels, 32 to 256.
        seed: Decides feelings and disturbances.
        person: Number of the person, which decides the distribution of feelings as in
            :class:`~adaptive_margin.faces.FacesDataset`; with the same ``seed`` another number is another video.
        disturb: Moving head and eyes, light, background, blur, noise and occlusion, or none of them.
        workers: Processes that draw; 0 draws in this one.

    Returns:
        Frames, labels, landmarks and boxes.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: more than one identity, or an argument out of range.

    Example:
        >>> from adaptive_margin.faces import draw_video, sample_identities
        >>> video = draw_video(sample_identities(1), 12, size=48)
        >>> video.images.shape, video.av.shape
        ((12, 48, 48, 3), (12, 2))
    """
    check_people("identity", identity)
    if len(identity) != 1:
        raise ValueError(problem("identity", "one person", f"{len(identity)} rows", "choose one with take([index])"))
    n_frames, size = check_count("n_frames", n_frames, 1), check_count("size", size, *SIZES)
    seed, person = check_seed("seed", seed), check_count("person", person, 0)
    av = trajectory(seed, person, n_frames)
    nuisance = _moving_nuisance(int(mix(seed, person, 1)), n_frames) if disturb else still_nuisance(n_frames)
    people = identity.take(np.zeros(n_frames, dtype=np.int64))
    images = draw_frames(people, av[:, 0], av[:, 1], nuisance, size=size, workers=workers)
    points = landmarks(people, face_shape(people, av[:, 0], av[:, 1]), nuisance, size)
    return FaceVideo(images=images, av=av, landmarks=points, boxes=boxes(points, size))
