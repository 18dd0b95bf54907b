"""S5 and the LRU in all modes: against a loop in numpy, and whole == chunked == stepped == padded."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax.layers import LRU, S5
from ssmjax.ops._checks import RULES
from tests.layers import quick, recurrence_oracle

pytestmark = pytest.mark.slow  # minutes to compile; the default tests have the dumps and the registries

D = 3


def make(kind, seed=1, **options):
    """A layer with numbers in every parameter that differ from the initial ones, and stay in a sensible range."""
    make = {"s5": S5, "lru": LRU}[kind]
    layer = make(D, **{"d_state": 6, "bidirectional": "none"} | options, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), nnx.state(layer))
    nnx.update(layer, state)
    return layer


def sequence(length, batch=2, seed=2):
    return np.random.default_rng(seed).standard_normal((batch, length, D)).astype(np.float32)


def elapsed(length, batch=2, seed=3):
    return np.random.default_rng(seed).gamma(2, 0.5, (batch, length)).astype(np.float32)


def oracle(layer, u, dts=None, **options):
    rows = [recurrence_oracle.run(layer, u[i], dts=None if dts is None else dts[i], **options) for i in range(len(u))]
    return tuple(np.stack(x) for x in zip(*rows, strict=True))


def close(got, want, atol=1e-5):
    """Within 1e-5 of the largest."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    assert np.max(np.abs(got - want), initial=0.0) <= atol * max(1.0, np.max(np.abs(want), initial=0.0))


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("bidirectional", ["none", "exclusive", "inclusive"])
@pytest.mark.parametrize("kind", ["s5", "lru"])
def test_equals_a_loop(kind, bidirectional, length):
    layer, u = make(kind, bidirectional=bidirectional), sequence(length)
    close(quick.apply(layer, u, rate=1.5), oracle(layer, u, rate=1.5)[0])


@pytest.mark.parametrize(("kind", "rule"), [("lru", None), *(("s5", rule) for rule in RULES)])
def test_steps_of_varying_length(kind, rule):
    options = {} if rule is None else {"discretization": rule}
    u, dts = sequence(7), elapsed(7)
    layer = make(kind, bidirectional="inclusive", **options)
    close(quick.apply(layer, u, dts=dts, rate=0.5), oracle(layer, u, dts, rate=0.5)[0])


def test_steps_of_length_one_are_none_at_all():
    layer, u = make("s5", bidirectional="inclusive"), sequence(7)
    close(quick.apply(layer, u, dts=np.ones((2, 7), np.float32)), quick.apply(layer, u))


S5_OPTIONS = {
    "discretization": st.sampled_from(RULES),
    "conj_sym": st.booleans(),
    "clip_eigs": st.booleans(),
    "blocks": st.sampled_from([1, 3]),
    "c_init": st.sampled_from(["trunc_standard_normal", "lecun_normal", "complex_normal"]),
}


@pytest.mark.parametrize("kind", ["s5", "lru"])
@hypothesis.settings(max_examples=5, deadline=None, derandomize=True, phases=[hypothesis.Phase.generate])
@hypothesis.given(data=st.data())
def test_whole_equals_chunks_and_steps(kind, data):
    layer = make(kind, **(data.draw(st.fixed_dictionaries(S5_OPTIONS)) if kind == "s5" else {}))
    length = data.draw(st.integers(0, 13))
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=3)))
    rate = data.draw(st.sampled_from([0.5, 1.0, 3.0]))
    u = sequence(length)
    dts = elapsed(length) if data.draw(st.booleans()) else np.ones((2, length), np.float32)
    definition, parameters = nnx.split(layer)

    @quick.jit
    def run(parameters, u, dts):
        layer = nnx.merge(definition, parameters)
        whole = layer(u, dts=dts, rate=rate, return_state=True)
        state, chunks = layer.init_state(2), []
        for chunk, elapsed in zip(jnp.split(u, cuts, axis=1), jnp.split(dts, cuts, axis=1), strict=True):
            y, state = layer(chunk, state=state, return_state=True, dts=elapsed, rate=rate, mode="scan")
            chunks.append(y)

        def step(state, now):
            y, state = layer.step(now[0], state, dts=now[1], rate=rate)
            return state, y

        stepped, y = jax.lax.scan(step, layer.init_state(2), (u.swapaxes(0, 1), dts.T))
        return whole, (jnp.concatenate(chunks, axis=1), state), (y.swapaxes(0, 1), stepped)

    whole, chunked, stepped = run(parameters, u, dts)
    wanted = oracle(layer, u, dts, rate=rate)
    for got in (whole, chunked, stepped):
        close(got[0], wanted[0])
        close(got[1], wanted[1])


