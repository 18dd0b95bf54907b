"""Pooling against loops over the real tokens of each row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax.layers import pool

REDUCE = {"mean": lambda x: x.mean(0), "max": lambda x: x.max(0), "last": lambda x: x[-1]}


@pytest.mark.parametrize("kind", sorted(REDUCE))
def test_masked(key, kind):
    x = jax.random.normal(key, (4, 7, 3))
    mask = np.zeros((4, 7), bool)
    mask[0], mask[1, :3], mask[2, 4:], mask[3, [1, 5]] = True, True, True, True  # none, right, left, and in the middle
    expected = np.stack([REDUCE[kind](np.asarray(row, np.float64)[real]) for row, real in zip(x, mask, strict=True)])
    np.testing.assert_allclose(pool(x, kind, jnp.asarray(mask)), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", sorted(REDUCE))
def test_without_a_mask(key, kind):
    x = jax.random.normal(key, (2, 7, 3))
    np.testing.assert_allclose(pool(x, kind), np.stack([REDUCE[kind](np.asarray(row)) for row in x]), rtol=1e-6)


@pytest.mark.parametrize("kind", sorted(REDUCE))
def test_a_row_of_padding_gives_zeros_and_finite_gradients(kind):
    x, mask = jnp.ones((2, 3, 4)), jnp.array([[False] * 3, [True] * 3])
    assert (pool(x, kind, mask)[0] == 0).all()
    gradient = jax.grad(lambda x: pool(x, kind, mask).sum())(x)
    assert np.isfinite(gradient).all() and (gradient[0] == 0).all()


def test_images_and_low_precision(key):
    x = jax.random.normal(key, (2, 3, 4, 5)).astype(jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(pool(x, "mean"), exact.mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(pool(x, "max"), exact.max((1, 2)))
    assert pool(x, "none").dtype == jnp.float32
