"""The linear scan in XLA: sequential on a CPU, `associative_scan` elsewhere, with one custom VJP.

The adjoint of `h_t = a_t h_{t-1} + x_t` is a linear scan against time: with `s_t` the cotangent of `h_t`,

    s_t = dh_t + a_{t+1} s_{t+1},    dx_t = s_t,    da_t = s_t h_{t-1}.

Gradients of complex arrays follow JAX's convention, in which no conjugate appears. A decay that is the same at every
step, and in every sequence, is never repeated over them, nor is its gradient, the sum of `da_t`.
"""

import functools

import jax
import jax.numpy as jnp

from ssmjax import _compat
from ssmjax.ops._numerics.derivatives import reverse_only
from ssmjax.ops._numerics.dtypes import number_type

__all__ = ["associative_scan", "linear_scan_xla", "shifted", "with_carry"]


def linear_scan_xla(a, x, h0, reverse):
    """Returns `h` (b l *f) in the dtype of `x` and the last state (b *f); arguments as in `api.linear_scan`."""
    number = number_type(a, x)
    if h0 is None:
        h0 = jnp.zeros_like(x[:, 0], dtype=number)
    if a.ndim < x.ndim:
        a = a[None, None]
    time_major = (jnp.moveaxis(v, 1, 0).astype(number) for v in (a, x))
    inputs = _compat.vary_alike((*time_major, h0.astype(number)))
    h, state = reverse_only("linear_scan", functools.partial(_scan, reverse), *inputs)
    return jnp.moveaxis(h, 0, 1), state


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(reverse: bool, a: jax.Array, x: jax.Array, h0: jax.Array):
    """The scan over the leading axis of `x` (l b ...), all of one dtype; a fixed `a` is (1 1 ...)."""
    h = jax.lax.platform_dependent(
        a,
        x,
        h0,
        cpu=functools.partial(_sequential, reverse=reverse),
        default=functools.partial(_associative, reverse=reverse),
    )
    return h, h[0 if reverse else -1]


def _scan_fwd(reverse, a, x, h0):
    h, state = _scan(reverse, a, x, h0)
    return (h, state), (a, h, h0)


def _scan_bwd(reverse, saved, cotangents):
    a, h, h0 = saved
    dh, dstate = cotangents
    first, last = (-1, 0) if reverse else (0, -1)
    if a.shape != h.shape:
        # The state's cotangent enters at the last step, which no decay precedes.
        s, _ = _scan(not reverse, a, _added(dh, dstate, last), _compat.full_like(h0, 0.0))
        products = s * shifted(h, h0, against_time=reverse)
        return products.sum((0, 1), keepdims=True), s, a[0] * s[first]
    next_a = shifted(a, _compat.full_like(a[0], 1.0), against_time=not reverse)
    s, _ = _scan(not reverse, next_a, dh, dstate)
    before = shifted(h, h0, against_time=reverse)
    return s * before, s, a[first] * s[first]


_scan.defvjp(_scan_fwd, _scan_bwd)


def _added(v, edge, last):
    """`v` with `edge` added to its last step, which is the first one if `last` is 0."""
    if last == 0:
        return jnp.concatenate([v[:1] + edge[None], v[1:]])
    return jnp.concatenate([v[:-1], v[-1:] + edge[None]])


def shifted(v: jax.Array, edge: jax.Array, *, against_time: bool) -> jax.Array:
    """Returns the value at the step before each step (after it, with `against_time`), `edge` at the open end."""
    return jnp.concatenate([v[1:], edge[None]] if against_time else [edge[None], v[:-1]])


def with_carry(a: jax.Array, x: jax.Array, carry: jax.Array, *, reverse: bool) -> jax.Array:
    """`x` with `a carry` added at the step that comes first, so that a scan from zero starts from `carry`."""
    if reverse:
        return jnp.concatenate([x[:-1], x[-1:] + a[-1:] * carry[None]])
    return jnp.concatenate([x[:1] + a[:1] * carry[None], x[1:]])


def associative_scan(a: jax.Array, x: jax.Array, *, reverse: bool = False) -> jax.Array:
    """Returns the scan over the leading axis from a zero state, by `jax.lax.associative_scan`.

    Complex numbers travel as pairs of reals: XLA takes far longer over a complex associative scan.
    """
    if not jnp.iscomplexobj(a) and not jnp.iscomplexobj(x):
        return jax.lax.associative_scan(_combine, (a, x), reverse=reverse)[1]
    a, x = (v.astype(number_type(a, x)) for v in (a, x))
    pairs = (a.real, a.imag), (x.real, x.imag)
    return jax.lax.complex(*jax.lax.associative_scan(_combine_pairs, pairs, reverse=reverse)[1])


def _associative(a, x, h0, reverse):
    x = with_carry(a, x, h0, reverse=reverse)
    if a.shape != x.shape:  # its powers are the same in every sequence
        a = jnp.broadcast_to(a, (x.shape[0], *a.shape[1:]))
    return associative_scan(a, x, reverse=reverse)


def _sequential(a, x, h0, reverse):
    if a.shape != x.shape:

        def fixed_step(h, x):
            h = a[0] * h + x
            return h, h

        return jax.lax.scan(fixed_step, h0, x, reverse=reverse)[1]

    def step(h, now):
        h = now[0] * h + now[1]
        return h, h

    return jax.lax.scan(step, h0, (a, x), reverse=reverse)[1]


def _combine(earlier, later):
    return later[0] * earlier[0], later[0] * earlier[1] + later[1]


def _combine_pairs(earlier, later):
    a, x = _times(later[0], earlier[0]), _times(later[0], earlier[1])
    return a, (x[0] + later[1][0], x[1] + later[1][1])


def _times(u, v):
    return u[0] * v[0] - u[1] * v[1], u[0] * v[1] + u[1] * v[0]
