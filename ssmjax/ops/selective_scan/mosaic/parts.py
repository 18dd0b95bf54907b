"""What the forward and the backward kernel share: barriers, loads of rows, pointwise functions, sums over channels.

Inside a kernel a float32 array of shape (128,) is one register of each thread of a warpgroup: the thread's channel.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, memref, vector

from ssmjax.ops.selective_scan.mosaic.plan import CHANNELS, Plan, Tile

__all__ = [
    "LN2",
    "LOG2E",
    "PARTIALS",
    "ROW",
    "Place",
    "add_products",
    "fold",
    "in_batches",
    "launch",
    "meet_program",
    "meet_warpgroup",
    "row",
    "sigmoid",
    "step_size",
    "store_products",
    "store_sums",
]

LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453
PARTIALS = 16
"""Partial sums of one product over channels that `add_products` leaves: of 4 warps, 4 threads each."""
ROW = PARTIALS + 4
"""Their pitch in shared memory: rows of 16 would fall on the same banks."""

CHANNEL = plgpu.Layout.WG_STRIDED((CHANNELS,), vec_size=1)
SCALAR = plgpu.Layout.WG_SPLAT(())


def meet_warpgroup() -> None:
    """Waits for the threads of the warpgroup."""

    @plgpu.inline_mgpu()
    def meet(ctx):
        mgpu.warpgroup_barrier()

    meet()


def meet_program(groups: int) -> None:
    """Waits for all warpgroups of the program."""
    if groups == 1:
        return meet_warpgroup()

    @plgpu.inline_mgpu()
    def meet(ctx):
        _asm("!llvm.void", [], "bar.sync 0;", "", effects=True)

    return meet()


def row(ref, count: int) -> tuple:
    """The first `count` float32 numbers of a row in shared memory as scalars, by 16-byte loads of the whole warp."""

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(),),
        return_type=tuple(plgpu.ShapeDtypeStruct((), jnp.float32, layout=SCALAR) for _ in range(count)),
    )
    def load(ctx, r):
        four, out = ir.VectorType.get((4,), ir.F32Type.get()), []
        for k in range(0, count, 4):
            v = vector.load(four, r, [_index(k)])
            out += [mgpu.FragmentedArray.splat(_at(v, j), shape=(), is_signed=None) for j in range(4)]
        return tuple(out)

    return load(ref)


def reciprocal(v):
    """1 / v to one unit in the last place; a division would take eight instructions more."""

    @plgpu.inline_mgpu(
        arg_types=(CHANNEL,), return_type=plgpu.ShapeDtypeStruct((CHANNELS,), jnp.float32, layout=CHANNEL)
    )
    def run(ctx, v):
        return _channel(_asm("f32", [_value(v)], "rcp.approx.ftz.f32 $0, $1;", "=f,f"))

    return run(v)


def sigmoid(v):
    """1 / (1 + exp(-v))."""
    return reciprocal(1.0 + jnp.exp2(v * -LOG2E))


def softplus(v):
    """log(1 + exp(v)) with float32's relative precision: log1p(u) = 2 atanh(u / (2 + u)) for u = exp(-|v|)."""
    u = jnp.exp2(jnp.abs(v) * -LOG2E)
    s = u * reciprocal(2.0 + u)
    w = s * s
    series = 0.14087328632203652
    for c in (0.13980709417315748, 0.2001242686173355, 0.33333157967540844, 1.0000000039388743):
        series = series * w + c  # minimax for atanh(s) / s on s <= 1/3, relative error 4e-9
    return jnp.maximum(v, 0.0) + 2.0 * s * series


def step_size(plan: Plan, raw, bias, inside):
    """The step sizes of a time step from what came in; zero after the sequence's end (`inside` False)."""
    v = raw if bias is None else raw + bias
    v = softplus(v) if plan.softplus else v
    return v if inside is None else v * inside


class Place:
    """Where the tiles and steps of a program lie: tiles and steps count in the direction of the forward pass.

    Attributes:
        inside: Function of a tile and a row: 1.0 inside the sequence, 0.0 after it; None where nobody need ask.
    """

    def __init__(self, plan: Plan, tile: Tile):
        self.b, self.c, self.e = (lax.axis_index(name) for name in "bce")
        self.channels = pl.ds(self.e * CHANNELS, CHANNELS)
        self.plan, self.tile = plan, tile
        self.blocks = plan.blocks(tile)

    def block(self, i):
        """The tile's place in memory."""
        q = self.c * self.blocks + i
        return self.tile.chunks * self.blocks - 1 - q if self.plan.reverse else q

    def row(self, j):
        """The step's row in its tile."""
        return self.tile.steps - 1 - j if self.plan.reverse else j

    def inside(self, p, row):
        """1.0 where a row of the tile at p is inside the sequence, 0.0 after it; None if nobody need ask."""
        if not self.plan.changes_dt or self.plan.padded(self.tile) == self.plan.l:
            return None
        return jnp.where(p * self.tile.steps + row < self.plan.l, jnp.float32(1), jnp.float32(0))

    def matrix(self, ref, times):
        """The rows of B or C that belong to the program's channels."""
        if self.plan.g == 1:
            return ref.at[self.b, times]
        blocks_of_group = self.plan.e // CHANNELS // self.plan.g
        return ref.at[self.b, times, lax.div(self.e, blocks_of_group)]


