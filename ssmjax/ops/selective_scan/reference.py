"""The definition of the selective scan: one `lax.scan` over time, nothing saved by hand."""

import jax
import jax.numpy as jnp

from ssmjax import _compat
from ssmjax.ops._numerics.dtypes import number_type, real_type
from ssmjax.ops.selective_scan.call import ScanCall

__all__ = ["selective_scan_reference"]


def selective_scan_reference(call: ScanCall):
    """Returns `y` (b l e) in the dtype of `x` and the last state (b e n)."""
    x, dt, A, B, C, D, z, dt_bias, dt_softplus, h0, segment_ids, reverse, _ = call
    real = real_type(x)
    (b, l, e), number = x.shape, number_type(A, x)
    u, dt = x.astype(real), dt.astype(real)
    dt = dt if dt_bias is None else dt + dt_bias.astype(real)[None, None]
    dt = jax.nn.softplus(dt) if dt_softplus else dt

    def at_every_step(M):  # to (l b e n), from (e n), (b l n) or (b l g n)
        if M.ndim == 2:
            return jnp.broadcast_to(M.astype(number), (l, b, *M.shape))
        M = M.astype(number) if M.ndim == 4 else M[:, :, None].astype(number)
        return jnp.repeat(M, e // M.shape[2], axis=2).swapaxes(0, 1)

    reset = _compat.zeros((b, l), bool, x)
    if segment_ids is not None:
        reset = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (0, 1) if reverse else (1, 0)))

    def step(h, now):
        u, dt, B, C, reset = now
        h = jnp.where(reset[:, None, None], 0, h)
        h = jnp.exp(dt[..., None] * A[None]) * h + (dt * u)[..., None] * B
        return h, (2 * (C * h).sum(-1).real if jnp.iscomplexobj(A) else (C * h).sum(-1))

    now = (u.swapaxes(0, 1), dt.swapaxes(0, 1), at_every_step(B), at_every_step(C), reset.T)
    h0 = _compat.zeros((b, *A.shape), number, x) if h0 is None else h0.astype(number)
    h0, A, *now = _compat.vary_alike((h0, A, *now))  # for shard_map, where a loop's carry keeps its type
    state, y = jax.lax.scan(step, h0, now, reverse=reverse)
    y = y.swapaxes(0, 1) + (0 if D is None else u * D.astype(real)[None, None])
    return (y if z is None else y * jax.nn.silu(z.astype(real))).astype(x.dtype), state
