"""Losses per example and per token."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from ssmjax.errors import as_int, bad_shape
from ssmjax.shapes import Array, Bool, Float, Inexact, Int, SegmentIds

__all__ = ["IGNORED", "chunked_cross_entropy", "mean_over_labels", "next_token_labels", "softmax_cross_entropy"]

IGNORED = -100
"""The label of a token that does not count. Every label outside of 0 .. v - 1 has this meaning."""


def softmax_cross_entropy(
    logits: Inexact[Array, "*b v"], labels: Int[Array, "*b"] | Inexact[Array, "*b v"], *, label_smoothing: float = 0.0
) -> Float[Array, "*b"]:
    """Cross-entropy between labels and the softmax of logits, in float32.

    With class indices neither the value nor the gradient makes a one-hot array, gathers or scatters: the gradient is
    computed from the logits and their log-sum-exp, the label found by a comparison.

    Args:
        logits: (*b v), any floating dtype.
        labels: (*b) class indices, or (*b v) probabilities, as mixup makes them. Where an index is outside of
            0 .. v - 1, such as `IGNORED`, the loss and its gradient are 0.
        label_smoothing: The share of probability spread evenly over all classes (Szegedy et al. 2016, section 7).

    Returns:
        (*b) float32.

    >>> round(float(softmax_cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0]), 4)
    1.3863
    >>> softmax_cross_entropy(jnp.zeros((2, 4)), jnp.array([2, IGNORED]))[1].item()
    0.0
    """
    if not jnp.issubdtype(labels.dtype, jnp.inexact):
        return _indexed(jnp.asarray(logits), jnp.asarray(labels), float(label_smoothing))
    smooth = optax.smooth_labels(jnp.asarray(labels, jnp.float32), label_smoothing)
    return optax.softmax_cross_entropy(jnp.asarray(logits, jnp.float32), smooth)


def next_token_labels(
    tokens: Int[Array, "b l"], *, mask: Bool[Array, "b l"] | None = None, segment_ids: SegmentIds | None = None
) -> Int[jax.Array, "b l"]:
    """The labels of a language model: at each position the token that follows, and `IGNORED` where none does.

    Args:
        tokens: (b l) token ids.
        mask: (b l), False at padding, which neither is predicted nor predicts.
        segment_ids: (b l); a token does not predict the first one of the next segment.

    Returns:
        (b l) int32.

    >>> next_token_labels(jnp.array([[5, 6, 7]])).tolist()
    [[6, 7, -100]]
    """
    follows = jnp.ones((tokens.shape[0], tokens.shape[1] - 1), bool)
    if mask is not None:
        follows &= mask[:, :-1] & mask[:, 1:]
    if segment_ids is not None:
        follows &= segment_ids[:, :-1] == segment_ids[:, 1:]
    labels = jnp.where(follows, tokens[:, 1:], IGNORED)
    return jnp.pad(labels, ((0, 0), (0, 1)), constant_values=IGNORED).astype(jnp.int32)


def mean_over_labels(losses: Float[Array, "*b"], labels: Int[Array, "*b"]) -> Float[jax.Array, ""]:
    """The mean loss of the tokens that count; 0 if none does.

    Args:
        losses: (*b), 0 where a label is ignored, as the functions here return them.
        labels: (*b) int, `IGNORED` (or any negative number) where a token does not count.

    >>> mean_over_labels(jnp.array([2.0, 4.0, 0.0]), jnp.array([1, 0, IGNORED])).item()
    3.0
    """
    return jnp.sum(losses) / jnp.maximum(1, jnp.sum(jnp.asarray(labels) >= 0))


def chunked_cross_entropy(
    hidden: Float[Array, "*b d"],
    weight: Float[Array, "d v"],
    labels: Int[Array, "*b"],
    *,
    bias: Float[Array, " v"] | None = None,
    chunk: int = 1024,
) -> Float[jax.Array, "*b"]:
    """The cross-entropy of `hidden @ weight + bias`, whose logits exist for `chunk` tokens at a time only.

    With a vocabulary of 50,000 the logits of 16,000 tokens take 3 GB in float32, and their gradient as much again; here
    it is 0.2 GB. The backward pass computes the logits of each chunk once more (one matrix product in three), and sums
    the gradient of the weight in float32. It has no derivatives in forward mode; `softmax_cross_entropy` of the logits
    has them.

    Args:
        hidden: (*b d), what the head of the language model reads.
        weight: (d v), the head's kernel; of a tied embedding `table.T`.
        labels: (*b) token ids; those outside of 0 .. v - 1, such as `IGNORED`, do not count.
        bias: (v), if the head has one.
        chunk: The number of tokens whose logits exist at once.

    Returns:
        (*b) float32, as `softmax_cross_entropy` of the logits.

    Raises:
        ValueError: The shapes do not belong together, or the chunk is not a positive whole number.

    >>> hidden, weight, labels = jnp.ones((2, 5, 3)), jnp.zeros((3, 4)), jnp.zeros((2, 5), int)
    >>> chunked_cross_entropy(hidden, weight, labels, chunk=4).shape
    (2, 5)
    """
    where = "chunked_cross_entropy"
    chunk = as_int(where, "chunk", chunk, least=1)
    if weight.ndim != 2 or weight.shape[0] != hidden.shape[-1]:
        raise bad_shape(where, "weight", weight, f"(d={hidden.shape[-1]}, v)", "Of a tied embedding it is `table.T`.")
    if labels.shape != hidden.shape[:-1]:
        raise bad_shape(where, "labels", labels, f"{hidden.shape[:-1]}, one for each token")
    rows, flat = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    count, chunk = len(flat), max(1, min(chunk, len(flat)))
    padding = -count % chunk
    rows = jnp.pad(rows, ((0, padding), (0, 0)))
    flat = jnp.pad(flat, (0, padding), constant_values=IGNORED)
    bias = jnp.zeros(weight.shape[1], weight.dtype) if bias is None else bias
    losses = _chunked(rearrange(rows, "(c q) d -> c q d", q=chunk), weight, bias, flat.reshape(-1, chunk))
    return losses.reshape(-1)[:count].reshape(labels.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _indexed(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    return _losses(logits, labels, smoothing)[0]


@_indexed.defjvp
def _indexed_derivative(smoothing: float, values: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (logits, labels), (tangent, _) = values, tangents
    losses, normalizer = _losses(logits, labels, smoothing)
    gradient = _gradient(logits, labels, normalizer, jnp.ones_like(losses), smoothing)
    return losses, (gradient * tangent.astype(jnp.float32)).sum(-1)


def _is_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Where a logit is that of the label: a comparison that the compiler fuses into what uses it."""
    classes = jax.lax.broadcasted_iota(labels.dtype, (1,) * (logits.ndim - 1) + logits.shape[-1:], logits.ndim - 1)
    return classes == labels[..., None]


