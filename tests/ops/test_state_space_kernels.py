"""The kernels of diagonal and diagonal plus low-rank state spaces, against float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops
from ssmjax.init import hippo
from ssmjax.ops._numerics import double_float as df
from ssmjax.ops._numerics import powers
from ssmjax.ops.dplr_kernel import xla as dplr
from ssmjax.ops.dplr_kernel.cost import dplr_kernel_cost
from ssmjax.ops.vandermonde.cost import vandermonde_cost

pytestmark = pytest.mark.slow  # minutes to compile; the default tests have the dumps and the registries

RULES = ["zoh", "bilinear", "euler"]
CASES = [(1, "zoh"), (2, "bilinear"), (63, "zoh"), (64, "bilinear"), (65, "euler"), (165, "zoh"), (165, "bilinear")]


@pytest.fixture
def float64():
    """Double precision for one test: the reference implementations become float64 oracles."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def wide(tree):
    """The same numbers with twice the bits, as numpy arrays."""
    return jax.tree.map(lambda v: np.asarray(v).astype(np.complex128 if np.iscomplexobj(v) else np.float64), tree)


def error(got, wanted):
    """The largest difference relative to the largest value."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape
    return np.max(abs(got - wanted)) / np.max(abs(wanted))


def diagonal_problem(h=3, n=4, lead=(2,), seed=0):
    """C, A, dt: HiPPO-like modes, and step sizes log-uniform in [0.001, 0.1]."""
    rng = np.random.default_rng(seed)
    C = rng.normal(size=(*lead, h, n)) + 1j * rng.normal(size=(*lead, h, n))
    A = -0.5 - 1j * np.pi * (np.arange(n) + rng.random((h, n)))
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), h))
    return C.astype(np.complex64), A.astype(np.complex64), dt.astype(np.float32)


def A_bar(A, dt, rule):
    x = wide(dt)[:, None] * wide(A)
    return {"zoh": np.exp(x), "bilinear": (1 + x / 2) / (1 - x / 2), "euler": 1 + x}[rule]


def vandermonde(C, A, dt, length, rule):
    K = [2 * np.einsum("...hn,hn->...h", wide(C), A_bar(A, dt, rule) ** l).real for l in range(length)]
    return np.stack(K, axis=-2)


def grads(function, args, cotangent):
    def loss(args):
        out = function(*args)
        return jnp.sum(jnp.real(out) * cotangent.real - jnp.imag(out) * cotangent.imag)

    return jax.jit(jax.grad(loss))(args)


# ------------------------------------------------------------------------------------------------------- Vandermonde


@pytest.mark.parametrize(("length", "rule"), CASES)
def test_vandermonde(length, rule):
    C, A, dt = diagonal_problem()
    K = jax.jit(lambda C, A, dt: ops.vandermonde(C, A, length, dt=dt, rule=rule))(C, A, dt)
    chex.assert_shape(K, (2, length, 3))
    assert error(K, vandermonde(C, A, dt, length, rule)) < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_vandermonde(rule, float64):
    args = diagonal_problem(lead=())
    cotangent = np.random.default_rng(1).normal(size=(165, 3)).astype(np.float32)

    def run(implementation, C, A, dt):
        return ops.vandermonde(C, A, 165, dt=dt, rule=rule, implementation=implementation)

    got = grads(functools.partial(run, "xla"), args, cotangent)
    wanted = grads(functools.partial(run, "reference"), wide(args), cotangent)
    assert [v.dtype for v in got] == [v.dtype for v in args]
    assert max(map(error, got, wanted)) < 3e-6


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_error_does_not_grow_with_the_length(rule):
    """An angle rounded to a float is wrong by 1e-3 here, where the modes are hardly damped."""
    C, A, dt = diagonal_problem(h=4, n=32, lead=())
    A = (-1e-4 + 1j * A.imag).astype(np.complex64)
    C = C * np.asarray(ops.discretize(A, dt[:, None], rule)[1])
    K = jax.jit(lambda C, A, dt: ops.vandermonde(C, A, 16384, dt=dt, rule=rule))(C, A, dt)
    logs = np.log(A_bar(A, dt, rule))[..., None]
    starts = range(0, 16384, 1024)
    wanted = [2 * np.einsum("hn,hnl->lh", wide(C), np.exp(logs * np.arange(l, l + 1024))).real for l in starts]
    assert error(K, np.concatenate(wanted)) < 1e-6


def test_vandermonde_of_real_modes_and_without_steps():
    C, A, _ = diagonal_problem(lead=())
    run = jax.jit(ops.vandermonde, static_argnums=2)
    K = run(C.real, 0.1 * A.real, 9)
    chex.assert_type(K, jnp.float32)
    assert error(K, vandermonde(C.real, 0.1 * A.real, np.ones(3), 9, "zoh")) < 1e-6
    assert error(run(C.real, A.real, 9, dt=np.full(A.shape, 0.1, np.float32)), K) < 1e-6  # a step for every mode
    half = run(jnp.asarray(C.real, jnp.bfloat16), A, 9)
    chex.assert_trees_all_equal(half, run(jnp.asarray(C.real, jnp.bfloat16).astype(jnp.float32), A, 9))


def test_higher_derivatives_of_vandermonde(float64):
    """Forward over reverse mode, at A_bar = 0 as well, where there is no logarithm."""
    C, A, dt = wide(diagonal_problem(h=1, n=2, lead=()))
    A[0, 0] = -2 / dt[0]

    def loss(implementation, re, im, dt):
        K = ops.vandermonde(C, jax.lax.complex(re, im), 11, dt=dt, rule="bilinear", implementation=implementation)
        return jnp.sum(jnp.sin(K))

    point, along = (A.real, A.imag, dt), (np.ones((1, 2)), np.full((1, 2), 2.0), np.ones(1))
    got, wanted = (
        jax.jit(lambda p, v, i=i: jax.jvp(jax.grad(functools.partial(loss, i), (0, 1, 2)), p, v))(point, along)
        for i in ("xla", "reference")
    )
    chex.assert_trees_all_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("length", "rule"), CASES)
def test_vandermonde_state(length, rule):
    _, A, dt = diagonal_problem()
    u = np.random.default_rng(1).normal(size=(2, length, 3)).astype(np.float32)
    state = jax.jit(lambda u, A, dt: ops.vandermonde_state(u, A, dt=dt, rule=rule))(u, A, dt)
    powers = A_bar(A, dt, rule)[..., None] ** np.arange(length)[::-1]
    assert error(state, np.einsum("hnl,blh->bhn", powers, wide(u))) < 2e-6


def test_gradients_of_the_state(float64):
    _, A, dt = diagonal_problem()
    rng = np.random.default_rng(1)
    u, cotangent = rng.normal(size=(2, 65, 3)).astype(np.float32), rng.normal(size=(2, 3, 4)) * (1 + 1j)

    def run(implementation, u, A, dt):
        return ops.vandermonde_state(u, A, dt=dt, implementation=implementation)

    got = grads(functools.partial(run, "xla"), (u, A, dt), cotangent.astype(np.complex64))
    wanted = grads(functools.partial(run, "reference"), wide((u, A, dt)), cotangent)
    assert max(map(error, got, wanted)) < 3e-6


def test_vmap():
    C, A, dt = diagonal_problem()
    C, A = C[:, None], np.stack([A, 2 * A])
    batched = jax.jit(jax.vmap(lambda C, A: ops.vandermonde(C, A, 17, dt=dt)))(C, A)
    for i in range(2):
        assert error(batched[i, 0], vandermonde(C[i, 0], A[i], dt, 17, "zoh")) < 1e-6


def temporaries(function, *args):
    """Bytes of the temporaries of a gradient."""
    loss = lambda *args: jnp.sum(function(*args) ** 2)  # noqa: E731
    compiled = jax.jit(jax.grad(loss, argnums=range(len(args)))).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_vandermonde():
    """Some arrays of the kernel's size, and none that is n times as large."""
    h, n, l = 8, 64, 8192
    C, A, dt = diagonal_problem(h=h, n=n, lead=())
    assert temporaries(lambda C, A, dt: ops.vandermonde(C, A, l, dt=dt), C, A, dt) < 16 * (4 * h * l)


