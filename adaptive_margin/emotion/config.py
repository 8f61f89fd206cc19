"""Every option of a run, with its default and the presets: the paper's, the released code's, and two that run here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from ..functional.checks import check_choice, problem
from ..functional.contrastive import Regularizer
from ..training.optimisation import Precision
from .critics import CRITICS, GROUPINGS, MARGINS, CriticName, GroupingName, MarginName
from .nets import check_encoder
from .steps import Order, WeakBatchNorm

DatasetName = Literal["faces", "affectnet", "affectnet-reduced", "afew-va", "aff-wild", "aff-wild2"]
DATASETS = ("faces", "affectnet", "affectnet-reduced", "afew-va", "aff-wild", "aff-wild2")

CROPS = {
    "affectnet": ("box", "landmarks", "none"),
    "afew-va": ("landmarks", "none"),
    "aff-wild": ("box", "none"),
}
LOADER_OPTIONS = {
    "expressions": ("affectnet", "affectnet-reduced"),
    "crop": tuple(CROPS),
    "every": ("aff-wild", "aff-wild2"),
    "same_actor": ("afew-va",),
    "annotations": ("aff-wild2",),
}
"""Options that only some data sets have, and which."""


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """An Adam optimiser.

    Attributes:
        lr: step size at the start; see ``lr_decay``.
        beta1: decay of the gradient's running mean.
        beta2: decay of its running square.
    """

    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(problem("lr", "above 0", self.lr, "the paper has 1e-4"))
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            got = (self.beta1, self.beta2)
            raise ValueError(problem("beta1 and beta2", "in [0, 1)", got, "Adam's own are 0.9 and 0.999"))


@dataclass(frozen=True, kw_only=True)
class EmotionConfig:
    """One training run. The defaults are the paper's ResNet18 on AffectNet, but for the data set.

    Attributes:
        dataset: ``faces`` is drawn and needs no root.
        root: the data set's folder, as its own page describes.
        cache: folder for decoded images, Aff-Wild's frames and the index of the reduced AffectNet; ``cache`` beside the
            run's folder unless given.
        skip_unreadable: share of the images that may be missing or damaged.
        resize: side that faces are brought to, pixels.
        size: side of the crop that the network sees, pixels.
        split_seed: who is trained, validated and tested on. The same for all runs that are compared.
        fold: of AFEW-VA's five folds by actor, the one tested on.
        every: of the videos of Aff-Wild and Aff-Wild2, take each so-manieth frame.
        expressions: of AffectNet, codes of the expressions to keep; its loader's unless given: 0 to 8 of the 2017
            release, 0 to 7 of the reduced one.
        crop: ``box`` (AffectNet's 2017 release, Aff-Wild), ``landmarks`` (AffectNet's 2017 release, AFEW-VA) or
            ``none``, the picture as it is; the first that the data set has unless given.
        same_actor: of AFEW-VA, pairs of a spelling and the one to use for it, for names that the report lists as
            similar; compared as the loader compares names, and a name that no clip has is an error.
        annotations: of Aff-Wild2, where several editions lie in the root: the folder of the one to take, in the root
            or in full.
        people: drawn people (``faces``), in all parts together.
        images_per_person: pictures of each of them.
        disturb: drawn faces turn their heads, in changing light, blurred and half hidden; off, they do not.
        encoder: ``small``, ``resnet18``, ``alexnet``, any of torchvision's, or ``timm:NAME``.
        pretrained: file of weights, or torchvision's name for some (``DEFAULT`` for timm's); none, as in the paper.
        dropout: in the regressor.
        leaky_slope: of the regressor's rectifiers below zero; 0, the paper's, lets its few units die.
        critic: ``none`` is the baseline.
        margin: of the caf critic.
        constant: value of ``--margin constant``.
        grouping: how strong and weak are told apart.
        magnitude: threshold the labels' magnitudes; off, the signed labels.
        max_radius: labels at least this far out are in neither group; 1 is the paper's letter.
        repulsion: weight of the margin's term in the caf critic's loss.
        regularizer: of the caf critic's loss.
        penalty: of the fisher critic and the fisher regulariser; their own default unless given.
        critic_dropout: in the critic.
        critic_normalize: critic outputs of length 1.
        order: ``paper``, three updates an iteration; ``joint``, one of the encoder.
        weak_batch_norm: what weak images are normalised by in the adversarial update of order ``paper``.
        adversarial_weight: of L_adv. Matters with order ``joint`` or ``shared_moments`` only: Adam does not see the
            scale of its own loss; without either ``adversarial_adam.lr`` is what counts.
        adversarial_start: iterations of plain regression before the critic joins.
        correlation_weight: of PCC and CCC in the regression loss.
        regression_adam: of encoder and regressor.
        critic_adam: of the critic.
        adversarial_adam: of the encoder's adversarial update.
        shared_moments: the adversarial update takes the regression's Adam, as in the released code.
        lr_decay: factor on all step sizes ...
        lr_decay_every: ... after so many iterations.
        iterations: length of the run; preset ``paper`` has 100,000 on ``aff-wild``.
        batch_size: of all processes together; preset ``paper`` has 256 for ``alexnet``.
        clip_norm: greatest norm of an update's gradients.
        precision: of the networks.
        seed: of weights, order of the data and crops.
        deterministic: the same bits again on a GPU, at some cost. On a CPU they are the same anyway.
        device: cpu or cuda; cuda where there is one unless given.
        evaluate_every: iterations between two looks at the validation part.
        checkpoint_every: iterations between two checkpoints.
        log_every: iterations between two lines of the log.
        keep: what is kept at the end: weights of the ``last`` iteration, or of the ``best`` validation CCC.
        output: folder of the run.
    """

    dataset: DatasetName = "faces"
    root: str | None = None
    cache: str | None = None
    skip_unreadable: float = 0.001
    resize: int = 256
    size: int = 224
    split_seed: int = 0
    fold: int = 0
    every: int = 1
    expressions: tuple[int, ...] | None = None
    crop: Literal["box", "landmarks", "none"] | None = None
    same_actor: tuple[tuple[str, str], ...] = ()
    annotations: str | None = None
    people: int = 240
    images_per_person: int = 30
    disturb: bool = True

    encoder: str = "resnet18"
    pretrained: str | None = None
    dropout: float = 0.5
    leaky_slope: float = 0.0
    critic: CriticName = "caf"
    margin: MarginName = "adaptive"
    constant: float = 0.2
    grouping: GroupingName = "otsu"
    magnitude: bool = True
    max_radius: float | None = None
    repulsion: float = 1.0
    regularizer: Regularizer = "none"
    penalty: float | None = None
    critic_dropout: float = 0.2
    critic_normalize: bool = False

    order: Order = "paper"
    weak_batch_norm: WeakBatchNorm = "weak"
    adversarial_weight: float = 1.0
    adversarial_start: int = 0
    correlation_weight: float = 0.5
    regression_adam: AdamConfig = AdamConfig()
    critic_adam: AdamConfig = AdamConfig()
    adversarial_adam: AdamConfig = AdamConfig()
    shared_moments: bool = False
    lr_decay: float = 0.8
    lr_decay_every: int = 10_000
    iterations: int = 50_000
    batch_size: int = 128
    clip_norm: float | None = None
    precision: Precision = "float32"

    seed: int = 0
    deterministic: bool = False
    device: str | None = None
    evaluate_every: int = 1_000
    checkpoint_every: int = 1_000
    log_every: int = 50
    keep: Literal["last", "best"] = "last"
    output: str = "runs/emotion"

    def __post_init__(self) -> None:
        check_choice("dataset", self.dataset, DATASETS)
        check_encoder(self.encoder, self.pretrained)
        check_choice("critic", self.critic, CRITICS)
        check_choice("margin", self.margin, MARGINS)
        check_choice("grouping", self.grouping, GROUPINGS)
        check_choice("regularizer", self.regularizer, ("none", "chi2", "fisher"))
        check_choice("order", self.order, ("paper", "joint"))
        check_choice("weak_batch_norm", self.weak_batch_norm, ("whole", "weak", "running"))
        check_choice("precision", self.precision, ("float32", "bfloat16", "float16"))
        check_choice("keep", self.keep, ("last", "best"))
        if self.dataset != "faces" and self.root is None:
            remedy = "pass the folder that holds the data set; only faces are drawn"
            raise ValueError(problem("root", f"given for {self.dataset}", "nothing", remedy))
        _check_loader_options(self)
        if not 0 < self.size <= self.resize:
            remedy = "the paper resizes to 256 and crops 224"
            raise ValueError(problem("size", f"from 1 to resize ({self.resize})", self.size, remedy))
        lengths = ("iterations", "batch_size", "evaluate_every", "checkpoint_every", "log_every", "lr_decay_every")
        for name in (*lengths, "every", "images_per_person"):
            if not getattr(self, name) >= 1:
                raise ValueError(problem(name, "at least 1", getattr(self, name), "leave it out for the default"))
        if self.batch_size < 2:
            raise ValueError(problem("batch_size", "at least 2", self.batch_size, "correlations need two samples"))
        if self.people < 3:
            remedy = "training, validation and test share nobody"
            raise ValueError(problem("people", "at least 3, one for each part", self.people, remedy))
        for name in ("dropout", "leaky_slope", "critic_dropout", "skip_unreadable"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(problem(name, "in [0, 1)", getattr(self, name), "leave it out for the default"))
        weights = ("adversarial_weight", "correlation_weight", "repulsion")
        for name in (*weights, "adversarial_start", "constant", "seed", "split_seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(problem(name, "at least 0", getattr(self, name), "leave it out for the default"))
        if not self.lr_decay > 0:
            raise ValueError(problem("lr_decay", "above 0", self.lr_decay, "1 keeps the step sizes as they are"))
        for name in ("clip_norm", "penalty", "max_radius"):
            number = getattr(self, name)
            if number is not None and not number > 0:
                raise ValueError(problem(name, "above 0, or None", number, "leave it out for None"))
        if not 0 <= self.fold < 5:
            raise ValueError(problem("fold", "from 0 to 4", self.fold, "AFEW-VA is reported over five folds"))

    def plain(self) -> dict[str, Any]:
        """The options as nested dictionaries of plain values."""
        return dataclasses.asdict(self)


def _check_loader_options(config: EmotionConfig) -> None:
    """An option of another data set's loader would be ignored in silence."""
    for name, datasets in LOADER_OPTIONS.items():
        value = getattr(config, name)
        if value != getattr(EmotionConfig, name) and config.dataset not in datasets:
            remedy = f"it is an option of {', '.join(datasets)}: leave it out"
            raise ValueError(problem(name, f"left at its default for {config.dataset}", repr(value), remedy))
    if config.crop is not None:
        check_choice(f"crop of {config.dataset}", config.crop, CROPS[config.dataset])
    if config.expressions is not None and not (config.expressions and set(config.expressions) <= set(range(11))):
        remedy = "0 to 7 are the eight emotions, 8 is none of them: see docs/datasets-fer.md"
        raise ValueError(problem("expressions", "codes from 0 to 10, at least one", config.expressions, remedy))


