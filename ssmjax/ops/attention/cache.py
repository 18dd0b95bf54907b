"""What decoding keeps: keys, values and one number a slot, in arrays whose size does not change."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ssmjax import _compat, errors
from ssmjax.shapes import Array, Bool, Float

__all__ = ["KVCache", "append_keys", "empty_cache"]


class KVCache(NamedTuple):
    """Keys and values of the tokens so far, in slots of which the first `length` are taken.

    Attributes:
        keys: (b m g p).
        values: (b m g p).
        bias: (b m) float32, added to the logits of a key: 0 for a token, -inf for padding and for a slot that is
            still empty, log of the size for a merged token.
        length: () int32, how many slots are taken; it is the same for all rows.

    >>> empty_cache(2, 8, 1, 4).keys.shape
    (2, 8, 1, 4)
    """

    keys: jax.Array
    values: jax.Array
    bias: jax.Array
    length: jax.Array


def empty_cache(batch: int, slots: int, groups: int, width: int, *, dtype: DTypeLike = jnp.float32) -> KVCache:
    """Returns a cache with no slot taken.

    Args:
        batch: Rows.
        slots: How many tokens it can hold.
        groups: Heads of the keys and values.
        width: Width of a head.
        dtype: The dtype of keys and values.

    Raises:
        ValueError: A size is not a positive int.

    >>> cache = empty_cache(1, 3, 1, 2)
    >>> cache.bias.tolist(), int(cache.length)
    ([[-inf, -inf, -inf]], 0)
    """
    sizes = {"slots": slots, "groups": groups, "width": width}
    slots, groups, width = (errors.as_int("empty_cache", name, size, least=1) for name, size in sizes.items())
    shape = (batch, slots, groups, width)
    empty = jnp.full((batch, slots), -jnp.inf, jnp.float32)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), empty, jnp.zeros((), jnp.int32))


def append_keys(
    cache: KVCache,
    keys: Float[Array, "b l g p"],
    values: Float[Array, "b l g p"],
    *,
    mask: Bool[Array, "b l"] | None = None,
    bias: Float[Array, "b l"] | None = None,
) -> KVCache:
    """Writes the next tokens into the free slots. The caller sees to it that there are enough: none is checked here.

    Args:
        cache: The cache so far.
        keys: (b l g p).
        values: (b l g p).
        mask: (b l), False at padding, which no query will see, whatever stands there.
        bias: (b l), the log sizes of merged tokens.

    Returns:
        The cache with `length + l` slots taken.

    >>> import jax.numpy as jnp
    >>> cache = append_keys(empty_cache(1, 3, 1, 2), jnp.ones((1, 2, 1, 2)), jnp.ones((1, 2, 1, 2)))
    >>> cache.bias.tolist(), int(cache.length)
    ([[0.0, 0.0, -inf]], 2)
    """
    cache = _compat.split_as(cache, keys)
    added = _compat.zeros(keys.shape[:2], jnp.float32, keys) if bias is None else bias.astype(jnp.float32)
    if mask is not None:
        added = jnp.where(mask, added, -jnp.inf)
        keys, values = (jnp.where(mask[..., None, None], x, 0) for x in (keys, values))

    def write(slots, x):
        start = (0, cache.length) + (0,) * (slots.ndim - 2)
        return jax.lax.dynamic_update_slice(slots, x.astype(slots.dtype), start)

    length = cache.length + keys.shape[1]
    return KVCache(write(cache.keys, keys), write(cache.values, values), write(cache.bias, added), length)
