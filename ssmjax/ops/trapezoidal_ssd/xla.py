r"""Mamba-3's scan in XLA, as one decaying sum in chunks.

The product `x_s B_s` enters the state twice: at its own step with `blend_s dt_s`, and at the next one, before that
step's decay, with `(1 - blend_{s+1}) dt_{s+1}`. All later steps see it with the sum of both, so the state is a decaying
sum with that scale, and only the output at step s itself has to be corrected, for what has not yet come.
"""

import jax.numpy as jnp

from ssmjax.ops._numerics.dtypes import real_type
from ssmjax.ops.ssd.chunked import DecayingSum, decaying_sum

__all__ = ["trapezoidal_ssd_xla"]


def trapezoidal_ssd_xla(x, dt, log_a, blend, B, C, state, segment_ids, chunk):
    """Returns `y` (b l r h p) float32 and the last `ssm` (b h p n); arguments as in `api.trapezoidal_ssd`."""
    real = real_type(x)
    dt, blend = dt.astype(real), blend.astype(real)
    early = (1 - blend) * dt  # what the step before enters with
    reset = None
    if segment_ids is not None:
        reset = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
        early = jnp.where(reset[..., None], 0, early)
    coming = jnp.pad(early[:, 1:], ((0, 0), (0, 1), (0, 0)))
    last = jnp.einsum("brhp,brhn->bhpn", state.x.astype(real), state.B.astype(real), precision="highest")
    h0 = state.ssm.astype(real) + early[:, 0, :, None, None] * last
    y, ssm = decaying_sum(DecayingSum(x, blend * dt + coming, log_a.astype(real), B, C, h0, reset), chunk)
    now = jnp.einsum("blrhn,blshn->blrsh", C.astype(real), B.astype(real), precision="highest")
    now = jnp.einsum("blrsh,blshp->blrhp", now, x.astype(real), precision="highest")
    return y - coming[:, :, None, :, None] * now, ssm
