"""The kernels for Hopper GPUs as far as a machine without one goes: what they take, how calls are cut up, lowering.

Their values are compared on a GPU (`tests/gpu`).
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax import layers, ops
from ssmjax.ops.selective_scan.call import ScanCall
from ssmjax.ops.selective_scan.mosaic.plan import SHARED_BYTES, Tile, choose_tiles, shared_bytes
from ssmjax.ops.selective_scan.pallas_mosaic import selective_scan_mosaic, supports
from ssmjax.ops.selective_scan.reference import selective_scan_reference
from tests.layers import quick
from tests.ops.oracle import QUICK_COMPILE, scan_problem

SMALL = Tile(16, 8, 1)


def call_of(l=5, *, b=2, e=3, n=2, groups=None, dtype=jnp.float32, **more) -> ScanCall:
    problem = {k: jnp.asarray(v) for k, v in scan_problem(l, b=b, e=e, n=n, groups=groups).items()}
    for name in ("x", "dt", "z", "B", "C"):
        problem[name] = problem[name].astype(dtype)
    return ScanCall(**problem, dt_softplus=True, **more)


def outputs_and_grads(run, call: ScanCall):
    """Outputs and gradients of the call's floating arrays."""
    arrays = {k: v for k, v in call._asdict().items() if isinstance(v, jax.Array) and k != "segment_ids"}

    def loss(arrays):
        y, state = run(call._replace(**arrays))
        total = (y.astype(jnp.float32) * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)).sum()
        return total + (0 if state is None else jnp.sin(state).sum()), (y, state)

    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK_COMPILE)(arrays)


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_and_segments_around_the_kernels(reverse):
    """On a CPU the padded call runs in XLA: states, channels, groups and resets must come out as they went in."""
    ids = jnp.asarray([[0, 0, 1, 1, 0], [2, 2, 2, 3, 3]])
    call = call_of(e=6, n=3, groups=2, segment_ids=ids, reverse=reverse)
    got = outputs_and_grads(selective_scan_mosaic, call)
    wanted = outputs_and_grads(selective_scan_reference, call)
    chex.assert_trees_all_close(got, wanted, atol=2e-5, rtol=2e-5)


def test_more_states_than_a_kernel_keeps_are_a_sum():
    call = call_of(b=1, l=3, e=2, n=18)
    wanted = outputs_and_grads(selective_scan_reference, call)
    chex.assert_trees_all_close(outputs_and_grads(selective_scan_mosaic, call), wanted, atol=2e-5, rtol=2e-5)


def test_vmap_joins_the_batch_and_shared_arrays_may_vary():
    call = call_of(b=2, l=3, e=2, n=2)
    xs = jnp.stack([call.x, 2 * call.x])
    As = jnp.stack([call.A, 2 * call.A])
    run = functools.partial(selective_scan_mosaic, forward=SMALL)
    one = quick.jit(lambda x, A: run(call._replace(x=x, A=A))[0])
    got = quick.jit(jax.vmap(lambda x: run(call._replace(x=x))[0]))(xs)
    chex.assert_trees_all_close(got[1], one(xs[1], call.A), atol=1e-5)
    got = quick.jit(jax.vmap(lambda x, A: run(call._replace(x=x, A=A))[0]))(xs, As)
    chex.assert_trees_all_close(got[1], one(xs[1], As[1]), atol=1e-5)


LOWERED = {
    "bfloat16": {"l": 65, "e": 130, "n": 16, "dtype": jnp.bfloat16},
    "reset_groups_reverse": {"l": 37, "e": 6, "n": 4, "groups": 2, "reverse": True, "segment_ids": True},
    "chunks": {"l": 130, "e": 8, "n": 16, "b": 1},
}


