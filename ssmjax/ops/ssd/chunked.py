r"""Decaying sums of outer products in chunks: the core that Mamba-2 and Mamba-3 share.

    S_t = a_t S_{t-1} + scale_t sum_r x_t^r (B_t^r)^T,    y_t^r = S_t C_t^r

Inside a chunk of `q` steps (Dao & Gu 2024, arXiv:2405.21060, section 6) everything is a matrix product,

    y = (C B^T o L) x + exp(cum) C S_start,    L_ts = exp(cum_t - cum_s) scale_s  where s <= t,

with `cum` the running sum of log a, and only `S` goes from chunk to chunk. The backward pass keeps the inputs and the
state that enters each chunk; nothing of size (b l h q) or (b l h p n) outlives its chunk in either direction.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from ssmjax import _compat
from ssmjax.ops._numerics.derivatives import reverse_only

__all__ = ["DecayingSum", "chunk_length", "decaying_sum"]


class DecayingSum(NamedTuple):
    """The inputs.

    Attributes:
        x: (b l r h p), the values, of rank r at each step.
        scale: (b l h), a factor on them.
        log_a: (b l h), the logarithm of the decay, at most 0.
        B: (b l r g n).
        C: (b l r g n).
        h0: (b h p n), the state before the first step.
        reset: (b l) bool, True where the state is dropped before the step; None if it never is.
    """

    x: jax.Array
    scale: jax.Array
    log_a: jax.Array
    B: jax.Array
    C: jax.Array
    h0: jax.Array
    reset: jax.Array | None


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The steps of a chunk, and the dtype of the factors of products where the platform has such products."""

    chunk: int
    factors: str


