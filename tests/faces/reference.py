"""Slow and obvious: what the fast code of the package must agree with."""

from __future__ import annotations

import math


def action_units_slow(v: float, a: float, s: float) -> dict[str, float]:
    """The formulas of ``action_units`` for one feeling, quadrant by quadrant, in plain Python."""
    p = v if v > 0 else 0.0
    n = -v if v < 0 else 0.0
    u = a if a > 0 else 0.0
    d = -a if a < 0 else 0.0
    return {
        "au1": 0.5 * u * (1 - s * n) + n * (0.5 - 0.4 * s * u),
        "au2": 0.8 * u * (1 - s * n),
        "au4": n * (0.45 + 0.55 * s * u),
        "au5": u * (0.5 + 0.5 * u),
        "au6": p * (0.4 + 0.6 * p),
        "au7": 0.6 * s * n * u,
        "au9": s * n * (0.3 + 0.7 * u),
        "au12": p,
        "au15": n * (0.9 - 0.3 * u),
        "au17": n * (0.5 + 0.5 * d) * (1 - u),
        "au20": (1 - s) * n * u,
        "au24": s * n * u,
        "au25": 0.55 * u * (1 - 0.3 * s * n) + 0.45 * p,
        "au26": u * u * (1 - 0.4 * n),
        "au43": d,
    }


def head_function(x: float, y: float, width: float, chin: float, taper: float, square: float) -> float:
    """1 on the outline of a head that looks straight ahead, less inside: the formula of docs/faces.md."""
    y = (y - (chin - 1) / 2) / ((chin + 1) / 2)
    t = min(max(y, 0.0), 1.0)
    x = x / (width * (1 - taper * t**2))
    return x**2 + y**2 - 0.85 * square * t**3 * min(x**2, 1.0)


def coverage_slow(top: float, bottom: float, row: int, per_unit: float, samples: int = 1000) -> float:
    """Share of pixel ``row``'s height between two heights, by counting sample points."""
    inside = 0
    for k in range(samples):
        y = (row + (k + 0.5) / samples) / per_unit
        inside += top <= y <= bottom
    return inside / samples


def blur_slow(line: list[float], k: float, d: int) -> list[float]:
    """(k, 1 - 2k, k) at distance ``d`` along a line whose ends repeat."""
    last = len(line) - 1
    return [(1 - 2 * k) * x + k * (line[max(i - d, 0)] + line[min(i + d, last)]) for i, x in enumerate(line)]


def pressed_radius(r: float) -> float:
    """Radii above 0.8 pressed into the disc."""
    if r <= 0.8:
        return r
    x = (r - 0.8) / 0.19
    return 0.8 + 0.19 * x / (1 + x) if math.isfinite(x) else 0.99
