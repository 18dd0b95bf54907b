"""Causal self-attention as a mixer, for hybrids with state spaces and for baselines."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import _compat, errors, init, ops
from ssmjax.layers.common.parameters import parameter, with_kinds
from ssmjax.shapes import Array, Float, Int, Mask, SegmentIds, Tokens

__all__ = ["AttentionState", "CausalAttention"]


class AttentionState(NamedTuple):
    """What the mixer remembers.

    Attributes:
        keys: The keys and values so far.
        position: (b), how many real tokens came before.
        conv: (b k-1 w), the last inputs of the convolution; of no columns without one.
    """

    keys: ops.KVCache
    position: jax.Array
    conv: jax.Array


class CausalAttention(nnx.Module):
    """Causal attention with grouped heads, rotary positions and, if asked for, a short convolution.

    It is the attention of the hybrids in Mamba-2 (https://arxiv.org/abs/2405.21060, section 9.2.3):
    `out_proj(attention(rope(q), rope(k), v))` with `q, k, v = split(conv(in_proj(u)))`, and a mixer like the others: a
    sequence may come whole, in chunks or token by token, padded or packed.

    Args:
        d_model: The width of a token.
        heads: The heads of the queries.
        kv_heads: The heads of the keys and values; None is as many as of the queries.
        head_dim: The width of a head; None is `d_model / heads`.
        d_conv: The taps of the convolution over q, k and v; 0 for none.
        rotary_dim: How many channels of a head turn with the position; None is all, 0 is none.
        rotary_base: The base of the wavelengths.
        qkv_bias: Whether `in_proj` has a bias.
        out_bias: Whether `out_proj` has one.
        max_length: How many tokens a state holds, where `init_state` is not told.
        out_scale: A factor on the initial `out_proj`.
        dtype: The dtype of the computation and the output; the softmax is float32.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.

    Raises:
        ValueError: The sizes do not fit one another.

    >>> import jax.numpy as jnp
    >>> mixer = CausalAttention(8, heads=2, rngs=nnx.Rngs(0))
    >>> mixer(jnp.ones((2, 6, 8))).shape
    (2, 6, 8)
    """

    def __init__(
        self,
        d_model: int,
        *,
        heads: int = 8,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        d_conv: int = 0,
        rotary_dim: int | None = None,
        rotary_base: float = 10000.0,
        qkv_bias: bool = False,
        out_bias: bool = False,
        max_length: int = 2048,
        out_scale: float = 1.0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        errors.require_flags("CausalAttention", qkv_bias=qkv_bias, out_bias=out_bias)
        kv_heads = heads if kv_heads is None else kv_heads
        if head_dim is None and d_model % heads:
            raise errors.bad_argument("CausalAttention", "heads", heads, f"a divisor of d_model = {d_model}")
        if heads % kv_heads:
            raise errors.bad_argument("CausalAttention", "kv_heads", kv_heads, f"a divisor of heads = {heads}")
        width = d_model // heads if head_dim is None else head_dim
        self.heads, self.kv_heads, self.width, self.taps = heads, kv_heads, width, max(1, d_conv)
        self.rotary_dim = width if rotary_dim is None else rotary_dim
        if self.rotary_dim % 2 or self.rotary_dim > width:
            raise errors.bad_argument("CausalAttention", "rotary_dim", self.rotary_dim, f"even, at most {width}")
        self.rotary_base, self.max_length, self.dtype = rotary_base, max_length, dtype
        self.total = total = (heads + 2 * kv_heads) * width
        linear = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        draw, last = init.fan_in_uniform(1.0), init.fan_in_uniform(out_scale)
        self.in_proj = with_kinds(nnx.Linear(d_model, total, use_bias=qkv_bias, kernel_init=draw, **linear))
        for name, kind, shape in (("conv_kernel", "filter", (d_conv, total)), ("conv_bias", "bias", (total,))):
            drawn = init.uniform(d_conv**-0.5)(rngs.params(), shape, param_dtype) if d_conv else None
            setattr(self, name, parameter(drawn, kind) if d_conv else None)
        out_proj = nnx.Linear(heads * width, d_model, use_bias=out_bias, kernel_init=last, **linear)
        self.out_proj = with_kinds(out_proj)

    def __call__(
        self,
        u: Tokens,
        *,
        mask: Mask | None = None,
        segment_ids: SegmentIds | None = None,
        state: AttentionState | None = None,
        return_state: bool = False,
    ) -> Tokens | tuple[Tokens, AttentionState]:
        """Mixes a sequence, or the next chunk of one.

        Args:
            u: (b l d).
            mask: (b l), False at padding, which is on the left where there is a convolution. Its outputs are zero.
            segment_ids: (b l), which of several packed sequences a token belongs to; not with a state.
            state: The state to continue from; it must have room for the tokens.
            return_state: Whether to return the state after the last token too.

        Returns:
            (b l d) in the compute dtype, with the new state if `return_state`.

        Raises:
            ValueError: There are segment ids and a state.
        """
        if segment_ids is not None and (state is not None or return_state):
            wanted = "left out where there is a state"
            remedy = "Its cache is of one sequence a row: packed sequences are read whole."
            raise errors.bad_shape("CausalAttention", "segment_ids", segment_ids, wanted, remedy)
        (b, l, _), mask = u.shape, None if mask is None else jnp.asarray(mask).astype(bool)
        if state is None and return_state:
            state = self.init_state(b, max(self.max_length, l))
        state = _compat.split_as(state, u)
        qkv = self.in_proj(u)
        qkv = qkv if mask is None else jnp.where(mask[..., None], qkv, 0)
        window = None if state is None else state.conv
        if self.conv_kernel is not None:
            kernel, bias = (v[...].astype(self.dtype) for v in (self.conv_kernel, self.conv_bias))
            options = dict(state=window, segment_ids=segment_ids, return_state=True)
            qkv, window = ops.causal_conv1d(qkv, kernel, bias, **options)
        real = _compat.zeros((b, l), jnp.int32, u) + 1 if mask is None else mask.astype(jnp.int32)
        start = _compat.zeros((b,), jnp.int32, u) if state is None else state.position
        positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0) + start[:, None]
        cuts = [self.heads * self.width, (self.heads + self.kv_heads) * self.width]
        q, k, v = (x.reshape(b, l, -1, self.width) for x in jnp.split(qkv, cuts, axis=-1))
        q, k = self._turn(q, positions), self._turn(k, positions)
        if state is None:
            y = ops.attention(q, k, v, causal=True, mask=mask, segment_ids=segment_ids)
        else:
            old = state.keys.length
            keys = ops.append_keys(state.keys, k, v, mask=mask)
            y = ops.attention(q, keys.keys, keys.values, causal=True, bias=keys.bias, offset=old)
            state = AttentionState(keys, start + real.sum(1), window)
        y = self.out_proj(y.reshape(b, l, -1).astype(self.dtype))
        y = y if mask is None else jnp.where(mask[..., None], y, 0)
        return (y, state) if return_state else y

    def init_state(self, batch: int, length: int | None = None) -> AttentionState:
        """Returns the state before the first token, with room for `length` tokens, padding included.

        >>> CausalAttention(8, heads=2, rngs=nnx.Rngs(0)).init_state(2, 5).keys.keys.shape
        (2, 5, 2, 4)
        """
        keys = ops.empty_cache(batch, length or self.max_length, self.kv_heads, self.width, dtype=self.dtype)
        conv = jnp.zeros((batch, self.taps - 1, self.total), self.dtype)
        return AttentionState(keys, jnp.zeros((batch,), jnp.int32), conv)

    def step(
        self, u: Array, state: AttentionState, *, segment_ids: Int[Array, " b"] | None = None
    ) -> tuple[Float[Array, "b d"], AttentionState]:
        """Mixes one token (b d): its output and the state after it. Segment ids are refused, as in a call."""
        ids = None if segment_ids is None else segment_ids[:, None]
        y, state = self(u[:, None], segment_ids=ids, state=state, return_state=True)
        return y[:, 0], state

    def _turn(self, x, positions):
        """Rotary positions (https://arxiv.org/abs/2104.09864) over halves of the first `rotary_dim` channels."""
        r = self.rotary_dim
        if r == 0:
            return x
        rates = self.rotary_base ** (-jnp.arange(0, r, 2, dtype=jnp.float32) / r)
        angles = positions[..., None, None].astype(jnp.float32) * rates[None, None, None]
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        first, second, rest = jnp.split(x.astype(jnp.float32), [r // 2, r], axis=-1)
        return jnp.concatenate([first * cos - second * sin, first * sin + second * cos, rest], axis=-1).astype(x.dtype)
