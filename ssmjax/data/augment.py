"""Image augmentation in JAX: pure functions of a key and a batch, for use inside the jitted step or outside it.

Images are (b y x d) floats in [0, 1]; `normalize` comes last. Every random number is drawn for the whole batch from the
one key, so that a result depends on nothing but its arguments.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import jax.typing
import numpy as np

from ssmjax.data.trivial_augment import to_gray, trivial_augment
from ssmjax.errors import bad_argument, bad_shape
from ssmjax.shapes import Array, Float, Images, PRNGKey, UInt8

__all__ = [
    "AugmentConfig",
    "augment",
    "color_jitter",
    "cutmix",
    "mixup",
    "normalize",
    "random_crop",
    "random_erasing",
    "random_flip",
]


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What `augment` does, in its order; a zero or False leaves a part out. The defaults suit small color photographs.

    Attributes:
        crop_padding: Pixels that an image may shift by, in each direction.
        crop_mode: What enters at the border: "zero" (black) or "reflect" (the image's mirror).
        flip: Whether to mirror half of the images left to right.
        trivial: Whether to apply one random operation an image (`trivial_augment`).
        brightness: Brightness is multiplied by 1 - brightness .. 1 + brightness.
        contrast: The distance from the image's mean gray is multiplied by 1 - contrast .. 1 + contrast.
        saturation: The distance from each pixel's gray is multiplied by 1 - saturation .. 1 + saturation.
        erase_probability: Share of the images of which a rectangle is replaced by noise.
        mixup_alpha: Images are blended with a weight from Beta(alpha, alpha).
        cutmix_alpha: A rectangle is exchanged, whose share of the area is 1 - Beta(alpha, alpha).
        mix_probability: Share of the batches that are mixed at all.
        cutmix_share: Share of the mixed batches that take cutmix, where both alphas are positive.
    """

    crop_padding: int = 4
    crop_mode: Literal["zero", "reflect"] = "zero"
    flip: bool = True
    trivial: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    erase_probability: float = 0.1
    mixup_alpha: float = 0.2
    cutmix_alpha: float = 1.0
    mix_probability: float = 0.5
    cutmix_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("erase_probability", "mix_probability", "cutmix_share", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise bad_argument("AugmentConfig", name, getattr(self, name), "in [0, 1]")
        for name in ("crop_padding", "mixup_alpha", "cutmix_alpha"):
            if not getattr(self, name) >= 0:
                raise bad_argument("AugmentConfig", name, getattr(self, name), "zero or positive")
        _check_mode("AugmentConfig", "crop_mode", self.crop_mode)

    @classmethod
    def none(cls) -> "AugmentConfig":
        """No augmentation."""
        return cls(crop_padding=0, flip=False, trivial=False, erase_probability=0.0, mixup_alpha=0.0, cutmix_alpha=0.0)

    @classmethod
    def handwriting(cls) -> "AugmentConfig":
        """Small shifts and mixup: a mirrored or a turned digit is another one, or none."""
        return dataclasses.replace(cls.none(), crop_padding=2, mixup_alpha=0.2)


def normalize(
    images: UInt8[Array, "b y x d"] | Images,
    mean: Float[Array, " d"],
    std: Float[Array, " d"],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Float[jax.Array, "b y x d"]:
    """Subtracts the mean and divides by the standard deviation, in float32.

    Args:
        images: uint8 in 0..255, or floats in [0, 1].
        mean: The mean of each channel, of values in [0, 1].
        std: The standard deviation of each channel, likewise.
        dtype: The dtype of the result.

    >>> normalize(jnp.full((1, 1, 1, 1), 255, jnp.uint8), jnp.array([0.5]), jnp.array([0.25])).tolist()
    [[[[2.0]]]]
    """
    mean, std = (jnp.asarray(value, jnp.float32)[None, None, None] for value in (mean, std))
    return ((_unit(images) - mean) / std).astype(dtype)


def augment(
    key: PRNGKey, images: UInt8[Array, "b y x d"] | Images, labels: Float[Array, "b v"], config: AugmentConfig
) -> tuple[Float[jax.Array, "b y x d"], Float[jax.Array, "b v"]]:
    """Crops, flips, distorts, erases and mixes, as `config` says.

    Args:
        key: The only source of randomness.
        images: Floats in [0, 1], or uint8 in 0..255.
        labels: One-hot or soft labels.
        config: What to do; a compile-time constant (hashable).

    Returns:
        The images as floats in [0, 1], and the labels, mixed as the images are.

    >>> images, labels = jnp.ones((4, 8, 8, 3)), jax.nn.one_hot(jnp.arange(4), 10)
    >>> run = jax.jit(augment, static_argnames="config")
    >>> images, labels = run(jax.random.key(0), images, labels, config=AugmentConfig())
    >>> images.shape, labels.shape
    ((4, 8, 8, 3), (4, 10))
    """
    crop, flip, trivial, jitter, erase, mix = jax.random.split(key, 6)
    images = _unit(images)
    if config.crop_padding:
        images = random_crop(crop, images, config.crop_padding, config.crop_mode)
    if config.flip:
        images = random_flip(flip, images)
    if config.trivial:
        images = trivial_augment(trivial, images)
    if config.brightness or config.contrast or config.saturation:
        images = color_jitter(jitter, images, config.brightness, config.contrast, config.saturation)
    if config.erase_probability:
        images = random_erasing(erase, images, config.erase_probability)
    return _mix(mix, images, jnp.asarray(labels), config)


def random_crop(key: PRNGKey, x: Images, padding: int, mode: str = "zero") -> Float[jax.Array, "b y x d"]:
    """Pads every image by `padding` pixels on all sides and cuts a random window of the old size out of it.

    Args:
        key: Draws the window's corner, uniform in 0 .. 2 padding for each image and direction.
        x: The images.
        padding: Pixels; 0 changes nothing.
        mode: "zero" or "reflect", which needs a padding smaller than the image.

    Raises:
        ValueError: If the padding is negative, or too large to reflect, or the mode is unknown.

    >>> random_crop(jax.random.key(0), jnp.ones((2, 8, 8, 3)), 4).shape
    (2, 8, 8, 3)
    """
    b, rows, columns, _ = x.shape
    _check_mode("random_crop", "mode", mode)
    limit = min(rows, columns) if mode == "reflect" else padding + 1
    if not 0 <= padding < limit:
        raise bad_argument("random_crop", "padding", padding, f"zero or positive and, to reflect, below {limit}")
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(x, sides, mode="constant" if mode == "zero" else "reflect")
    corners = jnp.floor(jax.random.uniform(key, (b, 2), jnp.float32) * (2 * padding + 1)).astype(jnp.int32)
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), x.shape[1:]))(padded, corners)


