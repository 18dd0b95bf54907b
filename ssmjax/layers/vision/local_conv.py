"""A small depthwise convolution over the grid of an image's tokens."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax.layers.common.parameters import parameter
from ssmjax.shapes import Array, Float

__all__ = ["LocalConv"]


class LocalConv(nnx.Module):
    """A residual depthwise convolution: each channel adds a weighted sum of its 3 x 3 neighbourhood to itself.

        y[i, j] = x[i, j] + bias + sum_{u, v} weight[u, v] x[i + u - 1, j + v - 1]

    A scan reads an image line by line, so that the neighbour above is a whole line away; this makes it near. It is the
    "conditional position encoding" of https://arxiv.org/abs/2102.10882, too: the zeros beyond the border tell each
    token where it is, at any image size. The nine products are written out, because they fuse with what is beside them;
    a grouped convolution of a GPU's library does not.

    Args:
        width: The number of channels.
        dtype: The dtype of the nine products and their sum; the residual keeps its own.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values: uniform in `[-1/3, 1/3]` as a fan-in of nine has it, and a zero bias.

    >>> import jax.numpy as jnp
    >>> LocalConv(8, rngs=nnx.Rngs(0))(jnp.zeros((2, 4, 6, 8))).shape
    (2, 4, 6, 8)
    """

    def __init__(
        self, width: int, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        draw = jax.random.uniform(rngs.params(), (3, 3, width), param_dtype, -1 / 3, 1 / 3)
        self.kernel = parameter(draw, "filter")
        self.bias = parameter(jnp.zeros((width,), param_dtype), "bias")
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b y x d"]) -> Float[jax.Array, "b y x d"]:
        """Adds the convolution to the grid, in the dtype of `x`; positions beyond the grid are zeros."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        # Nine shifted copies of the input would be kept for the backward pass otherwise.
        y = jax.checkpoint(_convolve, prevent_cse=False)(x.astype(self.dtype), kernel, bias)
        return x + y.astype(x.dtype)


def _convolve(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    rows, columns = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = bias[None, None, None]
    for u in range(3):
        for v in range(3):
            y = y + kernel[u, v][None, None, None] * padded[:, u : u + rows, v : v + columns]
    return y
