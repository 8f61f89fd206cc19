"""Which use of people's identities helps on people that nobody has seen? Chosen on some, tested on others.

Two stages, on drawn faces or on a data set with identities. Each has seeds of its own (drawn: people of its own).

    python benchmarks/fer_people.py choose                         # every arm, validation people
    python benchmarks/fer_people.py test --arms grl elim           # those chosen, test people, more seeds
    python benchmarks/fer_people.py test --dataset afew-va --root AFEW-VA --preset paper
    python benchmarks/fer_people.py --print benchmarks/fer_caf/results/people-test.json

Compared are plain regression (``none``), the same with the arms' batches (``none-together``), and every arm; in
``test`` also each arm with people dealt at random (``-shuffled``), and the paper's CAF with its margins. All have the
same number of updates; their seconds are printed. Figures: CCC (mean of valence and arousal), identity MAP@R of the
encoder's features, error of the tenth of the people for whom it is largest, CCC of strong and of weak emotions, slope
of labels on predictions. Intervals are Student's over seeds with Holm's correction, and a bootstrap over people of all
seeds together. Only what a stage reports on is evaluated. Finished runs are kept: the same command goes on.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from fer_caf import ARMS, FACES_SEED, PEOPLE_ARMS, data_key, expect, outcome, shared_data, start_pool

from adaptive_margin.emotion.config import PRESETS, DatasetName, EmotionConfig, preset_for
from adaptive_margin.emotion.evaluation import evaluate
from adaptive_margin.emotion.trainer import EmotionJob
from adaptive_margin.functional import concordance_correlation
from adaptive_margin.messages import counted, is_expected, said_plainly
from adaptive_margin.metrics import affect_breakdown, bootstrap_interval, compared
from adaptive_margin.metrics.comparison import signed
from adaptive_margin.processes import stops_on_sigterm
from adaptive_margin.stored import read_arrays, read_json, write_arrays, write_json
from adaptive_margin.training import World, write_atomically
from adaptive_margin.training.command_line import check_output, read
from adaptive_margin.training.forecast import announce
from adaptive_margin.training.run_folder import environment

BASELINE = "none"
CONTROL = "none-together"
CHOOSE_SEED = FACES_SEED + 900  # drawn people of the first seed of choose: nobody else's
EVERY_ARM = (*PEOPLE_ARMS, "label-distance")
PAPERS = ("caf", "caf-constant", "caf-linear")
BY_PERSON = ", by all pictures of a person"
"""The second reading of an arm that normalises by person."""
COLUMNS = ("ccc", "map_at_r", "worst_decile", "strong_ccc", "weak_ccc", "slope")


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
        seeds: number of seeds; by default 3 to choose and 5 to test.
        iterations: length of each run.
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
    seeds: int | None = None
    iterations: int | None = None
    jobs: int = 2
    output: Path = Path("runs/fer_people")
    results: Path | None = None
    yes: bool = False
    print: Path | None = None


def arms_of(asked: Asked) -> tuple[str, ...]:
    """What is compared, the baseline first."""
    names = [BASELINE, CONTROL, *asked.arms]
    if asked.stage == "test":
        names += [f"{arm}-shuffled" for arm in asked.arms if arm in PEOPLE_ARMS and arm != CONTROL]
        names += PAPERS
    return tuple(dict.fromkeys(names))


def config_of(asked: Asked, arm: str, seed: int) -> EmotionConfig:
    """The options of one run."""
    flags: dict[str, Any] = {"dataset": asked.dataset, "root": asked.root}
    if asked.iterations is not None:
        flags["iterations"] = asked.iterations
    base = dataclasses.replace(PRESETS[asked.preset], **flags)
    base = dataclasses.replace(preset_for(asked.preset, base), **flags)
    own: dict[str, Any] = {"fold": seed % 5}
    if asked.dataset == "faces":
        first = CHOOSE_SEED if asked.stage == "choose" else FACES_SEED
        own = {"split_seed": first + seed, "person_effect": asked.person_effect}
    folder = asked.output / f"{asked.dataset}-{asked.preset}-{asked.person_effect:g}"
    output, cache = str(folder / asked.stage / arm / f"seed{seed}"), str(folder / "cache")
    own |= {"seed": seed + (100 if asked.stage == "choose" else 0), "output": output, "cache": cache}
    return dataclasses.replace(base, **ARMS[arm], **own)


def train_one(config: EmotionConfig, stage: str) -> str:
    """Trains one network and keeps what it predicts for the people of a stage. Returns what went wrong, or nothing."""
    try:
        data = shared_data(data_key(config))
        part = data.val if stage == "choose" else data.test
        with World.from_environment(config.device) as world:
            job = EmotionJob(config, data, world)
            began = time.perf_counter()
            cpu = time.process_time()
            for step in range(config.iterations):
                job.step(step)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            options = {"people": part.people, "identity": part.identity, "videos": part.videos, "resamples": 1}
            found = evaluate(job.iteration.net, job.evaluation_batches(part), **options)
            readings = {"alone": found}
            if config.person_norm:
                readings["by_person"] = job.evaluation_by_person(part)
            where = environment(world)
    except Exception as error:
        if not is_expected(error):
            raise
        return str(error)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "config": config.plain(),
        "environment": where,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
    }
    for name, read_as in readings.items():
        columns = {"truth": read_as.truth, "prediction": read_as.prediction, "person": read_as.person}
        write_arrays(folder / f"{name}.npz", columns)
        document[name] = {
            "figures": read_as.figures,
            "leakage": None if read_as.leakage is None else read_as.leakage.to_dict(),
            "breakdown": affect_breakdown(*columns.values()).to_dict(),
        }
    write_json(folder / "run.json", document)
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
    """What a run with these options has left; empty if it has not ended."""
    folder = Path(config.output)
    try:
        document = read_json(folder / "run.json")
        defaults, wanted = (json.loads(json.dumps(one.plain())) for one in (EmotionConfig(), config))
        same = {**defaults, **document["config"]} == wanted  # options that are newer than the run had their default
        whole = all((folder / f"{name}.npz").is_file() for name in ("alone", "by_person") if name in document)
        return document if same and "alone" in document and whole else {}
    except (OSError, ValueError, KeyError):
        return {}


def summary(document: Mapping[str, Any], reading: str) -> dict[str, Any]:
    """The figures of a run that are reported."""
    found = document[reading]
    breakdown, leakage = found["breakdown"], found["leakage"] or {}
    return {
        "ccc": found["figures"]["ccc"]["mean"],
        "map_at_r": leakage.get("map_at_r"),
        "probe_accuracy": leakage.get("probe_accuracy"),
        **{name: breakdown[name] for name in ("worst_decile", "strong_ccc", "weak_ccc")},
        "slope": sum(breakdown["slope"]) / 2,
        "seconds": document["seconds"],
        "cpu_seconds": document["cpu_seconds"],
    }


def by_people(ours: Sequence[str], base: Sequence[str], resamples: int = 500) -> tuple[float, float]:
    """95% interval of the difference in CCC of two arms, drawn by person from all seeds together."""
    truth, both, groups = [], [], []
    for number, (one, two) in enumerate(zip(ours, base, strict=True)):
        a, b = (read_arrays(Path(file)) for file in (one, two))
        truth.append(np.concatenate([a["truth"], a["truth"]], axis=1))
        both.append(np.concatenate([a["prediction"], b["prediction"]], axis=1))
        groups.append(a["person"] + 1_000_000 * number)

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
    files: dict[tuple[str, int], str] = {}
    for arm in arms_of(asked):
        for reading, named in (("alone", arm), ("by_person", arm + BY_PERSON)):
            for s, document in ((s, document) for (a, s), document in done.items() if a == arm and reading in document):
                rows.setdefault(named, {})[s] = summary(document, reading)
                files[named, s] = str(Path(configs[arm, s].output) / f"{reading}.npz")
    others = [arm for arm in rows if arm != BASELINE and len(rows[arm].keys() & rows.get(BASELINE, {}).keys()) > 1]
    differences: dict[str, dict[str, Any]] = {arm: {} for arm in others}
    for name in ("ccc", "map_at_r"):
        columns = {arm: {s: one[name] for s, one in rows[arm].items() if one[name] is not None} for arm in rows}
        able = [arm for arm in others if len(columns[arm].keys() & columns[BASELINE].keys()) > 1]
        for arm, found in zip(able, compared((columns[arm], columns[BASELINE]) for arm in able), strict=True):
            differences[arm][name] = dataclasses.asdict(found)
    for arm in others:
        common = sorted(rows[arm].keys() & rows[BASELINE].keys())
        ours, base = ([files[each, seed] for seed in common] for each in (arm, BASELINE))
        differences[arm]["ccc_by_people"] = by_people(ours, base)
    first = next(iter(done.values()))
    options = {name: value for name, value in first["config"].items() if name not in ("output", "cache", "root")}
    return {
        "stage": asked.stage,
        "people": "validation" if asked.stage == "choose" else "test",
        "environment": without_folders(first["environment"]),
        "config": options,
        "arms": {
            arm: {
                "options": ARMS[arm.removesuffix(BY_PERSON)],
                "seeds": [{"seed": seed} | one for seed, one in seeds.items()],
            }
            for arm, seeds in rows.items()
        },
        "differences": differences,
    }


def table(content: Mapping[str, Any]) -> str:
    """The figures in Markdown: means over seeds, and differences from the baseline with corrected intervals."""
    titles = ["CCC", "identity, MAP@R", "worst tenth", "CCC strong", "CCC weak", "slope"]
    head = ["arm", "seeds", *titles, "seconds", "Δ CCC", "by people", "Δ MAP@R"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]

    def mean(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None]
        return f"{sum(known) / len(known):.3f}" if known else ""

    def interval(low: float, high: float) -> str:
        return f"[{signed(low, 3)}, {signed(high, 3)}]"

    for arm, row in content["arms"].items():
        seeds = row["seeds"]
        name = f"`{arm.removesuffix(BY_PERSON)}`" + BY_PERSON * arm.endswith(BY_PERSON)
        cells = [name, str(len(seeds)), *(mean([one[column] for one in seeds]) for column in COLUMNS)]
        cells.append(mean([one["cpu_seconds"] for one in seeds]).split(".")[0])
        gaps = content["differences"].get(arm, {})
        for name in ("ccc", "ccc_by_people", "map_at_r"):
            found = gaps.get(name)
            if found is None:
                cells.append("")
            elif name == "ccc_by_people":
                cells.append(interval(*found))
            else:
                text = f"{signed(found['mean'], 3)} {interval(found['low'], found['high'])}"
                cells.append(f"**{text}**" if found["p"] < 0.05 else text)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *against_shuffled(content["arms"])])


def against_shuffled(arms: Mapping[str, Any]) -> list[str]:
    """Arms that know people minus the same with people dealt at random; intervals corrected for their number."""
    names = {arm: f"{arm.removesuffix(BY_PERSON)}-shuffled{BY_PERSON * arm.endswith(BY_PERSON)}" for arm in arms}
    columns = {arm: {one["seed"]: one["ccc"] for one in row["seeds"]} for arm, row in arms.items()}
    able = [
        arm for arm, control in names.items() if control in arms and len(columns[arm].keys() & columns[control]) > 1
    ]
    gaps = compared((columns[arm], columns[names[arm]]) for arm in able)
    heads = ["", "| CCC minus that of the arm with shuffled people | |", "|---|---|"]
    rows = [
        f"| {arm} | {signed(gap.mean, 3)} [{signed(gap.low, 3)}, {signed(gap.high, 3)}] |"
        for arm, gap in zip(able, gaps, strict=True)
    ]
    return [*heads, *rows] if rows else []


@stops_on_sigterm()
def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing, then writes and prints all figures."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("choose", "test"):
        words = ["--stage", *words]
    asked = read(Asked, prog="fer_people.py", argv=words, description=__doc__)
    if asked.print:
        print(table(json.loads(asked.print.read_text(encoding="utf-8"))))
        return 0
    seeds = asked.seeds or (3 if asked.stage == "choose" else 5)
    with said_plainly():
        check_output("--output", asked.output)
        configs = {(arm, seed): config_of(asked, arm, seed) for seed in range(seeds) for arm in arms_of(asked)}
    todo = {which: config for which, config in configs.items() if not finished(config)}
    print(f"{counted(len(todo), 'run')} to train, {asked.jobs} at a time, into {asked.output}", flush=True)
    with said_plainly():
        announce(expect(todo, asked.jobs, keeps=False), asked.yes)
    failed = train_here({which: (config, asked.stage) for which, config in todo.items()}, asked.jobs, train_one)
    for which, message in failed.items():
        print(f"failed: {which}: {message}")
    content = content_of(asked, configs)
    text = json.dumps(content, indent=1) + "\n"
    for path in [asked.output / f"{asked.stage}.json", *([asked.results] if asked.results else [])]:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    print(table(content))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
