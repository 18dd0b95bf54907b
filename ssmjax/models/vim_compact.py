"""Compact Vim: Vision Mamba for small images, in stages, trained from scratch.

The mixer is that of Vim (https://arxiv.org/abs/2401.09417). What is around it follows compact transformers
(https://arxiv.org/abs/2104.05704) and hierarchical backbones: a stem of small convolutions, many tokens of small width
first and few of large width later, no class token.
"""

import dataclasses
import math
from typing import Literal, no_type_check

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from ssmjax.layers.common.drop_path import drop_path
from ssmjax.layers.common.norms import make_norm
from ssmjax.layers.common.parameters import with_kinds
from ssmjax.layers.common.stack import apply_stack, make_stack
from ssmjax.layers.selective.bimamba import BiMamba
from ssmjax.layers.vision.local_conv import LocalConv
from ssmjax.models.config import ComputeDtype, check_fields, require
from ssmjax.models.inputs import check_images
from ssmjax.models.mode import follows_mode
from ssmjax.models.registry import Family, register_family, register_model
from ssmjax.shapes import Array, Float, PRNGKey

__all__ = ["CompactVim", "CompactVimBlock", "CompactVimConfig"]

# Made once: older Flax keeps initializers in a module's static definition, where two equal ones would differ.
_DRAW = jax.nn.initializers.truncated_normal(0.02)
_CONV_DRAW = jax.nn.initializers.he_normal()


