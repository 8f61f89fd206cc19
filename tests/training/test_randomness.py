"""Seeds and states of all generators."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from adaptive_margin.training import Checkpoints, random_states, restore_random_states, seed_everything


def draw() -> tuple[float, ...]:
    torch_normal = torch.randn(1)  # a normal number leaves a second one in store
    legacy = np.random.standard_normal(), np.random.rand()  # noqa: NPY002
    return (*torch_normal.tolist(), *legacy, random.gauss(0, 1), random.random(), float(torch.rand(())))


def test_states_through_a_checkpoint(tmp_path: Path) -> None:
    seed_everything(5)
    draw()
    Checkpoints(tmp_path).save(1, random_states())
    first, second = draw(), draw()
    seed_everything(6)
    _, states = Checkpoints(tmp_path).latest() or (0, {})
    restore_random_states(states)
    assert (draw(), draw()) == (first, second)


def test_each_rank_and_seed_has_a_stream_of_its_own() -> None:
    streams = []
    for seed, rank in ((0, 0), (0, 1), (1, 0), (1, 1)):
        seed_everything(seed, rank=rank)
        streams.append(draw())
        seed_everything(seed, rank=rank)
        assert draw() == streams[-1]
    for numbers in zip(*streams, strict=True):
        assert len(set(numbers)) == 4
    with pytest.raises(ValueError, match="at least 0"):
        seed_everything(-1)


@pytest.fixture
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn


@pytest.mark.usefixtures("_settings")
def test_deterministic_mode() -> None:
    seed_everything(0)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    seed_everything(0, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


@pytest.mark.cuda
def test_states_of_a_cuda_device() -> None:
    states = random_states()
    first = torch.rand(3, device="cuda")
    restore_random_states(states)
    assert torch.equal(torch.rand(3, device="cuda"), first)
