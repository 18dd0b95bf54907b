"""The forward kernel's third warpgroup, which prepares the next tile and finishes the last one while two others scan.

With few programs a multiprocessor has one of them, and nothing else to do while it waits. The helper copies tiles in,
makes float32 rows of B and C and step sizes of the next tile, and adds, gates and copies out the outputs of the last
one; the others only scan. All meet once a tile; what they exchange lies in shared memory twice, by turns.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ssmjax.ops.selective_scan.mosaic import parts, steps
from ssmjax.ops.selective_scan.mosaic.plan import Plan

__all__ = ["help_out", "scan_tile"]


def help_out(plan: Plan, refs: dict, place: parts.Place) -> None:
    """The helper's whole program."""
    tile, blocks = plan.forward, place.blocks
    everybody = tile.groups + 1
    for i in range(min(tile.slots, blocks)):
        steps.fetch(refs, place, i, i)
    _prepare(plan, refs, place, 0, 0, 0)
    parts.meet_program(everybody)

    def one(i, nothing):
        @pl.when(i + 1 < blocks)
        def _():
            _prepare(plan, refs, place, i + 1, lax.rem(i + 1, tile.slots), lax.rem(i + 1, 2))

        @pl.when(i > 0)
        def _():
            _finish(plan, refs, place, i - 1)

            @pl.when(i - 1 + tile.slots < blocks)
            def _():
                steps.fetch(refs, place, i - 1 + tile.slots, lax.rem(i - 1, tile.slots))

        parts.meet_program(everybody)
        return nothing

    lax.fori_loop(0, blocks, one, 0)
    _finish(plan, refs, place, blocks - 1)
    plgpu.wait_smem_to_gmem(0)


def scan_tile(plan: Plan, refs: dict, place: parts.Place, w: int, mine, A, i, carry):
    """What one of the other warpgroups does with a tile."""
    tile = plan.forward
    slot, p, turn = lax.rem(i, tile.slots), place.block(i), lax.rem(i, 2)
    plgpu.barrier_wait(refs["arrived"].at[slot])
    several = functools.partial(steps.several, plan, refs, place, w, mine, A, False, p, slot, turn)
    carry = lax.fori_loop(0, tile.steps // tile.unroll, several, carry)
    parts.meet_program(tile.groups + 1)
    return carry


def _prepare(plan: Plan, refs: dict, place: parts.Place, i, slot, turn) -> None:
    plgpu.barrier_wait(refs["arrived"].at[slot])
    for name in ("B", "C"):
        refs[f"{name}_row"][turn] = refs[f"{name}_tile"][slot].astype(jnp.float32)
    if "step" in refs:
        steps.store_step_sizes(plan, refs, place, range(plan.forward.steps), place.block(i), slot, turn)


def _finish(plan: Plan, refs: dict, place: parts.Place, i) -> None:
    tile = plan.forward
    slot, turn, p = lax.rem(i, tile.slots), lax.rem(i, 2), place.block(i)
    plgpu.wait_smem_to_gmem(1, wait_read_only=True)
    parts.meet_warpgroup()
    steps.store_outputs(plan, refs, place, range(tile.steps), slot, turn, turn)
    plgpu.commit_smem()
    times = pl.ds(p * tile.steps, tile.steps)
    plgpu.copy_smem_to_gmem(refs["y_tile"].at[turn], refs["y"].at[place.b, times, place.channels])
