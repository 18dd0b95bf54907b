"""Norms against float64, and the residual stream."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax.layers import BatchNorm, LayerNorm, RMSNorm, add_norm, make_norm


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


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("shape", [(9, 5), (3, 4, 5), (2, 3, 4, 5)])
def test_batch_norm_in_training(key, shape, unbiased):
    norm, x = BatchNorm(5, momentum=0.8, unbiased=unbiased), 3 + 2 * jax.random.normal(key, shape)
    norm.scale[...], norm.bias[...] = jnp.arange(5.0), jnp.ones(5)
    flat = np.asarray(x, np.float64).reshape(-1, 5)
    mean, var = flat.mean(0), flat.var(0)
    expected = (np.asarray(x, np.float64) - mean) / np.sqrt(var + 1e-5) * np.arange(5) + 1
    np.testing.assert_allclose(norm(x, train=True), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.2 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.8 + 0.2 * flat.var(0, ddof=int(unbiased)), rtol=1e-5)


def test_batch_norm_in_evaluation_uses_the_running_statistics(key):
    norm, x = BatchNorm(5), jax.random.normal(key, (4, 5))
    norm.mean[...], norm.var[...] = jnp.arange(5.0), jnp.full(5, 4.0)
    np.testing.assert_allclose(norm(x), (np.asarray(x) - np.arange(5)) / np.sqrt(4 + 1e-5), rtol=1e-6)
    np.testing.assert_array_equal(norm.mean[...], np.arange(5))


def test_batch_norm_reads_no_padding(key):
    x, mask = jax.random.normal(key, (2, 6, 5)), jnp.arange(6)[None] < jnp.array([6, 2])[:, None]
    real, padded = BatchNorm(5, unbiased=True), BatchNorm(5, unbiased=True)
    expected = real(x.reshape(-1, 5)[mask.ravel()], train=True)
    with_rubbish = jnp.where(mask[..., None], x, 1e6)
    np.testing.assert_allclose(padded(with_rubbish, mask=mask, train=True)[mask], expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(nnx.state(padded), nnx.state(real), rtol=1e-5)


@pytest.mark.parametrize("unbiased", [False, True])
def test_batch_norm_counts_real_tokens_alone(key, unbiased):
    x, mask = jax.random.normal(key, (2, 6, 5)), jnp.arange(6)[None] < jnp.array([3, 1])[:, None]
    norm = BatchNorm(5, momentum=0.5, unbiased=unbiased)
    norm(x, mask=mask, train=True)
    seen = np.asarray(x, np.float64)[np.asarray(mask)]
    assert len(seen) == 4  # few, so that one more or less in the divisor shows
    np.testing.assert_allclose(norm.var[...], 0.5 + 0.5 * seen.var(0, ddof=int(unbiased)), rtol=1e-5)
    single = BatchNorm(5, momentum=0.5, unbiased=unbiased)
    single(x, mask=mask & (jnp.arange(2) == 1)[:, None], train=True)  # one token has no variance
    np.testing.assert_allclose(single.var[...], 0.5, rtol=1e-6)


def test_batch_norm_passes_gradients_through_the_statistics(key):
    """The output does not change when the input is shifted or scaled, so the gradient is orthogonal to both."""
    x, weight = jax.random.normal(key, (8, 5)), jax.random.normal(jax.random.key(1), (8, 5))
    gradient = jax.grad(lambda x: (BatchNorm(5, eps=1e-12)(x, train=True) * weight).sum())(x)
    np.testing.assert_allclose(gradient.sum(0), 0, atol=1e-5)
    np.testing.assert_allclose((gradient * x).sum(0), 0, atol=1e-5)
    assert np.isfinite(jax.grad(lambda x: BatchNorm(5)(x, train=True).sum())(jnp.zeros((4, 5)))).all()


def test_an_unknown_norm_is_named():
    with pytest.raises(ValueError, match="Unknown norm 'bach'. Did you mean 'batch'"):
        make_norm("bach", 8)
