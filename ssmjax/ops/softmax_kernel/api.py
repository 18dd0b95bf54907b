"""The public kernel of DSS: checks, choice of implementation, documentation."""

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax import errors
from ssmjax.ops import _checks, backend
from ssmjax.ops.softmax_kernel.reference import softmax_kernel_reference
from ssmjax.ops.softmax_kernel.xla import softmax_kernel_xla
from ssmjax.ops.vandermonde.api import example
from ssmjax.shapes import Array, Float, Inexact, Int

__all__ = ["softmax_kernel"]


def softmax_kernel(
    W: Inexact[Array, "*b h n"],
    A: Inexact[Array, "h n"],
    length: int,
    *,
    dt: Float[Array, "h"] | Float[Array, "h n"] | None = None,
    epsilon: float | Float[Array, "h n"] = 1e-7,
    over: Int[Array, " r"] | None = None,
    implementation: str = "auto",
) -> Float[jax.Array, "... l h"]:
    """Computes the kernel of DSS, whose modes are normalized over the length.

        K_l = Re sum_n W_n e^(l dt A_n) / sum_j e^(j dt A_n),    l, j < length,

    DSS-softmax of proposition 1 of https://arxiv.org/abs/2203.14343, with `W` divided by `A` beforehand, and without
    the factor 2: all modes are given. A mode may grow (Re A > 0); nothing overflows. Accuracy and derivatives are those
    of `vandermonde`; the cost is that of twice as many weights, since any mode may come to grow.

    Args:
        W: Weights, (*b h n), real or complex.
        A: Continuous diagonal, (h n), real or complex.
        length: How many values l.
        dt: Step sizes, (h) or (h n); 1 by default.
        epsilon: The reciprocal of the sum is `conj(sum) / (|sum|^2 + epsilon)`, bounded where the sum vanishes.
            One number, or one a mode, (h n); not negative.
        over: Lengths of several kernels, (r) int, in place of `length` above: zeros follow. They may be traced.
        implementation: The name of one, or "auto"; see `ssmjax.ops.use_implementation`.

    Returns:
        K, (*b l h), or (r *b l h) with `over`.

    Raises:
        ValueError: A shape, a dtype or the length is wrong, a step or `epsilon` is negative, or a number of `over` is
            known to be negative or more than `length`.
        NotImplementedError: A named implementation does not take this call.

    >>> import jax.numpy as jnp, ssmjax.ops
    >>> ssmjax.ops.softmax_kernel(jnp.ones((1, 1)), jnp.full((1, 1), -1.0), 3)[:, 0].round(3).tolist()
    [0.665, 0.245, 0.09]
    """
    where = "softmax_kernel"
    length = _checks.as_length(where, length)
    dt, W, A = _checks.as_diagonal(where, {"W": W}, A, dt, "zoh")
    _check_epsilon(where, epsilon, A)
    if over is not None:
        over = _checks.as_counts(where, "over", over, "(r)", "length", length)
    flat = W.reshape(-1, *A.shape)
    if backend.resolve(where, implementation, {"xla": None, "reference": None}, arrays=(W, A)) == "reference":
        K = softmax_kernel_reference(flat, A, dt, length, epsilon, over)
    else:
        K = softmax_kernel_xla((flat.real, flat.imag), (A.real, A.imag), dt, length, epsilon, over)
    rows = () if over is None else over.shape
    return jnp.swapaxes(K, -1, -2).reshape(*rows, *W.shape[:-2], length, A.shape[0])


def _check_epsilon(where, epsilon, A):
    remedy = "It keeps the reciprocal of the sum bounded: 1e-7, say."
    if not hasattr(epsilon, "shape"):
        errors.as_nonnegative(where, "epsilon", epsilon, remedy=remedy)
        return
    if epsilon.shape not in ((), A.shape) or jnp.iscomplexobj(epsilon):
        raise errors.bad_shape(where, "epsilon", epsilon, f"a real number, or (h n) = {A.shape} of them", remedy)
    if (values := _checks.known_values(epsilon)) is not None and not (np.min(values, initial=0) >= 0):
        raise errors.bad_argument(where, "epsilon", float(values.min()), "at least 0", remedy)


def _example_kernel(key):
    C, A, dt, _ = example(key)
    return (C, A, 7), {"dt": dt}


def _expected_kernel(C, A, length, dt):
    del A, dt
    return jax.ShapeDtypeStruct((length, C.shape[0]), jnp.float32)


backend.register_op(
    "softmax_kernel",
    softmax_kernel,
    implementations=("xla", "reference"),
    example=_example_kernel,
    expected=_expected_kernel,
)
