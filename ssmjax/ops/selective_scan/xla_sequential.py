"""Sequential form: nested `lax.scan`s, over chunks and over the steps of one, with a hand-written backward pass.

The state is laid out (b g n f), channels last, so that a step is a handful of long vector operations. The sum over n is
an add chain: on a CPU a `.sum(axis)` inside the step is several times slower.
"""

import functools
import operator

import jax
import jax.numpy as jnp

from ssmjax import _compat
from ssmjax.ops.selective_scan.xla_common import (
    Plan,
    ScanInputs,
    batch_major,
    over_chunks,
    step_terms,
    time_major,
    to_steps,
)

__all__ = ["backward", "forward"]


def forward(plan: Plan, inputs: ScanInputs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `y` (b l g f), the last state (b g n f) and the state entering each chunk (b c g n f)."""

    def step(h, now):
        a, u, B, C, _, _ = step_terms(inputs, now)
        h = a * h + u * B
        return h, _sum_over_n(C * h).real

    def chunk(h, steps):
        end, y = jax.lax.scan(step, h, steps, reverse=plan.reverse, unroll=plan.unroll)
        return end, (y, h)

    state, (y, boundaries) = over_chunks(chunk, inputs.h0, to_steps(plan, inputs), reverse=plan.reverse)
    return batch_major(y, inputs.x.shape[1]), state, boundaries.swapaxes(0, 1)


def backward(plan: Plan, inputs: ScanInputs, boundaries, dy, dstate) -> ScanInputs:
    """Returns the gradients (`keep` is None), real or complex as the state is."""

    def recompute(h, now):
        a, u, B, _, _, _ = step_terms(inputs, now)
        return a * h + u * B, (h, a if plan.keep_decays else None)

    def step(carry, now):
        return _backward_step(inputs, carry, *now)

    def chunk(carry, now):
        steps, dy, h = now
        _, states = jax.lax.scan(recompute, h, steps, reverse=plan.reverse, unroll=plan.unroll)
        return jax.lax.scan(step, carry, (steps, dy, states), reverse=not plan.reverse, unroll=plan.unroll)

    zeros = _compat.full_like(inputs.h0, 0.0)
    totals = zeros, None if inputs.B.ndim == 4 else zeros, None if inputs.C.ndim == 4 else zeros
    over_time = to_steps(plan, inputs), time_major(dy, plan.chunk), boundaries.swapaxes(0, 1)
    carry, grads = over_chunks(chunk, (dstate, totals), over_time, reverse=not plan.reverse)
    dh0, (dA, dB, dC) = carry
    dx, ddt, dB_steps, dC_steps = (None if v is None else batch_major(v, inputs.x.shape[1]) for v in grads)
    return ScanInputs(
        x=dx,
        dt=ddt,
        A=dA.sum(0),
        B=dB_steps if dB is None else dB.sum(0),
        C=dC_steps if dC is None else dC.sum(0),
        h0=dh0,
        keep=None,
    )


def _backward_step(inputs: ScanInputs, carry, now, dy, state):
    """One step against time: the cotangent `s` of the state, the step's gradients, the totals of what is fixed.

    Args:
        inputs: For A, and B or C where they are fixed.
        carry: `(s, totals)`: what later steps send to the state after this one, and the gradients so far of A, of a
            fixed B and of a fixed C.
        now: `Steps` of one step.
        dy: (b g f), the cotangent of y.
        state: The state before the step, (b g n f), and its decay or None.
    """
    s, (dA, dB_fixed, dC_fixed) = carry
    before, decay = state
    a, u, B, C, x, dt = step_terms(inputs, now)
    a = a if decay is None else decay
    dy = dy[:, :, None]
    decayed = a * before
    h = decayed + u * B
    s = s + C * dy
    through_decay = s * decayed
    du = _sum_over_n(s * B).real
    ddt = x[:, :, 0] * du + _sum_over_n(through_decay * inputs.A[None]).real
    dA = dA + through_decay * dt
    dB = dC = None
    if dB_fixed is None:
        dB = _sum_over_f(s, u)
    else:
        dB_fixed = dB_fixed + s * u
    if dC_fixed is None:
        dC = _sum_over_f(h, dy)
    else:
        dC_fixed = dC_fixed + h * dy
    return (a * s, (dA, dB_fixed, dC_fixed)), (dt[:, :, 0] * du, ddt, dB, dC)


def _sum_over_n(v: jax.Array) -> jax.Array:
    """(b g n f) to (b g f) as an add chain."""
    return functools.reduce(operator.add, (v[:, :, i] for i in range(v.shape[2])))


def _sum_over_f(v: jax.Array, w: jax.Array) -> jax.Array:
    """Returns the gradient of what all channels of a group share: sum over f of v (b g n f) times w (b g 1 f)."""
    return jnp.einsum("bgnf,bgf->bgn", v, w[:, :, 0], precision=jax.lax.Precision.HIGHEST)
