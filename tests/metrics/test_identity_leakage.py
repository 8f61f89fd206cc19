"""Identity leakage: against a slow count, by hand, and at the edges where it is not defined."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from adaptive_margin.metrics import identity_leakage


def slow_retrieval(x: torch.Tensor, who: list[int], group: list[int]) -> tuple[float, float, float, float]:
    """Recall@1, MAP@R and their expectations, one query at a time; the expectation over all orders of small lists."""
    x = torch.nn.functional.normalize(x.double(), dim=1)
    recall, precision, chance_recall = [], [], []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if group[j] != group[i]]
        relevant = sum(who[j] == who[i] for j in others)
        if not relevant:
            continue
        order = sorted(others, key=lambda j: (-float(x[i] @ x[j]), j))
        hits = [who[j] == who[i] for j in order]
        recall.append(float(hits[0]))
        precision.append(sum(hits[k] * sum(hits[: k + 1]) / (k + 1) for k in range(relevant)) / relevant)
        chance_recall.append(relevant / len(others))
    return (*(float(np.mean(v)) for v in (recall, chance_recall, precision)), len(recall))


@pytest.mark.parametrize("videos", [False, True])
def test_retrieval_is_the_slow_one(videos: bool) -> None:
    x = torch.randn(23, 5)
    who = (torch.arange(23) % 4).tolist()
    group = [i // 3 for i in range(23)] if videos else list(range(23))
    found = identity_leakage(x, torch.tensor(who), exclude=group if videos else None, resamples=10)
    recall, chance, precision, _ = slow_retrieval(x, who, group)
    assert found.recall_at_1 == pytest.approx(recall)
    assert found.recall_at_1_chance == pytest.approx(chance)
    assert found.map_at_r == pytest.approx(precision)


def test_chance_is_what_random_features_give() -> None:
    who = np.arange(60) % 6
    drawn = [identity_leakage(torch.randn(60, 8), who, resamples=2) for _ in range(60)]
    for name in ("recall_at_1", "map_at_r", "probe_accuracy"):
        chance_name = "probe_chance" if name == "probe_accuracy" else f"{name}_chance"
        values = np.array([getattr(one, name) for one in drawn])
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - getattr(drawn[0], chance_name)) < 4 * error, name


def test_features_that_are_the_person_and_features_that_are_not() -> None:
    who = torch.arange(80) // 8
    leaky = torch.nn.functional.one_hot(who, 10).float() + 0.05 * torch.randn(80, 10)
    blind = torch.randn(80, 10)
    told, kept = identity_leakage(leaky, who), identity_leakage(blind, who)
    assert told.probe_accuracy == told.recall_at_1 == 1
    assert told.probe_low == told.probe_high == 1
    assert kept.probe_accuracy < 0.3
    assert kept.probe_low < kept.probe_accuracy < kept.probe_high
    assert told.people == told.probe_people == 10
    assert told.reason == ""


def test_frames_of_one_video_do_not_count_as_leakage() -> None:
    """Each video has a place of its own: near duplicates within it, nothing of the person beyond it."""
    video = torch.arange(120) // 6  # 20 videos of 6 frames
    who = video % 5
    x = torch.randn(20, 16)[video] + 0.01 * torch.randn(120, 16)
    naive, fair = identity_leakage(x, who), identity_leakage(x, who, exclude=video)
    assert naive.recall_at_1 == 1
    assert naive.probe_accuracy == 1
    assert fair.recall_at_1 < 0.6
    assert fair.probe_accuracy < 0.6


def test_wide_features_are_rotated_without_loss() -> None:
    """More features than rows: the probe on a rotation answers as the probe on all of them does."""
    sklearn_linear = pytest.importorskip("sklearn.linear_model")
    from adaptive_margin.metrics.identity_leakage import _split

    who = np.arange(40) % 4
    x = torch.randn(40, 200) + torch.randn(4, 200)[torch.from_numpy(who)] * 0.15
    found = identity_leakage(x, who, resamples=2)
    train, test = _split(who, np.arange(40), 0.5, 0)
    a, b = x.double().numpy()[train], x.double().numpy()[test]
    mean, sd = a.mean(0), a.std(0)
    model = sklearn_linear.LogisticRegression(C=1.0, max_iter=500).fit((a - mean) / sd, who[train])
    assert found.probe_accuracy == pytest.approx(model.score((b - mean) / sd, who[test]))
    assert 0 < found.probe_accuracy < 1


def test_each_person_is_on_both_sides_of_the_split() -> None:
    from adaptive_margin.metrics.identity_leakage import _split

    who = np.repeat(np.arange(5), [2, 3, 4, 9, 1])
    train, test = _split(who, np.arange(len(who)), 0.5, seed=3)
    assert set(who[train]) == set(who[test]) == {0, 1, 2, 3}
    assert not set(train) & set(test)
    assert len(train) + len(test) == 18


def test_few_people() -> None:
    nobody = identity_leakage(torch.randn(3, 2), [-1, -1, -1])
    assert nobody.people == nobody.rows == 0
    assert math.isnan(nobody.recall_at_1)
    assert "0 known: identity needs" in nobody.reason
    one = identity_leakage(torch.randn(3, 2), [7, 7, 7])
    assert math.isnan(one.probe_accuracy)
    assert one.people == 1
    assert one.to_dict()["probe_accuracy"] is None
    singles = identity_leakage(torch.randn(3, 2), [0, 1, 2])
    assert math.isnan(singles.recall_at_1)
    assert math.isnan(singles.probe_accuracy)
    assert "two rows" in singles.reason
    two = identity_leakage(torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]), [0, 0, 5, 5])
    assert two.recall_at_1 == two.probe_accuracy == 1
    assert two.probe_chance == 0.5


def test_constant_features_and_one_video_each() -> None:
    who = np.arange(12) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flat = identity_leakage(torch.zeros(12, 4), who, resamples=10)
    assert flat.probe_accuracy == pytest.approx(1 / 3)
    alone = identity_leakage(torch.randn(12, 4), who, exclude=who)
    assert math.isnan(alone.recall_at_1)
    assert math.isnan(alone.probe_accuracy)
    assert alone.probe_people == 0


def test_unknown_people_are_left_out() -> None:
    x, who = torch.randn(20, 3), np.arange(20) % 4
    all_rows = identity_leakage(x, who)
    more = identity_leakage(torch.cat([x, torch.randn(5, 3)]), np.concatenate([who, [-1] * 5]))
    assert more == all_rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"people": [0, 1]}, "people must be one for each of 4 rows"),
        ({"people": [0.0, 1, 0, 1]}, "people must be integers"),
        ({"exclude": ["a"]}, "exclude must be one for each"),
        ({"test_share": 1.0}, "test_share must be between"),
        ({"regularization": 0}, "regularization must be positive"),
        ({"features": torch.full((4, 2), math.nan)}, "features must be finite"),
        ({"features": torch.randn(4)}, "features must be a matrix"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"features": torch.randn(4, 2), "people": [0, 0, 1, 1], **arguments}
    with pytest.raises((TypeError, ValueError), match=message):
        identity_leakage(given.pop("features"), given.pop("people"), **given)  # type: ignore[arg-type]
