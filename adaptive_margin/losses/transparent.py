"""Gives access through a wrapper to everything of the module inside it that is not the wrapper's own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

from pytorch_metric_learning.utils.module_with_records import ModuleWithRecords
from torch import Tensor, nn

from ..margins import AdaptiveMargin, Margin
from ..margins.statistics import HasStatistics, not_recorded
from ..messages import problem
from .batch import Batch
from .swap import (
    LOSSES,
    Swap,
    Units,
    Value,
    as_margin,
    check_margin_fits,
    find_swap,
    for_host,
    in_host_unit,
    own_margin_in_words,
    resolve_units,
    unused_own_margin,
)

STATISTICS = ("alpha", "mi", "eta", "delta", "k")
"""Of a margin; what a margin of the caller's own has by these names is read through the wrapper, too."""


class TakesMargin(HasStatistics):
    """For modules whose ``margin`` can be set at any time, as in the constructor: a module, a number or None.

    The margin's statistics are read through the module, whose ``collect_stats`` is also that of the margin: setting
    either sets the margin's, except that a margin that collects by itself goes on in a module that does not.
    """

    margin: Margin
    _modules: dict[str, Any]

    def __setattr__(self, name: str, value: Any) -> None:
        """A number becomes a constant margin, and None the adaptive one; ``collect_stats`` is the margin's, too."""
        if name == "margin":
            value = as_margin(value, self._default_margin)
            self._check_margin(value)
        super().__setattr__(name, value)
        if name == "collect_stats" or (name == "margin" and self.collect_stats):
            margin = self._modules.get("margin")
            if margin is not None:
                margin.collect_stats = self.collect_stats

    def forget(self) -> None:
        """Sets the statistics to NaN, also those of the margin, which this call may not need."""
        super().forget()
        self._modules["margin"].forget()

    def __getattr__(self, name: str) -> Any:
        """The margin's statistics."""
        modules: Any = self.__dict__.get("_modules", {})
        return self._of_margin(name) if self._is_of_margin(name, modules) else super().__getattr__(name)

    def statistics(self) -> dict[str, float]:
        """Those of the last call by name, its margin's first, as loggers take them.

        Raises:
            AttributeError: ``collect_stats`` is off.
        """
        names = (*self._modules["margin"].recorded, *self.recorded)
        return {name: getattr(self, name) for name in dict.fromkeys(names)}

    def _is_of_margin(self, name: str, modules: Mapping[str, Any]) -> bool:
        if name in type(self).recorded or "margin" not in modules:
            return False
        return name in modules["margin"].recorded or (name in STATISTICS and hasattr(modules["margin"], name))

    def _of_margin(self, name: str) -> Any:
        margin = self._modules["margin"]
        if name in margin.recorded and not margin.collect_stats:
            raise not_recorded(self, name)
        return getattr(margin, name)

    def _default_margin(self) -> Margin:
        return AdaptiveMargin()

    @property
    def _alone(self) -> bool:
        """Whether nothing beside the loss's formula has a gradient: neither its margin nor a regulariser."""
        constant = self.margin.detach or not self.margin.needs_batch
        return constant and self.embedding_regularizer is None

    def _check_margin(self, margin: Margin) -> None:
        """Raises a ``ValueError`` if this module cannot take a margin."""


class _Forwarded(property):
    """A method of the host's base class that is forwarded to the wrapped module."""


def _forwarded(wraps: str, name: str) -> _Forwarded:
    return _Forwarded(lambda self: getattr(self._modules[wraps], name))


