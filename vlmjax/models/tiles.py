"""Large images as several tiles of the tower's size: which grid fits an image, and where its tokens go.

Sizes are (height, width) and grids (rows, columns) everywhere. Everything here is numpy on the host.
"""

from collections.abc import Sequence

import numpy as np

from ssmjax import errors

__all__ = ["NEWLINE", "anyres_grid", "anyres_order", "best_size", "tile_boxes", "tile_grid"]

NEWLINE = -1
"""In an order: the learned vector at the end of a row."""

Size = tuple[int, int]


def best_size(size: Size, sizes: Sequence[Size]) -> Size:
    """The one of several sizes that keeps most of an image: the largest effective area, then the least waste.

    That is LLaVA-NeXT's choice among its pinpoints (https://llava-vl.github.io/blog/2024-01-30-llava-next/). The
    effective area is what the image has after it was scaled into the size with its aspect kept, and never more than
    its own.

    Args:
        size: The image's height and width.
        sizes: The heights and widths to choose from.

    >>> best_size((480, 640), [(336, 672), (672, 336), (672, 672)])
    (672, 672)
    """
    height, width = _checked_size("best_size", size)
    best, most, least = None, -1, 0
    for each in sizes:
        scale = min(each[1] / width, each[0] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        wasted = each[0] * each[1] - effective
        if effective > most or (effective == most and wasted < least):
            best, most, least = (int(each[0]), int(each[1])), effective, wasted
    if best is None:
        raise errors.bad_argument("best_size", "sizes", sizes, "at least one (height, width)")
    return best


def anyres_grid(size: Size, pinpoints: Sequence[Size], tile: int) -> Size:
    """The rows and columns of tiles that an image is cut into.

    >>> anyres_grid((300, 1000), [(336, 672), (336, 1008)], 336)
    (1, 3)
    """
    height, width = best_size(size, pinpoints)
    return height // tile, width // tile


def anyres_order(
    sizes: Sequence[Size], grids: Sequence[Size], side: int, *, merge: str = "spatial_unpad", digits: int | None = 7
) -> np.ndarray:
    """Which token of the crops stands at each place of the images' token sequences.

    The crops of an image are the whole image, then its tiles row by row; each has `side * side` tokens. Its sequence is
    the tokens of the whole image, then those of the mosaic of its tiles row by row, without the rows or columns that
    hold only padding, and with a newline after each row.

    Args:
        sizes: The height and width of each image.
        grids: The rows and columns of tiles of each; (1, 1) with one crop alone is written (0, 0).
        side: The tokens along a side of a crop.
        merge: "spatial_unpad"; "spatial" leaves the padding in and the newlines out; "flat" puts crop after crop.
        digits: To how many digits the unpadded size is rounded before it is cut down to an integer. The original
            LLaVA does not round (None); 2 of 200,000 sizes differ.

    Returns:
        (n,) int32: the number of a token, counted over all crops of all images, or `NEWLINE`.

    Raises:
        ValueError: There is no such kind of merge.

    >>> anyres_order([(28, 56)], [(1, 2)], 1).tolist()
    [0, 1, 2, -1]
    """
    errors.require_known("merge", merge, ["spatial_unpad", "spatial", "flat"])
    parts, first = [], 0
    for size, (rows, columns) in zip(sizes, grids, strict=True):
        base = first + np.arange(side * side)
        tiles = first + side * side + np.arange(rows * columns * side * side)
        first += (1 + rows * columns) * side * side
        parts.append(base)
        if merge == "flat":
            parts.append(tiles)
            continue
        if rows * columns == 0:
            parts += [np.array([NEWLINE])] if merge == "spatial_unpad" else []
            continue
        mosaic = tiles.reshape(rows, columns, side, side).transpose(0, 2, 1, 3).reshape(rows * side, columns * side)
        if merge == "spatial_unpad":
            mosaic = _unpadded(mosaic, _checked_size("anyres_order", size), digits)
            mosaic = np.concatenate([mosaic, np.full((len(mosaic), 1), NEWLINE)], axis=1)
        parts.append(mosaic.reshape(-1))
    return np.concatenate(parts).astype(np.int32)


def _unpadded(mosaic: np.ndarray, size: Size, digits: int | None) -> np.ndarray:
    """The part of a padded map that an image of this size fills."""
    rows, columns = mosaic.shape
    height, width = size
    wide = width / height > columns / rows
    scale = columns / width if wide else rows / height
    new = (height if wide else width) * scale
    new = int(new if digits is None else round(new, digits))
    padding = ((rows if wide else columns) - new) // 2
    return mosaic[padding : rows - padding] if wide else mosaic[:, padding : columns - padding]


def tile_grid(size: Size, tile: int, *, least: int = 1, most: int = 12) -> Size:
    """The grid of tiles whose aspect is nearest to the image's, as NVILA and InternVL choose it.

    Of two grids equally near, the larger one wins if the image has more than half of its pixels.

    Args:
        size: The image's height and width.
        tile: The side of a tile.
        least: The fewest tiles.
        most: The most.

    >>> tile_grid((480, 640), 448)
    (3, 4)
    """
    height, width = _checked_size("tile_grid", size)
    grids = [(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if least <= i * j <= most]
    best, nearest = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)):
        distance = abs(width / height - columns / rows)
        if distance < nearest or (distance == nearest and width * height > 0.5 * tile * tile * columns * rows):
            best, nearest = (rows, columns), distance
    return best


def tile_boxes(grid: Size, tile: int, *, thumbnail: bool = True) -> np.ndarray:
    """Where the tiles lie in an image that was resized to the grid, row by row: (n, 4), left, top, right, bottom.

    Args:
        grid: Rows and columns.
        tile: The side of a tile.
        thumbnail: Whether the whole image at the size of one tile follows, if there are several tiles.

    >>> tile_boxes((1, 2), 8, thumbnail=False).tolist()
    [[0, 0, 8, 8], [8, 0, 16, 8]]
    """
    rows, columns = grid
    boxes = [[x * tile, y * tile, (x + 1) * tile, (y + 1) * tile] for y in range(rows) for x in range(columns)]
    if thumbnail and len(boxes) > 1:
        boxes.append([0, 0, tile, tile])
    return np.array(boxes)


def _checked_size(where: str, size: Size) -> Size:
    height, width = (int(each) for each in size)
    if height < 1 or width < 1:
        raise errors.bad_argument(where, "size", tuple(size), "a height and a width of at least 1")
    return height, width
