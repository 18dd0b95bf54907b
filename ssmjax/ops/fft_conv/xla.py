"""The convolution by real Fourier transforms, with its own VJP.

The adjoints of a convolution are correlations, in which one transform is conjugated:

    y = irfft(X K),    dx = irfft(dY K*),    dK = irfft(dY X*).

So all transforms are real ones, of half the size of the complex ones to which JAX transposes a real transform, and the
backward pass keeps the arguments alone. Features come before time inside: a transform runs along the last axis.
"""

import functools
import itertools

import jax
import jax.numpy as jnp

from ssmjax import _compat
from ssmjax.ops._numerics.derivatives import reverse_only

__all__ = ["fast_size", "fft_conv_xla"]


def fft_conv_xla(x: jax.Array, kernel: jax.Array, origin: tuple[int, ...]) -> jax.Array:
    """(b c *s d) from `x` (b *s d) and `kernel` (c *k d); as `reference.fft_conv_reference`."""
    # A VJP of one's own gives back the types that it was given, so what is replicated is made varying outside of it.
    return reverse_only("fft_conv", _convolve, *_compat.vary_alike((x, kernel)), origin)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x, kernel, origin):
    sides, X, K = _spectra(x, kernel, origin)
    sizes, axes = [size for *_, size in sides], range(-len(sides), 0)
    y = jnp.fft.irfftn(X[:, None] * K[None], s=sizes, axes=axes)
    return jnp.moveaxis(y[(..., *map(slice, x.shape[1:-1]))], 2, -1)


def _fwd(x, kernel, origin):
    return _convolve(x, kernel, origin), (x, kernel)


def _bwd(origin, saved, dy):
    x, kernel = saved
    sides, X, K = _spectra(x, kernel, origin)
    sizes, axes = [size for *_, size in sides], range(-len(sides), 0)
    dY = jnp.fft.rfftn(jnp.moveaxis(dy, -1, 2), s=sizes, axes=axes)
    dx = jnp.fft.irfftn(jnp.sum(dY * K.conj()[None], axis=1), s=sizes, axes=axes)[(..., *map(slice, x.shape[1:-1]))]
    dK = jnp.fft.irfftn(jnp.sum(dY * X.conj()[:, None], axis=0), s=sizes, axes=axes)
    return jnp.moveaxis(dx, 1, -1), jnp.moveaxis(_taps(dK, kernel.shape[1:-1], origin, sides), 1, -1)


_convolve.defvjp(_fwd, _bwd)


def fast_size(size: int) -> int:
    """Returns the least product of powers of 2, 3 and 5 that is not below `size`, which transforms are fast at."""
    powers = [[base**e for e in range(size.bit_length() + 1)] for base in (3, 5)]
    odd = (a * b for a, b in itertools.product(*powers) if a * b < 2 * size)
    return min(factor << max(0, (-(-size // factor) - 1).bit_length()) for factor in odd)


def _spectra(x: jax.Array, kernel: jax.Array, origin: tuple[int, ...]):
    """The transforms of the input (b d *f) and of the kernel (c d *f), and what they take along each axis.

    That is: the taps that can matter at offsets 0, 1, ... and -1, -2, ..., and the size of the transform. Of a circular
    convolution the outputs asked for are those of the linear one if it is at least as long as the input and the further
    of the two reaches. There offset 0 comes first, and negative offsets at the end.
    """
    sides = []
    x, kernel = (jnp.moveaxis(v, -1, 1) for v in (x, kernel))
    for axis, (l, k, o) in enumerate(zip(x.shape[2:], kernel.shape[2:], origin, strict=True), start=2):
        past, future = min(k - o, l), min(o, l - 1)
        size = fast_size(l + max(past - 1, future))
        sides.append((past, future, size))
        now = jax.lax.slice_in_dim(kernel, o, o + past, axis=axis)
        before = jax.lax.slice_in_dim(kernel, o - future, o, axis=axis)
        gap = jnp.zeros((*now.shape[:axis], size - past - future, *now.shape[axis + 1 :]), now.dtype)
        kernel = jnp.concatenate([now, gap, before], axis=axis)
    sizes, axes = [size for *_, size in sides], range(-len(sides), 0)
    return sides, *(jnp.fft.rfftn(v, s=sizes, axes=axes) for v in (x, kernel))


def _taps(circular: jax.Array, taps: tuple[int, ...], origin: tuple[int, ...], sides) -> jax.Array:
    """The transpose of how `_spectra` lays a kernel out: its taps from the circle."""
    for axis, (k, o, (past, future, size)) in enumerate(zip(taps, origin, sides, strict=True), start=2):
        now = jax.lax.slice_in_dim(circular, 0, past, axis=axis)
        before = jax.lax.slice_in_dim(circular, size - future, size, axis=axis)
        padding = [(0, 0)] * circular.ndim
        padding[axis] = (o - future, k - o - past)
        circular = jnp.pad(jnp.concatenate([before, now], axis=axis), padding)
    return circular
