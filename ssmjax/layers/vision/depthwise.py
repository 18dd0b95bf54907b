"""The depthwise convolution of images."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import init
from ssmjax.layers.common.parameters import parameter
from ssmjax.ops._numerics.derivatives import own_backward
from ssmjax.shapes import Array, Float, Images

__all__ = ["DepthwiseConv", "depthwise_conv2d"]


def depthwise_conv2d(
    x: Images, kernel: Float[Array, "k k d"], bias: Float[Array, "d"] | None = None
) -> Float[jax.Array, "b y x d"]:
    """Convolves each channel with taps of its own; the size is kept, with zeros beyond the edges.

    It is a sum of shifted products and not the compiler's grouped convolution, whose gradient takes nine times as long
    on a CPU. The sum is in float32. The backward pass keeps the input and the taps only. Derivatives in forward mode
    need `use_implementation("reference")`.

    Args:
        x: (b y x d).
        kernel: (k k d); for an even k the extra row and column of zeros lie at the end, as in PyTorch.
        bias: (d).

    Returns:
        (b y x d) in the dtype of `x`.

    >>> import jax.numpy as jnp
    >>> depthwise_conv2d(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1)))[0, :, :, 0].tolist()
    [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    y = own_backward("depthwise_conv2d", _convolve, _plain, x, kernel)
    return y if bias is None else y + bias.astype(x.dtype)[None, None, None]


def _plain(x, kernel):
    return _shifted_sum(x, kernel, (kernel.shape[0] - 1) // 2)


_convolve = jax.custom_vjp(_plain)


def _shifted_sum(x, kernel, before):
    """`sum_ij kernel[i, j] x[y + i - before, x + j - before]`."""
    taps = kernel.astype(jnp.float32)[:, :, None, None, None]
    terms = (shift.astype(jnp.float32) * taps[i, j] for i, j, shift in _shifts(x, kernel.shape[0], before))
    return sum(terms).astype(x.dtype)


def _shifts(x, k, before):
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (before, k - 1 - before), (before, k - 1 - before), (0, 0)))
    for i in range(k):
        for j in range(k):
            yield i, j, padded[:, i : i + height, j : j + width]


def _convolve_fwd(x, kernel):
    return _convolve(x, kernel), (x, kernel)


def _convolve_bwd(saved, dy):
    x, kernel = saved
    k = kernel.shape[0]
    before = (k - 1) // 2
    dx = _shifted_sum(dy, kernel[::-1, ::-1], k - 1 - before)  # the transpose runs over the taps from their end
    taps = [
        (shift.astype(jnp.float32) * dy.astype(jnp.float32)).sum((0, 1, 2)) for _, _, shift in _shifts(x, k, before)
    ]
    return dx.astype(x.dtype), jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


class DepthwiseConv(nnx.Module):
    """A depthwise convolution of images that keeps their size, see `depthwise_conv2d`.

    Args:
        d_model: The channels.
        taps: The rows and columns of a filter, `k`.
        use_bias: Whether there is a bias.
        dtype: The dtype of the computation and the output; sums are in float32 whatever it is.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values: uniform in `[-1/k, 1/k]` for the taps and the bias, PyTorch's default.

    >>> import jax.numpy as jnp
    >>> DepthwiseConv(8, rngs=nnx.Rngs(0))(jnp.zeros((2, 5, 4, 8))).shape
    (2, 5, 4, 8)
    """

    def __init__(
        self,
        d_model: int,
        *,
        taps: int = 3,
        use_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        draw = init.uniform(1 / taps)
        self.kernel = parameter(draw(rngs.params(), (taps, taps, d_model), param_dtype), "filter")
        self.bias = parameter(draw(rngs.params(), (d_model,), param_dtype), "bias") if use_bias else None
        self.dtype = dtype

    def __call__(self, x: Images) -> Float[jax.Array, "b y x d"]:
        """Convolves (b y x d)."""
        return depthwise_conv2d(x.astype(self.dtype), self.kernel[...], None if self.bias is None else self.bias[...])
