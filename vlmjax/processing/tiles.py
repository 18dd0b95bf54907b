"""Large images as crops of the tower's size: LLaVA-NeXT's, NVILA's tiles, and the tiles of dynamic scales."""

import math
from collections.abc import Sequence

import numpy as np

from ssmjax.shapes import Float, UInt8
from vlmjax.models.multiscale import block_grids
from vlmjax.models.tiles import best_size, tile_boxes
from vlmjax.processing.images import CLIP_MEAN, CLIP_STD, SIGLIP_MEAN, SIGLIP_STD, normalize, resize

__all__ = ["anyres_crops", "scale_crops", "tile_crops"]


def anyres_crops(
    image: UInt8[np.ndarray, "y x 3"],
    pinpoints: Sequence[tuple[int, int]],
    size: int,
    *,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Float[np.ndarray, "n size size 3"]:
    """The crops of LLaVA-NeXT: the whole image squeezed into a square, then the tiles of the image with its aspect.

    The image is resized into the best of the pinpoints, padded with black on both sides, and cut row by row.
    `LlavaNext.order` of its height and width says where the crops' tokens go.

    Args:
        image: (y x 3), uint8, as `read_image` returns it.
        pinpoints: The heights and widths to choose from, multiples of the size.
        size: The side of a crop.
        mean: The mean of each channel.
        std: The standard deviation of each channel.

    Returns:
        (n size size 3), float32.

    >>> anyres_crops(np.zeros((20, 40, 3), np.uint8), [(8, 16), (16, 8)], 8).shape
    (3, 8, 8, 3)
    """
    rows, columns = image.shape[:2]
    height, width = best_size((rows, columns), pinpoints)
    across, down = width / columns, height / rows
    if across < down:
        new = min(math.ceil(rows * across), height), width
    else:
        new = height, min(math.ceil(columns * down), width)
    padded = np.zeros((height, width, 3), np.uint8)
    top, left = (height - new[0]) // 2, (width - new[1]) // 2
    padded[top : top + new[0], left : left + new[1]] = resize(image, *new)
    crops = [resize(image, size, size), *_cut(padded, (height // size, width // size), size)]
    return normalize(np.stack(crops), mean, std)


def tile_crops(
    image: UInt8[np.ndarray, "y x 3"],
    grid: tuple[int, int],
    size: int,
    *,
    thumbnail: bool = True,
    mean: Sequence[float] = SIGLIP_MEAN,
    std: Sequence[float] = SIGLIP_STD,
) -> Float[np.ndarray, "n size size 3"]:
    """The tiles of NVILA: the image stretched to a grid, cut row by row, and the whole image at the end.

    Args:
        image: (y x 3), uint8.
        grid: Rows and columns, such as `tile_grid` chooses them.
        size: The side of a tile.
        thumbnail: Whether the whole image follows, where there are several tiles.
        mean: The mean of each channel.
        std: The standard deviation of each channel.

    Returns:
        (n size size 3), float32.

    >>> tile_crops(np.zeros((20, 40, 3), np.uint8), (1, 2), 8).shape
    (3, 8, 8, 3)
    """
    rows, columns = grid
    crops = _cut(resize(image, rows * size, columns * size), grid, size)
    if thumbnail and len(crops) > 1:
        crops.append(resize(image, size, size))
    return normalize(np.stack(crops), mean, std)


def scale_crops(
    image: UInt8[np.ndarray, "y x 3"],
    block: tuple[int, int] | None,
    scales: Sequence[int],
    *,
    mean: Sequence[float] = SIGLIP_MEAN,
    std: Sequence[float] = SIGLIP_STD,
) -> Float[np.ndarray, "n size size 3"]:
    """The tiles of dynamic scales: the image at each scale, smallest first, cut row by row.

    Args:
        image: (y x 3), uint8.
        block: Rows and columns of the last scale; None for an image of one tile in all.
        scales: The sides of the image; the first is that of a tile.
        mean: The mean of each channel.
        std: The standard deviation of each channel.

    Returns:
        (n size size 3), float32.

    >>> scale_crops(np.zeros((20, 40, 3), np.uint8), (1, 2), (8, 16)).shape
    (3, 8, 8, 3)
    """
    crops = [
        tile_crops(image, grid, scales[0], thumbnail=False, mean=mean, std=std) for grid in block_grids(block, scales)
    ]
    return np.concatenate(crops)


def _cut(image: np.ndarray, grid: tuple[int, int], size: int) -> list[np.ndarray]:
    boxes = tile_boxes(grid, size, thumbnail=False).tolist()
    return [image[top:bottom, left:right] for left, top, right, bottom in boxes]
