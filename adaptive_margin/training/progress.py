"""The progress of a run: a bar in a terminal, occasional lines in a log file, nothing from other ranks."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tqdm import tqdm

from ..messages import duration
from .world import World


class Progress(AbstractContextManager["Progress"]):
    """Steps done, rate, time left, share of time spent waiting for data, and the last losses; on standard error.

    If the terminal is gone, or nobody reads the pipe, the output stops but not the run.

    Args:
        total: steps of the run.
        initial: steps done before.
        world: the processes; only the main one shows anything.
        every: seconds between two lines if standard error is not a terminal.

    Example:
        >>> with Progress(10, world=World(rank=1, size=2)) as progress:  # another rank: silent
        ...     progress.update(1, waited=0.0)
    """

    def __init__(self, total: int, initial: int = 0, *, world: World, every: float = 30.0) -> None:
        self.total, self.initial, self.done, self.every = total, initial, initial, every
        self.shown = world.is_main
        self.losses = ""
        self._started = self._spoke = time.perf_counter()
        self._waited: float | None = None
        self._bar: Any = None
        if self.shown and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=initial, unit="step", dynamic_ncols=True, smoothing=0.05)

    def update(self, done: int, *, waited: float, losses: Mapping[str, float] | None = None) -> None:
        """Updates the progress.

        Args:
            done: steps done, of the total.
            waited: seconds spent waiting for data so far, counted from any starting point.
            losses: named numbers to show from now on; None keeps the last ones.
        """
        if not self.shown:
            return
        now = time.perf_counter()
        if self._waited is None:
            self._waited = waited
        if losses is not None:
            self.losses = "".join(f", {name} {value:.4g}" for name, value in losses.items())
        before, self.done = self.done, done
        share = (waited - self._waited) / max(now - self._started, 1e-9)
        state = f"waiting for data {share:.0%}{self.losses}"
        if self._bar is not None:
            with self._heard():
                self._bar.set_postfix_str(state, refresh=False)
                self._bar.update(done - before)
        elif now - self._spoke >= self.every:
            self._spoke = now
            rate = (done - self.initial) / (now - self._started)
            left = duration((self.total - done) / rate) if rate > 0 else "unknown time"
            self.write(f"step {done:,} of {self.total:,}, {rate:.3g} steps/s, {left} left, {state}")

    def write(self, text: str) -> None:
        """Prints text without breaking the bar."""
        if not self.shown:
            return
        with self._heard():
            if self._bar is not None:
                self._bar.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the bar as it is."""
        with self._heard():
            if self._bar is not None:
                self._bar.close()

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Stops all output as soon as it cannot be written."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE, errno.ENXIO):
                raise
            self.shown, self._bar = False, None

    def __exit__(self, *_: object) -> None:
        self.close()
