"""Bipartite soft matching (ToMe, https://arxiv.org/abs/2210.09461, section 3): each step merges alternate tokens.

Tokens at even places are matched with those at odd places, each with its most similar one, and the `r` most similar
pairs are merged.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from ssmjax import errors
from ssmjax.shapes import Array, Float
from vlmjax.ops.token_merge.select import unit
from vlmjax.ops.token_merge.state import MergeState, by_position, check_budget, merge_into

__all__ = ["bipartite_assignment", "bipartite_merge", "kth_assignment"]


def bipartite_merge(
    x: Float[Array, "b n d"],
    m: int,
    *,
    features: Float[Array, "b n p"] | None = None,
    protect_first: bool = False,
) -> MergeState:
    """Merges down to a budget, in as few steps of bipartite soft matching as there can be: each at most halves.

    Args:
        x: (b n d).
        m: The budget.
        features: What is compared, (b n p), such as mean keys; `x` by default, and then the means of what is merged.
        protect_first: Whether the first token, a class token, is never merged into another.

    Returns:
        The merged tokens in the order of their places.

    Raises:
        ValueError: The budget is below 1 or above n.

    >>> import jax.numpy as jnp
    >>> state = bipartite_merge(jnp.array([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]]), 2)
    >>> state.size.tolist()
    [[2.0, 1.0]]
    """
    b, n, _ = x.shape
    m = check_budget("bipartite_merge", m, n)
    errors.require_flags("bipartite_merge", protect_first=protect_first)
    whole = jnp.broadcast_to(jnp.eye(n, dtype=jnp.float32)[None], (b, n, n))
    state = MergeState(x, jnp.ones((b, n), jnp.float32), jnp.broadcast_to(jnp.arange(n)[None], (b, n)), whole)
    features = x if features is None else features
    while state.tokens.shape[1] > m:
        count = state.tokens.shape[1]
        most = (count - protect_first) // 2
        if most == 0:
            raise errors.bad_argument("bipartite_merge", "m", m, "at least 2 with a protected token")
        step, places = bipartite_assignment(features, min(count - m, most), protect_first=protect_first)
        merged = merge_into(state.tokens, step, places, size=state.size)
        features = merge_into(features, step, places, size=state.size).tokens
        together = jnp.einsum("bkm,bmn->bkn", step, state.assign, precision="highest")
        state = MergeState(merged.tokens, merged.size, jnp.take_along_axis(state.position, places, axis=1), together)
        state, features = by_position(state), by_position(merged._replace(tokens=features)).tokens
    return state


def bipartite_assignment(
    features: Float[Array, "b n p"], r: int, *, protect_first: bool = False
) -> tuple[Float[jax.Array, "b m n"], jax.Array]:
    """One step: which token goes where, when `r` of them are merged into others.

    The order is ToMe's: first the even tokens that were not merged, from the most similar pair to the least (with a
    protected token by place), then the odd ones.

    Args:
        features: (b n p).
        r: How many tokens to merge, at most half of them; more are cut to that.
        protect_first: Whether the first token is never merged into another.

    Returns:
        The assignment (b n-r n), and the places of the anchors (b n-r).
    """
    b, n, _ = features.shape
    r = min(r, (n - protect_first) // 2)
    e = unit(features)
    first, second = e[:, ::2], e[:, 1::2]
    scores = jnp.einsum("bip,bjp->bij", first, second, precision="highest")
    if protect_first:
        scores = jnp.where((jnp.arange(first.shape[1]) == 0)[None, :, None], -jnp.inf, scores)
    a = first.shape[1]
    order = jnp.argsort(-scores.max(-1), axis=1, stable=True)
    rank = jnp.argsort(order, axis=1, stable=True)  # 0 for the most similar pair
    merged = rank < r
    stays = jnp.cumsum(~merged, axis=1) - 1 if protect_first else rank - r
    even = jnp.where(merged, a - r + scores.argmax(-1), stays)
    odd = jnp.broadcast_to(a - r + jnp.arange(n - a)[None], (b, n - a))
    target = _interleave(even, odd)
    assign = rearrange(jax.nn.one_hot(target, n - r, dtype=jnp.float32), "b n m -> b m n")
    # The anchor of a merged token is its odd one, or the even one that stayed.
    anchor = assign * jnp.where(_interleave(merged, jnp.zeros_like(odd, bool)), 0.0, 1.0)[:, None]
    return assign, anchor.argmax(-1)


def kth_assignment(features: Float[Array, "b n p"], k: int) -> tuple[Float[jax.Array, "b m n"], jax.Array]:
    """All tokens merged into every k-th of them, each into the most similar.

    Args:
        features: (b n p), n a multiple of k.
        k: The distance of the tokens that stay.

    Returns:
        The assignment (b n/k n), and the places of the anchors (b n/k).
    """
    b, n, _ = features.shape
    e = unit(features)
    anchors = jnp.arange(k - 1, n, k)
    scores = jnp.einsum("bip,bjp->bij", e, e[:, k - 1 :: k], precision="highest")
    own = anchors[None, None] == jnp.arange(n)[None, :, None]
    scores = jnp.where(own.any(-1, keepdims=True), jnp.where(own, 1.0, -jnp.inf), scores)
    assign = jax.nn.one_hot(scores.argmax(-1), n // k, dtype=jnp.float32)
    return rearrange(assign, "b n m -> b m n"), jnp.broadcast_to(anchors[None], (b, n // k))


def _interleave(even: Array, odd: Array) -> jax.Array:
    """Values of even places and of odd places, in order of place."""
    padded = jnp.pad(odd, ((0, 0), (0, even.shape[1] - odd.shape[1])))
    both = rearrange(jnp.stack([even, padded], axis=-1), "b i two -> b (i two)")
    return both[:, : even.shape[1] + odd.shape[1]]
