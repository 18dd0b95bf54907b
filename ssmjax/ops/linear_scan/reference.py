"""The definition of the linear scan."""

import jax
import jax.numpy as jnp

from ssmjax import _compat
from ssmjax.ops._numerics.dtypes import number_type

__all__ = ["linear_scan_reference"]


def linear_scan_reference(a, x, h0, reverse):
    """Returns every state `h` (b l *f) and the last one (b *f), at least float32; arguments as in `api.linear_scan`."""
    number = number_type(a, x)

    def step(h, now):
        a, x = now
        h = a * h + x
        return h, h

    a = jnp.broadcast_to(a, x.shape) if a.ndim == x.ndim else jnp.broadcast_to(a[None, None], x.shape)
    h0 = _compat.zeros((x.shape[0], *x.shape[2:]), number, x) if h0 is None else h0.astype(number)
    a, x, h0 = _compat.vary_alike((a, x, h0))  # for shard_map, where a loop's carry keeps its type
    state, h = jax.lax.scan(step, h0, (jnp.moveaxis(a, 1, 0), jnp.moveaxis(x, 1, 0)), reverse=reverse)
    return jnp.moveaxis(h, 0, 1), state
