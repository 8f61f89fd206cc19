"""Which attribute of each host module is its margin, in which unit, and how to replace it for one call."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from types import MethodType
from typing import Any, Literal

import numpy as np
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import LpDistance, SNRDistance
from torch import Tensor, nn

from ..functional.checks import check_fits, check_labels, check_number, is_blind
from ..margins import AttainableRule, AutoRule, ConstantMargin, Margin
from ..messages import check_choice, problem
from . import geometry
from .batch import Batch, Check, check_batch, check_embeddings
from .geometry import Formula

Units = Literal["geometry", "replace", "sqrt", "offset"]
Scale = Literal["distance", "squared distance", "power of a distance", "similarity", "ratio", "cosine", "angle"]
Value = float | Tensor
UNIT = "pass a number in the unit of the loss or miner"


def _circle(module: nn.Module, m: Value) -> dict[str, Value]:
    """Circle loss derives its two optima and its two boundaries from m in its constructor."""
    return {"m": m, "op": 1 + m, "on": -m, "delta_p": 1 - m, "delta_n": m}


def _ranked_list(module: nn.Module, margin: Value) -> dict[str, Value]:
    """Ranked-list loss derives its negative boundary from the margin, unless the user sets one."""
    derived = geometry.negative_boundary_is_derived(module)
    return {"margin": margin, **({"alpha": 1 + margin / 2} if derived else {})}


def _check_threshold_consistent(batch: Batch, own_dtype: bool) -> None:
    check_batch(batch, own_dtype)
    if batch.others:
        host = type(batch.host).__name__
        raise ValueError(problem("ref_emb", "None", "a tensor", f"{host} takes all pairs from embeddings"))


def _check_triplet(batch: Batch, own_dtype: bool) -> None:
    check_batch(batch, own_dtype)
    if batch.others and batch.host.swap:
        host = f"{type(batch.host).__name__}(swap=True)"
        remedy = f"{host} takes positives for rows of embeddings (the host's issue 748); use swap=False"
        raise ValueError(problem("ref_emb", "None", "a tensor", remedy))


def _check_manifold(batch: Batch, own_dtype: bool) -> None:
    """Its labels are not used, and its index tuple is one random class for each row."""
    check_embeddings("embeddings", batch.embeddings, batch.host)
    rows, proxies = len(batch.embeddings), int(batch.host.K)  # type: ignore[arg-type]
    if batch.indices is not None:
        check_labels("indices_tuple", batch.indices, rows)
    elif 0 < rows < proxies:
        raise ValueError(problem("embeddings", f"at least {proxies} rows for K proxies", rows, "lower K"))


def _random_classes(batch: Batch) -> Batch:
    """The manifold loss's random classes, drawn as it draws them, so that margin and loss see the same."""
    if batch.indices is not None:
        return batch
    rows, proxies = len(batch.embeddings), int(batch.host.K)  # type: ignore[arg-type]
    classes = torch.cat((torch.arange(proxies), torch.randint(0, proxies, (rows - proxies,))))
    return batch.changed(indices=classes[torch.randperm(rows)].to(batch.embeddings.device))


