"""``adaptive-margin train-faces``: trains one network; under ``torchrun -m adaptive_margin``, on several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from ..emotion.config import PRESETS, EmotionConfig, preset_for
from ..training.command_line import check_output, parse, refuse, said_yes

DESCRIPTION = "Trains valence and arousal from faces, with the paper's critic or another."
YES = " --yes starts what is forecast to take more than a day."


def main(words: Sequence[str], prog: str) -> int:
    """Trains one network with these options; returns 0."""
    if not words:
        with contextlib.suppress(SystemExit):
            parse(EmotionConfig, PRESETS, argv=["--help"], prog=prog, description=DESCRIPTION)
        refuse("say what to train; --preset quick takes a few seconds, on drawn faces")
    rest, yes = said_yes(words)
    about = DESCRIPTION + YES
    config = parse(
        EmotionConfig, PRESETS, argv=rest, prog=prog, description=about, preset_for=preset_for, of_a_run=["output"]
    )
    check_output("--output", config.output)

    from ..emotion import data, trainer
    from ..training.forecast import Forecast, announce, forecast
    from ..training.world import World

    def expected() -> Forecast:
        trainer.check_before(config, world.size)  # a wrong folder or root is said at once
        data.check_root(config)
        return forecast(trainer.works([config], processes=world.size))

    with World.from_environment(config.device) as world:
        announce(world.from_main(expected), yes, world)
        result = trainer.run(config, world=world)
    if not world.is_main:  # of torchrun's processes, one writes
        return 0
    figures = result.result["test"]["figures"]
    for name in ("rmse", "sagr", "pcc", "ccc"):
        print(f"{name.upper():5}" + "".join(f"  {label} {value:.4f}" for label, value in figures[name].items()))
    print(f"in {result.folder}: model.pt, MODEL_CARD.md, result.json, evaluation.npz, scalars.csv, splits, checkpoints")
    return 0
