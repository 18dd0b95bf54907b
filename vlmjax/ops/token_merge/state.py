"""What a merge returns, and the product that merges."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmjax import errors
from ssmjax.shapes import Array, Float, Int

__all__ = ["MergeState", "by_position", "check_budget", "merge_into", "unmerge"]


LEAST = 1e-9
"""What a mean is divided by at least: a token of a soft merge that fades has a mass near zero, whose inverse has no
finite gradient."""


class MergeState(NamedTuple):
    """Merged tokens.

    Attributes:
        tokens: (b m d).
        size: (b m) float32, how many tokens each stands for; its logarithm is the bias that attention adds to it as a
            key. Tokens that were dropped count for none.
        position: (b m), where the anchor of each stood among the n tokens.
        assign: (b m n), the share of each token that went to each merged one; a column sums to one, or to zero for a
            token that was dropped.
    """

    tokens: jax.Array
    size: jax.Array
    position: jax.Array
    assign: jax.Array


def merge_into(
    x: Float[Array, "b n d"],
    assign: Float[Array, "b m n"],
    position: Int[Array, "b m"],
    *,
    size: Float[Array, "b n"] | None = None,
    weight: Float[Array, "b n"] | None = None,
) -> MergeState:
    """Weighted means of the tokens that are assigned to each merged token.

        y_j = sum_i P_ji s_i w_i x_i / sum_i P_ji s_i w_i,    S_j = sum_i P_ji s_i

    Accumulated in float32.

    Args:
        x: (b n d).
        assign: `P`, (b m n).
        position: (b m), the anchors.
        size: `s`, (b n); ones by default.
        weight: `w`, (b n), further weights of the mean; ones by default.

    >>> import jax.numpy as jnp
    >>> state = merge_into(jnp.array([[[1.0], [3.0]]]), jnp.ones((1, 1, 2)), jnp.zeros((1, 1), int))
    >>> state.tokens.tolist(), state.size.tolist()
    ([[[2.0]]], [[2.0]])
    """
    real = jnp.promote_types(x.dtype, jnp.float32)
    counted = assign.astype(real) if size is None else assign.astype(real) * size[:, None].astype(real)
    shares = counted if weight is None else counted * weight[:, None].astype(real)
    total = shares.sum(-1, keepdims=True)
    mean = jnp.einsum("bmn,bnd->bmd", shares, x.astype(real), precision="highest") / jnp.maximum(total, LEAST)
    return MergeState(mean.astype(x.dtype), counted.sum(-1), position, assign)


def unmerge(y: Float[Array, "b m d"], assign: Float[Array, "b m n"]) -> Float[jax.Array, "b n d"]:
    """Gives every token the merged one that it went to (or their mean, by its shares); zeros where it was dropped.

    >>> import jax.numpy as jnp
    >>> unmerge(jnp.array([[[2.0]]]), jnp.ones((1, 1, 3))).ravel().tolist()
    [2.0, 2.0, 2.0]
    """
    return jnp.einsum("bmn,bmd->bnd", assign.astype(jnp.float32), y, precision="highest").astype(y.dtype)


def by_position(state: MergeState) -> MergeState:
    """Puts merged tokens in the order in which their anchors stood, as a causal model needs them.

    >>> import jax.numpy as jnp
    >>> state = MergeState(jnp.array([[[1.0], [2.0]]]), jnp.ones((1, 2)), jnp.array([[5, 3]]), jnp.ones((1, 2, 6)))
    >>> by_position(state).position.tolist()
    [[3, 5]]
    """
    order = jnp.argsort(state.position, axis=1)
    chosen = jax.nn.one_hot(order, order.shape[1], dtype=jnp.float32)  # a product: the gradient has no scatter

    def move(v):
        return jnp.einsum("bkm,bm...->bk...", chosen, v.astype(jnp.float32), precision="highest").astype(v.dtype)

    return MergeState(
        move(state.tokens), move(state.size), jnp.take_along_axis(state.position, order, axis=1), move(state.assign)
    )


def check_budget(where: str, m: int, n: int) -> int:
    """The budget as a Python int, at least 1 and at most the number of tokens."""
    return errors.as_int(
        where, "m", m, f"a budget from 1 to the {n} tokens", least=1, most=n, remedy="A Python int: it is a shape."
    )
