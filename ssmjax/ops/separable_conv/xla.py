"""The separable convolution, one axis after the other.

Along an axis of length l the convolution with one feature's kernel is a product with a Toeplitz matrix (l l), shared by
the batch and by the other axes. For the lengths of images and videos this dense product is several times faster than
transforms of twice the length; above `LONGEST_DENSE` transforms take over. Every term of the sum costs as much as the
first, so that above `MOST_TERMS` the kernel over all axes is put together after all, and transformed over all axes.
Features come first inside.
"""

import math

import jax
import jax.numpy as jnp

from ssmjax.ops.fft_conv.kernels import separable_kernel
from ssmjax.ops.fft_conv.xla import fft_conv_xla

__all__ = ["separable_conv_xla", "toeplitz"]

LONGEST_DENSE = 256
"""The longest axis along which the product with a Toeplitz matrix is taken: at 512 transforms are as fast on a CPU."""

MOST_TERMS = 4
"""How many terms are convolved with one by one: at 4 the convolution over all axes is as fast on a CPU."""


def separable_conv_xla(
    x: jax.Array,
    kernels: tuple[jax.Array, ...],
    origin: tuple[int, ...],
    *,
    longest_dense: int = LONGEST_DENSE,
    most_terms: int = MOST_TERMS,
) -> jax.Array:
    """(b c *s d); as `reference.separable_conv_reference`."""
    r, c = kernels[0].shape[:2]
    if r > most_terms:
        return fft_conv_xla(x, separable_kernel(kernels), origin)
    y = jnp.moveaxis(x, -1, 0)[:, None]  # (d 1 b *s), then (d r*c b *s)
    for axis, (kernel, o) in enumerate(zip(kernels, origin, strict=True)):
        along = _dense if y.shape[3 + axis] <= longest_dense else _transformed
        y = along(y, kernel.reshape(r * c, *kernel.shape[2:]), 3 + axis, o)
    y = y.reshape(y.shape[0], r, c, *y.shape[2:]).sum(1)
    return jnp.moveaxis(y, (0, 1), (-1, 1))


def _dense(y: jax.Array, kernel: jax.Array, axis: int, origin: int) -> jax.Array:
    """Returns the convolution of (d 1|m b *s) along one axis with kernels (m k d), by Toeplitz matrices."""
    matrix = toeplitz(jnp.moveaxis(kernel, -1, 0), y.shape[axis], origin)  # (d m out in)
    before, after = y.shape[3:axis], y.shape[axis + 1 :]
    # The batch stays an axis, and one group of axes is joined at a time: of a batch split over an explicit mesh, jax
    # knows no other reshape.
    y = y.reshape(*y.shape[: axis + 1], math.prod(after))
    y = y.reshape(*y.shape[:3], math.prod(before), *y.shape[-2:])
    y = jnp.broadcast_to(y, (y.shape[0], matrix.shape[1], *y.shape[2:]))
    y = jnp.einsum("dmbpiq,dmoi->dmbpoq", y, matrix, precision=jax.lax.Precision.HIGHEST)
    y = y.reshape(*y.shape[:3], *before, *y.shape[-2:])
    return y.reshape(*y.shape[:-1], *after)


def _transformed(y: jax.Array, kernel: jax.Array, axis: int, origin: int) -> jax.Array:
    """Returns the same by Fourier transforms."""
    m, _, d = kernel.shape
    y = jnp.moveaxis(jnp.broadcast_to(y, (d, m, *y.shape[2:])), axis, -1)
    lead = y.shape[:-1]
    flat = y.reshape(d, m, -1, y.shape[-1])  # one group of axes at a time, as above
    flat = jnp.moveaxis(flat.reshape(d * m, *flat.shape[2:]), 0, -1)  # (b*s l d*m)
    taps = jnp.moveaxis(kernel, -1, 0).reshape(d * m, -1).T
    flat = fft_conv_xla(flat, taps[None], (origin,))[:, 0]
    flat = jnp.moveaxis(flat, -1, 0).reshape(d, m, *flat.shape[:2])
    return jnp.moveaxis(flat.reshape(*lead, flat.shape[-1]), -1, axis)


def toeplitz(kernel: jax.Array, l: int, origin: int) -> jax.Array:
    """Returns the matrices `T_ij = kernel_(i - j + origin)`, (*m l l), from taps (*m k).

    A ring of 2 l entries, repeated and cut into rows of 2 l - 1, moves on by one from row to row: no gather, so that
    the gradient needs no scatter.
    """
    *lead, k = kernel.shape
    past, future = min(k - origin, l), min(origin, l - 1)
    now = jax.lax.slice_in_dim(kernel, origin, origin + past, axis=-1)
    before = jax.lax.slice_in_dim(kernel, origin - future, origin, axis=-1)
    # By j - i: the tap at offset zero, those into the future from the nearest on, a gap, those into the past backward.
    gap = jnp.zeros((*lead, 2 * l - past - future), kernel.dtype)
    ring = jnp.concatenate([now[..., :1], jnp.flip(before, -1), gap, jnp.flip(now[..., 1:], -1)], axis=-1)
    rows = jnp.broadcast_to(ring[..., None, :], (*lead, l, 2 * l)).reshape(*lead, 2 * l * l)
    return rows[..., : l * (2 * l - 1)].reshape(*lead, l, 2 * l - 1)[..., :l]
