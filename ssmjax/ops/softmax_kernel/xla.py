"""The row-softmax kernel of DSS in terms of a Vandermonde product."""

import jax
import jax.numpy as jnp

from ssmjax.ops._numerics.pairs import Pair, reciprocal, times
from ssmjax.ops._numerics.permute import permute
from ssmjax.ops._numerics.powers import squares
from ssmjax.ops._numerics.transition import power_sum
from ssmjax.ops.vandermonde.xla import kernel

__all__ = ["softmax_kernel_xla"]


def softmax_kernel_xla(
    W: Pair, A: Pair, dt: jax.Array, length: int, epsilon: float | jax.Array, over: jax.Array | None
) -> jax.Array:
    """(r b h l), or (b h l) if `over` is None, as `reference.softmax_kernel_reference`.

    The sums are geometric. A mode that grows would overflow; it is the mode `-A`, which decays, mirrored in time.
    """
    grows = A[0] > 0
    A = jnp.where(grows, -A[0], A[0]), jnp.where(grows, -A[1], A[1])
    rows = jnp.array([length]) if over is None else over
    total = power_sum((A[0][None], A[1][None]), dt[None], rows[:, None, None])
    # Of no values there is no sum, and nothing that it divides: a one keeps the gradient finite if epsilon is zero.
    total = jnp.where(rows[:, None, None] == 0, 1, total[0]), total[1]
    share = reciprocal(total, jnp.broadcast_to(epsilon, A[0].shape)[None])
    weights = times((W[0][None], W[1][None]), (0.5 * share[0][:, None], 0.5 * share[1][:, None]))
    both = tuple(jnp.stack([jnp.where(here[None, None], part, 0) for here in (~grows, grows)]) for part in weights)
    squared = squares(A, dt, "zoh", max(1, (length - 1).bit_length()))
    # One product for all rows, whose inner sizes are chosen by how many there are.
    K = kernel(tuple(part.reshape(-1, *grows.shape) for part in both), squared, length)
    decaying, growing = K.reshape(2, *weights[0].shape[:-1], length)
    if over is None:
        return (decaying + growing[..., ::-1])[0]
    l, ends = jnp.arange(length).reshape(1, 1, 1, -1), over[:, None, None, None]
    mirror = (ends - 1 - l) % length  # its own inverse
    return jnp.where(l < ends, decaying + permute(growing, mirror, mirror, -1), 0)
