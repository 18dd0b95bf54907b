"""One token of a selective scan, with its state: what generation runs at each step."""

import jax
import jax.numpy as jnp

from ssmjax import errors
from ssmjax.ops import _checks, backend
from ssmjax.ops._numerics.dtypes import real_type
from ssmjax.ops.ssd.api import final_step_size
from ssmjax.shapes import Array, Float

__all__ = ["selective_state_update"]


def selective_state_update(
    state: Float[Array, "b h p n"] | Float[Array, "b e n"],
    x: Float[Array, "b h p"] | Float[Array, "b e"],
    dt: Float[Array, "..."],
    A: Float[Array, "..."],
    B: Float[Array, "b g n"] | Float[Array, "b n"],
    C: Float[Array, "b g n"] | Float[Array, "b n"],
    D: Float[Array, "..."] | None = None,
    z: Float[Array, "b h p"] | Float[Array, "b e"] | None = None,
    dt_bias: Float[Array, "..."] | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] | None = None,
) -> tuple[Float[jax.Array, "b h p"] | Float[jax.Array, "b e"], Float[jax.Array, "..."]]:
    """Computes one step of `selective_scan` or of `ssd`.

        state = exp(dt A) state + dt x B,    y = state C + D x,    y *= silu(z)

    (Gu & Dao 2023, arXiv:2312.00752, equation 2a; Dao & Gu 2024, arXiv:2405.21060, section 7). Everything is computed
    in float32, whatever the dtype of the inputs; the new state has the dtype of `state`.

    Args:
        state: The state before the step, (b h p n) with heads as in Mamba-2, or (b e n) as in Mamba.
        x: Input, (b h p) or (b e).
        dt: Step sizes before bias, softplus and limits: (b h p), or (b h) where the channels of a head share one; or
            (b e).
        A: Decay rates: (h p n), or (h) where the channels and states of a head share one; or (e n).
        B: Input vectors: (b g n), each for a group of h/g heads; or (b n).
        C: Output vectors, as B.
        D: Skip weights: (h p) or (h); or (e).
        z: Gate, as `x`.
        dt_bias: Added to `dt`: (h p) or (h); or (e).
        dt_softplus: Applies softplus to `dt`.
        dt_limit: The least and the largest step size.

    Returns:
        y, as `x`, and the new state.

    Raises:
        ValueError: An argument has the wrong shape.

    >>> import jax.numpy as jnp, ssmjax
    >>> x, B = jnp.ones((1, 2)), jnp.ones((1, 3))
    >>> y, state = ssmjax.ops.selective_state_update(jnp.ones((1, 2, 3)), x, x, -jnp.ones((2, 3)), B, B)
    >>> y.round(3).tolist(), state.shape
    ([[4.104, 4.104]], (1, 2, 3))
    """
    _checks.require_arrays("selective_state_update", state=state, x=x, dt=dt, A=A, B=B, C=C)
    errors.require_flags("selective_state_update", dt_softplus=dt_softplus)
    heads = x.ndim == 3
    _check(heads, state, x, dt, A, B, C, D, z, dt_bias)
    real = real_type(x)
    dt = dt.astype(real)
    if heads:  # a dt and a bias of one entry a head beside those of one a channel
        dt, dt_bias, D = (_with_channels(v, rank) for v, rank in ((dt, 3), (dt_bias, 2), (D, 2)))  # type: ignore[assignment]
        A = A if A.ndim == 3 else A[:, None, None]
        B, C = (jnp.repeat(M, x.shape[1] // M.shape[1], axis=1)[:, :, None] for M in (B, C))
    else:
        B, C = B[:, None], C[:, None]
    dt = final_step_size("selective_state_update", dt, dt_bias, dt_softplus, dt_limit, real)[..., None]
    wide = x.astype(real)
    new = jnp.exp(dt * A.astype(real)[None]) * state.astype(real) + dt * wide[..., None] * B.astype(real)
    y = (new * C.astype(real)).sum(-1)
    y = y if D is None else y + wide * D.astype(real)[None]
    y = y if z is None else y * jax.nn.silu(z.astype(real))
    return y.astype(x.dtype), new.astype(state.dtype)


def _with_channels(v, rank):
    return v if v is None or v.ndim == rank else v[..., None]


def _check(heads, state, x, dt, A, B, C, D, z, dt_bias):
    where = "selective_state_update"
    named = {"state": state, "x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    _checks.require_dtype(where, named, jnp.floating, "a real floating")
    if x.ndim not in (2, 3):
        raise errors.bad_shape(where, "x", x, "(b h p) or (b e), one token a row")
    if state.ndim != x.ndim + 1:
        raise errors.bad_shape(where, "state", state, "(b h p n) for an x of (b h p), (b e n) for one of (b e)")
    n, channels = state.shape[-1], tuple(x.shape[1:])
    _checks.require_shape(where, "state", state, "(b h p n)" if heads else "(b e n)", (*x.shape, n))
    _checks.require_shape(where, "z", z, "as x", x.shape)
    _checks.require_shape(where, "C", C, "as B", B.shape)
    for name, v, lead, trail in (("dt", dt, x.shape[:1], ()), ("A", A, (), (n,)), ("D", D, (), ())):
        _check_channels(where, name, v, lead, channels, trail)
    _check_channels(where, "dt_bias", dt_bias, (), channels, ())
    if heads and (B.ndim != 3 or B.shape[1] == 0 or x.shape[1] % B.shape[1]):
        raise errors.bad_shape(where, "B", B, f"(b g n) with groups g that divide h = {x.shape[1]}")
    g = B.shape[1:2] if heads else ()
    _checks.require_shape(where, "B", B, "(b g n)" if heads else "(b n)", (x.shape[0], *g, n))


def _check_channels(where, name, v, lead, channels, trail):
    """An array of one entry a channel, or of one a head."""
    if v is None or tuple(v.shape) == (*lead, *channels, *trail):
        return
    short = (*lead, *channels[:1])
    if len(channels) == 1 or tuple(v.shape) != short:
        wanted = f"{(*lead, *channels, *trail)}" + (f", or {short}" if len(channels) > 1 else "")
        raise errors.bad_shape(where, name, v, wanted)


def _example(key):
    keys = jax.random.split(key, 6)
    state, x = jax.random.normal(keys[0], (2, 4, 3, 5)), jax.random.normal(keys[1], (2, 4, 3))
    dt, A = jax.random.uniform(keys[2], (2, 4)), -jax.random.uniform(keys[3], (4,), minval=0.5)
    return (state, x, dt, A, jax.random.normal(keys[4], (2, 2, 5)), jax.random.normal(keys[5], (2, 2, 5))), {}


def _expected(state, x, *rest):
    del rest
    return jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(state.shape, state.dtype)


backend.register_op(
    "selective_state_update", selective_state_update, implementations=(), example=_example, expected=_expected
)
