"""A small convolutional classifier of real images that judges drawn ones: their classes, and features to compare."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx

from ssmjax.data import AugmentConfig, Batches, ImageData, augment, eval_batches
from ssmjax.training.evaluate import evaluate
from ssmjax.training.fit import FitConfig, fit
from ssmjax.training.losses import softmax_cross_entropy
from ssmjax.training.optim import adamw

__all__ = ["Judge", "judged", "to_unit", "train_judge"]

_BATCH = 500


def to_unit(images: Any) -> jax.Array:
    """Bytes to the range from -1 to 1, in which diffusion works."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


class Judge(nnx.Module):
    """Three convolutions with layer norms, a linear map of the whole last map, so that places count, and a linear head.

    Args:
        shape: Rows, columns and channels of an image.
        classes: How many.
        width: The channels of the first convolution; the others have two and four times as many.
        rngs: Source of the initial values.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, width: int = 32, rngs: nnx.Rngs):
        rows, columns, channels = shape
        widths = [channels, width, 2 * width, 4 * width]
        self.convs = nnx.data(
            [
                nnx.Conv(before, after, (3, 3), 1 if i == 0 else 2, rngs=rngs)
                for i, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True))
            ]
        )
        self.norms = nnx.data([nnx.LayerNorm(after, rngs=rngs) for after in widths[1:]])
        places = -(-rows // 4) * -(-columns // 4)
        self.mix = nnx.Linear(places * 4 * width, 2 * width, rngs=rngs)
        self.head = nnx.Linear(2 * width, classes, rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        """(b d), of images from -1 to 1."""
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.gelu(norm(conv(x)))
        return jax.nn.gelu(self.mix(rearrange(x, "b y x d -> b (y x d)")))

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.head(self.features(images))


def train_judge(data: ImageData, *, epochs: int, seed: int, progress: bool = True) -> tuple[Judge, float]:
    """Trains one on the training images.

    Args:
        data: The data set.
        epochs: How long.
        seed: Two judges of different seeds are independent of each other.
        progress: Whether to show a progress bar.

    Returns:
        The judge, and its accuracy on the test images.
    """
    model = Judge(data.image_shape, data.num_classes, rngs=nnx.Rngs(seed))
    batches = Batches(data.train_images, data.train_labels, min(128, len(data.train_images)), seed=seed)
    steps = epochs * batches.steps_per_epoch
    shift = dataclasses.replace(AugmentConfig.none(), crop_padding=1)

    def loss(model: Judge, batch: Mapping[str, jax.Array], key: jax.Array):
        labels = jax.nn.one_hot(batch["label"], data.num_classes)
        images, labels = augment(key, batch["image"], labels, shift)
        return softmax_cross_entropy(model(2 * images - 1), labels).mean(), {}

    result = fit(
        model,
        loss,
        batches.at,
        steps=steps,
        optimizer=_optimizer(steps),
        config=FitConfig(seed=seed, progress=progress, unit="images"),
    )
    test = eval_batches(data.test_images, data.test_labels, min(_BATCH, len(data.test_images)))
    return result.model, evaluate(result.model, test, prepare=_prepare)["accuracy"]


def judged(judge: Judge, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The classes and the features that a judge finds in images from -1 to 1."""
    run = nnx.jit(lambda judge, x: (judge(x).argmax(-1), judge.features(x)))
    parts = [run(judge, images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
    classes, features = zip(*parts, strict=True)
    return np.concatenate(classes), np.concatenate(features)


def _optimizer(steps: int) -> optax.GradientTransformation:
    return adamw(2e-3, steps=steps, warmup_steps=steps // 20, weight_decay=0.02)


def _prepare(batch: Mapping[str, Any], key: jax.Array | None, train: bool) -> dict[str, Any]:
    return {**batch, "image": to_unit(batch["image"])}
