"""How a call lies in memory for the Triton kernels: whole chunks of time, whole programs of channels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ssmjax.ops.selective_scan.xla_common import Plan, ScanInputs

__all__ = ["LANES", "Here", "Sizes", "arrays_of", "launch", "without_padding"]

LANES = 32
"""Channels of a program, which is one warp: a thread has one channel, and sums over channels need no shared memory."""


class Sizes(NamedTuple):
    """The sizes of a call, `l` and `f` filled up: `c` chunks of `q` steps."""

    b: int
    c: int
    q: int
    g: int
    n: int
    f: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """A program for each row, group and `LANES` channels."""
        return self.b, self.g, self.f // LANES


class Here(NamedTuple):
    """What one program works on: the row `i`, the group `j`, the block of channels `p`, and these channels."""

    i: jax.Array
    j: jax.Array
    p: jax.Array
    lanes: pl.Slice

    @classmethod
    def read(cls) -> "Here":
        """The place of the program that calls it."""
        i, j, p = (pl.program_id(axis) for axis in range(3))
        return cls(i, j, p, pl.ds(p * LANES, LANES))


def arrays_of(plan: Plan, inputs: ScanInputs) -> tuple[Sizes, dict[str, jax.Array]]:
    """The arrays of a call as the kernels read them. A step that fills up has `dt = 0` and leaves the state alone."""
    (b, l, g, f), n = inputs.x.shape, inputs.A.shape[1]
    sizes = Sizes(b, -(-l // plan.chunk), plan.chunk, g, n, LANES * -(-f // LANES))
    arrays = {k: in_time(sizes, v) for k, v in inputs._asdict().items() if k in ("x", "dt", "B", "C")}
    arrays |= {"x": in_lanes(sizes, arrays["x"]), "dt": in_lanes(sizes, arrays["dt"])}
    arrays |= {"A": in_lanes(sizes, inputs.A.astype(jnp.float32)), "h0": in_lanes(sizes, inputs.h0)}
    if inputs.keep is not None:
        arrays["keep"] = in_time(sizes, inputs.keep.astype(jnp.float32), 1.0)
    return sizes, arrays


def in_time(sizes: Sizes, v: jax.Array, value: float = 0.0) -> jax.Array:
    """(b l ...), filled up to whole chunks."""
    axes = [(0, 0), (0, sizes.c * sizes.q - v.shape[1])] + [(0, 0)] * (v.ndim - 2)
    return jnp.pad(v, axes, constant_values=value)


def in_lanes(sizes: Sizes, v: jax.Array) -> jax.Array:
    """(... f), filled up with zeros to whole programs."""
    return jnp.pad(v, [(0, 0)] * (v.ndim - 1) + [(0, sizes.f - v.shape[-1])])


def without_padding(v: jax.Array, like: jax.Array) -> jax.Array:
    """The part of an array that is no filling: what has the sizes of `like`."""
    return v[tuple(slice(0, size) for size in like.shape)]


def launch(kernel, sizes: Sizes, arrays: dict[str, jax.Array], shapes: dict[str, tuple], *, interpret: bool = False):
    """Runs `kernel(refs)` once for each place of the grid; `refs` has all arrays and float32 results by name."""
    from jax.experimental.pallas import triton as plgpu

    def body(*refs):
        kernel(dict(zip((*arrays, *shapes), refs, strict=True)))

    call = pl.pallas_call(
        body,
        grid=sizes.grid,
        out_shape=tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes.values()),
        compiler_params=plgpu.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
        name=f"selective_scan_{kernel.__name__}",
    )
    return dict(zip(shapes, call(*arrays.values()), strict=True))
