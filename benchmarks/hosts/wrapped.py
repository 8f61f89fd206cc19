"""A pytest plugin: pytorch-metric-learning's tests get this library's wrappers instead of its losses and miners.

``losses.TripletMarginLoss(margin=0.1)`` then creates a loss built with another margin, inside an ``AdaptiveMarginLoss``
with a constant margin of 0.1. Every number that a test expects must still be correct. With
``ADAPTIVE_MARGIN_HOSTS=imported`` the library is imported and nothing is replaced.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

from pytorch_metric_learning import losses, miners

from adaptive_margin import AdaptiveMarginLoss, AdaptiveMarginMiner, ConstantMargin


def stand_in(stock: type, wrapper: type, attribute: str) -> type:
    """A class that replaces ``stock`` in calls and in ``isinstance``."""
    named = type(stock.__name__, (wrapper,), {})  # two of the tests compare class names with a list

    class Meta(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(stock).bind(*args, **kwargs)
            given.apply_defaults()
            places = given.arguments, given.arguments.get("kwargs", {})
            place = places[0] if attribute in places[0] else places[1]
            margin = place.get(attribute) if attribute in place else getattr(stock(*args, **kwargs), attribute)
            if isinstance(margin, (int, float)):  # not one per class, nor learned
                place[attribute] = 0.9 * margin + 0.01
            return named(stock(*given.args, **given.kwargs), ConstantMargin(margin))

        def __instancecheck__(cls, instance: Any) -> bool:
            inside = getattr(instance, "loss" if wrapper is AdaptiveMarginLoss else "miner", None)
            return isinstance(instance, stock) or (isinstance(instance, wrapper) and isinstance(inside, stock))

    return Meta(stock.__name__, (), {"__module__": stock.__module__, "__doc__": stock.__doc__})


if os.environ.get("ADAPTIVE_MARGIN_HOSTS") == "wrapped":
    for module, wrapper in ((losses, AdaptiveMarginLoss), (miners, AdaptiveMarginMiner)):
        for name, row in wrapper.supported().items():
            setattr(module, name, stand_in(getattr(module, name), wrapper, row.attribute))
