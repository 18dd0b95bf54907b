"""Randomness during training: pure functions with an explicit key, so that no module holds random state."""

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax.shapes import Array, Float, PRNGKey

__all__ = ["drop_path", "drop_path_rates", "dropout", "shared_dropout"]


def dropout(key: PRNGKey, x: Float[Array, "*b"], rate: float) -> Float[Array, "*b"]:
    """Sets each element to zero with probability `rate`, and divides the others by `1 - rate`.

    Args:
        key: A random key.
        x: Any floating array.
        rate: The probability, in [0, 1).

    Returns:
        As `x`.

    >>> import jax, jax.numpy as jnp
    >>> sorted(set(dropout(jax.random.key(0), jnp.ones(100), 0.5).tolist()))
    [0.0, 2.0]
    """
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def shared_dropout(key: PRNGKey | None, x: Float[Array, "b *s d"], rate: float) -> Float[Array, "b *s d"]:
    """Dropout with one draw a feature of a sample, shared by all its tokens, as S4 and S5 use it.

    Args:
        key: A random key; None drops nothing.
        x: (b *s d).
        rate: The probability, in [0, 1).

    Returns:
        As `x`.

    >>> import jax, jax.numpy as jnp
    >>> dropped = shared_dropout(jax.random.key(0), jnp.ones((2, 3, 100)), 0.5)
    >>> bool((dropped == dropped[:, :1]).all()), sorted(set(dropped.ravel().tolist()))
    (True, [0.0, 2.0])
    """
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1]))
    return jnp.where(keep, x * jnp.asarray(1 / (1 - rate), x.dtype), 0)


def drop_path(key: PRNGKey, x: Float[Array, "b *rest"], rate: Float[Array, ""] | float) -> Float[Array, "b *rest"]:
    """Stochastic depth: drops the whole branch for a sample with probability `rate` (https://arxiv.org/abs/1603.09382).

    Args:
        key: A random key.
        x: The output of a residual branch; the first axis is the batch.
        rate: The probability, in [0, 1); may be traced, so that a scan over layers can carry one a layer.

    Returns:
        As `x`: rows of zeros, and the others divided by `1 - rate`.

    >>> import jax, jax.numpy as jnp
    >>> sorted(set(drop_path(jax.random.key(0), jnp.ones((100, 2)), 0.5).sum(1).tolist()))
    [0.0, 4.0]
    """
    keep_rate = 1 - jnp.asarray(rate, jnp.float32)
    keep = jax.random.bernoulli(key, keep_rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x * (1 / keep_rate).astype(x.dtype), 0)


def drop_path_rates(depth: int, rate: float) -> np.ndarray:
    """Vim's rates by block: 0, then linear from 0 to `rate`, so that the first two blocks are never dropped.

    The last block's place in the linear rule goes to the final output, which is dropped at the full `rate`.

    Args:
        depth: The number of blocks.
        rate: The largest rate.

    Returns:
        (depth), float32.

    >>> drop_path_rates(4, 0.3).round(2).tolist()
    [0.0, 0.0, 0.10000000149011612, 0.20000000298023224]
    """
    return np.concatenate([[0.0], np.linspace(0, rate, depth)])[:depth].astype(np.float32)
