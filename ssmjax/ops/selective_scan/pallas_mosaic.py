"""The selective scan on Hopper GPUs: kernels in Pallas Mosaic GPU, with a custom VJP around the whole op.

This file brings a call into the form that the kernels take (`mosaic/`), and loads no Pallas before it needs to. A call
of more than 16 states is the sum of calls of up to 16. Where a program is compiled for another platform than the one
that the kernels were chosen for, it runs the XLA form.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ssmjax import _compat
from ssmjax.ops._numerics.derivatives import reverse_only
from ssmjax.ops.selective_scan.call import STATES, ScanCall
from ssmjax.ops.selective_scan.mosaic.plan import CHANNELS, KEPT, Plan, Tile, choose_tiles
from ssmjax.ops.selective_scan.xla import selective_scan_xla

__all__ = ["selective_scan_mosaic", "supports"]

MOST_STATES = 64
STATES_OF_A_CALL = 16
DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
TABLE = pathlib.Path(__file__).parent / "mosaic" / "tiles.json"
SHARED = ("A", "D", "bias")
"""Arrays without a batch axis."""


def supports(call: ScanCall) -> str | None:
    """Why the kernels do not take a call, or None if they do."""
    if jnp.iscomplexobj(call.A):
        return "A is complex"
    if call.B.ndim == 2 or call.C.ndim == 2:
        return "B or C is fixed over time"
    if call.A.shape[1] > MOST_STATES:
        return f"n = {call.A.shape[1]} states, more than {MOST_STATES}"
    if 0 in call.x.shape or 0 in call.A.shape:
        return "an axis has size 0"
    for name in ("x", "dt", "z", "B", "C"):
        v = getattr(call, name)
        if v is not None and v.dtype not in DTYPES:
            return f"{name} is {v.dtype}"
    if _compat.varies([v for v in call if hasattr(v, "dtype")]):
        return "it is inside a shard_map that checks varying axes (check_vma=False lets kernels in)"
    return _compat.lacks_mosaic_gpu()


def selective_scan_mosaic(call: ScanCall, *, forward: Tile | None = None, backward: Tile | None = None):
    """Returns `y` (b l e) in the dtype of `x` and the last state (b e n) or None.

    `forward` and `backward` are launch parameters in place of those that `mosaic.plan.choose_tiles` gives.
    """
    if call.A.shape[1] > STATES_OF_A_CALL:
        return _sum_of_calls(call, forward, backward)
    arrays = _arrays(call)
    plan = _plan(call, arrays, forward, backward)
    if plan.segments:
        arrays["kept"] = _kept(plan, call)
    y, state = reverse_only("selective_scan", functools.partial(_scan, plan), arrays)
    e, n = call.A.shape
    y = _without_padding(y, plan.g, e)
    if state is not None:
        state = _without_padding(state, plan.g, e)[:, :n].swapaxes(1, 2)
    return y, state


def _sum_of_calls(call: ScanCall, forward, backward):
    """More states than a kernel keeps in registers: y is a sum over states, so each 16 of them are a call."""
    y, states = 0.0, []
    x, dt = call.x.astype(jnp.float32), call.dt.astype(jnp.float32)  # once: their gradients are summed in float32
    for first in range(0, call.A.shape[1], STATES_OF_A_CALL):
        some = slice(first, first + STATES_OF_A_CALL)
        part = call._replace(
            x=x,
            dt=dt,
            A=call.A[:, some],
            B=call.B[..., some],
            C=call.C[..., some],
            D=None,
            z=None,
            h0=None if call.h0 is None else call.h0[:, :, some],
        )
        part_y, state = selective_scan_mosaic(part, forward=forward, backward=backward)
        y = y + part_y
        states.append(state)
    if call.D is not None:
        y = y + x * call.D.astype(jnp.float32)[None, None]
    if call.z is not None:
        y = y * jax.nn.silu(call.z.astype(jnp.float32))
    return y.astype(call.x.dtype), jnp.concatenate(states, 2) if call.return_state else None


def _arrays(call: ScanCall) -> dict[str, jax.Array]:
    """The arrays that the call has as the kernels take them: padded, channels last, parameters in float32."""
    g = max(M.shape[2] if M.ndim == 4 else 1 for M in (call.B, call.C))
    n = 8 if call.A.shape[1] <= 8 else 16
    per_channel = {"A": call.A.T, "D": call.D, "bias": call.dt_bias}
    if call.h0 is not None:
        per_channel["start"] = call.h0.swapaxes(1, 2)
    arrays = {k: v.astype(jnp.float32) for k, v in per_channel.items() if v is not None}
    arrays |= {k: v for k, v in {"x": call.x, "dt": call.dt, "z": call.z}.items() if v is not None}
    arrays = {k: _with_padding(v, g) for k, v in arrays.items()}
    for k in ("A", "start"):
        if k in arrays:
            axes = [(0, 0)] * (arrays[k].ndim - 2) + [(0, n - call.A.shape[1]), (0, 0)]
            arrays[k] = jnp.pad(arrays[k], axes) if n > call.A.shape[1] else arrays[k]
    for k, M in {"B": call.B, "C": call.C}.items():
        if M.ndim == 3 and g > 1:
            M = jnp.broadcast_to(M[:, :, None], (*M.shape[:2], g, M.shape[2]))
        M = M[:, :, 0] if M.ndim == 4 and g == 1 else M
        arrays[k] = jnp.pad(M, [(0, 0)] * (M.ndim - 1) + [(0, n - M.shape[-1])]) if n > M.shape[-1] else M
    return arrays


def _plan(call: ScanCall, arrays: dict, forward: Tile | None, backward: Tile | None) -> Plan:
    (b, l, e), n = arrays["x"].shape, arrays["A"].shape[0]
    widths = {k: v.dtype.itemsize for k, v in arrays.items() if k in ("x", "dt", "z", "B", "C")}
    if call.segment_ids is not None:
        widths["kept"] = 4
    changes_dt = call.dt_softplus or call.dt_bias is not None
    front, back = choose_tiles(b, l, e, n, widths, changes_dt=changes_dt, helpers=_measured())
    return Plan(
        l=l,
        e=e,
        n=n,
        g=arrays["B"].shape[2] if arrays["B"].ndim == 4 else 1,
        softplus=call.dt_softplus,
        bias=call.dt_bias is not None,
        skip=call.D is not None,
        gate=call.z is not None,
        start=call.h0 is not None,
        segments=call.segment_ids is not None,
        reverse=call.reverse,
        end=call.return_state,
        exact=any(arrays[k].dtype != jnp.bfloat16 for k in ("B", "C")),
        forward=forward or front,
        backward=backward or back,
    )


def _measured() -> dict | None:
    """What `python -m benchmarks.tune` found on the default device's kind of GPU."""
    return _table().get(jax.devices()[0].device_kind)


