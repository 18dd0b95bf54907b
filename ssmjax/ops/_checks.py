"""Argument checks that the ops share; each failure is one `ValueError` in the voice of `ssmjax.errors`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax import errors
from ssmjax.ops._numerics.dtypes import real_type
from ssmjax.shapes import Array

__all__ = [
    "RULES",
    "STATIC",
    "TRANSITIONS",
    "Rule",
    "as_counts",
    "as_diagonal",
    "as_float_arrays",
    "as_length",
    "as_number",
    "as_origin",
    "as_tap",
    "known_values",
    "require_arrays",
    "require_dtype",
    "require_rule",
    "require_shape",
    "require_step",
    "require_steps",
]

Rule = Literal["zoh", "bilinear", "euler", "impulse", "dirac", "async"]
"""The names that a `rule=` argument takes; see `ssmjax.ops.discretize`."""

RULES: tuple[str, ...] = get_args(Rule)

TRANSITIONS = tuple(rule for rule in RULES if rule != "async")
"""The rules that need one step size, whose `A_bar` a power or a kernel is made of."""

STATIC = "It decides what is compiled: a Python int, static under jax.jit."
"""The remedy for a length or an index that is none."""


def as_length(where: str, length: Any) -> int:
    """Returns a length, at least 1, as a Python int."""
    return errors.as_int(where, "length", length, least=1, remedy=STATIC)


def as_origin(where: str, origin: Any, taps: Sequence[int]) -> tuple[int, ...]:
    """Returns the index of the tap at offset zero along each axis, as Python ints; None is zeros.

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
    """Returns an index into so many taps as a Python int."""
    return errors.as_int(where, name, origin, f"an index into the {taps} taps", least=0, most=taps - 1, remedy=STATIC)


def as_float_arrays(where: str, name: str, arrays: Any) -> tuple[Any, ...]:
    """Returns a sequence of floating arrays, one or more, as a tuple."""
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


def require_rule(where: str, rule: str, allowed: tuple[str, ...] = RULES) -> None:
    """Raises `ValueError` unless `rule` is one of the allowed names."""
    if rule not in allowed:
        raise ValueError(f"{where}: {errors.unknown_name('rule', rule, allowed)}")


def require_steps(where: str, dt: Any, forms: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `ValueError` unless `dt` is an array of step sizes in one of some shapes, by their letters."""
    if getattr(dt, "shape", None) not in forms.values():
        wanted = " or ".join(f"{letters} = {sizes}" for letters, sizes in forms.items())
        remedy = f"One step size for all is jnp.full({next(iter(forms.values()))}, dt)."
        raise errors.bad_shape(where, "dt", dt, wanted, remedy)
    require_dtype(where, {"dt": dt}, jnp.floating, "a real floating")
    require_step(where, "dt", dt)


def require_step(where: str, name: str, dt: Array | None) -> None:
    """Raises `ValueError` if a step is negative, as far as its value is known: not while a function is traced."""
    values = None if dt is None or not dt.size else known_values(dt)
    if values is None:
        return
    least = values.min()  # not in JAX, which would trace it into a function that is being compiled
    if not least >= 0:  # NaN, too
        remedy = "A step size is kept positive by its parametrization, such as exp(log_dt) or softplus."
        raise errors.bad_argument(where, name, float(least), "positive", remedy)


def as_diagonal(where: str, arrays: Mapping[str, Any], A: Any, dt: Any, rule: str) -> tuple[jax.Array, ...]:
    """Returns the step sizes (h n), the arrays (*b h n) and the diagonal A (h n) of a kernel, all of one precision.

    Args:
        where: The public function.
        arrays: The weights by argument name.
        A: The diagonal.
        dt: The step sizes, (h) or (h n), or None for ones.
        rule: One of `TRANSITIONS`.
    """
    require_rule(where, rule, TRANSITIONS)
    require_arrays(where, **arrays, A=A)
    require_dtype(where, {**arrays, "A": A}, jnp.inexact, "a floating or complex")
    if A.ndim != 2:
        raise errors.bad_shape(where, "A", A, "of rank 2, (h n)", "Repeat a shared A: jnp.broadcast_to(A, (h, n)).")
    for name, v in arrays.items():
        if v.shape[-2:] != A.shape:
            raise errors.bad_shape(where, name, v, f"(*b h n) with the (h n) of A, {tuple(A.shape)}")
    if dt is not None:
        require_steps(where, dt, {"(h)": A.shape[:1], "(h n)": A.shape})
    number = real_type(*arrays.values(), A, *(() if dt is None else (dt,)))
    dt = jnp.ones(A.shape, number) if dt is None else jnp.asarray(dt, number)
    dt = jnp.broadcast_to(dt[:, None] if dt.ndim == 1 else dt, A.shape)
    return dt, *(as_number(v, number) for v in (*arrays.values(), A))


def as_number(v: Any, real: np.dtype) -> jax.Array:
    """Returns an array in a precision: of this real dtype, or of the complex one that belongs to it."""
    complex_type = np.complex128 if real == np.float64 else np.complex64
    return jnp.asarray(v, complex_type if jnp.iscomplexobj(v) else real)
