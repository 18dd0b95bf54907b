"""Vandermonde products with the powers of a diagonal, in two levels: nothing of size (h n l) exists.

With the tables of `powers.py`, `A_bar^(i q + j) = P_i Q_j`, both products are batched real matrix products, of inner
size 2n and q:

    kernel   K_(iq+j) = 2 Re sum_n (C_n P_in) Q_jn
    state    s_n      = sum_i P_in sum_j u_(iq+j) Q_jn

The derivatives are such products too, those along `A_bar` by way of the tables: JAX derives them, and they keep no more
than the tables.
"""

import jax
import jax.numpy as jnp

from ssmjax.ops._numerics.pairs import Pair, times
from ssmjax.ops._numerics.powers import factors

__all__ = ["kernel", "state"]


def kernel(C: Pair, squared: Pair, length: int) -> jax.Array:
    """`K_l = 2 Re sum_n C_n A_bar_n^l`, (b h l).

    Args:
        C: Weights (b h n).
        squared: The squares of A_bar (h n) from `powers.squares`.
        length: The number of powers.
    """
    P, Q = factors(squared, length, C[0].shape[0])
    re, im = times((C[0][..., None, :], C[1][..., None, :]), (P[0][None], P[1][None]))
    K = 2 * jnp.einsum("bhcn,hqn->bhcq", jnp.concatenate([re, -im], axis=-1), Q, precision="highest")
    return K.reshape(*K.shape[:2], -1)[..., :length]


def state(u: jax.Array, squared: Pair) -> Pair:
    """`s_n = sum_l u_l A_bar_n^l`, (b h n), for real `u` (b h l); the rest as in `kernel`."""
    length = u.shape[-1]
    P, Q = factors(squared, length, u.shape[0])
    c, q = P[0].shape[-2], Q.shape[-2]
    u = jnp.pad(u, ((0, 0), (0, 0), (0, c * q - length))).reshape(*u.shape[:2], c, q)
    parts = jnp.split(jnp.einsum("bhcq,hqn->bhcn", u, Q, precision="highest"), 2, axis=-1)
    re, im = times((parts[0], parts[1]), (P[0][None], P[1][None]))
    return re.sum(-2), im.sum(-2)
