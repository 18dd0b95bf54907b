"""The anchored merge: soft in training, with a budget that may be traced, and its exact hard limit for use.

    alpha = soft_top_k(u, m)                                          how much a token is an anchor; sums to m
    P_ij  = alpha_i [i = j] + (1 - alpha_i) softmax_{j != i}(kappa e_i e_j + log alpha_j)
    y_j   = sum_i P_ij s_i w_i x_i / sum_i P_ij s_i w_i               S_j = sum_i P_ij s_i

Rows of P sum to one, so mass is conserved. A token that is no anchor has a size S near zero, and fades from attention,
whose logits get log S. As the temperature goes to zero, and then kappa to infinity, this is the hard merge: no
straight-through estimate is needed.
"""

import jax
import jax.numpy as jnp

from ssmjax.shapes import Array, Float
from vlmjax.ops.token_merge.select import top_tokens
from vlmjax.ops.token_merge.state import MergeState, check_budget, merge_into

__all__ = ["anchored_merge", "soft_anchored_merge", "soft_top_k"]

STEPS = 40
"""Halvings of the interval in which the threshold lies."""

REACH = 20.0
"""The interval ends so many temperatures beyond the scores, where a sigmoid is 0 or 1 to 2e-9."""


def anchored_merge(
    x: Float[Array, "b n d"],
    e: Float[Array, "b n p"],
    score: Float[Array, "b n"],
    m: int,
    *,
    size: Float[Array, "b n"] | None = None,
    weight: Float[Array, "b n"] | None = None,
) -> MergeState:
    """Merges every token into the most similar of `m` anchors, the tokens of the largest scores.

    Args:
        x: (b n d), the tokens.
        e: (b n p), what is compared, of length one.
        score: (b n).
        m: The budget. With `m = n` nothing is merged.
        size: (b n), how many tokens each stands for already.
        weight: (b n), further weights of the means.

    Returns:
        The merged tokens, in the order in which the anchors stood.

    Raises:
        ValueError: The budget is below 1 or above n.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]])
    >>> anchored_merge(x, x, jnp.array([[3.0, 1.0, 2.0]]), 2).size.tolist()
    [[2.0, 1.0]]
    """
    n = x.shape[1]
    m = check_budget("anchored_merge", m, n)
    places = top_tokens(score, m)
    anchors = jax.nn.one_hot(places, n, dtype=jnp.float32)
    similar = jnp.einsum("bmp,bnp->bmn", jnp.einsum("bmn,bnp->bmp", anchors, e, precision="highest"), e)
    # An anchor is its own, however similar another one is.
    similar = jnp.where(anchors.any(1, keepdims=True), jnp.where(anchors > 0, 1.0, -jnp.inf), similar)
    assign = (similar.argmax(1)[:, None] == jnp.arange(m)[None, :, None]).astype(jnp.float32)
    return merge_into(x, assign, places, size=size, weight=weight)


def soft_anchored_merge(
    x: Float[Array, "b n d"],
    e: Float[Array, "b n p"],
    score: Float[Array, "b n"],
    m: int | float | Array,
    *,
    temperature: float | Array,
    sharpness: float | Array,
    size: Float[Array, "b n"] | None = None,
    weight: Float[Array, "b n"] | None = None,
) -> MergeState:
    """The soft form, with as many outputs as inputs: `m` of them have a size, the others fade.

    Args:
        x: (b n d), the tokens.
        e: (b n p), what is compared, of length one.
        score: (b n), in units in which `temperature` is meant.
        m: The budget; it may be traced, so that one compiled step serves all budgets.
        temperature: The temperature of the soft choice of anchors.
        sharpness: `kappa`, of the assignment.
        size: (b n), how many tokens each stands for already.
        weight: (b n), further weights of the means.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]])
    >>> soft = soft_anchored_merge(x, x, jnp.array([[3.0, 1.0, 2.0]]), 2, temperature=0.01, sharpness=100.0)
    >>> soft.size.round(3).tolist()
    [[2.0, 0.0, 1.0]]
    """
    b, n, _ = x.shape
    above = _above(score, m, temperature)
    alpha = jax.nn.sigmoid(above)
    similar = jnp.einsum("bip,bjp->bij", e, e, precision="highest")
    # log alpha, however small alpha is: a floor would let tokens through that are no anchors.
    logits = sharpness * similar + jax.nn.log_sigmoid(above)[:, None]
    own = jnp.eye(n, dtype=bool)[None]
    if n > 1:
        away = jax.nn.softmax(jnp.where(own, -jnp.inf, logits), axis=-1)
        shares = jnp.where(own, alpha[..., None], (1 - alpha)[..., None] * away)
    else:
        shares = jnp.ones((b, 1, 1), jnp.float32)
    places = jnp.broadcast_to(jnp.arange(n)[None], (b, n))
    return merge_into(x, shares.swapaxes(1, 2), places, size=size, weight=weight)


