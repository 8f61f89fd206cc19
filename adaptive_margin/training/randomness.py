"""Sets seeds, and stores and restores the states of all random generators."""

from __future__ import annotations

import os
import random
import warnings
from typing import Any

import numpy as np
import torch

from ..messages import problem

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def seed_everything(seed: int, *, rank: int = 0, deterministic: bool = False) -> None:
    """Seeds Python, NumPy and PyTorch (CPU and all CUDA devices), with a separate stream for each rank.

    The numbers follow from (seed, rank) through NumPy's ``SeedSequence``, so rank 1 of seed 0 shares nothing with rank
    0 of seed 1. Anything that must be the same on all ranks, such as the order of the data, needs a separate generator.

    Args:
        seed: at least 0.
        rank: which process this is.
        deterministic: make runs repeatable bit for bit on the same machine with the same versions: PyTorch's
            deterministic algorithms (an operation without one raises an error), cuDNN without its search for the
            fastest algorithm, and cuBLAS with a workspace of fixed size, which must be set before the process first
            uses it. This is slower on CUDA; on the CPU results are repeatable anyway for a given number of threads.
            False does not change these settings.

    Warns:
        UserWarning: the deterministic mode comes too late for cuBLAS.

    Example:
        >>> seed_everything(7)
        >>> first = torch.rand(3)
        >>> seed_everything(7)
        >>> torch.equal(torch.rand(3), first)
        True
    """
    if seed < 0 or rank < 0:
        raise ValueError(problem("seed and rank", "at least 0", (seed, rank), "count from 0"))
    words = np.random.SeedSequence([seed, rank]).generate_state(4, np.uint32).tolist()
    random.seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002 - the host samples with the global generator
    torch.manual_seed(words[2] << 31 | words[3] >> 1)  # all devices
    if deterministic:
        if WORKSPACE not in os.environ:
            os.environ[WORKSPACE] = ":4096:8"
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                late = f"set {WORKSPACE}=:4096:8 in the environment: CUDA is in use already"
                warnings.warn(f"cuBLAS may not be deterministic; {late}", stacklevel=2)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True)


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's global generators, as tensors and plain types.

    Example:
        >>> states = random_states()
        >>> first = torch.rand(3), np.random.rand(), random.random()
        >>> restore_random_states(states)
        >>> torch.equal(torch.rand(3), first[0]), np.random.rand() == first[1], random.random() == first[2]
        (True, True, True)
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": (version, torch.tensor(words, dtype=torch.int64), gauss),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Restores the states from :func:`random_states`; for CUDA devices, as many as exist both then and now."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if torch.cuda.is_available():
        for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
            torch.cuda.set_rng_state(state.cpu(), device)
