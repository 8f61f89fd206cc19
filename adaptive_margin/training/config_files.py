"""Configurations as YAML files: frozen dataclasses out, checked values in."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from ..messages import nearest, require_extra

C = TypeVar("C")
ENVIRONMENT = "environment.json"
"""A file that the folder of every run has beside its ``config.yaml``."""


class ConfigError(ValueError):
    """An option is unknown, or its value has the wrong type; the message names the option and the expected type."""


def to_yaml(config: Any) -> str:
    """A configuration as YAML, in the order of its fields; :func:`from_yaml` reads it back.

    Args:
        config: a dataclass or a mapping of numbers, text, None, paths, tuples, lists, mappings and dataclasses.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Adam:
        ...     lr: float = 1e-4
        ...     betas: tuple[float, float] = (0.5, 0.9)
        >>> print(to_yaml(Adam()), end="")
        lr: 0.0001
        betas:
        - 0.5
        - 0.9
    """
    text: str = _yaml().safe_dump(plain(config), sort_keys=False, allow_unicode=True)
    return text


def from_yaml(
    config_type: type[C],
    path: str | Path,
    base: C | None = None,
    changes: Mapping[str, Any] | None = None,
    *,
    check: bool = True,
) -> C:
    """Reads a configuration.

    Args:
        config_type: a dataclass.
        path: the file: a mapping of options to values; options of an inner dataclass form a nested mapping.
        base: source of the options that are not in the file; None means the defaults of the class.
        changes: options, as plain values, that take precedence over those of the file.
        check: whether the class checks the options together. Not if others are still to come.

    Raises:
        ConfigError: an unknown option, with the closest known ones; a value of the wrong type; a missing option without
            a default; a file that is not a mapping. Errors raised by the class itself are passed on unchanged.
        OSError: the file cannot be read.
    """
    content = read_options(path)
    try:
        options = _options_of(config_type, {**content, **(changes or {})}, "", base)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if check:
        return config_type(**options)
    unchecked = object.__new__(config_type)
    vars(unchecked).update(options)
    return unchecked


def read_options(path: str | Path) -> dict[str, Any]:
    """The content of a file of options, unchecked.

    Raises:
        ConfigError: the file is not a mapping.
        OSError: it cannot be read.
    """
    yaml = _yaml()
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path}: {_wrong('the file', 'a mapping of options to values', content)}")
    return content or {}


def plain(config: Any) -> Any:
    """A configuration as dictionaries, lists and scalars that YAML can represent.

    Raises:
        TypeError: it contains something else.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {each.name: plain(getattr(config, each.name)) for each in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(name): plain(value) for name, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [plain(value) for value in config]
    if isinstance(config, Path):
        return str(config)
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    raise TypeError(f"a configuration holds numbers, text, None, paths and collections of them, got {config!r}")


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """The options of a configuration by their full names.

    Example:
        >>> flat({"adam": {"lr": 0.1}, "steps": 3})
        {'adam.lr': 0.1, 'steps': 3}
    """
    options: dict[str, Any] = {}
    for name, value in plain(config).items():
        if isinstance(value, dict) and value:
            options |= flat(value, f"{prefix}{name}.")
        else:
            options[f"{prefix}{name}"] = value
    return options


def _build(hint: Any, value: Any, where: str, base: Any = None) -> Any:
    """The value converted to the type, or an error that names its place."""
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint(**_options_of(hint, value, where, base if isinstance(base, hint) else None))
    if hint is Any:
        return value
    if kind in (Union, types.UnionType):
        return _build_union(hint, value, where, base)
    if kind is Literal:
        for choice in inner:
            if type(choice) is type(value) and choice == value:
                return value
        raise _wrong(where, f"one of {', '.join(map(repr, inner))}", value)
    if hint is float and not isinstance(value, bool):  # YAML 1.1 takes 1e-4 for text
        try:
            return float(value)
        except (TypeError, ValueError):
            raise _wrong(where, "a number", value) from None
    if hint in (int, str, bool) and type(value) is hint:
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if kind in (tuple, list) and isinstance(value, list):
        fixed = kind is tuple and Ellipsis not in inner
        if fixed and len(inner) != len(value):
            raise _wrong(where, f"{len(inner)} values", value)
        hints = inner if fixed else (inner or (Any,))[:1] * len(value)
        return kind(_build(hints[i], item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind in (dict, Mapping) and isinstance(value, dict):
        each = inner[1] if inner else Any
        return {name: _build(each, item, f"{where}.{name}") for name, item in value.items()}
    raise _wrong(where, f"of type {getattr(hint, '__name__', hint)}", value)


def _build_union(hint: Any, value: Any, where: str, base: Any) -> Any:
    choices = typing.get_args(hint)
    if value is None and type(None) in choices:
        return None
    errors = []
    if isinstance(value, str) and {int, float} <= set(choices) and re.fullmatch(r"[+-]?[0-9]+", value):
        value = int(value)  # a count, also in quotes
    likely = lambda each: (type(value) is not each, not (isinstance(each, type) and isinstance(base, each)))  # noqa: E731
    for choice in sorted(choices, key=likely):
        if choice is not type(None):
            try:
                return _build(choice, value, where, base)
            except ConfigError as error:
                errors.append(error)
    raise errors[0] if len(errors) == 1 else _wrong(where, f"of type {hint}", value)


def _options_of(kind: Any, value: Any, where: str, base: Any) -> dict[str, Any]:
    """The options of a dataclass, converted to their types."""
    if not isinstance(value, dict):
        raise _wrong(where or "the file", "a mapping of options to values", value)
    hints = typing.get_type_hints(kind)
    fields = {each.name: each for each in dataclasses.fields(kind) if each.init}
    prefix = f"{where}." if where else ""
    for name in value:
        if name not in fields:
            raise ConfigError(f"unknown option {prefix}{name}; {nearest(str(name), fields, prefix)}")
    options = {}
    for name, each in fields.items():
        if name in value:
            options[name] = _build(hints[name], value[name], prefix + name, getattr(base, name, None))
        elif base is not None:
            options[name] = getattr(base, name)
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise ConfigError(f"option {prefix}{name} is missing; it has no default")
    return options


def _wrong(where: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"option {where} must be {expected}, got {value!r}")


def _yaml() -> Any:
    require_extra("reading and writing config files", "train", "yaml")
    import yaml

    return yaml
