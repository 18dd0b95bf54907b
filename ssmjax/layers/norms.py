"""Normalization over the last axis, always computed in float32, and the residual stream it works with."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax.shapes import Array, Float

__all__ = ["LayerNorm", "RMSNorm", "add_norm", "make_norm"]


class RMSNorm(nnx.Module):
    """`x / sqrt(mean(x**2) + eps) * scale` (https://arxiv.org/abs/1910.07467).

    Args:
        d_model: The width of the last axis.
        eps: Added to the mean square.
        dtype: Of the output. The computation is in float32 whatever it is.
        param_dtype: Of the scale.
        rngs: Not used: there is nothing random. It is there so that every layer is built in the same way.

    >>> import jax.numpy as jnp
    >>> RMSNorm(2)(jnp.array([[1.0, 7.0]])).round(1).tolist()
    [[0.2, 1.4]]
    """

    def __init__(
        self,
        d_model: int,
        *,
        eps: float = 1e-5,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        self.scale = nnx.Param(jnp.ones((d_model,), param_dtype))
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Normalizes an array of any rank, in any floating dtype."""
        x = jnp.asarray(x, jnp.float32)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        return (y * _last_axis(self.scale, x.ndim)).astype(self.dtype)


class LayerNorm(nnx.Module):
    """`(x - mean(x)) / sqrt(var(x) + eps) * scale + bias` (https://arxiv.org/abs/1607.06450).

    Args:
        d_model: The width of the last axis.
        eps: Added to the variance.
        dtype: Of the output. The computation is in float32 whatever it is.
        param_dtype: Of the scale and the bias.
        rngs: Not used, as in `RMSNorm`.

    >>> import jax.numpy as jnp
    >>> LayerNorm(2)(jnp.array([[3.0, 5.0]])).round(3).tolist()
    [[-1.0, 1.0]]
    """

    def __init__(
        self,
        d_model: int,
        *,
        eps: float = 1e-5,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        self.scale = nnx.Param(jnp.ones((d_model,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((d_model,), param_dtype))
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Normalizes an array of any rank, in any floating dtype."""
        x = jnp.asarray(x, jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        return (y * _last_axis(self.scale, x.ndim) + _last_axis(self.bias, x.ndim)).astype(self.dtype)


def make_norm(kind: str, d_model: int, **options) -> RMSNorm | LayerNorm:
    """The norm that a configuration names: `"rms"` or `"layer"`; `options` are those of the class.

    >>> type(make_norm("rms", 8)).__name__
    'RMSNorm'
    """
    return {"rms": RMSNorm, "layer": LayerNorm}[kind](d_model, **options)


def add_norm(
    norm: RMSNorm | LayerNorm, hidden: Float[Array, "b l d"], residual: Float[Array, "b l d"]
) -> tuple[Float[Array, "b l d"], Float[Array, "b l d"]]:
    """One step of a residual stream that is carried beside the hidden states: `r = residual + hidden; norm(r), r`.

    Args:
        norm: The normalization.
        hidden: The output of the block before, in the compute dtype.
        residual: The stream, usually float32 though the blocks compute in less: it sums over the whole depth.

    Returns:
        The input of the next block, in the dtype of `norm`, and the new residual, in the dtype of the old.

    >>> import jax.numpy as jnp
    >>> x, residual = add_norm(RMSNorm(2, dtype=jnp.bfloat16), jnp.ones((1, 1, 2), jnp.bfloat16), jnp.ones((1, 1, 2)))
    >>> x.dtype, residual.dtype, residual.tolist()
    (dtype(bfloat16), dtype('float32'), [[[2.0, 2.0]]])
    """
    residual = residual + hidden.astype(residual.dtype)
    return norm(residual), residual


def _last_axis(parameter: nnx.Param, ndim: int) -> jax.Array:
    return parameter[...].astype(jnp.float32).reshape((1,) * (ndim - 1) + (-1,))
