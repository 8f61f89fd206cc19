"""The report of a run, or of the runs of an ablation: one self-contained HTML file.

``adaptive-margin report DIR``
"""

from __future__ import annotations

import base64
import html
import io
import math
import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..atomic import write_atomically
from ..stored import GENERATOR, check_page
from . import charts, published
from .nets import LABELS
from .runs import (
    Arm,
    Measured,
    Run,
    collapsed,
    difference,
    figure,
    identity_of,
    leakage_difference,
    measured,
    over_seeds,
    plural,
    read_runs,
)

REST = ("rmse", "sagr", "pcc")  # CCC comes first and has columns of its own
NAMES = {"rmse": "RMSE", "sagr": "SAGR", "pcc": "PCC", "ccc": "CCC"}
DATASETS = {
    "faces": "drawn faces",
    "affectnet": "AffectNet (2017)",
    "affectnet-2017": "AffectNet (2017)",
    "affectnet-reduced": "AffectNet (reduced)",
    "afew-va": "AFEW-VA",
    "aff-wild": "Aff-Wild",
    "aff-wild2": "Aff-Wild2",
}


@dataclass
class Section:
    """A section of the report.

    Attributes:
        id: anchor.
        title: heading.
        body: HTML.
        missing: why the section is left out; empty if it is present.
    """

    id: str
    title: str
    body: str = ""
    missing: str = ""


@dataclass
class Story:
    """The data from which the sections are made.

    Attributes:
        arms: all of them, baseline first.
        baseline: the arm without critic, if there is one.
        main: the arm that is shown in detail: CAF with the adaptive margin, if there is one.
        colours: of each arm.
        dataset: as the runs' configs name it.
        problems: descriptions of data that could not be read.
    """

    arms: list[Arm]
    baseline: Arm | None
    main: Arm
    colours: Mapping[str, str]
    dataset: str
    problems: list[str] = field(default_factory=list)

    @property
    def identity(self) -> str:
        """The unit that no parts share: ``"person"``, ``"actor"``, ``"video"``, ``"source video"`` or ``"picture"``."""
        results = [run.result for arm in (self.main, *self.arms) for run in arm.runs if run.result]
        return identity_of(results[0]) if results else "person"

    @property
    def unseen(self) -> str:
        """The test part, in words."""
        kinds = plural(self.identity)
        shared = any(run.result.get("independent") == "nothing" for arm in self.arms for run in arm.runs)
        return f"{kinds} of which some were seen in training" if shared else f"{kinds} not seen in training"

    @property
    def shown(self) -> list[Arm]:
        """Baseline and main arm: the arms that pictures compare."""
        return [
            arm for arm in (self.baseline, self.main) if arm is not None and not (arm is self.main is self.baseline)
        ]


