"""Pieces of the forward kernels: copies of tiles, one time step, what is stored."""

import functools
import operator

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ssmjax.ops.selective_scan.mosaic import parts

__all__ = [
    "fetch",
    "several",
    "start",
    "store_outputs",
    "store_states",
    "store_step_sizes",
]

f32 = jnp.float32


def start(plan, refs, place, mine, A) -> tuple:
    """The states that a chunk starts from: h0, and then the chunks before it."""
    b, c, ch = place.b, place.c, place.channels
    h = tuple(refs["start"][b, k, ch] if plan.start else A[0] * 0.0 for k in mine)
    if plan.forward.chunks == 1:
        return h
    return parts.fold(
        A,
        h,
        (lambda j: refs["chunk_kept"][b, j, ch]) if plan.segments else None,
        lambda j: refs["chunk_sums"][b, j, ch],
        lambda j, m: refs["chunk_ends"][b, j, mine[m], ch],
        (0, c, 1),
    )


def fetch(refs: dict, place: parts.Place, i, slot) -> None:
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


def step(refs, h, A, d, du, turn, row, mine, keep, ends):
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
    return h, None if ends else sums[0] + sums[1]  # type: ignore[operator]


def inputs(plan, refs, place, p, slot, turn, row):
    """A time step's step size, x, and whether the state is kept."""
    x = refs["x_tile"][slot, row].astype(f32)
    keep = refs["kept_tile"][slot, row, 0] if plan.segments else None
    if "step" in refs:
        return refs["step"][turn if plan.forward.helper and "y_tile" in refs else 0, row], x, keep
    raw = refs["dt_tile"][slot, row].astype(f32)
    d = parts.step_size(plan, raw, refs.get("bias_here"), place.inside(p, row)) if plan.changes_dt else raw
    return d, x, keep


def store_states(plan, refs, place, mine, p, s, h) -> None:
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


def several(plan, refs, place, w, mine, A, ends, p, slot, turn, s, carry):
    """`unroll` steps of a tile; the carry is the states, the sum of step sizes and whether no reset was met."""
    h, total, kept = carry
    tile = plan.forward
    store_states(plan, refs, place, mine, p, s, h)
    rows = [place.row(s * tile.unroll + j) for j in range(tile.unroll)]
    loaded = [inputs(plan, refs, place, p, slot, turn, row) for row in rows]  # before anything is stored
    ys = []
    for row, (d, x, keep) in zip(rows, loaded, strict=True):
        h, y = step(refs, h, A, d, d * x, turn, row, mine, keep, ends)
        ys.append(y)
        if ends:
            total, kept = total + d, (kept if keep is None else kept * keep)
    if not ends and tile.groups > 1:
        for row, y in zip(rows, ys, strict=True):
            refs["part"][turn if tile.helper else 0, w, row] = y
    elif not ends:
        store_output(plan, refs, place, slot, turn, rows, ys)
    return tuple(h), total, kept


def store_step_sizes(plan, refs, place, rows: range, p, slot, turn) -> None:
    """The step sizes of some rows of a tile, for all warpgroups."""

    def some(some):
        raws = [refs["dt_tile"][slot, row].astype(f32) for row in some]
        sizes = [
            parts.step_size(plan, raw, refs.get("bias_here"), place.inside(p, row))
            for row, raw in zip(some, raws, strict=True)
        ]
        for row, size in zip(some, sizes, strict=True):
            refs["step"][turn, row] = size

    parts.in_batches(rows, some)


def store_outputs(plan, refs, place, rows: range, slot, turn, part) -> None:
    """The outputs of some rows of a tile from the warpgroups' parts."""

    def some(some):
        ys = [[refs["part"][part, k, row] for k in range(plan.forward.groups)] for row in some]
        store_output(plan, refs, place, slot, turn, some, [functools.reduce(operator.add, y) for y in ys])

    parts.in_batches(rows, some)


def store_output(plan, refs, place, slot, turn, rows, ys) -> None:
    """Adds the skip to the outputs of some steps, multiplies with the gate, and stores them."""
    if plan.skip:
        xs = [refs["x_tile"][slot, row].astype(f32) for row in rows]
        ys = [y + refs["D_here"] * x for y, x in zip(ys, xs, strict=True)]
    if plan.gate:
        zs = [refs["z_tile"][slot, row].astype(f32) for row in rows]
        ys = [y * (z * parts.sigmoid(z)) for y, z in zip(ys, zs, strict=True)]
    for row, y in zip(rows, ys, strict=True):
        refs["y_tile"][turn, row] = y.astype(refs["y_tile"].dtype)
