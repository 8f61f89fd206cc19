"""Critics, which tell strong emotions from weak ones, and the losses that they give to the encoder.

Every objective has two halves. ``critic_loss`` is minimised by the critic (Algorithm 1, line 6), ``adversarial_loss``
by the encoder (line 7) while the critic is frozen. The paper's own is :class:`ContrastiveObjective`; the others replace
its Eq. (6), as in Table 4.
"""

from __future__ import annotations

import math
from typing import Protocol, cast, get_args

import torch
from pytorch_metric_learning.utils.module_with_records import ModuleWithRecords
from torch import Tensor, nn
from torch.nn import functional

from .. import AdaptiveMargin, ConstantMargin, ContrastiveVDMLoss, KMeansGrouper, LinearMargin, Margin, OtsuGrouper
from ..choices import CriticName, GroupingName, MarginName, Regularizer
from ..functional.checks import at_least_float32
from ..functional.contrastive import FISHER_PENALTY, fisher_ascent, fisher_constraint
from ..grouping import Grouper
from ..messages import check_choice, problem
from .nets import build_critic_network

STRONG, WEAK = 1, 0
"""The groups, as :class:`~adaptive_margin.OtsuGrouper` numbers them."""

FISHER_GAN_PENALTY = 1.0
"""The default ρ of :class:`FisherObjective`."""

RATIO_RIDGE = 1e-3
"""Added to the diagonal of the weak kernel matrix, as in the code of the authors of Generative Ratio Matching."""


class Objective(Protocol):
    """The two halves of an adversarial method; the defaults are shared by several."""

    outputs: int = 16
    """How many numbers its critic gives for a sample."""

    def critic_loss(self, z: Tensor, groups: Tensor) -> Tensor:
        """L_c of critic outputs ``(N, d)`` and groups ``(N,)``, to be minimised by the critic; 0-dim."""

    def adversarial_loss(self, weak: Tensor, strong: Tensor) -> Tensor:
        """L_adv of the weak samples' outputs ``(N_w, d)``, to be minimised by the encoder; ``strong`` is a constant.

        By default their negated mean.
        """
        return -_mean(weak)

    def statistics(self) -> dict[str, float]:
        """Numbers of the last ``critic_loss``, by default none."""
        return {}


class ContrastiveObjective(nn.Module, Objective):
    r"""The paper's objective: a contrastive loss separates the groups, and the encoder raises the critic's output on
    weak samples.

    .. math::
        L_c = \operatorname{mean}_{P} D^2 + w \operatorname{mean}_{P \times Q} (\hat\alpha - D^2)_+, \qquad
        L_{adv} = -\frac{1}{N_w d} \sum_{i=1}^{N_w} \sum_{k=1}^{d} z_{w_i k}

    Source: Kim & Song 2021, Eq. (7) and Algorithm 1, lines 6 and 7. There :math:`L_{adv}` is a vector; averaging its
    entries follows the released code.

    Args:
        margin: :math:`\hat\alpha`, in units of D².
        repulsion: w; see :class:`~adaptive_margin.ContrastiveVDMLoss`, which computes this loss.
        regularizer: likewise.
        penalty: penalty weight of ``regularizer="fisher"``; None for the default.

    Example:
        >>> caf = ContrastiveObjective(ConstantMargin(1.0))
        >>> z, groups = torch.tensor([[0.0], [1.0], [1.5]]), torch.tensor([1, 1, 0])
        >>> caf.critic_loss(z, groups), caf.adversarial_loss(z[2:], z[:2])  # 1² + (1 - 0.5²)
        (tensor(1.7500), tensor(-1.5000))
    """

    def __init__(
        self,
        margin: Margin,
        repulsion: float = 1.0,
        regularizer: Regularizer = "none",
        penalty: float | None = None,
    ) -> None:
        super().__init__()
        self.margin = margin
        self.loss = ContrastiveVDMLoss(
            margin,
            repulsion,
            regularizer,
            compact_label=STRONG,
            penalty=FISHER_PENALTY if penalty is None else penalty,
        )

    def critic_loss(self, z: Tensor, groups: Tensor) -> Tensor:
        """L_c; if a group is empty, only the terms of the other remain."""
        return cast(Tensor, self.loss(z, groups))

    def statistics(self) -> dict[str, float]:
        """``alpha``, and ``mi``, ``eta``, ``delta`` and ``k`` of an adaptive margin, if they are collected."""
        margin = self.loss.margin
        if isinstance(margin, AdaptiveMargin) and not margin.collect_stats:
            return {}
        if isinstance(margin, AdaptiveMargin):
            found = {name: getattr(margin, name) for name in ("alpha", "mi", "eta", "delta", "k")}
            return {name: value for name, value in found.items() if not math.isnan(value)}  # NaN: nobody is in a group
        return {"alpha": float(margin.value)}


