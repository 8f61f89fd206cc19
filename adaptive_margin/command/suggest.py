"""``adaptive-margin suggest EMBEDDINGS [LABELS]``: which margin suits embeddings."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..atomic import write_atomically
from ..messages import printable, problem, require_extra
from ..training.command_line import Positional, arg, check_output, json_with, read


@dataclass(frozen=True, kw_only=True)
class Suggest:
    """Measures embeddings, and says which margin each strategy would give to each loss and what it would keep active.

    Attributes:
        embeddings: a file (.npy, .npz, .pt, .csv or .parquet) with a row per sample.
        labels: a file of their labels, where they are not in the same file.
        loss: the loss in use, by its name in pytorch-metric-learning.
        margin: its margin, to be compared with the others; by default the loss's own.
        batch_size: rows of a batch in training.
        samples_per_class: rows of a class in a batch.
        batches: number of batches to look at.
        seed: of everything that is drawn.
        html: also write a page with pictures to this file.
        json: also write the figures to this file; - prints them, and nothing else.
        overwrite: replace a file at --html that is no earlier report, or at --json that is no earlier figures.
    """

    embeddings: Annotated[Path, Positional, arg(metavar="EMBEDDINGS")]
    labels: Annotated[Path | None, Positional, arg(metavar="LABELS")] = None
    loss: Annotated[str | None, arg(metavar="NAME")] = None
    margin: Annotated[float | None, arg(metavar="NUMBER")] = None
    batch_size: int = 128
    samples_per_class: int = 4
    batches: int = 16
    seed: int = 0
    html: Annotated[Path | None, arg(metavar="FILE")] = None
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.margin is not None and self.loss is None:
            raise ValueError(
                problem("--loss", "given with --margin", "nothing", "name it, as in --loss ContrastiveLoss")
            )


def main(words: Sequence[str], prog: str) -> int:
    """Measures embeddings with these options; returns 0."""
    options = read(Suggest, argv=words, prog=prog)
    only_json = options.json == Path("-")
    inputs = [path for path in (options.embeddings, options.labels) if path is not None]
    if options.html is not None:
        check_output("--html", options.html, file=True, reads=inputs)
    if options.json is not None and not only_json:
        earlier = json_with("rows", "strategies", "losses")
        overwrite = options.overwrite
        check_output("--json", options.json, file=True, reads=inputs, replaces=earlier, overwrite=overwrite)
        if options.html is not None and options.json.resolve() == options.html.resolve():
            raise ValueError(problem("--json and --html", "two files", options.json, "pass another name for one"))

    from ..suggestion import read_embeddings, suggest

    if options.html is not None:
        require_extra("adaptive-margin suggest --html", "dml", "PIL", "jinja2", "matplotlib")
        from ..reports._page import check_page
        from ..suggestion.page import write_suggestion

        check_page(options.html, options.overwrite, flag="--html")
    found = suggest(
        *read_embeddings(options.embeddings, options.labels),
        loss=options.loss,
        margin=options.margin,
        batch_size=options.batch_size,
        samples_per_class=options.samples_per_class,
        batches=options.batches,
        seed=options.seed,
    )
    figures = json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n"
    print(figures if only_json else f"{found}\n", end="")
    if options.json is not None and not only_json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.json, figures.encode())
        print(f"wrote {printable(str(options.json))}")
    if options.html is not None:
        write_suggestion(found, options.html, options.embeddings.name)
        print(f"wrote {printable(str(options.html))}", file=sys.stderr if only_json else None)
    return 0
