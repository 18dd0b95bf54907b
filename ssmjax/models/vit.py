"""ViT: the vision transformer with fused attention, the baseline beside the state space models.

"An Image is Worth 16x16 Words" (https://arxiv.org/abs/2010.11929), in the sizes of DeiT (https://arxiv.org/abs/2012.12877).
"""

import dataclasses
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from ssmjax import _compat
from ssmjax.layers.common.drop_path import drop_path
from ssmjax.layers.common.norms import LayerNorm
from ssmjax.layers.common.parameters import parameter, with_kinds
from ssmjax.layers.common.stack import apply_stack, make_stack
from ssmjax.layers.vision.mlp import MLP
from ssmjax.layers.vision.patch_embed import PatchEmbed
from ssmjax.layers.vision.windows import SelfAttention
from ssmjax.models.adapt import adapt_images
from ssmjax.models.config import ComputeDtype, check_fields, require
from ssmjax.models.inputs import check_images, image_inputs
from ssmjax.models.mode import follows_mode
from ssmjax.models.registry import Family, register_family, register_model
from ssmjax.shapes import Array, Float, PRNGKey, Tokens

__all__ = ["ViT", "ViTBlock", "ViTConfig"]

# Made once: older Flax keeps initializers in a module's static definition, where two equal ones would differ.
_DRAW = initializers.normal(0.02)


@no_type_check
@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Everything that makes a ViT; the defaults are those of ViT-tiny.

    Attributes:
        img_size: The side of the images in pixels, or (rows, columns).
        in_channels: Their channels.
        patch_size: The side of a patch in pixels.
        num_classes: The number of outputs; 0 makes a model without head, whose output is its features.
        d_model: The width of a token.
        depth: The number of blocks.
        heads: The heads of attention.
        mlp_ratio: The hidden width of the perceptrons by their outer one.
        qkv_bias: Whether the map to queries, keys and values has a bias.
        drop_path_rate: The stochastic depth of the last block; it grows linearly from 0.
        dtype: What to compute in. Parameters, norms and logits are float32 in any case.
        unroll_layers: A Python loop over the blocks in place of a scan; compile time then grows with the depth.
        remat: Whether the backward pass recomputes the inside of each block, to save memory.

    Raises:
        ValueError: A field has a value of the wrong type or range, or contradicts another.

    >>> ViTConfig(img_size=32, patch_size=4).grid
    (8, 8)
    """

    img_size: int | tuple[int, int] = 224
    in_channels: int = 3
    patch_size: int = 16
    num_classes: int = 1000
    d_model: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_path_rate: float = 0.0
    dtype: ComputeDtype = "float32"
    unroll_layers: bool = False
    remat: bool = False

    def __post_init__(self):
        check_fields(self)
        for field in ("in_channels", "patch_size", "d_model", "depth", "heads"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        require(self, "num_classes", self.num_classes >= 0, "at least 0 (0 for a model without head)")
        require(self, "drop_path_rate", 0 <= self.drop_path_rate < 1, "in [0, 1)")
        require(self, "mlp_ratio", self.mlp_ratio > 0, "positive")
        require(self, "heads", self.d_model % self.heads == 0, f"a divisor of d_model, {self.d_model}")
        require(self, "img_size", min(self.size) >= self.patch_size, f"at least the patch size {self.patch_size}")

    @property
    def size(self) -> tuple[int, int]:
        """The images' rows and columns."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def grid(self) -> tuple[int, int]:
        """The rows and columns of patches."""
        return self.size[0] // self.patch_size, self.size[1] // self.patch_size

    @property
    def class_positions(self) -> tuple[int, ...]:
        """The class token comes first."""
        return (0,)