class CrossPersonObjective(ContrastiveObjective):
    r"""The paper's objective over pairs of people: what strong emotions share, not what somebody's pictures share.

    :math:`L_c` of :class:`ContrastiveObjective` with other pairs: strong samples of *different* people are pulled
    together, and a strong and a weak sample of the *same* person are pushed apart; where nobody in the batch has both,
    all strong and weak ones are.

    Source: ours, from Kim & Song 2021, Eq. (7).

    Example:
        >>> caf = CrossPersonObjective(ConstantMargin(1.0))
        >>> z, groups = torch.tensor([[0.0], [1.0], [1.5], [0.5]]), torch.tensor([1, 1, 0, 0])
        >>> caf.critic_loss(z, groups, torch.tensor([0, 1, 1, 2]))  # 1² of rows 0, 1, and 1 - 0.5² of rows 1, 2
        tensor(1.7500)
    """

    ids = True

    def critic_loss(self, z: Tensor, groups: Tensor, people: Tensor | None = None) -> Tensor:
        """L_c over these pairs; ``people`` is the person of each row."""
        if people is None:
            raise ValueError(problem("people", "given for a cross-person critic", "None", "pass one for each row"))
        strong, same = groups == STRONG, people[:, None] == people
        attracted = strong[:, None] & strong & ~same
        repelled = strong[:, None] & (groups == WEAK)
        own = repelled & same
        repelled = torch.where(own.any(), own, repelled)
        if not bool(attracted.any() | repelled.any()):
            return z.sum() * 0
        pairs = (*torch.nonzero(attracted, as_tuple=True), *torch.nonzero(repelled, as_tuple=True))
        return cast(Tensor, self.loss(z, groups, pairs))


class FisherObjective(nn.Module, Objective):
    r"""Fisher GAN: the difference between the means of a score, in units of the score's spread.

    .. math::
        L_c = -\bigl(E_P f - E_Q f\bigr) + \lambda(\Omega - 1) + \tfrac\rho2 (\Omega - 1)^2, \qquad
        \Omega = \tfrac12 E_P f^2 + \tfrac12 E_Q f^2, \qquad L_{adv} = -E_Q f

    The multiplier moves with every ``critic_loss`` in training, by the step of
    ``ContrastiveVDMLoss(regularizer="fisher")``:
    :math:`\lambda \leftarrow \lambda + \min(\rho, 0.01) \min(\Omega - 1, 1)`.

    Source: Mroueh & Sercu 2017 (Fisher GAN), Eq. (8) and (9) and Algorithm 1, with the sign for minimisation; Kim &
    Song's Eq. (1), which leaves out the constraint for brevity. Differs from it: the multiplier's step, there
    :math:`\rho(\Omega - 1)` with :math:`\rho` of 1e-6, smaller steps of the critic and many more of them.

    Args:
        penalty: :math:`\rho`. With 1, Ω lies within 0.5 to 2 in more than 85% of steps (tested). A larger one, as
            in the contrastive loss, slows the critic: the score's mean can only move within the constraint.

    Example:
        >>> fisher = FisherObjective()
        >>> z, groups = torch.tensor([[1.0], [1.0], [-1.0]]), torch.tensor([1, 1, 0])
        >>> fisher.critic_loss(z, groups), fisher.adversarial_loss(z[2:], z[:2])  # Ω is 1
        (tensor(-2.), tensor(1.))
    """

    outputs = 1
    multiplier: Tensor

    def __init__(self, penalty: float = FISHER_GAN_PENALTY) -> None:
        super().__init__()
        if not 0 <= penalty < math.inf:
            raise ValueError(problem("penalty", "a number of at least 0", penalty, "the default is a good start"))
        self.penalty = penalty
        self.register_buffer("multiplier", torch.zeros(()))
        self.register_buffer("omega", torch.zeros(()), persistent=False)
        self.omega: Tensor

    def critic_loss(self, z: Tensor, groups: Tensor) -> Tensor:
        """L_c; if a group is empty it is 0, and the multiplier does not change."""
        strong, weak = z[groups == STRONG], z[groups == WEAK]
        if len(strong) == 0 or len(weak) == 0:
            return z.sum() * 0
        omega = 0.5 * strong.square().mean() + 0.5 * weak.square().mean()
        multiplier = self.multiplier.to(z, copy=True)  # of before this step: it moves on before the backward pass
        loss = weak.mean() - strong.mean() + fisher_constraint(omega - 1, multiplier, self.penalty)
        self.omega = omega.detach()
        if self.training and torch.is_grad_enabled():
            self.multiplier += fisher_ascent(self.omega.to(self.multiplier) - 1, self.penalty)
        return loss

    def statistics(self) -> dict[str, float]:
        """``omega`` and ``multiplier``."""
        return {"omega": float(self.omega), "multiplier": float(self.multiplier)}


