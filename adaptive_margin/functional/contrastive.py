"""The paper's contrastive loss between strong and weak samples: Eq. 4 to 7."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from ..choices import Regularizer
from ..messages import check_choice, problem
from .checks import at_least_float32, check_fits, check_matrix, check_number, check_same_features, is_blind
from .pair_tiles import terms_of
from .pair_tiles.options import SMALLER, Options, PairTerms

REGULARIZERS = get_args(Regularizer)

FISHER_PENALTY = 10.0
"""The default ρ: on overlapping groups it keeps Ω within 0.5 to 2. With 0.01, Ω oscillates around 1 and is rarely near
it; the authors' released code has 1e-6, which has no effect."""

MULTIPLIER_STEP = 0.01
"""The maximum step of the multiplier for a gap of 1: with ρ itself it overshoots, and Ω oscillates."""


def vdm_contrastive_loss(
    strong: Tensor,
    weak: Tensor,
    margin: float | Tensor,
    repulsion: float = 1.0,
    regularizer: Regularizer = "none",
    *,
    regularizer_weight: float = 1.0,
    multiplier: float | Tensor = 0.0,
    penalty: float = FISHER_PENALTY,
) -> Tensor:
    r"""Contrastive loss that is a variational bound on the divergence of two groups, to be minimised.

    .. math::
        L_c = \operatorname{mean}_{i<j \in P} D^2_{ij}
            + w \operatorname{mean}_{i \in P,\, j \in Q,\; D^2_{ij} < \hat\alpha} (\hat\alpha - D^2_{ij})
            + R(\Omega), \qquad
        \Omega = \tfrac12 \operatorname{mean}_{P} f^2 + \tfrac12 \operatorname{mean}_{P \times Q} f^2

    with D the Euclidean distance, f = -D² on pairs of the strong group P and :math:`(\hat\alpha - D^2)_+` on pairs of
    a strong and a weak sample. Only the strong group is pulled together. Without a pair within the margin the second
    term is 0; with fewer than two strong samples the first term is 0.

    The regulariser is ``"none"``; ``"chi2"``, :math:`\tfrac\lambda4\Omega`, the third term of Eq. (3), which the paper
    leaves out of (6) and (7); or ``"fisher"``, :math:`\Lambda(\Omega - 1) + \tfrac\rho2(\Omega - 1)^2`, the augmented
    Lagrangian of the constraint :math:`\Omega = 1` (Mroueh & Sercu 2017, with the signs for minimisation), 0 if one of
    the two kinds of pairs is missing. :class:`~adaptive_margin.ContrastiveVDMLoss` keeps and updates its multiplier.

    Source: Kim & Song, AAAI 2021, Eq. (4) and (7). One difference: the literal (7) has w = ½; with the expectation of
    (3) under the mixture (P + Q)/2 the mean has weight 1.

    Args:
        strong: rows of P, shape ``(S, D)``; they are not normalised. Half precision is computed in float32.
        weak: rows of Q, shape ``(W, D)``.
        margin: :math:`\hat\alpha`, in units of D²: a number, a 0-dim tensor, or one per row, shape ``(S + W,)``, strong
            rows first; each pair across groups then counts twice, once with the margin of each row.
        repulsion: w, at least 0; 0.5 is the literal reading of Eq. (7).
        regularizer: R, as above.
        regularizer_weight: :math:`\lambda` of ``"chi2"``, at least 0.
        multiplier: :math:`\Lambda` of ``"fisher"``.
        penalty: :math:`\rho` of ``"fisher"``, at least 0.

    Returns:
        The loss, 0-dim, float32 or float64, with gradients for both groups and the margin. If one group is empty, the
        terms of the other remain; if both are, the result is 0 with a graph. Nothing of size S × W is stored: memory
        grows with S + W.

    Raises:
        ValueError: shapes that do not match, NaN or infinity, embeddings whose loss does not fit its dtype, an unknown
            option. On CUDA and in compiled code the conditions on data are device-side assertions.

    Example:
        >>> strong, weak = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.5]])
        >>> vdm_contrastive_loss(strong, weak, margin=1.0)  # 1² + (1 - 0.5²); the pair (0, 1.5) is beyond the margin
        tensor(1.7500)
        >>> vdm_contrastive_loss(strong, weak, margin=1.0, repulsion=0.5)
        tensor(1.3750)
        >>> vdm_contrastive_loss(strong, weak, margin=1.0, regularizer="chi2")  # + ¼ · ½ (1⁴ + (0.75² + 0²) / 2)
        tensor(1.9102)
    """
    check_matrix("strong", strong)
    check_matrix("weak", weak)
    check_options(repulsion, regularizer, regularizer_weight, penalty, dtype=at_least_float32(strong).dtype)
    check_same_features("weak", weak, "strong", strong)
    x = torch.cat([strong, weak.to(strong)])
    fisher = regularizer == "fisher"
    options = Options(
        second_moment=regularizer != "none", only_first=True, sizes=(len(strong), len(weak)), counts=fisher
    )
    terms = terms_of(x, None, margin, None, None, options)
    loss = terms.attraction + repulsion * terms.repulsion
    if regularizer != "none":
        loss = loss + regularization(terms, regularizer, regularizer_weight, multiplier, penalty)
    fits = f"small enough for a loss that fits {loss.dtype}"
    if is_blind(loss):
        torch._assert_async(torch.isfinite(loss.detach()), f"strong and weak must be {fits}")
    elif not math.isfinite(loss.item()):
        raise ValueError(problem("strong and weak", fits, f"one of {loss.item()}", f"{SMALLER}, or lower the weights"))
    return loss


