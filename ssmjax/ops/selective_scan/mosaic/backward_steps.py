"""Pieces of the backward kernels: copies of tiles, what is prepared of them, steps forth and back, gradients."""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ssmjax.ops.selective_scan.mosaic import parts

__all__ = [
    "WIDE",
    "advance",
    "decays",
    "dy_of",
    "fetch",
    "finish",
    "plus",
    "prepare",
    "prepare_rows",
    "rows_of",
    "send",
    "send_sums",
    "size_of",
    "store_sums_of_channels",
    "stored_states",
    "walk_back",
    "walk_forth",
]

f32 = jnp.float32
WIDE = ("x", "dt", "z", "dy")
"""Inputs that have a row of channels for every step."""


def fetch(refs, place, i, slot, names) -> None:
    """Begins the copies of tile i of some arrays to shared memory."""
    times = pl.ds(place.block(i) * place.tile.steps, place.tile.steps)
    for name in names:
        if f"{name}_tile" not in refs:
            continue
        if name in ("B", "C"):
            source = place.matrix(refs[name], times)
        else:
            source = refs[name].at[(place.b, times) if name == "kept" else (place.b, times, place.channels)]
        plgpu.copy_gmem_to_smem(source, refs[f"{name}_tile"].at[slot], refs["arrived"].at[slot])


def prepare(plan, refs, place, w, groups, p, slot, turn, rows: range) -> None:
    """Once a tile has arrived: B and C as float32, and step sizes and gated dy of some rows."""
    plgpu.barrier_wait(refs["arrived"].at[slot])
    for k, name in enumerate(("B", "C")):
        if f"{name}_row" in refs and w == k % groups:
            refs[f"{name}_row"][turn] = refs[f"{name}_tile"][slot].astype(f32)
    prepare_rows(plan, refs, place, p, slot, turn, rows.start, len(rows))


def prepare_rows(plan, refs, place, p, slot, turn, first, count: int) -> None:
    """The step sizes and the gated dy of some rows of a tile."""

    def some(rows):
        rows = [first + row for row in rows]
        raws = [refs["dt_tile"][slot, row].astype(f32) for row in rows] if plan.changes_dt else []
        names = ("z", "dy") if plan.gate else ()
        zs, dys = (
            ([refs[f"{name}_tile"][slot, row].astype(f32) for row in rows] for name in names) if names else ((), ())
        )
        bias = refs.get("bias_here")
        sizes = [parts.step_size(plan, raw, bias, place.inside(p, row)) for raw, row in zip(raws, rows, strict=False)]
        gated = [dy * (z * parts.sigmoid(z)) for dy, z in zip(dys, zs, strict=True)]
        for name, values in (("step", sizes), ("gated", gated)):
            for row, value in zip(rows, values, strict=False):
                refs[name][turn, row] = value

    if plan.changes_dt or plan.gate:
        parts.in_batches(range(count), some)


def size_of(plan, refs, slot, turn, row):
    """The size of a step."""
    return refs["step"][turn, row] if plan.changes_dt else refs["dt_tile"][slot, row].astype(f32)


def dy_of(plan, refs, slot, turn, row):
    """The cotangent of a step's y before the gate."""
    return refs["gated"][turn, row] if plan.gate else refs["dy_tile"][slot, row].astype(f32)


def rows_of(refs, name, turn, row, mine) -> tuple:
    """A step's B or C of a warpgroup's states."""
    return parts.row(refs[f"{name}_row"].at[turn, row, pl.ds(mine[0], len(mine))], len(mine))


def decays(plan, refs, A, d, slot, row) -> list:
    """What a step leaves of each state."""
    found = [jnp.exp2(d * a) for a in A]
    if not plan.segments:
        return found
    keep = refs["kept_tile"][slot, row, 0]
    return [a * keep for a in found]


def advance(plan, refs, place, A, mine, h, slot, turn, s):
    """`unroll` steps from the states before them: the states around them, decays, step sizes and inputs."""
    u = plan.backward.unroll
    rows = [place.row(s * u + j) for j in range(u)]
    ds = [size_of(plan, refs, slot, turn, row) for row in rows]
    xs = [refs["x_tile"][slot, row].astype(f32) for row in rows]
    states, all_decays = [list(h)], []
    for row, d, x in zip(rows, ds, xs, strict=True):
        B, du = rows_of(refs, "B", turn, row, mine), d * x
        a = decays(plan, refs, A, d, slot, row)
        states.append([a[k] * states[-1][k] + du * B[k] for k in range(len(mine))])
        all_decays.append(a)
    return states, all_decays, ds, xs


def stored_states(plan, refs, place, mine, p) -> tuple:
    """The states before a tile. Tiles after the sequence's end read some that nothing depends on."""
    index = jnp.minimum(p, plan.stored() - 1)
    return tuple(refs["states"][place.b, index, m, place.channels] for m in mine)


def walk_forth(plan, refs, place, mine, A, h, slot, turn) -> None:
    """Stores the states before every `unroll` steps of a tile in shared memory."""
    last = plan.backward.steps // plan.backward.unroll - 1

    def store(s, h):
        for m, v in zip(mine, h, strict=True):
            refs["before"][s, m] = v

    def forth(s, h):
        after = advance(plan, refs, place, A, mine, h, slot, turn, s)[0][-1]
        store(s, h)
        return tuple(after)

    store(last, lax.fori_loop(0, last, forth, h))


