"""The backward kernel: every gradient, from the inputs and the states that the forward pass stored.

A program has 128 channels of one batch row, as in the forward kernel, 8 states a warpgroup, and walks the tiles
backwards. In each tile the states before every few steps are computed again from the stored one and laid in shared
memory; then, a few steps at a time, states and decays are computed once more into registers and walked back. The
gradients of B and C sum over channels: tensor cores add the products of a warp (`parts.add_products`), the program adds
its warps and writes one partial sum for every step, state and 128 channels, and XLA adds those. There are no atomics,
so two runs agree in every bit.

With `s_t` the cotangent of `h_t` and `v_t = exp(dt_{t+1} A) s_{t+1}` what the later steps send to it,

    s_t = C_t dy_t + v_t,    dB_t = sum dt x s_t,    dC_t = sum dy h_t,    dA = sum dt v_{t-1} h_{t-1},

    d(dt) = x <B_t, s_t> + <A v_{t-1}, h_{t-1}>,    dx = dt <B_t, s_t> + D dy.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ssmjax.ops.selective_scan.mosaic import backward_helper, parts
from ssmjax.ops.selective_scan.mosaic import backward_steps as steps
from ssmjax.ops.selective_scan.mosaic.plan import CHANNELS, KEPT, Plan, Tile

__all__ = ["backward"]

f32 = jnp.float32


def backward(plan: Plan, arrays: dict) -> dict:
    """The gradients of a call, those of shared arrays still for each batch row and chunk.

    Args:
        plan: Its static facts.
        arrays: The arrays that `forward` takes, with `dy` (b l e), `states`, and with `plan.end` `dend` (b n e).

    Returns:
        `dx`, `ddt`, `dz` (b l e), `dA` (b c n e), `dD`, `dbias` (b c e), `dstart` (b n e) where the call has them, and
        `sums` (b, blocks of channels, warpgroups, padded length, 2, states of a warpgroup): partial sums of dB and dC.
    """
    tile = plan.backward
    b, _, e = arrays["x"].shape
    grid = b, tile.chunks, e // CHANNELS
    totals = {}
    if tile.chunks > 1:
        inputs = {k: v for k, v in arrays.items() if k in ("dt", "dy", "z", "A", "C", "bias", "kept")}
        totals = parts.launch(
            functools.partial(_chunk_program, plan),
            inputs,
            {
                "chunk_ends": jax.ShapeDtypeStruct((b, tile.chunks, plan.n, e), f32),
                "chunk_sums": jax.ShapeDtypeStruct((b, tile.chunks, e), f32),
                "chunk_kept": jax.ShapeDtypeStruct((b, tile.chunks, e), f32),
            },
            _scratch(plan, inputs, ends=True),
            grid,
            tile.groups,
        )
    tiled = {f"d{k}": v.dtype for k, v in arrays.items() if k in ("x", "dt", "z")}
    outputs = {k: jax.ShapeDtypeStruct((b, plan.written(tile), e), dtype) for k, dtype in tiled.items()}
    outputs["dA"] = jax.ShapeDtypeStruct((b, tile.chunks, plan.n, e), f32)
    per_channel = jax.ShapeDtypeStruct((b, tile.chunks, e), f32)
    outputs |= {f"d{k}": per_channel for k in ("D", "bias") if k in arrays}
    if plan.start:
        outputs["dstart"] = jax.ShapeDtypeStruct((b, plan.n, e), f32)
    sums = (b, e // CHANNELS, tile.groups, plan.padded(tile) * 2 * (plan.n // tile.groups))
    outputs["sums"] = jax.ShapeDtypeStruct(sums, f32)
    program = functools.partial(_program, plan)
    scratch = _scratch(plan, arrays, ends=False)
    found = parts.launch(program, arrays | totals, outputs, scratch, grid, tile.groups + tile.helper)
    found["sums"] = found["sums"].reshape(*sums[:3], plan.padded(tile), 2, -1)
    return found | {k: found[k][:, : plan.l] for k in tiled}


def _scratch(plan: Plan, arrays: dict, *, ends: bool) -> dict:
    """Shared memory: tiles in flight, B and C as float32, step sizes, gated dy, states, what warpgroups exchange."""
    tile = plan.backward
    q, u, s, w = tile.steps, tile.unroll, tile.slots, tile.groups
    scratch = {}
    for name, v in arrays.items():
        if name in steps.WIDE:
            scratch[f"{name}_tile"] = plgpu.SMEM((s, q, CHANNELS), v.dtype)
        elif name in ("B", "C"):
            scratch[f"{name}_tile"] = plgpu.SMEM((s, q, plan.n), v.dtype)
            scratch[f"{name}_row"] = plgpu.SMEM((2 if tile.helper and not ends else 1, q, plan.n), f32)
        elif name == "kept":
            scratch["kept_tile"] = plgpu.SMEM((s, q, KEPT), f32)
    turns = 2 if tile.helper and not ends else 1
    copies = len([name for name in scratch if name.endswith("_tile")])
    if plan.changes_dt:
        scratch["step"] = plgpu.SMEM((turns, q, CHANNELS), f32)
    if plan.gate:
        scratch["gated"] = plgpu.SMEM((turns, q, CHANNELS), f32)
    if not ends:
        scratch["before"] = plgpu.SMEM((q // u, plan.n, CHANNELS), f32)
        scratch["products"] = plgpu.SMEM((2, w, u * 2 * (plan.n // w), parts.ROW), f32)
        if w > 1:
            scratch["exchange"] = plgpu.SMEM((2, w, 3 if tile.helper else 2, u, CHANNELS), f32)
    scratch["arrived"] = plgpu.Barrier(num_arrivals=copies, num_barriers=s)
    return scratch


def _begin(plan: Plan, refs: dict, w: int) -> tuple:
    """The places, this warpgroup's states, its decay rates times log2(e), and the refs with the channels' numbers."""
    place = parts.Place(plan, plan.backward)
    each = plan.n // plan.backward.groups
    mine = [w % plan.backward.groups * each + k for k in range(each)]
    A = [refs["A"][k, place.channels] * parts.LOG2E for k in mine]
    refs = refs | {f"{name}_here": refs[name][place.channels] for name in ("D", "bias") if name in refs}
    return place, mine, A, refs


def _fetched_by(tile: Tile, w: int) -> tuple:
    """The tiles that a warpgroup copies: each is copied by who writes gradients over it."""
    last = ("dt",) if w == tile.groups - 1 else ()
    return last + (("x", "z", "dy", "B", "C", "kept") if w == 0 else ())


def _share(tile: Tile, w: int) -> range:
    share = tile.steps // tile.groups
    return range(w * share, w * share + share)


def _chunk_program(plan: Plan, refs: dict, w: int) -> None:
    """What a chunk alone sends to the chunk before it, its sum of step sizes, and whether it has no reset."""
    place, mine, A, refs = _begin(plan, refs, w)
    tile = plan.backward
    b, c, ch, zero = place.b, place.c, place.channels, A[0] * 0.0
    steps.fetch(refs, place, place.blocks - 1, 0, _fetched_by(tile, w))

    def block(r, carry):
        i, slot = place.blocks - 1 - r, lax.rem(r, tile.slots)
        steps.prepare(plan, refs, place, w, tile.groups, place.block(i), slot, 0, _share(tile, w))
        parts.meet_program(tile.groups)

        @pl.when(r + 1 < place.blocks)
        def _():
            steps.fetch(refs, place, i - 1, lax.rem(r + 1, tile.slots), _fetched_by(tile, w))

        def step(j, carry):
            v, total, kept = carry
            row = place.row(tile.steps - 1 - j)
            d, dy = steps.size_of(plan, refs, slot, 0, row), steps.dy_of(plan, refs, slot, 0, row)
            C = steps.rows_of(refs, "C", 0, row, mine)
            decays = steps.decays(plan, refs, A, d, slot, row)
            v = tuple(a * (C[k] * dy + v[k]) for k, a in enumerate(decays))
            return v, total + d, kept * refs["kept_tile"][slot, row, 0] if plan.segments else kept

        carry = lax.fori_loop(0, tile.steps, step, carry, unroll=4)
        parts.meet_program(tile.groups)
        return carry

    v, total, kept = lax.fori_loop(0, place.blocks, block, ((zero,) * len(mine), zero, zero + 1.0))
    for k, m in enumerate(mine):
        refs["chunk_ends"][b, c, m, ch] = v[k]
    if w == 0:
        refs["chunk_sums"][b, c, ch] = total
        refs["chunk_kept"][b, c, ch] = kept


def _program(plan: Plan, refs: dict, w: int) -> None:
    """One warpgroup's part of a program."""
    place, mine, A, refs = _begin(plan, refs, w)
    tile = plan.backward
    b, c, ch, zero = place.b, place.c, place.channels, A[0] * 0.0
    if w == tile.groups:
        return backward_helper.help_out(plan, refs, place, zero)
    v = [refs["dend"][b, m, ch] if plan.end else zero for m in mine]
    if tile.chunks > 1:
        v = parts.fold(
            A,
            v,
            (lambda j: refs["chunk_kept"][b, j, ch]) if plan.segments else None,
            lambda j: refs["chunk_sums"][b, j, ch],
            lambda j, k: refs["chunk_ends"][b, j, mine[k], ch],
            (tile.chunks - 1, tile.chunks - 1 - c, -1),
        )
    v, zeros = tuple(v), (zero,) * len(mine)
    if tile.helper:
        v, dA = backward_helper.scan(plan, refs, place, w, mine, A, v, zeros)
    else:
        steps.fetch(refs, place, place.blocks - 1, 0, _fetched_by(tile, w))
        block = functools.partial(_block, plan, refs, place, w, mine, A)
        v, dA, (dD, dbias) = lax.fori_loop(0, place.blocks, block, (v, zeros, (zero, zero)))
        steps.store_sums_of_channels(refs, place, dD if w == 0 else None, dbias if w == tile.groups - 1 else None)
    for k, m in enumerate(mine):
        refs["dA"][b, c, m, ch] = dA[k]
    if plan.start:

        @pl.when(c == 0)
        def _():
            for k, m in enumerate(mine):
                refs["dstart"][b, m, ch] = v[k]

    plgpu.wait_smem_to_gmem(0)


