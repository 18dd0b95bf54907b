"""Permutations whose gradient is a gather, too: JAX's own is a scatter-add, which is slow on accelerators."""

import jax
import jax.numpy as jnp

from ssmjax.shapes import Array, Int

__all__ = ["permute"]


def permute(x: Array, order: Int[Array, "..."], inverse: Int[Array, "..."], axis: int) -> jax.Array:
    """`jnp.take_along_axis(x, order, axis)`, where `order` has a permutation along the axis.

    To jax it is the solution y of `y[inverse] = x`, whose derivative and transpose are solutions, too: gathers. So it
    has derivatives of either mode and of any order.

    Args:
        x: An array of any shape.
        order: The index that each place takes its number from: of rank 1 if it is the same for all, or with the rank of
            `x` and other axes of size 1 or as those of `x`.
        inverse: The inverse permutation, likewise.
        axis: Along which.

    >>> import jax.numpy as jnp
    >>> permute(jnp.array([5, 6, 7]), jnp.array([2, 0, 1]), jnp.array([1, 2, 0]), 0).tolist()
    [7, 5, 6]
    """

    def by(x, order):
        if order.ndim == 1:
            return x.at[(*[slice(None)] * axis, order)].get(unique_indices=True, mode="promise_in_bounds")
        return jnp.take_along_axis(x, order, axis=axis, mode="promise_in_bounds")

    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return by(jnp.asarray(x), order)
    return jax.lax.custom_linear_solve(
        lambda y: by(y, inverse), x, lambda _, x: by(x, order), lambda _, x: by(x, inverse)
    )
