"""Merging visual tokens: identity, mass, limits, gradients, and the rules of each method on small sets."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.layers import quick
from vlmjax import ops
from vlmjax.ops.token_merge.select import unit

N, D = 12, 6


def tokens(n=N, b=2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((b, n, D)), jnp.float32)


def scores(n=N, b=2, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((b, n)), jnp.float32)


METHODS = {
    "slice": lambda x, m: ops.select_tokens(x, jnp.arange(m) * x.shape[1] // m),
    "bipartite": ops.bipartite_merge,
    "bipartite, protected": functools.partial(ops.bipartite_merge, protect_first=True),
    "attention": lambda x, m: ops.attention_anchors(x, x, scores(x.shape[1]), m),
    "density": ops.density_anchors,
    "anchored": lambda x, m: ops.anchored_merge(x, unit(x), scores(x.shape[1]), m),
}
MERGING = [name for name in METHODS if name != "slice"]


def merge(name, x, m):
    """One program, which compiles in less time than its operations one by one."""
    return quick.jit(lambda x: METHODS[name](x, m))(x)


@pytest.mark.parametrize("name", METHODS)
def test_shapes_and_order(name):
    x = tokens()
    for m in (2, 5):
        state = merge(name, x, m)
        chex.assert_shape(state.tokens, (2, m, D))
        chex.assert_shape(state.assign, (2, m, N))
        assert (np.diff(state.position, axis=1) > 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_of_all_is_the_identity(name):
    x = tokens()
    state = merge(name, x, N)
    np.testing.assert_array_equal(state.tokens, x)
    np.testing.assert_array_equal(state.size, np.ones((2, N)))


@pytest.mark.parametrize("name", MERGING)
def test_mass_is_conserved(name):
    x = tokens()
    state = merge(name, x, 5)
    np.testing.assert_allclose(state.size.sum(1), N, atol=1e-6)
    np.testing.assert_allclose(state.assign.sum(1), np.ones((2, N)), atol=1e-6)
    together = (state.size[..., None] * state.tokens).sum(1)
    np.testing.assert_allclose(together, x.sum(1), atol=1e-5)
    np.testing.assert_allclose(state.assign[0, np.arange(5), state.position[0]], 1.0)  # an anchor is its own


def test_average_pool():
    x = tokens()
    state = ops.average_pool(x, (3, 4), (1, 2))
    cells = x.reshape(2, 3, 2, 2, D).mean((1, 3))
    np.testing.assert_allclose(state.tokens, cells, atol=1e-6)
    assert state.position.tolist() == [[5, 7]] * 2


def test_the_hard_merge_is_the_limit_of_the_soft_one():
    x, u = tokens(), scores()

    @quick.jit
    def run(x, u):
        soft = ops.soft_anchored_merge(x, unit(x), u, 5, temperature=1e-5, sharpness=1e3)
        return ops.anchored_merge(x, unit(x), u, 5), soft

    hard, soft = jax.tree.map(np.asarray, run(x, u))
    kept = np.take_along_axis(soft.tokens, hard.position[..., None], axis=1)
    np.testing.assert_allclose(kept, hard.tokens, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(soft.size, hard.position, axis=1), hard.size, atol=1e-4)
    np.testing.assert_allclose(soft.size.sum(1), N, rtol=1e-5)


def test_soft_top_k_sums_to_the_budget_and_has_the_implicit_gradient():
    u, g = scores(b=1), scores(b=1, seed=3)
    budgets = (1, 4.5, N - 1)
    for m, alpha in zip(budgets, quick.jit(lambda u: [ops.soft_top_k(u, k, 0.3) for k in budgets])(u), strict=True):
        np.testing.assert_allclose(alpha.sum(), m, rtol=1e-5)

    value_and_grad = quick.jit(jax.value_and_grad(lambda u: (g * ops.soft_top_k(u, 4, 0.5)).sum()))
    grad = value_and_grad(u)[1]
    steps = 1e-2 * np.eye(N, dtype=np.float32)
    finite = [float(value_and_grad(u + s)[0] - value_and_grad(u - s)[0]) / 2e-2 for s in steps[:, None]]
    np.testing.assert_allclose(grad[0], finite, atol=2e-3)
    np.testing.assert_allclose(grad.sum(), 0.0, atol=1e-6)  # a shift of all scores changes nothing


def test_gradients_of_the_soft_merge_against_finite_differences():
    x, direction = tokens(b=1), tokens(b=1, seed=9)

    def loss(x):
        state = ops.soft_anchored_merge(x, unit(x), scores(b=1), 4, temperature=0.5, sharpness=5.0)
        return jnp.sin(state.tokens).sum() + (jnp.log(state.size) ** 2).sum()

    value_and_grad = quick.jit(jax.value_and_grad(loss))
    slope = (value_and_grad(x)[1] * direction).sum()
    step = 1e-2 * direction
    finite = (value_and_grad(x + step)[0] - value_and_grad(x - step)[0]) / 2e-2
    np.testing.assert_allclose(slope, finite, rtol=5e-3)


def test_one_compiled_step_serves_all_budgets():
    x = tokens()

    @jax.jit
    @chex.assert_max_traces(1)
    def size(m):
        return ops.soft_anchored_merge(x, unit(x), scores(), m, temperature=0.2, sharpness=9.0).size.sum()

    for m in (2, 5, 11):
        np.testing.assert_allclose(size(m), 2 * N, rtol=1e-5)


def test_sizes_and_weights_enter():
    x = jnp.array([[[0.0], [4.0], [8.0]]])
    e = jnp.ones((1, 3, 1))
    state = ops.anchored_merge(x, e, jnp.array([[1.0, 0.0, 0.0]]), 1, size=jnp.array([[1.0, 1.0, 2.0]]))
    assert state.tokens.ravel().tolist() == [5.0]
    assert state.size.tolist() == [[4.0]]
    weighted = ops.anchored_merge(x, e, jnp.array([[1.0, 0.0, 0.0]]), 1, weight=jnp.array([[1.0, 1.0, 0.0]]))
    assert weighted.tokens.ravel().tolist() == [2.0]
    assert weighted.size.tolist() == [[3.0]]


def test_equal_tokens_have_one_anchor():
    x = jnp.asarray(np.repeat(np.eye(3, 6, dtype=np.float32), 4, axis=0))[None]
    state = merge("density", x, 3)
    assert state.size.tolist() == [[4.0, 4.0, 4.0]]
    np.testing.assert_allclose(ops.unmerge(state.tokens, state.assign), x)


def test_two_equal_tokens_merged_attend_as_two():
    q, k, v = (jnp.asarray(np.random.default_rng(i).standard_normal((1, 5, 2, 4)), jnp.float32) for i in range(3))
    k, v = (x.at[:, 3].set(x[:, 1]) for x in (k, v))
    whole = ops.attention(q, k, v)
    kept = np.array([0, 1, 2, 4])
    merged = ops.attention(q, k[:, kept], v[:, kept], bias=jnp.log(jnp.array([[1.0, 2.0, 1.0, 1.0]])))
    np.testing.assert_allclose(merged, whole, atol=5e-7)


def test_low_precision_merges_in_float32():
    x = tokens().astype(jnp.bfloat16)
    state = merge("density", x, 4)
    assert state.tokens.dtype == jnp.bfloat16
    assert state.size.dtype == jnp.float32
    np.testing.assert_allclose(state.size.sum(1), N)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("m", [0, -1, N + 1, 2.5])
def test_budgets_that_are_none(m):
    for name in ("bipartite", "density", "anchored", "attention"):
        with pytest.raises(ValueError, match="m must be a budget from 1 to the 12 tokens, got"):
            METHODS[name](tokens(), m)