@no_type_check
@dataclasses.dataclass(frozen=True)
class CompactVimConfig:
    """Everything that makes a compact Vim.

    Attributes:
        img_size: The side of the images in pixels, or (rows, columns).
        in_channels: Their channels.
        num_classes: The number of outputs; 0 makes a model without head, whose output is its features.
        stem_stride: The side of a token of the first stage in pixels, 1, 2 or 4.
        widths: The width of a token in each stage; each stage after the first halves rows and columns.
        depths: The number of blocks of each stage.
        d_state: The state size of a channel. VMamba found 1 no worse than 16 in vision.
        d_conv: The taps of the short convolutions.
        expand: The inner width of a block is `expand` times its width.
        bidirectional: The mixer, `"v2"`, `"v1"` or `"none"`, see `BiMamba`.
        local_conv: Whether a residual 3 x 3 depthwise convolution stands before each mixer, see `LocalConv`.
        alternate_axes: Whether every second block reads the grid column by column in place of row by row.
        norm: `"rms"` or `"layer"`.
        drop_path_rate: The stochastic depth of the last block; it grows linearly from 0 at the first.
        scan_together: Whether both directions of a mixer run as one scan, see `BiMamba`; for speed only.
        dtype: What to compute in. Parameters, scans, norms, the residual stream and logits are float32 in any case.
        unroll_layers: A Python loop over the blocks in place of a scan; compile time then grows with the depth.
        remat: Whether the backward pass recomputes the inside of each block, to save memory.

    Raises:
        ValueError: A field has a value of the wrong type or range, or contradicts another.

    >>> CompactVimConfig(img_size=32, stem_stride=2).grids
    ((16, 16), (8, 8))
    """

    img_size: int | tuple[int, int] = 32
    in_channels: int = 3
    num_classes: int = 10
    stem_stride: int = 2
    widths: tuple[int, ...] = (128, 256)
    depths: tuple[int, ...] = (4, 6)
    d_state: int = 4
    d_conv: int = 4
    expand: int = 2
    bidirectional: Literal["v2", "v1", "none"] = "v2"
    local_conv: bool = True
    alternate_axes: bool = True
    norm: Literal["rms", "layer"] = "rms"
    drop_path_rate: float = 0.0
    scan_together: bool = False
    dtype: ComputeDtype = "float32"
    unroll_layers: bool = False
    remat: bool = False

    def __post_init__(self):
        check_fields(self)
        for field in ("in_channels", "d_state", "d_conv", "expand"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        for field in ("widths", "depths"):
            values = getattr(self, field)
            require(self, field, len(values) >= 1 and min(values) >= 1, "positive integers, one a stage")
        require(self, "depths", len(self.depths) == len(self.widths), f"of the length of widths, {len(self.widths)}")
        require(self, "num_classes", self.num_classes >= 0, "at least 0 (0 for a model without head)")
        require(self, "stem_stride", self.stem_stride in (1, 2, 4), "1, 2 or 4")
        require(self, "drop_path_rate", 0 <= self.drop_path_rate < 1, "in [0, 1)")
        total = self.stem_stride * 2 ** (len(self.widths) - 1)
        fits = all(side > 0 and side % total == 0 for side in self.size)
        require(self, "img_size", fits, f"a multiple of {total}", "The stem and each further stage divide it.")
        even = all(depth % 2 == 0 for depth in self.depths)
        remedy = "Blocks come in pairs, rows and columns."
        require(self, "depths", even or not self.alternate_axes, "even with alternate_axes=True", remedy)

    @property
    def size(self) -> tuple[int, int]:
        """The images' rows and columns."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """The rows and columns of tokens of each stage."""
        sides = [self.stem_stride * 2**i for i in range(len(self.widths))]
        return tuple((self.size[0] // side, self.size[1] // side) for side in sides)


class CompactVimBlock(nnx.Module):
    """A residual block over a grid of tokens: a local convolution, then norm and mixer along rows or columns.

        x = local(x);   x + mixer(norm(x))

    Args:
        config: The model's configuration.
        width: The width of a token.
        rngs: Source of the initial values.
    """

    def __init__(self, config: CompactVimConfig, width: int, *, rngs: nnx.Rngs):
        self.local = LocalConv(width, dtype=config.dtype, rngs=rngs) if config.local_conv else None
        self.norm = make_norm(config.norm, width, dtype=config.dtype)
        self.mixer = BiMamba(
            width,
            variant=config.bidirectional,
            together=config.scan_together,
            d_state=config.d_state,
            d_conv=config.d_conv,
            expand=config.expand,
            out_scale=sum(config.depths) ** -0.5,
            dtype=config.dtype,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "b y x d"], *, columns: bool = False, drop: tuple[Array, PRNGKey] | None = None
    ) -> Float[jax.Array, "b y x d"]:
        """Runs a block.

        Args:
            x: (b y x d), the residual stream, float32.
            columns: Whether the mixer reads column by column.
            drop: The rate of the stochastic depth and a key; None outside training.

        Returns:
            As `x`.
        """
        x = x if self.local is None else self.local(x)
        order = "b (x y) d" if columns else "b (y x) d"
        y = self.mixer(rearrange(self.norm(x), f"b y x d -> {order}"))
        y = rearrange(y, f"{order} -> b y x d", y=x.shape[1])
        y = y if drop is None else drop_path(drop[1], y, drop[0])
        return x + y.astype(x.dtype)


@follows_mode
class CompactVim(nnx.Module):
    """Vision Mamba in stages: convolution stem, blocks, strided convolutions between stages, mean pooling, linear head.

    Args:
        config: The configuration.
        rngs: Source of the initial values.

    >>> config = CompactVimConfig(img_size=8, widths=(8, 16), depths=(2, 2), num_classes=5)
    >>> CompactVim(config, rngs=nnx.Rngs(0))(jnp.zeros((2, 8, 8, 3))).shape
    (2, 5)
    """

    def __init__(self, config: CompactVimConfig, *, rngs: nnx.Rngs):
        self.config = config
        options = dict(kernel_init=_CONV_DRAW, padding=1, dtype=config.dtype, rngs=rngs)
        first = config.widths[0]
        steps = int(math.log2(config.stem_stride))
        widths = [config.in_channels, *[max(first >> i, 1) for i in reversed(range(steps))], first]
        strides = [1, *[2] * steps]  # the first convolution sees every pixel
        self.stem = nnx.data(
            [
                with_kinds(nnx.Conv(before, after, (3, 3), stride, **options))
                for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True)
            ]
        )
        self.stem_norms = nnx.data([make_norm("layer", width, dtype=config.dtype) for width in widths[1:]])
        self.stages = nnx.data(
            [
                make_stack(lambda rngs, width=width: CompactVimBlock(config, width, rngs=rngs), depth, rngs)
                for width, depth in zip(config.widths, config.depths, strict=True)
            ]
        )
        pairs = list(zip(config.widths[:-1], config.widths[1:], strict=True))
        self.down_norms = nnx.data([make_norm("layer", before, dtype=config.dtype) for before, _ in pairs])
        self.downs = nnx.data([with_kinds(nnx.Conv(before, after, (3, 3), 2, **options)) for before, after in pairs])
        self.norm_f = make_norm(config.norm, config.widths[-1])
        self.head = (
            with_kinds(nnx.Linear(config.widths[-1], config.num_classes, kernel_init=_DRAW, rngs=rngs), kernel="head")
            if config.num_classes
            else None
        )

    def __call__(
        self, images: Array, *, train: bool | None = None, key: PRNGKey | None = None
    ) -> Float[jax.Array, "b v"]:
        """Class logits.

        Args:
            images: (b y x d), floating, channels last, normalized.
            train: Whether stochastic depth acts; None: by `model.train()` or `.eval()`.
            key: The random key; needed with `train=True` where its rate is above 0.

        Returns:
            (b num_classes) float32; without a head, features.

        Raises:
            ValueError: The images have another layout, size or dtype, or the key is missing.
        """
        x = self.features(images, train=train, key=key)
        return x if self.head is None else self.head(x)

    def features(
        self, images: Array, *, train: bool | None = None, key: PRNGKey | None = None
    ) -> Float[jax.Array, "b d"]:
        """What the head reads: the mean of all tokens after the final norm; arguments as for a call."""
        config = self.config
        check_images("CompactVim", images, config.size, config.in_channels)
        train = train and config.drop_path_rate > 0
        if train and key is None:
            raise ValueError(
                f"CompactVim: train=True with drop_path_rate={config.drop_path_rate} needs a random key: "
                "model(images, train=True, key=jax.random.key(0))."
            )
        x = jnp.asarray(images, config.dtype)
        for conv, norm in zip(self.stem, self.stem_norms, strict=True):
            x = jax.nn.gelu(norm(conv(x)))
        x = x.astype(jnp.float32)
        rates = jnp.linspace(0, config.drop_path_rate, sum(config.depths))
        done = 0
        for i, (stage, depth) in enumerate(zip(self.stages, config.depths, strict=True)):
            if i:
                x = self.downs[i - 1](self.down_norms[i - 1](x)).astype(jnp.float32)
            drops = None
            if train:
                drops = rates[done : done + depth], jax.random.split(jax.random.fold_in(key, i), depth)
            x = self._run(stage, x, drops)
            done += depth
        return self.norm_f(x).mean((1, 2))

    def _run(self, stage, x, drops):
        def pair(x, blocks, drops):
            for columns, block, drop in zip((False, True), blocks, drops, strict=True):
                x = block(x, columns=columns, drop=drop)
            return x

        config = self.config
        options = dict(unroll=config.unroll_layers, remat=config.remat)
        if config.alternate_axes:
            return apply_stack(stage, pair, x, drops, group=2, **options)
        return apply_stack(stage, lambda x, block, drop: block(x, drop=drop), x, drops, **options)


register_family(
    Family(
        "vim_compact",
        CompactVimConfig,
        CompactVim,
        input_shape=lambda config, batch: (batch, *config.size, config.in_channels),
        tiny={"num_classes": 5, "img_size": 8, "widths": (8, 16), "depths": (2, 2)},
    )
)
register_model("vim_compact_nano", "vim_compact", CompactVimConfig(widths=(64, 128), depths=(2, 4)))
register_model("vim_compact_small", "vim_compact", CompactVimConfig())
