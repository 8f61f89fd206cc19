"""Who the drawn people are."""

from __future__ import annotations

import numpy as np
import pytest

from adaptive_margin.faces import HAIR_STYLES, FaceIdentity, sample_identities


def test_a_person_does_not_depend_on_how_many_are_drawn() -> None:
    few, many = sample_identities(3, 5), sample_identities(50, 5)
    for name in few.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:3], err_msg=name)


def test_seeds_give_other_people() -> None:
    assert not np.array_equal(sample_identities(5, 0).chin, sample_identities(5, 1).chin)


def test_every_column_is_finite_float32_and_varies() -> None:
    people = sample_identities(400, 0)
    assert len(people.__dataclass_fields__) >= 20
    for name in people.__dataclass_fields__:
        column = getattr(people, name)
        assert column.dtype == np.float32, name
        assert np.isfinite(column).all(), name
        assert column.std() > 0, name


def test_colours_are_colours() -> None:
    people = sample_identities(300, 1)
    for name in ("skin_colour", "hair_colour", "iris_colour", "lip_colour", "glasses_colour"):
        colour = getattr(people, name)
        assert colour.shape == (300, 3)
        assert colour.min() >= 0, name
        assert colour.max() <= 1, name


def test_every_hair_style_occurs() -> None:
    styles = np.bincount(sample_identities(600, 2).hair_style.astype(int), minlength=len(HAIR_STYLES))
    assert (styles > 0).all()
    assert styles.max() < 300


def test_showing_is_independent_of_looks() -> None:
    people = sample_identities(4000, 3)
    looks = [people.skin_colour[:, 0], people.age, people.head_width, people.lashes, people.beard_chin, people.glasses]
    showing = [people.rest_corner, people.rest_brow, people.rest_lids, people.expressivity, people.distress_style]
    for a in looks:
        for b in showing:
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.06  # 4 standard errors


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (2.0, TypeError)])
def test_errors(n: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="n must be"):
        sample_identities(n, 0)  # type: ignore[arg-type]


def test_one_row_is_a_table_too() -> None:
    assert isinstance(sample_identities(1, 0), FaceIdentity)
    assert len(sample_identities(1, 0)) == 1
