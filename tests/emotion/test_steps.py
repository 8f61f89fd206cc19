"""Algorithm 1: who learns when, from what, and the numbers that come out."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from adaptive_margin.emotion.critics import STRONG, WEAK
from adaptive_margin.emotion.steps import Iteration, frozen, stored_statistics
from adaptive_margin.functional import affect_loss
from adaptive_margin.training import gradient_scaler

from .cases import faces, iteration, state

CRITICS = ("caf", "fisher", "sphere", "gramnet")
ORDERS = ("paper", "joint")


def _step(it: Iteration, order: str, *batch: Tensor, **options: Any) -> dict[str, float]:
    take = it.paper_step if order == "paper" else it.joint_step
    return {name: float(value) for name, value in take(*batch, **options).items()}


class _Watch:
    """Stands before an optimiser and notes, at each of its steps, what changed: parameters of which network."""

    def __init__(self, it: Iteration) -> None:
        self.it, self.changes = it, list[tuple[str, set[str]]]()
        for name in ("critic", "adversarial", "regression"):
            optimizer = getattr(it.optimizers, name)
            optimizer.register_step_pre_hook(lambda *_: self._before())
            optimizer.register_step_post_hook(lambda *_, name=name: self._after(name))

    def _parameters(self) -> dict[str, Tensor]:
        modules: dict[str, Any] = {
            "encoder": self.it.net.encoder,
            "regressor": self.it.net.regressor,
            "critic": self.it.critic,
        }
        return {f"{part}.{n}": p.detach().clone() for part, m in modules.items() for n, p in m.named_parameters()}

    def _before(self) -> None:
        self.was = self._parameters()

    def _after(self, name: str) -> None:
        moved = {n.partition(".")[0] for n, p in self._parameters().items() if not torch.equal(p, self.was[n])}
        self.changes.append((name, moved))


@pytest.mark.parametrize("critic", CRITICS)
def test_the_papers_order_and_who_learns_in_each_update(critic: str) -> None:
    it = iteration(critic)
    watch = _Watch(it)
    it.paper_step(*faces())
    assert watch.changes == [
        ("critic", {"critic"}),
        ("adversarial", {"encoder"}),
        ("regression", {"encoder", "regressor"}),
    ]


@pytest.mark.parametrize("critic", CRITICS)
def test_the_joint_order_has_two_updates(critic: str) -> None:
    it = iteration(critic)
    watch = _Watch(it)
    it.joint_step(*faces())
    assert watch.changes == [("critic", {"critic"}), ("regression", {"encoder", "regressor"})]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("encoder", ["small", "plain"])
def test_a_critic_update_leaves_the_encoder_to_the_bit_and_the_other_way_round(encoder: str, order: str) -> None:
    it = iteration(encoder=encoder)
    noted: dict[str, dict[str, Tensor]] = {}
    assert it.optimizers.critic is not None
    it.optimizers.critic.register_step_pre_hook(lambda *_: noted.update(net=state(it.net)))
    after_critic = lambda *_: noted.update(net_after=state(it.net), critic_after=state(it.critic))  # noqa: E731
    it.optimizers.critic.register_step_post_hook(after_critic)
    _step(it, order, *faces())
    assert all(torch.equal(value, noted["net_after"][name]) for name, value in noted["net"].items())
    assert all(torch.equal(value, noted["critic_after"][name]) for name, value in state(it.critic).items())
    assert all(parameter.requires_grad for parameter in it.critic.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("order", ORDERS)
def test_without_a_critic_both_orders_are_plain_regression(order: str) -> None:
    it, images, labels = iteration("none"), *faces()
    other = iteration("none")
    for _ in range(3):
        _step(it, order, images, labels)
        other.optimizers.regression.zero_grad()
        affect_loss(labels, other.net(images)).backward()
        other.optimizers.regression.step()
    assert all(torch.equal(value, state(other.net)[name]) for name, value in state(it.net).items())


@pytest.mark.parametrize("order", ORDERS)
def test_before_the_critic_joins_it_is_plain_regression(order: str) -> None:
    it, plain = iteration(), iteration("none")
    for _ in range(2):
        losses = _step(it, order, *faces(), adversarial=False)
        _step(plain, order, *faces())
    assert set(losses) == {"regression"}
    assert all(torch.equal(value, state(plain.net)[name]) for name, value in state(it.net).items())


def test_the_losses_are_those_of_the_paper() -> None:
    it, images, labels = iteration(encoder="plain"), *faces()
    groups = it.grouper(labels)
    assert it.critic is not None
    with torch.no_grad():  # line 6, before anything moves
        critic_loss = it.critic.objective.critic_loss(it.critic(it.net.encoder(images)), groups)
    noted: list[dict[str, Tensor]] = []
    assert it.optimizers.critic is not None
    assert it.optimizers.adversarial is not None
    it.optimizers.critic.register_step_post_hook(lambda *_: noted.append(state(it.critic)))
    it.optimizers.adversarial.register_step_pre_hook(lambda *_: noted.append(state(it.net)))
    it.optimizers.adversarial.register_step_post_hook(lambda *_: noted.append(state(it.net)))
    losses = _step(it, "paper", images, labels)
    critic_after, net_before, net_after = noted
    assert losses["critic"] == pytest.approx(float(critic_loss))
    assert losses["strong"] == pytest.approx(float((groups == STRONG).double().mean()))

    other = iteration(encoder="plain")  # line 7: the new critic on the old encoder
    assert other.critic is not None
    other.critic.load_state_dict(critic_after)
    other.net.load_state_dict(net_before)
    with torch.no_grad():
        weak = other.critic(other.net.encoder(images[groups == WEAK]))
    assert losses["adversarial"] == pytest.approx(-float(weak.mean()))

    other.net.load_state_dict(net_after)  # line 8: the encoder that line 7 left
    with torch.no_grad():
        assert losses["regression"] == pytest.approx(float(affect_loss(labels, other.net(images))))


@pytest.mark.parametrize("mode", ["whole", "weak", "running"])
def test_without_batch_norm_the_ways_to_normalise_weak_images_agree(mode: str) -> None:
    it, reference = iteration(encoder="plain", weak_batch_norm=mode), iteration(encoder="plain")
    for seed in range(3):
        found, expected = (_step(each, "paper", *faces(seed=seed)) for each in (it, reference))
        assert found == pytest.approx(expected, rel=1e-9)


def _running(it: Iteration) -> Tensor:
    return torch.cat([m.running_mean for m in it.net.modules() if isinstance(m, nn.BatchNorm2d)])  # type: ignore[misc]


def test_what_batch_norm_remembers_of_weak_images() -> None:
    seen: dict[str, Tensor] = {}
    for mode in ("whole", "weak", "running"):
        it = iteration(weak_batch_norm=mode)
        assert it.optimizers.adversarial is not None
        it.optimizers.adversarial.register_step_pre_hook(lambda *_, it=it, mode=mode: seen.update({mode: _running(it)}))
        _step(it, "paper", *faces())
    assert torch.equal(seen["whole"], seen["running"])  # one pass over all images, whose mean is remembered
    assert not torch.allclose(seen["weak"], seen["whole"])  # and a second one over the weak


def test_the_whole_batch_is_encoded_once_for_lines_5_and_7() -> None:
    for mode, passes in (("whole", 2), ("weak", 3), ("running", 3)):
        it = iteration(weak_batch_norm=mode)
        calls: list[int] = []
        it.net.encoder.register_forward_hook(lambda _, inputs, __, calls=calls: calls.append(len(inputs[0])))
        _step(it, "paper", *faces())
        assert len(calls) == passes
    it = iteration()
    it.net.encoder.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    calls.clear()
    _step(it, "joint", *faces())
    assert len(calls) == 1


def test_the_weight_of_the_adversarial_loss_counts_in_the_joint_order_only() -> None:
    """Adam does not see the scale of a loss that has an Adam of its own, but for its epsilon."""
    for order, matters in (("paper", False), ("joint", True)):
        light, heavy = (iteration(encoder="plain", adversarial_weight=weight) for weight in (1.0, 1000.0))
        for seed in range(3):
            _step(light, order, *faces(seed=seed))
            _step(heavy, order, *faces(seed=seed))
        pairs = zip(state(light.net).values(), state(heavy.net).values(), strict=True)
        gap = torch.cat([(a - b).abs().flatten() for a, b in pairs]).mean()
        assert gap > 1e-4 if matters else gap < 1e-6


def test_shared_moments_mix_both_gradients() -> None:
    it = iteration(encoder="plain", shared=True)
    _step(it, "paper", *faces())
    moments = it.optimizers.regression.state
    steps = {name: int(moments[p]["step"]) for name, p in it.net.named_parameters()}
    assert {steps[name] for name in steps if name.startswith("encoder")} == {2}
    assert {steps[name] for name in steps if name.startswith("regressor")} == {1}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("critic", CRITICS)
def test_a_batch_of_equal_labels_trains_on(critic: str, order: str) -> None:
    it, (images, _) = iteration(critic), faces()
    losses = _step(it, order, images, torch.full((len(images), 2), 0.5, dtype=images.dtype))
    assert all(torch.isfinite(torch.tensor(value)) for value in losses.values())
    assert all(torch.isfinite(value).all() for value in state(it.net).values())


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_are_clipped(order: str) -> None:
    it = iteration(clip_norm=1e-3)
    norms = _gradient_norms(it)
    _step(it, order, *faces())
    assert len(norms) == (3 if order == "paper" else 2)
    assert all(norm <= 1e-3 * (1 + 1e-6) for norm in norms)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("order", ORDERS)
def test_mixed_precision_is_near_full_precision(order: str, precision: str) -> None:
    half, full = (iteration(precision=name, dtype=torch.float32) for name in (precision, "float32"))
    half.scaler = gradient_scaler(torch.device("cpu"), precision)  # type: ignore[arg-type]
    if half.scaler is not None:
        half.scaler.load_state_dict(half.scaler.state_dict() | {"scale": 2.0**10})  # the first scale overflows here
    batch = faces(dtype=torch.float32)
    half_norms, norms = (_gradient_norms(each) for each in (half, full))
    found, expected = (_step(each, order, *batch) for each in (half, full))
    assert found == pytest.approx(expected, abs=0.05)
    assert half_norms == pytest.approx(norms, rel=0.1)  # the critic's, the encoder's, all: nobody's is left scaled
    assert all(value.dtype == torch.float32 for value in state(half.net).values() if value.is_floating_point())
    if half.scaler is not None:
        assert half.scaler.get_scale() == 2.0**10  # no update overflowed and was left out


def _gradient_norms(it: Iteration) -> list[float]:
    """A list that takes the norm of the gradients at each update to come."""
    norms: list[float] = []

    def note(optimizer: Any, *_: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat([g.flatten() for g in grads]).norm()))

    for optimizer in {it.optimizers.critic, it.optimizers.adversarial, it.optimizers.regression}:
        optimizer.register_step_pre_hook(note)
    return norms


RECORDED = {
    ("caf", "paper"): [
        [1.711653, 0.636509, 0.007454],
        [1.806155, 0.555424, -0.022623],
        [1.712747, 0.743053, -0.029838],
        [1.92115, 0.93919, -0.061763],
    ],
    ("caf", "joint"): [
        [1.747279, 0.636509, 0.007454],
        [1.892741, 0.554714, -0.011816],
        [1.71393, 0.800407, -0.006547],
        [1.884877, 1.033779, -0.018668],
    ],
    ("fisher", "paper"): [
        [1.706137, 0.508965, -0.116328],
        [1.800594, 0.474383, -0.31238],
        [1.595568, 0.31103, -0.600327],
        [1.880367, 0.09823, -0.852896],
    ],
    ("sphere", "paper"): [
        [1.794472, 0.196015, -12.867692],
        [1.946719, 1.128727, -13.803604],
        [1.856785, 0.340698, -13.959644],
        [2.060873, 0.739914, -14.860057],
    ],
    ("gramnet", "paper"): [
        [1.839573, -1.089739, 0.354963],
        [1.921507, -1.175201, 0.366402],
        [1.727666, -1.311944, 0.18275],
        [1.755299, -1.732771, 0.219309],
    ],
}
"""Regression, critic and adversarial loss of four steps from the seed of cases.py, as they were when first written;
fisher's since its ρ is 1."""


