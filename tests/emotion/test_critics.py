"""Critics: numbers worked by hand, gradients against finite differences, and what they do when a group is empty."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from adaptive_margin import AdaptiveMargin, ConstantMargin, KMeansGrouper, LinearMargin, OtsuGrouper
from adaptive_margin.choices import CriticName, GroupingName
from adaptive_margin.emotion.critics import (
    RATIO_RIDGE,
    STRONG,
    WEAK,
    ContrastiveObjective,
    Critic,
    FisherObjective,
    Objective,
    RatioObjective,
    SphereObjective,
    build_critic,
    build_grouper,
    build_margin,
    density_ratio,
    gaussian_kernel,
    pole_distance,
    squared_mean_discrepancy,
)
from adaptive_margin.functional import vdm_contrastive_loss
from adaptive_margin.functional.contrastive import fisher_ascent, fisher_constraint

OBJECTIVES = {
    "caf": lambda: ContrastiveObjective(ConstantMargin(1.5)),
    "fisher": FisherObjective,
    "sphere": SphereObjective,
    "gramnet": RatioObjective,
}


def _batch(outputs: int, rows: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, outputs, generator=generator, dtype=torch.float64)
    groups = torch.arange(rows) % 2
    groups[-1] = -1  # of neither group
    return z, groups


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_fisher_by_hand() -> None:
    fisher = FisherObjective(penalty=0.5)
    z, groups = torch.tensor([[2.0], [4.0], [1.0]]), torch.tensor([1, 1, 0])
    # means 3 and 1; Ω = ½ · 10 + ½ · 1 = 5.5, so -2 + 0 · 4.5 + ½ · 0.5 · 4.5²
    assert_close(fisher.critic_loss(z, groups), torch.tensor(-2 + 0.25 * 20.25))
    assert_close(float(fisher.multiplier), 0.01)  # neither ρ nor the gap lengthens its step
    assert_close(fisher.critic_loss(z, groups), torch.tensor(-2 + 0.01 * 4.5 + 0.25 * 20.25))
    assert fisher.statistics() == {"omega": 5.5, "multiplier": pytest.approx(0.02)}
    assert_close(fisher.adversarial_loss(z[2:], z[:2]), torch.tensor(-1.0))


def test_the_multiplier_moves_in_training_only() -> None:
    fisher = FisherObjective().eval()
    z, groups = torch.tensor([[2.0], [1.0]]), torch.tensor([1, 0])
    fisher.critic_loss(z, groups)
    fisher.train()
    with torch.no_grad():
        fisher.critic_loss(z, groups)
    assert float(fisher.multiplier) == 0.0


@pytest.mark.parametrize("rate", [5e-4, 2e-3])
def test_omega_stays_near_one(rate: float) -> None:
    torch.manual_seed(0)
    fisher, network = FisherObjective(), nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(network.parameters(), rate, betas=(0.5, 0.9))
    omegas = []
    for _ in range(500):
        x = torch.randn(64, 8)
        groups = ((x[:, :2].norm(dim=1) > 1.2) ^ (torch.rand(64) < 0.1)).long()
        optimizer.zero_grad()
        fisher.critic_loss(network(x), groups).backward()
        optimizer.step()
        omegas.append(fisher.statistics()["omega"])
    omega = torch.tensor(omegas[-200:])
    assert ((omega > 0.5) & (omega < 2)).double().mean() > 0.85  # a mean of 1 hides a cycle


def test_omega_stays_near_one_while_the_critic_learns() -> None:
    torch.manual_seed(0)
    fisher, network = FisherObjective(), nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    x = torch.randn(64, 3)
    x[32:, 0] += 1.5
    groups = torch.arange(64) // 32
    for _ in range(400):
        optimizer.zero_grad()
        fisher.critic_loss(network(x), groups).backward()
        optimizer.step()
    assert 0.9 < fisher.statistics()["omega"] < 1.1
    with torch.no_grad():
        z = network(x)
    assert float(z[32:].mean() - z[:32].mean()) > 1.0


def test_the_constraint_and_its_ascent_are_those_of_the_contrastive_loss() -> None:
    gap = torch.linspace(-1, 30, 7)
    for penalty in (0.0, 1e-6, 10.0):
        fisher = FisherObjective(penalty)
        for g in gap.tolist():
            z, groups = torch.full((2, 1), (1 + g) ** 0.5), torch.tensor([STRONG, WEAK])  # equal means, Ω - 1 = g
            before = fisher.multiplier.clone()
            assert_close(fisher.critic_loss(z, groups), fisher_constraint(torch.tensor(g), before, penalty))
            assert_close(fisher.multiplier - before, fisher_ascent(torch.tensor(g), penalty), atol=1e-6, rtol=1e-4)


def test_sphere_by_hand() -> None:
    # |p| = 0, 1, √3: 2·atan(1/|p|) = π, π/2, π/3, which is also arccos((|p|² − 1)/(|p|² + 1))
    z = torch.tensor([[0.0, 0.0], [0.6, 0.8], [math.sqrt(3), 0.0]], dtype=torch.float64)
    angles = torch.tensor([math.pi, math.pi / 2, math.pi / 3], dtype=torch.float64)
    assert_close(pole_distance(z), angles)
    squares = z.square().sum(dim=1)
    assert_close(pole_distance(z), torch.arccos((squares - 1) / (squares + 1)))
    sphere = SphereObjective(moments=2)
    groups = torch.tensor([1, 0, 0])
    weak = (math.pi / 2 + math.pi / 3) / 2 + (math.pi**2 / 4 + math.pi**2 / 9) / 2
    expected = torch.tensor(weak - math.pi - math.pi**2, dtype=torch.float64)
    assert_close(sphere.critic_loss(z, groups), expected)
    assert_close(sphere.adversarial_loss(z[1:], z[:1]), torch.tensor(-weak, dtype=torch.float64))


def test_the_projection_is_on_the_sphere_and_its_distance_is_geodesic() -> None:
    z = torch.randn(20, 5, dtype=torch.float64)
    squares = z.square().sum(dim=1, keepdim=True)
    points = torch.cat([2 * z, squares - 1], dim=1) / (squares + 1)
    assert_close(points.norm(dim=1), torch.ones(20, dtype=torch.float64))
    assert_close(pole_distance(z), torch.arccos(points[:, -1]))


def test_ratio_by_hand() -> None:
    # two weak points at 0 and 1, one strong at 0: squared distances 0, 1, 0 / 1, 0, 1 / 0, 1, 0 (median 0: σ = 1)
    strong, weak = torch.tensor([[0.0]]).double(), torch.tensor([[0.0], [1.0]]).double()
    e = math.exp(-0.5)
    kernel = torch.tensor([[1 + RATIO_RIDGE, e], [e, 1 + RATIO_RIDGE]], dtype=torch.float64)
    expected = 2 * torch.linalg.inv(kernel) @ torch.tensor([1.0, e], dtype=torch.float64)
    assert_close(density_ratio(strong, weak), expected)
    loss = RatioObjective().critic_loss(torch.cat([strong, weak]), torch.tensor([1, 0, 0]))
    assert_close(loss, -((expected - 1).square() + expected).mean())
    # MMD²: 1 − 2 · (1 + e)/2 + (2 + 2e)/4
    assert_close(squared_mean_discrepancy(strong, weak), torch.tensor(0.5 - 0.5 * e, dtype=torch.float64))


def test_the_bandwidth_is_the_median_of_the_distances() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0]])  # squared: three 0, two 1, two 4, two 9; the middle of nine is 1
    assert_close(gaussian_kernel(x)[0], torch.exp(-torch.tensor([0.0, 1.0, 9.0]) / 2))


def test_the_ratio_of_separate_groups_is_larger_than_of_mixed_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    strong, weak = (torch.randn(40, 2, generator=generator) for _ in range(2))
    objective, groups = RatioObjective(), torch.arange(80) // 40
    mixed = objective.critic_loss(torch.cat([weak, strong]), groups)
    apart = objective.critic_loss(torch.cat([weak, strong + 1.5]), groups)
    assert apart < mixed
    assert objective.adversarial_loss(weak, strong + 1.5) > objective.adversarial_loss(weak, strong) > 0


def test_caf_is_the_papers_loss_and_the_mean_output() -> None:
    z, groups = _batch(4)
    caf = ContrastiveObjective(ConstantMargin(1.5), repulsion=0.5)
    expected = vdm_contrastive_loss(z[groups == 1], z[groups == 0], 1.5, repulsion=0.5)
    assert_close(caf.critic_loss(z, groups), expected)
    assert_close(caf.adversarial_loss(z[groups == 0], z[groups == 1]), -z[groups == 0].mean())


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_match_finite_differences(name: str) -> None:
    objective: Objective = OBJECTIVES[name]()
    if isinstance(objective, nn.Module):
        objective.eval()  # a multiplier that moves would make two calls differ
    z, groups = _batch(objective.outputs if objective.outputs == 1 else 3)
    z.requires_grad_()
    if name == "gramnet":  # its bandwidth is a constant of the graph
        z.data[0] = 0.0
        fixed = gaussian_kernel

        def loss(x: Tensor) -> Tensor:
            return objective.critic_loss(x, groups)

        analytic = torch.autograd.grad(loss(z), z)[0]
        step, index = 1e-6, (2, 1)  # moves no median if the middle distance is of other rows
        plus, minus = z.detach().clone(), z.detach().clone()
        plus[index] += step
        minus[index] -= step
        numeric = (loss(plus) - loss(minus)) / (2 * step)
        both = torch.cat([z[groups == 1], z[groups == 0]]).detach()
        median = (both[:, None] - both).square().sum(-1).median()
        moved = torch.cat([plus[groups == 1], plus[groups == 0]])
        assert (moved[:, None] - moved).square().sum(-1).median() == median, fixed
        assert_close(analytic[index], numeric, rtol=1e-5, atol=1e-8)
        return
    assert torch.autograd.gradcheck(lambda x: objective.critic_loss(x, groups), (z,))
    assert torch.autograd.gradcheck(
        lambda x: objective.adversarial_loss(x, z[groups == 1].detach()), (z[:4].detach().requires_grad_(),)
    )


def test_sphere_has_a_finite_gradient_at_the_origin() -> None:
    z = torch.zeros(2, 3, requires_grad=True)
    SphereObjective().critic_loss(z, torch.tensor([1, 0])).backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


# --- empty groups -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 0])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_empty_group_leaves_a_finite_loss_with_a_graph(name: str, group: int) -> None:
    objective: Objective = OBJECTIVES[name]()
    z = torch.randn(4, objective.outputs, requires_grad=True)
    loss = objective.critic_loss(z, torch.full((4,), group))
    loss.backward()
    assert torch.isfinite(loss)
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    nothing = objective.adversarial_loss(z[:0], z)
    assert nothing.requires_grad
    assert nothing.item() == 0.0


# --- building ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", get_args(CriticName))
def test_every_critic_can_be_built_and_trained(name: str) -> None:
    critic = build_critic(name, features=12)  # type: ignore[arg-type]
    if name == "none":
        assert critic is None
        return
    assert critic is not None
    z = critic(torch.randn(10, 12))
    assert z.shape == (10, critic.objective.outputs)
    critic.objective.critic_loss(z, torch.arange(10) % 2).backward()
    assert all(weight.grad is not None for weight in critic.parameters())
    assert all(math.isfinite(value) for value in critic.objective.statistics().values()) or name == "caf"


def test_normalized_outputs_have_length_one_and_a_score_cannot() -> None:
    critic = build_critic("caf", 12, normalize=True)
    assert critic is not None
    assert_close(critic(torch.randn(5, 12)).norm(dim=1), torch.ones(5))
    with pytest.raises(ValueError, match="normalize must be False for a critic with one output"):
        build_critic("fisher", 12, normalize=True)


def test_margins_and_groupings_by_name() -> None:
    assert isinstance(build_margin("adaptive"), AdaptiveMargin)
    constant, linear = build_margin("constant"), build_margin("linear")
    assert isinstance(constant, ConstantMargin)
    assert constant.value == 0.2
    assert isinstance(linear, LinearMargin)
    assert (linear.start, linear.slope) == (0.1, 0.005)
    assert isinstance(build_grouper("otsu"), OtsuGrouper)
    for name in get_args(GroupingName)[1:]:
        grouper = build_grouper(name)  # type: ignore[arg-type]
        assert isinstance(grouper, KMeansGrouper)
        assert grouper.k == int(name[-1])
    for build, argument in ((build_margin, "margin"), (build_grouper, "grouping")):
        with pytest.raises(ValueError, match=f"{argument} must be"):
            build("otsus")  # type: ignore[operator]
    with pytest.raises(ValueError, match="critic must be"):
        build_critic("wgan", 12)  # type: ignore[arg-type]


def test_a_linear_margin_grows_by_the_epoch() -> None:
    critic = build_critic("caf", 12, margin="linear")
    assert isinstance(critic, Critic)
    for _ in range(4):
        critic.step_epoch()
    assert critic.objective.statistics() == {"alpha": pytest.approx(0.12)}


def test_an_adaptive_margin_is_recorded_when_asked_for() -> None:
    critic = build_critic("caf", 12)
    assert critic is not None
    z, groups = critic(torch.randn(10, 12)), torch.arange(10) % 2
    critic.objective.critic_loss(z, groups)
    assert critic.objective.statistics() == {}
    critic.collect(True)
    critic.objective.critic_loss(z, groups)
    found = critic.objective.statistics()
    assert found["alpha"] == pytest.approx(found["mi"] + found["delta"])
    assert found["delta"] > 0
