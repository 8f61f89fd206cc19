"""The folder of a run: its configuration, its environment, its curves and its checkpoints."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import platform
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..atomic import FULL, DiskSpaceError, remove_temporaries, temporaries, write_atomically
from ..messages import require_extra
from ..stored import DamagedFileError, read_json, write_json
from .checkpoints import Checkpoints
from .config_files import ENVIRONMENT, ConfigError, flat, plain, read_options, to_yaml
from .world import World

PACKAGES = ("torch", "torchvision", "timm", "pytorch-metric-learning", "numpy", "scipy", "faiss-cpu", "faiss-gpu-cu12")
LOCK = ".lock"
CURVES, COUNT = "scalars.csv", "scalars.json"
COLUMNS = ("step", "name", "value", "seconds", "checksum")
UNCHECKED = ",".join(COLUMNS[:-1])
"""First line of a ``scalars.csv`` written before its rows had checksums."""


class RunFolderError(ValueError):
    """The folder holds something other than this run; the message says what, and what to do."""


class Curve(NamedTuple):
    """One named number over a run.

    Attributes:
        steps: steps done when it was written.
        values: the numbers.
        seconds: seconds of training since the run began, without interruptions.
    """

    steps: list[int]
    values: list[float]
    seconds: list[float]


class RunFolder(contextlib.AbstractContextManager["RunFolder"]):
    """The folder for a run's configuration, environment, curves and checkpoints; only the main rank writes.

    ===================  ==============================================================================================
    ``config.yaml``      the configuration
    ``environment.json`` versions, device, threads, commit, command line and time, of the start and of each resumption
    ``scalars.csv``      curves: step, name, value, seconds, checksum of the row; a resumed run's equals an unbroken
                         one's but for seconds and, therefore, checksums
    ``scalars.json``     how many rows it has at least: one whose end is gone is recognised
    ``tensorboard/``     the same for TensorBoard
    ``checkpoints/``     see :class:`~adaptive_margin.training.Checkpoints`
    ===================  ==============================================================================================

    Every rank creates one, at the same time. In a rejected folder nothing is written or removed. If a file other than
    the configuration is damaged, a warning names it and the run continues; the damaged file is kept beside the new one
    as ``NAME.damaged``.

    Args:
        path: the folder, created if necessary.
        config: a dataclass or mapping that determines the run.
        world: the processes.
        resume: resume an existing run with the same configuration; False rejects it.
        may_change: options, by their full names, that may differ when a run resumes, such as its length or the number
            of data workers; ``config.yaml`` then gets the new values.
        outcomes: files with the results of a finished run. A run that resumes with different ``outcome_options`` first
            renames them to ``NAME.before``, so that they are not mistaken for its own results.
        outcome_options: the options in ``may_change`` on which the results depend, such as the run's length.
        keep: number of checkpoints to keep.
        check: called by the main rank with this folder before a run with checkpoints resumes and before anything is
            written. It raises a :class:`RunFolderError` if something other than the configuration has changed.

    Attributes:
        path: the folder.
        checkpoints: the checkpoints in the folder.
        rows: number of rows of the curves written so far.

    Raises:
        RunFolderError: the folder holds a run with another configuration, a run that must not be resumed, a run that
            ``check`` rejects, a finished run whose checkpoints are gone, or other files; or another process is training
            there.
        MainProcessError: on the other ranks, where the main one could not write (a full disk, no permission) or failed
            in another way, which it raises as it is.

    Example:
        >>> import tempfile
        >>> with RunFolder(tempfile.mkdtemp(), {"lr": 0.1}, world=World()) as folder:
        ...     folder.log(10, {"loss": 0.5}, seconds=1.0)
        ...     folder.log(20, {"loss": 0.25}, seconds=2.0)
        >>> read_scalars(folder.path)["loss"]
        Curve(steps=[10, 20], values=[0.5, 0.25], seconds=[1.0, 2.0])
    """

    def __init__(
        self,
        path: str | Path,
        config: Any,
        *,
        world: World,
        resume: bool = True,
        may_change: Collection[str] = (),
        outcomes: Collection[str] = (),
        outcome_options: Collection[str] = (),
        keep: int = 2,
        check: Callable[[RunFolder], None] | None = None,
    ) -> None:
        self.path, self.world = Path(path), world
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep)
        self.rows = 0
        self._config, self._resume, self._may_change = plain(config), resume, may_change
        self._outcomes, self._outcome_options, self._check_more = outcomes, outcome_options, check
        self._file: io.FileIO | None = None
        self._board: Any = None
        self._lock: io.FileIO | None = None

        def claim() -> str | None:
            try:
                self._claim()
            except BaseException as error:
                self.close()
                if not isinstance(error, RunFolderError):
                    raise
                return str(error)
            return None

        wrong = world.from_main(claim)  # every rank stops, or none
        if wrong is not None:
            raise RunFolderError(wrong)

    def log(self, step: int, values: Mapping[str, float], *, seconds: float) -> None:
        """Adds a row for each number to the CSV and for TensorBoard; readers see it immediately.

        Args:
            step: steps done.
            values: numbers by name; a slash makes a group in TensorBoard.
            seconds: seconds of training since the run began.

        Raises:
            DiskSpaceError: no space.
        """
        if not self.world.is_main:
            return
        file = self._open(step - 1)
        data = "".join(
            _row(step, name, repr(float(value)), f"{seconds:.3f}") for name, value in values.items()
        ).encode()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError as error:
            if error.errno in FULL:
                raise DiskSpaceError(self.path / CURVES, len(data), None, error.errno) from error
            raise
        self.rows += len(values)
        for name, value in values.items():
            self._board.add_scalar(name, float(value), step)

    def resume_at(self, step: int, rows: int | None = None) -> None:
        """Drops rows that were logged after a step, because the run resumes from there.

        Args:
            step: done.
            rows: how many there were at that step, if it is known.

        Warns:
            UserWarning: rows are damaged or missing, or there were curves and the run starts from the beginning; the
            old file is kept.
        """
        if not self.world.is_main:
            return
        self._close_curves()
        curves = self.path / CURVES
        found, damaged = _rows(curves) if curves.exists() else ([], "")
        kept = [row for row in found if int(row[0]) <= step]
        damaged = damaged or _lacking(len(kept), rows, step)
        if damaged and curves.exists():
            self._set_aside(curves, damaged)
        elif damaged:
            warnings.warn(f"{curves} {damaged}; the run continues without them", stacklevel=2)
        elif found and step == 0:
            before = curves.with_name("scalars.csv.before")
            warnings.warn(
                f"{self.path} has no checkpoint: the run starts again; its old curves are kept in {before}",
                stacklevel=2,
            )
            os.replace(curves, before)
        write_json(self.path / COUNT, {"rows": len(kept)})  # before they are fewer
        if found or curves.exists():
            text = "".join([",".join(COLUMNS) + "\n", *(_row(*row) for row in kept)])
            write_atomically(curves, text.encode())
        self._open(step)

    def check_curves(self, step: int, rows: int | None) -> None:
        """Checks the curves of a run that has nothing left to do, without changing them.

        Args:
            step: steps done.
            rows: how many there were at that step, if it is known.

        Warns:
            UserWarning: rows are damaged or missing.
        """
        if not self.world.is_main:
            return
        curves = self.path / CURVES
        found, damaged = _rows(curves) if curves.exists() else ([], "")
        if damaged := damaged or _lacking(len(found), rows, step):
            warnings.warn(f"{curves} {damaged}; the rest of the run is intact", stacklevel=2)

    def _set_aside(self, path: Path, why: str) -> None:
        """Warns that a file is damaged and keeps it under another name."""
        kept = path.with_name(f"{path.name}.damaged")
        warnings.warn(f"{path} {why}; the run continues without it; the damaged file is kept as {kept}", stacklevel=3)
        os.replace(path, kept)

    def flush(self) -> None:
        """Syncs the curves to disk; done before each checkpoint, so that a checkpoint is never ahead of the curves."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._board.flush()
            write_json(self.path / COUNT, {"rows": self.rows})

    def write(self, name: str, text: str) -> None:
        """Writes a small file of the run, such as a report on its data, atomically."""
        if self.world.is_main:
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes plain values, such as results, with a digest: see :func:`~adaptive_margin.stored.write_json`."""
        if self.world.is_main:
            write_json(self.path / name, content)

    def _close_curves(self) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()
            self._file = self._board = None

    def close(self) -> None:
        """Closes the files of the curves and unlocks the folder; a later row opens the files again."""
        self._close_curves()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def _claim(self) -> None:
        """Checks that the folder is ours, and writes the configuration and the environment."""
        self._check()  # nothing is written or removed before that
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self.path)
        self._check()  # another process may have been here meanwhile
        remove_temporaries(self.path)
        there = self.path / "config.yaml"
        if there.exists():
            was, now = flat(read_options(there)), flat(self._config)
            if any(was.get(name) != now.get(name) for name in self._outcome_options):
                for path in (self.path / name for name in self._outcomes):
                    if path.exists():
                        os.replace(path, path.with_name(f"{path.name}.before"))
        history = self.path / ENVIRONMENT
        here = environment(self.world)
        if history.exists():
            try:
                first = read_json(history)
                here = {**first, "resumed": [*first.get("resumed", []), here]}
            except (DamagedFileError, TypeError) as error:
                why = error.why if isinstance(error, DamagedFileError) else "is damaged: resumed is not a list"
                self._set_aside(history, why)
        self.write("config.yaml", to_yaml(self._config))  # first: a folder that has it is a run, whatever else it lacks
        write_json(history, here, indent=2)

    def _check(self) -> None:
        """Raises unless the folder is empty or holds a run that can be resumed with these options; changes nothing."""
        resumes = check_folder(self.path, self._config, self._may_change, self._outcomes, resume=self._resume)
        if resumes and self._check_more is not None:
            self._check_more(self)

    def _open(self, step: int) -> io.FileIO:
        if self._file is None:
            require_extra("logging", "train", "tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            path = self.path / CURVES
            if not path.exists():
                write_atomically(path, (",".join(COLUMNS) + "\n").encode())
            self.rows = len(_rows(path)[0])
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - kept open between rows
            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)
        return self._file


def check_folder(
    path: str | Path,
    config: Any,
    may_change: Collection[str] = (),
    outcomes: Collection[str] = (),
    *,
    resume: bool = True,
) -> bool:
    """Whether a run with these options would resume from a checkpoint; changes nothing.

    The arguments are those of :class:`RunFolder`, which raises the same. Call this before anything that takes long.

    Raises:
        RunFolderError: see there.
    """
    path = Path(path)
    if not path.exists():
        return False
    if not (path / "config.yaml").exists():
        own = {LOCK, *(each.name for each in temporaries(path))}
        names = {entry.name for entry in path.iterdir()} - own
        if names:
            found = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
            raise RunFolderError(f"{path} holds other files ({found}) and no run: choose another folder, or empty it")
        return False
    if not resume:
        raise RunFolderError(f"{path} already holds a run: resume it, or choose another folder")
    try:
        was = plain(read_options(path / "config.yaml"))
    except (ConfigError, TypeError) as error:
        remedy = "restore it from a backup, or choose another folder"
        raise RunFolderError(f"{path} holds a run whose config.yaml cannot be read ({error}): {remedy}") from None
    check_same_run(path, was, plain(config), may_change)
    checkpoints = Checkpoints(path / "checkpoints")
    if checkpoints.files():
        return True
    if results := [name for name in outcomes if (path / name).exists()]:
        raise RunFolderError(
            f"{path} holds a finished run ({', '.join(results)}) whose checkpoints are gone: "
            f"restore {checkpoints.folder}, choose another folder, or remove {' and '.join(results)} to train "
            "from the beginning"
        )
    return False


def check_same_run(
    path: Path, was: Mapping[str, Any], now: Mapping[str, Any], may_change: Collection[str] = ()
) -> None:
    """Raises a :class:`RunFolderError` that names the options in which the run in ``path`` differs from this one.

    Those in ``may_change``, by their full names, may differ.
    """
    was, now, nothing = flat(was), flat(now), object()
    different = [
        f"  {name}: {was.get(name, 'not there')!r} there, {now.get(name, 'not there')!r} now"
        for name in {**was, **now}
        if was.get(name, nothing) != now.get(name, nothing) and name not in may_change
    ]
    if different:
        head = f"{path} holds a run with another configuration:"
        remedy = "choose another folder, or give the options that the run there was started with"
        raise RunFolderError("\n".join([head, *different, remedy]))


def read_scalars(path: str | Path) -> dict[str, Curve]:
    """The curves of a run, by name, in the order in which they first occur.

    Args:
        path: path of a run folder or its ``scalars.csv``; it can also be read while the run is writing.

    Warns:
        UserWarning: rows are damaged, and left out, or missing.
    """
    path = Path(path)
    path = path / CURVES if path.is_dir() else path
    written = _count(path.with_name(COUNT)) if path.name == CURVES else None  # first, as the number of rows only grows
    rows, damaged = _rows(path)
    damaged = damaged or _lacking(len(rows), written)
    if damaged:
        warnings.warn(f"{path} {damaged}; the curves are shown without them", stacklevel=2)
    curves: dict[str, Curve] = {}
    for step, name, value, seconds in rows:
        curve = curves.setdefault(name, Curve([], [], []))
        curve.steps.append(int(step))
        curve.values.append(float(value))
        curve.seconds.append(float(seconds))
    return curves


def _row(*cells: object) -> str:
    """A line of ``scalars.csv``."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return f"{text.getvalue()},{zlib.crc32(text.getvalue().encode()):08x}\n"


