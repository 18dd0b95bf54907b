"""Vision towers: the vision transformers of CLIP and SigLIP."""

import dataclasses
from typing import Literal, no_type_check

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.nn import initializers

from ssmjax import _compat, ops
from ssmjax.layers import LayerNorm
from ssmjax.layers.common.parameters import parameter
from ssmjax.layers.common.stack import apply_stack, make_stack
from ssmjax.models.config import ComputeDtype, check_fields, require
from ssmjax.models.inputs import check_images
from ssmjax.models.registry import Family, register_family, register_model
from ssmjax.shapes import Array, Float, Tokens
from vlmjax.layers.resample import cubic_matrix
from vlmjax.layers.transformer import BlockSize, Mlp, TransformerBlock, linear

__all__ = ["CLIPVisionConfig", "SiglipVisionConfig", "VisionTower"]

_DRAW = initializers.normal(0.02)
_PATCHES = initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)


@no_type_check
@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """The vision side of CLIP (https://arxiv.org/abs/2103.00020); the defaults are those of ViT-L/14 at 336 pixels.

    Attributes:
        img_size: The side of the images.
        patch_size: The side of a patch.
        d_model: The width of a token.
        depth: The number of blocks.
        heads: The heads of attention.
        d_mlp: The inner width of the MLPs.
        activation: The activation of the MLPs.
        eps: The epsilon of the norms.
        dtype: What to compute in; parameters, norms and the residual stream are float32 in any case.
        unroll_layers: A Python loop over the blocks in place of a scan.
        remat: Whether the backward pass recomputes the inside of each block.

    Raises:
        ValueError: A field has a value of the wrong type or range.

    >>> CLIPVisionConfig().length
    577
    """

    img_size: int = 336
    patch_size: int = 14
    d_model: int = 1024
    depth: int = 24
    heads: int = 16
    d_mlp: int = 4096
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "silu"] = "quick_gelu"
    eps: float = 1e-5
    dtype: ComputeDtype = "float32"
    unroll_layers: bool = False
    remat: bool = False

    # What differs between the two kinds of tower.
    class_tokens = 1
    pre_norm = True
    patch_bias = False
    head = "class"

    def __post_init__(self):
        check_fields(self)
        for field in ("patch_size", "d_model", "depth", "heads", "d_mlp"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        require(self, "img_size", self.img_size >= self.patch_size, f"at least the patch size {self.patch_size}")
        require(self, "heads", self.d_model % self.heads == 0, f"a divisor of d_model = {self.d_model}")

    @property
    def side(self) -> int:
        """The patches along a side."""
        return self.img_size // self.patch_size

    @property
    def length(self) -> int:
        """The number of tokens, the class token included."""
        return self.side**2 + self.class_tokens

    @property
    def block(self) -> BlockSize:
        """The size of a block."""
        return BlockSize(
            self.d_model,
            self.heads,
            self.d_mlp,
            eps=self.eps,
            activation=self.activation,
            out_scale=(2 * self.depth) ** -0.5,
            dtype=self.dtype,
        )


@no_type_check
@dataclasses.dataclass(frozen=True)
class SiglipVisionConfig(CLIPVisionConfig):
    """The vision side of SigLIP (https://arxiv.org/abs/2303.15343); the defaults are those of so400m/14 at 384 pixels.

    The fields are those of `CLIPVisionConfig`, and one more.

    Attributes:
        pool_head: Whether there is a head that pools the tokens by attention; where only tokens are read, as in a
            vision-language model, its parameters are not used.

    >>> SiglipVisionConfig().length
    729
    """

    img_size: int = 384
    patch_size: int = 14
    d_model: int = 1152
    depth: int = 27
    heads: int = 16
    d_mlp: int = 4304
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "silu"] = "gelu_tanh"
    eps: float = 1e-6
    pool_head: bool = True

    class_tokens = 0
    pre_norm = False
    patch_bias = True

    @property
    def head(self) -> str:
        """What pools the tokens."""
        return "attention" if self.pool_head else "none"


