"""Projectors: from the width of a vision tower to that of a language model."""

import re

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.shapes import Array, Float
from vlmjax.layers.transformer import linear

__all__ = ["PROJECTORS", "Projector"]

PROJECTORS = ("identity", "linear", "mlp{n}x_gelu", "low_rank", "gated", "lora")
"""The kinds of projector."""


class Projector(nnx.Module):
    """A map of each visual token on its own.

        identity        x
        linear          W x + b                                 LLaVA 1.0, https://arxiv.org/abs/2304.08485
        mlp{n}x_gelu    W_n gelu(... gelu(W_1 x + b_1)) + b_n   LLaVA 1.5 has n = 2, https://arxiv.org/abs/2310.03744
        low_rank        U (V x)                                 without biases
        gated           (W x + b) * sigmoid(W' x + b')
        lora            W x + b + U (V x), W and b frozen       https://arxiv.org/abs/2106.09685

    Args:
        kind: One of them, such as `"mlp2x_gelu"`.
        d_in: The width of the tower's tokens.
        d_out: The width of the language model's.
        rank: The inner width of `low_rank` and `lora`.
        use_bias: Whether linear maps have biases (but for `low_rank`).
        dtype: Of the computation.
        rngs: Source of the initial values.

    Raises:
        ValueError: There is no such kind, or an identity between two widths is asked for.

    >>> import jax.numpy as jnp
    >>> Projector("mlp2x_gelu", 4, 6, rngs=nnx.Rngs(0))(jnp.ones((1, 3, 4))).shape
    (1, 3, 6)
    """

    def __init__(
        self,
        kind: str,
        d_in: int,
        d_out: int,
        *,
        rank: int = 8,
        use_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        deep = re.fullmatch(r"mlp([1-9]\d*)x_gelu", kind)
        if deep is None and kind not in PROJECTORS:
            raise errors.unknown_name("projector", kind, PROJECTORS)
        if kind == "identity" and d_in != d_out:
            raise errors.bad_argument("Projector", "kind", kind, f"another one: it maps {d_in} channels to {d_out}")
        self.kind = kind
        options = dict(dtype=dtype, rngs=rngs)
        if kind != "identity":
            count = int(deep[1]) if deep else {"gated": 2}.get(kind, 0 if kind == "low_rank" else 1)
            use_bias = use_bias or kind == "lora"
            widths = [d_out if deep and i else d_in for i in range(count)]
            self.layers = nnx.data([linear(width, d_out, use_bias=use_bias, **options) for width in widths])
        if kind in ("low_rank", "lora"):
            self.down = linear(d_in, rank, use_bias=False, **options)
            self.up = linear(rank, d_out, use_bias=False, scale=0.0 if kind == "lora" else 1.0, **options)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[jax.Array, "b l e"]:
        """Projects (b l d_in) to (b l d_out)."""
        if self.kind == "identity":
            return x
        if self.kind == "low_rank":
            return self.up(self.down(x))
        if self.kind == "lora":  # the gradient passes through the frozen map, and stops at its parameters
            kernel, bias = (jax.lax.stop_gradient(v[...]) for v in (self.layers[0].kernel, self.layers[0].bias))
            return x @ kernel.astype(x.dtype) + bias.astype(x.dtype) + self.up(self.down(x))
        y = self.layers[0](x)
        if self.kind == "gated":
            return y * jax.nn.sigmoid(self.layers[1](x))
        for layer in self.layers[1:]:
            y = layer(jax.nn.gelu(y, approximate=False))
        return y