def walk_back(plan, refs, place, w, mine, A, slot, turn, s, out, v, dA):
    """Walks the `unroll` steps of part s of a tile back, for one warpgroup's states.

    Partial sums for dB and dC go to `out` in shared memory. Given and returned are `v`, what later steps send to the
    states, and `dA`, its sums so far; returned as well are the step sizes, the inputs, and for each step the sums over
    these states, `[<B, s>, <A v, h> log2(e), <C, h>]`, the last None without a gate.
    """
    u, each = plan.backward.unroll, len(mine)
    h = [refs["before"][s, m] for m in mine]
    states, all_decays, ds, xs = advance(plan, refs, place, A, mine, h, slot, turn, s)
    v, dA, found, sums = list(v), list(dA), {}, []
    for j in reversed(range(u)):
        row = place.row(s * u + j)
        d, dy = ds[j], dy_of(plan, refs, slot, turn, row)
        du = d * xs[j]
        B, C = rows_of(refs, "B", turn, row, mine), rows_of(refs, "C", turn, row, mine)
        products, along_B, along_A, y = [[None] * each, [None] * each], None, None, None
        for k in range(each):
            g = C[k] * dy + v[k]
            products[0][k], products[1][k] = g * du, dy * states[j + 1][k]
            along_B = plus(along_B, g * B[k])
            y = plus(y, C[k] * states[j + 1][k]) if plan.gate else None
            v[k] = all_decays[j][k] * g
            through = v[k] * states[j][k]
            along_A = plus(along_A, A[k] * through)
            dA[k] = dA[k] + d * through
        place_of_j = u - 1 - j if plan.reverse else j
        rows = out.at[pl.ds(place_of_j * 2 * each, 2 * each)]
        sums.append((parts.add_products(products[0] + products[1], exact=plan.exact), rows))
        found[j] = [along_B, along_A, y]
    for pair, rows in sums:  # only now, so that no load waits for a store
        parts.store_products(pair, rows)
    return v, dA, ds, xs, found


def send_sums(plan, refs, place, w, p, s, turn) -> None:
    """Adds up and stores one warpgroup's sums for dB and dC of part s of the tile at p."""
    tile = plan.backward
    u, each = tile.unroll, 2 * (plan.n // tile.groups)
    first = p * tile.steps + (tile.steps - u - s * u if plan.reverse else s * u)
    rows = pl.ds(first * each, u * each)
    parts.store_sums(refs["products"].at[turn, w], refs["sums"].at[place.b, place.e, w, rows], u * each)


def send(refs, place, p, slot, names) -> None:
    """Begins the copies of the gradients that took the places of some tiles."""
    times = pl.ds(p * place.tile.steps, place.tile.steps)
    for tile, grad in {"dy": "dx", "z": "dz", "dt": "ddt"}.items():
        if tile in names and grad in refs:
            plgpu.copy_smem_to_gmem(refs[f"{tile}_tile"].at[slot], refs[grad].at[place.b, times, place.channels])


def store_sums_of_channels(refs, place, dD, dbias) -> None:
    """The gradients of D and of the bias, where the call has them."""
    for name, value in {"dD": dD, "dbias": dbias}.items():
        if name in refs and value is not None:
            refs[name][place.b, place.c, place.channels] = value


def plus(total, value):
    """The sum of two, of which None is nothing."""
    return value if total is None else total if value is None else total + value


def finish(plan, refs, place, p, slot, found: list, sums, *, dx: bool, ddt: bool):
    """The gradients of some steps' x, dt and z, which take the places of dy, dt and z in their tiles.

    `found` has for each step its row, size, x, dy before the gate, and the sums of `walk_back` over all states; `sums`
    are those for D and the bias so far. `dx` asks for the gradients of x, z and D, `ddt` for those of dt and the bias.
    """
    dD, dbias = sums

    def load(name, wanted):
        return [refs[f"{name}_tile"][slot, row].astype(f32) if wanted else None for row, *_ in found]

    zs, dys, raws = load("z", dx and plan.gate), load("dy", dx and plan.gate), load("dt", ddt and plan.softplus)
    stores = []
    for (row, d, x, dy, along_B, along_A, y), z, dy_after, raw in zip(found, zs, dys, raws, strict=True):
        if dx:
            grad = d * along_B
            if plan.skip:
                grad, dD = grad + refs["D_here"] * dy, dD + dy * x
            if plan.gate:
                s = parts.sigmoid(z)
                y = y + refs["D_here"] * x if plan.skip else y
                stores.append(("z", row, dy_after * y * (s * (1.0 + z * (1.0 - s)))))
            stores.append(("dy", row, grad))
        if ddt:
            grad = along_A * parts.LN2 + x * along_B
            if plan.softplus:
                grad = grad * parts.sigmoid(raw + refs["bias_here"] if plan.bias else raw)
            inside = place.inside(p, row)
            grad = grad if inside is None else grad * inside
            dbias = dbias + grad
            stores.append(("dt", row, grad))
    for name, row, grad in stores:
        refs[f"{name}_tile"][slot, row] = grad.astype(refs[f"{name}_tile"].dtype)
    return dD, dbias