@dataclass(frozen=True)
class Swap:
    """One row of the table of supported hosts.

    Attributes:
        host: the name of the class in pytorch-metric-learning.
        attribute: the constructor argument that holds its margin.
        role: ``"gap"``: added to a difference of distances, cosines or angles; ``"threshold"``: a distance, or a
            similarity, at which a pair stops or starts to count.
        scale: the unit of the margin with the host's default distance; ``"angle"`` takes degrees at construction and
            keeps radians.
        geometry: converts a squared distance of unit vectors to the host's unit.
        geometry_of_chosen: the same if the caller lists pairs or triplets; None if this makes no difference.
        relaxes: whether ``AdaptiveMargin()``, given as None, may relax as classes part. MultiSimilarity compares
            positives and negatives with one threshold, so its margin stays at the attainable value.
        elementwise: whether the host's formula takes one margin per pair or triplet.
        attributes: the other attributes that change with the margin.
        check: what the host can be called with.
        draws: for a host whose index tuple is a class for each row: draws it, where there is none.
    """

    host: str
    attribute: str
    role: Literal["gap", "threshold"]
    scale: Scale
    geometry: Formula
    elementwise: bool = False
    geometry_of_chosen: Formula | None = None
    relaxes: bool = True
    attributes: Callable[[nn.Module, Value], dict[str, Value]] | None = None
    check: Check = check_batch
    draws: Callable[[Batch], Batch] | None = None

    @property
    def unit(self) -> str:
        """The meaning of the number in the host, in words."""
        words = {"angle": "angle (degrees at construction, radians inside)", "ratio": "ratio of variances"}
        return f"{self.role} in {words.get(self.scale, self.scale)}"

    @property
    def units(self) -> Units:
        """The default units of ``AdaptiveMargin()`` with three labels or more, where it leads."""
        return "geometry"

    @property
    def rule(self) -> AutoRule:
        """The neighbourhood rule of its default margin."""
        return AutoRule() if self.relaxes else AutoRule(many=AttainableRule())

    def values(self, module: nn.Module, value: Value) -> dict[str, Value]:
        """Every attribute that changes with the margin."""
        return self.attributes(module, value) if self.attributes else {self.attribute: value}

    def scale_of(self, module: nn.Module) -> Scale:
        """The unit of this module's margin, given its distance."""
        if self.scale in ("cosine", "angle", "ratio"):
            return self.scale
        distance: Any = module.distance
        if distance.is_inverted:
            return "similarity"
        if isinstance(distance, SNRDistance):
            return "ratio"
        power = distance.power if isinstance(distance, LpDistance) else 1
        return "distance" if power == 1 else "squared distance" if power == 2 else "power of a distance"


def _by_host(*rows: Swap) -> dict[str, Swap]:
    return {row.host: row for row in rows}


LOSSES = _by_host(
    Swap("ContrastiveLoss", "neg_margin", "threshold", "distance", geometry.threshold, elementwise=True),
    Swap(
        "TripletMarginLoss",
        "margin",
        "gap",
        "distance",
        geometry.gap_of_all_triplets,
        geometry_of_chosen=geometry.gap_of_chosen_triplets,
        elementwise=True,
        check=_check_triplet,
    ),
    Swap("MarginLoss", "margin", "gap", "distance", geometry.either_side, elementwise=True),
    Swap("LiftedStructureLoss", "neg_margin", "threshold", "distance", geometry.threshold),
    Swap("GeneralizedLiftedStructureLoss", "neg_margin", "threshold", "distance", geometry.threshold),
    Swap("SignalToNoiseRatioContrastiveLoss", "neg_margin", "threshold", "ratio", geometry.threshold, elementwise=True),
    Swap("CosFaceLoss", "margin", "gap", "cosine", geometry.cosine_gap),
    Swap("ArcFaceLoss", "margin", "gap", "angle", geometry.quarter_angle),
    Swap("SubCenterArcFaceLoss", "margin", "gap", "angle", geometry.quarter_angle),
    Swap("SoftTripleLoss", "margin", "gap", "cosine", geometry.cosine_gap),
    Swap("ProxyAnchorLoss", "margin", "gap", "cosine", geometry.half_cosine_gap),
    Swap("MultiSimilarityLoss", "base", "threshold", "similarity", geometry.threshold, relaxes=False),
    Swap("CircleLoss", "m", "gap", "cosine", geometry.circle, attributes=_circle),
    Swap("TupletMarginLoss", "margin", "gap", "angle", geometry.quarter_angle),
    Swap("RankedListLoss", "margin", "gap", "distance", geometry.ranked_list, attributes=_ranked_list),
    Swap(
        "ThresholdConsistentMarginLoss",
        "margin_minus",
        "threshold",
        "similarity",
        geometry.threshold,
        check=_check_threshold_consistent,
    ),
    Swap("ManifoldLoss", "margin", "gap", "cosine", geometry.cosine_gap, check=_check_manifold, draws=_random_classes),
)

