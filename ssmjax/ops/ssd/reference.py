"""The definition of the state space dual scan: one `lax.scan` over time, nothing saved by hand."""

import jax
import jax.numpy as jnp

from ssmjax import _compat
from ssmjax.ops._numerics.dtypes import real_type

__all__ = ["ssd_reference"]


def ssd_reference(x, dt, A, B, C, D, z, h0, segment_ids, chunk):
    """Returns `y` (b l h p) in the dtype of `x` and the last state (b h p n); `dt` is final, the rest as in `api.ssd`.

    `chunk` is not used: there are no chunks here.
    """
    real = real_type(x)
    (b, l, h, p), n = x.shape, B.shape[-1]
    x, out = x.astype(real), x.dtype
    B, C = (jnp.repeat(M.astype(real), h // M.shape[2], axis=2) for M in (B, C))  # (b l h n)
    reset = _compat.zeros((b, l), bool, x)
    if segment_ids is not None:
        reset = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))

    def step(state, now):
        x, dt, B, C, reset = now
        state = jnp.where(reset[:, None, None, None], 0, state)
        state = jnp.exp(dt * A[None])[..., None, None] * state + (dt[..., None] * x)[..., None] * B[:, :, None]
        return state, (state * C[:, :, None]).sum(-1)

    h0 = _compat.zeros((b, h, p, n), real, x) if h0 is None else h0.astype(real)
    now = tuple(v.swapaxes(0, 1) for v in (x, dt, B, C, reset))
    h0, A, *now = _compat.vary_alike((h0, A.astype(real), *now))
    state, y = jax.lax.scan(step, h0, tuple(now))
    y = y.swapaxes(0, 1)
    if D is not None:
        y = y + x * (D if D.ndim == 2 else D[:, None]).astype(real)[None, None]
    return (y if z is None else y * jax.nn.silu(z.astype(real))).astype(out), state
