"""``python -m tests.emotion.train_tiny FOLDER KEY=VALUE ...``: the run of some seconds, to be killed."""

from __future__ import annotations

import sys
from typing import Any

import torch

from adaptive_margin.emotion.trainer import run

from .cases import tiny


def main(folder: str, *words: str) -> None:
    torch.set_num_threads(1)
    options: dict[str, Any] = dict(word.split("=", 1) for word in words)
    result = run(tiny(output=folder, device="cpu", **{k: type(getattr(tiny(), k))(v) for k, v in options.items()}))
    if result.result:
        print(f"resumed from {result.summary.resumed_from}")


if __name__ == "__main__":
    main(*sys.argv[1:])
