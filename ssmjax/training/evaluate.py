"""Evaluation over padded batches: sums on the device, one compilation, one transfer at the end."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax.errors import bad_argument
from ssmjax.training.losses import softmax_cross_entropy
from ssmjax.training.state import Arrays, Layout, split_model
from ssmjax.training.step import Batch, Metrics, Prepare, call_prepare

__all__ = ["MetricFn", "classification_sums", "evaluate"]

MetricFn = Callable[[Any, Batch], Metrics]
"""`metric_fn(model, batch)` returns sums over the real examples of a batch, and how many those are as `count`."""


def classification_sums(model: Any, batch: Batch) -> Metrics:
    """The sums of an image classifier's metrics.

    Args:
        model: `model(images) -> (b v)` logits.
        batch: `image`; `label` (b) int; and `mask` (b) bool, False for padding, or no mask.

    Returns:
        `count`, `loss`, `accuracy` (how many are right) and `confusion` (v v): how many of each true class (rows) were
        taken for each class (columns).

    >>> batch = {"image": jnp.eye(3), "label": jnp.array([0, 1, 0])}
    >>> sums = classification_sums(lambda images: images, batch)
    >>> int(sums["accuracy"]), sums["confusion"].tolist()
    (2, [[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    """
    logits = model(batch["image"])
    labels, classes = batch["label"], logits.shape[-1]
    mask = batch.get("mask", jnp.ones(labels.shape, bool))
    predicted = jnp.argmax(logits, -1)
    # Sums of zeros and ones in float32 are exact here, and a matmul of one-hot rows needs no scatter.
    true_rows = jax.nn.one_hot(labels, classes) * mask[:, None]
    losses = softmax_cross_entropy(logits, labels)
    return {
        "count": jnp.sum(mask, dtype=jnp.int32),
        "loss": jnp.sum(jnp.where(mask, losses, 0.0)),
        "accuracy": jnp.sum(mask & (predicted == labels), dtype=jnp.int32),
        "confusion": jnp.asarray(true_rows.T @ jax.nn.one_hot(predicted, classes), jnp.int32),
    }


def evaluate(
    model: Any, batches: Iterable[Batch], metric_fn: MetricFn = classification_sums, *, prepare: Prepare | None = None
) -> dict[str, Any]:
    """Evaluates a model.

    Args:
        model: An NNX module; it is evaluated as after `model.eval()`, and stays as it is.
        batches: Batches of one shape; the last one is padded, with a `mask` that says where.
        metric_fn: Sums over a batch. Pass the same function each time: a new one is compiled anew.
        prepare: `prepare(batch, None, False)`, applied inside the compiled function. The same holds.

    Returns:
        The metrics: sums divided by `count` as floats, `count` itself, and sums that are arrays as they are.

    Raises:
        ValueError: There is no batch, or `metric_fn` returns no `count`.

    >>> from flax import nnx
    >>> images, mask = np.eye(3, dtype=np.float32), np.array([True, True, False])
    >>> model = nnx.Linear(3, 3, kernel_init=nnx.initializers.constant(1.0), rngs=nnx.Rngs(0))
    >>> evaluate(model, [{"image": images, "label": np.array([0, 1, 0]), "mask": mask}])["accuracy"]
    0.5
    """
    layout, params, rest = split_model(model)
    add = _compiled(layout, metric_fn, prepare)
    totals = None
    for batch in batches:
        sums = add(params, rest, batch)
        totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
    if totals is None:
        raise bad_argument("evaluate", "batches", [], "at least one batch")
    if "count" not in totals:
        raise bad_argument("evaluate", "metric_fn", sorted(totals), "a function whose result has `count`")
    host = jax.device_get(totals)
    count = int(host.pop("count"))
    return {"count": count, **{n: float(x) / count if np.ndim(x) == 0 else x for n, x in host.items()}}


@functools.lru_cache(maxsize=16)
def _compiled(
    layout: Layout, metric_fn: MetricFn, prepare: Prepare | None
) -> Callable[[Arrays, Arrays, Batch], Metrics]:
    @jax.jit
    def sums(params: Arrays, rest: Arrays, batch: Batch) -> Metrics:
        batch = batch if prepare is None else call_prepare(prepare, batch, None, False, 1.0)
        model = layout.merge(params, rest)
        model.eval()
        return metric_fn(model, batch)

    return sums
