"""Small networks and data that the tests of the trainer share."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_margin.emotion.config import QUICK, EmotionConfig
from adaptive_margin.emotion.critics import build_critic, build_grouper
from adaptive_margin.emotion.nets import EmotionNet, Encoder, PersonNorm, build_encoder, build_regressor
from adaptive_margin.emotion.steps import Iteration, Optimizers, StepOptions
from adaptive_margin.emotion.terms import build_term
from adaptive_margin.training.world import World, synchronise_batch_norm

ROWS, SIDE = 18, 24
PEOPLE = 6

TINY = dataclasses.replace(
    QUICK,
    people=14,
    images_per_person=6,
    resize=32,
    size=28,
    batch_size=8,
    iterations=10,
    evaluate_every=5,
    checkpoint_every=2,
    log_every=1,
    seed=3,
)
"""A run of some seconds."""


def tiny(**options: Any) -> EmotionConfig:
    drawn = {} if options.get("dataset", "faces") == "faces" else {"people": 240, "images_per_person": 30}
    return dataclasses.replace(TINY, **(drawn | options))


def plain_encoder() -> Encoder:
    """AlexNet's kind, in small: convolutions without batch norm."""
    body = nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
    )
    return Encoder("plain", body, 32)


def faces(rows: int = ROWS, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, 3, SIDE, SIDE, generator=generator, dtype=dtype)
    return images, torch.rand(rows, 2, generator=generator, dtype=dtype) * 1.4 - 0.7


def who(rows: int = ROWS) -> Tensor:
    """The people of a batch, several pictures of each."""
    return torch.arange(rows) % PEOPLE


def iteration(
    critic: str = "caf",
    encoder: str = "small",
    *,
    world: World | None = None,
    shared: bool = False,
    dtype: torch.dtype = torch.float64,
    term: str = "none",
    cross_person: bool = False,
    person_norm: bool = False,
    **options: Any,
) -> Iteration:
    """Networks from one seed, and their optimisers."""
    options.setdefault("weak_batch_norm", "whole")
    world = world or World()
    torch.manual_seed(7)
    body = plain_encoder() if encoder == "plain" else build_encoder(encoder)
    regressor = build_regressor(body.features)
    if person_norm:
        regressor = nn.Sequential(PersonNorm(body.features), *regressor)
    net = EmotionNet(body, regressor).to(dtype)
    synchronise_batch_norm(net, world)
    judge = build_critic(critic, body.features, cross_person=cross_person)  # type: ignore[arg-type]
    added = build_term(term, body.features, PEOPLE)  # type: ignore[arg-type]
    if added is not None:
        added.to(dtype)
    learns = net if added is None else nn.ModuleList([net, added])
    regression = torch.optim.Adam(learns.parameters(), lr=1e-3)
    optimizers = Optimizers(None, None, regression)
    if judge is not None:
        judge.to(dtype)
        adversarial = regression if shared else torch.optim.Adam(net.encoder.parameters(), lr=1e-3)
        optimizers = Optimizers(torch.optim.Adam(judge.parameters(), lr=1e-3), adversarial, regression)
    return Iteration(
        net=net,
        critic=judge,
        grouper=build_grouper("otsu"),
        optimizers=optimizers,
        options=StepOptions(**options),
        world=world,
        term=added,
    )


def state(module: nn.Module | None) -> dict[str, Tensor]:
    """Copies of all weights and buffers."""
    return {} if module is None else {name: value.clone() for name, value in module.state_dict().items()}
