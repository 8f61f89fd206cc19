"""Sums over all pairs of a batch, and their gradients, in memory that grows with the batch and not with its square.

Rows are sorted by group, so that the pairs (i, j), i < j, of two groups fill rectangles of the distance matrix whose
borders are known. Each rectangle is computed a tile at a time: a matrix product gives the distances, the hinge turns
them into losses, and two more products, of the tile's weights with the rows, add to the gradient in the same pass.
Each tile is then dropped. The squared distances inside a group need no tile at all:

    sum over i < j of |x_i - x_j|² = n · sum over i of |x_i - mean|²
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...messages import check_choice, problem
from ..checks import at_least_float32, check_finite, check_fits, is_blind
from ..labelled_sets import check_sets
from ..normalised import normalised
from .autograd import PairTermsFunction
from .options import UNIT, Distance, Options, PairTerms
from .rows import check_squares, rows_of


def pair_terms(
    embeddings: Tensor,
    labels: Tensor,
    margin: float | Tensor,
    *,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    distance: Distance = "squared_l2",
    pos_margin: float = 0.0,
    over_active: bool = False,
    second_moment: bool = False,
    only_first: bool = False,
    ignore_label: int | None = None,
    counts: bool = True,
) -> PairTerms:
    r"""The terms of a contrastive loss over all pairs, without a list of pairs and without a matrix of distances.

    .. math::
        \text{attraction} = \operatorname{mean}_{\text{inside}} (d_{ij} - \beta)_+, \qquad
        \text{repulsion} = \operatorname{mean}_{\text{across},\ d_{ij} < \alpha_i} (\alpha_i - d_{ij})_+, \qquad
        \Omega = \tfrac12 \operatorname{mean}_{\text{inside}} d_{ij}^2
                + \tfrac12 \operatorname{mean}_{\text{across}} (\alpha_i - d_{ij})_+^2

    Pairs inside have the same label, pairs across have different labels. A mean over no pairs is 0.

    Source: Kim & Song 2021, Eq. (4) and (7); the tiles are this library's.

    Args:
        embeddings: shape ``(B, D)``. Half precision is computed in float32.
        labels: integers, shape ``(B,)``.
        margin: :math:`\alpha`: a number, a 0-dim tensor, or one per row, shape ``(B,)``. With one per row, each pair
            across counts twice, once with the margin of each row.
        ref_emb: pairs take one row from ``embeddings`` and one from here, shape ``(R, D)``, instead: all such pairs,
            even if both rows are the same.
        ref_labels: their labels, shape ``(R,)``.
        distance: d: ``"squared_l2"``, ``"l2"``, or ``"cosine"``: the similarity s of the normalised rows, which counts
            as the distance -s; both margins are then similarities, and the hinges are :math:`(\beta - s)_+` and
            :math:`(s - \alpha)_+`; or ``"dot"``, the same for rows that are already normalised, none longer than 1.
        pos_margin: :math:`\beta`.
        over_active: whether the attraction is a mean over the pairs with :math:`d > \beta`, or over all pairs inside.
        second_moment: whether to compute :math:`\Omega` (it needs more products).
        only_first: labels are 0 and 1, and only label 0 has pairs inside.
        ignore_label: rows with this label are left out of everything.
        counts: whether to count the pairs; zeros otherwise.

    Returns:
        ``attraction``, ``repulsion``, ``second_moment`` (0 unless requested): 0-dim, float32 or float64; and
        ``counts``: int64, shape ``(3,)``: the pairs inside (unordered, without ``ref_emb``), those across, and the
        ordered (anchor, negative) pairs within the margin. Each term has a gradient for the embeddings, for ``ref_emb``
        and for the margin. There is no second derivative; requesting one raises an error.

    Raises:
        ValueError: shapes that do not match, NaN or infinity, numbers whose squares overflow. On CUDA and in
            compiled code the last two are device-side assertions, so that nothing waits for the device.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.5]])
        >>> attraction, repulsion, _, counts = pair_terms(x, torch.tensor([0, 0, 1]), margin=1.0)
        >>> attraction, repulsion  # 1², and 1 - 0.5² (the other pair across is beyond the margin)
        (tensor(1.), tensor(0.7500))
        >>> counts
        tensor([1, 2, 2])
    """
    if distance != "dot":
        check_choice("distance", distance, ("squared_l2", "l2", "cosine"))
    if not math.isfinite(pos_margin):
        raise ValueError(problem("pos_margin", "finite", pos_margin, "stock losses use 0 for distances"))
    if ref_emb is not None and ref_labels is None:  # also if it is the embeddings themselves
        raise ValueError(problem("ref_labels", "given with ref_emb", "None", "pass the labels of ref_emb"))
    check_sets(embeddings, labels, ref_emb, ref_labels)
    options = Options(distance, float(pos_margin), over_active, second_moment, only_first, ignore_label, counts=counts)
    return terms_of(embeddings, ref_emb, margin, labels, ref_labels, options)


def terms_of(
    x: Tensor,
    y: Tensor | None,
    margin: float | Tensor,
    labels: Tensor | None,
    ref_labels: Tensor | None,
    options: Options,
) -> PairTerms:
    """:func:`pair_terms` of checked arguments."""
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return terms_of(x, y, margin, labels, ref_labels, options)
    if x.dtype == torch.float16:
        options = options.but(gradient_limit=torch.finfo(x.dtype).max)
    x = at_least_float32(x)
    y = None if y is None else y.to(x)
    labels = None if labels is None else labels.long()  # an unsigned 255 equals an ignore_label of -1
    ref_labels = None if ref_labels is None else ref_labels.long()
    margin = as_margin(margin, x)
    check_fits("pos_margin", options.pos_margin, x.dtype, UNIT)
    if options.distance == "cosine":
        x = _unit("embeddings", x, labels, options.ignore_label)
        y = None if y is None else _unit("ref_emb", y, ref_labels, options.ignore_label)
    if options.distance in ("cosine", "dot"):  # a similarity s counts as the distance -s
        margin, options = -margin, options.but(pos_margin=-options.pos_margin, distance="cosine")
    ref_gradients = y is not None and y.requires_grad
    gradients = torch.is_grad_enabled() and (x.requires_grad or margin.requires_grad or ref_gradients)
    options = options.but(
        gradients=gradients, ref_gradients=ref_gradients, margin_gradients=gradients and margin.requires_grad
    )
    return PairTerms(*PairTermsFunction.apply(x, y, margin, labels, ref_labels, options))


def as_margin(margin: float | Tensor, x: Tensor) -> Tensor:
    """A margin as a finite tensor of ``x``'s dtype and device, of shape ``()`` or with one value per row."""
    if not isinstance(margin, Tensor):
        check_fits("margin", margin, x.dtype, UNIT)
        return x.new_full((), margin)
    if margin.shape not in ((), (len(x),)):
        expected = f"one number, or one per row: of shape () or ({len(x)},)"
        remedy = "pass a margin of granularity 'batch' or 'anchor'"
        raise ValueError(problem("margin", expected, f"shape {tuple(margin.shape)}", remedy))
    margin = margin.to(x)
    if margin.ndim > 0 or is_blind(margin):
        check_finite("margin", margin)
    else:  # a number's check is quicker
        check_fits("margin", margin.item(), x.dtype, UNIT)
    return margin


