"""Language models of the Llama kind: Llama, Vicuna and Qwen2."""

import dataclasses
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from ssmjax import _compat, errors, ops
from ssmjax.layers import RMSNorm
from ssmjax.layers.common.parameters import parameter, with_kinds
from ssmjax.layers.common.stack import apply_stack, make_stack
from ssmjax.models.config import ComputeDtype, check_fields, require
from ssmjax.models.registry import Family, register_family, register_model
from ssmjax.ops import KVCache
from ssmjax.shapes import Array, Float, Int, Mask, SegmentIds, Tokens
from vlmjax.layers.rope import Llama3Scaling, rope_angles
from vlmjax.layers.transformer import BlockSize, TransformerBlock, linear

__all__ = ["CausalLM", "LMCache", "LlamaConfig", "Qwen2Config"]

_DRAW = initializers.normal(0.02)


class LMCache(NamedTuple):
    """What a language model keeps between steps.

    Attributes:
        layers: A `KVCache` whose arrays have a leading axis of the layers; a list of them where the layers are a list.
        position: (b), the position of the next token; padding counts for none. An array of numpy while nothing has
            been read, so that the first prefill, in the same trace, knows that it need not look at the cache.
    """

    layers: KVCache | list[KVCache]
    position: Array

    @property
    def fresh(self) -> bool:
        """Whether it is known, while tracing, that nothing has been read."""
        return isinstance(self.position, np.ndarray) and not self.position.any()