def fold(A, h, kept, sums, ends, chunks):
    """The state after chunks that are passed one after the other: each one's decay, then what it adds by itself.

    Args:
        A: Decay rates times log2(e), a list.
        h: The state before, a list.
        kept: Function of a chunk: whether it has no reset, as 1.0 or 0.0; None for no resets.
        sums: Function of a chunk: its sum of step sizes.
        ends: Function of a chunk and the index of a state.
        chunks: `(first, count, sign)`.
    """
    first, count, sign = chunks

    def pass_one(k, h):
        j = first + sign * k
        s = sums(j)
        keep = None if kept is None else kept(j)
        out = []
        for m, (a, v) in enumerate(zip(A, h, strict=True)):
            v = jnp.exp2(a * s) * v
            out.append((v if keep is None else v * keep) + ends(j, m))
        return tuple(out)

    return lax.fori_loop(0, count, pass_one, tuple(h))


def in_batches(rows: range, some) -> None:
    """Calls `some` with 8 rows at a time, or as many as divide them.

    What is done with a batch should load all it needs before it stores anything: no load is moved over a store.
    """
    size = math.gcd(len(rows), 8)

    def batch(i, nothing):
        some([rows.start + i * size + j for j in range(size)])
        return nothing

    lax.fori_loop(0, len(rows) // size, batch, 0)


def add_products(values, *, exact: bool) -> tuple:
    """Sums 16 products over the channels of a warp as far as a tensor core can; returns each thread's two partial sums.

    The products of a thread are a column fragment of `mma.m16n8k16`; multiplied with constant matrices that have a
    single one in each row, those of one product meet in one row of the result, 8 partial sums each, of which a thread
    has two and adds them.

    Args:
        values: 16 arrays (128,).
        exact: Adds three bfloat16 parts of every product, which are all of its bits, instead of one.
    """
    one = plgpu.ShapeDtypeStruct((CHANNELS,), jnp.float32, layout=CHANNEL)

    @plgpu.inline_mgpu(arg_types=(CHANNEL,) * 16, return_type=(one, one))
    def run(ctx, *values):
        values = [_value(v) for v in values]
        lane, _ = _lane_and_warp()
        selectors = _selectors(lane)
        zero_i, zero_f = _i32(0), arith.constant(ir.F32Type.get(), 0.0)
        acc = [zero_f] * 4
        for q in range(4):
            rows = selectors[2 * (q % 2)], selectors[2 * (q % 2) + 1]
            a = (rows[0], zero_i, rows[1], zero_i) if q < 2 else (zero_i, rows[0], zero_i, rows[1])
            rest = values[4 * q : 4 * q + 4]
            for part in range(3 if exact else 1):
                b = [_pack(rest[0], rest[1]), _pack(rest[2], rest[3])]
                acc = _mma(a, b, acc)
                if exact and part < 2:
                    highs = [half for packed in b for half in _unpack(packed)]
                    rest = [arith.subf(v, high) for v, high in zip(rest, highs, strict=True)]
        return _channel(arith.addf(acc[0], acc[1])), _channel(arith.addf(acc[2], acc[3]))

    return run(*values)


def store_products(sums, out) -> None:
    """Stores the partial sums of `add_products` in shared memory, (16, ROW) float32."""

    @plgpu.inline_mgpu(arg_types=(CHANNEL, CHANNEL, plgpu.RefType()))
    def run(ctx, low, high, out):
        lane, warp = _lane_and_warp()
        four = _i32(4)
        r = _to_index(arith.divui(lane, four))
        c = _to_index(arith.addi(arith.muli(warp, four), arith.remui(lane, four)))
        memref.store(_value(low), out, [r, c])
        memref.store(_value(high), out, [arith.addi(r, _index(8)), c])

    run(*sums, out)


def store_sums(ref, out, count: int) -> None:
    """Adds the partial sums of `count` rows (32, 64 or 128) of `ref` and stores them in `out`, (count,)."""
    lanes = CHANNELS // count

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.RefType()))
    def run(ctx, ref, out):
        thread = arith.remui(mgpu.utils.thread_idx(), _i32(CHANNELS))
        r = _to_index(arith.divui(thread, _i32(lanes)))
        each = PARTIALS // lanes
        first = _to_index(arith.muli(arith.remui(thread, _i32(lanes)), _i32(each)))
        four, total = ir.VectorType.get((4,), ir.F32Type.get()), None
        for c in range(0, each, 4):
            v = vector.load(four, ref, [r, arith.addi(first, _index(c))])
            total = v if total is None else arith.addf(total, v)
        s = [_at(total, k) for k in range(4)]
        s = arith.addf(arith.addf(s[0], s[1]), arith.addf(s[2], s[3]))
        for k in range(lanes.bit_length() - 1):
            s = arith.addf(s, mgpu.utils.shfl_bfly(s, 1 << k))
        memref.store(s, out, [r])

    run(ref, out)