@pytest.mark.parametrize("name", LOWERED)
def test_kernels_lower_for_cuda(name):
    """Forward and backward become programs for a GPU here, where none can run."""
    options = dict(LOWERED[name])
    if options.pop("segment_ids", False):
        options["segment_ids"] = jnp.zeros((2, options["l"]), jnp.int32)
    call = call_of(**options)
    tiles = {}
    if name == "chunks":
        tiles = {"forward": Tile(32, 8, 2, chunks=2), "backward": Tile(16, 4, 2, chunks=3)}
    arrays = {k: v for k, v in call._asdict().items() if isinstance(v, jax.Array) and k != "segment_ids"}

    def loss(arrays):
        y, state = selective_scan_mosaic(call._replace(**arrays), **tiles)
        return y.astype(jnp.float32).sum() + state.sum()

    lowered = jax.jit(jax.grad(loss)).trace(arrays).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("mosaic_gpu_v2") >= 2 * (1 + (name == "chunks"))


@pytest.mark.parametrize("b", [1, 8, 512])
@pytest.mark.parametrize("l", [1, 65, 197, 2048, 65536])
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("n", [8, 16])
@pytest.mark.parametrize("helpers", [False, True])
def test_tiles_fit_a_multiprocessor(b, l, width, n, helpers):
    widths = dict.fromkeys(("x", "dt", "z", "B", "C", "kept"), width) | {"kept": 4}
    paid = dict.fromkeys(("forward", "backward"), helpers)
    table = {f"{programs}, more": paid for programs in ("alone", "several")}
    forward, backward = choose_tiles(b, l, 384, n, widths, changes_dt=True, helpers=table)
    assert max(shared_bytes(n, forward, backward, widths, changes_dt=True)) <= SHARED_BYTES
    assert forward.steps % backward.steps == 0
    assert forward.steps % forward.unroll == backward.steps % backward.unroll == 0
    assert forward.steps * n % 128 == backward.steps * n % 128 == 0
    assert forward.steps % forward.groups == 0


def test_what_the_kernels_do_not_take():
    call = call_of()
    assert "complex" in supports(call._replace(A=call.A.astype(jnp.complex64)))
    assert "fixed" in supports(call._replace(B=call.A))
    assert "more than 64" in supports(call._replace(A=jnp.zeros((3, 65))))
    assert "int32" in supports(call._replace(z=jnp.zeros((2, 5, 3), jnp.int32)))


def test_they_stay_out_of_a_shard_map_that_checks_varying_axes():
    reasons = []

    def run(x):
        reasons.append(supports(call_of(b=2)._replace(x=x)))
        return x

    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    for check in (True, False):
        spec = jax.sharding.PartitionSpec("data")
        jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check)(call_of(b=2).x)
    assert "check_vma" in reasons[0]
    assert "check_vma" not in (reasons[-1] or "")


def test_a_named_kernel_says_why_it_cannot_run(key):
    x = jax.random.normal(key, (1, 3, 2))
    with pytest.raises(NotImplementedError, match="pallas_mosaic.*compute capability 9.0"):
        ops.selective_scan(x, x, -np.ones((2, 1), np.float32), x[..., :1], x[..., :1], implementation="pallas_mosaic")


def test_both_directions_of_a_mixer_flip_nothing_but_taps(monkeypatch):
    monkeypatch.setattr(ops.backend, "lacks_capability", lambda wanted, **_: None)  # as on a Hopper GPU
    graphdef, state = nnx.split(layers.BiMamba(8, rngs=nnx.Rngs(0)))

    def loss(state, u):
        return nnx.merge(graphdef, state)(u).sum()

    with ops.use_implementation("pallas_mosaic", "selective_scan"):
        traced = jax.jit(jax.grad(loss)).trace(state, jnp.ones((2, 9, 8)))
    lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    flipped = [line for line in lowered.splitlines() if "stablehlo.reverse" in line]
    assert lowered.count("custom_call @mosaic_gpu") == 4
    assert all("tensor<4x16xf32>" in line for line in flipped), "only the convolution's taps"
