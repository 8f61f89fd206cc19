"""Which use of people's identities helps on people that nobody has seen? Chosen on some, tested on others.

Two stages, on drawn faces or on a data set with identities. No person is in the figures of both.

    python benchmarks/fer_people.py choose                         # every arm, validation people
    python benchmarks/fer_people.py test --arms person-norm elim   # those chosen, test people, more seeds
    python benchmarks/fer_people.py test --dataset afew-va --root AFEW-VA --preset paper
    python benchmarks/fer_people.py --print benchmarks/fer_caf/results/people-test.json

Compared with plain regression (``none``) are every arm and its controls:

- ``none-together`` and ``none-together-8``: plain regression with the arms' batches;
- ``none-twice``: plain regression with twice the updates, which takes as long as the slowest arm;
- ``none``, centred by 4 or all pictures: its predictions moved by person, as ``person-norm`` moves features;
- in ``test``, ``ARM-shuffled``: the arm with people dealt at random in training; and the paper's CAF with its margins.

Otherwise all have the same number of updates; their CPU seconds are printed. Figures: CCC (mean of valence and
arousal), identity in the encoder's features (MAP@R, and how often a linear probe names the person), error of the tenth
of the people for whom it is largest, CCC of strong and of weak emotions, slope of labels on predictions. Intervals are
Student's over seeds with Holm's correction for the number of rows, and a bootstrap over people of all seeds together.
Finished runs are kept: the same command goes on.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fer_arms import ARMS, BASELINE, FACES_SEED, PEOPLE_ARMS, read_asked, with_own
from script import print_results, read_results, write_results

from adaptive_margin.emotion.config import PRESETS, DatasetName, EmotionConfig, idle, preset_for
from adaptive_margin.messages import counted, is_expected, said_plainly
from adaptive_margin.processes import ends_in_order
from adaptive_margin.training.command_line import check_output, json_with

CONTROLS = ("none-together", "none-together-8", "none-twice")
EVERY_ARM = (*(arm for arm in PEOPLE_ARMS if arm not in CONTROLS), "label-distance")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to train.

    Attributes:
        stage: choose an arm on validation people, or test arms on test people.
        dataset: the data set; faces need no --root.
        root: folder of the data set.
        preset: options to start from.
        person_effect: for drawn faces, how much the feeling behind a face depends on whose it is.
        arms: arms beside the baseline; by default all that use people.
        own: terms of your own, FILE.py:CLASS, each an arm more (docs/people.md, Add an arm).
        seeds: number of seeds; by default 3 to choose and 5 to test.
        iterations: length of each run; the learning rate decays over it.
        jobs: runs at the same time.
        output: folder of the runs.
        results: write the figures here too.
        yes: start although it will take more than a day.
        print: print the table of such a file and train nothing.
    """

    stage: Literal["choose", "test"] = "choose"
    dataset: DatasetName = "faces"
    root: str | None = None
    preset: Literal[tuple(PRESETS)] = "quick"
    person_effect: float = 1.0
    arms: tuple[Literal[tuple(ARMS)], ...] = EVERY_ARM
    own: tuple[str, ...] = ()
    seeds: int | None = None
    iterations: int | None = None
    jobs: int = 2
    output: Path = Path("runs/fer_people")
    results: Path | None = None
    yes: bool = False
    print: Path | None = None


def parsed(argv: Sequence[str] | None = None) -> Asked:
    """The options."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("choose", "test"):
        words = ["--stage", *words]
    asked = read_asked(Asked, "fer_people.py", words, __doc__)
    with said_plainly():
        check_output("--output", asked.output)
        for flag, path in (("--output", asked.output / f"{asked.stage}.json"), ("--results", asked.results)):
            if path is not None and asked.print is None:
                check_output(flag, path, file=True, replaces=json_with("stage", "arms"))
    return asked


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import numpy as np
import torch
from fer_caf import data_key, expect, outcome, shared_data, start_pool

from adaptive_margin.affect.batches import hands_of
from adaptive_margin.emotion.data import EmotionData, Part
from adaptive_margin.emotion.evaluation import Evaluation
from adaptive_margin.emotion.trainer import EmotionJob
from adaptive_margin.functional import concordance_correlation
from adaptive_margin.metrics import affect_breakdown, bootstrap_interval, compared
from adaptive_margin.metrics.comparison import signed
from adaptive_margin.stored import read_arrays, read_json, write_arrays, write_json
from adaptive_margin.training import World
from adaptive_margin.training.forecast import announce
from adaptive_margin.training.run_folder import environment

PAPERS = ("caf", "caf-constant", "caf-linear")
FIRST_SEED = {"choose": FACES_SEED + 900, "test": FACES_SEED + 700}
"""Drawn people of the first seed of a stage: nobody else's."""

