"""Numbers as unevaluated sums of two floats, for the few places where a rounding error is multiplied by the length.

They reduce angles of many turns, so that sine and cosine are correct to the rounding of a float.

`exp(l x)` turns by `l Im(x)` radians, so that a rounding error of `x` grows with `l`. A step's angle and the squares
`A_bar^(2^k)` are therefore formed with about 46 bits (Dekker 1971, "A floating-point technique for extending the
available precision"), on arrays without a time axis, and rounded to one float once.

A `Double` is a pair `(high, low)` of arrays. In float64 the same code runs, and `low` is zero.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Double",
    "add",
    "divide",
    "double",
    "multiply",
    "negate",
    "reduced_angle",
    "square",
    "turns",
    "two_product",
]

TURN = 1 / (2 * math.pi)

Double = tuple[jax.Array, jax.Array]


def double(x: jax.Array) -> Double:
    """Returns a float as a double-float."""
    return x, jnp.zeros_like(x)


def two_sum(a: jax.Array, b: jax.Array) -> Double:
    """Returns the sum and its rounding error, exactly."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def two_product(a: jax.Array, b: jax.Array) -> Double:
    """Returns the product and its rounding error, exactly in float32; without the error in float64.

    The factors are sums of two floats of 12 significant bits, whose products are exact. `reduce_precision` is an
    instruction of its own, so that no compiler simplifies the split away.
    """
    product = a * b
    if product.dtype != jnp.float32:
        return double(product)
    a_high, b_high = (jax.lax.reduce_precision(v, exponent_bits=8, mantissa_bits=11) for v in (a, b))
    a_low, b_low = a - a_high, b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def add(a: Double, b: Double) -> Double:
    """Returns the sum of two double-floats."""
    high, low = two_sum(a[0], b[0])
    return _renormalize(high, low + a[1] + b[1])


def negate(a: Double) -> Double:
    """Returns the negative of a double-float."""
    return -a[0], -a[1]


def multiply(a: Double, b: Double) -> Double:
    """Returns the product of two double-floats."""
    high, low = two_product(a[0], b[0])
    return _renormalize(high, low + (a[0] * b[1] + a[1] * b[0]))


def square(re: Double, im: Double) -> tuple[Double, Double]:
    """Returns the square of a complex double-float."""
    product = multiply(re, im)
    return multiply(add(re, negate(im)), add(re, im)), (2 * product[0], 2 * product[1])


def divide(a_re: Double, a_im: Double, b_re: Double, b_im: Double) -> tuple[Double, Double]:
    """The quotient of complex double-floats: a float quotient, and what remains divided by the float divisor."""

    def quotient(re, im):
        size = b_re[0] ** 2 + b_im[0] ** 2
        return (re * b_re[0] + im * b_im[0]) / size, (im * b_re[0] - re * b_im[0]) / size

    re, im = (double(v) for v in quotient(a_re[0], a_im[0]))
    rest_re = add(a_re, negate(add(multiply(re, b_re), negate(multiply(im, b_im)))))
    rest_im = add(a_im, negate(add(multiply(re, b_im), multiply(im, b_re))))
    low_re, low_im = quotient(rest_re[0], rest_im[0])
    return _renormalize(re[0], low_re), _renormalize(im[0], low_im)


def turns(a: jax.Array, dt: jax.Array) -> Double:
    """`dt a / 2 pi` less its nearest integer."""
    turn = np.asarray(TURN, dt.dtype)
    rest = np.asarray(TURN - float(turn), dt.dtype)
    high, low = multiply(two_product(a, dt), (jnp.full_like(dt, turn), jnp.full_like(dt, rest)))
    return high - jnp.round(high), low


@jax.custom_jvp
def reduced_angle(a: jax.Array, dt: jax.Array, steps: jax.Array) -> jax.Array:
    """`steps dt a` less a multiple of 2 pi, in [-pi, pi]; `steps` are whole numbers in the dtype of `dt`."""
    high, low = turns(a, dt)
    high, rest = two_product(high, steps)
    return (2 * math.pi) * ((high - jnp.round(high)) + (rest + steps * low))


@reduced_angle.defjvp
def _reduced_angle_jvp(primals, tangents):
    (a, dt, steps), (da, ddt, _) = primals, tangents
    return reduced_angle(a, dt, steps), steps * (da * dt + a * ddt)


def _renormalize(high: jax.Array, low: jax.Array) -> Double:
    total = high + low
    return total, low - (total - high)
