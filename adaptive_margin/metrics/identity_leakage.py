r"""How much an encoder's features reveal about identity: the paper's claim of person independence, measured.

Two questions, each compared with chance. Retrieval: does the nearest other feature belong to the same person? Linear
probe: can a logistic regression name the person? The answers for people the encoder was trained on ("seen"), for others
("unseen"), and for the same network trained without the critic show whether adversarial learning removed identity.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..functional.checks import check_finite, check_matrix
from ..messages import problem
from .affect import bootstrap_interval
from .retrieval import RetrievalMetrics

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class IdentityLeakage:
    """What features reveal about identity. An undefined figure is NaN, and ``reason`` says why.

    Attributes:
        people: number of different people among the rows.
        rows: number of rows used.
        recall_at_1: share of rows whose nearest other row, by cosine, belongs to the same person.
        recall_at_1_chance: the same for a random order.
        map_at_r: mean average precision at R of the same search.
        map_at_r_chance: the same for a random order.
        probe_accuracy: share of held-out rows whose person a logistic regression names correctly.
        probe_low: lower end of its interval, a bootstrap over people.
        probe_high: upper end.
        probe_chance: accuracy of always naming the person with most training rows.
        probe_people: number of people the probe knows: those with rows on both sides of its split.
        reason: why figures are NaN; empty if none is.
    """

    people: int
    rows: int
    recall_at_1: float
    recall_at_1_chance: float
    map_at_r: float
    map_at_r_chance: float
    probe_accuracy: float
    probe_low: float
    probe_high: float
    probe_chance: float
    probe_people: int
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: None if a figure is not defined."""
        plain = asdict(self)
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in plain.items()}


def identity_leakage(
    features: Tensor,
    people: ArrayLike,
    *,
    exclude: ArrayLike | None = None,
    test_share: float = 0.5,
    regularization: float = 1.0,
    resamples: int = 1000,
    seed: int = 0,
) -> IdentityLeakage:
    r"""Identity retrieval and a linear probe on an encoder's features.

    **Retrieval.** Every row searches the others by cosine similarity (:class:`RetrievalMetrics`, tile by tile). With
    :math:`R` rows of its own person among :math:`n` it may find, a random order has

    .. math:: E[\mathrm{Recall@}1] = \frac{R}{n}, \qquad
              E[\mathrm{MAP@}R] = \frac{1}{n} \sum_{i=1}^{R} \frac1i \left(1 + \frac{(i-1)(R-1)}{n-1}\right)

    **Probe.** Features are standardised, each person's rows are split, and a multinomial logistic regression with an L2
    penalty is fitted on one side and tested on the other. Its interval draws people with replacement
    (:func:`~adaptive_margin.metrics.bootstrap_interval`) and keeps the fitted probe fixed.

    Source: ours. The paper shows a t-SNE plot as evidence that CAF is person-independent and gives no number.

    Args:
        features: shape ``(N, F)``, any floating dtype; computed in float32 (retrieval) and float64 (probe).
        people: the person of each row, integers of shape ``(N,)``; a negative number means unknown, and the row is left
            out.
        exclude: group of each row, ``N`` numbers or names: for frames, the video. Rows of one group never find each
            other and are on the same side of the probe's split. None: every row is its own group.
        test_share: share of each person's rows (or groups) on which the probe is tested, between 0 and 1; at least one
            is for the test and at least one for training.
        regularization: C of scikit-learn's ``LogisticRegression``.
        resamples: number of resamples for the probe's interval.
        seed: random seed of split and interval.

    Returns:
        The figures. With fewer than two people, or nobody whose rows can be split, the figures that need more are NaN.

    Raises:
        TypeError: features are not a floating-point tensor, or people are not integers.
        ValueError: wrong shapes, features that are not finite, or an option out of range.

    Example:
        >>> who = torch.arange(40) // 4
        >>> leaky = torch.nn.functional.one_hot(who).float() + 0.1 * torch.randn(40, 10)
        >>> found = identity_leakage(leaky, who)
        >>> found.recall_at_1, found.probe_accuracy, round(found.recall_at_1_chance, 3), found.probe_chance
        (1.0, 1.0, 0.077, 0.1)
    """
    check_matrix("features", features)
    check_finite("features", features)
    who = _column("people", people, len(features))
    if who.dtype.kind not in "iu":
        raise TypeError(problem("people", "integers", who.dtype, "number the people, -1 for unknown"))
    groups = np.arange(len(who)) if exclude is None else _column("exclude", exclude, len(features))
    if not 0 < test_share < 1:
        raise ValueError(problem("test_share", "between 0 and 1", test_share, "0.5 asks about half of the rows"))
    if not (regularization > 0 and math.isfinite(regularization)):
        raise ValueError(problem("regularization", "positive and finite", regularization, "1.0 is scikit-learn's"))

    known = np.flatnonzero(who >= 0)
    x = features.detach()[torch.from_numpy(known).to(features.device)]
    names, codes = np.unique(who[known].astype(np.int64), return_inverse=True)
    _, group = np.unique(groups[known], return_inverse=True)
    if len(names) < 2:
        reason = f"{len(names)} known: identity needs two people or more"
        nan = dict.fromkeys(RETRIEVAL + PROBE, math.nan)
        return IdentityLeakage(people=len(names), rows=len(known), probe_people=0, reason=reason, **nan)

    found, missing = _retrieval(x, codes, group, each_its_own=exclude is None)
    probe, probe_people, unasked = _probe(x, codes, group, test_share, regularization, resamples, seed)
    return IdentityLeakage(
        people=len(names),
        rows=len(known),
        probe_people=probe_people,
        reason="; ".join(text for text in (missing, unasked) if text),
        **found,
        **probe,
    )


