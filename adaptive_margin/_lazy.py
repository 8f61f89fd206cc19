"""Packages whose names are imported when they are first asked for: a command line answers before PyTorch is loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any


def on_demand(package: str, names: Collection[str], modules: Collection[str]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` (PEP 562) for ``names`` that are in its ``modules``, or are one of these."""

    def find(name: str) -> Any:
        if name in modules:
            return import_module(f"{package}.{name}")
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        for module in [import_module(f"{package}.{place}") for place in modules]:
            for each in names:  # all of them, so that this happens once
                if hasattr(module, each):
                    setattr(sys.modules[package], each, getattr(module, each))
        return vars(sys.modules[package])[name]

    return find
