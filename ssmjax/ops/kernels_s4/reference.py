"""The definitions of the kernels of diagonal and of diagonal plus low-rank state spaces."""

import jax
import jax.numpy as jnp

from ssmjax import _compat
from ssmjax.ops.kernels_s4.discretize import discretize
from ssmjax.ops.kernels_s4.matrices import dplr_matrices

__all__ = [
    "dplr_kernel_reference",
    "softmax_kernel_reference",
    "vandermonde_reference",
    "vandermonde_state_reference",
]


def vandermonde_reference(C, A, dt, length, rule):
    """`K_l = 2 Re sum_n C_n A_bar_n^l` (b h l) by repeated products; `C` (b h n), `A`, `dt` (h n)."""
    A_bar = discretize(A, dt, rule)[0][None]
    A_bar, C = _compat.vary_alike((A_bar, C.astype(A_bar.dtype)))  # for shard_map, where a loop's carry keeps its type
    _, K = jax.lax.scan(lambda h, _: (A_bar * h, 2 * h.sum(-1).real), C, length=length)
    return jnp.moveaxis(K, 0, -1)


def vandermonde_state_reference(u, A, dt, rule):
    """The state (b h n) after `h = A_bar h + u_t` for every `u_t` of `u` (b h l)."""
    A_bar = discretize(A, dt, rule)[0][None]
    h = jnp.zeros((u.shape[0], *A.shape), A_bar.dtype)
    A_bar, u, h = _compat.vary_alike((A_bar, u, h))  # for shard_map, where a loop's carry keeps its type
    return jax.lax.scan(lambda h, u: (A_bar * h + u[..., None], None), h, jnp.moveaxis(u, -1, 0))[0]


def softmax_kernel_reference(W, A, dt, length, epsilon, over):
    """`K_l = Re sum_n W_n e^(l dt A_n) / sum_(j < over) e^(j dt A_n)` (r b h l), with all the powers written out.

    If `over` is None it is `length`, for one kernel, (b h l).
    """
    if over is None:
        return _softmax_kernel(W, A, dt, length, epsilon, length)
    return jax.vmap(lambda over: _softmax_kernel(W, A, dt, length, epsilon, over))(over)


def _softmax_kernel(W, A, dt, length, epsilon, over):
    l = jnp.arange(length, dtype=dt.dtype).reshape(1, 1, -1)
    x = jnp.where(l < over, (dt * A)[..., None] * l, 0)
    e = jnp.where(l < over, jnp.exp(x - jnp.max(x.real, axis=-1, keepdims=True)), 0)
    total = jnp.where(over == 0, 1, e.sum(-1, keepdims=True))
    size = total.real**2 + total.imag**2 + jnp.broadcast_to(epsilon, A.shape)[..., None]
    return jnp.einsum("bhn,hnl->bhl", W, e * total.conj() / size).real


def dplr_kernel_reference(A, P, B, C, dt, length):
    """The kernels (m c h l) with the transform `C~ (I - omega A_bar)^-1 B_bar` at the roots of unity, densely."""
    A_bar, B_bar = dplr_matrices(A, P, B, dt)
    eye = jnp.eye(A_bar.shape[-1], dtype=A_bar.dtype)[None]
    omega = jnp.exp(-2j * jnp.pi * jnp.arange(length // 2 + 1) / length).astype(A_bar.dtype)
    states = jax.lax.map(lambda omega: jnp.linalg.solve(eye - omega * A_bar, jnp.moveaxis(B_bar, 0, -1)), omega)
    spectrum = jnp.einsum("chn,khnm->mchk", jnp.concatenate([C, C.conj()], axis=-1), states, precision="highest")
    return jnp.fft.irfft(spectrum, n=length)
