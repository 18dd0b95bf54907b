"""Images and videos of any size as patches, as Qwen2-VL reads them, several of them in one array of a fixed length.

A patch is a row (channel, frame, row, column) of 2 frames of 14 by 14 pixels. The patches of an image stand in cells of
2 by 2, cell by cell, so that the four that become one visual token are neighbours.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange

from ssmjax import errors
from ssmjax.shapes import Array, UInt8
from vlmjax.processing.images import CLIP_MEAN, CLIP_STD, normalize, resize

__all__ = ["PackedPatches", "bucket_length", "image_patches", "pack_patches", "smart_resize"]

MOST_ASPECT = 200
"""The longest side by the shortest that Qwen2-VL takes."""


class PackedPatches(NamedTuple):
    """Patches of images and videos, one after the other, and padding behind them. Every array has a fixed length.

    So a program is compiled for a length and not for an image's size. Each frame is attended to alone: frames are rows
    of their own, or segments of one row.

    Attributes:
        patches: (b l i), float32, `i` = channels, frames, rows and columns of a patch. Anything may stand at padding.
        places: (b l 2) int32, the row and the column of each patch in its frame.
        lengths: (b) int32, how many patches of each row are real: the first ones.
        segments: (b l) int32, which frame a patch belongs to; None where each row is one frame.
        offsets: (m 3) int32, the slice, row and column of each visual token (a cell of patches) of its image or video;
            these are in the order of the text, without gaps, and padding is behind.
        extents: (m 3) int32, at the last visual token of an image or video its slices, rows and columns; else 0.
        seconds: (m) float32, the seconds from a slice to the next.
    """

    patches: Array
    places: Array
    lengths: Array
    segments: Array | None
    offsets: Array
    extents: Array
    seconds: Array

    @property
    def count(self) -> int:
        """The number of visual tokens, known outside of `jax.jit` only."""
        return int(np.asarray(self.extents).prod(-1).sum())


def smart_resize(
    rows: int, columns: int, *, factor: int = 28, min_pixels: int = 56 * 56, max_pixels: int = 28 * 28 * 1280
) -> tuple[int, int]:
    """The size that Qwen2-VL brings an image to: multiples of a cell, an area within bounds, nearly the same aspect.

    Args:
        rows: The number of rows of the image.
        columns: The number of columns of the image.
        factor: The side of a cell in pixels.
        min_pixels: The least area; that of transformers, like the largest.
        max_pixels: The largest area. The published checkpoints' own files have 12,845,056, 16,384 visual tokens.

    Raises:
        ValueError: One side is more than 200 times the other, or there is no area between the bounds.

    >>> smart_resize(480, 640)
    (476, 644)
    """
    if min(rows, columns) < 1:
        raise errors.bad_argument("smart_resize", "rows, columns", (rows, columns), "at least 1 each")
    if not 0 < min_pixels <= max_pixels:
        got = (min_pixels, max_pixels)
        raise errors.bad_argument("smart_resize", "min_pixels, max_pixels", got, "an area above 0 and one not below it")
    if max(rows, columns) > MOST_ASPECT * min(rows, columns):
        wanted = f"an image whose longer side is at most {MOST_ASPECT} times the shorter"
        raise errors.bad_argument("smart_resize", "rows, columns", (rows, columns), wanted, "Cut it into pieces.")
    high, wide = (round(side / factor) * factor for side in (rows, columns))  # halves to the even number, as theirs
    if high * wide > max_pixels:
        shrink = math.sqrt((rows * columns) / max_pixels)
        high, wide = (max(factor, math.floor(side / shrink / factor) * factor) for side in (rows, columns))
    elif high * wide < min_pixels:
        grow = math.sqrt(min_pixels / (rows * columns))
        high, wide = (math.ceil(side * grow / factor) * factor for side in (rows, columns))
    return high, wide


def image_patches(
    image: UInt8[np.ndarray, "y x 3"] | UInt8[np.ndarray, "t y x 3"],
    *,
    patch_size: int = 14,
    merge: int = 2,
    frames: int = 2,
    min_pixels: int = 56 * 56,
    max_pixels: int = 28 * 28 * 1280,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Resizes an image or a video, normalizes it and cuts it into patches.

    Args:
        image: (y x 3), or a video's frames (t y x 3); uint8. The last frame is repeated until their number fits.
        patch_size: The side of a patch.
        merge: The patches along a side of a cell.
        frames: The frames of a patch. An image is repeated so often.
        min_pixels: See `smart_resize`. Usual for the frames of a video is 128 * 28 * 28.
        max_pixels: See `smart_resize`. Usual for the frames of a video is 768 * 28 * 28.
        mean: The mean of each channel.
        std: The standard deviation of each channel.

    Returns:
        The patches (n i), float32, and the grid: slices, rows and columns of patches.

    Raises:
        ValueError: The aspect is beyond 200, or the array is no image.

    >>> patches, grid = image_patches(np.zeros((60, 90, 3), np.uint8))
    >>> patches.shape, grid
    ((24, 1176), (1, 4, 6))
    """
    if image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] != 3 or image.size == 0:
        raise errors.bad_shape("image_patches", "image", image, "(y x 3), or (t y x 3) for a video, of uint8")
    video = image if image.ndim == 4 else np.broadcast_to(image, (frames, *image.shape))
    bounds = dict(min_pixels=min_pixels, max_pixels=max_pixels)
    rows, columns = smart_resize(*video.shape[1:3], factor=patch_size * merge, **bounds)
    if image.ndim == 3:
        pixels = np.broadcast_to(normalize(resize(image, rows, columns), mean, std), (frames, rows, columns, 3))
    else:
        pixels = np.stack([normalize(resize(frame, rows, columns), mean, std) for frame in video])
        missing = -len(pixels) % frames
        pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
    patches = rearrange(
        pixels,
        "(t f) (y u p) (x v q) i -> (t y x u v) (i f p q)",
        f=frames,
        u=merge,
        v=merge,
        p=patch_size,
        q=patch_size,
    )
    return np.ascontiguousarray(patches), (len(pixels) // frames, rows // patch_size, columns // patch_size)


def bucket_length(length: int, *, least: int = 64) -> int:
    """The bucket for a number of patches: eight steps for each doubling, so that at most an eighth is padding.

    Args:
        length: The patches.
        least: The smallest bucket, a power of two.

    >>> [bucket_length(n) for n in (3, 65, 1000, 1024, 1025)]
    [64, 72, 1024, 1024, 1152]
    """
    step = max(1, max(least, 1 << (max(length, 2) - 1).bit_length() - 1) // 8)
    return max(least, -(-length // step) * step)


def pack_patches(
    images: Sequence[tuple[np.ndarray, tuple[int, int, int]]],
    *,
    merge: int = 2,
    length: int | None = None,
    seconds: Sequence[float] | float = 1.0,
    separate: bool | None = None,
) -> PackedPatches:
    """Puts the patches of several images and videos into arrays of a fixed length, and tells where each belongs.

    Args:
        images: Patches and grid of each, as `image_patches` returns them, in the order in which they stand in the text.
        merge: The patches along a side of a cell.
        length: The length of the arrays, padding included; None takes `bucket_length`, and -1 the exact length.
        seconds: The seconds of a video from a slice to the next; one number for all or one for each image.
            Qwen2.5-VL reads it.
        separate: Whether each frame has a row of its own, as long as the longest, in place of one row for all of them.
            None does so where all frames have one size: it is what attention on a GPU takes fastest.

    Returns:
        The patches with their places; (1 l i), or with rows of their own (frames l i).

    Raises:
        ValueError: There is no image, a grid does not fit its patches, or the length is too short.

    >>> packed = pack_patches([image_patches(np.zeros((60, 90, 3), np.uint8))] * 2)
    >>> packed.patches.shape, packed.count
    ((2, 64, 1176), 12)
    """
    where = "pack_patches"
    if not images:
        raise errors.bad_argument(where, "images", [], "one image or more", "Leave images out of the call altogether.")
    for patches, grid in images:
        if len(patches) != math.prod(grid) or grid[1] % merge or grid[2] % merge:
            wanted = f"slices, rows and columns of {len(patches)} patches, in cells of {merge} by {merge}"
            raise errors.bad_argument(where, "images", grid, wanted, "image_patches returns both.")
    each = [seconds] * len(images) if isinstance(seconds, int | float) else list(seconds)
    if len(each) != len(images):
        raise errors.bad_argument(where, "seconds", each, f"one number, or one for each of the {len(images)} images")
    frames = [frame for patches, grid in images for frame in np.split(patches, grid[0])]
    places = [_places(grid, merge) for _, grid in images for _ in range(grid[0])]
    sizes = {len(frame) for frame in frames}
    separate = len(sizes) == 1 if separate is None else separate
    rows = [[i] for i in range(len(frames))] if separate else [list(range(len(frames)))]
    longest = max(sum(len(frames[i]) for i in row) for row in rows)
    room = longest if length == -1 else bucket_length(longest) if length is None else length
    if room < longest or room % merge**2:
        remedy = "Make the images smaller (max_pixels), or the length larger."
        raise errors.bad_argument(where, "length", length, f"at least {longest}, a multiple of {merge**2}", remedy)
    b = len(rows) if length == -1 else bucket_length(len(rows), least=1)
    packed, placed = np.zeros((b, room, frames[0].shape[1]), np.float32), np.zeros((b, room, 2), np.int32)
    segments, lengths = np.full((b, room), -1, np.int32), np.zeros((b,), np.int32)
    for r, row in enumerate(rows):
        for i in row:
            start, stop = lengths[r], lengths[r] + len(frames[i])
            packed[r, start:stop], placed[r, start:stop], segments[r, start:stop] = frames[i], places[i], i
            lengths[r] = stop
    tokens = _tokens([grid for _, grid in images], each, merge, b * room // merge**2)
    return PackedPatches(packed, placed, lengths, None if separate else segments, *tokens)


def _places(grid: tuple[int, int, int], merge: int) -> np.ndarray:
    """The row and column of each patch of a frame, cell by cell: (n 2)."""
    place = np.stack(np.meshgrid(np.arange(grid[1]), np.arange(grid[2]), indexing="ij"), axis=-1)
    return rearrange(place, "(y u) (x v) c -> (y x u v) c", u=merge, v=merge)


def _tokens(grids, seconds, merge, total):
    """Offsets, extents and seconds of the visual tokens."""
    offsets, extents = np.zeros((total, 3), np.int32), np.zeros((total, 3), np.int32)
    each, stop = np.ones((total,), np.float32), 0
    for (slices, rows, columns), value in zip(grids, seconds, strict=True):
        shape = (slices, rows // merge, columns // merge)
        start, stop = stop, stop + math.prod(shape)
        offsets[start:stop] = np.stack(np.unravel_index(np.arange(stop - start), shape), axis=-1)
        extents[stop - 1], each[start:stop] = shape, value
    return offsets, extents, each