MINERS = _by_host(
    Swap("TripletMarginMiner", "margin", "gap", "distance", geometry.gap_of_all_triplets),
    Swap("PairMarginMiner", "neg_margin", "threshold", "distance", geometry.threshold),
    Swap("MultiSimilarityMiner", "epsilon", "gap", "similarity", geometry.gap_of_all_triplets),
)

_INTEGER = "its margin is an integer that multiplies the angle and fixes a polynomial when it is built"
_INSIDE = "it holds losses: wrap each of them instead, as in {0}(AdaptiveMarginLoss(…))"
REFUSED = {
    "SphereFaceLoss": _INTEGER,
    "LargeMarginSoftmaxLoss": _INTEGER,
    "DynamicSoftMarginLoss": "it makes its own margin from the running distribution of distances",
    "CrossBatchMemory": _INSIDE,
    "MultipleLosses": _INSIDE,
    "SelfSupervisedLoss": _INSIDE,
    "DistributedLossWrapper": _INSIDE,
}


def find_swap(module: object, table: Mapping[str, Swap], wrapper: str) -> Swap:
    """The row for a host module or a subclass of one; if there is none, a ``TypeError`` that says why."""
    for base in type(module).__mro__:
        if base.__name__ in table and _is_host(base):
            swap = table[base.__name__]
            own: Any = vars(module).get(swap.attribute)  # a learned margin is a parameter, not an attribute
            learned = own is None or (isinstance(own, Tensor) and own.requires_grad)
            count = own.numel() if isinstance(own, Tensor) else np.size(own)
            if learned or count != 1:
                got = "a learned one" if learned else f"{count} of them"
                remedy = "learned and per-class margins cannot be exchanged"
                raise TypeError(problem(f"{base.__name__}.{swap.attribute}", "one plain number", got, remedy))
            return swap
        if base.__name__ in REFUSED and _is_host(base):
            why = REFUSED[base.__name__].format(base.__name__)
            raise TypeError(f"{wrapper} cannot exchange the margin of {base.__name__}: {why}")
    kind = module if isinstance(module, type) else type(module)
    name, why = kind.__name__, f"it has none known. Supported: {', '.join(table)}"
    if module is kind and any(base.__name__ in table and _is_host(base) for base in kind.__mro__):
        why = f"it is the class; pass one of its objects, {wrapper}({name}())"
    elif name in table:
        home = ".".join(kind.__module__.split(".")[:2])
        why = f"it is {home}'s; pass the {name} of pytorch_metric_learning"
    raise TypeError(f"{wrapper} cannot exchange the margin of {name}: {why}")


def _is_host(cls: type) -> bool:
    return cls.__module__.startswith("pytorch_metric_learning.")


def as_margin(margin: object, default: Callable[[], Margin]) -> Margin:
    """A margin module from a module, a number or nothing."""
    if margin is None:
        return default()
    if isinstance(margin, Real) or (isinstance(margin, Tensor) and margin.ndim == 0):
        number = check_number("margin", margin, "a number", UNIT)
        check_fits("margin", number, torch.float64, UNIT)
        return ConstantMargin(number)
    if not isinstance(margin, Margin):
        expected = "a Margin or a number"
        remedy = "AdaptiveMargin() is the default; subclass adaptive_margin.Margin for your own"
        got = f"the class {margin.__name__}" if isinstance(margin, type) else type(margin).__name__
        raise TypeError(problem("margin", expected, got, remedy))
    return margin


