"""The Triton kernel: values, gradients and counts of the torch tiles, in its interpreter and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from adaptive_margin.functional import pair_terms, pair_tiles

pytest.importorskip("triton", reason="Triton comes with PyTorch's CUDA builds")

LABELS = {"two groups": lambda n: torch.arange(n) % 2, "classes": lambda n: torch.arange(n) // 4}
SHAPES = [(65, 63, 5), (130, 1, 20), (7, 70, 130)]  # rows (the last tile of one row), references, features


def compare(device: str) -> None:
    """Asserts that the kernel runs, and gives what the tiles give."""
    from adaptive_margin.functional import pair_tiles_triton

    pair_tiles.SMALL = 0
    calls, hinge_rows = [], pair_tiles_triton.hinge_rows

    def counted(*arguments: object) -> object:
        calls.append(arguments[-1])
        return hinge_rows(*arguments)  # type: ignore[arg-type]

    pair_tiles_triton.hinge_rows = counted  # type: ignore[assignment]
    torch.manual_seed(0)
    for name, label in LABELS.items():
        for rows, references, features in SHAPES:
            x = (torch.randn(rows, features) / features**0.5).to(device).requires_grad_()
            y = (torch.randn(references, features) / features**0.5).to(device).requires_grad_()
            labels, ref_labels = label(rows).to(device), label(references).to(device)
            labels[0] = -1
            for margin in (torch.tensor(1.9), 3 * torch.rand(rows)):
                for reference in ({}, {"ref_emb": y, "ref_labels": ref_labels}):
                    results = []
                    for switch in (False, True):
                        pair_tiles.TRITON = switch
                        m = margin.to(device).detach().requires_grad_()
                        leaves = [x, m, *([y] if reference else [])]
                        terms = pair_terms(x, labels, m, ignore_label=-1, **reference)  # type: ignore[arg-type]
                        gradients = torch.autograd.grad(terms.attraction + 2 * terms.repulsion, leaves)
                        results.append([terms.repulsion.detach(), terms.counts, *gradients])
                    what = f"{name}, {rows} × {references}, {features} features, margin {tuple(margin.shape)}"
                    for torchs, tritons in zip(*results, strict=True):
                        assert_close(
                            tritons, torchs, rtol=2e-5, atol=2e-6, msg=lambda text, what=what: f"{what}: {text}"
                        )
    assert set(calls) == {"batch", "row", "column"}


@pytest.mark.slow
def test_interpreted_it_is_the_tiles() -> None:
    run = "from tests.functional.test_pair_tiles_triton import compare; compare('cpu')"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", run], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.cuda
def test_on_a_gpu_it_is_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SMALL", "TRITON"):
        monkeypatch.setattr(pair_tiles, name, getattr(pair_tiles, name))  # put back afterwards
    compare("cuda")


@pytest.mark.parametrize(
    ("options", "dtype"),
    [({"distance": "l2"}, torch.float32), ({"second_moment": True}, torch.float32), ({}, torch.float64)],
)
def test_where_it_does_not_serve_the_tiles_do(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(pair_tiles, "SMALL", 0)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, labels = torch.randn(30, 4, dtype=dtype), torch.arange(30) % 2
    expected = pair_terms(x, labels, 2.0, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(pair_tiles, "TRITON", True)
    for ours, tiles in zip(pair_terms(x, labels, 2.0, **options), expected, strict=True):  # type: ignore[arg-type]
        assert torch.equal(ours, tiles)


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False)])
def test_the_environment_switches_it_on(value: str, on: bool) -> None:
    show = "from adaptive_margin.functional import pair_tiles; print(pair_tiles.TRITON)"
    environment = {**os.environ, "ADAPTIVE_MARGIN_TRITON": value}
    done = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(on)
