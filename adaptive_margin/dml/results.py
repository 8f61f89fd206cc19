"""A run's result in words, and the results of many as rows, from their folders or from a merged file."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from ..messages import counted, problem, shorten
from ..metrics.comparison import Comparison, compared
from ..stored import DamagedFileError, read_json
from ..training.model_card import markdown_table
from .config import ADAPTIVE_OPTIONS, MAY_CHANGE
from .objectives import arm_of

Row = dict[str, Any]
AGAIN = "train the run again, or move it away"
NAMES = {"r_precision": "R-Precision", "mean_average_precision_at_r": "MAP@R"}
CURVES = ("margin", "mi", "delta", "k", "beta", "loss")


def read_runs(folder: Path, problems: list[str] | None = None) -> list[Row]:
    """One row per finished run in ``folder``, or the rows of its merged ``grid.json``.

    A row has ``data``, ``loss``, ``arm``, ``seed``, ``margin``, ``units``, ``rule``, initial ``weights``,
    ``validation`` and ``step`` of the selected evaluation, ``selected_by``, ``test`` figures (None if they were not
    measured), ``seconds`` and ``curves``. A run also has its ``folder``, and ``options``: those beside the margin that
    two arms must share to be compared. Its arm follows from its configuration, never from its folder's name. Options in
    which runs of one loss on one data set differ are part of the names of their arms.

    A ``result.json`` of another program is passed over, with a line in ``problems``.

    Raises:
        DamagedFileError: a result is not what was written, or has something else in place of a figure.
        ValueError: there are neither runs nor a grid; or two runs with the same arm and seed have different
            configurations.
    """
    places = sorted(file.parent for file in folder.rglob("result.json"))
    foreign = [place for place in places if _is_foreign(place / "result.json")]
    if problems is not None:
        problems += [f"{place / 'result.json'} is not from this library: left out" for place in foreign]
    read = [(place, read_json(place / "result.json", AGAIN)) for place in places if place not in foreign]
    whole = [  # neither one fold of a run, nor a run of another trainer, which can also be in ``runs``
        (place, result) for place, result in read if "loss" in result.get("config", {}) and not _is_fold(place, result)
    ]
    runs = [(place, _checked(place, result)) for place, result in whole]
    if runs:
        rows = [row_of(result, place) for place, result in runs]
        _name_apart(rows)
        _refuse_collisions(rows, [result for _, result in runs])
        return rows
    merged = folder / "grid.json"
    if not merged.exists():
        raise ValueError(
            problem("the folder", "one with result.json below it, or grid.json in it", folder, "run first")
        )
    content = read_json(merged, "merge it again").get("runs")
    if not isinstance(content, list) or not all(isinstance(row, dict) and _is_row(row) for row in content):
        raise DamagedFileError(merged, "holds something other than the rows of runs", "merge it again")
    return [{name: value for name, value in row.items() if name != "folder"} for row in content]  # of the writer's disk


def _is_fold(place: Path, result: Mapping[str, Any]) -> bool:
    """Whether a result is that of one fold of a run; older ones do not say so, and their folder's name does."""
    return "fold" in result or re.fullmatch(r"fold-\d+-of-\d+", place.name) is not None


def _is_foreign(path: Path) -> bool:
    """Whether a ``result.json`` is whole, and neither of this trainer nor of the one for faces."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # damaged
        return False
    return not isinstance(content, dict) or ("format" not in content and not isinstance(content.get("config"), dict))


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a run.

    Raises:
        DamagedFileError: it is not what was written, or not from this trainer.
    """
    return _checked(folder, read_json(folder / "result.json", AGAIN))


