"""Small run folders as a benchmark leaves them, from made-up predictions."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import torch

from adaptive_margin.emotion.evaluation import Evaluation, evaluate, write_evaluation
from adaptive_margin.faces import draw_faces, sample_identities
from adaptive_margin.metrics import affect_breakdown
from adaptive_margin.training.run_folder import RunFolder
from adaptive_margin.training.world import World

PEOPLE, EACH = 6, 5


class Recorded(torch.nn.Module):
    """A network whose features are its images, of shape (B, F), and whose predictions are the first two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Flatten()

    def regressor(self, features: torch.Tensor) -> torch.Tensor:
        return features[:, :2]


def evaluation(seed: int, error: float, identity: float, videos: bool = False) -> Evaluation:
    """Predictions off by ``error``, features that tell people apart by ``identity``."""
    random = np.random.default_rng(seed)
    person = np.repeat(np.arange(PEOPLE), EACH)
    truth = np.random.default_rng(9).uniform(-0.7, 0.7, (len(person), 2)).astype(np.float32)
    prediction = truth + random.normal(0, error, truth.shape)
    features = np.concatenate([prediction, random.normal(0, 1, (len(person), 4)) + identity * person[:, None]], axis=1)
    batch = (torch.from_numpy(features).float(), torch.from_numpy(truth), torch.arange(len(person)))
    names = [f"film <{p}>" for p in person] if videos else None
    frames = np.tile(np.arange(EACH), PEOPLE) if videos else None
    return evaluate(Recorded(), [batch], people=person, videos=names, frames=frames, resamples=20)


@functools.cache
def picture(row: int) -> np.ndarray:
    people = sample_identities(PEOPLE, seed=2).take([row % PEOPLE])
    return draw_faces(people, [0.5], [0.2], size=48, nuisance_seeds=[row])[0]


def write_run(folder: Path, arm: str, seed: int, *, critic: str, margin: str = "adaptive", error: float = 0.2) -> Path:
    """A run folder with all of its files."""
    place = folder / "runs" / arm / f"seed{seed}"
    config = {
        "dataset": "faces",
        "encoder": "small",
        "critic": critic,
        "margin": margin,
        "iterations": 60,
        "seed": seed,
        "regression_adam": {"lr": 0.001},
        "note": "<b>not markup</b> & more",
    }
    with RunFolder(place, config, world=World()) as run:
        for step in range(10, 70, 10):
            values = {"loss/regression": 2.0 - step / 60}
            if critic != "none":
                values |= {"loss/critic": 1.0 / step, "loss/adversarial": -step / 600, "groups/strong": 0.6}
            if margin == "adaptive" and critic == "caf":
                values |= {"critic/mi": 6.0 / step, "critic/delta": step / 300, "critic/alpha": 6 / step + step / 300}
            if step % 30 == 0:
                values |= {"val/ccc": step / 100, "val/ccc_valence": 0.0, "val/rmse": 0.4}
            run.log(step, values, seconds=float(step))
    test = evaluation(seed, error, identity=0.0 if critic == "caf" else 2.0, videos=True)
    breakdown = affect_breakdown(test.truth, test.prediction, test.person).to_dict()
    extra = {"arm": arm, "seed": seed, "breakdown": breakdown}
    write_evaluation(place, test, pictures=picture, seen=test, extra=extra)
    return place


def ablation(folder: Path, seeds: int = 2) -> Path:
    """Three arms."""
    for seed in range(seeds):
        write_run(folder, "none", seed, critic="none", error=0.4)
        write_run(folder, "caf", seed, critic="caf", error=0.2)
        write_run(folder, "caf-constant", seed, critic="caf", margin="constant", error=0.3)
    return folder


def forget(place: Path, *names: str) -> None:
    for name in names:
        (place / name).unlink()


def damage(place: Path) -> None:
    (place / "evaluation.npz").write_bytes(b"PK\x03\x04 cut short")
    (place / "environment.json").write_text(json.dumps({"command": ["python"]})[:-3])
