"""The two ends of a denoiser of images: a vector for the time, and from tokens back to pixels."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax.layers.common.parameters import with_kinds
from ssmjax.shapes import Array, Float, Int, Tokens

__all__ = ["FinalLayer", "TimeEmbed", "sinusoidal"]

_PERIOD = 10_000.0
_EPS = 1e-6

# Made once: older Flax keeps initializers in a module's static definition, where two equal ones would differ.
_DRAW = nnx.initializers.normal(0.02)


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
        dtype: The dtype of the computation and the output.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values (normal with deviation 0.02; zero biases).

    >>> import jax.numpy as jnp
    >>> TimeEmbed(8, rngs=nnx.Rngs(0))(jnp.array([0, 999])).shape
    (2, 8)
    """

    def __init__(
        self, d_model: int, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        options = dict(kernel_init=_DRAW, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.expand = with_kinds(nnx.Linear(d_model, 4 * d_model, **options))
        self.contract = with_kinds(nnx.Linear(4 * d_model, d_model, **options))
        self.dtype = dtype

    def __call__(self, times: Float[Array, "b"] | Int[Array, "b"]) -> Float[jax.Array, "b d"]:
        """The vectors (b d) of times (b), which may be integers or fractions."""
        x = sinusoidal(times, self.expand.in_features).astype(self.dtype)
        return self.contract(jax.nn.silu(self.expand(x)))


class FinalLayer(nnx.Module):
    """From tokens to pixels: a layer norm without parameters, modulated by a condition, and a linear map, in float32.

    `linear(norm(x) * (1 + scale) + shift)`, where shift and scale are a linear map of `silu(condition)`
    (https://arxiv.org/abs/2212.09748, section 3.2).

    Args:
        d_model: The width of a token, and of the condition.
        pixels: How many numbers a token becomes.
        modulated: Whether there is a condition.
        rngs: Source of the initial values (normal with deviation 0.02; zero biases).

    >>> import jax.numpy as jnp
    >>> FinalLayer(8, 12, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 8)), jnp.ones((2, 8))).shape
    (2, 5, 12)
    """

    def __init__(self, d_model: int, pixels: int, *, modulated: bool = True, rngs: nnx.Rngs):
        options = dict(kernel_init=_DRAW, rngs=rngs)
        self.linear = with_kinds(nnx.Linear(d_model, pixels, **options), kernel="head")
        self.modulation = with_kinds(nnx.Linear(d_model, 2 * d_model, **options)) if modulated else None

    def __call__(self, x: Tokens, condition: Float[Array, "b d"] | None = None) -> Float[jax.Array, "b l pixels"]:
        """Pixels (b l pixels) of tokens (b l d) and, where the layer is modulated, a condition (b d)."""
        x = jnp.asarray(x, jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + _EPS)
        if self.modulation is not None:
            shift, scale = jnp.split(self.modulation(jax.nn.silu(condition.astype(jnp.float32))), 2, axis=-1)
            x = x * (1 + scale[:, None]) + shift[:, None]
        return self.linear(x)
