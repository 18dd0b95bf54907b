"""Every linear time-invariant layer: convolution == scan == chunks == steps, whatever the options, drawn at random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssmjax.layers import DSS, LRU, S4, S4D, S5
from tests.layers import convolution_oracle as oracle
from tests.layers import quick

D = 4
RULES = ["zoh", "bilinear", "impulse", "dirac", "async"]
LONGEST = 19

CONVOLUTIONS = {
    S4D: {
        "discretization": st.sampled_from(RULES),
        "d_state": st.sampled_from([2, 6]),
        "channels": st.sampled_from([1, 2]),
        "copies": st.sampled_from([1, 2, None]),
        "conj_sym": st.booleans(),
        "dt_tie": st.booleans(),
        "dt_transform": st.sampled_from(["exp", "softplus"]),
        "real_transform": st.sampled_from(["exp", "relu", "softplus"]),
        "real": st.booleans(),
        "bandlimit": st.sampled_from([None, 0.5]),
    },
    S4: {
        "d_state": st.sampled_from([2, 6]),
        "channels": st.sampled_from([1, 2]),
        "copies": st.sampled_from([1, 2, None]),
        "rank": st.sampled_from([1, 2, 3]),
        "conj_sym": st.booleans(),
        "l_max": st.sampled_from([2 * LONGEST, 3 * LONGEST + 1]),
    },
    DSS: {
        "discretization": st.sampled_from([*RULES, "softmax"]),
        "parametrization": st.sampled_from(["clip", "exp", "exp-re-im"]),
        "separate_dt": st.booleans(),
        "l_max": st.just(2 * LONGEST),
    },
}
SCANS = {
    S5: {"discretization": st.sampled_from(RULES), "conj_sym": st.booleans()},
    LRU: {},
}


@st.composite
def cases(draw):
    """A layer, a sequence, where it is cut, and a mask or none."""
    table = CONVOLUTIONS | SCANS
    cls = draw(st.sampled_from(list(table)))
    options = {name: draw(values) for name, values in table[cls].items()}
    length = draw(st.integers(1, LONGEST))
    cuts = sorted(draw(st.lists(st.integers(0, length), max_size=2)))
    masked = draw(st.booleans())
    rate = draw(st.sampled_from([1.0, 2.0, 0.5]))
    return cls, options, length, cuts, masked, rate, draw(st.integers(0, 99))


def check(case):
    cls, options, length, cuts, masked, rate, seed = case
    layer = oracle.lively(lambda: cls(D, **options, rngs=nnx.Rngs(0)), seed) if cls in CONVOLUTIONS else None
    layer = cls(D, **{"d_state": 4, **options}, rngs=nnx.Rngs(seed)) if layer is None else layer
    rng = np.random.default_rng(seed)
    u = jnp.asarray(rng.standard_normal((2, length, D)), jnp.float32)
    mask = jnp.asarray(rng.random((2, length)) < 0.7) if masked else None
    definition, parameters = nnx.split(layer)

    @quick.jit
    def run(parameters, u, mask):
        layer = nnx.merge(definition, parameters)
        options = dict(rate=rate, return_state=True)
        whole = layer(u, mask=mask, **options)
        results = {"scan": layer(u, mask=mask, mode="scan", **options)}
        state, chunks = None, []
        for first, last in zip([0, *cuts], [*cuts, length], strict=True):
            part = None if mask is None else mask[:, first:last]
            y, state = layer(u[:, first:last], mask=part, state=state, **options)
            chunks.append(y)
        results["chunks"] = jnp.concatenate(chunks, axis=1), state
        if mask is None:
            ready = {"recurrence": layer.recurrence(rate)} if cls in CONVOLUTIONS else {"rate": rate}
            step = lambda state, u: layer.step(u, state, **ready)[::-1]  # noqa: E731
            state, y = jax.lax.scan(step, layer.init_state(2), jnp.swapaxes(u, 0, 1))
            results["steps"] = jnp.swapaxes(y, 0, 1), state
        return whole, results

    whole, results = run(parameters, u, mask)
    for ours in results.values():
        oracle.close(ours[0], whole[0])
        oracle.close(ours[1], whole[1])


CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=CHECKS)
@given(cases())
def test_all_modes_agree(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=CHECKS)
@given(cases())
def test_all_modes_agree_in_many_cases(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [S4D, S4, DSS])
def test_both_directions_scan_as_they_convolve(cls):
    options = {"l_max": 11} if cls is not S4D else {}
    u, mask = jax.random.normal(jax.random.key(0), (2, 11, D)), np.array([[1] * 11, [0, 1, 1, 0, 1] + [0] * 6], bool)
    for bidirectional in ("exclusive", "inclusive"):
        layer = oracle.lively(lambda b=bidirectional: cls(D, d_state=4, bidirectional=b, **options, rngs=nnx.Rngs(0)))
        oracle.close(oracle.call(layer, u, mask=mask, mode="scan"), oracle.call(layer, u, mask=mask))


@pytest.mark.parametrize("layer", ["s4", "s4d", "dss", "softmax", "s5", "lru"])
def test_no_scatter_in_the_gradient(layer):
    """With padding, both directions included: a scatter-add is slow on accelerators."""
    cls = {"s4": S4, "s4d": S4D, "s5": S5, "lru": LRU}.get(layer, DSS)
    options = {"l_max": 11} if layer in ("s4", "dss") else {}
    definition, parameters = nnx.split(cls(D, d_state=4, bidirectional="exclusive", **options, rngs=nnx.Rngs(0)))

    def loss(parameters, u, mask):
        return nnx.merge(definition, parameters)(u, mask=mask).sum()

    arguments = parameters, jnp.ones((2, 11, D)), jnp.ones((2, 11), bool)
    assert "scatter" not in jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).as_text()


@pytest.mark.parametrize("cls", [S4D, S4, DSS])
@pytest.mark.parametrize("length", [0, 1])
def test_the_shortest_sequences(cls, length):
    options = {"l_max": 3} if cls is not S4D else {}
    layer = oracle.lively(lambda: cls(D, d_state=4, **options, rngs=nnx.Rngs(0)))
    u, state = jnp.ones((2, length, D)), layer.init_state(2) + 0.5j
    for mode in ("conv", "scan"):
        y, last = oracle.call(layer, u, state=state, return_state=True, mode=mode)
        assert y.shape == u.shape
        if length == 0:
            np.testing.assert_array_equal(last, state)
        else:
            stepped = quick.apply(layer, u[:, 0], state, method="step")
            oracle.close(y[:, 0], stepped[0])
            oracle.close(last, stepped[1])


@pytest.mark.slow
@pytest.mark.parametrize("cls", [S4D, S4])
def test_long_sequences_in_chunks_of_a_scan(cls):
    """Longer than a chunk of the scan, by 37, with the memory that a trained layer has."""
    options = {"l_max": 293} if cls is S4 else {}
    layer = cls(D, d_state=16, **options, rngs=nnx.Rngs(0))
    u = jax.random.normal(jax.random.key(0), (1, 2 * 128 + 37, D))
    whole, scanned = (oracle.call(layer, u, return_state=True, mode=mode) for mode in ("conv", "scan"))
    oracle.close(scanned[0], whole[0])
    oracle.close(scanned[1], whole[1])