def check_options(
    repulsion: float,
    regularizer: str,
    regularizer_weight: float,
    penalty: float,
    *,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Raises unless these are options of :func:`vdm_contrastive_loss`, for embeddings of this dtype."""
    check_choice("regularizer", regularizer, REGULARIZERS)
    numbers = (("repulsion", repulsion), ("regularizer_weight", regularizer_weight), ("penalty", penalty))
    expected, remedy = "a number of at least 0", "the default is a good start"
    for argument, number in numbers:
        if not 0 <= check_number(argument, number, expected, remedy) < math.inf:
            raise ValueError(problem(argument, expected, number, remedy))
        check_fits(argument, number, dtype, remedy)


def regularization(
    terms: PairTerms,
    regularizer: Regularizer,
    regularizer_weight: float = 1.0,
    multiplier: float | Tensor = 0.0,
    penalty: float = FISHER_PENALTY,
) -> Tensor:
    """R(Ω) of :func:`vdm_contrastive_loss`."""
    omega = terms.second_moment
    if regularizer == "chi2":
        return 0.25 * regularizer_weight * omega
    return fisher_constraint((omega - 1) * is_constrained(terms), multiplier, penalty)


def multiplier_step(terms: PairTerms, penalty: float) -> Tensor:
    """What the multiplier grows by: :func:`fisher_ascent`, 0 where nothing is constrained."""
    return fisher_ascent(terms.second_moment.detach() - 1, penalty) * is_constrained(terms)


def fisher_constraint(gap: Tensor, multiplier: float | Tensor, penalty: float) -> Tensor:
    r"""The augmented Lagrangian of Ω = 1, to be minimised: :math:`\Lambda g + \tfrac\rho2 g^2` of g = Ω - 1.

    Source: Mroueh & Sercu 2017 (Fisher GAN), Eq. (9), with the signs of a minimisation.

    Example:
        >>> fisher_constraint(torch.tensor(0.5), multiplier=2.0, penalty=10.0)
        tensor(2.2500)
    """
    return multiplier * gap + 0.5 * penalty * gap * gap


def fisher_ascent(gap: Tensor, penalty: float) -> Tensor:
    r"""What its multiplier grows by: :math:`\min(\rho, 0.01) \min(g, 1)`.

    Differs from the source, which steps by :math:`\rho g`: that drives Ω in cycles. :math:`\Omega - 1` is at least -1;
    without an upper bound, one extreme batch would outweigh hundreds of steps back.

    Example:
        >>> fisher_ascent(torch.tensor([-0.5, 30.0]), penalty=10.0)
        tensor([-0.0050,  0.0100])
    """
    return min(penalty, MULTIPLIER_STEP) * gap.clamp(max=1)


def is_constrained(terms: PairTerms) -> Tensor:
    """1 if a batch has pairs of both kinds, so that its Ω is informative about the constraint; 0 otherwise."""
    return ((terms.counts[0] > 0) & (terms.counts[1] > 0)).to(terms.second_moment.dtype)
