"""The report of a run, or of the runs of an ablation: one self-contained HTML file.

``adaptive-margin report DIR``
"""

from __future__ import annotations

import functools
import math
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from ..metrics.comparison import signed
from ..reports import _charts as charts
from ..reports._page import Missing, Section, check_page, picture, write_page
from ..reports._tables import code, column_groups, details, grid, interval, notes, paragraph, row, table
from ..training.config_files import flat
from . import published
from .model_card import DATA
from .nets import LABELS
from .runs import (
    Arm,
    Measured,
    Run,
    apart,
    collapsed,
    differences,
    figure,
    identity_of,
    inside,
    leakage_difference,
    measured,
    over_seeds,
    pairs,
    plural,
    read_runs,
)

REST = ("rmse", "sagr", "pcc")  # CCC comes first and has columns of its own
DATASETS = {name: title for name, (title, *_) in DATA.items()}
DATASETS["affectnet-2017"] = DATASETS["affectnet"]  # as older runs call it


@dataclass
class Story:
    """The data from which the sections are made."""

    arms: list[Arm]  # baseline first
    baseline: Arm | None  # the arm without critic
    main: Arm  # shown in detail: CAF with the adaptive margin, if there is one
    colours: Mapping[str, str]  # of each arm
    dataset: str  # as the runs' configs name it
    problems: list[str] = field(default_factory=list)  # what could not be read or compared

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
        whom = "whom" if self.identity in ("person", "actor") else "which"
        return f"{kinds}, some of {whom} were seen in training" if shared else f"{kinds} not seen in training"

    @property
    def shown(self) -> list[Arm]:
        """Main arm and baseline, if they are two: the arms that pictures compare."""
        return [self.main] if self.baseline in (None, self.main) else [self.baseline, self.main]

    @functools.cached_property
    def gaps(self) -> dict[str, Measured | None]:
        """Each other arm's CCC minus the baseline's; over seeds, with intervals corrected for the number of arms."""
        others = [arm for arm in self.arms if arm is not self.baseline]
        return differences(others, self.baseline) if self.baseline is not None else {}

    def row(self, arm: Arm, cells: Iterable[object], name: str = "") -> Markup:
        """A row of a table, with the arm's colour."""
        return row(name or arm.title, cells, colour=self.colours[arm.name])


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
    check_page(path, overwrite, flag="output")
    story = tell(*read_runs(folder, leave_out))
    parts: list[tuple[str, str, Callable[[Story], str]]] = [
        ("figures", f"Figures on {story.unseen}", _figures),
        ("breakdown", f"Which {plural(story.identity)} and which emotions are predicted well", _breakdown),
        ("leakage", "What the features say about who it is", _leakage),
        ("training", "Training", _training),
        ("margin", "The margin over training", _margin),
        ("video", "Over the frames of a video", _video),
        ("scatter", "Predicted and labelled", _scatter),
        ("maps", "Maps of the encoder's features", _maps),
        ("pictures", "Best and worst predictions", _pictures),
        ("bound", "Are the figures possible?", _bound),
        ("config", "Configuration and versions", _config),
    ]
    sections = [Section.of(name, title, make, story) for name, title, make in parts]
    write_page(path, _title(story), _lead(story), sections, facts=_facts(story), problems=story.problems)
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
    if baseline is not None:
        problems = problems + _not_compared(others, baseline)
    configs = [run.config for arm in arms for run in arm.runs]
    dataset = next((str(config["dataset"]) for config in configs if config.get("dataset")), "")
    return Story(arms, baseline, main, colours, dataset, problems)


