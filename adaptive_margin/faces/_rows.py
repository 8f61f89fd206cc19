"""Tables whose rows are people, expressions or pictures, and the keyed random numbers that fill them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy.special import ndtri

from ..messages import problem

Floats = NDArray[np.floating[Any]]
TableT = TypeVar("TableT", bound="Table")


@dataclasses.dataclass(frozen=True)
class Table:
    """Arrays that share their first dimension: one row per person, expression or picture."""

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns().items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(problem("columns", "of one length", lengths, "give every column one entry per row"))

    def __len__(self) -> int:
        return len(getattr(self, dataclasses.fields(self)[0].name))

    def columns(self, dtype: DTypeLike | None = None) -> dict[str, Floats]:
        """The columns by name, of another type if one is given."""
        return {f.name: np.asarray(getattr(self, f.name), dtype=dtype) for f in dataclasses.fields(self)}

    def take(self: TableT, index: ArrayLike | slice) -> TableT:
        """The rows named by ``index`` (integers, a mask or a slice), in that order, repeats allowed."""
        rows = index if isinstance(index, slice) else np.atleast_1d(np.asarray(index))
        return type(self)(**{name: column[rows] for name, column in self.columns().items()})

    def replace(self: TableT, **columns: ArrayLike) -> TableT:
        """A copy with some columns replaced; a single number fills the whole column."""
        known = self.columns()
        for name, value in columns.items():
            if name not in known:
                raise ValueError(problem("columns", f"among {sorted(known)}", repr(name), "correct the name"))
            known[name] = np.array(np.broadcast_to(np.asarray(value, dtype=known[name].dtype), known[name].shape))
        return type(self)(**known)


class Streams:
    """Philox streams by 128-bit key ``(key, purpose)``; different purposes never share numbers.

    Only the words of the bit generator are used, because they are the same in every version of numpy, unlike its
    distributions. One generator is reset with another key each time, which is ten times faster than a new one.
    """

    def __init__(self) -> None:
        self._philox = np.random.Philox(key=0)
        self._start = self._philox.state

    def words(self, key: int, purpose: int, count: int) -> NDArray[np.uint64]:
        """The first words of a stream."""
        self._start["state"]["key"] = np.array([key, purpose], dtype=np.uint64)
        self._philox.state = self._start
        return self._philox.random_raw(count)

    def bytes(self, key: int, purpose: int, count: int) -> NDArray[np.uint8]:
        """The first bytes of a stream, the same on little- and big-endian machines."""
        return self.words(key, purpose, -(-count // 8)).astype("<u8", copy=False).view(np.uint8)[:count]

    def uniform(self, key: int, purpose: int, count: int) -> NDArray[np.float64]:
        """The first numbers of a stream in the open interval ``(0, 1)``."""
        return np.asarray(((self.words(key, purpose, count) >> np.uint64(12)) + 0.5) * 2.0**-52)

    def normal(self, key: int, purpose: int, count: int) -> NDArray[np.float64]:
        """The first standard normal numbers of a stream."""
        return np.asarray(ndtri(self.uniform(key, purpose, count)))


class Draws:
    """Independent uniform and normal numbers, one keyed stream per row.

    Row ``i`` comes from the stream of ``(keys[i], purpose)``, whatever the other rows are: what a row becomes does not
    depend on how many rows are drawn, in which order, or by which process.
    """

    def __init__(self, keys: NDArray[np.uint64], purpose: int, uniforms: int, normals: int = 0) -> None:
        streams = Streams()
        numbers = np.empty((len(keys), uniforms + normals))
        for row, key in enumerate(keys.tolist()):
            numbers[row] = streams.uniform(key, purpose, uniforms + normals)
        self._uniform = iter(np.ascontiguousarray(numbers[:, :uniforms].T))
        self._normal = iter(ndtri(np.ascontiguousarray(numbers[:, uniforms:].T)))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """The next column, uniform on ``[low, high)``."""
        column: NDArray[np.float64] = low + (high - low) * next(self._uniform)
        return column

    def normal(self, mean: float, sd: float, low: float, high: float) -> NDArray[np.float64]:
        """The next column, normal, pressed into ``[low, high]``."""
        column: NDArray[np.float64] = np.clip(mean + sd * next(self._normal), low, high)
        return column

    def chance(self, probability: float | NDArray[np.float64]) -> NDArray[np.bool_]:
        """True with the given probability."""
        return np.asarray(self.uniform() < probability)

    def choice(self, weights: Sequence[NDArray[np.float64] | float]) -> NDArray[np.int64]:
        """An index into ``weights``, which may differ from row to row."""
        draw = self.uniform()
        table = np.cumsum(np.stack([np.broadcast_to(w, draw.shape) for w in weights]), axis=0)
        return np.asarray((draw * table[-1] >= table[:-1]).sum(axis=0))


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
        raise ValueError(problem(argument, "in [0, 2**64)", int(seed), "choose a number in that range"))
    return int(seed)
