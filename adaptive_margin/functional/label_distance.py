"""Contrastive loss of continuous labels, whose margin grows with the distance of two samples' labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..messages import problem
from .checks import at_least_float32, check_columns, check_finite, check_matrix, check_number, check_values


def check_label_distance(scale: float, attraction: float = 1.0, slack: float = 0.0) -> None:
    """Raises unless the options of :func:`label_distance_loss` are numbers in range."""
    remedy = "1 makes distances of embeddings those of labels"
    if not 0 < check_number("scale", scale, "a number", remedy) < math.inf:
        raise ValueError(problem("scale", "above 0 and finite", scale, remedy))
    remedy = "leave it out for the default"
    for name, value in (("attraction", attraction), ("slack", slack)):
        if not 0 <= check_number(name, value, "a number", remedy) < math.inf:
            raise ValueError(problem(name, "at least 0 and finite", value, remedy))


def check_continuous_labels(argument: str, labels: Tensor, rows: int, of: str = "embeddings") -> None:
    """Raises unless ``labels`` are finite numbers, one or several for each of ``rows`` rows."""
    _columns(argument, labels)
    if len(labels) != rows:
        expected = f"as many as {of} ({rows})"
        raise ValueError(problem(argument, expected, len(labels), "pass the labels of the same rows"))


def _columns(argument: str, labels: Tensor) -> Tensor:
    """Labels as a matrix ``(N, L)``, in a dtype whose differences are exact or at least float32."""
    check_columns(argument, labels, empty=True)
    check_values(argument, labels)
    if labels.is_floating_point():
        check_finite(argument, labels)
    y = labels.detach() if labels.ndim == 2 else labels.detach()[:, None]
    return at_least_float32(y) if y.is_floating_point() else y.long()  # unsigned ones have no differences below 0


def label_distance_margin(labels: Tensor, scale: float = 1.0, ref_labels: Tensor | None = None) -> Tensor:
    r"""Margin of every pair, from its labels.

    .. math:: m_{ij} = s\,\|y_i - y_j\|

    Args:
        labels: :math:`y`, continuous, shape ``(N,)`` or ``(N, L)``; they get no gradient.
        scale: s, distance of embeddings per distance of labels, above 0.
        ref_labels: of the pairs' second rows, shape ``(R,)`` or ``(R, L)``; by default ``labels``.

    Returns:
        Shape ``(N, R)``, in the unit of embeddings' distances; 0 on the diagonal of ``(N, N)``.

    Raises:
        TypeError: labels are no tensor of real numbers, or ``scale`` is no number.
        ValueError: labels of another shape, NaN or infinity in them, references of other columns, or ``scale`` that is
            not above 0 and finite.

    Example:
        >>> label_distance_margin(torch.tensor([0.0, 0.5, 1.0]), scale=2.0)
        tensor([[0., 1., 2.],
                [1., 0., 1.],
                [2., 1., 0.]])
    """
    check_label_distance(scale)
    y = _columns("labels", labels)
    others = y if ref_labels is None else _columns("ref_labels", ref_labels).to(y.device)
    if others.shape[1] != y.shape[1]:
        assert ref_labels is not None
        expected = f"of as many columns as labels ({tuple(labels.shape)})"
        raise ValueError(problem("ref_labels", expected, tuple(ref_labels.shape), "pass the same labels of both sets"))
    apart = y[:, None] - others  # (N, R, L)
    apart = apart if apart.is_floating_point() else apart.to(torch.get_default_dtype())
    return scale * apart.square().sum(dim=2).sqrt()


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
        TypeError: embeddings or labels are no tensor, or an option is no number.
        ValueError: shapes that do not match, NaN or infinity in embeddings or labels, or an option out of range.

    Example:
        >>> rows, labels = torch.tensor([[0.0], [3.0]]), torch.tensor([0.0, 1.0])
        >>> label_distance_loss(rows, labels), label_distance_loss(rows, labels, scale=5.0)
        (tensor(2.), tensor(2.))
    """
    check_matrix("embeddings", embeddings)
    check_finite("embeddings", embeddings)
    check_continuous_labels("labels", labels, len(embeddings))
    check_label_distance(scale, attraction, slack)
    z = at_least_float32(embeddings)
    margin = label_distance_margin(labels, scale)
    first, second = torch.triu_indices(len(z), len(z), offset=1, device=z.device)
    if not len(first):
        return z.sum() * 0
    squared = (z[first] - z[second]).square().sum(dim=1)
    apart = squared > 0  # the root's gradient at 0 is infinite
    distance = torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
    gap = margin.to(z)[first, second] - distance
    return (torch.relu(gap) + attraction * torch.relu(-gap - slack)).mean()
