"""Processes that end together: workers when their parent is gone, a parent with its workers when it is told to stop."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection, process, resource_tracker, spawn
from types import FrameType, ModuleType
from typing import Any, NoReturn

GRACE = 60.0
"""Seconds that a process which is told to stop has to finish its step and save."""


class ProcessDiedError(RuntimeError):
    """A worker ended in the middle of a task: it was killed, or ran out of memory."""


class WorkerTraceback(Exception):
    """The cause of an error that a worker raised: where it was raised, in words."""


def end_with_parent(number: int | None = None) -> None:
    """Ends this process when its parent is gone, however the parent died: the first thing that a worker does.

    The worker looks for its parent twice a second and gets a SIGTERM. A run in :func:`adaptive_margin.training.train`
    then finishes its step and saves; anything else ends at once. It works for processes of :mod:`multiprocessing` and
    for others, such as those of :mod:`subprocess`.

    Args:
        number: the parent's process ID, as the parent passed it on: it may be gone before this is called. By default it
            is that of the present parent.
    """
    parent, expected = multiprocessing.parent_process(), number or os.getppid()

    def watch() -> None:
        while os.getppid() == expected and (parent is None or parent.is_alive()):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + GRACE
        while time.monotonic() < end and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            time.sleep(0.5)  # the run restores the handler when it has saved
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class Workers(contextlib.AbstractContextManager["Workers"]):
    """Processes that do one task after another; none outlives the ``with`` block, nor this process.

    Each has a pipe of its own, and they share no lock. In the pools of the standard library a worker that is told to
    stop can take a lock with it, and the program hangs. They watch for the end of their parent from their first moment,
    before they import the program and what it needs. Ctrl-C is the parent's affair: workers ignore it. If the block is
    left by an exception, they get a SIGTERM and have :data:`GRACE` seconds; a second exception ends them at once.

    Args:
        jobs: how many; they are started when there is work for them. 0 works in this process.
        threads: PyTorch's number of threads in each; None leaves it.
        tasks_each: a new process takes a worker's place after so many tasks.

    Example:
        >>> with Workers(0) as workers:
        ...     list(workers.results(pow, [(2, 3), (3, 2)]))
        [(0, 8), (1, 9)]
    """

    def __init__(self, jobs: int, *, threads: int | None = None, tasks_each: int | None = None) -> None:
        self.jobs, self.threads, self.tasks_each = jobs, threads, tasks_each
        self._workers: dict[Any, process.BaseProcess] = {}  # by our end of their pipe
        self._left: dict[Any, int] = {}  # tasks until another takes their place
        self._abandoned: list[process.BaseProcess] = []  # nobody waits for the answer to their last task

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        workers = [*self._abandoned, *(self._dismiss(pipe) for pipe in list(self._workers))]
        try:
            for each in workers if kind else ():
                each.terminate()
            end = time.monotonic() + GRACE
            for each in workers:
                each.join(max(0.0, end - time.monotonic()))
        finally:
            for each in workers:
                each.kill()
                each.join()

    def results(self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """The number of each item, from 0, and ``function(*item)``, in the order in which they are finished.

        Raises:
            ProcessDiedError: a worker died. The errors of the function, with a :class:`WorkerTraceback` as their cause.
        """
        for number, value, error in self.outcomes(function, items):
            if error is not None:
                raise error
            yield number, value

    def outcomes(
        self,
        function: Callable[..., Any],
        items: Iterable[tuple[Any, ...]],
        *,
        every_second: Callable[[], object] = lambda: None,
    ) -> Iterator[tuple[int, Any, Exception | None]]:
        """The number of each item, its value and None, or None and its error; other items are not affected.

        Workers begin their next item before an outcome is given: the caller may take its time with it.

        ``every_second`` is called while this waits. If the caller stops before the end, workers finish their task and
        are not used again.
        """
        if not self.jobs:
            yield from _here(function, items)
            return
        todo, idle = enumerate(items), list(self._workers)
        at_work: dict[Any, int] = {}
        finished: list[tuple[int, Any, Exception | None]] = []
        try:
            while True:
                while len(at_work) < self.jobs and (following := next(todo, None)) is not None:
                    number, item = following
                    pipe = idle.pop() if idle else self._start()
                    at_work[pipe] = number
                    with contextlib.suppress(OSError):  # it has died, which is seen below
                        pipe.send((function, item))
                yield from finished  # only now: the caller may take its time
                finished = []
                if not at_work:
                    return
                ready: list[Any] = connection.wait(list(at_work), timeout=1.0)
                if not ready:
                    every_second()
                for pipe in ready:
                    number = at_work.pop(pipe)
                    try:
                        value, error, where = pipe.recv()
                    except (EOFError, OSError):
                        worker = self._dismiss(pipe)
                        worker.join()
                        died = ProcessDiedError(f"a process died (exit status {worker.exitcode})")
                        finished.append((number, None, died))
                        continue
                    if error is not None:
                        error.__cause__ = WorkerTraceback(where)
                    if self.tasks_each and self._left[pipe] == 1:
                        self._dismiss(pipe).join()
                    else:
                        self._left[pipe] -= 1
                        idle.append(pipe)
                    finished.append((number, value, error))
        finally:
            self._abandoned += [self._dismiss(pipe) for pipe in at_work if pipe in self._workers]

    def _start(self) -> Any:
        ours, theirs = multiprocessing.Pipe()
        program = {name: each for name, each in spawn.get_preparation_data("").items() if name.startswith("init_main")}
        worker = multiprocessing.get_context("spawn").Process(target=_work, args=(theirs, program, self.threads))
        main = sys.modules["__main__"]
        with _ctrl_c_waits():
            sys.modules["__main__"] = ModuleType("__main__")  # the worker imports the program when it watches
            try:
                worker.start()
            finally:
                sys.modules["__main__"] = main
            theirs.close()  # so that ours ends with the worker
            self._workers[ours], self._left[ours] = worker, self.tasks_each or 0
        return ours

    def _dismiss(self, pipe: Any) -> process.BaseProcess:
        pipe.close()  # tells the worker to end after its task
        del self._left[pipe]
        return self._workers.pop(pipe)


@contextlib.contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Holds Ctrl-C back, here and in a process that is started meanwhile; here it is heard at the end of the block."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which would let Ctrl-C through if the first process had to start it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _here(
    function: Callable[..., Any], items: Iterable[tuple[Any, ...]]
) -> Iterator[tuple[int, Any, Exception | None]]:
    """Outcomes of tasks that this process does itself."""
    for number, item in enumerate(items):
        try:
            outcome: tuple[Any, Exception | None] = (function(*item), None)
        except Exception as error:
            outcome = (None, error)
        yield number, *outcome


def _work(tasks: Any, program: dict[str, Any], threads: int | None) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # held back until now
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    here: Any = process.current_process()
    here._inheriting = True  # a program without `if __name__ == "__main__"` is an error, not a chain of processes
    try:
        spawn.prepare(program)
    finally:
        del here._inheriting
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    while True:
        try:
            function, item = tasks.recv()
        except EOFError:
            return
        ((_, value, error),) = _here(function, [item])
        where = "" if error is None else "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(where)
        try:
            tasks.send((value, error, where))
        except OSError:  # nobody waits for it any more
            return


@contextlib.contextmanager
def ends_in_order(kept: str = "") -> Iterator[None]:
    """A program that is told to stop, or whose output nobody reads any more, ends as one expects of a command.

    - SIGTERM (batch systems, ``timeout``, containers) ends it as Ctrl-C does, with code 143. It is raised as
      ``SystemExit`` in the main thread, so :class:`Workers` are ended and ``finally`` is reached. Without this the
      process would be gone at once, and its workers would continue until they notice.
    - A reader that has enough (``| head -1``) ends it with code 141, without a traceback.

    Args:
        kept: what is left of the work, printed after SIGTERM and after Ctrl-C, which then ends with code 130. By
            default the program says it.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    catches = threading.current_thread() is threading.main_thread()  # only there can signals be caught
    before = signal.signal(signal.SIGTERM, stop) if catches else None
    try:
        with ends_with_reader():
            yield
    except (KeyboardInterrupt, SystemExit) as stopped:
        code = stopped.code if isinstance(stopped, SystemExit) else 128 + signal.SIGINT
        if not kept or code not in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise
        print(f"stopped; {kept}", file=sys.stderr)
        raise SystemExit(code) from None
    finally:
        if catches:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def ends_with_reader() -> Iterator[None]:
    """Ends the program with code 141, without a traceback, when nobody reads its output any more."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # as in a program without a console
                sys.stdout.flush()
    except BrokenPipeError:
        try:
            print(flush=True)  # shows whether it was this pipe
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at the end
            raise SystemExit(128 + 13) from None  # SIGPIPE, which not every system has
        raise  # another pipe broke
