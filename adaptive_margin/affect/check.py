"""Reads a root before a run is started on it, as ``adaptive-margin check ROOT`` does: which release it is, and which
rows can be used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..images._layout import tree
from ..images.decode import Progress, unreadable_rows
from ..images.errors import LayoutError, UnreadableError
from ..messages import allowed, counted, problem
from . import LOADERS, afew_va, aff_wild, aff_wild2, affectnet, affectnet_reduced
from ._derived import refuse_derived_copy
from ._known import Finding, compare_splits, compare_with_known
from .report import UNREADABLE, LoadedSplit, SplitReport
from .splits import training_splits

SAMPLE = 2000


def _any_split(find: Callable[[Path, str], object]) -> Callable[[Path], object]:
    return lambda root: find(root, "train") or find(root, "validation")


RELEASES: dict[str, tuple[str, Any, Callable[[Path], object]]] = {
    affectnet.NAME: ("AffectNet, 2017 release", affectnet, affectnet.is_affectnet_2017),
    affectnet_reduced.NAME: ("AffectNet, reduced release", affectnet_reduced, _any_split(affectnet_reduced.find_part)),
    aff_wild2.NAME: ("Aff-Wild2", aff_wild2, _any_split(aff_wild2.find_annotations)),
    aff_wild.NAME: ("Aff-Wild", aff_wild, aff_wild.find_layout),
    afew_va.NAME: ("AFEW-VA", afew_va, afew_va.is_afew_va),
}


def detect(root: Path) -> list[str]:
    """The releases in ``root``, by name; usually one.

    Raises:
        LayoutError: there is none; the message shows every known layout and what was found. :class:`DerivedCopyError`
            for a copy that is not the benchmark.
    """
    if not root.is_dir():
        raise LayoutError(problem("root", "a folder", root, "pass the folder of a data set"))
    found = [name for name, (_, _, is_there) in RELEASES.items() if is_there(root)]
    if not found:
        refuse_derived_copy(root)
        known = "\n".join(f" {title}:\n{module.LAYOUT}" for title, module, _ in RELEASES.values())
        raise LayoutError(f"{root} has the layout of no known release.\nKnown:\n{known}\nFound:\n{tree(root)}")
    return found


@dataclass(frozen=True)
class CheckReport:
    """What the check found."""

    root: str  # what was checked
    releases: tuple[str, ...]  # the releases that it contains
    reports: tuple[SplitReport, ...]  # one for each split that could be read
    decoded: dict[str, tuple[int, int]]  # "release, split" → number of decoded images, and the total
    findings: dict[str, tuple[Finding, ...]]  # figures compared with the known ones, by "release, split"
    fatal: tuple[str, ...]  # problems that prevent a run from starting; empty if the root can be used for training

    @property
    def differences(self) -> int:
        """Number of known figures that differ."""
        return sum(not finding.agrees for findings in self.findings.values() for finding in findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "reports": [report.to_dict() for report in self.reports]}

    def __str__(self) -> str:
        lines = [f"{self.root}: {', '.join(self.releases) or 'no known release'}"]
        for report in self.reports:
            name = f"{report.dataset}, {report.split}"
            lines += ["", str(report)]
            if name in self.decoded:
                done, total = self.decoded[name]
                lines.append(f"  images decoded: {done:,} of {total:,}")
            lines += [f"  {finding}" for finding in self.findings.get(name, ())]
        for name in self.findings:
            if name in self.releases:
                lines += ["", f"{name}, parts compared", *(f"  {finding}" for finding in self.findings[name])]
        lines.append("")
        if self.fatal:
            lines += [f"FATAL: {text}" for text in self.fatal]
        else:
            differ = ""
            if self.differences:
                differ = f", {counted(self.differences, 'known figure')} differ{'s' if self.differences == 1 else ''}"
            lines.append(f"This root can be trained on{differ}.")
        return "\n".join(lines)


def check(
    root: str | Path,
    *,
    decode: int | None = SAMPLE,
    skip_unreadable: int | float = 0,
    workers: int = 1,
    index_dir: str | Path | None = None,
    frames_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Reads all label files of a root and some or all of its images.

    Problems with the data raise no errors; they are in the report.

    Args:
        root: the folder.
        decode: how many images of each split to decode, drawn with a fixed seed; ``None`` for all, 0 for none. Videos
            are decoded, to number their frames, only with ``None``.
        skip_unreadable: number of unreadable rows per split that a run would allow; more are fatal.
        workers: decoding threads.
        index_dir: folder of the reduced release's index, if not ``root``.
        frames_dir: folder of Aff-Wild's extracted frames, if not ``extracted_frames`` in ``root``.
        progress: called with (images decoded, total) for each split.

    Returns:
        The report; ``report.fatal`` is empty if the root can be used for training.

    Raises:
        ValueError, TypeError: an option out of range.
    """
    if decode is not None and (isinstance(decode, bool) or not isinstance(decode, int) or decode < 0):
        raise ValueError(problem("decode", "None or a number of images, at least 0", decode, "None decodes all"))
    allowed(skip_unreadable, 0)
    path = Path(root)
    reports: list[SplitReport] = []
    decoded: dict[str, tuple[int, int]] = {}
    findings: dict[str, tuple[Finding, ...]] = {}
    fatal: list[str] = []
    try:
        releases = detect(path)
    except LayoutError as error:
        return CheckReport(str(root), (), (), {}, {}, (str(error),))
    for release in releases:
        parts: dict[str, LoadedSplit] = {}
        for split in RELEASES[release][1].SPLITS:  # official ones that are missing are reported
            if split == "automatic" and not affectnet.find_list(path, split):
                continue
            name = f"{release}, {split}"
            try:
                loaded = _load(path, release, split, decode, index_dir, frames_dir)
            except (ValueError, UnreadableError, ImportError, OSError) as error:  # wrong layouts are ValueErrors
                fatal.append(f"{name}: {error}")
                continue
            if rows := _tried(loaded, decode):
                decoded[name] = (len(rows), len(loaded.records))
                loaded = loaded.without(unreadable_rows(loaded.records, rows, workers=workers, progress=progress))
            parts[split] = loaded
            reports.append(loaded.report)
            findings[name] = compare_with_known(loaded)
            bad = sum(loaded.report.dropped.get(reason, 0) for reason in UNREADABLE)
            limit = allowed(skip_unreadable, loaded.report.rows_used + bad)
            if not loaded.report.rows_used:
                fatal.append(f"{name}: no row can be used, {dict(loaded.report.dropped)}")
            elif bad > limit:
                fatal.append(
                    f"{name}: {counted(bad, 'row')} unreadable, {limit:,} allowed: "
                    f"restore the files, or train with --skip-unreadable {bad} (skip_unreadable={bad}) or more"
                )
            elif split in ("train", "all"):
                try:
                    training_splits(loaded.records)
                except ValueError as error:
                    fatal.append(f"{name}: {error}")
        if {"train", "validation"} <= set(parts) and release.startswith("affectnet"):
            findings[release] = compare_splits(parts["train"], parts["validation"])
    return CheckReport(str(root), tuple(releases), tuple(reports), decoded, findings, tuple(fatal))


def _load(
    root: Path,
    release: str,
    split: str,
    decode: int | None,
    index_dir: str | Path | None,
    frames_dir: str | Path | None,
) -> LoadedSplit:
    if release == aff_wild.NAME:  # its loader would extract every frame
        return aff_wild.survey_aff_wild(root, decode=decode is None, frames_dir=frames_dir)
    options = {"index_dir": index_dir} if release == affectnet_reduced.NAME else {}
    return LOADERS[release](root, split, skip_unreadable=1.0, **options)


def _tried(loaded: LoadedSplit, decode: int | None) -> list[int]:
    """The rows whose images are decoded."""
    rows = np.arange(len(loaded.records))
    if loaded.report.dataset == aff_wild.NAME:  # frames of a video need not have been extracted yet
        rows = rows[[record.path.exists() for record in loaded.records]]
    if decode is not None and decode < len(rows):
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:decode])
    return list(map(int, rows))
