"""What a wrong call of the kernels of S4, S4D and DSS is told, and what is taken though it is no plain int or array."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops

H, N = 3, 4
REAL = np.ones((H, N), np.float32)
A = (-REAL + 2j * REAL).astype(np.complex64)
DT, STEPS = np.full(H, 0.1, np.float32), np.full((H, N), 0.1, np.float32)
U = np.ones((2, 5, H), np.float32)

ARRAY = "must be an array, got a list. Make it one: jnp.asarray"
DT_SHAPE = r"dt must be \(h\) = \(3,\) or \(h n\) = \(3, 4\), got"


def refused(function, right, cases):
    for change, message in cases:
        with pytest.raises(ValueError, match=f"{function.__name__}: .*{message}"):
            function(**right | change)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("function", [ops.vandermonde, ops.softmax_kernel])
def test_of_a_diagonal(function):
    weights = "C" if function is ops.vandermonde else "W"
    cases = [
        ({"dt": -DT}, "dt must be positive, got -0.1.*log_dt"),
        ({"dt": 0.1}, rf"{DT_SHAPE} a float. One step size for all is jnp.full\(\(3,\), dt\)"),
        ({"dt": DT.tolist()}, f"{DT_SHAPE} a list"),
        ({"dt": np.ones(N, np.float32)}, rf"{DT_SHAPE} \(4,\)"),
        ({"dt": DT.astype(int)}, r"dt must be a real floating array, got \(3,\) int"),
        ({"dt": DT + 1j}, r"dt must be a real floating array, got \(3,\) complex"),
        ({weights: A[:, :2]}, rf"{weights} must be \(\*b h n\).*\(3, 4\), got \(3, 2\)"),
        ({weights: A.tolist()}, f"{weights} {ARRAY}"),
        ({weights: np.ones((H, N), int)}, f"{weights} must be a floating or complex array"),
        ({"A": A.tolist()}, f"A {ARRAY}"),
        ({"A": A[0]}, "A must be of rank 2.*broadcast_to"),
    ]
    for length in (0, -1, 2.0, True, None, "2", np.float32(2)):
        cases.append(({"length": length}, "length must be a positive int, got .*a Python int, static under jax.jit"))
    refused(function, {weights: A, "A": A, "length": 5, "dt": DT}, cases)
    with pytest.raises(ValueError, match=f"{function.__name__}: length must be a positive int, got .*Tracer"):
        jax.eval_shape(lambda length: function(A, A, length), 3)


@pytest.mark.usefixtures("as_a_user")
def test_of_rules_and_states():
    right = {"C": A, "A": A, "length": 5}
    rules = [
        ({"rule": "bilinaer"}, "Unknown rule 'bilinaer'. Did you mean 'bilinear'"),
        ({"rule": "async"}, "Unknown rule 'async'"),
        ({"rule": None}, "Unknown rule None"),
    ]
    refused(ops.vandermonde, right, rules)
    states = [
        ({"u": U.swapaxes(1, 2)}, r"u must be \(b l h\).*Features are last"),
        ({"u": U.tolist()}, f"u {ARRAY}"),
        ({"u": U + 1j}, "u must be a real floating array"),
        ({"A": None}, "A must be an array, got a NoneType"),
        ({"A": np.ones((H, N), int)}, "A must be a floating or complex array"),
        ({"dt": 0.1}, f"{DT_SHAPE} a float"),
    ]
    refused(ops.vandermonde_state, {"u": U, "A": A}, states)


@pytest.mark.usefixtures("as_a_user")
def test_of_epsilon():
    number = "epsilon must be a finite number, at least 0, got"
    cases = [
        ({"epsilon": -1}, f"{number} -1. It keeps the reciprocal of the sum bounded"),
        *(({"epsilon": bad}, number) for bad in (float("nan"), float("inf"), None, "1e-7", 1j, [1e-7])),
        ({"epsilon": -STEPS}, "epsilon must be at least 0, got -0.1"),
        ({"epsilon": np.nan * STEPS}, "epsilon must be at least 0, got nan"),
        ({"epsilon": DT}, r"epsilon must be a real number, or \(h n\) = \(3, 4\) of them, got \(3,\)"),
        ({"epsilon": A}, r"epsilon must be a real number, or \(h n\) = \(3, 4\) of them, got \(3, 4\) complex"),
    ]
    refused(ops.softmax_kernel, {"W": A, "A": A, "length": 5}, cases)
    for good in (0, 1e-3, np.float32(1e-3), jnp.float32(1e-3), STEPS):
        jax.eval_shape(lambda W, good=good: ops.softmax_kernel(W, A, 5, epsilon=good), A)
        jax.eval_shape(lambda epsilon: ops.softmax_kernel(A, A, 5, epsilon=epsilon), good)  # of no known value


@pytest.mark.usefixtures("as_a_user")
def test_of_over():
    cases = [
        ({"over": 3}, "over must be an array, got a int"),
        ({"over": [3]}, "over must be an array, got a list"),
        ({"over": np.ones(2)}, "over must be an integer array, got .* float64"),
        ({"over": np.int64(3)}, r"over must be of rank 1, \(r\), got \(\) int64. Each row has a number of its own"),
        ({"over": np.array([3, 6])}, "over must be from 0 to length = 5, got 6"),
        ({"over": np.array([3, -1])}, "over must be from 0 to length = 5, got -1"),
    ]
    refused(ops.softmax_kernel, {"W": A, "A": A, "length": 5}, cases)


@pytest.mark.usefixtures("as_a_user")
def test_of_dplr():
    right = {"A": A, "P": A[None], "B": A, "dt": DT}
    cases = [
        ({"P": A}, r"P must be \(r h n\).*P\[None\]"),
        ({"P": None}, "P must be an array, got a NoneType"),
        ({"A": A.real}, "A must be a complex array"),
        ({"A": A.tolist()}, f"A {ARRAY}"),
        ({"A": A[0]}, r"A must be of rank 2, \(h n\)"),
        ({"B": A[:, :2]}, r"B must be ending in the \(h n\) of A, \(3, 4\), got \(3, 2\)"),
        ({"B": A.tolist()}, f"B {ARRAY}"),
        ({"dt": DT[:, None]}, r"dt must be \(h\) = \(3,\), got \(3, 1\)"),
        ({"dt": 0.1}, r"dt must be \(h\) = \(3,\), got a float. One step size for all is jnp.full\(\(3,\), dt\)"),
        ({"dt": None}, r"dt must be \(h\) = \(3,\), got a NoneType"),
        ({"dt": -DT}, "dt must be positive"),
    ]
    refused(ops.dplr_matrices, right, cases)
    kernel = [({"length": 2.0}, "length must be a positive int, got 2.0"), ({"C": None}, "C must be an array")]
    refused(ops.dplr_kernel, right | {"C": A, "length": 5}, cases + kernel)


@pytest.mark.usefixtures("as_a_user")
def test_of_discretize():
    cases = [
        ({"A": [-1.0]}, f"A {ARRAY}"),
        ({"A": None}, "A must be an array, got a NoneType"),
        ({"dt": 0.1}, r"dt must be an array, got a float. Make it one: jnp.asarray\(dt\)"),
        ({"dt": STEPS.astype(int)}, "dt must be a real floating array, got .* int"),
        ({"dt": DT}, r"dt must be broadcastable with A \(3, 4\), got \(3,\).*dt\[:, None\]"),
        ({"rule": "async"}, "dt_input must be given with the rule 'async'"),
        ({"dt_input": STEPS}, "dt_input must be given with the rule 'async', and with no other"),
        ({"rule": "async", "dt_input": 0.1}, "dt_input must be a real floating array, got a float"),
        ({"rule": "async", "dt_input": -STEPS}, "dt_input must be positive, got -0.1"),
        (
            {"A": A[0, 0], "dt": DT, "rule": "async", "dt_input": STEPS[0]},
            r"dt_input must be broadcastable with dt \(3,\), got \(4,\)",
        ),
    ]
    refused(ops.discretize, {"A": A, "dt": STEPS}, cases)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("length", [np.int64(5), np.uint8(5), np.array(5), jnp.array(5)])
def test_whole_numbers_of_any_kind_are_lengths(length):
    for run in (
        lambda A, dt: ops.vandermonde(A, A, length, dt=dt),
        lambda A, dt: ops.softmax_kernel(A, A, length, dt=dt),
        lambda A, dt: ops.dplr_kernel(A, A[None], A, A, dt, length),
    ):
        chex.assert_shape(jax.eval_shape(run, A, DT), (5, H))  # arrays of no known value pass the checks


def test_forward_mode():
    """Unlike the ops with a backward pass of their own, these have both modes."""
    for run in (
        lambda dt: ops.vandermonde(A, A, 5, dt=dt),
        lambda dt: ops.vandermonde_state(U, A, dt=dt),
        lambda dt: ops.softmax_kernel(A, A, 5, dt=dt),
        lambda dt: ops.dplr_kernel(A, A[None], A, A, dt, 5),
    ):
        jax.jit(lambda dt, run=run: jax.jvp(run, (dt,), (dt,))).lower(DT)
