"""Pure-JAX forms of the selective scan found in other code bases, written again here as opponents for the benchmark.

Each is `form(x, dt, A, B, C) -> y` with x, dt (b l e), A (e n), B, C (b l n), float32, differentiable.
"""

import functools

import jax
import jax.numpy as jnp

__all__ = ["OPPONENTS"]


def _time_major(*arrays):
    return tuple(v.swapaxes(0, 1) for v in arrays)


def _add_chain(v):
    """Sum over axis 1 of (b n e), one addition at a time."""
    return functools.reduce(jnp.add, (v[:, i] for i in range(v.shape[1])))


def _step(A, h, now):
    """One step with the state as (b n e); A is (n e)."""
    x, dt, B, C = now
    h = jnp.exp(dt[:, None] * A[None]) * h + (dt * x)[:, None] * B[:, :, None]
    return h, _add_chain(C[:, :, None] * h)


def scan_ben(x, dt, A, B, C):
    """`lax.scan` with the state as (b e n) and `.sum` over n: the textbook form."""

    def step(h, now):
        x, dt, B, C = now
        h = jnp.exp(dt[..., None] * A[None]) * h + (dt * x)[..., None] * B[:, None]
        return h, (C[:, None] * h).sum(-1)

    h0 = jnp.zeros((x.shape[0], *A.shape))
    return jax.lax.scan(step, h0, _time_major(x, dt, B, C))[1].swapaxes(0, 1)


def scan_bne(x, dt, A, B, C, *, checkpoint=False):
    """`lax.scan` with the state as (b n e) and an add chain; `checkpoint` recomputes each step in the backward pass."""
    step = functools.partial(_step, A.T)
    h0 = jnp.zeros((x.shape[0], *A.T.shape))
    return jax.lax.scan(jax.checkpoint(step) if checkpoint else step, h0, _time_major(x, dt, B, C))[1].swapaxes(0, 1)


def _combine(earlier, later):
    return later[0] * earlier[0], later[0] * earlier[1] + later[1]


def associative(x, dt, A, B, C):
    """`associative_scan` over the materialized (b l e n)."""
    a = jnp.exp(dt[..., None] * A[None, None])
    u = (dt * x)[..., None] * B[:, :, None]
    h = jax.lax.associative_scan(_combine, (a, u), axis=1)[1]
    return jnp.einsum("blen,bln->ble", h, C)


def associative_chunked(x, dt, A, B, C, *, chunk=16):
    """`associative_scan` inside checkpointed chunks of a `lax.scan`. The length must be a multiple of the chunk."""
    l = x.shape[1]

    @jax.checkpoint
    def body(h0, now):
        x, dt, B, C = now
        a = jnp.exp(dt[..., None] * A[None, None])
        decay, h = jax.lax.associative_scan(_combine, (a, (dt * x)[..., None] * B[:, :, None]))
        h = h + decay * h0[None]
        return h[-1], jnp.einsum("qben,qbn->qbe", h, C)

    chunks = tuple(v.reshape(l // chunk, chunk, *v.shape[1:]) for v in _time_major(x, dt, B, C))
    y = jax.lax.scan(body, jnp.zeros((x.shape[0], *A.shape)), chunks)[1]
    return y.reshape(l, *y.shape[2:]).swapaxes(0, 1)


def _chunks(chunk, *arrays):
    return tuple(v.swapaxes(0, 1).reshape(-1, chunk, v.shape[0], v.shape[2]) for v in arrays)


def _join(v):
    return v.reshape(-1, *v.shape[2:]).swapaxes(0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _boundary(chunk, keep_decay, x, dt, A, B, C):
    return _boundary_fwd(chunk, keep_decay, x, dt, A, B, C)[0]


def _boundary_fwd(chunk, keep_decay, x, dt, A, B, C):
    def body(h, now):
        end, y = jax.lax.scan(functools.partial(_step, A.T), h, now)
        return end, (y, h)

    _, (y, starts) = jax.lax.scan(body, jnp.zeros((x.shape[0], *A.T.shape)), _chunks(chunk, x, dt, B, C))
    return _join(y), (x, dt, A, B, C, starts)


def _boundary_bwd(chunk, keep_decay, saved, dy):
    x, dt, A, B, C, starts = saved
    A = A.T

    def recompute(h, now):
        x, dt, B = now
        a = jnp.exp(dt[:, None] * A[None])
        return a * h + (dt * x)[:, None] * B[:, :, None], (h, a if keep_decay else None)

    def step(carry, now):
        s, dA = carry
        (x, dt, B, C, dy), (before, a) = now
        a = a if keep_decay else jnp.exp(dt[:, None] * A[None])
        u, decayed = dt * x, a * before
        s = s + dy[:, None] * C[:, :, None]
        through = s * decayed
        du = _add_chain(s * B[:, :, None])
        h = decayed + u[:, None] * B[:, :, None]
        grads = dt * du, x * du + _add_chain(through * A[None]), jnp.einsum("bne,be->bn", s, u)
        return (a * s, dA + through * dt[:, None]), (*grads, jnp.einsum("bne,be->bn", h, dy))

    def body(carry, now):
        (x, dt, B, C, dy), start = now
        kept = jax.lax.scan(recompute, start, (x, dt, B))[1]
        return jax.lax.scan(step, carry, ((x, dt, B, C, dy), kept), reverse=True)

    zero = jnp.zeros_like(starts[0])
    over_time = _chunks(chunk, x, dt, B, C, dy), starts
    (_, dA), (dx, ddt, dB, dC) = jax.lax.scan(body, (zero, zero), over_time, reverse=True)
    return _join(dx), _join(ddt), dA.sum(0).T, _join(dB), _join(dC)


_boundary.defvjp(_boundary_fwd, _boundary_bwd)

OPPONENTS = {
    "scan (b e n)": scan_ben,
    "scan (b n e)": scan_bne,
    "scan (b n e), checkpointed step": functools.partial(scan_bne, checkpoint=True),
    "custom VJP from boundary states, Q=32": functools.partial(_boundary, 32, False),
    "custom VJP from boundary states, decays kept, Q=32": functools.partial(_boundary, 32, True),
    "associative, materialized": associative,
    "associative, checkpointed chunks, Q=16": associative_chunked,
}
"""Every form by the name it has in the results; all are forms of the literature, none is the library's."""
