"""Metrics of what a merge loses, against plain formulas."""

import itertools

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


def test_debiased_cka_is_a_sum_over_four_different_rows():
    """The estimate by its definition: the mean over all ordered fours (Song et al. 2012, equation 4)."""
    x, y = draw(6, 2), draw(6, 3, seed=1)

    def hsic(k, l):
        fours = list(itertools.permutations(range(6), 4))
        terms = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in fours]
        return np.sum(terms) / len(fours)

    k, l = (np.asarray(v @ v.T, np.float64) for v in (x, y))
    wanted = hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))
    np.testing.assert_allclose(metrics.linear_cka(x, y), wanted, rtol=1e-3)


def test_retention_and_reconstruction():
    whole, merged = jnp.eye(4)[jnp.array([0, 1, 2, 3])], jnp.eye(4)[jnp.array([0, 2, 2, 1])]
    np.testing.assert_allclose(metrics.accuracy_retention(whole, merged, jnp.array([0, 1, 2, 0])), 2 / 3, rtol=1e-6)
    x, back = jnp.array([[[3.0, 4.0], [1.0, 0.0]]]), jnp.array([[[1.0, 0.0], [0.0, 2.0]]])
    np.testing.assert_allclose(metrics.cosine_reconstruction(x, back), 0.3, rtol=1e-5)
    shifted = jnp.array([[[101.0, 0.0], [99.0, 0.0], [100.0, 1.0], [100.0, -1.0]]])
    np.testing.assert_allclose(metrics.effective_rank(shifted), 2.0, rtol=1e-3)
