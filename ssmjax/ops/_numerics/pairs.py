"""Complex arithmetic on pairs of real arrays, which compiles to vector instructions where the complex does not."""

import jax
import jax.numpy as jnp

__all__ = ["Pair", "as_pair", "from_pair", "reciprocal", "times"]

Pair = tuple[jax.Array, jax.Array]
"""The real and the imaginary part of an array."""


def as_pair(z: jax.Array) -> Pair:
    """Returns the parts of a real or complex array."""
    return jnp.real(z), jnp.imag(z)


def from_pair(z: Pair) -> jax.Array:
    """Returns the complex array with these parts."""
    return jax.lax.complex(*z)


def times(a: Pair, b: Pair) -> Pair:
    """Returns the product."""
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def reciprocal(z: Pair, epsilon: float | jax.Array = 0.0) -> Pair:
    """`conj(z) / (|z|^2 + epsilon)`."""
    size = z[0] ** 2 + z[1] ** 2 + epsilon
    return z[0] / size, -z[1] / size
