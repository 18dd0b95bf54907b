"""How good a set of samples is, measured on features of a network that the user chooses."""

import numpy as np

from ssmjax import errors
from ssmjax.shapes import Array

__all__ = ["frechet_distance", "precision_recall"]

_ROWS = 1000


def frechet_distance(real: Array, drawn: Array) -> float:
    """The Frechet distance of two sets of features, each taken for normal (https://arxiv.org/abs/1706.08500).

    `|m_1 - m_2|**2 + trace(C_1 + C_2 - 2 sqrt(C_1 C_2))`. It is called FID only where the features are those of the
    Inception network with its published weights.

    Args:
        real: (n d), the features of real images.
        drawn: (m d), those of samples.

    Raises:
        ValueError: A set has fewer than two rows, or the two have different widths.

    >>> rng = np.random.default_rng(0)
    >>> real = rng.normal(size=(1000, 3))
    >>> round(frechet_distance(real, real + [1.0, 2.0, 0.0]), 6)
    5.0
    """
    real, drawn = _features("frechet_distance", real, drawn)
    difference = real.mean(0) - drawn.mean(0)
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (real, drawn))
    # The trace of the root of C1 C2 is that of the root of the symmetric C1^1/2 C2 C1^1/2.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    middle = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return float(difference @ difference + np.trace(first) + np.trace(second) - 2 * middle)


def precision_recall(real: Array, drawn: Array, neighbors: int = 3) -> tuple[float, float]:
    """Improved precision and recall (https://arxiv.org/abs/1904.06991, equations 1 to 3).

    Precision is the share of samples that lie among the real images, recall the share of real images that lie among the
    samples. A point lies among a set if it is nearer to one of its points than that point's own `neighbors`-th
    neighbour.

    Args:
        real: (n d), the features of real images.
        drawn: (m d), those of samples.
        neighbors: Which neighbour's distance is the radius around a point.

    Raises:
        ValueError: There are not as many points, or the widths differ.

    >>> rng = np.random.default_rng(0)
    >>> precision_recall(rng.normal(size=(200, 2)), 0.01 * rng.normal(size=(200, 2)))[0]
    1.0
    """
    where = "precision_recall"
    real, drawn = _features(where, real, drawn)
    most = min(len(real), len(drawn)) - 1
    errors.as_int(where, "neighbors", neighbors, least=1, most=most, remedy="Give more points, or fewer neighbors.")
    return _share_within(real, drawn, neighbors), _share_within(drawn, real, neighbors)


def _features(where: str, real: Array, drawn: Array) -> tuple[np.ndarray, np.ndarray]:
    real, drawn = np.asarray(real, np.float64), np.asarray(drawn, np.float64)
    for name, x in {"real": real, "drawn": drawn}.items():
        if x.ndim != 2 or len(x) < 2 or x.shape[1] != real.shape[-1]:
            raise errors.bad_shape(where, name, x, "(n, d) features with n > 1 and the same d in both")
    return real, drawn


def _share_within(points: np.ndarray, asked: np.ndarray, neighbors: int) -> float:
    """The share of `asked` that lie in one of the balls around `points`."""
    # A point's nearest neighbour in its own set is itself.
    radii = np.concatenate(
        [np.partition(_squared(part, points), neighbors, axis=1)[:, neighbors] for part in _parts(points)]
    )
    inside = [(_squared(part, points) <= radii).any(axis=1) for part in _parts(asked)]
    return float(np.concatenate(inside).mean())


def _parts(x: np.ndarray) -> list[np.ndarray]:
    """Rows in parts, so that no matrix of all distances is held."""
    return [x[i : i + _ROWS] for i in range(0, len(x), _ROWS)]


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1), 0)
