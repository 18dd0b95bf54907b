"""Powers of a discretized diagonal: `A_bar^l` for every `l`, as the products of two short tables.

With `l = i q + j` the powers factor, `A_bar^l = (A_bar^q)^i A_bar^j`, so that two tables of about sqrt(length) rows
stand for the whole (h n l) array. Each is filled by doubling, `A_bar^(j + 2^k) = A_bar^j A_bar^(2^k)`, from the squares
`A_bar^(2^k)`, every one of them correct to the rounding of a float. A power is then a product of at most log2(length)
correct factors, and its error does not grow with the length.
"""

import math

import jax
import jax.numpy as jnp

from ssmjax.ops._numerics import double_float as df
from ssmjax.ops._numerics.pairs import Pair, times
from ssmjax.ops._numerics.transition import transition

__all__ = ["factors", "squares"]


def squares(A: Pair, dt: jax.Array, rule: str, count: int) -> Pair:
    """`A_bar^(2^k)` for `k < count`, stacked on a leading axis, each rounded once.

    Args:
        A: Continuous diagonal.
        dt: Step sizes, of the same shape.
        rule: A name of `ssmjax.ops.discretize`: which `A_bar` belongs to `A` and `dt`.
        count: How many.
    """
    rounded_once = _rational_squares if rule in ("bilinear", "euler") else _exponential_squares
    return _with_derivative(jax.lax.stop_gradient(rounded_once(A, dt, rule, count)), transition(A, dt, rule))


@jax.custom_jvp
def _with_derivative(squared: Pair, A_bar: Pair) -> Pair:
    """The values `squared`, with the derivative in `A_bar` that squaring has: `d(A_bar^2k) = 2 A_bar^k d(A_bar^k)`."""
    del A_bar
    return squared


@_with_derivative.defjvp
def _with_derivative_jvp(primals, tangents):
    squared, A_bar = primals
    squared = _with_derivative(squared, A_bar)

    def step(tangent, now):
        re, im = times(now, tangent)
        return (2 * re, 2 * im), tangent

    return squared, jax.lax.scan(step, tangents[1], squared)[1]


def _exponential_squares(A: Pair, dt: jax.Array, rule: str, count: int) -> Pair:
    """Returns the squares of `exp(dt A)`: exponentials of doubled arguments, whose angle has extra bits."""
    del rule
    high, low = df.turns(A[1], dt)
    rate = dt * A[0]

    def power(doubling):
        turn, rest = doubling * high, doubling * low  # exact: `doubling` is a power of two
        angle = (2 * math.pi) * ((turn - jnp.round(turn)) + rest)
        size = jnp.exp(doubling * rate)
        return size * jnp.cos(angle), size * jnp.sin(angle)

    # A loop: otherwise XLA fuses the sines and cosines into each of their uses and computes them over and over.
    return jax.lax.map(power, 2.0 ** jnp.arange(count, dtype=dt.dtype))


def _rational_squares(A: Pair, dt: jax.Array, rule: str, count: int) -> Pair:
    """Returns the squares for a rule whose `A_bar` is rational in `dt A`, by squaring in double-floats."""
    re, im = (df.two_product(part, dt) for part in A)
    # A one that the compiler does not know to be one: it folds `(1 + a) - 1` into `a`, and the rounding error is lost.
    one = df.double(jnp.where(dt >= 0, 1.0, jnp.nan).astype(dt.dtype))
    if rule == "bilinear":
        re, im = ((0.5 * high, 0.5 * low) for high, low in (re, im))
        re, im = df.divide(df.add(one, re), im, df.add(one, df.negate(re)), df.negate(im))
    else:
        re = df.add(one, re)

    def step(now, _):
        return df.square(*now), (now[0][0], now[1][0])

    return jax.lax.scan(step, (re, im), length=count)[1]


def factors(squared: Pair, length: int, rows: int) -> tuple[Pair, jax.Array]:
    """Returns the two tables, `(A_bar^q)^i` for `i < ceil(length / q)` and `A_bar^j` for `j < q`, along a new axis -2.

    Of the second the real and the imaginary parts are side by side, (... q 2n).

    Args:
        squared: From `squares`, at least `log2(length)` of them.
        length: The number of powers.
        rows: How many rows the first table meets: the more of these there are, the shorter it is.
    """
    low_bits = ((length * max(1, rows)).bit_length() + 1) // 2
    low_bits = min(low_bits, (length - 1).bit_length())  # q is a power of two
    c = -(-length // (1 << low_bits))
    coarse = _fill(squared, low_bits, low_bits + (c - 1).bit_length())
    fine = _fill(squared, 0, low_bits)
    return (coarse[0][..., :c, :], coarse[1][..., :c, :]), jnp.concatenate(fine, axis=-1)


def _fill(squared: Pair, first: int, last: int) -> Pair:
    """The powers 0, 1, 2, ... of `squared[first]` along a new axis -2, from the squares `first`, ..., `last - 1`."""
    # Axis and index in two steps: an index beside a None is a gather in older JAX, and its gradient a scatter-add.
    by = tuple(part[..., None, :] for part in squared)
    re, im = jnp.ones_like(by[0][0]), jnp.zeros_like(by[1][0])
    for k in range(first, last):
        more = times((re, im), (by[0][k], by[1][k]))
        re, im = jnp.concatenate([re, more[0]], axis=-2), jnp.concatenate([im, more[1]], axis=-2)
    return re, im
