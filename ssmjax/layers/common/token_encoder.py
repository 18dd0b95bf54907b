"""Vectors for the tokens of a small vocabulary."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.layers.common.parameters import parameter
from ssmjax.shapes import Array, Float, Int

__all__ = ["TokenEncoder"]


class TokenEncoder(nnx.Module):
    """A row of a table for each token, `kernel[token] + bias`.

    Computed as a product with one-hot vectors: for the vocabularies of classifiers, tens or hundreds of tokens, that is
    fast and its gradient needs no scatter. A token outside the vocabulary gives zeros and the bias.

    Args:
        vocab_size: The number of tokens, `v`.
        d_model: The width of a row.
        use_bias: Whether there is a bias.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values: normal with standard deviation `d_model ** -0.5`.

    >>> import jax.numpy as jnp
    >>> TokenEncoder(5, 8, rngs=nnx.Rngs(0))(jnp.array([[0, 4, 2]])).shape
    (1, 3, 8)
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        *,
        use_bias: bool = False,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        errors.require_flags("TokenEncoder", use_bias=use_bias)
        table = d_model**-0.5 * jax.random.normal(rngs.params(), (vocab_size, d_model), param_dtype)
        self.kernel = parameter(table, "embedding")
        self.bias = parameter(jnp.zeros((d_model,), param_dtype), "bias") if use_bias else None

    def __call__(self, tokens: Int[Array, "b l"]) -> Float[jax.Array, "b l d"]:
        """Encodes (b l) integers as (b l d) float32."""
        table = self.kernel[...].astype(jnp.float32)
        one_hot = jax.nn.one_hot(tokens, table.shape[0])
        # One term is not zero, so the product is exact in the highest precision.
        x = jnp.matmul(one_hot, table, precision=jax.lax.Precision.HIGHEST)
        return x if self.bias is None else x + self.bias[...].astype(jnp.float32)[None, None]
