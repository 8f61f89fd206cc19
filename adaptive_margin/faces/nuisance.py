"""Disturbances that say nothing about person or feeling: pose, light, background, lens, occlusion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..messages import problem
from ._rows import Draws, Floats, Table

OCCLUSIONS = ("none", "hand", "block", "ball")


@dataclass(frozen=True)
class Nuisance(Table):
    """One row per picture; :func:`sample_nuisance` draws them and :func:`still_nuisance` gives undisturbed ones."""

    yaw: Floats  # radians, positive turns the face to the picture's right
    pitch: Floats  # radians, positive looks down
    roll: Floats  # radians, positive is clockwise
    scale: Floats  # face units to half pictures
    shift_x: Floats  # half pictures
    shift_y: Floats
    light_x: Floats  # direction towards the light; z is 1 before normalising
    light_y: Floats
    contrast: Floats  # of light and shadow
    gain: Floats  # brightness
    cast: Floats  # (n, 3) colour of the light
    background: Floats  # (n, 2, 3) two colours
    gradient: Floats  # (n, 2) direction
    blobs: Floats  # (n, 2, 3) x, y, radius of soft shapes behind the person
    clothes: Floats  # (n, 3)
    gaze: Floats  # (n, 2)
    blur: Floats  # standard deviation, in pixels of a 96 px picture
    noise: Floats  # standard deviation, in grey levels of 255
    occlusion: Floats  # index into OCCLUSIONS
    occluder: Floats  # (n, 4) x, y, size, angle
    occluder_colour: Floats  # (n, 3)
    key: NDArray[np.uint64]  # of the pixel noise


def _cast(columns: dict[str, Floats], key: NDArray[np.uint64]) -> Nuisance:
    return Nuisance(**{name: np.asarray(c, dtype=np.float32) for name, c in columns.items()}, key=key)


def check_keys(argument: str, seeds: ArrayLike) -> NDArray[np.uint64]:
    """Seeds as uint64, one per picture; errors if they are not integers, not one-dimensional, or negative."""
    keys = np.asarray(seeds)
    if keys.ndim != 1:
        expected = "one-dimensional"
        raise ValueError(problem(argument, expected, f"shape {keys.shape}", "pass one integer per picture"))
    if len(keys) and keys.dtype.kind not in "iu":
        raise TypeError(problem(argument, "integers", keys.dtype, "pass for instance np.arange(n)"))
    if len(keys) and keys.dtype.kind == "i" and int(keys.min()) < 0:
        raise ValueError(problem(argument, "non-negative", int(keys.min()), "pass for instance np.arange(n)"))
    return keys.astype(np.uint64)


def still_nuisance(n: int) -> Nuisance:
    """Frontal pose, soft light from above, plain background, no blur, noise or occlusion.

    Example:
        >>> float(still_nuisance(2).yaw.max())
        0.0
    """
    zeros = dict.fromkeys(("yaw", "pitch", "roll", "shift_x", "blur", "noise", "occlusion"), 0.0)
    values: dict[str, ArrayLike] = {
        **zeros,
        "scale": 0.80,
        "shift_y": 0.02,
        "light_x": -0.35,
        "light_y": -0.45,
        "contrast": 1.0,
        "gain": 1.0,
        "cast": [1.0] * 3,
        "background": [[0.72, 0.76, 0.80], [0.60, 0.65, 0.70]],
        "gradient": [0.0, 0.5],
        "blobs": [[0.0, 0.0, 0.1]] * 2,
        "clothes": [0.33, 0.40, 0.50],
        "gaze": [0.0] * 2,
        "occluder": [0.0] * 4,
        "occluder_colour": [0.0] * 3,
    }
    columns = {name: np.broadcast_to(value, (n, *np.shape(value))) for name, value in values.items()}
    return _cast(columns, np.zeros(n, dtype=np.uint64))


def sample_nuisance(seeds: ArrayLike) -> Nuisance:
    """Disturbances, one row per seed; a row depends only on its own seed.

    Pose is normal with standard deviations of 11 (yaw), 7 (pitch) and 5 degrees (roll), compressed to at most 28, 16
    and 14 degrees; half of the pictures are blurred, one in eight is partly covered.

    Args:
        seeds: Shape ``(n,)``, non-negative integers.

    Raises:
        TypeError: not integers.
        ValueError: wrong shape, or negative.

    Example:
        >>> bool(sample_nuisance([3, 4]).yaw[1] == sample_nuisance([4]).yaw[0])
        True
    """
    keys = check_keys("seeds", seeds)
    d = Draws(keys, purpose=2, uniforms=52, normals=8)

    def colour(low: float, high: float, grey: float) -> Floats:
        rgb = np.stack([d.uniform(low, high) for _ in range(3)], axis=1)
        mean = rgb.mean(axis=1, keepdims=True)
        return np.asarray(mean + (1 - grey) * (rgb - mean))

    def pair(low: float, high: float) -> Floats:
        return np.stack([d.uniform(low, high), d.uniform(low, high)], axis=1)

    blobs = [np.stack([d.uniform(-1, 1), d.uniform(-1, 0.6), d.uniform(0.3, 1.0)], axis=1) for _ in range(2)]
    warmth = d.normal(0, 0.045, -0.11, 0.11)
    return _cast(
        {
            "yaw": d.normal(0, 0.19, -0.49, 0.49),
            "pitch": d.normal(0, 0.12, -0.28, 0.28),
            "roll": d.normal(0, 0.09, -0.25, 0.25),
            "scale": d.normal(0.80, 0.035, 0.72, 0.88),
            "shift_x": d.normal(0, 0.035, -0.09, 0.09),
            "shift_y": d.normal(0.02, 0.035, -0.06, 0.10),
            "light_x": d.uniform(-1.3, 1.3),
            "light_y": d.uniform(-0.9, 0.1),
            "contrast": d.uniform(0.5, 1.5),
            "gain": d.uniform(0.72, 1.15),
            "cast": 1 + np.stack([warmth, 0 * warmth, -warmth], axis=1),
            "background": np.stack([colour(0.08, 0.92, 0.65) for _ in range(2)], axis=1),
            "gradient": pair(-0.6, 0.6),
            "blobs": np.stack(blobs, axis=1),
            "clothes": colour(0.05, 0.9, 0.25),
            "gaze": pair(-1, 1),
            "blur": np.where(d.chance(0.5), d.uniform(0.25, 1.2), 0.0),
            "noise": d.uniform(0, 1) ** 2 * 9,
            "occlusion": d.choice([0.875, 0.05, 0.04, 0.035]).astype(np.float64),
            "occluder": np.stack([d.uniform(-0.8, 0.8), d.uniform(-0.1, 1.0), d.uniform(), d.uniform(-1, 1)], axis=1),
            "occluder_colour": colour(0.1, 0.9, 0.2),
        },
        keys,
    )
