"""Paints faces, a batch of pictures at a time.

The picture is built from front to back: a map says how much of each pixel is not yet covered, and every layer (hair,
head, ears, neck, hair behind, clothes, background) takes its share of it. Layers are single numbers per pixel, coverage
times brightness; colours enter once, when the sums of all layers of a pigment are known (``_layers.py``). Eyes, brows,
nose, mouth and glasses are then painted in their own small windows, where the head is visible (``_parts.py``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._layers import paint_layers
from ._lens import develop, paint_occluder
from ._parts import paint_brows, paint_eyes, paint_glasses, paint_marks, paint_mouth, paint_nose
from ._scene import Scene
from .expression import FaceShape
from .identity import FaceIdentity
from .nuisance import Nuisance

# Pixels of one batch: many pictures at a time hide numpy's overhead, too many leave the processor's cache. No byte
# depends on it.
BATCH_PIXELS = 1179648

PAINTERS = (
    paint_layers,
    paint_marks,
    paint_nose,
    paint_eyes,
    paint_mouth,
    paint_brows,
    paint_glasses,
    paint_occluder,
)


def _keep_memory() -> None:
    """Lets the allocator keep the memory of one batch for the next.

    glibc returns large blocks to the system and gets them again page by page, which takes a quarter of the time. Once a
    block of up to 32 MiB has been freed, glibc keeps blocks of that size. The block here is never touched and costs
    nothing.
    """
    np.empty(31 * 2**20, dtype=np.uint8)


def render(people: FaceIdentity, shape: FaceShape, nuisance: Nuisance, size: int) -> NDArray[np.uint8]:
    """Paints one picture per row, shape ``(n, size, size, 3)``, sRGB; its bytes depend only on its row and ``size``."""
    _keep_memory()
    out = np.empty((len(people), size, size, 3), dtype=np.uint8)
    step = max(1, BATCH_PIXELS // (size * size))
    # A batch's windows are as large as its most tilted picture needs: put pictures of like tilt together.
    order = np.argsort(np.abs(nuisance.roll), kind="stable")
    for start in range(0, len(people), step):
        rows = order[start : start + step]
        scene = Scene(people.take(rows), shape.take(rows), nuisance.take(rows), size)
        for paint in PAINTERS:
            paint(scene)
        develop(scene, out, rows)
    return out
