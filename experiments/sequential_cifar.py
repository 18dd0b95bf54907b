"""Sequential CIFAR-10: a color image, read pixel by pixel, 1,024 steps of three values.

The claim: S5 passes 80 % within 20 minutes of one GPU, in runs of a few minutes that resume one another. Published:
90.10 % (S5, arXiv 2208.04933, after 250 epochs); the figure shows the accuracy at each budget.

Recipe (device, minutes a seed, expected test accuracy of the last epoch):
    python -m experiments.sequential_cifar --minutes 8    one H100, again until done, under 20 in all, 80 % or more
    python -m experiments.sequential_cifar --data digits  two CPU cores, under 5, 85 % or more, no download

Half of the training images are mirrored; the published runs use no augmentation. What is reported is the last epoch,
never the best one. `--smoke` is a check of the plumbing, not a result.
"""

import dataclasses
from typing import Any

from experiments.shared import common, sequence

NAME = "sequential_cifar"

RECIPES = {
    "cifar10": {"epochs": 30, "batch_size": 100, "learning_rate": 4e-3, "d_model": 192, "depth": 6, "d_state": 128},
    "digits": {"epochs": 40, "batch_size": 32, "learning_rate": 4e-3, "d_model": 64, "depth": 2, "d_state": 32},
}
PUBLISHED = {"accuracy": 90.10, "label": "S5, published (250 epochs)", "source": "arXiv 2208.04933"}


@dataclasses.dataclass(frozen=True)
class Config(sequence.Config):
    """Every field is a flag; a field that is None takes the recipe's value for the data set."""

    data: str = "cifar10"
    """cifar10 or digits (embedded, no download)."""
    norm: str = "batch"
    bidirectional: bool = True
    flip: bool = True
    """Mirror half of the training images of CIFAR-10."""


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains, evaluates, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields; `main(Config(data="digits", smoke=True))` works in a notebook.

    Returns:
        What the results file holds, and the folder of the first seed's `weights`.
    """
    return sequence.run(NAME, config, _task, RECIPES, published=_published)


def _task(config: Config) -> sequence.Task:
    return sequence.pixel_task(config, flip=config.flip and config.data == "cifar10")


def _published(config: Config) -> dict[str, Any] | None:
    return PUBLISHED if config.data == "cifar10" else None


if __name__ == "__main__":
    common.run_cli(main, Config)