def random_flip(key: PRNGKey, x: Images, probability: float = 0.5) -> Float[jax.Array, "b y x d"]:
    """Mirrors each image left to right with the given probability.

    >>> random_flip(jax.random.key(0), jnp.arange(3.0)[None, None, :, None], probability=1.0).ravel().tolist()
    [2.0, 1.0, 0.0]
    """
    chosen = jax.random.bernoulli(key, probability, (x.shape[0], 1, 1, 1))
    return jnp.where(chosen, x[:, :, ::-1], x)


def color_jitter(
    key: PRNGKey, x: Images, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0
) -> Float[jax.Array, "b y x d"]:
    """Changes brightness, then contrast, then saturation of each image, by factors uniform in 1 - s .. 1 + s.

    Each is `reference + factor * (x - reference)`, clipped to [0, 1], where the reference is black, the image's mean
    gray, and each pixel's gray.

    Args:
        key: Draws three factors an image.
        x: The images, in [0, 1].
        brightness: The strength s of the change of brightness; 0 leaves it out.
        contrast: The strength of the change of contrast.
        saturation: The strength of the change of saturation.

    >>> gray = jnp.full((2, 8, 8, 3), 0.4)
    >>> bool(jnp.allclose(color_jitter(jax.random.key(0), gray, contrast=0.5, saturation=0.5), gray, atol=1e-5))
    True
    """
    strengths = jnp.array([brightness, contrast, saturation], jnp.float32)
    draws = jax.random.uniform(key, (3, x.shape[0], 1, 1, 1), jnp.float32, -1.0, 1.0)
    factors = 1 + strengths[:, None, None, None, None] * draws
    x = jnp.clip(x * factors[0], 0, 1)
    mean = to_gray(x).mean((1, 2, 3), keepdims=True)
    x = jnp.clip(mean + factors[1] * (x - mean), 0, 1)
    gray = to_gray(x)
    return jnp.clip(gray + factors[2] * (x - gray), 0, 1)


