"""Stacks: scanned == unrolled == rematerialized == a loop over separately built blocks."""

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ssmjax.layers import BatchNorm
from ssmjax.layers.common.stack import apply_stack, in_pattern_order, make_stack, unstack

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


# -------------------------------------------------------------------------------------- slices, outputs and patterns


def residual(x, block, values):
    x = jnp.tanh(block(x if values is None else x + values))
    return x, x


@pytest.mark.parametrize("options", [{}, {"unroll": True}, {"remat": True}])
def test_outputs_of_a_slice_reach_later_blocks(options):
    """Long skips: the hidden states of the first half, in reverse, are added in the second."""
    stack, x = make(), jnp.ones((2, 3))
    first, second, third, fourth = (lambda x, b=block: jnp.tanh(b(x)) for block in blocks(stack))
    a = first(x)
    b = second(a)
    c = third(b + b)
    d = fourth(c + a)

    def run(stack, x):
        middle, hidden = apply_stack(stack, residual, x, stop=2, outputs=True, **options)
        return apply_stack(stack, residual, middle, hidden[::-1], start=2, outputs=True, **options)

    chex.assert_trees_all_close(run(stack, x), (d, jnp.stack([c, d])), atol=1e-6)
    definition, state = nnx.split(stack)
    gradient = jax.grad(lambda state: run(nnx.merge(definition, state), x)[0].sum())(state)
    chex.assert_tree_all_finite(gradient)
    assert all(float(jnp.abs(row).sum()) > 0 for row in jax.tree.leaves(gradient)[0])


@pytest.mark.parametrize("unroll", [False, True])
def test_an_empty_slice_returns_its_input(unroll):
    x, outputs = apply_stack(make(), residual, jnp.ones((2, 3)), start=4, outputs=True, unroll=unroll)
    assert (x == 1).all() and outputs.shape == (0, 2, 3)


def test_outputs_of_groups():
    def step(x, pair, values):
        x = pair[1](pair[0](x))
        return x, x.sum()

    _, sums = apply_stack(make(), step, jnp.ones((2, 3)), group=2, outputs=True)
    assert sums.shape == (2,)


class Scale(nnx.Module):
    """A second kind of block."""

    def __init__(self, rngs):
        self.scale = nnx.Param(jax.random.normal(rngs.params(), (3,)))

    def __call__(self, x):
        return x * self.scale[...][None]


def make_kinds(pattern):
    builders = {"w": lambda rngs: nnx.Linear(3, 3, rngs=rngs), "s": Scale}
    return {kind: make_stack(builders[kind], pattern.count(kind), nnx.Rngs(1)) for kind in dict.fromkeys(pattern)}


def each_block(stacks, pattern):
    """The blocks of a pattern, one by one."""
    seen = dict.fromkeys(stacks, 0)
    for kind in pattern:
        definition, state = nnx.split(stacks[kind])
        yield kind, nnx.merge(definition, jax.tree.map(lambda x, i=seen[kind]: x[i], state))
        seen[kind] += 1


@pytest.mark.parametrize("options", [{}, {"unroll": True}, {"start": 1, "stop": -1}])
@pytest.mark.parametrize("pattern", ["wswswsw", "wwwssss", "wwsws", "wwww", "s"])
def test_a_pattern_equals_a_loop(pattern, options):
    stacks, x = make_kinds(pattern), jnp.ones((2, 3))
    chosen = pattern[slice(options.get("start"), options.get("stop"))]
    shifts = {kind: jnp.arange(1.0, 1 + chosen.count(kind)) for kind in stacks if kind == "w"}
    expected, hidden, seen = x, [], 0
    for kind, block in list(each_block(stacks, pattern))[slice(options.get("start"), options.get("stop"))]:
        seen += kind == "w"
        expected = jnp.tanh(block(expected + (seen if kind == "w" else 0)))
        hidden.append(expected)
    got, outputs = apply_stack(stacks, residual, x, shifts, pattern=pattern, outputs=True, **options)
    chex.assert_trees_all_close(got, expected, atol=1e-6)
    assert {kind: len(out) for kind, out in outputs.items()} == {k: chosen.count(k) for k in dict.fromkeys(chosen)}
    if hidden:
        chex.assert_trees_all_close(in_pattern_order(outputs, chosen), jnp.stack(hidden), atol=1e-6)


def test_a_pattern_is_one_scan_over_its_repetitions():
    stacks = make_kinds("wws" * 5)
    jaxpr = jax.make_jaxpr(lambda x: apply_stack(stacks, lambda x, b, _: b(x), x, pattern="wws" * 5))(jnp.ones((2, 3)))
    (scan,) = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    assert scan.params["length"] == 5


def test_statistics_of_a_slice_are_written_back(key):
    x, stack = 1 + jax.random.normal(key, (5, 3)), make_with_statistics()
    before = stack.mean[...]
    apply_stack(stack, lambda x, block, _: block(x, train=True), x, start=1, stop=3)
    changed = (stack.mean[...] != before).any(axis=1)
    assert changed.tolist() == [False, True, False, False] or changed.tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": 3}, "group must be a divisor of the 4 blocks"),
        ({"per_block": jnp.zeros(3)}, "per_block must be arrays with a leading axis of 4"),
        ({"per_block": jnp.zeros(4), "stop": 2}, "leading axis of 2"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        apply_stack(make(), residual, jnp.ones((2, 3)), outputs=True, **options)


def test_a_pattern_must_fit_its_stacks():
    stacks = make_kinds("wws")
    with pytest.raises(ValueError, match="pattern must be as many blocks as the stacks have"):
        apply_stack(stacks, residual, jnp.ones((2, 3)), pattern="wss")
    with pytest.raises(ValueError, match="group must be 1 with a pattern"):
        apply_stack(stacks, residual, jnp.ones((2, 3)), pattern="wws", group=3)


@pytest.mark.parametrize("remat", [False, True])
def test_blocks_of_their_own_are_the_stack(remat):
    stack, x = make(), jnp.ones((2, 3))
    shifts = jnp.arange(float(DEPTH))

    def step(x, block, shift):
        x = jnp.tanh(block(x) + shift)
        return x, x

    expected = apply_stack(stack, step, x, shifts, outputs=True)
    found = apply_stack(unstack(stack), step, x, shifts, outputs=True, remat=remat)
    chex.assert_trees_all_close(found, expected, atol=1e-6)
    x, own = apply_stack(unstack(stack), step, x, list(shifts[1:3]), outputs=True, start=1, stop=3)
    wanted = apply_stack(stack, step, jnp.ones((2, 3)), shifts[1:3], outputs=True, start=1, stop=3)
    assert isinstance(own, list)
    chex.assert_trees_all_close((x, jnp.stack(own)), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="leading axis of 4"):
        apply_stack(unstack(stack), step, x, shifts[:2], outputs=True)


def test_a_scan_copies_no_stack():
    """The compiled program reads parameters where they lie; a copy of all of them took longer than a short prompt."""
    definition, state = nnx.split(make())
    whole = "f32[" + ",".join(map(str, (DEPTH, *state["kernel"][...].shape[1:]))) + "]"

    @jax.jit
    def run(state, x):
        return apply_stack(nnx.merge(definition, state), lambda x, block, _: jnp.tanh(block(x)), x)

    program = run.lower(state, jnp.ones((2, 3))).compile().as_text()
    assert not [line for line in program.splitlines() if f"= {whole}" in line and "copy" in line.split("=")[0]]
