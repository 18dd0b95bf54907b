"""The public selective scan: checks, choice of implementation, documentation."""

import jax
import jax.numpy as jnp

from ssmjax import _compat, errors
from ssmjax.ops import _checks, _half, backend
from ssmjax.ops.selective_scan import pallas_mosaic, pallas_triton, xla
from ssmjax.ops.selective_scan.call import ScanCall
from ssmjax.ops.selective_scan.reference import selective_scan_reference
from ssmjax.shapes import Array, Float, Inexact, SegmentIds, State

__all__ = ["scan_call", "selective_scan"]

IMPLEMENTATIONS = {
    "pallas_mosaic": backend.Form(pallas_mosaic.selective_scan_mosaic, pallas_mosaic.supports, "9.0"),
    "xla": backend.Form(xla.selective_scan_xla, xla.supports),
    "pallas_triton": backend.Form(pallas_triton.selective_scan_triton, pallas_triton.supports, "8.0", newer=True),
    "reference": backend.Form(selective_scan_reference),
}
"""In order of preference. Each is a function of a `ScanCall`, with what it does not take. The Triton kernels come after
XLA, which takes all that they take: they run where they are named, until they have been timed on such a GPU."""


@_half.rounded_once("x")
def selective_scan(
    x: Float[Array, "b l e"],
    dt: Float[Array, "b l e"],
    A: Inexact[Array, "e n"],
    B: Inexact[Array, "b l n"] | Inexact[Array, "b l g n"] | Inexact[Array, "e n"],
    C: Inexact[Array, "b l n"] | Inexact[Array, "b l g n"] | Inexact[Array, "e n"],
    D: Float[Array, "e"] | None = None,
    z: Float[Array, "b l e"] | None = None,
    dt_bias: Float[Array, "e"] | None = None,
    dt_softplus: bool = False,
    h0: State | None = None,
    segment_ids: SegmentIds | None = None,
    reverse: bool = False,
    return_state: bool = False,
    implementation: str = "auto",
) -> Float[jax.Array, "b l e"] | tuple[Float[jax.Array, "b l e"], State]:
    """Computes the selective state space scan of Mamba.

    With `dt = softplus(dt + dt_bias)` where asked for,

        h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,    y_t = <C_t, h_t> + D x_t,    y_t *= silu(z_t),

    equation 2 of Gu & Dao 2023 (arXiv:2312.00752), made selective as in their algorithm 2: zero-order hold for A
    (equation 4), Euler for B. With a complex A the state is complex and `y_t = 2 Re <C_t, h_t> + D x_t`: of each
    conjugate pair one is kept.

    Everything is computed in float32 whatever the inputs' dtype (in float64 if `x` is float64) and is deterministic.
    All array arguments but `segment_ids` have gradients, and so has the returned state. The backward pass keeps the
    inputs and one state per chunk of about 64 steps, nothing of size (b l e n).
    On a Hopper GPU a kernel runs it (n <= 64, real A, B and C per step); `implementation="pallas_triton"` is one for
    GPUs of compute capability 8.0 and newer (n <= 32), which no call takes unasked. Reverse mode only;
    `implementation="reference"` has forward mode, too.

    Args:
        x: Input, (b l e), any float dtype. Channels are last; the CUDA op of the paper takes (b e l).
        dt: Step sizes, (b l e), before bias and softplus.
        A: Decay rates, (e n), negative (negative real part) for a stable system; real or complex.
        B: Input matrix: per step (b l n), per step and group of e/g channels (b l g n), or fixed (e n). Complex only
            with a complex A.
        C: Output matrix, in any of the forms of B.
        D: Skip weight, (e).
        z: Gate, (b l e).
        dt_bias: Added to `dt`, (e).
        dt_softplus: Applies softplus to `dt`.
        h0: State before the first step (with `reverse`, after the last), (b e n); zero by default.
        segment_ids: Packed sequences, (b l) int: the state is reset wherever the id differs from the one before
            (with `reverse`, from the one after). `h0` enters the first segment that is met.
        reverse: Runs against time, as if x, dt, B, C and z were flipped along l, and y flipped back.
        return_state: Also returns the last state.
        implementation: The name of one, or "auto"; see `ssmjax.ops.use_implementation`.

    Returns:
        y, (b l e) in the dtype of `x`; with `return_state` a pair of y and the state, (b e n) float32, complex64 with a
        complex A.

    Raises:
        ValueError: An argument has the wrong shape or dtype, or the implementation is unknown.
        NotImplementedError: A named implementation does not take this call.

    >>> import jax.numpy as jnp, ssmjax
    >>> x = dt = jnp.ones((1, 3, 2))
    >>> B = C = jnp.ones((1, 3, 1))
    >>> y, state = ssmjax.ops.selective_scan(x, dt, -jnp.ones((2, 1)), B, C, return_state=True)
    >>> y[0, :, 0].round(3).tolist()
    [1.0, 1.368, 1.503]
    >>> state.shape
    (1, 2, 1)
    """
    _checks.require_arrays("selective_scan", x=x, dt=dt, A=A, B=B, C=C)
    flags = {"dt_softplus": dt_softplus, "reverse": reverse, "return_state": return_state}
    errors.require_flags("selective_scan", **flags)
    _check(x, dt, A, B, C, D, z, dt_bias, h0, segment_ids)
    arrays = jax.tree.map(jnp.asarray, (x, dt, A, B, C, D, z, dt_bias))
    call = ScanCall(*arrays, dt_softplus, h0, segment_ids, reverse, return_state)
    y, state = scan_call(call, implementation)
    return (y, state) if return_state else y