MASKS = {
    "left": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9],
    "right": [[1, 1, 1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0]],
    "holes": [[1, 0, 1, 1, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1, 0, 1, 1]],
    "nothing": [[0] * 9, [1] * 9],
}
ALL_MASKS = np.concatenate(list(MASKS.values())).astype(bool)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize(
    ("kind", "bidirectional"), [("s5", "none"), ("s5", "exclusive"), ("s5", "inclusive"), ("lru", "none")]
)
def test_padding_is_not_there(kind, bidirectional, varying):
    layer, mask = make(kind, bidirectional=bidirectional), ALL_MASKS
    u = np.where(mask[..., None], sequence(9, batch=len(mask)), 1e3)  # what stands in the padding must not matter
    dts = elapsed(9, batch=len(mask)) if varying else None
    causal = bidirectional == "none"
    before = np.ones((len(mask), layer.modes), np.complex64) * (0.5 - 1j) if causal else None
    definition, parameters = nnx.split(layer)
    run = quick.jit(
        lambda parameters, **inputs: nnx.merge(definition, parameters)(**inputs, return_state=causal),
    )
    got = run(parameters, u=u, mask=mask, dts=dts, state=before)
    y, state = got if causal else (got, None)
    for row, real in enumerate(mask):
        steps = None if dts is None else dts[row, real]
        alone = recurrence_oracle.run(layer, u[row, real], dts=steps, state=None if before is None else before[row])
        close(y[row, real], alone[0])
        assert not y[row, ~real].any()
        if causal:
            close(state[row], alone[1])


