"""The kernels of the selective scan on the GPU that they are for: errors against float64, beside those of the formula.

`interpret=True` refuses the kernels' inline code, so that no CPU sees their values.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops
from ssmjax.ops.selective_scan.call import ScanCall
from ssmjax.ops.selective_scan.mosaic.plan import Tile
from ssmjax.ops.selective_scan.pallas_mosaic import selective_scan_mosaic
from ssmjax.ops.selective_scan.pallas_triton import selective_scan_triton
from ssmjax.ops.selective_scan.reference import selective_scan_reference
from tests.ops.oracle import scan_problem

pytestmark = pytest.mark.gpu

LOW = ("x", "dt", "z", "B", "C")
"""Arguments that come in the compute dtype."""

FLOOR = {"float32": 2.0**-21, "bfloat16": 2.0**-12, "float16": 2.0**-14}
"""Relative errors that are rounding at any size of the formula's own error."""

HELPER = Tile(16, 8, 2, slots=3, helper=True)
SIZES = [  # (l, e, n)
    (1, 1, 1),
    (2, 96, 4),
    (63, 130, 16),
    (64, 1, 64),
    (65, 96, 1),
    (165, 130, 4),
    (64, 130, 16),
    (65, 1, 16),
    (63, 96, 64),
    (165, 96, 16),
]
OPTIONS = {
    "plain": {"without": ("D", "z", "dt_bias", "h0"), "dt_softplus": False, "return_state": False},
    "bias_alone": {"without": ("D", "z"), "dt_softplus": False},
    "gate_alone": {"without": ("D", "dt_bias", "h0"), "dt_softplus": True},
    "reverse": {"reverse": True},
    "segments": {"segments": True},
    "segments_reverse_groups": {"segments": True, "reverse": True, "groups": 2},
    "one_warpgroup": {"forward": Tile(32, 8, 1), "backward": Tile(16, 4, 2)},
    "two_warpgroups": {"forward": Tile(32, 8, 2), "backward": Tile(16, 2, 2)},
    "helper": {"forward": HELPER, "backward": Tile(16, 4, 2)},
    "helper_segments_reverse": {
        "forward": HELPER,
        "backward": Tile(16, 4, 2),
        "segments": True,
        "reverse": True,
        "groups": 2,
    },
    "chunks": {"forward": Tile(16, 8, 2, 3, 3, helper=True), "backward": Tile(16, 4, 2, 4), "segments": True},
    "chunks_reverse": {"forward": Tile(32, 8, 1, 4), "backward": Tile(16, 4, 2, 3), "reverse": True, "segments": True},
}


def make_call(l, e, n, dtype, *, without=(), segments=False, groups=None, **options):
    problem = {k: jnp.asarray(v) for k, v in scan_problem(l, e=e, n=n, groups=groups, seed=l + e + n).items()}
    problem = {k: v.astype(dtype) if k in LOW else v for k, v in problem.items() if k not in without}
    if not options.get("dt_softplus", True):
        problem["dt"] = jax.nn.softplus(problem["dt"].astype(jnp.float32)).astype(dtype)
        if "dt_bias" in problem:  # or a step size would be negative, and the state grow beyond float32
            problem["dt_bias"] = jnp.abs(problem["dt_bias"])
    ids = None
    if segments:
        ids = jnp.asarray(np.random.default_rng(0).integers(0, 8, (2, l)) // 7)
    return ScanCall(**problem, segment_ids=ids, **({"dt_softplus": True} | options))


def outputs_and_grads(run, call: ScanCall, cotangents) -> dict:
    arrays = {k: v for k, v in call._asdict().items() if isinstance(v, jax.Array) and k != "segment_ids"}

    @jax.jit
    def both(arrays, cotangents):
        def function(arrays):
            y, state = run(call._replace(**arrays))
            return (y, state) if call.return_state else (y,)

        found, vjp = jax.vjp(function, arrays)
        return dict(zip(("y", "state"), found, strict=False)) | {f"d{k}": v for k, v in vjp(cotangents)[0].items()}

    return jax.device_get(both(arrays, cotangents))


def in_float64(call: ScanCall, cotangents) -> dict:
    with jax.enable_x64(True):
        up = lambda v: v.astype(np.float64) if jnp.issubdtype(v.dtype, jnp.floating) else v  # noqa: E731
        call, cotangents = jax.tree.map(lambda v: v if isinstance(v, bool) else up(np.asarray(v)), (call, cotangents))
        call = jax.tree.map(lambda v: v if isinstance(v, bool) else jnp.asarray(v), call)
        return outputs_and_grads(selective_scan_reference, call, cotangents)


def errors(got: dict, wanted: dict) -> dict:
    def one(g, w):
        return float(np.linalg.norm(np.asarray(g, np.float64) - w) / max(np.linalg.norm(w), 1e-30))

    return {k: one(got[k], w) for k, w in wanted.items()}


def check(call: ScanCall, run) -> None:
    (b, l, e), n = call.x.shape, call.A.shape[1]
    rng = np.random.default_rng(1)
    cotangents = (jnp.asarray(rng.standard_normal((b, l, e)), call.x.dtype),)
    if call.return_state:
        cotangents += (jnp.asarray(rng.standard_normal((b, e, n)), jnp.float32),)
    got = outputs_and_grads(run, call, cotangents)
    again = outputs_and_grads(run, call, cotangents)
    assert all(np.array_equal(got[k], again[k]) for k in got), "two runs differ"
    wanted = in_float64(call, cotangents)
    plain = errors(outputs_and_grads(selective_scan_reference, call, cotangents), wanted)
    floor = FLOOR[call.x.dtype.name]
    worse = {k: (v, plain[k]) for k, v in errors(got, wanted).items() if not v <= 2 * plain[k] + floor}
    assert worse == {}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(size, dtype):
    check(make_call(*size, dtype), selective_scan_mosaic)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, dtype):
    options = dict(OPTIONS[name])
    tiles = {k: options.pop(k) for k in ("forward", "backward") if k in options}
    check(make_call(165, 96, 16, dtype, **options), functools.partial(selective_scan_mosaic, **tiles))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # JAX deprecates Pallas Triton
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["plain", "segments", "segments_reverse_groups"])
def test_triton(name, dtype):
    check(make_call(165, 96, 16, dtype, **OPTIONS[name]), selective_scan_triton)


def test_the_kernel_takes_a_call_here():
    call = make_call(5, 4, 3, "float32", without=("h0",))
    ops.selective_scan(*call[:8], dt_softplus=True, implementation="pallas_mosaic")
    assert any(d.op == "selective_scan" and d.chosen == "pallas_mosaic" for d in ops.backend.decisions())


def test_vmap():
    call = make_call(37, 96, 16, "float32")
    xs = jnp.stack([call.x, 2 * call.x])
    got = jax.vmap(lambda x: selective_scan_mosaic(call._replace(x=x))[0])(xs)
    assert np.array_equal(got[1], selective_scan_mosaic(call._replace(x=xs[1]))[0])


def test_a_program_for_the_cpu_runs_the_xla_form():
    call = make_call(5, 4, 3, "float32")
    there = ScanCall(*(jax.device_put(v, jax.devices("cpu")[0]) if isinstance(v, jax.Array) else v for v in call))
    y, _ = selective_scan_mosaic(there)
    assert y.devices() == there.x.devices()
    np.testing.assert_allclose(y, selective_scan_reference(there)[0], atol=1e-4, rtol=1e-3)
