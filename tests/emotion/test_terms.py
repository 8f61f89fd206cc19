"""Terms that know who is in a picture: numbers by hand, who gets which gradient, and runs from beginning to end."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from adaptive_margin import ConstantMargin
from adaptive_margin.emotion.critics import STRONG, WEAK, CrossPersonObjective
from adaptive_margin.emotion.data import load_data
from adaptive_margin.emotion.model_file import load_model
from adaptive_margin.emotion.nets import PersonNorm
from adaptive_margin.emotion.terms import (
    IdentityMatching,
    LabelDistance,
    ReversedIdentity,
    UniformIdentity,
    build_term,
    identity_shift,
    warmed_up,
)
from adaptive_margin.emotion.trainer import EmotionJob, people_of, run
from adaptive_margin.functional import affect_loss, label_distance_loss
from adaptive_margin.training.world import World

from .cases import faces, iteration, state, tiny, who

TERMS = ("grl", "uniform-id", "elim", "label-distance")
PARTS = {"cross_person": {"cross_person": True}, "person_norm": {"critic": "none", "person_norm": True}}
ARMS: dict[str, dict[str, Any]] = {**{term: {"critic": "none", "term": term} for term in TERMS}, **PARTS}
FEATURES, COUNT = 5, 3


def _batch(rows: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels and people."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64, requires_grad=True)
    return features, torch.rand(rows, 2, generator=generator, dtype=torch.float64), torch.arange(rows) % COUNT


def _head() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(FEATURES, 2).double()


def _loss(term: Any, features: Tensor, labels: Tensor, people: Tensor) -> Tensor:
    found: Tensor = term.loss(term(features), labels, people, _head())
    return found


# -- gradient reversal ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1.0, 0.25, 0.0])
def test_the_encoder_gets_the_classifiers_gradient_reversed(strength: float) -> None:
    torch.manual_seed(0)
    term = ReversedIdentity(FEATURES, COUNT, weight=2.0).double()
    features, labels, people = _batch()
    plain = nn.functional.cross_entropy(term.head(features), people)
    down, *of_head = torch.autograd.grad(plain, [features, *term.head.parameters()])
    term.strength = strength
    loss = _loss(term, features, labels, people)
    up, *of_term = torch.autograd.grad(loss, [features, *term.head.parameters()])
    assert_close(loss, plain)
    assert_close(up, -2.0 * strength * down)
    for one, two in zip(of_head, of_term, strict=True):
        assert_close(one, two)


def test_a_warm_up_grows_from_nothing_to_all() -> None:
    values = [warmed_up(step, 50) for step in range(60)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[25] == pytest.approx(2 / (1 + math.exp(-5)) - 1)
    assert values[50] == values[59] == pytest.approx(0.9999, abs=1e-4)


# -- uniform identity -------------------------------------------------------------------------------------------------


def _two_people() -> UniformIdentity:
    """A classifier whose scores are the features."""
    term = UniformIdentity(2, 2).double()
    term.head = nn.Sequential(nn.Linear(2, 2, bias=False, dtype=torch.float64))
    nn.init.eye_(term.head[0].weight)
    return term


def test_uniform_identity_by_hand() -> None:
    term = _two_people()
    scores = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)  # p = (1/4, 3/4)
    loss = term.loss(term(scores), torch.zeros(1, 2), torch.tensor([1]), nn.Identity())
    assert float(loss) == pytest.approx(-math.log(0.75) - math.log(2) - 0.5 * (math.log(0.25) + math.log(0.75)))
    even = term.loss(term(torch.zeros(1, 2, dtype=torch.float64)), torch.zeros(1, 2), torch.tensor([1]), nn.Identity())
    assert float(even) == pytest.approx(math.log(2))  # nothing to confuse: KL is 0


def test_confusion_moves_the_encoder_and_only_the_classifier_learns_people() -> None:
    torch.manual_seed(0)
    term = UniformIdentity(FEATURES, COUNT, weight=3.0).double()
    features, labels, people = _batch()
    of_features, *of_head = torch.autograd.grad(
        _loss(term, features, labels, people), [features, *term.head.parameters()]
    )
    known = nn.functional.cross_entropy(term.head(features), people)
    for one, two in zip(of_head, torch.autograd.grad(known, list(term.head.parameters())), strict=True):
        assert_close(one, two)
    scores = term.head(features)
    divergence = -math.log(COUNT) - scores.log_softmax(dim=1).mean()
    assert_close(of_features, 3.0 * torch.autograd.grad(divergence, features)[0])
    nearer = term.head(features - 0.1 * of_features)
    assert float(-nearer.log_softmax(dim=1).mean()) < float(-scores.log_softmax(dim=1).mean())


# -- identity matching ------------------------------------------------------------------------------------------------


def test_a_flow_has_the_masses_of_both_people() -> None:
    """Against a plain Sinkhorn of matrices, to the end."""
    torch.manual_seed(3)
    a, b = torch.rand(4, FEATURES, dtype=torch.float64), torch.rand(6, FEATURES, dtype=torch.float64)
    cost = torch.tensor([[1 - float(x @ y / (x.norm() * y.norm())) for y in b] for x in a], dtype=torch.float64)
    r, c = a @ b.mean(dim=0), b @ a.mean(dim=0)
    r, c = 6 * r / r.sum(), 6 * c / c.sum()
    flow = torch.exp(-5 * cost)
    for _ in range(500):
        flow = flow * (r / flow.sum(dim=1))[:, None]
        flow = flow * (c / flow.sum(dim=0))
    assert_close(flow.sum(dim=1), r, rtol=1e-9, atol=0)
    assert_close(identity_shift(a, b, steps=500), (flow * cost).sum(dim=0), rtol=1e-5, atol=0)
    assert_close(identity_shift(a, b), (flow * cost).sum(dim=0), rtol=1e-3, atol=0)


def test_identity_matching_is_the_regression_of_shifted_features() -> None:
    features, labels, people = _batch()
    term = IdentityMatching(weight=0.5)
    moved, rows = [], []
    for person in (1, 2):
        mine = [row for row in range(12) if int(people[row]) == person]
        shift = identity_shift(features[people == 0], features[mine]).detach()
        for row, by in zip(mine, shift, strict=True):
            one = features[row] - by
            moved.append(one / one.square().mean().sqrt())
            rows.append(row)
    expected = 0.5 * affect_loss(labels[rows], _head()(torch.stack(moved)))
    found = _loss(term, features, labels, people)
    assert_close(found, expected)
    gradient, of_plain = (torch.autograd.grad(x, features, retain_graph=True)[0] for x in (found, expected))
    assert_close(gradient, of_plain)
    assert not gradient[people == 0].any()  # the anchor: the shift has no gradient


def test_identity_matching_of_one_person_is_nothing_and_zero_features_are_finite() -> None:
    features, labels, _ = _batch()
    alone = _loss(IdentityMatching(), features, labels, torch.zeros(12, dtype=torch.int64))
    assert float(alone) == 0
    assert torch.equal(torch.autograd.grad(alone, features)[0], torch.zeros_like(features))
    nothing = torch.zeros(12, FEATURES, dtype=torch.float64, requires_grad=True)
    loss = _loss(IdentityMatching(), nothing, labels, _batch()[2])
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, nothing)[0]).all()


# -- label distance ---------------------------------------------------------------------------------------------------


def test_label_distance_ignores_people_and_takes_the_projection() -> None:
    torch.manual_seed(0)
    term = LabelDistance(FEATURES, weight=0.5).double()
    features, labels, people = _batch()
    found = _loss(term, features, labels, people)
    assert_close(found, 0.5 * label_distance_loss(term.head(features), labels))
    assert_close(_loss(term, features, labels, people.flip(0)), found)


# -- a critic across people -------------------------------------------------------------------------------------------


def test_a_cross_person_critic_by_hand() -> None:
    caf = CrossPersonObjective(ConstantMargin(1.0), repulsion=2.0)
    z = torch.tensor([[0.0], [0.4], [1.0], [0.5], [0.2]], dtype=torch.float64, requires_grad=True)
    groups, people = torch.tensor([STRONG, STRONG, STRONG, WEAK, WEAK]), torch.tensor([0, 0, 1, 1, 2])
    # attracted: 0-2 (1), 1-2 (0.36), not 0-1 of one person; parted: 2-3 of one person (0.25), with w = 2
    loss = caf.critic_loss(z, groups, people)
    assert float(loss) == pytest.approx((1 + 0.36) / 2 + 2 * (1 - 0.25))
    gradient = torch.autograd.grad(loss, z)[0].flatten()
    assert gradient[4] == 0  # a weak sample of somebody without a strong one
    assert gradient[0] < 0  # pulled to the strong sample of another person
    assert gradient[3] > 0  # pushed from the strong sample of its own


def test_a_cross_person_critic_parts_all_where_nobody_is_both() -> None:
    caf = CrossPersonObjective(ConstantMargin(1.0))
    z = torch.tensor([[0.0], [1.0], [0.5], [0.8]])
    groups, people = torch.tensor([STRONG, STRONG, WEAK, WEAK]), torch.arange(4)
    expected = 1 + ((1 - 0.25) + (1 - 0.64) + (1 - 0.25) + (1 - 0.04)) / 4
    assert float(caf.critic_loss(z, groups, people)) == pytest.approx(expected)
    nobody = caf.critic_loss(z.requires_grad_(), torch.full((4,), WEAK), people)
    assert float(nobody) == 0
    nobody.backward()


# -- normalised by person ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [False, True])
def test_person_norm_against_a_loop(scale: bool) -> None:
    norm = PersonNorm(FEATURES, scale, prior=2.0).double()
    x, _, people = _batch(7)
    with norm.known(people):
        found = norm(x)
    with torch.no_grad():
        every = [x[people == person] for person in range(COUNT)]
        within = sum((rows - rows.mean(dim=0)).square().sum(dim=0) for rows in every) / 7
        for row in range(7):
            own = every[int(people[row])]
            n = len(own)
            mean = (n * own.mean(dim=0) + 2 * x.mean(dim=0)) / (n + 2)
            var = (n * own.var(dim=0, correction=0) + 2 * within) / (n + 2)
            assert_close(found[row], (x[row] - mean) / ((var + 1e-5).sqrt() if scale else 1))
        assert_close(norm.running_mean, 0.1 * x.mean(dim=0))
        assert_close(norm.running_var, 0.9 + 0.1 * within)


def test_person_norm_without_people_uses_what_it_remembers_and_forgets_nothing() -> None:
    norm = PersonNorm(FEATURES, scale=True).double()
    x, _, people = _batch()
    with norm.known(people):
        norm(x)
    norm.eval()
    before = state(norm)
    assert_close(norm(x), (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt())
    with norm.known(people):
        assert not torch.allclose(norm(x), (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt())
    assert all(torch.equal(value, before[name]) for name, value in state(norm).items())
    assert norm.people is None


def test_a_constant_that_a_person_adds_to_all_features_goes_away() -> None:
    norm = PersonNorm(FEATURES, scale=True, prior=0.0).double().eval()
    x, _, people = _batch()
    offset = torch.randn(COUNT, FEATURES, dtype=torch.float64)
    with norm.known(people):
        assert_close(norm(x), norm(x + offset[people]))


# -- in the steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["paper", "joint"])
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_learns_in_both_orders(arm: str, order: str) -> None:
    it = iteration(**ARMS[arm])
    before = {"net": state(it.net), "term": state(it.term)}
    take = it.paper_step if order == "paper" else it.joint_step
    losses = [take(*faces(), who()) for _ in range(3)]
    assert all(torch.isfinite(value) for one in losses for value in one.values())
    assert ("term" in losses[0]) is (it.term is not None)
    for name, module in (("net", it.net), ("term", it.term)):
        moved = [not torch.equal(value, before[name][key]) for key, value in state(module).items()]
        assert any(moved) or not moved


@pytest.mark.parametrize("term", TERMS)
def test_a_term_of_weight_nothing_leaves_the_network_as_plain_regression_does(term: str) -> None:
    it, plain = iteration("none", term=term), iteration("none")
    assert it.term is not None
    it.term.weight = 0.0
    for _ in range(2):
        it.paper_step(*faces(), who())
        plain.paper_step(*faces())
    for name, value in state(plain.net).items():
        assert_close(state(it.net)[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "label-distance"])
def test_who_is_in_the_pictures_matters(arm: str) -> None:
    found = []
    for people in (who(), torch.zeros_like(who()).index_fill(0, torch.arange(9), 1)):
        it = iteration(**ARMS[arm])
        it.paper_step(*faces(), people)
        found.append(torch.cat([value.flatten() for value in state(it.net).values()]))
        if arm == "uniform-id":  # to the classifier, first
            found[-1] = torch.cat([value.flatten() for value in state(it.term).values()])
        if arm == "cross_person":  # its people matter to the critic
            found[-1] = torch.cat([value.flatten() for value in state(it.critic).values()])
    assert not torch.equal(*found)


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_of_every_arm(arm: str, tmp_path: Path) -> None:
    found = run(tiny(output=str(tmp_path / "run"), iterations=4, per_person=2, **ARMS[arm]), world=World())
    assert found.result["test"]["figures"]["ccc"]["mean"] <= 1
    assert found.result["breakdown"]["people"] == 2
    assert ("by_person" in found.result) is (arm == "person_norm")
    net, _ = load_model(found.folder / "model.pt")
    images, _ = faces(dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(net(images), found.net.eval()(images))


def test_batches_hold_several_pictures_of_a_person_and_a_control_deals_people_anew() -> None:
    config = tiny(critic="none", term="grl", per_person=4)
    data = load_data(config)
    job = EmotionJob(config, data, World())
    first = next(iter(job.batches.epoch(0)))
    assert sorted(np.unique(data.train.people[first.rows], return_counts=True)[1].tolist()) == [4, 4]
    own = people_of(config, data.train, World())
    dealt = people_of(dataclasses.replace(config, shuffle_people=True), data.train, World())
    assert own is not None
    assert dealt is not None
    assert not torch.equal(own, dealt)
    assert torch.equal(own.bincount(), dealt.bincount())
    assert people_of(tiny(), data.train, World()) is None


def test_features_that_are_centred_by_person_want_several_pictures_of_each() -> None:
    data = load_data(tiny())
    count = len(np.unique(data.train.people))
    with pytest.warns(
        UserWarning, match=f"rarely holds two pictures of the same of {count} people; pass --per-person 8"
    ):
        people_of(tiny(critic="none", person_norm=True, batch_size=count), data.train, World())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        people_of(tiny(critic="none", person_norm=True, batch_size=count, per_person=count), data.train, World())
        people_of(tiny(critic="none", person_norm=True, batch_size=2 * count), data.train, World())


def test_a_term_has_as_many_people_as_training() -> None:
    config = tiny(critic="none", term="uniform-id")
    data = load_data(config)
    job = EmotionJob(config, data, World())
    term = job.iteration.term
    assert isinstance(term, UniformIdentity)
    assert term.head[-1].out_features == len(np.unique(data.train.people))


def test_no_term_by_default() -> None:
    assert build_term("none", 4, 2) is None


# -- a term of one's own ----------------------------------------------------------------------------------------------

OWN = """
from adaptive_margin.emotion.terms import ReversedIdentity, Term


