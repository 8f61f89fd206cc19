"""Checkpoints that are either complete or absent; later damage is detected."""

from __future__ import annotations

import math
import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..atomic import remove_temporaries, write_atomically
from ..messages import counted, problem
from ..stored import DamagedFileError, read_tensors, short_digest, tensors

State = dict[str, Any]
NAME = re.compile(r"(step|best)-(\d+)-([0-9a-f]{16})\.pt")


class CheckpointError(RuntimeError):
    """A checkpoint is needed, but none can be used: the message says why and what to do."""


class Checkpoints:
    """The checkpoints of a run, in their own folder: the newest few, and the best one.

    A file is named ``step-STEP-CHECKSUM.pt``, where the checksum is the first 16 hexadecimal digits of its SHA-256. It
    also contains a digest, so a truncated or altered file is detected even if it was renamed. The format is that of
    ``torch.save``, read back with ``weights_only=True``, so a stranger's checkpoint runs no code. Only one process at a
    time writes to a folder.

    Args:
        folder: created when it is first needed.
        keep: how many of the newest to keep, at least 1; with 2 there is one to fall back to.

    Raises:
        ValueError: ``keep`` is less than 1.

    Example:
        >>> import tempfile
        >>> checkpoints = Checkpoints(tempfile.mkdtemp())
        >>> for step in (100, 200, 300):
        ...     _ = checkpoints.save(step, {"weight": torch.ones(2) * step})
        >>> [step for step, _ in checkpoints.files()], checkpoints.latest()
        ([200, 300], (300, {'weight': tensor([300., 300.])}))
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(problem("keep", "at least 1", keep, "2 leave one to fall back to"))
        self.folder, self.keep = Path(folder), keep

    def save(self, step: int, state: State, best: int | None = None) -> Path:
        """Writes a checkpoint, then removes the oldest beyond ``keep``.

        Checkpoints of later steps are also removed: a run that resumes from here has abandoned them.

        Args:
            step: steps done.
            state: dictionaries, lists and tuples of tensors, numbers, text and None.
            best: step of the best checkpoint, which the state refers to; those of other steps are removed afterwards.

        Returns:
            The file.

        Raises:
            TypeError: something in ``state`` has another type; the message says where.
            DiskSpaceError: no space; older checkpoints are intact.
        """
        path = self._write("step", step, {"step": step, "state": state})
        earlier = [file for there, file in self.files() if there < step]
        kept = {path, *earlier[max(0, len(earlier) - (self.keep - 1)) :]}
        for _, file in self.files():
            if file not in kept:
                file.unlink(missing_ok=True)
        if best is not None:
            self._keep_best(best)
        return path

    def latest(self) -> tuple[int, State] | None:
        """The newest intact checkpoint: its step and its state, with tensors on the CPU; None if there is no checkpoint
        at all.

        Warns:
            UserWarning: a newer one is damaged; its file is named.

        Raises:
            CheckpointError: all of them are damaged.
        """
        files = self.files()
        for step, path in reversed(files):
            content = _read(path, step)
            if isinstance(content, dict):
                return step, content["state"]
            warnings.warn(f"checkpoint {path} {content}; trying the one before it", stacklevel=2)
        if files:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read ({counted(len(files), 'file')}, the newest is "
                f"{files[-1][1].name}): restore the folder from a backup, or delete it to train from the beginning"
            )
        return None

    def save_best(self, step: int, state: State, score: float, before: int | None = None) -> Path:
        """Writes the checkpoint with the best score so far, replacing the previous one; errors as in :meth:`save`.

        The caller decides whether it is the best; the best score is part of the state that a resumed run restores.

        Args:
            step: steps done.
            state: as in :meth:`save`.
            score: its score.
            before: step of the best checkpoint that the newest checkpoint refers to, which is kept until :meth:`save`
                is told that this one has taken its place: a run that is killed between them still needs it.

        Raises:
            ValueError: the score is NaN.
        """
        if math.isnan(score):
            remedy = "an undefined score cannot be the best: do not save it, or pass another score"
            raise ValueError(problem("score", "a number", score, remedy))
        path = self._write("best", step, {"step": step, "score": float(score), "state": state})
        self._keep_best(step, before)
        return path

    def _keep_best(self, *steps: int | None) -> None:
        """Removes the best checkpoints of other steps, and all but the newest of each of these."""
        kept = {step: file for step, file in self._found("best") if step in steps}
        for _, file in self._found("best"):
            if file not in kept.values():
                file.unlink(missing_ok=True)

    def best(self, step: int | None = None) -> tuple[int, State, float] | None:
        """The best checkpoint, or that of a ``step``: its step, state and score; None if there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        problems = []
        found = [each for each in self._found("best") if step in (None, each[0])]
        for done, path in reversed(found):  # two if a process was killed between writing and removing
            content = _read(path, done)
            if isinstance(content, dict):
                return done, content["state"], content["score"]
            problems.append(f"{path} {content}")
        if problems:
            raise CheckpointError(f"{'; '.join(problems)}: restore it from a backup, or use the newest checkpoint")
        return None

    def files(self) -> list[tuple[int, Path]]:
        """Step and file of each checkpoint except the best, oldest first, damaged or not."""
        return self._found("step")

    def _found(self, kind: str) -> list[tuple[int, Path]]:
        found = [(match, path) for path in self.folder.glob("*.pt") if (match := NAME.fullmatch(path.name))]
        steps = [(int(match[2]), path) for match, path in found if match[1] == kind]
        return sorted(steps, key=lambda item: (item[0], item[1].stat().st_mtime_ns))

    def _write(self, kind: str, step: int, content: State) -> Path:
        if step < 0:
            raise ValueError(problem("step", "at least 0", step, "pass the number of steps done"))
        check_plain(content["state"])
        data = tensors(content)
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(self.folder)
        path = self.folder / f"{kind}-{step:09d}-{short_digest(data)}.pt"
        write_atomically(path, data)
        return path


