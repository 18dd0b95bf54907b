"""Sums over padded batches equal those over the data; one compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax.training.evaluate import evaluate
from ssmjax.training.losses import softmax_cross_entropy

IMAGES = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
LABELS = np.arange(10, dtype=np.int32) % 3


def padded(size=4):
    for start in range(0, 10, size):
        image, label = IMAGES[start : start + size], LABELS[start : start + size]
        short = size - len(label)
        yield {
            "image": np.pad(image, ((0, short), (0, 0)), constant_values=np.nan),  # padding must not leak in
            "label": np.pad(label, (0, short)),
            "mask": np.arange(size) < len(label),
        }


def test_equals_the_numbers_of_the_whole_set():
    model = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    got = evaluate(model, padded())
    logits = np.asarray(model(IMAGES), np.float64)
    predicted = logits.argmax(1)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert got["count"] == 10
    assert got["loss"] == pytest.approx(-log_p[np.arange(10), LABELS].mean(), rel=1e-5)
    assert got["accuracy"] == (predicted == LABELS).mean()
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (LABELS, predicted), 1)
    np.testing.assert_array_equal(got["confusion"], confusion)


def test_one_compilation_for_all_batches_and_models():
    traces = []

    def metric_fn(model, batch):
        traces.append(1)
        return {"count": jnp.sum(batch["mask"]), "x": jnp.sum(model(batch["image"]))}

    def prepare(batch, key, train):
        assert key is None and not train
        return {**batch, "image": jnp.nan_to_num(batch["image"])}

    for seed in range(3):
        result = evaluate(nnx.Linear(5, 3, rngs=nnx.Rngs(seed)), padded(), metric_fn, prepare=prepare)
        assert isinstance(result["x"], float)
    assert len(traces) == 1


def test_errors():
    model = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="batches must be at least one batch"):
        evaluate(model, [])
    with pytest.raises(ValueError, match="metric_fn must be a function whose result has `count`"):
        evaluate(model, padded(), lambda model, batch: {"x": jnp.sum(model(batch["image"]))})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_soft_and_smoothed_labels(dtype):
    logits = jnp.asarray(IMAGES, dtype)
    log_p = np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)), np.float64)
    smooth = np.full((10, 5), 0.1 / 5) + 0.9 * np.eye(5)[LABELS]
    want = -(smooth * log_p).sum(1)
    hard = softmax_cross_entropy(logits, jnp.asarray(LABELS), label_smoothing=0.1)
    assert hard.dtype == jnp.float32
    np.testing.assert_allclose(hard, want, rtol=1e-5)
    np.testing.assert_allclose(softmax_cross_entropy(logits, jnp.asarray(smooth, jnp.float32)), want, rtol=1e-5)
