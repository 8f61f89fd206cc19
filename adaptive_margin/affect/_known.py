"""Known figures of the real data sets, for comparison with a copy: row counts, class counts, label statistics.

Sources: the counts in public loaders and in the papers; label statistics of AffectNet's validation set, computed from
its 3,999 published labels. A different figure is a finding, not an error: an export, a subset or a later edition can
differ legitimately, but an incomplete copy differs too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import afew_va, aff_wild, aff_wild2, affectnet, affectnet_reduced
from .records import EXPRESSIONS, Records
from .report import LoadedSplit, SplitReport

AFFECTNET_TRAIN = dict(
    enumerate((74_874, 134_415, 25_459, 14_090, 6_378, 3_803, 24_882, 3_750, 33_088, 11_645, 82_415))
)
"""Rows of training.csv by expression: 414,799; one circulated copy has one "happy" more."""

AFFECTNET_VALIDATION = dict.fromkeys(range(11), 500)
REDUCED_TRAIN = {code: AFFECTNET_TRAIN[code] for code in range(8)}
REDUCED_VALIDATION = {**dict.fromkeys(range(8), 500), 7: 499}

VALIDATION_LABELS = {"valence": (-0.192, 0.466, -0.987, 0.982), "arousal": (0.354, 0.379, -0.667, 0.984)}
"""Mean, standard deviation, smallest and largest label of AffectNet's validation set, codes 0 to 7."""

VALIDATION_ZEROS = (71, 18)
"""Rows of the reduced validation set with valence exactly 0, and with both labels 0."""

CLASS_MEANS = {
    0: (-0.03, -0.02),
    1: (0.67, 0.08),
    2: (-0.63, -0.27),
    3: (0.18, 0.70),
    4: (-0.12, 0.76),
    5: (-0.68, 0.45),
    6: (-0.43, 0.55),
    7: (-0.51, 0.58),
}
"""Mean (valence, arousal) by expression in AffectNet's validation set."""

AUTOMATIC_ROWS = 539_607
AFEW_CLIPS, AFEW_FRAMES, AFEW_ACTORS = 600, 30_051, 240
AFF_WILD_VIDEOS = 252
AFF_WILD2_FILES = {"train": (351, 356), "validation": (71, 76)}
AFF_WILD2_FRAMES = {"train": 1_680_000, "validation": 382_000}


@dataclass(frozen=True)
class Finding:
    """One figure of a copy, compared with the known one.

    Attributes:
        what: name of the figure.
        expected: the known value.
        found: the value of this copy.
        agrees: whether they agree within the rounding of the figure.
    """

    what: str
    expected: str
    found: str
    agrees: bool

    def __str__(self) -> str:
        return f"{'as known ' if self.agrees else 'DIFFERS  '} {self.what}: {self.found} (known: {self.expected})"


def _count(what: str, expected: int | Sequence[int], found: int, tolerance: float = 0.0) -> Finding:
    choices = [expected] if isinstance(expected, int) else list(dict.fromkeys(expected))
    agrees = any(abs(found - choice) <= tolerance * choice for choice in choices)
    about = "about " if tolerance else ""
    return Finding(what, about + " or ".join(f"{choice:,}" for choice in choices), f"{found:,}", agrees)


def _rows_and_classes(known: Mapping[int, int], report: SplitReport) -> list[Finding]:
    """Rows in all and by expression; a circulated copy of the 2017 training list has one "happy" more."""
    more = int(known is AFFECTNET_TRAIN)
    total = sum(known.values())
    findings = [_count("rows", (total, total + more), report.rows_read)]
    for code, rows in known.items():
        also = (rows, rows + more * (code == 1))
        findings.append(_count(f"rows of expression {code} ({EXPRESSIONS[code]})", also, report.classes.get(code, 0)))
    return findings


