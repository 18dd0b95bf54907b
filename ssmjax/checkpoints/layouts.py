"""How the axes of a foreign array and of ours correspond: einops patterns, read both ways."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from einops import rearrange

from ssmjax import errors

__all__ = ["LAYOUTS", "Layout", "shape_in_source", "to_ours", "to_source"]

LAYOUTS: dict[str, tuple[str, str] | None] = {
    "same": None,
    "linear": ("o i", "i o"),
    "conv1d": ("e 1 k", "k e"),
    "conv3d": ("d i t y x", "t y x i d"),
    "depthwise_conv2d": ("e 1 y x", "y x e"),
    "patch_conv": ("d i y x", "y x i d"),
    "pointwise_conv2d": ("o i 1 1", "i o"),
    "directions": ("k o i", "k i o"),
    "column": ("n", "n 1"),
    "row": ("h", "1 h"),
    "one_channel": ("h n parts", "1 h n parts"),
    "transposed": ("n h", "h n"),
    "features_second": ("n h parts", "1 h n parts"),
}
"""Changes of layout: the name, and the einops patterns of the foreign array and of ours.

`"patch_conv"` is every two-dimensional convolution whose kernel is laid out as that of `flax.nnx.Conv`, and `"conv3d"`
every three-dimensional one. `"directions"` is a linear map for each scan direction.
"""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A change of layout that has no name in `LAYOUTS`, for a `Rule`.

    Attributes:
        source: The einops pattern of the foreign array.
        ours: The einops pattern of our array.
        sizes: The lengths of those axes that einops cannot know from the shapes, in both directions.

    >>> four_directions = Layout("(k e) n", "k e n", {"k": 4})
    >>> to_ours(np.zeros((12, 5)), four_directions).shape
    (4, 3, 5)
    """

    source: str
    ours: str
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)


def to_ours(x: np.ndarray, layout: str | Layout) -> np.ndarray:
    """A foreign array in our layout; a view where numpy can.

    >>> to_ours(np.zeros((3, 2)), "linear").shape
    (2, 3)
    """
    patterns = _patterns(layout)
    return x if patterns is None else rearrange(x, f"{patterns.source} -> {patterns.ours}", **patterns.sizes)


def to_source(x: np.ndarray, layout: str | Layout) -> np.ndarray:
    """An array of ours in the foreign layout; a view where numpy can.

    >>> to_source(np.zeros((4, 6)), "conv1d").shape
    (6, 1, 4)
    """
    patterns = _patterns(layout)
    return x if patterns is None else rearrange(x, f"{patterns.ours} -> {patterns.source}", **patterns.sizes)


def shape_in_source(shape: tuple[int, ...], layout: str | Layout) -> tuple[int, ...]:
    """The shape that an array of ours has in the foreign layout.

    >>> shape_in_source((2, 3), "linear")
    (3, 2)
    """
    return to_source(np.broadcast_to(np.int8(0), shape), layout).shape  # a placeholder, which takes no memory


def _patterns(layout: str | Layout) -> Layout | None:
    if isinstance(layout, Layout):
        return layout
    errors.require_known("layout", layout, LAYOUTS)
    patterns = LAYOUTS[layout]
    return None if patterns is None else Layout(*patterns)
