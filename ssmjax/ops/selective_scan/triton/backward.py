"""The backward kernel: every gradient, from the inputs and the states that the forward kernel stored.

A program walks the chunks of its channels against the scan. In each it computes the states before the steps again
from the stored one, lays them into memory of its own that stays in the second-level cache, and walks back. The
gradients of B and C are summed over the channels of a program; XLA adds the programs. There are no atomics, so two runs
agree in every bit.

With `s_t` the cotangent of `h_t` and `v_t = exp(dt_{t+1} A) s_{t+1}` what the later steps send to it,

    s_t = C_t dy_t + v_t,    dB_t = sum dt x s_t,    dC_t = sum dy h_t,    dA = sum dt s_t exp(dt A) h_{t-1},

    d(dt) = x <B_t, s_t> + <A s_t, exp(dt A) h_{t-1}>,    dx = dt <B_t, s_t>.
"""

import functools
import operator

import jax
import jax.numpy as jnp

from ssmjax.ops.selective_scan.triton.forward import decays, numbers, step_of
from ssmjax.ops.selective_scan.triton.layout import (
    LANES,
    Here,
    Sizes,
    arrays_of,
    in_lanes,
    in_time,
    launch,
    without_padding,
)
from ssmjax.ops.selective_scan.xla_common import Plan, ScanInputs

__all__ = ["backward"]


def backward(plan: Plan, inputs: ScanInputs, boundaries, dy, dstate, *, interpret: bool = False) -> ScanInputs:
    """Returns the gradients (`keep` is None)."""
    sizes, arrays = arrays_of(plan, inputs)
    b, c, q, g, n, f = sizes
    arrays |= {"states": in_lanes(sizes, boundaries), "dend": in_lanes(sizes, dstate)}
    arrays["dy"] = in_lanes(sizes, in_time(sizes, dy))
    del arrays["h0"]
    programs = f // LANES
    shapes = {"dx": (b, c * q, g, f), "ddt": (b, c * q, g, f), "dA": (b, g, n, f), "dh0": (b, g, n, f)}
    shapes |= {"dB": (b, c * q, g, n, programs), "dC": (b, c * q, g, n, programs)}
    shapes["before"] = (b, g, programs, q, n, LANES)
    kernel = functools.wraps(_backward)(functools.partial(_backward, sizes, plan.reverse))
    found = launch(kernel, sizes, arrays, shapes, interpret=interpret)
    return ScanInputs(
        x=without_padding(found["dx"], inputs.x),
        dt=without_padding(found["ddt"], inputs.dt),
        A=without_padding(found["dA"].sum(0), inputs.A),
        B=without_padding(found["dB"].sum(-1), inputs.B),
        C=without_padding(found["dC"].sum(-1), inputs.C),
        h0=without_padding(found["dh0"], inputs.h0),
        keep=None,
    )


def _backward(sizes: Sizes, reverse: bool, refs: dict) -> None:
    here = Here.read()
    i, j, _, lanes = here
    states = range(sizes.n)
    A = [refs["A"][j, k, lanes] for k in states]

    def chunk(r, carry):
        c = r if reverse else sizes.c - 1 - r
        _lay_down(sizes, reverse, refs, here, A, c)
        return jax.lax.fori_loop(0, sizes.q, functools.partial(_back, sizes, reverse, refs, here, A, c), carry)

    v = tuple(refs["dend"][i, j, k, lanes] for k in states)
    zeros = tuple(jnp.zeros((LANES,), jnp.float32) for _ in states)
    v, dA = jax.lax.fori_loop(0, sizes.c, chunk, (v, zeros))
    for k in states:
        refs["dh0"][i, j, k, lanes] = v[k]
        refs["dA"][i, j, k, lanes] = dA[k]


def _lay_down(sizes: Sizes, reverse: bool, refs: dict, here: Here, A: list, c) -> None:
    """The state before each step of a chunk. A thread reads what it has written itself, so nothing has to wait."""
    i, j, p, lanes = here

    def step(s, h):
        for k, h_k in enumerate(h):
            refs["before"][i, j, p, s, k, :] = h_k
        x, dt, B, _, keep = numbers(refs, here, step_of(sizes, c, s, reverse), sizes.n)
        return tuple(a * h_k + dt * x * B_k for a, h_k, B_k in zip(decays(A, dt, keep), h, B, strict=True))

    jax.lax.fori_loop(0, sizes.q, step, tuple(refs["states"][i, c, j, k, lanes] for k in range(sizes.n)))


def _back(sizes: Sizes, reverse: bool, refs: dict, here: Here, A: list, c, s, carry):
    """One step against the scan: carries what it sends to the state before it, and the gradient of A so far."""
    v, dA = carry
    i, j, p, lanes = here
    s = sizes.q - 1 - s
    t = step_of(sizes, c, s, reverse)
    x, dt, B, C, keep = numbers(refs, here, t, sizes.n)
    dy = refs["dy"][i, t, j, lanes].astype(jnp.float32)
    du, through, new_v, new_dA = [], [], [], []
    for k, a in enumerate(decays(A, dt, keep)):
        decayed = a * refs["before"][i, j, p, s, k, :]
        s_k = C[k] * dy + v[k]
        refs["dB"][i, t, j, k, p] = jnp.sum(dt * x * s_k)
        refs["dC"][i, t, j, k, p] = jnp.sum(dy * (decayed + dt * x * B[k]))
        du.append(B[k] * s_k)
        through.append(A[k] * s_k * decayed)
        new_dA.append(dA[k] + dt * s_k * decayed)
        new_v.append(a * s_k)
    du = functools.reduce(operator.add, du)
    refs["dx"][i, t, j, lanes] = dt * du
    refs["ddt"][i, t, j, lanes] = x * du + functools.reduce(operator.add, through)
    return tuple(new_v), tuple(new_dA)
