"""The kernels in Pallas Triton: their values in Pallas' interpreter on a CPU, and their lowering for NVIDIA GPUs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops
from ssmjax.ops.selective_scan import api, xla
from ssmjax.ops.selective_scan.call import ScanCall
from ssmjax.ops.selective_scan.pallas_triton import selective_scan_triton, supports
from ssmjax.ops.selective_scan.reference import selective_scan_reference
from ssmjax.ops.selective_scan.triton.backward import backward
from ssmjax.ops.selective_scan.triton.forward import forward
from tests.ops.oracle import QUICK_COMPILE, scan_problem


def call_of(l=5, *, b=2, e=3, n=2, groups=None, dtype=jnp.float32, **more) -> ScanCall:
    problem = {k: jnp.asarray(v) for k, v in scan_problem(l, b=b, e=e, n=n, groups=groups).items()}
    low = {name: problem[name].astype(dtype) for name in ("x", "dt", "z", "B", "C")}
    return ScanCall(**problem | low, dt_softplus=True, **more)


def outputs_and_grads(run, call: ScanCall):
    """Outputs and gradients of the call's floating arrays."""
    arrays = {k: v for k, v in call._asdict().items() if isinstance(v, jax.Array) and k != "segment_ids"}

    def loss(arrays):
        y, state = run(call._replace(**arrays))
        weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return (y.astype(jnp.float32) * weights).sum() + jnp.sin(state).sum(), (y, state)

    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK_COMPILE)(arrays)


CASES = {
    "two_chunks_two_programs": {"l": 33, "e": 33, "n": 1},
    "segments_reverse_groups": {"l": 5, "e": 4, "n": 2, "groups": 2, "reverse": True, "segments": True},
    "one_step_bfloat16": {"l": 1, "e": 1, "n": 1, "dtype": jnp.bfloat16},
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, monkeypatch):
    """What the kernels compute, filled up and cut again, is what the definition computes."""

    def interpreted(direction, plan, inputs, *args, keep_states=True):
        assert plan.form == "triton"
        run = {"forward": forward, "backward": backward}[direction]
        found = run(plan, inputs, *args, interpret=True)
        return found if keep_states else found[:2]

    monkeypatch.setattr(xla, "_by_platform", interpreted)
    options = dict(CASES[case])
    if options.pop("segments", False):
        options["segment_ids"] = jnp.asarray([[0, 0, 1, 1, 0], [2, 2, 2, 3, 3]])
    call = call_of(**options)
    tolerance = 2e-5 if call.x.dtype == jnp.float32 else 1e-2  # of bfloat16 gradients, rounded once
    got, wanted = (outputs_and_grads(run, call) for run in (selective_scan_triton, selective_scan_reference))
    chex.assert_trees_all_close(got, wanted, atol=tolerance, rtol=tolerance)


def test_other_platforms_run_xla():
    """The program is one for all platforms: a call that the kernels were chosen for runs on a CPU, too."""
    call = call_of(l=9)
    got, wanted = (outputs_and_grads(run, call) for run in (selective_scan_triton, selective_scan_reference))
    chex.assert_trees_all_close(got, wanted, atol=2e-5, rtol=2e-5)


def test_kernels_lower_for_cuda():
    call = call_of(l=40, e=6, n=2, groups=2, dtype=jnp.bfloat16)

    def loss(x):
        return selective_scan_triton(call._replace(x=x))[0].astype(jnp.float32).sum()

    lowered = jax.jit(jax.grad(loss)).trace(call.x).lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("selective_scan__forward") >= 1
    assert lowered.count("selective_scan__backward") >= 1


def test_what_the_kernels_do_not_take():
    call = call_of()
    B = jnp.ones((3, 2))
    assert "is complex" in supports(call._replace(A=call.A + 0j))
    assert "fixed over time" in supports(call._replace(B=B))
    assert "33 states, more than 32" in supports(call_of(n=33))
    assert "size 0" in supports(call._replace(x=call.x[:, :0]))
    assert "x is float64" in supports(call._replace(x=np.zeros((2, 5, 3))))


def test_they_run_where_they_are_named(monkeypatch):
    """`auto` takes XLA before them, until they have been timed on a GPU that has no better kernel."""
    order = list(api.IMPLEMENTATIONS)
    assert order.index("xla") < order.index("pallas_triton")
    with pytest.raises(NotImplementedError, match="compute capability 8.0 or newer"):
        ops.selective_scan(*call_of()[:8], implementation="pallas_triton")
    monkeypatch.setattr(ops.backend, "lacks_capability", lambda wanted, **_: None)  # as on such a GPU
    with pytest.raises(NotImplementedError, match="33 states, more than 32"):
        ops.selective_scan(*call_of(n=33)[:8], implementation="pallas_triton")
