"""The contrastive terms, one pair at a time, written from the formulas in docs/contrastive-vdm-loss.md."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def distance_slow(x: Tensor, y: Tensor, distance: str) -> Tensor:
    """One distance, or similarity, of two vectors."""
    if distance == "cosine":
        return (x / x.norm().clamp(min=1e-12)).dot(y / y.norm().clamp(min=1e-12))
    squared = ((x - y) ** 2).sum()
    if distance == "squared_l2":
        return squared
    return squared.sqrt() if squared > 0 else squared  # the root's gradient at 0 is taken as 0


@dataclass
class SlowTerms:
    attraction: Tensor
    repulsion: Tensor
    second_moment: Tensor
    inside: int
    across: int
    active: int


def _mean(values: list[Tensor], zero: Tensor) -> Tensor:
    return torch.stack(values).mean() if values else zero


def pair_terms_slow(
    x: Tensor,
    labels: Tensor,
    margin: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    distance: str = "squared_l2",
    pos_margin: float = 0.0,
    over_active: bool = False,
    only_first: bool = False,
    ignore_label: int | None = None,
) -> SlowTerms:
    """Every ordered pair in turn; the unordered ones are met twice, which no mean notices."""
    itself = ref_emb is None
    y, y_labels = (x, labels) if ref_emb is None else (ref_emb, ref_labels)
    zero = x.sum() * 0 + margin.sum() * 0 + y.sum() * 0
    inside, across = [], []
    for i in range(len(x)):
        for j in range(len(y)):
            a, b = int(labels[i]), int(y_labels[j])
            if (itself and i == j) or ignore_label in (a, b):
                continue
            d = distance_slow(x[i], y[j], distance)
            m = margin if margin.ndim == 0 else margin[i]
            if a != b:
                across.append(torch.relu(d - m if distance == "cosine" else m - d))
            elif a == 0 or not only_first:
                gap = pos_margin - d if distance == "cosine" else d - pos_margin
                inside.append(torch.relu(gap) if over_active else d)
    attraction = [h for h in inside if h > 0] if over_active else inside
    active = [h for h in across if h > 0]
    second = 0.5 * _mean([h**2 for h in inside], zero) + 0.5 * _mean([h**2 for h in across], zero)
    pairs = len(inside) // 2 if itself else len(inside)
    ends = 2 if itself else 1
    return SlowTerms(
        _mean(attraction, zero) + zero,
        _mean(active, zero) + zero,
        second + zero,
        pairs,
        len(across) // ends,
        len(active),
    )
