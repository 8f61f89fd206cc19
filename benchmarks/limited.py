"""A case of a benchmark in a process of its own, which is stopped if it needs too much memory or time."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adaptive_margin.processes import end_with_parent

GIB = 2**30
PARENT = "ADAPTIVE_MARGIN_BENCHMARK"
"""The variable in which a case finds the process ID of its benchmark, which may be killed while the case starts."""


class Ended(NamedTuple):
    """How a case ended.

    Attributes:
        result: what it printed last, as JSON; empty if it did not end by itself, or failed.
        stopped: ``"memory"`` or ``"time"`` if it went beyond that limit; else empty.
        why: why there is no result, in words: the limit, or what it said last.
        errors: all that it wrote to standard error.
    """

    result: dict[str, Any]
    stopped: str = ""
    why: str = ""
    errors: str = ""


def run_limited(command: Sequence[object], *, gib: float, minutes: float) -> Ended:
    """Runs ``python COMMAND``; nothing of it is left when this ends, however it ends."""
    child = subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**os.environ, PARENT: str(os.getpid())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60 * minutes
    try:
        while True:
            try:
                output, errors = child.communicate(timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() > end:
                    return Ended({}, "time", f"more than {minutes:g} min")
                with contextlib.suppress(OSError, RuntimeError):  # it has just ended
                    if resident("VmRSS", child.pid) > GIB * gib:
                        return Ended({}, "memory", f"more than {gib:g} GiB")
    finally:
        child.kill()  # unless it has ended
        child.wait()
    if child.returncode == 0:
        return Ended(json.loads(output.splitlines()[-1]), errors=errors)
    return Ended({}, why=(errors.strip().splitlines() or [f"exit {child.returncode}"])[-1], errors=errors)


def end_with_benchmark() -> None:
    """Ends this process of a case when its benchmark is gone: the first thing that it does."""
    end_with_parent(int(os.environ.get(PARENT, "0")) or None)


def resident(field: str, pid: int | str = "self") -> int:
    """A field of /proc/PID/status in bytes: ``VmRSS``, or its high-water mark ``VmHWM``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/{pid}/status")
