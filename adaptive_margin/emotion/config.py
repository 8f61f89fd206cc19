"""Every option of a run, with its default and the presets: the paper's, the released code's, and two that run here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..choices import CriticName, GroupingName, MarginName, Order, Precision, Regularizer, TermName, WeakBatchNorm
from ..messages import allowed, check_choice, problem

DatasetName = Literal["faces", "affectnet", "affectnet-reduced", "afew-va", "aff-wild", "aff-wild2"]
DATASETS = get_args(DatasetName)
OFTEN = ("small", "resnet18", "alexnet")
"""Encoders whose names need not be looked up in torchvision."""

CROPS = {
    "affectnet": ("box", "landmarks", "none"),
    "afew-va": ("landmarks", "none"),
    "aff-wild": ("box", "none"),
}
USED_WITH: dict[str, dict[str, tuple[str, ...]]] = {
    "expressions": {"dataset": ("affectnet", "affectnet-reduced")},
    "crop": {"dataset": tuple(CROPS)},
    "every": {"dataset": ("aff-wild", "aff-wild2")},
    "same_actor": {"dataset": ("afew-va",)},
    "fold": {"dataset": ("afew-va",)},
    "annotations": {"dataset": ("aff-wild2",)},
    "people": {"dataset": ("faces",)},
    "images_per_person": {"dataset": ("faces",)},
    "person_effect": {"dataset": ("faces",)},
    "disturb": {"dataset": ("faces",)},
    "margin": {"critic": ("caf", "none")},
    "constant": {"margin": ("constant",)},
    "repulsion": {"critic": ("caf", "none")},
    "regularizer": {"critic": ("caf", "none")},
    "penalty": {"critic": ("fisher", "none"), "regularizer": ("fisher",)},
    "critic_normalize": {"critic": ("caf", "sphere", "gramnet", "none")},
    "term_weight": {"term": tuple(name for name in get_args(TermName) if name != "none")},
    "term_warm_up": {"term": tuple(name for name in get_args(TermName) if name != "none")},
    "weak_batch_norm": {"order": ("paper",)},
    "adversarial_adam": {"order": ("paper",)},
}
"""Options that have an effect only with some values of another one (of any of several), and with which.