class PoolHead(nnx.Module):
    """A learned query that attends to all tokens, and an MLP beside it (https://arxiv.org/abs/2106.04560, MAP)."""

    def __init__(self, config: SiglipVisionConfig, *, rngs: nnx.Rngs):
        d, options = config.d_model, dict(dtype=config.dtype, rngs=rngs)
        self.heads = config.heads
        self.probe = parameter(_DRAW(rngs.params(), (1, 1, d)), "token")
        self.in_proj = linear(d, 3 * d, use_bias=True, **options)
        self.out_proj = linear(d, d, use_bias=True, **options)
        self.norm = LayerNorm(d, eps=config.eps, dtype=config.dtype)
        self.mlp = Mlp(config.block, rngs=rngs)

    def __call__(self, x: Tokens) -> Float[jax.Array, "b d"]:
        b, _, d = x.shape
        kernels, biases = (
            jnp.split(v[...].astype(x.dtype), 3, axis=-1) for v in (self.in_proj.kernel, self.in_proj.bias)
        )
        probe = _compat.split_as(jnp.broadcast_to(self.probe[...].astype(x.dtype), (b, 1, d)), x)
        q, k, v = (
            rearrange(t @ kernel + bias[None, None], "b l (h p) -> b l h p", h=self.heads)
            for t, kernel, bias in zip((probe, x, x), kernels, biases, strict=True)
        )
        pooled = self.out_proj(rearrange(ops.attention(q, k, v), "b l h p -> b l (h p)"))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


class VisionTower(nnx.Module):
    """A vision transformer: patches, positions, pre-norm blocks. CLIP's has a class token and a norm before the blocks.

    Hidden state 0 is what enters the first block, hidden state `i` is the output of block `i`; the last one is before
    the final norm.

    Args:
        config: A `CLIPVisionConfig` or a `SiglipVisionConfig`.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> config = CLIPVisionConfig(img_size=8, patch_size=4, d_model=16, depth=2, heads=2, d_mlp=32)
    >>> tower = VisionTower(config, rngs=nnx.Rngs(0))
    >>> tower.hidden(jnp.zeros((1, 8, 8, 3)), -2).shape
    (1, 5, 16)
    """

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        d, p = config.d_model, config.patch_size
        self.patch_kernel = parameter(_PATCHES(rngs.params(), (p, p, 3, d), jnp.float32), "filter")
        self.patch_bias = parameter(jnp.zeros((d,)), "bias") if config.patch_bias else None
        self.class_token = parameter(_DRAW(rngs.params(), (d,)), "token") if config.class_tokens else None
        self.positions = parameter(_DRAW(rngs.params(), (config.length, d)), "position")
        self.pre_norm = LayerNorm(d, eps=config.eps) if config.pre_norm else None
        self.layers = make_stack(lambda rngs: TransformerBlock(config.block, rngs=rngs), config.depth, rngs)
        self.post_norm = LayerNorm(d, eps=config.eps)
        self.head = PoolHead(config, rngs=rngs) if config.head == "attention" else None

    def __call__(self, images: Array) -> Float[jax.Array, "b d"]:
        """The pooled output: CLIP's class token, or SigLIP's attention pool; without a head, the mean of the tokens."""
        x = self.hidden(images)
        if self.config.class_tokens:
            return self.post_norm(x[:, 0])
        x = self.post_norm(x)
        return x.mean(1) if self.head is None else self.head(x.astype(self.config.dtype)).astype(jnp.float32)

    def hidden(self, images: Array, layer: int = -1) -> Float[jax.Array, "b l d"]:
        """One hidden state, float32; the blocks behind it do not run.

        Args:
            images: (b y x d), floating, channels last, normalized. Another size than the configuration's gets
                interpolated positions (bicubic).
            layer: Which, from 0 to `depth`, or counted from the end.
        """
        depth = self.config.depth
        return self._run(self.embed(images), layer + depth + 1 if layer < 0 else layer)[0]

    def hidden_states(self, images: Array) -> Float[jax.Array, "s b l d"]:
        """All `depth + 1` hidden states."""
        first = self.embed(images)
        return jnp.concatenate([first[None], self._run(first, self.config.depth)[1]])

    def check_images(self, images: Array) -> None:
        """Raises `ValueError` unless these are images (b y x 3), floating, of the tower's size or another one."""
        side = (self.config.img_size,) * 2
        colored = images.ndim == 4 and images.shape[3] == 3
        check_images("VisionTower", images, images.shape[1:3] if colored else side, 3)

    def embed(self, images: Array) -> Float[jax.Array, "b l d"]:
        """Hidden state 0."""
        config, p = self.config, self.config.patch_size
        images = jnp.asarray(images)
        self.check_images(images)
        images = images[:, : images.shape[1] // p * p, : images.shape[2] // p * p].astype(config.dtype)
        # One axis at a time: a reshape of two has no sharding that jax knows.
        patches = rearrange(rearrange(images, "b (y p) x i -> b y p x i", p=p), "b y p (x q) i -> b y x (p q i)", q=p)
        grid = patches.shape[1:3]
        kernel = rearrange(self.patch_kernel[...].astype(config.dtype), "p q i d -> (p q i) d")
        x = rearrange(patches @ kernel, "b y x d -> b (y x) d").astype(jnp.float32)
        if self.patch_bias is not None:
            x = x + self.patch_bias[...][None, None]
        if self.class_token is not None:
            first = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[2]))
            x = jnp.concatenate([_compat.split_as(first, x), x], axis=1)
        x = x + self._positions(grid)[None]
        return x if self.pre_norm is None else self.pre_norm(x)

    def attention_weights(self, images: Array, layer: int = -1) -> Float[jax.Array, "b h l m"]:
        """The weights of one block's attention, from 0 to `depth - 1`, or counted from the end."""
        layer %= self.config.depth
        x = self._run(self.embed(images), layer)[0]
        definition, state = nnx.split(self.layers)
        block = nnx.merge(definition, jax.tree.map(lambda v: v[layer], state))
        return block.attn.weights(block.norm1(x))

    def _run(self, x: Tokens, stop: int) -> tuple[Tokens, Float[jax.Array, "s b l d"]]:
        def step(x, block, _):
            x = block(x)[0]
            return x, x

        config = self.config
        if stop == 0:
            return x, x[None, :0]
        return apply_stack(
            self.layers, step, x, stop=stop, outputs=True, unroll=config.unroll_layers, remat=config.remat
        )

    def _positions(self, grid: tuple[int, int]) -> Float[jax.Array, "l d"]:
        side, extra, positions = self.config.side, self.config.class_tokens, self.positions[...]
        if grid == (side, side):
            return positions
        image = rearrange(positions[extra:], "(y x) d -> y x d", y=side)
        rows, columns = (jnp.asarray(cubic_matrix(side, new), jnp.float32) for new in grid)
        image = jnp.einsum("ry,sx,yxd->rsd", rows, columns, image, precision="highest")
        return jnp.concatenate([positions[:extra], rearrange(image, "y x d -> (y x) d")])