class Transparent(TakesMargin):
    """A wrapper of a host module, through which the module's attributes and methods are accessible.

    A name is looked up in this order: the wrapper's own attributes (``margin``, ``units``, those of
    :class:`torch.nn.Module`), statistics of the margin's last call (read only), and the wrapped module's attributes.
    The attribute that the margin replaces in each call (``neg_margin``, for instance) is read only, too. A checkpoint
    of the wrapped module alone loads into the wrapper. Subclasses declare in their class statement where they keep the
    module and which modules are supported.
    """

    exchange: Swap
    current_margin: float
    recorded: ClassVar[tuple[str, ...]] = ("current_margin",)
    _units: Units | None
    _wraps: ClassVar[str]
    _table: ClassVar[Mapping[str, Swap]]

    def __init_subclass__(
        cls, wraps: str = "", base: type | None = None, table: Mapping[str, Swap] | None = None, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        if base is None or table is None:  # a subclass of a wrapper
            return
        cls._wraps, cls._table = wraps, table
        for name in set(dir(base)) - set(dir(ModuleWithRecords)) - set(vars(cls)):
            setattr(cls, name, _forwarded(wraps, name))

    def _wrap(self, module: nn.Module, margin: Any, collect_stats: bool | None) -> None:
        """Replaces the host's constructor, which would add a distance, a reducer and a regulariser."""
        ModuleWithRecords.__init__(self, collect_stats=collect_stats)
        setattr(self, self._wraps, module)
        self.margin = margin

    def __getattr__(self, name: str) -> Any:
        """Attributes that are not the wrapper's own."""
        modules: Any = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        wrapped = modules.get(type(self)._wraps)
        own = name in type(self).recorded or self._is_of_margin(name, modules)
        if name[:1] != "_" and not own and hasattr(wrapped, name):
            return getattr(wrapped, name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute on the wrapped module if that has it and the wrapper does not."""
        modules: Any = self.__dict__.get("_modules", {})
        wrapped = modules.get(self._wraps)
        if name == self._wraps:
            self.__dict__["exchange"] = find_swap(value, self._table, type(self).__name__)
        of_margin = self._is_of_margin(name, modules)
        if wrapped is None or name[:1] == "_" or self._is_own(name) or not (of_margin or hasattr(self, name)):
            super().__setattr__(name, value)
        elif of_margin:
            remedy = f"set .{self._wraps}.{name} to change that of {type(wrapped).__name__}"
            raise AttributeError(problem(name, "read only, as of the margin's last call", repr(value), remedy))
        else:
            before = getattr(wrapped, name)
            setattr(wrapped, name, value)
            if name in self.exchange.values(wrapped, 0.0):  # ranked-list loss's own boundary is its own once it is set
                setattr(wrapped, name, before)
                host = self.exchange.host
                expected = f"left to the margin, which takes its place in {host} in each call"
                remedy = f"set .margin, or .{self._wraps}.{self.exchange.attribute} for what units='offset' adds to"
                raise AttributeError(problem(name, expected, repr(value), remedy))

    def _default_margin(self) -> Margin:
        return AdaptiveMargin(neighbourhood=self.exchange.rule)

    @property
    def _wrapped(self) -> Any:
        return self._modules[self._wraps]

    @property
    def units(self) -> Units:
        """How the wrapped module uses the margin: as requested, or the default for this margin and the current
        distance.
        """
        return resolve_units(self._units, self.margin, self.exchange, self._wrapped)

    @units.setter
    def units(self, units: Units | None) -> None:
        resolve_units(units, self.margin, self.exchange, self._wrapped)
        self._units = units

    def _check_margin(self, margin: Margin) -> None:
        self._check_granularity(margin)
        if "_units" in self.__dict__:
            resolve_units(self._units, margin, self.exchange, self._wrapped)

    def _check_granularity(self, margin: Margin) -> None:
        """Raises a ``ValueError`` unless the wrapped module can take as many margins as this one gives."""
        if margin.granularity != "batch" and not self.exchange.elementwise:
            able = ", ".join(name for name, row in LOSSES.items() if row.elementwise)
            host = self.exchange.host
            remedy = f"{host} has one margin a batch; one an anchor or a pair goes into AdaptiveMarginLoss of {able}"
            raise ValueError(problem("margin.granularity", "'batch'", f"{margin.granularity!r}", remedy))

    def _in_host_unit(self, alpha: Value, batch: Batch, groups: Batch | None = None, chosen: bool = False) -> Value:
        """The margin in the unit of the wrapped module, recorded.

        ``groups`` is the batch with the labels that the margin saw, if they are others; ``chosen`` says that the caller
        lists the pairs or triplets.
        """
        row, of = self.exchange, groups or batch
        value = in_host_unit(
            for_host(alpha, row), self._units, self.margin, row, self._wrapped, of.labels, of.ref_labels, chosen
        )
        dtype = batch.embeddings.dtype
        check_margin_fits(self.margin, value, dtype)
        value = for_host(value.to(dtype) if isinstance(value, Tensor) else value, row)
        if self.collect_stats:
            self.current_margin = float(value.detach().mean()) if isinstance(value, Tensor) else value
        return value

    def extra_repr(self) -> str:
        """The replaced attribute, its unit and what becomes of the wrapped module's own margin, for ``print``."""
        return own_margin_in_words(self._units, self.margin, self.exchange, self._wrapped)

    def _warn_of_unused(self) -> None:
        """Tells a caller of the constructor of a margin that they set in the wrapped module and that has no effect.

        This package itself ignores it where it takes hosts with margins that nobody set.
        """
        said = unused_own_margin(self._units, self.margin, self.exchange, self._wrapped)
        if said:
            warnings.warn(said, stacklevel=3)

    def _is_own(self, name: str) -> bool:
        of_class = getattr(type(self), name, None)
        return (
            name == "margin"
            or name in type(self).recorded
            or name in self.__dict__
            or name in self._modules
            or not isinstance(of_class, _Forwarded | None)
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Maps the names of the wrapped module's own checkpoint to those inside the wrapper."""
        inside = f"{prefix}{self._wraps}."
        for name in getattr(self, self._wraps).state_dict():
            if prefix + name in state_dict and inside + name not in state_dict:
                state_dict[inside + name] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]
