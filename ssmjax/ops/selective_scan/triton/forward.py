"""The forward kernel. A thread has one channel, and its states stay in registers from the first step to the last."""

import functools
import math
import operator

import jax
import jax.numpy as jnp

from ssmjax.ops.selective_scan.triton.layout import Here, Sizes, arrays_of, launch, without_padding
from ssmjax.ops.selective_scan.xla_common import Plan, ScanInputs

__all__ = ["decays", "forward", "numbers", "step_of"]

UNROLL = 4
"""At most so many steps are written out, so that all of them are read before the first result is written."""


def forward(plan: Plan, inputs: ScanInputs, *, interpret: bool = False) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `y` (b l g f), the last state (b g n f) and the state entering each chunk (b c g n f)."""
    sizes, arrays = arrays_of(plan, inputs)
    b, c, q, g, n, f = sizes
    shapes = {"y": (b, c * q, g, f), "end": (b, g, n, f), "states": (b, c, g, n, f)}
    kernel = functools.wraps(_forward)(functools.partial(_forward, sizes, plan.reverse))
    found = launch(kernel, sizes, arrays, shapes, interpret=interpret)
    y, end = without_padding(found["y"], inputs.x), without_padding(found["end"], inputs.h0)
    return y, end, found["states"][..., : inputs.x.shape[-1]]


def _forward(sizes: Sizes, reverse: bool, refs: dict) -> None:
    here = Here.read()
    i, j, _, lanes = here
    A = [refs["A"][j, k, lanes] for k in range(sizes.n)]
    unroll = math.gcd(UNROLL, sizes.q)

    def chunk(c, h):
        c = sizes.c - 1 - c if reverse else c
        for k, h_k in enumerate(h):
            refs["states"][i, c, j, k, lanes] = h_k

        def some(s, h):
            ys = {}
            for r in range(unroll):
                t = step_of(sizes, c, s * unroll + r, reverse)
                x, dt, B, C, keep = numbers(refs, here, t, sizes.n)
                h = tuple(a * h_k + dt * x * B_k for a, h_k, B_k in zip(decays(A, dt, keep), h, B, strict=True))
                ys[r] = t, functools.reduce(operator.add, map(operator.mul, C, h))
            for t, y in ys.values():
                refs["y"][i, t, j, lanes] = y
            return h

        return jax.lax.fori_loop(0, sizes.q // unroll, some, h)

    h = jax.lax.fori_loop(0, sizes.c, chunk, tuple(refs["h0"][i, j, k, lanes] for k in range(sizes.n)))
    for k, h_k in enumerate(h):
        refs["end"][i, j, k, lanes] = h_k


def step_of(sizes: Sizes, c, s, reverse: bool):
    """The time step that is the `s`-th of a chunk in the order of the scan."""
    return c * sizes.q + (sizes.q - 1 - s if reverse else s)


def numbers(refs: dict, here: Here, t, n: int) -> tuple:
    """At a step: x and dt of the channels, B and C as `n` numbers each, and 0 where the state is reset, or None."""
    i, j, _, lanes = here
    x, dt = (refs[name][i, t, j, lanes].astype(jnp.float32) for name in ("x", "dt"))
    B, C = ([refs[name][i, t, j, k].astype(jnp.float32) for k in range(n)] for name in "BC")
    return x, dt, B, C, refs["keep"][i, t] if "keep" in refs else None


def decays(A: list, dt, keep) -> list:
    """What is left of each state after a step: exp(dt A), or nothing of a sequence before."""
    found = [jnp.exp(dt * A_k) for A_k in A]
    return found if keep is None else [jnp.where(keep > 0, a, 0.0) for a in found]
