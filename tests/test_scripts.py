"""Every script with options answers ``--help`` and a wrong option at once, and ends as one expects of a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.training.processes import needs_processes

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
    if any(reads in text for reads in ("ArgumentParser(", "command_line import", "adaptive_margin.command import"))
]
COMMANDS = [[name] for name in SCRIPTS] + [["-m", "adaptive_margin", "train-faces"], ["-m", "adaptive_margin"]]


def started(words: list[str], *path: Path, **options: Any) -> subprocess.Popen[str]:
    """A command of this repository, whose output is not held back."""
    places = [*map(str, path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONUNBUFFERED": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=found, **pipes, **options)


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
    """As in ``--help | head -1``."""
    process = started([*words, "--help"])
    assert process.stdout is not None
    assert process.stdout.readline().startswith("usage: ")
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(120) in (0, 141)


def test_a_table_ends_with_its_reader() -> None:
    process = started(["benchmarks/text/run.py", "--print"])
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(120) == 141


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name.startswith("benchmarks/")])
def test_a_benchmark_ends_in_order(script: str) -> None:
    """SIGTERM and a reader that is gone are the affair of one decorator, or of the command."""
    assert "\n@ends_in_order(" in MAIN[script] or "adaptive_margin.command import main" in MAIN[script]


@needs_processes
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=lambda each: getattr(each, "name", "")
)
@pytest.mark.parametrize("words", [["benchmarks/faces/run.py", "speed"], ["benchmarks/miners/run.py"]])
def test_a_benchmark_that_is_told_to_stop_says_what_is_kept(
    words: list[str], number: signal.Signals, status: int, tmp_path: Path
) -> None:
    more = ["--out", str(tmp_path / "result.json")]
    process = started([*words, *more], preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert process.stdout is not None
    assert process.stdout.readline()  # it is at work
    if "faces" not in words[0]:  # so is the process of a case
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while "--measure" not in "".join(
            Path(f"/proc/{each}/cmdline").read_text() for each in children.read_text().split()
        ):
            time.sleep(0.1)
        time.sleep(0.5)
    process.send_signal(number)
    assert process.communicate(timeout=60)[1].splitlines()[-1] == "stopped; nothing is written"
    assert process.returncode == status
    assert not any(tmp_path.iterdir())
