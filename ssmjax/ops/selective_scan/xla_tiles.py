"""Tiling of the sequential form for CPU caches: the scan over a few batch rows and channels at a time.

A step of the scan reads and writes its state about ten times, so the state of the rows in work should fit a level-1 or
level-2 cache. Rows and channels are independent; only the gradients of A, and of B and C, add up over tiles.
"""

import math
from collections.abc import Callable, Sequence

import jax
from einops import rearrange, reduce, repeat
from jax.export import is_symbolic_dim

from ssmjax import _compat
from ssmjax.ops.selective_scan.xla_common import ScanInputs

__all__ = ["backward_in_tiles", "forward_in_tiles"]

Axes = tuple[int | None, ...]


def forward_in_tiles(forward: Callable, tile: int, inputs: ScanInputs):
    """`forward(inputs) -> (y, state, boundaries)`, run on tiles whose state holds about `tile` numbers."""
    b_count, g_count, k = _counts(tile, inputs.h0)
    in_b, in_g = _input_axes(inputs)
    run = _one_after_another(lambda *fields: forward(ScanInputs(*fields)), b_count, in_b, (0, 0, 0))
    run = _one_after_another(run, g_count, in_g, (2, 1, 2))
    y, state, boundaries = run(*_split_channels(inputs, k))
    return (
        rearrange(y, "b l (g k) f -> b l g (k f)", k=k),
        rearrange(state, "b (g k) n f -> b g n (k f)", k=k),
        rearrange(boundaries, "b c (g k) n f -> b c g n (k f)", k=k),
    )


def backward_in_tiles(backward: Callable, tile: int, inputs: ScanInputs, boundaries, dy, dstate) -> ScanInputs:
    """`backward(inputs, boundaries, dy, dstate) -> gradients`, run on tiles as in the forward pass."""
    b_count, g_count, k = _counts(tile, inputs.h0)
    in_b, in_g = _input_axes(inputs)
    size = len(inputs)
    run = _one_after_another(
        lambda *args: backward(ScanInputs(*args[:size]), *args[size:]), b_count, (*in_b, 0, 0, 0), in_b
    )
    run = _one_after_another(run, g_count, (*in_g, 2, 2, 1), in_g)
    grads = ScanInputs(
        *run(
            *_split_channels(inputs, k),
            rearrange(boundaries, "b c g n (k f) -> b c (g k) n f", k=k),
            rearrange(dy, "b l g (k f) -> b l (g k) f", k=k),
            rearrange(dstate, "b g n (k f) -> b (g k) n f", k=k),
        )
    )

    def joined(M):
        if M.ndim == 4:
            return reduce(M, "b l (g k) n -> b l g n", "sum", k=k)
        return rearrange(M, "(g k) n f -> g n (k f)", k=k)

    return ScanInputs(
        x=rearrange(grads.x, "b l (g k) f -> b l g (k f)", k=k),
        dt=rearrange(grads.dt, "b l (g k) f -> b l g (k f)", k=k),
        A=joined(grads.A),
        B=joined(grads.B),
        C=joined(grads.C),
        h0=rearrange(grads.h0, "b (g k) n f -> b g n (k f)", k=k),
        keep=None,
    )


def _split_channels(inputs: ScanInputs, k: int) -> ScanInputs:
    """Returns the same scan with every group cut into k."""

    def split(M):
        if M.ndim == 4:
            return repeat(M, "b l g n -> b l (g k) n", k=k)
        return rearrange(M, "g n (k f) -> (g k) n f", k=k)

    return ScanInputs(
        x=rearrange(inputs.x, "b l g (k f) -> b l (g k) f", k=k),
        dt=rearrange(inputs.dt, "b l g (k f) -> b l (g k) f", k=k),
        A=split(inputs.A),
        B=split(inputs.B),
        C=split(inputs.C),
        h0=rearrange(inputs.h0, "b g n (k f) -> b (g k) n f", k=k),
        keep=inputs.keep,
    )


def _counts(tile: int, h0: jax.Array) -> tuple[int, int, int]:
    """Into how many pieces to cut the batch, the groups (after the channels), and the channels of each group."""
    b, g, n, f = h0.shape
    k = _nearest_divisor(f, n * f / tile)
    g_count = _nearest_divisor(g * k, g * n * f / tile)
    # In `jax.export` a batch of any size is taken whole, and so is one that is split over the devices of a mesh.
    if is_symbolic_dim(b) or _compat.is_split(h0):
        return 1, g_count, k
    return _nearest_divisor(b, b * g * n * f / (g_count * tile)), g_count, k


def _nearest_divisor(size: int, pieces: float) -> int:
    """Returns the divisor of `size` nearest in ratio to a wanted number of pieces."""
    divisors = (d for d in range(1, size + 1) if size % d == 0)
    return min(divisors, key=lambda d: abs(math.log(d / pieces)))


def _input_axes(inputs: ScanInputs) -> tuple[Axes, Axes]:
    """Returns the batch axis and the group axis of every field, None where it has none."""
    B, C = ((0, 2) if M.ndim == 4 else (None, 0) for M in (inputs.B, inputs.C))
    pairs = ScanInputs(x=(0, 2), dt=(0, 2), A=(None, 0), B=B, C=C, h0=(0, 1), keep=(0, None))
    return tuple(zip(*pairs, strict=True))


def _one_after_another(run: Callable, count: int, in_axes: Sequence, out_axes: Sequence) -> Callable:
    """`run` on `count` slices of its arguments in a loop: like `jax.vmap` over slices, one at a time.

    Args:
        run: Function of arrays or Nones that returns a tuple of arrays or Nones.
        count: Number of slices.
        in_axes: The axis to slice of each argument; None passes it whole.
        out_axes: The axis to join each output along; None adds the slices' outputs up.
    """
    if count == 1:
        return run

    def loop(*args):
        sliced = [v is not None and axis is not None for v, axis in zip(args, in_axes, strict=True)]

        def one(slices):
            slices = iter(slices)
            return run(*(next(slices) if s else v for s, v in zip(sliced, args, strict=True)))

        outs = jax.lax.map(one, [_cut(v, a, count) for v, a, s in zip(args, in_axes, sliced, strict=True) if s])
        return tuple(v if v is None else _join(v, axis) for v, axis in zip(outs, out_axes, strict=True))

    return loop


def _cut(v: jax.Array, axis: int, count: int) -> jax.Array:
    shape = (*v.shape[:axis], count, v.shape[axis] // count, *v.shape[axis + 1 :])
    return jax.numpy.moveaxis(v.reshape(shape), axis, 0)


def _join(v: jax.Array, axis: int | None) -> jax.Array:
    if axis is None:
        return v.sum(0)
    v = jax.numpy.moveaxis(v, 0, axis)
    return v.reshape(*v.shape[:axis], -1, *v.shape[axis + 2 :])
