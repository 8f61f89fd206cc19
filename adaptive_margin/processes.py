"""Processes that end together: workers when their parent is gone, a parent with its workers when it is told to stop."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

GRACE = 60.0
"""Seconds that a worker without a parent has to finish its step and save."""


def end_with_parent() -> None:
    """Ends this process when its parent is gone, however the parent died: the first thing that a worker does.

    The worker gets a SIGTERM. A run in :func:`adaptive_margin.training.train` then finishes its step and saves;
    anything else ends at once. It works for processes of :mod:`multiprocessing` and for others, such as those of
    :mod:`subprocess`, which look for their parent twice a second.
    """
    parent, number = multiprocessing.parent_process(), os.getppid()

    def watch() -> None:
        if parent is not None:
            parent.join()
        else:
            while os.getppid() == number:
                time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + GRACE
        while time.monotonic() < end and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            time.sleep(0.5)  # the run restores the handler when it has saved
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def stops_on_sigterm() -> Iterator[None]:
    """SIGTERM (batch systems, ``timeout``, containers) ends the program as Ctrl-C does, with code 143.

    It is raised as ``SystemExit`` in the main thread, so pools end their workers and ``finally`` is reached. Without
    this the process would be gone at once, and its workers would continue until they notice.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
