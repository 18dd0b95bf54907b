"""Small raster graphics: lines, discs, dilation, and shrinking with a Lanczos filter, all on 8-bit arrays."""

import math

import numpy as np

__all__ = ["dilate", "disc", "line", "shrink"]


def line(side: int, end: tuple[int, int], width: int) -> np.ndarray:
    """A straight line from the middle of a square canvas, pixel for pixel the one that Pillow draws.

    Args:
        side: The side of the canvas, odd.
        end: Row and column that it runs to, not the middle.
        width: In pixels.

    Returns:
        (y x) uint8, 255 on the line.
    """
    canvas = np.zeros((side, side), np.uint8)
    along = np.array(end) - side // 2
    if width == 1:
        steps = np.abs(along).max()  # one pixel for each step of the longer axis (Bresenham 1965)
        shift = (2 * np.abs(along) * np.arange(steps + 1)[:, None] + steps) // (2 * steps)
        canvas[tuple((side // 2 + np.sign(along) * shift).T)] = 255
        return canvas
    corners = _corners(along, width)
    edges = np.roll(corners, -1, axis=0) - corners
    rows, columns = np.mgrid[:side, :side] - side // 2
    # Twice how far each pixel lies within each edge, with up to half a pixel of grace along its row.
    within = [2 * (e[0] * (columns - c[1]) - e[1] * (rows - c[0])) for c, e in zip(corners, edges, strict=True)]
    grace = [1 - max(abs(e[0]), 1) for e in edges]
    canvas[np.all([w >= g for w, g in zip(within, grace, strict=True)], axis=0)] = 255
    canvas[(rows < corners[:, 0].min()) | (rows > corners[:, 0].max())] = 0
    canvas[:, (columns[0] < corners[:, 1].min()) | (columns[0] > corners[:, 1].max())] = 0
    return canvas


def _corners(along: np.ndarray, width: int) -> np.ndarray:
    """Row and column (4 2) of the corners of a wide line, from its beginning, in whole pixels.

    Its axis is shifted by half its width to both sides; where that is not whole, one side gets the pixel more.
    """

    def nearest(value: float, half: float) -> int:
        return int(math.copysign(math.ceil(abs(value) - 0.5 + half), value))

    more, less = width // 2, (width - 1) // 2
    sine, cosine = along / math.hypot(*along)
    away, towards = 1e-9, 0.0  # from 0, where a half is rounded to in rows and in columns
    left = np.array([nearest(more * cosine, away), -nearest(less * sine, towards)])
    right = np.array([-nearest(less * cosine, away), nearest(more * sine, towards)])
    return np.stack([left, along + left, along + right, right])


def disc(radius: int) -> np.ndarray:
    """The offsets (q 2) of the pixels whose centers are at most `radius` away."""
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    inside = rows**2 + columns**2 <= radius**2
    return np.stack([rows[inside], columns[inside]], axis=-1)


def dilate(image: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The largest value (y x) within the offsets (q 2) of each pixel; beyond the image there is nothing."""
    reach = int(np.abs(offsets).max(initial=0))
    padded = np.pad(image, reach)
    height, width = image.shape
    return np.max([padded[reach + y :, reach + x :][:height, :width] for y, x in offsets], axis=0)


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Resamples a square image with a Lanczos filter of three lobes, rounding to 8 bits after columns and after rows.

    Args:
        image: (y x) uint8, y = x.
        side: The side of the result, at most that of the image.

    Returns:
        (side side) uint8.
    """
    scale = len(image) / side
    centers = (np.arange(side) + 0.5) * scale
    distance = (np.arange(len(image)) + 0.5 - centers[:, None]) / scale
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)
    weights /= weights.sum(1, keepdims=True)
    return _to_bytes(weights @ _to_bytes(image @ weights.T))


def _to_bytes(values: np.ndarray) -> np.ndarray:
    # The rounding hides the last bits of the sums, which differ from machine to machine.
    return np.clip(np.floor(np.round(values, 6) + 0.5), 0, 255).astype(np.uint8)