def scan_call(call: ScanCall, implementation: str = "auto") -> tuple[Float[jax.Array, "b l e"], State | None]:
    """`selective_scan` of arguments that are known to be right, as a layer's are: y, and the last state or None."""
    carried = _compat.split_as(jax.tree.map(jnp.asarray, (call.h0, call.segment_ids)), call.x)
    call = call._replace(h0=carried[0], segment_ids=carried[1])
    detail = "xla is sequential on CPU, chunked or sequential by shape elsewhere"
    return backend.dispatch("selective_scan", implementation, IMPLEMENTATIONS, call, detail)


def _check(x, dt, A, B, C, D, z, dt_bias, h0, segment_ids):
    where = "selective_scan"
    real = {"x": x, "dt": dt, "D": D, "z": z, "dt_bias": dt_bias}
    _checks.require_dtype(where, real, jnp.floating, "a real floating")
    _checks.require_dtype(where, {"A": A, "B": B, "C": C, "h0": h0}, jnp.inexact, "a floating or complex")
    _checks.require_dtype(where, {"segment_ids": segment_ids}, jnp.integer, "an integer")
    if x.ndim != 3:
        raise errors.bad_shape(where, "x", x, "of rank 3, (b l e)")
    if A.ndim != 2:
        raise errors.bad_shape(where, "A", A, "of rank 2, (e n)")
    b, l, e = x.shape
    n = A.shape[1]
    hint = ""
    if A.shape[0] != e and A.shape[0] == l:
        hint = "The shapes fit the channels-first layout (b e l) of the original op; here it is x.swapaxes(1, 2)."
    _checks.require_shape(where, "A", A, "(e n)", (e, n), hint)
    for name, v, letters, sizes in (
        ("dt", dt, "(b l e)", (b, l, e)),
        ("z", z, "(b l e)", (b, l, e)),
        ("D", D, "(e)", (e,)),
        ("dt_bias", dt_bias, "(e)", (e,)),
        ("h0", h0, "(b e n)", (b, e, n)),
        ("segment_ids", segment_ids, "(b l)", (b, l)),
    ):
        _checks.require_shape(where, name, v, letters, sizes)
    wanted = f"(b l n) = {(b, l, n)}, (b l g n), or fixed (e n) = {(e, n)}"
    for name, M in (("B", B), ("C", C)):
        g = M.shape[2] if M.ndim == 4 else 1
        if M.shape != {2: (e, n), 3: (b, l, n), 4: (b, l, g, n)}.get(M.ndim):
            channels_first = M.ndim in (3, 4) and M.shape[-1] == l and M.shape[-2] == n
            remedy = "It fits the channels-first layout of the original op; here time is second and n last."
            raise errors.bad_shape(where, name, M, wanted, remedy if channels_first else "")
        if g == 0 or e % g:
            raise errors.bad_shape(where, name, M, f"of a number of groups g that divides e = {e}")
    if B.ndim == C.ndim == 4 and B.shape[2] != C.shape[2]:
        raise errors.bad_shape(where, "C", C, f"of as many groups as B, {B.shape[2]}")
    if not jnp.iscomplexobj(A):
        for name, v in (("B", B), ("C", C), ("h0", h0)):
            if jnp.iscomplexobj(v):
                raise errors.bad_shape(where, name, v, "real when A is real", "Make A complex, or take the real part.")


def _example(key):
    keys = jax.random.split(key, 5)
    x, dt = jax.random.normal(keys[0], (2, 5, 4)), jax.random.uniform(keys[1], (2, 5, 4))
    A = -jax.random.uniform(keys[2], (4, 3), minval=0.5)
    B, C = jax.random.normal(keys[3], (2, 5, 3)), jax.random.normal(keys[4], (2, 5, 3))
    return (x, dt, A, B, C), {"return_state": True}


def _expected(x, dt, A, B, C, return_state):
    del dt, B, C, return_state
    return jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct((x.shape[0], *A.shape), jnp.float32)


backend.register_op(
    "selective_scan", selective_scan, implementations=tuple(IMPLEMENTATIONS), example=_example, expected=_expected
)
