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
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ssmjax.ops.selective_scan.mosaic import parts
from ssmjax.ops.selective_scan.mosaic.plan import CHANNELS, KEPT, Plan

__all__ = ["backward"]

f32 = jnp.float32
WIDE = ("x", "dt", "z", "dy")
"""Inputs that have a row of channels for every step."""


def backward(plan: Plan, arrays: dict) -> dict:
    """The gradients of a call, those of shared arrays still for each batch row and chunk.

    Args:
        plan: Its static facts.
        arrays: As for `forward`, with `dy` (b l e), `states`, and with `plan.end` `dend` (b n e).

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
    outputs = {f"d{k}": jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in arrays.items() if k in ("x", "dt", "z")}
    outputs["dA"] = jax.ShapeDtypeStruct((b, tile.chunks, plan.n, e), f32)
    per_channel = jax.ShapeDtypeStruct((b, tile.chunks, e), f32)
    outputs |= {f"d{k}": per_channel for k in ("D", "bias") if k in arrays}
    if plan.start:
        outputs["dstart"] = jax.ShapeDtypeStruct((b, plan.n, e), f32)
    sums = (b, e // CHANNELS, tile.groups, plan.padded(tile) * 2 * (plan.n // tile.groups))
    outputs["sums"] = jax.ShapeDtypeStruct(sums, f32)
    program = functools.partial(_program, plan)
    found = parts.launch(program, arrays | totals, outputs, _scratch(plan, arrays, ends=False), grid, tile.groups)
    found["sums"] = found["sums"].reshape(*sums[:3], plan.padded(tile), 2, -1)
    return found


def _scratch(plan: Plan, arrays: dict, *, ends: bool) -> dict:
    """Shared memory: tiles in flight, B and C as float32, step sizes, gated dy, states, what warpgroups exchange."""
    tile = plan.backward
    q, u, s, w = tile.steps, tile.unroll, tile.slots, tile.groups
    scratch = {}
    for name, v in arrays.items():
        if name in WIDE:
            scratch[f"{name}_tile"] = plgpu.SMEM((s, q, CHANNELS), v.dtype)
        elif name in ("B", "C"):
            scratch[f"{name}_tile"] = plgpu.SMEM((s, q, plan.n), v.dtype)
            scratch[f"{name}_row"] = plgpu.SMEM((q, plan.n), f32)
        elif name == "kept":
            scratch["kept_tile"] = plgpu.SMEM((s, q, KEPT), f32)
    copies = len([name for name in scratch if name.endswith("_tile")])
    if plan.changes_dt:
        scratch["step"] = plgpu.SMEM((q, CHANNELS), f32)
    if plan.gate:
        scratch["gated"] = plgpu.SMEM((q, CHANNELS), f32)
    if not ends:
        scratch["before"] = plgpu.SMEM((q // u, plan.n, CHANNELS), f32)
        scratch["products"] = plgpu.SMEM((2, w, u * 2 * (plan.n // w), parts.ROW), f32)
        if w > 1:
            scratch["exchange"] = plgpu.SMEM((2, 4, u, CHANNELS), f32)
    scratch["arrived"] = plgpu.Barrier(num_arrivals=copies, num_barriers=s)
    return scratch


def _begin(plan: Plan, refs: dict, w: int) -> tuple:
    """The places, this warpgroup's states, its decay rates times log2(e), and the refs with the channels' numbers."""
    place = parts.Place(plan, plan.backward)
    each = plan.n // plan.backward.groups
    mine = [w * each + k for k in range(each)]
    A = [refs["A"][k, place.channels] * parts.LOG2E for k in mine]
    refs = refs | {f"{name}_here": refs[name][place.channels] for name in ("D", "bias") if name in refs}
    _fetch(refs, place, w, place.blocks - 1, 0)
    return place, mine, A, refs


def _fetch(refs: dict, place: parts.Place, w: int, i, slot) -> None:
    """Begins the copies of tile i to shared memory: of each tile by the warpgroup that writes gradients over it."""
    times = pl.ds(place.block(i) * place.tile.steps, place.tile.steps)
    for name in (*WIDE, "B", "C", "kept"):
        writer = place.tile.groups - 1 if name == "dt" else 0
        if f"{name}_tile" not in refs or w != writer:
            continue
        if name in ("B", "C"):
            source = place.matrix(refs[name], times)
        else:
            source = refs[name].at[(place.b, times) if name == "kept" else (place.b, times, place.channels)]
        plgpu.copy_gmem_to_smem(source, refs[f"{name}_tile"].at[slot], refs["arrived"].at[slot])


def _prepare(plan, refs, place, w, p, slot) -> None:
    """Once a tile has arrived: B and C as float32, and this warpgroup's share of step sizes and gated dy."""
    groups = plan.backward.groups
    plgpu.barrier_wait(refs["arrived"].at[slot])
    for k, name in enumerate(("B", "C")):
        if f"{name}_row" in refs and w == k % groups:
            refs[f"{name}_row"][...] = refs[f"{name}_tile"][slot].astype(f32)
    share = plan.backward.steps // groups

    def one(r, _):
        row = w * share + r
        if plan.changes_dt:
            raw = refs["dt_tile"][slot, row].astype(f32)
            refs["step"][row] = parts.step_size(plan, raw, refs.get("bias_here"), place.inside(p, row))
        if plan.gate:
            z = refs["z_tile"][slot, row].astype(f32)
            refs["gated"][row] = refs["dy_tile"][slot, row].astype(f32) * (z * parts.sigmoid(z))
        return _

    if plan.changes_dt or plan.gate:
        lax.fori_loop(0, share, one, 0, unroll=math.gcd(share, 4))