def _checked(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """A checked result, whose row can be made and shown."""
    try:
        whole = _is_row(row_of(result, folder))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        whole = False
    if not whole:
        raise DamagedFileError(folder / "result.json", "does not hold the result of a run", AGAIN)
    return result


def _is_row(row: Mapping[str, Any]) -> bool:
    """Whether the shown values of a row have the types that a run writes: numbers are numbers."""

    def are(kind: Any, *values: Any) -> bool:
        return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)

    test, curves = row.get("test"), row.get("curves", {})
    margin, seconds = row.get("margin", "default"), row.get("seconds")
    return (
        are(str, row.get("data"), row.get("loss"), row.get("arm"), row.get("weights") or "")
        and are(int, row.get("seed"))
        and (margin in ("default", "adaptive") or are(float | int, margin))
        and (seconds is None or are(float | int, seconds))
        and (test is None or (are(dict, test) and are(float | int, *test.values())))
        and are(dict, curves)
        and all(are(list, curve) and are(float | int, *curve) for curve in curves.values())
    )


def row_of(result: Mapping[str, Any], folder: Path) -> Row:
    """The row of one run's result."""
    config = result["config"]
    first = result["folds"][0] if "folds" in result else result
    curves = {
        name: [float(f"{value:.3g}") for value in first["curves"][name]["values"][3::4]]  # at the ends of epochs
        for name in CURVES
        if name in first["curves"]
    }
    scores = [each["selected"]["score"] for each in result.get("folds", [result])]
    return {
        "data": first["data"]["name"],
        "loss": config["loss"],
        "arm": arm_of(config),
        "seed": config["seed"],
        "margin": config["margin"],
        "units": config["units"],
        "rule": config["neighbourhood"] if config["margin"] == "adaptive" else None,
        "weights": first["weights"],
        "selected_by": first["selected"]["by"],
        "validation": None if None in scores else round(float(np.mean(scores)), 5),
        "step": first["selected"]["step"],
        "test": None if result["test"] is None else {name: round(value, 5) for name, value in result["test"].items()},
        "seconds": first["seconds"],
        "curves": curves,
        "folder": str(folder),
        "options": _options(result),
    }