def _not_compared(arms: Sequence[Arm], baseline: Arm) -> list[str]:
    """A sentence for each run that has a partner of the same seed, but none on the same data."""
    found = []
    for arm in arms:
        for run in arm.runs:
            whys = [apart(one, two) for one, two in pairs(arm, baseline) if one is run]
            if whys and all(whys):
                what = f"{arm.title}, seed {run.seed}, is not compared with {baseline.title}"
                found.append(f"{what}, because their data differ ({whys[0]})")
    return found


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
    if story.baseline is None or story.main is story.baseline:
        return f"{story.main.title} reaches a mean CCC of {own.mean:.3f} on {story.unseen} ({_n(own.n, 'seed')})."
    gap, base = story.gaps[story.main.name], measured(story.baseline, "ccc", "mean")
    if gap is None or base is None:
        text = f"{story.main.title} reaches a mean CCC of {own.mean:.3f}"
        return f"{text}; there is no baseline with the same seed and data."
    text = f"{story.main.title} reaches a mean CCC of {own.mean:.3f} on {story.unseen}, "
    text += f"{story.baseline.title} {base.mean:.3f}: paired difference {signed(gap.mean, 3)}"
    if math.isnan(gap.low):
        return f"{text}, one pair, no interval: nothing can be concluded."
    drawn = _n(gap.n, "seed")
    if gap.by != "seed":
        drawn += f", resampled by {gap.by}"
    elif len(story.gaps) > 1:
        drawn += f", corrected for {_n(len(story.gaps), 'arm')}"
    text += f" (95% {signed(gap.low, 3)} to {signed(gap.high, 3)}, {drawn})"
    verdict = "better than the baseline" if gap.low > 0 else "worse than the baseline" if gap.high < 0 else ""
    if not verdict:
        same = gap.mean == gap.low == gap.high == 0
        return f"{text}: the two are identical." if same else f"{text}: no clear difference."
    return f"{text}: {verdict}{', with this one seed' if gap.n == 1 else ''}."


def _n(n: Any, what: str) -> str:
    return f"{n:,} {plural(what, n)}" if isinstance(n, int) else ""


def _facts(story: Story) -> list[tuple[str, str]]:
    run = next((r for arm in (story.main, *story.arms) for r in arm.runs if r.result), story.main.runs[0])
    test, environment = run.result.get("test", {}), run.environment
    identities = test.get("identities", test.get("people"))  # as older results call them
    of = f" of {identities} {plural(story.identity, identities)}" if identities else ""
    return [
        ("data", DATASETS.get(story.dataset, story.dataset)),
        ("encoder", str(run.config.get("encoder", ""))),
        ("tested on", _n(test.get("rows"), "image") + of),
        ("runs", f"{sum(len(arm.runs) for arm in story.arms)} in {_n(len(story.arms), 'arm')}"),
        ("iterations", f"{run.config['iterations']:,}" if isinstance(run.config.get("iterations"), int) else ""),
        ("device", str(environment.get("device", ""))),
        ("started", str(environment.get("started", ""))[:16].replace("T", " ")),
    ]


# Tables


def _cell(found: Measured | None, sign: bool = False) -> Markup | None:
    return None if found is None else interval(found.mean, found.low, found.high, sign=sign)


def _figures(story: Story) -> Markup:
    first = measured(story.main, "ccc", "mean")
    if all(measured(arm, "ccc", "mean") is None for arm in story.arms):
        raise Missing("No run has a result.json with figures: the runs were not evaluated.")
    quoted = published.published_table(story.dataset)
    rows, flagged = [], False
    for arm in story.arms:
        mean = measured(arm, "ccc", "mean")
        gap = _cell(story.gaps.get(arm.name), sign=True)
        own, *rest = ([_cell(measured(arm, name, label)) for label in LABELS] for name in ("ccc", *REST))
        cells = ["" if mean is None else mean.n, *own, _cell(mean), gap, *(cell for pair in rest for cell in pair)]
        rows.append(story.row(arm, cells))
        theirs = published.published_row(quoted, arm.critic, arm.margin, str(arm.runs[0].config.get("encoder", "")))
        if theirs is not None:
            marks = published.impossible(theirs) if quoted.dataset == "AffectNet" else []
            flagged = flagged or bool(marks)
            rows.append(_quoted(theirs, f"published: {theirs.method}, {theirs.backbone}", marks, beside_ours=True))
    head = ["arm", "seeds", "valence", "arousal", "mean", "minus baseline", *LABELS * len(REST)]
    groups = column_groups([("", 2), ("CCC", 4), *((name.upper(), 2) for name in REST)])
    caption = (
        f"Our figures on {DATASETS.get(story.dataset, story.dataset) or 'this data set'}, and those that "
        f"{published.SOURCE} print in {quoted.name} for {quoted.dataset}. Mean over seeds; below it the 95% interval."
    )
    same = DATASETS.get(story.dataset, "").startswith(quoted.dataset)
    said = [
        f"Rows in italics are quoted as published, measured by their authors on {quoted.dataset}"
        + (", with their own split and choice of epoch: compare with care." if same else ": not comparable with ours."),
        "Our intervals are Student's t over seeds."
        if first is not None and first.n > 1
        else f"With one seed, intervals are a bootstrap of the one run by {first.by if first else 'sample'}: they "
        "do not include the variation between seeds.",
        "Over seeds, intervals of the difference from the baseline are corrected for the number of arms (Holm).",
        "RMSE: lower is better; SAGR, PCC, CCC: higher is better.",
    ]
    every = [(arm, run, collapsed(run)) for arm in story.arms for run in arm.runs]
    if dead := "; ".join(f"{arm.title}, seed {run.seed}, {what}" for arm, run, what in every if what):
        said.append(Markup("<strong>Collapsed:</strong> {}. Such a run says nothing about the method.").format(dead))
    if flagged:
        said.append(
            Markup(
                "<sup>†</sup> This RMSE is not possible together with the published correlations on AffectNet's usual "
                "validation labels (see <a href='#bound'>the bound</a>)."
            )
        )
    return table(caption, head, rows, groups) + notes(said) + _quoted_table(quoted)


