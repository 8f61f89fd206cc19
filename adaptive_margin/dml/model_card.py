"""The card of an embedding network's checkpoints: data, split, figures, use, limits, licence of the data, loading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..messages import printable
from ..training.model_card import UNDER_WAY, markdown_table
from .config import DMLConfig
from .labelled_images import ClassSplit, LabelledImages
from .results import named

RESEARCH = "Non-commercial research and education, as far as we know. Its authors decide."
LICENCES = {
    "cub": RESEARCH,
    "cars": f"Its site is gone; copies circulate. {RESEARCH}",
    "sop": RESEARCH,
    "omniglot": "MIT.",
    "digits": "The digits that come with scikit-learn, distorted.",
    "fonts": "Characters of the fonts that come with matplotlib, distorted.",
}
TRAINING = ("loss", "margin", "backbone", "embedding_size", "epochs", "classes", "per_class", "select", "seed")
LOADING = """With adaptive-margin and its extra `dml`, in the folder of the run:

```python
from pathlib import Path

from adaptive_margin.dml.backbones import build_network
from adaptive_margin.stored import read_tensors

state = read_tensors(Path("checkpoints/CHECKPOINT.pt"))["state"]
network = build_network({options}, weights="none")
network.load_state_dict(state.get("job", state)["network"])  # a best checkpoint holds no more
embeddings = network.eval()(images)  # (N, {channels}, {size}, {size}), {values}
```"""


def model_card(
    config: DMLConfig,
    data: LabelledImages,
    split: ClassSplit,
    *,
    weights: str,
    channels: int,
    result: Mapping[str, Any] | None = None,
) -> str:
    """The card, in Markdown.

    Args:
        config: the options of the run.
        data: the images.
        split: of their classes.
        weights: the weights before training, in words.
        channels: of an image.
        result: the content of ``result.json``; None while training is under way.
    """
    name = printable(data.name)
    status = UNDER_WAY
    figures = "There are no test figures yet."
    if result is not None:
        step, by = result["selected"]["step"], named(result["selected"]["by"])
        status = f"**Training is finished.** The figures are those of the weights after step {step:,} (chosen by {by})."
        figures = "The test classes were not measured."
        if result["test"]:
            rows = ([named(figure), f"{100 * value:.1f}"] for figure, value in result["test"].items())
            figures = f"On the test classes, per cent:\n\n{markdown_table(['', ''], rows)}"
            if config.select == "test":
                figures += (
                    "\n\nThe weights were chosen by these figures, so they are better than they would be on others."
                )
    options = markdown_table(["option", ""], ([f"`{each}`", getattr(config, each)] for each in TRAINING))
    parts = ([part, f"{of['classes']:,}", f"{of['images']:,}"] for part, of in split.describe(data).items())
    names = f"{config.backbone!r}, embedding_size={config.embedding_size}, channels={channels}"
    values = "from −1 to 1" if channels == 1 else "normalised as for ImageNet"
    sections = {
        "Training": f"{options}\n\nWeights before training: {printable(weights)}.",
        "Data": f"`{name}`, {len(data.labels):,} images.",
        "Split": f"{markdown_table(['part', 'classes', 'images'], parts)}\n\nNo class is in two parts.",
        "Figures": figures,
        "Intended use": "Research: retrieval of images of classes that training has not seen, and comparing methods.",
        "Limits": "Figures hold for classes and images like those of the test.",
        "Licence of the data": LICENCES.get(data.name, "Images of your own: it is yours to know."),
        "Loading it": LOADING.format(options=names, channels=channels, size=config.size, values=values),
    }
    head = f"# Embeddings of images: `{config.backbone}`, trained on {name}"
    return "\n\n".join([head, status, *(f"## {each}\n\n{body}" for each, body in sections.items())]) + "\n"
