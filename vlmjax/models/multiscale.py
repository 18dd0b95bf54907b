"""S2: the features of an image at several scales, side by side, from a tower of one size.

Scaling on Scales (https://arxiv.org/abs/2403.13043), as VILA 1.5 uses it (fixed scales), and as NVILA does (the last
scale has a grid of tiles that fits the image; https://arxiv.org/abs/2412.04468).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange

from ssmjax import errors
from ssmjax.shapes import Array, Float
from vlmjax.layers.resample import area_matrix, cubic_matrix

__all__ = ["block_grids", "dynamic_tokens", "multiscale_tokens"]

Grid = tuple[int, int]


def multiscale_tokens(
    tower: Callable[[Array], Array], images: Float[Array, "b y x d"], scales: Sequence[int], split: int, *, index: int
) -> Float[jax.Array, "b l d"]:
    """The tokens of an image at several scales, in one map, side by side in their channels.

    At each scale the image is resized, cut into tiles that the tower reads, and the maps of its tiles are put together
    and resized (by area) to the map of one of the scales.

    Args:
        tower: `tower(images) -> (b l d)`, the tokens of a square map, row by row.
        images: (b y x d).
        scales: The sides of the image.
        split: The side of a tile.
        index: The scale whose map decides the number of tokens.

    Returns:
        (b l d) with the channels of all scales, the smallest first.

    >>> import jax.numpy as jnp
    >>> tower = lambda images: images.reshape(images.shape[0], -1, 3)
    >>> multiscale_tokens(tower, jnp.ones((1, 4, 4, 3)), (2, 4), 2, index=0).shape
    (1, 4, 6)
    """
    maps = []
    for scale in sorted(scales):
        x = _resized(images.astype(jnp.float32), (scale, scale), cubic_matrix)
        n = -(-scale // split)
        tiles = rearrange(x, "b (y i) (x j) d -> (y x b) i j d", y=n, x=n)
        maps.append(_mosaic(tower(tiles), (n, n)))
    return rearrange(_side_by_side(maps, index), "b y x d -> b (y x) d")


def block_grids(block: Grid | None, scales: Sequence[int]) -> list[Grid]:
    """The grids of tiles of one image, one for each scale: squares, and `block` for the last. None: one tile in all.

    >>> block_grids((2, 5), (448, 896, 1344))
    [(1, 1), (2, 2), (2, 5)]
    """
    if block is None:
        return [(1, 1)]
    return [(scale // scales[0], scale // scales[0]) for scale in scales[:-1]] + [tuple(block)]


def dynamic_tokens(
    features: Float[Array, "n l d"],
    blocks: Sequence[Grid | None],
    scales: Sequence[int],
    project: Callable[[Array], Array],
    *,
    index: int,
) -> list[jax.Array]:
    """The tokens of images whose tiles were read at several scales (NVILA's dynamic S2).

    Args:
        features: (n l d), the tower's tokens of all tiles; those of an image scale by scale, row by row.
        blocks: For each image the rows and columns of its last scale; None for an image of one tile, whose channels
            are repeated for each scale.
        scales: The sides of the image; the first is that of a tile.
        project: The projector, (tiles l d) to (tiles m e); it reads tile by tile.
        index: The scale whose map decides the number of tokens.

    Returns:
        For each image (m e), row by row over its whole map.

    Raises:
        ValueError: The number of tiles does not fit the blocks.

    >>> import jax.numpy as jnp
    >>> ys = dynamic_tokens(jnp.ones((1 + 2, 4, 1)), [(1, 2)], (8, 16), lambda x: x, index=-1)
    >>> [y.shape for y in ys]
    [(8, 2)]
    """
    counts = [sum(y * x for y, x in block_grids(block, scales)) for block in blocks]
    if features.shape[0] != sum(counts):
        wanted = f"(n l d) with n = {sum(counts)}, the tiles of these blocks"
        raise errors.bad_shape("dynamic_tokens", "features", features, wanted)
    tiles, shapes, first = [], [], 0
    for block, count in zip(blocks, counts, strict=True):
        mine, first = features[first : first + count], first + count
        grids = block_grids(block, scales)
        if block is None:
            tiles.append(jnp.tile(mine, (1, 1, len(scales))))
            shapes.append((1, 1))
            continue
        maps, start = [], 0
        for y, x in grids:
            maps.append(_mosaic(mine[start : start + y * x], (y, x)))
            start += y * x
        shapes.append(grids[index])
        y, x = grids[index]
        tiles.append(rearrange(_side_by_side(maps, index), "1 (y i) (x j) d -> (y x) (i j) d", y=y, x=x))
    projected = project(jnp.concatenate(tiles))
    results, first = [], 0
    for y, x in shapes:
        results.append(rearrange(_mosaic(projected[first : first + y * x], (y, x)), "1 y x d -> (y x) d"))
        first += y * x
    return results


def _mosaic(tiles: Float[Array, "n l d"], grid: Grid) -> Float[jax.Array, "b y x d"]:
    """The maps of tiles put together; tiles are row by row, and each of them for all images."""
    side = int(tiles.shape[1] ** 0.5)
    if side * side != tiles.shape[1]:
        raise errors.bad_shape("multiscale", "tiles", tiles, "(n l d) with a square number l of tokens")
    y, x = grid
    return rearrange(tiles, "(y x b) (i j) d -> b (y i) (x j) d", y=y, x=x, i=side)


def _side_by_side(maps: Sequence[jax.Array], index: int) -> jax.Array:
    size = maps[index].shape[1:3]
    return jnp.concatenate([_resized(each, size, area_matrix) for each in maps], axis=-1)


def _resized(x: jax.Array, size: Grid, matrix: Callable) -> jax.Array:
    if x.shape[1:3] == tuple(size):
        return x
    rows, columns = (jnp.asarray(matrix(old, new), jnp.float32) for old, new in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("ry,sx,byxd->brsd", rows, columns, x.astype(jnp.float32), precision="highest").astype(x.dtype)
