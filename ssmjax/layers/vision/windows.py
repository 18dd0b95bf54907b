"""Windows of a map, and attention within them."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.nn import initializers
from jax.typing import DTypeLike

from ssmjax import errors, ops
from ssmjax.layers.common.norms import LayerNorm
from ssmjax.layers.common.parameters import with_kinds
from ssmjax.shapes import Array, Float, Images, Tokens

__all__ = ["SelfAttention", "join_windows", "split_windows"]

# Made once: older Flax keeps initializers in a module's static definition, where two equal ones would differ.
_DRAW = initializers.normal(0.02)


def split_windows(x: Images, side: int) -> Float[jax.Array, "windows l d"]:
    """Cuts a map into square windows, each a sequence of its tokens by rows; zeros fill up the last ones.

    Args:
        x: (b y x d).
        side: The rows and columns of a window.

    Returns:
        (b * windows, side * side, d).

    >>> import jax.numpy as jnp
    >>> split_windows(jnp.ones((2, 5, 4, 3)), 4).shape
    (4, 16, 3)
    """
    below, right = (-size % side for size in x.shape[1:3])
    if below or right:
        x = jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))
    # One axis at a time: a reshape of two has no sharding that jax knows.
    x = rearrange(rearrange(x, "b (y i) x d -> b y i x d", i=side), "b y i (x j) d -> b y x i j d", j=side)
    return rearrange(rearrange(x, "b y x i j d -> b y x (i j) d"), "b y x l d -> (b y x) l d")


def join_windows(windows: Tokens, side: int, rows: int, columns: int) -> Float[jax.Array, "images y x d"]:
    """Returns the inverse of `split_windows`: a map of these rows and columns.

    >>> import jax.numpy as jnp
    >>> x = jnp.arange(40.0).reshape(1, 5, 4, 2)
    >>> bool((join_windows(split_windows(x, 4), 4, 5, 4) == x).all())
    True
    """
    y, x = -(-rows // side), -(-columns // side)
    whole = rearrange(rearrange(windows, "(b y x) l d -> b y x l d", y=y, x=x), "b y x (i j) d -> b y i x j d", i=side)
    whole = rearrange(rearrange(whole, "b y i x j d -> b (y i) x j d"), "b y x j d -> b y (x j) d")
    return whole[:, :rows, :columns]


class SelfAttention(nnx.Module):
    """Softmax attention among the tokens of a sequence or a window (https://arxiv.org/abs/2010.11929, appendix A).

    Args:
        d_model: The width of a token.
        heads: How many heads share it.
        qkv_bias: Whether the map to queries, keys and values has a bias.
        qk_norm: Whether queries and keys are normalized in each head (https://arxiv.org/abs/2302.05442).
        dtype: The dtype of the computation and the output; the softmax is float32 whatever it is.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values (normal with standard deviation 0.02; zero biases).

    Raises:
        ValueError: The heads do not divide the width.

    >>> import jax.numpy as jnp
    >>> SelfAttention(8, heads=2, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 8))).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        d_model: int,
        *,
        heads: int,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if d_model % heads:
            raise errors.bad_argument("SelfAttention", "heads", heads, f"a divisor of the width {d_model}")
        options = dict(kernel_init=_DRAW, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.heads = heads
        self.qkv = with_kinds(nnx.Linear(d_model, 3 * d_model, use_bias=qkv_bias, **options))
        self.q_norm = LayerNorm(d_model // heads, dtype=dtype) if qk_norm else None
        self.k_norm = LayerNorm(d_model // heads, dtype=dtype) if qk_norm else None
        self.proj = with_kinds(nnx.Linear(d_model, d_model, **options))

    def __call__(self, u: Tokens) -> Float[Array, "b l d"]:
        """Mixes (b l d)."""
        q, k, v = rearrange(self.qkv(u), "b l (three h p) -> three b l h p", three=3, h=self.heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return self.proj(rearrange(ops.attention(q, k, v), "b l h p -> b l (h p)"))
