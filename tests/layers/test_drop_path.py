"""Dropout and stochastic depth: rates, scaling, determinism."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax.layers import drop_path, drop_path_rates, dropout, shared_dropout


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.9])
def test_rate_and_scale(key, rate):
    x = jnp.ones((4000, 2, 3))
    first, second = jax.random.split(key)
    for out in (dropout(first, x, rate), drop_path(second, x, rate)):
        kept = np.asarray(out) != 0
        np.testing.assert_allclose(np.asarray(out)[kept], 1 / (1 - rate), rtol=1e-6)
        assert abs(kept.mean() - (1 - rate)) < 0.03


def test_drop_path_drops_whole_samples(key):
    out = np.asarray(drop_path(key, jnp.ones((100, 2, 3)), 0.5)).reshape(100, -1)
    assert set(out.mean(1).tolist()) == {0.0, 2.0}


def test_rate_zero_is_the_identity(key):
    x = jax.random.normal(key, (5, 2, 3))
    chex.assert_trees_all_equal(drop_path(jax.random.key(1), x, 0.0), x)


def test_the_rate_may_be_traced(key):
    x = jnp.ones((50, 2))
    chex.assert_trees_all_equal(jax.jit(drop_path)(key, x, 0.3), drop_path(jax.random.clone(key), x, 0.3))


def test_dtype_is_kept(key):
    x = jnp.ones((5, 2), jnp.bfloat16)
    first, second = jax.random.split(key)
    assert dropout(first, x, 0.1).dtype == drop_path(second, x, 0.1).dtype == jnp.bfloat16


def test_rates_are_linear_shifted_by_one():
    np.testing.assert_allclose(drop_path_rates(24, 0.1)[[0, 1, 2, 23]], [0, 0, 0.1 / 23, 0.1 * 22 / 23], rtol=1e-6)
    assert drop_path_rates(1, 0.1).tolist() == [0.0]


@pytest.mark.parametrize("shape", [(40, 50), (40, 3, 50), (40, 3, 2, 50)])
def test_shared_dropout_drops_a_feature_for_all_tokens(key, shape):
    dropped = shared_dropout(key, jnp.ones(shape), 0.3).reshape(40, -1, 50)
    assert (dropped == dropped[:, :1]).all()
    assert set(np.unique(dropped.round(4)).tolist()) == {0.0, np.float32(1 / 0.7).round(4)}
    assert float((dropped[:, 0] == 0).mean()) == pytest.approx(0.3, abs=0.05)


def test_shared_dropout_without_a_key_or_a_rate_does_nothing(key):
    x = jnp.ones((2, 3))
    assert shared_dropout(None, x, 0.5) is x and shared_dropout(key, x, 0.0) is x
