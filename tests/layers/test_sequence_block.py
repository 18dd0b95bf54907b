"""Gates against float64, blocks against the formula that they are made of, dropout, and padding in every layer."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf, expit

from ssmjax.layers import Gate, SequenceBlock, make_mixer
from ssmjax.layers.mixers import check_mixer_options
from tests.layers import quick

pytestmark = pytest.mark.slow  # minutes to compile; the default tests have the dumps and the registries

SEQUENTIAL = ["dss", "lru", "s4", "s4d", "s5"]


def gelu(x, kind):
    inner = erf(x / 2**0.5) if kind == "exact" else np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + inner)


def expected_gate(gate, y):
    y = np.asarray(y, np.float64)
    g = gelu(y, gate.gelu)

    def linear(name, x):
        layer = getattr(gate, name)
        return x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...], np.float64)

    if gate.kind == "glu":
        a, b = np.split(linear("out", g), 2, axis=-1)
        return a * expit(b)
    return {
        "full_glu": lambda: linear("out1", g) * expit(linear("out2", g)),
        "half_glu1": lambda: g * expit(linear("out2", g)),
        "half_glu2": lambda: y * expit(linear("out2", g)),
        "linear": lambda: linear("out", g),
        "none": lambda: g,
    }[gate.kind]()


@pytest.mark.parametrize("kind", ["glu", "full_glu", "half_glu1", "half_glu2", "linear", "none"])
@pytest.mark.parametrize("approximation", ["exact", "tanh"])
def test_gate_values(key, kind, approximation):
    gate, y = (
        quick.lively(lambda: Gate(6, kind=kind, gelu=approximation, rngs=nnx.Rngs(0))),
        jax.random.normal(key, (2, 5, 6)),
    )
    np.testing.assert_allclose(quick.apply(gate, y), expected_gate(gate, y), rtol=2e-5, atol=2e-6)


def test_gate_of_several_channels(key):
    gate, y = quick.lively(lambda: Gate(6, channels=2, rngs=nnx.Rngs(0))), jax.random.normal(key, (2, 5, 12))
    np.testing.assert_allclose(quick.apply(gate, y), expected_gate(gate, y), rtol=2e-5, atol=2e-6)


def test_dropout_is_tied_over_time_and_needs_a_key(key):
    gate = Gate(64, kind="linear", dropout=0.5, rngs=nnx.Rngs(0))
    y = jnp.ones((2, 5, 64))
    assert (quick.apply(gate, y) == quick.apply(gate, y)).all()
    dropped = quick.apply(gate, y, key=key)
    zero = np.asarray(dropped == 0)
    assert (zero == zero[:, :1]).all() and 0.3 < zero.mean() < 0.7
    assert not np.allclose(dropped, quick.apply(gate, y, key=jax.random.key(1)))


@pytest.mark.parametrize("prenorm", [True, False])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_block_formula(key, prenorm, norm):
    block = quick.lively(
        lambda: SequenceBlock(
            6, layer="lru", layer_options={"d_state": 4}, norm=norm, prenorm=prenorm, rngs=nnx.Rngs(0)
        )
    )
    x = jax.random.normal(key, (2, 7, 6))

    def formula(block, x):
        if prenorm:
            return x + block.gate(block.layer(block.norm(x)))
        return block.norm(x + block.gate(block.layer(x)))

    definition, state = nnx.split(block)
    expected = quick.jit(lambda state, x: formula(nnx.merge(definition, state), x))(state, x)
    np.testing.assert_allclose(quick.apply(block, x), expected, atol=1e-5)


@pytest.mark.parametrize("layer", SEQUENTIAL)
@pytest.mark.parametrize("bidirectional", ["none", "exclusive", "inclusive"])
def test_padding_does_not_matter(key, layer, bidirectional):
    """On whichever side it is, and whatever it holds: as if each sequence were alone. Batch statistics included."""
    options = {"d_state": 4, "bidirectional": bidirectional}
    if layer == "s4":
        options["l_max"] = 9
    block = SequenceBlock(6, layer=layer, layer_options=options, norm="batch", rngs=nnx.Rngs(0))
    mask = np.ones((3, 9), bool)
    mask[0, 5:], mask[1, :4], mask[2, [0, 3, 4, 8]] = False, False, False  # right, left, and all over
    x = np.array(jax.random.normal(key, (3, 9, 6)))
    alone = np.zeros((3, 5, 6), np.float32)
    for row, real in enumerate(mask):
        alone[row] = x[row, real]
    x[~mask] = 1e3
    run = lambda x, mask: _run(block, jnp.asarray(x), mask)  # noqa: E731
    padded, statistics = run(x, jnp.asarray(mask))
    expected, expected_statistics = run(alone, None)
    np.testing.assert_allclose(np.stack([y[real] for y, real in zip(padded, mask, strict=True)]), expected, atol=2e-5)
    chex.assert_trees_all_close(statistics, expected_statistics, rtol=1e-5, atol=1e-6)


def _run(block, x, mask):
    definition, state = nnx.split(block)

    def run(state, x, mask):
        block = nnx.merge(definition, state)
        y = block(x, mask=mask, train=True)
        return y, {"mean": block.norm.mean[...], "var": block.norm.var[...]}

    return quick.jit(run)(state, x, mask)


@pytest.mark.parametrize("layer", [*SEQUENTIAL, "s4nd"])
def test_the_rate_reaches_the_layer(key, layer):
    options = {"d_state": 4} | ({"l_max": 12} if layer == "s4" else {})
    block = SequenceBlock(6, layer=layer, layer_options=options, rngs=nnx.Rngs(0))
    x = jax.random.normal(key, (2, 6, 4, 6) if layer == "s4nd" else (2, 6, 6))
    definition, state = nnx.split(block)
    run = lambda rate: quick.jit(lambda state, x: nnx.merge(definition, state)(x, rate=rate))(state, x)  # noqa: E731
    assert not np.allclose(run(1.0), run(2.0), atol=1e-5)


@pytest.mark.parametrize("prenorm", [True, False])
def test_the_residual_is_float32_in_low_precision(key, prenorm):
    x = (100 if prenorm else 0) + jax.random.normal(key, (2, 5, 6))
    low, high = (
        SequenceBlock(6, layer="s5", layer_options={"d_state": 4}, prenorm=prenorm, dtype=dtype, rngs=nnx.Rngs(0))
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    y = quick.apply(low, x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, quick.apply(high, x), atol=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SequenceBlock(8, layer="s6", rngs=nnx.Rngs(0)), "make_mixer: Unknown layer 's6'. Did you mean"),
        (
            lambda: make_mixer("s5", 8, {"n_blocks": 2}, rngs=nnx.Rngs(0)),
            "Unknown option of the layer 's5' 'n_blocks'. Did you mean 'blocks'",
        ),
        (lambda: check_mixer_options("here", "s4d", {"dt_minimum": 1}), "here: Unknown option .* Did you mean 'dt_min"),
        (lambda: check_mixer_options("here", "s4nd", {"kernel": "s4", "frozn": ()}), "Did you mean 'frozen'"),
        (lambda: Gate(8, kind="gluu", rngs=nnx.Rngs(0)), "Gate: Unknown kind 'gluu'. Did you mean 'glu'"),
        (lambda: Gate(8, gelu="fast", rngs=nnx.Rngs(0)), "Gate: Unknown gelu 'fast'"),
        (
            lambda: Gate(8, kind="none", channels=2, rngs=nnx.Rngs(0)),
            "Gate: channels must be 1 with kind='none', got 2",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_kernel_options_are_known():
    check_mixer_options("here", "s4", {"d_state": 4, "l_max": 9, "rank": 2, "dt_min": 1e-3, "frozen": ("B",)})
    check_mixer_options("here", "s4nd", {"axes": 3, "kernel": "s4", "rank": 2})
    check_mixer_options("here", "lru", {"r_min": 0.5})
