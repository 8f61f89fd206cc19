"""Reports what happened to every row: used, or dropped and why."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..images.decode import Progress, unreadable_rows
from ..images.errors import MISSING, UNDECODABLE, UnreadableError, enforce
from ..messages import allowed, printable, problem
from .records import EXPRESSIONS, Records

# Why rows are dropped, in the order of the checks: a row counts under the first reason that applies.
NOT_A_NUMBER = "label not a number"
SENTINEL = "sentinel"
CATEGORY = "category"
NOT_SELECTED = "not selected"
REFUSED = "refused video"
SURPLUS = "label without a frame"
LOST = "damaged frame"
NO_FACE = "no face"
INCOMPLETE = "missing annotation"
BAD_ANNOTATION = "unreadable annotation"

UNREADABLE = (INCOMPLETE, BAD_ANNOTATION, MISSING, UNDECODABLE)
"""The reasons that ``skip_unreadable`` limits: these rows are damaged, not merely unlabelled."""

EXAMPLES = 10  # how many rows of each reason a report names


@dataclass(frozen=True)
class LabelSummary:
    """One label over the rows used; population statistics in float64, NaN where there are no rows.

    Attributes:
        low: smallest value.
        high: largest value.
        mean: mean.
        sd: standard deviation (divided by the number of rows).
        zeros: rows that are exactly 0, for which the sign agreement SAGR cannot be reached.
        beyond: rows outside [−1, 1].
    """

    low: float
    high: float
    mean: float
    sd: float
    zeros: int
    beyond: int

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> LabelSummary:
        """The summary of one column.

        Example:
            >>> LabelSummary.of(np.array([-0.5, 0.0, 2.0]))
            LabelSummary(low=-0.5, high=2.0, mean=0.5, sd=1.08..., zeros=1, beyond=1)
        """
        if not len(values):
            return cls(math.nan, math.nan, math.nan, math.nan, 0, 0)
        x = values.astype(np.float64)
        zeros, beyond = int((values == 0).sum()), int((np.abs(values) > 1).sum())
        return cls(float(x.min()), float(x.max()), float(x.mean()), float(x.std()), zeros, beyond)


@dataclass(frozen=True)
class SplitReport:
    """The report of a loader on one split.

    Attributes:
        dataset: the release.
        split: which part of it.
        rows_read: rows of the label files.
        rows_used: rows that became records.
        dropped: reason → rows; ``rows_read`` is always ``rows_used`` plus all of these.
        examples: reason → the first few rows dropped for it, by name.
        identities: number of different identities, or ``None`` if people are not identified.
        identity_kind: the meaning of an identity (``"actor"``, ``"video"``), or ``None``.
        videos: number of videos of the used rows; 0 for single images.
        valence: summary over the rows used.
        arousal: likewise.
        outside_circle: rows used with valence² + arousal² > 1.
        classes: expression code → rows read, empty if there are no codes.
        notes: decisions and anomalies, one sentence each.

    Raises:
        ValueError: the rows do not add up.
    """

    dataset: str
    split: str
    rows_read: int
    rows_used: int
    dropped: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]]
    identities: int | None
    identity_kind: str | None
    videos: int
    valence: LabelSummary
    arousal: LabelSummary
    outside_circle: int
    classes: Mapping[int, int]
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        total = self.rows_used + sum(self.dropped.values())
        if total != self.rows_read:
            got = f"{self.rows_used} used and {dict(self.dropped)} dropped"
            raise ValueError(
                problem("rows_read", f"used plus dropped ({total})", f"{self.rows_read}: {got}", "count all")
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; NaN becomes ``None``."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        return plain

    def to_json(self) -> str:
        """:meth:`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        lines = [f"{self.dataset}, {self.split}: {self.rows_read:,} rows read, {self.rows_used:,} used"]
        for reason, rows in self.dropped.items():
            names = self.examples.get(reason, ())
            shown = f"  ({'; '.join(names[:3])}{'; …' if rows > 3 else ''})" if names else ""
            lines.append(f"  dropped {rows:>9,}  {reason}{shown}")
        if self.identities is None:
            lines.append("  identities: unknown in this data set")
        else:
            lines.append(f"  identities: {self.identities:,} ({self.identity_kind})")
        if self.videos:
            lines.append(f"  videos: {self.videos:,}")
        for name, label in (("valence", self.valence), ("arousal", self.arousal)):
            if self.rows_used:
                lines.append(
                    f"  {name}: mean {label.mean:+.3f}, sd {label.sd:.3f}, "
                    f"range [{label.low:+.3f}, {label.high:+.3f}], "
                    f"{label.zeros:,} exactly 0, {label.beyond:,} outside [-1, 1]"
                )
        lines.append(f"  outside the unit circle: {self.outside_circle:,}")
        if self.classes:
            counts = ", ".join(
                f"{EXPRESSIONS[code] if 0 <= code < len(EXPRESSIONS) else code} {rows:,}"
                for code, rows in sorted(self.classes.items())
            )
            lines.append(f"  expressions read: {counts}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


class LoadedSplit(NamedTuple):
    """The usable rows of a split, and the report on the others."""

    records: Records
    report: SplitReport

    def without(self, unreadable: Mapping[int, str]) -> LoadedSplit:
        """The same split without rows that later turned out to be unreadable; these are counted and named.

        Args:
            unreadable: position of the row → why (``"missing file"`` or ``"undecodable"``, with details after a
                colon).

        Raises:
            ValueError: a position outside the records.
        """
        if not unreadable:
            return self
        rows = np.arange(len(self.records))
        unknown = set(unreadable) - set(rows.tolist())
        if unknown:
            expected, remedy = f"positions from 0 to {len(rows) - 1}", "use the records that were cached"
            raise ValueError(problem("unreadable", expected, min(unknown), remedy))
        kept = self.records.subset(np.setdiff1d(rows, list(unreadable)))
        tally = Tally(self.report.dataset, self.report.split)
        tally.dropped = dict(self.report.dropped)
        tally.examples = {reason: list(names) for reason, names in self.report.examples.items()}
        for row, why in unreadable.items():
            reason = why.split(":", 1)[0]
            tally.drop(reason if reason in UNREADABLE else UNDECODABLE, f"{self.records.key[row]}: {why}")
        examples = {reason: tuple(names) for reason, names in tally.examples.items()}
        report = replace(
            self.report, rows_used=len(kept), dropped=tally.dropped, examples=examples, **_statistics(kept)
        )
        return LoadedSplit(kept, report)


def _statistics(records: Records) -> dict[str, Any]:
    """The fields of a report that are computed from the used rows."""
    labels = records.labels.astype(np.float64)
    return {
        "identities": len(set(records.identity) - {None}) if records.identity_kind else None,
        "identity_kind": records.identity_kind,
        "videos": len(set(records.video) - {None}),
        "valence": LabelSummary.of(records.labels[:, 0]),
        "arousal": LabelSummary.of(records.labels[:, 1]),
        "outside_circle": int(((labels**2).sum(axis=1) > 1).sum()),
    }


class Tally:
    """Counts rows while a loader reads them."""

    def __init__(self, dataset: str, split: str) -> None:
        self.dataset, self.split = dataset, split
        self.rows_read = 0
        self.dropped: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}
        self.classes: dict[int, int] = {}
        self.notes: list[str] = []

    def read(self, rows: int = 1) -> None:
        """Counts rows of a label file."""
        self.rows_read += rows

    def drop(self, reason: str, name: str, rows: int = 1) -> None:
        """Counts rows that cannot be used; ``name`` identifies them."""
        if rows <= 0:
            return
        self.dropped[reason] = self.dropped.get(reason, 0) + rows
        named = self.examples.setdefault(reason, [])
        if len(named) < EXAMPLES:
            named.append(printable(name) if rows == 1 else f"{printable(name)}, {rows:,} rows")

    def category(self, code: int) -> None:
        """Counts a row read with this expression code."""
        self.classes[code] = self.classes.get(code, 0) + 1

    def keeps(self, labels: tuple[float, float], code: int, wanted: Collection[int], name: str) -> bool:
        """Whether a row of AffectNet has labels and a wanted expression; drops it if not."""
        if math.isnan(labels[0] + labels[1]):
            self.drop(NOT_A_NUMBER, name)
        elif min(labels) <= -2 + 1e-6:
            self.drop(SENTINEL, name)
        elif code not in wanted:
            self.drop(CATEGORY, name)
        else:
            return True
        return False

    def note(self, text: str) -> None:
        """Adds a sentence to the notes of the report."""
        self.notes.append(printable(text))

    def finish(self, records: Records, skip_unreadable: int | float) -> LoadedSplit:
        """Returns records and report.

        Raises:
            UnreadableError: more rows are unreadable than ``skip_unreadable`` allows.
            ValueError: no row can be used.
        """
        unreadable = sum(self.dropped.get(reason, 0) for reason in UNREADABLE)
        limit = allowed(skip_unreadable, len(records) + unreadable)
        if unreadable > limit:
            names = [f"{name}: {reason}" for reason in UNREADABLE for name in self.examples.get(reason, ())]
            what, rows = f"{self.dataset}, {self.split}", len(records) + unreadable
            raise UnreadableError(what, unreadable, names, limit, rows)
        report = SplitReport(
            dataset=self.dataset,
            split=self.split,
            rows_read=self.rows_read,
            rows_used=len(records),
            dropped=dict(sorted(self.dropped.items(), key=lambda item: (-item[1], item[0]))),
            examples={reason: tuple(names) for reason, names in self.examples.items()},
            classes=dict(sorted(self.classes.items())),
            notes=tuple(self.notes),
            **_statistics(records),
        )
        return LoadedSplit(records, report)


def require_rows(loaded: LoadedSplit) -> LoadedSplit:
    """``loaded``, unless it is empty.

    Raises:
        ValueError: no row can be used; the message says why they were dropped.
    """
    if not len(loaded.records):
        got = "none" if not loaded.report.dropped else f"all dropped: {dict(loaded.report.dropped)}"
        what = f"the rows of {loaded.report.dataset}, {loaded.report.split},"
        remedy = "look at the label file and the selection of expressions"
        raise ValueError(problem(what, "usable, at least one of them", got, remedy))
    return loaded


def verify_images(
    loaded: LoadedSplit,
    *,
    skip_unreadable: int | float = 0,
    workers: int = 1,
    exif: bool = False,
    progress: Progress | None = None,
) -> LoadedSplit:
    """Decodes every image once; leaves out, names and counts those that cannot be decoded.

    The image cache does the same while it is built; this function is for training without a cache.

    Args:
        loaded: the result of a loader.
        skip_unreadable: how many may be left out: a number, or a share of the rows.
        workers: threads.
        exif: as in :func:`read_image`.
        progress: called with (done, total).

    Raises:
        UnreadableError: more are unreadable.
    """
    found = unreadable_rows(loaded.records, workers=workers, exif=exif, progress=progress)
    enforce(found, loaded.records.key, skip_unreadable, f"{loaded.report.dataset}, {loaded.report.split}")
    return loaded.without(found)
