"""Draws pictures of people with feelings, and computes the positions of the parts of their faces."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..messages import check_count, problem
from ..processes import Workers
from ._geometry import boxes, landmarks
from ._layers import paint_layers
from ._lens import develop, paint_occluder
from ._parts import paint_brows, paint_eyes, paint_glasses, paint_marks, paint_mouth, paint_nose
from ._rows import Floats
from ._scene import Scene
from .expression import check_felt, face_shape
from .identity import FaceIdentity, check_people
from .nuisance import Nuisance, check_keys, sample_nuisance, still_nuisance

SIZES = (32, 256)
TASK = 512  # pictures that a worker process draws at a time
# Pixels that are painted together: many hide numpy's overhead, too many leave the processor's cache.
BATCH_PIXELS = 1179648


def _prepare(identities: FaceIdentity, valence: ArrayLike, arousal: ArrayLike, size: int) -> tuple[Floats, Floats]:
    """Valence and arousal, after checks of what a caller passes to this module."""
    check_people("identities", identities)
    check_count("size", size, *SIZES)
    v, a = check_felt(valence, arousal)
    if len(v) != len(identities):
        remedy = "repeat people with identities.take(index)"
        raise ValueError(problem("valence", f"as long as identities ({len(identities)} rows)", len(v), remedy))
    return v, a


def _nuisance(rows: int, seeds: ArrayLike | None, disturb: bool) -> Nuisance:
    keys = check_keys("nuisance_seeds", np.arange(rows) if seeds is None else seeds)
    if len(keys) != rows:
        remedy = "pass one seed per picture"
        raise ValueError(problem("nuisance_seeds", f"as long as identities ({rows} rows)", len(keys), remedy))
    return sample_nuisance(keys) if disturb else still_nuisance(rows)


def _draw(people: FaceIdentity, v: ArrayLike, a: ArrayLike, size: int, nuisance: Nuisance) -> NDArray[np.uint8]:
    """Paints one picture per row, shape ``(n, size, size, 3)``, sRGB; its bytes depend only on its row and ``size``."""
    # glibc returns large blocks to the system and gets them again page by page, which takes a quarter of the time. Once
    # a block of up to 32 MiB has been freed, it keeps blocks of that size. This one is never touched and costs nothing.
    np.empty(31 * 2**20, dtype=np.uint8)
    shape, out = face_shape(people, v, a), np.empty((len(people), size, size, 3), dtype=np.uint8)
    step = max(1, BATCH_PIXELS // (size * size))
    # A batch's windows are as large as its most tilted picture needs: put pictures of like tilt together.
    order = np.argsort(np.abs(nuisance.roll), kind="stable")
    for start in range(0, len(people), step):
        rows = order[start : start + step]
        scene = Scene(people.take(rows), shape.take(rows), nuisance.take(rows), size)
        paint_layers(scene)
        paint_marks(scene)
        paint_nose(scene)
        paint_eyes(scene)
        paint_mouth(scene)
        paint_brows(scene)
        paint_glasses(scene)
        paint_occluder(scene)
        develop(scene, out, rows)
    return out


def draw_frames(
    people: FaceIdentity,
    valence: ArrayLike,
    arousal: ArrayLike,
    nuisance: Nuisance,
    *,
    size: int = 96,
    workers: int = 0,
) -> NDArray[np.uint8]:
    """Draws pictures with given disturbances, row by row (in a video they change smoothly).

    Args:
        people: One row per picture.
        valence: Felt valence, shape ``(n,)``.
        arousal: Felt arousal, shape ``(n,)``.
        nuisance: One row per picture.
        size: Side of the pictures in pixels, 32 to 256.
        workers: Processes that draw; 0 draws in this one. The bytes are the same.

    Returns:
        Shape ``(n, size, size, 3)``, sRGB.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: lengths differ, labels outside the unit disc, or ``size`` out of range.
    """
    v, a = _prepare(people, valence, arousal, size)
    if len(nuisance) != len(v):
        remedy = "draw one row per picture"
        raise ValueError(problem("nuisance", f"as long as people ({len(v)} rows)", len(nuisance), remedy))
    workers = check_count("workers", workers, 0)
    if workers == 0 or len(v) <= TASK:
        return _draw(people, v, a, size, nuisance)
    parts = [slice(start, start + TASK) for start in range(0, len(v), TASK)]
    out = np.empty((len(v), size, size, 3), dtype=np.uint8)
    items = [(people.take(p), v[p], a[p], size, nuisance.take(p)) for p in parts]
    with Workers(min(workers, len(parts))) as drawing:
        for number, pictures in drawing.results(_draw, items):
            out[parts[number]] = pictures
    return out


def draw_faces(
    identities: FaceIdentity,
    valence: ArrayLike,
    arousal: ArrayLike,
    *,
    size: int = 96,
    nuisance_seeds: ArrayLike | None = None,
    disturb: bool = True,
    workers: int = 0,
) -> NDArray[np.uint8]:
    """Draws people who feel ``(valence, arousal)``.

    A picture shows the person's own resting face plus expressivity times the action units of the feeling
    (:func:`~adaptive_margin.faces.face_shape`): the label is what is felt, not what is shown.

    Args:
        identities: The people, one row per picture.
        valence: Felt valence, shape ``(n,)``, with arousal inside the unit disc.
        arousal: Felt arousal, shape ``(n,)``.
        size: Side of the pictures in pixels, 32 to 256.
        nuisance_seeds: One non-negative integer per picture, which decides pose, light, background, blur, noise and
            occlusion; ``0, 1, 2 ...`` by default.
        disturb: If off, every picture is frontal and clean, with the same light and background.
        workers: Processes that draw; 0 draws in this one. It pays off from a few thousand pictures on. A script that
            uses it needs the usual ``if __name__ == "__main__":``.

    Returns:
        Shape ``(n, size, size, 3)``, sRGB. The bytes of a picture depend only on its own row, its seed and ``size``,
        not on the batch, the order or the number of workers.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: lengths differ, labels outside the unit disc, or ``size`` out of range.

    Example:
        >>> from adaptive_margin.faces import draw_faces, sample_identities
        >>> people = sample_identities(2, seed=0)
        >>> draw_faces(people, [0.8, -0.5], [0.1, 0.6], size=64).shape
        (2, 64, 64, 3)
    """
    v, a = _prepare(identities, valence, arousal, size)
    return draw_frames(identities, v, a, _nuisance(len(v), nuisance_seeds, disturb), size=size, workers=workers)


def face_geometry(
    identities: FaceIdentity,
    valence: ArrayLike,
    arousal: ArrayLike,
    *,
    size: int = 96,
    nuisance_seeds: ArrayLike | None = None,
    disturb: bool = True,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Landmarks and boxes of the faces that :func:`draw_faces` draws from the same arguments.

    Returns:
        68 points per face in the order of the iBUG annotation, shape ``(n, 68, 2)``, x and y in pixels; and square
        boxes ``(x, y, width, height)`` in pixels, shape ``(n, 4)``.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: lengths differ, labels outside the unit disc, or ``size`` out of range.

    Example:
        >>> from adaptive_margin.faces import face_geometry, sample_identities
        >>> points, boxes = face_geometry(sample_identities(3), [0.0] * 3, [0.0] * 3)
        >>> points.shape, boxes.shape
        ((3, 68, 2), (3, 4))
    """
    v, a = _prepare(identities, valence, arousal, size)
    nuisance = _nuisance(len(v), nuisance_seeds, disturb)
    points = landmarks(identities, face_shape(identities, v, a), nuisance, size)
    return points, boxes(points, size)
