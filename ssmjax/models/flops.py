"""Floating-point operations of a function, counted in its jaxpr.

XLA's own `cost_analysis` counts the body of a loop once; here a scan over 24 layers counts 24 times.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["count_flops"]

_FREE = {
    "broadcast_in_dim",
    "concatenate",
    "convert_element_type",
    "copy",
    "dynamic_slice",
    "dynamic_update_slice",
    "gather",
    "iota",
    "pad",
    "reshape",
    "rev",
    "select_n",
    "slice",
    "split",
    "squeeze",
    "stop_gradient",
    "transpose",
}
"""Primitives that move numbers and compute none."""


def count_flops(f: Callable[..., Any], *args: Any) -> int:
    """An estimate of the floating-point operations of `f(*args)`; nothing is computed.

    A multiply-add counts as two, any other elementwise operation as one for each element of its output, and a reduction
    as one for each element of its input. Of the branches of a conditional the dearest counts; a `while` loop of unknown
    length counts once.

    Args:
        f: A function of arrays.
        *args: Arrays or `jax.ShapeDtypeStruct`s.

    >>> import jax, jax.numpy as jnp
    >>> count_flops(jnp.dot, jax.ShapeDtypeStruct((2, 3), "float32"), jax.ShapeDtypeStruct((3, 4), "float32"))
    48
    """
    return _count(jax.make_jaxpr(f)(*args).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(map(_count_equation, jaxpr.eqns))


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    inner = [_count(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if inner:
        return max(inner) if name == "cond" else sum(inner) * params.get("length", 1)
    out = equation.outvars[0].aval
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * math.prod(out.shape) * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape  # all of it, but for one output channel, meets each output element
        return 2 * math.prod(out.shape) * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    if name in _FREE or not jnp.issubdtype(out.dtype, jnp.inexact):
        return 0
    reduces = name.startswith(("reduce_", "cum"))
    return math.prod((equation.invars[0] if reduces else equation.outvars[0]).aval.shape)


def _inner_jaxprs(params: dict[str, Any]) -> list[Any]:
    """The jaxprs of a call, a loop or a conditional. A custom rule's derivatives are functions, so not among them."""
    values = [v for value in params.values() for v in (value if isinstance(value, (tuple, list)) else (value,))]
    jaxprs = [getattr(value, "jaxpr", value) for value in values]
    return [jaxpr for jaxpr in jaxprs if hasattr(jaxpr, "eqns")]
