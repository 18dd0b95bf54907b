"""The definitions of the kernel of a diagonal state space, and of the state that a sequence leaves."""

import jax
import jax.numpy as jnp

from ssmjax import _compat
from ssmjax.ops.discretize.api import discretize

__all__ = ["vandermonde_reference", "vandermonde_state_reference"]


def vandermonde_reference(C, A, dt, length, rule):
    """`K_l = 2 Re sum_n C_n A_bar_n^l` (b h l) by repeated products; `C` (b h n), `A`, `dt` (h n)."""
    A_bar = discretize(A, dt, rule)[0][None]
    A_bar, C = _compat.vary_alike((A_bar, C.astype(A_bar.dtype)))  # for shard_map, where a loop's carry keeps its type
    _, K = jax.lax.scan(lambda h, _: (A_bar * h, 2 * h.sum(-1).real), C, length=length)
    return jnp.moveaxis(K, 0, -1)


def vandermonde_state_reference(u, A, dt, rule):
    """The state (b h n) after `h = A_bar h + u_t` for every `u_t` of `u` (b h l)."""
    A_bar = discretize(A, dt, rule)[0][None]
    h = _compat.zeros((u.shape[0], *A.shape), A_bar.dtype, u)
    A_bar, u, h = _compat.vary_alike((A_bar, u, h))  # for shard_map, where a loop's carry keeps its type
    return jax.lax.scan(lambda h, u: (A_bar * h + u[..., None].astype(h.dtype), None), h, jnp.moveaxis(u, -1, 0))[0]
