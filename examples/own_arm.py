"""An arm of your own for the face trainer, in one file: pictures of different people who feel alike attract.

    python benchmarks/fer_people.py choose --arms grl --own examples/own_arm.py:Alike --iterations 800
    adaptive-margin train-faces --preset faces --critic none --per-person 4 --term examples/own_arm.py:Alike

docs/people.md says how to read what the first command prints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from adaptive_margin.emotion.terms import Term


class Alike(Term):
    """Squared distance of unit features, a mean over pairs of different people weighted by how alike they feel."""

    def __init__(self, features: int, people: int, weight: float = 1.0) -> None:
        super().__init__(weight)

    def loss(self, outputs: Tensor, labels: Tensor, people: Tensor, regressor: nn.Module) -> Tensor:
        """The term of a batch, in the unit of the regression's loss."""
        alike = torch.exp(-torch.cdist(labels, labels).square() / 0.05)
        pairs = alike * (people[:, None] != people[None, :])
        unit = normalize(outputs, dim=1)
        distance = 2 - 2 * unit @ unit.T
        return self.present_weight * (pairs * distance).sum() / pairs.sum().clamp(min=1e-6)
