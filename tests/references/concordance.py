"""The agreement figures of one column, written out: the paper, Evaluation metrics, population statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean(x: Sequence[float]) -> float:
    return math.fsum(x) / len(x)


def covariance(x: Sequence[float], y: Sequence[float]) -> float:
    mx, my = mean(x), mean(y)
    return mean([(a - mx) * (b - my) for a, b in zip(x, y, strict=True)])


def rmse_slow(y: Sequence[float], p: Sequence[float]) -> float:
    return math.sqrt(mean([(a - b) ** 2 for a, b in zip(y, p, strict=True)]))


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


def sagr_slow(y: Sequence[float], p: Sequence[float]) -> float:
    return mean([float(sign(a) == sign(b)) for a, b in zip(y, p, strict=True)])


def pcc_slow(y: Sequence[float], p: Sequence[float]) -> float:
    if len(set(y)) == 1 or len(set(p)) == 1:
        return 0.0
    return covariance(y, p) / (math.sqrt(covariance(y, y)) * math.sqrt(covariance(p, p)))


def ccc_slow(y: Sequence[float], p: Sequence[float]) -> float:
    if len(set(y)) == 1 or len(set(p)) == 1:
        return 0.0
    sigma_y, sigma_p = math.sqrt(covariance(y, y)), math.sqrt(covariance(p, p))
    return 2 * sigma_y * sigma_p * pcc_slow(y, p) / (sigma_y**2 + sigma_p**2 + (mean(y) - mean(p)) ** 2)


def affect_loss_slow(y: Sequence[Sequence[float]], p: Sequence[Sequence[float]]) -> float:
    """y and p as a list of columns."""
    columns = list(zip(y, p, strict=True))
    loss_pcc = 1 - mean([pcc_slow(a, b) for a, b in columns])
    loss_ccc = 1 - mean([ccc_slow(a, b) for a, b in columns])
    return sum(rmse_slow(a, b) for a, b in columns) + 0.5 * (loss_pcc + loss_ccc)
