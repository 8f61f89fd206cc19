"""Every remedy of every message is followed, and works."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from . import affect, dml, emotion, faces, functional, integrations, losses, metrics, others, suggestion, training
from .following import Case, called, refusal, sites

AREAS = {
    each.__name__.rpartition(".")[2]: each.CASES
    for each in (functional, losses, integrations, metrics, training, affect, dml, emotion, faces, suggestion, others)
}
CASES = [(area, case) for area, cases in AREAS.items() for case in cases]

NOT_FOLLOWED: dict[str, list[tuple[str, str]]] = {}
"""Why nobody follows them here → file, and remedy as it is written there."""


def _name(area: str, case: Case) -> str:
    return f"{area}-{re.sub(r'[^a-z0-9]+', '-', case.says.lower()).strip('-')[:60]}"


@pytest.mark.filterwarnings("ignore")  # a run that starts anew says so
@pytest.mark.parametrize("case", [pytest.param(case, id=_name(area, case)) for area, case in CASES])
def test_a_remedy_works(case: Case, tmp_path: Path) -> None:
    said = refusal(case, tmp_path)
    assert case.says in said.remedy
    for right in case.rights:
        assert bool(called(right, tmp_path))


@pytest.mark.filterwarnings("ignore")
def test_each_place_that_makes_a_message_has_a_case(tmp_path: Path) -> None:
    """But for those of :data:`NOT_FOLLOWED`; where one of these got its case, it has to go from there."""
    heard = []
    for number, (_, case) in enumerate(CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        heard.append(refusal(case, folder))
    silent = [site for site in sites() if not any(said.is_of(site) for said in heard)]
    excepted = [pair for pairs in NOT_FOLLOWED.values() for pair in pairs]
    assert Counter((site.file, site.remedy) for site in silent) == Counter(excepted)
