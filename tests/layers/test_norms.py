"""Norms against float64, and the residual stream."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax.layers import LayerNorm, RMSNorm, add_norm, make_norm


def expected(kind, x, eps=1e-5):
    x = np.asarray(x, np.float64)
    x = x - x.mean(-1, keepdims=True) if kind == "layer" else x
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 3, 7), (2, 1, 3, 7)])
def test_values(key, kind, shape):
    norm, x = make_norm(kind, 7), 3 + jax.random.normal(key, shape)
    norm.scale[...] = jnp.arange(7.0)
    chex.assert_trees_all_close(norm(x), (expected(kind, x) * np.arange(7)).astype(np.float32), rtol=1e-5, atol=1e-5)


def test_the_bias_is_added(key):
    norm = LayerNorm(7)
    norm.bias[...] = jnp.arange(7.0)
    chex.assert_trees_all_close(norm(jnp.zeros((2, 7))), jnp.broadcast_to(jnp.arange(7.0)[None], (2, 7)))


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_low_precision_input_is_normalized_in_float32(key, kind):
    x = (100 + jax.random.normal(key, (4, 512))).astype(jnp.bfloat16)
    norm = make_norm(kind, 512, dtype=jnp.bfloat16)
    ours, exact = np.asarray(norm(x), np.float64), expected(kind, x)
    assert abs(ours - exact).max() <= 2 * abs(np.asarray(exact.astype(jnp.bfloat16), np.float64) - exact).max()


def test_the_residual_keeps_what_the_compute_dtype_would_lose():
    norm = RMSNorm(2, dtype=jnp.bfloat16)
    hidden, residual = jnp.full((1, 1, 2), 1e-3, jnp.bfloat16), jnp.ones((1, 1, 2))
    for _ in range(10):
        x, residual = add_norm(norm, hidden, residual)
    assert (x.dtype, residual.dtype) == (jnp.bfloat16, jnp.float32)
    chex.assert_trees_all_close(residual, jnp.full((1, 1, 2), 1.01), rtol=1e-4)


def test_gradient_at_zero_is_finite():
    for norm in (RMSNorm(4), LayerNorm(4)):
        definition, state = nnx.split(norm)
        chex.assert_tree_all_finite(
            jax.grad(lambda x, d=definition, s=state: nnx.merge(d, s)(x).sum())(jnp.zeros((2, 4)))
        )
