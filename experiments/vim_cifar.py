"""Vision Mamba trained from scratch on small images.

The claim: what holds Vision Mamba back on CIFAR-10 is the recipe, not the model. Its public ports report 24 to 68 %;
with tokens of two pixels, a convolution before each mixer and the augmentation that compact transformers use
(https://arxiv.org/abs/2104.05704), 3.6 million parameters reach what those transformers reach.

Recipes, by `--recipe` (device, minutes a seed, expected test accuracy of the last epoch):
    python -m experiments.vim_cifar --data digits        two CPU cores, under 5, 97 % or more
    python -m experiments.vim_cifar --data mnist         one H100, under 5, 98.5 % or more
    python -m experiments.vim_cifar                      one Hopper GPU, under 8, 92 % or more
    python -m experiments.vim_cifar --recipe best        one Hopper GPU, under 18, 95 % is what it aims at
    python -m experiments.vim_cifar --recipe small       one H100, 3, 85 % or more; a model for two cores

The test set is read for the curves too; what is reported is the last epoch, never the best one. To choose settings,
`--held-out 5000` puts training images in its place; `experiments.vim_ablation` compares many. The same command resumes
a run that was stopped or killed, bit by bit. `--data cifar100` takes the same recipes. `--data digits` needs no
download. `--smoke` is a check of the plumbing, not a result.
"""

import dataclasses
from typing import Any

import optax

from experiments.shared import common, image
from ssmjax import errors
from ssmjax.data import AugmentConfig
from ssmjax.training.muon import muon

NAME = "vim_cifar"
PHOTOGRAPHS = ("cifar10", "cifar100")


@dataclasses.dataclass(frozen=True)
class Config(image.Config):
    """Every field is a flag; a field that is None takes the recipe's value for the data set."""

    recipe: str = "default"
    """default, best or small; of handwriting there is one."""
    model: str | None = None
    """vim_compact_small, vim_compact_nano, vim_nano, vim_tiny, vim_small or vim_base."""
    drop_path: float | None = None
    optimizer: str = "adamw"
    """adamw or muon."""
    patch_size: int | None = None
    """Of a plain Vim, as is `stem`: with either, the recipe is small."""
    depth: int | None = None
    stem: str | None = None
    """patch (as published) or conv; None is the model's own."""


_HANDWRITING = {"model": "vim_nano", "learning_rate": 2e-3, "patch_size": 4, "drop_path": 0.0}
_SMALL = {"model": "vim_nano", "epochs": 45, "batch_size": 512, "learning_rate": 3e-3, "patch_size": 4}
_COMPACT = {"model": "vim_compact_small", "batch_size": 256, "learning_rate": 2e-3}
RECIPES = {
    "small": {**_SMALL, "drop_path": 0.0},
    "default": {**_COMPACT, "epochs": 60, "drop_path": 0.05},
    "best": {**_COMPACT, "epochs": 180, "drop_path": 0.1},
}
"""What suits photographs; "best" is as long as 18 minutes on a Hopper GPU allow."""

VARIED = AugmentConfig(mixup_alpha=0.8)
"""One random operation an image, erasing, and mixup or cutmix in half of the batches."""

UNMIXED = 0.2
"""The share of the training, at its end, that sees images as they are: neither mixed nor relabelled."""


def experiment(config: Config) -> image.Experiment:
    """The experiment by the recipe of its settings."""
    compact = config.recipe != "small" and config.data in PHOTOGRAPHS
    recipes = {
        "digits": {**_HANDWRITING, "epochs": 15, "batch_size": 64},
        "mnist": {**_HANDWRITING, "epochs": 10, "batch_size": 256},
        "fashion_mnist": {**_HANDWRITING, "epochs": 30, "batch_size": 256},
        **dict.fromkeys(PHOTOGRAPHS, RECIPES[config.recipe]),
    }
    return image.Experiment(
        NAME,
        recipes,
        fields={"patch_size": "patch_size", "depth": "depth", "stem": "stem", "drop_path": "drop_path_rate"},
        smoke={"model": "vim_compact_nano"} if compact else {"depth": 2},
        optimizer=optimizer,
        augment=lambda config: VARIED if compact else image.SETS[config.data].augment,
        unmixed=UNMIXED,
        variants=("data", "recipe"),
    )


def optimizer(config: Any, steps: int) -> optax.GradientTransformation:
    """AdamW or Muon by the settings, with the same schedule."""
    if config.optimizer == "adamw":
        return image.optimizer(config, steps)
    return muon(config.learning_rate, steps=steps, warmup_steps=steps // 20, weight_decay=config.weight_decay)


def resolve(config: Config) -> Config:
    """What a recorded command meant stays what it means: settings of a plain Vim choose the recipe for it."""
    errors.require_known("recipe", config.recipe, RECIPES)
    errors.require_known("optimizer", config.optimizer, ["adamw", "muon"])
    plain = config.model is None and (config.patch_size is not None or config.stem is not None)
    return dataclasses.replace(config, recipe="small") if plain and config.data in PHOTOGRAPHS else config


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains, evaluates, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields; `main(Config(data="digits", smoke=True))` works in a notebook.

    Returns:
        What the results file holds, and the folder of the first seed's `weights`.
    """
    config = resolve(config)
    return image.run(experiment(config), config)


if __name__ == "__main__":
    common.run_cli(main, Config)
