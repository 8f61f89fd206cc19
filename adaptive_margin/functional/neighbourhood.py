"""How pure the neighbourhoods of a batch have become: the confidence term of Eq. 8 and the neighbourhood size in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .checks import check_labels, check_matrix, check_number, check_same_features, largest_magnitude, problem
from .dependence import at_least_float32, common_scale
from .groups import group_index, group_slots, group_sums

Significant = Callable[[Tensor, Tensor, int, Tensor, float], Tensor]
"""``significant(share, k, n, labels, confidence)``: where a share of own labels among k neighbours is evidence."""

TILE_ENTRIES = 2**20
"""Distances held at once, about 30 MiB with everything that is made of them."""


def check_confidence(confidence: float) -> None:
    """Raises unless ``confidence`` is in (0, 1]."""
    expected, remedy = "in (0, 1]", "the paper uses 0.05"
    if not 0 < check_number("confidence", confidence, expected, remedy) <= 1:
        raise ValueError(problem("confidence", expected, confidence, remedy))


def confidence_term(n: int | Tensor, k: int | float | Tensor, confidence: float = 0.05) -> Tensor:
    r"""Confidence term of the adaptive margin, :math:`\Delta(N, K) = \frac{1}{2K}\log\frac{N}{c}`.

    Source: Kim & Song 2021, Eq. (8), after Balsubramani et al. 2019. It is the square of Hoeffding's bound on the bias
    of a neighbourhood of K samples: it grows as smaller neighbourhoods are already pure.

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

    One-sided: a sample surrounded by other labels is no evidence of a learned margin.

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

    With C labels a small pure neighbourhood is far less likely by chance than Hoeffding's bound can say: a batch with
    four images a class never passes Hoeffding at N = 128; Chernoff passes at K = 3.

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
    r"""The rule of the authors' released code: :math:`\hat p - \frac1C > A/\sqrt k` with A = 0.7; N and c play no part.

    The released code indexes its table two places early, so that its :math:`\Delta` is that of K − 1; here K is K.

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


def empirical_bias_k(
    embeddings: Tensor,
    labels: Tensor,
    confidence: float = 0.05,
    *,
    significant: Significant = hoeffding_significant,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
) -> Tensor:
    r"""Neighbourhood size of each sample: the smallest k at which its neighbours' labels are no accident.

    .. math:: K_i = \min\{k \ge 1 : \hat p_i(k) - \tfrac1C \ge \sqrt{\log(N/c)/2k}\}, \qquad N - 1 \text{ where none}

    with :math:`\hat p_i(k)` the share of sample i's own label among its k nearest others in Euclidean distance, C the
    number of labels and N the number of samples of the reference set (of the batch, where none is given).

    Source: Balsubramani et al. 2019, Algorithm 1, as the K of Kim & Song 2021, Eq. (8); the paper leaves the
    significance open, Hoeffding's bound at the same confidence needs no new constant.

    Distances are computed for a tile of rows at a time and never stored whole. Among equal distances (copies, entries
    on a grid) other labels come first: a tie is no evidence, and the result does not depend on the order of the
    samples. Distances too small for the arithmetic to tell from 0 are 0.

    Args:
        embeddings: shape ``(B, D)``, as they come.
        labels: integers, shape ``(B,)``.
        confidence: c, in (0, 1].
        significant: the bound: :func:`hoeffding_significant`, :func:`chernoff_significant`,
            :func:`released_significant`, or your own with that signature.
        ref_emb: neighbours come from here instead, shape ``(R, D)``. Where it *is* ``embeddings`` (the same tensor)
            each sample is left out of its own neighbours; otherwise one exact copy of it, with its own label, is.
        ref_labels: their labels, shape ``(R,)``.

    Returns:
        int64 of shape ``(B,)``, at least 1.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, ``confidence`` outside (0, 1].

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
    if ref_emb is embeddings:
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
    groups = group_slots(ref_index, len(index) + len(ref_index))
    present = group_sums(torch.ones_like(ref_index, dtype=torch.float32), ref_index, max(groups, 1), torch.float32) > 0
    labels = present.sum().to(torch.float32)
    centre = _round_centre(y)  # small differences of far-off embeddings survive the products below
    x, y = (x - centre,) * 2 if itself else (x - centre, y - centre)
    k = torch.arange(1, largest + 1, device=x.device, dtype=x.dtype)
    sizes = []
    for start, squares in _row_tiles(x, y):
        own = index[start : start + len(squares), None] == ref_index  # (rows, R)
        if itself:
            squares.diagonal(start).fill_(torch.inf)
            own.diagonal(start).fill_(False)
            none_from: int | Tensor = largest
        else:
            none_from = torch.where(_leave_out_copy(squares, own), n - 1, n).clamp(min=1)  # (rows, 1)
        own = _by_distance(squares, own)[:, :largest]
        share = own.cumsum(1, dtype=x.dtype).div_(k)
        passed = significant(share, k, n, labels, confidence) | (k >= none_from)  # where none is, all of them
        sizes.append(passed.to(torch.uint8).argmax(1) + 1)
    return sizes[0] if len(sizes) == 1 else torch.cat(sizes)


