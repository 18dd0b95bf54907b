"""Angles of many turns, reduced with extra bits, so that sine and cosine are correct to the rounding of a float."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax.ops._numerics import double_float as df

__all__ = ["reduced_angle", "turns"]

TURN = 1 / (2 * math.pi)


def turns(a: jax.Array, dt: jax.Array) -> df.Double:
    """`dt a / 2 pi` less its nearest integer."""
    turn = np.asarray(TURN, dt.dtype)
    rest = np.asarray(TURN - float(turn), dt.dtype)
    high, low = df.multiply(df.two_product(a, dt), (jnp.full_like(dt, turn), jnp.full_like(dt, rest)))
    return high - jnp.round(high), low


def reduced_angle(a: jax.Array, dt: jax.Array, steps: int | jax.Array = 1) -> jax.Array:
    """`steps dt a` less a multiple of 2 pi, in [-pi, pi]; `steps` has whole numbers, and broadcasts with the others."""
    return _reduced_angle(a, dt, jnp.asarray(steps, dt.dtype))


@jax.custom_jvp
def _reduced_angle(a, dt, steps):
    high, low = turns(a, dt)
    high, rest = df.two_product(high, steps)
    return (2 * math.pi) * ((high - jnp.round(high)) + (rest + steps * low))


@_reduced_angle.defjvp
def _reduced_angle_jvp(primals, tangents):
    (a, dt, steps), (da, ddt, _) = primals, tangents
    return _reduced_angle(a, dt, steps), steps * (da * dt + a * ddt)
