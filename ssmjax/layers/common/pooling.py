"""One vector of a sequence: the mean, the largest or the last of its real tokens."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from ssmjax.errors import unknown_name
from ssmjax.layers.common.padding import as_mask
from ssmjax.shapes import Array, Float, Mask

__all__ = ["Pool", "pool"]

Pool = Literal["mean", "max", "last", "none"]
"""See `pool`."""


def pool(x: Float[Array, "b *s d"], kind: Pool, mask: Mask | None = None) -> Float[jax.Array, "b *pooled d"]:
    """Pools tokens.

    Args:
        x: (b l d), or (b *s d) without a mask.
        kind: "mean", "max" or "last" of the real tokens, or "none", which returns `x`.
        mask: (b l), False at padding; a row of padding alone gives zeros, as does a sequence without tokens.

    Returns:
        (b d) float32, (b *s d) for "none".

    Raises:
        ValueError: The kind is unknown.

    >>> import jax.numpy as jnp
    >>> x, mask = jnp.arange(6.0).reshape(1, 3, 2), jnp.array([[True, True, False]])
    >>> [pool(x, kind, mask).tolist() for kind in ("mean", "max", "last")]
    [[[1.0, 2.0]], [[2.0, 3.0]], [[2.0, 3.0]]]
    """
    if kind not in get_args(Pool):
        raise ValueError(f"pool: {unknown_name('kind', kind, get_args(Pool))}")
    x = x.astype(jnp.float32)
    if kind == "none":
        return x
    if mask is None:
        axes = tuple(range(1, x.ndim - 1))
        if 0 in x.shape[1:-1]:
            return jnp.zeros((x.shape[0], x.shape[-1]))
        return x.mean(axes) if kind == "mean" else x.max(axes) if kind == "max" else x[:, -1]
    mask = as_mask("pool", mask)  # the sums below would overflow in the type of a mask of bytes
    if kind == "last":  # a product with one row of the identity matrix, not a gather, whose gradient is a scatter
        later = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
        chosen = (mask & (later == 1)).astype(jnp.float32)
        return jnp.einsum("bl,bld->bd", chosen, x, precision=jax.lax.Precision.HIGHEST)
    count = mask.sum(1)[:, None]
    if kind == "mean":
        return jnp.where(mask[..., None], x, 0).sum(1) / jnp.maximum(count, 1)
    return jnp.where(count > 0, jnp.where(mask[..., None], x, -jnp.inf).max(1), 0)
