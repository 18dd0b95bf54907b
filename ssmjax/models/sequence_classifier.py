"""Classifiers and regressors of sequences: an encoder, a stack of state space blocks, a pooling and a linear head."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.layers.common.checks import check_array, check_lengths, check_mask
from ssmjax.layers.common.gates import GateKind, Gelu
from ssmjax.layers.common.norms import BatchNorm, make_norm
from ssmjax.layers.common.parameters import with_kinds
from ssmjax.layers.common.pooling import Pool, pool
from ssmjax.layers.common.stack import apply_stack, make_stack
from ssmjax.layers.common.token_encoder import TokenEncoder
from ssmjax.layers.lti.s4 import L_MAX
from ssmjax.layers.mixers import check_mixer_options, find_mixer
from ssmjax.layers.sequence_block import SequenceBlock
from ssmjax.models.config import ComputeDtype, check_fields, frozen_options, require
from ssmjax.models.mode import follows_mode
from ssmjax.models.registry import Family, register_family
from ssmjax.shapes import Array, Bool, Float, Int, Mask, PRNGKey

__all__ = ["SequenceClassifier", "SequenceConfig", "SequenceRegressor", "SequenceRegressorConfig"]


_DISCRETIZATION = {"s4d": "zoh", "s4nd": "zoh", "s5": "zoh", "dss": "softmax"}  # the layers' own defaults


@no_type_check
@dataclasses.dataclass(frozen=True)
class SequenceConfig:
    """Everything that makes a sequence classifier.

    Attributes:
        layer: The mixer, "s4", "s4d", "dss", "s4nd", "s5", "lru", "mamba", ...; see `layers.registered_mixers`.
        num_classes: The number of outputs.
        in_features: The width of the input; not used with a vocabulary.
        vocab_size: The number of tokens, for inputs that are tokens; None for inputs that are numbers.
        encoder_bias: Whether the encoder has a bias. S4 embeds tokens without, S5 maps their one-hot vectors with one.
        documents: 2: an input is a pair of sequences (b 2 l), and the head compares the two.
        d_model: The width of a token.
        depth: The number of blocks.
        d_state: The state size of the layer.
        bidirectional: "exclusive" (S4) or "inclusive" (S5), see the layers, or "none". True is the convention of the
            layer's own papers, False is "none".
        l_max: A length, which means something else for each layer. "s4": the longest sequence, for which its parameters
            are made; None: 1024. "s4d": how many tokens back the convolution reaches; None: to the first. "dss": the
            longest sequence, over whose length the modes are normalized; None: over that of each sequence. "s4nd":
            as "s4d" along each axis; with `layer_options={"kernel": "s4"}` as "s4", and needed. None for "s5" and
            "lru", which have no such length. Where it is set, and for "s4" in any case, the `rate` of a call must be a
            Python number.
        layer_options: Further arguments of the layer, a dictionary.
        gate: What follows the layer in a block, see `Gate`.
        gelu: "exact" or "tanh".
        dropout: Its probability; one draw a feature for all tokens.
        norm: "layer" or "batch".
        norm_eps: Added to the variance.
        bn_momentum: How much of the running statistics of a batch norm stays at each step.
        bn_unbiased: Whether their variance is the unbiased estimate, as in PyTorch.
        prenorm: Whether a block's norm comes first; otherwise last, after the residual.
        final_norm: Whether there is a norm after the blocks.
        pool: What the head reads: the "mean", the "max" or the "last" of the real tokens; "none": every token.
        padding: "masked": no layer, norm or pooling reads padding. "pooled": only the pooling leaves it out, as in the
            original S5, for checkpoints that were trained so.
        dtype: What to compute in. Parameters, state spaces, norms, the residual stream and logits are float32 in any
            case.
        unroll_layers: A Python loop over the blocks in place of a scan; compile time then grows with the depth.
        remat: Whether the backward pass recomputes the inside of each block, to save memory.

    Raises:
        ValueError: A field has a value of the wrong type or range, or contradicts another.

    >>> SequenceConfig("s5", layer_options={"blocks": 8}).layer_arguments["blocks"]
    8
    """

    layer: str = "s4d"
    num_classes: int = 10
    in_features: int = 1
    vocab_size: int | None = None
    encoder_bias: bool = True
    documents: int = 1
    d_model: int = 128
    depth: int = 4
    d_state: int = 64
    bidirectional: bool | Literal["none", "exclusive", "inclusive"] = False
    l_max: int | None = None
    layer_options: Mapping | tuple = ()
    gate: GateKind = "glu"
    gelu: Gelu = "exact"
    dropout: float = 0.0
    norm: Literal["layer", "batch"] = "layer"
    norm_eps: float = 1e-5
    bn_momentum: float = 0.9
    bn_unbiased: bool = False
    prenorm: bool = True
    final_norm: bool = True
    pool: Pool = "mean"
    padding: Literal["masked", "pooled"] = "masked"
    dtype: ComputeDtype = "float32"
    unroll_layers: bool = False
    remat: bool = False

    def __post_init__(self):
        # Pairs in place of a dictionary: a configuration is hashable, and equal to itself after JSON.
        frozen = frozen_options(type(self).__name__, "layer_options", self.layer_options)
        object.__setattr__(self, "layer_options", frozen)
        check_fields(self)
        for field in ("num_classes", "in_features", "d_model", "depth", "d_state"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        for field in ("vocab_size", "l_max"):
            require(self, field, getattr(self, field) is None or getattr(self, field) >= 1, "at least 1, or None")
        require(self, "dropout", 0 <= self.dropout < 1, "in [0, 1)")
        require(self, "bn_momentum", 0 <= self.bn_momentum < 1, "in [0, 1)")
        require(self, "norm_eps", self.norm_eps > 0, "positive")
        require(self, "documents", self.documents in (1, 2), "1 or 2")
        require(self, "pool", self.documents == 1 or self.pool != "none", "'mean', 'max' or 'last' with documents=2")
        known = find_mixer(type(self).__name__, self.layer).options(dict(self.layer_options))
        remedy = "Its sequences may be of any length, and none of its parameters depends on one."
        timeless = "l_max" not in known
        require(self, "l_max", self.l_max is None or not timeless, f"None with layer={self.layer!r}", remedy)
        directed = "bidirectional" in known or self.bidirectional in (False, "none")
        require(self, "bidirectional", directed, f"False with layer={self.layer!r}", "'bimamba' reads both ways.")
        require(self, "vocab_size", self.layer != "s4nd" or self.vocab_size is None, "None with layer='s4nd'")
        require(self, "pool", self.layer != "s4nd" or self.pool in ("mean", "max"), "'mean' or 'max' with layer='s4nd'")
        check_mixer_options(type(self).__name__, self.layer, self.layer_arguments)

    @property
    def layer_arguments(self) -> dict[str, Any]:
        """The arguments of the layer."""
        school = "inclusive" if self.layer in ("s5", "lru") else "exclusive"
        direction = {True: school, False: "none"}.get(self.bidirectional, self.bidirectional)
        known = find_mixer(type(self).__name__, self.layer).options(dict(self.layer_options))
        arguments = {"d_state": self.d_state, "bidirectional": direction}
        arguments = {name: value for name, value in arguments.items() if name in known} | dict(self.layer_options)
        return arguments if self.l_max is None else {"l_max": self.l_max, **arguments}

    @property
    def parameters_depend_on(self) -> dict[str, Any]:
        """What the parameters are made for though their shapes do not tell: the length of S4's C~, the discretization.

        >>> SequenceConfig("s4", l_max=64).parameters_depend_on, SequenceConfig("s4d", l_max=64).parameters_depend_on
        ({'l_max': 64}, {'discretization': 'zoh'})
        """
        arguments = self.layer_arguments
        l_max = arguments.get("l_max", L_MAX)
        if self.layer == "s4":
            return {"l_max": l_max}
        if self.layer == "s4nd" and arguments.get("kernel") == "s4":
            return {"l_max": l_max if isinstance(l_max, tuple) else (l_max,) * self.axes}
        if (default := _DISCRETIZATION.get(self.layer)) is not None:
            return {"discretization": arguments.get("discretization", default)}
        return {}

    @property
    def outputs(self) -> int:
        """The number of outputs."""
        return self.num_classes

    @property
    def axes(self) -> int:
        """How many axes an input has between batch and features."""
        return self.layer_arguments.get("axes", 2) if self.layer == "s4nd" else 1


@no_type_check
@dataclasses.dataclass(frozen=True)
class SequenceRegressorConfig(SequenceConfig):
    """Everything that makes a sequence regressor: as `SequenceConfig`, whose `num_classes` it does not read.

    Attributes:
        out_features: The number of outputs, of the sequence or (with `pool="none"`) of each token.

    >>> SequenceRegressorConfig(out_features=3, pool="none").outputs
    3
    """

    out_features: int = 1

    def __post_init__(self):
        super().__post_init__()
        require(self, "out_features", self.out_features >= 1, "at least 1")

    @property
    def outputs(self) -> int:
        """The number of outputs."""
        return self.out_features


@follows_mode
class SequenceClassifier(nnx.Module):
    """A stack of state space blocks over a sequence, and a linear head on its pooled tokens.

    Section 4 of S4 (https://arxiv.org/abs/2111.00396) and appendix G of S5 (https://arxiv.org/abs/2208.04933).

    Args:
        config: The configuration.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> model = SequenceClassifier(SequenceConfig("s5", d_model=8, depth=2, d_state=4), rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((2, 30, 1)), lengths=jnp.array([30, 7])).shape
    (2, 10)
    """

    def __init__(self, config: SequenceConfig, *, rngs: nnx.Rngs):
        self.config = config
        d = config.d_model
        if config.vocab_size is None:
            options = dict(use_bias=config.encoder_bias, dtype=config.dtype, rngs=rngs)
            self.encoder = with_kinds(nnx.Linear(config.in_features, d, **options))
        else:
            self.encoder = TokenEncoder(config.vocab_size, d, use_bias=config.encoder_bias, rngs=rngs)
        norm_options = {"eps": config.norm_eps}
        if config.norm == "batch":
            norm_options |= {"momentum": config.bn_momentum, "unbiased": config.bn_unbiased}

        def block(rngs: nnx.Rngs) -> SequenceBlock:
            return SequenceBlock(
                d,
                layer=config.layer,
                layer_options=config.layer_arguments,
                gate=config.gate,
                gelu=config.gelu,
                dropout=config.dropout,
                norm=config.norm,
                norm_options=norm_options,
                prenorm=config.prenorm,
                dtype=config.dtype,
                rngs=rngs,
            )

        self.layers = make_stack(block, config.depth, rngs)
        self.norm = make_norm(config.norm, d, **norm_options) if config.final_norm else None
        if config.documents == 2:
            self.compare = with_kinds(nnx.Linear(4 * d, d, rngs=rngs))
        self.head = with_kinds(nnx.Linear(d, config.outputs, rngs=rngs), kernel="head")

    def __call__(
        self,
        inputs: Array,
        *,
        mask: Bool[Array, "b *pair l"] | None = None,
        lengths: Int[Array, "b *pair"] | None = None,
        train: bool | None = None,
        key: PRNGKey | None = None,
        rate: float | Array = 1.0,
    ) -> Float[jax.Array, "b v"] | Float[jax.Array, "b l v"]:
        """The outputs for a batch of sequences.

        Args:
            inputs: (b l in_features) floating, or (b l) integers with a vocabulary; (b *s in_features) for "s4nd". A
                pair of documents has an axis of 2 after the batch, as have its `mask` and `lengths`.
            mask: (b l), False at padding.
            lengths: (b), the number of real tokens of each row, of which padding follows; in place of `mask`.
            train: Whether dropout acts, and whether a batch norm uses and records the statistics of the batch; None: by
                `model.train()` or `.eval()`.
            key: The random key; needed with `train=True` and a dropout above 0.
            rate: A factor on the step sizes: 2 for an input sampled at half the rate. A Python number, not a traced
                array, for "s4" and wherever `l_max` is set.

        Returns:
            (b v) float32; with `pool="none"` (b l v).

        Raises:
            ValueError: The inputs, the mask or the lengths have another shape or dtype, or the key is missing.
        """
        config = self.config
        if config.documents == 2:
            inputs, mask, lengths, batch = _unpair(type(self).__name__, inputs, mask, lengths)
            features = self._features(inputs, mask, lengths, train, key, rate)
            first, second = features.reshape(batch, 2, -1).swapaxes(0, 1)
            features = jnp.concatenate([first, second, first - second, first * second], axis=-1)
            return self.head(nnx.gelu(self.compare(features), approximate=config.gelu == "tanh"))
        return self.head(self._features(inputs, mask, lengths, train, key, rate))

    def features(
        self,
        inputs: Array,
        *,
        mask: Bool[Array, "b *pair l"] | None = None,
        lengths: Int[Array, "b *pair"] | None = None,
    ) -> Float[jax.Array, "b *rest d"]:
        """What the head reads, in evaluation: (b d), (b l d) with `pool="none"`, (b 2 d) for pairs of documents."""
        if self.config.documents == 1:
            return self._features(inputs, mask, lengths, False, None, 1.0)
        inputs, mask, lengths, batch = _unpair(type(self).__name__, inputs, mask, lengths)
        return self._features(inputs, mask, lengths, False, None, 1.0).reshape(batch, 2, -1)

    def _features(self, inputs, mask, lengths, train, key, rate):
        errors.require_flags(type(self).__name__, train=train)
        config = self.config
        mask = self._check(inputs, mask, lengths)
        if train and config.dropout > 0 and key is None:
            raise ValueError(
                f"{type(self).__name__}: train=True with dropout={config.dropout} needs a random key: "
                "model(inputs, train=True, key=jax.random.key(0))."
            )
        seen = mask if config.padding == "masked" else None
        if seen is not None and config.vocab_size is None:  # a NaN in padding would reach the encoder's gradient
            inputs = jnp.where(seen[..., None], inputs, 0)
        keys = jax.random.split(key, config.depth) if train and config.dropout > 0 else None
        x = apply_stack(
            self.layers,
            lambda x, block, own: block(x, mask=seen, train=train, key=own, rate=rate),
            self.encoder(inputs).astype(jnp.float32),
            keys,
            unroll=config.unroll_layers,
            remat=config.remat,
        )
        if isinstance(self.norm, BatchNorm):
            x = self.norm(x, mask=seen, train=train)
        elif self.norm is not None:
            x = self.norm(x)
        return pool(x, config.pool, mask)

    def _check(self, inputs, mask, lengths) -> Mask | None:
        """Checks what came, and makes a mask of the lengths."""
        config, where = self.config, type(self).__name__
        if config.vocab_size is not None:
            wanted, rank, kind = "(b, l) integers", 2, jnp.integer
        else:
            sides = "l" if config.axes == 1 else ", ".join("zyx"[-config.axes :])
            wanted, rank, kind = (
                f"(b, {sides}, {config.in_features}) of a floating dtype",
                config.axes + 2,
                jnp.floating,
            )
        last = () if config.vocab_size is not None else (config.in_features,)
        remedy = "The batch is first."
        if config.vocab_size is None and np.ndim(inputs) == rank:
            remedy = f"Features are last; for inputs like these, in_features={np.shape(inputs)[-1]}."
        check_array(where, "inputs", inputs, (None,) * (rank - len(last)) + last, wanted, remedy)
        if not jnp.issubdtype(inputs.dtype, kind):
            raise errors.bad_shape(where, "inputs", inputs, wanted, "Tokens are integers, and other inputs are floats.")
        if (mask is not None or lengths is not None) and config.axes > 1:
            raise errors.bad_argument(where, "mask", "a mask or lengths", "left out with layer='s4nd'")
        if mask is not None and lengths is not None:
            raise errors.bad_argument(where, "lengths", "both mask and lengths", "one of the two")
        check_mask(where, mask, inputs.shape[:2])
        if lengths is None:
            return mask
        check_lengths(where, lengths, inputs.shape[:2])
        return jnp.arange(inputs.shape[1])[None] < jnp.asarray(lengths)[:, None]


class SequenceRegressor(SequenceClassifier):
    """As `SequenceClassifier`, with outputs that are numbers: of the sequence, or of each token with `pool="none"`.

    >>> import jax.numpy as jnp
    >>> config = SequenceRegressorConfig("lru", d_model=8, depth=1, d_state=4, pool="none")
    >>> SequenceRegressor(config, rngs=nnx.Rngs(0))(jnp.zeros((2, 30, 1))).shape
    (2, 30, 1)
    """


def _unpair(where: str, inputs: Any, mask: Any, lengths: Any) -> tuple[Any, Any, Any, int]:
    """Pairs of sequences, one after the other in the batch."""
    for name, x in (("inputs", inputs), ("mask", mask), ("lengths", lengths)):
        if x is not None:
            rest = (None,) * (np.ndim(x) - 2)
            check_array(where, name, x, (None, 2, *rest), "(b, 2, ...), a pair of documents")
    flat = [x if x is None else x.reshape(-1, *x.shape[2:]) for x in (inputs, mask, lengths)]
    return flat[0], flat[1], flat[2], len(inputs)


def _input_shape(config: SequenceConfig, batch: int) -> tuple[int, ...]:
    sides = {1: (min(config.l_max or 64, 64),), 2: (12, 12), 3: (4, 6, 6)}[config.axes]
    pair = (2,) if config.documents == 2 else ()
    return (batch, *pair, *sides, *(() if config.vocab_size else (config.in_features,)))


def _input_dtype(config: SequenceConfig):
    return jnp.float32 if config.vocab_size is None else jnp.int32


# What layers and blocks are tested with on their own is set to one value, so that tests of all models stay short.
_PLAIN = {
    field.name: field.default for field in dataclasses.fields(SequenceConfig) if field.name not in ("layer", "pool")
}
_TINY = _PLAIN | {"num_classes": 5, "in_features": 2, "d_model": 8, "depth": 2, "d_state": 4, "bidirectional": True}
register_family(
    Family("sequence_classifier", SequenceConfig, SequenceClassifier, _input_shape, _TINY, _input_dtype),
)
register_family(
    Family(
        "sequence_regressor",
        SequenceRegressorConfig,
        SequenceRegressor,
        _input_shape,
        _TINY | {"layer": "s4d", "out_features": 5},  # the classifiers have shown each layer
        _input_dtype,
    )
)