def _unit(argument: str, x: Tensor, labels: Tensor | None, ignore_label: int | None) -> Tensor:
    """Rows divided by their norms, as ``torch.nn.functional.normalize`` does."""
    if len(x) > 0:
        check_squares(argument, rows_of(x.detach(), x), labels, ignore_label)
    return normalised(x)


def pair_hinge_means(
    embeddings: Tensor,
    labels: Tensor,
    pos_margin: float,
    neg_margin: float | Tensor,
    distance: Distance = "l2",
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The two terms of pytorch-metric-learning's ``ContrastiveLoss`` with its ``AvgNonZeroReducer``, in tiles.

    .. math::
        \operatorname{mean}_{>0}\, (d_{ij} - m_+)_+ \text{ over pairs of one label}, \qquad
        \operatorname{mean}_{>0}\, (m_- - d_{ij})_+ \text{ over pairs of two}

    each over the pairs whose hinge is above 0, and 0 if there are none; for similarities :math:`(m_+ - s_{ij})_+` and
    :math:`(s_{ij} - m_-)_+`.

    Source: Hadsell, Chopra & LeCun 2006, as in pytorch-metric-learning 2.9.

    Args:
        embeddings: shape ``(B, D)``. For a distance of normalised rows the caller must normalise them, except for
            ``"cosine"``.
        labels: integers, shape ``(B,)``.
        pos_margin: :math:`m_+`.
        neg_margin: :math:`m_-`: a number, a 0-dim tensor, or one per anchor, shape ``(B,)``.
        distance: ``"l2"``, ``"squared_l2"``, or a similarity, ``"cosine"`` or ``"dot"``. At an L2 distance of 0 the
            gradient is 0.
        ref_emb: pairs take their second row from here, shape ``(R, D)``: all such pairs, as in the host with a
            reference set.
        ref_labels: their labels, shape ``(R,)``.

    Returns:
        Two 0-dim tensors, float32 or float64, with gradients for all tensor arguments.

    Raises:
        ValueError: as for :func:`pair_terms`.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.5]])
        >>> pair_hinge_means(x, torch.tensor([0, 0, 1]), pos_margin=0, neg_margin=1.0)
        (tensor(1.), tensor(0.5000))
    """
    terms = pair_terms(
        embeddings,
        labels,
        neg_margin,
        ref_emb=ref_emb,
        ref_labels=ref_labels,
        distance=distance,
        pos_margin=pos_margin,
        over_active=True,
        counts=False,
    )
    return terms.attraction, terms.repulsion