@pytest.mark.parametrize(("critic", "order"), RECORDED)
def test_four_steps_give_the_recorded_losses(critic: str, order: str) -> None:
    it = iteration(critic)
    found = []
    for seed in range(4):
        losses = _step(it, order, *faces(seed=seed))
        found.append([losses[name] for name in ("regression", "critic", "adversarial")])
    assert_close(torch.tensor(found), torch.tensor(RECORDED[critic, order]), rtol=1e-4, atol=1e-5)


def test_frozen_and_stored_statistics_leave_no_trace() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    net[2].bias.requires_grad_(False)
    before = state(net)
    with contextlib.suppress(RuntimeError), frozen(net), stored_statistics(net):
        assert not any(parameter.requires_grad for parameter in net.parameters())
        net(torch.randn(4, 2))
        raise RuntimeError("stop")
    assert [parameter.requires_grad for parameter in net.parameters()] == [True] * 5 + [False]
    assert net[1].training
    assert all(torch.equal(value, before[name]) for name, value in state(net).items())


@pytest.mark.parametrize("encoder", ["small", "resnet18"])  # of resnet18's last features one pixel is left
def test_a_single_weak_image_is_normalised_by_the_running_statistics(encoder: str) -> None:
    images, _ = faces(4)
    labels = torch.tensor([[0.6, 0.6], [0.6, 0.5], [-0.6, 0.6], [0.0, 0.0]], dtype=torch.float64)
    found = [iteration(encoder=encoder, weak_batch_norm=how).paper_step(images, labels) for how in ("weak", "running")]
    assert found[0]["strong"] == 0.75
    assert found[0] == found[1]