class Mine(ReversedIdentity):
    pass


class Nobody(Term):
    ids = False

    def __init__(self, features, people, weight=1.0):
        super().__init__(weight)
        assert people == 0

    def loss(self, outputs, labels, people, regressor):
        return self.present_weight * outputs.square().mean()


class Other:
    pass
"""


def test_a_term_of_ones_own_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    data = load_data(tiny())
    runs = [
        run(tiny(output=str(tmp_path / name), critic="none", term=term, per_person=2), data=data)
        for name, term in (("theirs", "grl"), ("own", f"{file}:Mine"))
    ]
    theirs, own = (state(each.net) for each in runs)
    assert all(torch.equal(theirs[name], own[name]) for name in theirs)

    nobody = tiny(output=str(tmp_path / "nobody"), critic="none", term=f"{file}:Nobody")
    assert nobody.uses_people == []
    without = dataclasses.replace(data.train, people=np.full(len(data.train), -1))
    found = EmotionJob(nobody, dataclasses.replace(data, train=without), World()).step(0)
    assert math.isfinite(float(found["loss/term"]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{0}/none.py:Mine", "which is no existing file"),
        ("{0}/mine.txt:Mine", "which does not end in .py"),
        ("{0}/mine.py:Other", "Other, which is something else"),
        ("{0}/mine.py:Missing", "Missing, which the file does not have"),
        ("{0}/wrong.py:Mine", "SyntaxError"),
        ("{0}/other.py:Mine", r"must be built by \(features, people, weight\), got too many positional arguments"),
        ("mine", "one of 'none', 'grl'"),
    ],
)
def test_a_term_that_is_none(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "mine.txt").write_text(OWN)
    (tmp_path / "wrong.py").write_text("class Mine(:")
    (tmp_path / "other.py").write_text(
        "from adaptive_margin.emotion.terms import Term\nclass Mine(Term):\n    def __init__(self, features): pass"
    )
    with pytest.raises(ValueError, match=message):
        build_term(name.format(tmp_path), FEATURES, COUNT)
