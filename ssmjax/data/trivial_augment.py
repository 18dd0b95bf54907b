"""TrivialAugment: one random operation of random strength an image, and nothing to tune (arXiv:2103.10158).

All geometric operations are one nearest-neighbor gather through a 2 x 2 matrix and a shift of each image; the
photometric ones are element-wise and selected. Under jit a batch costs about one gather and one pass over the images.
"""

import jax
import jax.numpy as jnp

from ssmjax.errors import bad_shape
from ssmjax.shapes import Array, Float, Images, Int, PRNGKey

__all__ = ["OPERATIONS", "apply_operations", "to_gray", "trivial_augment"]

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
)
"""The operations, each drawn as often as the others; those of the paper without equalize."""

_MAX_SHEAR = 0.99
_MAX_SHIFT = 0.5
_MAX_DEGREES = 135.0
_MAX_BLEND = 0.99
_LEAST_BITS = 2


def trivial_augment(key: PRNGKey, images: Images) -> Float[jax.Array, "b y x d"]:
    """Applies one uniformly drawn operation to each image, with a uniformly drawn strength.

    Müller and Hutter, arXiv:2103.10158, with their "wide" ranges: shear up to 0.99, rotation up to 135 degrees,
    brightness, color, contrast and sharpness by a factor in 0.01 .. 1.99, posterize to 2 .. 8 bits, solarize above
    0 .. 1. Different from it: images are shifted by at most half their size, where the paper allows 32 pixels of any
    image; strengths are continuous, where it has 31 steps; there is no equalize.

    Args:
        key: Draws operations, strengths and directions.
        images: (b y x d), in [0, 1].

    Returns:
        Images of the same shape, in [0, 1]; what is moved in from outside is black.

    >>> jax.jit(trivial_augment)(jax.random.key(0), jnp.ones((2, 8, 8, 3))).shape
    (2, 8, 8, 3)
    """
    draws = jax.random.uniform(key, (2, images.shape[0]), jnp.float32)
    operation = jnp.floor(draws[0] * len(OPERATIONS)).astype(jnp.int32)
    return apply_operations(images, operation, 2 * draws[1] - 1)


def apply_operations(
    images: Images, operation: Int[Array, " b"], strength: Float[Array, " b"]
) -> Float[jax.Array, "b y x d"]:
    """Applies to each image the operation it is given.

    Args:
        images: (b y x d), in [0, 1].
        operation: (b) indices into `OPERATIONS`.
        strength: (b) in [-1, 1], as a share of the largest; the sign is the direction of the geometric operations and
            of brightness, color, contrast and sharpness (below zero: less of it), and means nothing for the others.

    Returns:
        Images of the same shape, in [0, 1].
    """
    if len(images.shape) != 4:
        raise bad_shape("apply_operations", "images", images, "(b y x d)")
    images, operation, strength = jnp.asarray(images), jnp.asarray(operation), jnp.asarray(strength)
    moved = jax.vmap(_move)(images, *jax.vmap(_geometry)(operation, strength))
    return jax.vmap(_recolor)(moved, operation, strength)


def _geometry(operation: jax.Array, strength: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The matrix (2 2) from offsets in the result to offsets in the source, and the shift (2), a share of the size."""
    angle = strength * jnp.deg2rad(_MAX_DEGREES)
    shear, shift = strength * _MAX_SHEAR, strength * _MAX_SHIFT
    chosen = {name: operation == index for index, name in enumerate(OPERATIONS)}
    diagonal = jnp.where(chosen["rotate"], jnp.cos(angle), 1.0)
    # Rows are y, x: x_source = x + shear_x y, y_source = y + shear_y x.
    y_from_x = jnp.where(chosen["rotate"], jnp.sin(angle), jnp.where(chosen["shear_y"], shear, 0.0))
    x_from_y = jnp.where(chosen["rotate"], -jnp.sin(angle), jnp.where(chosen["shear_x"], shear, 0.0))
    matrix = jnp.stack([jnp.stack([diagonal, y_from_x]), jnp.stack([x_from_y, diagonal])])
    shifts = jnp.stack([jnp.where(chosen["translate_y"], shift, 0.0), jnp.where(chosen["translate_x"], shift, 0.0)])
    return matrix, shifts


def _move(image: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
    """Fetches every pixel of the result from its nearest pixel in the source, about the center; black outside."""
    rows, columns, channels = image.shape
    y = jnp.arange(rows, dtype=jnp.float32)[:, None] - (rows - 1) / 2
    x = jnp.arange(columns, dtype=jnp.float32)[None, :] - (columns - 1) / 2
    source_y = matrix[0, 0] * y + matrix[0, 1] * x + (rows - 1) / 2 + jnp.round(shift[0] * rows)
    source_x = matrix[1, 0] * y + matrix[1, 1] * x + (columns - 1) / 2 + jnp.round(shift[1] * columns)
    row, column = jnp.round(source_y).astype(jnp.int32), jnp.round(source_x).astype(jnp.int32)
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    index = jnp.where(inside, row * columns + column, 0)
    pixels = jnp.take(image.reshape(rows * columns, channels), index, axis=0)
    return jnp.where(inside[..., None], pixels, 0)


def _recolor(image: jax.Array, operation: jax.Array, strength: jax.Array) -> jax.Array:
    """The photometric operations, in the order of `OPERATIONS`; the geometric ones pass."""
    factor = 1 + strength * _MAX_BLEND
    size = jnp.abs(strength)

    def blend(reference: jax.Array) -> jax.Array:
        return jnp.clip(reference + factor * (image - reference), 0, 1)

    gray = to_gray(image)
    levels = 2 ** (8 - jnp.round(size * (8 - _LEAST_BITS)))
    step = 256 / levels
    low, high = image.min((0, 1), keepdims=True), image.max((0, 1), keepdims=True)
    span = jnp.where(high > low, high - low, 1)
    results = [
        *[image] * OPERATIONS.index("brightness"),
        blend(jnp.zeros_like(image)),
        blend(gray),
        blend(gray.mean(keepdims=True)),
        blend(_smooth(image)),
        jnp.floor(jnp.round(image * 255) / step) * step / 255,
        jnp.where(image < 1 - size, image, 1 - image),
        jnp.where(high > low, (image - low) / span, image),
    ]
    return jax.lax.select_n(operation, *[jnp.broadcast_to(result, image.shape) for result in results])


def _smooth(image: jax.Array) -> jax.Array:
    """Pillow's SMOOTH filter, (1 1 1; 1 5 1; 1 1 1) / 13; border pixels stay as they are."""
    rows, columns, _ = image.shape
    if rows < 3 or columns < 3:
        return image
    neighbors = [image[y : rows - 2 + y, x : columns - 2 + x] for y in range(3) for x in range(3)]
    inner = (sum(neighbors[1:], neighbors[0]) + 4 * image[1:-1, 1:-1]) / 13
    return image.at[1:-1, 1:-1].set(inner)


def to_gray(image: Float[Array, "*b y x d"]) -> Float[jax.Array, "*b y x 1"]:
    """Luminance by ITU-R BT.601; of images of other than three channels, the mean."""
    channels = image.shape[-1]
    weights = (0.299, 0.587, 0.114) if channels == 3 else (1 / channels,) * channels
    weighted = [weight * image[..., i : i + 1] for i, weight in enumerate(weights)]
    return jnp.asarray(sum(weighted[1:], weighted[0]))
