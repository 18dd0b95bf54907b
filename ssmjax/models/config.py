"""Configurations: frozen dataclasses whose fields are checked when they are made, long before anything is compiled."""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

import numpy as np

from ssmjax import errors

__all__ = ["ComputeDtype", "check_fields", "frozen_options", "override", "require"]

ComputeDtype = Literal["float32", "bfloat16", "float16"]
"""What a model computes in; parameters, norms, scans, the residual stream and the logits are float32 in any case."""

Config = TypeVar("Config")


def check_fields(config: Any) -> None:
    """Checks every field of a configuration against its annotation. To be called from `__post_init__`.

    An int stands for a float, and a list of integers (as JSON has it) becomes a tuple. Configurations are decorated
    with `typing.no_type_check`, so that the tests' run-time type checks do not come before these, whose messages are
    for people.

    Raises:
        ValueError: A field's value does not fit; the message names the field.
    """
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), field.type
        if isinstance(value, list):
            value = tuple(value)
        if not _fits(value, hint):
            raise errors.bad_argument(type(config).__name__, field.name, value, _describe(hint))
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and float in (hint, *get_args(hint))
            and int not in get_args(hint)
        ):
            value = float(value)
        object.__setattr__(config, field.name, value)


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

    Raises:
        ValueError: `holds` is false.
    """
    if not holds:
        raise errors.bad_argument(type(config).__name__, field, getattr(config, field), wanted, remedy)


def override(config: Config, changes: Mapping[str, Any], where: str) -> Config:
    """A copy of a configuration with some fields replaced.

    Args:
        config: A configuration.
        changes: New values by field name.
        where: Who asks, for the message.

    Raises:
        ValueError: A field is unknown, with the near names; or a value does not fit.

    >>> from ssmjax.models.vim import VimConfig
    >>> override(VimConfig(), {"depth": 2}, "example").depth
    2
    """
    known = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    for name in changes:
        if name not in known:
            raise ValueError(f"{where}: {errors.unknown_name('option', name, known)}")
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if origin in (typing.Union, UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        hints = (args[0],) * len(value) if args[-1:] == (...,) and isinstance(value, tuple) else args
        return isinstance(value, tuple) and len(value) == len(hints) and all(map(_fits, value, hints))
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
    if origin is tuple:
        return f"a tuple, each {_describe(args[0])}" if args[-1:] == (...,) else f"({', '.join(map(_describe, args))})"
    return (
        "None"
        if hint is NoneType
        else {int: "an integer", float: "a number", bool: "True or False"}.get(hint, hint.__name__)
    )
