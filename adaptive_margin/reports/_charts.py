"""Charts of a report as SVG for use inside its page: text in the page's colour, light or dark."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

INK, FAINT = "#0a0b0c", "#0d0e0f"  # placeholders for the page's own colours, which replace them in the SVG
PALETTE = ("#3b82c4", "#2f9e6e", "#9b6bd1", "#d1495b", "#1b9aaa", "#c2588f", "#8a8f98", "#7a9e2f")
BASELINE = "#bf7430"
GROUPS = (*PALETTE, BASELINE, "#5f6fd6", "#a5765a", "#d9b430")  # as many people or classes as can be told apart
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, found and copied
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
}


@dataclass
class Drawing:
    """A chart in the making: its matplotlib figure and axes; when it is finished, its SVG."""

    figure: Any
    axes: Any
    svg: Markup = field(default_factory=Markup)


@contextmanager
def drawing(title: str, alt: str, width: float = 4.4, height: float = 3.1) -> Iterator[Drawing]:
    """One chart with a heading, and a description for readers who cannot see it.

    ``width`` and ``height`` are in inches; the page scales the chart to its column.

    Example:
        >>> with drawing("Loss", "A falling line.") as chart:
        ...     _ = chart.axes.plot([1, 2, 3], [3, 2, 1])
        >>> chart.svg.startswith("<svg") and 'role="img"' in chart.svg
        True
    """
    import matplotlib  # here: training does not need it
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title + alt}):
        figure = Figure(figsize=(width, height), layout="constrained")
        chart = Drawing(figure, figure.subplots())
        yield chart
        chart.axes.set_title(title, fontsize=11, loc="left")
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, dpi=160, metadata={"Date": None})
    chart.svg = inline_svg(text.getvalue(), title, alt)


def inline_svg(text: str, title: str, alt: str) -> Markup:
    """The element of an SVG file for use inside HTML: named, scalable, in the page's colours, with unique ids."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    mark = "c" + hashlib.sha256((title + alt).encode()).hexdigest()[:8]
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{mark}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{mark}-", svg)
    head, rest = svg.split(">", 1)
    svg = re.sub(r' (width|height)="[^"]*"', "", head) + ">" + rest  # the page decides
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(f"{title}. {alt}")}"', 1)
    return Markup(re.sub(r">\s+<", "><", svg).strip())


Seeds = Sequence[tuple[Sequence[float] | Floats, Sequence[float] | Floats]]
"""(steps, values) of each seed."""


def curves(
    title: str,
    series: Sequence[tuple[str, str, Seeds]],
    *,
    y: str,
    x: str = "iteration",
    alt: str,
    smooth: int = 1,
    at: Sequence[float] = (),
    size: tuple[float, float] = (4.4, 3.1),
) -> Markup:
    """Lines: for each arm a faint line per seed, and their mean if the seeds share their steps.

    A series has a name, a colour, and (steps, values) of each seed, of which ``smooth`` neighbours are averaged. ``at``
    are the only steps, each marked, at equal distances on a logarithmic axis. The rest is as for :func:`drawing`.
    """
    with drawing(title, alt, *size) as chart:
        axes = chart.axes
        for name, colour, seeds in series:
            lines = [(np.asarray(steps, float), _smooth(np.asarray(values, float), smooth)) for steps, values in seeds]
            same = all(np.array_equal(steps, lines[0][0]) for steps, _ in lines)
            if len(lines) > 1:
                for steps, values in lines:
                    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
            mean = (lines[0][0], np.mean([v for _, v in lines], axis=0)) if same else ([], [])
            axes.plot(
                *mean,
                color=colour,
                label=name,
                marker="o" if at or (same and len(lines[0][0]) == 1) else "",
                markersize=3,
            )
        if at:
            axes.set_xscale("log")
            axes.set_xticks(at, [f"{each:g}" for each in at])
            axes.minorticks_off()
        axes.set(xlabel=x, ylabel=y)
        axes.margins(x=0.02)
        if len(series) > 1:  # below: it hides no line, however many there are
            columns = 4 if sum(len(name) for name, _, _ in series) < 40 else 2
            chart.figure.legend(loc="outside lower center", ncols=columns, handlelength=1.2, columnspacing=1)
    return chart.svg


