"""Weights of distance-weighted sampling: a negative's weight is the inverse of the density of its distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..messages import problem
from .checks import check_number

#: Distances are taken as at most this: at 2, opposite points, the weight is infinite, and float32 distances
#: cannot tell 1 - d²/4 from rounding much closer to it.
LARGEST_DISTANCE = 1.999


def distance_log_weights(
    distances: Tensor,
    different: Tensor,
    dimension: int,
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float | None = 1.4,
) -> Tensor:
    r"""Unnormalised log-weights of distance-weighted sampling, one row per anchor.

    Distances between random points of the unit sphere in ``dimension`` dimensions have the density :math:`q`; a
    negative at distance :math:`r` is drawn with a weight of :math:`1 / q`:

    .. math:: \log q(r) = (D - 2) \log r + \frac{D - 3}{2} \log\bigl(1 - \tfrac14 r^2\bigr) + \text{const}, \qquad
              \log w_j = \begin{cases} -\log q(\mathrm{clip}(d_j)) & j \text{ different},\ d_j < \text{upper cutoff}\\
              -\infty & \text{otherwise} \end{cases}

    with distances clipped to ``[cutoff, 1.999]``. If a row has negatives but none is below the upper cutoff, each has
    weight 1: a uniform draw. A row without a negative is all :math:`-\infty`.

    Source: Wu et al. 2017, *Sampling Matters in Deep Embedding Learning*, section 4, its first equation. The upper
    cutoff (a farther negative has no loss with margin 0.2 and beta 1.2) and its value 1.4 come from the authors' code.
    There are two differences from the authors' code and pytorch-metric-learning: the computation stays in log space,
    where weights of :math:`e^{\pm 700}` and opposite points are finite; and the uniform draw never takes the anchor's
    class.

    Args:
        distances: :math:`d`, L2 distances between unit vectors, shape ``(B, R)``.
        different: where the classes differ, bool, shape ``(B, R)``.
        dimension: :math:`D`, the number of features of the vectors.
        cutoff: smaller distances count as equal to it, in [0, 1.999). With 0, negatives at distance 0 take all draws.
        nonzero_loss_cutoff: the upper cutoff; None for no upper cutoff. At or below ``cutoff`` all distances count as
            equal.

    Returns:
        Shape ``(B, R)``, dtype of ``distances``: the log-weights, :math:`-\infty` for references that must not be
        drawn. ``torch.softmax(..., dim=1)`` gives the probabilities.

    Raises:
        ValueError: a cutoff is out of its range.

    Example:
        >>> distances = torch.tensor([[0.2, 0.5, 1.0, 1.5]])
        >>> log_weights = distance_log_weights(distances, torch.tensor([[True, True, True, True]]), dimension=4)
        >>> torch.softmax(log_weights, dim=1)  # 1 / q: 4.13, 4.13, 1.15 and 0
        tensor([[0.4387, 0.4387, 0.1226, 0.0000]])
    """
    check_cutoffs(cutoff, nonzero_loss_cutoff)
    r = distances.clamp(max(cutoff, torch.finfo(distances.dtype).tiny), LARGEST_DISTANCE)
    log_weights = r.log().mul_(2.0 - dimension)
    log_weights -= r.square_().mul_(-0.25).log1p_().mul_((dimension - 3) / 2)
    if nonzero_loss_cutoff is None:
        return log_weights.masked_fill_(~different, -torch.inf)
    admissible = (distances < nonzero_loss_cutoff).logical_and_(different)
    uniform = ~admissible.any(dim=1, keepdim=True)  # (B, 1)
    log_weights.masked_fill_(uniform, 0.0)
    return log_weights.masked_fill_(~torch.where(uniform, different, admissible), -torch.inf)


def check_cutoffs(cutoff: float, nonzero_loss_cutoff: float | None) -> None:
    """Raises the errors documented in :func:`distance_log_weights`."""
    if not 0 <= check_number("cutoff", cutoff, "a number", "the paper uses 0.5") < LARGEST_DISTANCE:
        expected = f"at least 0 and below {LARGEST_DISTANCE}, a distance between unit vectors"
        raise ValueError(problem("cutoff", expected, cutoff, "the paper uses 0.5"))
    remedy = "the authors' code uses 1.4"
    if nonzero_loss_cutoff is not None and math.isnan(
        check_number("nonzero_loss_cutoff", nonzero_loss_cutoff, "a number, or None", remedy)
    ):
        raise ValueError(problem("nonzero_loss_cutoff", "a number, or None", "nan", remedy))