def _d(plan, refs, slot, row):
    return refs["step"][row] if plan.changes_dt else refs["dt_tile"][slot, row].astype(f32)


def _dy(plan, refs, slot, row):
    """The cotangent of y before the gate."""
    return refs["gated"][row] if plan.gate else refs["dy_tile"][slot, row].astype(f32)


def _rows_of(refs, name, row, mine):
    return parts.row(refs[f"{name}_row"].at[row, pl.ds(mine[0], len(mine))], len(mine))


def _decays(plan, refs, A, d, slot, row) -> list:
    decays = [jnp.exp2(d * a) for a in A]
    if not plan.segments:
        return decays
    keep = refs["kept_tile"][slot, row, 0]
    return [a * keep for a in decays]


def _chunk_program(plan: Plan, refs: dict, w: int) -> None:
    """What a chunk alone sends to the chunk before it, its sum of step sizes, and whether it has no reset."""
    place, mine, A, refs = _begin(plan, refs, w)
    tile = plan.backward
    b, c, ch, zero = place.b, place.c, place.channels, A[0] * 0.0

    def block(r, carry):
        i, slot = place.blocks - 1 - r, lax.rem(r, tile.slots)
        _prepare(plan, refs, place, w, place.block(i), slot)
        parts.meet_program(tile.groups)

        @pl.when(r + 1 < place.blocks)
        def _():
            _fetch(refs, place, w, i - 1, lax.rem(r + 1, tile.slots))

        def step(j, carry):
            v, total, kept = carry
            row = place.row(tile.steps - 1 - j)
            d, dy = _d(plan, refs, slot, row), _dy(plan, refs, slot, row)
            C = _rows_of(refs, "C", row, mine)
            decays = _decays(plan, refs, A, d, slot, row)
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
    zeros = (zero,) * len(mine)
    block = functools.partial(_block, plan, refs, place, w, mine, A)
    v, dA, dD, dbias = lax.fori_loop(0, place.blocks, block, (tuple(v), zeros, zero, zero))
    for k, m in enumerate(mine):
        refs["dA"][b, c, m, ch] = dA[k]
    if w == 0 and plan.skip:
        refs["dD"][b, c, ch] = dD
    if w == tile.groups - 1 and plan.bias:
        refs["dbias"][b, c, ch] = dbias
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
    stored = jnp.minimum(p, plan.stored() - 1)  # tiles after the end read states that nothing depends on
    h = tuple(refs["states"][place.b, stored, m, place.channels] for m in mine)
    _prepare(plan, refs, place, w, p, slot)
    parts.meet_program(tile.groups)

    def down(s, h):
        for m, v in zip(mine, h, strict=True):
            refs["before"][s, m] = v
        return tuple(_advance(plan, refs, place, A, mine, h, slot, s)[0][-1])

    h = lax.fori_loop(0, tile.steps // tile.unroll - 1, down, h)
    for m, v in zip(mine, h, strict=True):
        refs["before"][tile.steps // tile.unroll - 1, m] = v

    # Every warpgroup has left the last tile's memory, and its gradients were copied from it by now.
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    @pl.when(r + 1 < place.blocks)
    def _():
        _fetch(refs, place, w, i - 1, lax.rem(r + 1, tile.slots))

    up = functools.partial(_up, plan, refs, place, w, mine, A, p, slot)
    carry = lax.fori_loop(0, tile.steps // tile.unroll, up, carry)
    plgpu.commit_smem()
    times = pl.ds(p * tile.steps, tile.steps)
    written = {"dx": ("dy_tile", 0), "dz": ("z_tile", 0), "ddt": ("dt_tile", tile.groups - 1)}
    for name, (source, writer) in written.items():
        if name in refs and w == writer:
            plgpu.copy_smem_to_gmem(refs[source].at[slot], refs[name].at[place.b, times, place.channels])
    return carry


def _advance(plan, refs, place, A, mine, h, slot, s):
    """`unroll` steps from the states before them: the states around them, decays, step sizes and inputs."""
    u = plan.backward.unroll
    rows = [place.row(s * u + j) for j in range(u)]
    ds = [_d(plan, refs, slot, row) for row in rows]
    xs = [refs["x_tile"][slot, row].astype(f32) for row in rows]
    states, decays = [list(h)], []
    for row, d, x in zip(rows, ds, xs, strict=True):
        B, du = _rows_of(refs, "B", row, mine), d * x
        a = _decays(plan, refs, A, d, slot, row)
        states.append([a[k] * states[-1][k] + du * B[k] for k in range(len(mine))])
        decays.append(a)
    return states, decays, ds, xs


def _up(plan, refs, place, w, mine, A, p, slot, q, carry):
    """Walks `unroll` steps back: carries what later steps send to the states, and the sums for A, D and the bias."""
    v, dA, dD, dbias = carry
    tile, each = plan.backward, len(mine)
    u = tile.unroll
    s, turn = tile.steps // u - 1 - q, lax.rem(q, 2)
    h = [refs["before"][s, m] for m in mine]
    states, decays, ds, xs = _advance(plan, refs, place, A, mine, h, slot, s)
    v, dA, found = list(v), list(dA), {}
    for j in reversed(range(u)):
        row = place.row(s * u + j)
        d, x, dy = ds[j], xs[j], _dy(plan, refs, slot, row)
        du = d * x
        B, C = _rows_of(refs, "B", row, mine), _rows_of(refs, "C", row, mine)
        products, along_B, along_A, y = [[None] * each, [None] * each], None, None, None
        for k in range(each):
            g = C[k] * dy + v[k]
            products[0][k], products[1][k] = g * du, dy * states[j + 1][k]
            along_B = _plus(along_B, g * B[k])
            y = _plus(y, C[k] * states[j + 1][k]) if plan.gate else None
            v[k] = decays[j][k] * g
            through = v[k] * states[j][k]
            along_A = _plus(along_A, A[k] * through)
            dA[k] = dA[k] + d * through
        place_of_j = u - 1 - j if plan.reverse else j
        out = refs["products"].at[turn, w, pl.ds(place_of_j * 2 * each, 2 * each)]
        parts.add_products(products[0] + products[1], out, exact=plan.exact)
        found[j] = [along_B, along_A, y]
        if tile.groups > 1:
            for k, value in enumerate((along_B, y if w else along_A)):
                if value is not None:
                    refs["exchange"][turn, 2 * w + k, j] = value
    parts.meet_program(tile.groups)
    first = p * tile.steps + (tile.steps - u - s * u if plan.reverse else s * u)
    rows = pl.ds(first * 2 * each, u * 2 * each)
    parts.store_sums(refs["products"].at[turn, w], refs["sums"].at[place.b, place.e, w, rows], u * 2 * each)
    for j in reversed(range(u)):
        if tile.groups > 1:
            found[j][0] = found[j][0] + refs["exchange"][turn, 2 * (1 - w), j]
            other = refs["exchange"][turn, 2 * (1 - w) + 1, j] if w or plan.gate else None
            found[j][1 if w else 2] = _plus(found[j][1 if w else 2], other)
        dD, dbias = _finish(plan, refs, place, w, p, slot, place.row(s * u + j), (ds[j], xs[j], *found[j]), dD, dbias)
    return tuple(v), tuple(dA), dD, dbias


def _plus(total, value):
    return value if total is None else total if value is None else total + value


def _finish(plan, refs, place, w, p, slot, row, found, dD, dbias):
    """The gradients of one step's x, dt and z, over the tiles of dy, dt and z."""
    d, x, along_B, along_A, y = found
    if w == 0:
        dx, dy = d * along_B, _dy(plan, refs, slot, row)
        if plan.skip:
            dx, dD = dx + refs["D_here"] * dy, dD + dy * x
        if plan.gate:
            z = refs["z_tile"][slot, row].astype(f32)
            s = parts.sigmoid(z)
            y = y + refs["D_here"] * x if plan.skip else y
            dz = refs["dy_tile"][slot, row].astype(f32) * y * (s * (1.0 + z * (1.0 - s)))
            refs["z_tile"][slot, row] = dz.astype(refs["z_tile"].dtype)
        refs["dy_tile"][slot, row] = dx.astype(refs["dy_tile"].dtype)
    if w == plan.backward.groups - 1:
        ddt = along_A * parts.LN2 + x * along_B
        if plan.softplus:
            raw = refs["dt_tile"][slot, row].astype(f32)
            ddt = ddt * parts.sigmoid(raw + refs["bias_here"] if plan.bias else raw)
        inside = place.inside(p, row)
        ddt = ddt if inside is None else ddt * inside
        dbias = dbias + ddt
        refs["dt_tile"][slot, row] = ddt.astype(refs["dt_tile"].dtype)
    return dD, dbias
