"""The nearest references of every query, tile by tile: no N×N matrix, and a defined order for ties."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..messages import problem
from .checks import check_finite, check_matrix, check_same_features

Metric = Literal["squared_l2", "cosine"]

TILE_ENTRIES = 1 << 22  # distances alive at once: 16 MiB of them, about 60 MiB with the keys they are sorted by
_COLUMNS = 16384  # references in a tile: wide enough for a fast matrix product, 32 MiB of float32 at 512 features
# A key is one int64 made of two int32 words: the bits of a distance >= 0 (whose order is the distance's) above the
# index. Keys are unique, so that the smallest k of them do not depend on the tiles or on the device's sort.
_HIGH, _LOW = (1, 0) if sys.byteorder == "little" else (0, 1)
_NEVER = 2**31 - 1  # above the bits of infinity: an excluded reference sorts last


def row_tiles(rows: int, columns: int, entries: int = TILE_ENTRIES) -> Iterator[tuple[int, int]]:
    """Cuts ``rows`` into ``(start, end)`` blocks of at most ``entries`` matrix entries; a block has at least one row.

    Example:
        >>> list(row_tiles(5, columns=10, entries=20))
        [(0, 2), (2, 4), (4, 5)]
        >>> list(row_tiles(2, columns=10, entries=1)), list(row_tiles(0, columns=10))
        ([(0, 1), (1, 2)], [])
    """
    step = max(1, entries // max(1, columns))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def check_tile_entries(tile_entries: int) -> None:
    """Raises unless a tile holds at least one entry."""
    if isinstance(tile_entries, bool) or not isinstance(tile_entries, int) or tile_entries < 1:
        remedy = f"{TILE_ENTRIES} is a good size"
        raise ValueError(problem("tile_entries", "an integer >= 1", repr(tile_entries), remedy))


def check_search(
    query: Tensor, reference: Tensor | None, distance: str, ref_includes_query: bool, tile_entries: int
) -> None:
    """Raises the errors documented in :func:`nearest_neighbours`, except for ``k``."""
    if distance not in get_args(Metric):
        raise ValueError(problem("distance", f"one of {get_args(Metric)}", repr(distance), "both rank unit rows alike"))
    check_tile_entries(tile_entries)
    check_matrix("query", query)
    _check_norms("query", query)
    if reference is None or reference is query:
        return
    check_matrix("reference", reference)
    check_same_features("reference", reference, "query", query)
    if reference.device != query.device:
        remedy = "move one of them with .to(device)"
        raise ValueError(problem("reference", f"on query's device {query.device}", reference.device, remedy))
    if len(reference) >= 2**31:
        raise ValueError(problem("reference", "shorter than 2**31 rows", len(reference), "split it"))
    _check_norms("reference", reference)
    if not ref_includes_query:
        return
    if len(reference) < len(query) or not torch.equal(reference[: len(query)].to(query.dtype), query):
        expected = "query followed by the other references when ref_includes_query is True"
        remedy = "put the queries first, in their order, or pass ref_includes_query=False"
        raise ValueError(problem("reference", expected, f"{len(reference)} rows that begin differently", remedy))


def _check_norms(argument: str, x: Tensor) -> None:
    """Checks for finite values whose squared distances are finite in float32: one number per row, since isfinite(x)
    would copy x.

    A squared distance is at most four times the larger of two squared norms.
    """
    norms = _squared_norms(x).mul_(4)
    if x.is_cuda or bool(torch.isfinite(norms).all()):
        check_finite(argument, norms)
        return
    check_finite(argument, x)
    expected = "small enough for squared distances in float32, of norms below 9.2e18"
    raise ValueError(problem(argument, expected, f"values up to {float(x.abs().max()):.3g}", "scale them down"))


def neighbour_tiles(
    query: Tensor, reference: Tensor, k: int, distance: Metric, exclude_self: bool, tile_entries: int = TILE_ENTRIES
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The rows of :func:`nearest_neighbours` in blocks: ``(start, distances, indices)``, never all at once.

    Takes checked inputs. ``exclude_self`` leaves reference ``i`` out of the answer of query ``i``.
    """
    columns = min(max(1, len(reference)), max(k, _COLUMNS))
    rows = min(max(1, len(query)), max(1, tile_entries // columns))
    # Every large buffer is made once: fresh memory for each tile would cost as much as the sorting.
    products = torch.empty(rows, columns, dtype=torch.float32, device=query.device)
    words = torch.empty(rows, columns, 2, dtype=torch.int32, device=query.device)
    words[:, :, _LOW] = torch.arange(columns, dtype=torch.int32, device=query.device)
    keys, high = words.view(torch.int64).squeeze(2), words[:, :, _HIGH]
    best, merged = (torch.empty(rows, 2 * k, dtype=torch.int64, device=query.device) for _ in range(2))
    where = torch.empty(rows, k, dtype=torch.int64, device=query.device)
    norms = _squared_norms(reference) if distance == "squared_l2" else None  # (R,)

    for start in range(0, len(query), rows):
        x = _as_rows(query[start : start + rows], distance)  # (r, D)
        r, found = len(x), 0
        for left in range(0, len(reference), columns):
            y = _as_rows(reference[left : left + columns], distance)  # (c, D)
            c = len(y)
            product = products[:r, :c]
            _distances_into(product, x, y, None if norms is None else norms[left : left + columns])
            torch.clamp(product, min=0, out=words.view(torch.float32)[:r, :c, _HIGH])  # rounding can go below zero
            if exclude_self:
                first, last = max(start, left), min(start + r, left + c)
                if first < last:
                    high[first - start : last - start, first - left : last - left].fill_diagonal_(_NEVER)
            new = min(k, c)
            torch.topk(keys[:r, :c], new, largest=False, out=(best[:r, found : found + new], where[:r, :new]))
            best[:r, found : found + new] += left  # from the tile's index to the reference's
            found += new
            if found > new:  # there was an earlier tile
                keep = min(k, found)
                torch.topk(best[:r, :found], keep, largest=False, out=(merged[:r, :keep], where[:r, :keep]))
                best, merged, found = merged, best, keep
        yield start, (best[:r, :found] >> 32).to(torch.int32).view(torch.float32), best[:r, :found] & 0xFFFFFFFF


def _as_rows(x: Tensor, distance: Metric) -> Tensor:
    """One tile in float32, with unit rows for the cosine: the whole set is never copied."""
    x = x.detach().to(torch.float32)
    return normalize(x, dim=1) if distance == "cosine" else x


def _squared_norms(x: Tensor) -> Tensor:
    norms = torch.empty(len(x), dtype=torch.float32, device=x.device)
    for start, end in row_tiles(len(x), x.shape[1]):
        norms[start:end] = x[start:end].detach().to(torch.float32).square().sum(dim=1)
    return norms


def _distances_into(out: Tensor, x: Tensor, y: Tensor, y_norms: Tensor | None) -> None:
    if y_norms is None:
        out.fill_(1).addmm_(x, y.T, alpha=-1)  # 1 - cos
    else:
        torch.add(_squared_norms(x).unsqueeze(1), y_norms, out=out).addmm_(x, y.T, alpha=-2)  # |x|² + |y|² - 2xy


@torch.no_grad()
def nearest_neighbours(
    query: Tensor,
    reference: Tensor | None = None,
    k: int = 1,
    *,
    distance: Metric = "squared_l2",
    ref_includes_query: bool = False,
    tile_entries: int = TILE_ENTRIES,
) -> tuple[Tensor, Tensor]:
    r"""The ``k`` nearest references of every query, exactly, in memory for one tile of distances.

    .. math:: d(x, y) = \lVert x \rVert^2 + \lVert y \rVert^2 - 2 x \cdot y \quad\text{or}\quad
              d(x, y) = 1 - \frac{x \cdot y}{\lVert x \rVert \lVert y \rVert}

    The float32 expansion is that of faiss' flat index, with an error of about :math:`10^{-7}` of the squared norms.
    Every input is converted to float32, one tile at a time. **Ties** (equal computed distances) go to the lower
    reference index, on every device and for every tile size.

    Args:
        query: shape ``(Q, D)``, any floating dtype.
        reference: shape ``(R, D)``, on the same device. Without it the queries search each other.
        k: number of neighbours, from 1 to the number of references that a query may find: ``R``, or ``R - 1`` if it is
            one of them.
        distance: ``"squared_l2"`` or ``"cosine"`` (a zero row is at distance 1 from everything).
        ref_includes_query: the first ``Q`` references are the queries. Query ``i`` then never finds reference
            ``i`` (the index is left out, not the first hit: its duplicates are found). Implied without ``reference``.
        tile_entries: distances held at once.

    Returns:
        ``(distances, indices)``, both ``(Q, k)``, nearest first: float32 in the unit of ``distance`` (squared
        for L2), and int64.

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: a wrong shape, device or option, a value that is not finite, or ``k`` out of range.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0], [3.0]])
        >>> nearest_neighbours(x, k=2)
        (tensor([[1., 9.],
                [1., 4.],
                [0., 4.],
                [0., 4.]]), tensor([[1, 2],
                [0, 2],
                [3, 1],
                [2, 1]]))
    """
    check_search(query, reference, distance, ref_includes_query, tile_entries)
    exclude_self = reference is None or ref_includes_query
    reference = query if reference is None else reference
    available = len(reference) - int(exclude_self)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1 or (len(query) > 0 and k > available):
        expected = f"an integer from 1 to the {max(0, available)} references that a query may find"
        too_many = isinstance(k, int) and k > available
        remedy = "ask for fewer neighbours or pass more references" if too_many else "pass a positive whole number"
        raise ValueError(problem("k", expected, k, remedy))
    distances = torch.empty(len(query), k, dtype=torch.float32, device=query.device)
    indices = torch.empty(len(query), k, dtype=torch.int64, device=query.device)
    for start, found, at in neighbour_tiles(query, reference, k, distance, exclude_self, tile_entries):
        distances[start : start + len(found)] = found
        indices[start : start + len(at)] = at
    return distances, indices
