"""What layers check of the arrays that come, each failure one `ValueError` in the voice of `ssmjax.errors`."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax import errors
from ssmjax.ops._checks import known_values
from ssmjax.shapes import Array

__all__ = [
    "as_float_dtype",
    "as_sizes",
    "check_array",
    "check_call",
    "check_elapsed",
    "check_lengths",
    "check_mask",
    "check_options",
    "check_rate",
    "check_real",
    "check_segment_ids",
    "check_step_range",
    "known_options",
    "refuse_over",
]


TWO_FEATURES = "Real and imaginary parts are two features: jnp.concatenate([u.real, u.imag], axis=-1)."


def as_float_dtype(where: str, dtype: Any) -> np.dtype:
    """Returns the dtype of an output, by whatever name; raises `ValueError` unless it is a floating one.

    >>> as_float_dtype("S5", "float32") == as_float_dtype("S5", jnp.float32)
    True
    """
    try:
        found = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise errors.bad_argument(where, "dtype", dtype, "a floating dtype", "'float32' and 'bfloat16' are usual.")
    return found


def as_sizes(where: str, **sizes: Any) -> tuple[int, ...]:
    """Sizes as Python ints; raises `ValueError` unless each is a whole number of one or more.

    >>> as_sizes("S4D", d_model=8, channels=2)
    (8, 2)
    """
    return tuple(errors.as_int(where, name, size, least=1) for name, size in sizes.items())


def check_array(where: str, name: str, x: Any, sizes: tuple[int | None, ...], wanted: str, remedy: str = "") -> None:
    """Raises `ValueError` unless `x` is an array with these sizes, of which None is any.

    Args:
        where: The public class, for the message.
        name: The argument.
        x: What came.
        sizes: The sizes of its axes, of which None is any.
        wanted: The sizes in words.
        remedy: What is likely wrong with an array of other sizes.
    """
    shape = getattr(x, "shape", None)
    if shape is None:
        raise errors.bad_shape(where, name, x, f"an array, {wanted}", f"Make it one: jnp.asarray({name}).")
    if len(shape) != len(sizes) or any(size not in (None, got) for size, got in zip(sizes, shape, strict=True)):
        raise errors.bad_shape(where, name, x, wanted, remedy)


def check_call(where: str, u: Any, d_model: int, *, mask: Any, segment_ids: Any, rate: Any, return_state: Any) -> None:
    """What the call of a time-invariant mixer checks of its arguments, at once and nowhere else.

    Args:
        where: The public class, for messages.
        u: Must be (b l d) of real numbers.
        d_model: `d`.
        mask: Must be None or (b l), see `check_mask`.
        segment_ids: Must be None or (b l) of integers.
        rate: Must be a positive number, see `check_rate`.
        return_state: Must be True or False.
    """
    errors.require_flags(where, return_state=return_state)
    check_array(where, "u", u, (None, None, d_model), f"(b, l, {d_model})", "Features are last, time is second.")
    if jnp.issubdtype(u.dtype, jnp.complexfloating):
        raise errors.bad_shape(where, "u", u, f"(b, l, {d_model}) of real numbers", TWO_FEATURES)
    if mask is not None:
        check_mask(where, mask, u.shape[:2])
    if segment_ids is not None:
        check_segment_ids(where, segment_ids, u.shape[:2])
    check_rate(where, rate)


def check_real(where: str, name: str, x: Any, shape: str, remedy: str = TWO_FEATURES) -> None:
    """Raises `ValueError` if an array of this shape is complex."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise errors.bad_shape(where, name, x, f"{shape} of real numbers", remedy)


def check_mask(where: str, mask: Any, shape: tuple[int, ...]) -> None:
    """Raises `ValueError` unless `mask` is None or (b l) of booleans or whole numbers."""
    if mask is None:
        return
    check_array(where, "mask", mask, shape, f"(b, l) = {shape}", "It has one value a token.")
    if not (jnp.issubdtype(mask.dtype, jnp.bool) or jnp.issubdtype(mask.dtype, jnp.integer)):
        remedy = "It tells real tokens from padding: mask > 0.5, say."
        raise errors.bad_shape(where, "mask", mask, "of booleans, or of integers", remedy)


