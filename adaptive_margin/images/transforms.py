r"""The paper's preprocessing in two versions: image by image with Pillow, and in batches as tensor operations.

Training: shorter side to 256, a random 224 crop, a flip half of the time, ImageNet's normalisation. Evaluation: shorter
side to 256, the 224 centre crop, the same normalisation. Source: the authors' released code (the paper gives no sizes);
its colour jitter has all its arguments at zero, which changes nothing, and is left out.

The two paths agree: on the same 256-pixel image with the same crop they give the same tensor to rounding, and
evaluation takes the same pixels. They differ for images that are not square: the Pillow path crops anywhere along the
longer side, the cached path within the central square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..messages import problem

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resize_shorter(image: Image.Image, size: int) -> Image.Image:
    """``image`` with its shorter side ``size`` pixels long, bilinear with antialiasing, as torchvision's ``Resize``.

    Example:
        >>> resize_shorter(Image.new("RGB", (100, 50)), 256).size
        (512, 256)
    """
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    if short == size:
        return image
    other = int(size * long / short)
    return image.resize((size, other) if width <= height else (other, size), Image.Resampling.BILINEAR)


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The middle ``size``-pixel square of ``image``, as torchvision's ``CenterCrop``."""
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def check_sizes(resize: int, size: int) -> None:
    """Raises unless ``0 < size <= resize``."""
    if not 0 < size <= resize:
        expected = f"from 1 to resize ({resize})"
        raise ValueError(problem("size", expected, size, "the paper resizes to 256 and crops 224"))


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device) * 255


