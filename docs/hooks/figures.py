"""Figures on the pages are those of committed result files: a build that finds another one fails.

A comment stands before what it is about, the block up to the next empty line:

- ``<!-- figures: SOURCE -->``: each number in the block with a decimal point, or with a unit of time or memory, or of
  tests passed, failed or skipped, or alone in its cell of a table, is one of the source's;
- ``<!-- table: SOURCE -->``: each line that the source prints is on the page as it is, and each row of a table in the
  block is printed. Tables of results are compared like this, since a wrong number may be another one of its file.

Two things are compared whole without a mark of their own: a figure with its interval, ``0.1 [0.0, 0.2]``, where a
command prints it, and every row of a table whose header a command of its page prints.

A source is a command of this repository that prints (``benchmarks/dml_grid.py --print``), or a result file in JSON,
whose numbers count as they are, as ``ms`` for seconds and the reverse, and as ``%``, rounded as on the page.
Several are separated by ``;``. The README is checked with the pages, and ``tests/test_quoted_figures.py`` runs the same
checks without a build.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"^[ \t]*<!-- (figures|table): (.+?) -->[ \t]*\n(?:[ \t]*\n)?", re.M)
NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
FIGURE = re.compile(rf"(?<![\w.])[+-]?{NUMBER}(?:\.\d+|(?= (?:s|ms|MiB|GiB|passed|failed|skipped)\b))")
INTERVAL = re.compile(rf"[+-]?{NUMBER}(?:\.\d+)? \[[+-]?{NUMBER}(?:\.\d+)?, [+-]?{NUMBER}(?:\.\d+)?\]")
CELL = re.compile(rf"(?<=\|) *({NUMBER}) *(?=\|)")
SCALES = (1.0, 1e3, 1e2, 1e-3)
TABLES = {
    "docs/dml.md": ("examples/demo.py --print benchmarks/demo/results.json", "benchmarks/dml_grid.py --print"),
    "docs/units.md": ("benchmarks/dml_choose.py --print",),
    "docs/memory.md": (
        "benchmarks/speed/run.py --print --sizes 128 512 2048 4096 8192 32768 65536",
        "benchmarks/speed/rules.py --print",
        "benchmarks/speed/small.py --print",
        "benchmarks/speed/anchors.py --print",
    ),
    "docs/sentence-transformers.md": ("benchmarks/text/run.py --print",),
}
"""Commands that print several tables between which a page has text: every line they print is on it."""


class SourceError(RuntimeError):
    """A command that a page quotes cannot print."""


_server: Any = threading.local()
"""Of each thread, the process that runs commands; it ends with this one."""


def ended(words: list[str]) -> tuple[int, str, str]:
    """Exit status, output and errors of a command of this repository."""
    if not hasattr(_server, "process"):
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        _server.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("printing.py"))],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    print(json.dumps(words), file=_server.process.stdin, flush=True)
    answer = _server.process.stdout.readline()
    if not answer:
        del _server.process
        raise SourceError(f"{' '.join(words)} ended the process that runs commands")
    status, out, errors = json.loads(answer)
    return status, out, errors


@functools.cache
def printed(command: str) -> str:
    """What a command prints, with a true minus and an ASCII one alike."""
    status, out, errors = ended(command.split())
    if status:
        said = errors.strip().splitlines() or ["nothing"]
        raise SourceError(f"{command} ended with {status} and said {said[-1]}")
    return plain(out)


def plain(text: str) -> str:
    """Text with ASCII minus signs and without thin spaces."""
    return text.replace("−", "-").replace("\u2009", "").replace("\u202f", "")


def numbers(content: Any) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(content, bool):
        return
    if isinstance(content, (int, float)):
        yield float(content)
    elif isinstance(content, str):
        yield from (float(each.replace(",", "")) for each in FIGURE.findall(plain(content)))
    elif isinstance(content, (list, tuple)):
        for each in content:
            yield from numbers(each)
    elif isinstance(content, dict):
        for each in content.values():
            yield from numbers(each)


@functools.cache
def of_file(path: str) -> frozenset[float]:
    """The numbers of a result file, in each unit in which a page may quote them."""
    text = (ROOT / path).read_text(encoding="utf-8")
    lines = text.splitlines() if path.endswith(".jsonl") else [text]
    return frozenset(scale * each for line in lines for each in numbers(json.loads(line)) for scale in SCALES)


def is_file(source: str) -> bool:
    """Whether a source is a result file; else it is a command."""
    return source.split()[0].endswith((".json", ".jsonl"))


def is_in(figure: str, source: str) -> bool:
    """Whether a source has a figure; a file has the three numbers of an interval in places of their own."""
    if not is_file(source):
        kind = INTERVAL if "[" in figure else FIGURE
        return figure.lstrip("+") in {each.lstrip("+") for each in kind.findall(printed(source))}
    if "[" in figure:
        return all(is_in(each, source) for each in FIGURE.findall(figure))
    value, digits = float(figure.replace(",", "")), len(figure.partition(".")[2])
    return any(round(each, digits) == value for each in of_file(source))


def marks(text: str) -> Iterator[tuple[str, list[str], str]]:
    """Kind, sources and block of each mark of a page."""
    for found in MARK.finditer(text):
        block = re.split(r"\n[ \t]*\n", text[found.end() :], maxsplit=1)[0]
        yield found[1], [each.strip() for each in found[2].split(";")], block


def unlike(page: str, text: str, sources: list[str]) -> list[str]:
    """The lines that commands print and the page does not have, or less often: tables can share a row."""
    said: list[str] = []
    often: Counter[str] = Counter()
    origin: dict[str, str] = {}
    for source in dict.fromkeys(sources):
        try:
            lines = [line for line in printed(source).splitlines() if line.strip() and not line.startswith("Untuned, ")]
        except SourceError as error:
            said.append(f"{page}: {error}")
            continue
        if len(lines) < 3:
            said.append(f"{page}: {source} prints no table")
        often.update(lines)
        origin |= dict.fromkeys(lines, source)
    rows = Counter(plain(text).splitlines())
    has = {line: rows[line] if line.startswith("|") else plain(text).count(line) for line in often}
    return said + [f"{page}: {origin[line]} also prints {line}" for line in often if has[line] < often[line]]


def unprinted(page: str, block: str, sources: list[str]) -> list[str]:
    """The rows of a block's table that none of its commands prints."""
    lines = every_line(sources)
    rows = [line.strip() for line in plain(block).splitlines() if line.lstrip().startswith("|")]
    return [f"{page}: {'; '.join(sources)} does not print {row}" for row in rows if lines and row not in lines]


