"""Terms that the encoder's regression step adds to its loss, most of which know who is in a picture.

A term has two halves, so that several processes can share a batch. ``forward`` sees features of this process's share;
``loss`` sees the outputs, labels and people of the whole batch. ``ids`` says whether it needs people, ``strength`` how
much of its weight it has at present (see :func:`warmed_up`).
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from ..choices import TermName
from ..functional.checks import at_least_float32
from ..functional.concordance import affect_loss
from ..functional.label_distance import label_distance_loss
from ..messages import check_choice, problem


class Term(nn.Module):
    """Base class: a weight that grows, and the two halves."""

    ids = True
    needs_whole_batch = False
    """Whether ``loss`` runs networks on the whole batch, which several processes would each do."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(problem("weight", "at least 0", weight, "1 is the default"))
        self.weight = weight
        self.strength = 1.0

    @property
    def present_weight(self) -> float:
        """The weight of this step."""
        return self.weight * self.strength

    def forward(self, features: Tensor) -> Tensor:
        """What ``loss`` needs of each row of features."""
        return features

    def loss(self, outputs: Tensor, labels: Tensor, people: Tensor, regressor: nn.Module) -> Tensor:
        """The term, 0-dim, with its weight, in the unit of the regression loss.

        Args:
            outputs: of ``forward``, of the whole batch, shape ``(B, K)``.
            labels: valence and arousal, shape ``(B, 2)``.
            people: number of each row's person, from 0, shape ``(B,)``.
            regressor: features to predictions.
        """
        raise NotImplementedError


def reverse_gradient(x: Tensor, weight: float) -> Tensor:
    r"""X itself; backwards, the gradient times :math:`-\lambda`.

    Source: Ganin & Lempitsky 2015, *Unsupervised domain adaptation by backpropagation*, Eq. (8) and (9).

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> (3 * reverse_gradient(x, 0.5)).sum().backward()
        >>> x.grad
        tensor([-1.5000, -1.5000])
    """
    same = x.view_as(x)
    if same.requires_grad:
        same.register_hook(lambda gradient: -weight * gradient)  # type: ignore[no-untyped-call]
    return same


def warmed_up(step: int, steps: int) -> float:
    r"""Share of a weight after ``step`` of ``steps`` iterations, from 0 to 1.

    .. math:: \frac{2}{1 + e^{-10 p}} - 1, \qquad p = \min(1, \text{step} / \text{steps})

    Source: Ganin & Lempitsky 2015, section 4, where ``steps`` is the whole training.

    Example:
        >>> warmed_up(0, 100), round(warmed_up(10, 100), 3), warmed_up(5, 0)
        (0.0, 0.462, 1.0)
    """
    return 1.0 if steps == 0 else 2 / (1 + math.exp(-10 * min(1.0, step / steps))) - 1


class _IdentityTerm(Term):
    """A term with a head: features → 64 → one score per person of the training part."""

    def __init__(self, features: int, people: int, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.head = nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, people))


class ReversedIdentity(_IdentityTerm):
    r"""An identity classifier behind a gradient reversal: it learns who is who, the encoder unlearns it.

    .. math:: L = -\frac1B \sum_b \log p(\text{person}_b \mid f_b),
              \qquad \frac{\partial L}{\partial f} \text{ times } -\lambda

    Source: Ganin & Lempitsky 2015, with people in place of domains.

    Args:
        features: F of the encoder.
        people: number of people in training.
        weight: :math:`\lambda` when warmed up.
    """

    def forward(self, features: Tensor) -> Tensor:
        """A score per person."""
        return cast(Tensor, self.head(reverse_gradient(features, self.present_weight)))

    def loss(self, outputs: Tensor, labels: Tensor, people: Tensor, regressor: nn.Module) -> Tensor:
        """The classifier's cross entropy; the weight is in the reversal."""
        return functional.cross_entropy(at_least_float32(outputs), people)


