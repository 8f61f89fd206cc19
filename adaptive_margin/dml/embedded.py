"""Two data sets that need no download: rotated and distorted digits, and characters drawn in matplotlib's fonts.

Both are designed so that training helps on unseen classes. Plain 8×8 digits are not suitable: on raw pixels 89 % of the
nearest neighbours are already right, and a network trained on six digits does worse on the other four. Here every image
is shifted, rotated, sheared, scaled, blurred and put on an uneven background with noise, which makes pixel distances
useless, and there are many classes.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..images.image_list import Bytes
from .labelled_images import LabelledImages

STORED = 20
"""Side of the stored images, pixels; training takes random crops of 16 pixels, evaluation the centre crop."""

FONT_SAMPLES, DIGIT_SAMPLES = 2, 40


def distort(images: Tensor, generator: torch.Generator, *, degrees: float = 12.0) -> Tensor:
    """Turns white shapes on black, ``(N, 1, H, H)`` in [0, 1], into grey images like those of a bad camera,
    ``(N, 1, STORED, STORED)``.

    Each is rotated by up to ``degrees``, scaled by 0.75 to 1.1, sheared by up to 0.2, and shifted by up to a tenth of
    its side; its strokes are blurred by up to 0.8 pixels; contrast, brightness, a sloping background and noise are
    random.

    Example:
        >>> distort(torch.ones(2, 1, 32, 32), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 1, 20, 20])
    """
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    angle = uniform(-degrees, degrees) * torch.pi / 180
    shear, scale = uniform(-0.2, 0.2), 1 / uniform(0.75, 1.1)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos, -sin + shear * cos, sin, cos + shear * sin], dim=1).view(n, 2, 2)
    matrix = torch.cat([rows, uniform(-0.2, 0.2, 2)[:, :, None]], dim=2)
    grid = functional.affine_grid(matrix, [n, 1, 2 * STORED, 2 * STORED], align_corners=False)
    shapes = functional.grid_sample(images, grid, align_corners=False)
    shapes = functional.avg_pool2d(shapes, 2)  # antialiased
    width = uniform(0.0, 0.8)[:, None]
    kernel = torch.softmax(-torch.arange(-2.0, 3.0).square() / (2 * width.square() + 1e-3), dim=1)  # (N, 5)
    line = shapes.transpose(0, 1)
    line = functional.conv2d(functional.pad(line, (2, 2, 0, 0)), kernel.view(n, 1, 1, 5), groups=n)
    line = functional.conv2d(functional.pad(line, (0, 0, 2, 2)), kernel.view(n, 1, 5, 1), groups=n)
    shapes = line.transpose(0, 1)
    steps = torch.linspace(-0.5, 0.5, STORED)
    slope = uniform(-0.4, 0.4, 2)
    ground = slope[:, :1, None] * steps[:, None] + slope[:, 1:, None] * steps  # (N, S, S)
    drawn = (
        uniform(0.4, 0.8)[:, None, None, None] * shapes + ground.unsqueeze(1) + uniform(0.0, 0.2)[:, None, None, None]
    )
    drawn = drawn + 0.06 * torch.randn(drawn.shape, generator=generator)
    return drawn.clamp(0, 1)


@cache
def digits(seed: int = 2021) -> LabelledImages:
    """50 classes: scikit-learn's digits in up to eight orientations each, distorted, 40 images per class.

    A class is a digit rotated by a multiple of 90°, mirrored or not. Rotations that leave a digit unchanged are left
    out, and a 9 is an upside-down 6. All orientations of a digit are on one side of every split. The digits 2, 7 and 0
    (18 classes) are the test.

    Example:
        >>> data = digits()
        >>> len(data), len(data.class_names), len(data.test_classes), data.pixels.shape
        (2000, 50, 18, (2000, 20, 20, 1))
    """
    from sklearn.datasets import load_digits  # pytorch-metric-learning requires scikit-learn

    source = load_digits()
    images = torch.as_tensor(source.images, dtype=torch.float32)[:, None] / 16  # (1797, 1, 8, 8)
    images = functional.interpolate(images, scale_factor=4, mode="bicubic", align_corners=False).clamp(0, 1)
    images = functional.pad(images, (4, 4, 4, 4))  # (1797, 1, 40, 40)
    target = torch.as_tensor(source.target)
    images = torch.where((target == 9)[:, None, None, None], images.rot90(2, (2, 3)), images)
    target = torch.where(target == 9, 6, target)
    turns = {0: (0, 1), 1: (0, 1), 8: (0, 1), 3: (0, 1, 2, 3)}  # the others in all eight
    numbers = np.random.default_rng(seed)
    shapes: list[Tensor] = []
    labels: list[int] = []
    names: list[str] = []
    groups: list[int] = []
    for digit in (0, 1, 2, 3, 4, 5, 6, 7, 8):
        rows = torch.nonzero(target == digit)[:, 0].numpy()
        for turn in turns.get(digit, range(8)):
            chosen = images[torch.as_tensor(numbers.permutation(rows)[:DIGIT_SAMPLES])].rot90(turn % 4, (2, 3))
            shapes.append(chosen.flip(3) if turn >= 4 else chosen)
            labels += [len(names)] * len(chosen)
            names.append(f"{digit} turned {90 * (turn % 4)}°{', mirrored' if turn >= 4 else ''}")
            groups.append(digit)
    drawn = distort(torch.cat(shapes), torch.Generator().manual_seed(seed))
    test = frozenset(index for index, group in enumerate(groups) if group in (2, 7, 0))
    return LabelledImages(
        "digits", np.array(labels), tuple(names), test, pixels=_bytes(drawn), groups=np.array(groups, dtype=np.int64)
    )


@cache
def fonts(seed: int = 2021) -> LabelledImages:
    """Letters, digits and signs of Latin, Greek and Cyrillic in 16 of matplotlib's fonts, each distorted twice.

    Characters that look the same in the first font are one class (Latin A, Greek Alpha); capital and small letters are
    different classes. A random half of the characters is the test, the same half for every seed of training.

    Example:
        >>> data = fonts()
        >>> len(data.class_names) > 250, len(data) // len(data.class_names)
        (True, 32)
    """
    images, names = _characters()  # (classes, fonts, 40, 40)
    classes, faces = images.shape[:2]
    clean = torch.as_tensor(images).view(classes * faces, 1, *images.shape[2:]).float() / 255
    clean = clean.repeat_interleave(FONT_SAMPLES, dim=0)
    drawn = distort(clean, torch.Generator().manual_seed(seed))
    labels = np.repeat(np.arange(classes), faces * FONT_SAMPLES)
    order = np.random.default_rng(seed).permutation(classes)
    test = frozenset(order[: classes // 2].tolist())
    return LabelledImages("fonts", labels, names, test, pixels=_bytes(drawn))


def _characters() -> tuple[Bytes, tuple[str, ...]]:
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    patterns = ("DejaVuSans*.ttf", "DejaVuSerif*.ttf", "STIXGeneral*.ttf")
    files = sorted(file for pattern in patterns for file in folder.glob(pattern) if "Display" not in file.name)
    faces = [ImageFont.truetype(str(file), 32) for file in files]
    codes = [*range(0x21, 0x7F), *range(0xA1, 0x100), *range(0x391, 0x3CA), *range(0x400, 0x460)]
    drawn: list[Bytes] = []
    names: list[str] = []
    looks: set[bytes] = set()
    for code in codes:
        missing = [face.getmask("\U0010fffe").getbbox() == face.getmask(chr(code)).getbbox() for face in faces]
        wanted = chr(code).isalnum() or chr(code) in "!#$%&?@{}§¶£¥±¿÷×"
        if not wanted or any(missing):
            continue
        images = []
        for face in faces:
            canvas = Image.new("L", (2 * STORED, 2 * STORED))
            ImageDraw.Draw(canvas).text((STORED, STORED), chr(code), fill=255, font=face, anchor="mm")
            images.append(np.asarray(canvas))
        look = (images[0] >> 5).tobytes()
        if look not in looks:
            looks.add(look)
            drawn.append(np.stack(images))
            names.append(chr(code))
    return np.stack(drawn), tuple(names)


def _bytes(images: Tensor) -> Bytes:
    pixels: Bytes = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return pixels
