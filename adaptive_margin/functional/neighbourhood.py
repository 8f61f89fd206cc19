"""The purity of the neighbourhoods of a batch: the confidence term of Eq. 8 and its neighbourhood size."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checks import (
    at_least_float32,
    check_labels,
    check_matrix,
    check_number,
    check_same_features,
    is_blind,
    largest_magnitude,
    problem,
)
from .dependence import common_scale
from .groups import group_index
from .ties import settle, undecided

Significant = Callable[[Tensor, Tensor, int, Tensor, float], Tensor]
"""``significant(share, k, n, labels, confidence)``: whether a share of own labels among k neighbours is evidence."""

TILE_ENTRIES = 2**22
"""Distances held at once: with everything computed from them, about 20 MiB on a CPU, 120 MiB on a GPU."""

FEWEST_ROWS = 64
"""Minimum rows of a tile: a matrix product with fewer rows reads the whole reference set for little work."""

ENTRIES_A_THREAD = 2**20
"""Number of distances whose sorting is long enough for a separate thread."""

NEAR = 128
"""Neighbours that are counted one by one; farther ones first in runs of eight, where few rows have an answer."""

Array = NDArray[Any]

FLAGS_IN_BYTE: Array = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)
_count_flags = getattr(np, "bitwise_count", FLAGS_IN_BYTE.__getitem__)  # numpy 1 has no such function


def check_confidence(confidence: float) -> None:
    """Raises unless ``confidence`` is in (0, 1]."""
    expected, remedy = "in (0, 1]", "the paper uses 0.05"
    if not 0 < check_number("confidence", confidence, expected, remedy) <= 1:
        raise ValueError(problem("confidence", expected, confidence, remedy))


def confidence_term(n: int | Tensor, k: int | float | Tensor, confidence: float = 0.05) -> Tensor:
    r"""Confidence term of the adaptive margin, :math:`\Delta(N, K) = \frac{1}{2K}\log\frac{N}{c}`.

    Source: Kim & Song 2021, Eq. (8), after Balsubramani et al. 2019. It is the square of Hoeffding's bound on the bias
    of a neighbourhood of K samples: it grows as smaller and smaller neighbourhoods become pure.

    Args:
        n: N, the number of samples, at least 1.
        k: K, the neighbourhood size, at least 1, any shape.
        confidence: c, in (0, 1].

    Returns:
        :math:`\Delta`, the shape of ``k`` (0-dim for numbers), in units of a squared distance, positive.

    Raises:
        ValueError: ``n`` or ``k`` below 1, or ``confidence`` outside (0, 1].

    Example:
        >>> confidence_term(256, 10)
        tensor(0.4270)
    """
    check_confidence(confidence)
    for argument, number in (("n", n), ("k", k)):
        if not isinstance(number, Tensor) and not number >= 1:
            raise ValueError(problem(argument, "at least 1", number, "count samples, the anchor's own excluded for k"))
    k = torch.as_tensor(k)
    k = k if k.is_floating_point() else k.to(torch.get_default_dtype())
    log_ratio = math.log(n / confidence) if not isinstance(n, Tensor) else torch.log(n / confidence)
    return log_ratio / (2 * k)


def harmonic_mean(k: Tensor) -> Tensor:
    """The neighbourhood size of a batch, whose Δ is the mean of the samples' Δ.

    Args:
        k: neighbourhood sizes, at least 1, any shape but empty.

    Returns:
        A 0-dim tensor, float64.

    Example:
        >>> harmonic_mean(torch.tensor([1, 3]))
        tensor(1.5000, dtype=torch.float64)
    """
    return 1 / k.double().reciprocal().mean()


def released_confidence_term(k: int | float | Tensor, scale: float = 0.7) -> Tensor:
    r"""Confidence term of the authors' released code, :math:`\Delta = A/\sqrt K`, where the paper has Eq. (8).

    Args:
        k: K, the neighbourhood size, at least 1, any shape.
        scale: A.

    Returns:
        :math:`\Delta`, the shape of ``k``.

    Example:
        >>> released_confidence_term(4)
        tensor(0.3500)
    """
    k = torch.as_tensor(k)
    return scale / (k if k.is_floating_point() else k.to(torch.get_default_dtype())).sqrt()


def hoeffding_significant(share: Tensor, k: Tensor, n: int, labels: Tensor, confidence: float) -> Tensor:
    r"""Hoeffding's bound: :math:`\hat p - \frac1C \ge \sqrt{\log(N/c)\,/\,2k}`.

    It is one-sided: a sample surrounded by other labels is no evidence of a learned margin.

    Args:
        share: :math:`\hat p`, the share of the anchor's own label among its k nearest, shape ``(rows, k)``.
        k: 1, 2, …, shape ``(k,)``.
        n: N, the number of samples.
        labels: C, the number of labels, 0-dim.
        confidence: c.

    Returns:
        bool, the shape of ``share``.

    Example:
        >>> share, k = torch.ones(1, 20), torch.arange(1, 21)
        >>> int(hoeffding_significant(share, k, 128, torch.tensor(2.0), 0.05).sum())  # pure: from K = 16 on
        5
    """
    return share - 1 / labels >= torch.sqrt(math.log(n / confidence) / (2 * k))


def chernoff_significant(share: Tensor, k: Tensor, n: int, labels: Tensor, confidence: float) -> Tensor:
    r"""Chernoff's bound: :math:`k\,\mathrm{KL}(\hat p\,\|\,\tfrac1C) \ge \log(N/c)`, :math:`\hat p > \frac1C`.

    With C labels a small pure neighbourhood is far less likely by chance than Hoeffding's bound shows: a batch with
    four images per class never passes Hoeffding at N = 128; Chernoff passes at K = 3.

    Source: Chernoff 1952; Balsubramani et al. 2019 use Hoeffding's.

    Args:
        share: as for :func:`hoeffding_significant`.
        k: as for :func:`hoeffding_significant`.
        n: N.
        labels: C, 0-dim.
        confidence: c.

    Returns:
        bool, the shape of ``share``.

    Example:
        >>> share, k = torch.ones(1, 20), torch.arange(1, 21)
        >>> int(chernoff_significant(share, k, 128, torch.tensor(32.0), 0.05).sum())  # pure: from K = 3 on
        18
    """
    chance = 1 / labels
    other = (1 - chance).clamp(min=torch.finfo(share.dtype).tiny)  # one label: no share is above chance
    divergence = torch.xlogy(share, share / chance) + torch.xlogy(1 - share, (1 - share) / other)
    return (share > chance) & (k * divergence >= math.log(n / confidence))


def released_significant(share: Tensor, k: Tensor, n: int, labels: Tensor, confidence: float) -> Tensor:
    r"""The rule of the authors' released code: :math:`\hat p - \frac1C > A/\sqrt k` with A = 0.7; N and c are not used.

    The released code reads its table two places too early, so that its :math:`\Delta` is that of K − 1; here it is
    that of K.

    Args:
        share: as for :func:`hoeffding_significant`.
        k: as for :func:`hoeffding_significant`.
        n: not used.
        labels: C, 0-dim.
        confidence: not used.

    Returns:
        bool, the shape of ``share``.

    Example:
        >>> share, k = torch.ones(1, 4), torch.arange(1, 5)
        >>> released_significant(share, k, 128, torch.tensor(2.0), 0.05)
        tensor([[False,  True,  True,  True]])
    """
    return share - 1 / labels > 0.7 / torch.sqrt(k)


PURE = (hoeffding_significant, chernoff_significant, released_significant)
"""Bounds that depend only on their arguments: their requirements can be cached."""


def empirical_bias_k(
    embeddings: Tensor,
    labels: Tensor,
    confidence: float = 0.05,
    *,
    significant: Significant = hoeffding_significant,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
) -> Tensor:
    r"""Neighbourhood size of each sample: the smallest k at which its neighbours' labels are significant.

    .. math:: K_i = \min\{k \ge 1 : \hat p_i(k) - \tfrac1C \ge \sqrt{\log(N/c)/2k}\}, \qquad N - 1 \text{ where none}

    with :math:`\hat p_i(k)` the share of sample i's own label among its k nearest others in Euclidean distance, C the
    number of labels and N the number of samples of the reference set (of the batch, where none is given).

    Source: Balsubramani et al. 2019, Algorithm 1, as the K of Kim & Song 2021, Eq. (8); the paper does not specify the
    significance; Hoeffding's bound with the same confidence needs no new constant.

    Distances are computed for a tile of rows at a time; the whole matrix is never stored. In ties (copies, entries on a
    grid) other labels come first: a tie is no evidence, and the result does not depend on the order of the samples.
    Distances that the arithmetic cannot distinguish from 0 are 0. On a CPU, distances that differ only by the rounding
    of the entries are equal: steps of 0.1, 1/3 or 1/255 are a grid too (on CUDA, and with a custom bound, distances are
    equal if they are computed as equal).

    Args:
        embeddings: shape ``(B, D)``, used without normalisation.
        labels: integers, shape ``(B,)``.
        confidence: c, in (0, 1].
        significant: the bound: :func:`hoeffding_significant`, :func:`chernoff_significant`,
            :func:`released_significant`, or your own function with the same signature.
        ref_emb: neighbours come from here instead, shape ``(R, D)``. If it *is* ``embeddings`` (the same tensor), each
            sample is left out of its own neighbours; otherwise one exact copy with the same label is left out.
        ref_labels: their labels, shape ``(R,)``.

    Returns:
        int64 of shape ``(B,)``, at least 1.

    Raises:
        ValueError: shapes that do not match, NaN or infinity, ``confidence`` outside (0, 1].

    Example:
        >>> z = torch.cat([torch.randn(64, 2), torch.randn(64, 2) + 100])
        >>> empirical_bias_k(z, torch.arange(128) // 64).unique()
        tensor([16])
    """
    check_confidence(confidence)
    check_matrix("embeddings", embeddings)
    check_labels("labels", labels, len(embeddings))
    if ref_emb is None:
        ref_emb, ref_labels = embeddings, labels
    elif ref_labels is None:
        raise ValueError(problem("ref_labels", "given with ref_emb", "None", "pass the labels of ref_emb"))
    if ref_emb is not embeddings:
        check_matrix("ref_emb", ref_emb)
        check_same_features("ref_emb", ref_emb, "embeddings", embeddings)
    assert ref_labels is not None
    check_labels("ref_labels", ref_labels, len(ref_emb), of="ref_emb")
    x = at_least_float32(embeddings)
    if ref_emb is embeddings and ref_labels is labels:
        x = y = x / common_scale(largest_magnitude("embeddings", x))
        index = ref_index = group_index(labels)
    else:
        y = at_least_float32(ref_emb).to(x)
        scale = common_scale(largest_magnitude("embeddings", x), largest_magnitude("ref_emb", y))
        x, y = x / scale, y / scale
        both = group_index(torch.cat([labels, ref_labels]))
        index, ref_index = both[: len(labels)], both[len(labels) :]
    return neighbourhood_sizes(x, index, y, ref_index, confidence, significant)


@torch.no_grad()
def neighbourhood_sizes(
    x: Tensor,
    index: Tensor,
    y: Tensor,
    ref_index: Tensor,
    confidence: float,
    significant: Significant = hoeffding_significant,
) -> Tensor:
    """:func:`empirical_bias_k` of checked embeddings scaled by a power of two, with labels as consecutive indices."""
    itself = y is x
    n = len(y)
    largest = n - 1 if itself else n
    if largest < 1 or len(x) == 0:
        return torch.ones(len(x), dtype=torch.int64, device=x.device)
    if significant in PURE and not is_blind(x):
        return _sizes_on_host(x, index, y, ref_index, confidence, significant)
    x, y = _centred(x, y)
    labels = (ref_index if itself else group_index(ref_index)).amax() + 1
    k = torch.arange(1, largest + 1, device=x.device, dtype=x.dtype)
    y_squares = _squares(y)
    copies = _first_copies(y, y_squares)
    sizes = []
    for start in _tile_starts(x, y):
        squares, own, everybody = _tile(x, index, y, y_squares, ref_index, start, copies)
        share = _by_distance(squares, own)[:, :largest].cumsum(1, dtype=x.dtype).div_(k)
        passed = significant(share, k, n, labels, confidence) | (k >= everybody)  # all of them if there is none
        sizes.append(passed.to(torch.uint8).argmax(1) + 1)
    return sizes[0] if len(sizes) == 1 else torch.cat(sizes)


def _sizes_on_host(
    x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, confidence: float, significant: Significant
) -> Tensor:
    """The same with one comparison for the bound, buffers that all tiles reuse, and numpy's vectorised sort."""
    itself = y is x
    n = len(y)
    group_sizes = np.bincount(ref_index.numpy())
    most = int(group_sizes.max()) - itself  # own labels that a neighbourhood can hold
    required = required_counts(significant, n - itself, most, n, np.count_nonzero(group_sizes), confidence)
    if itself and len(required.of_nearest) == 0:
        return torch.full((n,), n - 1)
    given = x
    x, y = _centred(x, y)
    labels_dtype = np.min_scalar_type(len(group_sizes))  # small ones compare faster
    label, ref_label = index.numpy().astype(labels_dtype), ref_index.numpy().astype(labels_dtype)
    rows = min(len(x), _tile_rows(y))
    buffer, flags = torch.empty(rows, n, dtype=x.dtype), np.empty((rows, n), dtype=np.bool_)
    y_squares = _squares(y)
    copies = _first_copies(y, y_squares)
    work = partial(_first_of_tile, ref_label, required)
    sizes, x_squares, tied = np.empty(len(x), dtype=np.int64), y_squares if itself else _squares(x), []
    threads = min(torch.get_num_threads(), rows * n // ENTRIES_A_THREAD)
    with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
        for start in _tile_starts(x, y):
            squares = _tile_squares(x, y, y_squares, start, copies, buffer)
            tile = slice(start, start + len(squares))
            sizes[tile] = n - 1 if itself else _leave_out_copy(squares, index[tile, None] == ref_index).numpy()
            own = (label[tile], sizes[tile], x_squares.numpy()[tile])
            parts: tuple[Array, ...] = (_keys(squares).numpy(), flags[: len(squares)], *own)  # keys in the buffer
            if pool is None:
                tied.append(work(*parts))
            else:  # numpy lets go of the interpreter while it sorts
                tied += pool.map(work, *(np.array_split(part, threads) for part in parts))
    near_ties = torch.from_numpy(np.flatnonzero(np.concatenate(tied)))
    if len(near_ties):
        settle(x, y, given[0] - x[0], near_ties, index, ref_index, required.of_nearest, sizes)
    return torch.from_numpy(sizes)


def first_significant(
    key: Array,
    flag: Array,
    label: Array,
    sizes: Array,
    ref_label: Array,
    required: Required,
    squares: Array | None = None,
) -> Array:
    """Lowers ``sizes`` to the first k whose k nearest contain the required own labels; overwrites key and flag.

    Returns the rows whose k-th neighbour may be as far as the next one, given the squared norms of the rows.
    """
    reach = len(required.of_nearest)
    if reach == 0:
        return np.zeros(len(key), dtype=np.bool_)
    np.equal(label[:, None], ref_label, out=flag)
    np.bitwise_or(key, flag, out=key)
    if reach < key.shape[1] // 2:  # sorting the near ones alone takes less time
        key.partition(reach, axis=1)
        key = key[:, : reach + 1]
    key.sort(axis=1)
    near = reach if reach < 2 * NEAR else NEAR
    found = _first_reached(key[:, :near] & 1, required.of_nearest[:near], sizes)
    if near < reach and not found.all():
        own, flag = key[:, :reach], flag[:, :reach]
        runs = np.packbits(np.bitwise_and(own, 1, out=flag, casting="unsafe"), axis=1)
        own_so_far = np.cumsum(_count_flags(runs), axis=1, dtype=np.int32)
        open_ones = np.flatnonzero((own_so_far >= required.in_run).any(1) & ~found)
        if len(open_ones):
            theirs = sizes[open_ones]
            found[open_ones] = _first_reached(own[open_ones] & 1, required.of_nearest, theirs)
            sizes[open_ones] = theirs
    return found if squares is None else undecided(key, sizes, found, squares)


def _first_of_tile(
    ref_label: Array, required: Required, key: Array, flag: Array, label: Array, sizes: Array, squares: Array
) -> Array:
    return first_significant(key, flag, label, sizes, ref_label, required, squares)


def _first_reached(own: Array, required: Array, sizes: Array) -> Array:
    """Lowers ``sizes`` to the first k with ``required[k - 1]`` own labels, if there is one. Overwrites ``own``."""
    np.cumsum(own, axis=1, out=own)
    passed = own >= required
    first = passed.argmax(1)
    found: Array = passed[np.arange(len(own)), first]
    np.minimum(sizes, first + 1, out=sizes, where=found)
    return found


class Required(NamedTuple):
    """The result of :func:`required_counts`.

    Attributes:
        of_nearest: own labels that the k nearest must contain, for k = 1, 2, …; more than k if no number is enough.
        in_run: for each run of eight, the own labels without which no k in it is evidence.
    """

    of_nearest: Array
    in_run: Array


@lru_cache(maxsize=64)
def required_counts(
    significant: Significant, largest: int, most: int, n: int, labels: int, confidence: float
) -> Required:
    """The fewest own labels among the k nearest that are evidence, for each k up to which ``most`` own labels can be
    enough: beyond that, even all of them are no evidence.

    The same for every batch of one size and number of labels, and one comparison instead of the bound's arithmetic. The
    number never decreases with k: the share that a bound requires falls more slowly than 1/k.
    """
    k = torch.arange(1, largest + 1, dtype=torch.float64)
    low, high = torch.zeros_like(k), k + 1
    for _ in range(largest.bit_length() + 1):  # bisection: more own labels are never weaker evidence
        middle = ((low + high) / 2).floor()
        enough = significant((middle / k)[None], k, n, torch.tensor(float(labels), dtype=torch.float64), confidence)[0]
        low, high = torch.where(enough, low, (middle + 1).minimum(high)), torch.where(enough, middle, high)
    within_reach = (high <= k.clamp(max=most)).nonzero()
    reach = int(within_reach[-1]) + 1 if len(within_reach) else 0
    of_nearest = high.masked_fill(high > k, 2**31 - 1)[:reach].to(torch.int32).numpy()
    runs = np.arange(0, reach, 8)
    return Required(of_nearest, np.minimum.reduceat(of_nearest, runs) if reach else of_nearest)


def _tile_rows(y: Tensor) -> int:
    return max(FEWEST_ROWS, TILE_ENTRIES // max(1, len(y)))


def _tile_starts(x: Tensor, y: Tensor) -> range:
    return range(0, len(x), _tile_rows(y))


def _tile(
    x: Tensor, index: Tensor, y: Tensor, y_squares: Tensor, ref_index: Tensor, start: int, copies: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | int]:
    """Squared distances of some rows to all of ``y``, where labels agree, and how many neighbours each row has."""
    squares = _tile_squares(x, y, y_squares, start, copies)
    own = index[start : start + len(squares), None] == ref_index
    if x is not y:
        return squares, own, _leave_out_copy(squares, own)[:, None]
    own.diagonal(start).fill_(False)
    return squares, own, len(y) - 1


def _tile_squares(
    x: Tensor, y: Tensor, y_squares: Tensor, start: int, copies: Tensor | None, buffer: Tensor | None = None
) -> Tensor:
    """Squared distances of some rows to all of ``y``: infinite to itself, 0 if it could be due to rounding."""
    tile = x[start : start + _tile_rows(y)]
    tile_squares = (y_squares[start : start + len(tile)] if x is y else _squares(tile))[:, None]
    squares = torch.add(tile_squares, y_squares, out=None if buffer is None else buffer[: len(tile)])
    squares = squares.addmm_(tile, y.T, alpha=-2)
    if copies is not None:
        squares.copy_(squares.index_select(1, copies))
    if x is y:
        squares.diagonal(start).fill_(torch.inf)
    rounding = rounding_of_squares(x)
    if is_blind(x) or squares.amin().item() <= rounding * (tile_squares.amax() + y_squares.amax()).item():
        squares.masked_fill_(squares <= (tile_squares + y_squares).mul_(rounding), 0.0)
    return squares


def rounding_of_squares(x: Tensor) -> float:
    """Error of a squared distance computed by products of coordinates, relative to its two squared norms."""
    return torch.finfo(x.dtype).eps * max(4.0, math.sqrt(x.shape[1]))


def _squares(x: Tensor) -> Tensor:
    """Squared norms, shape ``(rows,)``."""
    return (x * x).sum(1)


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both relative to the mean of ``y``: small differences of distant embeddings survive the products of coordinates.

    The mean is rounded to steps of an eighth of the spread: subtracting it keeps entries on a grid, and ties stay ties.
    """
    centre = y.mean(0)
    low, high = torch.aminmax(y - centre)
    step = (common_scale(torch.maximum(-low, high)) / 8).clamp_(min=2.0**-64)
    centre = centre.div_(step).round_().mul_(step)
    return (x - centre,) * 2 if x is y else (x - centre, y - centre)


def _first_copies(y: Tensor, y_squares: Tensor) -> Tensor | None:
    """For each row the first row that equals it; None if no two are equal.

    A CPU's matrix product can round differently near the edges of the matrix, where copies would not tie. On CUDA and
    in compiled code the comparison would wait for the device.
    """
    if is_blind(y):
        return None
    ordered = np.sort(y_squares.numpy())
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    distinct, which = torch.unique(y, dim=0, return_inverse=True)
    if len(distinct) == len(y):
        return None
    places = torch.arange(len(y))
    return places.scatter_reduce(0, which, places, "amin", include_self=False)[which]


def _leave_out_copy(squares: Tensor, own: Tensor) -> Tensor:
    """A reference set can contain the anchor itself, for instance a memory of past batches: one copy is not a
    neighbour.

    Returns the number of remaining neighbours, at least 1, shape ``(rows,)``; the copy gets an infinite distance and no
    longer counts as own.
    """
    copy = own & (squares == 0)
    found = copy.any(1, keepdim=True)
    first = copy.to(torch.uint8).argmax(1, keepdim=True)
    squares.scatter_(1, first, torch.where(found, torch.inf, squares.gather(1, first)))
    own.scatter_(1, first, own.gather(1, first) & ~found)
    return (squares.shape[1] - found[:, 0].to(torch.int64)).clamp(min=1)


def _keys(squares: Tensor) -> Tensor:
    """Distances as integers with a free last bit: the bits of non-negative floats sort like the floats.

    The bit, below the rounding of the distance, is for a flag: sorting numbers that carry their flag is many times
    faster than sorting and indexing.
    """
    return squares.view(torch.int32 if squares.dtype == torch.float32 else torch.int64).bitwise_and_(-2)


def _by_distance(squares: Tensor, own: Tensor) -> Tensor:
    """``own`` with each row in order of distance; in a tie, other labels first."""
    key = _keys(squares)
    return key.add_(own.to(key.dtype)).sort(dim=1).values.bitwise_and_(1)