READINGS = {
    "alone": "",
    "by_2": ", by 2 pictures of a person",
    "by_4": ", by 4 pictures of a person",
    "by_8": ", by 8 pictures of a person",
    "by_person": ", by all pictures of a person",
}
"""What of a stranger a network may look at, and how the tables say it."""
CENTRED = {"by_4": "none, centred by 4 pictures of a person", "by_person": "none, centred by all pictures of a person"}
IN_THE_TABLE = ("alone", "by_4", "by_person")
LEAKAGE = ("alone", "by_person")
"""Readings whose identity leakage is measured."""
COLUMNS = {
    "ccc": "CCC",
    "map_at_r": "identity, MAP@R",
    "probe_accuracy": "probe",
    "worst_decile": "worst tenth",
    "strong_ccc": "CCC strong",
    "weak_ccc": "CCC weak",
    "slope": "slope",
    "cpu_seconds": "seconds",
}


def arms_of(asked: Asked) -> tuple[str, ...]:
    """What is trained, the baseline first."""
    names = [BASELINE, *CONTROLS, *asked.arms]
    if asked.stage == "test":
        names += [f"{arm}-shuffled" for arm in asked.arms if f"{arm}-shuffled" in ARMS and arm not in CONTROLS]
        names += PAPERS
    return tuple(dict.fromkeys(names))


def base_of(asked: Any) -> EmotionConfig:
    """The options that all runs share."""
    flags: dict[str, Any] = {"dataset": asked.dataset, "root": asked.root}
    base = dataclasses.replace(PRESETS[asked.preset], **flags)
    base = dataclasses.replace(preset_for(asked.preset, base), **flags)
    return base if asked.iterations is None else lasting(base, asked.iterations)


def lasting(config: EmotionConfig, iterations: int) -> EmotionConfig:
    """The same run with another number of updates."""
    every = max(1, round(config.lr_decay_every * iterations / config.iterations))
    return dataclasses.replace(config, iterations=iterations, lr_decay_every=every)


def config_of(asked: Asked, arm: str, seed: int) -> EmotionConfig:
    """The options of one run. AFEW-VA is chosen on one of its five folds and tested on the others."""
    base = base_of(asked)
    own: dict[str, Any] = {"person_effect": asked.person_effect}
    if asked.dataset == "afew-va":
        own["fold"] = 4 if asked.stage == "choose" else seed % 4
    elif asked.dataset == "faces":
        own["split_seed"] = FIRST_SEED[asked.stage] + seed
    if arm == "none-twice":
        base = lasting(base, 2 * base.iterations)
    folder = asked.output / f"{asked.dataset}-{asked.preset}-{asked.person_effect:g}"
    output, cache = str(folder / asked.stage / arm / f"seed{seed}"), str(folder / "cache")
    own |= {"seed": seed + (100 if asked.stage == "choose" else 0), "output": output, "cache": cache}
    return dataclasses.replace(base, **ARMS[BASELINE if arm == "none-twice" else arm], **own)


def train_one(config: EmotionConfig, stage: str) -> str:
    """Trains one network and keeps what it predicts for the people of a stage. Returns what went wrong, or nothing."""

    def parts(data: EmotionData) -> tuple[EmotionData, Part]:
        return data, data.test if stage == "test" or config.dataset == "afew-va" else data.val

    def read(job: EmotionJob, part: Part) -> dict[str, Evaluation]:
        found = {"alone": job.evaluation(part, resamples=1)}
        if config.person_norm:
            found["by_person"] = job.evaluation_by_person(part, resamples=1)
            for pictures in (2, 4, 8):
                found[f"by_{pictures}"] = job.evaluation_by_person(part, pictures)
        return found

    return train_and_keep(config, parts, read, LEAKAGE)


