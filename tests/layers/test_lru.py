"""The LRU: its initial values and its stability."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax.layers import LRU
from tests.layers import quick


def test_initial_values():
    layer = LRU(64, d_state=400, r_min=0.9, r_max=0.99, max_phase=0.1, bidirectional="inclusive", rngs=nnx.Rngs(0))
    decay, gain = layer._discretize(1.0, None)
    radius, phase = np.abs(decay), np.angle(decay)
    assert 0.9 < radius.min() < 0.91 and 0.98 < radius.max() < 0.99
    assert 0 < phase.min() and 0.09 < phase.max() < 0.1
    np.testing.assert_allclose(gain, np.sqrt(1 - radius**2), rtol=1e-4)
    for names, deviation in ((("B_re", "B_im"), 128**-0.5), (("C_re", "C_im", "C2_re", "C2_im"), 400**-0.5)):
        for name in names:
            assert float(getattr(layer, name)[...].std()) == pytest.approx(deviation, rel=0.02)


def test_the_state_keeps_the_size_of_white_noise():
    """What gamma is for (section 3.4 of the paper)."""
    layer = LRU(16, d_state=64, r_min=0.5, r_max=0.95, rngs=nnx.Rngs(0))
    u = np.random.default_rng(0).standard_normal((64, 200, 16)).astype(np.float32)
    state = quick.run(lambda layer, u: layer(u, return_state=True)[1], layer, u)
    assert float((np.abs(state) ** 2).mean()) == pytest.approx(1, rel=0.1)


def test_a_rate_of_two_is_two_steps_without_input():
    layer = LRU(3, d_state=4, rngs=nnx.Rngs(0))
    state = jnp.full((1, 4), 1 - 2j, jnp.complex64)
    nothing = jnp.zeros((1, 3))

    def once_and_twice(layer, state):
        return layer.step(nothing, state, rate=2.0)[1], layer.step(nothing, layer.step(nothing, state)[1])[1]

    np.testing.assert_allclose(*quick.run(once_and_twice, layer, state), rtol=1e-5)


def test_half_the_samples_at_a_rate_of_two_are_all_samples_of_a_held_input():
    layer = LRU(3, d_state=16, rngs=nnx.Rngs(0))
    half = jnp.asarray(np.random.default_rng(0).standard_normal((2, 20, 3)), jnp.float32)
    whole = quick.apply(layer, jnp.repeat(half, 2, axis=1))
    for options in ({"rate": 2.0}, {"dts": jnp.full((2, 20), 2.0)}):
        np.testing.assert_allclose(quick.apply(layer, half, **options), whole[:, 1::2], rtol=1e-4, atol=2e-5)


def test_stays_stable_whatever_an_update_does():
    layer = LRU(3, d_state=64, rngs=nnx.Rngs(0))
    for seed in range(4):
        draw = np.random.default_rng(seed).standard_normal
        layer.nu_log[...] = jnp.asarray(30 * draw(64), jnp.float32)
        layer.theta_log[...] = jnp.asarray(30 * draw(64), jnp.float32)
        assert np.abs(layer._discretize(1.0, None)[0]).max() < 1
    assert jnp.isfinite(layer(jnp.ones((1, 500, 3)))).all()