class ViTBlock(nnx.Module):
    """`x + attention(norm1(x))`, then `x + mlp(norm2(x))`.

    Args:
        config: The model's configuration.
        rngs: Source of the initial values.
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        d, options = config.d_model, dict(dtype=config.dtype, rngs=rngs)
        self.norm1 = LayerNorm(d, eps=1e-6, dtype=config.dtype)
        self.attn = SelfAttention(d, heads=config.heads, qkv_bias=config.qkv_bias, **options)
        self.norm2 = LayerNorm(d, eps=1e-6, dtype=config.dtype)
        self.mlp = MLP(d, hidden=int(d * config.mlp_ratio), **options)

    def __call__(
        self, x: Tokens, *, rate: Float[Array, ""] | float = 0.0, key: PRNGKey | None = None
    ) -> Float[jax.Array, "b l d"]:
        """Maps (b l d); with a `key`, each branch is dropped with probability `rate`."""
        keys = (None, None) if key is None else jax.random.split(key)
        for branch, norm, own_key in ((self.attn, self.norm1, keys[0]), (self.mlp, self.norm2, keys[1])):
            y = branch(norm(x))
            x = x + (y if own_key is None else drop_path(own_key, y, rate))
        return x


@follows_mode
class ViT(nnx.Module):
    """A vision transformer: patches, a class token in front, position embedding, blocks, a norm and a linear head.

    Args:
        config: The configuration.
        rngs: Source of the initial values (normal with standard deviation 0.02; patches LeCun normal).

    >>> import jax.numpy as jnp
    >>> config = ViTConfig(img_size=8, patch_size=4, d_model=16, depth=2, heads=2, num_classes=5)
    >>> ViT(config, rngs=nnx.Rngs(0))(jnp.zeros((2, 8, 8, 3))).shape
    (2, 5)
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        d, options = config.d_model, dict(dtype=config.dtype, rngs=rngs)
        self.patch_embed = PatchEmbed(d, patch_size=config.patch_size, in_channels=config.in_channels, **options)
        length = config.grid[0] * config.grid[1] + 1
        self.cls_token = parameter(_DRAW(rngs.params(), (1, 1, d)), "token")
        self.pos_embed = parameter(_DRAW(rngs.params(), (1, length, d)), "position")
        self.blocks = make_stack(lambda rngs: ViTBlock(config, rngs=rngs), config.depth, rngs)
        self.norm = LayerNorm(d, eps=1e-6)
        head = nnx.Linear(d, config.num_classes, kernel_init=_DRAW, rngs=rngs) if config.num_classes else None
        self.head = None if head is None else with_kinds(head, kernel="head")

    def __call__(
        self, images: Array, *, train: bool | None = None, key: PRNGKey | None = None
    ) -> Float[jax.Array, "b v"]:
        """Class logits.

        Args:
            images: (b y x d), floating, channels last, normalized.
            train: Whether stochastic depth acts; None: by `model.train()` or `.eval()`.
            key: The random key; needed with `train=True` where `drop_path_rate` is above 0.

        Returns:
            (b num_classes) float32; without a head (b d), the class token.

        Raises:
            ValueError: The images have another layout, size or dtype, or the key is missing.
        """
        x = self.tokens(images, train=train, key=key)[:, 0]
        return x if self.head is None else self.head(x)

    def tokens(
        self, images: Array, *, train: bool | None = None, key: PRNGKey | None = None
    ) -> Float[jax.Array, "b l d"]:
        """Every token after the final norm, the class token first, float32.

        Args:
            images: The images; they, `train` and `key` are those of the model's call.
            train: Whether stochastic depth acts; None: by `model.train()` or `.eval()`.
            key: The random key.
        """
        config = self.config
        check_images("ViT", images, config.size, config.in_channels)
        per_block = self._drops(train, key)
        x = self.patch_embed(jnp.asarray(images, config.dtype))
        token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        token = _compat.split_as(token, x)
        x = jnp.concatenate([token, x], axis=1) + self.pos_embed[...].astype(x.dtype)

        def step(x, block, drop):
            return block(x) if drop is None else block(x, rate=drop[0], key=drop[1])

        x = apply_stack(self.blocks, step, x, per_block, unroll=config.unroll_layers, remat=config.remat)
        return self.norm(x)

    def _drops(self, train, key):
        """The rates and keys of the blocks, None where nothing is dropped."""
        config = self.config
        if not train or config.drop_path_rate == 0:
            return None
        if key is None:
            raise ValueError(
                f"ViT: train=True with drop_path_rate={config.drop_path_rate} needs a random key: "
                "model(images, train=True, key=jax.random.key(0))."
            )
        rates = np.linspace(0, config.drop_path_rate, config.depth, dtype=np.float32)
        return jnp.asarray(rates), jax.random.split(key, config.depth)

    def features(self, images: Array) -> tuple[Float[jax.Array, "b y x d"], ...]:
        """The one map that there is: the tokens of the patches, (b y x d)."""
        x = self.tokens(images)[:, 1:]
        return (x.reshape(x.shape[0], *self.config.grid, x.shape[2]),)


register_family(
    Family(
        "vit",
        ViTConfig,
        ViT,
        inputs=image_inputs,
        adapt=adapt_images,
        adapts=("num_classes", "img_size"),
        tiny={"num_classes": 5, "img_size": 16, "patch_size": 8, "d_model": 16, "depth": 2, "heads": 2},
    )
)
register_model("vit_tiny", "vit", ViTConfig())
register_model("vit_small", "vit", ViTConfig(d_model=384, heads=6))
# Ours, for 32-pixel images and machines of two cores.
register_model("vit_nano", "vit", ViTConfig(img_size=32, patch_size=4, num_classes=10, d_model=128, depth=6, heads=4))
