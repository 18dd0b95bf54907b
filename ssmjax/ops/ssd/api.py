"""The public state space dual scan: checks, choice of implementation, documentation."""

import jax
import jax.numpy as jnp

from ssmjax import _compat, errors
from ssmjax.ops import _checks, _half, backend
from ssmjax.ops._numerics.dtypes import real_type
from ssmjax.ops.ssd.reference import ssd_reference
from ssmjax.ops.ssd.xla import ssd_xla
from ssmjax.shapes import Array, Float, SegmentIds

__all__ = ["final_step_size", "ssd"]

IMPLEMENTATIONS = {"xla": ssd_xla, "reference": ssd_reference}


@_half.rounded_once("x")
def ssd(
    x: Float[Array, "b l h p"],
    dt: Float[Array, "b l h"],
    A: Float[Array, "h"],
    B: Float[Array, "b l g n"],
    C: Float[Array, "b l g n"],
    D: Float[Array, "h"] | Float[Array, "h p"] | None = None,
    z: Float[Array, "b l h p"] | None = None,
    dt_bias: Float[Array, "h"] | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] | None = None,
    h0: Float[Array, "b h p n"] | None = None,
    segment_ids: SegmentIds | None = None,
    chunk: int = 256,
    return_state: bool = False,
    implementation: str = "auto",
) -> Float[jax.Array, "b l h p"] | tuple[Float[jax.Array, "b l h p"], Float[jax.Array, "b h p n"]]:
    r"""Computes the state space dual scan of Mamba-2: a matrix-valued state with one decay for each head.

    With `dt = clip(softplus(dt + dt_bias), *dt_limit)` where asked for,

        S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T,    y_t = S_t C_t + D x_t,    y_t *= silu(z_t)

    (Dao & Gu 2024, arXiv:2405.21060, section 7 and listing 1). It is computed in chunks of matrix products.

    The state, step sizes, decays and sums are float32 (float64 if `x` is); on a GPU and a TPU the factors of the
    products are in the dtype of `x`. The op is deterministic. All array arguments but `segment_ids` have gradients,
    and so has the returned state. The backward pass keeps the inputs and one state a chunk. Reverse mode only;
    `implementation="reference"` has forward mode, too.

    Args:
        x: Input, (b l h p): heads of width p.
        dt: Step sizes, (b l h), before bias, softplus and limits.
        A: Decay rate of each head, (h), negative for a stable system.
        B: Input vectors, (b l g n), each for a group of h/g heads.
        C: Output vectors, (b l g n).
        D: Skip weight of each head (h), or of each channel (h p).
        z: Gate, (b l h p).
        dt_bias: Added to `dt`, (h).
        dt_softplus: Applies softplus to `dt`.
        dt_limit: The least and the largest step size; steps outside are clipped, and have no gradient.
        h0: State before the first step, (b h p n); zero by default.
        segment_ids: Packed sequences, (b l) int: the state is reset wherever the id differs from the one before. `h0`
            enters the first segment.
        chunk: About how many steps a chunk has. It changes speed and memory, not the result.
        return_state: Also returns the last state.
        implementation: The name of one, or "auto"; see `ssmjax.ops.use_implementation`.

    Returns:
        y, (b l h p) in the dtype of `x`; with `return_state` a pair of y and the state, (b h p n) float32.

    Raises:
        ValueError: An argument has the wrong shape or dtype, or the implementation is unknown.
        NotImplementedError: A named implementation does not take this call.

    >>> import jax.numpy as jnp, ssmjax
    >>> x, dt = jnp.ones((1, 3, 2, 4)), jnp.ones((1, 3, 2))
    >>> B = C = jnp.ones((1, 3, 1, 1))
    >>> y, state = ssmjax.ops.ssd(x, dt, -jnp.ones(2), B, C, return_state=True)
    >>> y[0, :, 0, 0].round(3).tolist(), state.shape
    ([1.0, 1.368, 1.503], (1, 2, 4, 1))
    """
    _checks.require_arrays("ssd", x=x, dt=dt, A=A, B=B, C=C)
    errors.require_flags("ssd", dt_softplus=dt_softplus, return_state=return_state)
    chunk = errors.as_int("ssd", "chunk", chunk, least=1, remedy=_checks.STATIC)
    _check(x, dt, A, B, C, D, z, dt_bias, h0, segment_ids)
    available = dict.fromkeys(IMPLEMENTATIONS)
    if 0 in x.shape or 0 in B.shape:
        available["xla"] = "an axis has size 0"
    chosen = backend.resolve("ssd", implementation, available)
    arrays = (x, dt, A, B, C, D, z, dt_bias, h0, segment_ids)
    x, dt, A, B, C, D, z, dt_bias, h0, segment_ids = jax.tree.map(jnp.asarray, arrays)
    h0, segment_ids = _compat.split_as((h0, segment_ids), x)
    dt = final_step_size("ssd", dt, dt_bias, dt_softplus, dt_limit, real_type(x))
    y, state = IMPLEMENTATIONS[chosen](x, dt, A, B, C, D, z, h0, segment_ids, chunk)
    return (y, state) if return_state else y


