"""Contrastive loss of continuous labels, whose margin grows with the distance of two samples' labels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..messages import problem
from .checks import at_least_float32, check_matrix


def check_label_distance(scale: float, attraction: float = 1.0, slack: float = 0.0) -> None:
    """Raises a ``ValueError`` unless the options of :func:`label_distance_loss` are in range."""
    if not scale > 0:
        raise ValueError(problem("scale", "above 0", scale, "1 makes distances of embeddings those of labels"))
    for name, value in (("attraction", attraction), ("slack", slack)):
        if not value >= 0:
            raise ValueError(problem(name, "at least 0", value, "leave it out for the default"))


def label_distance_margin(labels: Tensor, scale: float = 1.0, ref_labels: Tensor | None = None) -> Tensor:
    r"""Margin of every pair, from its labels.

    .. math:: m_{ij} = s\,\|y_i - y_j\|

    Args:
        labels: :math:`y`, continuous, shape ``(N,)`` or ``(N, L)``.
        scale: s, distance of embeddings per distance of labels, above 0.
        ref_labels: of the pairs' second rows, shape ``(R,)`` or ``(R, L)``; by default ``labels``.

    Returns:
        Shape ``(N, R)``, in the unit of embeddings' distances; 0 on the diagonal of ``(N, N)``.

    Raises:
        ValueError: labels of another shape, references of other columns, or ``scale`` not above 0.

    Example:
        >>> label_distance_margin(torch.tensor([0.0, 0.5, 1.0]), scale=2.0)
        tensor([[0., 1., 2.],
                [1., 0., 1.],
                [2., 1., 0.]])
    """
    if labels.ndim not in (1, 2):
        remedy = "pass one number per row, or a row of several"
        raise ValueError(problem("labels", "of shape (N,) or (N, L)", tuple(labels.shape), remedy))
    check_label_distance(scale)
    y = at_least_float32(labels if labels.ndim == 2 else labels[:, None])
    if ref_labels is None:
        others = y
    elif ref_labels.ndim == labels.ndim and ref_labels.shape[1:] == labels.shape[1:]:
        others = at_least_float32(ref_labels if ref_labels.ndim == 2 else ref_labels[:, None]).to(y)
    else:
        expected = f"of as many columns as labels ({tuple(labels.shape)})"
        raise ValueError(problem("ref_labels", expected, tuple(ref_labels.shape), "pass the same labels of both sets"))
    return scale * (y[:, None] - others).square().sum(dim=2).sqrt()


def label_distance_loss(
    embeddings: Tensor, labels: Tensor, scale: float = 1.0, *, attraction: float = 1.0, slack: float = 0.0
) -> Tensor:
    r"""Contrastive loss over all pairs whose margin grows with the distance of their labels.

    .. math::
        L = \operatorname{mean}_{i<j} \bigl[(m_{ij} - d_{ij})_+ + a\,(d_{ij} - m_{ij} - t)_+\bigr], \qquad
        m_{ij} = s\,\|y_i - y_j\|

    with d the Euclidean distance of embeddings, which are not normalised. Nothing is divided into groups, and nobody's
    identity is used: two people with the same label are pulled together as much as two pictures of one.

    Source: ours, after Hadsell, Chopra & LeCun 2006, with the label's distance in place of same and different.

    Args:
        embeddings: shape ``(N, D)``.
        labels: :math:`y`, continuous, shape ``(N,)`` or ``(N, L)``.
        scale: s, as in :func:`label_distance_margin`.
        attraction: a, at least 0; with 0 only pairs that are too close count.
        slack: t, by how much a pair may be too far apart, at least 0.

    Returns:
        0-dim, in the unit of embeddings' distances; 0 with a graph for fewer than two rows.

    Raises:
        ValueError: shapes that do not match, or an option out of range.

    Example:
        >>> rows, labels = torch.tensor([[0.0], [3.0]]), torch.tensor([0.0, 1.0])
        >>> label_distance_loss(rows, labels), label_distance_loss(rows, labels, scale=5.0)
        (tensor(2.), tensor(2.))
    """
    check_matrix("embeddings", embeddings)
    if len(labels) != len(embeddings):
        expected = f"as many as embeddings ({len(embeddings)})"
        raise ValueError(problem("labels", expected, len(labels), "pass the labels of the same rows"))
    check_label_distance(scale, attraction, slack)
    z = at_least_float32(embeddings)
    margin = label_distance_margin(labels, scale)
    first, second = torch.triu_indices(len(z), len(z), offset=1, device=z.device)
    if not len(first):
        return z.sum() * 0
    squared = (z[first] - z[second]).square().sum(dim=1)
    apart = squared > 0  # the root's gradient at 0 is infinite
    distance = torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
    gap = margin.to(z.dtype)[first, second] - distance
    return (torch.relu(gap) + attraction * torch.relu(-gap - slack)).mean()