def _validation_labels(records: Records) -> list[Finding]:
    """The label statistics of AffectNet's validation set, over codes 0 to 7."""
    kept = (records.expression >= 0) & (records.expression <= 7)
    labels, codes = records.labels[kept].astype(np.float64), records.expression[kept]
    findings: list[Finding] = []
    if not len(labels):
        return findings
    for column, (name, known) in enumerate(VALIDATION_LABELS.items()):
        x = labels[:, column]
        found = float(x.mean()), float(x.std()), float(x.min()), float(x.max())
        agrees = bool(np.allclose(found, known, atol=1.5e-3, rtol=0))  # three decimals, one row of 4,000
        said = "mean {:+.3f} sd {:.3f} range [{:+.3f}, {:+.3f}]"
        findings.append(Finding(f"{name} of codes 0 to 7", said.format(*known), said.format(*found), agrees))
    means = {code: labels[codes == code].mean(axis=0) for code in CLASS_MEANS if (codes == code).any()}
    here, published = np.array(list(means.values())), np.array([CLASS_MEANS[code] for code in means])
    apart = float(np.abs(here - published).max())
    straight, swapped = (float(np.abs(order - published).sum()) for order in (here, here[:, ::-1]))
    what = "largest gap to the known class means"
    if swapped < straight:
        what = "VALENCE AND AROUSAL LOOK SWAPPED: largest gap to the known class means"
    agrees = apart <= 0.01 and len(means) == len(CLASS_MEANS) and straight <= swapped
    findings.append(Finding(what, "at most 0.01", f"{apart:.3f}", agrees))
    return findings


def compare_with_known(loaded: LoadedSplit) -> tuple[Finding, ...]:
    """One finding for each known figure of a split that was loaded with all expressions that the release labels."""
    records, report = loaded
    if report.dataset == affectnet.NAME:
        return tuple(_affectnet_2017(loaded))
    if report.dataset == affectnet_reduced.NAME:
        if report.split == "train":
            return tuple(_rows_and_classes(REDUCED_TRAIN, report))
        zero = records.labels == 0
        return (
            *_rows_and_classes(REDUCED_VALIDATION, report),
            *_validation_labels(records),
            _count("rows with valence exactly 0", VALIDATION_ZEROS[0], int(zero[:, 0].sum())),
            _count("rows with both labels 0", VALIDATION_ZEROS[1], int(zero.all(axis=1).sum())),
            _count("rows outside the unit circle", 0, report.outside_circle),
        )
    if report.dataset == afew_va.NAME:
        grid = bool(np.isin(records.raw, np.arange(-10, 11)).all())
        return (
            _count("clips", AFEW_CLIPS, report.videos),
            _count("frames", AFEW_FRAMES, report.rows_read, 0.01),
            _count("actors", AFEW_ACTORS, report.identities or 0, 0.1),
            Finding("labels", "whole numbers from -10 to 10", "so" if grid else "others too", grid),
        )
    if report.dataset == aff_wild.NAME:
        return (_count("videos", AFF_WILD_VIDEOS, report.videos),)
    if report.dataset == aff_wild2.NAME and report.split in AFF_WILD2_FILES:
        annotated = report.rows_read - report.dropped.get("sentinel", 0)
        return (
            _count("label files with usable frames", AFF_WILD2_FILES[report.split], report.videos),
            _count("annotated frames (ABAW-6)", AFF_WILD2_FRAMES[report.split], annotated, 0.01),
        )
    return ()


def _affectnet_2017(loaded: LoadedSplit) -> list[Finding]:
    records, report = loaded
    if report.split == "automatic":
        return [_count("rows", AUTOMATIC_ROWS, report.rows_read)]
    train = report.split == "train"
    known = AFFECTNET_TRAIN if train else AFFECTNET_VALIDATION
    labelled, found = (sum(counts.get(code, 0) for code in range(9)) for counts in (known, report.classes))
    findings = _rows_and_classes(known, report)
    findings.append(_count("rows of codes 0 to 8", (labelled, labelled + train), found))
    return findings if train else findings + _validation_labels(records)


def compare_splits(train: LoadedSplit, validation: LoadedSplit) -> tuple[Finding, ...]:
    """Compares the two parts of AffectNet with each other.

    In the 2017 release no picture may be in both parts, and the balanced validation set has lower valence and higher
    arousal than training. In the reduced release numbers repeat in both parts, so they show nothing.
    """
    findings = []
    if train.report.dataset == affectnet.NAME:
        shared = len(set(train.records.path) & set(validation.records.path))
        findings.append(_count("pictures in both train and validation", 0, shared))
    means = [(part.report.valence.mean, part.report.arousal.mean) for part in (train, validation)]
    shifted = means[1][0] < means[0][0] and means[1][1] > means[0][1]
    got = f"valence {means[0][0]:+.3f} to {means[1][0]:+.3f}, arousal {means[0][1]:+.3f} to {means[1][1]:+.3f}"
    findings.append(Finding("means from train to validation", "valence falls, arousal rises", got, shifted))
    return tuple(findings)
