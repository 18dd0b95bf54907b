"""How much a model loses when its visual tokens are merged: what is measured, and what each number cannot tell.

The headline is the next-token divergence, `answer_divergence`: it needs no labels and sees every change of an answer's
distribution. Agreement and accuracy saturate before it does. Similarities of features (`linear_cka`,
`cosine_reconstruction`) rank methods differently from answers: they are diagnostics, never the result.
"""

import jax
import jax.numpy as jnp

from ssmjax.shapes import Array, Bool, Float, Int

__all__ = [
    "accuracy_retention",
    "agreement",
    "answer_divergence",
    "cosine_reconstruction",
    "effective_rank",
    "group_entropy",
    "infonce_bound",
    "linear_cka",
]


def answer_divergence(
    whole: Float[Array, "*b v"], merged: Float[Array, "*b v"], mask: Bool[Array, "*b"] | None = None
) -> Float[jax.Array, ""]:
    """The mean of KL(p_whole || p_merged) over answer tokens, in nats; zero where nothing is lost.

    Args:
        whole: Logits without a merge, teacher-forced.
        merged: Logits with it.
        mask: Which positions are of an answer; all by default.

    >>> import jax.numpy as jnp
    >>> float(answer_divergence(jnp.array([[0.0, 0.0]]), jnp.array([[5.0, 5.0]])))
    0.0
    """
    p, q = jax.nn.log_softmax(whole), jax.nn.log_softmax(merged)
    return _mean((jnp.exp(p) * (p - q)).sum(-1), mask)


def agreement(
    whole: Float[Array, "*b v"], merged: Float[Array, "*b v"], mask: Bool[Array, "*b"] | None = None
) -> Float[jax.Array, ""]:
    """The share of answer tokens whose most likely one is the same. It does not see how nearly others were chosen.

    >>> import jax.numpy as jnp
    >>> float(agreement(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[2.0, 0.0], [0.0, 1.0]])))
    0.5
    """
    return _mean((whole.argmax(-1) == merged.argmax(-1)).astype(jnp.float32), mask)


def accuracy_retention(
    whole: Float[Array, "*b v"], merged: Float[Array, "*b v"], answers: Int[Array, "*b"]
) -> Float[jax.Array, ""]:
    """Accuracy with a merge over accuracy without. Above one is possible: what is compared is not the same answers.

    >>> import jax.numpy as jnp
    >>> logits = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> float(accuracy_retention(logits, logits, jnp.array([0, 1])))
    1.0
    """
    right = [(logits.argmax(-1) == answers).mean() for logits in (whole, merged)]
    return right[1] / jnp.maximum(right[0], 1e-9)


def linear_cka(x: Float[Array, "n d"], y: Float[Array, "n e"]) -> Float[jax.Array, ""]:
    """Debiased linear CKA: how alike two sets of features of the same n rows are, up to rotation and scale.

    Kornblith et al. 2019 (https://arxiv.org/abs/1905.00414) with the unbiased estimate of HSIC (Song et al. 2012),
    which is needed below about a thousand rows. One for equal features, about zero for independent ones, and it may be
    slightly negative. It is blind to directions of little variance, where an answer may lie.

    Args:
        x: (n d), n at least 4.
        y: (n e).

    >>> import jax.numpy as jnp
    >>> x = jnp.eye(6, 3) + 0.1
    >>> round(float(linear_cka(x, 2 * x)), 4)
    1.0
    """
    k, l = (jnp.matmul(v, v.T, precision="highest") for v in (x.astype(jnp.float32), y.astype(jnp.float32)))
    return _hsic(k, l) / jnp.sqrt(jnp.maximum(_hsic(k, k) * _hsic(l, l), 1e-20))


def cosine_reconstruction(x: Float[Array, "b n d"], back: Float[Array, "b n d"]) -> Float[jax.Array, ""]:
    """The mean cosine of tokens and what unmerging gives for them. Methods that group by cosine score high by design.

    >>> import jax.numpy as jnp
    >>> float(cosine_reconstruction(jnp.ones((1, 2, 3)), 2 * jnp.ones((1, 2, 3))).round(4))
    1.0
    """
    lengths = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(back, axis=-1)
    return ((x * back).sum(-1) / jnp.maximum(lengths, 1e-12)).mean()


def effective_rank(x: Float[Array, "b n d"]) -> Float[jax.Array, "b"]:
    """The exponential of the entropy of the singular values (Roy and Vetterli 2007) of an image's centered tokens.

    At most the number of tokens, so compare it with that of the best approximation of as many.

    >>> import jax.numpy as jnp
    >>> effective_rank(jnp.array([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]])).round(3).tolist()
    [2.0]
    """
    values = jnp.linalg.svd(x - x.mean(1, keepdims=True), compute_uv=False)
    return jnp.exp(_entropy(values / jnp.maximum(values.sum(-1, keepdims=True), 1e-12)))


def group_entropy(size: Float[Array, "b m"]) -> Float[jax.Array, "b"]:
    """The entropy of the group sizes, in nats; log m where all are equal. It tells balance, not quality.

    >>> import jax.numpy as jnp
    >>> group_entropy(jnp.array([[2.0, 2.0]])).round(4).tolist()
    [0.6931]
    """
    return _entropy(size / size.sum(-1, keepdims=True))


def infonce_bound(scores: Float[Array, "b b"]) -> Float[jax.Array, ""]:
    """A lower bound of the mutual information, in nats: log b minus the InfoNCE loss (https://arxiv.org/abs/1807.03748).

    Args:
        scores: (b b), a critic's score of each merged set with each whole one; pairs are on the diagonal. The bound is
            at most log b, whatever the critic, and as tight as the critic is good.

    >>> import jax.numpy as jnp
    >>> round(float(infonce_bound(100 * jnp.eye(4))), 4)
    1.3863
    """
    return jnp.log(scores.shape[0]) + jnp.diagonal(jax.nn.log_softmax(scores, axis=-1)).mean()


def _mean(values: Array, mask: Array | None) -> jax.Array:
    if mask is None:
        return values.mean()
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)


def _entropy(shares: Array) -> jax.Array:
    return -jnp.where(shares > 0, shares * jnp.log(jnp.maximum(shares, 1e-30)), 0.0).sum(-1)


def _hsic(k: Array, l: Array) -> jax.Array:
    """The unbiased estimate, from two matrices of products."""
    n = k.shape[0]
    k, l = (v - jnp.diag(jnp.diagonal(v)) for v in (k, l))
    crossed = (k.sum(0) * l.sum(0)).sum()
    return ((k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * crossed / (n - 2)) / (n * (n - 3))
