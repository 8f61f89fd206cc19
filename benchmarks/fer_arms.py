"""What the benchmarks of faces compare, by name, without PyTorch: their options and their help list it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from adaptive_margin.messages import problem
from adaptive_margin.training.command_line import read, refuse

C = TypeVar("C")

BASELINE = "none"
FACES_SEED = 1000
"""Drawn people of the first seed: presets were chosen on others (docs/emotion.md), these are only tested on."""

ARMS: dict[str, dict[str, Any]] = {
    "none": {"critic": "none"},
    "caf": {},
    "caf-constant": {"margin": "constant"},
    "caf-linear": {"margin": "linear"},
    "fisher": {"critic": "fisher"},
    "sphere": {"critic": "sphere"},
    "gramnet": {"critic": "gramnet"},
    "caf-kmeans2": {"grouping": "kmeans2"},
    "caf-kmeans3": {"grouping": "kmeans3"},
    "caf-kmeans5": {"grouping": "kmeans5"},
}
QUICK_ARMS = tuple(ARMS)[:7]
PAPER_ARMS = ("none", "caf")
CRITIC_ARMS = tuple(ARMS)
TOGETHER: dict[str, Any] = {"per_person": 4}
PEOPLE_ARMS: dict[str, dict[str, Any]] = {
    "none-together": {"critic": "none"} | TOGETHER,
    "none-together-8": {"critic": "none", "per_person": 8},
    "cross-person": {"cross_person": True} | TOGETHER,
    "grl": {"critic": "none", "term": "grl", "term_warm_up": 200} | TOGETHER,
    "uniform-id": {"critic": "none", "term": "uniform-id", "term_warm_up": 200} | TOGETHER,
    "person-norm": {"critic": "none", "person_norm": True, "per_person": 8},
    "person-norm-scaled": {"critic": "none", "person_norm": True, "person_scale": True, "per_person": 8},
    "elim": {"critic": "none", "term": "elim", "term_warm_up": 200} | TOGETHER,
}
"""Arms that use who is who; and the baseline with the batches of each."""

ARMS |= {
    **PEOPLE_ARMS,
    "label-distance": {"critic": "none", "term": "label-distance"},
    **{f"{name}-shuffled": options | {"shuffle_people": True} for name, options in PEOPLE_ARMS.items()},
}


def with_own(terms: Sequence[str]) -> tuple[str, ...]:
    """Adds an arm for each term of your own, ``FILE.py:CLASS``, and its control with shuffled people; their names."""
    from adaptive_margin.emotion.terms import term_class  # with torch

    names = []
    for each in terms:
        file, _, name = each.rpartition(":")
        kind = term_class(each) if file else None
        options = {"critic": "none", "term": f"{Path(file).resolve()}:{name}"} | TOGETHER
        if kind is None or ARMS.get(name, options) != options:
            expected = "FILE.py:CLASS, a class whose name no arm has"
            raise ValueError(problem("--own", expected, each, "see docs/people.md, Add an arm"))
        ARMS[name] = options
        if kind.ids:
            ARMS[f"{name}-shuffled"] = ARMS[name] | {"shuffle_people": True}
        names.append(name)
    return tuple(names)


def read_asked(kind: type[C], prog: str, argv: Sequence[str] | None, description: str | None) -> C:
    """The options of a benchmark, with ``--seeds`` and ``--jobs`` that are at least 1, or left out."""
    asked = read(kind, prog=prog, argv=argv, description=description)
    for name in ("seeds", "jobs"):
        number = getattr(asked, name)
        if number is not None and number < 1:
            refuse(problem(f"--{name}", "at least 1", number, "leave it out for the default"))
    return asked
