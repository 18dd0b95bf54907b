"""Language models of Mamba, Mamba-2, Mamba-3 or attention, and hybrids of the first three with attention."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, no_type_check

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from ssmjax import _compat, errors
from ssmjax.layers.common.attention import CausalAttention
from ssmjax.layers.common.norms import add_norm, make_norm
from ssmjax.layers.common.parameters import parameter
from ssmjax.layers.common.stack import apply_stack, make_stack
from ssmjax.layers.lti.s4d import S4D
from ssmjax.layers.selective.mamba import Mamba
from ssmjax.layers.selective.mamba2 import Mamba2
from ssmjax.layers.selective.mamba3 import Mamba3
from ssmjax.layers.selective.parts import projection
from ssmjax.models import language_steps as steps
from ssmjax.models.config import ComputeDtype, check_fields, frozen_options, require
from ssmjax.models.registry import Family, register_family
from ssmjax.shapes import Array, Float, Int, Mask, SegmentIds, Tokens

__all__ = ["GatedMLP", "LanguageBlock", "LanguageModel", "LanguageModelConfig"]

MIXERS = {"mamba": Mamba, "mamba2": Mamba2, "mamba3": Mamba3, "attention": CausalAttention, "s4d": S4D}

_DRAW = initializers.normal(0.02)  # made once: older Flax keeps initializers in a module's static definition
_WIDTH_MULTIPLE = 128
_EXAMPLE = 16  # the length of the input in summaries and registry-wide tests


@no_type_check
@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """Everything that makes a language model; the original's names are in brackets.

    Attributes:
        mixer: What mixes tokens: "mamba", "mamba2" or "mamba3" [`ssm_cfg.layer`]; "attention" or "s4d" for baselines.
        mixer_options: Further arguments of the mixer, a dictionary [`ssm_cfg`].
        vocab_size: The number of tokens.
        vocab_multiple: The rows of the embedding are rounded up to a multiple of it [`pad_vocab_size_multiple`].
        d_model: The width of a token.
        depth: The number of blocks [`n_layer`].
        attention_layers: Which blocks, counted from 0, have attention in place of the mixer [`attn_layer_idx`].
        attention_options: Further arguments of `CausalAttention` in those blocks [`attn_cfg`].
        mlp_width: The width of a gated MLP after each mixer, rounded up to a multiple of 128; 0 for none
            [`d_intermediate`].
        norm: "rms" or "layer" [`rms_norm`].
        norm_eps: Added to the mean square.
        tie_embeddings: Whether the head is the embedding's transpose.
        float32_residual: Whether the residual stream is float32 under any compute dtype [`residual_in_fp32`].
        dtype: What to compute in. Parameters, scans and their states, norms and logits are float32 in any case.
        unroll_layers: A Python loop over the blocks in place of a scan; compile time then grows with the depth.
        remat: Whether the backward pass recomputes the inside of each block, to save memory.

    Raises:
        ValueError: A field has a value of the wrong type or range, or contradicts another.

    >>> LanguageModelConfig(depth=4, attention_layers=(1,)).pattern
    ('layers', 'attention', 'layers', 'layers')
    """

    mixer: Literal["mamba", "mamba2", "mamba3", "attention", "s4d"] = "mamba"
    mixer_options: Mapping | tuple = ()
    vocab_size: int = 50277
    vocab_multiple: int = 8
    d_model: int = 768
    depth: int = 24
    attention_layers: tuple[int, ...] = ()
    attention_options: Mapping | tuple = ()
    mlp_width: int = 0
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    float32_residual: bool = True
    dtype: ComputeDtype = "float32"
    unroll_layers: bool = False
    remat: bool = False

    def __post_init__(self):
        for field in ("mixer_options", "attention_options"):  # pairs have a hash, and are the same after JSON
            frozen = frozen_options(type(self).__name__, field, getattr(self, field))
            object.__setattr__(self, field, frozen)
        check_fields(self)
        for field in ("vocab_size", "vocab_multiple", "d_model", "depth"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        require(self, "mlp_width", self.mlp_width >= 0, "at least 0")
        require(self, "norm_eps", self.norm_eps > 0, "positive")
        places = self.attention_layers
        inside = len(set(places)) == len(places) and all(0 <= place < self.depth for place in places)
        require(self, "attention_layers", inside, f"different blocks from 0 to {self.depth - 1}")
        require(self, "attention_layers", not places or self.mixer != "attention", "() with mixer='attention'")

    @property
    def vocab_rows(self) -> int:
        """The rows of the embedding, and the width of the logits."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def output_shape(self) -> tuple[int, int]:
        """The shape of the output for one example of the family's inputs."""
        return _EXAMPLE, self.vocab_rows

    @property
    def pattern(self) -> tuple[str, ...]:
        """The kind of each block: "layers" or "attention"."""
        return tuple("attention" if i in self.attention_layers else "layers" for i in range(self.depth))


