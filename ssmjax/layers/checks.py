"""What layers check of the arrays that come, each failure one `ValueError` in the voice of `ssmjax.errors`."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax import errors
from ssmjax.shapes import Array

__all__ = ["check_array", "check_lengths", "check_mask", "check_options", "check_rate", "check_tokens"]


def check_array(where: str, name: str, x: Any, sizes: tuple[int | None, ...], wanted: str, remedy: str = "") -> None:
    """Raises `ValueError` unless `x` is an array with these sizes, of which None is any.

    Args:
        where: The public class, for the message.
        name: The argument.
        x: What came.
        sizes: Of its axes.
        wanted: The same in words.
        remedy: What is likely wrong with an array of other sizes.
    """
    shape = getattr(x, "shape", None)
    if shape is None:
        raise errors.bad_shape(where, name, x, f"an array, {wanted}", f"Make it one: jnp.asarray({name}).")
    if len(shape) != len(sizes) or any(size not in (None, got) for size, got in zip(sizes, shape, strict=True)):
        raise errors.bad_shape(where, name, x, wanted, remedy)


def check_tokens(where: str, u: Any, d_model: int) -> None:
    """Raises `ValueError` unless `u` is (b l d) of real numbers."""
    check_array(where, "u", u, (None, None, d_model), f"(b, l, {d_model})", "Features are last, time is second.")
    if jnp.issubdtype(u.dtype, jnp.complexfloating):
        remedy = "Real and imaginary parts are two features: jnp.concatenate([u.real, u.imag], axis=-1)."
        raise errors.bad_shape(where, "u", u, f"(b, l, {d_model}) of real numbers", remedy)


def check_mask(where: str, mask: Any, shape: tuple[int, ...]) -> None:
    """Raises `ValueError` unless `mask` is None or (b l) of booleans or whole numbers."""
    if mask is None:
        return
    check_array(where, "mask", mask, shape, f"(b, l) = {shape}", "It has one value a token.")
    if not (jnp.issubdtype(mask.dtype, jnp.bool) or jnp.issubdtype(mask.dtype, jnp.integer)):
        remedy = "It tells real tokens from padding: mask > 0.5, say."
        raise errors.bad_shape(where, "mask", mask, "of booleans, or of integers", remedy)


def check_lengths(where: str, lengths: Any, shape: tuple[int, int]) -> None:
    """Raises `ValueError` unless `lengths` is (b) whole numbers from 0 to l, as far as their values are known."""
    b, l = shape
    check_array(where, "lengths", lengths, (b,), f"(b) = ({b},)", "It has one value a sequence.")
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise errors.bad_shape(where, "lengths", lengths, "of integers", "It counts tokens.")
    if isinstance(lengths, jax.core.Tracer):
        return
    values = np.asarray(lengths)
    if b and not (0 <= values.min() and values.max() <= l):
        wanted = f"from 0 to {l}, the length of the inputs"
        raise errors.bad_argument(where, "lengths", values.tolist(), wanted, "It counts the real tokens of each row.")


def check_options(where: str, kernel: type, options: Mapping[str, Any]) -> None:
    """Raises `TypeError`, as Python does, for an option that a kernel does not have."""
    known = sorted(set(inspect.signature(kernel.__init__).parameters) - {"self", "d_model"})
    for name in options:
        if name not in known:
            raise TypeError(f"{where}: {errors.unknown_name('option', name, known)}")


def check_rate(where: str, rate: float | Array) -> None:
    """Raises `ValueError` unless the rate is one positive finite number, as far as its value is known."""
    if np.ndim(rate) != 0:
        remedy = "It is one number for all sequences of a batch; `jax.vmap` has one for each."
        raise errors.bad_shape(where, "rate", rate, "a number", remedy)
    if isinstance(rate, jax.core.Tracer):
        return
    number = isinstance(rate, int | float | np.number | np.ndarray | jax.Array)
    if not number or not 0 < float(rate) < math.inf:
        got = float(rate) if number else rate
        raise errors.bad_argument(where, "rate", got, "positive and finite", "It multiplies the step sizes.")