# -------------------------------------------------------------------------------------------------------------- S4


def dplr_problem(measure, size, h=4, c=(), rank=None, seed=0):
    """A, P, B, C, dt of a HiPPO measure."""
    rng = np.random.default_rng(seed)
    modes = hippo.nplr(measure, size, rank=rank, clip=2.0)
    A = np.minimum(modes.A.real, -1e-4) + 1j * modes.A.imag
    C = rng.normal(size=(*c, h, size // 2)) + 1j * rng.normal(size=(*c, h, size // 2))
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), h))
    A, P, B = (np.repeat(v[..., None, :], h, axis=-2) for v in (A, modes.P, modes.B))
    return *(v.astype(np.complex64) for v in (A, P, B, C)), dt.astype(np.float32)


def dplr_kernel(A, P, B, C, dt, length):
    """In float64 through the resolvent; B and C without leading axes."""
    A, P, B, C = (np.concatenate([v, v.conj()], axis=-1) for v in wide((A, P, B, C)))
    K = []
    for h, step in enumerate(wide(dt)):
        half = step / 2 * (np.diag(A[h]) - P[:, h].T @ P[:, h].conj())
        eye = np.eye(len(half))
        values, vectors = np.linalg.eig(np.linalg.solve(eye - half, eye + half))
        b = np.linalg.solve(vectors, np.linalg.solve(eye - half, step * B[h]))
        omega = np.exp(-2j * np.pi * np.arange(length // 2 + 1) / length)
        K.append(np.fft.irfft(((C[h] @ vectors) * b / (1 - omega[:, None] * values)).sum(-1), n=length))
    return np.stack(K, axis=-1)


@pytest.mark.parametrize(
    ("measure", "rank", "length"),
    [
        ("legs", 1, 1),
        ("legs", 1, 2),
        ("legs", 1, 3),
        ("legs", 3, 40),
        ("legt", 2, 65),
        ("fout", 1, 40),
        ("fout", 1, 65),
    ],
)
def test_dplr(measure, rank, length):
    """FouT has an undamped mode at zero, whose terms in the plain sums are thousands of times the result."""
    args = dplr_problem(measure, 8, rank=rank)
    K = jax.jit(functools.partial(ops.dplr_kernel, length=length))(*args)
    chex.assert_type(K, jnp.float32)
    assert error(K, dplr_kernel(*args, length)) < 5e-6


@pytest.mark.parametrize("length", [1024, 16384])
def test_error_of_legs(length):
    """The original implementation of S4 is wrong by 3e-5 and 7e-4 at these lengths."""
    args = dplr_problem("legs", 64, h=2)
    K = jax.jit(functools.partial(ops.dplr_kernel, length=length))(*args)
    assert error(K, dplr_kernel(*args, length)) < 1e-6


@pytest.mark.parametrize(("measure", "length"), [("legs", 165), ("legt", 40), ("fout", 40)])
def test_gradients_of_dplr(measure, length, float64):
    args = dplr_problem(measure, 16, h=2)
    cotangent = np.random.default_rng(1).normal(size=(length, 2)).astype(np.float32)
    got = grads(lambda *args: ops.dplr_kernel(*args, length), args, cotangent)
    wanted = grads(lambda *args: ops.dplr_kernel(*args, length, implementation="reference"), wide(args), cotangent)
    assert [v.dtype for v in got] == [v.dtype for v in args]
    assert max(map(error, got, wanted)) < 1e-4


def test_dplr_of_several_inputs_and_channels():
    A, P, B, C, dt = dplr_problem("legs", 8, c=(3,))
    inputs = np.stack([B, 1j * B])
    K = jax.jit(functools.partial(ops.dplr_kernel, length=20))(A, P, inputs, C, dt)
    chex.assert_shape(K, (2, 3, 20, 4))
    for m in range(2):
        for c in range(3):
            assert error(K[m, c], dplr_kernel(A, P, inputs[m], C[c], dt, 20)) < 2e-6


def test_blocks_of_frequencies_make_no_difference(monkeypatch):
    args = dplr_problem("legs", 8)
    monkeypatch.setitem(dplr.BLOCK_ELEMENTS, "cpu", 1)
    K = jax.jit(lambda *args: ops.dplr_kernel(*args, 165))(*args)
    assert error(K, dplr_kernel(*args, 165)) < 2e-6


def test_memory_of_dplr():
    h, n = 16, 32
    args = dplr_problem("legs", 2 * n, h=h)
    assert temporaries(lambda *args: ops.dplr_kernel(*args, 65536), *args) < 16 * (4 * h * 65536)


def test_dplr_matrices_step_as_the_kernel_convolves(float64):
    """C~ = C (I - A_bar^L), and an input vector s / dt + A s / 2 gives the outputs of a carried state."""
    A, P, B, C, dt = wide(dplr_problem("legt", 8, h=1))
    A_bar, B_bar = (np.asarray(v)[0] for v in ops.dplr_matrices(A, P, B, dt))
    full = np.concatenate([C, C.conj()], axis=-1)[0]
    truncated = (full - full @ np.linalg.matrix_power(A_bar, 12))[:4][None]
    K = ops.dplr_kernel(A, P, B, truncated, dt, 12)[:, 0]
    wanted = [(full @ np.linalg.matrix_power(A_bar, l) @ B_bar).real for l in range(12)]
    chex.assert_trees_all_close(K, np.array(wanted), rtol=1e-10, atol=1e-10)
    half = np.random.default_rng(1).normal(size=4) * (1 + 1j)
    s = np.concatenate([half, half.conj()])
    whole = np.diag(np.concatenate([A[0], A[0].conj()]))
    whole = whole - sum(np.outer(p, p.conj()) for p in np.concatenate([P[:, 0], P[:, 0].conj()], axis=-1))
    carried = (s / dt[0] + whole @ s / 2)[:4][None]
    wanted = [(full @ np.linalg.matrix_power(A_bar, l + 1) @ s).real for l in range(12)]
    got = ops.dplr_kernel(A, P, carried, truncated, dt, 12)[:, 0]
    chex.assert_trees_all_close(got, np.array(wanted), rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------------------- DSS


def softmax_problem():
    """With modes that grow, and one that neither grows nor turns."""
    W, A, dt = diagonal_problem(n=5)
    A = A + np.array([0, 0, 3, 0.5, 0], np.float32)
    A[0, 0] = 0
    return W, A, 10 * dt


@pytest.mark.parametrize("length", [1, 63])
def test_softmax_kernel(length, float64):
    args = softmax_problem()
    run = functools.partial(ops.softmax_kernel, length=length)
    wanted = run(*wide(args[:2]), dt=wide(args[2]), implementation="reference")
    got = jax.jit(lambda W, A, dt: run(W, A, dt=dt))(*args)
    assert error(got, wanted) < 3e-6
    cotangent = np.random.default_rng(1).normal(size=got.shape).astype(np.float32)
    got = grads(lambda W, A, dt: run(W, A, dt=dt), args, cotangent)
    wanted = grads(lambda W, A, dt: run(W, A, dt=dt, implementation="reference"), wide(args), cotangent)
    assert error(got[0], wanted[0]) < 1e-5
    if length > 1:  # of a single value the kernel is W, whatever the modes are
        assert max(map(error, got, wanted)) < 3e-5


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_softmax_kernel_over_several_lengths(implementation, float64):
    """The kernels of those lengths, with zeros after them, and their gradients."""
    args, most, lengths = softmax_problem(), 63, np.array([63, 31, 2, 1, 0])
    args = args if implementation == "xla" else wide(args)  # in float32 the reference itself is rounded too often
    cotangent = np.random.default_rng(1).normal(size=(2, most, 3)).astype(np.float32)

    def kernels(W, A, dt, over=lengths):
        return ops.softmax_kernel(W, A, most, dt=dt, over=over, implementation=implementation)

    K = jax.jit(kernels)(*args, lengths)
    gradients = [grads(lambda *args, row=row: kernels(*args)[row], args, cotangent) for row in range(4)]
    for row, n in enumerate(map(int, lengths[:4])):

        def shorter(W, A, dt, n=n):
            return ops.softmax_kernel(W, A, n, dt=dt, implementation="reference")

        assert not np.any(K[row, :, n:])
        assert error(K[row, :, :n], shorter(*wide(args))) < 3e-6
        wanted = grads(shorter, wide(args), cotangent[:, :n])
        assert error(gradients[row][0], wanted[0]) < 1e-5
        if n > 1:  # of a single value the kernel is W, whatever the modes are
            assert max(map(error, gradients[row], wanted)) < 3e-5
    assert not np.any(K[4])
    if implementation == "xla":
        for narrow in (np.int8, np.int16):
            np.testing.assert_array_equal(jax.jit(kernels)(*args, lengths.astype(narrow)), K)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_softmax_kernel_over_nothing(implementation):
    """Zeros, and no NaN in the gradients, also with nothing added to a sum that is zero."""
    W, A, dt = softmax_problem()

    def total(W, A, dt):
        over = jnp.array([0])
        return ops.softmax_kernel(W, A, 5, dt=dt, epsilon=0.0, over=over, implementation=implementation).sum()

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(W, A, dt)
    assert value == 0
    assert not any(np.any(g) for g in gradients)


# ---------------------------------------------------------------------------------------------------- the arithmetic


def test_double_floats_keep_their_low_part_when_compiled():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1000)).astype(np.float32)
    high, low = map(wide, jax.jit(df.two_product)(a, b))
    np.testing.assert_array_equal(high + low, wide(a) * wide(b))
    re, im = jax.jit(df.divide)(*(df.double(jnp.asarray(v)) for v in (a, b, b + 3, a)))
    got = sum(wide(re)) + 1j * sum(wide(im))
    wanted = (wide(a) + 1j * wide(b)) / (wide(b + 3) + 1j * wide(a))
    assert np.max(abs(got - wanted) / abs(wanted)) < 1e-13


@pytest.mark.parametrize("rule", RULES)
def test_squares_are_rounded_once(rule):
    _, A, dt = diagonal_problem()
    steps = np.repeat(dt[:, None], 4, axis=1)
    re, im = jax.jit(lambda re, im, dt: powers.squares((re, im), dt, rule, 8))(A.real, A.imag, steps)
    wanted = np.stack([A_bar(A, dt, rule) ** 2**k for k in range(8)])
    assert np.max(abs(re + 1j * im - wanted) / abs(wanted)) < 3e-7


def test_cost():
    """Roughly: XLA counts copies too, and the body of a loop once."""
    C, A, dt = diagonal_problem(h=8, n=32, lead=())
    analysis = jax.jit(lambda C, A, dt: ops.vandermonde(C, A, 1024, dt=dt)).lower(C, A, dt).compile().cost_analysis()
    assert 0.8 < analysis["flops"] / vandermonde_cost(8, 1024, 32).flops < 1.2
    args = dplr_problem("legs", 64, h=8)  # one block
    analysis = jax.jit(functools.partial(ops.dplr_kernel, length=1024)).lower(*args).compile().cost_analysis()
    assert 0.7 < analysis["flops"] / dplr_kernel_cost(8, 1024, 32).flops < 1.4
