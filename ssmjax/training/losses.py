"""Losses per example."""

import jax
import jax.numpy as jnp
import optax

from ssmjax.shapes import Array, Float, Inexact, Int

__all__ = ["softmax_cross_entropy"]


def softmax_cross_entropy(
    logits: Inexact[Array, "*b v"], labels: Int[Array, "*b"] | Inexact[Array, "*b v"], *, label_smoothing: float = 0.0
) -> Float[Array, "*b"]:
    """Cross-entropy between labels and the softmax of logits, in float32.

    Args:
        logits: (*b v), any floating dtype.
        labels: (*b) class indices, or (*b v) probabilities, as mixup makes them.
        label_smoothing: The share of probability spread evenly over all classes (Szegedy et al. 2016, section 7).

    Returns:
        (*b) float32.

    >>> round(float(softmax_cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0]), 4)
    1.3863
    """
    soft = labels if jnp.issubdtype(labels.dtype, jnp.inexact) else jax.nn.one_hot(labels, logits.shape[-1])
    smooth = optax.smooth_labels(jnp.asarray(soft, jnp.float32), label_smoothing)
    return optax.softmax_cross_entropy(jnp.asarray(logits, jnp.float32), smooth)
