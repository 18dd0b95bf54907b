"""The selective scan: values against float64 loops, gradients against autodiff of the reference, its options."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops
from ssmjax.ops.selective_scan.call import ScanCall
from ssmjax.ops.selective_scan.reference import selective_scan_reference
from ssmjax.ops.selective_scan.xla import at_once, choose, chunk_length, selective_scan_xla
from tests.layers import quick
from tests.ops import oracle
from tests.ops.oracle import QUICK_COMPILE, scan_problem

CHUNK = 16
VARIANTS = {
    "two_groups": {"groups": 2},
    "fixed_B_and_C": {"fixed": "BC"},
    "complex": {"complex_A": True},
    "complex_A_only": {"complex_A": True, "complex_BC": False, "fixed": "C"},
    "real": {},  # as in all other tests
    "fixed_B": {"fixed": "B", "groups": 2},
}
FORMS = {
    "sequential": {"form": "sequential", "chunk": CHUNK, "tile": 10**6},
    "tiled": {"form": "sequential", "chunk": CHUNK, "tile": 9},  # a few numbers: every axis is cut
    "chunked": {"form": "chunked", "chunk": CHUNK},
}


def segments(b, l, seed=0):
    return np.random.default_rng(seed).integers(0, 5, (b, l)) // 4 % 2  # ids come back: only a change counts


def value_and_grads(run, problem, ids, reverse):
    """Outputs, and gradients of all array arguments of a loss that weighs every output differently."""
    b, l, e = problem["x"].shape
    weights = np.random.default_rng(1).standard_normal((b, l, e)).astype(np.float32)

    def loss(p):
        y, state = run(ScanCall(**p, dt_softplus=True, segment_ids=ids, reverse=reverse))
        real = jnp.concatenate([state.real, state.imag], axis=-1) if jnp.iscomplexobj(state) else state
        return (y * weights).sum() + jnp.sin(real).sum(), (y, state)

    (_, outputs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK_COMPILE)(problem)
    return outputs, grads


def assert_close(got, wanted, tolerance=1e-5):
    """Every array within `tolerance` of its largest entry."""

    def one(g, w):
        chex.assert_equal_shape([g, w])
        assert np.max(np.abs(g - w), initial=0) <= tolerance * max(1.0, np.max(np.abs(w), initial=0))

    jax.tree.map(one, got, wanted)


@pytest.mark.parametrize("l", quick.first([1, CHUNK + 1, 2 * CHUNK + 5, CHUNK, 2, CHUNK - 1], 3))
def test_lengths(l):
    problem, reverse = scan_problem(l), l % 2 == 0
    ids = segments(2, l) if l % 3 else None
    wanted = value_and_grads(selective_scan_reference, problem, ids, reverse)
    for name in ("sequential", "chunked") if l > CHUNK else ("sequential",):
        got = value_and_grads(functools.partial(selective_scan_xla, **FORMS[name]), problem, ids, reverse)
        assert_close(got, wanted)


@pytest.mark.parametrize("variant", quick.first(VARIANTS, 4))
def test_variants(variant):
    problem, ids = scan_problem(21, **VARIANTS[variant]), segments(2, 21)
    reverse = variant in ("two_groups", "fixed_B_and_C", "complex")
    wanted = value_and_grads(selective_scan_reference, problem, ids, reverse)
    y, state = oracle.selective_scan(**problem, dt_softplus=True, segment_ids=ids, reverse=reverse)
    assert_close(wanted[0], (y, state))
    for name in ("tiled", "chunked"):
        got = value_and_grads(functools.partial(selective_scan_xla, **FORMS[name]), problem, ids, reverse)
        assert_close(got, wanted)


@pytest.mark.parametrize("l", [63, 65, 2 * 64 + 37])
def test_public_function_at_its_own_chunk(l):
    problem, ids = scan_problem(l), segments(2, l)
    y, state = jax.jit(functools.partial(ops.selective_scan, dt_softplus=True, return_state=True))(
        **problem, segment_ids=ids
    )
    assert_close((y, state), oracle.selective_scan(**problem, dt_softplus=True, segment_ids=ids))


def test_gradients_against_float64_differences():
    """Directional derivatives of the float64 loops, along a random direction of all arguments at once."""
    problem = scan_problem(19)
    rng = np.random.default_rng(2)
    wide = {k: v.astype(np.float64) for k, v in problem.items()}
    along = {k: rng.standard_normal(v.shape) for k, v in problem.items()}
    weights = rng.standard_normal(problem["x"].shape)

    def loss(step):
        y, state = oracle.selective_scan(**{k: wide[k] + step * along[k] for k in wide}, dt_softplus=True)
        return (y * weights).sum() + state.sum()

    def jax_loss(p):
        y, state = ops.selective_scan(**p, dt_softplus=True, return_state=True)
        return (y * weights.astype(np.float32)).sum() + state.sum()

    grads = jax.jit(jax.grad(jax_loss))(problem)
    got = sum(np.vdot(along[k], np.asarray(grads[k], np.float64)) for k in along)
    wanted = (loss(1e-5) - loss(-1e-5)) / 2e-5
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_step_equals_sequence_and_split_equals_whole():
    problem = scan_problem(7)
    per_step, shared = ("x", "dt", "B", "C", "z"), ("A", "D", "dt_bias")
    run = jax.jit(functools.partial(ops.selective_scan, dt_softplus=True, return_state=True))
    y, state = run(**problem)
    for cuts in (range(8), (0, 3, 7)):
        h, pieces = problem["h0"], []
        for start, end in zip(cuts, cuts[1:], strict=False):
            now = {k: problem[k][:, start:end] for k in per_step} | {k: problem[k] for k in shared}
            piece, h = run(**now, h0=h)
            pieces.append(piece)
        assert_close((jnp.concatenate(pieces, axis=1), h), (y, state), 1e-6)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_reverse_is_the_flipped_scan(implementation):
    problem, ids = scan_problem(21), segments(2, 21)
    run = functools.partial(ops.selective_scan, dt_softplus=True, return_state=True, implementation=implementation)
    flipped = {k: v[:, ::-1] if k in ("x", "dt", "B", "C", "z") else v for k, v in problem.items()}
    y, state = jax.jit(run)(**flipped, segment_ids=ids[:, ::-1])
    run = jax.jit(functools.partial(run, reverse=True))
    assert_close(run(**problem, segment_ids=ids), (y[:, ::-1], state), 1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_segments_are_separate_sequences(reverse):
    problem = scan_problem(9, b=1)
    problem["h0"] = np.zeros_like(problem["h0"])
    ids = np.array([[4, 4, 4, 0, 0, 0, 0, 4, 4]])
    run = jax.jit(functools.partial(ops.selective_scan, dt_softplus=True, reverse=reverse))
    pieces = []
    for cut in (slice(0, 3), slice(3, 7), slice(7, 9)):
        pieces.append(run(**{k: v[:, cut] if k in ("x", "dt", "B", "C", "z") else v for k, v in problem.items()}))
    assert_close(run(**problem, segment_ids=ids), jnp.concatenate(pieces, axis=1), 1e-6)


def test_vmap_checkpoint_and_scan_over_layers():
    problem = scan_problem(5)
    stacked = {k: jnp.stack([v, 0.5 * v]) for k, v in problem.items()}

    def loss(p):
        y, state = ops.selective_scan(**p, dt_softplus=True, return_state=True)
        return (y**2).sum() + (state**2).sum()

    grad = jax.jit(jax.grad(jax.checkpoint(loss)))
    wanted = [grad({k: v[i] for k, v in stacked.items()}) for i in range(2)]
    assert_close(jax.jit(jax.vmap(jax.grad(loss)))(stacked), jax.tree.map(lambda *v: jnp.stack(v), *wanted))

    def layers(stacked):
        return jax.lax.scan(lambda total, p: (total + loss(p), None), 0.0, stacked)[0]

    assert_close(jax.jit(jax.grad(layers))(stacked), jax.tree.map(lambda *v: jnp.stack(v), *wanted))


def test_shard_map_with_a_replicated_A():
    """Inside shard_map, with its check of what varies over the mesh; the gradients of shared arrays are summed."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec
    problem = scan_problem(6)
    del problem["h0"]
    specs = {k: P("data") if k in ("x", "dt", "B", "C", "z") else P() for k in problem}

    def loss(p):
        return jax.lax.psum((ops.selective_scan(**p, dt_softplus=True) ** 2).sum(), "data")

    sharded = jax.shard_map(loss, mesh=mesh, in_specs=(specs,), out_specs=P())
    wanted = jax.jit(jax.grad(lambda p: (ops.selective_scan(**p, dt_softplus=True) ** 2).sum()))(problem)
    assert_close(jax.jit(jax.grad(sharded))(problem), wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_as_good_as_the_plain_formula(dtype):
    problem = scan_problem(40)
    low = {k: jnp.asarray(v, dtype if k in ("x", "dt", "B", "C", "z") else jnp.float32) for k, v in problem.items()}
    y, state = jax.jit(functools.partial(ops.selective_scan, dt_softplus=True, return_state=True))(**low)
    assert y.dtype == dtype and state.dtype == jnp.float32
    exact, _ = oracle.selective_scan(**{k: np.asarray(v, np.float32) for k, v in low.items()}, dt_softplus=True)
    rounded = np.asarray(jnp.asarray(exact, dtype), np.float64)  # the least that any formula in this dtype loses
    assert np.abs(np.asarray(y, np.float64) - exact).max() <= 2 * np.abs(rounded - exact).max()
    grad = jax.jit(jax.grad(lambda p: ops.selective_scan(**p, dt_softplus=True).astype(jnp.float32).sum()))
    grads = grad(low)
    chex.assert_trees_all_equal_dtypes(grads, low)
    assert_close(grads, grad({k: v.astype(jnp.float32) for k, v in low.items()}), 2e-2)


@pytest.mark.parametrize(("b", "l", "e"), [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty(b, l, e):
    problem = {k: v for k, v in scan_problem(l, b=b, e=e).items() if k != "z"}
    y, state = ops.selective_scan(**problem, return_state=True)
    chex.assert_shape(y, (b, l, e))
    np.testing.assert_array_equal(state, problem["h0"] if l == 0 else np.zeros((b, e, 3)))


def test_two_directions_as_one_scan():
    """Concatenated along e, with a group of B and C for each: what a bidirectional block runs."""
    one, other = scan_problem(10, seed=0), scan_problem(10, seed=1)
    run = jax.jit(functools.partial(ops.selective_scan, dt_softplus=True))
    wanted = jnp.concatenate([run(**one), run(**other)], axis=-1)
    both = {k: np.concatenate([one[k], other[k]], axis=-1) for k in ("x", "dt", "D", "z", "dt_bias")}
    both |= {k: np.stack([one[k], other[k]], axis=2) for k in ("B", "C")}
    both |= {"A": np.concatenate([one["A"], other["A"]]), "h0": np.concatenate([one["h0"], other["h0"]], axis=1)}
    assert_close(run(**both), wanted, 1e-6)


def test_no_array_of_all_states_in_a_training_step():
    """The largest buffer type in the program of forward and backward is far smaller than (b l e n)."""
    b, l, e, n = 1, 4096, 8, 16
    x = jnp.ones((b, l, e))
    B = jnp.ones((b, l, n))
    loss = jax.grad(lambda x, B: ops.selective_scan(x, x, -jnp.ones((e, n)), B, B).sum())
    temporary = jax.jit(loss).lower(x, B).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 4 * b * l * e * n


@hypothesis.settings(max_examples=4, deadline=None, derandomize=True)
@hypothesis.given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_drawn_shapes(b, l, e, n, reverse):
    problem = scan_problem(l, b=b, e=e, n=n)
    run = functools.partial(ops.selective_scan, dt_softplus=True, reverse=reverse, return_state=True)
    got = jax.jit(run)(**problem)
    assert_close(got, oracle.selective_scan(**problem, dt_softplus=True, reverse=reverse))


def test_choice():
    assert choose("cpu", 8, 768, 16) == "sequential"
    assert choose("gpu", 8, 1536, 16) == "chunked"
    assert choose("gpu", 64, 768, 16) == "sequential"
    assert choose("tpu", 1024, 768, 16) == "chunked"
    assert at_once(8, 2048, 2048, 16) and not at_once(2, 65536, 1536, 16), "as the memory allows"
    for l in range(1, 400):
        chunk = chunk_length(l)
        assert chunk < 97 and -(-l // chunk) * chunk - l < -(-l // chunk)  # less than one padded step a chunk


def test_lowers_for_every_platform():
    args = (jnp.ones((1, 4, 2)),) * 2 + (-jnp.ones((2, 3)),) + (jnp.ones((1, 4, 3)),) * 2
    step = jax.jit(jax.grad(lambda *args: ops.selective_scan(*args).sum(), argnums=(0, 1, 2, 3, 4)))
    for platform in ("cuda", "tpu"):
        assert step.trace(*args).lower(lowering_platforms=(platform,)).as_text()
