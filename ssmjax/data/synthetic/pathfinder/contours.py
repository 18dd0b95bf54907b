"""Growing contours paddle by paddle, on many canvases at once."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ssmjax.data.synthetic.pathfinder.config import PathfinderConfig
from ssmjax.data.synthetic.pathfinder.paddles import DEGREES, PaddleTables, Stamps

__all__ = ["Contours", "Field", "first_places", "grow", "paste"]

_LEAST_WEIGHT = 1e-4 * 255  # of all heads together; below it a contour is at a dead end


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """What is taken on each of N canvases.

    Attributes:
        claim: (N canvas^2) uint8, the largest claim on each pixel; the frame is taken.
        halo: (N canvas^2) uint8, the same, widened by the margin.
    """

    claim: np.ndarray
    halo: np.ndarray

    @classmethod
    def empty(cls, config: PathfinderConfig, tables: PaddleTables, count: int) -> "Field":
        """Fields on which nothing but the frame and the padding is taken."""

        def framed(width: int) -> np.ndarray:
            canvas = np.full((count, tables.canvas, tables.canvas), 255, np.uint8)
            canvas[:, width:-width, width:-width] = 0
            return canvas.reshape(count, -1)

        width = tables.inset + config.padding
        return cls(framed(width), framed(width + tables.margin))

    @classmethod
    def concatenate(cls, fields: Sequence["Field"]) -> "Field":
        """One set of canvases after the other."""
        return cls(np.concatenate([f.claim for f in fields]), np.concatenate([f.halo for f in fields]))

    def __getitem__(self, rows: np.ndarray) -> "Field":
        """A copy of some of the fields."""
        return Field(self.claim[rows], self.halo[rows])

    def __setitem__(self, rows: np.ndarray, other: "Field") -> None:
        """Replaces some of the fields."""
        self.claim[rows], self.halo[rows] = other.claim, other.halo

    def take(self, tables: PaddleTables, rows: np.ndarray, pose: np.ndarray, place: np.ndarray) -> None:
        """Takes the claim of one paddle on each of the named fields."""
        paste(self.claim, tables.claim, rows, pose, place)
        paste(self.halo, tables.halo, rows, pose, place)


@dataclasses.dataclass(frozen=True, eq=False)
class Contours:
    """Contours that grow together, c on each of N canvases, of k paddles.

    Attributes:
        pose: (N c k) int, of each paddle.
        place: (N c k) int: the tail of the first paddle, and the heads of the others.
        pivot: (N c) int, the point around which the last paddle was turned.
    """

    pose: np.ndarray
    place: np.ndarray
    pivot: np.ndarray

    @classmethod
    def start(cls, tables: PaddleTables, pose: np.ndarray, place: np.ndarray, length: int) -> "Contours":
        """Contours of one paddle each, with room for `length`, from their poses and places (N c)."""
        poses, places = (np.repeat(first[..., None], length, axis=-1) for first in (pose, place))
        return cls(poses, places, place + tables.pivot[pose])

    @classmethod
    def concatenate(cls, parts: Sequence["Contours"]) -> "Contours":
        """One set of canvases after the other."""
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("pose", "place", "pivot")))

    def __getitem__(self, rows: np.ndarray) -> "Contours":
        """Those on some of the canvases."""
        return Contours(self.pose[rows], self.place[rows], self.pivot[rows])


def grow(
    contours: Contours, field: Field, config: PathfinderConfig, tables: PaddleTables, rng: np.random.Generator
) -> np.ndarray:
    """Grows all contours to their full length, those of one canvas in turn, in place.

    Of their last paddles, as in the original, only that of the last contour is claimed.

    Returns:
        The rows on which all contours were grown; what happened on the others is of no use.
    """
    rows = np.arange(len(contours.pose))
    for step in range(1, contours.pose.shape[2]):
        for which in range(contours.pose.shape[1]):
            rows = _extend(contours, which, step, rows, field, config, tables, rng)
    field.take(tables, rows, contours.pose[rows, -1, -1], contours.place[rows, -1, -1])
    return rows


def _extend(
    contours: Contours,
    which: int,
    step: int,
    rows: np.ndarray,
    field: Field,
    config: PathfinderConfig,
    tables: PaddleTables,
    rng: np.random.Generator,
) -> np.ndarray:
    """Adds a paddle to one contour of each of the rows; returns the rows on which that went well."""
    last = contours.pose[rows, which, step - 1]
    pivot = contours.pivot[rows, which] + tables.advance[last]
    origin = rows * field.claim.shape[1] + pivot
    room = 255 - field.halo.reshape(-1)[origin[:, None] + tables.circle]
    reached = np.cumsum(tables.turn[last] * room, axis=1)
    choice = np.full(len(rows), -1)
    pending = np.flatnonzero(reached[:, -1] >= _LEAST_WEIGHT)
    for _ in range(config.paddle_tries):
        drawn = rng.random(len(pending), np.float32) * reached[pending, -1]
        # Rounding may bring the draw up to the sum itself.
        head = np.minimum((reached[pending] <= drawn[:, None]).sum(1), np.argmax(reached[pending], axis=1))
        at = (origin[pending] + tables.circle[head])[:, None] + tables.limit.offset[DEGREES + head]
        crosses = (field.claim.reshape(-1)[at] >= tables.limit.value[DEGREES + head]).any(1)
        choice[pending[~crosses]] = head[~crosses]
        pending = pending[crosses]
    well = choice >= 0
    rows, choice, pivot = rows[well], choice[well], pivot[well]
    # Only now is the paddle before this one claimed: paddles that follow each other may touch.
    field.take(tables, rows, last[well], contours.place[rows, which, step - 1])
    contours.pose[rows, which, step] = DEGREES + choice
    contours.place[rows, which, step] = pivot + tables.circle[choice]
    contours.pivot[rows, which] = pivot
    return rows


def first_places(free: np.ndarray, reach: np.ndarray, tables: PaddleTables) -> np.ndarray:
    """Where a first paddle may lie, given which pixels are free, (canvas^2) bool, and which offsets have to be."""
    low = tables.place(0, 0)
    high = len(free) - low
    allowed = tables.inside[low:high] & (len(reach) > 0)
    for offset in reach:
        allowed &= free[low + offset : high + offset]
    return low + np.flatnonzero(allowed)


def paste(canvases: np.ndarray, stamps: Stamps, rows: np.ndarray, pose: np.ndarray, place: np.ndarray) -> None:
    """Stamps one pose on each of the named canvases (N canvas^2): the maximum with what is there, in place."""
    at = (rows * canvases.shape[1] + place)[:, None] + stamps.offset[pose]
    flat = canvases.reshape(-1)
    flat[at] = np.maximum(flat[at], stamps.value[pose])