def check_plain(state: Any, where: str = "state") -> None:
    """Checks that ``torch.load(..., weights_only=True)`` will read a state back.

    Raises:
        TypeError: names the place, the type found there and the types expected.

    Example:
        >>> check_plain({"lr": 0.1, "weights": [torch.zeros(2)]})
        >>> check_plain({"optimizer": {"betas": {0.9, 0.99}}})
        Traceback (most recent call last):
        ...
        TypeError: state['optimizer']['betas'] must be a tensor, number, text, None or a dict, list or tuple of them,
        got builtins.set; convert it, as float(x) does for numpy's numbers
    """
    kind = type(state)
    if kind in (dict, OrderedDict):
        for key, value in state.items():
            if type(key) not in (str, int, bool, float, tuple):
                raise TypeError(problem(f"a key of {where}", "text or a number", repr(key), "name it with text"))
            check_plain(value, f"{where}[{key!r}]")
    elif kind in (list, tuple):
        for place, value in enumerate(state):
            if type(value) not in (int, float):  # long lists of numbers are common
                check_plain(value, f"{where}[{place}]")
    elif not (isinstance(state, Tensor) or kind in (int, float, bool, str, bytes, type(None), torch.Size)):
        expected = "a tensor, number, text, None or a dict, list or tuple of them"
        name = f"{kind.__module__}.{kind.__qualname__}"
        raise TypeError(problem(where, expected, name, "convert it, as float(x) does for numpy's numbers"))


def _read(path: Path, step: int) -> State | str:
    """The content of the checkpoint of a step, or what is wrong with it."""
    try:
        content = read_tensors(path)
    except DamagedFileError as error:
        return error.why
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    scored = path.name.startswith("step-") or isinstance(content.get("score"), float)
    if not (isinstance(content.get("state"), dict) and content.get("step") == step and scored):
        return f"is not a checkpoint of step {step:,}, despite its name"
    return content
