"""Bundles of Mamba-2's ops: the scan, its packed form, the gated norm, and one step of both Mamba's scans."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

import ssmjax.ops
from ssmjax.layers import gated_rms_norm
from tests.parity.families.ops import outputs_and_grads, results
from tests.parity.harness import Dump, bundle, family

Arrays = Mapping[str, jax.Array]


@bundle(
    "ssd", required=("x", "dt", "A", "B", "C", "gy", "gs", "meta/chunk", "meta/softplus"), optional=("D", "z", "init")
)
def ssd(case: Dump) -> dict[str, np.ndarray]:
    inputs = case.section("in/")
    cotangents = inputs.pop("gy"), inputs.pop("gs")
    chunk, softplus = int(case.arrays["meta/chunk"]), bool(case.arrays["meta/softplus"])
    return results(*_ssd_and_grads(inputs, cotangents, chunk, softplus))


@functools.partial(jax.jit, static_argnames=("chunk", "softplus"))
def _ssd_and_grads(inputs: Arrays, cotangents, chunk: int, softplus: bool) -> tuple[Arrays, Arrays]:
    def loss(inputs: Arrays) -> tuple[jax.Array, Arrays]:
        named = {{"init": "h0"}.get(name, name): x for name, x in inputs.items()}
        y, state = ssmjax.ops.ssd(**named, dt_softplus=softplus, chunk=chunk, return_state=True)
        return jnp.sum(y * cotangents[0]) + jnp.sum(state * cotangents[1]), {"y": y, "state": state}

    return outputs_and_grads(loss, inputs)


@family("ssd_packed")
def ssd_packed(dump: Dump) -> dict[str, np.ndarray]:
    """D is ones and the bias of dt is zeros, as its description says; the run with limits for dt is not packed."""
    inputs = dump.inputs(["x", "dt", "A", "B", "C", "seq_idx"])
    ids, heads = inputs.pop("seq_idx").astype(np.int32), inputs["A"].shape
    assert (dump.config["D"], dump.config["dt_bias"]) == ("ones", "zeros")
    run = functools.partial(
        ssmjax.ops.ssd,
        **inputs,
        D=jnp.ones(heads),
        dt_bias=jnp.zeros(heads),
        dt_softplus=dump.config["dt_softplus"],
        chunk=16,
        return_state=True,
    )
    (y, state), (y_limit, state_limit) = run(segment_ids=ids), run(dt_limit=tuple(dump.config["dt_limit"]))
    return results({"y": y, "state": state, "y_limit": y_limit, "state_limit": state_limit}, {})


@bundle("gated_rmsnorm", required=("x", "w", "gy", "meta/norm_before_gate", "meta/group"), optional=("z", "b"))
def gated_rmsnorm(case: Dump) -> dict[str, np.ndarray]:
    inputs = case.section("in/")
    gy = inputs.pop("gy")
    group = int(case.arrays["meta/group"]) or None
    before = bool(case.arrays["meta/norm_before_gate"])

    def loss(inputs: Arrays) -> tuple[jax.Array, Arrays]:
        y = gated_rms_norm(
            inputs["x"], inputs["w"], inputs.get("z"), inputs.get("b"), group=group, norm_before_gate=before
        )
        return jnp.sum(y * gy), {"y": y}

    return results(*outputs_and_grads(loss, inputs))


@bundle("selective_state_update", required=("state", "x", "dt", "dt_bias", "A", "B", "C", "D"), optional=("z",))
def selective_state_update(case: Dump) -> dict[str, np.ndarray]:
    y, state = ssmjax.ops.selective_state_update(**case.section("in/"), dt_softplus=True)
    return results({"y": y, "state": state}, {})
