"""What discretizations are made of, see `ssmjax.ops.discretize`, as pairs of real arrays: `A_bar`, a held input."""

import jax
import jax.numpy as jnp

from ssmjax.ops._numerics.double_float import reduced_angle
from ssmjax.ops._numerics.pairs import Pair, reciprocal, times

__all__ = ["held", "power_sum", "transition"]


def transition(A: Pair, dt: jax.Array, rule: str) -> Pair:
    """`A_bar` from the parts of `A` and steps of the same shape."""
    if rule == "euler":
        return 1 + dt * A[0], dt * A[1]
    if rule == "bilinear":
        half = 0.5 * dt * A[0], 0.5 * dt * A[1]
        return times((1 + half[0], half[1]), reciprocal((1 - half[0], -half[1])))
    angle, size = reduced_angle(A[1], dt, jnp.ones((), dt.dtype)), jnp.exp(dt * A[0])
    return size * jnp.cos(angle), size * jnp.sin(angle)


def held(A: Pair, dt: jax.Array, steps: int | jax.Array = 1) -> Pair:
    """`(exp(x) - 1) / A` for `x = steps dt A`: the response to an input held over that time; `steps dt` at A = 0.

    `steps` is a whole number, or an array of them that broadcasts with A.
    """
    steps = jnp.asarray(steps, dt.dtype)
    x = steps * dt * A[0], steps * dt * A[1]
    small = x[0] ** 2 + x[1] ** 2 < 0.01
    # In the branch not taken, a value at which nothing divides by zero: a NaN there would enter the gradient.
    near = tuple(jnp.where(small, part, 0.0) for part in x)
    series = jnp.ones_like(x[0]), jnp.zeros_like(x[0])
    for k in range(7, 1, -1):  # seven terms of the Taylor series of `(exp(x) - 1) / x`
        re, im = times(series, (near[0] / k, near[1] / k))
        series = 1 + re, im
    safe = jnp.where(small, -1.0, A[0]), jnp.where(small, 0.0, A[1])
    angle, decay = reduced_angle(safe[1], dt, steps), steps * dt * safe[0]
    minus_one = jnp.expm1(decay) * jnp.cos(angle) - 2 * jnp.sin(0.5 * angle) ** 2, jnp.exp(decay) * jnp.sin(angle)
    closed = times(minus_one, reciprocal(safe))
    return tuple(jnp.where(small, steps * dt * p, q) for p, q in zip(series, closed, strict=True))


def power_sum(A: Pair, dt: jax.Array, count: int | jax.Array) -> Pair:
    """`sum_(j < count) exp(j dt A)`, which is `(exp(count x) - 1) / (exp(x) - 1)` for `x = dt A`."""
    return times(held(A, dt, count), reciprocal(held(A, dt)))
