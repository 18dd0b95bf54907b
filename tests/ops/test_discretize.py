"""The discretizations by name, against their formulas in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops


def wide(x):
    """The same numbers with twice the bits."""
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


@pytest.mark.parametrize("rule", ["zoh", "bilinear", "euler", "impulse", "dirac", "async"])
def test_discretize(rule):
    """From steps at which exp(x) - 1 is all rounding in float32, to angles of thousands of turns."""
    rng = np.random.default_rng(0)
    A = (-rng.uniform(1e-4, 2, 500) + 1j * rng.normal(size=500) * 10.0 ** rng.uniform(-4, 4, 500)).astype(np.complex64)
    dt = (10.0 ** rng.uniform(-7, 1, 500)).astype(np.float32)
    dt_input = (10.0 ** rng.uniform(-7, 1, 500)).astype(np.float32) if rule == "async" else None
    got = jax.jit(functools.partial(ops.discretize, rule=rule))(A, dt, dt_input=dt_input)
    x = wide(dt) * wide(A)
    held = np.expm1((wide(dt) if dt_input is None else wide(dt_input)) * wide(A)) / wide(A)
    transition = {"bilinear": (1 + x / 2) / (1 - x / 2), "euler": 1 + x}.get(rule, np.exp(x))
    gain = {"bilinear": dt / (1 - x / 2), "euler": dt, "impulse": dt, "dirac": np.ones(500)}.get(rule, held)
    chex.assert_trees_all_close(got[0], transition.astype(np.complex64), rtol=5e-7, atol=1e-6)
    assert np.max(abs(got[1] - gain) / abs(gain)) < 1e-6


def test_discretize_near_zero():
    """The derivatives of the gain, dt^2 / 2 by A and 1 by dt, where the closed form is 0 / 0."""
    gain = lambda a, dt: ops.discretize(a, dt, "zoh")[1]  # noqa: E731
    for a in (0.0, 1e-20, -1e-6):
        value, slopes = jax.value_and_grad(gain, (0, 1))(jnp.float32(a), jnp.float32(0.1))
        chex.assert_trees_all_close((value, slopes), (0.1, (0.005, 1.0)), rtol=1e-5)


def test_discretize_shapes_and_stability(key):
    A = -jax.random.uniform(key, (4,), minval=1e-3) + 1j * jnp.arange(4) * 100
    steps = jnp.logspace(-3, 1, 10).reshape(2, 5, 1)
    for rule in ("zoh", "bilinear", "impulse"):
        A_bar, gain = ops.discretize(A, steps, rule)
        chex.assert_shape([A_bar, gain], (2, 5, 4))
        assert bool((abs(A_bar) < 1).all())
    assert bool((abs(ops.discretize(A, steps, "euler")[0]) > 1).any())
    chex.assert_type(ops.discretize(A.real, steps, "zoh"), jnp.float32)
