"""Projectors: from the width of a vision tower to that of a language model."""

import math
import re

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.layers import LayerNorm
from ssmjax.shapes import Array, Float
from vlmjax.layers.transformer import linear

__all__ = ["PROJECTORS", "Projector", "projected_tokens", "space_to_channels"]

DOWNSAMPLING = {"mlp_downsample": 2, "mlp_downsample_2x2_fix": 2, "mlp_downsample_3x3_fix": 3}
"""The side of the square of tokens that becomes one."""

PROJECTORS = ("identity", "linear", "mlp{n}x_gelu", *DOWNSAMPLING, "low_rank", "gated", "lora")
"""The kinds of projector."""


class Projector(nnx.Module):
    """A map of each visual token on its own, or of each square of neighbors.

        identity        x
        linear          W x + b                                 LLaVA 1.0, https://arxiv.org/abs/2304.08485
        mlp{n}x_gelu    W_n gelu(... gelu(W_1 x + b_1)) + b_n   LLaVA 1.5 has n = 2, https://arxiv.org/abs/2310.03744
        mlp_downsample          2 x 2 neighbors as one token, norm, linear, gelu, linear        VILA 1.5, NVILA
        mlp_downsample_2x2_fix  the same
        mlp_downsample_3x3_fix  3 x 3 neighbors, norm, linear, gelu, norm, linear, gelu, linear NVILA-Lite
        low_rank        U (V x)                                 without biases
        gated           (W x + b) * sigmoid(W' x + b')
        lora            W x + b + U (V x), W and b frozen       https://arxiv.org/abs/2106.09685

    Args:
        kind: One of them, such as `"mlp2x_gelu"`.
        d_in: The width of the tower's tokens.
        d_out: The width of the language model's.
        rank: The inner width of `low_rank` and `lora`.
        hidden: That of `mlp{n}x_gelu`; None means `d_out`.
        use_bias: Whether linear maps have biases (but for `low_rank`).
        by_columns: Whether the squares come column by column, as in the code of VILA 1.5, whose checkpoints were
            trained so; NVILA's `mlp_downsample` goes row by row. See `space_to_channels`.
        dtype: The dtype of the computation.
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
        hidden: int | None = None,
        use_bias: bool = True,
        by_columns: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        deep = re.fullmatch(r"mlp([1-9]\d*)x_gelu", kind)
        if deep is None and kind not in PROJECTORS:
            raise errors.unknown_name("projector", kind, PROJECTORS)
        if kind == "identity" and d_in != d_out:
            raise errors.bad_argument("Projector", "kind", kind, f"another one: it maps {d_in} channels to {d_out}")
        self.kind, self.by_columns = kind, by_columns
        options = dict(dtype=dtype, rngs=rngs)
        if kind in DOWNSAMPLING:
            wide = d_in * DOWNSAMPLING[kind] ** 2
            widths = [wide, d_out, d_out] if DOWNSAMPLING[kind] == 2 else [wide, 3 * d_in, d_out, d_out]
            self.norms = nnx.data([LayerNorm(width, dtype=dtype) for width in widths[:-2]])
            pairs = zip(widths, widths[1:], strict=False)
            self.layers = nnx.data([linear(before, after, use_bias=use_bias, **options) for before, after in pairs])
        elif kind != "identity":
            count = int(deep[1]) if deep else {"gated": 2}.get(kind, 0 if kind == "low_rank" else 1)
            use_bias = use_bias or kind == "lora"
            inner = d_out if hidden is None else hidden
            widths = [d_in, *[inner if deep else d_in] * (count - 1)]
            after = [*[inner if deep else d_out] * (count - 1), d_out]
            pairs = zip(widths, after, strict=True) if count else ()
            self.layers = nnx.data([linear(one, two, use_bias=use_bias, **options) for one, two in pairs])
        if kind in ("low_rank", "lora"):
            self.down = linear(d_in, rank, use_bias=False, **options)
            self.up = linear(rank, d_out, use_bias=False, scale=0.0 if kind == "lora" else 1.0, **options)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[jax.Array, "b l e"]:
        """Projects (b l d_in) to (b l d_out), or to fewer tokens: `projected_tokens`."""
        if self.kind == "identity":
            return x
        if self.kind in DOWNSAMPLING:
            return self._downsampled(space_to_channels(x, DOWNSAMPLING[self.kind], by_columns=self.by_columns))
        if self.kind == "low_rank":
            return self.up(self.down(x))
        if self.kind == "lora":  # the gradient passes through the frozen map, and stops at its parameters
            kernel, bias = (jax.lax.stop_gradient(v[...]) for v in (self.layers[0].kernel, self.layers[0].bias))
            return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)[None, None] + self.up(self.down(x))
        y = self.layers[0](x)
        if self.kind == "gated":
            return y * jax.nn.sigmoid(self.layers[1](x))
        for layer in self.layers[1:]:
            y = layer(jax.nn.gelu(y, approximate=False))
        return y

    def _downsampled(self, x: Float[Array, "b l d"]) -> Float[jax.Array, "b l e"]:
        for i, layer in enumerate(self.layers):
            x = x if i == 0 else jax.nn.gelu(x, approximate=False)
            x = layer(self.norms[i](x) if i < len(self.norms) else x)
        return x


def projected_tokens(kind: str, tokens: int) -> int:
    """How many tokens a projector makes of an image's.

    >>> projected_tokens("mlp_downsample", 27 * 27)
    196
    """
    if kind not in DOWNSAMPLING:
        return tokens
    return (-(-math.isqrt(tokens) // DOWNSAMPLING[kind])) ** 2


def space_to_channels(x: Float[Array, "b l d"], side: int, *, by_columns: bool = False) -> Float[jax.Array, "b l d"]:
    """Squares of neighboring tokens put side by side in the channels, row by row inside a square.

    Zeros are put below and to the right of a map whose sides are no multiple of `side`.

    Args:
        x: (b l d), the tokens of a square map, row by row.
        side: The side of a square.
        by_columns: Whether the squares come column by column, which transposes the map: VILA 1.5's order.

    Returns:
        (b l' d side**2).

    Raises:
        ValueError: The map is not square.

    >>> import jax.numpy as jnp
    >>> space_to_channels(jnp.arange(9.0).reshape(1, 9, 1), 2)[0, 1].tolist()
    [2.0, 0.0, 5.0, 0.0]
    """
    rows = math.isqrt(x.shape[1])
    if rows * rows != x.shape[1]:
        remedy = "A class token does not belong to the map: keep_class=False leaves it out."
        raise errors.bad_shape("space_to_channels", "x", x, "(b l d) with a square number l of tokens", remedy)
    more = -rows % side
    x = jnp.pad(rearrange(x, "b (y x) d -> b y x d", y=rows), ((0, 0), (0, more), (0, more), (0, 0)))
    order = "x y" if by_columns else "y x"
    return rearrange(x, f"b (y i) (x j) d -> b ({order}) (i j d)", i=side, j=side)