class SphereObjective(nn.Module, Objective):
    r"""SphereGAN: moments of the geodesic distance to the north pole, after inverse stereographic projection.

    A critic output p in :math:`R^d` becomes the point :math:`\Pi^{-1}(p) = (2p, \|p\|^2 - 1) / (\|p\|^2 + 1)` of the
    unit sphere, whose distance to the north pole is

    .. math:: \theta(p) = \arccos\frac{\|p\|^2 - 1}{\|p\|^2 + 1} = 2 \arctan\frac{1}{\|p\|}

    and the objective compares moments of that distance:

    .. math:: L_c = -\sum_{r=1}^{R} \bigl(E_P \theta^r - E_Q \theta^r\bigr), \qquad
              L_{adv} = -\sum_{r=1}^{R} E_Q \theta^r

    Source: Park & Kwon 2019 (CVPR), the objective function of SphereGAN with the north pole as reference point, R = 3.
    Distances are bounded by π, so no constraint on the critic is needed.

    Args:
        moments: R, at least 1.

    Example:
        >>> sphere = SphereObjective(moments=1)
        >>> z, groups = torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0])  # π and π/2 from the pole
        >>> sphere.critic_loss(z, groups), sphere.adversarial_loss(z[1:], z[:1])
        (tensor(-1.5708), tensor(-1.5708))
    """

    def __init__(self, moments: int = 3) -> None:
        super().__init__()
        if moments < 1:
            raise ValueError(problem("moments", "at least 1", moments, "SphereGAN has 3"))
        self.moments = moments

    def critic_loss(self, z: Tensor, groups: Tensor) -> Tensor:
        """L_c; an empty group contributes nothing."""
        return self._moments(z[groups == WEAK]) - self._moments(z[groups == STRONG])

    def adversarial_loss(self, weak: Tensor, strong: Tensor) -> Tensor:
        """The negated moments of weak samples: this pushes them away from the pole to which the critic pushes them."""
        return -self._moments(weak)

    def _moments(self, z: Tensor) -> Tensor:
        angle = pole_distance(z)
        return torch.stack([_mean(angle**r) for r in range(1, self.moments + 1)]).sum()


class RatioObjective(nn.Module, Objective):
    r"""GRAM-net: the critic preserves the density ratio of the groups, the encoder reduces their mean discrepancy.

    Here :math:`\hat r` is the ratio p/q of strong and weak critic outputs, estimated at the weak ones by kernel mean
    matching:

    .. math::
        \hat r = \frac{N_w}{N_s} (K_{ww} + \epsilon I)^{-1} K_{ws} 1, \qquad
        L_c = -\frac{1}{N_w} \sum_i \bigl((\hat r_i - 1)^2 + \hat r_i\bigr), \qquad L_{adv} = \mathrm{MMD}^2

    Minimising the squared difference between the ratio in the feature space and the ratio in the critic's space is the
    same as maximising the Pearson divergence in the latter, the first part of :math:`L_c`; the second part keeps ratios
    positive.

    Source: Srivastava, Xu, Gutmann & Sutton 2020 (ICLR), section 3; ridge :math:`\epsilon = 10^{-3}`, the positivity
    term and the median of pairwise distances as bandwidth are from their released code. The encoder minimises the
    squared MMD as in their text (their code uses its root, whose gradient at 0 is infinite), over weak samples only, as
    in Kim & Song's line 7; strong ones are constants.

    Example:
        >>> gram = RatioObjective()
        >>> z, groups = torch.tensor([[0.0], [1.0], [0.0], [1.0]]), torch.tensor([1, 1, 0, 0])
        >>> gram.critic_loss(z, groups), gram.adversarial_loss(z[2:], z[:2])  # equal points: ratio 1
        (tensor(-0.9994), tensor(0.))
    """

    def critic_loss(self, z: Tensor, groups: Tensor) -> Tensor:
        """L_c; 0 if a group is empty."""
        strong, weak = z[groups == STRONG], z[groups == WEAK]
        if len(strong) == 0 or len(weak) == 0:
            return z.sum() * 0
        ratio = density_ratio(strong, weak)
        return -((ratio - 1).square() + ratio).mean()

    def adversarial_loss(self, weak: Tensor, strong: Tensor) -> Tensor:
        """MMD² between weak samples and the (constant) strong ones; 0 if a group is empty."""
        if len(strong) == 0 or len(weak) == 0:
            return weak.sum() * 0
        return squared_mean_discrepancy(strong.detach(), weak)