class UniformIdentity(_IdentityTerm):
    r"""An identity classifier, and an encoder that makes its answer uniform: it cannot win by making it wrong.

    .. math:: L = -\frac1B \sum_b \log p(\text{person}_b \mid \bar f_b)
              + \lambda \frac1B \sum_b \mathrm{KL}\bigl(u \,\|\, \bar p(\cdot \mid f_b)\bigr)

    A bar marks what has no gradient: the first part moves only the classifier, the second only the encoder. u is
    uniform over the P people of training; KL is :math:`-\log P - \frac1P \sum_k \log p_k`, at least 0.

    Source: the confusion loss of Tzeng et al. 2015, *Simultaneous deep transfer across domains and tasks*, Eq. (5).

    Args:
        features: F of the encoder.
        people: P.
        weight: :math:`\lambda` when warmed up.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Scores for the classifier, then the same scores for the encoder, ``(b, 2 P)``."""
        fixed = {name: value.detach() for name, value in self.head.named_parameters()}
        return torch.cat([self.head(features.detach()), functional_call(self.head, fixed, (features,))], dim=1)

    def loss(self, outputs: Tensor, labels: Tensor, people: Tensor, regressor: nn.Module) -> Tensor:
        """Both parts."""
        known, confused = at_least_float32(outputs).chunk(2, dim=1)
        divergence = -math.log(confused.shape[1]) - functional.log_softmax(confused, dim=1).mean()
        return functional.cross_entropy(known, people) + self.present_weight * divergence


class LabelDistance(Term):
    """:func:`~adaptive_margin.functional.label_distance_loss` of a projection of the features; needs no people.

    Args:
        features: F of the encoder.
        weight: of the term, when warmed up.
        outputs: d of the projection, a linear map.
    """

    ids = False

    def __init__(self, features: int, weight: float = 1.0, outputs: int = 16) -> None:
        super().__init__(weight)
        self.head = nn.Linear(features, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """The projection."""
        return cast(Tensor, self.head(features))

    def loss(self, outputs: Tensor, labels: Tensor, people: Tensor, regressor: nn.Module) -> Tensor:
        """The contrastive loss over all pairs of the batch."""
        return self.present_weight * label_distance_loss(outputs, labels)


class IdentityMatching(Term):
    r"""ELIM: the features of each person, moved by the person's optimal transport from another, must still do.

    One person of the batch is the anchor A. For every other person B with features :math:`b_j`, T is the flow between
    A's and B's pictures under the cost :math:`C_{ij} = 1 - \cos(a_i, b_j)`, with masses that grow with a picture's
    relevance to the other person, and

    .. math:: \tilde b_j = \frac{b_j - \psi_j}{\mathrm{rms}(b_j - \psi_j)}, \qquad \psi_j = \sum_i T_{ij} C_{ij}

    is regressed like a feature. The shift has no gradient.

    Source: Kim & Song 2022, *Optimal transport-based identity matching for identity-invariant facial expression
    recognition* (NeurIPS), with the masses, the cost and the Sinkhorn iterations of their released code. Differs from
    it: every picture has its own :math:`\psi_j` (the code subtracts that of a person's first picture from all), the
    loss is this trainer's, over all shifted pictures of the batch together, and no projection lies in between.

    Args:
        weight: of the term, when warmed up.
        correlation_weight: of the regression loss.
    """

    needs_whole_batch = True

    def __init__(self, weight: float = 1.0, correlation_weight: float = 0.5) -> None:
        super().__init__(weight)
        self.correlation_weight = correlation_weight

    def loss(self, outputs: Tensor, labels: Tensor, people: Tensor, regressor: nn.Module) -> Tensor:
        """The regression loss of all people but the anchor; 0 if the batch has one person."""
        anchor = people == people[0]
        features = at_least_float32(outputs)
        shifted, rows = [], []
        for person in torch.unique(people):
            mine = torch.nonzero(people == person)[:, 0]
            if person == people[0]:
                continue
            with torch.no_grad():
                shift = identity_shift(features[anchor], features[mine])
            moved = features[mine] - shift[:, None]
            shifted.append(moved / moved.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6))
            rows.append(mine)
        if not shifted or sum(map(len, rows)) < 2:
            return features.sum() * 0
        predictions = at_least_float32(regressor(torch.cat(shifted).to(outputs.dtype)))
        found = affect_loss(labels[torch.cat(rows)], predictions, correlation_weight=self.correlation_weight)
        return self.present_weight * found