def final_step_size(where, dt, dt_bias, dt_softplus, dt_limit, real) -> jax.Array:
    """`clip(softplus(dt + dt_bias), *dt_limit)`, of which each part may be left out.

    >>> import jax.numpy as jnp
    >>> final_step_size("ssd", jnp.array([1.0, 5.0]), None, False, (2.0, 3.0), jnp.float32).tolist()
    [2.0, 3.0]
    """
    dt = dt.astype(real)
    dt = dt if dt_bias is None else dt + dt_bias.astype(real)[(None,) * (dt.ndim - dt_bias.ndim)]
    dt = jax.nn.softplus(dt) if dt_softplus else dt
    if dt_limit is None:
        return dt
    least, largest = dt_limit
    if not 0 <= least <= largest:
        raise errors.bad_argument(where, "dt_limit", dt_limit, "(least, largest), at least 0 and increasing")
    return jnp.clip(dt, least, largest)


def _check(x, dt, A, B, C, D, z, dt_bias, h0, segment_ids):
    named = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias, "h0": h0}
    _checks.require_dtype("ssd", named, jnp.floating, "a real floating")
    _checks.require_dtype("ssd", {"segment_ids": segment_ids}, jnp.integer, "an integer")
    if x.ndim != 4:
        raise errors.bad_shape("ssd", "x", x, "of rank 4, (b l h p)", "Cut the channels into heads.")
    if B.ndim != 4:
        raise errors.bad_shape("ssd", "B", B, "of rank 4, (b l g n)", "One group? Add its axis: B[:, :, None].")
    (b, l, h, p), (g, n) = x.shape, B.shape[2:]
    for name, v, letters, sizes in (
        ("dt", dt, "(b l h)", (b, l, h)),
        ("A", A, "(h)", (h,)),
        ("B", B, "(b l g n)", (b, l, g, n)),
        ("C", C, "(b l g n)", (b, l, g, n)),
        ("D", D, "(h p)" if getattr(D, "ndim", 1) == 2 else "(h)", (h, p) if getattr(D, "ndim", 1) == 2 else (h,)),
        ("z", z, "(b l h p)", (b, l, h, p)),
        ("dt_bias", dt_bias, "(h)", (h,)),
        ("h0", h0, "(b h p n)", (b, h, p, n)),
        ("segment_ids", segment_ids, "(b l)", (b, l)),
    ):
        _checks.require_shape("ssd", name, v, letters, sizes)
    if g == 0 or h % g:
        raise errors.bad_shape("ssd", "B", B, f"of a number of groups g that divides h = {h}")


def _example(key):
    keys = jax.random.split(key, 5)
    x, dt = jax.random.normal(keys[0], (2, 5, 4, 3)), jax.random.uniform(keys[1], (2, 5, 4))
    A = -jax.random.uniform(keys[2], (4,), minval=0.5)
    B, C = jax.random.normal(keys[3], (2, 5, 2, 6)), jax.random.normal(keys[4], (2, 5, 2, 6))
    return (x, dt, A, B, C), {"return_state": True}


def _expected(x, dt, A, B, C, return_state):
    del dt, A, C, return_state
    b, _, h, p = x.shape
    return jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct((b, h, p, B.shape[-1]), jnp.float32)


backend.register_op("ssd", ssd, implementations=tuple(IMPLEMENTATIONS), example=_example, expected=_expected)
