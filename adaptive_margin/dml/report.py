"""A self-contained page about many runs: tables, margins, recalls, examples, a map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ..messages import problem
from ..reports import _charts as charts
from ..reports._page import Missing, Section, check_page, picture, write_page
from ..reports._tables import grid, interval, paragraph, row, table, words
from ..stored import DamagedFileError
from .results import (
    Row,
    arms_of,
    caution,
    compare,
    figures,
    losses_of,
    named,
    read_runs,
    standard_pairs,
    weights_of,
)
from .trainer import read_embeddings

METRICS = ("recall_at_1", "mean_average_precision_at_r")
SHOWN = 8
"""Maximum number of lines in one chart."""


def chosen_metrics(rows: Sequence[Row], names: Sequence[str]) -> tuple[str, ...]:
    """The requested test figures, in any case, with the spelling in the rows; a ValueError if no row has one.

    Example:
        >>> chosen_metrics([{"test": {"recall_at_1": 0.5, "NMI": 0.4}}, {"test": None}], ["nmi"])
        ('NMI',)
    """
    known = {name.lower(): name for row in rows for name in row["test"] or ()}
    for name in names:
        if name.lower() not in known:
            expected = f"one of {', '.join(known.values())}"
            raise ValueError(problem("metric", expected, repr(name), "these are what the runs measured"))
    return tuple(known[name.lower()] for name in names)


def write_report(folder: Path, page: Path, metrics: Sequence[str] = METRICS, *, overwrite: bool = False) -> list[Row]:
    """Writes the page of the runs below ``folder``; returns their rows.

    It uses only the content of the run folders: paths in a run's files are not followed. Text from a run never becomes
    markup.

    An earlier report is replaced; any other file only if ``overwrite`` is set. The test figures ``metrics`` get tables.

    Raises:
        ValueError: there are no finished runs, or the file is there and no report.
    """
    check_page(page, overwrite, flag="page")
    problems: list[str] = []
    rows = read_runs(folder, problems)
    sets = list(dict.fromkeys(row["data"] for row in rows if row["test"]))
    if not sets:
        remedy = "finish one without --no-measure first"
        raise ValueError(problem("the folder", "one with runs that measured the test", folder, remedy))
    parts = [
        Section.of(f"figures-{i}", f"Unseen classes: {data}", _figures, rows, data, metrics)
        for i, data in enumerate(sets)
    ]
    parts.append(Section.of("differences", "Paired differences", _differences, rows, metrics))
    for i, data in enumerate(sets):
        parts.append(Section.of(f"curves-{i}", f"Margins and recalls: {data}", _curves, rows, data))
        parts.append(Section.of(f"found-{i}", f"What is found: {data}", _found, rows, data, problems))
    measured = [row for row in rows if row["test"] and row["loss"] != "none"]
    minutes = sum(row.get("seconds") or 0.0 for row in rows) / 60
    seeds = ", ".join(map(str, sorted({row["seed"] for row in measured})))
    facts = [("networks measured", str(len(measured))), ("seeds", seeds), ("minutes", f"{minutes:,.0f}")]
    title = f"Metric learning: fixed and adaptive margins on {', '.join(sets)}"
    write_page(page, title, _lead(measured), parts, facts=facts, problems=problems)
    return rows


def _lead(measured: Sequence[Row]) -> str:
    chosen = sorted({str(row.get("selected_by", "validation")) for row in measured})
    text = f"Networks are chosen by {'; '.join(map(named, chosen))}, and measured once on unseen classes. "
    if any(each.startswith("test") for each in chosen):
        text += "Some were chosen by the test itself: compare those only with papers that did so. "
    return text + "Figures are per cent, mean ± standard deviation over seeds."


def _figures(rows: Sequence[Row], data: str, metrics: Sequence[str]) -> Markup:
    text = Markup("")
    if began := weights_of(rows, data):
        text += paragraph(f"Weights before training: {began}.", "missing")
    for metric in metrics:
        head, lines = figures(rows, data, metric)
        kinds = {name: "aside" if name.startswith("(") else "" for name, *_ in lines}
        text += table(f"{named(metric)}, per cent.", head, [row(name, cells, kinds[name]) for name, *cells in lines])
    return text


def _differences(rows: Sequence[Row], metrics: Sequence[str]) -> Markup:
    text = Markup("")
    head = ["loss", "arm", "against", "difference", "seeds", "verdict", "Holm's p"]
    for metric in metrics:
        made = compare(rows, standard_pairs(rows), metric)
        several = len({data for (data, *_), _ in made}) > 1
        lines = [
            row(
                f"{data}, {loss}" if several else loss,
                [
                    words(arm),
                    words(baseline),
                    interval(each.mean, each.low, each.high, digits=1, sign=True),
                    each.n,
                    words(each.verdict, each.verdict.split()[0]),
                    f"{each.p:.2g}",
                ],
            )
            for (data, loss, arm, baseline), each in made
        ]
        if made:
            about = f"{named(metric)}, points. {caution(len(made))}"
            text += table(about, head, lines, text=("arm", "against", "verdict"))
    if not text:
        raise Missing("No adaptive and fixed margin have two seeds in common.")
    return text


def _curves(rows: Sequence[Row], data: str) -> Markup:
    """The margin over training and Recall@k against k, a chart of each for every loss."""
    margins, recalls = [], []
    colours = dict(zip(arms_of(rows, data), charts.PALETTE * SHOWN, strict=False))
    for loss in losses_of(rows, data):
        over_time: list[tuple[str, str, charts.Seeds]] = []
        by_k: list[tuple[str, str, charts.Seeds]] = []
        ks: list[int] = []
        for arm, colour in list(colours.items())[:SHOWN]:
            of = [r for r in rows if (r["data"], r["loss"], r["arm"]) == (data, loss, arm) and r["test"]]
            logged = [r["curves"]["margin"] for r in of if r["curves"].get("margin")]
            if logged:
                shortest = min(map(len, logged))
                share = [(step + 1) / shortest for step in range(shortest)]
                over_time.append((arm, colour, [(share, curve[:shortest]) for curve in logged]))
            if of:
                ks = sorted(int(name.removeprefix("recall_at_")) for name in of[0]["test"] if "recall_at_" in name)
                by_k.append((arm, colour, [(ks, [100 * r["test"][f"recall_at_{k}"] for k in ks]) for r in of]))
        if over_time:
            alt = f"The margin over training on {data}."
            y, x = "margin, in the loss's own unit", "share of training"
            margins.append(charts.curves(f"{loss}: margin", over_time, y=y, x=x, alt=alt))
        if by_k and ks:
            alt, y = f"Recall at k on {data}.", "Recall@k, per cent"
            recalls.append(charts.curves(f"{loss}: Recall@k", by_k, y=y, x="k", alt=alt, at=ks))
    if not margins + recalls:
        raise Missing("The runs kept neither their margins nor Recall@k.")
    return grid(margins) + grid(recalls)


def _found(rows: Sequence[Row], data: str, problems: list[str]) -> Markup:
    """Queries with their nearest images, and a map, for the networks whose embeddings were kept."""
    kept: list[tuple[Row, dict[str, np.ndarray[Any, Any]]]] = []
    for each in rows:
        if each["data"] == data and each.get("folder") and (Path(each["folder"]) / "embeddings.npz").is_file():
            try:
                kept.append((each, read_embeddings(Path(each["folder"]))))
            except DamagedFileError as error:
                problems.append(str(error))
    if not kept:
        raise Missing("No run kept embeddings that can be read.")
    arms: dict[str, set[str]] = {}
    for each, _ in kept:
        arms.setdefault(each["loss"], set()).add(each["arm"])
    loss = max(arms, key=lambda name: len(arms[name]))
    wanted = ("default", "auto", "remaining", "attainable", "tuned")
    chosen: dict[str, tuple[Row, dict[str, np.ndarray[Any, Any]]]] = {}
    for each, content in sorted(kept, key=lambda item: (*(item[0]["arm"] != arm for arm in wanted), item[0]["seed"])):
        if each["loss"] == loss and len(chosen) < 2:
            chosen.setdefault(each["arm"], (each, content))
    shown, maps = Markup(""), []
    for each, content in chosen.values():
        arm = f"{each['arm']}, seed {each['seed']}"
        shown += Markup("<div><h3>{}</h3>{}</div>").format(arm, _examples(content))
        labels = content["labels"]
        classes = np.unique(labels)
        some = np.isin(labels, classes[:: max(1, len(classes) // 10)][:10])
        points, places = charts.feature_map(content["embeddings"][some])
        alt = f"t-SNE of ten test classes of {data}, seed {each['seed']}."
        maps.append(charts.map_by_group(f"{loss}, {each['arm']}", points, labels[some][places], alt))
    text = f"{loss}, the same queries in each network; the query first, then its nearest images: right, of its class, "
    text += "in green; wrong in dashed red. Below, maps of the embeddings: t-SNE of ten test classes."
    return paragraph(text) + Markup("<div class='found'>{}</div>").format(shown) + grid(maps, "pairs")


def _examples(content: dict[str, np.ndarray[Any, Any]]) -> Markup:
    if "pictures" not in content:
        text = "Without pictures: the run was made before they were kept beside its embeddings."
        return paragraph(text, "missing")
    lines, figure = Markup(""), Markup("<figure class='{0}'>{1}<figcaption>{0}</figcaption></figure>")
    for places, pictures in zip(content["examples"], content["pictures"], strict=True):
        classes = content["labels"][places]
        said = ["query", *("right" if label == classes[0] else "wrong" for label in classes[1:])]
        drawn = (figure.format(word, picture(pixels, word)) for word, pixels in zip(said, pictures, strict=True))
        lines += Markup("<div class='line'>{}</div>").format(Markup("").join(drawn))
    return lines
