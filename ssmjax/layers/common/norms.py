"""Normalization over the last axis, always computed in float32, and the residual stream it works with."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.layers.common.parameters import parameter
from ssmjax.shapes import Array, Bool, Float

__all__ = ["BatchNorm", "LayerNorm", "RMSNorm", "add_norm", "make_norm"]


class RMSNorm(nnx.Module):
    """`x / sqrt(mean(x**2) + eps) * scale` (https://arxiv.org/abs/1910.07467).

    Args:
        d_model: The width of the last axis.
        eps: Added to the mean square.
        dtype: The dtype of the output. The computation is in float32 whatever it is.
        param_dtype: The dtype of the scale.
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
        self.scale = parameter(jnp.ones((d_model,), param_dtype), "norm")
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Normalizes an array of any rank, in any floating dtype."""

        def normalize(x):
            x = jnp.asarray(x, jnp.float32)
            y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
            return (y * _last_axis(self.scale, x.ndim)).astype(self.dtype)

        return _keeping_input(normalize)(x)


class LayerNorm(nnx.Module):
    """`(x - mean(x)) / sqrt(var(x) + eps) * scale + bias` (https://arxiv.org/abs/1607.06450).

    Args:
        d_model: The width of the last axis.
        eps: Added to the variance.
        dtype: The dtype of the output. The computation is in float32 whatever it is.
        param_dtype: The dtype of the scale and the bias.
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
        self.scale = parameter(jnp.ones((d_model,), param_dtype), "norm")
        self.bias = parameter(jnp.zeros((d_model,), param_dtype), "norm")
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Normalizes an array of any rank, in any floating dtype."""

        def normalize(x):
            x = jnp.asarray(x, jnp.float32)
            x = x - x.mean(-1, keepdims=True)
            y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
            return (y * _last_axis(self.scale, x.ndim) + _last_axis(self.bias, x.ndim)).astype(self.dtype)

        return _keeping_input(normalize)(x)


class BatchNorm(nnx.Module):
    """`(x - mean) / sqrt(var + eps) * scale + bias`, with statistics over batch and tokens.

    https://arxiv.org/abs/1502.03167. In training the statistics are those of the batch, and running means of them are
    kept, with which evaluation normalizes. Padding does not enter them.

    Args:
        d_model: The width of the last axis.
        eps: Added to the variance.
        momentum: How much of the running statistics stays at each step (PyTorch counts what is replaced).
        unbiased: Whether the running variance is the unbiased estimate, as in PyTorch, not the biased one of Flax.
        dtype: The dtype of the output. The computation is in float32 whatever it is.
        param_dtype: The dtype of the scale and the bias.
        rngs: Not used, as in `RMSNorm`.

    >>> import jax.numpy as jnp
    >>> norm = BatchNorm(1, momentum=0.5)
    >>> norm(jnp.array([[3.0], [5.0]]), train=True).round(3).tolist()
    [[-1.0], [1.0]]
    >>> norm.mean[...].tolist(), norm.var[...].tolist()
    ([2.0], [1.0])
    """

    def __init__(
        self,
        d_model: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.9,
        unbiased: bool = False,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        errors.require_flags("BatchNorm", unbiased=unbiased)
        self.scale = parameter(jnp.ones((d_model,), param_dtype), "norm")
        self.bias = parameter(jnp.zeros((d_model,), param_dtype), "norm")
        self.mean = nnx.BatchStat(jnp.zeros((d_model,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((d_model,), jnp.float32))
        self.eps = eps
        self.momentum = momentum
        self.unbiased = unbiased
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "*b d"], *, mask: Bool[Array, "*b"] | None = None, train: bool = False
    ) -> Float[Array, "*b d"]:
        """Normalizes an array of any rank; `mask` is False at padding, and `train` updates the running statistics."""
        errors.require_flags("BatchNorm", train=train)
        x = jnp.asarray(x, jnp.float32)
        mean, var = self._update(x, mask) if train else (self.mean[...], self.var[...])
        scale = self.scale[...].astype(jnp.float32) * jax.lax.rsqrt(var + self.eps)
        lead = (1,) * (x.ndim - 1) + (-1,)
        y = (x - mean.reshape(lead)) * scale.reshape(lead) + _last_axis(self.bias, x.ndim)
        return y.astype(self.dtype)

    def _update(self, x, mask):
        axes = tuple(range(x.ndim - 1))
        real = jnp.ones(x.shape[:-1], bool) if mask is None else mask
        count = jnp.maximum(real.sum(), 1).astype(jnp.float32)
        mean = jnp.where(real[..., None], x, 0).sum(axes) / count
        centered = jnp.where(real[..., None], x - mean.reshape((1,) * len(axes) + (-1,)), 0)
        var = jnp.square(centered).sum(axes) / count
        kept = var * count / jnp.maximum(count - 1, 1) if self.unbiased else var
        for running, new in ((self.mean, mean), (self.var, kept)):
            running[...] = self.momentum * running[...] + (1 - self.momentum) * jax.lax.stop_gradient(new)
        return mean, var


def make_norm(kind: str, d_model: int, **options) -> RMSNorm | LayerNorm | BatchNorm:
    """Returns the norm that a configuration names: `"rms"`, `"layer"` or `"batch"`; `options` are those of the class.

    Raises:
        ValueError: There is none of that name.

    >>> type(make_norm("rms", 8)).__name__
    'RMSNorm'
    """
    norms = {"rms": RMSNorm, "layer": LayerNorm, "batch": BatchNorm}
    errors.require_known("norm", kind, norms)
    return norms[kind](d_model, **options)


def add_norm(
    norm: RMSNorm | LayerNorm, hidden: Float[Array, "*b d"], residual: Float[Array, "*b d"]
) -> tuple[Float[Array, "*b d"], Float[Array, "*b d"]]:
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


def _keeping_input(normalize):
    """A norm of which the backward pass gets the input alone: float32 arrays in between would cost more to keep."""
    return jax.checkpoint(normalize, prevent_cse=False)


def _last_axis(parameter: nnx.Param, ndim: int) -> jax.Array:
    return parameter[...].astype(jnp.float32).reshape((1,) * (ndim - 1) + (-1,))