def _smooth(values: Floats, width: int) -> Floats:
    if width <= 1 or len(values) < 2 * width:
        return values
    padded = np.concatenate([np.full(width // 2, values[0]), values, np.full(width - 1 - width // 2, values[-1])])
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def plane(title: str, truth: Floats, prediction: Floats, colour: str, alt: str) -> Markup:
    """True and predicted labels as points in the valence-arousal plane."""
    with drawing(title, alt, width=4.2, height=4.2) as chart:
        axes = chart.axes
        angle = np.linspace(0, 2 * np.pi, 200)
        axes.plot(np.cos(angle), np.sin(angle), color=FAINT, linewidth=1)
        axes.scatter(truth[:, 0], truth[:, 1], s=7, color=INK, alpha=0.22, linewidths=0, label="label")
        axes.scatter(prediction[:, 0], prediction[:, 1], s=9, color=colour, alpha=0.55, linewidths=0, label="predicted")
        _square(axes, max(1.05, float(np.abs(prediction).max(initial=0)) * 1.05))
        axes.set(xlabel="valence", ylabel="arousal")
        axes.legend(loc="upper right", handletextpad=0.2, borderpad=0.1, markerscale=2)
    return chart.svg


def against(title: str, truth: Floats, prediction: Floats, label: str, colour: str, alt: str) -> Markup:
    """Predictions over labels, with the line on which they would be equal."""
    with drawing(title, alt, width=4.2, height=4.2) as chart:
        axes = chart.axes
        reach = max(1.05, float(np.abs(prediction).max(initial=0)) * 1.05)
        axes.plot([-reach, reach], [-reach, reach], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.scatter(truth, prediction, s=9, color=colour, alpha=0.5, linewidths=0)
        _square(axes, reach)
        axes.set(xlabel=f"{label}, labelled", ylabel="predicted")
    return chart.svg


def _square(axes: Any, reach: float) -> None:
    ticks, ends = [-1, -0.5, 0, 0.5, 1], (-reach, reach)
    axes.set(xlim=ends, ylim=ends, aspect="equal", xticks=ticks, yticks=ticks)


def map_by_group(title: str, points: Floats, group: NDArray[np.int64], alt: str) -> Markup:
    """A map of features: the people or classes with most points each have a colour, the others are faint."""
    names, counts = np.unique(group[group >= 0], return_counts=True)
    shown = names[np.argsort(-counts, kind="stable")][: len(GROUPS)]
    with drawing(title, alt, width=4.2, height=3.9) as chart:
        rest = ~np.isin(group, shown)
        chart.axes.scatter(points[rest, 0], points[rest, 1], s=8, color=FAINT, linewidths=0)
        for name, colour in zip(shown, GROUPS, strict=False):
            of = group == name
            chart.axes.scatter(points[of, 0], points[of, 1], s=12, color=colour, alpha=0.85, linewidths=0)
        _bare(chart.axes)
    return chart.svg


def map_by_intensity(title: str, points: Floats, intensity: Floats, alt: str) -> Markup:
    """A map of features coloured by the distance of the label from neutral."""
    with drawing(title, alt, width=4.2, height=3.9) as chart:
        drawn = chart.axes.scatter(
            points[:, 0], points[:, 1], s=12, c=intensity, cmap="plasma", vmin=0, vmax=1, alpha=0.85, linewidths=0
        )
        bar = chart.figure.colorbar(drawn, ax=chart.axes, shrink=0.8, aspect=24)
        bar.set_label("intensity √(v² + a²)")
        bar.outline.set_visible(False)
        _bare(chart.axes)
    return chart.svg


def _bare(axes: Any) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def feature_map(features: NDArray[np.float16], most: int = 800, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """t-SNE of standardised features ``(K, F)`` in two dimensions (van der Maaten & Hinton 2008).

    Returns positions, shape ``(M, 2)``, and which of the K rows they belong to, shape ``(M,)``: all rows, or a random
    sample of ``most``.

    Example:
        >>> places, rows = feature_map(np.random.default_rng(0).normal(size=(30, 5)).astype(np.float16), most=20)
        >>> places.shape, rows.shape
        ((20, 2), (20,))
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = np.arange(len(features))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:most])
    x = features[rows].astype(np.float64)
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    if min(x.shape) > 50:
        x = PCA(50, random_state=seed).fit_transform(x)
    perplexity = min(30.0, max(1.0, (len(x) - 1) / 3))
    places: Floats = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(x)
    return places, rows
