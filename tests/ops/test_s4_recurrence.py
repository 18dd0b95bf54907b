"""Powers of a discretized diagonal, and the dense recurrence of S4, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops
from ssmjax.init import hippo
from ssmjax.ops.recurrences import dense
from tests.layers import quick


def error(got, wanted):
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape
    return np.max(abs(got - wanted)) / np.max(abs(wanted))


def diagonal(real=False):
    """Decays of at most a thousandth a step, at up to 130 radians a step."""
    A = np.array([[-0.5 - 1300j, -0.01 - 3j], [-0.02 - 20j, -0.01 - 0.1j]])
    return (A.real if real else A).astype(np.float32 if real else np.complex64), np.full((2, 2), 0.1, np.float32)


@pytest.mark.parametrize("rule", ["zoh", "bilinear", "euler"])
@pytest.mark.parametrize("real", [False, True])
def test_diagonal_power(rule, real):
    A, dt = diagonal(real)
    if rule == "euler":
        A = A.real.astype(np.float32)
    steps = np.array([0, 1, 2, 63, 64, 1000])
    x = dt.astype(float) * A.astype(complex)
    A_bar = {"zoh": np.exp(x), "bilinear": (1 + x / 2) / (1 - x / 2), "euler": 1 + x}[rule]
    got = ops.diagonal_power(jnp.asarray(A), jnp.asarray(steps), 1000, dt=jnp.asarray(dt), rule=rule)
    assert got.dtype == A.dtype
    for power, n in zip(got, steps, strict=True):
        assert error(power, A_bar**n) < 2e-6


@pytest.mark.usefixtures("as_a_user")
def test_diagonal_power_refuses():
    A, dt = (jnp.asarray(x) for x in diagonal())
    for arguments, options, message in (
        ((A, jnp.array([1.0]), 3), {"dt": dt}, "steps must be an integer array"),
        ((A, jnp.array([1]), 3), {"dt": dt[0]}, r"dt must be \(h n\) = \(2, 2\), got \(2,\)"),
        ((A, jnp.array([1]), 3), {"dt": 0.1}, r"dt must be \(h n\) = \(2, 2\), got a float.*jnp.full\(\(2, 2\), dt\)"),
        ((A, jnp.array([1]), 3), {"dt": dt.astype(int)}, "dt must be a real floating array, got .* int"),
        ((A.tolist(), jnp.array([1]), 3), {"dt": dt}, "A must be an array, got a list"),
        ((A[0], jnp.array([1]), 3), {"dt": dt}, r"A must be of rank 2, \(h n\), got \(2,\)"),
        ((A, 1, 3), {"dt": dt}, "steps must be an array, got a int"),
        ((A, jnp.array([[1]]), 3), {"dt": dt}, r"steps must be of rank 1, \(b\), got \(1, 1\)"),
        ((A, jnp.array([1, -1]), 3), {"dt": dt}, "steps must be from 0 to longest = 3, got -1"),
        ((A, jnp.array([1, 4]), 3), {"dt": dt}, "steps must be from 0 to longest = 3, got 4"),
        ((A, jnp.array([1]), 3.5), {"dt": dt}, "longest must be an int, at least 0, got 3.5.*a Python int"),
        ((A, jnp.array([1]), -1), {"dt": dt}, "longest must be an int, at least 0, got -1"),
        ((A, jnp.array([1]), 3), {"dt": -dt}, "dt must be positive, got -0.1"),
        ((A, jnp.array([1]), 3), {"dt": dt, "rule": "async"}, "Unknown rule 'async'"),
    ):
        with pytest.raises(ValueError, match=f"diagonal_power: {message}"):
            ops.diagonal_power(*arguments, **options)
    with pytest.raises(ValueError, match="diagonal_power: longest must be an int.*Tracer.*static under jax.jit"):
        jax.eval_shape(lambda longest: ops.diagonal_power(A, jnp.array([1]), longest, dt=dt), 3)
    jax.eval_shape(lambda A, steps, dt: ops.diagonal_power(A, steps, np.int64(3), dt=dt), A, jnp.array([1]), dt)


def system(measure, size, rank, dt=1e-2):
    """A HiPPO system: float32 for us, and its dense matrices with conjugates in float64."""
    modes = hippo.nplr(measure, size, rank=rank)
    A, P, B = (np.asarray(x, np.complex64) for x in (modes.A[None], modes.P[:, None], modes.B[None]))
    full = [np.concatenate([x, x.conj()], axis=-1).astype(complex) for x in (A[0], P[:, 0], B[0])]
    matrix = np.diag(full[0]) - full[1].T @ full[1].conj()
    eye = np.eye(size)
    inverse = np.linalg.inv(eye - dt / 2 * matrix)
    exact = inverse @ (eye + dt / 2 * matrix), dt * inverse @ full[2]
    return (jnp.asarray(A), jnp.asarray(P), jnp.asarray(B), jnp.array([dt], jnp.float32)), exact


def discretized(A, P, B, dt):
    return dense.bilinear(dense.real_matrix(A, P), dense.real_vector(B), dt)


def as_complex(x):
    re, im = np.split(np.asarray(x, float), 2, axis=-1)
    return re + 1j * im


@pytest.mark.parametrize(("measure", "rank"), [("legs", 1), ("legt", 2), ("fout", 1)])
@pytest.mark.parametrize("length", [1, 2, 63, 100])
def test_the_state_after_a_sequence(measure, rank, length):
    arguments, (A_bar, B_bar) = system(measure, 16, rank)
    u = np.random.default_rng(0).standard_normal((2, length, 1)).astype(np.float32)
    start = np.random.default_rng(1).standard_normal((2, 1, 16)).astype(np.float32)

    @quick.jit
    def run(arguments, u, start):
        E, B = discretized(*arguments)
        squares, _ = dense.powers(E, length)
        return dense.state_after(squares, B, u), dense.advance(squares, jnp.array([length, length // 2]), start)

    after, advanced = run(arguments, u, start)
    x = np.zeros((2, 16), complex)
    for t in range(length):
        x = x @ A_bar.T + u[:, t].astype(float) * B_bar
    assert error(as_complex(after)[:, 0], x[:, :8]) < 3e-6
    s = as_complex(start)[:, 0]
    for row, steps in enumerate((length, length // 2)):
        full = np.linalg.matrix_power(A_bar, steps) @ np.concatenate([s[row], s[row].conj()])
        assert error(as_complex(advanced[row, 0]), full[:8]) < 3e-6


@pytest.mark.parametrize("length", [1, 7, 40, 64])
def test_a_power_less_one_does_not_cancel(length):
    """Steps of a ten-thousandth: of 1 - A_bar^40, a few thousandths in size, float32 alone would keep three digits."""
    arguments, (A_bar, _) = system("legt", 16, 2, dt=1e-4)
    power = dense.powers(discretized(*arguments)[0], length)[1]
    exact = np.linalg.matrix_power(A_bar, length) - np.eye(16)
    same, other = exact[:8, :8], exact[:8, 8:]
    wanted = np.block([[(same + other).real, -(same - other).imag], [(same + other).imag, (same - other).real]])
    assert error(power[0], wanted) < 1e-6
    assert error(np.linalg.inv(np.asarray(power[0], float)), np.linalg.inv(wanted)) < 1e-4
