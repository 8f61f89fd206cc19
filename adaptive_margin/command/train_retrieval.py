"""``adaptive-margin train-retrieval DATA``: trains one network, measures it, and says how it was chosen."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..dml.config import DATA, DMLConfig, presets_of
from ..messages import nearest, problem
from ..training.command_line import check_output, parse, refuse, said_yes

IN_MEMORY = ("cache", "skip_unreadable", "crop_to_box", "download")
DOES_NOTHING = {
    "folder": ("download",),
    "omniglot": IN_MEMORY,
    "digits": ("root", *IN_MEMORY),
    "fonts": ("root", *IN_MEMORY),
}
"""Options about files that a data set has no use for."""


def main(words: Sequence[str], prog: str) -> int:
    """Trains and measures one network with these options; returns 0."""
    name = words[0] if words else "--help"
    if name in ("--help", "-h"):
        print("\n".join([f"usage: {prog} DATA [OPTIONS]", "", *(f"  {each:10} {what}" for each, what in DATA.items())]))
        print(f"\n{prog} DATA --help lists the options and presets of one.")
        return 0 if words else 2
    if name not in DATA:
        refuse(f"unknown data set {name}; {nearest(name, DATA)}")
    description = f"Deep metric learning on {DATA[name]}. --yes starts what is forecast to take more than a day."
    rest, yes = said_yes(words[1:])
    own = f"{prog} {name}"
    config = parse(DMLConfig, presets_of(name), argv=rest, prog=own, description=description, of_a_run=["out", "data"])
    for option in DOES_NOTHING.get(name, ()):
        if (value := getattr(config, option)) != getattr(DMLConfig, option):
            flag = f"--{option.replace('_', '-')}"
            raise ValueError(problem(flag, f"left alone for {name}, where it does nothing", value, "leave it out"))
    if config.out is not None:
        check_output("--out", config.out)

    from ..dml import datasets, embedded, omniglot, trainer
    from ..dml.results import said
    from ..training.forecast import announce, forecast
    from ..training.world import World, device_of

    device = None if config.device == "auto" else config.device
    device_of(device)  # before anything is fetched or decoded
    if name in ("digits", "fonts"):
        data = embedded.digits() if name == "digits" else embedded.fonts()
    elif name == "folder":
        data = datasets.load_class_folders(required_root(config, datasets.FOLDER_LAYOUT), seed=config.seed)
    elif name == "omniglot":
        data = omniglot.omniglot(required_root(config, omniglot.OMNIGLOT_LAYOUT))
    else:
        root = required_root(config, getattr(datasets, f"{name.upper()}_LAYOUT"))
        if config.download and not datasets.download(name, root) and os.environ.get("RANK", "0") == "0":
            what = f"nothing is downloaded, as {root} is not empty: what is in it is used"
            print(f"{what}; a new folder as --root gets a download", file=sys.stderr)
        data = getattr(datasets, f"load_{name}")(root)
    with World.from_environment(device) as world:
        announce(world.from_main(lambda: forecast([trainer.work(config, data, world.size)])), yes, world)
        result = trainer.run(config, data, world=world)
    if world.is_main:
        print(said(result))
        of_networks = "scalars.csv, checkpoints"
        where = f"; in its folders fold-*: {of_networks}" if "folds" in result else f", {of_networks}"
        print(f"in {result['config']['out']}: result.json{where}")
    return 0


def required_root(config: DMLConfig, layout: str) -> Path:
    """The folder of the data set; if it is not given, a ``ValueError`` that shows the expected layout."""
    if config.root is None:
        raise ValueError(problem("--root", "the folder of the data set", "nothing", f"lay it out as\n{layout}"))
    return config.root