PAPER = EmotionConfig()
"""Kim & Song 2021, Training Configurations: Adam 1e-4, ×0.8 every 10,000 of 50,000 iterations, batch 128 for ResNet18
(256 for AlexNet), from scratch. Dropout is the released code's, the paper's text having nothing on it."""

RELEASED = dataclasses.replace(
    PAPER,
    encoder="alexnet",
    batch_size=256,
    margin="released",
    regularizer="fisher",
    penalty=1e-6,
    shared_moments=True,
    adversarial_weight=0.1,
    regression_adam=AdamConfig(beta1=0.5, beta2=0.9),
    critic_adam=AdamConfig(beta1=0.5, beta2=0.9),
    adversarial_adam=AdamConfig(beta1=0.5, beta2=0.9),
    lr_decay=0.9,
    lr_decay_every=5_000,
    iterations=164_000,  # 131 epochs of AffectNet's 320,739 usable rows in batches of 256
)
"""The hyper-parameters of the authors' released code, with the paper's formulas where that code has others: Otsu's
threshold, all pairs, MI by correlation; Δ is its 0.7/√k, rows are zipped."""

FACES = EmotionConfig(
    dataset="faces",
    encoder="small",
    resize=64,
    size=60,
    people=400,
    images_per_person=40,
    dropout=0.0,
    leaky_slope=0.1,
    critic_dropout=0.0,
    regression_adam=AdamConfig(lr=1e-3),
    critic_adam=AdamConfig(lr=1e-3),
    adversarial_adam=AdamConfig(lr=1e-4),
    lr_decay=0.5,
    lr_decay_every=1_000,
    iterations=3_000,
    batch_size=64,
    evaluate_every=500,
    checkpoint_every=500,
    log_every=10,
)
"""Drawn faces with all that disturbs, a small encoder: some minutes a run on one core."""

