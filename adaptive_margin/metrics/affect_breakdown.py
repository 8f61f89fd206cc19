"""For whom and for which emotions predictions are wrong: strong and weak ones, the worst people, calibration."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..functional.checks import at_least_float32
from ..functional.concordance import concordance_correlation, root_mean_square_error
from ..grouping import OtsuGrouper
from ..messages import problem


@dataclass(frozen=True, kw_only=True)
class AffectBreakdown:
    """Errors of valence and arousal by emotion and by person. An undefined figure is NaN.

    Attributes:
        radius: Otsu's threshold between weak and strong emotions, in the labels' unit.
        strong_rmse: RMSE of strong emotions, mean over labels.
        weak_rmse: RMSE of weak emotions.
        strong_ccc: CCC of strong emotions, mean over labels.
        weak_ccc: CCC of weak emotions.
        people: number of known people.
        person_error: mean over people of each one's mean distance between label and prediction.
        worst_decile: the same of the tenth of the people with the largest error, at least one.
        slope: slope of labels on predictions, by label: 1 if predictions are as extreme as labels are, less if they
            exaggerate.
        offset: of the same line, at a prediction of 0: 0 if calibrated.
    """

    radius: float
    strong_rmse: float
    weak_rmse: float
    strong_ccc: float
    weak_ccc: float
    people: int
    person_error: float
    worst_decile: float
    slope: tuple[float, ...]
    offset: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: None if a figure is not defined."""
        plain = asdict(self)
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in plain.items()}


def affect_breakdown(truth: ArrayLike, prediction: ArrayLike, people: ArrayLike | None = None) -> AffectBreakdown:
    r"""Where predictions of valence and arousal are wrong.

    Strong emotions lie at a radius :math:`\sqrt{v^2 + a^2}` of at least Otsu's threshold
    (:class:`~adaptive_margin.OtsuGrouper`, of all rows together). A person's error is the mean of
    :math:`\|y - \hat y\|` over the person's rows. Calibration is the least-squares line
    :math:`y \approx \text{offset} + \text{slope} \cdot \hat y`.

    Args:
        truth: (valence, arousal), shape ``(N, 2)``.
        prediction: likewise.
        people: number of each row's person, shape ``(N,)``; negative if unknown.

    Raises:
        ValueError: shapes that do not match.

    Example:
        >>> truth = np.array([[0.8, 0.0], [-0.8, 0.0], [0.1, 0.0], [0.0, 0.1]])
        >>> found = affect_breakdown(truth, 0.5 * truth, [0, 0, 1, 1])
        >>> round(found.worst_decile, 2), [round(slope, 2) for slope in found.slope]
        (0.4, [2.0, 2.0])
    """
    y, guess = (np.asarray(x, dtype=np.float64) for x in (truth, prediction))
    if y.ndim != 2 or y.shape != guess.shape or y.shape[1] != 2 or not len(y):
        remedy = "pass valence and arousal of the same rows, at least one"
        raise ValueError(problem("truth and prediction", "of shape (N, 2)", (y.shape, guess.shape), remedy))
    who = np.full(len(y), -1) if people is None else np.asarray(people)
    if who.shape != (len(y),):
        raise ValueError(problem("people", f"of shape ({len(y)},)", who.shape, "pass one number per row"))
    grouper = OtsuGrouper(collect_stats=False).fit(torch.from_numpy(y))
    strong = (grouper(torch.from_numpy(y)) == 1).numpy()

    def figures(rows: NDArray[np.bool_]) -> tuple[float, float]:
        if rows.sum() < 2:
            return math.nan, math.nan
        pair = at_least_float32(torch.from_numpy(y[rows])), torch.from_numpy(guess[rows])
        return float(root_mean_square_error(*pair).mean()), float(concordance_correlation(*pair).mean())

    (strong_rmse, strong_ccc), (weak_rmse, weak_ccc) = figures(strong), figures(~strong)
    error = np.sqrt(np.square(y - guess).sum(axis=1))
    errors = np.sort([error[who == person].mean() for person in np.unique(who[who >= 0])])
    lines = [_line(guess[:, label], y[:, label]) for label in range(2)]
    return AffectBreakdown(
        radius=float(grouper.radius),
        strong_rmse=strong_rmse,
        weak_rmse=weak_rmse,
        strong_ccc=strong_ccc,
        weak_ccc=weak_ccc,
        people=len(errors),
        person_error=float(errors.mean()) if len(errors) else math.nan,
        worst_decile=float(errors[-max(1, len(errors) // 10) :].mean()) if len(errors) else math.nan,
        slope=tuple(slope for slope, _ in lines),
        offset=tuple(offset for _, offset in lines),
    )


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and offset of the least-squares line; a slope of 0 where x does not vary."""
    spread = x - x.mean()
    slope = float(spread @ y / (spread @ spread)) if np.ptp(x) > 0 else 0.0
    return slope, float(y.mean() - slope * x.mean())
