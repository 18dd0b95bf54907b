"""The scans of Mamba-2 and Mamba-3: against loops and their references, with every option, and one step of them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops
from ssmjax.ops.selective_scan.call import ScanCall
from ssmjax.ops.selective_scan.reference import selective_scan_reference
from ssmjax.ops.ssd.cost import ssd_cost
from ssmjax.ops.trapezoidal_ssd.cost import trapezoidal_ssd_cost
from tests.ops import oracle
from tests.ops.oracle import QUICK_COMPILE
from tests.ops.test_selective_scan import assert_close, segments

CHUNK = 8


def problem(l, *, b=2, h=4, p=3, n=5, g=2, wide_D=True, seed=0):
    rng = np.random.default_rng(seed)

    def real(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "x": real(b, l, h, p),
        "dt": real(b, l, h) - 1,
        "A": -np.exp(real(h)),
        "B": real(b, l, g, n),
        "C": real(b, l, g, n),
        "D": real(h, p) if wide_D else real(h),
        "z": real(b, l, h, p),
        "dt_bias": real(h),
        "h0": real(b, h, p, n),
    }


def value_and_grads(run, arguments):
    """The outputs, and gradients of a loss that weighs every output differently."""

    def loss(arguments):
        outputs = jax.tree.leaves(run(**arguments))
        weights = [np.cos(np.arange(v.size, dtype=np.float32)).reshape(v.shape) for v in outputs]
        return sum((v * w).sum() for v, w in zip(outputs, weights, strict=True)), outputs

    (_, outputs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK_COMPILE)(arguments)
    return outputs, grads


@pytest.mark.parametrize("l", [1, 2, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_ssd_equals_its_reference(l):
    options = {"dt_softplus": True, "dt_limit": (0.05, 2.0), "return_state": True}
    options["segment_ids"] = segments(2, l) if l % 2 else None
    given = problem(l, g=1 if l == 2 else 2, wide_D=l != CHUNK)
    run = functools.partial(ops.ssd, chunk=CHUNK, **options)
    wanted = value_and_grads(functools.partial(run, implementation="reference"), given)
    assert_close(value_and_grads(functools.partial(run, implementation="xla"), given), wanted)


def test_ssd_equals_the_selective_scan_in_loops():
    """Mamba-2 is Mamba with one decay for each head and channels that share it: written out, it is the same loop."""
    given, (h, p, n) = problem(11), (4, 3, 5)
    wide = {
        "x": given["x"].reshape(2, 11, h * p),
        "dt": np.repeat(given["dt"], p, axis=2),
        "A": np.broadcast_to(np.repeat(given["A"], p)[:, None], (h * p, n)),
        "B": given["B"],
        "C": given["C"],
        "D": given["D"].reshape(h * p),
        "z": given["z"].reshape(2, 11, h * p),
        "dt_bias": np.repeat(given["dt_bias"], p),
        "h0": given["h0"].reshape(2, h * p, n),
    }
    ids = segments(2, 11)
    y, state = oracle.selective_scan(**wide, dt_softplus=True, segment_ids=ids)
    run = jax.jit(functools.partial(ops.ssd, dt_softplus=True, segment_ids=ids, chunk=4, return_state=True))
    assert_close(run(**given), (y.reshape(2, 11, h, p), state.reshape(2, h, p, n)))


def test_steps_equal_the_sequence():
    given, shared = problem(6), ("A", "D", "dt_bias")
    options = {"dt_softplus": True, "dt_limit": (0.1, 1.0)}
    y, state = jax.jit(functools.partial(ops.ssd, **options, chunk=4, return_state=True))(**given)
    step, h, pieces = jax.jit(functools.partial(ops.selective_state_update, **options)), given["h0"], []
    for t in range(6):
        now = {k: v if k in shared else v[:, t] for k, v in given.items() if k != "h0"}
        piece, h = step(h, **now)
        pieces.append(piece)
    assert_close((np.stack(pieces, axis=1), h), (y, state))


def test_a_step_of_mamba_1():
    given = oracle.scan_problem(1)
    reference = jax.jit(lambda given: selective_scan_reference(ScanCall(**given, dt_softplus=True, return_state=True)))
    y, state = reference(given)
    now = {k: v[:, 0] if k in ("x", "dt", "B", "C", "z") else v for k, v in given.items() if k != "h0"}
    y, state = np.asarray(y), np.asarray(state)
    got = jax.jit(functools.partial(ops.selective_state_update, dt_softplus=True))(given["h0"], **now)
    assert_close(got, (y[:, 0], state), 1e-6)


def test_extreme_decays_stay_finite():
    """Decays far below what float32 can hold: ratios of their products would be 0/0."""
    given = problem(40) | {"A": np.full(4, -1e4, np.float32)}
    got = value_and_grads(functools.partial(ops.ssd, dt_softplus=True, chunk=16, return_state=True), given)
    chex.assert_tree_all_finite(got)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision(dtype):
    given = problem(21)
    low = {k: jnp.asarray(v, dtype if k in ("x", "dt", "B", "C", "z") else jnp.float32) for k, v in given.items()}
    run = functools.partial(ops.ssd, dt_softplus=True, chunk=CHUNK, return_state=True)
    (y, state), grads = value_and_grads(run, low)
    assert y.dtype == dtype and state.dtype == jnp.float32
    chex.assert_trees_all_equal_dtypes(grads, low)
    _, wanted = value_and_grads(run, {k: v.astype(jnp.float32) for k, v in low.items()})
    assert_close(jax.tree.map(lambda v: v.astype(jnp.float32), grads), wanted, 2e-2)


def trapezoidal_problem(l, r, seed=0):
    rng = np.random.default_rng(seed)
    b, h, p, n = 2, 3, 4, 5

    def real(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "x": real(b, l, r, h, p),
        "dt": np.exp(real(b, l, h)),
        "log_a": -np.exp(real(b, l, h)),
        "blend": rng.uniform(size=(b, l, h)).astype(np.float32),
        "B": real(b, l, r, h, n),
        "C": real(b, l, r, h, n),
        "state": ops.TrapezoidalState(real(b, h, p, n), real(b, r, h, p), real(b, r, h, n)),
    }


@pytest.mark.parametrize(("l", "r"), [(1, 1), (CHUNK + 3, 1), (1, 2), (2 * CHUNK + 3, 3)])
def test_trapezoidal_equals_its_reference(l, r):
    given = trapezoidal_problem(l, r)
    ids = segments(2, l) if l > 1 else None
    run = functools.partial(ops.trapezoidal_ssd, chunk=CHUNK, segment_ids=ids, return_state=True)
    wanted = value_and_grads(functools.partial(run, implementation="reference"), given)
    assert_close(value_and_grads(functools.partial(run, implementation="xla"), given), wanted)


def test_trapezoidal_with_all_of_a_step_at_its_end_is_ssd():
    given, A = trapezoidal_problem(9, 1), -np.array([0.5, 1.0, 2.0], np.float32)
    got = jax.jit(ops.trapezoidal_ssd)(
        given["x"], given["dt"], given["dt"] * A, np.ones_like(given["blend"]), given["B"], given["C"]
    )
    wanted = jax.jit(ops.ssd)(given["x"][:, :, 0], given["dt"], A, given["B"][:, :, 0], given["C"][:, :, 0])
    assert_close(np.asarray(got)[:, :, 0], wanted)


def test_trapezoidal_in_pieces():
    given = trapezoidal_problem(7, 2)
    run = jax.jit(functools.partial(ops.trapezoidal_ssd, return_state=True), compiler_options=QUICK_COMPILE)
    y, state = run(**given)
    before, pieces = given.pop("state"), []
    for cut in (slice(0, 0), slice(0, 3), slice(3, 4), slice(4, 7)):
        piece, before = run(**{k: v[:, cut] for k, v in given.items()}, state=before)
        pieces.append(piece)
    assert_close((np.concatenate(pieces, axis=1), before), (y, state))


def test_no_array_of_all_pairs_or_states_in_a_training_step():
    b, l, h, p, n, chunk = 1, 4096, 4, 8, 16, 64
    x, dt, B = jnp.ones((b, l, h, p)), jnp.ones((b, l, h)), jnp.ones((b, l, 1, n))
    loss = jax.grad(lambda x, B: ops.ssd(x, dt, -jnp.ones(h), B, B, chunk=chunk).sum(), argnums=(0, 1))
    temporary = jax.jit(loss).lower(x, B).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 4 * b * l * h * min(chunk, p * n)


def test_cost():
    """Against XLA's count of the products of one chunk, which begins with a state and returns one."""
    b, l, h, p, n = 2, 8, 4, 16, 32
    x, dt, B = jnp.ones((b, l, h, p)), jnp.ones((b, l, h)), jnp.ones((b, l, 2, n))

    def counted(op, *args):
        run = jax.jit(lambda *args: op(*args[:-1], **args[-1], chunk=l, return_state=True))
        return run.lower(*args).cost_analysis()["flops"]

    cost = ssd_cost(b, l, h, p, n, g=2, chunk=l).flops
    assert cost <= counted(ops.ssd, x, dt, -jnp.ones(h), B, B, {"h0": jnp.ones((b, h, p, n))}) <= 1.25 * cost
    x, B = x[:, :, None], jnp.ones((b, l, 1, h, n))
    state = ops.TrapezoidalState(jnp.ones((b, h, p, n)), x[:, 0], B[:, 0])
    cost = trapezoidal_ssd_cost(b, l, h, p, n, chunk=l).flops
    assert cost <= counted(ops.trapezoidal_ssd, x, dt, -dt, dt, B, B, {"state": state}) <= 1.25 * cost


