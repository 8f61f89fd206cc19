"""Decoded images on their way to the network: read from memory or a cache, cropped, moved to a device, read ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..messages import problem
from .image_list import Bytes, Integers
from .transforms import Crops, check_sizes, crop_flip

Item = TypeVar("Item")


class CachedPixels:
    """Square images of bytes, of which crops go to a device.

    On the CPU the bytes are copied anyway, so cropping while reading is free; a GPU crops faster than it receives data.

    Args:
        images: uint8, shape ``(slots, H, H, C)``: a cache's memory map, or an array.
        size: side of the crops, pixels.
        device: where they go.

    Raises:
        TypeError: images that are not uint8.
        ValueError: images that are not square, or a size that is not between 1 and H.

    Example:
        >>> images = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)
        >>> one = torch.tensor([1])
        >>> CachedPixels(images, size=2)(np.array([1]), Crops(one, one, torch.tensor([True])))
        tensor([[[[22, 21],
                  [26, 25]]]], dtype=torch.uint8)
    """

    def __init__(self, images: Bytes, *, size: int, device: str | torch.device = "cpu") -> None:
        if images.dtype != np.uint8:
            raise TypeError(problem("images", "uint8", images.dtype, "cache decoded bytes and normalise in the batch"))
        if images.ndim != 4 or images.shape[1] != images.shape[2]:
            raise ValueError(problem("images", "of shape (slots, H, H, C)", images.shape, "pass squares"))
        check_sizes(images.shape[1], size)
        self.images, self.size, self.device = images, size, torch.device(device)
        self.crops_while_reading = self.device.type == "cpu"

    def __call__(self, slots: Integers, crops: Crops | None = None) -> Tensor:
        """The images at ``slots``, cropped; whole without ``crops``.

        Returns:
            uint8, shape ``(B, C, size, size)`` or ``(B, C, H, H)``, on the device, channels last in memory.
        """
        return self.place(self.read(slots, crops), crops)

    def read(self, slots: Integers, crops: Crops | None = None) -> Tensor:
        """The first half of a call, for a thread that reads ahead: bytes on the CPU, shape ``(B, h, w, C)``."""
        if crops is None or not self.crops_while_reading:
            pixels = torch.from_numpy(self.images[slots])
            return pixels.pin_memory() if self.device.type == "cuda" else pixels
        cut = np.empty((len(slots), self.size, self.size, self.images.shape[3]), dtype=np.uint8)
        places = zip(slots.tolist(), crops.top.tolist(), crops.left.tolist(), crops.flip.tolist(), strict=True)
        for row, (slot, top, left, flip) in enumerate(places):
            window = self.images[slot, top : top + self.size, left : left + self.size]
            cut[row] = window[:, ::-1] if flip else window
        return torch.from_numpy(cut)

    def place(self, pixels: Tensor, crops: Crops | None = None) -> Tensor:
        """The second half: what was read, on the device."""
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return images if crops is None or self.crops_while_reading else crop_flip(images, crops, self.size)


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator determined by these non-negative numbers: unlike with their sum, each order gives a different
    stream.

    Example:
        >>> torch.equal(torch.rand(3, generator=seeded(0, 1)), torch.rand(3, generator=seeded(0, 1)))
        True
        >>> torch.equal(torch.rand(3, generator=seeded(0, 1)), torch.rand(3, generator=seeded(1, 0)))
        False
    """
    state = np.random.SeedSequence(list(numbers)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def read_ahead(read: Callable[[int], Item], numbers: Iterable[int], depth: int) -> Generator[Item, None, None]:
    """``read`` of each number, in order, up to ``depth`` of them ahead in a thread; 0 reads in the caller's thread.

    Example:
        >>> list(read_ahead(lambda number: number**2, range(4), depth=2))
        [0, 1, 4, 9]
    """
    if not depth:
        yield from map(read, numbers)
        return
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
    waiting: deque[Future[Item]] = deque()
    try:
        for number in numbers:
            waiting.append(pool.submit(read, number))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
