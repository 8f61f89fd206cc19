from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "continuous_targets.py"


def test_continuous_targets(capsys):
    example = runpy.run_path(str(EXAMPLE))
    results = example["main"](samples=1500, steps=150, seeds=1)
    assert list(results) == ["no training", "ContrastiveLoss", "TripletMarginLoss", "MultiSimilarityLoss"]
    untrained = results["no training"][0]
    for name in ("ContrastiveLoss", "TripletMarginLoss"):  # the groups taught the wear itself, which no loss ever saw
        assert results[name][0][1] > untrained[1] + 0.05
    printed = capsys.readouterr().out
    assert "threshold of wear 0.4" in printed
    for name, figures in results.items():
        assert f"{name:<22}{f'{figures[0][0]:.3f} ± 0.000':>24}{f'{figures[0][1]:.3f} ± 0.000':>28}" in printed
