"""VMamba: a hierarchical image classifier whose blocks read the map in several directions by selective scans.

"VMamba: Visual State Space Model" (https://arxiv.org/abs/2401.10166).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from ssmjax.layers.common.drop_path import drop_path
from ssmjax.layers.common.parameters import parameter, with_kinds
from ssmjax.layers.common.stack import apply_stack, make_stack
from ssmjax.layers.vision.hierarchy import Downsample, ImageEmbed, map_norm, normalize_map
from ssmjax.layers.vision.mlp import MLP
from ssmjax.layers.vision.ss2d import SS2D
from ssmjax.models.adapt import adapt_images
from ssmjax.models.inputs import check_images, image_inputs
from ssmjax.models.mode import follows_mode
from ssmjax.models.registry import Family, register_family, register_model
from ssmjax.models.vmamba_config import SIZES, VMambaConfig, two_directions
from ssmjax.shapes import Array, Float, Images, PRNGKey

__all__ = ["VMamba", "VMambaBlock", "VMambaConfig", "VMambaStage"]

# Made once: older Flax keeps initializers in a module's static definition, where two equal ones would differ.
_DRAW = initializers.normal(0.02)


class VMambaBlock(nnx.Module):
    """`x + SS2D(norm(x))`, then `x + MLP(norm2(x))` if there is a perceptron; with `post_norm` `x + norm(SS2D(x))`.

    Args:
        config: The model's configuration.
        d_model: The width of the stage.
        rngs: Source of the initial values.
    """

    def __init__(self, config: VMambaConfig, d_model: int, *, rngs: nnx.Rngs):
        options = dict(dtype=config.dtype, rngs=rngs)
        self.post_norm = config.post_norm
        self.norm = map_norm(config.norm, d_model, dtype=config.dtype)
        self.op = SS2D(
            d_model,
            directions=config.directions,
            core=config.core,
            gate=config.gate,
            out_norm=config.out_norm,
            out_gelu=config.out_gelu,
            d_state=config.d_state,
            ratio=config.ssm_ratio,
            dt_rank=config.dt_rank,
            d_conv=config.d_conv,
            conv_bias=config.conv_bias,
            activation=config.activation,
            initialization=config.initialization,
            **options,
        )
        hidden = int(d_model * config.mlp_ratio)
        self.norm2 = map_norm(config.norm, d_model, dtype=config.dtype) if hidden else None
        self.mlp = MLP(d_model, hidden=hidden, gated=config.gated_mlp, **options) if hidden else None

    def __call__(
        self, x: Images, *, train: bool = False, rate: Float[Array, ""] | float = 0.0, key: PRNGKey | None = None
    ) -> Float[jax.Array, "b y x d"]:
        """Maps (b y x d); with a `key`, each branch is dropped with probability `rate`."""
        keys = (None, None) if key is None else jax.random.split(key)
        for branch, norm, own_key in ((self.op, self.norm, keys[0]), (self.mlp, self.norm2, keys[1])):
            if branch is None:
                continue
            if self.post_norm:
                y = normalize_map(norm, branch(x), train)
            else:
                y = branch(normalize_map(norm, x, train))
            x = x + (y if own_key is None else drop_path(own_key, y, rate))
        return x


class VMambaStage(nnx.Module):
    """The blocks of one width, and the down-sampling to the next.

    Args:
        config: The model's configuration.
        index: The number of the stage.
        rngs: Source of the initial values.
    """

    def __init__(self, config: VMambaConfig, index: int, *, rngs: nnx.Rngs):
        d = config.dims[index]
        self.blocks = make_stack(lambda rngs: VMambaBlock(config, d, rngs=rngs), config.depths[index], rngs)
        last = index == len(config.dims) - 1
        options = dict(kind=config.downsample, norm=config.norm, dtype=config.dtype, rngs=rngs)
        self.downsample = None if last else Downsample(config.dims[index + 1], before=d, **options)


@follows_mode
class VMamba(nnx.Module):
    """VMamba: an embedding as a map, stages of blocks at strides of 4, 8, 16 and 32 pixels, a norm, the mean, a head.

    Initial values: linear maps normal with standard deviation 0.02, convolutions uniform by fan-in, SS2D as there.

    Args:
        config: The configuration.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> config = VMambaConfig(img_size=16, depths=(1, 1), dims=(8, 16), num_classes=5)
    >>> model = VMamba(config, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((2, 16, 16, 3))).shape
    (2, 5)
    >>> [x.shape for x in model.features(jnp.zeros((2, 16, 16, 3)))]
    [(2, 4, 4, 8), (2, 2, 2, 16)]
    """

    def __init__(self, config: VMambaConfig, *, rngs: nnx.Rngs):
        self.config = config
        options = dict(dtype=config.dtype, rngs=rngs)
        self.patch_embed = ImageEmbed(
            config.dims[0],
            kind=config.embed,
            patch_size=config.patch_size,
            in_channels=config.in_channels,
            norm=config.norm if config.embed_norm else None,
            **options,
        )
        places = (1, config.grid[0] * config.grid[1], config.dims[0])
        self.pos_embed = parameter(_DRAW(rngs.params(), places), "position") if config.pos_embed else None
        self.stages = nnx.data([VMambaStage(config, i, rngs=rngs) for i in range(len(config.dims))])
        self.norm = map_norm(config.norm, config.dims[-1])
        d = config.dims[-1]
        head = nnx.Linear(d, config.num_classes, kernel_init=_DRAW, rngs=rngs) if config.num_classes else None
        self.head = None if head is None else with_kinds(head, kernel="head")

    def __call__(
        self, images: Array, *, train: bool | None = None, key: PRNGKey | None = None
    ) -> Float[jax.Array, "b v"]:
        """Class logits.

        Args:
            images: (b y x d), floating, channels last, normalized.
            train: Whether stochastic depth acts and batch norms use the batch; None: by `model.train()` or `.eval()`.
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
        """The map of each stage, before the down-sampling to the next: what dense heads read.

        Args:
            images: The images; they, `train` and `key` are those of the model's call.
            train: Whether stochastic depth acts; None: by `model.train()` or `.eval()`.
            key: The random key.

        Returns:
            For each stage (b y x d), with the rows and columns of `config.grids` and the width of `config.dims`.
        """
        config = self.config
        check_images("VMamba", images, config.size, config.in_channels)
        x = self.embed(images, train=train)
        maps = []
        for stage, values in zip(self.stages, self._drops(train, key), strict=True):

            def step(x, block, drop):
                rate, own_key = (0.0, None) if drop is None else drop
                return block(x, train=train, rate=rate, key=own_key)

            options = dict(unroll=config.unroll_layers, remat=config.remat)
            maps.append(apply_stack(stage.blocks, step, x, values, **options))
            x = maps[-1] if stage.downsample is None else stage.downsample(maps[-1], train=train)
        return tuple(maps)

    def classify(self, x: Images, *, train: bool | None = None) -> Float[jax.Array, "b v"]:
        """What the model says of its last map: norm, mean over the pixels, head."""
        x = normalize_map(self.norm, x, train).astype(jnp.float32).mean((1, 2))
        return x if self.head is None else self.head(x)

    def embed(self, images: Array, *, train: bool | None = None) -> Float[jax.Array, "b rows columns d"]:
        """The map that the first block reads, with positions added if the model has them."""
        x = self.patch_embed(jnp.asarray(images, self.config.dtype), train=train)
        return x if self.pos_embed is None else x + self.pos_embed[...].astype(x.dtype).reshape(1, *x.shape[1:])

    def _drops(self, train: bool, key: PRNGKey | None) -> list[tuple[jax.Array, jax.Array] | None]:
        """For each stage the rates and keys of its blocks, None where nothing is dropped."""
        config = self.config
        if not train or config.drop_path_rate == 0:
            return [None] * len(config.depths)
        if key is None:
            raise ValueError(
                f"VMamba: train=True with drop_path_rate={config.drop_path_rate} needs a random key: "
                "model(images, train=True, key=jax.random.key(0))."
            )
        depth, ends = sum(config.depths), np.cumsum(config.depths)[:-1]
        rates = np.split(np.linspace(0, config.drop_path_rate, depth, dtype=np.float32), ends)
        keys = jax.random.split(key, len(rates))
        return [(jnp.asarray(rate), jax.random.split(own, len(rate))) for rate, own in zip(rates, keys, strict=True)]


