"""Sequential MNIST: the image of a digit, read pixel by pixel, 784 steps, by any layer of the LTI family.

The claim: every layer learns it in minutes. `--permuted` reads the pixels in one fixed random order, so that
neighbors are far apart. Published: 99.65 % and, permuted, 98.67 % (S5, arXiv 2208.04933, after 150 epochs).

Recipe (device, minutes a seed, expected test accuracy of the last epoch):
    python -m experiments.sequential_mnist                one H100, under 5, 98.5 % or more
    python -m experiments.sequential_mnist --layer s4d    one H100, under 5, 98.5 % or more
    python -m experiments.sequential_mnist --permuted     one H100, under 8, 96 % or more
    python -m experiments.sequential_mnist --d-model 64 --depth 2 --epochs 6
                                                          two CPU cores, under 60, 97 % or more
    python -m experiments.sequential_mnist --data digits  two CPU cores, under 5, 85 % or more, no download

What is reported is the last epoch, never the best one. The same command resumes a run that was stopped. `--smoke` is a
check of the plumbing, not a result.
"""

import dataclasses
from typing import Any

from experiments.shared import common, sequence

NAME = "sequential_mnist"

RECIPES = {
    "mnist": {"epochs": 12, "batch_size": 64, "learning_rate": 4e-3, "d_model": 128, "depth": 4, "d_state": 64},
    "fashion_mnist": {"epochs": 20, "batch_size": 64, "learning_rate": 4e-3, "d_model": 128, "depth": 4, "d_state": 64},
    "digits": {"epochs": 40, "batch_size": 32, "learning_rate": 4e-3, "d_model": 64, "depth": 2, "d_state": 32},
}
PUBLISHED = {
    False: {"accuracy": 99.65, "label": "S5, published (150 epochs)", "source": "arXiv 2208.04933"},
    True: {"accuracy": 98.67, "label": "S5, published (150 epochs)", "source": "arXiv 2208.04933"},
}


@dataclasses.dataclass(frozen=True)
class Config(sequence.Config):
    """Every field is a flag; a field that is None takes the recipe's value for the data set."""

    data: str = "mnist"
    """mnist, fashion_mnist or digits (embedded, no download)."""
    permuted: bool = False
    """Read the pixels in a fixed random order."""


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains, evaluates, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields; `main(Config(data="digits", smoke=True))` works in a notebook.

    Returns:
        What the results file holds, and the folder of the first seed's `weights`.
    """
    return sequence.run(NAME, config, _task, RECIPES, published=_published, variants=("data", "layer", "permuted"))


def _task(config: Config) -> sequence.Task:
    return sequence.pixel_task(config, permuted=config.permuted)


def _published(config: Config) -> dict[str, Any] | None:
    return PUBLISHED[config.permuted] if config.data == "mnist" else None


if __name__ == "__main__":
    common.run_cli(main, Config)
