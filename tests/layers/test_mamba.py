"""Mamba: against a loop in numpy, and whole == chunked == stepped == padded == packed."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax.layers import Mamba
from tests.layers import oracle, quick

D = 6


def make(**options):
    return quick.lively(lambda: Mamba(D, d_state=4, **options, rngs=nnx.Rngs(0)))


def sequence(length, batch=2, seed=2):
    return jax.random.normal(jax.random.key(seed), (batch, length, D))


@pytest.mark.parametrize("options", [{}, {"use_bias": True, "d_conv": 1}, {"expand": 1, "dt_rank": 3, "d_conv": 2}])
@pytest.mark.parametrize("length", [1, 9])
def test_equals_a_loop(options, length):
    layer, u = make(**options), sequence(length)
    expected = oracle.mixer(layer, u).astype(np.float32)
    chex.assert_trees_all_close(quick.apply(layer, u), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("d_conv", [1, 4])
def test_whole_equals_chunks_and_steps(d_conv):
    layer, u = make(d_conv=d_conv), sequence(9)
    definition, parameters = nnx.split(layer)

    @quick.jit
    def run(parameters, u):
        layer = nnx.merge(definition, parameters)
        whole = layer(u, return_state=True)
        state, chunks = None, []
        for chunk in jnp.split(u, [0, 1, 4, 4], axis=1):  # of 0, 1, 3, 0 and 5 tokens
            y, state = layer(chunk, state=state, return_state=True)
            chunks.append(y)
        chunked = jnp.concatenate(chunks, axis=1), state

        def step(state, u):
            y, state = layer.step(u, state)
            return state, y

        state, y = jax.lax.scan(step, layer.init_state(2), u.swapaxes(0, 1))
        return whole, chunked, (y.swapaxes(0, 1), state)

    whole, chunked, stepped = run(parameters, u)
    chex.assert_trees_all_close(chunked, whole, atol=1e-5)
    chex.assert_trees_all_close(stepped, whole, atol=1e-5)


MASKS = {
    "left": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9],
    "right": [[1, 1, 1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0]],
    "holes": [[1, 0, 1, 1, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1, 0, 1, 1]],
    "nothing": [[0] * 9, [1] * 9],
}


@pytest.mark.parametrize("continued", [False, True])
def test_padding_holds_the_state(continued):
    """The outputs and states wanted come from the same tokens without padding, in numpy."""
    layer, mask = make(use_bias=True), np.concatenate(list(MASKS.values())).astype(bool)
    before = sequence(5, batch=len(mask), seed=3) if continued else jnp.zeros((len(mask), 0, D))
    u = jnp.where(mask[..., None], sequence(9, batch=len(mask)), 1e3)  # what stands in the padding must not matter
    definition, parameters = nnx.split(layer)

    @quick.jit
    def run(parameters, before, u, mask):
        layer = nnx.merge(definition, parameters)
        state = layer(before, return_state=True)[1] if continued else None
        y, state = layer(u, mask=mask, state=state, return_state=True)
        return y, layer.step(jnp.ones((len(u), D)), state)[0]  # the next output shows the whole state

    y, following = run(parameters, before, u, mask)
    for row, real in enumerate(mask):
        whole = jnp.concatenate([before[row], u[row, real], jnp.ones((1, D))])
        alone = oracle.mixer(layer, whole[None])[0, before.shape[1] :].astype(np.float32)
        chex.assert_trees_all_close(y[row, real], alone[:-1], atol=1e-5)
        chex.assert_trees_all_close(following[row], alone[-1], atol=1e-5)
        assert not y[row, ~real].any()


def test_padding_has_no_gradient():
    layer, u, mask = make(use_bias=True), sequence(9), np.array(MASKS["holes"], bool)
    gradient = quick.jit(jax.grad(lambda u: (layer(u, mask=mask) ** 2).sum()))(u)
    assert not gradient[~mask].any()
    alone = quick.jit(jax.grad(lambda u: (layer(u) ** 2).sum()))(u[:1, mask[0]])
    chex.assert_trees_all_close(gradient[0, mask[0]], alone[0], atol=1e-5)


@pytest.mark.parametrize("mask", [None, [[0, 1, 1, 1, 0, 1, 1, 1, 1]] * 2])
def test_packed_sequences_do_not_see_each_other(mask):
    layer, u, ids = make(), sequence(9), np.array([[4, 4, 4, 4, 4, 7, 7, 7, 1]] * 2)
    mask = None if mask is None else np.array(mask, bool)
    y = quick.apply(layer, u, segment_ids=ids, mask=mask)
    for segment in (4, 7, 1):
        here = (ids[0] == segment) & (True if mask is None else mask[0])
        alone = oracle.mixer(layer, u[:, here])
        chex.assert_trees_all_close(y[:, here], alone.astype(np.float32), atol=1e-5)


def test_the_state_is_float32_under_bfloat16():
    layer = Mamba(D, d_state=4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    definition, parameters = nnx.split(layer)
    run = quick.jit(lambda parameters, u: nnx.merge(definition, parameters)(u, return_state=True))
    y, state = run(parameters, sequence(5).astype(jnp.bfloat16))
    assert (y.dtype, state.conv.dtype, state.ssm.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, layer.init_state(2))


def test_the_state_has_a_gradient():
    layer, u = make(), sequence(9)

    def loss(u):
        first, state = layer(u[:, :4], return_state=True)
        return (first**2).sum() + (layer(u[:, 4:], state=state) ** 2).sum()

    whole = quick.jit(jax.grad(lambda u: (layer(u) ** 2).sum()))(u)
    chex.assert_trees_all_close(quick.jit(jax.grad(loss))(u), whole, atol=1e-5)


def test_initial_values():
    layer = Mamba(64, d_state=8, out_scale=0.5, rngs=nnx.Rngs(0))
    dt = jax.nn.softplus(layer.dt_proj.bias[...])
    assert 0.99e-3 < float(dt.min()) < 2e-3 and 0.05 < float(dt.max()) < 0.101
    np.testing.assert_allclose(np.exp(layer.A_log[...]), np.broadcast_to(np.arange(1.0, 9), (128, 8)), rtol=1e-6)
    np.testing.assert_array_equal(layer.D[...], 1)
    assert 0.45 < float(abs(layer.dt_proj.kernel[...]).max()) <= 0.5  # rank 4
    assert 0.04 < float(abs(layer.out_proj.kernel[...]).max()) <= 0.5 / 128**0.5


def test_messages():
    layer = make()
    with pytest.raises(ValueError, match=r"Mamba.step: u must be \(b, d\).*got \(2, 1, 6\).*Call the layer itself"):
        layer.step(sequence(1), layer.init_state(2))
    with pytest.raises(ValueError, match="Mamba: d_state must be at least 1, got 0"):
        Mamba(D, d_state=0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"\(dt_min, dt_max\) must be positive and increasing"):
        Mamba(D, dt_min=0.2, rngs=nnx.Rngs(0))


@pytest.mark.slow
@pytest.mark.parametrize("mask", [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 0, 1, 0, 1]], ids=str)
def test_chunks_of_packed_sequences_with_a_mask(mask):
    """The first chunk's last segment is shorter than the convolution, whose window must hold no other's input."""
    mixer = Mamba(8, d_state=4, rngs=nnx.Rngs(0))
    u = jax.random.normal(jax.random.key(1), (1, 9, 8))
    mask = jnp.array([mask + [1, 1, 1, 1]], bool)
    ids = jnp.array([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    whole = mixer(u, mask=mask, segment_ids=ids)
    first, state = mixer(u[:, :5], mask=mask[:, :5], segment_ids=ids[:, :5], return_state=True)
    second = mixer(u[:, 5:], mask=mask[:, 5:], segment_ids=ids[:, 5:], state=state)
    chex.assert_trees_all_close(jnp.concatenate([first, second], axis=1), whole, atol=1e-5)
