"""The row-softmax kernel of DSS in terms of a Vandermonde product."""

import jax
import jax.numpy as jnp

from ssmjax.ops.kernels_s4 import vandermonde
from ssmjax.ops.kernels_s4.discretize import held
from ssmjax.ops.kernels_s4.pairs import Pair, reciprocal, times
from ssmjax.ops.kernels_s4.powers import squares

__all__ = ["softmax_kernel_xla"]


def softmax_kernel_xla(
    W: Pair, A: Pair, dt: jax.Array, length: int, epsilon: float | jax.Array, over: int | jax.Array
) -> jax.Array:
    """(b h l), as `reference.softmax_kernel_reference`.

    With `x = dt A` the sum is geometric, `sum_j e^(j x) = (e^(L x) - 1) / (e^x - 1)` for an L of `over`. A mode that
    grows would overflow; it is the mode `-x`, which decays, mirrored in time.
    """
    grows = A[0] > 0
    A = jnp.where(grows, -A[0], A[0]), jnp.where(grows, -A[1], A[1])
    total = times(held(A, dt, over), reciprocal(held(A, dt)))
    weight_re, weight_im = reciprocal(total, epsilon)
    weights = times(W, (0.5 * weight_re[None], 0.5 * weight_im[None]))
    both = tuple(jnp.concatenate([part * ~grows[None], part * grows[None]]) for part in weights)
    squared = squares(A, dt, "zoh", max(1, (length - 1).bit_length()))
    decaying, growing = jnp.split(vandermonde.kernel(both, squared, length), 2)
    if isinstance(over, int) and over == length:
        return decaying + growing[..., ::-1]
    mirrored = jnp.roll(growing[..., ::-1], over - length, axis=-1)
    return jnp.where(jnp.arange(length) < over, decaying + mirrored, 0)
