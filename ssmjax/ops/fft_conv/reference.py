"""The definition of the convolution."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax import _compat

__all__ = ["fft_conv_reference"]


def fft_conv_reference(x, kernel, origin):
    """`y_t = sum_j kernel_j x_(t - j + origin)` (b c *s d) over multi-indices t and j, one tap after the other.

    Args:
        x: (b *s d), float32 or float64.
        kernel: (c *k d).
        origin: The index into the kernel, one for each axis, of its tap at offset zero.
    """
    spatial, taps = x.shape[1:-1], kernel.shape[1:-1]
    padding = [(k - 1 - o, o) for k, o in zip(taps, origin, strict=True)]
    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])

    def tap(y, j):
        start = [k - 1 - index for k, index in zip(taps, j, strict=True)]
        seen = jax.lax.dynamic_slice(x, [0, *start, 0], [x.shape[0], *spatial, x.shape[-1]])
        weight = jax.lax.dynamic_slice(kernel, [0, *j, 0], [kernel.shape[0], *[1] * len(taps), kernel.shape[-1]])
        return y + weight[None] * seen[:, None], None

    y = jnp.zeros((x.shape[0], kernel.shape[0], *spatial, x.shape[-1]), x.dtype)
    y, *_ = _compat.vary_alike((y, x, kernel))  # for shard_map, where a loop's carry keeps its type
    return jax.lax.scan(tap, y, np.stack(np.unravel_index(np.arange(math.prod(taps)), taps), axis=-1))[0]