def _options(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a result depends on besides data, loss, margin and seed; for an adaptive margin also its own options."""
    config = result["config"]
    left_out = {*MAY_CHANGE, "loss", "margin", "seed", "measure"}
    if config["margin"] != "adaptive":
        left_out |= set(ADAPTIVE_OPTIONS)
    options = {name: value for name, value in config.items() if name not in left_out}
    learned = config["loss"] == "margin" and bool(config["learn_beta"])
    return options | {"learn_beta": learned, "weights": result.get("folds", [result])[0]["weights"]}


def _name_apart(rows: Iterable[Row]) -> None:
    """Adds the options in which runs of one data set and loss differ to the names of their arms."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["data"], row["loss"]].append(row)
    named_already = ("neighbourhood", "granularity", "units")
    for group in groups.values():
        for name in dict.fromkeys(name for row in group for name in row["options"] if name not in named_already):
            having = [row for row in group if name not in ADAPTIVE_OPTIONS or row["margin"] == "adaptive"]
            if len({json.dumps(row["options"].get(name)) for row in having}) > 1:
                for row in having if name != "learn_beta" else ():  # which the name says already
                    row["arm"] += f", {name} {row['options'].get(name)}"


def _refuse_collisions(rows: Sequence[Row], results: Sequence[Mapping[str, Any]]) -> None:
    """Raises if two different runs would contribute to the same number of a table."""
    seen: dict[tuple[str, str, str, int], tuple[Row, Mapping[str, Any]]] = {}
    for row, result in zip(rows, results, strict=True):
        other, was = seen.setdefault((row["data"], row["loss"], row["arm"], row["seed"]), (row, result))
        now, before = ({"margin": each["config"]["margin"], **_options(each)} for each in (result, was))
        if now != before:
            names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            said = "; ".join(f"{name}: {before.get(name)!r} there, {now.get(name)!r} here" for name in names)
            expected = f"one run of {row['data']}, {row['loss']}, {row['arm']}, seed {row['seed']}"
            got = f"two that differ, {other['folder']} and {row['folder']} ({said})"
            raise ValueError(problem("the folder", expected, got, "report on them one by one"))


def by_seed(rows: Iterable[Row], data: str, loss: str, arm: str, metric: str) -> dict[int, float]:
    """One test figure of an arm by seed, in per cent; seeds for which it is undefined are left out."""
    return {
        row["seed"]: 100 * row["test"][metric]
        for row in rows
        if row["test"] is not None
        and (row["data"], row["loss"], row["arm"]) == (data, loss, arm)
        and math.isfinite(row["test"].get(metric, math.nan))
    }


def spread(values: Sequence[float] | Iterable[float]) -> str:
    """Mean ± standard deviation.

    Example:
        >>> spread([50.0, 52.0]), spread([50.0]), spread([])
        ('51.0 ± 1.4', '50.0', '')
    """
    x = np.array(list(values))
    if len(x) < 2:
        return f"{x[0]:.1f}" if len(x) else ""
    return f"{x.mean():.1f} ± {x.std(ddof=1):.1f}"


def compare(
    rows: Sequence[Row], pairs: Iterable[tuple[str, str, str, str]], metric: str
) -> list[tuple[tuple[str, str, str, str], Comparison]]:
    """Paired comparisons of arms by one test figure, corrected for their number: (pair, comparison) for each pair.

    A pair is (data set, loss, arm, baseline arm); those without two common seeds are left out.
    """
    made = {}
    for data, loss, arm, baseline in pairs:
        ours, theirs = (by_seed(rows, data, loss, each, metric) for each in (arm, baseline))
        if len(ours.keys() & theirs.keys()) >= 2:
            made[data, loss, arm, baseline] = ours, theirs
    return list(zip(made, compared(made.values()), strict=True))


def arms_of(rows: Iterable[Row], data: str) -> list[str]:
    """The measured arms of a data set, in the order of a table."""
    order = ("default", "tuned", "auto", "remaining", "attainable", "hoeffding", "chernoff")
    found = {row["arm"] for row in rows if row["data"] == data and row["test"] is not None and row["loss"] != "none"}
    return [arm for arm in order if arm in found] + sorted(found - set(order))


def losses_of(rows: Iterable[Row], data: str) -> list[str]:
    """The measured losses of a data set, in order of appearance."""
    return list(dict.fromkeys(r["loss"] for r in rows if r["data"] == data and r["test"] and r["loss"] != "none"))


def weights_of(rows: Iterable[Row], data: str) -> str:
    """The initial weights of the networks of a data set, if recorded."""
    return "; ".join(sorted({row["weights"] for row in rows if row["data"] == data and row.get("weights")}))


def figures(rows: Sequence[Row], data: str, metric: str) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table of a data set: losses by margins, mean ± standard deviation over seeds.

    Untrained networks come last, in parentheses.
    """
    arms = arms_of(rows, data)
    lines = [
        [loss, *(spread(by_seed(rows, data, loss, arm, metric).values()) for arm in arms)]
        for loss in losses_of(rows, data)
    ]
    for name in sorted({row["arm"] for row in rows if row["data"] == data and row["loss"] == "none"}):
        value = spread(by_seed(rows, data, "none", name, metric).values())
        lines.append([f"({name})", value, *[""] * (len(arms) - 1)])
    return ["loss", *arms], lines


def table(rows: Sequence[Row], metric: str) -> str:
    """Markdown tables: the figures of each data set, then the comparisons."""
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        if arms_of(rows, data):  # else nothing is measured yet
            lines += [f"### {data}: {named(metric)}, test classes, per cent", ""]
            if began := weights_of(rows, data):
                lines += [f"Weights before training: {began}.", ""]
            lines += [markdown_table(*figures(rows, data, metric)), ""]
    if made := compare(rows, standard_pairs(rows), metric):
        head = ["data", "loss", "arm", "against", "difference", "n", "verdict", "Holm's p"]
        cells = [[*pair, str(each), str(each.n), each.verdict, f"{each.p:.2g}"] for pair, each in made]
        lines += [f"Paired differences of {named(metric)}, by seed:", "", markdown_table(head, cells), ""]
        lines.append(caution(len(made)))
    return "\n".join(lines)


def standard_pairs(rows: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    """Every adaptive arm against every fixed margin with otherwise the same configuration.

    In a grid.json the arms differ only as their names say: there, every arm is compared with the default and the tuned
    margin.
    """
    pairs = []
    for data in dict.fromkeys(row["data"] for row in rows):
        for loss in losses_of(rows, data):
            ours = {row["arm"]: row for row in rows if row["data"] == data and row["loss"] == loss and row["test"]}
            shared = {  # the options in which a fixed and an adaptive margin must agree to be compared
                arm: {name: value for name, value in row["options"].items() if name not in ADAPTIVE_OPTIONS}
                for arm, row in ours.items()
                if "options" in row
            }
            for arm in (arm for arm in arms_of(rows, data) if arm in ours):
                if arm not in shared:
                    if arm not in ("default", "tuned") and not arm.startswith("margin "):
                        pairs += [(data, loss, arm, baseline) for baseline in ("default", "tuned")]
                elif ours[arm]["margin"] == "adaptive":
                    fixed = [other for other in arms_of(rows, data) if shared.get(other) == shared[arm]]
                    pairs += [(data, loss, arm, other) for other in fixed if ours[other]["margin"] != "adaptive"]
    return pairs


def caution(comparisons: int) -> str:
    """A note of caution about many comparisons.

    Example:
        >>> caution(40)
        "40 comparisons: intervals, verdicts and p are corrected for that number (Holm). Were there no difference ..."
    """
    many = f"{comparisons} comparisons: intervals, verdicts and p are corrected for that number (Holm). "
    return (
        f"{many if comparisons > 1 else 'One comparison. '}Were there no difference anywhere, "
        f"{'any of them' if comparisons > 1 else 'it'} would say better or worse one time in twenty at most; 'no "
        "difference seen' is not the same as none."
    )


def named(metric: str) -> str:
    """The name of a figure for readers, with the part of the data if it has one.

    Example:
        >>> named("recall_at_10"), named("NMI"), named("validation/r_precision")
        ('Recall@10', 'NMI', 'validation R-Precision')
    """
    part, _, name = metric.rpartition("/")
    return f"{part} {NAMES.get(name, name.replace('recall_at_', 'Recall@'))}".strip()


def said(result: Mapping[str, Any]) -> str:
    """A result in words, with the selection of the network and its initial weights.

    Example:
        >>> selected = {"by": "validation/recall_at_1", "step": 40, "score": 0.5}
        >>> print(said({"test": {"recall_at_1": 0.25}, "selected": selected, "weights": "none"}))
        chosen by validation Recall@1 (0.500 after step 40) on classes used for neither training nor test
        weights before training: none
        test classes, per cent: Recall@1 25.0
    """
    networks = result.get("folds", [result])
    selected = networks[0]["selected"]
    many = f"{len(networks)} folds, each " if "folds" in result else ""
    if selected["score"] is None:
        lines = [f"{many}measured after the last step ({selected['step']}); no figure chose it"]
    else:
        score = f"{mean(each['selected']['score'] for each in networks):.3f}"
        when = "" if many else f" after step {selected['step']}"
        on = "classes used for neither training nor test"
        if selected["by"].startswith("test/"):
            on = "THE TEST ITSELF: compare only with papers that did the same"
        lines = [f"{many}chosen by {named(selected['by'])} ({score}{when}) on {on}"]
    if unreadable := networks[0].get("data", {}).get("unreadable"):
        lines.append(f"{counted(len(unreadable), 'unreadable image')} left out: {shorten(unreadable)}")
    if weights := networks[0].get("weights"):
        lines.append(f"weights before training: {weights}")
    for key, what in (("test", "test classes"), ("test_concatenated", "concatenated embeddings of all folds")):
        if result.get(key):
            figures = ", ".join(f"{named(name)} {100 * value:.1f}" for name, value in result[key].items())
            lines.append(f"{what}, per cent: {figures}")
    return "\n".join(lines)