@functools.cache
def _table() -> dict:
    return json.loads(TABLE.read_text())


def _kept(plan: Plan, call: ScanCall) -> jax.Array:
    """(b l' KEPT): False where the state is reset before the step, with l' enough for all tiles of both kernels."""
    same = call.segment_ids[:, 1:] == call.segment_ids[:, :-1]
    kept = jnp.pad(same, ((0, 0), (0, 1) if call.reverse else (1, 0)), constant_values=True)
    longest = max(plan.padded(plan.forward), plan.padded(plan.backward))
    kept = jnp.pad(kept, ((0, 0), (0, longest - plan.l)), constant_values=True)
    return jnp.broadcast_to(kept[..., None], (*kept.shape, KEPT))


def _with_padding(v: jax.Array, g: int) -> jax.Array:
    """Zero channels at the end of each group, up to a multiple of `CHANNELS`."""
    f = v.shape[-1] // g
    if f % CHANNELS == 0:
        return v
    v = v.reshape(*v.shape[:-1], g, f)
    v = jnp.pad(v, [(0, 0)] * (v.ndim - 1) + [(0, -f % CHANNELS)])
    return v.reshape(*v.shape[:-2], -1)


def _without_padding(v: jax.Array, g: int, e: int) -> jax.Array:
    if v.shape[-1] == e:
        return v
    return v.reshape(*v.shape[:-1], g, -1)[..., : e // g].reshape(*v.shape[:-1], e)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(plan: Plan, arrays: dict):
    found = _by_platform("forward", plan, arrays)
    return found["y"], found.get("end")


def _scan_fwd(plan: Plan, arrays: dict):
    found = _by_platform("forward", plan, arrays, keep_states=True)
    return (found["y"], found.get("end")), (arrays, checkpoint_name(found["states"], STATES))


def _scan_bwd(plan: Plan, saved, cotangents):
    arrays, states = saved
    dy, dend = cotangents
    more = {"dy": dy, "states": states} | ({"dend": dend} if plan.end else {})
    grads = _by_platform("backward", plan, arrays | more)
    return ({k: None if k == "kept" else grads[k] for k in arrays},)


_scan.defvjp(_scan_fwd, _scan_bwd)


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="keep_states")
def _by_platform(direction: str, plan: Plan, arrays: dict, *, keep_states: bool = False) -> dict:
    kernel = functools.partial(_forward_kernel, plan, keep_states) if direction == "forward" else None
    other = functools.partial(_forward_xla, plan, keep_states) if direction == "forward" else None
    if direction == "backward":
        kernel, other = functools.partial(_backward_kernel, plan), functools.partial(_backward_xla, plan)
    return jax.lax.platform_dependent(arrays, cuda=kernel, default=other)