class GatedMLP(nnx.Module):
    """`fc2(y * silu(gate))` with `y, gate = split(fc1(x))`.

    Args:
        d_model: The width of a token.
        width: The inner width, rounded up to a multiple of 128.
        out_scale: A factor on the initial `fc2`.
        dtype: The dtype of the computation.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> GatedMLP(4, 8, rngs=nnx.Rngs(0))(jnp.ones((1, 2, 4))).shape
    (1, 2, 4)
    """

    def __init__(self, d_model: int, width: int, *, out_scale: float = 1.0, dtype=jnp.float32, rngs: nnx.Rngs):
        width = -(-width // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
        options = dict(dtype=dtype, param_dtype=jnp.float32, rngs=rngs)
        self.fc1 = projection(d_model, 2 * width, **options)
        self.fc2 = projection(width, d_model, scale=out_scale, **options)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Maps each token on its own."""
        y, gate = jnp.split(self.fc1(x), 2, axis=-1)
        return self.fc2(y * jax.nn.silu(gate))


class LanguageBlock(nnx.Module):
    """A norm and a mixer, then perhaps a norm and an MLP; between blocks the residual stream passes by.

    Args:
        config: The model's configuration.
        kind: "layers" or "attention".
        rngs: Source of the initial values.
    """

    def __init__(self, config: LanguageModelConfig, kind: str, *, rngs: nnx.Rngs):
        attention = kind == "attention"
        build = MIXERS["attention" if attention else config.mixer]
        options = dict(config.attention_options if attention else config.mixer_options)
        scale, make = config.depth**-0.5, dict(eps=config.norm_eps, dtype=config.dtype)
        self.norm = make_norm(config.norm, config.d_model, **make)
        options = options if build is S4D else {"out_scale": scale} | options
        self.mixer = build(config.d_model, **options, dtype=config.dtype, rngs=rngs)
        d, width = config.d_model, config.mlp_width
        self.norm2 = make_norm(config.norm, d, **make) if width else None
        self.mlp = GatedMLP(d, width, out_scale=scale, dtype=config.dtype, rngs=rngs) if width else None

    def __call__(self, hidden: Tokens, residual: Tokens, **options: Any) -> tuple[Tokens, Tokens, Any]:
        """The last part's output for `residual + hidden`, the sum before it, and the mixer's state if it is asked for.

        The options are those of a mixer.
        """
        x, residual = add_norm(self.norm, hidden, residual)
        hidden, state = self.mixer(x, **options) if options.get("return_state") else (self.mixer(x, **options), None)  # type: ignore[assignment]
        return *self._mlp(hidden, residual), state

    def step(self, hidden: Array, residual: Array, state: Any) -> tuple[Array, Array, Any]:
        """The same for one token (b d)."""
        x, residual = add_norm(self.norm, hidden, residual)
        hidden, state = self.mixer.step(x, state)
        return *self._mlp(hidden, residual), state

    def _mlp(self, hidden, residual):
        if self.mlp is None:
            return hidden, residual
        x, residual = add_norm(self.norm2, hidden, residual)
        return self.mlp(x), residual


class LanguageModel(nnx.Module):
    """Token embeddings, `depth` blocks, a final norm and a head that predicts the next token.

    It is the language model of Mamba (https://arxiv.org/abs/2312.00752, section 3.4) and of its successors, and plugs
    into `ssmjax.generate`. Initial values as there: embeddings normal with standard deviation 0.02, the last projection
    of each block scaled by `1 / sqrt(depth)`.

    Args:
        config: The configuration.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> config = LanguageModelConfig(vocab_size=30, d_model=16, depth=2)
    >>> LanguageModel(config, rngs=nnx.Rngs(0))(jnp.zeros((2, 5), int)).shape
    (2, 5, 32)
    """

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        rows, d = config.vocab_rows, config.d_model
        self.embedding = parameter(_DRAW(rngs.params(), (rows, d)), "embedding")
        for kind in ("layers", "attention"):
            make, depth = functools.partial(LanguageBlock, config, kind), config.pattern.count(kind)
            setattr(self, kind, make_stack(lambda rngs, make=make: make(rngs=rngs), depth, rngs) if depth else None)
        self.norm_f = make_norm(config.norm, d, eps=config.norm_eps, dtype=config.dtype)
        options = dict(dtype=config.dtype, param_dtype=jnp.float32, rngs=rngs)
        self.head = None if config.tie_embeddings else projection(d, rows, **options)

    def __call__(
        self, tokens: Int[Array, "b l"], *, mask: Mask | None = None, segment_ids: SegmentIds | None = None
    ) -> Float[jax.Array, "b l v"]:
        """The logits of the next token at each place.

        Args:
            tokens: (b l) int.
            mask: (b l), False at padding, which may be anywhere.
            segment_ids: (b l), which of several packed sequences a token belongs to.

        Returns:
            (b l v) float32, v being the vocabulary rounded up to a multiple; those at padding mean nothing.

        Raises:
            ValueError: The tokens are no whole numbers (b l).
        """
        return self.logits(self.features(tokens, mask=mask, segment_ids=segment_ids))

    def features(
        self, tokens: Int[Array, "b l"], *, mask: Mask | None = None, segment_ids: SegmentIds | None = None
    ) -> Float[jax.Array, "b l d"]:
        """What the head reads; with `head_kernel` it gives a loss without logits of all tokens at once."""
        self._check(tokens)
        return self.encode(self.embed(tokens), mask=mask, segment_ids=segment_ids)

    def encode(self, x: Tokens, *, mask: Mask | None = None, segment_ids: SegmentIds | None = None) -> Tokens:
        """The blocks and the final norm on embeddings (b l d), whatever they are of."""
        hidden, residual, _ = self._run(x, mask=mask, segment_ids=segment_ids)
        return add_norm(self.norm_f, hidden, residual)[0]

    def hidden_states(
        self, tokens: Int[Array, "b l"], *, mask: Mask | None = None, segment_ids: SegmentIds | None = None
    ) -> Float[jax.Array, "s b l d"]:
        """The embeddings, then the residual stream after each block, the last after the final norm: (depth+1 b l d)."""
        self._check(tokens)
        embedded = self.embed(tokens)
        hidden, residual, sums = self._run(embedded, every=True, mask=mask, segment_ids=segment_ids)
        last = add_norm(self.norm_f, hidden, residual)[0]
        states = [sums[kind][i] for kind, i in steps.places(self.config.pattern)]
        return jnp.stack([embedded.astype(jnp.float32), *states[:-1], last.astype(jnp.float32)])

    def embed(self, tokens: Int[Array, "*b"]) -> Float[jax.Array, "*b d"]:
        """The embeddings of tokens, in the compute dtype."""
        return _compat.look_up(self.embedding[...], tokens).astype(self.config.dtype)

    @property
    def head_kernel(self) -> Float[jax.Array, "d v"]:
        """The matrix of the head, in the compute dtype."""
        kernel = self.embedding[...].T if self.head is None else self.head.kernel[...]
        return kernel.astype(self.config.dtype)

    def logits(self, x: Float[Array, "*b d"]) -> Float[jax.Array, "*b v"]:
        """The head, on what `features` returns; float32."""
        return jnp.matmul(x, self.head_kernel, preferred_element_type=jnp.float32)

    def init_cache(self, batch: int, length: int) -> dict[str, Any]:
        """What the mixers remember before the first token: the states of all blocks, by kind.

        Args:
            batch: Rows.
            length: How many tokens the attention can hold, padding included; the others need no room.

        >>> config = LanguageModelConfig(vocab_size=30, d_model=16, depth=2)
        >>> LanguageModel(config, rngs=nnx.Rngs(0)).init_cache(3, 100)["layers"].ssm.shape
        (2, 3, 32, 16)
        """
        cache = {}
        for kind in set(self.config.pattern):
            definition, values = nnx.split(getattr(self, kind))
            mixer = nnx.merge(definition, jax.tree.map(lambda x: x[0], values)).mixer
            one = mixer.init_state(batch, length) if isinstance(mixer, CausalAttention) else mixer.init_state(batch)
            depth = self.config.pattern.count(kind)
            cache[kind] = jax.tree.map(lambda x, n=depth: jnp.broadcast_to(x[None], (n, *x.shape)), one)
        return cache

    def prefill(
        self, tokens: Int[Array, "b l"], cache: dict[str, Any], *, mask: Mask | None = None, chunk: int = 4096
    ) -> tuple[Float[jax.Array, "b v"], dict[str, Any]]:
        """Reads a prompt in parallel: the logits after its last token, and the cache.

        Args:
            tokens: (b l) int.
            cache: From `init_cache`, or what came before.
            mask: (b l), False at padding, which is on the left.
            chunk: Longer prompts are read in pieces of so many tokens, in memory that does not grow with the prompt.
        """
        self._check(tokens)
        b, l = tokens.shape
        mask = None if mask is None else jnp.asarray(mask) != 0
        first = l if l <= chunk else l % chunk or chunk

        def read(cache, piece):
            tokens, mask = piece
            hidden, residual, cache = self._run(self.embed(tokens), cache=cache, mask=mask)
            return cache, add_norm(self.norm_f, hidden[:, -1:], residual[:, -1:])[0]

        cache, x = read(cache, (tokens[:, :first], None if mask is None else mask[:, :first]))
        if first < l:
            pieces = jax.tree.map(lambda v: v[:, first:].reshape(b, -1, chunk).swapaxes(0, 1), (tokens, mask))
            cache, last = jax.lax.scan(read, cache, pieces)
            x = last[-1]
        return self.logits(x[:, 0]), cache

    def step(self, tokens: Int[Array, "b"], cache: dict[str, Any]) -> tuple[Float[jax.Array, "b v"], dict[str, Any]]:
        """Reads one token a row: the logits after it, and the cache."""
        hidden = self.embed(tokens)

        def block(carry, block, state):
            *carry, state = block.step(*carry, state)
            return tuple(carry), state

        (hidden, residual), cache = self._apply(block, (hidden, self.no_residual(hidden)), cache)
        return self.logits(add_norm(self.norm_f, hidden, residual)[0]), cache

    def unstacked(self) -> dict[str, list[Any]] | None:
        """The arrays of each block on its own, by kind, where they cost nothing: on a CPU; else None."""
        return steps.unstacked({kind: getattr(self, kind) for kind in dict.fromkeys(self.config.pattern)})

    def decoder(self, rows: dict[str, list[Any]] | None, *, transposed: bool = False) -> steps.Decoder | None:
        """What runs the steps of generation in place of `step`, or None where `step` is best.

        Args:
            rows: From `unstacked`. With `unroll_layers` they may be None: they are then cut out of the stacks.
            transposed: Whether the matrices are laid out anew first, for steps of several rows; see `Decoder`.
        """
        return steps.Decoder(self, rows, transposed) if rows is not None or self.config.unroll_layers else None

    def _run(self, hidden, *, cache=None, every=False, **options):
        """The last block's output, the residual before it, and the cache, or with `every` all residual streams."""

        def block(carry, block, state):
            kept = {} if cache is None else {"state": state, "return_state": True}
            *carry, state = block(*carry, **options, **kept)
            return tuple(carry), sum(x.astype(jnp.float32) for x in carry) if every else state

        carry, results = self._apply(block, (hidden, self.no_residual(hidden)), cache)
        return *carry, results

    def _apply(self, block, carry, values):
        config = self.config
        stacks = {kind: getattr(self, kind) for kind in dict.fromkeys(config.pattern)}
        options = dict(unroll=config.unroll_layers, remat=config.remat)
        return apply_stack(stacks, block, carry, values, pattern=config.pattern, outputs=True, **options)

    def no_residual(self, hidden: Array) -> jax.Array:
        """The residual stream before the first block: zeros like its input."""
        return jnp.zeros_like(hidden, dtype=jnp.float32 if self.config.float32_residual else hidden.dtype)

    def _check(self, tokens):
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise errors.bad_shape("LanguageModel", "tokens", tokens, "an integer array of rank 2, (b l)")


register_family(
    Family(
        "language_model",
        LanguageModelConfig,
        LanguageModel,
        inputs=lambda config, batch: {"tokens": jax.ShapeDtypeStruct((batch, _EXAMPLE), jnp.int32)},
        tiny={"vocab_size": 30, "d_model": 64, "depth": 2, "attention_layers": (), "mixer_options": ()},
        hf="ssmjax.checkpoints.from_torch.mamba_hf:LAYOUTS",
    )
)
