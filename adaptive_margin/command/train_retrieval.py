"""``adaptive-margin train-retrieval DATA``: trains one network, measures it, and says how it was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..dml.config import PRESETS, SMALL, DMLConfig
from ..messages import nearest, problem
from ..training.command_line import check_output, parse, refuse, said_yes

DATA = {
    "cub": "CUB-200-2011: 100 classes of birds for training, 100 others for the test",
    "cars": "Cars196: 98 car models for training, 98 others for the test",
    "sop": "Stanford Online Products: 11,318 products for training, 11,316 others for the test",
    "folder": "your own images, a folder of class folders; the seed draws half of the classes for the test",
    "omniglot": "handwriting: the characters of half of the alphabets for training, of the other half for the test",
    "digits": "distorted digits in several orientations, no download: 32 classes for training, 18 for the test",
    "fonts": "distorted characters of matplotlib's fonts, no download: 128 classes for training, 127 for the test",
}


def presets_of(name: str) -> Mapping[str, DMLConfig]:
    """The options to begin with, by name; the first is the default."""
    if name == "digits":
        return {"small": replace(SMALL, classes=16, per_class=8)}
    if name in ("omniglot", "fonts"):
        return {"small": SMALL}
    presets = dict(PRESETS)
    # Musgrave et al. 2020 searched beta and its rate for each data set; the margins found: 0.0776 cars, 0.0518 sop
    if name == "cars":
        presets["realitycheck"] = replace(presets["realitycheck"], loss_rate=4.76e-5, beta=0.9598)
    if name == "sop":
        presets["roth2020"] = replace(presets["roth2020"], epochs=100, evaluate_every=5)  # as Roth et al. 2020
        presets["wu2017"] = replace(presets["wu2017"], crop_to_box=False)  # there are no boxes
        presets["realitycheck"] = replace(presets["realitycheck"], loss_rate=7.1e-5, beta=0.8424)
        presets = {each: replace(preset, ks=(1, 10, 100, 1000)) for each, preset in presets.items()}
    return presets


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
    config = parse(DMLConfig, presets_of(name), argv=rest, prog=f"{prog} {name}", description=description)
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
        if config.download:
            datasets.download(name, root)
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