def _quoted(each: published.Published, name: str, marks: Sequence[str], beside_ours: bool = False) -> Markup:
    cells: list[object] = []
    for what in ("ccc", *REST):
        for label, value in zip(LABELS, getattr(each, what) or (None, None), strict=True):
            mark = Markup("<sup>†</sup>") if what == "rmse" and label in marks else ""
            digits = 2 if value is None or round(value, 2) == value else 4  # as printed
            cells.append(None if value is None else escape(f"{value:.{digits}f}") + mark)
        if what == "ccc" and beside_ours:
            cells += [None, None]
    return row(name, cells, "aside", span=2 if beside_ours else 1)


def _quoted_table(quoted: published.PublishedTable) -> Markup:
    rows = []
    for each in quoted.rows:
        name = f"{each.method}, {each.backbone}" if each.backbone else each.method
        rows.append(_quoted(each, name, published.impossible(each) if quoted.dataset == "AffectNet" else []))
    groups = column_groups([("", 1), *((name.upper(), 2) for name in ("ccc", *REST))])
    caption = f"{published.SOURCE}, {quoted.name}: {quoted.dataset}, as published. No row was measured here."
    inner = table(caption, ["method", *LABELS * 4], rows, groups)
    return details(f"All of the paper's {quoted.name} ({quoted.dataset})", inner)


BREAKDOWN: dict[str, tuple[str | int, ...]] = {
    "CCC": ("figures", "ccc", "mean"),
    "strong": ("breakdown", "strong_ccc"),
    "weak": ("breakdown", "weak_ccc"),
    "mean": ("breakdown", "person_error"),
    "worst tenth": ("breakdown", "worst_decile"),
    "valence": ("breakdown", "slope", 0),
    "arousal": ("breakdown", "slope", 1),
    "MAP@R": ("leakage", "map_at_r"),
}
"""A column of the table, and where a result has it."""


def _reading(result: Mapping[str, Any], several: bool) -> Mapping[str, Any]:
    """What a run found by single pictures of a stranger, or by all of them."""
    if several:
        return result.get("by_person") or {}
    figures, leakage = inside(result, "test", "figures"), inside(result, "leakage", "unseen")
    return {"figures": figures, "breakdown": result.get("breakdown"), "leakage": leakage}


