"""LLaVA-NeXT: a large image as a whole and as tiles, in a sequence with the end of each row marked."""

import dataclasses
from collections.abc import Sequence
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.nn import initializers

from ssmjax.layers.common.parameters import parameter
from ssmjax.models.config import check_fields, require
from ssmjax.models.registry import Family, get_family, register_family, register_model
from ssmjax.shapes import Array, Float, Int, Mask
from vlmjax.models.language import LLAMA_NANO, LMCache
from vlmjax.models.llava import Llava, LlavaConfig
from vlmjax.models.splice import place
from vlmjax.models.tiles import anyres_grid, anyres_order
from vlmjax.models.towers import CLIP_NANO

__all__ = ["LlavaNext", "LlavaNextConfig"]


@no_type_check
@dataclasses.dataclass(frozen=True)
class LlavaNextConfig(LlavaConfig):
    """LLaVA-NeXT, also called LLaVA 1.6 (https://llava-vl.github.io/blog/2024-01-30-llava-next/).

    The fields are those of `LlavaConfig`, and one more.

    Attributes:
        pinpoints: The heights and widths to which an image may be resized, in multiples of the tower's size.

    >>> LlavaNextConfig().grid((480, 640))
    (2, 2)
    """

    pinpoints: tuple[tuple[int, int], ...] = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))

    def __post_init__(self):
        super().__post_init__()
        check_fields(self)
        size = self.vision.img_size
        fit = all(height % size == width % size == 0 for height, width in self.pinpoints)
        require(self, "pinpoints", len(self.pinpoints) > 0 and fit, f"multiples of the tower's size {size}")

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The rows and columns of tiles of an image of this height and width."""
        return anyres_grid(size, self.pinpoints, self.vision.img_size)


class LlavaNext(Llava):
    """A LLaVA that reads each image as a whole and in tiles.

    The crops of an image are the whole image, then its tiles row by row, each at the tower's size; in a text it takes
    as many image tokens as `order` is long.

    Args:
        config: The configuration.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp, vlmjax
    >>> model = vlmjax.create_model("llava_next_nano")
    >>> order = model.order([(32, 64)])  # two tiles, and the whole
    >>> tokens = jnp.concatenate([jnp.full((1, len(order)), model.config.image_token), jnp.array([[1, 2]])], axis=1)
    >>> model(tokens, images=jnp.zeros((3, 32, 32, 3)), order=order).shape
    (1, 202, 64)
    """

    def __init__(self, config: LlavaNextConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        scale = config.text.d_model**-0.5
        self.newline = parameter(initializers.normal(scale)(rngs.params(), (config.text.d_model,)), "token")

    def order(self, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
        """Which token of the crops stands at each place of the images' sequences; see `anyres_order`.

        Args:
            sizes: The height and width of each image, before it was resized.
        """
        return anyres_order(sizes, [self.config.grid(size) for size in sizes], self.config.vision.side)

    def __call__(  # type: ignore[override]
        self,
        tokens: Int[Array, "b l"],
        *,
        images: Array | None = None,
        order: Int[Array, "n"] | None = None,
        mask: Mask | None = None,
    ) -> Float[jax.Array, "b l v"]:
        """Logits of the next token at every position.

        Args:
            tokens: (b l) int, with `image_token` where visual tokens stand.
            images: (c y x d), the crops of all images, floating, channels last, normalized.
            order: (n), from `order`; it may be traced, so that no new size of an image compiles anything but a new
                number of crops or tokens.
            mask: (b l), False at padding.

        Returns:
            (b l v), float32.

        Raises:
            ValueError: The order does not fit the number of image tokens.
        """
        x, _ = self._decode(tokens, images, mask, None, None, order=order)
        return self.language.logits(x)

    def project(self, images: Array, order: Int[Array, "n"]) -> Float[jax.Array, "1 n d"]:  # type: ignore[override]
        """The projected tokens of all images, newlines among them, in their order."""
        x = rearrange(super().project(images), "c l d -> (c l) d")
        order = jnp.asarray(order)
        newlines = jnp.broadcast_to(self.newline[...].astype(x.dtype), (order.shape[0], x.shape[-1]))
        return place(newlines, x, order)[None]

    def _count(self, images, order):  # type: ignore[override]
        return len(order)

    def prefill(  # type: ignore[override]
        self,
        tokens: Int[Array, "b l"],
        cache: LMCache,
        *,
        mask: Mask | None = None,
        images: Array | None = None,
        order: Int[Array, "n"] | None = None,
    ) -> tuple[Float[jax.Array, "b v"], LMCache]:
        """Reads a prompt with its images: the logits after its last token, and the cache."""
        x, cache = self._decode(tokens, images, mask, None, cache, order=order)  # type: ignore[assignment]
        return self.language.logits(x[:, -1]), cache


register_family(
    Family(
        "llava_next",
        LlavaNextConfig,
        LlavaNext,
        input_shape=lambda config, batch: (batch, 8),
        input_dtype=lambda config: jnp.int32,
        tiny={**get_family("llava").tiny, "pinpoints": ((8, 16), (16, 8))},
        hf="vlmjax.checkpoints.layouts:LLAVA_NEXT_LAYOUTS",
    )
)
register_model(
    "llava_next_nano",
    "llava_next",
    LlavaNextConfig(
        vision=CLIP_NANO, text=LLAMA_NANO, image_token=63, pinpoints=((32, 64), (64, 32), (64, 64), (96, 32), (32, 96))
    ),
)
register_model("llava_1_6_vicuna_7b", "llava_next", LlavaNextConfig())
