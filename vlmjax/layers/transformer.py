"""The transformer block that CLIP, SigLIP, Llama and Qwen2 are stacks of; the differences are fields of its size."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.nn import initializers

from ssmjax import errors, ops
from ssmjax.layers import LayerNorm, RMSNorm
from ssmjax.layers.common.parameters import parameter, with_kinds
from ssmjax.ops import KVCache
from ssmjax.shapes import Array, Float, Int, Mask, SegmentIds, Tokens
from vlmjax.layers.rope import rotate

__all__ = ["ACTIVATIONS", "Attention", "BlockSize", "Mlp", "TransformerBlock"]

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class BlockSize:
    """Everything that makes a transformer block.

    Attributes:
        d_model: The width of a token.
        heads: The heads of the queries.
        d_mlp: The inner width of the MLP.
        kv_heads: The heads of the keys and values; None means `heads`.
        head_dim: The width of a head; None means `d_model / heads`.
        norm: "layer" or "rms".
        eps: The epsilon of the norms.
        activation: A key of `ACTIVATIONS`.
        gated: Whether the MLP is `down(act(gate x) * up x)` rather than `down(act(up x))`.
        causal: Whether a token sees no later one.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        out_bias: Whether the attention's output projection has one.
        mlp_bias: Whether the MLP's projections have.
        out_scale: A factor on the initial values of what writes into the residual stream.
        dtype: The dtype of the computation; norms and the residual stream are float32.

    >>> BlockSize(8, 2, 16).head_width
    4
    """

    d_model: int
    heads: int
    d_mlp: int
    kv_heads: int | None = None
    head_dim: int | None = None
    norm: Literal["layer", "rms"] = "layer"
    eps: float = 1e-5
    activation: Activation = "gelu"
    gated: bool = False
    causal: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    out_scale: float = 1.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.activation not in get_args(Activation):
            raise errors.unknown_name("activation", self.activation, get_args(Activation))
        if self.head_dim is None and self.d_model % self.heads:
            raise errors.bad_argument("BlockSize", "heads", self.heads, f"a divisor of d_model = {self.d_model}")
        if self.heads % self.groups:
            raise errors.bad_argument("BlockSize", "kv_heads", self.groups, f"a divisor of heads = {self.heads}")

    @property
    def groups(self) -> int:
        """The heads of the keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_width(self) -> int:
        """The width of a head."""
        return self.d_model // self.heads if self.head_dim is None else self.head_dim


@functools.cache  # older Flax keeps initializers in a module's static definition, where two equal ones would differ
def _fan_in(scale: float):
    if scale == 0:
        return initializers.zeros
    return initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")


