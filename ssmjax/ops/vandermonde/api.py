"""The public kernel of a diagonal state space and the state that it leaves: checks, choice of implementation."""

import jax
import jax.numpy as jnp

from ssmjax import errors
from ssmjax.ops import _checks, backend
from ssmjax.ops._numerics.dtypes import real_type
from ssmjax.ops._numerics.powers import squares
from ssmjax.ops.vandermonde import reference
from ssmjax.ops.vandermonde.xla import kernel, state
from ssmjax.shapes import Array, Float, Inexact

__all__ = ["diagonal_taps", "vandermonde", "vandermonde_state"]

IMPLEMENTATIONS = ("xla", "reference")


def vandermonde(
    C: Inexact[Array, "*b h n"],
    A: Inexact[Array, "h n"],
    length: int,
    *,
    dt: Float[Array, "h"] | Float[Array, "h n"] | None = None,
    rule: str = "zoh",
    implementation: str = "auto",
) -> Float[jax.Array, "*b l h"]:
    """Computes the convolution kernel of a diagonal state space, of which one mode of each conjugate pair is given.

        K_l = 2 Re sum_n C_n A_bar_n^l,    A_bar as `discretize(A, dt, rule)` has it,

    equation 7 of S4D (https://arxiv.org/abs/2206.11893). `C` is the product of the output vector, the input vector and
    the gain of the discretization. `A` and `dt` are taken apart, not as `exp(dt A)`, because a rounding error in that
    grows with l; so the error is a few 1e-7 of the largest value at any length.

    Computed in float32 (in float64 from float64), deterministic, in about `4 h l n` operations; nothing of size (h n l)
    is formed, forward or backward. `C`, `A` and `dt` have derivatives of either mode and of any order.

    Args:
        C: Weights, (*b h n), real or complex.
        A: Continuous diagonal, (h n), real or complex.
        length: How many values l.
        dt: Step sizes, (h) or (h n); 1 by default.
        rule: "zoh", "impulse" or "dirac" (all A_bar = exp(dt A)), "bilinear" or "euler".
        implementation: The name of one, or "auto"; see `ssmjax.ops.use_implementation`.

    Returns:
        K, (*b l h).

    Raises:
        ValueError: A shape, a dtype, the length or the rule is wrong, or a step is negative.
        NotImplementedError: A named implementation does not take this call.

    >>> import jax.numpy as jnp, ssmjax.ops
    >>> ssmjax.ops.vandermonde(jnp.full((1, 1), 0.5), jnp.full((1, 1), -1.0), 3)[:, 0].round(3).tolist()
    [1.0, 0.368, 0.135]
    """
    where = "vandermonde"
    length = _checks.as_length(where, length)
    dt, C, A = _checks.as_diagonal(where, {"C": C}, A, dt, rule)
    return diagonal_taps(C, A, dt, length, rule, implementation)


def diagonal_taps(
    C: Inexact[Array, "*b h n"],
    A: Inexact[Array, "h n"],
    dt: Float[Array, "h n"],
    length: int,
    rule: str,
    implementation: str = "auto",
) -> Float[jax.Array, "*b l h"]:
    """`vandermonde` of arguments of one precision that are known to be right, as those of a layer are."""
    flat = C.reshape(-1, *A.shape)
    available = {"xla": None, "reference": None}
    if backend.resolve("vandermonde", implementation, available, arrays=(C, A)) == "reference":
        K = reference.vandermonde_reference(flat, A, dt, length, rule)
    else:
        K = kernel(
            (flat.real, flat.imag), squares((A.real, A.imag), dt, rule, max(1, (length - 1).bit_length())), length
        )
    return jnp.swapaxes(K, -1, -2).reshape(*C.shape[:-2], length, A.shape[0])


def vandermonde_state(
    u: Float[Array, "b l h"],
    A: Inexact[Array, "h n"],
    *,
    dt: Float[Array, "h"] | Float[Array, "h n"] | None = None,
    rule: str = "zoh",
    implementation: str = "auto",
) -> Inexact[jax.Array, "b h n"]:
    """Computes the state of a diagonal state space after a sequence, from zero and with an input vector of ones.

        s_n = sum_l A_bar_n^(L-1-l) u_l,

    the transpose of `vandermonde`, with its cost and accuracy. To carry a state over a chunk that is convolved,
    multiply by `B_bar` and add `A_bar^L` times the state before.

    Args:
        u: Input, (b l h).
        A: Continuous diagonal, (h n), real or complex.
        dt: Step sizes, (h) or (h n); 1 by default.
        rule: The discretization, as in `vandermonde`.
        implementation: The name of one, or "auto"; see `ssmjax.ops.use_implementation`.

    Returns:
        s, (b h n), float32 or complex64 as A is real or complex (float64, complex128 from float64).

    Raises:
        ValueError: A shape, a dtype or the rule is wrong, or a step is negative.
        NotImplementedError: A named implementation does not take this call.

    >>> import jax.numpy as jnp, ssmjax.ops
    >>> ssmjax.ops.vandermonde_state(jnp.ones((1, 3, 1)), jnp.full((1, 1), -1.0)).round(3).tolist()
    [[[1.503]]]
    """
    where = "vandermonde_state"
    _checks.require_arrays(where, u=u, A=A)
    _checks.require_dtype(where, {"u": u}, jnp.floating, "a real floating")
    _checks.require_dtype(where, {"A": A}, jnp.inexact, "a floating or complex")
    if u.ndim != 3 or A.ndim != 2 or u.shape[-1] != A.shape[0]:
        raise errors.bad_shape(where, "u", u, f"(b l h) with the h of A {tuple(A.shape)}", "Features are last.")
    dt, A = _checks.as_diagonal(where, {}, _checks.as_number(A, real_type(u, A)), dt, rule)
    u = jnp.swapaxes(u, -1, -2).astype(dt.dtype)
    if backend.resolve(where, implementation, {"xla": None, "reference": None}, arrays=(u, A)) == "reference":
        return reference.vandermonde_state_reference(u, A, dt, rule)
    s = state(u[..., ::-1], squares((A.real, A.imag), dt, rule, max(1, (u.shape[-1] - 1).bit_length())))
    return jax.lax.complex(*s) if jnp.iscomplexobj(A) else s[0]


def example(key):
    """C (2 h n), A (h n), dt (h) and an input, for an example of an op."""
    keys = jax.random.split(key, 6)
    C, A = (jax.lax.complex(*jax.random.normal(k, (2, 3, 4))) for k in keys[:2])
    return C, A - 3, jax.random.uniform(keys[2], (3,), minval=0.1), jax.random.normal(keys[3], (2, 5, 3))


def _example_kernel(key):
    C, A, dt, _ = example(key)
    return (C, A, 7), {"dt": dt}


def _example_state(key):
    _, A, dt, u = example(key)
    return (u, A.real), {"dt": dt}


def _expected_kernel(C, A, length, dt):
    del A, dt
    return jax.ShapeDtypeStruct((length, C.shape[0]), jnp.float32)


def _expected_state(u, A, dt):
    del dt
    return jax.ShapeDtypeStruct((u.shape[0], *A.shape), A.dtype)


for _function, _calls, _results in (
    (vandermonde, _example_kernel, _expected_kernel),
    (vandermonde_state, _example_state, _expected_state),
):
    backend.register_op(
        _function.__name__, _function, implementations=IMPLEMENTATIONS, example=_calls, expected=_results
    )
