"""Shared parts of the recipes in ``benchmarks/``: the location of the data, and the printing of results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from .._text import shorten
from ..messages import counted, problem
from ..training import World
from ..training.forecast import announce, forecast
from .config import DMLConfig
from .labelled_images import LabelledImages
from .results import named
from .trainer import run, work


def required_root(config: DMLConfig, layout: str) -> Path:
    """The folder of the data set.

    Raises:
        ValueError: it is not given; the message shows the expected layout.
    """
    if config.root is None:
        raise ValueError(problem("--root", "the folder of the data set", "nothing", f"lay it out as\n{layout}"))
    return config.root


def train_and_print(config: DMLConfig, data: LabelledImages, *, yes: bool = False) -> dict[str, Any]:
    """Says how long it will take, trains, measures, and prints the result and how the network was selected.

    Raises:
        ValueError: it will take more than a day, and ``yes`` is False. The errors of
            :func:`~adaptive_margin.dml.trainer.run`.
    """
    with World.from_environment(None if config.device == "auto" else config.device) as world:
        announce(world.from_main(lambda: forecast([work(config, data, world.size)])), yes, world)
        result = run(config, data, world=world)
        if world.is_main:
            print(said(result))
    return result


def said(result: Mapping[str, Any]) -> str:
    """A result in words, with the selection of the network and its initial weights.

    Example:
        >>> selected = {"by": "validation/recall_at_1", "step": 40, "score": 0.5}
        >>> print(said({"test": {"recall_at_1": 0.25}, "selected": selected, "weights": "none"}))
        chosen by validation Recall@1 (0.500 after step 40), classes used for neither training nor test
        weights before training: none
        test classes, per cent: Recall@1 25.0
    """
    networks = result.get("folds", [result])
    selected = networks[0]["selected"]
    how = {
        "validation": "classes used for neither training nor test",
        "test": "THE TEST ITSELF: compare only with papers that did the same",
    }.get(selected["by"].split("/")[0], "nothing was chosen")
    if "folds" in result:
        score = "" if selected["score"] is None else f" ({mean(each['selected']['score'] for each in networks):.3f})"
        lines = [f"{len(networks)} folds, each chosen by {named(selected['by'])}{score}, {how}"]
    else:
        score = "" if selected["score"] is None else f"{selected['score']:.3f} "
        lines = [f"chosen by {named(selected['by'])} ({score}after step {selected['step']}), {how}"]
    if unreadable := networks[0].get("data", {}).get("unreadable"):
        lines.append(f"{counted(len(unreadable), 'unreadable image')} left out: {shorten(unreadable)}")
    if weights := networks[0].get("weights"):
        lines.append(f"weights before training: {weights}")
    for key, what in (("test", "test classes"), ("test_concatenated", "concatenated embeddings of all folds")):
        if result.get(key):
            figures = ", ".join(f"{named(name)} {100 * value:.1f}" for name, value in result[key].items())
            lines.append(f"{what}, per cent: {figures}")
    return "\n".join(lines)
