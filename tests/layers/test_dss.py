"""DSS: against a loop in numpy, with its softmax over the length and with every discretization."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax.layers import DSS, S4D
from ssmjax.layers.lti.dss import DSSKernel
from tests.layers import convolution_oracle as oracle
from tests.layers import quick

pytestmark = pytest.mark.slow  # minutes to compile; the default tests have the dumps and the registries

D = 4


def make(**options):
    return oracle.lively(lambda: DSS(D, d_state=3, **options, rngs=nnx.Rngs(0)))


def sequence(length, batch=2, seed=2):
    return jax.random.normal(jax.random.key(seed), (batch, length, D))


@pytest.mark.parametrize(
    "options", [{}, {"separate_dt": False}, {"bidirectional": "exclusive", "channels": 2}, {"l_max": 15}], ids=str
)
def test_softmax_equals_a_loop(options):
    layer, u = make(**options), sequence(9)
    system = oracle.dss(layer, length=options.get("l_max", 9))
    expected = oracle.run(system, layer.D[...], u, options.get("bidirectional", "none"))
    oracle.close(oracle.call(layer, u), expected)


@pytest.mark.parametrize("rule", ["zoh", "bilinear", "euler", "impulse", "dirac", "async"])
@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_equals_a_loop_under_every_rule(rule, rate):
    layer, u = make(discretization=rule), sequence(9)
    oracle.close(oracle.call(layer, u, rate=rate), oracle.run(oracle.dss(layer, rate, rule=rule), layer.D[...], u))


@pytest.mark.parametrize("parametrization", ["clip", "exp", "exp-re-im"])
@pytest.mark.parametrize("mode", ["conv", "scan"])
def test_equals_a_loop_with_padding(parametrization, mode):
    layer = make(discretization="zoh", parametrization=parametrization)
    mask = np.array([[0, 0, 1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0, 0]], bool)
    u = jnp.where(mask[..., None], sequence(9), 1e3)
    expected = oracle.masked(oracle.dss(layer, rule="zoh"), np.asarray(layer.D[...]), u, mask)
    oracle.close(oracle.call(layer, u, mask=mask, mode=mode), expected)


@pytest.mark.parametrize(
    ("kind", "rule", "rate", "options"),
    [
        (DSS, "softmax", 1.0, {}),
        (DSS, "softmax", 2.0, {"bidirectional": "exclusive", "channels": 2}),
        (DSS, "softmax", 1.0, {"bidirectional": "inclusive", "max_real": None}),  # modes that grow
        (S4D, "softmax", 0.5, {"bidirectional": "inclusive"}),
        (S4D, "dss", 1.0, {"bidirectional": "exclusive", "channels": 2}),
        (S4D, "dss", 2.0, {"l_max": 6}),  # fewer taps than tokens
    ],
)
def test_modes_are_normalized_over_the_real_tokens(kind, rule, rate, options):
    """Each sequence of a batch is as if it were alone, gradients included, with padding on either side or within."""
    layer = oracle.lively(lambda: kind(D, d_state=4, discretization=rule, **options, rngs=nnx.Rngs(0)))
    if "max_real" in options:
        layer.kernel.Lambda[...] = layer.kernel.Lambda[...].at[:2, 0].set(jnp.array([30.0, 0.0]))
    definition, parameters = nnx.split(layer)
    mask = np.zeros((4, 9), bool)
    mask[0, 5:], mask[1, :4], mask[2, [0, 3, 4, 8]] = True, True, True  # and in the last row nothing
    u = jnp.where(mask[..., None], sequence(9, batch=4), 1e3)

    @quick.jit
    def run(parameters, u, mask):
        def value(parameters, u):
            y = nnx.merge(definition, parameters)(u, mask=mask, rate=rate)
            return jnp.sum(jnp.sin(y)), y

        return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(parameters, u)

    (_, y), (in_parameters, in_u) = run(parameters, u, mask)
    assert not np.any(y[~mask]) and not np.any(in_u[~mask])
    total = jax.tree.map(jnp.zeros_like, parameters)
    for row, real in enumerate(mask[:3]):
        (_, alone), (gradient, in_alone) = run(parameters, u[row : row + 1, real], None)
        oracle.close(y[row, real], alone[0])
        oracle.close(in_u[row, real], in_alone[0], 1e-4)
        total = jax.tree.map(jnp.add, total, gradient)
    jax.tree.map(lambda ours, theirs: oracle.close(ours, theirs, 1e-4), in_parameters, total)


def test_modes_that_grow_are_sound_in_whole_sequences():
    kernel = DSSKernel(D, d_state=3, max_real=None, rngs=nnx.Rngs(0))
    kernel.Lambda[...] = kernel.Lambda[...].at[:, 0].set(jnp.array([40.0, 1.0, -1.0]))
    kernel.log_dt[...] = jnp.full((D, 2), jnp.log(0.3))
    K = np.asarray(oracle.taps(kernel, 300))
    x = 0.3 * oracle.numbers(np.asarray(kernel.Lambda[...], float))[:, None] * np.arange(300)
    e = np.exp(x - x.real.max(-1, keepdims=True))
    W = oracle.numbers(np.asarray(kernel.W[...], float)) / oracle.numbers(np.asarray(kernel.Lambda[...], float))
    oracle.close(K, np.einsum("chn,nl->clh", W, e / e.sum(-1, keepdims=True)).real)


@pytest.mark.parametrize("parametrization", ["clip", "exp", "exp-re-im"])
@pytest.mark.parametrize("update", [-1e6, 1e6])
def test_it_stays_stable_under_any_update(parametrization, update):
    kernel = DSSKernel(2, d_state=4, parametrization=parametrization, l_max=5, rngs=nnx.Rngs(0))
    nnx.update(kernel, jax.tree.map(lambda x: x + update, nnx.state(kernel, nnx.Param)))
    A, dt = (np.asarray(x, complex) for x in kernel.scaled())
    assert (A.real < 0).all() and (dt.real > 0).all() and (np.abs(np.asarray(kernel.recurrence().A_bar)) <= 1).all()
    definition, state = nnx.split(kernel)
    value, gradients = quick.jit(jax.value_and_grad(lambda state: nnx.merge(definition, state)(5).sum()))(state)
    chex.assert_tree_all_finite((value, gradients))


def test_initial_values():
    kernel = DSSKernel(64, d_state=8, rngs=nnx.Rngs(0))
    modes = kernel.modes_of_all()
    np.testing.assert_allclose(modes.real, -0.5, rtol=1e-6)
    assert (np.asarray(modes.imag) > 0).all() and 80 < float(modes.imag.max()) < 82  # LegS of 16 states
    np.testing.assert_array_equal(kernel.log_dt[..., 0], kernel.log_dt[..., 1])
    assert 0.9 < float(kernel.W[...].std()) < 1.1
    logarithms = DSSKernel(2, d_state=8, parametrization="exp-re-im", rngs=nnx.Rngs(0))
    np.testing.assert_allclose(logarithms.modes_of_all(), modes, rtol=1e-5)


@pytest.mark.usefixtures("as_a_user")
def test_messages():
    u = sequence(3)
    for call, message in (
        (lambda: make()(u, return_state=True), "l_max must be given for a state.*softmax is over the length"),
        (lambda: make()(u, mode="scan"), "l_max must be given"),
        (lambda: make().step(u[:, 0], make().init_state(2)), "l_max must be given"),
        (lambda: make(l_max=2)(u), "at most 2, over which modes are normalized, got 3. Build it with l_max=3 or None"),
        (lambda: make(l_max=2)(u), "length must be at most 2, over which modes are normalized, got 3"),
        (lambda: make(l_max=3)(u, rate=2.0), "length must be at most 2, .*, got 3. Build it with l_max=6 or None"),
        (lambda: make(l_max=3, max_real=None).recurrence(), "max_real must be negative for a state.*overflows"),
        (lambda: DSS(D, discretization="hold", rngs=nnx.Rngs(0)), "DSS: Unknown discretization 'hold'"),
        (lambda: DSS(D, parametrization="log", rngs=nnx.Rngs(0)), "DSS: Unknown parametrization 'log'"),
        (lambda: DSS(D, init="rand", rngs=nnx.Rngs(0)), "DSS: Unknown initialization 'rand'"),
        (lambda: DSS(D, d_state=0, rngs=nnx.Rngs(0)), "DSS: d_state must be a positive int, got 0"),
        (lambda: DSS(D, dt_min=0.2, rngs=nnx.Rngs(0)), r"\(dt_min, dt_max\) must be positive and increasing"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(call)  # traced only