def check_segment_ids(where: str, segment_ids: Any, shape: tuple[int, ...]) -> None:
    """Raises `ValueError` unless `segment_ids` is None or (b l) whole numbers; (b) in a step."""
    if segment_ids is None:
        return
    letters = "(b, l)" if len(shape) == 2 else "(b)"
    check_array(where, "segment_ids", segment_ids, shape, f"{letters} = {shape}", "It has one value a token.")
    if not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise errors.bad_shape(where, "segment_ids", segment_ids, "of integers", "A change of id begins a sequence.")


def check_lengths(where: str, lengths: Any, shape: tuple[int, int]) -> None:
    """Raises `ValueError` unless `lengths` is (b) whole numbers from 0 to l, as far as their values are known."""
    b, l = shape
    check_array(where, "lengths", lengths, (b,), f"(b) = ({b},)", "It has one value a sequence.")
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise errors.bad_shape(where, "lengths", lengths, "of integers", "It counts tokens.")
    values = known_values(lengths)
    if values is not None and b and not (0 <= values.min() and values.max() <= l):
        wanted = f"from 0 to {l}, the length of the inputs"
        raise errors.bad_argument(where, "lengths", values.tolist(), wanted, "It counts the real tokens of each row.")


def known_options(*kinds: type) -> set[str]:
    """Returns the names of the keyword arguments of a layer and of its kernel.

    >>> from ssmjax.layers import LRU
    >>> "r_min" in known_options(LRU)
    True
    """
    names = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}
    return names - {"self", "d_model", "rngs", "options"}


def check_options(layer: type, kernel: type, options: Mapping[str, Any]) -> None:
    """Raises `TypeError`, as Python does, for an option that neither a layer nor its kernel has."""
    known = known_options(layer, kernel)
    for name in options:
        if name not in known | {"rngs"}:
            raise TypeError(f"{layer.__name__}: {errors.unknown_name('option', name, sorted(known))}")


def refuse_over(where: str, over: Any) -> None:
    """Raises `ValueError` where a kernel that is not normalized over the length of each sequence is given lengths."""
    if over is not None:
        remedy = "Kernels of several lengths are those of 'softmax' without an l_max."
        raise errors.bad_shape(where, "over", over, "left out of a kernel that is the same for all lengths", remedy)


def check_step_range(where: str, dt_min: Any, dt_max: Any) -> None:
    """Raises `ValueError` unless these are the bounds of the initial step sizes."""
    numbers = all(isinstance(dt, int | float | np.number) for dt in (dt_min, dt_max))
    if not numbers or not 0 < dt_min <= dt_max < math.inf:
        wanted = "positive and increasing"
        raise errors.bad_argument(where, "(dt_min, dt_max)", (dt_min, dt_max), wanted, "0.001 and 0.1 are usual.")


def check_elapsed(where: str, dts: Any, mask: Any) -> None:
    """Raises `ValueError` if a length of a step is negative or not finite, as far as it is known and no padding."""
    values = known_values(dts)
    real = None if mask is None else known_values(mask)
    if values is None or (mask is not None and real is None):
        return
    values = values if real is None else values[real != 0]
    wrong = values[~((values >= 0) & (values < math.inf))]
    if wrong.size:
        remedy = "It is the time that has passed since the previous step."
        raise errors.bad_argument(where, "dts", float(wrong[0]), "finite, and at least 0", remedy)


def check_rate(where: str, rate: float | Array) -> None:
    """Raises `ValueError` unless the rate is one positive finite number, as far as its value is known."""
    if np.ndim(rate) != 0:
        remedy = "It is one number for all sequences of a batch; `jax.vmap` has one for each."
        raise errors.bad_shape(where, "rate", rate, "a number", remedy)
    if isinstance(rate, jax.core.Tracer):
        return
    number = isinstance(rate, int | float | np.number | np.ndarray | jax.Array) and not np.iscomplexobj(rate)
    if not number or not 0 < float(rate) < math.inf:
        got = float(rate) if number else rate
        raise errors.bad_argument(where, "rate", got, "positive and finite", "It multiplies the step sizes.")
