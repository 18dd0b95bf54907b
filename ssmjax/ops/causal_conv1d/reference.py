"""The definition of the causal depthwise convolution: one sum over the taps at every position, in float32."""

import jax
import jax.numpy as jnp

from ssmjax import _compat
from ssmjax.ops import _half
from ssmjax.ops._numerics.dtypes import real_type

__all__ = ["causal_conv1d_reference"]


def causal_conv1d_reference(x, weight, bias, activation, state, segment_ids, reverse):
    """Returns `y` (b l e) in the dtype of `x`; arguments as in `api.causal_conv1d`."""
    if reverse:
        x, state, segment_ids = (None if v is None else v[:, ::-1] for v in (x, state, segment_ids))
        y = causal_conv1d_reference(x, weight, bias, activation, state, segment_ids, False)
        return y[:, ::-1]
    real = real_type(x)
    (b, l, e), k = x.shape, weight.shape[0]
    state = _compat.zeros((b, k - 1, e), real, x) if state is None else state.astype(real)
    ids = _compat.zeros((b, l), jnp.int32, x) if segment_ids is None else segment_ids
    run = jnp.cumsum(ids != jnp.concatenate([ids[:, :1], ids[:, :-1]], axis=1), axis=1)
    window = jnp.concatenate([state, x.astype(real)], axis=1)
    run = jnp.concatenate([_compat.zeros((b, k - 1), run.dtype, x), run], axis=1)

    def at(t):  # the taps of position t are rows t ... t + k - 1 of the window
        taps = jax.lax.dynamic_slice_in_dim(window, t, k, axis=1)
        runs = jax.lax.dynamic_slice_in_dim(run, t, k, axis=1)
        same = runs == runs[:, -1:]
        return (jnp.where(same[..., None], taps, 0) * weight.astype(real)[None]).sum(1)

    y = jax.vmap(at, out_axes=1)(jnp.arange(l))
    y = y if bias is None else y + bias.astype(real)[None, None]
    return _half.narrow(jax.nn.silu(y) if activation == "silu" else y, x.dtype)
