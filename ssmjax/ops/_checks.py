"""Argument checks that the ops share; each failure is one `ValueError` in the voice of `ssmjax.errors`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from ssmjax import errors

__all__ = ["require_arrays", "require_dtype", "require_flags", "require_shape"]


def require_arrays(where: str, **arrays: Any) -> None:
    """Checks that arguments are arrays; None, lists and numbers are not."""
    for name, v in arrays.items():
        if not hasattr(v, "dtype") or not hasattr(v, "ndim"):
            raise errors.bad_shape(where, name, v, "an array", f"Make it one: jnp.asarray({name}).")


def require_flags(where: str, **flags: Any) -> None:
    """Checks that switches are Python bools, which decide what is compiled; under `jax.jit` they must be static."""
    for name, v in flags.items():
        if not isinstance(v, bool):
            remedy = f'Under jax.jit, keep it out of the traced arguments: jax.jit(f, static_argnames="{name}").'
            raise errors.bad_argument(where, name, v, "True or False", remedy)


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
