"""Permutations whose gradient is a gather, too: JAX's own is a scatter-add, which is slow on accelerators."""

import functools

import jax
import jax.numpy as jnp

from ssmjax.shapes import Array, Int

__all__ = ["permute"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def permute(x: Array, order: Int[Array, "..."], inverse: Int[Array, "..."], axis: int) -> jax.Array:
    """`jnp.take_along_axis(x, order, axis)`, where `order` has a permutation along the axis.

    Args:
        x: Of any shape.
        order: The index that each place takes its number from, with the rank of `x`; its other axes are of size 1 or as
            those of `x`.
        inverse: The inverse permutation, likewise.
        axis: Along which.

    >>> import jax.numpy as jnp
    >>> permute(jnp.array([5, 6, 7]), jnp.array([2, 0, 1]), jnp.array([1, 2, 0]), 0).tolist()
    [7, 5, 6]
    """
    return jnp.take_along_axis(x, order, axis=axis, mode="promise_in_bounds")


def _forward(x, order, inverse, axis):
    return permute(x, order, inverse, axis), (order, inverse)


def _backward(axis, permutation, g):
    order, inverse = permutation
    return permute(g, inverse, order, axis), None, None


permute.defvjp(_forward, _backward)
