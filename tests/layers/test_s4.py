"""S4: against a loop in numpy; the C~ that it stores, and the forms of its steps."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax.layers import S4
from ssmjax.layers.lti.s4 import DPLRKernel
from ssmjax.layers.lti.state_space import as_complex
from ssmjax.ops.recurrences.scan import scan
from tests.layers import convolution_oracle as oracle
from tests.layers import quick

pytestmark = pytest.mark.slow  # minutes to compile; the default tests have the dumps and the registries

D = 4


def make(**options):
    return oracle.lively(lambda: S4(D, **({"d_state": 4, "l_max": 9} | options), rngs=nnx.Rngs(0)))


def sequence(length, batch=2, seed=2):
    return jax.random.normal(jax.random.key(seed), (batch, length, D))


def built(**options):
    """A kernel with its own initial values, in one program."""
    make = lambda: nnx.split(DPLRKernel(D, **options, rngs=nnx.Rngs(0)))[1]  # noqa: E731
    definition, _ = nnx.split(nnx.eval_shape(lambda: DPLRKernel(D, **options, rngs=nnx.Rngs(0))))
    return nnx.merge(definition, quick.jit(make)())


MASK = np.array([[0, 0, 1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0, 0], [1] * 9, [0] * 9], bool)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 2, "copies": 2},
        {"channels": 2, "bidirectional": "exclusive"},
        {"bidirectional": "inclusive", "l_max": 16},
        {"conj_sym": False, "d_state": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["conv", "scan"])
def test_equals_a_loop_with_every_option_and_padding(options, mode):
    layer, u = make(**options), sequence(9, batch=len(MASK))
    u = jnp.where(MASK[..., None], u, 1e3)
    system = oracle.s4(layer, conj_sym=options.get("conj_sym", True))
    expected = oracle.masked(system, np.asarray(layer.D[...]), u, MASK, options.get("bidirectional", "none"))
    oracle.close(oracle.call(layer, u, mask=MASK, mode=mode), expected)


@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_another_rate(rate):
    """The stored C~ serves for `l_kernel / rate` steps of `rate` times the size."""
    layer, u = make(l_max=18), sequence(9)
    oracle.close(oracle.call(layer, u, rate=rate), oracle.run(oracle.s4(layer, rate), layer.D[...], u))


@pytest.mark.parametrize(("init", "rank"), [("legs", 1), ("legt", 2), ("fout", 1)])
def test_its_own_initial_values_step_as_they_convolve(init, rank):
    """C comes back from C~ without loss: in float32, in the way the reference does, FouT loses all but one digit."""
    kernel = built(init=init, rank=rank, d_state=16, l_max=40)
    definition, parameters = nnx.split(kernel)
    u = jnp.zeros((1, 40, D)).at[:, 0].set(1.0)

    @quick.jit
    def step(parameters):
        kernel = nnx.merge(definition, parameters)
        return scan(kernel.recurrence(), u, None, kernel.init_state(1))[0]

    oracle.close(step(parameters)[0, 0], oracle.taps(kernel, 40)[0], 3e-6)


def test_the_stored_output_vector_is_the_original_times_one_minus_a_power():
    layer = make(l_max=7)
    system = oracle.s4(layer)  # its C undoes the power
    C = jnp.asarray(system[2][..., :2], jnp.complex64)
    stored = np.asarray(layer.kernel.C[...])
    layer.kernel.set_output(C, 7)
    oracle.close(layer.kernel.C[...], stored)
    layer.kernel.set_output(C, 20)
    oracle.close(oracle.taps(layer.kernel, 20)[:, :7], _kernel(system, 7))


def _kernel(system, length):
    u = np.zeros((1, length, D))
    u[:, 0] = 1
    return oracle.run(system, np.zeros((1, D)), u)


@pytest.mark.parametrize("conj_sym", [True, False])
def test_extending_keeps_the_kernel(conj_sym):
    kernel = make(l_max=5, conj_sym=conj_sym).kernel
    before = oracle.taps(kernel, 5)
    longer = kernel.extend(11)
    assert longer.l_kernel == longer.extend(11).l_kernel == 20
    oracle.close(oracle.taps(longer, 20)[:, :5], before)
    assert kernel.l_kernel == 5, "the kernel itself stays as it is"
    chex.assert_trees_all_equal(oracle.taps(kernel, 5), before)


def test_the_state_of_an_extended_layer_fits_one_built_for_its_length():
    layer, u = make(l_max=5), sequence(20)
    layer.kernel = layer.kernel.extend(11)
    fresh = S4(D, d_state=4, l_max=layer.kernel.l_kernel, rngs=nnx.Rngs(3))
    nnx.update(fresh, nnx.state(layer))
    chex.assert_trees_all_equal(oracle.call(fresh, u), oracle.call(layer, u))
    oracle.close(oracle.call(fresh, u)[:, :5], oracle.call(make(l_max=5), u[:, :5]))


@pytest.mark.parametrize(("rate", "length"), [(0.3, 34), (0.7, 14), (1.0, 10), (2.0, 9), (3.0, 4)])
def test_the_recommended_length_is_enough(rate, length):
    with pytest.raises(ValueError, match="Build it with l_max=") as error:
        jax.eval_shape(lambda: make()(sequence(length), rate=rate))
    l_max = int(re.search(r"l_max=(\d+)\.", str(error.value))[1])
    jax.eval_shape(lambda: make(l_max=l_max)(sequence(length), rate=rate))


@pytest.mark.parametrize("form", ["dense", "linear"])
@pytest.mark.parametrize("rank", [1, 2])
def test_the_forms_of_a_step(form, rank):
    layer, u = make(rank=rank), sequence(9)
    definition, parameters = nnx.split(layer)

    @quick.jit
    def run(parameters, u):
        layer = nnx.merge(definition, parameters)
        recurrence = layer.recurrence(form=form)
        step = lambda state, u: layer.step(u, state, recurrence=recurrence)[::-1]  # noqa: E731
        return jnp.swapaxes(jax.lax.scan(step, layer.init_state(2), jnp.swapaxes(u, 0, 1))[1], 0, 1)

    oracle.close(run(parameters, u), oracle.run(oracle.s4(layer), layer.D[...], u))


def test_the_diagonal_form_is_for_matrices_that_are_diagonal_in_floating_point():
    kernel = built(init="fout", d_state=16, l_max=40)
    recurrence = kernel.recurrence(form="diagonal")
    u = jnp.zeros((1, 40, D)).at[:, 0].set(1.0)
    y, _ = scan(recurrence, u, None, jnp.zeros((1, D, 16), jnp.complex64))
    oracle.close(y[0, 0], oracle.taps(kernel, 40)[0], 1e-5)
    with pytest.raises(ValueError, match="form must be 'dense' or 'linear' for this init.*condition number"):
        built(init="legs", d_state=16, l_max=40).recurrence(form="diagonal")
    with pytest.raises(ValueError, match="'dense' or 'linear' under jax.jit"):
        jax.eval_shape(lambda: DPLRKernel(D, d_state=4, rngs=nnx.Rngs(0)).recurrence(form="diagonal"))


def test_steps_in_the_diagonal_form_continue_from_a_layers_state():
    layer, u = make(init="fout", l_max=16), sequence(9)
    whole, last = layer(u, return_state=True)
    _, state = layer(u[:, :6], return_state=True)
    recurrence = layer.recurrence(form="diagonal")
    with pytest.raises(ValueError, match=r"S4.step: state must be .* = \(2, \d+, \d+\), got .*recurrence.enter.state."):
        layer.step(u[:, 6], state, recurrence=recurrence)
    state = recurrence.enter(state)
    for t in range(6, 9):
        y, state = layer.step(u[:, t], state, recurrence=recurrence)
        oracle.close(y, whole[:, t], 1e-5)
    oracle.close(recurrence.leave(state), last, 1e-5)


@pytest.mark.usefixtures("as_a_user")
def test_what_a_kernel_does_not_extend_to():
    for length in (2.5, 0, True, "9"):
        with pytest.raises(ValueError, match="DPLRKernel.extend: length must be a positive int, got"):
            make().kernel.extend(length)
    with pytest.raises(ValueError, match=r"extend: bandlimit must be None, got 0.1. Build the layer with l_max=20"):
        make(bandlimit=0.1).kernel.extend(20)


def test_it_stays_stable_under_any_update():
    for update in (-1e6, 1e6):
        kernel = make().kernel
        step = jax.tree.map(lambda x: x, nnx.state(kernel, nnx.Param))
        step["A_real"][...] = step["A_real"][...] + update
        nnx.update(kernel, step)
        assert (np.asarray(kernel.A().real) < 0).all()
        chex.assert_tree_all_finite(oracle.taps(kernel, 9))
    assert np.abs(np.linalg.eigvals(oracle.s4(make())[0])).max() < 1


def test_initial_values():
    kernel = built(d_state=16, l_max=32, copies=2, channels=2)
    chex.assert_shape([kernel.inv_dt[...], kernel.C[...], kernel.B[...]], [(D, 1), (2, D, 8, 2), (1, 2, 8, 2)])
    chex.assert_shape([kernel.A_real[...], kernel.A_imag[...], kernel.P[...]], [(2, 8), (2, 8), (1, 2, 8, 2)])
    np.testing.assert_allclose(kernel.A().real, -0.5, rtol=1e-5)
    B, P = (as_complex(x[...])[0] for x in (kernel.B, kernel.P))
    unclipped = np.abs(np.asarray(B.imag)) < 2
    np.testing.assert_allclose(np.asarray(P / B)[unclipped], 0.5**0.5, rtol=1e-4)


def test_gradients_agree_between_the_modes():
    """By way of C~, the scan and the convolution are different functions of the parameters with the same values."""
    layer, u = make(), sequence(9)
    definition, parameters = nnx.split(layer)
    gradients = [
        quick.jit(jax.grad(lambda p, u, mode=mode: (nnx.merge(definition, p)(u, mode=mode) ** 2).sum(), (0, 1)))(
            parameters, u
        )
        for mode in ("conv", "scan")
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, gradients), strict=True):
        oracle.close(ours, theirs, 1e-4)


@pytest.mark.usefixtures("as_a_user")
def test_messages():
    layer = make()
    for call, message in (
        (
            lambda: layer(sequence(10)),
            r"length must be at most 9, for which C~ is made, got 10\. Build it with l_max=10\.\s",
        ),
        (lambda: layer(sequence(9), rate=2.0), r"at most 4, for which C~ is made \(at rate 2.0\).*l_max=18"),
        (lambda: S4(D, l_max=10, rngs=nnx.Rngs(0))(sequence(34), rate=0.3), "at most 33, .*l_max=11"),
        (lambda: S4(D, d_state=3, rngs=nnx.Rngs(0)), "S4: d_state must be even, got 3"),
        (lambda: S4(D, l_max=0, rngs=nnx.Rngs(0)), "S4: l_max must be a positive int, got 0"),
        (lambda: S4(D, init="legt", rngs=nnx.Rngs(0)), "rank must be at least 2 for 'legt', got 1"),
        (lambda: S4(D, dt_min=-1.0, rngs=nnx.Rngs(0)), r"\(dt_min, dt_max\) must be positive and increasing"),
        (lambda: layer.kernel.recurrence(form="sparse"), "Unknown form 'sparse'"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(call)  # traced only
    for mode in ("conv", "scan"):
        with pytest.raises(ValueError, match="S4: rate must be a Python number, got .*close over the number"):
            jax.eval_shape(lambda rate, mode=mode: layer(sequence(9), rate=rate, mode=mode), 1.0)
