"""A remedy followed: a call that raises, and the same call as the message asks for it."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adaptive_margin
from adaptive_margin import messages

PACKAGE = Path(adaptive_margin.__file__).parent
Call = Callable[..., Any]  # of nothing, or of a folder of its own


@dataclass(frozen=True)
class Case:
    """``wrong`` raises a message whose remedy holds ``says``; each of ``rights``, one an alternative, is then true."""

    says: str
    wrong: Call
    rights: tuple[Call, ...]


def follow(says: str, wrong: Call, *rights: Call) -> Case:
    """One row of a table."""
    assert rights, "a remedy that nobody follows"
    return Case(says, wrong, rights)


@dataclass(frozen=True)
class Site:
    """A call of ``problem`` in the package's source."""

    file: str
    first: int
    last: int
    remedy: str  # as written there: text, or the expression that makes it

    def __str__(self) -> str:
        return f"{self.file}: {self.remedy}"


def sites() -> list[Site]:
    """All of them, a function's own docstring aside."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "problem":
                remedy = node.args[3]
                text = remedy.value if isinstance(remedy, ast.Constant) else ast.unparse(remedy)
                end = node.end_lineno or node.lineno
                found.append(Site(path.relative_to(PACKAGE).as_posix(), node.lineno, end, str(text)))
    return found


@dataclass(frozen=True)
class Said:
    """A sentence that was made, and where."""

    text: str
    remedy: str
    file: str
    line: int

    def is_of(self, site: Site) -> bool:
        return self.file == site.file and site.first <= self.line <= site.last


@contextlib.contextmanager
def listening() -> Iterator[list[Said]]:
    """Collects every sentence of ``problem``: its class is swapped for one that notes who asked."""
    heard: list[Said] = []
    original = messages.Problem

    class Noted(original):  # type: ignore[misc, valid-type]
        def __new__(cls, text: str) -> Noted:
            made = sys._getframe(1)  # problem's own
            asked = made.f_back
            assert asked is not None
            file = Path(asked.f_code.co_filename)
            where = file.relative_to(PACKAGE).as_posix() if file.is_relative_to(PACKAGE) else str(file)
            heard.append(Said(text, made.f_locals["remedy"], where, asked.f_lineno))
            return super().__new__(cls, text)

    messages.Problem = Noted  # type: ignore[misc]
    try:
        yield heard
    finally:
        messages.Problem = original  # type: ignore[misc]


def called(call: Call, folder: Path) -> Any:
    wants_one = any(each.default is each.empty for each in inspect.signature(call).parameters.values())
    return call(folder) if wants_one else call()


def refusal(case: Case, folder: Path) -> Said:
    """What the wrong call is told: the sentence that reached the caller, or was printed for the reader of a command.

    Where no sentence of ``problem`` is in it, the whole message counts as the remedy.
    """
    printed = io.StringIO()
    with listening() as heard, contextlib.redirect_stderr(printed):
        try:
            result = called(case.wrong, folder)
        except (Exception, SystemExit) as error:
            message = f"{error}{printed.getvalue()}"
        else:
            message = printed.getvalue()
            assert message, f"nothing was raised, got {result!r}"
    reached = [said for said in heard if said.text in message]
    return reached[-1] if reached else Said(message, message, "", 0)
