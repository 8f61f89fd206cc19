"""Runs scripts that print, each in a copy of this process, which has loaded PyTorch once: that takes seconds.

Reads one request a line, the words of a command in JSON, and answers each with a line: exit status, output, errors.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings

LOADED = ("torch", "pytorch_metric_learning.losses", "adaptive_margin", "matplotlib")
SECONDS = 300


def run(words: list[str]) -> int:
    """Runs a script as ``python SCRIPT …`` does, and returns its exit status."""
    sys.argv, sys.path[0] = words, os.path.dirname(words[0])
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def answer(words: list[str]) -> tuple[int, str, str]:
    """Exit status, output and errors of a script that runs in a fork, or, on Windows, in a process of its own."""
    if not hasattr(os, "fork"):
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=SECONDS)
        return done.returncode, done.stdout, done.stderr
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            status = run(words)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (out, errors):
            file.seek(0)
        late = f"it did not end within {SECONDS} seconds\n" if status == -signal.SIGALRM else ""
        return status, out.read(), errors.read() + late


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    for name in LOADED:
        with contextlib.suppress(Exception):  # said by the script that needs it
            importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