def normalise(images: Tensor, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> Tensor:
    r"""Bytes to normalised numbers, :math:`(x / 255 - \mu) / \sigma` per channel.

    Args:
        images: uint8, shape ``(B, 3, H, W)``, any memory layout.
        mean: :math:`\mu` of red, green, blue, in [0, 1].
        std: :math:`\sigma`, likewise.

    Returns:
        float32, same shape, layout and device.

    Raises:
        TypeError: not uint8.
        ValueError: not of shape ``(B, 3, H, W)``.

    Example:
        >>> normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
        tensor([2.2489, 2.4286, 2.6400])
    """
    if images.dtype != torch.uint8:
        raise TypeError(problem("images", "uint8", images.dtype, "normalise once, from the decoded bytes"))
    if images.ndim != 4 or images.shape[1] != 3:
        remedy = "permute (B, H, W, 3) with images.permute(0, 3, 1, 2)"
        raise ValueError(problem("images", "of shape (B, 3, H, W)", tuple(images.shape), remedy))
    batch, _, height, width = images.shape
    if images.permute(0, 2, 3, 1).is_contiguous():  # whole rows at once: on a CPU seven times faster than by channel
        rows = images.permute(0, 2, 3, 1).to(torch.float32).view(batch, height, width * 3)
        rows.sub_(_channels(mean, rows).repeat(width)).div_(_channels(std, rows).repeat(width))
        return rows.view(batch, height, width, 3).permute(0, 3, 1, 2)
    return standardise(images.to(torch.float32), mean, std)


def standardise(
    values: Tensor, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> Tensor:
    """The same for floats from 0 to 255, shape ``(B, 3, H, W)``."""
    return (values - _channels(mean, values).view(3, 1, 1)) / _channels(std, values).view(3, 1, 1)


@dataclass(frozen=True, eq=False)
class Crops:
    """The crop of each image of a batch, and which images to flip.

    Attributes:
        top: first row, shape ``(B,)``, int64.
        left: first column, shape ``(B,)``, int64.
        flip: whether to flip left to right after cropping, shape ``(B,)``, bool.
    """

    top: Tensor
    left: Tensor
    flip: Tensor

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, rows: slice | Tensor) -> Crops:
        return Crops(self.top[rows], self.left[rows], self.flip[rows])


def random_crops(
    count: int, resize: int, size: int, generator: torch.Generator | None = None, *, flip: float = 0.5
) -> Crops:
    """Draws a crop for each image of a batch: anywhere inside, flipped with probability ``flip``.

    Args:
        count: images in the batch, B.
        resize: side of the square images, pixels.
        size: side of the crops, pixels.
        generator: random generator; numbers are drawn on its device.
        flip: probability of mirroring.

    Raises:
        ValueError: ``size`` is not between 1 and ``resize``.

    Example:
        >>> crops = random_crops(100, 256, 224, torch.Generator().manual_seed(0))
        >>> int(crops.top.min()) >= 0, int(crops.top.max()) <= 32
        (True, True)
    """
    check_sizes(resize, size)
    device = torch.device("cpu") if generator is None else generator.device
    places = torch.randint(resize - size + 1, (2, count), generator=generator, device=device)
    mirrored = torch.rand(count, generator=generator, device=device) < flip
    return Crops(places[0], places[1], mirrored)


def centre_crops(count: int, resize: int, size: int) -> Crops:
    """The centre of each image, not flipped, as used in evaluation."""
    check_sizes(resize, size)
    place = torch.full((count,), round((resize - size) / 2), dtype=torch.int64)
    return Crops(place, place, torch.zeros(count, dtype=torch.bool))


def crop_flip(images: Tensor, crops: Crops, size: int) -> Tensor:
    """Crops and flips every image of a batch, as one gather on the images' device.

    Args:
        images: any dtype, shape ``(B, C, H, W)``.
        crops: one per image; moved to the images' device.
        size: side of the crops, pixels.

    Returns:
        Shape ``(B, C, size, size)``, same dtype and device, channels last in memory.

    Raises:
        ValueError: the number of crops differs from the number of images.

    Example:
        >>> image = torch.arange(9).view(1, 1, 3, 3)
        >>> one = torch.tensor([1])
        >>> crop_flip(image, Crops(one, one, torch.tensor([True])), 2)
        tensor([[[[5, 4],
                  [8, 7]]]])
    """
    if len(crops) != len(images):
        raise ValueError(problem("crops", f"one per image ({len(images)})", len(crops), "draw len(images) of them"))
    steps = torch.arange(size, device=images.device)
    flip = crops.flip.to(images.device)[:, None]
    rows = crops.top.to(images.device)[:, None] + steps  # (B, size)
    columns = crops.left.to(images.device)[:, None] + torch.where(flip, size - 1 - steps, steps)  # (B, size)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    pixels = images.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]  # (B, size, size, C)
    return pixels.permute(0, 3, 1, 2)


def augment(images: Tensor, size: int = 224, generator: torch.Generator | None = None, *, flip: float = 0.5) -> Tensor:
    """Training's half of the preprocessing, in a batch on the images' device: random crop, flip, normalise.

    Args:
        images: square, uint8, shape ``(B, 3, H, H)``.
        size: side of the crops, pixels.
        generator: random generator; the same state gives the same result on every device.
        flip: probability of mirroring.

    Returns:
        float32, shape ``(B, 3, size, size)``.

    Example:
        >>> images = torch.randint(256, (2, 3, 256, 256), dtype=torch.uint8)
        >>> augment(images, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 224, 224])
    """
    crops = random_crops(len(images), images.shape[-1], size, generator, flip=flip)
    return normalise(crop_flip(images, crops, size))


def centre(images: Tensor, size: int = 224) -> Tensor:
    """Evaluation's half, in a batch: the centre crop, normalised."""
    return normalise(crop_flip(images, centre_crops(len(images), images.shape[-1], size), size))


def paper_transform(
    image: Image.Image, *, train: bool, generator: torch.Generator | None = None, resize: int = 256, size: int = 224
) -> Tensor:
    """The whole preprocessing of one decoded image.

    Args:
        image: RGB.
        train: random crop and flip rather than the centre.
        generator: random generator (CPU).
        resize: the shorter side, pixels.
        size: the crop's side, pixels.

    Returns:
        float32, shape ``(3, size, size)``.

    Raises:
        ValueError: not an RGB image, or ``size`` is not between 1 and ``resize``.

    Example:
        >>> paper_transform(Image.new("RGB", (300, 200)), train=False).shape
        torch.Size([3, 224, 224])
    """
    check_sizes(resize, size)
    if image.mode != "RGB":
        raise ValueError(problem("image", "RGB", image.mode, "open it with read_image"))
    image = resize_shorter(image, resize)
    if train:
        top = int(torch.randint(image.height - size + 1, (), generator=generator))
        left = int(torch.randint(image.width - size + 1, (), generator=generator))
        image = image.crop((left, top, left + size, top + size))
        if float(torch.rand((), generator=generator)) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    else:
        image = centre_square(image, size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, size, size)
    return normalise(pixels[None])[0]


class FromImageNet(nn.Module):
    """Converts images normalised by ImageNet's statistics to the normalisation with which a network's weights were
    trained.

    Args:
        mean: of its channels, values from 0 to 1.
        std: of its channels.

    Example:
        >>> black = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]).view(1, 3, 1, 1)
        >>> FromImageNet((0.5,) * 3, (0.5,) * 3)(black).flatten()
        tensor([-1., -1., -1.])
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        there, spread = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        own, wide = (torch.tensor(tuple(values)).view(3, 1, 1) for values in (mean, std))
        self.register_buffer("scale", spread / wide, persistent=False)
        self.register_buffer("shift", (there - own) / wide, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """The same images, shape kept."""
        return images * self.get_buffer("scale") + self.get_buffer("shift")
