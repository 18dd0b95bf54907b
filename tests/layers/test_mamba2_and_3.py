"""Mamba-2, Mamba-3 and attention: whole == chunked == stepped == padded == packed. Parity is in tests/parity."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax.layers import CausalAttention, Mamba2, Mamba3
from tests.layers import quick

D = 8
VARIANTS = {
    "mamba2": (Mamba2, {"d_state": 4, "head_dim": 4, "groups": 2, "dt_limit": (0.3, 0.9), "chunk": 4}),
    "mamba2_other": (Mamba2, {"d_state": 4, "head_dim": 4, "d_ssm": 8, "D_per_channel": True, "norm": False}),
    "mamba3": (Mamba3, {"d_state": 4, "head_dim": 4, "groups": 2, "chunk": 4}),
    "mamba3_mimo": (Mamba3, {"d_state": 4, "head_dim": 4, "rank": 2, "rope_fraction": 1.0, "norm": True}),
    "attention": (CausalAttention, {"heads": 4, "kv_heads": 2, "d_conv": 3, "rotary_dim": 2, "max_length": 16}),
}
MASK = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0, 0], [1] * 9, [0, 1, 0, 1, 1, 0, 0, 1, 1]], bool)


def make(name):
    kind, options = VARIANTS[name]
    return quick.lively(lambda: kind(D, **options, rngs=nnx.Rngs(0)))


def sequence(length, batch=2, seed=2):
    return jax.random.normal(jax.random.key(seed), (batch, length, D))


@pytest.mark.parametrize("name", VARIANTS)
def test_whole_equals_chunks_and_steps(name):
    """A first piece of one token, too: the original's Mamba-3 of several ranks fails on such a prompt."""
    layer, u = make(name), sequence(9)
    definition, parameters = nnx.split(layer)

    @quick.jit
    def run(parameters, u):
        layer = nnx.merge(definition, parameters)
        whole, end = layer(u, return_state=True)
        state, chunks = None, []
        for chunk in jnp.split(u, [1, 4], axis=1):
            y, state = layer(chunk, state=state, return_state=True)
            chunks.append(y)

        def step(state, u):
            y, state = layer.step(u, state)
            return state, y

        last, y = jax.lax.scan(step, layer.init_state(2), u.swapaxes(0, 1))
        return (layer(u), end), (jnp.concatenate(chunks, axis=1), state), (y.swapaxes(0, 1), last)

    whole, chunked, stepped = run(parameters, u)
    chex.assert_trees_all_close(chunked, whole, atol=1e-5)
    chex.assert_trees_all_close(stepped, whole, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_holds_the_state(name):
    """On the left, on the right and in holes (attention with a convolution: on the left); limits of dt included."""
    layer, mask = make(name), MASK[[0, 2]] if name == "attention" else MASK
    u = np.where(
        mask[..., None], sequence(9, batch=len(mask)), np.float32(1e3)
    )  # what stands in the padding must not matter
    definition, parameters = nnx.split(layer)

    @quick.jit
    def run(parameters, u, mask):
        layer = nnx.merge(definition, parameters)
        y, state = layer(u, mask=mask, return_state=True)
        return y, layer.step(jnp.ones((len(u), D)), state)[0]

    @quick.jit
    def alone(parameters, u):
        return nnx.merge(definition, parameters)(u)

    y, following = jax.device_get(run(parameters, u, mask))
    for row, real in enumerate(mask):
        wanted = np.asarray(alone(parameters, np.concatenate([u[row, real], np.ones((1, D), np.float32)])[None])[0])
        chex.assert_trees_all_close((y[row, real], following[row]), (wanted[:-1], wanted[-1]), atol=1e-5)
        assert not y[row, ~real].any()


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_sequences_do_not_see_each_other(name):
    """Outputs and gradients are those of each sequence alone; attention with positions, which only shift, too."""
    layer, u, ids = make(name), sequence(9), np.array([[4, 4, 4, 4, 4, 7, 7, 7, 1]] * 2)
    definition, parameters = nnx.split(layer)

    def loss(parameters, u, ids):
        y = nnx.merge(definition, parameters)(u, segment_ids=ids)
        return (y * jnp.sin(jnp.arange(D))[None, None]).sum(), y

    run = quick.jit(jax.value_and_grad(loss, has_aux=True))
    (_, packed), gradient = run(parameters, u, ids)
    pieces = [(i, ids[0] == i) for i in (4, 7, 1)]
    each = jax.device_get([run(parameters, np.asarray(u)[:, here], np.full((2, here.sum()), i)) for i, here in pieces])
    chex.assert_trees_all_close(packed, np.concatenate([y for (_, y), _ in each], axis=1), atol=1e-5)
    wanted = jax.tree.map(lambda *g: sum(g), *[g for _, g in each])
    chex.assert_trees_all_close(gradient, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mamba2", "mamba3"])
def test_the_state_is_float32_under_bfloat16(name):
    kind, options = VARIANTS[name]
    layer = kind(D, **options, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    definition, parameters = nnx.split(layer)
    run = quick.jit(lambda parameters, u: nnx.merge(definition, parameters)(u, return_state=True))
    y, state = run(parameters, sequence(5).astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and state.ssm.dtype == jnp.float32
    chex.assert_trees_all_equal_shapes_and_dtypes(state, layer.init_state(2))


def test_initial_values():
    layer = Mamba2(64, head_dim=16, rngs=nnx.Rngs(0))
    dt, rates = jax.nn.softplus(layer.dt_bias[...]), np.exp(layer.A_log[...])
    assert 0.9e-3 < float(dt.min()) and float(dt.max()) < 0.101
    assert rates.min() >= 1 and rates.max() <= 16
    layer = Mamba3(64, head_dim=16, rank=4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer.B_bias[...], 1)
    np.testing.assert_array_equal(layer.mimo_x[...], 0.25)


@pytest.mark.usefixtures("as_a_user")
def test_messages():
    with pytest.raises(ValueError, match="Mamba2: head_dim must be a divisor of the 16 channels of the scan, got 3"):
        Mamba2(D, head_dim=3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="Mamba2: groups must be a divisor of the 4 heads, got 3"):
        Mamba2(D, head_dim=4, groups=3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="Mamba3: rope_fraction must be 0.5 or 1, got 0.3"):
        Mamba3(D, head_dim=4, rope_fraction=0.3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"Mamba3.step: u must be \(b, d\)"):
        make("mamba3").step(sequence(1), None)
    layer, ids = CausalAttention(D, heads=2, rngs=nnx.Rngs(0)), jnp.zeros((2, 1), jnp.int32)
    for call in (
        lambda: layer(jnp.ones((2, 1, D)), segment_ids=ids, return_state=True),
        lambda: layer.step(jnp.ones((2, D)), layer.init_state(2, 4), segment_ids=ids[:, 0]),
    ):
        with pytest.raises(ValueError, match="CausalAttention: segment_ids must be left out where there is a state"):
            call()
    with pytest.raises(ValueError, match="CausalAttention: heads must be a divisor of d_model = 8, got 3"):
        CausalAttention(D, heads=3, rngs=nnx.Rngs(0))


def test_parity_by_hand():
    """A Mamba-3 that turns by pi at each one, and by nothing at each zero, tells the parity exactly at length 256."""
    layer = Mamba3(3, d_state=2, head_dim=3, expand=1, rope_fraction=1.0, rngs=nnx.Rngs(0))
    kernel = np.zeros((3, sum(layer.widths)), np.float32)  # the rows: the token that begins, zero, one
    z, x, B, C, dt, a, blend, angle = np.split(kernel, np.cumsum(layer.widths)[:-1], axis=1)
    z[:], x[0] = 10, 1  # all gates are open; the first token alone is written
    dt[:, 0] = np.log(np.e - 1), -50, np.log(np.e - 1)  # steps of 1, 0 and 1
    a[:], blend[:], angle[2] = -(10**6), 30, 30  # no decay but the least, no trapezoid, turns of pi times the step
    layer.in_proj.kernel[...] = jnp.asarray(kernel)
    layer.dt_bias[...] = jnp.zeros_like(layer.dt_bias[...])
    layer.out_proj.kernel[...] = jnp.eye(3)
    bits = np.random.default_rng(0).integers(0, 2, (4, 256))
    y = quick.apply(layer, jax.nn.one_hot(np.pad(bits + 1, ((0, 0), (1, 0))), 3))[:, 1:, 0]
    np.testing.assert_array_equal(y < 0, bits.cumsum(1) % 2 == 1)
    assert np.abs(y).min() > 0.9 * np.abs(y).max()  # as sure at the end as at the start
