"""Losses against optax, in value, gradient and memory."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssmjax.training.losses import (
    IGNORED,
    chunked_cross_entropy,
    mean_over_labels,
    next_token_labels,
    softmax_cross_entropy,
)
from tests.layers import quick

LABELS = np.array([[0, 6, 3], [IGNORED, 2, 7]], np.int32)  # 7 is out of range, too
COUNTS = (LABELS >= 0) & (LABELS < 7)
WEIGHTS = np.linspace(0.5, 2, 6, dtype=np.float32).reshape(2, 3)


def theirs(logits, smoothing=0.0):
    """By one-hot labels, whose rows are zero where a label does not count."""
    soft = optax.smooth_labels(jax.nn.one_hot(LABELS, 7), smoothing) * COUNTS[..., None]
    return optax.softmax_cross_entropy(jnp.asarray(logits, jnp.float32), soft)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_indices_agree_with_one_hot_labels(key, smoothing):
    logits = 3 * jax.random.normal(key, (2, 3, 7))

    def ours(logits):
        return softmax_cross_entropy(logits, LABELS, label_smoothing=smoothing)

    got, want = (
        quick.jit(lambda x, f=f: (f(x), jax.grad(lambda x: (f(x) * WEIGHTS).sum())(x)))(logits)
        for f in (ours, lambda x: theirs(x, smoothing))
    )
    chex.assert_trees_all_close(got, want, atol=1e-6)


def test_low_precision_is_computed_in_float32(key):
    logits = (20 * jax.random.normal(key, (2, 3, 7))).astype(jnp.bfloat16)
    losses, pull = jax.vjp(lambda x: softmax_cross_entropy(x, LABELS), logits)
    assert losses.dtype == jnp.float32
    chex.assert_trees_all_close(losses, theirs(logits), atol=1e-5)
    (gradient,) = pull(jnp.ones_like(losses))
    assert gradient.dtype == jnp.bfloat16
    want = jax.grad(lambda x: theirs(x).sum())(logits.astype(jnp.float32))
    chex.assert_trees_all_close(gradient.astype(jnp.float32), want, atol=4e-3)  # one rounding of numbers up to 1


def test_forbidden_and_huge_logits_stay_finite():
    logits = jnp.array([[[-jnp.inf, 0, 1, 2, 3, 4, 1e30]] * 3] * 2)
    losses, gradient = jax.value_and_grad(lambda x: softmax_cross_entropy(x, LABELS).at[0, 0].set(0).sum())(logits)
    assert np.isfinite(losses) and np.isfinite(gradient).all()


def programs(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def test_no_scatter_and_no_one_hot():
    """At (b l v) there are the logits and their gradient, nothing else."""
    b, l, v = 2, 64, 512
    logits, labels = jax.ShapeDtypeStruct((b, l, v), jnp.float32), jax.ShapeDtypeStruct((b, l), jnp.int32)
    loss = jax.grad(lambda x, y: softmax_cross_entropy(x, y).mean())
    compiled = programs(loss, logits, labels)
    text = compiled.as_text()
    assert " scatter" not in text and " gather" not in text
    assert compiled.memory_analysis().temp_size_in_bytes < b * l * v  # a one-hot of bytes would be as large


# ------------------------------------------------------------------------------------------------------------ chunked


def whole(hidden, weight, bias):
    return softmax_cross_entropy(hidden @ weight + bias, LABELS)


def with_gradients(losses):
    """The losses, and the gradients of their weighted sum, in one program."""
    return quick.jit(lambda *x: (losses(*x), jax.grad(lambda *x: (losses(*x) * WEIGHTS).sum(), argnums=(0, 1, 2))(*x)))


@pytest.mark.parametrize("chunk", [1, 4, 6, 100])
def test_chunks_agree_with_the_whole(key, chunk):
    a, b, c = jax.random.split(key, 3)
    arguments = jax.random.normal(a, (2, 3, 5)), jax.random.normal(b, (5, 7)), jax.random.normal(c, (7,))

    def chunked(hidden, weight, bias):
        return chunked_cross_entropy(hidden, weight, LABELS, bias=bias, chunk=chunk)

    with jax.numpy_rank_promotion("allow"):
        want = with_gradients(whole)(*arguments)
    chex.assert_trees_all_close(with_gradients(chunked)(*arguments), want, atol=1e-5)


def test_bfloat16_sums_the_gradient_of_the_weight_in_float32(key):
    """4096 equal contributions: in bfloat16 a running sum would stop growing at 256 of them."""
    hidden = jnp.ones((4096, 2), jnp.bfloat16)
    weight, labels = jnp.zeros((2, 4), jnp.bfloat16), jnp.zeros(4096, jnp.int32)
    gradient = jax.grad(lambda w: chunked_cross_entropy(hidden, w, labels, chunk=8).sum())(weight)
    chex.assert_trees_all_close(gradient.astype(jnp.float32)[0], jnp.array([-3072.0, 1024, 1024, 1024]), rtol=1e-2)


def test_memory_does_not_grow_with_the_tokens():
    d, v, chunk = 8, 4096, 32

    def temporary(tokens):
        shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((tokens, d), (d, v))]
        labels = jax.ShapeDtypeStruct((tokens,), jnp.int32)
        loss = jax.grad(lambda h, w, y: chunked_cross_entropy(h, w, y, chunk=chunk).sum(), argnums=(0, 1))
        return programs(loss, *shapes, labels).memory_analysis().temp_size_in_bytes

    few, many = temporary(64), temporary(1024)
    assert many < 4 * chunk * v * 4 < 1024 * v * 4
    assert many - few < 1024 * 4 * 4 * d


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": jnp.zeros((7, 5))}, r"weight must be \(d=5, v\)"),
        ({"labels": LABELS[0]}, "one for each token"),
        ({"chunk": 0}, "chunk must be a positive int"),
    ],
)
def test_what_does_not_fit_is_named(as_a_user, change, message):
    arguments = {"hidden": jnp.zeros((2, 3, 5)), "weight": jnp.zeros((5, 7)), "labels": LABELS} | change
    with pytest.raises(ValueError, match=message):
        chunked_cross_entropy(**arguments)


# ------------------------------------------------------------------------------------------------------------- labels


def test_next_tokens():
    tokens = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    mask = jnp.array([[True, True, True, False], [True] * 4])
    segments = jnp.array([[0, 0, 0, 0], [0, 0, 1, 1]])
    labels = next_token_labels(tokens, mask=mask, segment_ids=segments)
    assert labels.tolist() == [[2, 3, IGNORED, IGNORED], [6, IGNORED, 8, IGNORED]]
    assert next_token_labels(tokens[:, :1]).tolist() == [[IGNORED], [IGNORED]]


def test_the_mean_is_over_what_counts():
    assert mean_over_labels(jnp.array([3.0, 0.0]), jnp.array([1, IGNORED])) == 3
    assert mean_over_labels(jnp.array([0.0, 0.0]), jnp.array([IGNORED, IGNORED])) == 0
