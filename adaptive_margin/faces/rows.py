"""Tables whose rows are people, expressions or pictures, and the keyed random numbers that fill them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..functional.checks import problem

Floats = NDArray[np.floating[Any]]
TableT = TypeVar("TableT", bound="Table")


@dataclasses.dataclass(frozen=True)
class Table:
    """Arrays that share their first dimension: one row per person, expression or picture."""

    def __post_init__(self) -> None:
        lengths = {f.name: len(getattr(self, f.name)) for f in dataclasses.fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(problem("columns", "of one length", lengths, "give every column one entry per row"))

    def __len__(self) -> int:
        return len(getattr(self, dataclasses.fields(self)[0].name))

    def take(self: TableT, index: ArrayLike | slice) -> TableT:
        """The rows named by ``index`` (integers, a mask or a slice), in that order, repeats allowed."""
        rows = index if isinstance(index, slice) else np.atleast_1d(np.asarray(index))
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})

    def replace(self: TableT, **columns: ArrayLike) -> TableT:
        """A copy with some columns exchanged; a single number fills the whole column."""
        known = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in columns.items():
            if name not in known:
                raise ValueError(problem("columns", f"among {sorted(known)}", repr(name), "correct the name"))
            known[name] = np.array(np.broadcast_to(np.asarray(value, dtype=known[name].dtype), known[name].shape))
        return type(self)(**known)


class Draws:
    """Independent uniform and normal numbers, one keyed Philox stream per row.

    Row ``i`` comes from the stream whose 128-bit key is ``(keys[i], purpose)``, whatever the other rows are: what a
    row becomes does not depend on how many rows are drawn, in which order, or by which process.
    """

    def __init__(self, keys: NDArray[np.uint64], purpose: int, uniforms: int, normals: int = 0) -> None:
        self._uniform = np.empty((uniforms, len(keys)))
        self._normal = np.empty((normals, len(keys)))
        self._next = [0, 0]
        streams = Streams()
        for row, key in enumerate(keys.tolist()):
            rng = streams.of(key, purpose)
            self._uniform[:, row] = rng.random(uniforms)
            if normals:
                self._normal[:, row] = rng.standard_normal(normals)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """The next column, uniform on ``[low, high)``."""
        self._next[0] += 1
        column: NDArray[np.float64] = low + (high - low) * self._uniform[self._next[0] - 1]
        return column

    def normal(self, mean: float, sd: float, low: float, high: float) -> NDArray[np.float64]:
        """The next column, normal, pressed into ``[low, high]``."""
        self._next[1] += 1
        column: NDArray[np.float64] = np.clip(mean + sd * self._normal[self._next[1] - 1], low, high)
        return column

    def chance(self, probability: float | NDArray[np.float64]) -> NDArray[np.bool_]:
        """True with the given probability."""
        return np.asarray(self.uniform() < probability)

    def choice(self, weights: Sequence[NDArray[np.float64] | float]) -> NDArray[np.int64]:
        """An index into ``weights``, which may differ from row to row."""
        table = np.cumsum(np.stack([np.broadcast_to(w, self._uniform.shape[1:]) for w in weights]), axis=0)
        return np.asarray((self.uniform() * table[-1] >= table[:-1]).sum(axis=0))


class Streams:
    """Philox streams by 128-bit key ``(key, purpose)``; different purposes never share numbers.

    One generator is rewound and given another key each time, which is ten times faster than a new one.
    """

    def __init__(self) -> None:
        self._philox = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._philox)
        self._start = self._philox.state

    def of(self, key: int, purpose: int) -> np.random.Generator:
        """The stream of a key, at its start; it ends when the next one is asked for."""
        self._start["state"]["key"] = np.array([key, purpose], dtype=np.uint64)
        self._philox.state = self._start
        return self._generator

    def bytes(self, key: int, purpose: int, count: int) -> NDArray[np.uint8]:
        """The first ``count`` bytes of a stream, the same on little- and big-endian machines."""
        self.of(key, purpose)
        words = self._philox.random_raw(-(-count // 8))
        return words.astype("<u8", copy=False).view(np.uint8)[:count]


def mix(seed: int, *indices: ArrayLike) -> NDArray[np.uint64]:
    """A 64-bit key from a seed and any number of indices (splitmix64), broadcast over arrays.

    Example:
        >>> len(set(mix(0, range(1000), 7).tolist()))
        1000
    """
    key = np.asarray(seed, dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        for part in (np.uint64(0), *indices):
            key = (
                key * np.uint64(0x9E3779B97F4A7C15) + np.asarray(part).astype(np.uint64) + np.uint64(0x632BE59BD9B4E019)
            )
            key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            key = key ^ (key >> np.uint64(31))
    return np.asarray(key)


def check_seed(argument: str, seed: object) -> int:
    """Raises unless ``seed`` is an integer in ``[0, 2**64)``."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(problem(argument, "an integer", type(seed).__name__, "pass a number such as 0"))
    if not 0 <= int(seed) < 2**64:
        raise ValueError(problem(argument, "in [0, 2**64)", int(seed), "pass a non-negative number"))
    return int(seed)


def check_count(argument: str, count: object, low: int, high: int | None = None) -> int:
    """Raises unless ``count`` is an integer in ``[low, high]``."""
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
        raise TypeError(problem(argument, "an integer", type(count).__name__, "pass a whole number"))
    if int(count) < low or (high is not None and int(count) > high):
        expected = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(problem(argument, expected, int(count), "choose a number in that range"))
    return int(count)
