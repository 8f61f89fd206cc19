"""The options of a metric-learning run, and the published protocols as presets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..choices import NeighbourhoodName, Precision
from ..messages import allowed, problem

LossName = Literal[
    "margin",
    "contrastive",
    "contrastive-distance",
    "triplet",
    "triplet-semihard",
    "triplet-distance",
    "lifted",
    "multi-similarity",
    "cosface",
    "arcface",
    "proxy-anchor",
    "soft-triple",
    "vdm",
    "dynamic-soft-margin",
    "auto-margin",
]
OF_PROXIES = ("cosface", "arcface", "proxy-anchor", "soft-triple")
"""Losses that compare images with learned vectors of classes instead of with each other."""
Backbone = Literal["small", "resnet18", "resnet50", "googlenet", "vit-small"]
ONLY_SIZE = {"small": 16, "vit-small": 224}
"""The only image size that these backbones accept, pixels."""
MAY_CHANGE = ("root", "out", "cache", "download", "device", "checkpoint_every", "faiss", "keep_embeddings")
"""Options that may change when a run resumes, or when its finished result is read again."""
ADAPTIVE_OPTIONS = ("neighbourhood", "granularity", "units", "confidence", "max_mi", "dependence")
"""Options of the adaptive margin only; runs with a fixed margin do not differ in them."""

SAMPLED = ("margin", "triplet-distance", "contrastive-distance")
"""Losses with distance-weighted sampling."""
SAMPLING_OPTIONS = ("nonzero_loss_cutoff", "triplets_per_anchor")
"""Options of that sampling only."""
ALL_PRESETS: list[DMLConfig] = []
"""What every command begins with, of any data set; filled below."""
RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    ("at least 1", lambda x: x >= 1, ("classes", "per_class", "epochs", "steps_per_epoch", "embedding_size", "size")),
    ("at least 1", lambda x: x >= 1, ("evaluate_every", "triplets_per_anchor", "halve_at", "ks")),
    ("at least 0", lambda x: x >= 0, ("learning_rate", "backbone_rate", "loss_rate", "weight_decay")),
    ("at least 0", lambda x: x >= 0, ("checkpoint_every", "seed")),
    ("above 0", lambda x: x > 0, ("adam_epsilon", "beta", "nonzero_loss_cutoff", "max_mi")),
    ("from 0 to 1", lambda x: 0 <= x <= 1, ("flip",)),
    ("above 0 and at most 1", lambda x: 0 < x <= 1, ("area", "confidence")),
    ("at least 0 and below 1", lambda x: 0 <= x < 1, ("validation",)),
    ("0, or at least 2", lambda x: x == 0 or x >= 2, ("folds",)),
)
"""What each number must be; those that are a tuple, each of them; None is allowed where it is a value."""


@dataclass(frozen=True, kw_only=True)
class DMLConfig:
    """One run: data, objective, network, optimisation, and how the measured network is chosen.

    Attributes:
        root: folder of the data set; not needed for the embedded ones.
        data: name of the data set, and a fingerprint of its files, labels and test classes; filled in by the run, which
            does not resume with different data.
        out: folder of the run; by default ``runs/DATA-LOSS-ARM-seedN``.
        download: download the data set into ``root`` if pytorch-metric-learning has its address.
        cache: folder for decoded images; by default ``root/../cache-NAME``.
        loss: the loss to minimise, with the sampling that belongs to it.
        margin: ``default`` is the loss's own, a number is a constant in the loss's own unit, ``adaptive`` follows the
            batch.
        neighbourhood: rule for K of the adaptive margin; ``auto`` uses the evidence rule for two labels and the
            remaining rule for more.
        granularity: one adaptive margin per batch, per anchor or per pair.
        units: how the loss uses the adaptive margin; ``default`` is the default of AdaptiveMarginLoss.
        confidence: c of the adaptive margin.
        max_mi: cap of its mutual information.
        dependence: how its mutual information is estimated; ``none`` uses only the confidence term.
        learn_beta: learn a separate boundary for each class; True is only for the margin loss, ``auto`` means True for
            the margin loss and False for the others.
        beta: boundary of the margin loss; its initial value if it is learned.
        nonzero_loss_cutoff: distance-weighted sampling draws no negatives beyond this distance; None means no limit.
        triplets_per_anchor: triplets per anchor in distance-weighted sampling; None makes one for each positive.
        backbone: network that computes the features; ``small`` is for images of 16 pixels.
        weights: ``torchvision`` for pretrained weights (also timm's), ``none``, or a path to a state dict.
        embedding_size: dimension of the embeddings, which have unit norm.
        freeze_batch_norm: batch norms keep their initial statistics.
        crop_to_box: crop images to the data set's bounding box, in training and test.
        augment: ``resized-crop``: crops of random area and shape; ``crop``: crops of fixed size.
        area: smallest share of the image that ``resized-crop`` may take.
        resize: side of the decoded squares, pixels.
        size: side of the network's input, pixels.
        flip: probability of mirroring in training.
        classes: number of classes per batch.
        per_class: images per class in a batch; at least 2 if the loss compares images with each other.
        epochs: number of passes over the training images, or of rounds of ``steps_per_epoch``.
        steps_per_epoch: steps per epoch; None means the number of training images divided by the batch size.
        optimizer: optimiser of everything except the learned boundaries.
        learning_rate: learning rate of the embedding layer; the backbone's is this times ``backbone_rate``.
        backbone_rate: factor for the learning rate of the backbone.
        loss_rate: learning rate of proxies or learned boundaries.
        loss_optimizer: optimiser of proxies or learned boundaries; ``same`` is the network's.
        weight_decay: weight decay of the network.
        adam_epsilon: Adam's epsilon.
        halve_at: epochs after which every learning rate is halved.
        schedule: ``constant`` (with ``halve_at``) or ``cosine`` to zero.
        validation: share of the training classes held out for model selection.
        folds: number of class-disjoint folds, with one network each; 0 means a single hold-out of size ``validation``.
        select: which network is measured: that of the best evaluation on ``validation`` or ``test``, or the ``last``.
        score: the metric that ``select`` compares.
        evaluate_every: epochs between evaluations.
        skip_unreadable: number of images that may be missing or damaged, or share of them (5, or 0.01 for one in a
            hundred); they are left out of every part and listed in the result.
        ks: the values of k for Recall@k.
        clustering: compute NMI and AMI at the end.
        faiss: search and cluster with faiss, if installed.
        seed: random seed of everything; arms with the same seed see the same batches.
        device: ``auto`` uses CUDA if available.
        precision: ``float32``, ``bfloat16`` or ``float16`` (mixed).
        channels_last: use the channels-last memory layout, which is often faster for convolutions.
        checkpoint_every: steps between checkpoints; 0 means one per epoch.
        measure: evaluate the test classes at the end; switch off for tuning.
        keep_embeddings: save the test embeddings and some small pictures, for the report's examples and map.
    """

    root: Path | None = None
    data: str | None = None
    out: Path | None = None
    download: bool = False
    cache: Path | None = None
    loss: LossName = "margin"
    margin: Literal["default", "adaptive"] | float = "default"
    neighbourhood: NeighbourhoodName = "auto"
    granularity: Literal["batch", "anchor", "pair"] = "batch"
    units: Literal["default", "geometry", "replace", "sqrt", "offset"] = "default"
    confidence: float = 0.05
    max_mi: float = 2.5
    dependence: Literal["gaussian", "alignment", "none"] = "gaussian"
    learn_beta: bool | Literal["auto"] = False
    beta: float = 1.2
    nonzero_loss_cutoff: float | None = 1.4
    triplets_per_anchor: int | None = None
    backbone: Backbone = "resnet50"
    weights: str = "torchvision"
    embedding_size: int = 128
    freeze_batch_norm: bool = True
    crop_to_box: bool = False
    augment: Literal["resized-crop", "crop"] = "resized-crop"
    area: float = 0.08
    resize: int = 256
    size: int = 224
    flip: float = 0.5
    classes: int = 56
    per_class: int = 2
    epochs: int = 150
    steps_per_epoch: int | None = None
    optimizer: Literal["adam", "rmsprop"] = "adam"
    learning_rate: float = 1e-5
    backbone_rate: float = 1.0
    loss_rate: float = 5e-4
    loss_optimizer: Literal["same", "sgd"] = "same"
    weight_decay: float = 4e-4
    adam_epsilon: float = 1e-8
    halve_at: tuple[int, ...] = ()
    schedule: Literal["constant", "cosine"] = "constant"
    validation: float = 0.2
    folds: int = 0
    select: Literal["validation", "test", "last"] = "validation"
    score: str = "mean_average_precision_at_r"
    evaluate_every: int = 1
    skip_unreadable: int | float = 0.0
    ks: tuple[int, ...] = (1, 2, 4, 8)
    clustering: bool = True
    faiss: bool = False
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "float32"
    channels_last: bool = True
    checkpoint_every: int = 0
    measure: bool = True
    keep_embeddings: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.margin, str):  # 1 is 1.0
            object.__setattr__(self, "margin", float(self.margin))
        for expected, fits, names in RANGES:
            for name in names:
                value = getattr(self, name)
                numbers = value if isinstance(value, tuple) else () if value is None else (value,)
                finite = all(map(math.isfinite, numbers))
                if not finite or not all(map(fits, numbers)):
                    remedy = f"leave it out for the default, {getattr(DMLConfig, name)}"
                    raise ValueError(problem(name, expected if finite else f"finite, {expected}", value, remedy))
        if self.classes < 2:
            raise ValueError(problem("classes", "at least 2", self.classes, "negatives come from other classes"))
        if self.per_class < 2 and self.loss not in OF_PROXIES:
            remedy = "a batch without two images of a class has no positive pair, and its loss teaches nothing"
            raise ValueError(problem("per_class", f"at least 2 for {self.loss}", self.per_class, remedy))
        if not 0 < self.size <= self.resize:
            raise ValueError(problem("size", f"from 1 to resize ({self.resize})", self.size, "224 of 256 is usual"))
        if self.backbone in ONLY_SIZE and self.size != ONLY_SIZE[self.backbone]:
            only = ONLY_SIZE[self.backbone]
            remedy = f"pass --size {only} --resize {max(only, self.resize)}, or choose resnet18"
            raise ValueError(problem("size", f"{only} for the backbone {self.backbone}", self.size, remedy))
        if self.backbone == "googlenet" and self.size < 15:
            raise ValueError(problem("size", "at least 15 for googlenet", self.size, "224 is usual"))
        allowed(self.skip_unreadable, 0)
        if self.select == "validation" and self.validation == 0 and self.folds == 0:
            remedy = "hold classes out with --validation, or --select last; --select test flatters results"
            raise ValueError(problem("select", "'test' or 'last' without validation classes", "'validation'", remedy))
        if self.halve_at and max(self.halve_at) >= self.epochs and not self._is_of_a_preset("halve_at"):
            expected = f"epochs before the last of {self.epochs}"
            raise ValueError(problem("halve_at", expected, self.halve_at, "pass more --epochs, or leave it out"))
        if isinstance(self.margin, float) and not math.isfinite(self.margin):
            raise ValueError(problem("margin", "finite", self.margin, "'default' is the loss's own"))
        if not self.ks or len(set(self.ks)) < len(self.ks):
            raise ValueError(problem("ks", "different numbers of neighbours", self.ks, "1 2 4 8 is usual"))
        scores = (*(f"recall_at_{k}" for k in self.ks), "r_precision", "mean_average_precision_at_r")
        if self.score not in scores:
            raise ValueError(problem("score", f"one of {', '.join(scores)}", repr(self.score), "or change --ks"))
        if self.freeze_batch_norm and self.weights == "none" and self.backbone in ("resnet18", "resnet50", "googlenet"):
            remedy = "pass --no-freeze-batch-norm: frozen from the beginning, batch norm normalises nothing"
            raise ValueError(problem("freeze_batch_norm", "False where weights are none", True, remedy))
        self._refuse_what_does_nothing()

    def idle(self) -> list[tuple[str, str, str]]:
        """The options that have no effect beside the others: each one's name, where that is so, and what changes it."""
        learns = self.loss in OF_PROXIES or (self.loss == "margin" and self.learn_beta is not False)
        to_learn = "--learn-beta True" if self.loss == "margin" else "--loss proxy-anchor"
        unseen = self.select == "last" and self.validation == 0 and self.folds == 0
        of_rows = self.granularity == "pair" and self.dependence != "none"  # of single rows, both have one MI
        table = (
            (self.margin != "adaptive", ADAPTIVE_OPTIONS, "without the adaptive margin", "pass --margin adaptive"),
            (self.neighbourhood == "released", ("confidence",), "for the rule released", "pass --neighbourhood auto"),
            (self.dependence == "none", ("max_mi",), "without dependence", "pass --dependence gaussian"),
            (of_rows, ("dependence",), "for margins of pairs", "pass --granularity anchor"),
            (self.loss != "margin", ("beta",), f"for {self.loss}", "pass --loss margin"),
            (self.loss not in SAMPLED, SAMPLING_OPTIONS, f"for {self.loss}", "pass --loss margin"),
            (not learns, ("loss_rate",), f"for {self.loss}", f"pass {to_learn}"),
            (self.augment == "crop", ("area",), "for crops of fixed size", "pass --augment resized-crop"),
            (self.optimizer != "adam", ("adam_epsilon",), f"for {self.optimizer}", "pass --optimizer adam"),
            (self.schedule == "cosine", ("halve_at",), "for the cosine schedule", "pass --schedule constant"),
            (self.folds > 0, ("validation",), "with folds, each with its own classes for it", "pass --folds 0"),
            (self.folds > 0, ("keep_embeddings",), "with folds, which are concatenated", "pass --folds 0"),
            (self.select == "last", ("score",), "for the last network", "pass --select validation"),
            (unseen, ("evaluate_every",), "without validation classes", "pass --validation 0.2"),
        )
        return [(name, where, remedy) for here, names, where, remedy in table if here for name in names]

    def _refuse_what_does_nothing(self) -> None:
        """Rejects options that have no effect, because the run would not be what its user expects."""
        if self.units != "default" and self.loss == "vdm":
            expected = "'default' for vdm, whose margin is already a squared distance"
            raise ValueError(problem("units", expected, repr(self.units), "leave it out"))
        if self.learn_beta is True and self.loss != "margin":
            remedy = "only the margin loss has boundaries: leave it out"
            raise ValueError(problem("learn_beta", f"False or 'auto' for {self.loss}", True, remedy))
        for name, where, remedy in self.idle():
            if not self._is_of_a_preset(name):
                expected, got = f"left alone {where}, where it does nothing", repr(getattr(self, name))
                default = getattr(DMLConfig, name)
                raise ValueError(problem(name, expected, got, f"{remedy}, or leave it at its default, {default}"))

    def _is_of_a_preset(self, name: str) -> bool:
        """Whether the value of an option need not come from the user, because it is the default or that of a preset."""
        presets = ALL_PRESETS or [self]  # while these are made
        return any(getattr(self, name) == getattr(preset, name) for preset in (DMLConfig, *presets))

    @property
    def batch(self) -> int:
        """Images in a batch, over all processes."""
        return self.classes * self.per_class


ROTH2020 = DMLConfig(
    # Roth et al. 2020, Revisiting Training Strategies and Generalization Performance in Deep Metric Learning: ResNet50,
    # frozen batch norm, 128 dimensions, Adam 1e-5 for all without a schedule, weight decay 4e-4, 56 classes x 2, 150
    # epochs (100 on SOP), random resized crop 224 and flip, margin 0.2, beta 1.2 learned at 5e-4, sampling with a
    # lower cutoff of 0.5 and no upper one, one triplet per anchor. The authors report the best test epoch:
    # --select test --validation 0.
    learn_beta="auto",
    nonzero_loss_cutoff=None,
    triplets_per_anchor=1,
)
WU2017 = replace(
    ROTH2020,
    # Wu et al. 2017, Sampling Matters in Deep Embedding Learning, as in the authors' example for MXNet Gluon: batches
    # of 70 with 5 images per class, 20 epochs of 200 steps, Adam 1e-4 (pretrained convolutions times 0.01), epsilon
    # 1e-7, weight decay 1e-4, halved after epochs 12, 14, 16, 18; one beta per class by SGD 0.1 with momentum 0.9;
    # negatives beyond 1.4 not drawn; images cropped to the ground-truth box, resized to 256. The authors report the
    # best test epoch.
    nonzero_loss_cutoff=1.4,
    triplets_per_anchor=None,
    freeze_batch_norm=False,
    crop_to_box=True,
    augment="crop",
    classes=14,
    per_class=5,
    epochs=20,
    steps_per_epoch=200,
    learning_rate=1e-4,
    backbone_rate=0.01,
    loss_rate=0.1,
    loss_optimizer="sgd",
    weight_decay=1e-4,
    adam_epsilon=1e-7,
    halve_at=(12, 14, 16, 18),
)
REALITY_CHECK = replace(
    ROTH2020,
    # Musgrave et al. 2020, A Metric Learning Reality Check: Inception with frozen batch norm, 128 dimensions, RMSprop
    # 1e-6 (momentum 0.9, weight decay 1e-4), 8 classes x 4, random resized crop 227 of at least 0.16 of the area, four
    # class-disjoint folds of the training classes, selected by MAP@R on the fold's validation classes; figures of the
    # networks of the folds separately (128 dimensions) and concatenated (512). Their training stops after 9 evaluations
    # without improvement; here a run goes to its end and uses its best network. Their backbone is BN-Inception, which
    # torchvision lacks: GoogLeNet here. Beta and its rate are those that their search found for the margin loss with
    # one beta per class on CUB (configs of their powerful-benchmarker, branch metric-learning; those of Cars and SOP
    # are in the recipes). The margin found with them, 0.0779, would also apply to other losses, so it is not part of
    # the preset: pass --margin 0.0779.
    backbone="googlenet",
    triplets_per_anchor=None,
    nonzero_loss_cutoff=1.4,
    area=0.16,
    size=227,
    classes=8,
    per_class=4,
    epochs=100,
    optimizer="rmsprop",
    learning_rate=1e-6,
    loss_rate=2.65e-4,
    beta=0.9796,
    weight_decay=1e-4,
    folds=4,
)
SMALL = DMLConfig(
    # Our own choice for the built-in data sets on one CPU core: a network of 97,000 parameters from scratch, learning
    # rate 2e-3 with cosine decay to zero, ten times that for proxies.
    backbone="small",
    weights="none",
    embedding_size=64,
    freeze_batch_norm=False,
    augment="crop",
    resize=20,
    size=16,
    flip=0.0,
    classes=32,
    per_class=4,
    epochs=6,
    steps_per_epoch=40,
    learning_rate=2e-3,
    loss_rate=2e-2,
    weight_decay=0.0,
    schedule="cosine",
    validation=0.3,
    device="cpu",
    channels_last=False,
)
PRESETS = {"roth2020": ROTH2020, "wu2017": WU2017, "realitycheck": REALITY_CHECK}
DATA = {
    "cub": "CUB-200-2011: 100 classes of birds for training, 100 others for the test",
    "cars": "Cars196: 98 car models for training, 98 others for the test",
    "sop": "Stanford Online Products: 11,318 products for training, 11,316 others for the test",
    "folder": "your own images, a folder of class folders; the seed draws half of the classes for the test",
    "omniglot": "handwriting: the characters of half of the alphabets for training, of the other half for the test",
    "digits": "distorted digits in several orientations, no download: 32 classes for training, 18 for the test",
    "fonts": "distorted characters of matplotlib's fonts, no download: 128 classes for training, 127 for the test",
}
"""The data sets of the command, with what they are."""


def presets_of(name: str) -> Mapping[str, DMLConfig]:
    """The options to begin with on a data set, by name; the first is the default."""
    if name == "digits":
        return {"small": replace(SMALL, classes=16, per_class=8)}
    if name in ("omniglot", "fonts"):
        return {"small": SMALL}
    presets = dict(PRESETS)
    # Musgrave et al. 2020 searched beta and its rate for each data set; the margins found: 0.0776 cars, 0.0518 sop
    if name == "cars":
        presets["realitycheck"] = replace(presets["realitycheck"], loss_rate=4.76e-5, beta=0.9598)
    if name == "sop":
        presets["roth2020"] = replace(presets["roth2020"], epochs=100, evaluate_every=5)  # as Roth et al. 2020
        presets["wu2017"] = replace(presets["wu2017"], crop_to_box=False)  # there are no boxes
        presets["realitycheck"] = replace(presets["realitycheck"], loss_rate=7.1e-5, beta=0.8424)
        presets = {each: replace(preset, ks=(1, 10, 100, 1000)) for each, preset in presets.items()}
    return presets


ALL_PRESETS += [preset for name in DATA for preset in presets_of(name).values()]
