"""Paddles as tables: what each pose looks like, what it keeps free of others, and what may follow it.

A contour holds paddles of finitely many poses: its first paddle points at a whole number of degrees, and each later
one at a pixel of one small circle. Whatever depends on the pose alone is computed once.

Places are flat indices into a canvas: the image with a frame of `inset` pixels around it, so that no stamp sticks out.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from ssmjax.data.synthetic.pathfinder import raster
from ssmjax.data.synthetic.pathfinder.config import PathfinderConfig

__all__ = ["DEGREES", "PaddleTables", "Stamps", "paddle_tables"]

DEGREES = 360
"""The poses 0 .. 359 are first paddles and lie where their tail is; the others follow and lie where their head is."""

_CROSSED = 459  # of 255: two claims that add up to 1.8 at some pixel cross


@dataclasses.dataclass(frozen=True, eq=False)
class Stamps:
    """The pixels of each pose, sparse; a shorter row repeats its last pixel.

    Attributes:
        offset: (a q) int32, from the place of the pose.
        value: (a q) uint8.
    """

    offset: np.ndarray
    value: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class PaddleTables:
    """Everything about paddles that one configuration and one margin determine; a pose, b following poses.

    Attributes:
        margin: The margin.
        canvas: Side of the canvas.
        inset: Width of its frame.
        inside: (canvas^2) bool, True on the image.
        interior: (canvas^2) bool, True on the image but for its outermost pixels.
        marker: The disc on a marked end, of one pose.
        look: How each pose is drawn.
        claim: Its claim: the paddle, widened by the margin. Claims must not cross.
        halo: Its claim, widened by the margin once more: heads avoid it.
        limit: At the pixels where the claim is 0.8 or more, the least claim of others that crosses it.
        reach: 360 arrays of the offsets that have to be free where such a first paddle is to lie; empty if it may not.
        head: (360) offset from the tail of a first paddle to its head.
        pivot: (360) offset from there to its pivot, the point around which it turns.
        advance: (a) offset from the pivot of a pose to that of the next one.
        circle: (b) offsets from a pivot to the heads that a paddle around it may have.
        turn: (a b) float32, the weight of each such head after each pose.
    """

    margin: int
    canvas: int
    inset: int
    inside: np.ndarray
    interior: np.ndarray
    marker: Stamps
    look: Stamps
    claim: Stamps
    halo: Stamps
    limit: Stamps
    reach: list[np.ndarray]
    head: np.ndarray
    pivot: np.ndarray
    advance: np.ndarray
    circle: np.ndarray
    turn: np.ndarray

    def place(self, row: np.ndarray | int, column: np.ndarray | int) -> np.ndarray | int:
        """The place of a pixel of the image."""
        return (row + self.inset) * self.canvas + column + self.inset

    def pixel(self, place: np.ndarray) -> np.ndarray:
        """The row and column (... 2) of places."""
        return np.stack(np.divmod(place, self.canvas), axis=-1) - self.inset


@functools.lru_cache(maxsize=16)
def paddle_tables(config: PathfinderConfig, margin: int) -> PaddleTables:
    """Computes the tables; they are kept."""
    length = config.paddle_length
    inset = max(config.stamp_radius(margin) + margin + 2, config.marker_reach)
    canvas = config.size + 2 * inset
    circle = _circle(length + margin)
    degrees = np.deg2rad(np.arange(-180, 180))
    angle = np.concatenate([degrees, np.arctan2(circle[:, 0], circle[:, 1])])
    drawn = np.concatenate([degrees, angle[DEGREES:] + np.pi])  # a following paddle is drawn from its head backwards
    looks, claims = zip(*(_draw(config, margin, theta) for theta in drawn), strict=True)
    free = raster.disc(margin)
    halos = [raster.dilate(np.pad(claim, margin), free) for claim in claims]
    strong = _sparse([np.where(claim * 5 >= 255 * 4, claim, 0) for claim in map(np.int64, claims)], canvas)
    head = translate(degrees, length)
    flat = np.array([canvas, 1])
    return PaddleTables(
        margin=margin,
        canvas=canvas,
        inset=inset,
        inside=_square(config.size, inset),
        interior=_square(config.size - 2, inset + 1),
        marker=_sparse([_marker(config)], canvas),
        look=_sparse(looks, canvas),
        claim=_sparse(claims, canvas),
        halo=_sparse(halos, canvas),
        limit=Stamps(strong.offset, (_CROSSED - strong.value.astype(np.int64)).astype(np.uint8)),
        reach=[_reach(claim, length + margin, canvas) for claim in claims[:DEGREES]],
        head=head @ flat,
        pivot=(head + translate(degrees + np.pi, length + margin)) @ flat,
        advance=translate(angle, length + 2 * margin) @ flat,
        circle=circle @ flat,
        turn=_turn_weights(angle, angle[DEGREES:], config.continuity),
    )


def translate(angle: np.ndarray, distance: int) -> np.ndarray:
    """Steps (a 2) of rows and columns, rounded up; rows grow with the sine."""
    step = distance * np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    return np.ceil(step - 1e-9).astype(np.int64)  # sin(pi) is not quite 0


def _circle(radius: int) -> np.ndarray:
    """The pixels (b 2) on a circle that is walked in steps of one pixel of arc."""
    angle = np.arange(0, 2 * np.pi, 1 / radius)
    points = radius * np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    return np.unique(np.floor(points + 1e-9).astype(np.int64), axis=0)


def _turn_weights(before: np.ndarray, after: np.ndarray, continuity: float) -> np.ndarray:
    turn = np.abs(before[:, None] - after[None, :])
    turn = np.minimum(turn, 2 * np.pi - turn)
    return (np.cos(np.minimum(continuity * turn, np.pi / 2)) ** 2).astype(np.float32)


def _draw(config: PathfinderConfig, margin: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """A paddle and its claim, drawn from the middle of a finer canvas in a direction, then shrunk."""
    fine, radius = config.antialias, config.stamp_radius(margin)
    end = fine * radius + translate(np.array(angle), fine * config.paddle_length)
    line = raster.line(2 * fine * radius + 1, tuple(end.tolist()), round(config.paddle_thickness * fine))
    claim = raster.dilate(line, raster.disc(fine * margin))
    return raster.shrink(line, 2 * radius + 1), raster.shrink(claim, 2 * radius + 1)


def _marker(config: PathfinderConfig) -> np.ndarray:
    """A disc; its center is the first of the finer pixels of the middle one, which puts it up and left by a little."""
    radius, fine = config.marker_reach, config.antialias
    rows, columns = np.mgrid[: fine * (2 * radius + 1), : fine * (2 * radius + 1)] - fine * radius
    inside = rows**2 + columns**2 <= (fine * config.marker_radius) ** 2
    return raster.shrink(np.where(inside, 255, 0).astype(np.uint8), 2 * radius + 1)


def _square(side: int, frame: int) -> np.ndarray:
    return np.pad(np.ones((side, side), bool), frame).reshape(-1)


def _reach(claim: np.ndarray, radius: int, canvas: int) -> np.ndarray:
    """The offsets that have to be free where a first paddle of this claim is to lie; none if it may lie nowhere.

    Two oddities of the original are kept, because they shape the published images. It looks one pixel down and right
    of where it then draws. And it gives up at once unless the offsets lie on all sides: else a pixel at some border
    has none of them on the image, OpenCV's dilation gives it minus infinity, and that is taken for a failure. At 32
    pixels this leaves 30 of the 360 angles, and most images without most of their distractors.
    """
    offsets = np.argwhere(claim == 255) - len(claim) // 2 + 1
    offsets = offsets[np.abs(offsets).max(1) <= radius]
    corners = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    on_all_sides = (offsets * corners[:, None] >= 0).all(2).any(1).all()
    return offsets[: len(offsets) * on_all_sides] @ np.array([canvas, 1])


def _sparse(images: Sequence[np.ndarray], canvas: int) -> Stamps:
    """The non-zero pixels of square images, from their middle."""
    pixels = [np.argwhere(image) for image in images]
    longest = max(map(len, pixels))
    rows = [np.pad(p, ((0, longest - len(p)), (0, 0)), mode="edge") for p in pixels]
    value = np.stack([image[tuple(p.T)] for image, p in zip(images, rows, strict=True)])
    offset = np.stack(rows) - len(images[0]) // 2
    return Stamps((offset @ np.array([canvas, 1])).astype(np.int32), value.astype(np.uint8))