def linear(before: int, after: int, *, use_bias: bool, scale: float = 1.0, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear map whose initial values are normal by fan-in, times `scale`."""
    return with_kinds(nnx.Linear(before, after, use_bias=use_bias, kernel_init=_fan_in(scale), dtype=dtype, rngs=rngs))


class Joined(nnx.Module):
    """Linear maps of the same input as one product, for inference: fewer and larger products.

    Args:
        parts: The maps; their parameters are copied.

    >>> import jax.numpy as jnp
    >>> parts = [linear(4, width, use_bias=True, dtype="float32", rngs=nnx.Rngs(0)) for width in (2, 3)]
    >>> [part.shape for part in Joined(parts)(jnp.ones((1, 4)))]
    [(1, 2), (1, 3)]
    """

    def __init__(self, parts: Sequence[nnx.Linear]):
        first = parts[0]
        self.widths = tuple(part.kernel.shape[-1] for part in parts)
        self.dtype = first.dtype
        self.kernel = parameter(jnp.concatenate([part.kernel[...] for part in parts], axis=-1), "weight")
        biases = None if first.bias is None else jnp.concatenate([part.bias[...] for part in parts])
        self.bias = None if biases is None else parameter(biases, "bias")

    def __call__(self, x: Float[Array, "*b d"]) -> list[jax.Array]:
        """What each of the maps returns."""
        y = x.astype(self.dtype) @ self.kernel[...].astype(self.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        return jnp.split(y, np.cumsum(self.widths)[:-1].tolist(), axis=-1)


class Attention(nnx.Module):
    """Multi-head attention with grouped heads, rotary positions where angles are given, and a cache.

    Args:
        size: The block's size.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> y, cache = Attention(BlockSize(8, 2, 16, causal=True), rngs=nnx.Rngs(0))(jnp.ones((1, 3, 8)))
    >>> y.shape, cache
    ((1, 3, 8), None)
    """

    def __init__(self, size: BlockSize, *, rngs: nnx.Rngs):
        self.size = size
        d, p = size.d_model, size.head_width
        options = dict(dtype=size.dtype, rngs=rngs)
        self.q = linear(d, size.heads * p, use_bias=size.qkv_bias, **options)
        self.k = linear(d, size.groups * p, use_bias=size.qkv_bias, **options)
        self.v = linear(d, size.groups * p, use_bias=size.qkv_bias, **options)
        self.out = linear(size.heads * p, d, use_bias=size.out_bias, scale=size.out_scale, **options)
        self.qkv = None

    def join(self) -> None:
        """Makes one product of the projections to queries, keys and values; for inference, and not to be saved."""
        self.qkv = nnx.data(Joined([self.q, self.k, self.v]))
        self.q = self.k = self.v = None

    def __call__(
        self,
        x: Tokens,
        *,
        angles: Float[Array, "b l r"] | None = None,
        mask: Mask | None = None,
        lengths: Int[Array, "b"] | None = None,
        segment_ids: SegmentIds | None = None,
        bias: Float[Array, "b l"] | None = None,
        cache: KVCache | None = None,
        fresh: bool = False,
    ) -> tuple[Tokens, KVCache | None]:
        """Mixes tokens; see `TransformerBlock`."""
        q, k, v = self.project(x, angles)
        if cache is None or fresh:
            options = dict(mask=mask, key_lengths=lengths, segment_ids=segment_ids, bias=bias)
            y = ops.attention(q, k, v, causal=self.size.causal, **options)
            cache = None if cache is None else ops.append_keys(cache, k, v, mask=mask, bias=bias)
        else:
            before = cache.length
            cache = ops.append_keys(cache, k, v, mask=mask, bias=bias)
            y = ops.attention(q, cache.keys, cache.values, causal=self.size.causal, bias=cache.bias, offset=before)
        return self.out(rearrange(y, "b l h p -> b l (h p)")), cache

    def weights(self, x: Tokens, angles: Float[Array, "b l r"] | None = None) -> Float[jax.Array, "b h l m"]:
        """The weights that each token gives to each, for pictures and for methods that rank tokens by them."""
        q, k, _ = self.project(x, angles)
        return ops.attention_weights(q, k, causal=self.size.causal)

    def project(self, x: Tokens, angles: Float[Array, "b l r"] | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (b l h p), keys and values (b l g p), turned by their angles."""
        separate = (self.q, self.k, self.v)
        parts = [part(x) for part in separate] if self.qkv is None else self.qkv(x)  # type: ignore[misc]
        q, k, v = (rearrange(part, "b l (h p) -> b l h p", p=self.size.head_width) for part in parts)
        return (q, k, v) if angles is None else (rotate(q, angles), rotate(k, angles), v)


class Mlp(nnx.Module):
    """`down(act(up x))`, or with a gate `down(act(gate x) * up x)` (https://arxiv.org/abs/2002.05202).

    Args:
        size: The block's size.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> Mlp(BlockSize(8, 2, 16), rngs=nnx.Rngs(0))(jnp.ones((1, 3, 8))).shape
    (1, 3, 8)
    """

    def __init__(self, size: BlockSize, *, rngs: nnx.Rngs):
        self.activation = size.activation
        options = dict(use_bias=size.mlp_bias, dtype=size.dtype, rngs=rngs)
        self.gate = linear(size.d_model, size.d_mlp, **options) if size.gated else None
        self.up = linear(size.d_model, size.d_mlp, **options)
        self.down = linear(size.d_mlp, size.d_model, scale=size.out_scale, **options)
        self.gate_up = None

    def join(self) -> None:
        """Makes one product of gate and up, where there is a gate; for inference, and not to be saved."""
        if self.gate is not None:
            self.gate_up = nnx.data(Joined([self.gate, self.up]))
            self.gate = self.up = None

    def __call__(self, x: Tokens) -> Tokens:
        """Maps each token on its own."""
        act = ACTIVATIONS[self.activation]
        if self.gate_up is not None:
            gate, up = self.gate_up(x)
            return self.down(act(gate) * up)
        up = self.up(x)  # type: ignore[misc]
        return self.down(act(up) if self.gate is None else act(self.gate(x)) * up)


class TransformerBlock(nnx.Module):
    """A pre-norm block: `x += attn(norm1 x); x += mlp(norm2 x)`.

    Args:
        size: Its size.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> block = TransformerBlock(BlockSize(8, 2, 16), rngs=nnx.Rngs(0))
    >>> block(jnp.ones((1, 3, 8)))[0].shape
    (1, 3, 8)
    """

    def __init__(self, size: BlockSize, *, rngs: nnx.Rngs):
        norm = RMSNorm if size.norm == "rms" else LayerNorm
        self.norm1 = norm(size.d_model, eps=size.eps, dtype=size.dtype)
        self.attn = Attention(size, rngs=rngs)
        self.norm2 = norm(size.d_model, eps=size.eps, dtype=size.dtype)
        self.mlp = Mlp(size, rngs=rngs)

    def __call__(
        self,
        x: Tokens,
        *,
        angles: Float[Array, "b l r"] | None = None,
        mask: Mask | None = None,
        lengths: Int[Array, "b"] | None = None,
        segment_ids: SegmentIds | None = None,
        bias: Float[Array, "b l"] | None = None,
        cache: KVCache | None = None,
        fresh: bool = False,
    ) -> tuple[Tokens, KVCache | None]:
        """Runs the block.

        Args:
            x: (b l d), the residual stream.
            angles: (b l p/2), those of rotary positions; None for none.
            mask: (b l), False at padding.
            lengths: (b), how many tokens of each row are real, the first ones, in place of a mask; not with a cache.
            segment_ids: (b l), of packed sequences.
            bias: (b l), added to the logits of a token as a key, such as the log of its size.
            cache: What came before; the tokens are appended to it.
            fresh: Whether nothing came before, so that the tokens attend to themselves alone.

        Returns:
            (b l d) in the dtype of `x`, and the cache with the tokens in it.
        """
        options = dict(mask=mask, lengths=lengths, segment_ids=segment_ids, bias=bias)
        y, cache = self.attn(self.norm1(x), angles=angles, cache=cache, fresh=fresh, **options)
        x = x + y.astype(x.dtype)
        return x + self.mlp(self.norm2(x)).astype(x.dtype), cache
