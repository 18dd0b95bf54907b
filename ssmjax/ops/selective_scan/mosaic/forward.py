"""The forward kernel: outputs, the last state, and the states that the backward pass starts from.

A program has 128 channels of one batch row, a thread has one channel, and its states stay in registers from the first
step to the last; with two warpgroups each has half of the states, and their parts of y are added in shared memory.
Tiles of x, dt, z, B and C are copied to shared memory ahead of their use. The bounds are the exponentials (16 a clock
and multiprocessor) and the issue slots; memory is read and written once.

Where there are few programs, a third warpgroup prepares the next tile and finishes the last one meanwhile
(`forward_helper`).

Long sequences of few channels are cut into chunks that run at the same time: a first kernel (`ends`) finds what each
chunk adds to the state and how much it decays it, and each program of the second folds the chunks before its own.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ssmjax.ops.selective_scan.mosaic import forward_helper, parts, steps
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
    outputs = {"y": jax.ShapeDtypeStruct((b, plan.written(tile), e), x.dtype)}
    if plan.end:
        outputs["end"] = jax.ShapeDtypeStruct((b, plan.n, e), f32)
    if keep_states:
        outputs["states"] = jax.ShapeDtypeStruct((b, plan.stored(), plan.n, e), f32)
    body = functools.partial(_program, plan, ends=False)
    scratch = _scratch(plan, arrays, ends=False)
    found = parts.launch(body, arrays | totals, outputs, scratch, grid, tile.groups + tile.helper)
    return found | {"y": found["y"][:, : plan.l]}


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
    turns = 2 if tile.helper and not ends else 1
    if plan.changes_dt and tile.groups > 1:
        scratch["step"] = plgpu.SMEM((turns, q, CHANNELS), f32)
    if not ends:
        scratch["y_tile"] = plgpu.SMEM((2, q, CHANNELS), arrays["x"].dtype)
        if tile.groups > 1:
            scratch["part"] = plgpu.SMEM((turns, tile.groups, q, CHANNELS), f32)
    copies = sum(name.endswith("_tile") for name in scratch) - ("y_tile" in scratch)
    scratch["arrived"] = plgpu.Barrier(num_arrivals=copies, num_barriers=s)
    return scratch


def _program(plan: Plan, refs: dict, w: int, *, ends: bool) -> None:
    """One warpgroup's part of a program: all time steps of its states."""
    place = parts.Place(plan, plan.forward)
    b, c, ch = place.b, place.c, place.channels
    mine = [w % plan.forward.groups * (plan.n // plan.forward.groups) + k for k in range(plan.n // plan.forward.groups)]
    A = [refs["A"][k, ch] * parts.LOG2E for k in mine]
    zero = A[0] * 0.0
    refs = refs | {f"{name}_here": refs[name][ch] for name in ("D", "bias") if name in refs}
    if w == plan.forward.groups:
        return forward_helper.help_out(plan, refs, place)
    if w == 0 and not (plan.forward.helper and not ends):
        for i in range(min(plan.forward.slots, place.blocks)):
            steps.fetch(refs, place, i, i)
    h = [zero] * len(mine) if ends else steps.start(plan, refs, place, mine, A)
    if plan.forward.helper and not ends:
        parts.meet_program(plan.forward.groups + 1)
        scan = functools.partial(forward_helper.scan_tile, plan, refs, place, w, mine, A)
    else:
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


def _tile(plan, refs, place, w, mine, A, ends, i, carry):
    """The steps of one tile; the carry is the states, the sum of step sizes and whether no reset was met."""
    tile = plan.forward
    slot, p, turn = lax.rem(i, tile.slots), place.block(i), lax.rem(i, 2)
    plgpu.barrier_wait(refs["arrived"].at[slot])
    for k, name in enumerate(("B",) if ends else ("B", "C")):
        if w == k % tile.groups:
            refs[f"{name}_row"][turn] = refs[f"{name}_tile"][slot].astype(f32)
    if "step" in refs:
        share = tile.steps // tile.groups
        steps.store_step_sizes(plan, refs, place, range(w * share, w * share + share), p, slot, 0)
    if not ends:
        plgpu.wait_smem_to_gmem(1, wait_read_only=True)
    parts.meet_program(tile.groups)

    several = functools.partial(steps.several, plan, refs, place, w, mine, A, ends, p, slot, turn)
    carry = lax.fori_loop(0, tile.steps // tile.unroll, several, carry)
    if not ends:
        _send(plan, refs, place, w, slot, p, turn)
    else:
        parts.meet_program(tile.groups)
    if w == 0:

        @pl.when(i + tile.slots < place.blocks)
        def _():
            steps.fetch(refs, place, i + tile.slots, slot)

    return carry


def _send(plan, refs, place, w, slot, p, turn) -> None:
    """Adds up the warpgroups' parts of y and begins the copy of this warpgroup's share of the tile."""
    tile = plan.forward
    share = tile.steps // tile.groups
    if tile.groups > 1:
        parts.meet_program(tile.groups)

        steps.store_outputs(plan, refs, place, range(w * share, w * share + share), slot, turn, 0)
    plgpu.commit_smem()
    rows = pl.ds(w * share, share)
    times = pl.ds(p * tile.steps + w * share, share)
    plgpu.copy_smem_to_gmem(refs["y_tile"].at[turn, rows], refs["y"].at[place.b, times, place.channels])
    if tile.groups > 1:
        parts.meet_program(tile.groups)  # both have left the tiles that are fetched next
