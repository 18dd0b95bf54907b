"""Metrics of what a merge loses, against plain formulas."""

import jax.numpy as jnp
import numpy as np

from vlmjax import metrics


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_divergence_counts_masked_positions_only():
    p, q = draw(3, 5), draw(3, 5, seed=1)
    mask = jnp.array([True, False, True])
    a, b = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (np.asarray(p), np.asarray(q)))
    wanted = (a * np.log(a / b)).sum(-1)
    np.testing.assert_allclose(metrics.answer_divergence(p, q), wanted.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics.answer_divergence(p, q, mask), wanted[[0, 2]].mean(), rtol=1e-5)


def test_debiased_cka_is_zero_for_independent_features_and_one_for_rotated_ones():
    x = draw(60, 20)
    rotation = np.linalg.qr(np.asarray(draw(20, 20, seed=2)))[0]
    np.testing.assert_allclose(metrics.linear_cka(x, 3 * x @ rotation), 1.0, atol=1e-3)
    independent = [float(metrics.linear_cka(draw(60, 20, seed=s), draw(60, 20, seed=s + 100))) for s in range(8)]
    assert abs(np.mean(independent)) < 0.03  # the plain estimate is 0.25 here


def test_effective_rank_and_entropy():
    x = draw(1, 50, 1) * draw(1, 1, 8, seed=3)
    np.testing.assert_allclose(metrics.effective_rank(x), 1.0, atol=1e-2)
    np.testing.assert_allclose(metrics.group_entropy(jnp.array([[4.0, 0.0]])), 0.0, atol=1e-6)


def test_infonce_is_bounded():
    assert float(metrics.infonce_bound(1e3 * jnp.eye(8))) <= np.log(8) + 1e-6
    np.testing.assert_allclose(metrics.infonce_bound(jnp.zeros((8, 8))), 0.0, atol=1e-6)
