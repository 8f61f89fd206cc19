"""Statistics of a module's last call, which exist while its ``collect_stats`` is on."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from ..messages import problem


class HasStatistics:
    """For modules of the host that record floats in each call.

    The names are attributes only while ``collect_stats`` is on, which can be set at any time: NaN before the first
    call and after one that did not compute them (an empty batch), and where the host's logging hooks look for them.
    While it is off, reading one says how to turn it on.
    """

    recorded: ClassVar[tuple[str, ...]] = ()
    """Their names."""
    called: bool = False
    """Whether there was a call since ``collect_stats`` was turned on."""
    collect_stats: bool

    def statistics(self) -> dict[str, float]:
        """The statistics of the last call by name, as loggers take them.

        Raises:
            AttributeError: ``collect_stats`` is off.

        Example:
            >>> from adaptive_margin import AdaptiveMargin
            >>> margin = AdaptiveMargin(collect_stats=True)
            >>> alpha = margin(torch.randn(32, 8), torch.arange(32) % 4)
            >>> sorted(margin.statistics())
            ['alpha', 'delta', 'eta', 'k', 'mi']
        """
        return {name: getattr(self, name) for name in self.recorded}

    def reset_stats(self) -> None:
        """The host's, with which each call begins: no statistic outlives the batch that it is of."""
        if "_record_these_stats" in self.__dict__:  # the host's lookup is slow where it fails
            super().reset_stats()  # type: ignore[misc]
        self.forget()

    def forget(self) -> None:
        """Sets the statistics to NaN, for a call that has begun."""
        if self.collect_stats:
            self.called = True
            for name in self.recorded:
                setattr(self, name, math.nan)

    def __setattr__(self, name: str, value: Any) -> None:
        """``collect_stats`` adds the statistics, or removes them."""
        super().__setattr__(name, value)
        if name == "collect_stats":
            self._collect(bool(value))

    def _collect(self, wanted: bool) -> None:
        kept = self.__dict__
        kept["called"] = False
        if wanted:
            for name in self.recorded:
                kept.setdefault(name, math.nan)
            self.add_to_recordable_attributes(list_of_names=list(self.recorded), is_stat=True)
            return
        if "_record_these_stats" in kept:
            kept["_record_these_stats"] = [name for name in kept["_record_these_stats"] if name not in self.recorded]
        for name in self.recorded:
            kept.pop(name, None)

    def __getattr__(self, name: str) -> Any:
        """Says why a statistic is not there."""
        if name in type(self).recorded:
            raise not_recorded(self, name)
        return super().__getattr__(name)  # type: ignore[misc]


def not_recorded(module: object, name: str) -> AttributeError:
    """The error for a statistic that is read while ``collect_stats`` is off."""
    remedy = f"pass collect_stats=True to {type(module).__name__}, or set .collect_stats = True before the call"
    return AttributeError(problem("collect_stats", f"True to read {name}", "False", remedy))