def pole_distance(z: Tensor) -> Tensor:
    r"""Distance on the unit sphere from the north pole to the inverse stereographic projection of each row.

    Args:
        z: points of the plane, shape ``(N, d)``.

    Returns:
        :math:`2\arctan(1/\|z\|)`, in (0, π], shape ``(N,)``; its gradient is finite everywhere, 0 at the origin.
    """
    length = torch.linalg.vector_norm(z, dim=1)
    return 2 * torch.atan2(torch.ones_like(length), length)


def density_ratio(strong: Tensor, weak: Tensor) -> Tensor:
    """p/q at the rows of ``weak``, where p is the density of ``strong`` and q that of ``weak``; see RatioObjective.

    Args:
        strong: shape ``(N_s, d)``.
        weak: shape ``(N_w, d)``.

    Returns:
        Shape ``(N_w,)``. The system is solved in float64: its condition number is up to a thousand times N_w.
    """
    both = torch.cat([strong, weak]).double()
    kernel = gaussian_kernel(both)
    n = len(strong)
    ridge = RATIO_RIDGE * torch.eye(len(weak), dtype=kernel.dtype, device=kernel.device)
    factor = torch.linalg.cholesky(kernel[n:, n:] + ridge)
    right = kernel[n:, :n].sum(dim=1, keepdim=True)
    return (len(weak) / n * torch.cholesky_solve(right, factor)).squeeze(1).to(weak.dtype)


def squared_mean_discrepancy(strong: Tensor, weak: Tensor) -> Tensor:
    """MMD² of two samples (the biased estimate, at least 0), 0-dim; kernel as :func:`gaussian_kernel`."""
    kernel = gaussian_kernel(torch.cat([strong, weak]))
    n = len(strong)
    return kernel[:n, :n].mean() - 2 * kernel[:n, n:].mean() + kernel[n:, n:].mean()


def gaussian_kernel(x: Tensor) -> Tensor:
    r""":math:`\exp(-\|x_i - x_j\|^2 / 2\sigma^2)` of all rows, with σ² the median of all :math:`\|x_i - x_j\|^2`.

    σ has no gradient, and is 1 if most rows are equal.
    """
    norms = x.square().sum(dim=1)
    squared = (norms[:, None] + norms - 2 * x @ x.T).clamp(min=0)
    median = squared.detach().flatten().median()
    return torch.exp(-squared / (2 * torch.where(median > 0, median, 1.0)))


class Critic(nn.Module):
    r""":math:`f_c` and its objective: θ_c are the parameters of ``network``.

    Args:
        network: features ``(N, F)`` to ``(N, d)``.
        objective: the losses of the critic and of the encoder.
        normalize: scale outputs to length 1, which bounds them (d > 1).

    Example:
        >>> critic = build_critic("caf", features=512)
        >>> critic(torch.randn(4, 512)).shape
        torch.Size([4, 16])
    """

    def __init__(self, network: nn.Module, objective: Objective, normalize: bool = False) -> None:
        super().__init__()
        if normalize and objective.outputs == 1:
            remedy = "leave normalize out: a score of length 1 says only its sign"
            raise ValueError(problem("normalize", "False for a critic with one output", True, remedy))
        self.network = network
        self.objective = objective
        self.normalize = normalize

    @property
    def ids(self) -> bool:
        """Whether ``objective.critic_loss`` needs to know who is in each row."""
        return bool(getattr(self.objective, "ids", False))

    def loss(self, z: Tensor, groups: Tensor, people: Tensor | None) -> Tensor:
        """L_c of the batch, by an objective that needs people or one that does not."""
        if isinstance(self.objective, CrossPersonObjective):
            return self.objective.critic_loss(z, groups, people)
        return self.objective.critic_loss(z, groups)

    def forward(self, features: Tensor) -> Tensor:
        """Z of each row of features, in at least float32: losses are not computed in half precision."""
        z = cast(Tensor, self.network(features))
        z = at_least_float32(z)
        return functional.normalize(z, dim=1) if self.normalize else z

    def collect(self, wanted: bool) -> None:
        """Whether to collect statistics, which synchronises with a GPU."""
        for module in self.modules():
            if isinstance(module, ModuleWithRecords):
                module.collect_stats = wanted

    def step_epoch(self) -> None:
        """Call this at the end of each pass over the training data: a linear margin grows."""
        for module in self.modules():
            if isinstance(module, LinearMargin):
                module.step_epoch()
                return


