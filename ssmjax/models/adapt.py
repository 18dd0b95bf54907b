"""Saved arrays for a changed configuration: a new head, and position embeddings for another image size."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from ssmjax import errors
from ssmjax.shapes import Float

__all__ = ["adapt_head", "adapt_images", "resize_pos_embed"]

logger = logging.getLogger(__name__)

Fresh = Callable[[], Mapping[str, Any]]


def adapt_head(
    arrays: Mapping[str, Any], saved: Any, config: Any, fresh: Fresh, *, prefix: str = "head."
) -> dict[str, Any]:
    """The hook `adapt` of a family of classifiers: another number of classes gives a new head.

    Args:
        arrays: The saved arrays by name.
        saved: The configuration that they were saved with.
        config: The one that is wanted.
        fresh: Gives the arrays of a new model of that configuration.
        prefix: How the names of the head's arrays begin.

    Returns:
        The arrays, those of the head replaced where `num_classes` differs.

    >>> from ssmjax.models.vim import VimConfig
    >>> old, new = VimConfig(num_classes=2), VimConfig(num_classes=3)
    >>> adapt_head({"norm": 1, "head.bias": 2}, old, new, lambda: {"norm": 5, "head.bias": 6})
    {'norm': 1, 'head.bias': 6}
    """
    old, new = (getattr(each, "num_classes", None) for each in (saved, config))
    if old == new:
        return dict(arrays)
    logger.info("New head: %d outputs instead of %d, re-initialized.", new, old)
    body = {name: x for name, x in arrays.items() if not name.startswith(prefix)}
    return body | {name: x for name, x in fresh().items() if name.startswith(prefix)}


def adapt_images(arrays: Mapping[str, Any], saved: Any, config: Any, fresh: Fresh) -> dict[str, Any]:
    """The hook `adapt` of an image classifier: a new head, and `pos_embed` interpolated to another grid of patches.

    The configurations have a `grid`, its rows and columns, and `class_positions`, the places of the class tokens.

    Args:
        arrays: The saved arrays by name.
        saved: The configuration that they were saved with.
        config: The one that is wanted.
        fresh: Gives the arrays of a new model of that configuration.

    >>> from ssmjax.models.vim import VimConfig
    >>> old, new = VimConfig(img_size=16, patch_size=4), VimConfig(img_size=24, patch_size=4)
    >>> adapt_images({"pos_embed": jnp.ones((1, 17, 8))}, old, new, dict)["pos_embed"].shape
    (1, 37, 8)
    """
    arrays = adapt_head(arrays, saved, config, fresh)
    old, new = saved.class_positions, config.class_positions
    moved = len(old) == len(new) and (saved.grid, old) != (config.grid, new)
    if "pos_embed" in arrays and moved:
        logger.info("Position embeddings interpolated from %s to %s patches.", saved.grid, config.grid)
        arrays["pos_embed"] = resize_pos_embed(arrays["pos_embed"], saved.grid, config.grid, old, new)
    return arrays


def resize_pos_embed(
    pos_embed: Float[jax.Array | np.ndarray, "1 l d"],
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    old_extra: tuple[int, ...] = (),
    new_extra: tuple[int, ...] = (),
) -> Float[jax.Array, "1 m d"]:
    """Interpolates learned position embeddings from one grid of patches to another, bicubically.

    Class tokens are no part of the image: their embeddings are kept as they are and put where they belong in the new
    sequence, which for a class token in the middle is another place than before.

    Args:
        pos_embed: The embeddings, float32.
        old_grid: Rows and columns of patches that they are for.
        new_grid: Rows and columns that are wanted.
        old_extra: Places of the class tokens in `pos_embed`, ascending.
        new_extra: Their places in the result, ascending.

    Returns:
        Embeddings for `new_grid`, of the same dtype.

    Raises:
        ValueError: The length is not that of `old_grid` with `old_extra`, or the two numbers of class tokens differ.

    >>> resize_pos_embed(jnp.ones((1, 17, 8)), (4, 4), (6, 6), (8,), (18,)).shape
    (1, 37, 8)
    """
    old_length = old_grid[0] * old_grid[1] + len(old_extra)
    if pos_embed.shape[1] != old_length:
        wanted = f"(1, {old_length}, d) for {old_grid[0]} x {old_grid[1]} patches and {len(old_extra)} class token(s)"
        raise errors.bad_shape("resize_pos_embed", "pos_embed", pos_embed, wanted)
    if len(old_extra) != len(new_extra):
        wanted = f"as many places as old_extra, {len(old_extra)}"
        raise errors.bad_argument("resize_pos_embed", "new_extra", new_extra, wanted)
    pos_embed = jnp.asarray(pos_embed)
    patches = jnp.delete(pos_embed, np.array(old_extra, int), axis=1)
    image = rearrange(patches, "1 (y x) d -> y x d", y=old_grid[0])
    image = jax.image.resize(image, (*new_grid, image.shape[-1]), method="bicubic", antialias=False)
    resized = rearrange(image, "y x d -> 1 (y x) d")
    length = resized.shape[1] + len(new_extra)
    is_patch = np.delete(np.arange(length), np.array(new_extra, int))
    result = jnp.zeros((1, length, pos_embed.shape[-1]), pos_embed.dtype).at[:, is_patch].set(resized)
    return result.at[:, np.array(new_extra, int)].set(pos_embed[:, np.array(old_extra, int)])