def resolve_units(units: Units | None, margin: Margin, swap: Swap, module: nn.Module) -> Units:
    """The requested units, or the default for this margin and this host; a ``ValueError`` if they have no meaning
    there.

    For a margin that leads for some labels and waits for evidence for others, this is the default of the leading case.
    """
    if units is None:
        if margin.unit == "own":
            return "replace"
        leads = margin.may_lead and not why_no_geometry(swap, module)
        return "geometry" if leads else evidence_units(swap, module)
    check_choice("units", units, ("geometry", "replace", "sqrt", "offset"))
    scale = swap.scale_of(module)
    if units == "geometry" and (why := why_no_geometry(swap, module)):
        able = "'offset'" if scale == "similarity" else "'replace', 'sqrt' or 'offset'"
        expected = f"{able} for {why}"
        remedy = "a squared distance of unit vectors means nothing there"
        raise ValueError(problem("units", expected, "'geometry'", remedy))
    if units == "geometry" and margin.unit == "own":
        expected = f"'replace' or 'offset' for a margin in the unit of {swap.host}"
        raise ValueError(problem("units", expected, "'geometry'", "leave units out: a number is taken as it is"))
    if units == "sqrt" and scale in ("similarity", "cosine", "ratio"):
        what = f"{swap.host}, whose {swap.attribute} is a {swap.role} in {scale}"
        expected = f"'geometry', 'replace' or 'offset' for {what}"
        raise ValueError(problem("units", expected, "'sqrt'", "only distances and angles go with a distance's root"))
    unbounded = scale == "similarity" and not module.distance.normalize_embeddings  # type: ignore[union-attr]
    if units == "replace" and margin.unit != "own" and swap.role == "threshold" and unbounded:
        expected = "'offset' for similarities of embeddings that are not normalised"
        remedy = "normalise them, or shift the loss's own margin with units='offset'"
        raise ValueError(problem("units", expected, "'replace'", remedy))
    return units


def why_no_geometry(swap: Swap, module: nn.Module) -> str:
    """Why this host's distance cannot use a squared Euclidean distance; empty if it can."""
    scale = swap.scale_of(module)
    if scale in ("cosine", "angle", "ratio"):
        return ""
    distance: Any = module.distance
    if scale == "similarity":
        return "" if distance.normalize_embeddings else "similarities of embeddings that are not normalised"
    if not isinstance(distance, LpDistance):
        return f"{type(distance).__name__}, which is no power of a Euclidean distance"
    if distance.p != 2:
        return f"LpDistance(p={distance.p}), which is not Euclidean"
    if swap.role == "gap" and distance.power not in (1, 2):
        return f"gaps in LpDistance(power={distance.power})"
    return ""


def evidence_units(swap: Swap, module: nn.Module) -> Units:
    """The default units of a margin that starts at its floor and waits for evidence.

    A threshold alone pushes pairs apart. A margin that follows the embeddings would already be satisfied as a
    threshold, so it is added to the loss's own. It is also added if the margin is in cosines or angles, which have
    their own scale. For a gap between distances the root turns the squared distance into a distance. Otherwise the
    number is used as in the paper.
    """
    scale = swap.scale_of(module)
    if scale == "power of a distance":
        got = f"none, for LpDistance(power={module.distance.power})"  # type: ignore[union-attr]
        remedy = "use a power of 1 or 2, or say what the number means there"
        raise ValueError(problem("units", "given where a loss is on neither distances nor their squares", got, remedy))
    if swap.role == "threshold" or scale in ("cosine", "angle"):
        return "offset"
    return "sqrt" if scale == "distance" else "replace"


def _units_for_two_labels(units: Units | None, margin: Margin, swap: Swap, module: nn.Module) -> Units:
    """What :func:`in_host_unit` does for two labels; for more it follows :func:`resolve_units`."""
    resolved = resolve_units(units, margin, swap, module)
    if units is not None or resolved != "geometry" or swap.scale_of(module) == "power of a distance":
        return resolved
    two = torch.arange(2, device="cpu")  # not where a caller builds modules without values
    return resolved if margin.leads(two) else evidence_units(swap, module)


def _own_margin(swap: Swap, module: nn.Module) -> tuple[float, float | None]:
    """A module's own margin as its constructor takes it, and the constructor's default, None if it has none."""
    own = float(getattr(module, swap.attribute))
    default = None
    for cls in type(module).__mro__:
        init = vars(cls).get("__init__")
        parameters = {} if init is None else inspect.signature(init).parameters
        if swap.attribute in parameters:
            default = parameters[swap.attribute].default
        elif not parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            continue  # to the class that takes it
        break
    known = isinstance(default, Real)
    return math.degrees(own) if swap.scale == "angle" else own, float(default) if known else None  # type: ignore[arg-type]


