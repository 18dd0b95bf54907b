"""Configurations: frozen dataclasses whose fields are checked when they are made, long before anything is compiled.

A field may be a number, a string, a `Literal`, a tuple (`tuple[int, int]`, `tuple[float, ...]`), another configuration,
a tuple of those, or a union of such. All of that goes through JSON and comes back equal, by `as_json` and `from_json`.
"""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

import numpy as np

from ssmjax import errors

__all__ = ["ComputeDtype", "as_json", "check_fields", "from_json", "frozen_options", "override", "require"]

ComputeDtype = Literal["float32", "bfloat16", "float16"]
"""What a model computes in; parameters, norms, scans, the residual stream and the logits are float32 in any case."""

Config = TypeVar("Config")

CLASS = "config_class"
"""The key under which JSON names the class of a nested configuration where a field may have one of several."""


def check_fields(config: Any) -> None:
    """Checks every field of a configuration against its annotation. To be called from `__post_init__`.

    An int stands for a float, a list (as JSON has it) for a tuple, and a dictionary for a nested configuration.
    Configurations are decorated with `typing.no_type_check`, so that the tests' run-time type checks do not come before
    these, whose messages are for people.

    Raises:
        ValueError: A field's value does not fit; the message names the field.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Tower:
    ...     depths: tuple[int, ...] = (2, 2)
    ...     __post_init__ = check_fields
    >>> Tower([1, 3])
    Tower(depths=(1, 3))
    """
    for field in dataclasses.fields(config):
        if isinstance(field.type, str):
            raise TypeError(
                f"{type(config).__name__}: the annotation of {field.name} is text. Remove `from __future__ import "
                "annotations` from the configuration's module."
            )
        value = _coerced(getattr(config, field.name), field.type)
        if not _fits(value, field.type):
            raise errors.bad_argument(type(config).__name__, field.name, value, _describe(field.type))
        object.__setattr__(config, field.name, value)


def as_json(config: Any) -> dict[str, Any]:
    """A configuration as a dictionary that JSON holds, nested configurations included.

    Args:
        config: A configuration.

    >>> from ssmjax.models.vim import VimConfig
    >>> as_json(VimConfig(img_size=(32, 64)))["img_size"]
    [32, 64]
    """
    content = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        content[field.name] = _plain_json(value, len(_classes(field.type)) > 1)
    return content


def from_json(kind: type[Config], content: Mapping[str, Any], where: str) -> Config:
    """A configuration from such a dictionary. A field that it lacks takes its default.

    Args:
        kind: The configuration class.
        content: Values by field name.
        where: Who asks, for the message.

    Raises:
        ValueError: A field is unknown, with the near names; or one is missing, or a value does not fit.

    >>> from ssmjax.models.vim import VimConfig
    >>> from_json(VimConfig, {"img_size": [32, 64]}, "example").grid
    (2, 4)
    """
    content = {name: value for name, value in content.items() if name != CLASS}
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    _check_names(content, known, where)
    required = [
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in content]:
        raise ValueError(f"{where}: {', '.join(missing)} must be given, as {kind.__name__} has no default for it.")
    return kind(**content)


def frozen_options(where: str, field: str, options: Any) -> tuple[tuple[str, Any], ...]:
    """Options as sorted pairs that have a hash and that JSON has: Python numbers for numpy's, tuples for lists.

    Args:
        where: The public class, for the message.
        field: The field.
        options: A dictionary, or pairs.

    Raises:
        ValueError: It is neither.

    >>> frozen_options("SequenceConfig", "layer_options", {"l_max": [4, 4], "blocks": 2})
    (('blocks', 2), ('l_max', (4, 4)))
    """
    items = options.items() if isinstance(options, Mapping) else options
    pairs = list(items) if isinstance(items, Iterable) else [items]
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise errors.bad_argument(where, field, options, 'a dictionary, such as {"blocks": 4}')
    return tuple(sorted((str(name), _plain(value)) for name, value in pairs))


