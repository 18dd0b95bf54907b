"""Measures of quality against closed forms and brute force."""

import numpy as np
import pytest

from ssmjax.diffusion import frechet_distance, precision_recall

RNG = np.random.default_rng(0)
REAL, DRAWN = RNG.normal(size=(300, 3)), RNG.normal(size=(200, 3)) * [1.0, 2.0, 0.5] + [0.0, 1.0, 0.0]


def test_frechet_distance():
    assert abs(frechet_distance(REAL, REAL)) < 1e-9
    # In one dimension it is the difference of the means and of the deviations, squared.
    one, two = REAL[:, :1], DRAWN[:, 1:2]
    expected = (one.mean() - two.mean()) ** 2 + (one.std(ddof=1) - two.std(ddof=1)) ** 2
    np.testing.assert_allclose(frechet_distance(one, two), expected, rtol=1e-9)
    first, second = (np.cov(x, rowvar=False) for x in (REAL, DRAWN))
    roots = np.sqrt(np.linalg.eigvals(first @ second).real).sum()
    difference = REAL.mean(0) - DRAWN.mean(0)
    expected = difference @ difference + np.trace(first) + np.trace(second) - 2 * roots
    np.testing.assert_allclose(frechet_distance(REAL, DRAWN), expected, rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(DRAWN, REAL), expected, rtol=1e-9)


def test_precision_and_recall_by_brute_force():
    def share(points, asked, k):
        radii = [sorted(np.linalg.norm(points - p, axis=1))[k] for p in points]
        near = [any(np.linalg.norm(q - p) <= r for p, r in zip(points, radii, strict=True)) for q in asked]
        return np.mean(near)

    for k in (1, 3):
        expected = share(REAL, DRAWN, k), share(DRAWN, REAL, k)
        assert precision_recall(REAL, DRAWN, k) == pytest.approx(expected)
    assert precision_recall(REAL, REAL) == (1.0, 1.0)
    assert precision_recall(REAL, REAL + 100) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(REAL, DRAWN[:, :2]), r"frechet_distance: drawn must be \(n, d\) features"),
        (lambda: frechet_distance(REAL[:1], DRAWN), "frechet_distance: real must be"),
        (lambda: precision_recall(REAL, DRAWN, 200), "neighbors must be an int, at least 1, at most 199, got 200"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
