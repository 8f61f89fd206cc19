"""The example that draws Figure 2 trains the critic that the test of Figure 2 trains, and writes what it says."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from tests.margins import test_figure_2

ROOT = Path(__file__).parent.parent
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(ROOT / "examples" / "margin_curve.py"))


def test_it_is_the_curve_that_is_tested(example):
    curve = torch.as_tensor(example["train"](seed=0, steps=20))
    mi, delta = test_figure_2.train(128, 20)
    torch.testing.assert_close(curve[:, 0].float(), mi)
    torch.testing.assert_close(curve[:, 1].float(), delta)
    torch.testing.assert_close(curve[:, 2], curve[:, 0] + curve[:, 1])


def test_it_writes_the_plot_and_the_numbers(example, tmp_path, capsys):
    threads = torch.get_num_threads()
    example["main"](["--steps", "20", "--seeds", "2", "--out", str(tmp_path)])
    torch.set_num_threads(threads)
    numbers = json.loads((tmp_path / "curve.json").read_text())
    assert numbers["columns"] == ["mi", "delta", "alpha"]
    assert len(numbers["mean"]) == 21
    printed = capsys.readouterr().out
    assert f"0    {numbers['mean'][0][0]:7.3f}" in printed
    assert (tmp_path / "margin_curve.png").stat().st_size > 10_000