def _plain(value: Any) -> Any:
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return tuple(value) if isinstance(value, list) else value


def require(config: Any, field: str, holds: bool, wanted: str, remedy: str = "") -> None:
    """Raises the error for a field of a configuration unless `holds`.

    Args:
        config: The configuration.
        field: The field's name.
        holds: Whether its value is right.
        wanted: What would have been right.
        remedy: What to do; a full sentence.

    Raises:
        ValueError: `holds` is false.

    >>> from ssmjax.models.vim import VimConfig
    >>> require(VimConfig(), "depth", True, "even")
    """
    if not holds:
        raise errors.bad_argument(type(config).__name__, field, getattr(config, field), wanted, remedy)


def override(config: Config, changes: Mapping[str, Any], where: str) -> Config:
    """A copy of a configuration with some fields replaced.

    Args:
        config: A configuration.
        changes: New values by field name. A dictionary is a change of a nested configuration.
        where: Who asks, for the message.

    Raises:
        ValueError: A field is unknown, with the near names; or a value does not fit.

    >>> from ssmjax.models.vim import VimConfig
    >>> override(VimConfig(), {"depth": 2}, "example").depth
    2
    """
    changes = dict(changes)
    _check_names(changes, [field.name for field in dataclasses.fields(config)], where)  # type: ignore[arg-type]
    for name, value in changes.items():
        nested = getattr(config, name)
        named = value.get(CLASS) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping) and _is_config(nested) and named in (None, type(nested).__name__):
            inner = {key: each for key, each in value.items() if key != CLASS}
            changes[name] = override(nested, inner, f"{where}: {name}")
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _check_names(given: Mapping[str, Any], known: list[str], where: str) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{where}: {errors.unknown_name('option', name, known)}")


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _classes(hint: Any) -> list[type]:
    """The configuration classes that an annotation names."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [kind for arg in get_args(hint) for kind in _classes(arg)]


def _plain_json(value: Any, named: bool) -> Any:
    if _is_config(value):
        return ({CLASS: type(value).__name__} if named else {}) | as_json(value)
    return [_plain_json(each, named) for each in value] if isinstance(value, tuple) else value


def _coerced(value: Any, hint: Any) -> Any:
    """What JSON holds in place of a value of the annotation's type, as that; anything else as it is."""
    origin, args = get_origin(hint), get_args(hint)
    value = tuple(value) if isinstance(value, list) else value
    if origin in (typing.Union, UnionType):
        tries = [_coerced(value, arg) for arg in args]
        fitting = [each for each, arg in zip(tries, args, strict=True) if _fits(each, arg)]
        # What changes nothing is preferred: 3 stays an integer where both integers and floats are allowed.
        return min(fitting, key=lambda each: repr(each) != repr(value), default=value)
    if origin is tuple and isinstance(value, tuple):
        hints = (args[0],) * len(value) if args[-1:] == (Ellipsis,) else args
        return tuple(map(_coerced, value, hints)) if len(hints) == len(value) else value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_json(hint, value, hint.__name__) if value.get(CLASS) in (None, hint.__name__) else value
    return float(value) if hint is float and _fits(value, int) else value


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if origin in (typing.Union, UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        if args[-1:] == (Ellipsis,):
            return isinstance(value, tuple) and all(_fits(each, args[0]) for each in value)
        return isinstance(value, tuple) and len(value) == len(args) and all(map(_fits, value, args))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (typing.Union, UnionType):
        return " or ".join(map(_describe, args))
    if origin is tuple and args[-1:] == (Ellipsis,):
        return f"a tuple, each {_describe(args[0])}"
    if origin is tuple:
        return f"({', '.join(map(_describe, args))})"
    if _classes(hint):
        return f"a {hint.__name__}"
    return (
        "None"
        if hint is NoneType
        else {int: "an integer", float: "a number", bool: "True or False"}.get(hint, hint.__name__)
    )