def _adapt(arrays: Mapping[str, Any], saved: VMambaConfig, config: VMambaConfig, fresh: Callable) -> dict[str, Any]:
    """Another number of classes, another image size, or two directions out of four."""
    arrays = adapt_images(arrays, saved, config, fresh)
    if (saved.directions, config.directions) == ("cross", "two"):
        arrays = {name: two_of_four(name, x) for name, x in arrays.items()}
    return arrays


def two_of_four(name: str, x: Array) -> Array:
    """Rows and reversed rows, the first and the third of four directions, of one of a model's (stacked) arrays.

    >>> two_of_four("stages.0.blocks.op.D", np.arange(8.0)[None]).tolist()
    [[0.0, 1.0, 4.0, 5.0]]
    """
    if not name.endswith((".op.x_proj", ".op.dt_proj", ".op.dt_bias", ".op.A_log", ".op.D")):
        return x
    return x.reshape(x.shape[0], 4, -1, *x.shape[2:])[:, ::2].reshape(x.shape[0], x.shape[1] // 2, *x.shape[2:])


register_family(
    Family(
        "vmamba",
        VMambaConfig,
        VMamba,
        inputs=image_inputs,
        adapt=_adapt,
        adapts=("num_classes", "img_size", "directions"),
        tiny={"num_classes": 5, "img_size": 16, "depths": (1, 1), "dims": (8, 16), "d_state": 2},
    )
)
for _name, _config in SIZES.items():
    register_model(_name, "vmamba", _config)
for _name in ("vmamba_tiny", "vmamba_small", "vmamba_base"):
    register_model(f"{_name}_2dir", "vmamba", two_directions(SIZES[_name]))
# Ours, for small images and machines of two cores.
_nano = VMambaConfig(img_size=32, num_classes=10, depths=(1, 1, 2), dims=(48, 96, 192), patch_size=4)
register_model("vmamba_nano", "vmamba", _nano)
register_model("vmamba_nano_2dir", "vmamba", dataclasses.replace(_nano, directions="two"))
# Ours, for images of 64 pixels on one GPU.
_micro = dataclasses.replace(_nano, img_size=64, depths=(2, 2, 4, 2), dims=(64, 128, 256, 384))
register_model("vmamba_micro", "vmamba", _micro)
