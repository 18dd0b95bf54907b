"""What tells a diffusion model how noisy its input is."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax.shapes import Array, Float, Int

__all__ = ["TimeEmbed", "sinusoidal"]

_PERIOD = 10_000.0


def sinusoidal(times: Float[Array, "b"] | Int[Array, "b"], width: int) -> Float[jax.Array, "b d"]:
    """Encodes times as cosines and sines of geometrically spaced frequencies, in float32.

    The frequencies are `10000 ** (-i / (width / 2))` for `i = 0, 1, ...`; the cosines come first (Vaswani et al. 2017,
    section 3.5, in the order that diffusion models use).

    Args:
        times: (b), integers or fractions.
        width: The number of features; even.

    Returns:
        (b width).

    >>> import jax.numpy as jnp
    >>> sinusoidal(jnp.zeros(1), 4).tolist()
    [[1.0, 1.0, 0.0, 0.0]]
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(_PERIOD) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.asarray(times, jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbed(nnx.Module):
    """Maps a time to a vector: a sinusoidal encoding, a linear map to four times the width, SiLU, a linear map back.

    Args:
        d_model: The width of the vector; even.
        dtype: Of the computation and the output.
        param_dtype: Of the parameters.
        rngs: Source of the initial values (normal with deviation 0.02; zero biases).

    >>> import jax.numpy as jnp
    >>> TimeEmbed(8, rngs=nnx.Rngs(0))(jnp.array([0, 999])).shape
    (2, 8)
    """

    def __init__(
        self, d_model: int, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        options = dict(kernel_init=_DRAW, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.expand = nnx.Linear(d_model, 4 * d_model, **options)
        self.contract = nnx.Linear(4 * d_model, d_model, **options)
        self.dtype = dtype

    def __call__(self, times: Float[Array, "b"] | Int[Array, "b"]) -> Float[jax.Array, "b d"]:
        """The vectors (b d) of times (b), which may be integers or fractions."""
        x = sinusoidal(times, self.expand.in_features).astype(self.dtype)
        return self.contract(jax.nn.silu(self.expand(x)))


# Made once: older Flax keeps initializers in a module's static definition, where two equal ones would differ.
_DRAW = nnx.initializers.normal(0.02)
