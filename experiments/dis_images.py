"""Images drawn by diffusion with a state space backbone (DiS), class by class.

The claim: a small DiS, trained from scratch, draws digits of the class that it is asked for. A classifier that has seen
only real images recognises them, and 50 steps of DDIM are as good as 250 of DDPM.

Recipe (device, minutes a seed, expected share of guided samples that are recognised as the class asked for):
    python -m experiments.dis_images                     two CPU cores, under 20, 90 % or more
    python -m experiments.dis_images --data mnist        one H200, under 10, 98 % or more
    python -m experiments.dis_images --data cifar10      one H200, about 60 (not claimed)

The measures of quality are taken on features of a classifier that the experiment trains on the training images: a
Frechet distance of that kind cannot be compared with an FID. Another classifier, of another seed, says which class a
sample is of. The same command resumes a run that was stopped or killed; `--smoke` checks the plumbing.
"""

import dataclasses
from typing import Any

from experiments.shared import common, diffusion

NAME = "dis_images"


@dataclasses.dataclass(frozen=True)
class Config(diffusion.Config):
    """Every field is a flag; a field that is None takes the recipe's value for the data set."""

    data: str = "digits"
    """digits (embedded, no download), mnist, fashion_mnist or cifar10."""


RECIPES = {
    "digits": diffusion.Recipe(120, 64, 3e-3, patch_size=4, d_model=96, depth=4, samples=1000, judge_epochs=30),
    "mnist": diffusion.Recipe(150, 256, 1e-3, patch_size=4, d_model=192, depth=6, samples=10_000, judge_epochs=6),
    "cifar10": diffusion.Recipe(150, 256, 1e-3, patch_size=2, d_model=368, depth=12, samples=10_000, judge_epochs=15),
}
RECIPES["fashion_mnist"] = RECIPES["mnist"]


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains, draws, measures, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields; `main(Config(smoke=True))` works in a notebook.

    Returns:
        What the results file holds, and the folder of the first seed's `weights`.
    """
    return diffusion.run(NAME, RECIPES, config)


if __name__ == "__main__":
    common.run_cli(main, Config)
