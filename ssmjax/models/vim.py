"""Vision Mamba (Vim, https://arxiv.org/abs/2401.09417): bidirectional Mamba blocks over the patches of an image."""

import dataclasses
from typing import Literal, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from ssmjax.layers.common.drop_path import drop_path, drop_path_rates, dropout
from ssmjax.layers.common.norms import add_norm, make_norm
from ssmjax.layers.common.parameters import parameter, with_kinds
from ssmjax.layers.common.rope import apply_rope, axial_rope_table
from ssmjax.layers.common.stack import apply_stack, make_stack
from ssmjax.layers.selective.bimamba import BiMamba
from ssmjax.layers.vision.patch_embed import ConvStem, PatchEmbed
from ssmjax.models.adapt import adapt_images
from ssmjax.models.config import ComputeDtype, check_fields, require
from ssmjax.models.inputs import check_images, image_inputs
from ssmjax.models.mode import follows_mode
from ssmjax.models.registry import Family, register_family, register_model
from ssmjax.shapes import Array, Float, PRNGKey, Tokens

__all__ = ["Vim", "VimBlock", "VimConfig"]

# Made once: older Flax keeps initializers in a module's static definition, where two equal ones would differ.
_DRAW = initializers.normal(0.02)


@no_type_check
@dataclasses.dataclass(frozen=True)
class VimConfig:
    """Everything that makes a Vim; the defaults are those of Vim-tiny. The original's names are in brackets.

    Attributes:
        img_size: The side of the images in pixels, or (rows, columns).
        in_channels: Their channels [`channels`].
        patch_size: The side of a patch in pixels; the convolutional stem uses only the stride.
        stride: The distance between patches; None means `patch_size`.
        stem: `"patch"`, one convolution, as in the paper; or `"conv"`, small convolutions, for small images.
        num_classes: The number of outputs; 0 makes a model without head, whose output is its features.
        d_model: The width of a token [`embed_dim`].
        depth: The number of blocks.
        d_state: The state size of a channel.
        d_conv: The taps of the short convolutions.
        expand: The inner width of a block is `expand * d_model`.
        dt_rank: The rank of the step-size projection; None means `ceil(d_model / 16)`.
        bidirectional: The mixer, `"v2"`, `"v1"` or `"none"` (see `BiMamba`) [`bimamba_type`].
        divide_out: Whether a `"v2"` mixer halves the sum of its directions [`if_divide_out`].
        alternate_layers: Blocks in pairs of which the second reads the flipped sequence; both get the same input, and
            the sum of their outputs goes on [`if_bidirectional`].
        class_token: Where the class token stands: `"middle"`, `"head"`, `"double"` (one at each end, averaged) or
            `"none"` [`if_cls_token`, `use_middle_cls_token`, `use_double_cls_token`].
        pool: What is read where there is no class token: the `"last"` token, the `"mean"` of all, the `"max"` of the
            logits of all, or `"all"` of them [`final_pool_type`, where `"none"` means the last].
        pos_embed: Whether a learned position embedding is added [`if_abs_pos_embed`].
        rope: Whether the input of every block is turned by its place in the grid [`if_rope`].
        rope_residual: Whether the residual stream is turned too [`if_rope_residual`].
        rope_pretrained_side: The side of the grid whose range positions are scaled to; None means the grid's own
            [`pt_hw_seq_len`].
        rope_skips: `"class"`: class tokens are not turned, wherever they stand. `"first"`: the original's rule, which
            takes the first token of an odd number for the class token; it differs where the class token is in the
            middle.
        norm: `"rms"` or `"layer"` [`rms_norm`].
        norm_eps: Added to the variance [`norm_epsilon`].
        layer_scale: The initial value of a learned factor on the output of each mixer; None for no factor
            [`init_layer_scale`].
        float32_residual: Whether the residual stream is float32 under any compute dtype [`residual_in_fp32`].
        drop_rate: The dropout after the position embedding.
        drop_path_rate: The stochastic depth of the last block; see `drop_path_rates`. The published recipes use 0 for
            Vim-tiny and 0.05 for Vim-small.
        scan_together: Whether both directions of a mixer run as one scan of twice the channels, see `BiMamba`; for
            speed only.
        dtype: What to compute in. Parameters, scans, norms and logits are float32 in any case.
        unroll_layers: A Python loop over the blocks in place of a scan; compile time then grows with the depth.
        remat: Whether the backward pass recomputes the inside of each block, to save memory.

    Raises:
        ValueError: A field has a value of the wrong type or range, or contradicts another.

    >>> VimConfig(img_size=32, patch_size=4).grid
    (8, 8)
    """

    img_size: int | tuple[int, int] = 224
    in_channels: int = 3
    patch_size: int = 16
    stride: int | None = None
    stem: Literal["patch", "conv"] = "patch"
    num_classes: int = 1000
    d_model: int = 192
    depth: int = 24
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | None = None
    bidirectional: Literal["v2", "v1", "none"] = "v2"
    divide_out: bool = True
    alternate_layers: bool = False
    class_token: Literal["middle", "head", "double", "none"] = "middle"
    pool: Literal["last", "mean", "max", "all"] = "mean"
    pos_embed: bool = True
    rope: bool = False
    rope_residual: bool = False
    rope_pretrained_side: int | None = None
    rope_skips: Literal["class", "first"] = "class"
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    layer_scale: float | None = None
    float32_residual: bool = True
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    scan_together: bool = False
    dtype: ComputeDtype = "float32"
    unroll_layers: bool = False
    remat: bool = False

    def __post_init__(self):
        check_fields(self)
        for field in ("in_channels", "patch_size", "d_model", "depth", "d_state", "d_conv", "expand"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        for field in ("stride", "dt_rank", "rope_pretrained_side"):
            require(self, field, getattr(self, field) is None or getattr(self, field) >= 1, "at least 1, or None")
        for field in ("drop_rate", "drop_path_rate"):
            require(self, field, 0 <= getattr(self, field) < 1, "in [0, 1)")
        require(self, "num_classes", self.num_classes >= 0, "at least 0 (0 for a model without head)")
        require(self, "norm_eps", self.norm_eps > 0, "positive")
        step = self.step
        if self.stem == "patch":
            require(self, "img_size", min(self.size) >= self.patch_size, f"at least the patch size {self.patch_size}")
        else:
            remedy = "Or use the plain patches: stem='patch'."
            require(self, "patch_size", step >= 2 and step & (step - 1) == 0, "a power of two for stem='conv'", remedy)
            require(self, "img_size", min(self.size) >= step, f"at least the patch size {step}")
        require(self, "depth", not self.alternate_layers or self.depth % 2 == 0, "even with alternate_layers=True")
        if self.rope:
            require(self, "d_model", self.d_model % 4 == 0, "a multiple of 4 with rope=True")
            skipped = self.length % 2 if self.rope_skips == "first" else self.class_tokens
            remedy = "Use rope_skips='class'."
            require(self, "rope_skips", skipped == self.class_tokens, "consistent with the number of tokens", remedy)

    @property
    def size(self) -> tuple[int, int]:
        """The images' rows and columns."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def step(self) -> int:
        """The distance between patches."""
        return self.patch_size if self.stride is None else self.stride

    @property
    def grid(self) -> tuple[int, int]:
        """The rows and columns of patches."""
        if self.stem == "conv":  # halved, upwards, by each convolution
            rows, columns = (-(-side // self.step) for side in self.size)
        else:
            rows, columns = ((side - self.patch_size) // self.step + 1 for side in self.size)
        return rows, columns

    @property
    def class_tokens(self) -> int:
        """The number of class tokens."""
        return {"none": 0, "double": 2}.get(self.class_token, 1)

    @property
    def length(self) -> int:
        """The number of tokens, class tokens included."""
        return self.grid[0] * self.grid[1] + self.class_tokens

    @property
    def class_positions(self) -> tuple[int, ...]:
        """Where the class tokens stand in the sequence."""
        middle = self.grid[0] * self.grid[1] // 2
        return {"none": (), "head": (0,), "middle": (middle,), "double": (0, self.length - 1)}[self.class_token]


class VimBlock(nnx.Module):
    """A norm and a mixer, between which and the next block the residual stream passes: add, normalize, mix.

    Args:
        config: The model's configuration.
        rngs: Source of the initial values.
    """

    def __init__(self, config: VimConfig, *, rngs: nnx.Rngs):
        self.norm = make_norm(config.norm, config.d_model, eps=config.norm_eps, dtype=config.dtype)
        self.mixer = BiMamba(
            config.d_model,
            variant=config.bidirectional,
            divide_out=config.divide_out,
            together=config.scan_together,
            d_state=config.d_state,
            d_conv=config.d_conv,
            expand=config.expand,
            dt_rank=config.dt_rank,
            out_scale=config.depth**-0.5,
            dtype=config.dtype,
            rngs=rngs,
        )
        scale = config.layer_scale
        self.gamma = None if scale is None else parameter(jnp.full((config.d_model,), scale, jnp.float32), "scale")

    def __call__(self, hidden: Tokens, residual: Tokens) -> tuple[Tokens, Tokens]:
        """The mixer's output for `residual + hidden`, and that sum."""
        x, residual = add_norm(self.norm, hidden, residual)
        hidden = self.mixer(x)
        if self.gamma is not None:
            hidden = hidden * self.gamma[...].astype(hidden.dtype)[None, None]
        return hidden, residual


@follows_mode
class Vim(nnx.Module):
    """Vision Mamba: patches, a class token, position embedding, `depth` blocks, a final norm and a linear head.

    Initial values: `pos_embed`, class tokens and head normal with standard deviation 0.02 (the original's truncation,
    at 100 deviations, has no effect), patch convolution LeCun normal, the blocks as `BiMamba` with `out_proj` scaled by
    `1 / sqrt(depth)`.

    Args:
        config: The configuration.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> config = VimConfig(img_size=8, patch_size=4, d_model=16, depth=2, num_classes=5)
    >>> Vim(config, rngs=nnx.Rngs(0))(jnp.zeros((2, 8, 8, 3))).shape
    (2, 5)
    """

    def __init__(self, config: VimConfig, *, rngs: nnx.Rngs):
        self.config = config
        d, draw = config.d_model, _DRAW
        options = dict(stride=config.step, in_channels=config.in_channels, dtype=config.dtype, rngs=rngs)
        conv = config.stem == "conv"
        self.patch_embed = ConvStem(d, **options) if conv else PatchEmbed(d, patch_size=config.patch_size, **options)
        for name in {"none": (), "double": ("cls_token_head", "cls_token_tail")}.get(
            config.class_token, ("cls_token",)
        ):
            setattr(self, name, parameter(draw(rngs.params(), (1, 1, d)), "token"))
        positions = (1, config.length, d)
        self.pos_embed = parameter(draw(rngs.params(), positions), "position") if config.pos_embed else None
        self.layers = make_stack(lambda rngs: VimBlock(config, rngs=rngs), config.depth, rngs)
        self.norm_f = make_norm(config.norm, d, eps=config.norm_eps)
        head = nnx.Linear(d, config.num_classes, kernel_init=draw, rngs=rngs) if config.num_classes else None
        self.head = None if head is None else with_kinds(head, kernel="head")

    def __call__(
        self, images: Array, *, train: bool | None = None, key: PRNGKey | None = None
    ) -> Float[jax.Array, "b v"] | Float[jax.Array, "b l v"]:
        """Class logits.

        Args:
            images: (b y x d), floating, channels last, normalized.
            train: Whether dropout and stochastic depth act; None: by `model.train()` or `.eval()`.
            key: The random key; needed with `train=True` where one of the two rates is above 0.

        Returns:
            (b num_classes) float32. With `pool="all"` and no class token (b l num_classes). Without a head, features.

        Raises:
            ValueError: The images have another layout, size or dtype, or the key is missing.
        """
        x = self.features(images, train=train, key=key)
        if self.head is None:
            return x
        logits = self.head(x)
        return logits.max(1) if self.config.pool == "max" and self.config.class_token == "none" else logits

    def features(
        self, images: Array, *, train: bool | None = None, key: PRNGKey | None = None
    ) -> Float[jax.Array, "b d"] | Float[jax.Array, "b l d"]:
        """What the head reads: the class token, or the pooled tokens, after the final norm; arguments as for a call.

        Returns:
            (b d) float32. With `pool="max"` or `"all"` and no class token (b l d): the head comes before that pooling.
        """
        config = self.config
        hidden, residual = self._run(images, train, key)
        if config.class_token == "none" and config.pool != "last":
            x, _ = add_norm(self.norm_f, hidden, residual)
            return x.mean(1) if config.pool == "mean" else x
        places = config.class_positions or (config.length - 1,)
        # Slices, whose gradient is a pad; an index array's would be a scatter-add.
        read = (jnp.concatenate([x[:, place : place + 1] for place in places], axis=1) for x in (hidden, residual))
        x, _ = add_norm(self.norm_f, *read)
        return x.mean(1)

    def tokens(self, images: Array) -> Float[jax.Array, "b l d"]:
        """Every token after the final norm, class tokens included (`config.class_positions` says where), float32."""
        return add_norm(self.norm_f, *self._run(images, False, None))[0]

    def _run(self, images: Array, train: bool, key: PRNGKey | None) -> tuple[Tokens, Tokens]:
        """The last block's output and the residual stream, their sum still to be normalized."""
        config = self.config
        check_images("Vim", images, config.size, config.in_channels)
        train = train and max(config.drop_rate, config.drop_path_rate) > 0
        if train and key is None:
            raise ValueError(
                f"Vim: train=True with drop_rate={config.drop_rate} and drop_path_rate={config.drop_path_rate} "
                "needs a random key: model(images, train=True, key=jax.random.key(0))."
            )
        hidden = self._embed(images)
        residual = jnp.zeros_like(hidden, dtype=jnp.float32 if config.float32_residual else hidden.dtype)
        per_block = final_key = None
        if train:
            embed_key, block_key, final_key = jax.random.split(key, 3)
            hidden = dropout(embed_key, hidden, config.drop_rate) if config.pos_embed else hidden
            rates = jnp.asarray(drop_path_rates(config.depth, config.drop_path_rate))
            per_block = rates, jax.random.split(block_key, config.depth)
        hidden, residual = apply_stack(
            self.layers,
            self._pair if config.alternate_layers else self._block,
            (hidden, residual),
            per_block,
            group=2 if config.alternate_layers else 1,
            unroll=config.unroll_layers,
            remat=config.remat,
        )
        if train:
            hidden = drop_path(final_key, hidden, config.drop_path_rate)
        return hidden, residual

    def _embed(self, images: Array) -> Tokens:
        """Patch tokens with class tokens among them and positions added."""
        config = self.config
        x = self.patch_embed(jnp.asarray(images, config.dtype))

        def expand(token):
            return jnp.broadcast_to(token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))

        if config.class_token == "double":
            x = jnp.concatenate([expand(self.cls_token_head), x, expand(self.cls_token_tail)], axis=1)
        elif config.class_token != "none":
            (place,) = config.class_positions
            x = jnp.concatenate([x[:, :place], expand(self.cls_token), x[:, place:]], axis=1)
        return x if self.pos_embed is None else x + self.pos_embed[...].astype(x.dtype)

    def _block(self, carry, block, drop):
        return block(*self._before_block(*carry, drop))

    def _pair(self, carry, blocks, drops):
        """Two blocks on the same input, the second from its end; the sum of both goes on."""
        hidden, residual = self._rotate(*carry)
        outputs = []
        for block, drop, flipped in zip(blocks, drops, (False, True), strict=True):
            x, r = (jnp.flip(t, 1) if flipped else t for t in (hidden, residual))
            outputs.append([jnp.flip(t, 1) if flipped else t for t in block(_drop(drop, x), r)])
        return tuple(forward + backward for forward, backward in zip(*outputs, strict=True))

    def _before_block(self, hidden, residual, drop):
        hidden, residual = self._rotate(hidden, residual)
        return _drop(drop, hidden), residual

    def _rotate(self, hidden: Tokens, residual: Tokens) -> tuple[Tokens, Tokens]:
        if not self.config.rope:
            return hidden, residual
        angles = _rope_angles(self.config)
        return apply_rope(hidden, angles), apply_rope(residual, angles) if self.config.rope_residual else residual


