"""float16 into float32 and back: its largest number is 65,504, which sums reach."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
from jax.typing import DTypeLike

from ssmjax.shapes import Array

__all__ = ["narrow", "rounded_once", "widen"]

Op = TypeVar("Op", bound=Callable[..., Any])


def widen(x: Array) -> Array:
    """Returns a float16 array in float32, and any other as it is."""
    return x.astype(jnp.float32) if x.dtype == jnp.float16 else x


def narrow(x: Array, dtype: DTypeLike) -> Array:
    """Rounds to a dtype. In float16 a number beyond the largest one becomes that one, as nothing can be made of inf."""
    if jnp.dtype(dtype) == jnp.float16:
        largest = float(jnp.finfo(jnp.float16).max)
        x = jnp.clip(x, -largest, largest)
    return x.astype(dtype)


def rounded_once(*names: str) -> Callable[[Op], Op]:
    """Makes an op whose arrays of these names are float16 compute in float32, and round its result once.

    Args:
        *names: The arguments that decide the dtype of the result, which is the first one if there are several.
    """

    def decorate(op: Op) -> Op:
        parameters = inspect.signature(op).parameters.items()
        order = [name for name, parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]

        @functools.wraps(op)
        def call(*args: Any, **options: Any) -> Any:
            given = {**dict(zip(order, args, strict=False)), **options}
            half = all(getattr(given.get(name), "dtype", None) == jnp.float16 for name in names)
            if not half or len(args) > len(order):
                return op(*args, **options)
            result = op(**{**given, **{name: jnp.asarray(given[name], jnp.float32) for name in names}})
            if isinstance(result, tuple):
                return narrow(result[0], jnp.float16), *result[1:]
            return narrow(result, jnp.float16)

        return call

    return decorate
