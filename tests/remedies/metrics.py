"""Remedies of the metrics."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import torch

from adaptive_margin import RetrievalMetrics
from adaptive_margin.functional import root_mean_square_error
from adaptive_margin.metrics.affect import AffectMetrics, affect_intervals, bootstrap_interval, feasible, rmse_bounds
from adaptive_margin.metrics.affect_breakdown import affect_breakdown
from adaptive_margin.metrics.clustering import kmeans
from adaptive_margin.metrics.comparison import student_interval
from adaptive_margin.metrics.identity_leakage import identity_leakage
from adaptive_margin.metrics.thresholds import operating_point_inconsistency

from .following import follow

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 5
TARGET = np.linspace(-0.9, 0.9, 20).reshape(10, 2)
GUESS = TARGET[::-1] * 0.5 + 0.1


def affect(
    target: object = TARGET, prediction: object = GUESS, labels: tuple[str, ...] = ("valence", "arousal")
) -> bool:
    metrics = AffectMetrics(labels)
    metrics.update(target, prediction)
    return set(metrics.compute()["ccc"]) == {*labels, "mean"}


def interval(target: object = TARGET[:, 0], prediction: object = GUESS[:, 0], **options: object) -> bool:
    found = bootstrap_interval(root_mean_square_error, target, prediction, **{"resamples": 20, **options})
    return all(math.isfinite(float(each)) for each in (found.low, found.high))


def leakage(people: object = Y, **options: object) -> bool:
    return 0 <= identity_leakage(X, people, **{"resamples": 10, **options}).probe_accuracy <= 1


def opis(labels: torch.Tensor = Y, **options: object) -> bool:
    return operating_point_inconsistency(X, labels, **options).opis >= 0


def retrieval(*args: object, wanted: str = "recall_at_1", **options: object) -> bool:
    return 0 <= RetrievalMetrics(**options)(*(args or (X, Y)))[wanted] <= 1


@contextmanager
def without_faiss() -> Iterator[None]:
    there = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "faiss"}
    for name in there:
        del sys.modules[name]
    sys.modules["faiss"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["faiss"]
        sys.modules.update(there)


def retrieval_without_faiss(**options: object) -> bool:
    with without_faiss():
        return retrieval(**options)


CASES = [
    follow(
        "0.01 and 0.1 are usual",
        lambda: opis(false_accepts=(0.1, 0.01)),
        lambda: opis(false_accepts=(0.01, 0.1)),
    ),
    follow("101 are usually enough", lambda: opis(thresholds=1), lambda: opis(thresholds=101)),
    follow(
        "a threshold needs pairs within a class and between classes",
        lambda: opis(torch.arange(40)),
        lambda: opis(torch.arange(40) // 2),
    ),
    follow(
        "name each label column",
        lambda: AffectMetrics(()),
        lambda: affect(labels=("pleasure", "activation")),
    ),
    follow(
        "pass one prediction per label",
        lambda: affect(prediction=GUESS[:5]),
        lambda: affect(prediction=GUESS),
    ),
    follow(
        "pass one column per label",
        lambda: affect_intervals(TARGET[:, 0], GUESS[:, 0]),
        lambda: affect_intervals(TARGET, GUESS, resamples=20).low.shape == (4, 3),
    ),
    follow(
        "merge like with like",
        lambda: AffectMetrics(("valence",)).merge(AffectMetrics()),
        lambda: AffectMetrics().merge(AffectMetrics()).count == 0,
    ),
    follow("pass it the test set first", lambda: AffectMetrics().compute(), lambda: affect()),
    follow(
        "pass real labels and predictions",
        lambda: affect(prediction=torch.complex(torch.tensor(GUESS), torch.tensor(GUESS))),
        lambda: affect(prediction=torch.complex(torch.tensor(GUESS), torch.tensor(GUESS)).real),
    ),
    follow("pass one row per sample", lambda: affect(TARGET[0], GUESS[0]), lambda: affect(TARGET[:2], GUESS[:2])),
    follow(
        "no predictions have both; pass their precision as rounding",
        lambda: rmse_bounds(pcc=0.5, label_sd=0.4, ccc=0.505),
        lambda: rmse_bounds(pcc=0.5, label_sd=0.4, ccc=0.505, rounding=0.005)[0] > 0,
    ),
    follow(
        "pass it as reported",
        lambda: feasible(-0.3, pcc=0.5, label_sd=0.4),
        lambda: feasible(0.36, pcc=0.5, label_sd=0.4),
    ),
    follow(
        "pass it as reported",
        lambda: rmse_bounds(pcc=50, label_sd=0.4),
        lambda: rmse_bounds(pcc=0.5, label_sd=0.4)[0] > 0.3,
    ),
    follow(
        "one row per sample",
        lambda: interval(prediction=GUESS),
        lambda: interval(prediction=GUESS[:, 0]),
    ),
    follow("0.95 is usual", lambda: interval(confidence=95), lambda: interval(confidence=0.95)),
    follow("1000 is usual", lambda: interval(resamples=0), lambda: interval(resamples=1000)),
    follow(
        "name each row's",
        lambda: interval(groups=[1, 2]),
        lambda: interval(groups=[1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
    ),
    follow(
        "one says nothing about the variation",
        lambda: interval(groups=["ann"] * 10),
        lambda: interval(groups=["ann"] * 5 + ["bob"] * 5),
    ),
    # clustering.py, identity_leakage.py, student.py
    follow(
        "random is cheaper",
        lambda: kmeans(X, 3, init="first"),
        lambda: kmeans(X, 3, init="random").shape == (40,),
    ),
    follow("pass a positive count", lambda: kmeans(X, 3, n_init=0), lambda: kmeans(X, 3, n_init=1).shape == (40,)),
    follow(
        "ask for fewer clusters or pass more rows",
        lambda: kmeans(X, 50),
        lambda: kmeans(X, 40).shape == (40,),
        lambda: kmeans(torch.cat([X, X + 1]), 50).shape == (80,),
    ),
    follow(
        "number the people, -1 for unknown",
        lambda: leakage(["ann", "bob", "cem", "dee", ""] * 8),
        lambda: leakage(torch.where(Y == 4, -1, Y)),
    ),
    follow(
        "0.5 asks about half of the rows",
        lambda: leakage(test_share=1),
        lambda: leakage(test_share=0.5),
    ),
    follow(
        "1.0 is scikit-learn's",
        lambda: leakage(regularization=0),
        lambda: leakage(regularization=1.0),
    ),
    follow("pass one per row", lambda: leakage(Y[:10]), lambda: leakage(Y)),
    follow("train a seed first", lambda: student_interval([]), lambda: student_interval([0.7])[0] == 0.7),
    follow(
        "0.95 is usual",
        lambda: student_interval([0.7, 0.8], confidence=95),
        lambda: student_interval([0.7, 0.8], confidence=0.95)[0] == 0.75,
    ),
    # retrieval.py
    follow("ks=(1, 10, 100, 1000) for instance", lambda: retrieval(ks=1), lambda: retrieval(ks=(1, 10, 100, 1000))),
    follow(
        "ks=(1, 10, 100, 1000) for instance", lambda: retrieval(ks=(0, 1)), lambda: retrieval(ks=(1, 10, 100, 1000))
    ),
    follow("tiled needs no package", lambda: retrieval(search="exact"), lambda: retrieval(search="tiled")),
    follow(
        "kmeans needs no package",
        lambda: retrieval(clustering="ward"),
        lambda: retrieval(clustering="kmeans", wanted="NMI"),
    ),
    follow("pass both", lambda: retrieval(X[:8], Y[:8], X), lambda: retrieval(X[:8], Y[:8], X, Y)),
    follow(
        "put the queries first, in their order, or pass ref_includes_query=False",
        lambda: retrieval(X[:8], Y[:8], X, Y.flip(0), True),
        lambda: retrieval(X[:8], Y[:8], X, Y, True),
        lambda: retrieval(X[:8], Y[:8], X, Y.flip(0), False),
    ),
    follow(
        "or use search='tiled' and clustering='kmeans'",
        lambda: retrieval_without_faiss(search="faiss", clustering="faiss"),
        lambda: not find_spec("faiss") or retrieval(search="faiss", clustering="faiss"),
        lambda: retrieval_without_faiss(search="tiled", clustering="kmeans"),
    ),
    follow(
        "('recall_at_1',) say",
        lambda: RetrievalMetrics(include="recall_at_1"),
        lambda: set(RetrievalMetrics(include=("recall_at_1",))(X, Y)) == {"recall_at_1"},
    ),
    follow(
        "ks, at_r and clustering say which figures there are",
        lambda: RetrievalMetrics(include=("recall_at_10",)),
        lambda: set(RetrievalMetrics(ks=(1, 10), include=("recall_at_10",))(X, Y)) == {"recall_at_10"},
    ),
    # affect_breakdown.py
    follow(
        "pass valence and arousal of the same rows, at least one",
        lambda: affect_breakdown(np.zeros((3, 2)), np.zeros((2, 2))),
        lambda: affect_breakdown(np.zeros((3, 2)), np.zeros((3, 2))).people == 0,
    ),
    follow(
        "pass one number per row",
        lambda: affect_breakdown(np.zeros((3, 2)), np.zeros((3, 2)), [0]),
        lambda: affect_breakdown(np.zeros((3, 2)), np.zeros((3, 2)), [0, 0, 1]).people == 2,
    ),
]