def test_lowers_for_every_platform():
    args = jnp.ones((1, 40, 2, 4), jnp.bfloat16), jnp.ones((1, 40, 2)), -jnp.ones(2), *[jnp.ones((1, 40, 1, 4))] * 2
    step = jax.jit(jax.grad(lambda *args: ops.ssd(*args, chunk=16).sum(), argnums=(0, 1, 2, 3, 4)))
    for platform in ("cuda", "tpu"):
        assert step.trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.usefixtures("as_a_user")
def test_messages():
    given = problem(3)
    with pytest.raises(ValueError, match=r"ssd: B must be of a number of groups g that divides h = 4"):
        ops.ssd(**given | {k: np.ones((2, 3, 3, 5), np.float32) for k in "BC"})
    with pytest.raises(ValueError, match=r"ssd: x must be of rank 4"):
        ops.ssd(**given | {"x": np.ones((2, 3, 12), np.float32)})
    with pytest.raises(ValueError, match=r"dt_limit must be \(least, largest\).*got \(2.0, 1.0\)"):
        ops.ssd(**given, dt_limit=(2.0, 1.0))
    with pytest.raises(ValueError, match=r"selective_state_update: state must be \(b h p n\)"):
        now = {k: given[k][:, 0] for k in ("x", "dt", "B", "C")}
        ops.selective_state_update(given["h0"][0], **now, A=given["A"])
    with pytest.raises(ValueError, match=r"trapezoidal_ssd: blend must be \(b l h\)"):
        ops.trapezoidal_ssd(**trapezoidal_problem(3, 1) | {"blend": np.ones((2, 3), np.float32)})
