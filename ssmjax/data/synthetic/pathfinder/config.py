"""The parameters of Pathfinder, and those that Long Range Arena's four sizes were drawn with."""

import dataclasses
import math

from ssmjax.errors import as_int, as_nonnegative, bad_argument

__all__ = ["PATHFINDER", "PathfinderConfig"]


@dataclasses.dataclass(frozen=True)
class PathfinderConfig:
    """What a Pathfinder image is drawn from; lengths are in pixels.

    Attributes:
        size: Side of the image.
        margins: Free pixels around a paddle, and half the gap to the next one; one of them is drawn for each image.
        paddle_length: From tail to head.
        paddle_thickness: A multiple of 1 / antialias.
        marker_radius: The radius of the two discs.
        seed_distance: Between the tails of the two targets; the first one lies twice as far from the border.
        continuity: kappa: a turn by an angle has the weight cos(kappa angle)^2, and none from a right angle on.
        distractor_paddles: In all; they are dealt to distractors a third as long as a target.
        target_contrast: Brightness of the targets; that of the markers is 1.
        distractor_contrast: Brightness of the distractors.
        contour_length: Paddles of a target: 14 is the "hard" level, the one in use; 6 and 9 are the others. Any number
            from 3 on is drawn by the same rules, as long as the image has room for two such contours.
        padding: Width of the frame that contours keep out of.
        antialias: How many times finer the canvas is that a paddle is drawn on.
        paddle_tries: Draws of a paddle that must not cross another one.
        distractor_tries: Draws of a distractor, which is left out if all of them fail.
    """

    size: int
    margins: tuple[int, ...]
    paddle_length: int
    paddle_thickness: float
    marker_radius: float
    seed_distance: int
    continuity: float
    distractor_paddles: int
    target_contrast: float
    distractor_contrast: float
    contour_length: int = 14
    padding: int = 1
    antialias: int = 2
    paddle_tries: int = 3
    distractor_tries: int = 5

    def __post_init__(self) -> None:
        """Checks the parameters.

        Raises:
            ValueError: If one is out of its range, or two do not fit each other.
        """
        where = "PathfinderConfig"

        def whole(name: str, least: int) -> None:
            object.__setattr__(self, name, as_int(where, name, getattr(self, name), least=least))

        for name in ("paddle_length", "padding", "antialias", "paddle_tries", "distractor_tries"):
            whole(name, 1)
        whole("distractor_paddles", 0)
        whole("contour_length", 3)  # a distractor is a third as long
        margins = self.margins if isinstance(self.margins, tuple | list) else ()
        if not margins:
            raise bad_argument(where, "margins", self.margins, "a tuple of one or more positive ints")
        margins = tuple(as_int(where, f"margins[{i}]", margin, least=1) for i, margin in enumerate(margins))
        object.__setattr__(self, "margins", margins)
        for name in ("paddle_thickness", "marker_radius", "continuity", "target_contrast", "distractor_contrast"):
            object.__setattr__(self, name, as_nonnegative(where, name, getattr(self, name), positive=True))
        if not (self.paddle_thickness * self.antialias).is_integer():
            wanted = f"a multiple of 1 / antialias = 1 / {self.antialias}"
            raise bad_argument(where, "paddle_thickness", self.paddle_thickness, wanted)
        # Then both first paddles lie inside the image wherever they are turned.
        whole("seed_distance", self.paddle_length + max(margins) + 2)
        whole("size", 4 * self.seed_distance + 1)

    @property
    def distractor_length(self) -> int:
        """Paddles of a distractor."""
        return self.contour_length // 3

    @property
    def distractors(self) -> int:
        """How many distractors are tried."""
        return self.distractor_paddles // self.distractor_length

    @property
    def marker_reach(self) -> int:
        """Half the side of the square that a marker is stamped with: its radius and the three lobes of the filter."""
        return math.ceil(self.marker_radius) + 3

    def stamp_radius(self, margin: int) -> int:
        """Half the side of the square that a paddle is stamped with, its center left out."""
        return self.paddle_length + math.ceil(self.paddle_thickness) + margin


PATHFINDER = {
    "pathfinder32": PathfinderConfig(32, (1,), 2, 0.5, 1.5, 7, 1.0, 20, target_contrast=1.5, distractor_contrast=2.0),
    "pathfinder64": PathfinderConfig(64, (1,), 5, 1.0, 2.5, 12, 1.8, 22, target_contrast=0.8, distractor_contrast=0.8),
    "pathfinder128": PathfinderConfig(
        128, (2, 3), 5, 1.5, 3.0, 20, 1.8, 35, target_contrast=0.9, distractor_contrast=0.9
    ),
    "pathfinder256": PathfinderConfig(
        256, (3,), 5, 2.0, 5.0, 27, 1.8, 30, target_contrast=1.0, distractor_contrast=1.0, padding=22
    ),
}
"""Long Range Arena's parameters by name; "pathfinder128" is its Path-X. `dataclasses.replace` changes one."""