def _losses(logits: jax.Array, labels: jax.Array, smoothing: float) -> tuple[jax.Array, jax.Array]:
    """The losses and the log-sum-exp of the logits."""
    logits = logits.astype(jnp.float32)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    own = jnp.sum(jnp.where(_is_label(logits, labels), logits, 0), axis=-1)
    # The mean is not taken without smoothing: a logit of -inf, a forbidden token, would make it NaN.
    target = (1 - smoothing) * own + smoothing * jnp.mean(logits, axis=-1) if smoothing else own
    return jnp.where(_counts(labels, logits), normalizer - target, 0), normalizer


def _counts(labels: jax.Array, logits: jax.Array) -> jax.Array:
    return (labels >= 0) & (labels < logits.shape[-1])


def _gradient(logits: jax.Array, labels: jax.Array, normalizer: jax.Array, cotangent: jax.Array, smoothing: float):
    """The float32 gradient of the sum of the losses, weighted by their cotangents."""
    weight = jnp.where(_counts(labels, logits), cotangent, 0)[..., None]
    share = jnp.exp(logits.astype(jnp.float32) - normalizer[..., None]) - smoothing / logits.shape[-1]
    return weight * jnp.where(_is_label(logits, labels), share - (1 - smoothing), share)


@jax.custom_vjp
def _chunked(hidden: jax.Array, weight: jax.Array, bias: jax.Array, labels: jax.Array) -> jax.Array:
    return _chunked_forward(hidden, weight, bias, labels)[0]


def _logits(rows: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    product = jnp.einsum("q d, d v -> q v", rows, weight, preferred_element_type=jnp.float32)
    return product + bias.astype(jnp.float32)[None]


def _chunked_forward(hidden: jax.Array, weight: jax.Array, bias: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
    def one(chunk):
        rows, own = chunk
        return _losses(_logits(rows, weight, bias), own, 0.0)

    losses, normalizers = jax.lax.map(one, (hidden, labels))
    return losses, (hidden, weight, bias, labels, normalizers)


def _chunked_backward(kept: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    hidden, weight, bias, labels, normalizers = kept

    def one(sums, chunk):
        rows, own, normalizer, weights = chunk
        gradient = _gradient(_logits(rows, weight, bias), own, normalizer, weights, 0.0)
        low = gradient.astype(rows.dtype)  # as autodiff of a product in that dtype rounds it
        to_rows = jnp.einsum("q v, d v -> q d", low, weight, preferred_element_type=jnp.float32)
        to_weight = jnp.einsum("q d, q v -> d v", rows, low, preferred_element_type=jnp.float32)
        return (sums[0] + to_weight, sums[1] + jnp.sum(gradient, axis=0)), to_rows.astype(rows.dtype)

    zeros = jnp.zeros(weight.shape, jnp.float32), jnp.zeros(bias.shape, jnp.float32)
    (to_weight, to_bias), to_hidden = jax.lax.scan(one, zeros, (hidden, labels, normalizers, cotangent))
    return to_hidden, to_weight.astype(weight.dtype), to_bias.astype(bias.dtype), None


_chunked.defvjp(_chunked_forward, _chunked_backward)
