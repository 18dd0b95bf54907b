"""MambaVision on CIFAR-100 from scratch.

The claim: a small MambaVision (convolutions at first, then selective scans and attention in windows) reaches 72 % or
more on CIFAR-100 within 24 minutes of one GPU. Compact transformers of its size report 67 to 77 %
(https://arxiv.org/abs/2104.05704); the images are brought to 64 pixels, because the model's first map has a fourth of
their side.

Recipes (device, minutes a seed, expected test accuracy of the last epoch):
    python -m experiments.mambavision_cifar100                    one Hopper GPU, 24, 72 % or more
    python -m experiments.mambavision_cifar100 --data cifar10     one Hopper GPU, 24, 92 % or more
    python -m experiments.mambavision_cifar100 --data digits      two CPU cores, 10; a stand-in, no download

`--folder F` reads class folders with `train` and `test` in place of the official archives. The same command resumes a
run that was stopped: `--minutes 9` makes pieces. `--smoke` is a check of the plumbing, not a result.
"""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.shared import common, image
from ssmjax.data import AugmentConfig, ImageData, load_image_folders

NAME = "mambavision_cifar100"


@dataclasses.dataclass(frozen=True)
class Config(image.Config):
    """Every field is a flag; a field that is None takes the recipe's value for the data set."""

    data: str = "cifar100"
    """cifar100, cifar10 or digits (embedded, no download)."""
    folder: Path | None = None
    """The same data as class folders, or an archive of them."""
    model: str | None = None
    """mambavision_micro, or mambavision_nano, which digits have."""
    drop_path: float | None = None


_PHOTOGRAPHS = {
    "model": "mambavision_micro",
    "epochs": 120,
    "batch_size": 256,
    "learning_rate": 2e-3,
    "drop_path": 0.1,
}
RECIPES = {
    "cifar100": _PHOTOGRAPHS,
    "cifar10": _PHOTOGRAPHS,
    "digits": {"model": "mambavision_nano", "epochs": 15, "batch_size": 64, "learning_rate": 1e-3, "drop_path": 0.0},
}

VARIED = AugmentConfig(crop_padding=8, mixup_alpha=0.8)
"""Shifts of up to 8 of 64 pixels, mirroring, one random operation an image, erasing, and mixup or cutmix."""


def load(config: Config) -> ImageData:
    """The images at 64 pixels, of which the model's last map has two."""
    if config.folder is not None:
        return load_image_folders(config.folder, size=64, name=config.data)
    return image.load(dataclasses.replace(config, smoke=False)).resized(64)


EXPERIMENT = image.Experiment(
    NAME,
    RECIPES,
    smoke={"model": "mambavision_nano"},
    augment=lambda config: image.SETS["digits"].augment if config.data == "digits" else VARIED,
    unmixed=0.2,
    load=load,
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
