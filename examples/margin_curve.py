"""MI, Δ and α̂ over the training of a small critic: Figure 2 of Kim & Song 2021, measured.

This is the critic of the documentation's page on the margin. A network 32 → 64 → 32 → 16 with normalised output learns
to tell strong from weak inputs, N = 128 per step, with the loss of Eq. (7) and the margin of the batch. The inputs
represent an encoder's features: magnitudes of random mixtures of eight latent factors, whose length is the intensity.
The stronger half of a batch is labelled "strong". ``tests/margins/test_figure_2.py`` trains the same critic.

    python examples/margin_curve.py [--steps 1500] [--seeds 5] [--out runs/margin_curve]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/margin_curve"))
    options = parser.parse_args(argv)
    for name, least, most in (("steps", 1, 10**5), ("seeds", 1, 10**3)):
        if not least <= getattr(options, name) <= most:
            parser.error(f"--{name} must be from {least} to {most}, got {getattr(options, name)}")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out must be a folder, got the file {options.out}")
    return options


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptive_margin import AdaptiveMargin

SHOWN = (0, 20, 50, 100, 500, 1500)


def train(seed: int, steps: int, batch: int = 128) -> np.ndarray:
    """MI, Δ and α̂ before each step, shape (steps + 1, 3)."""
    torch.manual_seed(seed)
    critic = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
    mixture = torch.randn(8, 32) / 8**0.5
    margin = AdaptiveMargin(collect_stats=True)
    curve = []
    for _ in range(steps + 1):
        factors = torch.randn(batch, 8)
        intensity = factors.norm(dim=1)
        is_strong = intensity > intensity.median()
        embeddings = functional.normalize(critic((factors @ mixture).abs()))
        alpha = margin(embeddings, is_strong.long())
        curve.append((margin.mi, margin.delta, margin.alpha))
        loss = contrastive(embeddings[is_strong], embeddings[~is_strong], alpha)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return np.array(curve)


def contrastive(strong: Tensor, weak: Tensor, alpha: Tensor) -> Tensor:
    """Strong pairs together, strong and weak a squared distance of α̂ apart: Eq. (7), over its active pairs."""
    pull = functional.pdist(strong).square().mean()
    push = functional.relu(alpha - torch.cdist(strong, weak).square())
    return pull + push.sum() / (push > 0).sum().clamp(min=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the curve at a few steps; writes it and its plot."""
    options = parsed(argv)
    torch.set_num_threads(1)
    curves = np.stack([train(seed, options.steps) for seed in range(options.seeds)])  # (seeds, steps + 1, 3)
    mean = curves.mean(0)
    print(f"mean of {options.seeds} seeds\nstep     MI      Δ      α̂")
    for step in (s for s in SHOWN if s <= options.steps):
        print(f"{step:<5}" + "".join(f"{x:7.3f}" for x in mean[step]))
    options.out.mkdir(parents=True, exist_ok=True)
    numbers = {"torch": torch.__version__, "columns": ["mi", "delta", "alpha"], "mean": mean.round(5).tolist()}
    (options.out / "curve.json").write_text(json.dumps(numbers) + "\n", encoding="utf-8")
    plot(curves, options.out / "margin_curve.png")
    print(f"Wrote {options.out}/: margin_curve.png, curve.json.")


def plot(curves: np.ndarray, path: Path) -> None:
    """Mean over seeds, and their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panel = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    steps = np.arange(curves.shape[1]) + 1  # a logarithmic axis has no 0
    for index, label in enumerate(("MI", "Δ", "α̂ = MI + Δ")):
        (line,) = panel.plot(steps, curves[:, :, index].mean(0), label=label, lw=1.4)
        low, high = curves[:, :, index].min(0), curves[:, :, index].max(0)
        panel.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, lw=0)
    panel.axhline(0.2, color="0.6", lw=0.8, ls="--")
    panel.text(1.1, 0.205, "κ = 0.2, the paper's best constant", color="0.4", fontsize=8)  # before Δ gets there
    panel.set(xscale="log", xlabel="step of the critic + 1", ylabel="squared distance")
    panel.set(xlim=(1, steps[-1]), ylim=(0, None))
    panel.legend(frameon=False)
    figure.savefig(path, dpi=160)
    plt.close(figure)


if __name__ == "__main__":
    main()