def chunk_length(l: int, target: int) -> int:
    """The chunk nearest to `target` that cuts `l` into equal parts (up to rounding), so that little is padded."""
    return max(1, -(-l // max(1, round(l / target))))


def decaying_sum(inputs: DecayingSum, chunk: int) -> tuple[jax.Array, jax.Array]:
    """Returns y (b l r h p) and the last state (b h p n), both in the dtype of `h0`.

    Sums are in the dtype of `h0`. The factors of the products are in that of `x` on a GPU and a TPU.
    """
    plan = _Plan(chunk_length(inputs.x.shape[1], chunk), inputs.x.dtype.name)
    return reverse_only("ssd", functools.partial(_run, plan), _compat.vary_alike(inputs))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(plan: _Plan, inputs: DecayingSum):
    return _by_platform(_forward, plan, inputs)[:2]


def _run_fwd(plan: _Plan, inputs: DecayingSum):
    y, state, boundaries = _by_platform(_forward, plan, inputs)
    return (y, state), (inputs, boundaries)


def _run_bwd(plan: _Plan, saved, cotangents):
    inputs, boundaries = saved
    return (_by_platform(_backward, plan, inputs, boundaries, *cotangents),)


_run.defvjp(_run_fwd, _run_bwd)


@functools.partial(jax.jit, static_argnums=(0, 1))  # or each eager call would compile
def _by_platform(run, plan: _Plan, inputs: DecayingSum, *args):
    wide = dataclasses.replace(plan, factors=inputs.h0.dtype.name)
    if plan == wide:
        return run(plan, inputs, *args)
    # A CPU has no fast product of two-byte numbers, and older ones of XLA's have none at all.
    narrow, wide = functools.partial(run, plan), functools.partial(run, wide)
    return jax.lax.platform_dependent(inputs, *args, cpu=wide, default=narrow)


def _forward(plan: _Plan, inputs: DecayingSum):
    """y, the last state and the states that enter the chunks (c b h p n)."""

    def chunk(h, steps):
        after, y = _chunk(plan.factors, h, steps)
        return after, (y, h)

    chunks = _in_chunks(plan, inputs[:5], inputs.reset)
    if chunks[0].shape[0] == 1:  # a loop of one turn would copy everything once more
        state, (y, boundary) = chunk(inputs.h0, jax.tree.map(lambda v: v[0], chunks))
        y, boundaries = y[None], boundary[None]
    else:
        state, (y, boundaries) = jax.lax.scan(chunk, inputs.h0, chunks)
    return _whole(y, inputs.x.shape[1]), state, boundaries


def _backward(plan: _Plan, inputs: DecayingSum, boundaries, dy, dstate) -> DecayingSum:
    """Returns the gradients, chunk by chunk against time."""

    def chunk(dh, now):
        h, steps, dy = now
        _, pull_back = jax.vjp(lambda h, *floats: _chunk(plan.factors, h, (*floats, *steps[5:])), h, *steps[:5])
        dh, *dsteps = pull_back((dh, dy))
        return dh, dsteps

    (dy,) = _in_chunks(plan, (dy,), None)
    chunks = boundaries, _in_chunks(plan, inputs[:5], inputs.reset), dy
    dh0, grads = jax.lax.scan(chunk, dstate, chunks, reverse=True)
    return DecayingSum(*(_whole(v, inputs.x.shape[1]) for v in grads), dh0, None)


def _in_chunks(plan: _Plan, arrays, reset):
    """(b l ...) to (c b q ...), with zeros after the end: there log a = 0 holds the state, and x = 0 adds nothing."""
    arrays = (*arrays, reset) if reset is not None else tuple(arrays)
    padding = -arrays[0].shape[1] % plan.chunk

    def one(v):
        v = jnp.pad(v, ((0, 0), (0, padding)) + ((0, 0),) * (v.ndim - 2)) if padding else v
        return rearrange(v, "b (c q) ... -> c b q ...", q=plan.chunk)

    return tuple(map(one, arrays))


def _whole(v, l):
    return rearrange(v, "c b q ... -> b (c q) ...")[:, :l]


def _chunk(factors: str, h, steps):
    """One chunk (b q ...) from the state that enters it: the state after it, and y (b q r h p)."""
    x, scale, log_a, B, C, *reset = steps
    r, g = x.shape[2], B.shape[3]
    real = h.dtype
    cum = jnp.cumsum(log_a.astype(real), axis=1)
    decay = cum[:, :, None] - cum[:, None]  # (b t s h); of differences, as ratios of exponentials overflow
    counts = jnp.tril(jnp.ones(decay.shape[1:3], bool))[None]
    to_end, from_start = cum[:, -1:] - cum, cum  # (b q h)
    if reset:
        run = jnp.cumsum(reset[0], axis=1)
        counts = counts & (run[:, :, None] == run[:, None])
        to_end = jnp.where((run == run[:, -1:])[..., None], to_end, -jnp.inf)
        from_start = jnp.where((run == 0)[..., None], from_start, -jnp.inf)
    scale = scale.astype(real)
    decay = jnp.exp(jnp.where(counts[..., None], decay, -jnp.inf)) * scale[:, None]
    if r > 1:  # all ranks of a step see each other
        decay = jnp.repeat(jnp.repeat(decay, r, axis=1), r, axis=2)

    B, C = (rearrange(M, "b q r g n -> b (q r) g n") for M in (B, C))
    x, h = rearrange(x, "b q r (g k) p -> b (q r) g k p", g=g), rearrange(h, "b (g k) p n -> b g k p n", g=g)
    weights = _product("btgn,bsgn->bgts", factors, C, B)[:, :, None] * rearrange(decay, "b t s (g k) -> b g k t s", g=g)
    y = _product("bgkts,bsgkp->btgkp", factors, weights, x)
    entering = _over_heads(jnp.exp(from_start), r, g)
    y = y + entering * _product("btgn,bgkpn->btgkp", factors, C, h)  # type: ignore[operator]
    added = _product("bsgkp,bsgn->bgkpn", factors, x.astype(real) * _over_heads(jnp.exp(to_end) * scale, r, g), B)
    h = entering[:, -1, :, :, :, None] * h + added
    return rearrange(h, "b g k p n -> b (g k) p n"), rearrange(y, "b (q r) g k p -> b q r (g k) p", r=r)


def _over_heads(v, r, g):
    """(b q h) to (b q*r g k 1)."""
    v = jnp.repeat(v, r, axis=1) if r > 1 else v
    return rearrange(v, "b q (g k) -> b q g k 1", g=g)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(spec: str, factors: str, a, b):
    """An einsum of two arrays whose factors are rounded to a dtype, as are those of its gradients; sums are wide."""
    return _einsum(spec, factors, a, b)


def _product_bwd(spec, factors, saved, dy):
    a, b = saved
    (of_a, of_b), of_y = spec.split("->")[0].split(","), spec.split("->")[1]
    da = _einsum(f"{of_y},{of_b}->{of_a}", factors, dy, b)
    db = _einsum(f"{of_y},{of_a}->{of_b}", factors, dy, a)
    return da.astype(a.dtype), db.astype(b.dtype)


_product.defvjp(lambda spec, factors, a, b: (_einsum(spec, factors, a, b), (a, b)), _product_bwd)


def _einsum(spec, factors, a, b):
    wide = jnp.dtype(jnp.float64 if jnp.dtype(factors) == jnp.float64 else jnp.float32)
    a, b = a.astype(factors), b.astype(factors)
    # Without "highest" a GPU rounds the factors of a float32 product to 10 bits.
    return jnp.einsum(spec, a, b, precision="highest" if factors == wide else None, preferred_element_type=wide)
