"""The linear time-invariant layers as other code bases compute them, in JAX: opponents for the benchmark.

Each is `form(layer, x) -> y` for a layer of ours, whose parameters it reads: Vandermonde and Cauchy products written
out over all modes and times, and complex `associative_scan`.
"""

import jax
import jax.numpy as jnp

from ssmjax import ops

__all__ = ["associative", "dense_cauchy", "dense_vandermonde", "joint_transform"]


def _causal(layer, x, K):
    """The convolution with K (1 l h) by transforms of twice the length, and the skip."""
    l = x.shape[1]
    spectrum = jnp.fft.rfft(x, n=2 * l, axis=1) * jnp.fft.rfft(K, n=2 * l, axis=1)
    return jnp.fft.irfft(spectrum, n=2 * l, axis=1)[:, :l] + layer.D[...][None] * x


def dense_vandermonde(layer, x):
    """S4D with the (h n l) array of powers."""
    A, dt, l = layer.kernel.A(), layer.kernel.step_sizes(), x.shape[1]
    _, B_bar, C = layer.kernel.recurrence()
    powers = jnp.exp((dt * A)[:, :, None] * jnp.arange(l, dtype=jnp.float32)[None, None])
    return _causal(layer, x, 2 * jnp.einsum("chn,hnl->clh", C * B_bar[None], powers).real)


def dense_cauchy(layer, x):
    """S4 of rank 1 with (h n k) arrays of poles against nodes."""
    A, P, B, C, dt = layer.kernel.system()
    l = layer.kernel.l_kernel
    tangent = jnp.tan(jnp.pi * jnp.arange(l // 2 + 1, dtype=jnp.float32) / l)
    z = (2j * tangent)[None, None] / dt[:, None, None]
    plus, minus = 1 / (z - A[:, :, None]), 1 / (z - A.conj()[:, :, None])

    def product(u, v):
        w = u * v
        return jnp.einsum("hn,hnk->hk", w, plus) + jnp.einsum("hn,hnk->hk", w.conj(), minus)

    P = P[0]
    rest = product(C[0], P) * product(P.conj(), B) / (1 + product(P.conj(), P))
    spectrum = (product(C[0], B) - rest) * (1 + 1j * tangent)[None]
    return _causal(layer, x, jnp.fft.irfft(spectrum, n=l)[:, : x.shape[1]].T[None])


def associative(layer, x):
    """S5 and the LRU with a complex `associative_scan` for every sequence."""
    B, (C,), D = layer._matrices()
    decay, gain = layer._discretize(1.0, None)

    def one(u):
        driven = u.astype(jnp.complex64) @ (gain[:, None] * B).T
        combine = lambda p, q: (q[0] * p[0], q[0] * p[1] + q[1])  # noqa: E731
        h = jax.lax.associative_scan(combine, (jnp.broadcast_to(decay, driven.shape), driven))[1]
        return (h @ C.T).real + D[None] * u

    return jax.vmap(one)(x)


def joint_transform(layer, x):
    """S4ND with the kernel over all axes, by a transform over all axes."""
    kernels, origin = layer.axis_kernels(x.shape[1:-1])
    kernels[0] = kernels[0] / layer.trank
    y = ops.fft_conv_nd(x, ops.separable_kernel(kernels), layer.D[...], origin=tuple(origin))
    return jnp.moveaxis(y, 1, -2).reshape(*x.shape[:-1], -1)
