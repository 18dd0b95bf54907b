"""Argument checks that the ops share; each failure is one `ValueError` in the voice of `ssmjax.errors`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax import errors
from ssmjax.shapes import Array

__all__ = [
    "STATIC",
    "as_counts",
    "as_float_arrays",
    "as_length",
    "as_origin",
    "as_tap",
    "known_values",
    "require_arrays",
    "require_dtype",
    "require_shape",
]

STATIC = "It decides what is compiled: a Python int, static under jax.jit."
"""The remedy for a length or an index that is none."""


def as_length(where: str, length: Any) -> int:
    """A length, at least 1, as a Python int."""
    return errors.as_int(where, "length", length, least=1, remedy=STATIC)


def as_origin(where: str, origin: Any, taps: Sequence[int]) -> tuple[int, ...]:
    """The index of the tap at offset zero along each axis, as Python ints; None is zeros.

    Args:
        where: The public function.
        origin: What came: one index for each axis.
        taps: How many taps there are along each axis.
    """
    origin = (0,) * len(taps) if origin is None else origin
    entries = origin if isinstance(origin, tuple | list) or getattr(origin, "ndim", 0) == 1 else ()
    if len(entries) != len(taps):
        wanted = f"a tuple of one index for each axis, into the taps {tuple(taps)}"
        raise errors.bad_argument(where, "origin", origin, wanted)
    pairs = zip(entries, taps, strict=True)
    return tuple(as_tap(where, f"origin[{i}]", o, k) for i, (o, k) in enumerate(pairs))


def as_tap(where: str, name: str, origin: Any, taps: int) -> int:
    """An index into so many taps as a Python int."""
    return errors.as_int(where, name, origin, f"an index into the {taps} taps", least=0, most=taps - 1, remedy=STATIC)


def as_float_arrays(where: str, name: str, arrays: Any) -> tuple[Any, ...]:
    """A sequence of floating arrays, one or more, as a tuple."""
    try:
        entries = tuple(arrays)
    except TypeError:
        entries = ()
    if not entries:
        raise errors.bad_argument(where, name, arrays, "one array or more in a list", "Each axis has one of its own.")
    named = {f"{name}[{i}]": v for i, v in enumerate(entries)}
    require_dtype(where, named, jnp.floating, "a real floating")
    return entries


def as_counts(where: str, name: str, counts: Any, letters: str, bound: str, most: int) -> Array:
    """Whole numbers from 0 to a bound, one for each row, as int32; their values are checked where they are known.

    Args:
        where: The public function.
        name: The argument.
        counts: What came.
        letters: Its one dimension in the glossary's letters, such as `"(b)"`.
        bound: The name of the bound.
        most: Its value.
    """
    require_arrays(where, **{name: counts})
    require_dtype(where, {name: counts}, jnp.integer, "an integer")
    if counts.ndim != 1:
        raise errors.bad_shape(where, name, counts, f"of rank 1, {letters}", "Each row has a number of its own.")
    if (values := known_values(counts)) is not None and len(values):
        least, largest = int(values.min()), int(values.max())
        if least < 0 or largest > most:
            got, wanted = least if least < 0 else largest, f"from 0 to {bound} = {most}"
            raise errors.bad_argument(where, name, got, wanted, f"{bound} bounds all of them.")
    return jnp.asarray(counts, jnp.int32)


def require_arrays(where: str, **arrays: Any) -> None:
    """Checks that arguments are arrays; None, lists and numbers are not."""
    for name, v in arrays.items():
        if not hasattr(v, "dtype") or not hasattr(v, "ndim"):
            raise errors.bad_shape(where, name, v, "an array", f"Make it one: jnp.asarray({name}).")


def require_dtype(where: str, arrays: Mapping[str, Any], kind: type, wanted: str) -> None:
    """Checks that every array that is given (not None) has a dtype of one kind.

    Args:
        where: The public function.
        arrays: The arrays by argument name.
        kind: An abstract dtype such as `jnp.floating`.
        wanted: The kind in words.
    """
    for name, v in arrays.items():
        if v is not None and not (hasattr(v, "dtype") and jnp.issubdtype(v.dtype, kind)):
            raise errors.bad_shape(
                where, name, v, f"{wanted} array", f"Convert it, e.g. with jnp.asarray({name}, ...)."
            )


def require_shape(where: str, name: str, v: Any, letters: str, sizes: Sequence[int], remedy: str = "") -> None:
    """Checks one array's shape.

    Args:
        where: The public function.
        name: The argument.
        v: The array, or None for an optional argument that was left out.
        letters: The dimensions in the glossary's letters, such as `"(b l e)"`.
        sizes: Their sizes.
        remedy: What is likely wrong.
    """
    if v is not None and tuple(v.shape) != tuple(sizes):
        raise errors.bad_shape(where, name, v, f"{letters} = {tuple(sizes)}", remedy)


def known_values(values: Any) -> np.ndarray | None:
    """The values of an array, on the host, or None while a function is traced and where other processes hold some.

    >>> known_values(jnp.arange(3)).tolist()
    [0, 1, 2]
    """
    if isinstance(values, jax.core.Tracer) or (isinstance(values, jax.Array) and not values.is_fully_addressable):
        return None
    return np.asarray(values)
