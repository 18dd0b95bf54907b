"""The multilayer perceptron of vision blocks."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.typing import DTypeLike

from ssmjax.layers.common.parameters import with_kinds
from ssmjax.shapes import Array, Float

__all__ = ["MLP"]

# Made once: older Flax keeps initializers in a module's static definition, where two equal ones would differ.
_DRAW = initializers.normal(0.02)


class MLP(nnx.Module):
    """`fc2(gelu(fc1(x)))`, or with a gate `fc2(a * gelu(b))`, `(a, b) = split(fc1(x))`; the exact GELU.

    Args:
        d_model: The width of a token.
        hidden: The width between the two maps.
        gated: Whether half of the (then doubled) first map is a gate (https://arxiv.org/abs/2002.05202).
        dtype: The dtype of the computation and the output.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values (normal with standard deviation 0.02; zero biases).

    >>> import jax.numpy as jnp
    >>> MLP(8, hidden=32, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 8))).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        d_model: int,
        *,
        hidden: int,
        gated: bool = False,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = dict(kernel_init=_DRAW, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.fc1 = with_kinds(nnx.Linear(d_model, 2 * hidden if gated else hidden, **options))
        self.fc2 = with_kinds(nnx.Linear(hidden, d_model, **options))
        self.gated = gated

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Maps each token alone."""
        x = self.fc1(x)
        if self.gated:
            x, gate = jnp.split(x, 2, axis=-1)
            return self.fc2(x * jax.nn.gelu(gate, approximate=False))
        return self.fc2(jax.nn.gelu(x, approximate=False))
