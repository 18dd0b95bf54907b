"""Bad input: one clear error, whichever layer of the time-invariant family it comes to."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax.layers import DSS, LRU, S4, S4D, S4ND, S5, BatchNorm, BiMamba, Mamba, SequenceBlock
from tests.layers import quick

D, LAYERS = 6, (S4, S4D, DSS, S5, LRU)
u = jnp.ones((2, 3, D))

CALLS = [
    ({"u": u.tolist()}, r"u must be an array, \(b, l, 6\), got a list. Make it one: jnp.asarray\(u\)"),
    ({"u": u[0]}, r"u must be \(b, l, 6\), got \(3, 6\)"),
    ({"u": u + 0j}, "u must be .* of real numbers, got .* complex64. Real and imaginary parts are two features"),
    ({"mask": [[True] * 3] * 2}, "mask must be an array, .*got a list"),
    ({"mask": jnp.ones((2, 4), bool)}, r"mask must be \(b, l\) = \(2, 3\), got \(2, 4\)"),
    ({"mask": jnp.ones((2, 3))}, "mask must be of booleans, or of integers, got .* float32"),
    ({"state": [0.0]}, "state must be an array, .* got a list"),
    ({"state": jnp.zeros((3, D))}, r"state must be .* `init_state\(b\)` makes one"),
]


@pytest.fixture(scope="module")
def layers():
    options = {S4: {"l_max": 8}, DSS: {"l_max": 8}, S4D: {}, S5: {}, LRU: {}}
    return {
        layer: quick.made(lambda: layer(D, d_state=4, **options[layer], rngs=nnx.Rngs(0)))  # noqa: B023
        for layer in options
    }


def results(layer, call, arguments):
    """What a call returns for each of some arguments, in one program."""
    definition, parameters = nnx.split(layer)
    return quick.jit(lambda parameters: [call(nnx.merge(definition, parameters), x) for x in arguments])(parameters)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(("arguments", "message"), CALLS)
def test_calls(layers, arguments, message):
    for kind, layer in layers.items():
        with pytest.raises(ValueError, match=f"^{kind.__name__}: {message}"):
            layer(**{"u": u, **arguments})


@pytest.mark.usefixtures("as_a_user")
def test_steps(layers):
    for kind, layer in layers.items():
        name, token = kind.__name__, u[:, 0]
        with pytest.raises(ValueError, match=f"^{name}.step: u must be an array, .*one token a row, got a list"):
            layer.step(token.tolist(), layer.init_state(2))
        with pytest.raises(ValueError, match=rf"^{name}.step: u must be \(b, 6\), one token a row, got \(2, 5\)"):
            layer.step(token[:, :5], layer.init_state(2))
        with pytest.raises(ValueError, match=f"^{name}.*: state must be .*makes one"):
            layer.step(token, layer.init_state(3))
        with pytest.raises(ValueError, match=f"^{name}.*: u must be .* of real numbers, got .* complex64"):
            layer.step(token + 0j, layer.init_state(2))


@pytest.mark.usefixtures("as_a_user")
def test_complex_lengths_of_steps(layers):
    with pytest.raises(ValueError, match="S5: dts must be .* of real numbers, got .* complex64. It is a length"):
        layers[S5](u, dts=jnp.ones((2, 3), jnp.complex64))


@pytest.mark.usefixtures("as_a_user")
def test_lengths_of_steps_are_not_read_at_padding(layers):
    mask = jnp.array([[True, True, False], [True, False, False]])
    for kind in (S5, LRU):
        for odd in (-1.0, np.nan):
            given = layers[kind](u, mask=mask, dts=jnp.where(mask, 2.0, odd))  # not traced, or nothing would be checked
            np.testing.assert_array_equal(given, layers[kind](u, mask=mask, dts=jnp.full((2, 3), 2.0)))


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("rate", quick.first([np.int64(2), 2, np.float32(2)]))
def test_whole_numbers_are_rates(layers, rate):
    for layer in layers.values():
        np.testing.assert_array_equal(*results(layer, lambda layer, rate: layer(u, rate=rate), (rate, 2.0)))


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("layer", [S4D(D, rngs=nnx.Rngs(0)), DSS(D, l_max=8, rngs=nnx.Rngs(0))], ids=["s4d", "dss"])
def test_a_length_to_normalize_over_where_there_is_none_to_choose(layer):
    with pytest.raises(
        ValueError, match="over must be left out of a kernel that is the same for all lengths, got .*without an l_max"
    ):
        layer.kernel(8, over=jnp.array([5]))


@pytest.mark.usefixtures("as_a_user")
def test_what_is_no_recurrence(layers):
    for kind in (S4, S4D, DSS):
        with pytest.raises(ValueError, match="recurrence must be what `layer.recurrence..` returns, got 'linear'"):
            layers[kind].step(u[:, 0], layers[kind].init_state(2), recurrence="linear")


@pytest.mark.usefixtures("as_a_user")
def test_another_layers_recurrence(layers):
    """One channel would be broadcast to both, and a layer of both directions has no steps."""
    for kind in (S4, S4D, DSS):
        length = {} if kind is S4D else {"l_max": 8}
        two = kind(D, d_state=4, channels=2, **length, rngs=nnx.Rngs(0))
        wanted = rf"{kind.__name__}.step: recurrence must be of this layer, with C of \(c, d, ...\) = \(2, 6\)"
        with pytest.raises(ValueError, match=wanted):
            two.step(u[:, 0], two.init_state(2), recurrence=layers[kind].recurrence())
        both = kind(D, d_state=4, bidirectional="exclusive", **length, rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="left out in both directions"):
            both.step(u[:, 0], both.init_state(2), recurrence=both.kernel.recurrence())


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("mode", quick.first(["auto", "scan"]))
def test_a_state_of_another_dtype_is_converted(layers, mode):
    for layer in layers.values():
        states = [np.ones(layer.init_state(2).shape, dtype) for dtype in (np.complex64, np.float32, np.int32)]
        call = functools.partial(lambda layer, state, mode: layer(u, state=state, mode=mode), mode=mode)
        chex.assert_trees_all_equal(*results(layer, call, states))
        chex.assert_trees_all_equal(*results(layer, lambda layer, state: layer.step(u[:, 0], state), states))


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("length", [0, -3, 2.5, "5"])
def test_lengths_of_kernels(layers, length):
    for kind in (S4, S4D, DSS):
        with pytest.raises(ValueError, match=f"length must be a positive int, got {length!r}"):
            layers[kind].kernel(length)
    with pytest.raises(ValueError, match="DPLRKernel.set_output: length must be a positive int"):
        layers[S4].kernel.set_output(jnp.ones((1, D, 2), jnp.complex64), length)
    with pytest.raises(ValueError, match=r"DPLRKernel.set_output: C must be \(c, h, n\) = \(1, 6, 2\), got \(6, 2\)"):
        layers[S4].kernel.set_output(jnp.ones((D, 2), jnp.complex64), 8)


@pytest.mark.usefixtures("as_a_user")
def test_a_complex_rate(layers):
    for kind, layer in layers.items():
        with pytest.raises(ValueError, match=f"{kind.__name__}.*rate must be"):
            layer(u, rate=jnp.complex64(2))


@pytest.mark.usefixtures("as_a_user")
def test_a_complex_state_of_real_modes():
    layer = S4D(D, d_state=4, real=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="S4D: state must be real, as its modes are, got .* complex64"):
        layer(u, state=jnp.zeros((2, D, 4), jnp.complex64))


@pytest.mark.usefixtures("as_a_user")
def test_whole_numbers_of_numpy_are_sizes():
    eight, four = np.int64(8), np.int64(4)

    def outputs(kind, shape, rate=1.0, **options):  # traced only
        layer = functools.partial(kind, eight, d_state=four, **options)
        return jax.eval_shape(lambda: layer(rngs=nnx.Rngs(0))(jnp.ones(shape), rate=rate))

    for kind in (S4, S4D, DSS, S5, LRU):
        length = {} if kind in (S5, LRU) else {"l_max": eight}
        chex.assert_shape(outputs(kind, (1, 3, 8), **length), (1, 3, 8))
    image = outputs(S4ND, (1, 4, 4, 8), np.array([1.0, 2.0]), l_max=np.array([4, 4]))
    chex.assert_shape(image, (1, 4, 4, 8))


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (S4D, {"frozen": "dt"}, r"S4D: frozen must be a tuple of names, got 'dt'. Pass \('dt',\)"),
        (S4D, {"l_max": 2.5}, "S4D: l_max must be a positive int, or None, got 2.5"),
        (S4D, {"bandlimit": -1}, "S4D: bandlimit must be a positive, finite number, got -1"),
        (S4ND, {"l_max": 2.5}, "S4ND: l_max must be a positive int, or 2, one for each axis"),
        (S5, {"blocks": 0}, "S5: blocks must be a positive int, got 0"),
        (S5, {"d_state": 4, "blocks": 3}, "S5: d_state must be a multiple of 6, .*got 4. `blocks` that fit are .1, 2."),
        (S5, {"d_state": 5}, "S5: d_state must be even, got 5. .* conj_sym=False"),
        (S4D, {"channels": -1}, "S4D: channels must be a positive int, got -1"),
        (S4ND, {"channels": 2.5}, "S4ND: channels must be a positive int, got 2.5"),
        (S4ND, {"trank": "2"}, "S4ND: trank must be a positive int, got '2'"),
        (S4ND, {"axes": 4}, "S4ND: axes must be from 1 to 3, got 4"),
        (S4D, {"bandlimit": "a"}, "S4D: bandlimit must be a positive, finite number, got 'a'"),
        (LRU, {"max_phase": -1.0}, "lru_ring: max_phase must be a positive, finite number, got -1.0"),
        (DSS, {"max_real": float("nan")}, "DSS: max_real must be a finite number, or None, got nan"),
        (S4D, {"dt_max": float("inf")}, r"S4D: \(dt_min, dt_max\) must be positive and increasing, got .* inf"),
        (S5, {"dt_min": "a"}, r"S5: \(dt_min, dt_max\) must be positive and increasing, got \('a', "),
        (LRU, {"d_state": 4.0}, "LRU: d_state must be a positive int, got 4.0"),
        (LRU, {"r_min": "a"}, "lru_ring: r_min must be a finite number, at least 0, got 'a'"),
        (DSS, {"max_real": True}, "DSS: max_real must be a finite number, or None, got True"),
        (DSS, {"max_real": float("-inf")}, "DSS: max_real must be a finite number, or None, got -inf"),
        (S4D, {"frozen": ("P",)}, "S4D: Unknown frozen parameter 'P'. Known: A, B, C, dt"),
        (S4D, {"frozen": None}, r"S4D: frozen must be a tuple of names, got None. \(\) freezes nothing"),
        *(
            (kind, {"dtype": jnp.int32}, f"^{kind.__name__}: dtype must be a floating dtype")
            for kind in (*LAYERS, S4ND)
        ),
        (S5, {"dtype": "bf16"}, "S5: dtype must be a floating dtype, got 'bf16'. 'float32' and 'bfloat16' are usual"),
        (S5, {"dtype": None}, "S5: dtype must be a floating dtype, got None"),
    ],
)
def test_options(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(D, **options, rngs=nnx.Rngs(0))


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("kind", [S4, S4D, DSS, S4ND])
def test_unknown_options(kind):
    with pytest.raises(TypeError, match=f"{kind.__name__}: Unknown option 'dt_mn'. Did you mean"):
        kind(D, dt_mn=0.1, **({"l_max": 4} if kind is S4 else {}), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=f"{kind.__name__}: Unknown option 'bidirectionl'. .* 'bidirectional'"):
        kind(D, bidirectionl="exclusive", rngs=nnx.Rngs(0))


@pytest.mark.usefixtures("as_a_user")
def test_an_empty_image():
    layer = S4ND(D, d_state=4, channels=2, rngs=nnx.Rngs(0))
    assert layer(jnp.zeros((2, 0, 5, D))).shape == (2, 0, 5, 2 * D)


@pytest.mark.usefixtures("as_a_user")
def test_switches(layers):
    for kind, layer in layers.items():
        with pytest.raises(ValueError, match=f"^{kind.__name__}: return_state must be True or False, got 'no'.$"):
            layer(u, return_state="no")
    with pytest.raises(ValueError, match="BatchNorm: train must be True or False, got 1"):
        BatchNorm(D)(u, train=1)
    for kind, names in (
        (S4, ("conj_sym",)),
        (S4D, ("conj_sym", "real", "dt_tie")),
        (DSS, ("separate_dt",)),
        (S5, ("conj_sym", "clip_eigs")),
        (SequenceBlock, ("prenorm",)),
        (Mamba, ("use_bias", "conv_bias")),
        (BiMamba, ("use_bias", "conv_bias", "divide_out", "together")),
        (BatchNorm, ("unbiased",)),
    ):
        length = {"l_max": 8} if kind is S4 else {}
        for name in names:
            for bad, end in (("no", "$"), (1, rf" bool\({name}\) makes it one;"), (None, "$")):
                message = f"^{kind.__name__}: {name} must be True or False, got {bad!r}.{end}"
                with pytest.raises(ValueError, match=message):
                    kind(D, **length, **{name: bad}, rngs=nnx.Rngs(0))
