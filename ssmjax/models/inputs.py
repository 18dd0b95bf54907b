"""What every image model takes, and checks of its input, so that a wrong layout is one clear message."""

from typing import Any

import jax
import jax.numpy as jnp

from ssmjax import errors
from ssmjax.shapes import Array

__all__ = ["check_images", "image_inputs"]


def image_inputs(config: Any, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The hook `inputs` of a family of image models, whose configurations have a `size` and `in_channels`.

    >>> from ssmjax.models.vim import VimConfig
    >>> image_inputs(VimConfig(img_size=32), 4)["images"].shape
    (4, 32, 32, 3)
    """
    return {"images": jax.ShapeDtypeStruct((batch, *config.size, config.in_channels), jnp.float32)}


def check_images(where: str, images: Array, size: tuple[int, int], channels: int) -> None:
    """Checks a batch of images against what a model takes.

    Args:
        where: The model, for the message.
        images: What came.
        size: The rows and columns wanted.
        channels: The channels wanted.

    Raises:
        ValueError: The rank, the layout, the size or the dtype is wrong; the message says which and what to do.
    """
    b = images.shape[0] if images.ndim == 4 else "b"
    wanted = f"(b, y, x, d) = ({b}, {size[0]}, {size[1]}, {channels})"
    if images.ndim != 4:
        remedy = (
            "One image? Add the batch axis: images[None]." if images.ndim == 3 else "Images are a batch, channels last."
        )
    elif images.shape[1] == channels and images.shape[3] != channels:
        remedy = "Channels first? Transpose with einops 'b d y x -> b y x d'."
    elif images.shape[3] != channels:
        remedy = f"Create the model with in_channels={images.shape[3]} for images like these."
    elif images.shape[1:3] != size:
        remedy = f"Resize the images, or create the model with img_size={_size(*images.shape[1:3])}."
    elif not jnp.issubdtype(images.dtype, jnp.floating):
        remedy = "Normalize first: (images / 255 - mean) / std, as ssmjax.data.augment.normalize does."
        wanted += " of a floating dtype"
    else:
        return
    raise errors.bad_shape(where, "images", images, wanted, remedy)


def _size(rows: int, columns: int) -> int | tuple[int, int]:
    return rows if rows == columns else (rows, columns)
