"""A self-contained page about many runs: tables, margins, recalls, examples, a map."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..atomic import write_atomically
from ..functional.checks import problem
from ..images.image_list import Bytes
from ..stored import GENERATOR, DamagedFileError, check_page
from .results import (
    Row,
    arms_of,
    by_seed,
    caution,
    compare,
    losses_of,
    named,
    read_runs,
    spread,
    standard_pairs,
    weights_of,
)
from .trainer import read_embeddings

METRICS = ("recall_at_1", "mean_average_precision_at_r")
COLOURS = ("#33518c", "#c0562d", "#3d8361", "#8a4a9e", "#a58a17", "#4a9bb0", "#b03a5b", "#6b6b6b")
SHOWN = 8
"""Maximum number of lines in one panel."""

STYLE = """
:root { color-scheme: light; --ink: #1d2230; --soft: #5d6577; --line: #dfe3ea; --good: #1d7a4c; --bad: #b3342d; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink); }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { margin-top: 2.5rem; font-size: 1.2rem; } h3 { font-size: 1rem; }
p, li { max-width: 46rem; } .note { color: var(--soft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
td.words, th.words { text-align: left; }
.better { color: var(--good); font-weight: 600; } .worse { color: var(--bad); font-weight: 600; }
img.plot { width: 100%; height: auto; }
.row { display: flex; gap: 4px; margin: 0 0 6px; } .row > * { flex: 1 1 0; min-width: 0; max-width: 96px; }
.row img { width: 100%; display: block; image-rendering: pixelated; border: 3px solid transparent; border-radius: 3px; }
.row .query img { border-color: var(--ink); } .row .right img { border-color: var(--good); }
.row .wrong img { border-color: var(--bad); } .row span { display: block; font-size: .7rem; text-align: center; }
.row .query { margin-right: 10px; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1.5rem; }
"""


def chosen_metrics(rows: Sequence[Row], names: Sequence[str]) -> tuple[str, ...]:
    """The requested test figures, with the spelling in the rows.

    Args:
        rows: from :func:`~adaptive_margin.dml.results.read_runs`.
        names: names of figures; case does not matter.

    Raises:
        ValueError: no row has such a figure.

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

    Args:
        folder: of runs.
        page: file to write; an earlier report is replaced.
        metrics: test figures that get tables.
        overwrite: replace any file.

    Raises:
        ValueError: there are no finished runs, or the file is there and no report.
    """
    check_page(page, overwrite)
    rows = read_runs(folder)
    if not any(row["test"] for row in rows):
        remedy = "finish one without --no-measure first"
        raise ValueError(problem("the folder", "one with runs that measured the test", folder, remedy))
    sets = list(dict.fromkeys(row["data"] for row in rows if row["test"]))
    parts = [
        f"<h1>Metric learning: fixed and adaptive margins on {html.escape(', '.join(sets))}</h1>",
        _introduction(rows),
    ]
    for data in sets:
        parts += [f"<h2>{html.escape(data)}</h2>"]
        if began := weights_of(rows, data):
            parts += [f"<p class='note'>Weights before training: {html.escape(began)}.</p>"]
        parts += [_table(rows, data, metric) for metric in metrics]
    parts += [_comparisons(rows, metric) for metric in metrics]
    for data in sets:
        parts += [f"<h2>{html.escape(data)}: margins and recalls</h2>", _trajectories(rows, data), _recalls(rows, data)]
    parts += [_pictures(rows, data) for data in sets]
    body = "\n".join(part for part in parts if part)
    head = f'<meta charset="utf-8">{GENERATOR}<meta name="viewport" content="width=device-width, initial-scale=1">'
    title = f"<title>Metric learning on {html.escape(', '.join(sets))}</title>"
    head = f'<!doctype html>\n<html lang="en"><head>{head}{title}<style>{STYLE}</style></head>'
    text = f"{head}\n<body>\n{body}\n</body></html>\n"
    write_atomically(page, text.encode("utf-8", "backslashreplace"))
    return rows


def _introduction(rows: Sequence[Row]) -> str:
    measured = [row for row in rows if row["test"] and row["loss"] != "none"]
    seeds = sorted({row["seed"] for row in measured})
    chosen = sorted({str(row.get("selected_by", "validation")) for row in measured})
    how = "; ".join(chosen)
    warn = ""
    if any("test" in each.split("/")[0] for each in chosen):
        warn = " <strong>Some were chosen by the test itself: compare those only with papers that did so.</strong>"
    minutes = sum(row.get("seconds") or 0.0 for row in rows) / 60
    return (
        f"<p>{len(measured)} networks measured (seeds {', '.join(map(str, seeds))}; {minutes:,.0f} minutes). "
        f"They are chosen by {html.escape(how)} and measured once on unseen classes.{warn} Figures are per cent, "
        "mean ± standard deviation over seeds.</p>"
    )


def _table(rows: Sequence[Row], data: str, metric: str) -> str:
    arms = arms_of(rows, data)
    lines = [f"<h3>{html.escape(named(metric))}</h3><div class='wide'><table><tr><th>loss</th>"]
    lines += [f"<th>{html.escape(arm)}</th>" for arm in arms] + ["</tr>"]
    for loss in losses_of(rows, data):
        cells = "".join(f"<td>{spread(by_seed(rows, data, loss, arm, metric).values())}</td>" for arm in arms)
        lines.append(f"<tr><td>{html.escape(loss)}</td>{cells}</tr>")
    for name in sorted({row["arm"] for row in rows if row["data"] == data and row["loss"] == "none"}):
        value = spread(by_seed(rows, data, "none", name, metric).values())
        lines.append(f"<tr class='note'><td>{html.escape(name)}</td><td>{value}</td></tr>")
    return "".join(lines) + "</table></div>"


def _comparisons(rows: Sequence[Row], metric: str) -> str:
    made = compare(rows, standard_pairs(rows), metric)
    if not made:
        return ""
    head = (
        "<th class='words'>loss</th><th class='words'>arm</th><th class='words'>against</th><th>difference [95 %]</th>"
    )
    title = html.escape(named(metric))
    lines = [f"<h2>Paired differences in {title}</h2><p class='note'>{html.escape(caution(len(made)))}</p>"]
    head = f"<th>data</th>{head}<th>n</th><th class='words'>verdict</th><th>Holm's p</th>"
    lines += [f"<div class='wide'><table><tr>{head}</tr>"]
    for (data, loss, arm, baseline), comparison, p in made:
        words = "".join(f"<td class='words'>{html.escape(each)}</td>" for each in (loss, arm, baseline))
        verdict = f"<td class='words {comparison.verdict.split()[0]}'>{comparison.verdict}</td>"
        cells = f"<td>{comparison}</td><td>{comparison.n}</td>{verdict}<td>{p:.2g}</td>"
        lines.append(f"<tr><td>{html.escape(data)}</td>{words}{cells}</tr>")
    return "".join(lines) + "</table></div>"


def _trajectories(rows: Sequence[Row], data: str) -> str:
    """The margin in the loss's unit over training, one panel per loss: mean over seeds."""
    losses = [loss for loss in losses_of(rows, data) if _curves(rows, data, loss, "margin")]
    if not losses:
        return ""
    figure, panels = _panels(len(losses))
    for panel, loss in zip(panels, losses, strict=False):
        for colour, (arm, curve) in zip(COLOURS, _curves(rows, data, loss, "margin").items(), strict=False):
            if np.ptp(curve) == 0:
                panel.axhline(curve[0], color=colour, label=arm, linestyle="--")
            else:
                panel.plot(np.arange(1, len(curve) + 1) / len(curve), curve, color=colour, label=arm)
        panel.set(title=loss, xlabel="share of training")
        panel.legend(fontsize=7, frameon=False)
    return "<h3>The margin over training, in each loss's own unit</h3>" + _image(figure, "margins over training")


def _curves(rows: Sequence[Row], data: str, loss: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for arm in arms_of(rows, data):
        of = [row["curves"][name] for row in rows if _is(row, data, loss, arm) and row["curves"].get(name)]
        if of and len(found) < SHOWN:
            shortest = min(map(len, of))
            found[arm] = np.mean([curve[:shortest] for curve in of], axis=0)
    return found


def _recalls(rows: Sequence[Row], data: str) -> str:
    """Recall@k against k, one panel per loss: mean over seeds."""
    losses = losses_of(rows, data)
    figure, panels = _panels(len(losses))
    for panel, loss in zip(panels, losses, strict=False):
        for colour, arm in zip(COLOURS, arms_of(rows, data)[:SHOWN], strict=False):
            of = [row["test"] for row in rows if _is(row, data, loss, arm)]
            if of:
                ks = sorted(int(name.removeprefix("recall_at_")) for name in of[0] if name.startswith("recall_at_"))
                values = [100 * np.mean([each[f"recall_at_{k}"] for each in of]) for k in ks]
                panel.plot(ks, values, "o-", markersize=3, color=colour, label=arm)
                panel.set_xscale("log")
                panel.set_xticks(ks, [str(k) for k in ks])
                panel.minorticks_off()
        panel.set(title=loss, xlabel="k", ylabel="Recall@k")
        panel.legend(fontsize=7, frameon=False)
    return "<h3>Recall@k</h3>" + _image(figure, "Recall at k")


def _pictures(rows: Sequence[Row], data: str) -> str:
    """Queries with their nearest images, and a map, for the networks whose embeddings were kept."""
    kept, damaged = [], []
    for row in rows:
        if row["data"] == data and row.get("folder") and (Path(row["folder"]) / "embeddings.npz").is_file():
            try:
                read_embeddings(Path(row["folder"]))
                kept.append(row)
            except DamagedFileError as error:
                damaged.append(f"<p class='note'>Left out: {html.escape(str(error))}.</p>")
    if not kept:
        return "".join(damaged)
    first: dict[str, list[Row]] = {}
    for row in kept:
        first.setdefault(row["loss"], []).append(row)
    loss = max(first, key=lambda name: len({row["arm"] for row in first[name]}))
    wanted = ("default", "auto", "remaining", "attainable", "tuned")
    chosen = sorted(first[loss], key=lambda row: (wanted.index(row["arm"]) if row["arm"] in wanted else 9, row["seed"]))
    by_arm = list({row["arm"]: row for row in reversed(chosen)}.values())[::-1][:2]
    parts = [f"<h2>{html.escape(data)}: what is found</h2>", *damaged, _neighbours(loss, by_arm)]
    parts += [
        "<h3>Maps of the embeddings</h3><p class='note'>Ten test classes on the two axes of largest variance.</p>"
    ]
    figure, panels = _panels(len(by_arm), columns=2)
    for panel, row in zip(panels, by_arm, strict=False):
        content = read_embeddings(Path(row["folder"]))
        embeddings, labels = torch.from_numpy(content["embeddings"]).float(), torch.from_numpy(content["labels"])
        some = torch.isin(labels, torch.unique(labels)[:: max(1, len(torch.unique(labels)) // 10)][:10])
        points = embeddings[some] - embeddings[some].mean(0)
        _, _, axes = torch.linalg.svd(points, full_matrices=False)
        flat = (points @ axes[:2].T).numpy()
        panel.scatter(flat[:, 0], flat[:, 1], c=labels[some].numpy(), cmap="tab10", s=9, linewidths=0)
        panel.set(title=f"{loss}, {row['arm']}", xticks=[], yticks=[])
    return "".join(parts) + _image(figure, "maps of the embeddings")


def _examples(row: Row) -> str:
    content = read_embeddings(Path(row["folder"]))
    if "pictures" not in content:
        return "<p class='note'>Without pictures: the run was made before they were kept beside its embeddings.</p>"
    lines = []
    for places, pictures in zip(content["examples"], content["pictures"], strict=True):
        classes = content["labels"][places]
        words = ["query", *("right" if label == classes[0] else "wrong" for label in classes[1:])]
        drawn = "".join(
            f"<div class='{word}'><img alt='{word}' src='{_as_url(picture)}'><span>{word}</span></div>"
            for word, picture in zip(words, pictures, strict=True)
        )
        lines.append(f"<div class='row'>{drawn}</div>")
    return "".join(lines)


def _neighbours(loss: str, rows: Sequence[Row]) -> str:
    """Queries and what each network finds."""
    text = f"<p>{html.escape(loss)}, the same queries in each network; the query first, then its nearest images. "
    text += "<span class='better'>Green</span>: of its class; <span class='worse'>red</span>: not.</p><div class='two'>"
    for row in rows:
        text += f"<div><h3>{html.escape(row['arm'])}, seed {row['seed']}</h3>{_examples(row)}</div>"
    return text + "</div>"


def _as_url(pixels: Bytes) -> str:
    from PIL import Image

    memory = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(memory, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode()


def _is(row: Row, data: str, loss: str, arm: str) -> bool:
    return (row["data"], row["loss"], row["arm"]) == (data, loss, arm) and row["test"] is not None


def _panels(count: int, columns: int = 3) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(columns, count)
    lines = -(-count // columns)
    figure, panels = plt.subplots(lines, columns, figsize=(4 * columns, 3 * lines), layout="constrained", squeeze=False)
    for panel in panels.flat[count:]:
        panel.set_axis_off()
    return figure, panels.flat


def _image(figure: Any, words: str) -> str:
    from matplotlib import pyplot as plt

    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=130)
    plt.close(figure)
    source = base64.b64encode(memory.getvalue()).decode()
    inches = figure.get_figwidth()  # one panel is not blown up to the page, three are not squeezed into a phone
    size = f"min-width: {3.4 * inches:.1f}rem; max-width: {5.7 * inches:.1f}rem"
    return (
        f"<div class='wide'><img class='plot' style='{size}' alt='{words}' src='data:image/png;base64,{source}'></div>"
    )
