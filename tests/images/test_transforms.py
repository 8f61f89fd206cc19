from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from adaptive_margin.images.transforms import (
    Crops,
    augment,
    centre,
    centre_square,
    crop_flip,
    normalise,
    paper_transform,
    random_crops,
    resize_shorter,
)

transforms = pytest.importorskip("torchvision.transforms")
functional = transforms.functional


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("width", "height"), [(100, 100), (300, 200), (200, 301), (256, 256), (257, 640), (96, 97)])
def test_evaluation_is_torchvisions(width, height):
    image = noise(width, height)
    theirs = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    assert_close(paper_transform(image, train=False), theirs(image), rtol=0, atol=2e-6)
    assert np.array_equal(np.asarray(resize_shorter(image, 256)), np.asarray(transforms.Resize(256)(image)))


def test_training_crops_anywhere_and_flips_half_of_the_time():
    image = Image.fromarray(np.stack([*np.meshgrid(range(40), range(30)), np.zeros((30, 40))], -1).astype(np.uint8))
    generator = torch.Generator().manual_seed(0)
    places, flips = set(), 0
    for _ in range(2000):
        x = paper_transform(image, train=True, generator=generator, resize=30, size=25)
        red, green = x[0] * 0.229 * 255 + 0.485 * 255, x[1] * 0.224 * 255 + 0.456 * 255
        left, right, top = round(float(red[0, 0])), round(float(red[0, -1])), round(float(green[0, 0]))
        assert abs(left - right) == 24
        flips += left > right
        places.add((min(left, right), top))
    assert places == {(left, top) for left in range(16) for top in range(6)}  # 40 - 25 + 1 by 30 - 25 + 1
    assert abs(flips - 1000) < 4 * np.sqrt(500)  # four standard deviations of a fair coin


def test_crop_flip_is_the_obvious_loop():
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    crops = random_crops(5, 16, 11, torch.Generator().manual_seed(1))
    assert crops.flip.any()
    assert not crops.flip.all()
    expected = []
    for image, top, left, flip in zip(images, crops.top, crops.left, crops.flip, strict=True):
        cut = functional.crop(image, int(top), int(left), 11, 11)
        expected.append(functional.hflip(cut) if flip else cut)
    assert torch.equal(crop_flip(images, crops, 11), torch.stack(expected))
    assert torch.equal(crop_flip(images, crops, 16 - 5)[2:4], crop_flip(images[2:4], crops[2:4], 11))


def test_every_place_is_drawn():
    crops = random_crops(20_000, 10, 7, torch.Generator().manual_seed(0))
    counts = torch.bincount(crops.top * 4 + crops.left, minlength=16)
    assert counts.min() > 1250 - 5 * 1250**0.5
    assert counts.max() < 1250 + 5 * 1250**0.5
    assert abs(int(crops.flip.sum()) - 10_000) < 4 * 5000**0.5
    assert not random_crops(100, 10, 7, flip=0.0).flip.any()
    assert random_crops(100, 10, 7, flip=1.0).flip.all()


def test_augmentation_is_what_its_generator_says():
    images = torch.randint(256, (6, 3, 64, 64), dtype=torch.uint8)
    one = augment(images, 56, torch.Generator().manual_seed(3))
    assert torch.equal(one, augment(images, 56, torch.Generator().manual_seed(3)))
    assert not torch.equal(one, augment(images, 56, torch.Generator().manual_seed(4)))
    crops = random_crops(6, 64, 56, torch.Generator().manual_seed(3))
    assert torch.equal(one, normalise(crop_flip(images, crops, 56)))


def test_the_batch_and_the_image_path_agree_on_squares():
    picture = noise(256, 256)
    batch = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    assert_close(centre(batch)[0], paper_transform(picture, train=False), rtol=0, atol=0)
    assert torch.equal(
        centre(batch)[0], normalise(torch.from_numpy(np.array(centre_square(picture, 224))).permute(2, 0, 1)[None])[0]
    )


def test_normalise_is_the_formula():
    bytes_ = torch.randint(256, (2, 3, 5, 7), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (bytes_.double() / 255 - mean.double().view(1, 3, 1, 1)) / std.double().view(1, 3, 1, 1)
    assert_close(normalise(bytes_).double(), expected, rtol=0, atol=1e-6)
    last = bytes_.contiguous(memory_format=torch.channels_last)
    assert torch.equal(normalise(last), normalise(bytes_))
    assert normalise(last).is_contiguous(memory_format=torch.channels_last)


def test_errors():
    with pytest.raises(TypeError, match="images must be uint8"):
        normalise(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"images must be of shape \(B, 3, H, W\)"):
        normalise(torch.zeros(1, 2, 2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="size must be from 1 to resize"):
        random_crops(2, 64, 65)
    with pytest.raises(ValueError, match="image must be RGB, got L"):
        paper_transform(Image.new("L", (10, 10)), train=False)
    one = torch.tensor([0])
    with pytest.raises(ValueError, match="crops must be one per image"):
        crop_flip(torch.zeros(2, 3, 4, 4), Crops(one, one, one.bool()), 2)


@pytest.mark.cuda
def test_the_device_does_not_matter():
    images = torch.randint(256, (6, 3, 64, 64), dtype=torch.uint8)
    here = augment(images, 56, torch.Generator().manual_seed(3))
    there = augment(images.cuda(), 56, torch.Generator().manual_seed(3))
    assert there.is_cuda
    assert_close(there.cpu(), here, rtol=0, atol=1e-6)
