"""The public kernels: checks, choice of implementation, documentation."""

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax import errors
from ssmjax.ops import _checks, backend
from ssmjax.ops.kernels_s4 import reference
from ssmjax.ops.kernels_s4.discretize import TRANSITIONS, check_rule, check_steps
from ssmjax.ops.kernels_s4.dplr import dplr_kernel_xla
from ssmjax.ops.kernels_s4.matrices import check_dplr
from ssmjax.ops.kernels_s4.pairs import as_pair, from_pair
from ssmjax.ops.kernels_s4.powers import squares
from ssmjax.ops.kernels_s4.softmax import softmax_kernel_xla
from ssmjax.ops.kernels_s4.vandermonde import kernel, state
from ssmjax.shapes import Array, Complex, Float, Inexact, Int

__all__ = ["dplr_kernel", "softmax_kernel", "vandermonde", "vandermonde_state"]

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
    """The convolution kernel of a diagonal state space, of which one mode of each conjugate pair is given.

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
        implementation: See `ssmjax.ops.use_implementation`.

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
    dt, C, A = _check(where, {"C": C}, A, dt, rule)
    flat = C.reshape(-1, *A.shape)
    if _choose(where, implementation, C, A) == "reference":
        K = reference.vandermonde_reference(flat, A, dt, length, rule)
    else:
        K = kernel(as_pair(flat), _squares(A, dt, rule, length), length)
    return jnp.swapaxes(K, -1, -2).reshape(*C.shape[:-2], length, A.shape[0])


def vandermonde_state(
    u: Float[Array, "b l h"],
    A: Inexact[Array, "h n"],
    *,
    dt: Float[Array, "h"] | Float[Array, "h n"] | None = None,
    rule: str = "zoh",
    implementation: str = "auto",
) -> Inexact[jax.Array, "b h n"]:
    """The state of a diagonal state space after a sequence, from zero and with an input vector of ones.

        s_n = sum_l A_bar_n^(L-1-l) u_l,

    the transpose of `vandermonde`, with its cost and accuracy. To carry a state over a chunk that is convolved,
    multiply by `B_bar` and add `A_bar^L` times the state before.

    Args:
        u: Input, (b l h).
        A: Continuous diagonal, (h n), real or complex.
        dt: Step sizes, (h) or (h n); 1 by default.
        rule: As in `vandermonde`.
        implementation: See `ssmjax.ops.use_implementation`.

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
    dt, A = _check(where, {}, A.astype(jnp.promote_types(_precision(u, A), A.dtype)), dt, rule)
    u = jnp.swapaxes(u, -1, -2).astype(dt.dtype)
    if _choose(where, implementation, u, A) == "reference":
        return reference.vandermonde_state_reference(u, A, dt, rule)
    s = state(u[..., ::-1], _squares(A, dt, rule, u.shape[-1]))
    return from_pair(s) if jnp.iscomplexobj(A) else s[0]


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
    """The kernel of DSS, whose modes are normalized over the length.

        K_l = Re sum_n W_n e^(l dt A_n) / sum_j e^(j dt A_n),    l, j < length,

    DSS-softmax of proposition 1 of https://arxiv.org/abs/2203.14343, with `W` divided by `A` beforehand, and without
    the factor 2: all modes are given. A mode may grow (Re A > 0); nothing overflows. Accuracy and derivatives are those
    of `vandermonde`; the cost is that of twice as many weights, since any mode may come to grow.

    Args:
        W: Weights, (*b h n), real or complex.
        A: Continuous diagonal, (h n), real or complex.
        length: How many values l.
        dt: Step sizes, (h) or (h n); 1 by default.
        epsilon: The reciprocal of the sum is conj(sum) / (|sum|^2 + epsilon), which is bounded where the sum vanishes.
            One number, or one a mode, (h n); not negative.
        over: Lengths of several kernels, (r) int, in place of `length` above: zeros follow. They may be traced.
        implementation: See `ssmjax.ops.use_implementation`.

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
    dt, W, A = _check(where, {"W": W}, A, dt, "zoh")
    _check_epsilon(where, epsilon, A)
    if over is not None:
        over = _checks.as_counts(where, "over", over, "(r)", "length", length)
    flat = W.reshape(-1, *A.shape)
    if _choose(where, implementation, W, A) == "reference":
        K = reference.softmax_kernel_reference(flat, A, dt, length, epsilon, over)
    else:
        K = softmax_kernel_xla(as_pair(flat), as_pair(A), dt, length, epsilon, over)
    rows = () if over is None else over.shape
    return jnp.swapaxes(K, -1, -2).reshape(*rows, *W.shape[:-2], length, A.shape[0])


def dplr_kernel(
    A: Complex[Array, "h n"],
    P: Complex[Array, "r h n"],
    B: Complex[Array, "*m h n"],
    C: Complex[Array, "*c h n"],
    dt: Float[Array, "h"],
    length: int,
    *,
    implementation: str = "auto",
) -> Float[jax.Array, "... l h"]:
    """The convolution kernel of S4, with a diagonal plus low-rank state matrix, one mode of each conjugate pair given.

        K_l = 2 Re C A_bar^l B_bar,    A_bar, B_bar by the bilinear rule from A - sum_r P_r P_r*,

    algorithm 1 of S4 (https://arxiv.org/abs/2111.00396), for the `length` with which `C` was made: `C` here is the
    paper's `C~ = C (I - A_bar^length)`, which S4 trains and stores. The roots of unity enter as `2 i tan(pi k / L)`, in
    real arithmetic; in float32 the error is a few 1e-7 of the largest value, at a length of 16,384 too.

    Deterministic, in about `25 h l n` operations at rank 1. Nothing of size (h n l) is formed, forward or backward:
    blocks of frequencies are computed one after the other, and once more in the backward pass.

    Args:
        A: Diagonal, (h n), with Re A < 0.
        P: Low-rank part, (r h n), of any rank.
        B: Input vectors, (*m h n). With `s / dt + A s / 2` as one, `A` the whole matrix, the kernel is `C A_bar^(l+1)
            s`: the outputs that a carried state `s` adds.
        C: `C~`, (*c h n).
        dt: Step sizes, (h).
        length: The length of the kernel and of `C~`.
        implementation: See `ssmjax.ops.use_implementation`.

    Returns:
        K, (*m *c l h): a kernel for every input vector and every channel.

    Raises:
        ValueError: A shape, a dtype or the length is wrong, or a step is negative.
        NotImplementedError: A named implementation does not take this call.

    >>> import jax.numpy as jnp, ssmjax.ops
    >>> A, P, B = jnp.full((1, 1), -1 + 1j), jnp.full((1, 1, 1), 0.5 + 0j), jnp.ones((1, 1), complex)
    >>> ssmjax.ops.dplr_kernel(A, P, B, B, jnp.array([0.5]), 4)[:, 0].round(3).tolist()
    [0.646, 0.208, 0.004, -0.058]
    """
    where = "dplr_kernel"
    length = _checks.as_length(where, length)
    check_dplr(where, A, P, dt, B=B, C=C)
    lead = *B.shape[:-2], *C.shape[:-2]
    number = _precision(A, P, B, C, dt)
    dt, A, P = jnp.asarray(dt, number), _cast(A, number), _cast(P, number)
    B, C = (_cast(v, number).reshape(-1, *A.shape) for v in (B, C))
    if _choose(where, implementation, A, B, C) == "reference":
        K = reference.dplr_kernel_reference(A, P, B, C, dt, length)
    else:
        steps = jnp.broadcast_to(dt[:, None], A.shape)
        K = dplr_kernel_xla(*(as_pair(v) for v in (A, P, B, C)), steps, length)
    return jnp.swapaxes(K, -1, -2).reshape(*lead, length, A.shape[0])


def _squares(A, dt, rule, length):
    return squares(as_pair(A), dt, rule, max(1, (length - 1).bit_length()))


def _choose(where, implementation, *arrays):
    empty = "an axis has size 0" if any(0 in v.shape for v in arrays) else None
    return backend.resolve(where, implementation, {"xla": empty, "reference": None})


def _check(where, arrays, A, dt, rule):
    """The checks of the diagonal kernels. Returns dt (h n), the arrays and A, all of one precision."""
    check_rule(where, rule, TRANSITIONS)
    _checks.require_arrays(where, **arrays, A=A)
    _checks.require_dtype(where, {**arrays, "A": A}, jnp.inexact, "a floating or complex")
    if A.ndim != 2:
        raise errors.bad_shape(where, "A", A, "of rank 2, (h n)", "Repeat a shared A: jnp.broadcast_to(A, (h, n)).")
    for name, v in arrays.items():
        if v.shape[-2:] != A.shape:
            raise errors.bad_shape(where, name, v, f"(*b h n) with the (h n) of A, {tuple(A.shape)}")
    if dt is not None:
        check_steps(where, dt, {"(h)": A.shape[:1], "(h n)": A.shape})
    number = _precision(*arrays.values(), A, *(() if dt is None else (dt,)))
    dt = jnp.ones(A.shape, number) if dt is None else jnp.asarray(dt, number)
    dt = jnp.broadcast_to(dt[:, None] if dt.ndim == 1 else dt, A.shape)
    return dt, *(_cast(v, number) for v in (*arrays.values(), A))


def _check_epsilon(where, epsilon, A):
    remedy = "It keeps the reciprocal of the sum bounded: 1e-7, say."
    if not hasattr(epsilon, "shape"):
        errors.as_nonnegative(where, "epsilon", epsilon, remedy=remedy)
        return
    if epsilon.shape not in ((), A.shape) or jnp.iscomplexobj(epsilon):
        raise errors.bad_shape(where, "epsilon", epsilon, f"a real number, or (h n) = {A.shape} of them", remedy)
    if (values := _checks.known_values(epsilon)) is not None and not (np.min(values, initial=0) >= 0):
        raise errors.bad_argument(where, "epsilon", float(values.min()), "at least 0", remedy)


def _precision(*arrays):
    return jnp.promote_types(jnp.result_type(*(v.real.dtype for v in arrays)), jnp.float32)


def _cast(v, number):
    return jnp.asarray(v, jnp.promote_types(number, jnp.complex64) if jnp.iscomplexobj(v) else number)


def _example(key):
    keys = jax.random.split(key, 6)
    C, A = (jax.lax.complex(*jax.random.normal(k, (2, 3, 4))) for k in keys[:2])
    return C, A - 3, jax.random.uniform(keys[2], (3,), minval=0.1), jax.random.normal(keys[3], (2, 5, 3))


def _example_kernel(key):
    C, A, dt, _ = _example(key)
    return (C, A, 7), {"dt": dt}


def _example_state(key):
    _, A, dt, u = _example(key)
    return (u, A.real), {"dt": dt}


def _example_dplr(key):
    C, A, dt, _ = _example(key)
    return (A, 0.1 * C[None], C, C, dt, 7), {}


def _expected_kernel(C, A, length, dt):
    del A, dt
    return jax.ShapeDtypeStruct((length, C.shape[0]), jnp.float32)


def _expected_state(u, A, dt):
    del dt
    return jax.ShapeDtypeStruct((u.shape[0], *A.shape), A.dtype)


def _expected_dplr(A, P, B, C, dt, length):
    del P, B, C, dt
    return jax.ShapeDtypeStruct((length, A.shape[0]), jnp.float32)


for _function, _calls, _results in (
    (vandermonde, _example_kernel, _expected_kernel),
    (vandermonde_state, _example_state, _expected_state),
    (softmax_kernel, _example_kernel, _expected_kernel),
    (dplr_kernel, _example_dplr, _expected_dplr),
):
    backend.register_op(
        _function.__name__, _function, implementations=IMPLEMENTATIONS, example=_calls, expected=_results
    )