def added(page: str, text: str, sources: list[str]) -> list[str]:
    """The rows that are not printed of a table whose header is."""
    lines = every_line(sources)
    tables = [found[0].splitlines() for found in re.finditer(r"(?:^[ \t]*\|.*\n?)+", plain(text), re.M)]
    rows = [row.strip() for header, *rows in tables if header.strip() in lines for row in rows]
    return [f"{page}: no command prints {row}" for row in rows if row not in lines]


def every_line(commands: list[str]) -> set[str]:
    """All lines that commands print; those of a command that cannot print are missed elsewhere."""
    found: set[str] = set()
    for command in commands:
        with contextlib.suppress(SourceError):
            found.update(line.strip() for line in printed(command).splitlines())
    return found


def wrong(page: str, text: str) -> list[str]:
    """What a page quotes that its source does not have, one line each."""
    tables = [source for kind, sources, _ in marks(text) if kind == "table" for source in sources]
    quoted = [source for _, sources, _ in marks(text) for source in sources if not is_file(source)]
    said = unlike(page, text, [*TABLES.get(page, ()), *tables]) + added(page, text, [*TABLES.get(page, ()), *quoted])
    for kind, sources, block in marks(text):
        if kind == "table":
            said += unprinted(page, block, sources)
            continue
        figures = [each for kind in (FIGURE, CELL, INTERVAL) for each in kind.findall(plain(block))]
        if not figures:
            said.append(f"{page}: no figure after the mark of {'; '.join(sources)}")
        try:
            missing = [figure for figure in figures if not any(is_in(figure, source) for source in sources)]
        except (SourceError, OSError, ValueError) as error:
            said.append(f"{page}: {error}")
        else:
            said += [f"{page}: {figure} is not in {'; '.join(sources)}" for figure in missing]
    return list(dict.fromkeys(said))


def pages() -> list[Path]:
    """The README and every page."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def check() -> list[str]:
    """What is wrong on all pages; the commands run two at a time."""
    texts = {path: path.read_text(encoding="utf-8") for path in pages()}
    sources = {source for text in texts.values() for _, found, _ in marks(text) for source in found}
    sources |= {command for commands in TABLES.values() for command in commands}
    commands = sorted(each for each in sources if not is_file(each))
    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(printed, command) for command in commands]:
            each.exception()  # said by the pages that quote it
    return [line for path, text in texts.items() for line in wrong(path.relative_to(ROOT).as_posix(), text)]


def on_pre_build(**kwargs: Any) -> None:
    """Fails the build with every figure that its file does not have."""
    if said := check():
        from mkdocs.exceptions import PluginError

        raise PluginError("\n".join(["figures that are not in their files:", *said]))


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Leaves the marks out of the page."""
    return MARK.sub("", markdown)