PROBE = ("probe_accuracy", "probe_low", "probe_high", "probe_chance")
RETRIEVAL = ("recall_at_1", "recall_at_1_chance", "map_at_r", "map_at_r_chance")


def _column(argument: str, values: ArrayLike, rows: int) -> NDArray[Any]:
    column = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if column.shape != (rows,):
        expected = f"one for each of {rows} rows of features"
        raise ValueError(problem(argument, expected, f"shape {column.shape}", "pass one per row"))
    return column


def _retrieval(x: Tensor, codes: Integers, group: Integers, each_its_own: bool) -> tuple[dict[str, float], str]:
    """Recall@1 and MAP@R over people; a row searches the rows of other groups."""
    metrics = RetrievalMetrics(ks=(1,), distance="cosine")
    labels = torch.from_numpy(codes).to(x.device)
    sums, counted = np.zeros(4), 0
    parts: list[tuple[Integers, Integers | None]] = [(np.arange(len(codes)), None)]
    if not each_its_own:
        parts = [(np.flatnonzero(group == g), np.flatnonzero(group != g)) for g in range(int(group.max()) + 1)]
    for rows, others in parts:
        q = torch.from_numpy(rows).to(x.device)
        if others is None:
            figures = metrics(x, labels)
            n, same = len(codes) - 1, np.bincount(codes)[codes] - 1
        elif len(others):
            r = torch.from_numpy(others).to(x.device)
            figures = metrics(x[q], labels[q], x[r], labels[r])
            n, same = len(others), np.bincount(codes[others], minlength=int(codes.max()) + 1)[codes[rows]]
        else:
            continue
        same = same[same > 0]
        if not len(same):
            continue
        recall, precision = figures["recall_at_1"], figures["mean_average_precision_at_r"]
        sizes, times = np.unique(same, return_counts=True)
        by_chance = float(sum(t * _map_by_chance(int(size), n) for size, t in zip(sizes, times, strict=True)))
        sums += [recall * len(same), same.sum() / n, precision * len(same), by_chance]
        counted += len(same)
    if not counted:
        return dict.fromkeys(RETRIEVAL, math.nan), "no person has two rows that may find each other"
    return dict(zip(RETRIEVAL, (sums / counted).tolist(), strict=True)), ""


def _map_by_chance(same: int, n: int) -> float:
    """Expected MAP@R of a random order: the formula of :func:`identity_leakage`."""
    i = np.arange(1, same + 1)
    others = (i - 1) * (same - 1) / (n - 1) if n > 1 else np.zeros(same)
    return float(((1 + others) / i).sum() / n)


def _split(codes: Integers, group: Integers, test_share: float, seed: int) -> tuple[Integers, Integers]:
    """Training rows and test rows of every person whose rows are in at least two groups."""
    generator = np.random.default_rng(seed)
    train, test = [], []
    for person in range(int(codes.max()) + 1):
        rows = np.flatnonzero(codes == person)
        units = generator.permutation(np.unique(group[rows]))
        if len(units) < 2:
            continue
        asked = units[: min(max(round(test_share * len(units)), 1), len(units) - 1)]
        is_asked = np.isin(group[rows], asked)
        train.append(rows[~is_asked])
        test.append(rows[is_asked])
    none = np.empty(0, dtype=np.int64)
    return (np.concatenate(train), np.concatenate(test)) if train else (none, none)


def _probe(
    x: Tensor, codes: Integers, group: Integers, test_share: float, regularization: float, resamples: int, seed: int
) -> tuple[dict[str, float], int, str]:
    """Accuracy of the linear probe, its interval and chance; how many people it knows; why it could not be tested."""
    train, test = _split(codes, group, test_share, seed)
    people = len(np.unique(codes[train]))
    if people < 2:
        return (
            dict.fromkeys(PROBE, math.nan),
            people,
            f"people with rows both to train and to test on: {people}, fewer than two",
        )
    from sklearn.exceptions import ConvergenceWarning  # pytorch-metric-learning requires scikit-learn
    from sklearn.linear_model import LogisticRegression

    a, b = (x[torch.from_numpy(rows).to(x.device)].double().cpu() for rows in (train, test))
    mean, spread = a.mean(dim=0), a.std(dim=0, correction=0)
    scale = torch.where(spread > 0, spread, 1.0)
    a, b = (a - mean) / scale, (b - mean) / scale
    if a.shape[1] > len(a):  # the penalty does not change under rotation: only the span of the rows matters
        basis = torch.linalg.qr(a.T).Q  # (F, rows)
        a, b = a @ basis, b @ basis
    model = LogisticRegression(C=regularization, max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 steps name people as well as 5,000
        answers = model.fit(a.numpy(), codes[train]).predict(b.numpy())
    right = (answers == codes[test]).astype(np.float64)
    commonest = np.bincount(codes[train]).argmax()
    interval = bootstrap_interval(
        lambda correct, _: correct.mean(), right, right, groups=codes[test], resamples=resamples, seed=seed
    )
    figures = (interval.estimate, interval.low, interval.high, (codes[test] == commonest).mean())
    return dict(zip(PROBE, map(float, figures), strict=True)), people, ""
