"""Batches with a fixed number of classes and of images per class, and the augmentation of their pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..images.image_list import Bytes, Integers
from ..images.pixels import CachedPixels
from ..images.transforms import centre_crops, normalise, random_crops, standardise
from ..messages import problem
from .config import DMLConfig


class ClassBatches:
    """Rows of the batch of any step, determined by (seed, step): a run can resume anywhere, and arms with one seed
    agree.

    Classes are drawn without replacement, and so are the images of a class if it has enough; a class with fewer images
    gives each of them once before it repeats any.

    Raises:
        ValueError: there are fewer classes than a batch needs.

    Example:
        >>> batches = ClassBatches(np.array([5, 5, 5, 7, 9, 9]), classes=2, per_class=2, seed=0)
        >>> rows = batches.rows(step=3)
        >>> len(rows), len(set(batches.labels[rows]))
        (4, 2)
    """

    def __init__(self, labels: Integers, *, classes: int, per_class: int, seed: int) -> None:
        self.labels, self.per_class, self.seed = labels, per_class, seed
        order = np.argsort(labels, kind="stable")
        _, starts = np.unique(labels[order], return_index=True)
        self.members = np.split(order, starts[1:])
        if len(self.members) < classes:
            got = f"{classes} of {len(self.members)}"
            raise ValueError(
                problem("classes", "at most the training classes", got, "pass --classes, or hold out less")
            )
        self.classes = classes

    def rows(self, step: int) -> Integers:
        """Positions of the batch's images, shape ``(classes * per_class,)``, class by class."""
        numbers = np.random.default_rng([self.seed, step])
        parts = []
        for index in numbers.choice(len(self.members), self.classes, replace=False):
            members = self.members[index]
            rounds = -(-self.per_class // len(members))
            parts.append(np.concatenate([numbers.permutation(members) for _ in range(rounds)])[: self.per_class])
        return np.concatenate(parts)


class Pixels:
    """Images for the network: read from memory or the memory-mapped cache, cropped, flipped and normalised on the
    device.

    Images are uint8, shape ``(N, H, H, C)``; of the options only augmentation and sizes are used.
    """

    def __init__(self, images: Bytes, config: DMLConfig, device: torch.device) -> None:
        if images.shape[1:3] != (config.resize, config.resize):
            expected = f"of shape (N, {config.resize}, {config.resize}, C)"
            raise ValueError(problem("images", expected, images.shape, "pass the images' size as --resize"))
        self.pixels, self.config = CachedPixels(images, size=config.size, device=device), config

    def training(self, rows: Integers, mine: slice, generator: torch.Generator) -> Tensor:
        """This process's share ``mine`` of a batch, augmented as a single process would augment the whole batch."""
        config, count = self.config, len(rows)
        if config.augment == "crop":
            crops = random_crops(count, config.resize, config.size, generator, flip=config.flip)[mine]
            return self._finish(self.pixels(rows[mine], crops))
        boxes = random_boxes(count, generator, area=config.area)[mine]
        mirrored = (torch.rand(count, generator=generator) < config.flip)[mine]
        return self._finish(resized_crops(self.pixels(rows[mine]), boxes, mirrored, config.size))

    def evaluation(self, rows: Integers, batch: int = 256) -> Iterator[Tensor]:
        """Centre crops of the images of ``rows``, in batches."""
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            yield self._finish(self.pixels(part, centre_crops(len(part), self.config.resize, self.config.size)))

    def _finish(self, images: Tensor) -> Tensor:
        if images.shape[1] == 1:
            return images.float() / 127.5 - 1
        ready = normalise(images) if images.dtype == torch.uint8 else standardise(images)
        return ready if self.config.channels_last else ready.contiguous()


def random_boxes(count: int, generator: torch.Generator, *, area: float = 0.08) -> Tensor:
    """Boxes of random area, shape and position, drawn as in torchvision's ``RandomResizedCrop``.

    Left, top, width and height are shares of the image's side, shape ``(count, 4)``. Area is uniform between ``area``
    and 1, width over height log-uniform between 3/4 and 4/3. The first of ten draws that fits in the image is used; if
    none fits, the whole image (it is square, so torchvision would do the same).

    Example:
        >>> boxes = random_boxes(100, torch.Generator().manual_seed(0))
        >>> bool((boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-6).all())
        True
    """
    draws = torch.rand(count, 10, 2, generator=generator)
    surface = area + (1 - area) * draws[..., 0]
    ratio = torch.exp((2 * draws[..., 1] - 1) * np.log(4 / 3))
    width, height = (surface * ratio).sqrt(), (surface / ratio).sqrt()  # (count, 10)
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(dim=1, keepdim=True)
    size = torch.cat([width.gather(1, first), height.gather(1, first)], dim=1)
    size = torch.where(fits.any(dim=1, keepdim=True), size, 1.0)
    return torch.cat([torch.rand(count, 2, generator=generator) * (1 - size), size], dim=1)


def resized_crops(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Each image's box resized to ``size`` pixels, bilinear, in one operation on the device.

    Boxes shrink by at most 14 % if 256 pixels become 224, so no antialiasing is needed.

    Images ``(B, C, H, H)``, their boxes of :func:`random_boxes`, and which of them to mirror, ``(B,)``, become float32
    ``(B, C, size, size)`` in the same range.

    Example:
        >>> whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        >>> resized_crops(torch.eye(4)[None, None], whole, torch.tensor([True]), 4)[0, 0, 0]
        tensor([0., 0., 0., 1.])
    """
    boxes = boxes.to(images.device)
    left, top, width, height = boxes.unbind(1)
    sign = 1 - 2 * mirrored.to(images.device).float()
    matrix = torch.zeros(len(images), 2, 3, device=images.device)
    matrix[:, 0, 0], matrix[:, 0, 2] = width * sign, 2 * left + width - 1
    matrix[:, 1, 1], matrix[:, 1, 2] = height, 2 * top + height - 1
    grid = functional.affine_grid(matrix, [len(images), images.shape[1], size, size], align_corners=False)
    return functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
