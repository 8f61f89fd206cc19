"""Batches follow from (seed, step); crops are torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as vision

from adaptive_margin.dml.batches import ClassBatches, Pixels, random_boxes, resized_crops
from adaptive_margin.dml.config import SMALL


def test_a_batch_has_its_classes_and_images() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 7))
    batches = ClassBatches(labels, classes=4, per_class=5, seed=3)
    seen = set()
    for step in range(30):
        rows = batches.rows(step)
        values, counts = np.unique(labels[rows], return_counts=True)
        assert len(values) == 4
        assert (counts == 5).all()
        assert len(set(rows.tolist())) == 20
        seen |= set(values.tolist())
    assert len(seen) == 10


def test_a_small_class_gives_each_image_before_any_again() -> None:
    batches = ClassBatches(np.array([0, 0, 0, 1]), classes=2, per_class=5, seed=0)
    for step in range(10):
        rows = batches.rows(step).tolist()
        assert rows.count(3) == 5
        assert {rows.count(row) for row in (0, 1, 2)} <= {1, 2}


def test_batches_do_not_remember() -> None:
    labels = np.repeat(np.arange(6), 4)
    one, other = (ClassBatches(labels, classes=3, per_class=2, seed=1) for _ in range(2))
    for _ in range(5):
        one.rows(0)
    np.testing.assert_array_equal(one.rows(9), other.rows(9))
    assert not np.array_equal(one.rows(9), one.rows(10))
    with pytest.raises(ValueError, match="classes must be at most the training classes, got 7 of 6"):
        ClassBatches(labels, classes=7, per_class=2, seed=1)


def test_boxes_are_distributed_as_torchvisions() -> None:
    boxes = random_boxes(4000, torch.Generator().manual_seed(0), area=0.08)
    image = torch.zeros(3, 1000, 1000)
    theirs = (
        torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]) / 1000
    )
    area, their_area = (boxes[:, 2] * boxes[:, 3]).sort()[0], (theirs[:, 2] * theirs[:, 3]).sort()[0]
    assert (area - their_area).abs().max() < 0.05  # quantiles
    ratio, their_ratio = (boxes[:, 2] / boxes[:, 3]).sort()[0], (theirs[:, 3] / theirs[:, 2]).sort()[0]
    assert (ratio - their_ratio).abs()[40:-40].max() < 0.06
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-6).all()


def test_resized_crops_are_torchvisions_without_antialiasing() -> None:
    images = torch.rand(3, 3, 64, 64)
    boxes = torch.tensor([[0, 0, 64, 64], [10, 20, 30, 40], [32, 8, 24, 16]])
    made = resized_crops(images, boxes / 64, torch.tensor([False, True, False]), 48)
    for index, (left, top, width, height) in enumerate(boxes.tolist()):
        wanted = vision.resized_crop(images[index], top, left, height, width, [48, 48], antialias=False)
        if index == 1:
            wanted = wanted.flip(2)
        inner = slice(2, -2)  # torchvision repeats the crop's edge, here the picture goes on
        torch.testing.assert_close(made[index][:, inner, inner], wanted[:, inner, inner], atol=2e-4, rtol=0)


def test_shares_of_a_batch_are_cut_as_the_whole() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 20, 20, 1), dtype=np.uint8)
    for augment in ("crop", "resized-crop"):
        config = SMALL.__class__(**{**vars(SMALL), "augment": augment, "flip": 0.5})
        pixels = Pixels(images, config, torch.device("cpu"))
        rows = np.arange(8)

        def cut(mine: slice, pixels: Pixels = pixels, rows: np.ndarray = rows) -> torch.Tensor:
            return pixels.training(rows, mine, torch.Generator().manual_seed(5))

        torch.testing.assert_close(torch.cat([cut(slice(0, 3)), cut(slice(3, 8))]), cut(slice(0, 8)), rtol=0, atol=0)
    with pytest.raises(ValueError, match="images must be of shape"):
        Pixels(images[:, :10], SMALL, torch.device("cpu"))