def soft_top_k(
    score: Float[Array, "b n"], m: int | float | Array, temperature: float | Array
) -> Float[jax.Array, "b n"]:
    """Sigmoids of the scores over a threshold at which they sum to `m`.

        alpha_i = sigmoid((u_i - t) / tau),   sum_i alpha_i = m

    The threshold is found by bisection, and its gradient is that of the implicit function: with
    `v = alpha (1 - alpha)`, `dt = sum v du / sum v`.

    Args:
        score: `u`, (b n).
        m: From 0 to n; may be traced. No gradient passes to it.
        temperature: `tau`. No gradient passes to it.

    >>> import jax.numpy as jnp
    >>> soft_top_k(jnp.array([[0.0, 1.0, 2.0]]), 2, 0.01).round(3).tolist()
    [[0.0, 1.0, 1.0]]
    """
    return jax.nn.sigmoid(_above(score, m, temperature))


def _above(score, m, temperature):
    """How many temperatures each score is above the threshold."""
    temperature = jax.lax.stop_gradient(jnp.asarray(temperature, jnp.float32))
    score = score.astype(jnp.float32)
    return (score - _threshold(score, jnp.asarray(m, jnp.float32), temperature)) / temperature


@jax.custom_jvp
def _threshold(score, m, temperature):
    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        above = (score - middle) / temperature
        return jnp.where(_too_many(above, m), middle, low), jnp.where(_too_many(above, m), high, middle)

    reach = REACH * temperature
    ends = score.min(-1, keepdims=True) - reach, score.max(-1, keepdims=True) + reach
    low, high = jax.lax.fori_loop(0, STEPS, halve, ends)
    return (low + high) / 2


def _too_many(above, m):
    """Whether the sigmoids sum to more than `m`.

    Where as many are above one half as there should be, what the others have is compared with what these lack, in logs:
    in the sum, rounding would hide both, and the threshold would end beside a score in place of midway between two.
    """
    inside = above > 0
    count = inside.sum(-1, keepdims=True)
    rest = jax.nn.sigmoid(-jnp.abs(above))
    log_rest = jax.nn.log_sigmoid(-jnp.abs(above))
    have, lack = (
        jax.nn.logsumexp(jnp.where(side, log_rest, -jnp.inf), axis=-1, keepdims=True) for side in (~inside, inside)
    )
    excess = count - m + jnp.where(inside, -rest, rest).sum(-1, keepdims=True)
    return jnp.where(count == m, have > lack, excess > 0)


@_threshold.defjvp
def _derivative(values, tangents):
    """The sigmoids sum to m whatever the scores, so the threshold moves by the mean of theirs, weighted by slopes."""
    score, _, temperature = values
    threshold = _threshold(*values)
    alpha = jax.nn.sigmoid((score - threshold) / temperature)
    slope = alpha * (1 - alpha)
    total = slope.sum(-1, keepdims=True)
    share = slope / jnp.where(total == 0, 1.0, total)
    return threshold, (share * tangents[0]).sum(-1, keepdims=True)