def identity_shift(anchor: Tensor, others: Tensor, *, sharpness: float = 5.0, steps: int = 20) -> Tensor:
    r"""How far each of somebody's pictures is from the anchor's: its part of the optimal transport's cost.

    .. math:: \psi_j = \sum_i T_{ij} C_{ij}, \quad C_{ij} = 1 - \cos(a_i, b_j), \quad
              T = \operatorname{diag}(u)\, e^{-\lambda C} \operatorname{diag}(v)

    T has the row sums :math:`r_i \propto (a_i \cdot \bar b)_+` and the column sums
    :math:`c_j \propto (b_j \cdot \bar a)_+`, scaled to sum to the number of pictures of B (Sinkhorn & Knopp 1967).

    Args:
        anchor: features a, shape ``(A, F)``.
        others: features b, shape ``(N, F)``.
        sharpness: :math:`\lambda`.
        steps: iterations; the last makes column sums exact.

    Returns:
        :math:`\psi`, shape ``(N,)``, from 0 (alike) to 2.

    Example:
        >>> rows = torch.eye(2)
        >>> identity_shift(rows[:1], rows[:1]), identity_shift(torch.ones(1, 2), torch.eye(2))  # 0 and 1 - cos 45°
        (tensor([0.]), tensor([0.2929, 0.2929]))
    """
    count = len(others)
    cost = 1 - functional.normalize(anchor, dim=1) @ functional.normalize(others, dim=1).T  # (A, N)
    r = _masses(anchor @ others.mean(dim=0), count)
    c = _masses(others @ anchor.mean(dim=0), count)
    kernel = torch.exp(-sharpness * cost)
    v = torch.ones_like(c)
    for _ in range(steps):
        u = r / (kernel @ v)
        v = c / (kernel.T @ u)
    return (u[:, None] * kernel * v * cost).sum(dim=0)


def _masses(relevance: Tensor, total: int) -> Tensor:
    """Positive parts, scaled to a sum; all equal if there are none. Every row has some mass, so that nothing is 0/0."""
    mass = relevance.clamp(min=0)
    mass = torch.where(mass.sum() > 0, mass, 1.0)
    mass = mass + 1e-6 * mass.mean()
    return total * mass / mass.sum()


TERMS: dict[str, type[Term]] = {
    "grl": ReversedIdentity,
    "uniform-id": UniformIdentity,
    "elim": IdentityMatching,
    "label-distance": LabelDistance,
}


@functools.cache
def term_class(name: str) -> type[Term] | None:
    """The class of a term; None for ``"none"``.

    Args:
        name: one of :data:`~adaptive_margin.choices.TermName`; or ``"FILE.py:CLASS"``, a subclass of :class:`Term` in a
            file of yours, which is run.

    Raises:
        ValueError: another name, no such class in the file, or one with another constructor.
    """
    file, _, kind = name.rpartition(":")
    if not file:
        check_choice("term", name, get_args(TermName))
        return TERMS.get(name)
    spec = importlib.util.spec_from_file_location(Path(file).stem, file) if Path(file).is_file() else None
    if spec is None or spec.loader is None:
        got = f"{file}, which {'does not end in .py' if Path(file).is_file() else 'is no existing file'}"
        remedy = "pass FILE.py:CLASS, with a path from where you are"
        raise ValueError(problem("term", "a Python file and a class in it", got, remedy))
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        raise ValueError(problem(f"term {name}", "a file that runs", got, "mend the file: python FILE.py")) from error
    found = getattr(module, kind, None)
    if not (isinstance(found, type) and issubclass(found, Term)):
        got = f"{kind}, which {'the file does not have' if found is None else 'is something else'}"
        remedy = "derive it from adaptive_margin.emotion.terms.Term"
        raise ValueError(problem(f"term {name}", "the name of a Term in the file", got, remedy))
    try:
        inspect.signature(found).bind(1, 1, 1.0)
    except TypeError as error:
        remedy = "give its __init__ these three arguments, as examples/own_arm.py has them"
        raise ValueError(problem(f"term {name}", "built by (features, people, weight)", error, remedy)) from error
    return found


def build_term(
    name: str,
    features: int,
    people: int,
    *,
    weight: float = 1.0,
    correlation_weight: float = 0.5,
) -> Term | None:
    """A term by name, from random weights.

    Args:
        name: as in :func:`term_class`. A class of yours is called with the next two and the weight.
        features: F of the encoder.
        people: number of people in training; 0 if no option uses them.
        weight: of the term, when warmed up.
        correlation_weight: of the regression loss, for ``"elim"``.

    Returns:
        The term; None for ``"none"``.

    Raises:
        ValueError: another name, or a weight below 0.
    """
    kind = term_class(name)
    if kind is None:
        return None
    if kind is IdentityMatching:
        return IdentityMatching(weight, correlation_weight)
    if kind is LabelDistance:
        return LabelDistance(features, weight)
    build = cast("Callable[[int, int, float], Term]", kind)
    return build(features, people, weight)