def _cells(line: bytes, checked: bool) -> list[str] | None:
    """Step, name, value and seconds of a line; None if it is damaged."""
    try:
        text = line.decode()
        if checked:
            text, _, checksum = text.rpartition(",")
            if checksum != f"{zlib.crc32(text.encode()):08x}":
                return None
        (cells,) = csv.reader([text])
        step, _, value, seconds = cells
        int(step), float(value), float(seconds)
    except (ValueError, csv.Error):
        return None
    return cells


def _rows(path: Path) -> tuple[list[list[str]], str]:
    """The intact rows of ``scalars.csv``, and what is wrong with it, if anything."""
    head, *lines = path.read_bytes().split(b"\n")
    torn = lines.pop() if lines else b""  # a killed process leaves this; it is not damage
    checked = head != UNCHECKED.encode()
    read = [_cells(line, checked) for line in lines]
    bad = [number for number, row in enumerate(read, 2) if row is None]
    if b"\0" in torn:
        bad.append(len(lines) + 2)
    damaged = (
        "is damaged: its first line is not what was written" if head != ",".join(COLUMNS).encode() and checked else ""
    )
    if bad:
        damaged = f"is damaged in {len(bad):,} of {len(lines):,} rows, first in line {bad[0]:,}"
    return [row for row in read if row is not None], damaged