def _breakdown(story: Story) -> Markup:
    """Each arm, and where it normalises by person, its reading by all pictures of a person."""
    kind, kinds = story.identity, plural(story.identity)
    rows = []
    for arm in story.arms:
        for several in (False, True):
            read = [_reading(run.result, several) for run in arm.runs]
            found = [each for each in read if each.get("breakdown")]
            if found:
                cells = [_cell(over_seeds(inside(each, *path) for each in found)) for path in BREAKDOWN.values()]
                name = f"{arm.title}, by all pictures of the {kind}" if several else ""
                rows.append(story.row(arm, cells, name))
    if not rows:
        raise Missing("No run has a breakdown: the runs are older than this table.")
    groups = column_groups([("", 1), ("CCC", 3), (f"error per {kind}", 2), ("slope", 2), ("identity", 1)])
    caption = f"Tested on {story.unseen}. Mean over seeds; below it the 95% interval."
    return table(caption, ["arm", "all", *list(BREAKDOWN)[1:]], rows, groups) + notes(
        [
            "An emotion is strong if its radius √(valence² + arousal²) reaches Otsu's threshold.",
            f"The error per {kind} is the mean distance between predictions and labels; the worst tenth are the "
            f"{kinds} with the largest errors. The slope is that of labels on predictions: 1 means calibrated.",
            f"Identity: MAP@R of the features that the regressor gets. “By all pictures” means that features are "
            f"normalised by those of the same {kind}, without using labels.",
        ]
    )


def _leakage(story: Story) -> Markup:
    every = [run.result for arm in story.arms for run in arm.runs]
    sides = [side for side in ("unseen", "seen") if any(inside(result, "leakage", side) for result in every)]
    if not sides:
        raise Missing("No run measured identity leakage: that needs data that say who is in each picture.")

    def over(arm: Arm, side: str, key: str) -> Measured | None:
        values = [of for run in arm.runs if inside(of := inside(run.result, "leakage", side), key) is not None]
        found = over_seeds(each[key] for each in values)
        if found is not None and found.n == 1 and key == "probe_accuracy":
            low, high = values[0].get("probe_low"), values[0].get("probe_high")
            if low is not None and high is not None:
                found = found._replace(low=low, high=high, by=story.identity)
        return found

    keys = {"recall_at_1": "Recall@1", "map_at_r": "MAP@R", "probe_accuracy": "linear probe"}
    rows = []
    for arm in story.arms:
        gap = None
        if story.baseline is not None and arm is not story.baseline:
            gap = _cell(leakage_difference(arm, story.baseline, sides[0]), sign=True)
        rows.append(story.row(arm, [*(_cell(over(arm, side, key)) for side in sides for key in keys), gap]))
    chance = [
        over(story.main, side, key) or over(story.arms[0], side, key)
        for side in sides
        for key in ("recall_at_1_chance", "map_at_r_chance", "probe_chance")
    ]
    rows.append(row("by chance", [*(None if each is None else f"{each.mean:.3f}" for each in chance), ""], "aside"))
    kind, kinds = story.identity, plural(story.identity)
    head = ["arm", *list(keys.values()) * len(sides), f"MAP@R minus baseline ({sides[0]})"]
    caption = f"How well {kinds} can be told apart by the encoder's features. Lower figures say less about who it is."
    groups = column_groups([("", 1), *((f"{side} {kinds}", 3) for side in sides), ("", 1)])
    return table(caption, head, rows, groups) + notes(
        [
            f"Recall@1 and MAP@R: whether a picture's nearest neighbours by cosine are of the same {kind}. Linear "
            f"probe: how often a logistic regression, fitted on half of each {kind}'s pictures, names the {kind} "
            "correctly on the other half.",
            f"The more {kinds}, the harder they are to tell apart: compare arms with each other and with chance, not "
            f"seen {kinds} with unseen ones.",
            "A critic that makes an encoder person-independent lowers these figures below the baseline's without "
            "lowering CCC.",
        ]
    )