def _forward_kernel(plan: Plan, keep_states: bool, arrays: dict) -> dict:
    from ssmjax.ops.selective_scan.mosaic.forward import forward

    return _over_batch(functools.partial(forward, plan, keep_states=keep_states), _with_floats(arrays))


def _backward_kernel(plan: Plan, arrays: dict) -> dict:
    from ssmjax.ops.selective_scan.mosaic.backward import backward

    found = _over_batch(functools.partial(backward, plan), _with_floats(arrays))
    grads = {k: found[f"d{k}"] for k in ("x", "dt", "z", "start") if f"d{k}" in found}
    grads |= {k: found[f"d{k}"].sum((0, 1)) for k in SHARED if f"d{k}" in found}
    sums = found["sums"]
    b, blocks, groups, _, _, each = sums.shape
    sums = sums.reshape(b, plan.g, blocks // plan.g, *sums.shape[2:]).sum(2)[:, :, :, : plan.l]
    sums = sums.transpose(4, 0, 3, 1, 2, 5).reshape(2, b, plan.l, plan.g, groups * each)
    for k, v in zip("BC", sums, strict=True):
        grads[k] = v.reshape(arrays[k].shape).astype(arrays[k].dtype)
    return grads


def _with_floats(arrays: dict) -> dict:
    return {k: v.astype(jnp.float32) if k == "kept" else v for k, v in arrays.items()}


def _over_batch(run, arrays: dict) -> dict:
    """`run(arrays)`: a vmapped axis joins the batch axis, which all arrays and results but the shared have first."""

    @jax.custom_batching.custom_vmap
    def call(arrays):
        return run(arrays)

    @call.def_vmap
    def rule(size, batched, arrays):
        batched = batched[0]
        if any(batched[k] for k in SHARED if k in arrays):
            some = {k: v for k, v in arrays.items() if batched[k]}
            found = jax.lax.map(lambda one: call(arrays | one), some)
            return found, jax.tree.map(lambda _: True, found)
        joined = {}
        for k, v in arrays.items():
            if k not in SHARED:
                v = v if batched[k] else jnp.broadcast_to(v, (size, *v.shape))
                v = v.reshape(-1, *v.shape[2:])
            joined[k] = v
        found = jax.tree.map(lambda v: v.reshape(size, -1, *v.shape[1:]), call(joined))
        return found, jax.tree.map(lambda _: True, found)

    return call(arrays)


def _as_call(plan: Plan, arrays: dict) -> ScanCall:
    """The call of padded arrays."""
    start, segment_ids = arrays.get("start"), None
    if plan.segments:
        kept = arrays["kept"][:, : plan.l, 0]
        if plan.reverse:
            kept = jnp.pad(kept[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        segment_ids = jnp.cumsum(~kept, 1)
    return ScanCall(
        x=arrays["x"],
        dt=arrays["dt"],
        A=arrays["A"].T,
        B=arrays["B"],
        C=arrays["C"],
        D=arrays.get("D"),
        z=arrays.get("z"),
        dt_bias=arrays.get("bias"),
        dt_softplus=plan.softplus,
        h0=None if start is None else start.swapaxes(1, 2),
        segment_ids=segment_ids,
        reverse=plan.reverse,
    )


def _forward_xla(plan: Plan, keep_states: bool, arrays: dict) -> dict:
    y, end = selective_scan_xla(_as_call(plan, arrays))
    found = {"y": y} | ({"end": end.swapaxes(1, 2)} if plan.end else {})
    if keep_states:  # of the kernel; the XLA form's backward pass begins with the inputs
        found["states"] = jnp.zeros((y.shape[0], plan.stored(), plan.n, plan.e), jnp.float32)
    return found


def _backward_xla(plan: Plan, arrays: dict) -> dict:
    kept = {k: arrays[k] for k in ("kept",) if k in arrays}
    inputs = {k: v for k, v in arrays.items() if k not in ("dy", "states", "dend", "kept")}
    plain = dataclasses.replace(plan, end=True)
    _, vjp = jax.vjp(lambda inputs: _forward_xla(plain, False, inputs | kept), inputs)
    dend = arrays.get("dend")
    dend = jnp.zeros((arrays["x"].shape[0], plan.n, plan.e), jnp.float32) if dend is None else dend
    return vjp({"y": arrays["dy"], "end": dend})[0]
