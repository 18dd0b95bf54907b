"""The bodies of the kernels for Hopper GPUs in numpy (`mosaic_simulator`): values, and who waits for whom."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax.ops.selective_scan import pallas_mosaic
from ssmjax.ops.selective_scan.call import ScanCall
from ssmjax.ops.selective_scan.mosaic.plan import Tile
from ssmjax.ops.selective_scan.reference import selective_scan_reference
from tests.layers import quick
from tests.ops.mosaic_simulator import simulated
from tests.ops.oracle import scan_problem

HELPER = Tile(16, 8, 2, slots=3, helper=True)
BACK = Tile(8, 4, 2, slots=3, helper=True)
CASES = {
    "mixed": dict(forward=Tile(16, 8, 1), backward=Tile(16, 4, 2)),
    "two_warpgroups_reverse": dict(forward=Tile(16, 8, 2), backward=Tile(8, 2, 2), reverse=True),
    "helpers": dict(forward=HELPER, backward=BACK),
    "helpers_plain": dict(forward=HELPER, backward=BACK, plain=True),
    "helpers_reverse_segments": dict(forward=HELPER, backward=BACK, reverse=True, segments=True),
    "helpers_chunks": dict(forward=Tile(8, 8, 2, 3, 3, True), backward=Tile(8, 4, 2, 2, 3, True), segments=True),
    "chunks_reverse": dict(forward=Tile(8, 8, 1, 2), backward=Tile(8, 4, 2, 3), reverse=True),
    "one_block_of_channels": dict(groups=None, forward=Tile(16, 8, 2), backward=Tile(16, 4, 2)),
    "few_states": dict(n=4, forward=Tile(16, 8, 1), backward=Tile(16, 4, 1)),
}


def make_case(l=43, n=16, groups=2, plain=False, segments=False, reverse=False, **tiles):
    problem = {k: jnp.asarray(v) for k, v in scan_problem(l, b=1, e=6, n=n, groups=groups).items()}
    if plain:
        problem = {k: v for k, v in problem.items() if k not in ("z", "dt_bias", "D", "h0")}
        problem["dt"] = jax.nn.softplus(problem["dt"])
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 8, (1, l)) // 7) if segments else None
    return ScanCall(**problem, dt_softplus=not plain, segment_ids=ids, reverse=reverse, return_state=not plain), tiles


ORDERS = [(name, order) for name, case in CASES.items() for order in ((0, 1, 2), (2, 1, 0))[: case["backward"].groups]]
"""Cases, those of several warpgroups with the first and with the last of them first."""


def of(run, call):
    """A call as a function of its arrays, with a tuple of outputs."""

    def function(arrays):
        y, state = run(call._replace(**arrays))
        return (y, state) if call.return_state else (y,)

    return function


@functools.cache
def expected(name):
    """The outputs of the reference, cotangents of them, and the gradients of the arrays, in one program."""
    call, _ = make_case(**CASES[name])
    arrays = {k: v for k, v in call._asdict().items() if isinstance(v, jax.Array) and k != "segment_ids"}

    @quick.jit
    def run(arrays):
        wanted, vjp = jax.vjp(of(selective_scan_reference, call), arrays)
        cotangents = jax.tree.map(lambda v: jnp.cos(jnp.arange(v.size, dtype=v.dtype)).reshape(v.shape), wanted)
        return wanted, cotangents, vjp(cotangents)[0]

    return arrays, *run(arrays)


@pytest.mark.parametrize(("name", "order"), ORDERS, ids=str)
def test_kernels_compute_the_scan_and_its_gradients(name, order, monkeypatch):
    call, tiles = make_case(**CASES[name])
    arrays, wanted, cotangents, wanted_grads = expected(name)

    def by_kernel(direction, plan, arrays, *, keep_states=False):
        """In place of `_by_platform`: the kernels now, in numpy."""
        if direction == "forward":
            return pallas_mosaic._forward_kernel(plan, keep_states, arrays)
        return pallas_mosaic._backward_kernel(plan, arrays)

    with simulated(monkeypatch, order):
        monkeypatch.setattr(pallas_mosaic, "_by_platform", by_kernel)
        monkeypatch.setattr(pallas_mosaic, "_over_batch", lambda run, arrays: run(arrays))
        run = of(lambda call: pallas_mosaic.selective_scan_mosaic(call, **tiles), call)
        got, vjp = jax.vjp(run, arrays)
        grads = vjp(cotangents)[0]
    for k, (g, w) in {f"output {i}": pair for i, pair in enumerate(zip(got, wanted, strict=True))}.items():
        np.testing.assert_allclose(g, w, rtol=2e-4, atol=2e-4 * np.abs(w).max(), err_msg=k)
    for k, w in wanted_grads.items():
        np.testing.assert_allclose(grads[k], w, rtol=2e-4, atol=2e-4 * np.abs(w).max(), err_msg=f"d{k}")