def random_erasing(
    key: PRNGKey,
    x: Images,
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Float[jax.Array, "b y x d"]:
    """Replaces a rectangle of some images by uniform noise (Zhong et al., arXiv:1708.04896, algorithm 1).

    Where the paper draws again until the rectangle fits, the rectangle is cut to the image.

    Args:
        key: Draws which images, the rectangles and the noise.
        x: The images.
        probability: Share of the images.
        area: The least and the largest share of the area.
        aspect: The least and the largest ratio of height to width, uniform in its logarithm.

    >>> erased = random_erasing(jax.random.key(0), jnp.full((4, 8, 8, 1), 2.0), probability=1.0) != 2.0
    >>> bool((erased.mean((1, 2, 3)) > 0).all() and (erased.mean((1, 2, 3)) < 0.5).all())
    True
    """
    x = jnp.asarray(x)
    b, rows, columns, _ = x.shape
    where, what = jax.random.split(key)
    choose, size, shape, at_y, at_x = jax.random.uniform(where, (5, b), jnp.float32)
    share = area[0] + size * (area[1] - area[0])
    ratio = aspect[0] * (aspect[1] / aspect[0]) ** shape
    height = jnp.clip(jnp.round(jnp.sqrt(share * rows * columns * ratio)), 1, rows)
    width = jnp.clip(jnp.round(jnp.sqrt(share * rows * columns / ratio)), 1, columns)
    # Corners uniform among those at which the rectangle lies inside.
    top, left = jnp.floor(at_y * (rows - height + 1)), jnp.floor(at_x * (columns - width + 1))
    inside = _rectangle(x.shape, top, left, top + height, left + width)
    chosen = (choose < probability)[:, None, None, None]
    # Drawn flat: XLA takes seconds to compile a generator that counts in four dimensions.
    noise = jax.random.uniform(what, (x.size,), x.dtype).reshape(x.shape)
    return jnp.where(chosen & inside, noise, x)


def mixup(
    key: PRNGKey, x: Images, y: Float[Array, "b v"], alpha: float
) -> tuple[Float[jax.Array, "b y x d"], Float[jax.Array, "b v"]]:
    """Blends every image and label with those of a partner (Zhang et al., arXiv:1710.09412, section 2).

        x' = w x + (1 - w) x_partner,    y' = w y + (1 - w) y_partner,    w ~ Beta(alpha, alpha), one a batch

    The partners are the batch in reverse order, which is as good as any permutation of a shuffled batch.

    Args:
        key: Draws w.
        x: The images.
        y: One-hot or soft labels.
        alpha: Positive; small values leave most batches nearly unmixed.

    Raises:
        ValueError: If alpha is not positive.

    >>> x, y = mixup(jax.random.key(0), jnp.array([0.0, 1.0]).reshape(2, 1, 1, 1), jnp.eye(2), alpha=1.0)
    >>> bool(jnp.allclose(x.ravel(), y[:, 1]))
    True
    """
    _check_alpha("mixup", alpha)
    return _blend(_beta(jax.random.uniform(key, (), jnp.float32), alpha), x, y)


def cutmix(
    key: PRNGKey, x: Images, y: Float[Array, "b v"], alpha: float
) -> tuple[Float[jax.Array, "b y x d"], Float[jax.Array, "b v"]]:
    """Puts a partner's rectangle into every image (Yun et al., arXiv:1905.04899, equations 1 and 2).

    The rectangle has the image's proportions and a share 1 - w of its area, w ~ Beta(alpha, alpha); its center is
    uniform, and what lies outside is cut off. Labels are weighted by the areas that result. One rectangle a batch; the
    partners are the batch in reverse order.

    Args:
        key: Draws w and the center.
        x: The images.
        y: One-hot or soft labels.
        alpha: Positive; 1 draws the area uniformly.

    Raises:
        ValueError: If alpha is not positive.

    >>> black_and_white = jnp.stack([jnp.zeros((8, 8, 1)), jnp.ones((8, 8, 1))])
    >>> x, y = cutmix(jax.random.key(0), black_and_white, jnp.eye(2), alpha=1.0)
    >>> bool(jnp.allclose(x.mean((1, 2, 3)), y[:, 1]))
    True
    """
    _check_alpha("cutmix", alpha)
    draw, *center = jax.random.uniform(key, (3,), jnp.float32)
    return _paste(jnp.stack(center), _beta(draw, alpha), x, y)


def _mix(key: PRNGKey, x: jax.Array, y: jax.Array, config: AugmentConfig) -> tuple[jax.Array, jax.Array]:
    """Mixes the batch by mixup, by cutmix or not at all: one draw a batch, as in timm."""
    if not (config.mixup_alpha or config.cutmix_alpha) or not config.mix_probability:
        return x, y
    share = config.cutmix_share if config.mixup_alpha and config.cutmix_alpha else float(config.cutmix_alpha > 0)
    whether, which, draw, *center = jax.random.uniform(key, (5,), jnp.float32)
    kind = jnp.where(whether < config.mix_probability, jnp.where(which < share, 2, 1), 0)
    # A branch whose alpha is zero is traced, and never taken: any positive number serves there.
    branches = [
        lambda draw, x, y: (x, y),
        lambda draw, x, y: _blend(_beta(draw, config.mixup_alpha or 1.0), x, y),
        lambda draw, x, y: _paste(jnp.stack(center), _beta(draw, config.cutmix_alpha or 1.0), x, y),
    ]
    return jax.lax.switch(kind, branches, draw, x, y)


def _beta(uniform: jax.Array, alpha: float) -> jax.Array:
    """Turns a uniform draw into one from Beta(alpha, alpha), by interpolation in a table of 1,024 quantiles.

    The rejection sampler of jax.random.beta loops: on a GPU every step would wait for its end, and it takes seconds to
    compile.
    """
    from scipy.special import betaincinv  # jax depends on scipy

    table = jnp.asarray(betaincinv(alpha, alpha, np.linspace(0, 1, 1025)), jnp.float32)
    place = uniform * 1024
    below = jnp.floor(place).astype(jnp.int32)
    return table[below] + (place - below) * (table[below + 1] - table[below])


def _blend(weight: jax.Array, x: Array, y: Array) -> tuple[jax.Array, jax.Array]:
    return weight * x + (1 - weight) * x[::-1], weight * y + (1 - weight) * y[::-1]


def _paste(center: jax.Array, weight: jax.Array, x: Array, y: Array) -> tuple[jax.Array, jax.Array]:
    """Pastes the partner's rectangle about `center` (a share of each side) with about 1 - weight of the area."""
    _, rows, columns, _ = x.shape
    side = jnp.sqrt(1 - weight)
    center_y, center_x = jnp.floor(center[0] * rows), jnp.floor(center[1] * columns)
    half_y, half_x = jnp.floor(rows * side) // 2, jnp.floor(columns * side) // 2
    edges = (center_y - half_y, center_x - half_x, center_y + half_y, center_x + half_x)
    inside = _rectangle((1, rows, columns, 1), *map(jnp.atleast_1d, edges))
    kept = 1 - inside.mean(dtype=jnp.float32)
    return jnp.where(inside, x[::-1], x), kept * y + (1 - kept) * y[::-1]


def _rectangle(
    shape: tuple[int, ...], top: jax.Array, left: jax.Array, bottom: jax.Array, right: jax.Array
) -> jax.Array:
    """A mask (b y x 1), True inside each image's rectangle; the bounds are (b), the last two exclusive."""
    row, column = jnp.arange(shape[1])[None, :, None, None], jnp.arange(shape[2])[None, None, :, None]
    top, left, bottom, right = (bound[:, None, None, None] for bound in (top, left, bottom, right))
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def _unit(images: Array) -> jax.Array:
    """Images in [0, 1] as float32."""
    if jnp.ndim(images) != 4:
        raise bad_shape(
            "data.augment", "images", images, "(b y x d)", "A single image needs a batch axis: image[None]."
        )
    return jnp.asarray(images, jnp.float32) / 255 if images.dtype == jnp.uint8 else jnp.asarray(images, jnp.float32)


def _check_mode(where: str, argument: str, mode: str) -> None:
    if mode not in ("zero", "reflect"):
        raise bad_argument(where, argument, mode, "'zero' or 'reflect'")


def _check_alpha(where: str, alpha: float) -> None:
    if not alpha > 0:
        raise bad_argument(where, "alpha", alpha, "positive", "To leave it out, set it to 0 in AugmentConfig.")