def _drop(drop, hidden):
    """Drops the output of the block before, at the rate of the block that it enters (None: not in training)."""
    return hidden if drop is None else drop_path(drop[1], hidden, drop[0])


def _rope_angles(config: VimConfig) -> np.ndarray:
    """The angle of every pair of channels of every token, (l d/2); zero for tokens that are not turned."""
    angles = axial_rope_table(*config.grid, config.d_model, pretrained_side=config.rope_pretrained_side)
    skipped = (0,) * config.class_tokens if config.rope_skips == "first" else config.class_positions
    whole = np.zeros((config.length, angles.shape[1]))
    whole[np.setdiff1d(np.arange(config.length), skipped)] = angles
    return whole


register_family(
    Family(
        "vim",
        VimConfig,
        Vim,
        inputs=image_inputs,
        adapt=adapt_images,
        adapts=("num_classes", "img_size"),
        tiny={"num_classes": 5, "img_size": 16, "patch_size": 8, "d_model": 16, "depth": 2, "d_state": 4},
    )
)
for _name, _width in (("vim_tiny", 192), ("vim_small", 384), ("vim_base", 768)):
    register_model(_name, "vim", VimConfig(d_model=_width))
# Ours, for 32-pixel images and machines of two cores.
register_model(
    "vim_nano",
    "vim",
    VimConfig(img_size=32, patch_size=4, stem="conv", num_classes=10, d_model=128, depth=6, d_state=8),
)
