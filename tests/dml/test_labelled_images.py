"""Splits: no class on two sides, groups together, folds that cover the training classes once."""

from __future__ import annotations

import numpy as np
import pytest

from adaptive_margin.dml.embedded import digits, fonts
from adaptive_margin.dml.labelled_images import LabelledImages, fold_classes, split_classes


def tiny(**options) -> LabelledImages:
    pixels = np.zeros((20, 4, 4, 1), np.uint8)
    return LabelledImages(
        "tiny", np.repeat(np.arange(10), 2), tuple("abcdefghij"), frozenset(range(5, 10)), pixels=pixels, **options
    )


@pytest.mark.parametrize("data", [digits, fonts])
@pytest.mark.parametrize("seed", [0, 1, 100])
def test_no_class_is_on_two_sides(data, seed: int) -> None:
    images = data()
    split = split_classes(images, validation=0.3, seed=seed)
    sides = [set(images.labels[split[part]]) for part in ("train", "validation", "test")]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert sides[2] == set(images.test_classes)
    assert sum(map(len, sides)) == len(images.class_names)
    groups = [set(images.groups[list(side)]) for side in sides]
    assert not groups[0] & groups[1]


def test_the_test_classes_do_not_depend_on_the_seed() -> None:
    tests = [split_classes(digits(), validation=0.3, seed=seed).test for seed in range(3)]
    np.testing.assert_array_equal(tests[0], tests[1])
    np.testing.assert_array_equal(tests[0], tests[2])


def test_folds_cover_the_training_classes_once() -> None:
    data = tiny()
    held = [set(data.labels[fold_classes(data, fold, folds=5).validation]) for fold in range(5)]
    assert held == [{0}, {1}, {2}, {3}, {4}]
    with pytest.raises(ValueError, match="fold must be"):
        fold_classes(data, 5, folds=5)


def test_groups_that_cross_the_test_are_refused() -> None:
    with pytest.raises(ValueError, match="groups must be on one side of the test"):
        split_classes(tiny(groups=np.array([0, 1, 2, 3, 4, 4, 5, 6, 7, 8])))


def test_wrong_labels_and_shares() -> None:
    with pytest.raises(ValueError, match="validation must be"):
        split_classes(tiny(), validation=0.99)
    pixels = np.zeros((3, 4, 4, 1), np.uint8)
    with pytest.raises(ValueError, match="labels must be each of the 3 classes"):
        LabelledImages("x", np.array([0, 0, 2]), ("a", "b", "c"), frozenset({2}), pixels=pixels)
    with pytest.raises(ValueError, match="test_classes must be"):
        LabelledImages("x", np.array([0, 1, 2]), ("a", "b", "c"), frozenset(), pixels=pixels)


def test_embedded_sets_are_the_same_every_time() -> None:
    digits.cache_clear()
    first = digits().pixels.copy()
    digits.cache_clear()
    np.testing.assert_array_equal(first, digits().pixels)
