"""Data sets of faces with valence and arousal: loaders, splits, and batches for a trainer."""

from __future__ import annotations

from collections.abc import Callable

from ._derived import DerivedCopyError
from .afew_va import load_afew_va
from .aff_wild import load_aff_wild
from .aff_wild2 import load_aff_wild2, load_aff_wild2_list
from .affectnet import load_affectnet_2017
from .affectnet_reduced import load_affectnet_reduced
from .batches import Batch, CachedBatches, FaceImages
from .records import EXPRESSIONS, Record, Records, concatenate
from .report import LoadedSplit, SplitReport, verify_images
from .splits import LeakError, Split, check_apart, frame_split, group_folds, group_holdout, stratified_holdout

LOADERS: dict[str, Callable[..., LoadedSplit]] = {
    "affectnet-2017": load_affectnet_2017,
    "affectnet-reduced": load_affectnet_reduced,
    "afew-va": load_afew_va,
    "aff-wild": load_aff_wild,
    "aff-wild2": load_aff_wild2,
}
"""Name of a release, as in :func:`~adaptive_margin.affect.check.detect` → its loader: ``(root, split,
**options)``."""

__all__ = [
    "EXPRESSIONS",
    "LOADERS",
    "Batch",
    "CachedBatches",
    "DerivedCopyError",
    "FaceImages",
    "LeakError",
    "LoadedSplit",
    "Record",
    "Records",
    "Split",
    "SplitReport",
    "check_apart",
    "concatenate",
    "frame_split",
    "group_folds",
    "group_holdout",
    "load_afew_va",
    "load_aff_wild",
    "load_aff_wild2",
    "load_aff_wild2_list",
    "load_affectnet_2017",
    "load_affectnet_reduced",
    "stratified_holdout",
    "verify_images",
]
