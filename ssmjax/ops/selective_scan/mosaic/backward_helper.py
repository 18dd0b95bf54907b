"""The backward kernel's third warpgroup, which prepares tiles and finishes gradients while two others walk back.

All meet after every `unroll` steps. In the time between, the two compute sums over their states and products for dB
and dC of some steps; the helper adds up those of the steps before, writes the gradients of x, dt and z, and prepares as
many steps of the tile after. A tile is fetched three ahead, into the memory that its gradients have left.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ssmjax.ops.selective_scan.mosaic import backward_steps as steps
from ssmjax.ops.selective_scan.mosaic import parts

__all__ = ["help_out", "scan"]

NAMES = ("x", "dt", "z", "dy", "B", "C", "kept")


def scan(plan, refs, place, w, mine, A, v, dA) -> tuple:
    """What the two do: returns what the first step sends to the states before it, and the sums for A."""
    tile = plan.backward
    everybody, count = tile.groups + 1, tile.steps // tile.unroll
    parts.meet_program(everybody)

    def block(r, carry):
        slot, turn, p = lax.rem(r, tile.slots), lax.rem(r, 2), place.block(place.blocks - 1 - r)
        h = steps.stored_states(plan, refs, place, mine, p)
        plgpu.barrier_wait(refs["arrived"].at[slot])
        steps.walk_forth(plan, refs, place, mine, A, h, slot, turn)

        def up(q, carry):
            v, dA = carry
            s, side = count - 1 - q, lax.rem(r * count + q, 2)
            out = refs["products"].at[side, w]
            v, dA, _, _, found = steps.walk_back(plan, refs, place, w, mine, A, slot, turn, s, out, v, dA)
            for j, sums in found.items():
                for k, value in enumerate(sums):
                    if value is not None:
                        refs["exchange"][side, w, k, j] = value
            parts.meet_program(everybody)
            return tuple(v), tuple(dA)

        return lax.fori_loop(0, count, up, carry)

    return lax.fori_loop(0, place.blocks, block, (v, dA))


def help_out(plan, refs, place, zero) -> None:
    """The helper's whole program."""
    tile, blocks = plan.backward, place.blocks
    everybody, count = tile.groups + 1, tile.steps // tile.unroll
    for r in range(min(tile.slots, blocks)):
        steps.fetch(refs, place, blocks - 1 - r, r, NAMES)
    steps.prepare(plan, refs, place, 0, 1, place.block(blocks - 1), 0, 0, range(tile.steps))
    parts.meet_program(everybody)
    done = functools.partial(_finish_part, plan, refs, place)

    def period(n, sums):
        r, q = lax.div(n, count), lax.rem(n, count)
        sums = done(n - 1, sums, n > 0)

        @pl.when((q == 0) & (r > 0))
        def _():
            plgpu.commit_smem()
            steps.send(refs, place, place.block(blocks - r), lax.rem(r - 1, tile.slots), NAMES)

        @pl.when((q == 1) & (r > 0) & (r - 1 + tile.slots < blocks))
        def _():
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            parts.meet_warpgroup()
            steps.fetch(refs, place, blocks - r - tile.slots, lax.rem(r - 1, tile.slots), NAMES)

        @pl.when(r + 1 < blocks)
        def _():
            slot, turn, p = lax.rem(r + 1, tile.slots), lax.rem(r + 1, 2), place.block(blocks - 2 - r)

            @pl.when(q == 0)
            def _():
                steps.prepare(plan, refs, place, 0, 1, p, slot, turn, range(0))

            steps.prepare_rows(plan, refs, place, p, slot, turn, q * tile.unroll, tile.unroll)

        parts.meet_program(everybody)
        return sums

    sums = lax.fori_loop(0, blocks * count, period, (zero, zero))
    sums = done(blocks * count - 1, sums, True)
    plgpu.commit_smem()
    steps.send(refs, place, place.block(0), (blocks - 1) % tile.slots, NAMES)
    steps.store_sums_of_channels(refs, place, *sums)
    plgpu.wait_smem_to_gmem(0)


def _finish_part(plan, refs, place, n, sums, begun) -> tuple:
    """The gradients of the n-th `unroll` steps from the end; of none unless `begun`."""
    tile = plan.backward
    u, count = tile.unroll, tile.steps // tile.unroll
    n = jnp.maximum(n, 0)
    r, q, side = lax.div(n, count), lax.rem(n, count), lax.rem(n, 2)
    s, slot, turn, p = count - 1 - q, lax.rem(r, tile.slots), lax.rem(r, 2), place.block(place.blocks - 1 - r)

    def finish(sums):
        for w in range(tile.groups):
            steps.send_sums(plan, refs, place, w, p, s, side)
        steps_found = []
        for j in reversed(range(u)):
            row = place.row(s * u + j)
            found = [None] * 3
            for k in range(2 + plan.gate):
                for w in range(tile.groups):
                    found[k] = steps.plus(found[k], refs["exchange"][side, w, k, j])
            d, x = steps.size_of(plan, refs, slot, turn, row), refs["x_tile"][slot, row].astype(jnp.float32)
            dy = steps.dy_of(plan, refs, slot, turn, row)
            steps_found.append((row, d, x, dy, *found))
        return steps.finish(plan, refs, place, p, slot, steps_found, sums, dx=True, ddt=True)

    return finish(sums) if begun is True else lax.cond(begun, finish, lambda sums: sums, sums)