def _bound(story: Story) -> Markup:
    rows, holds = [], True
    for arm in story.arms:
        for label in LABELS:
            known = [[figure(run.result, name, label) for name in ("rmse", "pcc", "label_sd")] for run in arm.runs]
            found = [(e**2, (1 - r**2) * sd**2) for e, r, sd in known if None not in (e, r, sd)]  # type: ignore[operator]
            if not found:
                continue
            square, least = np.mean(found, axis=0)
            good = sum(a >= b * (1 - 1e-6) - 1e-12 for a, b in found)
            holds = holds and good == len(found)
            cells = [f"{square:.4f}", f"{least:.4f}", f"{good} of {len(found)}"]
            rows.append(story.row(arm, cells, f"{arm.title}, {label}"))
    if not rows:
        raise Missing("No run has figures to check.")
    head = ["arm and label", "RMSE²", "(1 − PCC²) · Var", "holds in"]
    verdict = "It holds for every run here." if holds else "It does not hold everywhere: a figure here is wrong."
    text = paragraph(
        "No predictions can be nearer to the labels than the best line through them: RMSE² ≥ (1 − PCC²) · Var(label). "
        + verdict
    )
    text += table("Both sides of the bound. Mean over runs.", head, rows)
    if published.published_table(story.dataset).dataset == "AffectNet":
        marked = [(each, published.impossible(each)) for each in published.TABLE_1.rows]
        bad = "; ".join(f"{each.method}, {each.backbone} ({' and '.join(marks)})" for each, marks in marked if marks)
        sd = published.AFFECTNET_SD
        text += notes(
            [
                f"Of the published rows on AffectNet, these break it on the usual 3,999 validation labels (standard "
                f"deviation {sd['valence']} and {sd['arousal']}), even if every figure may be off by 0.005: {bad}. "
                "They may refer to other labels, or be averaged over batches; the paper does not say."
            ]
        )
    return text


# Charts

CURVES = (
    ("Regression loss", ("regression",), "$L_{AV}$"),
    ("Critic's loss", ("critic",), "$L_c$"),
    ("Adversarial loss", ("adversarial",), "$L_{adv}$"),
    ("Mean CCC, validation", ("ccc/mean", "ccc_mean", "ccc"), "CCC"),
    ("RMSE, validation", ("rmse/mean", "rmse_mean", "rmse"), "RMSE"),
)


def _seeds(arm: Arm, *names: str) -> list[tuple[list[float], list[float]]]:
    """(steps, values) of a curve, for each run that has it."""
    return [(list(map(float, c.steps)), c.values) for run in arm.runs if (c := run.curve(*names)) is not None]


def _mean_at(seeds: charts.Seeds, place: int) -> float:
    return float(np.mean([values[place] for _, values in seeds]))


