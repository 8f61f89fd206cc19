"""``adaptive-margin check ROOT``: which data set a folder contains, and which of its rows can be used."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ..atomic import write_atomically
from ..messages import printable, problem
from ..training.command_line import Positional, arg, check_output, json_with, read


@dataclass(frozen=True, kw_only=True)
class Check:
    """Says which data set a folder contains, which of its rows can be used, and how it compares with the known figures.

    Attributes:
        root: the folder of AffectNet, AFEW-VA, Aff-Wild or Aff-Wild2.
        decode: images of each split to decode; all also reads every video.
        skip_unreadable: unreadable rows to allow in a split: 5, or 0.01 for one in a hundred.
        workers: decoding threads.
        index_dir: where to keep the index of AffectNet's reduced release; by default in the root.
        frames_dir: Aff-Wild's extracted frames, used if its videos are gone; by default extracted_frames in the root.
            Training puts them into extracted_frames in its cache.
        json: also write the report to this file.
        overwrite: replace a file at --json that is no earlier report; none in ROOT.
        strict: also fail if a known figure differs.
    """

    root: Annotated[Path, Positional, arg(metavar="ROOT")]
    decode: Annotated[int | Literal["all", "none"], arg(metavar="N|all|none")] = 2000
    skip_unreadable: Annotated[int | float, arg(metavar="N|SHARE")] = 0
    workers: int = 1
    index_dir: Annotated[Path | None, arg(metavar="DIR")] = None
    frames_dir: Annotated[Path | None, arg(metavar="DIR")] = None
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    overwrite: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(problem("--workers", "at least 1", self.workers, "pass a number of threads"))


def main(words: Sequence[str], prog: str) -> int:
    """Checks a folder with these options.

    Returns:
        0 if the root can be used for training, 1 if there is a fatal problem (with ``--strict`` also if a known figure
        differs).
    """
    options = read(Check, argv=words, prog=prog)
    if not options.root.is_dir():
        raise ValueError(problem("ROOT", "a folder", options.root, "pass the folder of a data set"))
    if options.json is not None:
        earlier = json_with("root", "releases", "reports", "fatal")
        in_root = options.root.resolve() in options.json.resolve().parents  # where other files are data
        overwrite = None if in_root else options.overwrite
        check_output("--json", options.json, file=True, replaces=earlier, overwrite=overwrite)

    from ..affect.check import check

    report = check(
        options.root,
        decode=None if options.decode == "all" else 0 if options.decode == "none" else options.decode,
        skip_unreadable=options.skip_unreadable,
        workers=options.workers,
        index_dir=options.index_dir,
        frames_dir=options.frames_dir,
        progress=_progress if sys.stderr.isatty() else None,
    )
    print("\n".join(map(printable, str(report).splitlines())))
    if options.json is not None:
        text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n"
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.json, text.encode("utf-8", "backslashreplace"))
        print(f"wrote {printable(str(options.json))}")
    return 1 if report.fatal or (options.strict and report.differences) else 0


def _progress(done: int, total: int) -> None:
    if done % 100 == 0 or done == total:
        print(f"\r{done:,} of {total:,} images", end="\n" if done == total else "", file=sys.stderr, flush=True)
