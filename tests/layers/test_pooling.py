"""Pooling against loops over the real tokens of each row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax.layers import pool
from ssmjax.layers.common.padding import as_mask

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


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("kind", ["mean", "max", "last"])
def test_a_mask_of_bytes_is_one_of_booleans(kind):
    x = jnp.arange(1200.0).reshape(1, 600, 2)
    mask = jnp.ones((1, 600), jnp.uint8)
    np.testing.assert_array_equal(pool(x, kind, mask), pool(x, kind, mask.astype(bool)))


@pytest.mark.usefixtures("as_a_user")
def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="pool: Unknown kind 'median'"):
        pool(jnp.ones((1, 3, 2)), "median")


@pytest.mark.usefixtures("as_a_user")
def test_a_mask_is_of_booleans_or_integers():
    np.testing.assert_array_equal(as_mask("layer", jnp.array([[0, 2, 255]], jnp.uint8)), [[False, True, True]])
    with pytest.raises(ValueError, match=r"layer: mask must be an array of booleans.*got .float32"):
        as_mask("layer", jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="layer: mask must be .* got 'list'"):
        as_mask("layer", [[True, False]])