def write_report(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    leave_out: Collection[str | Path] = (),
    overwrite: bool = False,
) -> Path:
    """Writes the report of a folder of runs.

    Sections whose data are missing or damaged are left out, with a sentence that says so.

    Args:
        folder: folder of one run, or of runs as ``runs/ARM/seedN``, each with some of ``config.yaml``,
            ``environment.json``, ``scalars.csv``, ``result.json`` and ``evaluation.npz``.
        output: the file; ``report.html`` in the folder unless given. An earlier report is replaced.
        leave_out: folders of runs to leave out, such as those that could not resume with the requested options.
        overwrite: replace any file.

    Returns:
        The file.

    Raises:
        ValueError: no run is there, or the file is there and no report.
    """
    path = Path(folder) / "report.html" if output is None else Path(output)
    check_page(path, overwrite)
    from jinja2 import Environment, PackageLoader, StrictUndefined

    arms, problems = read_runs(folder, leave_out)
    story = tell(arms, problems)
    environment = Environment(
        loader=PackageLoader("adaptive_margin.emotion", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.j2").render(
        generator=GENERATOR,
        title=_title(story),
        lead=_lead(story),
        facts=_facts(story),
        sections=sections(story),
        problems=problems,
        made=time.strftime("%Y-%m-%d %H:%M"),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
    return path


def tell(arms: list[Arm], problems: list[str]) -> Story:
    """Decides which arm is the baseline, which arm is shown in detail, and the colour of each arm."""
    baseline = next((arm for arm in arms if arm.is_baseline), None)
    others = [arm for arm in arms if arm is not baseline]
    caf = [arm for arm in others if arm.critic == "caf"]
    main = (caf or others or arms)[0]
    hues = iter(charts.PALETTE * (1 + len(arms) // len(charts.PALETTE)))
    colours = {main.name: next(hues)}
    for arm in arms:
        if arm is not main:
            colours[arm.name] = charts.BASELINE if arm is baseline else next(hues)
    configs = [run.config for arm in arms for run in arm.runs]
    dataset = next((str(config["dataset"]) for config in configs if config.get("dataset")), "")
    return Story(arms, baseline, main, colours, dataset, problems)


def sections(story: Story) -> list[Section]:
    """The report's sections in order; a section that fails is replaced by the reason."""
    parts: list[tuple[str, str, Callable[[Story], str]]] = [
        ("figures", f"Figures on {story.unseen}", _figures),
        ("leakage", "What features say about who it is", _leakage),
        ("training", "Training", _training),
        ("margin", "The margin over training", _margin),
        ("video", "Over the frames of a video", _video),
        ("scatter", "Predicted and labelled", _scatter),
        ("maps", "Maps of the encoder's features", _maps),
        ("pictures", "Best and worst predictions", _pictures),
        ("bound", "Are the figures possible?", _bound),
        ("config", "Configuration and versions", _config),
    ]
    made = []
    for name, title, make in parts:
        try:
            made.append(Section(name, title, body=make(story)))
        except _Missing as reason:
            made.append(Section(name, title, missing=str(reason)))
        except Exception as error:  # a partial report is better than none
            made.append(Section(name, title, missing=f"It could not be made: {type(error).__name__}: {error}."))
    return made


class _Missing(Exception):
    """The data of a section are missing; the text says which."""


def _title(story: Story) -> str:
    name = DATASETS.get(story.dataset, story.dataset)
    if len(story.arms) == 1:
        return f"Run {story.main.title}" + (f" on {name}" if name else "")
    return "Valence and arousal" + (f" from {name}" if name else "")


def _lead(story: Story) -> str:
    """The main result in one sentence."""
    own = measured(story.main, "ccc", "mean")
    if own is None:
        return "No run here has been evaluated yet."
    n = f"{own.n} seed{'s' if own.n > 1 else ''}"
    if story.baseline is None or story.main is story.baseline:
        return f"{story.main.title} reaches a mean CCC of {own.mean:.3f} on {story.unseen} ({n})."
    gap, base = difference(story.main, story.baseline), measured(story.baseline, "ccc", "mean")
    if gap is None or base is None:
        return f"{story.main.title} reaches a mean CCC of {own.mean:.3f}; there is no baseline with the same seed."
    text = f"{story.main.title} reaches a mean CCC of {own.mean:.3f} on {story.unseen}, "
    text += f"{story.baseline.title} {base.mean:.3f}: paired difference {_minus(f'{gap.mean:+.3f}')}"
    if math.isnan(gap.low):
        return f"{text}, one pair, no interval: nothing can be concluded."
    text += f" (95% {_minus(f'{gap.low:+.3f} to {gap.high:+.3f}')}, {_drawn(gap)})"
    seed = ", with this one seed" if gap.n == 1 else ""
    if gap.low > 0:
        return f"{text}: better than the baseline{seed}."
    if gap.high < 0:
        return f"{text}: worse than the baseline{seed}."
    return f"{text}: no clear difference."


def _drawn(found: Measured) -> str:
    if found.by == "seed":
        return f"{found.n} seeds" if found.n > 1 else "1 seed"
    return f"1 seed, resampled by {found.by}"


def _facts(story: Story) -> list[tuple[str, str]]:
    run = next((r for arm in (story.main, *story.arms) for r in arm.runs if r.result), story.main.runs[0])
    test = run.result.get("test", {})
    environment = run.environment
    facts = [
        ("data", DATASETS.get(story.dataset, story.dataset)),
        ("encoder", str(run.config.get("encoder", ""))),
        ("tested on", _count(test.get("rows"), "image") + _of_kind(_identities(test), story.identity)),
        ("runs", f"{sum(len(arm.runs) for arm in story.arms)} in {len(story.arms)} arm{'s' * (len(story.arms) > 1)}"),
        ("iterations", f"{run.config['iterations']:,}" if isinstance(run.config.get("iterations"), int) else ""),
        ("device", str(environment.get("device", ""))),
        ("started", str(environment.get("started", ""))[:16].replace("T", " ")),
    ]
    return [(name, value) for name, value in facts if value]


def _count(n: Any, what: str) -> str:
    return f"{n:,} {what}{'s' if n != 1 else ''}" if isinstance(n, int) else ""


def _identities(test: Mapping[str, Any]) -> Any:
    return test.get("identities", test.get("people"))  # as older results call them


def _of_kind(n: Any, kind: str) -> str:
    return f" of {n} {plural(kind, n)}" if n else ""


# Tables


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _cell(found: Measured | None, digits: int = 3, sign: bool = False) -> str:
    """A figure with its interval below."""
    if found is None:
        return "<td class='none'>–</td>"
    value = f"{found.mean:+.{digits}f}" if sign else f"{found.mean:.{digits}f}"
    if math.isnan(found.low):
        return f"<td>{_minus(value)}</td>"
    low, high = (f"{x:+.{digits}f}" if sign else f"{x:.{digits}f}" for x in (found.low, found.high))
    between = " to " if sign or found.low < 0 else "–"
    return f"<td>{_minus(value)}<span class='ci'>{_minus(low + between + high)}</span></td>"


def _table(caption: str, head: Sequence[str], rows: Sequence[str], groups: str = "") -> str:
    top = "".join(f"<th scope='col'>{_e(h)}</th>" for h in head)
    # A table wider than a narrow screen scrolls by itself: it must take the keyboard.
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{_e(_plain(caption))}'>"
        f"<table><caption><span>{caption}</span></caption><thead>{groups}<tr>{top}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _plain(text: str) -> str:
    return text.split(". ")[0].replace("<br>", " ")


def _swatch(story: Story, arm: Arm) -> str:
    return f"<span class='swatch' style='background:{story.colours[arm.name]}'></span>"


def _figures(story: Story) -> str:
    if all(measured(arm, "ccc", "mean") is None for arm in story.arms):
        raise _Missing("No run has a result.json with figures: the runs were not evaluated.")
    table = published.published_table(story.dataset)
    rows, flagged = [], False
    for arm in story.arms:
        cells = "".join(_cell(measured(arm, name, label)) for name in REST for label in LABELS)
        own = "".join(_cell(measured(arm, "ccc", label)) for label in LABELS)
        if story.baseline is None or arm is story.baseline:
            gap = "<td class='none'>–</td>"
        else:
            gap = _cell(difference(arm, story.baseline), sign=True)
        mean = measured(arm, "ccc", "mean")
        seeds = "" if mean is None else str(mean.n)
        name = f"<th scope='row'>{_swatch(story, arm)}{_e(arm.title)}</th>"
        rows.append(f"<tr>{name}<td>{seeds}</td>{own}{_cell(mean)}{gap}{cells}</tr>")
        row = published.published_row(table, arm.critic, arm.margin, str(arm.runs[0].config.get("encoder", "")))
        if row is not None:
            marks = published.impossible(row) if table.dataset == "AffectNet" else []
            flagged = flagged or bool(marks)
            rows.append(_published_tr(row, f"published: {row.method}, {row.backbone}", marks, beside_ours=True))
    head = ["arm", "seeds", "valence", "arousal", "mean", "less baseline", *["valence", "arousal"] * len(REST)]
    groups = "<tr><td colspan='2'></td><th scope='colgroup' colspan='4'>CCC</th>"
    groups += "".join(f"<th scope='colgroup' colspan='2'>{NAMES[name]}</th>" for name in REST) + "</tr>"
    name = DATASETS.get(story.dataset, story.dataset) or "this data set"
    caption = (
        f"Measured here on {_e(name)}, and what {published.SOURCE} print in {table.name} for {table.dataset}. "
        "Mean over seeds; below it the 95% interval."
    )
    text = _table(caption, head, rows, groups)
    same = DATASETS.get(story.dataset, "").startswith(table.dataset)
    first = measured(story.main, "ccc", "mean")
    notes = [
        f"Rows in italics are quoted as published, measured by their authors on {table.dataset}"
        + (", with their own split and choice of epoch: compare with care." if same else ": not comparable with ours."),
        "Intervals of ours are Student's t over seeds."
        if first is not None and first.n > 1
        else f"With one seed, intervals are a bootstrap of the one run by {_e(first.by) if first else 'sample'}: they "
        "do not hold what another seed would change.",
        "RMSE: lower is better; SAGR, PCC, CCC: higher is better.",
    ]
    dead = [
        f"{_e(arm.title)}, seed {run.seed}, {what}"
        for arm in story.arms
        for run in arm.runs
        if (what := collapsed(run))
    ]
    if dead:
        notes.append(f"<strong>Collapsed:</strong> {'; '.join(dead)}. Such a run says nothing about the method.")
    if flagged:
        notes.append(
            "<sup>†</sup> This RMSE is not possible together with the published correlations on AffectNet's usual "
            "validation labels (see <a href='#bound'>the bound</a>)."
        )
    return text + _notes(notes) + _published_details(table)


def _published_tr(row: published.Published, name: str, marks: Sequence[str], beside_ours: bool = False) -> str:
    cells = ""
    for what in ("ccc", *REST):
        pair = getattr(row, what)
        for i, label in enumerate(LABELS):
            mark = "<sup>†</sup>" if what == "rmse" and label in marks else ""
            cells += "<td class='none'>–</td>" if pair is None else f"<td>{_as_printed(pair[i])}{mark}</td>"
        if what == "ccc" and beside_ours:
            cells += "<td class='none'>–</td>" * 2
    wide = " colspan='2'" if beside_ours else ""
    return f"<tr class='published'><th scope='row'{wide}>{_e(name)}</th>{cells}</tr>"


def _as_printed(value: float) -> str:
    """A figure with two decimals, or with the four that some tables have."""
    return f"{value:.2f}" if round(value, 2) == value else f"{value:.4f}"


def _published_details(table: published.PublishedTable) -> str:
    rows = []
    for row in table.rows:
        name = f"{row.method}, {row.backbone}" if row.backbone else row.method
        marks = published.impossible(row) if table.dataset == "AffectNet" else []
        rows.append(_published_tr(row, name, marks))
    groups = "<tr><td></td>"
    groups += "".join(f"<th scope='colgroup' colspan='2'>{NAMES[name]}</th>" for name in ("ccc", *REST)) + "</tr>"
    caption = f"{published.SOURCE}, {table.name}: {table.dataset}, as published. No row was measured here."
    inner = _table(_e(caption), ["method", *["valence", "arousal"] * 4], rows, groups)
    return f"<details><summary>All of the paper's {table.name} ({table.dataset})</summary>{inner}</details>"


def _notes(lines: Sequence[str]) -> str:
    return "<ul class='notes'>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"


def _leakage(story: Story) -> str:
    sides = [
        side
        for side in ("unseen", "seen")
        if any(run.result.get("leakage", {}).get(side) for arm in story.arms for run in arm.runs)
    ]
    if not sides:
        raise _Missing("No run measured identity leakage: it needs data that say who is on each picture.")

    def over(arm: Arm, side: str, key: str) -> Measured | None:
        found = over_seeds(
            [v for r in arm.runs if (v := r.result.get("leakage", {}).get(side, {}).get(key)) is not None]
        )
        if found is not None and found.n == 1 and key == "probe_accuracy":
            one = next(r.result["leakage"][side] for r in arm.runs if r.result.get("leakage", {}).get(side))
            if one.get("probe_low") is not None and one.get("probe_high") is not None:
                found = found._replace(low=one["probe_low"], high=one["probe_high"], by=story.identity)
        return found

    keys = [("recall_at_1", "Recall@1"), ("map_at_r", "MAP@R"), ("probe_accuracy", "linear probe")]
    rows = []
    for arm in story.arms:
        cells = "".join(_cell(over(arm, side, key)) for side in sides for key, _ in keys)
        gap = "<td class='none'>–</td>"
        if story.baseline is not None and arm is not story.baseline:
            gap = _cell(leakage_difference(arm, story.baseline, sides[0]), sign=True)
        rows.append(f"<tr><th scope='row'>{_swatch(story, arm)}{_e(arm.title)}</th>{cells}{gap}</tr>")
    chance = ""
    for side in sides:
        for key in ("recall_at_1_chance", "map_at_r_chance", "probe_chance"):
            found = over(story.main, side, key) or over(story.arms[0], side, key)
            chance += "<td class='none'>–</td>" if found is None else f"<td>{found.mean:.3f}</td>"
    rows.append(f"<tr class='published'><th scope='row'>by chance</th>{chance}<td></td></tr>")
    kind, kinds = _e(story.identity), _e(plural(story.identity))
    groups = "<tr><td></td>" + "".join(f"<th scope='colgroup' colspan='3'>{side} {kinds}</th>" for side in sides)
    groups += "<td></td></tr>"
    head = ["arm", *[name for _, name in keys] * len(sides), f"MAP@R less baseline's ({sides[0]})"]
    caption = f"How well {kinds} can be told apart by the encoder's features. Lower says less about who it is."
    text = _table(caption, head, rows, groups)
    return text + _notes(
        [
            f"Recall@1 and MAP@R: whether a picture's nearest neighbours by cosine are of the same {kind}. Linear "
            f"probe: a logistic regression on half of each {kind}'s pictures names the {kind} on the other half.",
            f"More {kinds} are harder to tell apart: compare arms with each other and with chance, not seen with "
            "unseen.",
            "A critic that makes an encoder person-independent lowers these figures below the baseline's without "
            "lowering CCC.",
        ]
    )


def _bound(story: Story) -> str:
    rows, holds = [], True
    for arm in story.arms:
        for label in LABELS:
            found: list[tuple[float, float]] = []
            for run in arm.runs:
                known = [v for n in ("rmse", "pcc", "label_sd") if (v := figure(run.result, n, label)) is not None]
                if len(known) == 3:
                    found.append((known[0] ** 2, (1 - known[1] ** 2) * known[2] ** 2))
            if not found:
                continue
            square, least = np.mean(found, axis=0)
            good = sum(a >= b * (1 - 1e-6) - 1e-12 for a, b in found)
            holds = holds and good == len(found)
            rows.append(
                f"<tr><th scope='row'>{_swatch(story, arm)}{_e(arm.title)}, {label}</th><td>{square:.4f}</td>"
                f"<td>{least:.4f}</td><td>{good} of {len(found)}</td></tr>"
            )
    if not rows:
        raise _Missing("No run has figures to check.")
    head = ["arm and label", "RMSE²", "(1 − PCC²) · Var", "holds in"]
    verdict = "It holds for every run here." if holds else "It does not hold everywhere: a figure here is wrong."
    text = (
        "<p>No predictions are nearer to the labels than the best line through them: RMSE² ≥ (1 − PCC²) · Var(label). "
        f"{verdict}</p>"
    )
    text += _table("Both sides of the bound. Mean over runs.", head, rows)
    table = published.published_table(story.dataset)
    if table.dataset == "AffectNet":
        bad = [
            f"{row.method}, {row.backbone} ({' and '.join(marks)})"
            for row in published.TABLE_1.rows
            if (marks := published.impossible(row))
        ]
        sd = published.AFFECTNET_SD
        text += _notes(
            [
                f"Of the published rows on AffectNet, these break it on the usual 3,999 validation labels (standard "
                f"deviation {sd['valence']} and {sd['arousal']}), with every figure allowed an error of 0.005: "
                f"{_e('; '.join(bad))}. They may be of other labels, or averaged over batches; the paper does not say."
            ]
        )
    return text


# Charts


def _grid(figures: Sequence[str], kind: str = "") -> str:
    return f"<div class='grid {kind}'>" + "".join(f"<figure>{f}</figure>" for f in figures) + "</div>"


def _series(
    story: Story, arms: Sequence[Arm], *names: str
) -> list[tuple[str, str, list[tuple[list[float], list[float]]]]]:
    made = []
    for arm in arms:
        seeds = [(list(map(float, c.steps)), c.values) for run in arm.runs if (c := run.curve(*names)) is not None]
        if seeds:
            made.append((arm.title, story.colours[arm.name], seeds))
    return made


LOSSES = (
    ("Regression loss L_AV", ("regression",), "L_AV"),
    ("Critic's loss L_c", ("critic",), "L_c"),
    ("Adversarial loss L_adv", ("adversarial",), "L_adv"),
)
VALIDATION = (
    ("Mean CCC, validation", ("ccc/mean", "ccc_mean", "ccc"), "CCC"),
    ("RMSE, validation", ("rmse/mean", "rmse_mean", "rmse"), "RMSE"),
)


def _training(story: Story) -> str:
    if not any(run.curves for arm in story.arms for run in arm.runs):
        raise _Missing("No run has a scalars.csv: nothing was logged.")
    made = []
    for title, names, y in (*LOSSES, *VALIDATION):
        series = _series(story, story.arms, *names)
        if series:
            ends = ", ".join(f"{name} {np.mean([values[-1] for _, values in seeds]):.3g}" for name, _, seeds in series)
            longest = max(len(values) for _, _, seeds in series for _, values in seeds)
            smooth = 1 if "validation" in title else max(1, longest // 60)
            made.append(charts.curves(title, series, y=y, alt=f"At the end: {ends}.", smooth=smooth))
    if not made:
        raise _Missing("The runs' logs have none of the curves that are shown here.")
    several = any(len(arm.runs) > 1 for arm in story.arms)
    note = "Faint lines are single seeds, strong ones their mean. " if several else ""
    return _grid(made) + _notes([f"{note}Losses are averaged over neighbouring entries of the log."])


def _margin(story: Story) -> str:
    arm = story.main
    names = (("α̂", ("alpha", "margin"), 0), ("MI", ("mi",), 1), ("Δ", ("delta",), 2))
    series = []
    for name, keys, hue in names:
        found = _series(story, [arm], *keys)
        if found:
            series.append((name, charts.PALETTE[hue], found[0][2]))
    if len(series) < 2:
        raise _Missing(f"The log of {arm.title} has no MI and Δ: its margin is not adaptive, or was not logged.")
    ends = ", ".join(f"{name} {np.mean([v[-1] for _, v in seeds]):.3f}" for name, _, seeds in series)
    begins = ", ".join(f"{name} {np.mean([v[0] for _, v in seeds]):.3f}" for name, _, seeds in series)
    alt = f"At the beginning: {begins}. At the end: {ends}."
    longest = max(len(values) for _, _, seeds in series for _, values in seeds)
    one = charts.curves("MI, Δ and α̂ = MI + Δ", series, y="in units of D²", alt=alt, smooth=max(1, longest // 80))
    made = [one]
    k = _series(story, [arm], "k")
    if k:
        ends = f"{np.mean([v[-1] for _, v in k[0][2]]):.3g}"
        made.append(charts.curves("K, the neighbourhood of Δ", k, y="K", alt=f"At the end: {ends}."))
    strong = _series(story, [arm], "strong")
    if strong:
        ends = f"{np.mean([v[-1] for _, v in strong[0][2]]):.2f}"
        made.append(charts.curves("Share of strong emotions", strong, y="share of a batch", alt=f"At the end: {ends}."))
    return f"<p>{_e(arm.title)}; the paper's Figure 2. {_e(alt)}</p>" + _grid(made)


def _with_arrays(arm: Arm, *names: str) -> Run | None:
    return next((run for run in arm.runs if all(name in run.arrays for name in names)), None)


def _data_url(picture: NDArray[np.uint8]) -> str:
    memory = io.BytesIO()
    Image.fromarray(picture).save(memory, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode()


def _pair(values: NDArray[Any]) -> str:
    return _minus(f"{float(values[0]):+.2f}, {float(values[1]):+.2f}")


def _video(story: Story) -> str:
    keys = ("video_frame", "video_truth", "video_prediction")
    run = _with_arrays(story.main, *keys)
    if run is None:
        raise _Missing("No run evaluated the frames of a video.")
    shown = [(story.main, run)]
    if story.baseline is not None and story.main is not story.baseline:
        other = _with_arrays(story.baseline, *keys)
        if other is not None and np.array_equal(other.arrays["video_truth"], run.arrays["video_truth"]):
            shown.insert(0, (story.baseline, other))
    frame, truth = run.arrays["video_frame"].astype(float), run.arrays["video_truth"].astype(float)
    made = []
    for i, label in enumerate(LABELS):
        lines, told = [], []
        for arm, one in shown:
            values = one.arrays["video_prediction"][:, i].astype(float)
            lines.append((arm.title, story.colours[arm.name], values))
            told.append(f"{arm.title}: RMSE {math.sqrt(float(np.mean((values - truth[:, i]) ** 2))):.3f}")
        alt = f"{len(frame)} frames. " + "; ".join(told) + "."
        made.append(charts.over_frames(label.capitalize(), frame, truth[:, i], lines, label, alt))
    strip = ""
    if "video_images" in run.arrays:
        for at, picture in zip(run.arrays["video_strip"], run.arrays["video_images"], strict=True):
            guess = _pair(run.arrays["video_prediction"][at])
            text = f"frame {int(frame[at])}: labelled {_pair(truth[at])}, predicted {guess}"
            strip += f"<figure><img src='{_data_url(picture)}' alt='{_e(text)}' width='90' height='90'>"
            strip += f"<figcaption>frame {int(frame[at])}</figcaption></figure>"
        strip = f"<div class='strip'>{strip}</div>"
    name = str(run.arrays.get("video_name", "")) or "one video"
    return f"<p>Video “{_e(name)}”, seed {run.seed}; the paper's Figure 3.</p>" + _grid(made, "wide") + strip


def _some(n: int, most: int) -> NDArray[np.int64]:
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(0).permutation(n)[:most])


def _scatter(story: Story) -> str:
    made, seeds = [], set()
    for arm in story.shown or [story.main]:
        run = _with_arrays(arm, "truth", "prediction")
        if run is None:
            continue
        seeds.add(run.seed)
        rows = _some(len(run.arrays["truth"]), 600)
        truth, guess = run.arrays["truth"][rows].astype(float), run.arrays["prediction"][rows].astype(float)
        colour = story.colours[arm.name]
        spread = (
            "predictions spread {:.2f} by {:.2f} where labels spread {:.2f} by {:.2f} (standard deviations)".format(
                *guess.std(axis=0), *truth.std(axis=0)
            )
        )
        made.append(charts.plane(f"{arm.title}: the plane", truth, guess, colour, f"{spread}."))
        for i, label in enumerate(LABELS):
            ccc = figure(run.result, "ccc", label)
            alt = f"{len(rows)} images" + ("." if ccc is None else f", CCC {ccc:.3f}.")
            made.append(charts.against(f"{arm.title}: {label}", truth[:, i], guess[:, i], label, colour, alt))
    if not made:
        raise _Missing("No run has an evaluation.npz: its predictions were not kept.")
    note = f"{'Seed' if len(seeds) == 1 else 'Seeds'} {', '.join(map(str, sorted(seeds)))}; at most 600 images."
    return _grid(made) + _notes([note + " The dashed line is where prediction and label are equal."])


def _maps(story: Story) -> str:
    made = []
    kind, kinds = story.identity, _e(plural(story.identity))
    for arm in story.shown or [story.main]:
        run = _with_arrays(arm, "features", "feature_index", "truth", "person")
        if run is None or len(run.arrays["features"]) < 8:
            continue
        places, rows = charts.feature_map(run.arrays["features"])
        index = run.arrays["feature_index"][rows]
        person, truth = run.arrays["person"][index], run.arrays["truth"][index].astype(float)
        intensity = np.linalg.norm(truth, axis=1)
        n = len(np.unique(person[person >= 0]))
        if n > 1:
            alt = f"t-SNE of {len(rows)} images of {n} {plural(kind)}; {min(n, len(charts.PEOPLE))} have a colour each."
            made.append(charts.map_by_person(f"{arm.title}: by {kind}", places, person, alt))
        alt = f"t-SNE of {len(rows)} images, from neutral to intense."
        made.append(charts.map_by_intensity(f"{arm.title}: by intensity", places, intensity, alt))
    if not made:
        raise _Missing("No run kept features of the encoder.")
    return _grid(made, "pairs") + _notes(
        [
            f"t-SNE of features of {_e(story.unseen)}; at most {len(charts.PEOPLE)} {kinds} have a colour, the "
            f"others are faint. Islands of one colour in a map by {_e(kind)} are features that know who it is.",
            "t-SNE keeps neighbours, not distances; the <a href='#leakage'>table of leakage</a> has the numbers.",
        ]
    )


def _pictures(story: Story) -> str:
    run = _with_arrays(story.main, "best_images", "worst_images")
    if run is None:
        raise _Missing("No run kept pictures of its best and worst predictions.")
    text = (
        f"<p>{_e(story.main.title)}, seed {run.seed}. Under each picture: labelled and predicted valence, arousal.</p>"
    )
    for name, title in (("best", "Nearest to their labels"), ("worst", "Farthest from their labels")):
        text += f"<h3>{title}</h3><div class='faces'>"
        for at, picture in zip(run.arrays[name], run.arrays[f"{name}_images"], strict=True):
            truth, guess = _pair(run.arrays["truth"][at]), _pair(run.arrays["prediction"][at])
            alt = f"face labelled {truth}, predicted {guess}"
            text += (
                f"<figure><img src='{_data_url(picture)}' alt='{alt}' width='90' height='90'>"
                f"<figcaption><b>{truth}</b><br>{guess}</figcaption></figure>"
            )
        text += "</div>"
    return text


# Where it comes from


def _config(story: Story) -> str:
    run = story.main.runs[0]
    text = ""
    command = run.environment.get("command")
    if isinstance(command, list) and command:
        words = (
            ["python", *map(str, command[1:])] if "python" in Path(str(command[0])).name else list(map(str, command))
        )
        text += f"<h3>Reproduce</h3><pre><code>{_e(shlex.join(words))}</code></pre>"
        commit = run.environment.get("commit")
        if commit:
            dirty = " with files changed since" if str(commit).endswith("+") else ""
            text += f"<p>at commit <code>{_e(str(commit).rstrip('+'))}</code>{dirty}.</p>"
    differing = _differences(story.arms)
    if differing:
        head = ["option", *[arm.title for arm in story.arms]]
        rows = [
            f"<tr><th scope='row'><code>{_e(name)}</code></th>" + "".join(f"<td>{_e(v)}</td>" for v in values) + "</tr>"
            for name, values in differing
        ]
        text += "<h3>Where the arms differ</h3>" + _table("Options that differ between arms.", head, rows)
    if run.config:
        flat = _flat(run.config)
        lines = "\n".join(f"{name}: {value}" for name, value in flat.items())
        text += f"<details><summary>Configuration of {_e(run.arm)}, seed {run.seed}</summary>"
        text += f"<pre><code>{_e(lines)}</code></pre></details>"
    versions = run.environment.get("versions", {})
    if versions:
        rows = [f"<tr><th scope='row'>{_e(name)}</th><td>{_e(version)}</td></tr>" for name, version in versions.items()]
        for name in ("device", "platform", "processes", "threads", "cuda"):
            if run.environment.get(name) is not None:
                rows.append(f"<tr><th scope='row'>{name}</th><td>{_e(run.environment[name])}</td></tr>")
        text += "<h3>Versions</h3>" + _table("What it ran on.", ["", "version"], rows)
    if not text:
        raise _Missing("No run has a config.yaml or environment.json.")
    return text


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value
    return flat


def _differences(arms: Sequence[Arm]) -> list[tuple[str, list[Any]]]:
    configs = [_flat(arm.runs[0].config) for arm in arms]
    names = [name for name in dict.fromkeys(n for c in configs for n in c) if name not in ("seed", "output")]
    columns = [(name, [config.get(name, "") for config in configs]) for name in names]
    return [(name, values) for name, values in columns if len({repr(v) for v in values}) > 1]
