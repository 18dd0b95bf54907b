"""The state space dual scan in XLA: matrix products in chunks, see `chunked`; skip and gate are elementwise."""

import jax
import jax.numpy as jnp

from ssmjax import _compat
from ssmjax.ops._numerics.dtypes import real_type
from ssmjax.ops.ssd.chunked import DecayingSum, decaying_sum

__all__ = ["ssd_xla"]


def ssd_xla(x, dt, A, B, C, D, z, h0, segment_ids, chunk):
    """Returns `y` (b l h p) in the dtype of `x` and the last state (b h p n); `dt` is final, the rest as in `api.ssd`.

    The gradients of B and C are rounded to their dtype once a chunk.
    """
    real = real_type(x)
    (b, _, h, p), n = x.shape, B.shape[-1]
    h0 = _compat.zeros((b, h, p, n), real, x) if h0 is None else h0.astype(real)
    reset = None
    if segment_ids is not None:
        reset = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    log_a = dt * A.astype(real)[None, None]
    y, state = decaying_sum(DecayingSum(x[:, :, None], dt, log_a, B[:, :, None], C[:, :, None], h0, reset), chunk)
    y = y[:, :, 0]
    if D is not None:
        y = y + x.astype(real) * (D if D.ndim == 2 else D[:, None]).astype(real)[None, None]
    return (y if z is None else y * jax.nn.silu(z.astype(real))).astype(x.dtype), state