QUICK = dataclasses.replace(
    FACES,
    resize=48,
    size=44,
    people=150,
    images_per_person=30,
    disturb=False,
    lr_decay_every=130,
    iterations=400,
    evaluate_every=200,
    checkpoint_every=200,
)
"""Undisturbed, smaller and shorter: some 20 seconds a run on one core. People differ as much as ever."""

PRESETS = {"paper": PAPER, "released": RELEASED, "faces": FACES, "quick": QUICK}


def preset_for(name: str, config: EmotionConfig) -> EmotionConfig:
    """A preset, with what the paper has for the encoder and the data set of a run.

    Source: Kim & Song 2021, Implementation details: batches of 256 for AlexNet, 100,000 iterations on Aff-Wild.

    Args:
        name: of the preset; all but ``paper`` stay as they are.
        config: the run that is asked for, of which encoder and data set are looked at.

    Example:
        >>> alexnet = dataclasses.replace(PAPER, encoder="alexnet")
        >>> preset_for("paper", alexnet).batch_size, preset_for("paper", PAPER).batch_size
        (256, 128)
    """
    changes: dict[str, Any] = {}
    if name == "paper" and config.encoder == "alexnet":
        changes["batch_size"] = 256
    if name == "paper" and config.dataset == "aff-wild":
        changes["iterations"] = 100_000
    return dataclasses.replace(PRESETS[name], **changes)
