"""MambaVision: convolutions at high resolution, then selective scans and attention within windows.

"MambaVision: A Hybrid Mamba-Transformer Vision Backbone" (https://arxiv.org/abs/2407.08083). Written from the paper's
equations. The published weights are for non-commercial use.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from ssmjax.layers.common.drop_path import drop_path
from ssmjax.layers.common.norms import LayerNorm
from ssmjax.layers.common.parameters import parameter, with_kinds
from ssmjax.layers.common.stack import apply_stack, make_stack
from ssmjax.layers.selective.half_mamba import HalfMamba
from ssmjax.layers.vision.hierarchy import Downsample, image_conv, map_norm, normalize_map
from ssmjax.layers.vision.mlp import MLP
from ssmjax.layers.vision.windows import SelfAttention, join_windows, split_windows
from ssmjax.models.inputs import check_images, image_inputs
from ssmjax.models.mambavision_config import SIZES, MambaVisionConfig
from ssmjax.models.mode import follows_mode
from ssmjax.models.registry import Family, register_family, register_model
from ssmjax.shapes import Array, Float, Images, PRNGKey, Tokens

__all__ = ["ConvBlock", "MambaVision", "MambaVisionConfig", "MixerBlock"]

# Made once: older Flax keeps initializers in a module's static definition, where two equal ones would differ.
_DRAW = initializers.normal(0.02)


class ConvBlock(nnx.Module):
    """`x + gamma * norm2(conv2(gelu(norm1(conv1(x)))))` with 3x3 convolutions, batch norms and the tanh form of GELU.

    Args:
        config: The model's configuration.
        d_model: The width of the level.
        rngs: Source of the initial values.
    """

    def __init__(self, config: MambaVisionConfig, d_model: int, *, rngs: nnx.Rngs):
        options = dict(padding=1, dtype=config.dtype, rngs=rngs)
        self.conv1 = image_conv(d_model, d_model, 3, **options)
        self.norm1 = map_norm("batch", d_model, dtype=config.dtype)
        self.conv2 = image_conv(d_model, d_model, 3, **options)
        self.norm2 = map_norm("batch", d_model, dtype=config.dtype)
        self.gamma = _layer_scale(config.layer_scale_conv, d_model)

    def __call__(self, x: Images, *, train: bool = False, drop: Callable = lambda y: y) -> Float[jax.Array, "b y x d"]:
        """Maps (b y x d); `drop` is applied to the branch."""
        y = jax.nn.gelu(self.norm1(self.conv1(x), train=train), approximate=True)
        return x + drop(_scaled(self.norm2(self.conv2(y), train=train), self.gamma))


class MixerBlock(nnx.Module):
    """`x + g1 * mixer(norm1(x))`, then `x + g2 * mlp(norm2(x))`, with `HalfMamba` or attention as the mixer.

    Args:
        config: The model's configuration.
        level: The level, 2 or 3.
        attention: Whether the mixer is attention.
        rngs: Source of the initial values.
    """

    def __init__(self, config: MambaVisionConfig, level: int, *, attention: bool, rngs: nnx.Rngs):
        d, options = config.dims[level], dict(dtype=config.dtype, rngs=rngs)
        self.norm1 = LayerNorm(d, dtype=config.dtype)
        if attention:
            kind = dict(heads=config.heads[level - 2], qkv_bias=config.qkv_bias, qk_norm=config.qk_norm)
            self.mixer = SelfAttention(d, **kind, **options)
        else:
            self.mixer = HalfMamba(d, d_state=config.d_state, d_conv=config.d_conv, **options)
        self.norm2 = LayerNorm(d, dtype=config.dtype)
        self.mlp = MLP(d, hidden=int(d * config.mlp_ratio), **options)
        self.gamma_1 = _layer_scale(config.layer_scale, d)
        self.gamma_2 = _layer_scale(config.layer_scale, d)

    def __call__(self, x: Tokens, *, drop: Callable = lambda y: y) -> Float[jax.Array, "b l d"]:
        """Maps windows of tokens (b l d); `drop` is applied to each branch."""
        x = x + drop(_scaled(self.mixer(self.norm1(x)), self.gamma_1))
        return x + drop(_scaled(self.mlp(self.norm2(x)), self.gamma_2))


class MambaVisionLevel(nnx.Module):
    """The blocks of one width, and the down-sampling to the next.

    Args:
        config: The model's configuration.
        level: The level, 0 to 3.
        rngs: Source of the initial values.
    """

    def __init__(self, config: MambaVisionConfig, level: int, *, rngs: nnx.Rngs):
        d, depth = config.dims[level], config.depths[level]
        if level < 2:
            self.blocks = make_stack(lambda rngs: ConvBlock(config, d, rngs=rngs), depth, rngs)
        else:
            scans = -(-depth // 2)

            def stack(count: int, attention: bool) -> MixerBlock | None:
                build = functools.partial(MixerBlock, config, level, attention=attention)
                return make_stack(lambda rngs: build(rngs=rngs), count, rngs) if count else None

            self.mamba = stack(scans, attention=False)
            self.attention = stack(depth - scans, attention=True)
        options = dict(norm=None, use_bias=False, dtype=config.dtype, rngs=rngs)
        self.downsample = None if level == 3 else Downsample(2 * d, before=d, **options)


class ConvEmbed(nnx.Module):
    """The embedding: two 3x3 convolutions of stride 2, each with a batch norm and ReLU, without bias.

    Args:
        config: The model's configuration.
        rngs: Source of the initial values.
    """

    def __init__(self, config: MambaVisionConfig, *, rngs: nnx.Rngs):
        widths = (config.in_channels, config.in_dim, config.dim)
        options = dict(padding=1, use_bias=False, dtype=config.dtype, rngs=rngs)
        self.convs = nnx.data([image_conv(a, b, 3, 2, **options) for a, b in itertools.pairwise(widths)])
        self.norms = nnx.data([map_norm("batch", width, eps=1e-4, dtype=config.dtype) for width in widths[1:]])

    def __call__(
        self, images: Float[Array, "b y x channels"], *, train: bool = False
    ) -> Float[jax.Array, "b rows columns d"]:
        """Embeds (b y x channels)."""
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(normalize_map(norm, conv(x), train))
        return x


@follows_mode
class MambaVision(nnx.Module):
    """MambaVision: an embedding, two levels of convolutions, two of mixers in windows, a batch norm, the mean, a head.

    In the last two levels the first half of the blocks scans, and the others attend. Initial values: linear maps
    normal with standard deviation 0.02, convolutions uniform by fan-in.

    Args:
        config: The configuration.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> config = MambaVisionConfig(img_size=32, dim=8, in_dim=4, depths=(1, 1, 2, 1), windows=(2, 1), num_classes=5)
    >>> model = MambaVision(config, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((2, 32, 32, 3))).shape
    (2, 5)
    >>> [x.shape for x in model.features(jnp.zeros((2, 32, 32, 3)))]
    [(2, 8, 8, 8), (2, 4, 4, 16), (2, 2, 2, 32), (2, 1, 1, 64)]
    """

    def __init__(self, config: MambaVisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = ConvEmbed(config, rngs=rngs)
        self.levels = nnx.data([MambaVisionLevel(config, level, rngs=rngs) for level in range(4)])
        d = config.dims[-1]
        self.norm = map_norm("batch", d)
        head = nnx.Linear(d, config.num_classes, kernel_init=_DRAW, rngs=rngs) if config.num_classes else None
        self.head = None if head is None else with_kinds(head, kernel="head")

    def __call__(
        self, images: Array, *, train: bool | None = None, key: PRNGKey | None = None
    ) -> Float[jax.Array, "b v"]:
        """Class logits.

        Args:
            images: (b y x d), floating, channels last, normalized.
            train: Whether stochastic depth acts and batch norms use the batch (and update their statistics); None: by
                `model.train()` or `.eval()`.
            key: The random key; needed with `train=True` where `drop_path_rate` is above 0.

        Returns:
            (b num_classes) float32; without a head (b d), the mean of the last map.

        Raises:
            ValueError: The images have another layout, size or dtype, or the key is missing.
        """
        return self.classify(self.features(images, train=train, key=key)[-1], train=train)

    def features(
        self, images: Array, *, train: bool | None = None, key: PRNGKey | None = None
    ) -> tuple[Float[jax.Array, "b _ _ _"], ...]:
        """The map of each level, before the down-sampling to the next: what dense heads read.

        Args:
            images: The images; they, `train` and `key` are those of the model's call.
            train: Whether stochastic depth acts and batch norms use the batch; None: by `model.train()` or `.eval()`.
            key: The random key.

        Returns:
            For each level (b y x d), with the rows and columns of `config.grids` and the width of `config.dims`.
        """
        config = self.config
        check_images("MambaVision", images, config.size, config.in_channels)
        drops = iter(self._drops(train, key))
        x, maps = self.patch_embed(jnp.asarray(images, config.dtype), train=train), []
        for index, level in enumerate(self.levels):
            if index < 2:
                x = self._stack(level.blocks, x, next(drops), train=train)
            else:
                side, (rows, columns) = config.windows[index - 2], x.shape[1:3]
                x = self._stack(level.mamba, split_windows(x, side), next(drops))
                drop = next(drops)
                x = x if level.attention is None else self._stack(level.attention, x, drop)
                x = join_windows(x, side, rows, columns)
            maps.append(x)
            x = x if level.downsample is None else level.downsample(x)
        return tuple(maps)

    def classify(self, x: Images, *, train: bool | None = None) -> Float[jax.Array, "b v"]:
        """What the model says of its last map: batch norm, mean over the pixels, head."""
        x = self.norm(x, train=train).mean((1, 2))
        return x if self.head is None else self.head(x)

    def _stack(self, stack, x, per_block, **options):
        def step(x, block, drop):
            if drop is None:
                return block(x, **options)
            rate, key = drop
            keys = iter(jax.random.split(key))
            return block(x, drop=lambda y: drop_path(next(keys), y, rate), **options)

        return apply_stack(stack, step, x, per_block, unroll=self.config.unroll_layers, remat=self.config.remat)

    def _drops(self, train, key):
        """For each stack of blocks the rates and keys of its blocks, None where nothing is dropped."""
        config = self.config
        stacks = [*config.depths[:2], *(n for depth in config.depths[2:] for n in (-(-depth // 2), depth // 2))]
        if not train or config.drop_path_rate == 0:
            return [None] * len(stacks)
        if key is None:
            raise ValueError(
                f"MambaVision: train=True with drop_path_rate={config.drop_path_rate} needs a random key: "
                "model(images, train=True, key=jax.random.key(0))."
            )
        depth, ends = sum(stacks), np.cumsum(stacks)[:-1]
        rates = np.split(np.linspace(0, config.drop_path_rate, depth, dtype=np.float32), ends)
        keys = jax.random.split(key, len(stacks))
        return [(jnp.asarray(rate), jax.random.split(own, len(rate))) for rate, own in zip(rates, keys, strict=True)]


def _layer_scale(initial: float | None, d_model: int) -> nnx.Param | None:
    return None if initial is None else parameter(jnp.full((d_model,), initial, jnp.float32), "scale")


def _scaled(x, gamma):
    return x if gamma is None else x * gamma[...].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


register_family(
    Family(
        "mambavision",
        MambaVisionConfig,
        MambaVision,
        inputs=image_inputs,
        tiny={
            "num_classes": 5,
            "img_size": 64,
            "dim": 8,
            "in_dim": 4,
            "depths": (1, 1, 2, 1),
            "heads": (2, 2),
            "windows": (2, 2),  # a window of one token would leave A without effect
            "d_state": 2,
        },
    )
)
for _name, _config in SIZES.items():
    register_model(_name, "mambavision", _config)
# Ours, for images of 64 pixels: on machines of two cores, and on one GPU.
_nano = dataclasses.replace(
    SIZES["mambavision_tiny"],
    img_size=64,
    num_classes=10,
    dim=32,
    in_dim=16,
    depths=(1, 1, 4, 2),
    heads=(4, 8),
    windows=(4, 2),
)
register_model("mambavision_nano", "mambavision", _nano)
register_model("mambavision_micro", "mambavision", dataclasses.replace(_nano, dim=48, in_dim=32, depths=(1, 2, 6, 2)))
