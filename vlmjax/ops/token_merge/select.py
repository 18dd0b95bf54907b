"""Merging and selection without training: some of the tokens, pools, attention and density anchors."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from ssmjax import errors
from ssmjax.shapes import Array, Float, Int
from vlmjax.ops.token_merge.state import MergeState, by_position, check_budget, merge_into

__all__ = [
    "attention_anchors",
    "average_pool",
    "density_anchors",
    "density_scores",
    "select_tokens",
    "top_tokens",
    "unit",
]


def select_tokens(x: Float[Array, "b n d"], places: Int[Array, "b m"] | Int[Array, "m"]) -> MergeState:
    """Keeps some tokens and drops the others: every s-th, random ones, or those of the largest score.

    Args:
        x: (b n d).
        places: Which to keep, ascending, (m) for all rows or (b m): `jnp.arange(0, n, s)` slices,
            `jnp.sort(jax.random.permutation(key, n)[:m])` draws.

    >>> import jax.numpy as jnp
    >>> select_tokens(jnp.arange(4.0)[None, :, None], jnp.arange(0, 4, 2)).tokens.ravel().tolist()
    [0.0, 2.0]
    """
    places = jnp.asarray(places)
    places = jnp.broadcast_to(places, (x.shape[0], places.shape[-1]))
    return merge_into(x, jax.nn.one_hot(places, x.shape[1], dtype=jnp.float32), places)


def average_pool(x: Float[Array, "b n d"], grid: tuple[int, int], pooled: tuple[int, int]) -> MergeState:
    """Means over cells of a grid of tokens; the anchor of a cell is its middle token.

    Args:
        x: (b n d), n tokens row by row.
        grid: Their rows and columns.
        pooled: The rows and columns wanted, which divide the grid's.

    Raises:
        ValueError: They do not.

    >>> import jax.numpy as jnp
    >>> average_pool(jnp.arange(4.0)[None, :, None], (2, 2), (1, 1)).tokens.tolist()
    [[[1.5]]]
    """
    if x.shape[1] != grid[0] * grid[1]:
        raise errors.bad_shape("average_pool", "x", x, f"(b n d) with n = {grid[0] * grid[1]}, the tokens of the grid")
    if any(new < 1 or old % new for old, new in zip(grid, pooled, strict=True)):
        raise errors.bad_argument("average_pool", "pooled", pooled, f"divisors of the grid's sides {grid}")
    y, x_ = np.divmod(np.arange(x.shape[1]), grid[1])
    (h, w) = (old // new for old, new in zip(grid, pooled, strict=True))
    cell = y // h * pooled[1] + x_ // w
    assign = (np.arange(pooled[0] * pooled[1])[:, None] == cell[None]).astype(np.float32)
    middle = (np.arange(pooled[0])[:, None] * h + h // 2) * grid[1] + np.arange(pooled[1])[None] * w + w // 2
    b = x.shape[0]
    return merge_into(
        x,
        jnp.broadcast_to(jnp.asarray(assign)[None], (b, *assign.shape)),
        jnp.broadcast_to(jnp.asarray(middle.reshape(1, -1)), (b, middle.size)),
    )


def attention_anchors(
    x: Float[Array, "b n d"],
    keys: Float[Array, "b n p"],
    scores: Float[Array, "b n"],
    m: int,
    *,
    contextual: int | None = None,
) -> MergeState:
    """Keeps the tokens that get most attention; merges the rest into evenly spaced ones of them (VisionZip-like).

    Dominant and contextual tokens as in https://arxiv.org/abs/2412.04467, section 3.2: 54 to 10 there. A contextual
    token here is the mean of what is assigned to it, and its size is known, which that method does without.

    Args:
        x: (b n d).
        keys: (b n p), the keys by whose cosine tokens are assigned.
        scores: (b n), the attention that each token gets.
        m: The budget.
        contextual: How many of them are contextual; None means 10 in 64. With 0 the rest is dropped.

    >>> import jax.numpy as jnp
    >>> x = jnp.arange(6.0)[None, :, None]
    >>> attention_anchors(x, x, x[..., 0], 3, contextual=1).position.tolist()
    [[0, 4, 5]]
    """
    b, n, _ = x.shape
    m = check_budget("attention_anchors", m, n)
    extra = max(1, round(m * 10 / 64)) if contextual is None else contextual
    extra = min(extra, m - 1, n - m)
    dominant = top_tokens(scores, m - extra)
    if extra <= 0:
        return select_tokens(x, dominant)
    kept = jax.nn.one_hot(dominant, n, dtype=jnp.float32).sum(1)
    # The others, in order; the contextual ones are evenly spaced among them.
    rest = jnp.argsort(kept, axis=1, stable=True)[:, : n - m + extra]
    anchors = rest[:, np.arange(extra) * (n - m + extra) // extra]
    similar = jnp.einsum("bnp,bep->bne", unit(keys), unit(_rows(keys, anchors)), precision="highest")
    chosen = jax.nn.one_hot(similar.argmax(-1), extra, dtype=jnp.float32)
    chosen = jnp.where((kept > 0)[..., None], 0.0, chosen)
    own = jax.nn.one_hot(anchors, n, dtype=jnp.float32)
    chosen = jnp.where(own.sum(1)[..., None] > 0, rearrange(own, "b e n -> b n e"), chosen)
    assign = jnp.concatenate([jax.nn.one_hot(dominant, n, dtype=jnp.float32), rearrange(chosen, "b n e -> b e n")], 1)
    return by_position(merge_into(x, assign, jnp.concatenate([dominant, anchors], axis=1)))


def density_scores(e: Float[Array, "b n p"], gain: Float[Array, "b n"] | None = None) -> tuple[jax.Array, jax.Array]:
    """How well each token stands for others, and how far it is from any that does so better (density peaks).

        C = E E',   R_i = sum_j C_ij exp(g_j),   D_i = 1 - max_{j: R_j > R_i} C_ij

    Args:
        e: (b n p), of length one.
        gain: `g`, (b n); zero by default.

    Returns:
        `R`, at least 1e-6, and `D`, from 0 to 2; both (b n).

    >>> import jax.numpy as jnp
    >>> R, D = density_scores(jnp.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]))
    >>> R.tolist()
    [[2.0, 2.0, 1.0]]
    """
    similar = jnp.einsum("bip,bjp->bij", e, e, precision="highest")
    shared = similar if gain is None else similar * jnp.exp(gain)[:, None]
    R = jnp.maximum(shared.sum(-1), 1e-6)
    # Of equal tokens the first is the better one, so that only one of them is an anchor.
    n = e.shape[1]
    earlier = (jnp.arange(n)[None] < jnp.arange(n)[:, None])[None]
    better = (R[:, None] > R[:, :, None]) | ((R[:, None] == R[:, :, None]) & earlier)
    return R, 1.0 - jnp.where(better, similar, -1.0).max(-1)


def density_anchors(x: Float[Array, "b n d"], m: int, *, features: Float[Array, "b n p"] | None = None) -> MergeState:
    """Anchors by density, and every token merged into the anchor it is most like: the rule that ours starts from.

    The scores are those of RESTORE (see `density_scores`): `log R + log D`.

    Args:
        x: (b n d).
        m: The budget.
        features: What is compared, (b n p); `x` by default.

    >>> import jax.numpy as jnp
    >>> state = density_anchors(jnp.array([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]]), 2)
    >>> state.size.tolist()
    [[2.0, 1.0]]
    """
    from vlmjax.ops.token_merge.anchored import anchored_merge

    e = unit(x if features is None else features)
    R, D = density_scores(e)
    return anchored_merge(x, e, jnp.log(R) + jnp.log(jnp.maximum(D, 1e-9)), m)


def top_tokens(scores: Float[Array, "b n"], m: int) -> Int[jax.Array, "b m"]:
    """The places of the `m` largest scores, ascending."""
    return jnp.sort(jax.lax.top_k(scores, m)[1], axis=-1)


def unit(x: Float[Array, "*b d"]) -> Float[jax.Array, "*b d"]:
    """Vectors of length one, float32; a zero stays zero."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1e-24))


def _rows(x: Array, places: Array) -> jax.Array:
    return jnp.einsum("bmn,bnd->bmd", jax.nn.one_hot(places, x.shape[1], dtype=x.dtype), x, precision="highest")