def _round_centre(y: Tensor) -> Tensor:
    """The mean in steps of an eighth of the spread: subtracting it keeps entries on a grid on one, and ties ties."""
    centre = y.mean(0)
    step = (common_scale((y - centre).abs().amax()) / 8).clamp(min=2.0**-64)
    return torch.round(centre / step) * step


def _row_tiles(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Squared distances of a few rows to all of ``y`` at a time; 0 where rounding alone could have made them."""
    rounding = torch.finfo(x.dtype).eps * max(4.0, math.sqrt(x.shape[1]))
    y_squares = (y * y).sum(1)
    x_squares = y_squares if x is y else (x * x).sum(1)
    copies = _first_copies(y, y_squares)
    rows = max(1, TILE_ENTRIES // max(1, len(y)))
    for start in range(0, len(x), rows):
        tile = x[start : start + rows]
        both = x_squares[start : start + rows, None] + y_squares  # (rows, R)
        squares = torch.addmm(both, tile, y.T, alpha=-2)
        squares = torch.where(squares > rounding * both, squares, 0.0)
        yield start, squares if copies is None else squares.index_select(1, copies)


def _first_copies(y: Tensor, y_squares: Tensor) -> Tensor | None:
    """For each row the first that equals it; None where no two are equal.

    A CPU's matrix product can round differently near the edges of the matrix: copies there would not tie. On CUDA and
    in compiled code looking would wait for the device.
    """
    if y.is_cuda or torch.compiler.is_compiling():
        return None
    ordered = torch.sort(y_squares).values
    if not bool((ordered[1:] == ordered[:-1]).any()):
        return None
    distinct, which = torch.unique(y, dim=0, return_inverse=True)
    if len(distinct) == len(y):
        return None
    places = torch.arange(len(y))
    return places.scatter_reduce(0, which, places, "amin", include_self=False)[which]


def _leave_out_copy(squares: Tensor, own: Tensor) -> Tensor:
    """A reference set can hold the anchor itself, as a memory of past batches does: one copy is not its neighbour.

    Returns whether there was one, shape ``(rows, 1)``.
    """
    copy = own & (squares == 0)
    found = copy.any(1, keepdim=True)
    first = copy.to(torch.uint8).argmax(1, keepdim=True)
    squares.scatter_(1, first, torch.where(found, torch.inf, squares.gather(1, first)))
    own.scatter_(1, first, own.gather(1, first) & ~found)
    return found


def _by_distance(squares: Tensor, own: Tensor) -> Tensor:
    """``own`` with each row in order of distance; in a tie, other labels first."""
    # The bits of non-negative floats sort as the floats do; the last one, below the rounding of the distance, is
    # given to the flag. Sorting numbers that carry their flag is many times faster than sorting and indexing.
    integers = torch.int32 if squares.dtype == torch.float32 else torch.int64
    key = squares.view(integers).bitwise_and_(-2).add_(own.to(integers))
    if key.is_cuda or torch.compiler.is_compiling():
        key = key.sort(dim=1).values
    else:
        keys = key.numpy()  # shares memory; numpy's vectorised sort takes an eighth of torch's time
        keys.sort(axis=1)
    return key.bitwise_and_(1)
