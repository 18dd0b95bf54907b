"""S4D: against a loop in numpy, with every option; and what holds by its parametrization."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax import ops
from ssmjax.layers import S4D
from ssmjax.layers.lti.s4d import DiagonalKernel
from ssmjax.layers.lti.state_space import TRANSFORMS, Frozen, positive
from tests.layers import convolution_oracle as oracle
from tests.layers import quick

pytestmark = pytest.mark.slow  # minutes to compile; the default tests have the dumps and the registries

D = 6
RULES = ("zoh", "bilinear", "euler", "impulse", "dirac", "async")


def make(**options):
    return oracle.lively(lambda: S4D(D, d_state=4, **options, rngs=nnx.Rngs(0)))


def sequence(length, batch=2, seed=2):
    return jax.random.normal(jax.random.key(seed), (batch, length, D))


MASK = np.array([[0, 0, 1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0, 0], [1] * 9, [0] * 9], bool)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_equals_a_loop_under_every_rule(rule, rate):
    layer, u = make(discretization=rule), sequence(9)
    system = oracle.s4d(layer, rate, rule)
    oracle.close(oracle.call(layer, u, rate=rate), oracle.run(system, layer.D[...], u))


@pytest.mark.parametrize(
    "options",
    [
        {"dt_tie": False},
        {"copies": 2, "channels": 3},
        {"real": True, "init": "diag-real"},
        {"bidirectional": "exclusive", "channels": 2},
        {"bidirectional": "inclusive"},
        {"conj_sym": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["conv", "scan"])
def test_equals_a_loop_with_every_option_and_padding(options, mode):
    layer, u = make(**options), sequence(9, batch=len(MASK))
    u = jnp.where(MASK[..., None], u, 1e3)  # what stands in the padding must not matter
    system = oracle.s4d(layer, conj_sym=options.get("conj_sym", True))
    expected = oracle.masked(system, np.asarray(layer.D[...]), u, MASK, options.get("bidirectional", "none"))
    ours = oracle.call(layer, u, mask=MASK, mode=mode)
    oracle.close(ours, expected)
    assert not np.asarray(ours)[~MASK].any()


@pytest.mark.parametrize("bidirectional", ["none", "exclusive"])
def test_taps_are_limited(bidirectional):
    layer = make(l_max=4, bidirectional=bidirectional)
    u = jnp.zeros((1, 11, D)).at[:, 5].set(1.0)
    y = np.asarray(oracle.call(layer, u))[0]
    reached = np.abs(y).max(-1) > 1e-5
    assert reached.tolist() == [1 <= t <= 8 if bidirectional == "exclusive" else 5 <= t <= 8 for t in range(11)]
    with pytest.raises(ValueError, match="S4D: u must be at most 4 long.*Build it with l_max=None"):
        layer(u, mode="scan")


def test_a_band_limit_drops_fast_modes():
    limited, free = (DiagonalKernel(D, d_state=8, init="diag-lin", bandlimit=b, rngs=nnx.Rngs(0)) for b in (0.1, None))
    turns = free.step_sizes() * jnp.abs(free.A().imag) / (2 * np.pi)
    kept = np.asarray(turns < 0.05)
    assert 0 < kept.sum() < kept.size
    C = np.where(kept[None, ..., None], np.asarray(free.C[...]), 0)
    free.C[...] = jnp.asarray(C)
    oracle.close(oracle.taps(limited, 9), oracle.taps(free, 9), 1e-6)
    definition, state = nnx.split(limited)
    gradient = quick.jit(jax.grad(lambda state: nnx.merge(definition, state)(9).sum()))(state)
    assert not np.asarray(gradient["C"][...])[0][~kept].any()


def test_softmax_normalizes_over_the_length():
    kernel = oracle.lively(lambda: DiagonalKernel(D, d_state=4, discretization="softmax", rngs=nnx.Rngs(0)))
    A, dt = (np.asarray(x, complex) for x in (kernel.A(), kernel.step_sizes()))
    C, B = (oracle.numbers(np.asarray(x[...], float)) for x in (kernel.C, kernel.B))
    e = np.exp((dt * A)[..., None] * np.arange(7))
    expected = np.einsum("chn,hnl->clh", C * (B[0] / A), e / e.sum(-1, keepdims=True)).real
    oracle.close(oracle.taps(kernel, 7), expected)
    with pytest.raises(ValueError, match="discretization must be one with a recurrence, got 'softmax'"):
        kernel.recurrence()


@pytest.mark.parametrize("transform", sorted(TRANSFORMS))
def test_every_transform_starts_where_it_should(transform):
    start = jnp.array([1e-3, 0.1, 0.7])
    stored = TRANSFORMS[transform][1](start)
    expected = np.asarray(start) + (1e-4 if transform == "relu" else 0)
    np.testing.assert_allclose(positive(stored, transform), expected, rtol=1e-5)


@pytest.mark.parametrize("transform", sorted(TRANSFORMS))
@pytest.mark.parametrize("update", [-1e6, 1e6])
def test_it_stays_stable_under_any_update(transform, update):
    """Re A < 0 and |A_bar| < 1, in exact arithmetic from float32 parameters, and finite kernels and gradients."""
    kernel = DiagonalKernel(2, d_state=4, real_transform=transform, dt_transform=transform, rngs=nnx.Rngs(0))
    optimizer_step = jax.tree.map(lambda x: x + update, nnx.state(kernel, nnx.Param))
    nnx.update(kernel, optimizer_step)
    A, dt = np.asarray(kernel.A(), complex), np.asarray(kernel.step_sizes(), float)
    assert (A.real < 0).all() and (dt > 0).all()
    logarithm = {"zoh": (dt * A).real, "bilinear": np.log1p(dt * A.real * 2 / abs(1 - dt * A / 2) ** 2)}
    assert (logarithm["zoh"] < 0).all() and (logarithm["bilinear"] < 0).all()
    definition, state = nnx.split(kernel)
    value, gradients = quick.jit(jax.value_and_grad(lambda state: nnx.merge(definition, state)(5).sum()))(state)
    chex.assert_tree_all_finite((value, gradients))


@pytest.mark.parametrize("rule", ["zoh", "bilinear", "impulse", "dirac", "async"])
def test_a_discretized_mode_decays(rule):
    kernel = make(discretization=rule).kernel
    assert (np.abs(np.asarray(kernel.recurrence().A_bar)) < 1).all()


def test_initial_values():
    kernel = DiagonalKernel(64, d_state=8, init="diag-lin", copies=2, channels=2, rngs=nnx.Rngs(0))
    dt = np.asarray(kernel.step_sizes())
    assert 0.99e-3 < dt.min() < 2e-3 and 0.05 < dt.max() < 0.101
    np.testing.assert_allclose(kernel.A()[1], -0.5 - 1j * np.pi * np.arange(4), rtol=1e-6)
    chex.assert_shape(
        [kernel.inv_dt[...], kernel.C[...], kernel.B[...], kernel.A_real[...], kernel.A_imag[...]],
        [(64, 1), (2, 64, 4, 2), (1, 2, 4, 2), (2, 4), (2, 4)],
    )
    assert 0.65 < float(kernel.C[...].std()) < 0.76  # a complex standard normal
    fout = DiagonalKernel(2, d_state=8, init="fout", rngs=nnx.Rngs(0))
    np.testing.assert_allclose(fout.A().real, -1e-4, rtol=1e-5)  # zero in the original, too small for a logarithm


def test_copies_take_turns():
    layer = make(copies=2)
    A = np.asarray(layer.kernel.A())
    np.testing.assert_array_equal(A[0::2], A[:1].repeat(3, 0))
    np.testing.assert_array_equal(A[1::2], A[1:2].repeat(3, 0))


def test_random_initial_values_differ_and_are_determined_by_the_key():
    build = lambda seed: DiagonalKernel(2, d_state=4, init="diag-rand", B_init="random", rngs=nnx.Rngs(seed))  # noqa: E731
    one, again, other = build(0), build(0), build(1)
    np.testing.assert_array_equal(one.A_imag[...], again.A_imag[...])
    assert (np.asarray(one.A_imag[...]) != np.asarray(other.A_imag[...])).all()
    stacked = nnx.vmap(lambda key: DiagonalKernel(2, d_state=4, init="diag-rand", rngs=nnx.Rngs(key)))(
        jax.random.split(jax.random.key(0), 2)
    )
    assert (np.asarray(stacked.A_imag[...][0]) != np.asarray(stacked.A_imag[...][1])).all()


def test_frozen_parameters_are_no_params():
    kernel = DiagonalKernel(2, d_state=4, frozen=("B", "dt"), rngs=nnx.Rngs(0))
    assert isinstance(kernel.B, Frozen) and isinstance(kernel.inv_dt, Frozen)
    assert set(nnx.to_pure_dict(nnx.state(kernel, nnx.Param))) == {"A_real", "A_imag", "C"}


def test_the_state_is_complex64_under_bfloat16():
    layer = S4D(D, d_state=4, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    y, state = oracle.call(layer, sequence(5).astype(jnp.bfloat16), return_state=True)
    assert (y.dtype, state.dtype) == (jnp.bfloat16, jnp.complex64)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, layer.init_state(2))


def test_padding_has_no_gradient():
    layer, u, mask = make(bidirectional="inclusive"), sequence(9), MASK[:2]
    gradient = quick.jit(jax.grad(lambda u: (layer(u, mask=mask) ** 2).sum()))(u)
    assert not np.asarray(gradient)[~mask].any()


@pytest.mark.parametrize("mode", ["conv", "scan"])
def test_gradients_agree_with_finite_differences(mode):
    """In the direction of a random change of all parameters, the input and the state."""
    layer, u, state = make(), sequence(5, batch=1), 0.3 * jnp.ones((1, D, 2), complex)
    definition, parameters = nnx.split(layer)

    def loss(parameters, u, state):
        y, last = nnx.merge(definition, parameters)(u, state=state + 0j, return_state=True, mode=mode)
        return (y**2).sum() + (jnp.abs(last) ** 2).sum()

    arguments = parameters, u, state.real
    rng = np.random.default_rng(0)
    step = jax.tree.map(lambda x: jnp.asarray(1e-2 * rng.standard_normal(x.shape), x.dtype), arguments)
    value = quick.jit(loss)
    moved = [value(*jax.tree.map(lambda x, d, s=s: x + s * d, arguments, step)) for s in (1, -1)]
    gradients = quick.jit(jax.grad(loss, (0, 1, 2)))(*arguments)
    slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradients), jax.tree.leaves(step), strict=True))
    np.testing.assert_allclose(slope, (moved[0] - moved[1]) / 2, rtol=2e-3)


def test_the_kernel_is_exact_in_float32_at_any_length():
    """N = 64, LegS, 4,000 taps: the error stays at a few roundings (the reference's at 5e-6, where it is well)."""
    kernel = DiagonalKernel(2, d_state=64, rngs=nnx.Rngs(0))
    K = np.asarray(oracle.taps(kernel, 4000))
    A, dt = np.asarray(kernel.A(), complex), np.asarray(kernel.step_sizes(), float)
    C, B = (oracle.numbers(np.asarray(x[...], float)) for x in (kernel.C, kernel.B))
    weights = C[0] * B[0] * (np.exp(dt * A) - 1) / A
    exact = 2 * np.einsum("hn,hnl->lh", weights, np.exp((dt * A)[..., None] * np.arange(4000))).real
    oracle.close(K[0], exact, 2e-6)


@pytest.mark.usefixtures("as_a_user")
def test_messages():
    layer, u = make(), sequence(3)
    for call, message in (
        (lambda: S4D(D, d_state=5, rngs=nnx.Rngs(0)), "d_state must be even, got 5. Modes come in conjugate pairs"),
        (lambda: S4D(D, copies=4, rngs=nnx.Rngs(0)), "copies must be a divisor of d_model = 6, got 4"),
        (lambda: S4D(D, dt_min=-0.1, rngs=nnx.Rngs(0)), r"\(dt_min, dt_max\) must be positive and increasing"),
        (lambda: S4D(D, discretization="zho", rngs=nnx.Rngs(0)), "Unknown discretization 'zho'. Did you mean 'zoh'"),
        (lambda: S4D(D, real_transform="none", rngs=nnx.Rngs(0)), "Unknown real_transform 'none'"),
        (
            lambda: S4D(D, init="diag-lin", imag_transform="sigmoid", d_state=4, rngs=nnx.Rngs(0)),
            "imag_transform must be .* the initial values of 'diag-lin', up to 3.14.*got 'sigmoid'",
        ),
        (
            lambda: S4D(D, dt_max=2.0, dt_transform="sigmoid", rngs=nnx.Rngs(0)),
            "dt_transform must be .* up to 2",
        ),
        (lambda: S4D(D, bidirectional="both", rngs=nnx.Rngs(0)), "S4D: Unknown bidirectional 'both'"),
        (lambda: S4D(D, l_max=0, rngs=nnx.Rngs(0)), "l_max must be a positive int, or None, got 0"),
        (lambda: S4D(D, frozen=("E",), rngs=nnx.Rngs(0)), "Unknown frozen parameter 'E'"),
        (lambda: layer(u, mask=np.ones((2, 4), bool)), r"S4D: mask must be \(b, l\) = \(2, 3\).*got \(2, 4\)"),
        (lambda: layer(u[..., :2]), r"S4D: u must be \(b, l, 6\), got \(2, 3, 2\)"),
        (lambda: layer(u, mode="fft"), "S4D: Unknown mode 'fft'"),
        (lambda: layer(u, rate=-1.0), "S4D: rate must be positive and finite, got -1.0"),
        (lambda: layer(u, state=jnp.zeros((2, D, 4), complex)), r"state must be \(b, d, n\) = \(2, 6, 2\)"),
        (lambda: layer.step(u, layer.init_state(2)), r"S4D.step: u must be \(b, 6\), one token a row.*\(2, 3, 6\)"),
        (lambda: make(bidirectional="inclusive")(u, return_state=True), "left out in both directions"),
        (lambda: make(bidirectional="inclusive").recurrence(), "The reverse direction needs the whole sequence"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_an_op_refuses_a_negative_step():
    with pytest.raises(ValueError, match="vandermonde: dt must be positive, got -0.5"):
        ops.vandermonde(jnp.ones((1, 1)), -jnp.ones((1, 1)), 3, dt=jnp.array([-0.5]))