def _register(name: str, config: type, layout: str) -> None:
    register_family(
        Family(
            name,
            config,
            VisionTower,
            input_shape=lambda config, batch: (batch, config.img_size, config.img_size, 3),
            tiny={"img_size": 8, "patch_size": 4, "d_model": 16, "depth": 2, "heads": 2, "d_mlp": 32},
            hf=f"vlmjax.checkpoints.hf_towers:{layout}",
        )
    )


_register("clip_vision", CLIPVisionConfig, "CLIP_VISION")
_register("siglip_vision", SiglipVisionConfig, "SIGLIP_VISION")
register_model("clip_vision_large_336", "clip_vision", CLIPVisionConfig())
register_model("clip_vision_large", "clip_vision", CLIPVisionConfig(img_size=224))
register_model("siglip_vision_so400m_384", "siglip_vision", SiglipVisionConfig())
CLIP_NANO = CLIPVisionConfig(img_size=32, patch_size=4, d_model=64, depth=4, heads=4, d_mlp=256)
SIGLIP_NANO = SiglipVisionConfig(
    img_size=48, patch_size=4, d_model=128, depth=4, heads=4, d_mlp=512, eps=1e-6, pool_head=False
)
register_model("clip_vision_nano", "clip_vision", CLIP_NANO)
register_model("siglip_vision_nano", "siglip_vision", SIGLIP_NANO)
