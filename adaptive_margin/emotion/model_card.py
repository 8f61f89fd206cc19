"""The card of a network of valence and arousal: data, split, figures, use, limits, licence of the data, loading."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..messages import counted, printable
from ..metrics.comparison import signed
from ..stored import DamagedFileError, read_json
from ..training.model_card import markdown_table
from .evaluation import read_result
from .model_file import Preprocessing, Source
from .nets import LABELS, EmotionNet
from .runs import plural

PRIVATE = ("root", "cache", "output", "device", "annotations", "same_actor")
"""Options that say something about a machine or its files, or name people: no card and no shared folder has them."""

TRAINING = (
    "iterations",
    "batch_size",
    "critic",
    "margin",
    "term",
    "person_norm",
    "order",
    "keep",
    "seed",
    "split_seed",
)
"""The options that a card shows; the margin is that of the critic ``caf``."""

WEB_FACES = (
    "The data set does not say who is in a picture: the same person may be in training and in the test. ",
    "Signed licence form, through a professor or the head of a laboratory; research only; neither pictures nor labels "
    "may be passed on.",
)
DATA = {
    "faces": (
        "drawn faces",
        "Faces drawn by adaptive-margin: no photographs, and no real people. The labels are what was drawn.",
        "The faces were made by this project's own program: nobody else's licence applies to them.",
    ),
    "affectnet": ("AffectNet (2017)", f"Photographs from the web. {WEB_FACES[0]}", WEB_FACES[1]),
    "affectnet-reduced": (
        "AffectNet (reduced)",
        f"Photographs from the web, cropped by its authors. {WEB_FACES[0]}",
        WEB_FACES[1],
    ),
    "afew-va": (
        "AFEW-VA",
        "Frames of feature films, by actor.",
        "Registration and end user licence agreement with its authors (iBUG); non-commercial research only; the frames "
        "may not be passed on.",
    ),
    "aff-wild": (
        "Aff-Wild",
        "Videos from the web of people who react to something. Videos, not people, are told apart.",
        "By request, with an end user licence agreement with its authors (iBUG); academic use only.",
    ),
    "aff-wild2": (
        "Aff-Wild2",
        "Videos from the web of people who react to something. Source videos, not people, are told apart.",
        "End user licence agreement, signed by an academic in a permanent position; companies ask its authors.",
    ),
}
"""Name, description and licence of the data sets, as far as we know them."""

UNKNOWN = ("unknown data", "The file does not say what the network was trained on.", "Unknown. Ask who trained it.")
AGREEMENT = (
    "This is what we know of it; what you signed decides. Ask the owners of the data before you give weights to others."
)


def facts_of(source: Source) -> dict[str, Any]:
    """What the files of a network, which can be loaded, say about it: see :func:`facts`.

    A run's figures are those of its ``model.pt``: a checkpoint of it gets none.
    """
    content, run = source.content, source.options.parent
    if "facts" in content:  # of a folder for a hub
        return {"config": content.get("config", {}), "versions": content.get("versions", {}), **content["facts"]}
    step = content.get("step")
    result = {} if step is None and source.path != run / "model.pt" else _read(run, read_result)
    if step is not None:
        result = {name: result[name] for name in ("independent",) if name in result}
    rows = _read(run, lambda folder: read_json(folder / "rows.json")) if (run / "rows.json").is_file() else {}
    return facts(source.config(), content.get("versions", {}), rows=rows, result=result, step=step)


def _read(folder: Path, read: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read(folder)
    except (ValueError, OSError) as error:
        why = error.why if isinstance(error, DamagedFileError) else error
        warnings.warn(f"{folder}: {why}; the model card is written without it", stacklevel=2)
        return {}
    return found


def facts(
    config: Mapping[str, Any],
    versions: Mapping[str, Any],
    *,
    rows: Mapping[str, int] | None = None,
    independent: str | None = None,
    result: Mapping[str, Any] | None = None,
    step: int | None = None,
) -> dict[str, Any]:
    """What a card is made of, as plain values; what is not known is None or empty.

    Args:
        config: the options of the training. Those about files and devices are left out.
        versions: of the packages.
        rows: of each part.
        independent: the unit that the parts do not share.
        result: the content of ``result.json``.
        step: of a checkpoint.
    """
    options = {name: value for name, value in config.items() if name not in PRIVATE}
    for name in ("pretrained", "term"):  # may be files
        if options.get(name) is not None:
            options[name] = re.split(r"[\\/]", str(options[name]))[-1]
    result = result or {}
    kept = {name: result[name] for name in ("test", "by_person", "leakage") if name in result}
    return {
        "config": json.loads(json.dumps(options)),
        "versions": dict(versions),
        "rows": dict(rows or {}),
        "independent": result.get("independent", independent),
        "result": json.loads(json.dumps(kept)),
        "step": step,
    }


def model_card(
    net: EmotionNet, preprocessing: Preprocessing, known: Mapping[str, Any], loading: str, *, status: str = ""
) -> str:
    """The card, in Markdown: what the network is, data, split, figures, intended use, limits, licence, loading.

    Args:
        net: encoder and regressor.
        preprocessing: of its input.
        known: of :func:`facts_of`.
        loading: how to load the file, in Markdown.
        status: a sentence before everything else, such as that training is under way.
    """
    config = known["config"]
    name, data, licence = DATA.get(config.get("dataset"), UNKNOWN)
    sections = {
        "Training": _training(known),
        "Data": data + _drawn_how(config),
        "Split": _split(known),
        "Figures": _figures(known),
        "Intended use": (
            "Research: comparing methods, teaching, and describing pictures or videos of people who agreed to it. It "
            "is not made for decisions about people, such as hiring, education, insurance, medicine or policing; in "
            "some places the law forbids inferring emotions at work or in schools."
        ),
        "Limits": _limits(net, known),
        "Licence of the data": _licence(licence, config),
        "Loading it": loading,
    }
    weights = sum(parameter.numel() for parameter in net.parameters())
    what = (
        "From a picture of a face the network predicts valence (unpleasant to pleasant) and arousal (calm to excited), "
        "from −1 to 1 in the labels; predictions are not clipped. "
        f"Encoder `{printable(net.encoder.name)}`, "
        f"{weights:,} parameters. Input: the middle {preprocessing.size} × {preprocessing.size} pixels of a face whose "
        f"shorter side is resized to {preprocessing.resize}, RGB, normalised."
    )
    if net.person_norm is not None:
        what += (
            " Features are centred by person: several pictures of one person can be read by each other "
            "(`adaptive-margin predict --same-person`)."
        )
    title = f"# Valence and arousal of faces: `{printable(net.encoder.name)}`, trained on {name}"
    parts = [title, *([status] if status else []), what]
    return "\n\n".join([*parts, *(f"## {head}\n\n{body}" for head, body in sections.items())]) + "\n"


def python_loading(file: str) -> str:
    """How to load a model file, a checkpoint or a folder of this library."""
    return (
        "With adaptive-margin and its extra `fer`:\n\n"
        f"```\nadaptive-margin predict FACE.jpg --checkpoint {file}\n```\n\n"
        "```python\nfrom adaptive_margin.emotion.predict import load_predictor\n\n"
        f'predictor = load_predictor("{file}")  # crops=True for pictures that are faces already\n'
        "faces = predictor(picture)  # RGB, uint8, (H, W, 3); each face has box, valence and arousal\n```"
    )


def onnx_loading(file: str, net: EmotionNet, size: int) -> str:
    """How to load an ONNX file."""
    alone = " It reads each picture alone, not by other pictures of the person." if net.person_norm else ""
    return (
        f"```python\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession({json.dumps(file)})\n"
        f'(predictions,) = session.run(["valence_arousal"], {{"images": images}})  '
        f"# float32, (N, 3, {size}, {size}) to (N, 2)\n```\n\n"
        "`images` are normalised; size, mean and standard deviation are in the file's metadata under `preprocessing`."
        + alone
    )


def _training(known: Mapping[str, Any]) -> str:
    config, versions = known["config"], known["versions"]
    shown = {name: config[name] for name in TRAINING if name in config}
    if config.get("critic") != "caf":
        shown.pop("margin", None)
    if config.get("pretrained") is not None:
        shown["pretrained"] = config["pretrained"]
    lines = [f"These are the weights after step {known['step']:,}."] if known["step"] is not None else []
    if shown:
        lines.append(markdown_table(["option", ""], ([f"`{k}`", printable(str(v))] for k, v in shown.items())))
    if versions:
        named = (f"{each.replace('_', '-')} {printable(str(version))}" for each, version in versions.items())
        lines.append(f"Versions: {', '.join(named)}.")
    return "\n\n".join(lines) or "Not known: the file does not say."


def _licence(licence: str, config: Mapping[str, Any]) -> str:
    if config.get("dataset") not in (None, "faces"):
        licence += f" {AGREEMENT}"
    if config.get("pretrained") is not None:
        licence += " The weights that training started from, and their data, have licences of their own."
    return licence


def _drawn_how(config: Mapping[str, Any]) -> str:
    if config.get("dataset") != "faces":
        return ""
    if not {"people", "images_per_person"} <= set(config):
        return " The file does not say how many, and how they were drawn."
    turned = "with turned heads, changing light, blur and occlusion" if config.get("disturb") else "undisturbed"
    effect = config.get("person_effect", 1.0)
    return (
        f" {config['people']:,} people, {config['images_per_person']:,} pictures of each, {turned}; `person_effect` "
        f"{effect:g}."
    )


def _split(known: Mapping[str, Any]) -> str:
    rows, unit = known["rows"], known["independent"]
    lines = []
    if rows:
        parts = {"train": "training", "val": "validation", "test": "test"}
        lines.append(markdown_table(["part", "pictures"], ([parts.get(k, k), f"{n:,}"] for k, n in rows.items())))
    if unit == "nothing":
        lines.append(
            "Nearly identical pictures may be in several parts: figures are better than they would be on others."
        )
    elif unit is not None:
        lines.append(f"No {unit} is in two parts.")
    return "\n\n".join(lines) or "Not known: there is no record of it beside the file."


def _figures(known: Mapping[str, Any]) -> str:
    result = known["result"]
    if not result.get("test"):
        return "No test figures belong to these weights."
    test = result["test"]
    alone = [_figure_row(name, of, test["intervals"].get(name)) for name, of in test["figures"].items()]
    of = "" if test["identity"] == "picture" else f" of {test['identities']:,} {plural(test['identity'])}"
    lines = [
        f"On the test part, {counted(test['rows'], 'picture')}{of}, with 95% intervals "
        f"(bootstrap by {test['interval_by']}):",
        markdown_table(["", *LABELS, "mean"], alone),
    ]
    if "by_person" in result:
        together = result["by_person"]["figures"]
        lines += [
            "With features normalised by all test pictures of each person, as `--same-person` does:",
            markdown_table(["", *LABELS, "mean"], [_figure_row(name, of) for name, of in together.items()]),
        ]
    lines.append("CCC, PCC and SAGR: higher is better, at most 1. RMSE: lower is better.")
    return "\n\n".join(lines)


def _figure_row(
    name: str, figures: Mapping[str, float | None], intervals: Mapping[str, Any] | None = None
) -> list[str]:
    """A row of the table; figures that are not defined are dashes."""

    def shown(value: float) -> str:
        return signed(value, 3).lstrip("+")

    cells = []
    for label in (*LABELS, "mean"):
        value, between = figures.get(label), (intervals or {}).get(label)
        cell = "–" if value is None else shown(value)
        if between is not None and None not in between:
            cell += f" [{shown(between[0])}, {shown(between[1])}]"
        cells.append(cell)
    return ["SD of labels" if name == "label_sd" else name.upper(), *cells]


def _limits(net: EmotionNet, known: Mapping[str, Any]) -> str:
    config = known["config"]
    lines = []
    if config.get("dataset") == "faces":
        lines.append("**Not valid for photographs**: it has seen drawn faces only.")
    else:
        lines.append("Labels are what others saw in a face, not what its owner felt.")
    lines.append(
        "Figures hold for pictures like those of the test part, cropped alike. How they differ between groups of "
        "people (age, sex, skin colour, culture) was not measured."
    )
    found = known["result"].get("leakage", {}).get("unseen", {})
    if found.get("map_at_r") is not None:
        lines.append(
            f"Features tell who it is: a search for pictures of a test {known['result']['test']['identity']} has "
            f"MAP@R {found['map_at_r']:.3f}, chance {found['map_at_r_chance']:.3f}."
        )
    if net.person_norm is not None:
        lines.append("One picture of a stranger is normalised by what training remembers of others.")
    return "\n".join(f"- {line}" for line in lines)
