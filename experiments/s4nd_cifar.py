"""CIFAR-10 by convolutions as large as the image: S4ND, whose kernels are products of a state space kernel an axis.

The claim: a plain stack of S4ND layers, with neither patches nor strides, passes 80 % in minutes. Published: 94 % (the
isotropic S4ND, arXiv 2210.06583, after 100 epochs, 3.96 million parameters).

Recipe (device, minutes a seed, expected test accuracy of the last epoch):
    python -m experiments.s4nd_cifar                   one H100, under 10, 80 % or more
    python -m experiments.s4nd_cifar --data digits     two CPU cores, under 10, 95 % or more, no download

Training images are shifted by up to four pixels and half of them mirrored. What is reported is the last epoch, never
the best one. `--smoke` is a check of the plumbing, not a result.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared import common, sequence
from ssmjax.data import SequenceData, load_images, normalize, sequence_data
from ssmjax.data.augment import random_crop, random_flip

NAME = "s4nd_cifar"

RECIPES = {
    "cifar10": {"epochs": 15, "batch_size": 100, "learning_rate": 5e-3, "d_model": 128, "depth": 6, "d_state": 64},
    "digits": {"epochs": 20, "batch_size": 64, "learning_rate": 5e-3, "d_model": 32, "depth": 3, "d_state": 16},
}
PUBLISHED = {"accuracy": 94.0, "label": "S4ND, published (100 epochs, 3.96 M)", "source": "arXiv 2210.06583"}


@dataclasses.dataclass(frozen=True)
class Config(sequence.Config):
    """Every field is a flag; a field that is None takes the recipe's value for the data set."""

    data: str = "cifar10"
    """cifar10 or digits (embedded, no download)."""
    layer: str = "s4nd"
    bidirectional: bool = True


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains, evaluates, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields; `main(Config(data="digits", smoke=True))` works in a notebook.

    Returns:
        What the results file holds, and the folder of the first seed's `weights`.
    """
    return sequence.run(NAME, config, _task, RECIPES, published=_published, variants=("data",))


def _task(config: Config) -> sequence.Task:
    images = load_images(config.data, data_dir=config.data_dir, download_dir=config.download_dir)
    splits = [
        {"inputs": pixels, "label": labels}
        for pixels, labels in ((images.train_images, images.train_labels), (images.test_images, images.test_labels))
    ]
    data: SequenceData = sequence_data(images.name, *splits, images.class_names, source=images.source)
    data = data.first(64) if config.smoke else data
    prepare = _make_prepare(images.mean, images.std, photographs=config.data == "cifar10")
    return sequence.Task(data, prepare, {"in_features": images.image_shape[2]}, unit="images")


def _published(config: Config) -> dict[str, Any] | None:
    return PUBLISHED if config.data == "cifar10" else None


def _make_prepare(mean: np.ndarray, std: np.ndarray, *, photographs: bool) -> Any:
    """Normalizes images, after shifting them (by four pixels, or one) and mirroring them in training."""

    def prepare(batch: Mapping[str, Any], key: jax.Array | None, train: bool) -> dict[str, Any]:
        images = jnp.asarray(batch["inputs"], jnp.float32) / 255
        if train:
            shift, mirror = jax.random.split(key)
            images = random_crop(shift, images, 4 if photographs else 1)
            images = random_flip(mirror, images) if photographs else images
        return {**batch, "inputs": normalize(images, mean, std)}

    return prepare


if __name__ == "__main__":
    common.run_cli(main, Config)
