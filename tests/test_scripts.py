"""Every script with options answers ``--help`` and a wrong option at once, and ends as one expects of a command."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.hooks import figures
from tests.platforms import needs_proc, needs_processes

ROOT = Path(__file__).parents[1]
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in ("benchmarks", "examples")
    for path in sorted((ROOT / folder).glob("**/*.py"))
}
MAIN = {name: text for name, text in TEXTS.items() if 'if __name__ == "__main__":' in text}
SCRIPTS = [
    name
    for name, text in MAIN.items()
    if any(
        reads in text
        for reads in ("Parser(", "command_line import", "fer_arms import", "adaptive_margin.command import")
    )
]
BENCHMARKS = [name for name in SCRIPTS if name.startswith("benchmarks/")]
COMMANDS = [[name] for name in BENCHMARKS] + [["-m", "adaptive_margin", "train-faces"], ["-m", "adaptive_margin"]]

RESULTS = "benchmarks/fer_caf/results"
PRINTING = {  # one of each kind: files as values of --print and of --out, with cases of their own or without
    "benchmarks/faces/run.py": ["--print", "benchmarks/faces/results/faces.json"],
    "benchmarks/fer_people.py": ["--print", f"{RESULTS}/people-choose.json"],
    "benchmarks/hosts/run.py": ["--print", "benchmarks/hosts/results/2.9.0-installed.json"],
    "benchmarks/miners/run.py": ["--print"],
    "benchmarks/speed/run.py": ["--print"],
}


def started(words: list[str], *path: Path, **options: Any) -> subprocess.Popen[str]:
    """A command of this repository, whose output is not held back."""
    places = [*map(str, path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONUNBUFFERED": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": found, **options}
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, **options)


def ended_without_reader(words: list[str]) -> tuple[int, str]:
    """The status of a command whose reader is gone before it writes, and what it said; output is held back as usual."""
    reading, writing = os.pipe()
    os.close(reading)
    held = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    held["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        process = started(words, env=held, stdout=writing)
    finally:
        os.close(writing)
    said = process.communicate(timeout=120)[1]
    return process.returncode, said


def test_the_scripts_are_found() -> None:
    assert {"benchmarks/fer_people.py", "benchmarks/speed/run.py", "benchmarks/dml_cub.py"} < set(SCRIPTS)
    assert {name for name in MAIN if name.startswith("benchmarks/")} < set(SCRIPTS)
    assert {"examples/demo.py", "examples/plain_torch_loop.py"} < set(SCRIPTS)


@pytest.mark.parametrize("option", ["--help", "--no-such-option"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_mistakes_are_answered_without_pytorch(script: str, option: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, traceback\ntraceback.print_stack()\nos._exit(77)\n")
    process = started([script, option], tmp_path)
    printed, said = process.communicate(timeout=120)
    assert process.returncode == (0 if option == "--help" else 2), said
    assert "usage: " in printed if option == "--help" else "error: " in said
    assert "Traceback" not in said


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[-1])
def test_help_ends_with_its_reader(words: list[str]) -> None:
    """As in ``--help | true``."""
    assert ended_without_reader([*words, "--help"]) == (141, "")


@pytest.mark.parametrize("script", ["benchmarks/faces/run.py", "benchmarks/miners/run.py"])  # without PyTorch, with it
def test_a_table_ends_with_its_reader(script: str) -> None:
    """As in ``--print | true``."""
    assert ended_without_reader([script, *PRINTING[script]]) == (141, "")


@pytest.mark.parametrize("script", PRINTING)
def test_a_table_without_its_file_is_one_line(script: str, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere.json")
    words = ["--print", "--out", nowhere] if PRINTING[script] == ["--print"] else ["--print", nowhere]
    status, printed, said = figures.ended([script, *words])
    assert status != 0
    assert printed == ""
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert nowhere.removesuffix(".json") in said


@pytest.mark.parametrize("content", ["cut of", '{"cases": [{}]}'])
@pytest.mark.parametrize("script", ["benchmarks/hosts/run.py", "benchmarks/miners/run.py", "benchmarks/fer_people.py"])
def test_a_table_of_something_else_is_one_line(script: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    words = ["--print", "--out", str(path)] if PRINTING[script] == ["--print"] else ["--print", str(path)]
    status, printed, said = figures.ended([script, *words])
    assert (status, printed) == (2, "")
    assert said.startswith(f"error: {path} must be results that this script has written and finished, got others (")
    assert said.endswith("; pass another file, or measure again\n")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("script", BENCHMARKS)
def test_a_benchmark_ends_in_order(script: str) -> None:
    """SIGTERM and a reader that is gone are the affair of one decorator, or of the command."""
    assert "\n@ends_in_order(" in MAIN[script] or "adaptive_margin.command import main" in MAIN[script]


UNWRITABLE = {  # some of those that look whether they can write, and what else they need to begin
    "benchmarks/data/run.py": [],
    "benchmarks/fer_caf.py": [],
    "benchmarks/fer_people.py": ["test"],
    "benchmarks/hosts/run.py": ["--checkout", "."],
    "benchmarks/miners/run.py": [],
    "benchmarks/speed/run.py": [],
}


@pytest.mark.parametrize("script", [name for name in BENCHMARKS if "write_results(" in MAIN[name]])
def test_what_writes_results_looks_first_whether_it_can(script: str) -> None:
    in_the_repository = "write_results(RESULTS," in MAIN[script]
    assert in_the_repository or "check_output(" in MAIN[script]


@pytest.mark.parametrize("script", UNWRITABLE)
def test_results_that_cannot_be_written_are_said_before_anything_is_measured(script: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    option = next(name for name in ("--output", "--json", "--out") if f'"{name}"' in TEXTS[script])
    status, printed, said = figures.ended([script, *UNWRITABLE[script], option, str(tmp_path / "file" / "result.json")])
    assert (status, printed) == (2, "")
    assert said.startswith(f"error: {option} must be ")
    assert len(said.splitlines()) == 1
    assert f"got the file {tmp_path / 'file'}" in said


OVERWRITING = {  # one of each kind of file that would be replaced, or added to, and what else is needed to begin
    "benchmarks/data/run.py": ["--out"],
    "benchmarks/dml_choose.py": ["--results"],
    "benchmarks/dml_grid.py": ["--print", "--figure"],
    "benchmarks/fer_people.py": ["test", "--results"],
    "benchmarks/speed/run.py": ["--out"],
}


@pytest.mark.parametrize("script", OVERWRITING)
def test_no_file_of_others_is_replaced(script: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("notes")
    status, _, said = figures.ended([script, *OVERWRITING[script], str(mine)])
    assert status == 2
    assert said.startswith(f"error: {OVERWRITING[script][-1]} must be a file ")
    assert said.endswith(f"got {mine}; pass another, or move that file\n")
    assert mine.read_text() == "notes"


@pytest.mark.parametrize("script", [name for name in BENCHMARKS if "add_argument" in TEXTS[name]])
def test_files_are_written_whole(script: str) -> None:
    """By ``write_results``, ``write_figure``, ``add_lines`` or ``write_atomically``."""
    for line in TEXTS[script].splitlines():
        written = any(word in line for word in (".write_text(", ".savefig(", 'open("w"'))
        assert not written or "/proc/self" in line, line


def process_of_a_case(parent: int) -> Path:
    """Its folder of /proc, once it is there."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for each in children.read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # another child, which has ended since
                if "--measure" in Path(f"/proc/{each}/cmdline").read_text():
                    return Path("/proc") / each
        time.sleep(0.1)
    raise AssertionError("no process measures a case")


