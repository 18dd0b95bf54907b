"""The public scan of Mamba-3: checks, choice of implementation, documentation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmjax import _compat, errors
from ssmjax.ops import _checks, _half, backend
from ssmjax.ops._numerics.dtypes import real_type
from ssmjax.ops.trapezoidal_ssd.reference import trapezoidal_ssd_reference
from ssmjax.ops.trapezoidal_ssd.xla import trapezoidal_ssd_xla
from ssmjax.shapes import Array, Float, SegmentIds

__all__ = ["TrapezoidalState", "trapezoidal_ssd"]

IMPLEMENTATIONS = {"xla": trapezoidal_ssd_xla, "reference": trapezoidal_ssd_reference}


class TrapezoidalState(NamedTuple):
    """What the scan of Mamba-3 remembers.

    Attributes:
        ssm: (b h p n), the state.
        x: (b r h p), the last input.
        B: (b r h n), the last input vector.
    """

    ssm: jax.Array
    x: jax.Array
    B: jax.Array


@_half.rounded_once("x")
def trapezoidal_ssd(
    x: Float[Array, "b l r h p"],
    dt: Float[Array, "b l h"],
    log_a: Float[Array, "b l h"],
    blend: Float[Array, "b l h"],
    B: Float[Array, "b l r h n"],
    C: Float[Array, "b l r h n"],
    state: TrapezoidalState | None = None,
    segment_ids: SegmentIds | None = None,
    chunk: int = 64,
    return_state: bool = False,
    implementation: str = "auto",
) -> Float[jax.Array, "b l r h p"] | tuple[Float[jax.Array, "b l r h p"], TrapezoidalState]:
    r"""Computes the scan of Mamba-3: a decaying matrix state, fed by the trapezoidal rule and by inputs of rank r.

        S_t = a_t (S_{t-1} + (1 - blend_t) dt_t sum_r x_{t-1} B_{t-1}^T) + blend_t dt_t sum_r x_t B_t^T
        y_t = S_t C_t        for each rank

    (Mamba-3, arXiv:2603.15569: the exponential-trapezoidal rule, and its multi-input, multi-output form). With `blend`
    one and r = 1 it is the scan of `ssd` with B and C for each head.

    Sums, decays and the state are float32 (float64 if `x` is); on a GPU and a TPU the factors of the products are in
    the dtype of `x`. All array arguments but `segment_ids` have gradients, and so has the returned state. The backward
    pass keeps the inputs and one state a chunk.

    Args:
        x: Inputs, (b l r h p): r of each head and step, p wide.
        dt: Step sizes, (b l h).
        log_a: The logarithms of the decays, `dt A`, (b l h), at most 0.
        blend: How much of a step's input enters at its end, from 0 to 1, (b l h); the rest of the step sees the input
            before.
        B: Input vectors, (b l r h n).
        C: Output vectors, (b l r h n).
        state: What came before; None is nothing.
        segment_ids: Packed sequences, (b l) int: the state is reset wherever the id differs from the one before.
            `state` enters the first segment.
        chunk: About how many steps a chunk has. It changes speed and memory, not the result.
        return_state: Also returns the state after the last step.
        implementation: The name of one, or "auto"; see `ssmjax.ops.use_implementation`.

    Returns:
        y, (b l r h p) float32; with `return_state` a pair of y and the state, whose `ssm` is float32.

    Raises:
        ValueError: An argument has the wrong shape or dtype, or the implementation is unknown.
        NotImplementedError: A named implementation does not take this call.

    >>> import jax.numpy as jnp, ssmjax
    >>> x = B = C = jnp.ones((1, 3, 1, 2, 1))
    >>> one = jnp.ones((1, 3, 2))
    >>> ssmjax.ops.trapezoidal_ssd(x, one, -one, 0.5 * one, B, C)[0, :, 0, 0, 0].round(3).tolist()
    [0.5, 0.868, 1.003]
    """
    where = "trapezoidal_ssd"
    _checks.require_arrays(where, x=x, dt=dt, log_a=log_a, blend=blend, B=B, C=C)
    errors.require_flags(where, return_state=return_state)
    chunk = errors.as_int(where, "chunk", chunk, least=1, remedy=_checks.STATIC)
    named = {"x": x, "dt": dt, "log_a": log_a, "blend": blend, "B": B, "C": C}
    _checks.require_dtype(where, named, jnp.floating, "a real floating")
    _checks.require_dtype(where, {"segment_ids": segment_ids}, jnp.integer, "an integer")
    if x.ndim != 5:
        raise errors.bad_shape(where, "x", x, "of rank 5, (b l r h p)", "Inputs of one rank? x[:, :, None].")
    (b, l, r, h, p), n = x.shape, B.shape[-1]
    for name in ("dt", "log_a", "blend"):
        _checks.require_shape(where, name, named[name], "(b l h)", (b, l, h))
    for name in ("B", "C"):
        _checks.require_shape(where, name, named[name], "(b l r h n)", (b, l, r, h, n))
    _checks.require_shape(where, "segment_ids", segment_ids, "(b l)", (b, l))
    if state is None:
        zeros = _compat.zeros((b, h, p, n), real_type(x), x)
        last = _compat.zeros((b, r, h, p), x.dtype, x), _compat.zeros((b, r, h, n), B.dtype, x)
        state = TrapezoidalState(zeros, *last)
    for name, v, sizes in zip(("ssm", "x", "B"), state, ((b, h, p, n), (b, r, h, p), (b, r, h, n)), strict=True):
        _checks.require_shape(where, f"state.{name}", v, "(b h p n)" if name == "ssm" else f"of {name}", sizes)
    available = dict.fromkeys(IMPLEMENTATIONS)
    if 0 in x.shape or 0 in B.shape:
        available["xla"] = "an axis has size 0"
    chosen = backend.resolve(where, implementation, available)
    arrays = jax.tree.map(jnp.asarray, (x, dt, log_a, blend, B, C, state, segment_ids))
    y, ssm = IMPLEMENTATIONS[chosen](*arrays, chunk)
    if not return_state:
        return y
    return y, TrapezoidalState(ssm, *((state.x, state.B) if l == 0 else (arrays[0][:, -1], arrays[4][:, -1])))


def _example(key):
    keys = jax.random.split(key, 6)
    x, dt = jax.random.normal(keys[0], (2, 5, 2, 4, 3)), jax.random.uniform(keys[1], (2, 5, 4))
    B, C = jax.random.normal(keys[2], (2, 5, 2, 4, 6)), jax.random.normal(keys[3], (2, 5, 2, 4, 6))
    return (x, dt, -jax.random.uniform(keys[4], (2, 5, 4)), jax.random.uniform(keys[5], (2, 5, 4)), B, C), {}


def _expected(x, *rest):
    del rest
    return jax.ShapeDtypeStruct(x.shape, jnp.float32)


backend.register_op(
    "trapezoidal_ssd", trapezoidal_ssd, implementations=tuple(IMPLEMENTATIONS), example=_example, expected=_expected
)