def train_and_keep(
    config: EmotionConfig,
    parts: Callable[[EmotionData], tuple[EmotionData, Part]],
    read: Callable[[EmotionJob, Part], Mapping[str, Evaluation]],
    leakage_of: Collection[str] = (),
) -> str:
    """Trains one network and keeps its predictions in its folder. Returns what went wrong, or nothing.

    Args:
        config: its options.
        parts: what to train on, and the part to evaluate, from the data of the options.
        read: the evaluations of that part by name.
        leakage_of: those whose identity leakage is measured.
    """
    try:
        data, part = parts(shared_data(data_key(config)))
        with World.from_environment(config.device) as world:
            job = EmotionJob(config, data, world)
            cpu = time.process_time()
            for step in range(config.iterations):
                job.step(step)
            cpu = time.process_time() - cpu
            found, where = read(job, part), environment(world)
    except Exception as error:
        if not is_expected(error):
            raise
        return str(error)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in found.items():
        columns = {"truth": one.truth, "prediction": one.prediction, "person": part.people[one.row]}
        write_arrays(folder / f"{name}.npz", columns)
    measured = {name: one.leakage for name, one in found.items() if name in leakage_of}
    leakage = {name: one.to_dict() for name, one in measured.items() if one is not None}
    about = {"config": config.plain(), "environment": where, "cpu_seconds": round(cpu, 1)}
    write_json(folder / "run.json", about | {"readings": list(found), "leakage": leakage})
    return ""


def train_here(
    todo: Mapping[tuple[Any, ...], tuple[Any, ...]], jobs: int, train: Callable[..., str]
) -> dict[tuple[Any, ...], str]:
    """Trains all, several at a time; returns what went wrong in each. When it is stopped, nothing new begins."""
    which = list(todo)
    with start_pool(jobs) as workers:
        try:
            ended = [(which[n], outcome(*found)) for n, *found in workers.outcomes(train, todo.values())]
        except (KeyboardInterrupt, SystemExit):
            print("stopping: finished runs are kept, the same command goes on", flush=True)
            raise
    return {each: message for each, message in ended if message}


def finished(config: EmotionConfig) -> dict[str, Any]:
    """What a run with these options has left; empty if it has not ended. Its folder can have been moved."""
    folder = Path(config.output)
    try:
        document = read_json(folder / "run.json")
        defaults, wanted = (json.loads(json.dumps(one.plain())) for one in (EmotionConfig(), config))
        was = {**defaults, **document["config"]}  # options that are newer than the run had their default
        same = all(was[name] == wanted.get(name) for name in was if name not in ("output", "cache", *idle(wanted)))
        whole = all((folder / f"{name}.npz").is_file() for name in document["readings"])
        return document if same and whole else {}
    except (OSError, ValueError, KeyError):
        return {}


def ccc(truth: np.ndarray[Any, Any], prediction: np.ndarray[Any, Any]) -> float:
    """Mean CCC of both labels."""
    pair = (torch.as_tensor(x).double() for x in (truth, prediction))
    return round(float(concordance_correlation(*pair).mean()), 4)


def centred(arrays: Mapping[str, np.ndarray[Any, Any]], pictures: int | None, prior: float = 4.0) -> dict[str, Any]:
    """Predictions moved by person as ``person-norm`` moves features: n pictures count n, the mean of all ``prior``."""
    prediction, hands = arrays["prediction"].astype(np.float64), hands_of(arrays["person"], pictures)
    n = np.bincount(hands)[:, None]
    own = np.stack([np.bincount(hands, weights=column) for column in prediction.T], axis=1) / n
    moved = prediction - (n / (n + prior) * (own - prediction.mean(axis=0)))[hands]
    return dict(arrays) | {"prediction": moved}


def figures(arrays: Mapping[str, np.ndarray[Any, Any]], document: Mapping[str, Any], reading: str) -> dict[str, Any]:
    """The figures of a run that are reported."""
    breakdown = affect_breakdown(arrays["truth"], arrays["prediction"], arrays["person"])
    leakage = document["leakage"].get(reading, {})
    return {
        "ccc": ccc(arrays["truth"], arrays["prediction"]),
        **{name: leakage.get(name) for name in ("map_at_r", "probe_accuracy")},
        **{name: round(getattr(breakdown, name), 4) for name in ("worst_decile", "strong_ccc", "weak_ccc")},
        "slope": round(sum(breakdown.slope) / 2, 4),
        "cpu_seconds": document["cpu_seconds"],
    }