def _block(plan, refs, place, w, mine, A, r, carry):
    """One tile, the r-th from the end."""
    tile = plan.backward
    i, slot = place.blocks - 1 - r, lax.rem(r, tile.slots)
    p = place.block(i)
    h = steps.stored_states(plan, refs, place, mine, p)
    steps.prepare(plan, refs, place, w, tile.groups, p, slot, 0, _share(tile, w))
    parts.meet_program(tile.groups)
    steps.walk_forth(plan, refs, place, mine, A, h, slot, 0)

    # Every warpgroup has left the last tile's memory, and its gradients were copied from it by now.
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    @pl.when(r + 1 < place.blocks)
    def _():
        steps.fetch(refs, place, i - 1, lax.rem(r + 1, tile.slots), _fetched_by(tile, w))

    up = functools.partial(_up, plan, refs, place, w, mine, A, p, slot)
    carry = lax.fori_loop(0, tile.steps // tile.unroll, up, carry)
    plgpu.commit_smem()
    steps.send(refs, place, p, slot, _fetched_by(tile, w))
    return carry


def _up(plan, refs, place, w, mine, A, p, slot, q, carry):
    """Walks `unroll` steps back: carries what later steps send to the states, and the sums for A, D and the bias."""
    v, dA, sums = carry
    tile = plan.backward
    u = tile.unroll
    s, turn = tile.steps // u - 1 - q, lax.rem(q, 2)
    out = refs["products"].at[turn, w]
    v, dA, ds, xs, found = steps.walk_back(plan, refs, place, w, mine, A, slot, 0, s, out, v, dA)
    if tile.groups > 1:
        for j, (along_B, along_A, y) in found.items():
            for k, value in enumerate((along_B, y if w else along_A)):
                if value is not None:
                    refs["exchange"][turn, w, k, j] = value
    # Loaded before the meeting, after which another warpgroup may prepare the next tile in the same memory.
    dys = [steps.dy_of(plan, refs, slot, 0, place.row(s * u + j)) if w == 0 else None for j in range(u)]
    parts.meet_program(tile.groups)
    steps.send_sums(plan, refs, place, w, p, s, turn)
    steps_found = []
    for j in reversed(range(u)):
        if tile.groups > 1:
            found[j][0] = found[j][0] + refs["exchange"][turn, 1 - w, 0, j]
            other = refs["exchange"][turn, 1 - w, 1, j] if w or plan.gate else None
            found[j][1 if w else 2] = steps.plus(found[j][1 if w else 2], other)
        steps_found.append((place.row(s * u + j), ds[j], xs[j], dys[j], *found[j]))
    last = w == tile.groups - 1
    sums = steps.finish(plan, refs, place, p, slot, steps_found, sums, dx=w == 0, ddt=last)
    return tuple(v), tuple(dA), sums
