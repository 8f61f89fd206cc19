"""Every remedy of every message is followed, and works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from . import dml, emotion, faces, functional, losses, metrics, training
from .following import Case, called, refusal, sites

AREAS = {each.__name__.rpartition(".")[2]: each.CASES for each in (functional, losses, metrics, training, dml, emotion, faces)}
CASES = [(area, case) for area, cases in AREAS.items() for case in cases]


def _name(area: str, case: Case) -> str:
    return f"{area}-{re.sub(r'[^a-z0-9]+', '-', case.says.lower()).strip('-')[:60]}"


@pytest.mark.parametrize("case", [pytest.param(case, id=_name(area, case)) for area, case in CASES])
def test_a_remedy_works(case: Case, tmp_path: Path) -> None:
    said = refusal(case, tmp_path)
    assert case.says in said.remedy
    for right in case.rights:
        assert bool(called(right, tmp_path))