def by_people(pairs: Sequence[tuple[Any, Any]], *, same_people: bool, resamples: int = 500) -> tuple[float, float]:
    """95% interval of the difference in CCC of two arms, drawn by person from all seeds together."""
    truth, both, groups = [], [], []
    for number, (ours, base) in enumerate(pairs):
        truth.append(np.concatenate([ours["truth"], ours["truth"]], axis=1))
        both.append(np.concatenate([ours["prediction"], base["prediction"]], axis=1))
        groups.append(ours["person"] + (0 if same_people else 1_000_000 * number))

    def gap(y: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
        found = concordance_correlation(y, guess)  # (4,): ours, then theirs
        return found[:2].mean() - found[2:].mean()

    drawn = bootstrap_interval(
        gap, np.concatenate(truth), np.concatenate(both), groups=np.concatenate(groups), resamples=resamples
    )
    return round(float(drawn.low), 4), round(float(drawn.high), 4)


def without_folders(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, device and command, but not where things lie on one machine."""
    command = list(environment["command"])
    for option in ("--output", "--results", "--root"):
        while option in command:
            at = command.index(option)
            del command[at : at + 2]
    return {**environment, "command": command}


def content_of(asked: Asked, configs: Mapping[tuple[str, int], EmotionConfig]) -> dict[str, Any]:
    """All figures of the runs that have ended."""
    done = {which: document for which, config in configs.items() if (document := finished(config))}
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    predictions: dict[tuple[str, int], Mapping[str, np.ndarray[Any, Any]]] = {}

    def add(row: str, seed: int, arrays: Mapping[str, np.ndarray[Any, Any]], reading: str) -> None:
        predictions[row, seed] = arrays
        rows.setdefault(row, {})[seed] = figures(arrays, done[arm, seed], reading)

    for arm in arms_of(asked):
        for reading, said in READINGS.items():
            for seed in sorted(s for a, s in done if a == arm and reading in done[a, s]["readings"]):
                add(arm + said, seed, read_arrays(Path(configs[arm, seed].output) / f"{reading}.npz"), reading)
        if arm == BASELINE:
            for reading, name in CENTRED.items():
                for seed in rows.get(BASELINE, {}):
                    add(name, seed, centred(predictions[BASELINE, seed], 4 if reading == "by_4" else None), reading)
    base = rows.get(BASELINE, {})
    others = [row for row in rows if row != BASELINE and in_the_table(row) and len(rows[row].keys() & base.keys()) > 1]
    differences: dict[str, dict[str, Any]] = {row: {} for row in others}
    for name in ("ccc", "map_at_r"):
        columns = {row: {s: one[name] for s, one in rows[row].items() if one[name] is not None} for row in rows}
        able = [row for row in others if len(columns[row].keys() & columns[BASELINE].keys()) > 1]
        for row, found in zip(able, compared((columns[row], columns[BASELINE]) for row in able), strict=True):
            differences[row][name] = dataclasses.asdict(found)
    for row in others:
        pairs = [(predictions[row, seed], predictions[BASELINE, seed]) for seed in sorted(rows[row].keys() & base)]
        differences[row]["ccc_by_people"] = by_people(pairs, same_people=asked.dataset != "faces")
    options = {arm: options_of(configs[arm, 0]) for arm in arms_of(asked)}
    return {
        "stage": asked.stage,
        "people": "validation" if asked.stage == "choose" else "test",
        **provenance(done.values()),
        "config": options[BASELINE],
        "options": {arm: {n: v for n, v in own.items() if v != options[BASELINE][n]} for arm, own in options.items()},
        "arms": {row: [{"seed": seed} | one for seed, one in seeds.items()] for row, seeds in rows.items()},
        "differences": differences,
    }


def options_of(config: EmotionConfig) -> dict[str, Any]:
    """The options of a run, as JSON has them, but for its places."""
    plain: dict[str, Any] = json.loads(json.dumps(config.plain()))
    return {name: value for name, value in plain.items() if name not in ("output", "cache", "root")}


def provenance(documents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Where figures of several runs come from: the environment of the first, today's command, the commits of all."""
    found = [document["environment"] for document in documents]
    return {
        "environment": without_folders(found[0] | {"command": environment(World())["command"]}),
        "commits": sorted({each["commit"] for each in found}),
    }


def in_the_table(row: str) -> bool:
    """Whether a row is compared with the baseline; the others are other numbers of pictures."""
    return not any(said and row.endswith(said) for name, said in READINGS.items() if name not in IN_THE_TABLE)


def mean(seeds: Sequence[Mapping[str, Any]], column: str) -> float | None:
    known = [one[column] for one in seeds if one[column] is not None]
    return sum(known) / len(known) if known else None


def table(content: Mapping[str, Any]) -> str:
    """The figures in Markdown: means over seeds, and differences from the baseline with corrected intervals."""
    arms = content["arms"]
    most = max(map(len, arms.values()))
    head = [counted(most, "seed"), *COLUMNS.values(), "Δ CCC", "by people", "Δ MAP@R"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row, seeds in arms.items():
        if not in_the_table(row):
            continue
        name, comma, rest = row.partition(",")
        few = f" ({counted(len(seeds), 'seed')})" * (len(seeds) < most)
        cells = [f"`{name}`{comma}{rest}{few}"]
        for column in COLUMNS:
            value = mean(seeds, column)
            cells.append(shown(value, 0 if column == "cpu_seconds" else 3))
        gaps = content["differences"].get(row, {})
        for column in ("ccc", "ccc_by_people", "map_at_r"):
            found = gaps.get(column)
            if found is None:
                cells.append("")
            elif column == "ccc_by_people":
                cells.append(interval(*found))
            else:
                text = f"{signed(found['mean'], 3)} {interval(found['low'], found['high'])}"
                cells.append(f"**{text}**" if found["p"] < 0.05 else text)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *against_controls(arms), *by_number_of_pictures(arms)])


def shown(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}".replace("-", "−")


def interval(low: float, high: float) -> str:
    return f"[{signed(low, 3)}, {signed(high, 3)}]"


def against_controls(arms: Mapping[str, Any]) -> list[str]:
    """Arms that know people minus their controls, in CCC; intervals corrected for their number."""
    columns = {arm: {one["seed"]: one["ccc"] for one in seeds} for arm, seeds in arms.items()}
    pairs = []
    for row in filter(in_the_table, arms):
        arm, comma, said = row.partition(",")
        controls = {f"{arm}-shuffled{comma}{said}": "the arm with shuffled people"}
        if said and arm in ARMS and not arm.endswith("-shuffled") and arm != BASELINE:
            controls |= {f"none, centred{said}": f"plain regression, centred{said}"}
        shared = {control: columns[row].keys() & columns.get(control, {}).keys() for control in controls}
        pairs += [(row, control, text) for control, text in controls.items() if len(shared[control]) > 1]
    gaps = compared((columns[row], columns[control]) for row, control, _ in pairs)
    heads = ["", "| arm | control | CCC of the arm minus that of the control |", "|---|---|---|"]
    rows = [
        f"| {row} | {text} | {signed(gap.mean, 3)} {interval(gap.low, gap.high)} |"
        for (row, _, text), gap in zip(pairs, gaps, strict=True)
    ]
    return [*heads, *rows] if rows else []


def by_number_of_pictures(arms: Mapping[str, Any]) -> list[str]:
    """CCC of arms that normalise by person, by how many pictures of a stranger they see together."""
    able = [arm for arm in arms if arm + READINGS["by_person"] in arms]
    heads = ["", "| CCC, by pictures of a person | 1 | 2 | 4 | 8 | all |", "|---" * 6 + "|"]
    rows = [
        f"| `{arm}` | " + " | ".join(shown(mean(arms[arm + said], "ccc")) for said in READINGS.values()) + " |"
        for arm in able
    ]
    return [*heads, *rows] if rows else []


@ends_in_order()
@said_plainly()
def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing, then writes and prints all figures."""
    asked = parsed(argv)
    if asked.print:
        print_results(asked.print, lambda: table(read_results(asked.print)))
        return 0
    seeds = asked.seeds or (3 if asked.stage == "choose" else 5)
    asked = dataclasses.replace(asked, arms=(*asked.arms, *with_own(asked.own)), own=())
    configs = {(arm, seed): config_of(asked, arm, seed) for seed in range(seeds) for arm in arms_of(asked)}
    todo = {which: config for which, config in configs.items() if not finished(config)}
    print(f"{counted(len(todo), 'run')} to train, {asked.jobs} at a time, into {asked.output}", flush=True)
    announce(expect(todo, asked.jobs, keeps=False), asked.yes)
    failed = train_here({which: (config, asked.stage) for which, config in todo.items()}, asked.jobs, train_one)
    for which, message in failed.items():
        print(f"failed: {which}: {message}")
    if not any(map(finished, configs.values())):
        return 1
    content = content_of(asked, configs)
    for path in [asked.output / f"{asked.stage}.json", *([asked.results] if asked.results else [])]:
        write_results(path, content)
    print(table(content))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