def own_margin_in_words(units: Units | None, margin: Margin, swap: Swap, module: nn.Module) -> str:
    """What is exchanged, its unit, and what becomes of the module's own margin, in two lines."""
    first, of_two = resolve_units(units, margin, swap, module), _units_for_two_labels(units, margin, swap, module)
    also = "" if of_two == first else f" ({of_two!r} with two labels)"
    scale = swap.scale_of(module)
    own = f"its own {swap.attribute}={_own_margin(swap, module)[0]:g}{'°' if scale == 'angle' else ''}"
    if "offset" not in (first, of_two):
        becomes = f"{own} is not used"
    else:
        becomes = f"{own} is added to it" if first == "offset" else f"{own} is used with two labels only"
    what = f"a {swap.role} in {'ratio of variances' if scale == 'ratio' else scale}"
    return f"{swap.host}.{swap.attribute}, units={first!r}{also}, {what}\n{becomes}"


def unused_own_margin(units: Units | None, margin: Margin, swap: Swap, module: nn.Module) -> str:
    """A sentence about a margin that is not the default of its module's class and has no effect; else empty."""
    own, default = _own_margin(swap, module)
    first = resolve_units(units, margin, swap, module)
    if default is None or math.isclose(own, default) or first == "offset":
        return ""
    if margin.unit == "own" and not margin.needs_batch and math.isclose(own, margin.value):
        return ""  # the same number twice
    said = f"{swap.host}: its {swap.attribute}={own:g} is "
    of_two = _units_for_two_labels(units, margin, swap, module)
    said += "used with two labels only" if of_two == "offset" else "not used"
    instead = type(margin).__name__
    return (
        f"{said}, because {instead} takes its place; leave it out, or pass margin={own:g} for that constant, or "
        f"units='offset' to add {instead} to it"
    )


def in_host_unit(
    alpha: Value,
    units: Units | None,
    margin: Margin,
    swap: Swap,
    module: nn.Module,
    labels: Tensor | None,
    ref_labels: Tensor | None = None,
    chosen: bool = False,
) -> Value:
    """A margin in the host's own unit, by the requested units or by the default for the current labels.

    By default a margin that leads uses ``"geometry"``, and one that waits for evidence uses :func:`evidence_units`.
    ``AdaptiveMargin()`` leads for three labels or more and waits for evidence for two. ``chosen`` says that the caller
    lists the pairs or triplets.
    """
    resolved = resolve_units(units, margin, swap, module)
    leads: bool | Tensor = True
    if units is None and resolved == "geometry" and labels is not None:
        leads = margin.leads(labels, ref_labels)
    if leads is True:
        return translate(alpha, resolved, margin, swap, module, chosen)
    waiting = translate(alpha, evidence_units(swap, module), margin, swap, module)
    if leads is False:
        return waiting
    leading = translate(alpha, resolved, margin, swap, module, chosen)  # reading the labels would wait for the device
    return torch.where(torch.as_tensor(leads), torch.as_tensor(leading), torch.as_tensor(waiting))


def translate(alpha: Value, units: Units, margin: Margin, swap: Swap, module: nn.Module, chosen: bool = False) -> Value:
    r"""A margin in the host's own unit.

    ``"geometry"`` converts it from a squared distance of unit vectors (:mod:`.geometry`); ``"replace"`` uses the number
    unchanged, ``"sqrt"`` its root, ``"offset"`` adds it to the host's own margin. A *threshold on a similarity* lies
    where the squared distance of unit vectors is :math:`\hat\alpha`: :math:`D^2 = 2 - 2s`, so :math:`s = 1 -
    \hat\alpha/2`, and an offset is :math:`-\hat\alpha/2`, because more margin means less similarity. A margin in the
    host's own unit (``ConstantMargin``) has the same meaning as in the host's constructor: degrees for angles.
    """
    scale = swap.scale_of(module)
    own = getattr(module, swap.attribute)
    if units == "geometry":
        return ((chosen and swap.geometry_of_chosen) or swap.geometry)(alpha, scale, module)
    if margin.unit == "own" and scale == "angle" and units != "sqrt":
        alpha = torch.deg2rad(alpha) if isinstance(alpha, Tensor) else float(np.radians(alpha))
    if margin.unit == "own" and units == "replace":
        return alpha
    if units == "sqrt":
        return geometry.root(alpha)
    if swap.role == "threshold" and scale == "similarity":
        return own - alpha / 2 if units == "offset" else 1 - alpha / 2
    return own + alpha if units == "offset" else alpha


