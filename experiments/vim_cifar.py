"""Vision Mamba trained from scratch on small images.

The claim: with small patches, a convolution stem and a sensible learning rate, a Vim of about a million parameters
passes 85 % on CIFAR-10 in minutes on one GPU; the public ports of Vim to CIFAR-10 report 24 to 68 %.

Recipe (device, minutes a seed, expected test accuracy of the last epoch):
    python -m experiments.vim_cifar --data digits        two CPU cores, under 5, 97 % or more
    python -m experiments.vim_cifar --data mnist         one H100, under 5, 98.5 % or more
    python -m experiments.vim_cifar --seeds 3            one H100, under 8, 85 % or more

The test set is read for the curves too; what is reported is the last epoch, never the best one. The same command
resumes a run that was stopped or killed. `--data digits` needs no download. `--smoke` is a check of the plumbing, not
a result.
"""

import dataclasses
from typing import Any

from experiments.shared import common, image


@dataclasses.dataclass(frozen=True)
class Config(image.Config):
    """Every field is a flag; a field that is None takes the recipe's value for the data set."""

    model: str = "vim_nano"
    """vim_nano, vim_tiny, vim_small or vim_base."""
    patch_size: int | None = None
    depth: int | None = None
    stem: str | None = None
    """patch (as published) or conv; None is the model's own."""


EXPERIMENT = image.Experiment(
    "vim_cifar",
    {
        "digits": {"epochs": 15, "batch_size": 64, "learning_rate": 2e-3, "patch_size": 4},
        "mnist": {"epochs": 10, "batch_size": 256, "learning_rate": 2e-3, "patch_size": 4},
        "fashion_mnist": {"epochs": 30, "batch_size": 256, "learning_rate": 2e-3, "patch_size": 4},
        "cifar10": {"epochs": 45, "batch_size": 512, "learning_rate": 3e-3, "patch_size": 4},
        "cifar100": {"epochs": 45, "batch_size": 512, "learning_rate": 3e-3, "patch_size": 4},
    },
    fields={"patch_size": "patch_size", "depth": "depth", "stem": "stem", "drop_path": "drop_path_rate"},
    smoke={"depth": 2},
)


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains, evaluates, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields; `main(Config(data="digits", smoke=True))` works in a notebook.

    Returns:
        What the results file holds, and the folder of the first seed's `weights`.
    """
    return image.run(EXPERIMENT, config)


if __name__ == "__main__":
    common.run_cli(main, Config)