@needs_proc
def test_the_process_of_a_case_ends_with_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    process = started(["benchmarks/retrieval/run.py", "--out", str(tmp_path / "result.json")])
    child = process_of_a_case(process.pid)
    process.kill()
    process.wait()
    end = time.monotonic() + 30
    while child.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not child.exists()


@needs_processes
@pytest.mark.parametrize(
    ("words", "number", "status"),
    [
        (["benchmarks/faces/run.py", "speed"], signal.SIGTERM, 143),
        (["benchmarks/faces/run.py", "speed"], signal.SIGINT, 130),
        pytest.param(["benchmarks/miners/run.py"], signal.SIGTERM, 143, marks=needs_proc),
    ],
    ids=["itself, SIGTERM", "itself, SIGINT", "with a process of a case"],
)
def test_a_benchmark_that_is_told_to_stop_says_what_is_kept(
    words: list[str], number: signal.Signals, status: int, tmp_path: Path
) -> None:
    more = ["--out", str(tmp_path / "result.json")]
    process = started([*words, *more], preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert process.stdout is not None
    assert process.stdout.readline()  # it is at work
    if "faces" not in words[0]:
        process_of_a_case(process.pid)  # so is this
        time.sleep(0.5)
    process.send_signal(number)
    assert process.communicate(timeout=60)[1].splitlines()[-1] == "stopped; nothing is written"
    assert process.returncode == status
    assert not any(tmp_path.iterdir())
