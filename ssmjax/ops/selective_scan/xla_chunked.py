"""Chunked form: `associative_scan` inside a chunk, `lax.scan` over chunks; for GPUs and TPUs.

A chunk's decays and states (q b g n f) exist while it is worked on, in either pass, and are recomputed in the backward
one.
"""

import jax
import jax.numpy as jnp

from ssmjax import _compat
from ssmjax.ops.linear_scan.xla import associative_scan, shifted, with_carry
from ssmjax.ops.selective_scan.xla_common import (
    Plan,
    ScanInputs,
    Steps,
    batch_major,
    over_chunks,
    step_terms,
    time_major,
    to_steps,
)

__all__ = ["backward", "forward"]


def forward(plan: Plan, inputs: ScanInputs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `y` (b l g f), the last state (b g n f) and the state entering each chunk (b c g n f)."""

    def chunk(h0, steps):
        h, (_, _, _, C, _, _) = _states(plan, inputs, h0, steps)
        y = (C * h).sum(-2).real
        return h[0 if plan.reverse else -1], (y, h0)

    state, (y, boundaries) = over_chunks(chunk, inputs.h0, to_steps(plan, inputs), reverse=plan.reverse)
    return batch_major(y, inputs.x.shape[1]), state, boundaries.swapaxes(0, 1)


def backward(plan: Plan, inputs: ScanInputs, boundaries, dy, dstate) -> ScanInputs:
    """Returns the gradients (`keep` is None), real or complex as the state is."""

    def chunk(carry, now):
        return _backward_chunk(plan, inputs, carry, *now)

    zeros = _compat.full_like(inputs.A.astype(inputs.h0.dtype), 0.0)
    totals = zeros, None if inputs.B.ndim == 4 else zeros, None if inputs.C.ndim == 4 else zeros
    over_time = to_steps(plan, inputs), time_major(dy, plan.chunk), boundaries.swapaxes(0, 1)
    carry, grads = over_chunks(chunk, (dstate, totals), over_time, reverse=not plan.reverse)
    dh0, (dA, dB, dC) = carry
    dx, ddt, dB_steps, dC_steps = (None if v is None else batch_major(v, inputs.x.shape[1]) for v in grads)
    dB, dC = dB_steps if dB is None else dB, dC_steps if dC is None else dC
    return ScanInputs(x=dx, dt=ddt, A=dA, B=dB, C=dC, h0=dh0, keep=None)


def _states(plan: Plan, inputs: ScanInputs, h0: jax.Array, steps: Steps):
    """All states of a chunk (q b g n f), and the terms they were made of."""
    terms = a, u, B, _, _, _ = step_terms(inputs, steps)
    h = associative_scan(a, with_carry(a, u * B, h0, reverse=plan.reverse), reverse=plan.reverse)
    return h, terms


def _backward_chunk(plan: Plan, inputs: ScanInputs, carry, steps: Steps, dy, h0):
    """One chunk against time; arguments as those of the sequential form's step, with a leading (q)."""
    later, (dA, dB_fixed, dC_fixed) = carry
    h, (a, u, B, C, x, dt) = _states(plan, inputs, h0, steps)
    before = shifted(h, h0, against_time=plan.reverse)
    dy = dy[..., None, :]
    next_a = shifted(a, _compat.full_like(a[0], 1.0), against_time=not plan.reverse)
    s = jnp.broadcast_to(C * dy, h.shape).astype(h.dtype)
    s = associative_scan(next_a, with_carry(next_a, s, later, reverse=not plan.reverse), reverse=not plan.reverse)
    through_decay = s * a * before
    du = (s * B).sum(-2).real
    ddt = x[..., 0, :] * du + (through_decay * inputs.A[None, None]).sum(-2).real
    dA = dA + (through_decay * dt).sum((0, 1))
    dB = dC = None
    if dB_fixed is None:
        dB = (s * u).sum(-1)
    else:
        dB_fixed = dB_fixed + (s * u).sum((0, 1))
    if dC_fixed is None:
        dC = (h * dy).sum(-1)
    else:
        dC_fixed = dC_fixed + (h * dy).sum((0, 1))
    first = -1 if plan.reverse else 0
    return ((a * s)[first], (dA, dB_fixed, dC_fixed)), (dt[..., 0, :] * du, ddt, dB, dC)
