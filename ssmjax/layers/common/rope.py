"""Rotary position embedding on a grid of patches, without parameters."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from ssmjax import errors
from ssmjax.shapes import Float, Tokens

__all__ = ["apply_rope", "axial_rope_table"]


def axial_rope_table(
    rows: int, columns: int, d_model: int, *, pretrained_side: int | None = None, base: float = 10000.0
) -> np.ndarray:
    """Returns the angles by which a grid of tokens is turned: half of the width by the row, half by the column.

    Channels are taken in neighboring pairs. Pair `i` of the half that belongs to an axis turns by
    `t * base**(-4 i / d_model)` at position `t` of that axis (EVA-02, https://arxiv.org/abs/2303.11331; RoPE,
    https://arxiv.org/abs/2104.09864).

    Args:
        rows: The grid's rows.
        columns: The grid's columns.
        d_model: The width of a token, a multiple of 4.
        pretrained_side: The side of the grid that the model was trained on; positions are scaled to its range.
        base: The base of the wavelengths.

    Returns:
        (rows * columns, d_model / 2), float64: the angle of each pair.

    Raises:
        ValueError: `d_model` is not a multiple of 4.

    >>> axial_rope_table(2, 2, 4).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    if d_model % 4:
        raise errors.bad_argument("axial_rope_table", "d_model", d_model, "a multiple of 4 (two axes of channel pairs)")
    half = d_model // 2
    frequencies = base ** (-np.arange(0, half, 2) / half)
    y, x = (np.arange(side) / side * (pretrained_side or side) for side in (rows, columns))
    by_row = repeat(np.outer(y, frequencies), "y r -> (y x) r", x=columns)
    by_column = repeat(np.outer(x, frequencies), "x r -> (y x) r", y=rows)
    return np.concatenate([by_row, by_column], axis=-1)


def apply_rope(x: Tokens, angles: Float[np.ndarray, "l r"]) -> Tokens:
    """Turns each neighboring pair of channels by its angle; an angle of zero leaves it as it is.

    Args:
        x: (b l d). Turned in float32.
        angles: (l d/2), in radians.

    Returns:
        As `x`.

    >>> import jax.numpy as jnp, numpy as np
    >>> apply_rope(jnp.array([[[1.0, 0.0]]]), np.array([[np.pi / 2]])).round(3).tolist()
    [[[-0.0, 1.0]]]
    """
    cos, sin = (jnp.asarray(f(angles), jnp.float32)[None] for f in (np.cos, np.sin))
    first, second = rearrange(x.astype(jnp.float32), "b l (r two) -> two b l r", two=2)
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rearrange(turned, "b l r two -> b l (r two)").astype(x.dtype)
