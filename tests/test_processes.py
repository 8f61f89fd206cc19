"""Real signals to real processes: a parent that is told to stop, and workers whose parent is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.processes import needs_processes

pytestmark = needs_processes

POOL = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from adaptive_margin.processes import end_with_parent, stops_on_sigterm

def work(place):
    Path(place, str(os.getpid())).write_text("")
    time.sleep(300)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with stops_on_sigterm():
        try:
            if sys.argv[2] == "executor":
                pool = ProcessPoolExecutor(2, context, end_with_parent)
                list(pool.map(work, [sys.argv[1]] * 2))
            else:
                with context.Pool(2, end_with_parent) as pool:
                    pool.map(work, [sys.argv[1]] * 2, 1)
        finally:
            for child in multiprocessing.active_children():
                child.terminate()
"""
ALONE = """
import os, subprocess, sys, time
from pathlib import Path
from adaptive_margin.processes import end_with_parent
if len(sys.argv) > 2:
    subprocess.run([sys.executable, sys.argv[0], sys.argv[1]])
end_with_parent()
Path(sys.argv[1], str(os.getpid())).write_text("")
time.sleep(300)
"""


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody waited for does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def until(condition: object, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.1)
    return False


def start(code: str, folder: Path, *words: str) -> subprocess.Popen[bytes]:
    (folder / "script.py").write_text(code)
    (folder / "pids").mkdir()
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(folder / "script.py"), str(folder / "pids"), *words]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for processes where Linux lists them")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda each: each.name)
@pytest.mark.parametrize(("code", "words", "workers"), [(POOL, "executor", 2), (POOL, "pool", 2), (ALONE, "child", 1)])
def test_workers_end_with_their_parent(
    tmp_path: Path, code: str, words: str, workers: int, number: signal.Signals
) -> None:
    parent = start(code, tmp_path, words)
    assert until(lambda: len(list((tmp_path / "pids").iterdir())) == workers)
    pids = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    assert all(map(is_there, pids))
    parent.send_signal(number)
    ended = parent.wait(60)
    assert ended == (143 if number == signal.SIGTERM and code is POOL else -number)
    assert until(lambda: not any(map(is_there, pids)), 10)


def test_a_signal_in_another_thread_is_left_alone() -> None:
    code = """
import threading
from adaptive_margin.processes import stops_on_sigterm
thread = threading.Thread(target=stops_on_sigterm().__enter__)
thread.start()
thread.join()
"""
    ended = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
