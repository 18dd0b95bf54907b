"""LLaVA: a vision tower, a projector and a language model, with or without a merge of the visual tokens between."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from ssmjax import errors
from ssmjax.models.config import check_fields, require
from ssmjax.models.registry import Family, register_family, register_model
from ssmjax.shapes import Array, Float, Int, Mask, Tokens
from vlmjax.layers.projector import Projector, projected_tokens
from vlmjax.models.language import LLAMA_NANO, CausalLM, LlamaConfig, LMCache, Qwen2Config
from vlmjax.models.splice import place, splice
from vlmjax.models.towers import CLIP_NANO, SIGLIP_NANO, CLIPVisionConfig, SiglipVisionConfig, VisionTower

__all__ = ["Llava", "LlavaConfig"]


@no_type_check
@dataclasses.dataclass(frozen=True)
class LlavaConfig:
    """LLaVA 1.0 and 1.5 (https://arxiv.org/abs/2304.08485, https://arxiv.org/abs/2310.03744).

    The defaults are those of LLaVA 1.5 with 7 billion parameters, in the sizes that Hugging Face's files have.

    Attributes:
        vision: The tower's configuration, a `CLIPVisionConfig` or a `SiglipVisionConfig`.
        text: The language model's, a `LlamaConfig` or a `Qwen2Config`.
        projector: A kind of `Projector`: "linear" in LLaVA 1.0, "mlp2x_gelu" in 1.5.
        projector_bias: Whether it has biases.
        projector_by_columns: Whether a projector that joins neighbors goes column by column, as VILA 1.5's does.
        layers: The hidden states of the tower that are read, counted from the end; several are put side by side.
        keep_class: Whether the class token is among the visual tokens.
        final_norm: Whether the tower's last norm is applied to what is read; no published LLaVA does.
        image_token: The token that stands for one visual token in a text; it need not be in the vocabulary.

    Raises:
        ValueError: A field has a value of the wrong type or range.

    >>> LlavaConfig().tokens_per_image
    576
    """

    vision: CLIPVisionConfig | SiglipVisionConfig = CLIPVisionConfig()
    text: LlamaConfig | Qwen2Config = LlamaConfig(vocab=32064)
    projector: str = "mlp2x_gelu"
    projector_bias: bool = True
    projector_by_columns: bool = False
    layers: tuple[int, ...] = (-2,)
    keep_class: bool = False
    final_norm: bool = False
    image_token: int = 32000

    def __post_init__(self):
        check_fields(self)
        require(self, "layers", len(self.layers) > 0, "one hidden state or more")
        if self.final_norm:
            require(self, "layers", self.layers == (-1,), "(-1,) with final_norm, which is the last state's")
        require(self, "image_token", self.image_token >= 0, "at least 0")

    @property
    def dropped(self) -> int:
        """The tower's tokens that are not read."""
        return 0 if self.keep_class else self.vision.class_tokens

    @property
    def projector_width(self) -> int:
        """The width of what the projector reads."""
        return self.vision.d_model * len(self.layers)

    @property
    def tokens_per_image(self) -> int:
        """The visual tokens of an image, before any merge."""
        return projected_tokens(self.projector, self.vision.length - self.dropped)


class Llava(nnx.Module):
    """A vision-language model: visual tokens, projected, stand among the embeddings of a text.

    In a text, each visual token is one `config.image_token`; the images are used in the order of their tokens, row by
    row. With a budget of `m` merged tokens an image has `m` of them; the text keeps the positions it would have, and a
    merged token stands where its anchor stood.

    Args:
        config: The configuration.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp, vlmjax
    >>> model = vlmjax.create_model("llava_nano")
    >>> n = model.config.tokens_per_image
    >>> tokens = jnp.concatenate([jnp.full((1, n), model.config.image_token), jnp.array([[1, 2, 3]])], axis=1)
    >>> model(tokens, images=jnp.zeros((1, 32, 32, 3))).shape
    (1, 67, 64)
    """

    def __init__(self, config: LlavaConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.vision = VisionTower(config.vision, rngs=rngs)
        self.projector = Projector(
            config.projector,
            config.projector_width,
            config.text.d_model,
            use_bias=config.projector_bias,
            by_columns=config.projector_by_columns,
            dtype=config.text.dtype,
            rngs=rngs,
        )
        self.language = CausalLM(config.text, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        *,
        images: Array | None = None,
        mask: Mask | None = None,
        merge: Callable | None = None,
    ) -> Float[jax.Array, "b l v"]:
        """Logits of the next token at every position.

        Args:
            tokens: (b l) int, with `image_token` where visual tokens stand.
            images: (n y x d), floating, channels last, normalized; n over all rows.
            mask: (b l), False at padding.
            merge: What makes fewer visual tokens of an image's, such as a `Merger` with its budget set:
                `merge(x) -> MergeState`. None merges nothing.

        Returns:
            (b l v), float32.

        Raises:
            ValueError: The images do not fit the number of image tokens.
        """
        x, cache = self._decode(tokens, images, mask, merge, None)
        return self.language.logits(x)

    def project(self, images: Array) -> Float[jax.Array, "n m d"]:
        """The visual tokens of images, projected, unmerged."""
        return self.projector(self.visual_tokens(images))

    def visual_tokens(self, images: Array) -> Float[jax.Array, "n l d"]:
        """What the projector reads: the chosen hidden states of the tower, without the class token, float32."""
        config = self.config
        if len(config.layers) == 1:
            x = self.vision.hidden(images, config.layers[0])
            x = self.vision.post_norm(x) if config.final_norm else x
        else:
            states = self.vision.hidden_states(images)
            x = rearrange(jnp.stack([states[layer] for layer in config.layers]), "s n l d -> n l (s d)")
        return x[:, config.dropped :]

    def init_cache(self, batch: int, length: int) -> LMCache:
        """An empty cache; see `CausalLM.init_cache`."""
        return self.language.init_cache(batch, length)

    def prefill(
        self,
        tokens: Int[Array, "b l"],
        cache: LMCache,
        *,
        mask: Mask | None = None,
        images: Array | None = None,
        merge: Callable | None = None,
    ) -> tuple[Float[jax.Array, "b v"], LMCache]:
        """Reads a prompt with its images: the logits after its last token, and the cache."""
        x, cache = self._decode(tokens, images, mask, merge, cache)  # type: ignore[assignment]
        return self.language.logits(x[:, -1]), cache

    def step(self, tokens: Int[Array, "b"], cache: LMCache) -> tuple[Float[jax.Array, "b v"], LMCache]:
        """Reads one token a row: the logits after it, and the cache."""
        return self.language.step(tokens, cache)

    def embed(
        self,
        tokens: Int[Array, "b l"],
        visual: Tokens | None,
        mask: Mask | None = None,
        *,
        places: Int[Array, "b l"] | None = None,
    ) -> Tokens:
        """The embeddings of a text with projected visual tokens in their places.

        Args:
            tokens: (b l) int.
            visual: (n m d), or None for a text alone.
            mask: (b l), False at padding.
            places: (b l), the number of the visual token at each place, -1 for none, as `interleave` gives it; by
                default visual tokens stand one after the other where the image tokens are.

        Raises:
            ValueError: There are not as many image tokens as visual ones.
        """
        # The image token need not have a row in the table, and its row is read nowhere.
        x = self.language.embed(jnp.where(tokens == self.config.image_token, 0, tokens), mask)
        if places is not None and visual is not None:
            return place(x, rearrange(visual, "n m d -> (n m) d"), places)
        wanted = 0 if visual is None else visual.shape[0] * visual.shape[1]
        here = self._here(tokens, mask, wanted, self.config.tokens_per_image if visual is None else visual.shape[1])
        return x if visual is None else splice(x, rearrange(visual, "n m d -> (n m) d"), here)

    def check_inputs(
        self,
        tokens: Int[Array, "b l"],
        *,
        mask: Mask | None = None,
        images: Array | None = None,
        merge: Callable | None = None,
        places: Int[Array, "b l"] | None = None,
        **how: Any,
    ) -> None:
        """Raises `ValueError` unless the text has as many image tokens as the images have visual tokens."""
        self.language.check_tokens(jnp.asarray(tokens))
        if isinstance(tokens, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
            return
        words = np.asarray(tokens) != self.config.image_token
        self.language.check_inputs(tokens, mask=words if mask is None else words & np.asarray(mask, bool))
        if places is not None:
            return
        if images is not None:
            self.vision.check_images(images)
        count = 0 if images is None else self._count(images, **how)
        per_image = self.config.tokens_per_image if images is None or how or not count else count // len(images)
        if merge is not None and images is not None:
            shape = jax.eval_shape(lambda x: merge(self.visual_tokens(x)).tokens, jnp.asarray(images)).shape
            count, per_image = shape[0] * shape[1], shape[1]
        if count is not None:
            self._here(jnp.asarray(tokens), mask, count, per_image)

    def _count(self, images) -> int | None:
        """The visual tokens of all images, None where that is not known before they are made."""
        config, (n, *size) = self.config, images.shape[:3]
        patches = math.prod(side // config.vision.patch_size for side in size)
        return n * projected_tokens(config.projector, patches + config.vision.class_tokens - config.dropped)

    def _here(self, tokens, mask, wanted, per_image):
        """Where the image tokens are, of which there must be as many as wanted."""
        here = tokens == self.config.image_token
        here = here if mask is None else here & mask
        known = None if isinstance(here, jax.core.Tracer) else int(np.asarray(here).sum())
        if known is not None and known != wanted:
            raise errors.bad_argument(
                "Llava",
                "tokens",
                f"{known} image tokens ({self.config.image_token})",
                f"a text with {wanted} image tokens",
                f"Each image takes {per_image} of them.",
            )
        return here

    def _decode(self, tokens, images, mask, merge, cache, *, places=None, **how):
        """What the language model makes of a text with images; `how` goes to `project`."""
        self.check_inputs(tokens, mask=mask, images=images, merge=merge, places=places, **how)
        if images is None or merge is None:
            visual = None if images is None else self.project(images, **how)
            return self.language.decode(self.embed(tokens, visual, mask, places=places), mask=mask, cache=cache)
        visual = self.visual_tokens(images)
        merged = merge(visual)
        x = self.embed(tokens, self.projector(merged.tokens), mask)
        here = tokens == self.config.image_token
        positions, sizes = merged_positions(here, mask, merged, visual.shape[1])
        return self.language.decode(x, mask=mask, positions=positions, bias=sizes, cache=cache)


def merged_positions(here: Array, mask: Mask | None, merged, whole: int) -> tuple[jax.Array, jax.Array]:
    """Where tokens stand when images of `whole` tokens have `m`, and the log sizes of all, zero for text.

    Args:
        here: (b l), True at merged tokens.
        mask: (b l), False at padding, or None.
        merged: A `MergeState` of the n images.
        whole: How many tokens an image had.
    """
    real = jnp.ones_like(here) if mask is None else mask
    here = here & real
    m = merged.tokens.shape[1]
    number = jnp.maximum(jnp.cumsum(here, axis=1) - 1, 0)  # which of the row's visual tokens
    before = jnp.where(here, number // m, (number + here.any(1, keepdims=True)) // m)  # whole images before this token
    plain = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0) + before * (whole - m)
    logs = jnp.log(jnp.maximum(merged.size, 1e-9))  # tokens of a soft merge fade, and never quite to nothing
    spots, size = (splice(jnp.zeros(here.shape), v.reshape(-1), here) for v in (merged.position, logs))
    positions = jnp.where(here, plain - number % m + spots.astype(plain.dtype), plain)
    return positions, size


register_family(
    Family(
        "llava",
        LlavaConfig,
        Llava,
        input_shape=lambda config, batch: (batch, 8),
        input_dtype=lambda config: jnp.int32,
        tiny={
            "vision": {"img_size": 8, "patch_size": 4, "d_model": 16, "depth": 2, "heads": 2, "d_mlp": 32},
            "text": {"vocab": 32, "d_model": 16, "depth": 2, "heads": 2, "kv_heads": 2, "d_mlp": 32, "max_length": 64},
            "image_token": 31,
        },
        hf="vlmjax.checkpoints.layouts:LLAVA_LAYOUTS",
    )
)
_NANO = dict(text=LLAMA_NANO, layers=(-1,), image_token=63)
register_model("llava_nano", "llava", LlavaConfig(vision=CLIP_NANO, **{**_NANO, "layers": (-2,)}))
register_model("llava_scenes", "llava", LlavaConfig(vision=SIGLIP_NANO, final_norm=True, **_NANO))
register_model(
    "llava_1_0_7b",
    "llava",
    LlavaConfig(vision=CLIPVisionConfig(img_size=224), projector="linear"),
)
register_model("llava_1_5_7b", "llava", LlavaConfig())
_13B = LlamaConfig(vocab=32064, d_model=5120, depth=40, heads=40, d_mlp=13824)
register_model("llava_1_5_13b", "llava", LlavaConfig(text=_13B))