class HostScalar(Tensor):
    """A 0-dim margin for which numpy's functions, which the host calls on margins, use torch's.

    ``np.sin`` of a tensor copies it to the CPU and fails if it needs a gradient.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any) -> Any:
        """The torch function of the same name."""
        return getattr(torch, ufunc.__name__)(*(torch.as_tensor(x).as_subclass(Tensor) for x in inputs))


def for_host(value: Value, swap: Swap) -> Value:
    """A number if this needs no synchronisation and no gradient flows, else a tensor that the host can handle."""
    if not isinstance(value, Tensor) or value.ndim:
        return value
    if not value.requires_grad and not is_blind(value):
        return float(value)
    asks_numpy = swap.scale == "angle" and not torch.compiler.is_compiling()  # which traces numpy itself
    # other subclasses (fake tensors) cannot become this one
    return value.as_subclass(HostScalar) if asks_numpy and type(value) in (Tensor, nn.Parameter) else value


def check_margin_fits(margin: Margin, value: Value, dtype: torch.dtype) -> None:
    """Raises a ``ValueError`` that names the margin where it is not finite in the dtype that a host computes in.

    Embeddings are finite by then, so nothing else could have made it so. Nothing waits for a device.
    """
    if isinstance(margin, ConstantMargin):  # in its own unit, too: degrees have smaller radians
        check_fits("margin", margin.value, dtype, UNIT)
    if not isinstance(value, Tensor):
        check_fits("margin", value, dtype, UNIT)
    elif value.numel() and not is_blind(value):
        largest = value.item() if value.ndim == 0 else value.detach().abs().amax().item()
        check_fits("margin", largest, dtype, UNIT)


def casts(host: nn.Module, x: Tensor) -> dict[str, Any]:
    """What replaces a host's cast of its class weights, where there is nothing to cast.

    The host assigns ``W.data`` in each call. With several threads torch can then wait for itself: the assignment holds
    the interpreter and waits for the weight's lock, another thread holds that lock and waits for the interpreter.
    """
    if not hasattr(type(host), "cast_types"):
        return {}
    own = [value for value in vars(host).values() if isinstance(value, Tensor) and value.is_floating_point()]
    done = all((tensor.dtype, tensor.device) == (x.dtype, x.device) for tensor in (*host.parameters(), *own))
    return {"cast_types": _leave} if done else {}


def _leave(dtype: torch.dtype, device: torch.device) -> None:
    """In the place of ``cast_types``."""


@contextmanager
def exchanged(module: nn.Module, values: Mapping[str, Any]) -> Iterator[Any]:
    """A stand-in for a module with other attributes, or methods, for the duration of a ``with`` block.

    The module itself is never changed, because other threads may call it at the same time. The stand-in is a shallow
    copy for this call only. It shares parameters, buffers, submodules and hooks, but has its own versions of methods
    that the module keeps as attributes. Anything else written to it (statistics) is copied to the module at the end.
    """
    if missing := [name for name in values if not hasattr(module, name)]:
        raise KeyError(missing)
    stand_in: nn.Module = object.__new__(type(module))
    held = stand_in.__dict__
    for name, value in module.__dict__.items():
        bound = isinstance(value, MethodType) and value.__self__ is module
        held[name] = value.__func__.__get__(stand_in) if bound else value  # torch.compile can follow this
    held.update(values)  # also replaces an attribute of the class, or a submodule
    before = dict(held)
    try:
        yield stand_in
    finally:
        for name, value in held.items():
            if name not in values and (name not in before or value is not before[name]):
                module.__dict__[name] = value


assert all(hasattr(losses, name) for name in LOSSES)
assert all(hasattr(miners, name) for name in MINERS)