def build_margin(name: MarginName, constant: float = 0.2) -> Margin:
    """The margins of Table 4.

    Args:
        name: ``"adaptive"`` (Eq. 8); ``"constant"``; ``"linear"``, 0.1 + 0.005 · epoch; ``"released"``, the adaptive
            margin with the pairing and the Δ of the authors' code.
        constant: κ of ``"constant"``; the paper's best value is 0.2.

    Raises:
        ValueError: another name.
    """
    check_choice("margin", name, get_args(MarginName))
    if name == "constant":
        return ConstantMargin(constant)
    if name == "linear":
        return LinearMargin()
    released = {"pairing": "zip", "neighbourhood": "released"} if name == "released" else {}
    return AdaptiveMargin(collect_stats=False, **released)  # type: ignore[arg-type]


def build_grouper(name: GroupingName, *, magnitude: bool = True, max_radius: float | None = None) -> Grouper:
    """The groupings of the paper: Otsu's, and k-means with k of 2, 3 or 5.

    Args:
        name: ``"otsu"``, ``"kmeans2"``, ``"kmeans3"`` or ``"kmeans5"``.
        magnitude: thresholds of the labels' magnitudes; see :class:`~adaptive_margin.OtsuGrouper`.
        max_radius: samples with at least this radius are in neither group; None for no limit.

    Raises:
        ValueError: another name.
    """
    check_choice("grouping", name, get_args(GroupingName))
    if name == "otsu":
        return OtsuGrouper(magnitude=magnitude, max_radius=max_radius, collect_stats=False)
    k = int(name.removeprefix("kmeans"))
    return KMeansGrouper(k, magnitude=magnitude, max_radius=max_radius, collect_stats=False)


def build_critic(
    name: CriticName,
    features: int,
    *,
    margin: MarginName = "adaptive",
    constant: float = 0.2,
    repulsion: float = 1.0,
    regularizer: Regularizer = "none",
    penalty: float | None = None,
    dropout: float = 0.0,
    normalize: bool = False,
    cross_person: bool = False,
) -> Critic | None:
    """A critic by name, from random weights.

    Args:
        name: ``"caf"``, ``"fisher"``, ``"sphere"``, ``"gramnet"``, or ``"none"``.
        features: F of the encoder.
        margin: margin of ``"caf"``; the others have none.
        constant: κ of a constant margin.
        repulsion: w of ``"caf"``.
        regularizer: R of ``"caf"``.
        penalty: ρ of ``"fisher"`` and of ``regularizer="fisher"``; None for their defaults.
        dropout: dropout rate in its perceptron.
        normalize: scale outputs to length 1, for critics with more than one output.
        cross_person: :class:`CrossPersonObjective` for ``"caf"``.

    Returns:
        The critic; None for ``"none"``.

    Raises:
        ValueError: an unknown option.
    """
    check_choice("critic", name, get_args(CriticName))
    if name == "none":
        return None
    objective: Objective
    if name == "caf":
        kind = CrossPersonObjective if cross_person else ContrastiveObjective
        objective = kind(build_margin(margin, constant), repulsion, regularizer, penalty)
    elif name == "fisher":
        objective = FisherObjective(FISHER_GAN_PENALTY if penalty is None else penalty)
    else:
        objective = SphereObjective() if name == "sphere" else RatioObjective()
    return Critic(build_critic_network(features, objective.outputs, dropout), objective, normalize)


def _mean(x: Tensor) -> Tensor:
    """The mean; for no values, 0 with a graph."""
    return x.mean() if x.numel() else x.sum()