``critic="none"``, the baseline, may have the options of the critic with which it is compared.
"""
USE_PEOPLE = ("cross_person", "person_norm", "per_person")
TERMS_OF_PEOPLE: tuple[TermName, ...] = ("grl", "uniform-id", "elim")
"""What uses who is who: options, and terms of the loss."""
WITHOUT_PEOPLE = ("affectnet", "affectnet-reduced")
"""Data sets that do not say who is in a picture."""


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """An Adam optimiser.

    Attributes:
        lr: learning rate at the start; see ``lr_decay``.
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
    """One training run. The defaults are those of the paper's ResNet18 on AffectNet, except for the data set.

    Attributes:
        dataset: ``faces`` are drawn and need no root.
        root: folder of the data set, in the layout of its documentation page.
        cache: folder for decoded images, Aff-Wild's frames and the index of the reduced AffectNet; by default ``cache``
            beside the run's folder.
        skip_unreadable: number of images that may be missing or damaged, or share of them: 5, or 0.01 for one in a
            hundred.
        resize: side to which faces are resized, pixels.
        size: side of the crop that the network sees, pixels.
        split_seed: decides who is in training, validation and test. Use the same for all runs that you compare.
        fold: which of AFEW-VA's five folds by actor is the test set.
        every: use every Nth frame of the videos of Aff-Wild and Aff-Wild2.
        expressions: for AffectNet, codes of the expressions to keep; by default those of its loader, 0 to 8 for the
            2017 release and 0 to 7 for the reduced one.
        crop: ``box`` (AffectNet's 2017 release, Aff-Wild), ``landmarks`` (AffectNet's 2017 release, AFEW-VA) or
            ``none``, the unchanged picture; by default the first of these that the data set has.
        same_actor: for AFEW-VA, pairs of a spelling and the spelling to use instead, for names that the report lists as
            similar. Names are compared as in the loader; a name that no clip has is an error.
        annotations: for Aff-Wild2 with several editions in the root: the folder of the edition to use, relative to the
            root or as a full path.
        people: number of drawn people (``faces``), in all parts together.
        images_per_person: pictures of each of them.
        person_effect: how much the feeling behind a drawn face depends on who it is, from 0 to 3; 1 as they are.
        disturb: draw faces with turned heads, changing light, blur and occlusion.
        encoder: ``small``, ``resnet18``, ``alexnet``, the name of any torchvision model, or ``timm:NAME``.
        pretrained: file of weights, or torchvision's name of the weights (``DEFAULT`` for timm's); by default random
            weights, as in the paper.
        dropout: dropout rate in the regressor.
        leaky_slope: slope of the regressor's ReLUs below zero; with 0, as in the paper, its few units can die.
        critic: ``none`` is the baseline.
        margin: margin of the caf critic.
        constant: value of ``--margin constant``.
        grouping: how strong and weak are told apart.
        magnitude: compute thresholds from the labels' magnitudes; if off, from the signed labels.
        max_radius: labels with at least this radius are in neither group; the paper literally says 1.
        repulsion: weight of the margin's term in the caf critic's loss.
        regularizer: regulariser of the caf critic's loss.
        penalty: penalty weight of the fisher critic and the fisher regulariser; by default their own.
        critic_dropout: dropout rate in the critic.
        critic_normalize: scale the critic's outputs to length 1.
        cross_person: the caf critic pulls together strong samples of different people, and parts strong and weak ones
            of the same person.
        term: what the regression's loss gets in addition: none, grl, uniform-id, elim (these three use who is who) or
            label-distance; or FILE.py:CLASS, a Term of your own.
        term_weight: weight of the term.
        term_warm_up: iterations in which the term's weight grows from 0.
        person_norm: centre features by person, before the regressor.
        person_scale: with person_norm, divide by each person's deviation, too.
        per_person: pictures of a person that stand together in a batch; 0 for any order.
        shuffle_people: a control for options that use people: deal their numbers to the training pictures at random.
        order: ``paper``, three updates per iteration; ``joint``, a single update of the encoder.
        weak_batch_norm: the batch-norm statistics for weak images in the adversarial update of order ``paper``.
        adversarial_weight: weight of L_adv. It matters only with order ``joint`` or ``shared_moments``, because Adam is
            not affected by the scale of its own loss; otherwise change ``adversarial_adam.lr``.
        adversarial_start: iterations of plain regression before the critic joins.
        correlation_weight: weight of PCC and CCC in the regression loss.
        regression_adam: optimiser of encoder and regressor.
        critic_adam: optimiser of the critic.
        adversarial_adam: optimiser of the encoder's adversarial update.
        shared_moments: the adversarial update uses the regression's Adam, as in the released code.
        lr_decay: factor by which all learning rates are multiplied ...
        lr_decay_every: ... each time after this many iterations.
        iterations: number of training iterations; preset ``paper`` has 100,000 on ``aff-wild``.
        batch_size: images per batch, over all processes together; preset ``paper`` has 256 for ``alexnet``.
        clip_norm: clip the gradients of each update to this norm.
        precision: numeric precision of the networks.
        seed: random seed of weights, data order and crops.
        deterministic: make runs on a GPU repeatable bit for bit, at some cost. On a CPU they always are.
        device: cpu or cuda; by default cuda if available.
        evaluate_every: iterations between two evaluations on the validation part.
        checkpoint_every: iterations between two checkpoints.
        log_every: iterations between two lines of the log.
        keep: which weights to keep at the end: those of the ``last`` iteration, or of the ``best`` validation CCC.
        output: folder of the run.
    """

    dataset: DatasetName = "faces"
    root: str | None = None
    cache: str | None = None
    skip_unreadable: int | float = 0.001
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
    person_effect: float = 1.0
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

    cross_person: bool = False
    term: TermName | str = "none"
    term_weight: float = 1.0
    term_warm_up: int = 0
    person_norm: bool = False
    person_scale: bool = False
    per_person: int = 0
    shuffle_people: bool = False

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
        for name, choices in _choices().items():
            check_choice(name, getattr(self, name), choices)
        if ":" not in self.term:
            check_choice("term", self.term, get_args(TermName))
        if self.encoder not in OFTEN or self.pretrained is not None:
            from .nets import check_encoder  # with torch

            check_encoder(self.encoder, self.pretrained)
        if self.dataset != "faces" and self.root is None:
            remedy = "pass the folder that holds the data set; only the data set faces needs none"
            raise ValueError(problem("root", f"given for {self.dataset}", "nothing", remedy))
        if self.dataset == "faces" and self.root is not None:
            names = ", ".join(name for name in DATASETS if name != "faces")
            remedy = f"pass --dataset (dataset=), too, one of {names}; or leave it out"
            raise ValueError(problem("root", "left out for faces, which are drawn", repr(self.root), remedy))
        _check_used(self)
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
        if self.person_effect != 1:
            from ..faces.identity import check_effect

            check_effect(self.person_effect)
        allowed(self.skip_unreadable, 0)
        for name in ("dropout", "leaky_slope", "critic_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(problem(name, "in [0, 1)", getattr(self, name), "leave it out for the default"))
        if self.cross_person and self.critic != "caf":
            remedy = "leave cross_person out, or choose the critic caf"
            raise ValueError(problem("critic, with cross_person,", "'caf'", repr(self.critic), remedy))
        if self.person_scale and not self.person_norm:
            remedy = "pass person_norm, too, or leave person_scale out"
            raise ValueError(problem("person_norm, with person_scale,", "on", "off", remedy))
        if self.shuffle_people and not self.uses_people:
            expected = "off where no option uses people"
            remedy = f"leave it out, or pass {', '.join(USE_PEOPLE)} or a term that does: {', '.join(TERMS_OF_PEOPLE)}"
            raise ValueError(problem("shuffle_people", expected, "on", remedy))
        if self.dataset in WITHOUT_PEOPLE and (uses := self.uses_people):
            expected = f"one that identifies people, for {uses[0]}"
            remedy = f"use faces, afew-va, aff-wild or aff-wild2, or leave {uses[0]} out"
            raise ValueError(problem("dataset", expected, self.dataset, remedy))
        if self.per_person and self.batch_size % self.per_person:
            remedy = "a batch holds whole groups of a person's pictures"
            expected = f"a multiple of per_person ({self.per_person})"
            raise ValueError(problem("batch_size", expected, self.batch_size, remedy))
        weights = ("adversarial_weight", "correlation_weight", "repulsion", "term_weight", "term_warm_up", "per_person")
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

    @property
    def uses_people(self) -> list[str]:
        """The options of this run that need to know who is in a picture."""
        uses = self.term in TERMS_OF_PEOPLE
        if ":" in self.term:  # of the user's own
            from .terms import term_class  # with torch

            own = term_class(self.term)
            uses = own is not None and own.ids
        term = [f"term {self.term}"] if uses else []
        return [name for name in USE_PEOPLE if getattr(self, name)] + term

    def plain(self) -> dict[str, Any]:
        """The options as nested dictionaries of plain values."""
        return dataclasses.asdict(self)


@functools.cache
def _choices() -> dict[str, tuple[str, ...]]:
    """The options that are one of several words, with these."""
    hints = get_type_hints(EmotionConfig)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


def idle(options: Mapping[str, Any]) -> list[str]:
    """The options that have no effect beside the others: see :data:`USED_WITH`."""

    def used(name: str) -> bool:
        uses = ((str(options[other]), values) for other, values in USED_WITH[name].items())
        return any(value in values or ":" in value for value, values in uses)  # FILE.py:CLASS is a term, too

    return [name for name in USED_WITH if not used(name)]


def _check_used(config: EmotionConfig) -> None:
    """Rejects what would be silently ignored: options without effect that have neither their default nor a preset's."""
    for name in idle(vars(config)):
        value = getattr(config, name)
        if value != getattr(EmotionConfig, name) and value not in [getattr(each, name) for each in PRESETS.values()]:
            here = " and ".join(f"{other} {getattr(config, other)}" for other in USED_WITH[name])
            uses = {other: [each for each in values if each != "none"] for other, values in USED_WITH[name].items()}
            where = " or ".join(f"{other} {', '.join(values)}" for other, values in uses.items())
            remedy = f"leave it out, or give the default: it has an effect only with {where}"
            default = getattr(EmotionConfig, name)
            raise ValueError(problem(name, f"left at its default, {default!r}, with {here}", repr(value), remedy))


def _check_loader_options(config: EmotionConfig) -> None:
    """Rejects values that the data set's loader does not know."""
    if config.crop is not None:
        check_choice(f"crop of {config.dataset}", config.crop, CROPS[config.dataset])
    if config.expressions is not None and not (config.expressions and set(config.expressions) <= set(range(11))):
        remedy = "0 to 7 are the eight emotions, 8 is none of them: see docs/datasets-fer.md"
        raise ValueError(problem("expressions", "codes from 0 to 10, at least one", config.expressions, remedy))


PAPER = EmotionConfig()
"""Kim & Song 2021, Training Configurations: Adam 1e-4, ×0.8 every 10,000 of 50,000 iterations, batch 128 for ResNet18
(256 for AlexNet), from scratch. Dropout follows the released code, because the paper does not mention it."""

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
"""The hyper-parameters of the authors' released code, with the paper's formulas where that code uses different ones:
Otsu's threshold, all pairs, MI by correlation; Δ is that code's 0.7/√k with zipped rows."""

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
"""Drawn faces with all disturbances and a small encoder: a few minutes per run on one core."""

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
"""Undisturbed, smaller and shorter: less than a minute per run on one core. People differ as much as in ``faces``."""

PRESETS = {"paper": PAPER, "released": RELEASED, "faces": FACES, "quick": QUICK}


def preset_for(name: str, config: EmotionConfig) -> EmotionConfig:
    """A preset, adjusted to the paper's values for the encoder and the data set of a run.

    Source: Kim & Song 2021, Implementation details: batches of 256 for AlexNet, 100,000 iterations on Aff-Wild.

    Args:
        name: name of the preset; only ``paper`` is adjusted.
        config: the requested run; only its encoder and data set are used.

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
