"""The definition of Mamba-3's scan: one `lax.scan` over time, nothing saved by hand."""

import jax
import jax.numpy as jnp

from ssmjax import _compat
from ssmjax.ops._numerics.dtypes import real_type

__all__ = ["trapezoidal_ssd_reference"]


def trapezoidal_ssd_reference(x, dt, log_a, blend, B, C, state, segment_ids, chunk):
    """Returns `y` (b l r h p) float32 and the last `ssm` (b h p n); arguments as in `api.trapezoidal_ssd`.

    `chunk` is not used: there are no chunks here.
    """
    real = real_type(x)
    x, dt, log_a, blend, B, C = (v.astype(real) for v in (x, dt, log_a, blend, B, C))
    reset = _compat.zeros(x.shape[:2], bool, x)
    if segment_ids is not None:
        reset = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))

    def outer(x, B):  # summed over ranks
        return jnp.einsum("brhp,brhn->bhpn", x, B, precision="highest")

    def step(carry, now):
        ssm, last_x, last_B = carry
        x, dt, log_a, blend, B, C, reset = now
        beta, gamma = ((1 - blend) * dt)[..., None, None], (blend * dt)[..., None, None]
        before = jnp.where(reset[:, None, None, None], 0, ssm + beta * outer(last_x, last_B))
        ssm = jnp.exp(log_a)[..., None, None] * before + gamma * outer(x, B)
        return (ssm, x, B), jnp.einsum("bhpn,brhn->brhp", ssm, C, precision="highest")

    now = tuple(v.swapaxes(0, 1) for v in (x, dt, log_a, blend, B, C, reset))
    first = tuple(v.astype(real) for v in (state.ssm, state.x, state.B))
    first, now = _compat.vary_alike((first, now))
    (ssm, _, _), y = jax.lax.scan(step, first, now)
    return y.swapaxes(0, 1), ssm