def _smoothing(series: Sequence[tuple[str, str, charts.Seeds]], points: int) -> int:
    return max(1, max(len(values) for _, _, seeds in series for _, values in seeds) // points)


def _training(story: Story) -> Markup:
    if not any(run.curves for arm in story.arms for run in arm.runs):
        raise Missing("No run has a scalars.csv: nothing was logged.")
    made = []
    for title, names, y in CURVES:
        every = [(arm.title, story.colours[arm.name], _seeds(arm, *names)) for arm in story.arms]
        if series := [each for each in every if each[2]]:
            ends = ", ".join(f"{name} {_mean_at(seeds, -1):.3g}" for name, _, seeds in series)
            smooth = 1 if "validation" in title else _smoothing(series, 60)
            made.append(charts.curves(title, series, y=y, alt=f"At the end: {ends}.", smooth=smooth))
    if not made:
        raise Missing("The runs' logs have none of the curves that are shown here.")
    several = any(len(arm.runs) > 1 for arm in story.arms)
    note = "Faint lines are single seeds, strong ones their mean. " if several else ""
    return grid(made) + notes([f"{note}Losses are averaged over neighbouring entries of the log."])


def _margin(story: Story) -> Markup:
    arm = story.main
    parts = (("α̂", ("alpha", "margin")), ("MI", ("mi",)), ("Δ", ("delta",)))
    every = [(name, hue, _seeds(arm, *keys)) for (name, keys), hue in zip(parts, charts.PALETTE, strict=False)]
    series = [each for each in every if each[2]]
    if len(series) < 2:
        raise Missing(f"The log of {arm.title} has no MI and Δ: its margin is not adaptive, or was not logged.")
    begins, ends = (", ".join(f"{name} {_mean_at(seeds, at):.3f}" for name, _, seeds in series) for at in (0, -1))
    alt = f"At the beginning: {begins}. At the end: {ends}."
    title = "MI, Δ and α̂ = MI + Δ"
    made = [charts.curves(title, series, y="in units of D²", alt=alt, smooth=_smoothing(series, 80))]
    for key, title, y in (
        ("k", "K, the neighbourhood of Δ", "K"),
        ("strong", "Share of strong emotions", "share of a batch"),
    ):
        if seeds := _seeds(arm, key):
            end = f"At the end: {_mean_at(seeds, -1):.3g}."
            made.append(charts.curves(title, [(arm.title, story.colours[arm.name], seeds)], y=y, alt=end))
    return paragraph(f"{arm.title}, as in the paper's Figure 2. {alt}") + grid(made)


def _with_arrays(arm: Arm, *names: str) -> Run | None:
    return next((run for run in arm.runs if all(name in run.arrays for name in names)), None)


def _pair(values: NDArray[Any]) -> str:
    return f"{signed(values[0], 2)}, {signed(values[1], 2)}"


def _face(pixels: NDArray[np.uint8], alt: str, below: str) -> Markup:
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(picture(pixels, alt, 90), below)


def _video(story: Story) -> Markup:
    keys = ("video_frame", "video_truth", "video_prediction")
    run = _with_arrays(story.main, *keys)
    if run is None:
        raise Missing("No run evaluated the frames of a video.")
    found = [(arm, _with_arrays(arm, *keys)) for arm in story.shown]
    shown = [
        (arm, one.arrays["video_prediction"].astype(float))
        for arm, one in found
        if one is not None and np.array_equal(one.arrays["video_truth"], run.arrays["video_truth"])
    ]
    frame, truth = run.arrays["video_frame"].astype(float), run.arrays["video_truth"].astype(float)
    made = []
    for i, label in enumerate(LABELS):
        lines: list[tuple[str, str, charts.Seeds]] = [("label", charts.INK, [(frame, truth[:, i])])]
        lines += [(arm.title, story.colours[arm.name], [(frame, guess[:, i])]) for arm, guess in shown]
        errors = [f"{arm.title}: RMSE {math.sqrt(np.mean((g[:, i] - truth[:, i]) ** 2)):.3f}" for arm, g in shown]
        alt = f"{len(frame)} frames. {'; '.join(errors)}."
        made.append(charts.curves(label.capitalize(), lines, y=label, x="frame", alt=alt, size=(7.0, 3.0)))
    strip = Markup("")
    if "video_images" in run.arrays:
        for at, pixels in zip(run.arrays["video_strip"], run.arrays["video_images"], strict=True):
            number, guess = f"frame {int(frame[at])}", _pair(run.arrays["video_prediction"][at])
            strip += _face(pixels, f"{number}: labelled {_pair(truth[at])}, predicted {guess}", number)
        strip = Markup("<div class='strip'>{}</div>").format(strip)
    name = str(run.arrays.get("video_name", "")) or "one video"
    return paragraph(f"Video “{name}”, seed {run.seed}, as in the paper's Figure 3.") + grid(made, "wide") + strip


def _scatter(story: Story) -> Markup:
    made, seeds = [], set()
    for arm in story.shown:
        run = _with_arrays(arm, "truth", "prediction")
        if run is None:
            continue
        seeds.add(run.seed)
        rows = np.random.default_rng(0).permutation(len(run.arrays["truth"]))[:600]
        truth, guess = run.arrays["truth"][rows].astype(float), run.arrays["prediction"][rows].astype(float)
        colour = story.colours[arm.name]
        theirs, ours = (" by ".join(f"{each:.2f}" for each in x.std(axis=0)) for x in (guess, truth))
        spread = f"predictions spread {theirs} where labels spread {ours} (standard deviations)."
        made.append(charts.plane(f"{arm.title}: the plane", truth, guess, colour, spread))
        for i, label in enumerate(LABELS):
            ccc = figure(run.result, "ccc", label)
            alt = f"{len(rows)} images" + ("." if ccc is None else f", CCC {ccc:.3f}.")
            made.append(charts.against(f"{arm.title}: {label}", truth[:, i], guess[:, i], label, colour, alt))
    if not made:
        raise Missing("No run has an evaluation.npz: its predictions were not kept.")
    note = f"{plural('Seed', len(seeds))} {', '.join(map(str, sorted(seeds)))}; at most 600 images."
    return grid(made) + notes([note + " The dashed line is where prediction and label are equal."])


def _maps(story: Story) -> Markup:
    made = []
    kind, kinds = story.identity, plural(story.identity)
    for arm in story.shown:
        run = _with_arrays(arm, "features", "feature_index", "truth", "person")
        if run is None or len(run.arrays["features"]) < 8:
            continue
        places, rows = charts.feature_map(run.arrays["features"])
        index = run.arrays["feature_index"][rows]
        person, truth = run.arrays["person"][index], run.arrays["truth"][index].astype(float)
        n = len(np.unique(person[person >= 0]))
        if n > 1:
            alt = (
                f"t-SNE of {len(rows)} images of {n} {kinds}; {min(n, len(charts.GROUPS))} have a colour of their own."
            )
            made.append(charts.map_by_group(f"{arm.title}: by {kind}", places, person, alt))
        alt = f"t-SNE of {len(rows)} images, from neutral to intense."
        intensity = np.linalg.norm(truth, axis=1)
        made.append(charts.map_by_intensity(f"{arm.title}: by intensity", places, intensity, alt))
    if not made:
        raise Missing("No run kept features of the encoder.")
    return grid(made, "pairs") + notes(
        [
            f"t-SNE of features of {story.unseen}; at most {len(charts.GROUPS)} {kinds} have a colour; the "
            f"others are faint. Islands of one colour in a map by {kind} mean that the features know who it is.",
            Markup(
                "t-SNE keeps neighbours, not distances; the <a href='#leakage'>table of leakage</a> has the numbers."
            ),
        ]
    )


def _pictures(story: Story) -> Markup:
    run = _with_arrays(story.main, "best_images", "worst_images")
    if run is None:
        raise Missing("No run kept pictures of its best and worst predictions.")
    text = paragraph(
        f"{story.main.title}, seed {run.seed}. Below each picture: valence and arousal as labelled, and below them as "
        "predicted."
    )
    for name, title in (("best", "Nearest to their labels"), ("worst", "Farthest from their labels")):
        faces = Markup("")
        for at, pixels in zip(run.arrays[name], run.arrays[f"{name}_images"], strict=True):
            truth, guess = _pair(run.arrays["truth"][at]), _pair(run.arrays["prediction"][at])
            both = Markup("<b>{}</b><br>{}").format(truth, guess)
            faces += _face(pixels, f"face labelled {truth}, predicted {guess}", both)
        text += Markup("<h3>{}</h3><div class='faces'>{}</div>").format(title, faces)
    return text


# Where it comes from


def _config(story: Story) -> Markup:
    run = story.main.runs[0]
    text = Markup("")
    command = run.environment.get("command")
    if isinstance(command, list) and command:
        words = [str(each) for each in command]
        words[0] = "python" if "python" in Path(words[0]).name else words[0]
        text += Markup("<h3>Reproduce</h3>") + code(shlex.join(words))
        if commit := str(run.environment.get("commit") or ""):
            dirty = " with files changed since" if commit.endswith("+") else ""
            text += Markup("<p>at commit <code>{}</code>{}.</p>").format(commit.rstrip("+"), dirty)
    configs = [flat(arm.runs[0].config) for arm in story.arms]
    names = [name for name in dict.fromkeys(n for c in configs for n in c) if name not in ("seed", "output")]
    columns = {name: [config.get(name, "") for config in configs] for name in names}
    differing = {name: values for name, values in columns.items() if len({repr(v) for v in values}) > 1}
    if differing:
        head = ["option", *[arm.title for arm in story.arms]]
        rows = [row(Markup("<code>{}</code>").format(name), map(str, values)) for name, values in differing.items()]
        text += Markup("<h3>Where the arms differ</h3>") + table("Options that differ between arms.", head, rows)
    if run.config:
        lines = "\n".join(f"{name}: {value}" for name, value in flat(run.config).items())
        text += details(f"Configuration of {run.arm}, seed {run.seed}", code(lines))
    if versions := dict(run.environment.get("versions", {})):
        where = {name: run.environment.get(name) for name in ("device", "platform", "processes", "threads", "cuda")}
        versions |= {name: value for name, value in where.items() if value is not None}
        rows = [row(name, [str(value)]) for name, value in versions.items()]
        text += Markup("<h3>Versions</h3>") + table("What it ran on.", ["", "version"], rows)
    if not text:
        raise Missing("No run has a config.yaml or environment.json.")
    return text
