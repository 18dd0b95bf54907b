"""Initial values against their definitions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import init


@pytest.mark.parametrize("dt", [1e-4, 1e-3, 0.1, 1.0, 30.0])
def test_inverse_softplus_inverts(dt):
    chex.assert_trees_all_close(jax.nn.softplus(init.inverse_softplus(dt)), np.float32(dt), rtol=2e-6)


def test_inverse_softplus_keeps_the_digits_of_a_small_step(key):
    dt = np.exp(np.random.default_rng(0).uniform(np.log(1e-4), np.log(0.1), 1000))
    chex.assert_trees_all_close(init.inverse_softplus(np.float32(dt)), np.float32(np.log(np.expm1(dt))), rtol=1e-5)


def test_step_sizes_are_log_uniform(key):
    log_dt = np.log(jax.nn.softplus(init.step_size_bias(1e-3, 0.1)(key, (20_000,))))
    edges = np.linspace(np.log(1e-3), np.log(0.1), 11)
    counts, _ = np.histogram(log_dt, np.r_[edges[0] - 1e-4, edges[1:-1], edges[-1] + 1e-4])
    assert counts.sum() == 20_000
    assert abs(counts - 2000).max() < 5 * np.sqrt(2000)


def test_step_sizes_have_a_floor(key):
    dt = jax.nn.softplus(init.step_size_bias(1e-6, 1e-3, floor=1e-4)(key, (1000,)))
    chex.assert_trees_all_close(dt.min(), np.float32(1e-4), rtol=1e-4)
    assert float((dt < 1.001e-4).mean()) > 0.5


def test_s4d_real_log():
    np.testing.assert_array_equal(np.exp(init.s4d_real_log(16)).round(12), np.arange(1, 17))


@pytest.mark.parametrize(
    ("draw", "bound"), [(init.uniform(0.3), 0.3), (init.fan_in_uniform(), 0.1), (init.fan_in_uniform(0.5), 0.05)]
)
def test_uniform_bounds_and_spread(key, draw, bound):
    x = draw(key, (100, 200), jnp.float32)
    assert float(abs(x).max()) <= bound
    chex.assert_trees_all_close(x.std(), np.float32(bound / np.sqrt(3)), rtol=0.02)
    chex.assert_trees_all_close(x.mean(), np.float32(0), atol=bound / 50)


def test_draws_under_vmap_differ_by_key(key):
    rows = jax.vmap(lambda k: init.step_size_bias()(k, (4,)))(jax.random.split(key, 3))
    assert len({tuple(row) for row in np.asarray(rows)}) == 3
