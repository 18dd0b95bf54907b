"""VILA and NVILA: a SigLIP tower, a projector that joins neighbors, images anywhere in a text, several scales."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, no_type_check

import jax
import jax.numpy as jnp

from ssmjax.models.config import check_fields, require
from ssmjax.models.registry import Family, get_family, register_family, register_model
from ssmjax.shapes import Array, Float, Int, Mask
from vlmjax.layers.projector import projected_tokens
from vlmjax.models.language import LLAMA_NANO, LlamaConfig, LMCache, Qwen2Config
from vlmjax.models.llava import Llava, LlavaConfig
from vlmjax.models.multiscale import dynamic_tokens, multiscale_tokens
from vlmjax.models.towers import SIGLIP_NANO, CLIPVisionConfig, SiglipVisionConfig

__all__ = ["Vila", "VilaConfig"]


@no_type_check
@dataclasses.dataclass(frozen=True)
class VilaConfig(LlavaConfig):
    """VILA 1.5 (https://arxiv.org/abs/2312.07533) and NVILA (https://arxiv.org/abs/2412.04468).

    The defaults are those of VILA 1.5 with 3 billion parameters. The fields are those of `LlavaConfig`, and these:

    Attributes:
        scales: The sides at which the tower reads an image, whose features are put side by side (S2); the first is the
            tower's own. Empty for the tower's own alone.
        scale_index: The scale whose map decides the number of tokens.
        tiling: "none"; "tiles": an image may be several tiles, each as an image of its own; "scales": the last scale
            has a grid of tiles that fits the image (dynamic S2).

    >>> VilaConfig().tokens_per_image
    196
    """

    vision: CLIPVisionConfig | SiglipVisionConfig = SiglipVisionConfig()
    text: LlamaConfig | Qwen2Config = LlamaConfig(d_model=2560, heads=20, d_mlp=6912)
    projector: str = "mlp_downsample"
    projector_by_columns: bool = True
    keep_class: bool = True
    scales: tuple[int, ...] = ()
    scale_index: int = 0
    tiling: Literal["none", "tiles", "scales"] = "none"

    def __post_init__(self):
        super().__post_init__()
        check_fields(self)
        fit = not self.scales or all(each % self.vision.img_size == 0 for each in self.scales)
        require(self, "scales", fit, f"multiples of the tower's size {self.vision.img_size}")
        require(self, "tiling", self.tiling != "scales" or len(self.scales) > 1, "'none' or 'tiles' without scales")

    @property
    def projector_width(self) -> int:
        """The width of what the projector reads."""
        return super().projector_width * max(1, len(self.scales))

    @property
    def tokens_per_image(self) -> int:
        """The visual tokens of an image; of one of a single tile, where that depends on the image."""
        fixed = self.scales and self.tiling != "scales"
        times = sorted(self.scales)[self.scale_index] // self.vision.img_size if fixed else 1
        return projected_tokens(self.projector, (self.vision.length - self.dropped) * times**2)


class Vila(Llava):
    """A VILA: images and texts interleaved in any order.

    As in `Llava`, an image takes as many image tokens in a text as it has visual tokens; `interleave` spreads the one
    placeholder of an image to them, adds the newline that NVILA has after each, and cuts and packs texts.

    Args:
        config: The configuration.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp, vlmjax
    >>> model = vlmjax.create_model("vila_nano")
    >>> batch = vlmjax.models.interleave([[5, 63, 6, 63]], {63: [[model.config.tokens_per_image]] * 2})
    >>> model(jnp.asarray(batch.tokens), images=jnp.zeros((2, 48, 48, 3)), places=batch.places).shape
    (1, 74, 64)
    """

    def __call__(  # type: ignore[override]
        self,
        tokens: Int[Array, "b l"],
        *,
        images: Array | None = None,
        mask: Mask | None = None,
        places: Int[Array, "b l"] | None = None,
        blocks: Sequence[tuple[int, int] | None] | None = None,
    ) -> Float[jax.Array, "b l v"]:
        """Logits of the next token at every position.

        Args:
            tokens: (b l) int, with `image_token` where visual tokens stand.
            images: (n y x d), images or tiles, floating, channels last, normalized.
            mask: (b l), False at padding.
            places: (b l), which visual token stands where, from `interleave`; by default the image tokens are
                filled one after the other.
            blocks: With `tiling="scales"`, the rows and columns of tiles of each image's last scale, from `tile_grid`;
                None for an image of one tile. They are Python numbers.

        Returns:
            (b l v), float32.

        Raises:
            ValueError: The images do not fit the number of image tokens.
        """
        x, _ = self._decode(tokens, images, mask, None, None, places=places, blocks=blocks)
        return self.language.logits(x)

    def prefill(  # type: ignore[override]
        self,
        tokens: Int[Array, "b l"],
        cache: LMCache,
        *,
        mask: Mask | None = None,
        images: Array | None = None,
        places: Int[Array, "b l"] | None = None,
        blocks: Sequence[tuple[int, int] | None] | None = None,
    ) -> tuple[Float[jax.Array, "b v"], LMCache]:
        """Reads a prompt with its images: the logits after its last token, and the cache."""
        x, cache = self._decode(tokens, images, mask, None, cache, places=places, blocks=blocks)  # type: ignore[assignment]
        return self.language.logits(x[:, -1]), cache

    def _count(self, images, blocks=None):  # type: ignore[override]
        return None if self.config.tiling == "scales" else super()._count(images)

    def project(  # type: ignore[override]
        self, images: Array, blocks: Sequence[tuple[int, int] | None] | None = None
    ) -> Float[jax.Array, "n m d"]:
        """The visual tokens of images, projected: (n m d), or (1 m d) for all together with dynamic scales."""
        if self.config.tiling != "scales":
            return super().project(images)
        config = self.config
        blocks = [None] * images.shape[0] if blocks is None else blocks
        tokens = super().visual_tokens(images)
        return jnp.concatenate(dynamic_tokens(tokens, blocks, config.scales, self.projector, index=config.scale_index))[
            None
        ]

    def visual_tokens(self, images: Array) -> Float[jax.Array, "n l d"]:
        """What the projector reads: the tower's tokens, of all scales side by side."""
        config = self.config
        if not config.scales or config.tiling == "scales":
            return super().visual_tokens(images)
        size = config.vision.img_size
        return multiscale_tokens(super().visual_tokens, images, config.scales, size, index=config.scale_index)


register_family(
    Family(
        "vila",
        VilaConfig,
        Vila,
        input_shape=lambda config, batch: (batch, 8),
        input_dtype=lambda config: jnp.int32,
        tiny=get_family("llava").tiny,
        hf="vlmjax.checkpoints.hf_original:VILA",
    )
)
register_model("vila_nano", "vila", VilaConfig(vision=SIGLIP_NANO, text=LLAMA_NANO, image_token=63))
register_model("vila_1_5_3b", "vila", VilaConfig())
_NVILA = dict(vision=SiglipVisionConfig(img_size=448, pool_head=False), projector_by_columns=False, image_token=151649)
register_model(
    "nvila_8b",
    "vila",
    VilaConfig(
        **_NVILA,
        text=Qwen2Config(
            vocab=151648, d_model=3584, depth=28, heads=28, kv_heads=4, d_mlp=18944, tied=False, max_length=32768
        ),
        scales=(448, 896, 1344),
        scale_index=-1,
        tiling="scales",
    ),
)