@pytest.mark.parametrize("bidirectional", ["none", "inclusive"])
def test_padding_has_no_gradient(bidirectional):
    layer, u, mask = make("s5", bidirectional=bidirectional), sequence(9), np.array(MASKS["holes"], bool)
    gradient = quick.jit(jax.grad(lambda u: (layer(u, mask=mask) ** 2).sum()))(u)
    assert not gradient[~mask].any()
    alone = quick.jit(jax.grad(lambda u: (layer(u) ** 2).sum()))(u[:1, mask[0]])
    chex.assert_trees_all_close(gradient[0, mask[0]], alone[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["s5", "lru"])
def test_gradients_equal_those_of_chunks(kind):
    definition, parameters = nnx.split(make(kind))

    def loss(parameters, u, cuts):
        layer = nnx.merge(definition, parameters)
        state, total = layer.init_state(2), 0.0
        for chunk in jnp.split(u, cuts, axis=1):
            y, state = layer(chunk, state=state, return_state=True)
            total += (y**2).sum()
        return total

    whole, chunked = (
        quick.jit(jax.grad(loss, (0, 1)), static_argnums=2)(parameters, sequence(9), cuts) for cuts in ((), (2, 5))
    )
    chex.assert_trees_all_close(chunked, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["s5", "lru"])
def test_bfloat16_computes_in_it_and_keeps_the_state_in_float32(kind):
    layer, u = make(kind, dtype=jnp.bfloat16), sequence(40)
    y, state = quick.jit(lambda u: layer(u, return_state=True))(u.astype(jnp.bfloat16))
    assert (y.dtype, state.dtype) == (jnp.bfloat16, jnp.complex64)
    close(y.astype(np.float32), oracle(layer, u)[0], atol=2e-2)


@pytest.mark.parametrize("kind", ["s5", "lru"])
@pytest.mark.parametrize("name", [jnp.float32, "float32", np.dtype("float32")])
def test_products_of_float32_are_not_shortened_by_whatever_name(kind, name):
    layer = make(kind, dtype=name)
    program = str(jax.make_jaxpr(layer)(sequence(4)))
    assert program.count("dot_general") == 2
    assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 2


@pytest.mark.parametrize("kind", ["s5", "lru"])
def test_vmap_over_layers_and_one_program_for_all_rates(kind):
    layers = nnx.vmap(lambda key: make_from(kind, key))(jax.random.split(jax.random.key(0), 2))
    assert len({float(v) for v in np.ravel(layers.D[...])}) == 2 * D
    layer = make(kind)
    definition, parameters = nnx.split(layer)

    @quick.jit
    def run(parameters, u, rate):
        return nnx.merge(definition, parameters)(u, rate=rate)

    u = sequence(4)
    for rate in (1.0, 2.0):
        close(run(parameters, u, jnp.float32(rate)), oracle(layer, u, rate=rate)[0])
    assert run._cache_size() == 1


def make_from(kind, key):
    return {"s5": S5, "lru": LRU}[kind](D, d_state=4, rngs=nnx.Rngs(params=key))


@pytest.mark.usefixtures("as_a_user")
def test_messages():
    layer, u = make("s5"), sequence(4)
    both = make("s5", bidirectional="inclusive")
    for call, message in [
        (lambda: layer(u[..., :2]), r"S5: u must be \(b, l, 3\), got \(2, 4, 2\)"),
        (lambda: layer(u, mask=np.ones((2, 5), bool)), r"S5: mask must be \(b, l\) = \(2, 4\), got \(2, 5\) bool"),
        (lambda: layer(u, dts=np.ones((2, 3), np.float32)), r"S5: dts must be \(b, l\) = \(2, 4\)"),
        (lambda: layer(u, dts=-np.ones((2, 4), np.float32)), "S5: dts must be finite, and at least 0, got -1.0"),
        (lambda: layer(u, dts=np.full((2, 4), np.nan, np.float32)), "S5: dts must be finite, .* got nan"),
        (lambda: layer(u, rate=0.0), "S5: rate must be positive and finite, got 0.0"),
        (lambda: layer(u, rate=float("inf")), "S5: rate must be positive and finite, got inf"),
        (lambda: layer(u, rate="2"), "S5: rate must be positive and finite, got '2'"),
        (lambda: layer(u, rate=jnp.ones(2)), r"S5: rate must be a number, got \(2,\) float32"),
        (lambda: layer(u * 1j), "S5: u must be .* of real numbers, got .* complex64"),
        (lambda: layer(u, state=layer.init_state(3)), r"S5: state must be \(b, p\) = \(2, 3\), got \(3, 3\)"),
        (lambda: layer(u, mode="conv"), "S5: mode must be 'auto' or 'scan', got 'conv'"),
        (lambda: layer.step(u, layer.init_state(2)), r"S5.step: u must be \(b, 3\), one token.*Call the layer itself"),
        (lambda: both(u, return_state=True), "S5: bidirectional must be 'none' to carry a state, got 'inclusive'"),
        (lambda: both.step(u[:, 0], both.init_state(2)), "S5: bidirectional must be 'none' to carry a state"),
        (
            lambda: S5(D, d_state=6, blocks=2, rngs=nnx.Rngs(0)),
            "S5: d_state must be a multiple of 4, twice the number of .*got 6. `blocks` that fit",
        ),
        (lambda: S5(D, dt_min=-1.0, rngs=nnx.Rngs(0)), r"S5: \(dt_min, dt_max\) must be positive and increasing"),
        (lambda: LRU(D, r_max=1.5, rngs=nnx.Rngs(0)), "must be 0 <= r_min < r_max <= 1"),
        (lambda: LRU(0, rngs=nnx.Rngs(0)), "LRU: d_model must be a positive int, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.usefixtures("as_a_user")
def test_unknown_names():
    for options, message in [
        ({"c_init": "lecun"}, "S5: Unknown c_init 'lecun'. Did you mean 'lecun_normal'"),
        ({"discretization": "zho"}, "S5: Unknown rule 'zho'. Did you mean 'zoh'"),
        ({"bidirectional": "both"}, "S5: Unknown bidirectional 'both'"),
    ]:
        with pytest.raises(ValueError, match=message):
            S5(D, **options, rngs=nnx.Rngs(0))
