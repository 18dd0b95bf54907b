"""Interpolation as a matrix: bicubic with the constant that PyTorch uses, and by area."""

import numpy as np

from ssmjax import errors

__all__ = ["area_matrix", "cubic_matrix"]

SHARPNESS = -0.75
"""The free constant of the cubic; `jax.image.resize` has -0.5."""


def cubic_matrix(old: int, new: int) -> np.ndarray:
    """The matrix that resamples `old` values to `new` along an axis, with half-pixel centers and without antialiasing.

    That is `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`, along one axis.

    Args:
        old: How many values there are.
        new: How many are wanted.

    Returns:
        (new, old), float64; rows sum to one.

    Raises:
        ValueError: One is not a positive int.

    >>> cubic_matrix(2, 2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    old = errors.as_int("cubic_matrix", "old", old, least=1)
    new = errors.as_int("cubic_matrix", "new", new, least=1)
    places = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(places)
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        weight = _cubic(np.abs(places - first - tap))
        column = np.clip(first + tap, 0, old - 1).astype(int)
        np.add.at(matrix, (np.arange(new), column), weight)
    return matrix


def area_matrix(old: int, new: int) -> np.ndarray:
    """The matrix that averages `old` values into `new` bins along an axis; bins may overlap.

    That is `torch.nn.functional.interpolate(mode="area")` along one axis: bin `i` has the values from
    `floor(i old / new)` to `ceil((i + 1) old / new) - 1`.

    Args:
        old: How many values there are.
        new: How many are wanted.

    Returns:
        (new, old), float64; rows sum to one.

    >>> area_matrix(4, 2).tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    old = errors.as_int("area_matrix", "old", old, least=1)
    new = errors.as_int("area_matrix", "new", new, least=1)
    matrix = np.zeros((new, old))
    for i in range(new):
        first, end = i * old // new, -(-(i + 1) * old // new)
        matrix[i, first:end] = 1 / (end - first)
    return matrix


def _cubic(distance: np.ndarray) -> np.ndarray:
    a = SHARPNESS
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
