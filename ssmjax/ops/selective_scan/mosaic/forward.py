"""The forward kernel: outputs, the last state, and the states that the backward pass starts from.

A program has 128 channels of one batch row, a thread has one channel, and its states stay in registers from the first
step to the last; with two warpgroups each has half of the states, and their parts of y are added in shared memory.
Tiles of x, dt, z, B and C are copied to shared memory ahead of their use. The bounds are the exponentials (16 a clock
and multiprocessor) and the issue slots; memory is read and written once.

Long sequences of few channels are cut into chunks that run at the same time: a first kernel (`ends`) finds what each
chunk adds to the state and how much it decays it, and each program of the second folds the chunks before its own.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ssmjax.ops.selective_scan.mosaic import parts
from ssmjax.ops.selective_scan.mosaic.plan import CHANNELS, KEPT, Plan

__all__ = ["forward"]

f32 = jnp.float32


def forward(plan: Plan, arrays: dict, keep_states: bool) -> dict:
    """The outputs of a call.

    Args:
        plan: Its static facts.
        arrays: `x`, `dt`, `z` (b l e), `A` (n e), `B`, `C` (b l n) or (b l g n), `D`, `bias` (e), `start` (b n e),
            `kept` (b l' KEPT), 0.0 where the state is reset and l' the padded length; those that the call has.
        keep_states: Whether the states for the backward pass are wanted.

    Returns:
        `y` (b l e), with `plan.end` `end` (b n e), with `keep_states` `states` (b, plan.stored(), n, e).
    """
    x, tile = arrays["x"], plan.forward
    b, _, e = x.shape
    grid = b, tile.chunks, e // CHANNELS
    totals = {}
    if tile.chunks > 1:
        inputs = {k: v for k, v in arrays.items() if k in ("x", "dt", "A", "B", "bias", "kept")}
        totals = parts.launch(
            functools.partial(_program, plan, ends=True),
            inputs,
            _chunk_outputs(plan, b),
            _scratch(plan, inputs, ends=True),
            grid,
            tile.groups,
        )
    outputs = {"y": jax.ShapeDtypeStruct(x.shape, x.dtype)}
    if plan.end:
        outputs["end"] = jax.ShapeDtypeStruct((b, plan.n, e), f32)
    if keep_states:
        outputs["states"] = jax.ShapeDtypeStruct((b, plan.stored(), plan.n, e), f32)
    body = functools.partial(_program, plan, ends=False)
    return parts.launch(body, arrays | totals, outputs, _scratch(plan, arrays, ends=False), grid, tile.groups)


def _chunk_outputs(plan: Plan, b: int) -> dict:
    """What is known of a chunk: its end state from zero, its sum of step sizes, whether it has no reset."""
    c = plan.forward.chunks
    outputs = {
        "chunk_ends": jax.ShapeDtypeStruct((b, c, plan.n, plan.e), f32),
        "chunk_sums": jax.ShapeDtypeStruct((b, c, plan.e), f32),
    }
    if plan.segments:
        outputs["chunk_kept"] = jax.ShapeDtypeStruct((b, c, plan.e), f32)
    return outputs


def _scratch(plan: Plan, arrays: dict, *, ends: bool) -> dict:
    """Shared memory: tiles in flight, B and C as float32, step sizes, parts of y, y."""
    tile = plan.forward
    q, s = tile.steps, tile.slots
    scratch = {}
    for name, v in arrays.items():
        if name in ("x", "dt", "z"):
            scratch[f"{name}_tile"] = plgpu.SMEM((s, q, CHANNELS), v.dtype)
        elif name in ("B", "C"):
            scratch[f"{name}_tile"] = plgpu.SMEM((s, q, plan.n), v.dtype)
            scratch[f"{name}_row"] = plgpu.SMEM((2, q, plan.n), f32)
        elif name == "kept":
            scratch["kept_tile"] = plgpu.SMEM((s, q, KEPT), f32)
    if plan.changes_dt and tile.groups > 1:
        scratch["step"] = plgpu.SMEM((q, CHANNELS), f32)
    if not ends:
        scratch["y_tile"] = plgpu.SMEM((2, q, CHANNELS), arrays["x"].dtype)
        if tile.groups > 1:
            scratch["part"] = plgpu.SMEM((tile.groups, q, CHANNELS), f32)
    copies = sum(name.endswith("_tile") for name in scratch) - ("y_tile" in scratch)
    scratch["arrived"] = plgpu.Barrier(num_arrivals=copies, num_barriers=s)
    return scratch


def _program(plan: Plan, refs: dict, w: int, *, ends: bool) -> None:
    """One warpgroup's part of a program: all time steps of its states."""
    place = parts.Place(plan, plan.forward)
    b, c, ch = place.b, place.c, place.channels
    mine = [w * (plan.n // plan.forward.groups) + k for k in range(plan.n // plan.forward.groups)]
    A = [refs["A"][k, ch] * parts.LOG2E for k in mine]
    zero = A[0] * 0.0
    refs = refs | {f"{name}_here": refs[name][ch] for name in ("D", "bias") if name in refs}
    if w == 0:
        for i in range(min(plan.forward.slots, place.blocks)):
            _fetch(refs, place, i, i)
    h = [zero] * len(mine)
    if plan.start and not ends:
        h = [refs["start"][b, k, ch] for k in mine]
    if plan.forward.chunks > 1 and not ends:
        kept = (lambda j: refs["chunk_kept"][b, j, ch]) if plan.segments else None
        h = parts.fold(
            A,
            h,
            kept,
            lambda j: refs["chunk_sums"][b, j, ch],
            lambda j, m: refs["chunk_ends"][b, j, mine[m], ch],
            (0, c, 1),
        )
    scan = functools.partial(_tile, plan, refs, place, w, mine, A, ends)
    h, total, kept = lax.fori_loop(0, place.blocks, scan, (tuple(h), zero, zero + 1.0))
    if ends:
        for k, v in zip(mine, h, strict=True):
            refs["chunk_ends"][b, c, k, ch] = v
        if w == 0:
            refs["chunk_sums"][b, c, ch] = total
            if plan.segments:
                refs["chunk_kept"][b, c, ch] = kept
        return
    plgpu.wait_smem_to_gmem(0)
    if plan.end:

        @pl.when(c == plan.forward.chunks - 1)
        def _():
            for k, v in zip(mine, h, strict=True):
                refs["end"][b, k, ch] = v


def _fetch(refs: dict, place: parts.Place, i, slot) -> None:
    """Begins the copies of tile i of this chunk to shared memory."""
    times = pl.ds(place.block(i) * place.tile.steps, place.tile.steps)
    for name in ("x", "dt", "z", "B", "C", "kept"):
        if name not in refs or f"{name}_tile" not in refs:
            continue
        if name in ("B", "C"):
            source = place.matrix(refs[name], times)
        else:
            source = refs[name].at[(place.b, times) if name == "kept" else (place.b, times, place.channels)]
        plgpu.copy_gmem_to_smem(source, refs[f"{name}_tile"].at[slot], refs["arrived"].at[slot])


def _tile(plan, refs, place, w, mine, A, ends, i, carry):
    """The steps of one tile; the carry is the states, the sum of step sizes and whether no reset was met."""
    tile = plan.forward
    slot, p, turn = lax.rem(i, tile.slots), place.block(i), lax.rem(i, 2)
    plgpu.barrier_wait(refs["arrived"].at[slot])
    for k, name in enumerate(("B",) if ends else ("B", "C")):
        if w == k % tile.groups:
            refs[f"{name}_row"][turn] = refs[f"{name}_tile"][slot].astype(f32)
    if "step" in refs:
        _store_step_sizes(plan, refs, place, w, p, slot)
    if not ends:
        plgpu.wait_smem_to_gmem(1, wait_read_only=True)
    parts.meet_program(tile.groups)

    def several(s, carry):
        h, total, kept = carry
        _store_states(plan, refs, place, mine, p, s, h)
        rows = [place.row(s * tile.unroll + j) for j in range(tile.unroll)]
        inputs = [_inputs(plan, refs, place, p, slot, row) for row in rows]  # loaded before anything is stored
        ys = []
        for row, (d, x, keep) in zip(rows, inputs, strict=True):
            h, y = _step(refs, h, A, d, d * x, turn, row, mine, keep, ends)
            ys.append(y)
            if ends:
                total, kept = total + d, (kept if keep is None else kept * keep)
        if not ends:
            for row, y in zip(rows, ys, strict=True):
                if tile.groups > 1:
                    refs["part"][w, row] = y
                else:
                    _store_output(plan, refs, place, slot, turn, row, y)
        return tuple(h), total, kept

    carry = lax.fori_loop(0, tile.steps // tile.unroll, several, carry)
    if not ends:
        _send(plan, refs, place, w, slot, p, turn)
    else:
        parts.meet_program(tile.groups)
    if w == 0:

        @pl.when(i + tile.slots < place.blocks)
        def _():
            _fetch(refs, place, i + tile.slots, slot)

    return carry


def _step(refs, h, A, d, du, turn, row, mine, keep, ends):
    """One time step: the states after it and this warpgroup's part of the sum of C h."""
    here = (turn, row, pl.ds(mine[0], len(mine)))
    B = parts.row(refs["B_row"].at[here], len(mine))
    C = None if ends else parts.row(refs["C_row"].at[here], len(mine))
    h, sums = list(h), [None, None]
    for k in range(len(mine)):
        a = jnp.exp2(d * A[k])
        h[k] = (a if keep is None else a * keep) * h[k] + du * B[k]
        if not ends:  # two sums, so that an addition need not wait for the one before
            sums[k % 2] = h[k] * C[k] if sums[k % 2] is None else sums[k % 2] + h[k] * C[k]
    return h, None if ends else sums[0] + sums[1]


def _inputs(plan, refs, place, p, slot, row):
    """A time step's step size, x, and whether the state is kept."""
    x = refs["x_tile"][slot, row].astype(f32)
    keep = refs["kept_tile"][slot, row, 0] if plan.segments else None
    if "step" in refs:
        return refs["step"][row], x, keep
    raw = refs["dt_tile"][slot, row].astype(f32)
    d = parts.step_size(plan, raw, refs.get("bias_here"), place.inside(p, row)) if plan.changes_dt else raw
    return d, x, keep


def _store_step_sizes(plan, refs, place, w, p, slot) -> None:
    """This warpgroup's share of the tile's step sizes, for all warpgroups."""
    share = plan.forward.steps // plan.forward.groups

    def one(r, _):
        row = w * share + r
        raw = refs["dt_tile"][slot, row].astype(f32)
        refs["step"][row] = parts.step_size(plan, raw, refs.get("bias_here"), place.inside(p, row))
        return _

    lax.fori_loop(0, share, one, 0, unroll=math.gcd(share, 4))


def _store_states(plan, refs, place, mine, p, s, h) -> None:
    """The states before a step whose place is a multiple of the backward pass's tiles."""
    if "states" not in refs:
        return
    every, tile = plan.backward.steps, plan.forward
    before = s * tile.unroll
    index = p * (tile.steps // every) + (
        lax.div(tile.steps - before, every) - 1 if plan.reverse else lax.div(before, every)
    )

    @pl.when(lax.rem(before, every) == 0)
    def _():
        for k, v in zip(mine, h, strict=True):
            refs["states"][place.b, index, k, place.channels] = v


def _store_output(plan, refs, place, slot, turn, row, y) -> None:
    """Adds the skip, multiplies with the gate."""
    if plan.skip:
        y = y + refs["D_here"] * refs["x_tile"][slot, row].astype(f32)
    if plan.gate:
        z = refs["z_tile"][slot, row].astype(f32)
        y = y * (z * parts.sigmoid(z))
    refs["y_tile"][turn, row] = y.astype(refs["y_tile"].dtype)


def _send(plan, refs, place, w, slot, p, turn) -> None:
    """Adds up the warpgroups' parts of y and begins the copy of this warpgroup's share of the tile."""
    tile = plan.forward
    share = tile.steps // tile.groups
    if tile.groups > 1:
        parts.meet_program(tile.groups)

        def one(r, _):
            row = w * share + r
            y = refs["part"][0, row]
            for k in range(1, tile.groups):
                y = y + refs["part"][k, row]
            _store_output(plan, refs, place, slot, turn, row, y)
            return _

        lax.fori_loop(0, share, one, 0, unroll=math.gcd(share, 8))
    plgpu.commit_smem()
    rows = pl.ds(w * share, share)
    times = pl.ds(p * tile.steps + w * share, share)
    plgpu.copy_smem_to_gmem(refs["y_tile"].at[turn, rows], refs["y"].at[place.b, times, place.channels])
    if tile.groups > 1:
        parts.meet_program(tile.groups)  # both have left the tiles that are fetched next
