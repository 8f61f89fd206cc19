"""Tables and keyed random numbers."""

from __future__ import annotations

import numpy as np
import pytest

from adaptive_margin.faces import sample_identities
from adaptive_margin.faces._rows import Draws, Streams, check_seed, mix
from adaptive_margin.messages import check_count


def test_take_repeats_and_masks() -> None:
    people = sample_identities(4, 0)
    assert len(people.take([2, 2, 0])) == 3
    np.testing.assert_array_equal(people.take([2, 2, 0]).skin_colour, people.skin_colour[[2, 2, 0]])
    np.testing.assert_array_equal(people.take(np.array([True, False, True, False])).chin, people.chin[[0, 2]])
    assert len(people.take(1)) == 1


def test_replace_fills_a_column_and_leaves_the_original() -> None:
    people = sample_identities(3, 0)
    bald = people.replace(hair_density=0.0)
    assert (bald.hair_density == 0).all()
    assert bald.hair_density.dtype == np.float32
    assert not (people.hair_density == 0).all()


def test_replace_names_an_unknown_column() -> None:
    with pytest.raises(ValueError, match=r"columns must be among .*chin.*, got 'chinn'; correct the name"):
        sample_identities(1, 0).replace(chinn=1.0)


def test_columns_of_different_lengths_are_refused() -> None:
    people = sample_identities(3, 0)
    columns = {name: getattr(people, name) for name in people.__dataclass_fields__}
    with pytest.raises(ValueError, match="columns must be of one length"):
        type(people)(**columns | {"chin": people.chin[:2]})


def test_streams_do_not_depend_on_what_was_drawn_before() -> None:
    streams = Streams()
    first = streams.uniform(5, 1, 10).copy()
    streams.bytes(9, 2, 1000)
    np.testing.assert_array_equal(streams.uniform(5, 1, 10), first)
    assert not np.array_equal(streams.uniform(5, 2, 10), first)
    assert not np.array_equal(streams.uniform(6, 1, 10), first)


def test_streams_are_philox() -> None:
    philox = np.random.Philox(key=np.array([7, 3], dtype=np.uint64))
    np.testing.assert_array_equal(Streams().words(7, 3, 100), philox.random_raw(100))


def test_uniform_and_normal_moments() -> None:
    u, z = Streams().uniform(0, 0, 200_000), Streams().normal(0, 1, 200_000)
    assert 0 < u.min() < u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(u.var() - 1 / 12) < 0.001
    assert abs(z.mean()) < 0.01
    assert abs(z.var() - 1) < 0.02


def test_draws_are_row_by_row() -> None:
    keys = mix(3, np.arange(20))
    whole, one = Draws(keys, 1, 4, 2), Draws(keys[7:8], 1, 4, 2)
    for _ in range(4):
        assert whole.uniform()[7] == one.uniform()[0]
    for _ in range(2):
        assert whole.normal(0, 1, -3, 3)[7] == one.normal(0, 1, -3, 3)[0]


def test_choice_follows_its_weights() -> None:
    d = Draws(mix(0, np.arange(20_000)), 1, 1)
    share = np.bincount(d.choice([1.0, 2.0, 1.0]), minlength=3) / 20_000
    np.testing.assert_allclose(share, [0.25, 0.5, 0.25], atol=0.015)


def test_mix_tells_seeds_and_indices_apart() -> None:
    grid = mix(0, np.arange(100)[:, None], np.arange(100)[None])
    other = mix(1, np.arange(100)[:, None], np.arange(100)[None])
    assert len(np.unique(np.concatenate([grid.ravel(), other.ravel()]))) == 20_000
    assert int(mix(0, 3, 4)) == int(grid[3, 4])


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (-1, ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
        (2**64, ValueError, "seed must be in"),
        (0.5, TypeError, "seed must be an integer, got float"),
        (True, TypeError, "seed must be an integer, got bool"),
    ],
)
def test_seed_errors(seed: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_seed("seed", seed)


@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (0, ValueError, "n must be at least 1, got 0"),
        ("3", TypeError, "n must be an integer, got str"),
    ],
)
def test_count_errors(count: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_count("n", count, 1)


def test_numpy_integers_are_integers() -> None:
    assert check_count("n", np.int64(3), 1) == 3
    assert check_seed("seed", np.uint64(2**63)) == 2**63