@no_type_check
@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Llama and Vicuna (https://arxiv.org/abs/2302.13971); the defaults are those of Llama 2 with 7 billion parameters.

    Attributes:
        vocab: The number of tokens.
        d_model: The width of a token.
        depth: The number of blocks.
        heads: The heads of the queries.
        kv_heads: Those of keys and values; None means `heads`.
        head_dim: The width of a head; None means `d_model / heads`.
        d_mlp: The inner width of the MLPs.
        eps: The epsilon of the norms.
        rope_base: The base of the rotary wavelengths.
        rope_scaling: Llama 3.1's stretching of them, (factor, low, high, original length), or None.
        rope_sections: How many of the wavelengths turn by time, by rows and by columns where a token has a position in
            each (M-RoPE of Qwen2-VL); None where it has one.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        out_bias: Whether the attention's output projection has one.
        mlp_bias: Whether the MLPs have.
        tied: Whether the table of embeddings is the head, too.
        max_length: The longest sequence.
        dtype: What to compute in; parameters, norms, the residual stream and logits are float32 in any case.
        unroll_layers: A Python loop over the blocks in place of a scan.
        remat: Whether the backward pass recomputes the inside of each block.

    Raises:
        ValueError: A field has a value of the wrong type or range.

    >>> LlamaConfig().block.head_width
    128
    """

    vocab: int = 32000
    d_model: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int | None = None
    head_dim: int | None = None
    d_mlp: int = 11008
    eps: float = 1e-5
    rope_base: float = 10000.0
    rope_scaling: tuple[float, float, float, int] | None = None
    rope_sections: tuple[int, int, int] | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    max_length: int = 4096
    dtype: ComputeDtype = "float32"
    unroll_layers: bool = False
    remat: bool = False

    def __post_init__(self):
        check_fields(self)
        for field in ("vocab", "d_model", "depth", "heads", "d_mlp", "max_length"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        half = self.block.head_width // 2
        require(self, "head_dim", self.block.head_width % 2 == 0, "even, as channels turn in pairs")
        fits = self.rope_sections is None or sum(self.rope_sections) == half
        require(self, "rope_sections", fits, f"three numbers whose sum is half a head, {half}")

    @property
    def scaling(self) -> Llama3Scaling | None:
        """The stretching of the wavelengths."""
        return None if self.rope_scaling is None else Llama3Scaling(*self.rope_scaling)

    @property
    def block(self) -> BlockSize:
        """The size of a block."""
        return BlockSize(
            self.d_model,
            self.heads,
            self.d_mlp,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            norm="rms",
            eps=self.eps,
            activation="silu",
            gated=True,
            causal=True,
            qkv_bias=self.qkv_bias,
            out_bias=self.out_bias,
            mlp_bias=self.mlp_bias,
            out_scale=(2 * self.depth) ** -0.5,
            dtype=self.dtype,
        )


@no_type_check
@dataclasses.dataclass(frozen=True)
class Qwen2Config(LlamaConfig):
    """Qwen2 (https://arxiv.org/abs/2407.10671): Llama with biases on queries, keys and values.

    The defaults are those of Qwen2 with 0.5 billion parameters; the fields are those of `LlamaConfig`.

    >>> Qwen2Config().tied
    True
    """

    vocab: int = 151936
    d_model: int = 896
    depth: int = 24
    heads: int = 14
    kv_heads: int | None = 2
    d_mlp: int = 4864
    eps: float = 1e-6
    rope_base: float = 1000000.0
    qkv_bias: bool = True
    tied: bool = True
    max_length: int = 32768


class CausalLM(nnx.Module):
    """A decoder-only language model: embeddings, pre-norm blocks with rotary positions, a norm, a head.

    Args:
        config: A `LlamaConfig` or a `Qwen2Config`.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> config = LlamaConfig(vocab=11, d_model=16, depth=2, heads=2, d_mlp=32, max_length=32)
    >>> model = CausalLM(config, rngs=nnx.Rngs(0))
    >>> tokens = jnp.array([[1, 2, 3]])
    >>> logits, cache = model.prefill(tokens, model.init_cache(1, 8))
    >>> bool(jnp.allclose(logits, model(tokens)[:, -1], atol=1e-5))
    True
    """

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = parameter(_DRAW(rngs.params(), (config.vocab, config.d_model)), "embedding")
        self.layers = make_stack(lambda rngs: TransformerBlock(config.block, rngs=rngs), config.depth, rngs)
        self.norm = RMSNorm(config.d_model, eps=config.eps)
        options = dict(use_bias=False, dtype=config.dtype, rngs=rngs)
        self.head = None if config.tied else with_kinds(linear(config.d_model, config.vocab, **options), kernel="head")

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        *,
        mask: Mask | None = None,
        segment_ids: SegmentIds | None = None,
        positions: Int[Array, "b l"] | Int[Array, "b l 3"] | None = None,
    ) -> Float[jax.Array, "b l v"]:
        """Logits of the next token at every position.

        Args:
            tokens: (b l) int.
            mask: (b l), False at padding, which may be anywhere and hold anything; it counts for no position.
            segment_ids: (b l), of packed sequences: tokens of different ids do not see each other. Pass `positions`
                with them.
            positions: (b l), where each token stands, or (b l 3) with `rope_sections`: in time, rows and columns; by
                default they count the real tokens.

        Returns:
            (b l v), float32; those at padding mean nothing.
        """
        self.check_inputs(tokens, mask=mask)
        x, _ = self.decode(self.embed(tokens, mask), mask=mask, segment_ids=segment_ids, positions=positions)
        return self.logits(x)

    def embed(self, tokens: Int[Array, "b l"], mask: Mask | None = None) -> Tokens:
        """The embeddings of tokens, float32; zero at padding."""
        x = _compat.look_up(self.embedding[...], tokens)
        return x if mask is None else jnp.where(mask[..., None], x, 0)

    def decode(
        self,
        x: Tokens,
        *,
        mask: Mask | None = None,
        segment_ids: SegmentIds | None = None,
        positions: Int[Array, "b l"] | Int[Array, "b l 3"] | None = None,
        bias: Float[Array, "b l"] | None = None,
        cache: LMCache | None = None,
        after: Int[Array, "b"] | None = None,
    ) -> tuple[Tokens, LMCache | None]:
        """Runs the blocks and the final norm on embeddings, of text or of anything else.

        Args:
            x: (b l d).
            mask: (b l), False at padding.
            segment_ids: (b l), of packed sequences; not with a cache.
            positions: (b l) or (b l 3); by default they count the real tokens on from the cache's.
            bias: (b l), the log sizes of merged tokens.
            cache: What came before.
            after: (b), the position of the next token; by default behind the largest of all.

        Returns:
            (b l d) float32 after the final norm, and the cache with the tokens in it, or None.
        """
        hidden, cache = self._run(x, mask, segment_ids, positions, bias, cache, every=False)
        if cache is not None and after is not None:
            cache = cache._replace(position=after)
        return self.norm(hidden), cache

    def hidden_states(
        self,
        x: Tokens,
        *,
        mask: Mask | None = None,
        positions: Int[Array, "b l"] | Int[Array, "b l 3"] | None = None,
    ) -> Float[jax.Array, "s b l d"]:
        """What enters the first block, then the output of each, the last after the final norm: (depth+1 b l d)."""
        x = x.astype(jnp.float32)
        states, _ = self._run(x, mask, None, positions, None, None, every=True)
        return jnp.concatenate([x[None], states[:-1], self.norm(states[-1])[None]])

    def logits(self, x: Float[Array, "*b d"]) -> Float[jax.Array, "*b v"]:
        """The head, on what `decode` returns; float32."""
        if self.head is None:
            dtype = self.config.dtype
            return (x.astype(dtype) @ self.embedding[...].astype(dtype).T).astype(jnp.float32)
        return self.head(x).astype(jnp.float32)

    def init_cache(self, batch: int, length: int) -> LMCache:
        """An empty cache.

        Args:
            batch: Rows.
            length: How many tokens it can hold, padding included.

        Raises:
            ValueError: The length is beyond the model's `max_length`.
        """
        config, block = self.config, self.config.block
        if length > config.max_length:
            remedy = "Ask for fewer new tokens, or shorten the prompt."
            raise errors.bad_argument("CausalLM", "length", length, f"at most max_length = {config.max_length}", remedy)
        one = ops.empty_cache(batch, length, block.groups, block.head_width, dtype=config.dtype)
        if isinstance(self.layers, list):
            return LMCache([one] * config.depth, np.zeros((batch,), np.int32))
        layers = jax.tree.map(lambda v: jnp.broadcast_to(v[None], (config.depth, *v.shape)), one)
        return LMCache(layers, np.zeros((batch,), np.int32))

    def prefill(
        self, tokens: Int[Array, "b l"], cache: LMCache, *, mask: Mask | None = None
    ) -> tuple[Float[jax.Array, "b v"], LMCache]:
        """Reads a prompt in parallel: the logits after its last token, and the cache. Padding is on the left.

        Args:
            tokens: (b l) int.
            cache: From `init_cache`, or what came before.
            mask: (b l), False at padding.
        """
        x, cache = self.decode(self.embed(tokens, mask), mask=mask, cache=cache)  # type: ignore[assignment]
        return self.logits(x[:, -1]), cache

    def step(self, tokens: Int[Array, "b"], cache: LMCache) -> tuple[Float[jax.Array, "b v"], LMCache]:
        """Reads one token a row: the logits after it, and the cache."""
        return self.prefill(tokens[:, None], cache)

    def check_inputs(self, tokens: Int[Array, "b l"], *, mask: Mask | None = None) -> None:
        """Raises `ValueError` unless these are tokens that the model has, and no more of them than it takes.

        Args:
            tokens: (b l); their values are looked at outside of `jax.jit` only.
            mask: (b l), False at what is not looked at, such as padding.
        """
        self.check_tokens(tokens)
        if isinstance(tokens, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
            return
        known = np.asarray(tokens)
        wrong = (known < 0) | (known >= self.config.vocab)
        wrong = wrong if mask is None else wrong & np.asarray(mask, bool)
        if wrong.any():
            got, wanted = int(known[wrong][0]), f"whole numbers from 0 to {self.config.vocab - 1}"
            remedy = "Is it another model's tokenizer, or another number for an image?"
            raise errors.bad_argument(type(self).__name__, "tokens", got, wanted, remedy)

    def check_tokens(self, tokens: Array) -> None:
        """Raises `ValueError` unless these are whole numbers (b l), no more of them than the model's `max_length`."""
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise errors.bad_shape(type(self).__name__, "tokens", tokens, "an integer array of rank 2, (b l)")
        if tokens.shape[1] > self.config.max_length:
            wanted = f"(b l) with l at most max_length = {self.config.max_length}"
            raise errors.bad_shape(type(self).__name__, "tokens", tokens, wanted, "Shorten the text.")

    def _run(self, x, mask, segment_ids, positions, bias, cache, *, every):
        """The last block's output or every block's, before the final norm, and the cache."""
        config = self.config
        if positions is None:
            count = jnp.ones(x.shape[:2], jnp.int32) if mask is None else mask.astype(jnp.int32)
            start = 0 if cache is None else jnp.asarray(cache.position)[:, None]
            positions = jnp.maximum(jnp.cumsum(count, axis=1) - 1, 0) + start
        angles = rope_angles(
            positions,
            config.block.head_width,
            base=config.rope_base,
            scaling=config.scaling,
            sections=config.rope_sections,
        )
        options = dict(angles=angles, mask=mask, segment_ids=segment_ids, bias=bias)
        fresh = cache is not None and cache.fresh

        def step(x, block, layer_cache):
            x, layer_cache = block(x, cache=layer_cache, fresh=fresh, **options)
            return x, (x if every else None, layer_cache)

        x, out = apply_stack(
            self.layers,
            step,
            x.astype(jnp.float32),
            None if cache is None else cache.layers,
            outputs=True,
            unroll=config.unroll_layers,
            remat=config.remat,
        )
        states, layers = tuple(map(list, zip(*out, strict=True))) if isinstance(out, list) else out
        # A padded prompt's last token is real, and so is the largest position of its row.
        cache = None if cache is None else LMCache(layers, positions.reshape(x.shape[0], -1).max(1) + 1)
        return (states if every else x), cache


def _register(name: str, config: type) -> None:
    register_family(
        Family(
            name,
            config,
            CausalLM,
            input_shape=lambda config, batch: (batch, min(16, config.max_length)),
            input_dtype=lambda config: jnp.int32,
            tiny={"vocab": 32, "d_model": 16, "depth": 2, "heads": 2, "kv_heads": 1, "d_mlp": 32, "max_length": 64},
            hf=f"vlmjax.checkpoints.hf_language:{name.upper()}",
        )
    )


_register("llama", LlamaConfig)
_register("qwen2", Qwen2Config)
LLAMA_NANO = LlamaConfig(vocab=64, d_model=128, depth=4, heads=4, d_mlp=384, max_length=256)
register_model("llama_nano", "llama", LLAMA_NANO)
register_model("llama2_7b", "llama", LlamaConfig())
register_model("vicuna_7b", "llama", LlamaConfig())
register_model("qwen2_0_5b", "qwen2", Qwen2Config())
register_model(
    "qwen2_nano", "qwen2", Qwen2Config(vocab=64, d_model=128, depth=4, heads=4, kv_heads=2, d_mlp=384, max_length=256)
)
