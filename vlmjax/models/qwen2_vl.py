"""Qwen2-VL and Qwen2.5-VL: images and videos of any size among the tokens of a text, positions in three dimensions."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, no_type_check

import jax
import jax.numpy as jnp
from flax import nnx

from ssmjax import errors
from ssmjax.models.config import check_fields, require
from ssmjax.models.registry import Family, register_family, register_model
from ssmjax.shapes import Array, Float, Int, Mask, Tokens
from vlmjax.models.language import CausalLM, LMCache, Qwen2Config
from vlmjax.models.qwen_tower import QwenVisionConfig, QwenVisionTower
from vlmjax.models.splice import splice
from vlmjax.models.visual_tokens import VisualTokens, merged_frames, merged_images, whole_frames
from vlmjax.processing.patches import PackedPatches

__all__ = ["Qwen2VL", "Qwen2VLConfig", "VisualTokens"]

_TEXT_2B = Qwen2Config(d_model=1536, depth=28, heads=12, kv_heads=2, d_mlp=8960, rope_sections=(16, 24, 24))


@no_type_check
@dataclasses.dataclass(frozen=True)
class Qwen2VLConfig:
    """Qwen2-VL (https://arxiv.org/abs/2409.12191) and, by its fields, Qwen2.5-VL (https://arxiv.org/abs/2502.13923).

    The defaults are those of Qwen2-VL with 2 billion parameters.

    Attributes:
        vision: The tower's configuration.
        text: The language model's, with `rope_sections`.
        image_token: The token that stands for one visual token of an image in a text.
        video_token: The token that stands for a part of a video.
        position_rule: Where the text goes on after an image or a video. "span": behind the largest of all its
            positions, as in the paper and in transformers up to 4.57. "plane": behind the largest of its rows and
            columns, as in transformers 5. The two differ for videos with more slices than rows and columns.
        tokens_per_second: How many positions a second of a video takes (Qwen2.5-VL); None for one a slice.

    Raises:
        ValueError: A field has a value of the wrong type or range.

    >>> Qwen2VLConfig().text.rope_sections
    (16, 24, 24)
    """

    vision: QwenVisionConfig = QwenVisionConfig()
    text: Qwen2Config = _TEXT_2B
    image_token: int = 151655
    video_token: int = 151656
    position_rule: Literal["span", "plane"] = "span"
    tokens_per_second: int | None = None

    def __post_init__(self):
        check_fields(self)
        for field in ("image_token", "video_token"):
            fits = 0 <= getattr(self, field) < self.text.vocab
            require(self, field, fits, f"below the {self.text.vocab} tokens")
        require(self, "text", self.text.rope_sections is not None, "a configuration with rope_sections")
        fits = self.vision.d_out == self.text.d_model
        require(self, "vision", fits, f"a tower with d_out = {self.text.d_model}, the width of the language model")


class Qwen2VL(nnx.Module):
    """A vision-language model for images and videos of any size.

    In a text, each visual token is one `config.image_token`, or `config.video_token`; images and videos are used in the
    order of their tokens, row by row.

    Args:
        config: The configuration.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp, numpy as np, vlmjax
    >>> from vlmjax.processing import image_patches, pack_patches
    >>> model = vlmjax.create_model("qwen2_vl_nano")
    >>> images = pack_patches([image_patches(np.zeros((60, 90, 3), np.uint8))])
    >>> tokens = jnp.array([[1, *[model.config.image_token] * images.count, 2, 3]])
    >>> model(tokens, images=images).shape
    (1, 9, 64)
    """

    def __init__(self, config: Qwen2VLConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.vision = QwenVisionTower(config.vision, rngs=rngs)
        self.language = CausalLM(config.text, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        *,
        images: PackedPatches | None = None,
        visual: VisualTokens | None = None,
        mask: Mask | None = None,
    ) -> Float[jax.Array, "b l v"]:
        """Logits of the next token at every position.

        Args:
            tokens: (b l) int, with image and video tokens where visual tokens stand.
            images: The patches of all images and videos of all rows, from `vlmjax.processing.pack_patches`.
            visual: What `encode` made of them, in place of `images`.
            mask: (b l), False at padding.

        Returns:
            (b l v), float32.

        Raises:
            ValueError: The images do not fit the number of image tokens.
        """
        self.check_inputs(tokens, mask=mask, images=images, visual=visual)
        return self.language.logits(self._decode(tokens, images, visual, mask, None)[0])

    def encode(
        self,
        images: PackedPatches,
        *,
        merge: Callable | None = None,
        inside: int | None = None,
        room: int | None = None,
    ) -> VisualTokens:
        """Runs the tower, compiled once for each length of the patches, and merges visual tokens where asked to.

        Merged tokens stand where their anchors stood, in time, rows and columns; the text stands where it would stand
        without a merge; and the logarithm of its size is added to the logits of a merged token as a key. A text then
        has `count` image tokens of them.

        Args:
            images: From `vlmjax.processing.pack_patches`.
            merge: What makes fewer tokens of those of an image or video, such as a `Merger` with its budget set:
                `merge(x) -> MergeState` for x of (1 n d). It is compiled with it, so pass the same function again.
            inside: After how many blocks of the tower to merge, from 1 to depth - 1, in place of behind it. What merges
                then are the cells of patches that become one visual token, x of (frames n 4d), within each frame; the
                other blocks have less to do. The frames must be of one size.
            room: The length of the result, such as `tokens.size`; None leaves it. See `VisualTokens.fitted`.

        Raises:
            ValueError: The budget does not fit, or frames of several sizes are to merge inside the tower.

        >>> import numpy as np, vlmjax
        >>> from vlmjax.ops import density_anchors
        >>> from vlmjax.processing import image_patches, pack_patches
        >>> model = vlmjax.create_model("qwen2_vl_nano")
        >>> images = pack_patches([image_patches(np.zeros((56, 84, 3), np.uint8))])
        >>> model.encode(images, merge=lambda x: density_anchors(x, 2)).count
        2
        """
        definition, state = nnx.split(self.vision)
        if inside is not None:
            if merge is None:
                raise errors.bad_argument("Qwen2VL.encode", "merge", None, "a function where there is `inside`")
            inside = errors.as_int("Qwen2VL.encode", "inside", inside, least=1, most=self.config.vision.depth - 1)
            merged = _encode_merged(definition, state, whole_frames(images), merge=merge, at=inside)
            visual = merged_frames(images, merged)
        else:
            tokens = _encode(definition, state, images)
            visual = VisualTokens(tokens, images.offsets, images.extents, images.seconds)
            visual = visual if merge is None else merged_images(visual, merge)
        return visual if room is None else visual.fitted(room)

    def positions(
        self, tokens: Int[Array, "b l"], visual: VisualTokens | None = None, mask: Mask | None = None
    ) -> Int[jax.Array, "b l 3"]:
        """Where each token stands in time, rows and columns (M-RoPE): for text all three are the same; 0 at padding.

        Args:
            tokens: (b l).
            visual: What stands at image and video tokens; its tokens are not read.
            mask: (b l), False at padding.
        """
        return self._placed(tokens, visual, mask)[0]

    def _placed(self, tokens, visual, mask):
        """The positions, and where the next token stands."""
        real = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask)
        here = self._here(tokens, mask)
        advance, offset = real.astype(jnp.int32), jnp.zeros((*tokens.shape, 3), jnp.int32)
        if visual is not None:
            offsets, span = self._spans(visual)
            number = jnp.maximum(jnp.cumsum(here.reshape(-1)) - 1, 0).reshape(here.shape)
            advance = jnp.where(here, jnp.take(span, number, mode="clip"), advance)
            offset = jnp.where(here[..., None], jnp.take(offsets, number, axis=0, mode="clip"), 0)
        before = jnp.cumsum(advance, axis=1) - advance
        return jnp.where(real[..., None], before[..., None] + offset, 0), advance.sum(1)

    def rope_delta(self, positions: Int[Array, "b l 3"], mask: Mask | None = None) -> Int[jax.Array, "b"]:
        """By how much the number behind the largest position exceeds the number of tokens (`rope_deltas` of theirs)."""
        count = positions.shape[1] if mask is None else mask.sum(1)
        return positions.max((1, 2)) + 1 - count

    def init_cache(self, batch: int, length: int) -> LMCache:
        """An empty cache; see `CausalLM.init_cache`."""
        return self.language.init_cache(batch, length)

    def prefill(
        self,
        tokens: Int[Array, "b l"],
        cache: LMCache,
        *,
        mask: Mask | None = None,
        images: PackedPatches | None = None,
        visual: VisualTokens | None = None,
    ) -> tuple[Float[jax.Array, "b v"], LMCache]:
        """Reads a prompt with its images: the logits after its last token, and the cache."""
        x, cache = self._decode(tokens, images, visual, mask, cache)  # type: ignore[assignment]
        return self.language.logits(x[:, -1]), cache

    def step(self, tokens: Int[Array, "b"], cache: LMCache) -> tuple[Float[jax.Array, "b v"], LMCache]:
        """Reads one token a row: the logits after it, and the cache."""
        return self.language.step(tokens, cache)

    def embed(self, tokens: Int[Array, "b l"], visual: VisualTokens | None, mask: Mask | None = None) -> Tokens:
        """The embeddings of a text with visual tokens in their places."""
        x = self.language.embed(tokens, mask)
        return x if visual is None else splice(x, visual.tokens, self._here(tokens, mask))

    def check_inputs(
        self,
        tokens: Int[Array, "b l"],
        *,
        mask: Mask | None = None,
        images: PackedPatches | None = None,
        visual: VisualTokens | None = None,
    ) -> None:
        """Raises `ValueError` unless the text has as many image and video tokens as there are visual tokens."""
        if images is not None and visual is not None:
            remedy = "`visual` is what `encode` made of the images."
            raise errors.bad_argument("Qwen2VL", "visual", "images and visual", "one of the two", remedy)
        self.language.check_inputs(tokens, mask=mask)
        source = images if visual is None else visual
        here = self._here(jnp.asarray(tokens), mask)
        traced = (here, None if source is None else source.extents)
        if any(isinstance(x, jax.core.Tracer) for x in traced):
            return
        wanted = 0 if source is None else source.count
        if (found := int(here.sum())) != wanted:
            tokens_of = f"{self.config.image_token} or {self.config.video_token}"
            got, needed = f"{found} image tokens ({tokens_of})", f"a text with {wanted} image tokens"
            remedy = "expand_placeholders puts in as many as each image takes."
            raise errors.bad_argument("Qwen2VL", "tokens", got, needed, remedy)

    def _decode(self, tokens, images, visual, mask, cache):
        self.language.check_tokens(tokens)
        if images is not None:
            visual = self.encode(images)
        x = self.embed(tokens, visual, mask)
        if visual is None:
            return self.language.decode(x, mask=mask, cache=cache)
        positions, after = self._placed(tokens, visual, mask)
        if cache is not None:
            positions = positions + jnp.asarray(cache.position)[:, None, None]
            after = after + jnp.asarray(cache.position)
        bias = None
        if visual.size is not None:  # tokens of a soft merge fade, and never quite to nothing
            logs = jnp.log(jnp.maximum(jnp.asarray(visual.size), 1e-9))
            bias = splice(jnp.zeros(tokens.shape), logs, self._here(tokens, mask))
        return self.language.decode(x, mask=mask, positions=positions, bias=bias, cache=cache, after=after)

    def _here(self, tokens, mask):
        here = (tokens == self.config.image_token) | (tokens == self.config.video_token)
        return here if mask is None else here & mask

    def _spans(self, visual: VisualTokens) -> tuple[jax.Array, jax.Array]:
        """The visual tokens' offsets in positions, and at an image's or video's last one how far behind the text is."""
        config, offsets, extents = self.config, jnp.asarray(visual.offsets), jnp.asarray(visual.extents)
        last = jnp.maximum(extents - 1, 0)
        if config.tokens_per_second is not None:
            each = config.tokens_per_second * jnp.asarray(visual.seconds)
            scaled = lambda x: x.at[:, 0].set((x[:, 0] * each).astype(jnp.int32))  # noqa: E731
            offsets, last = scaled(offsets), scaled(last)
        counted = last if config.position_rule == "span" else last[:, 1:]
        return offsets, jnp.where(extents.any(1), counted.max(1) + 1, 0)


@functools.partial(jax.jit, static_argnames="definition")
def _encode(definition, state, images):
    return nnx.merge(definition, state)(images)


@functools.partial(jax.jit, static_argnames=("definition", "merge", "at"))
def _encode_merged(definition, state, images, *, merge, at):
    return nnx.merge(definition, state).merged(images, merge, at)


register_family(
    Family(
        "qwen2_vl",
        Qwen2VLConfig,
        Qwen2VL,
        input_shape=lambda config, batch: (batch, 8),
        input_dtype=lambda config: jnp.int32,
        tiny={
            "vision": {"d_model": 16, "d_out": 16, "depth": 2, "heads": 2, "d_mlp": 32},
            "text": {
                "vocab": 32,
                "d_model": 16,
                "depth": 2,
                "heads": 2,
                "kv_heads": 1,
                "d_mlp": 32,
                "max_length": 64,
                "rope_sections": (2, 1, 1),
            },
            "image_token": 30,
            "video_token": 31,
        },
        hf="vlmjax.checkpoints.hf_qwen2_vl:QWEN2_VL",
    )
)
_TEXT_7B = Qwen2Config(
    vocab=152064, d_model=3584, depth=28, heads=28, kv_heads=4, d_mlp=18944, tied=False, rope_sections=(16, 24, 24)
)
_NANO = Qwen2Config(
    vocab=64, d_model=128, depth=4, heads=4, kv_heads=2, d_mlp=384, max_length=256, rope_sections=(4, 6, 6)
)
register_model("qwen2_vl_2b", "qwen2_vl", Qwen2VLConfig())
register_model("qwen2_vl_7b", "qwen2_vl", Qwen2VLConfig(vision=QwenVisionConfig(d_out=3584), text=_TEXT_7B))
register_model(
    "qwen2_vl_nano",
    "qwen2_vl",
    Qwen2VLConfig(
        vision=QwenVisionConfig(d_model=64, d_out=128, depth=4, heads=4, d_mlp=256),
        text=_NANO,
        image_token=62,
        video_token=63,
    ),
)
