"""CLIP: a vision tower and a text tower that meet in one space."""

import dataclasses
from typing import no_type_check

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from ssmjax import _compat, errors
from ssmjax.layers import LayerNorm
from ssmjax.layers.common.parameters import parameter
from ssmjax.layers.common.stack import apply_stack, make_stack
from ssmjax.models.config import ComputeDtype, check_fields, require
from ssmjax.models.registry import Family, register_family, register_model
from ssmjax.shapes import Array, Float, Int, Mask, Tokens
from vlmjax.layers.transformer import BlockSize, TransformerBlock, linear
from vlmjax.models.towers import CLIPVisionConfig, VisionTower

__all__ = ["CLIP", "CLIPConfig", "CLIPTextConfig", "CLIPText", "contrastive_loss"]

_DRAW = initializers.normal(0.02)

LARGEST_SCALE = 100.0
"""Training keeps the factor of the cosines below this (CLIP, section 2.5)."""


@no_type_check
@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """The text side of CLIP; the defaults are those beside ViT-L/14.

    Attributes:
        vocab: The number of tokens.
        length: The longest text.
        d_model: The width of a token.
        depth: The number of blocks.
        heads: The heads of attention.
        d_mlp: The inner width of the MLPs.
        activation: The activation of the MLPs.
        eps: The epsilon of the norms.
        eos: The token that ends a text, whose place is read. 2 stands for the rule of the first published models: they
            read the place of the largest token id.
        dtype: What to compute in.

    >>> CLIPTextConfig().length
    77
    """

    vocab: int = 49408
    length: int = 77
    d_model: int = 768
    depth: int = 12
    heads: int = 12
    d_mlp: int = 3072
    activation: str = "quick_gelu"
    eps: float = 1e-5
    eos: int = 2
    dtype: ComputeDtype = "float32"

    def __post_init__(self):
        check_fields(self)
        for field in ("vocab", "length", "d_model", "depth", "heads", "d_mlp"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        require(self, "heads", self.d_model % self.heads == 0, f"a divisor of d_model = {self.d_model}")

    @property
    def block(self) -> BlockSize:
        """The size of a block."""
        return BlockSize(
            self.d_model,
            self.heads,
            self.d_mlp,
            eps=self.eps,
            activation=self.activation,
            causal=True,
            out_scale=(2 * self.depth) ** -0.5,
            dtype=self.dtype,
        )


@no_type_check
@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """CLIP (https://arxiv.org/abs/2103.00020); the defaults are those of ViT-L/14 at 336 pixels.

    Attributes:
        vision: The vision side.
        text: The text side.
        d_shared: The width of the space in which both meet.

    >>> CLIPConfig().vision.d_model
    1024
    """

    vision: CLIPVisionConfig = CLIPVisionConfig()
    text: CLIPTextConfig = CLIPTextConfig()
    d_shared: int = 768

    def __post_init__(self):
        check_fields(self)
        require(self, "d_shared", self.d_shared >= 1, "at least 1")


class CLIPText(nnx.Module):
    """The text side: embeddings, learned positions, causal blocks, a final norm.

    Args:
        config: The configuration.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> config = CLIPTextConfig(vocab=11, length=5, d_model=16, depth=1, heads=2, d_mlp=32, eos=10)
    >>> CLIPText(config, rngs=nnx.Rngs(0))(jnp.array([[1, 10, 0]])).shape
    (1, 16)
    """

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = parameter(_DRAW(rngs.params(), (config.vocab, config.d_model)), "embedding")
        self.positions = parameter(_DRAW(rngs.params(), (config.length, config.d_model)), "position")
        self.layers = make_stack(lambda rngs: TransformerBlock(config.block, rngs=rngs), config.depth, rngs)
        self.norm = LayerNorm(config.d_model, eps=config.eps)

    def __call__(self, tokens: Int[Array, "b l"], *, mask: Mask | None = None) -> Float[jax.Array, "b d"]:
        """What is read at the end of each text.

        Args:
            tokens: (b l) int.
            mask: (b l), False at padding.
        """
        x = self.norm(self.hidden_states(tokens, mask=mask)[-1])
        if self.config.eos == 2:
            place = tokens.argmax(-1)
        else:
            place = (tokens == self.config.eos).argmax(-1)
        chosen = jax.nn.one_hot(place, tokens.shape[1], dtype=x.dtype)  # a product: a gather's gradient is a scatter
        return jnp.einsum("bl,bld->bd", chosen, x, precision="highest")

    def hidden_states(self, tokens: Int[Array, "b l"], *, mask: Mask | None = None) -> Float[jax.Array, "s b l d"]:
        """What enters the first block and the output of each, before the final norm: (depth+1 b l d)."""
        if tokens.ndim != 2 or tokens.shape[1] > self.config.length:
            wanted = f"(b l) with l at most {self.config.length}"
            raise errors.bad_shape("CLIPText", "tokens", tokens, wanted, "Cut the text.")
        x = _compat.look_up(self.embedding[...], tokens) + self.positions[...][None, : tokens.shape[1]]

        def step(x, block, _):
            x = block(x, mask=mask)[0]
            return x, x

        _, states = apply_stack(self.layers, step, x, outputs=True)
        return jnp.concatenate([x[None], states])


class CLIP(nnx.Module):
    """Both towers, the projections into the shared space, and the scale of the cosines.

    Args:
        config: The configuration.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> vision = CLIPVisionConfig(img_size=8, patch_size=4, d_model=16, depth=1, heads=2, d_mlp=32)
    >>> text = CLIPTextConfig(vocab=11, length=5, d_model=16, depth=1, heads=2, d_mlp=32)
    >>> model = CLIP(CLIPConfig(vision, text, 8), rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((3, 8, 8, 3)), jnp.array([[1, 2, 3]])).shape
    (3, 1)
    """

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.vision = VisionTower(config.vision, rngs=rngs)
        self.text = CLIPText(config.text, rngs=rngs)
        self.vision_projection = linear(config.vision.d_model, config.d_shared, use_bias=False, dtype=None, rngs=rngs)
        self.text_projection = linear(config.text.d_model, config.d_shared, use_bias=False, dtype=None, rngs=rngs)
        self.logit_scale = parameter(jnp.asarray(2.6592), "scale")

    def __call__(
        self, images: Array, tokens: Int[Array, "b l"], *, mask: Mask | None = None
    ) -> Float[jax.Array, "images texts"]:
        """The cosine of each image with each text, times `exp(logit_scale)`."""
        x, y = self.embed_images(images), self.embed_texts(tokens, mask=mask)
        scale = jnp.minimum(jnp.exp(self.logit_scale[...]), LARGEST_SCALE)
        return scale * jnp.matmul(x, _compat.whole(y).T, precision="highest")

    def embed_images(self, images: Array) -> Float[jax.Array, "b d"]:
        """Images in the shared space, of length one."""
        return _unit(self.vision_projection(self.vision(images)))

    def embed_texts(self, tokens: Int[Array, "b l"], *, mask: Mask | None = None) -> Float[jax.Array, "b d"]:
        """Texts in the shared space, of length one."""
        return _unit(self.text_projection(self.text(tokens, mask=mask)))


def contrastive_loss(logits: Float[Array, "b b"]) -> Float[jax.Array, ""]:
    """Cross entropy of matching images with texts and texts with images, averaged (CLIP, figure 3).

    Args:
        logits: (b b); image `i` belongs to text `i`.

    >>> import jax.numpy as jnp
    >>> round(float(contrastive_loss(jnp.zeros((4, 4)))), 4)
    1.3863
    """
    right = jnp.diagonal(logits)
    return 0.5 * sum((jax.nn.logsumexp(logits, axis=axis) - right).mean() for axis in (0, 1))


def _unit(x: Tokens) -> Tokens:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


register_family(
    Family(
        "clip",
        CLIPConfig,
        CLIP,
        inputs=lambda config, batch: {
            "images": jax.ShapeDtypeStruct((batch, config.vision.img_size, config.vision.img_size, 3), jnp.float32),
            "tokens": jax.ShapeDtypeStruct((batch, config.text.length), jnp.int32),
        },
        tiny={
            "vision": {"img_size": 8, "patch_size": 4, "d_model": 16, "depth": 2, "heads": 2, "d_mlp": 32},
            "text": {"vocab": 32, "length": 6, "d_model": 16, "depth": 2, "heads": 2, "d_mlp": 32},
            "d_shared": 8,
        },
        hf="vlmjax.checkpoints.hf_towers:CLIP",
    )
)
register_model("clip_vit_large_336", "clip", CLIPConfig())