def _lacking(found: int, written: int | None, step: int | None = None) -> str:
    """What is wrong if there are fewer rows than were written; empty if nothing is, or if the number is unknown."""
    if written is None or found >= written:
        return ""
    return f"lacks {written - found:,} of {written:,} rows" + ("" if step is None else f" up to step {step:,}")


def _count(path: Path) -> int | None:
    """The recorded number of rows; None if there is none, as in older runs."""
    try:
        rows = read_json(path)["rows"] if path.exists() else None
    except (DamagedFileError, KeyError, TypeError):
        return None
    return rows if isinstance(rows, int) else None


def environment(world: World) -> dict[str, Any]:
    """What a result depends on besides its configuration: versions, device, threads, commit, command line, time."""
    from .. import __version__

    versions = {"python": platform.python_version(), "adaptive-margin": __version__}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    on_cuda = world.device.type == "cuda"
    return {
        "versions": versions,
        "device": torch.cuda.get_device_name(world.device) if on_cuda else _processor(),
        "cuda": torch.version.cuda if on_cuda else None,
        "platform": platform.platform(),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "command": ["python", *sys.argv],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def locked(folder: Path) -> io.FileIO | None:
    """Locks out other processes until it is closed or this process ends; None if the system has no such locks.

    Raises:
        RunFolderError: another process is training there.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    file = open(folder / LOCK, "ab", buffering=0)  # noqa: SIM115 - the lock lasts as long as the file is open
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not kept by data workers that outlive us
    except OSError as error:
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):  # some network file systems lock nothing
            return None
        remedy = "wait for it to finish, stop it, or choose another folder"
        raise RunFolderError(f"another process is training in {folder}: {remedy}") from None
    return file


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this library's checkout, with ``+`` if files differ from it; None if the library was installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    words = ["describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+"]
    try:
        said = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()