def launch(body, arrays: dict, outputs: dict, scratch: dict, grid: tuple, groups: int):
    """Runs a kernel whose body takes a dictionary of refs and a warpgroup's number; returns a dictionary of outputs."""
    names = [*arrays, *outputs, *scratch]

    def kernel(*refs):
        refs = dict(zip(names, refs, strict=True))
        if groups == 1:
            return body(refs, 0)
        for w in range(groups):  # code of its own for each warpgroup, so that places of states are constants
            pl.when(lax.axis_index("w") == w)(functools.partial(body, refs, w))
        return None

    several = {"num_threads": groups, "thread_name": "w"} if groups > 1 else {}
    results = plgpu.kernel(
        kernel,
        out_type=tuple(outputs.values()),
        grid=grid,
        grid_names=("b", "c", "e"),
        scratch_types=list(scratch.values()),
        compiler_params=plgpu.CompilerParams(
            approx_math=True, unsafe_no_auto_barriers=True, lowering_semantics=mgpu.LoweringSemantics.Lane
        ),
        **several,
    )(*arrays.values())
    return dict(zip(outputs, results, strict=True))


def _selectors(lane) -> list:
    """For each half of 8 result rows, the two registers of the matrix that picks 4 products into 4 of them."""
    result_row = arith.divui(lane, _i32(4))
    low, high = _i32(0x3F80), _i32(0x3F800000)  # one in bfloat16, in the lower and the upper half

    def pick(first):
        def where(row, bits):
            return arith.select(arith.cmpi(arith.CmpIPredicate.eq, result_row, _i32(row)), bits, _i32(0))

        return arith.ori(where(first, low), where(first + 1, high))

    return [pick(0), pick(2), pick(4), pick(6)]


def _mma(a, b, c) -> list:
    f32 = ir.F32Type.get()
    result = llvm.inline_asm(
        llvm.StructType.get_literal([f32] * 4),
        [*a, *b, *c],
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
        "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
    )
    return [llvm.extractvalue(f32, result, [k]) for k in range(4)]


def _pack(low, high):
    return _asm("i32", [high, low], "cvt.rn.bf16x2.f32 $0, $1, $2;", "=r,f,f")


def _unpack(packed) -> tuple:
    f32 = ir.F32Type.get()
    halves = arith.shli(packed, _i32(16)), arith.andi(packed, _i32(-65536))
    return tuple(arith.bitcast(f32, half) for half in halves)


def _lane_and_warp() -> tuple:
    thread = arith.remui(mgpu.utils.thread_idx(), _i32(CHANNELS))
    return arith.remui(thread, _i32(32)), arith.divui(thread, _i32(32))


def _asm(result: str, args, text: str, constraints: str, effects: bool = False):
    return llvm.inline_asm(ir.Type.parse(result), args, text, constraints, has_side_effects=effects)


def _value(v):
    """The thread's number of a (128,) array."""
    return _at(v.registers.flat[0], 0)


def _channel(value):
    """A (128,) array from each thread's number."""
    registers = np.empty((1,), dtype=object)
    registers[0] = vector.broadcast(ir.VectorType.get((1,), ir.F32Type.get()), value)
    return mgpu.FragmentedArray(_registers=registers, _layout=mgpu.WGStridedFragLayout((CHANNELS,), 1), _is_signed=None)


def _at(v, k: int):
    return vector.extract(v, dynamic_position=[], static_position=[k])


def _i32(value: int):
    return arith.constant(ir.IntegerType.get_signless(32), value)


def _index(value: int):
    return arith.constant(ir.IndexType.get(), value)


def _to_index(value):
    return arith.index_cast(ir.IndexType.get(), value)
