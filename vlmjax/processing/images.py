"""Images as CLIP, SigLIP and LLaVA read them: Pillow's bicubic filter, a crop or a square, and normal pixel values.

Everything here is equal to the original bit for bit: the order of the roundings is theirs, too.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ssmjax import errors
from ssmjax.paths import local_path
from ssmjax.shapes import Float, UInt8

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "SIGLIP_MEAN",
    "SIGLIP_STD",
    "center_crop",
    "fit_image",
    "normalize",
    "pad_to_square",
    "read_image",
    "resize",
]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""What CLIP, LLaVA and Qwen2-VL subtract from the channels (of pixels between 0 and 1)."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""What they divide by."""

SIGLIP_MEAN = (0.5, 0.5, 0.5)
"""What SigLIP subtracts."""

SIGLIP_STD = (0.5, 0.5, 0.5)
"""What it divides by."""

Fit = Literal["crop", "pad", "stretch"]


def read_image(source: Any) -> UInt8[np.ndarray, "y x 3"]:
    """Reads an image: red, green and blue, as the camera was held, what is transparent on white.

    Args:
        source: A file's name, its bytes, a Pillow image, or an array (y x 3) or (y x) of uint8.

    Returns:
        (y x 3), uint8.

    Raises:
        ValueError: It cannot be read as an image: it is damaged, cut off, empty or of another type.
        FileNotFoundError: There is no such file.

    >>> read_image(np.zeros((2, 3), np.uint8)).shape
    (2, 3, 3)
    """
    if isinstance(source, np.ndarray):
        return _as_pixels(source)
    from PIL import Image, ImageOps

    name = repr(str(source)) if isinstance(source, str | Path) else f"an image of {type(source).__name__}"
    path = local_path("read_image", "source", source) if isinstance(source, str | Path) else None
    try:
        if isinstance(source, Image.Image):
            return _on_white(ImageOps.exif_transpose(source))
        data = path.read_bytes() if path else bytes(source)
        with Image.open(io.BytesIO(data)) as opened:
            return _on_white(ImageOps.exif_transpose(opened))
    except FileNotFoundError:
        raise
    # Pillow's errors: of a file that is cut off or damaged, and of one whose pixels would fill the memory.
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"read_image: {name} cannot be read as an image ({error}).") from error


def fit_image(
    image: UInt8[np.ndarray, "y x 3"],
    size: int,
    *,
    fit: Fit = "crop",
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Float[np.ndarray, "size size 3"]:
    """Makes of an image what a tower for one size of images reads.

    Args:
        image: (y x 3), uint8, as `read_image` returns it.
        size: The side that the tower wants.
        fit: "crop" brings the short side to the size and keeps the middle, as CLIP and Hugging Face's LLaVA do; "pad"
            pads to a square with the mean color first, as the original LLaVA 1.5 does; "stretch" ignores the aspect,
            as SigLIP does.
        mean: The mean of each channel.
        std: The standard deviation of each channel.

    Returns:
        (size size 3), float32.

    Raises:
        ValueError: There is no such fit, or the image is not (y x 3) of uint8.

    >>> fit_image(np.zeros((20, 30, 3), np.uint8), 14, fit="pad").shape
    (14, 14, 3)
    """
    if fit not in get_args(Fit):
        raise errors.unknown_name("fit", fit, get_args(Fit))
    size = errors.as_int("fit_image", "size", size, least=1)
    image = _as_pixels(image)
    if fit == "pad":
        image = pad_to_square(image, tuple(int(255 * value) for value in mean))
    rows, columns = image.shape[:2]
    short = min(rows, columns)
    if fit == "stretch":
        image = resize(image, size, size)
    else:
        image = center_crop(resize(image, int(size * rows / short), int(size * columns / short)), size, size)
    return normalize(image, mean, std)


def resize(image: UInt8[np.ndarray, "y x 3"], rows: int, columns: int) -> UInt8[np.ndarray, "rows columns 3"]:
    """Resamples an image with Pillow's bicubic filter (with antialiasing, rounded to whole numbers).

    >>> resize(np.full((4, 4, 3), 7, np.uint8), 2, 3)[..., 0].tolist()
    [[7, 7, 7], [7, 7, 7]]
    """
    from PIL import Image

    if image.shape[:2] == (rows, columns):
        return image
    resized = Image.fromarray(image).resize((columns, rows), resample=Image.Resampling.BICUBIC)
    return np.asarray(resized)


def center_crop(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The middle of an image; an odd rest is below and on the right.

    >>> center_crop(np.arange(5)[None, :, None], 1, 2)[0, :, 0].tolist()
    [1, 2]
    """
    top, left = (image.shape[0] - rows) // 2, (image.shape[1] - columns) // 2
    if top < 0 or left < 0:
        wanted = f"at least {rows} by {columns} pixels"
        raise errors.bad_shape("center_crop", "image", image, wanted, "Resize it first.")
    return image[top : top + rows, left : left + columns]


def pad_to_square(image: UInt8[np.ndarray, "y x 3"], color: Sequence[int]) -> UInt8[np.ndarray, "l l 3"]:
    """Puts an image in the middle of a square of one color, as large as its longer side.

    >>> pad_to_square(np.zeros((1, 3, 3), np.uint8), (9, 9, 9))[..., 0].tolist()
    [[9, 9, 9], [0, 0, 0], [9, 9, 9]]
    """
    rows, columns = image.shape[:2]
    side = max(rows, columns)
    square = np.empty((side, side, 3), image.dtype)
    square[:] = color
    top, left = (side - rows) // 2, (side - columns) // 2
    square[top : top + rows, left : left + columns] = image
    return square


def normalize(
    image: UInt8[np.ndarray, "*y 3"], mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> Float[np.ndarray, "*y 3"]:
    """`(image / 255 - mean) / std`, in float32 and with the roundings of transformers.

    >>> normalize(np.full((1, 1, 3), 255, np.uint8), (0.5,) * 3, (0.5,) * 3).ravel().tolist()
    [1.0, 1.0, 1.0]
    """
    scaled = (image.astype(np.float64) * (1 / 255)).astype(np.float32)
    return (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def _as_pixels(image: np.ndarray) -> np.ndarray:
    gray = image.ndim == 2
    if image.dtype != np.uint8 or not (gray or (image.ndim == 3 and image.shape[2] == 3)) or image.size == 0:
        wanted = "(y x 3) or (y x), uint8 and not empty"
        raise errors.bad_shape("read_image", "image", image, wanted, "Pixels are 0 to 255, channels last.")
    return np.repeat(image[..., None], 3, axis=2) if gray else image


def _on_white(image: Any) -> np.ndarray:
    """A Pillow image as an array, with white behind what is transparent."""
    from PIL import Image

    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return _as_pixels(np.array(image.convert("RGB")))
