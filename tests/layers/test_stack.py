"""Stacks: scanned == unrolled == rematerialized == a loop over separately built blocks."""

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ssmjax.layers import BatchNorm
from ssmjax.layers.common.stack import apply_stack, make_stack

DEPTH = 4


def make():
    return make_stack(lambda rngs: nnx.Linear(3, 3, rngs=rngs), DEPTH, nnx.Rngs(0))


def blocks(stack):
    definition, state = nnx.split(stack)
    return [nnx.merge(definition, jax.tree.map(lambda x, i=i: x[i], state)) for i in range(DEPTH)]


def test_blocks_start_differently():
    kernels = make().kernel[...]
    assert len({float(k.sum()) for k in kernels}) == DEPTH


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("remat", [False, True])
def test_equals_a_loop(unroll, remat):
    stack, x = make(), jnp.ones((2, 3))
    shifts = jnp.arange(float(DEPTH))
    expected = x
    for block, shift in zip(blocks(stack), shifts, strict=True):
        expected = jnp.tanh(block(expected) + shift)
    definition, state = nnx.split(stack)

    def run(state, x):
        def step(x, block, shift):
            return jnp.tanh(block(x) + shift)

        return apply_stack(nnx.merge(definition, state), step, x, shifts, unroll=unroll, remat=remat)

    chex.assert_trees_all_close(run(state, x), expected, atol=1e-6)
    gradient = jax.grad(lambda state: run(state, x).sum())(state)
    chex.assert_trees_all_equal_shapes(gradient, state)
    chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize("unroll", [False, True])
def test_groups(unroll):
    stack, x = make(), jnp.ones((2, 3))

    def step(x, pair, values):
        assert values == [None, None]
        return pair[0](x) * pair[1](x)

    first, second, third, fourth = blocks(stack)
    expected = first(x) * second(x)
    expected = third(expected) * fourth(expected)
    chex.assert_trees_all_close(apply_stack(stack, step, x, group=2, unroll=unroll), expected, atol=1e-6)


def make_with_statistics():
    return make_stack(lambda rngs: BatchNorm(3, momentum=0.5, rngs=rngs), DEPTH, nnx.Rngs(0))


@pytest.mark.parametrize("options", [{}, {"unroll": True}, {"remat": True}, {"group": 2}, {"group": 2, "unroll": True}])
def test_statistics_are_written_back(key, options):
    x, stack = 1 + jax.random.normal(key, (5, 3)), make_with_statistics()
    expected, means = x, []
    for block in blocks(stack):
        expected = jnp.tanh(block(expected, train=True))
        means.append(block.mean[...])

    def step(x, block, _):
        for each in block if isinstance(block, list) else [block]:
            x = jnp.tanh(each(x, train=True))
        return x

    chex.assert_trees_all_close(apply_stack(stack, step, x, **options), expected, atol=1e-6)
    chex.assert_trees_all_close(stack.mean[...], jnp.stack(means), atol=1e-6)


@pytest.mark.parametrize("unroll", [False, True])
def test_what_is_only_read_is_not_written(unroll):
    """So a function that jits a model in its closure works in evaluation."""
    stack = make_with_statistics()
    before = stack.mean[...]
    run = jax.jit(lambda x: apply_stack(stack, lambda x, block, _: block(x), x, unroll=unroll))
    assert run(jnp.ones((5, 3))).shape == (5, 3)
    assert stack.mean[...] is before
