"""Pathfinder: are the two marked ends in an image of 32 x 32 pixels, read pixel by pixel, those of one contour?

The images are drawn by the rules of Long Range Arena's at the first call and kept in `--runs-dir`; the published ones
cannot be drawn again, for their seed is lost. Published: 95.33 % (S5, arXiv 2208.04933, 160,000 images, 200 epochs).

Recipe (device, minutes a seed, what is expected):
    python -m experiments.pathfinder32                          one H100, 4; contours of 6 paddles, 85 % or more
    python -m experiments.pathfinder32 --contour-length 14      one H100, 4; the published length: still at chance
    python -m experiments.pathfinder32 --data few               two CPU cores, under 30, no claim

Half of the answers are right by chance, and models stay there for long before they learn: with 6 paddles, the easiest
of the three published lengths and the default, for the first ten of 20 epochs; with 14 for all of them. The figure
names the length. What is reported is the last epoch. `--smoke` is a check of the plumbing, not a result.
"""

import dataclasses
import os
from typing import Any

import numpy as np

from experiments.shared import common, sequence
from ssmjax.data import SequenceData, sequence_data
from ssmjax.data.synthetic import PATHFINDER, draw_pathfinder
from ssmjax.errors import bad_argument

NAME = "pathfinder32"

RECIPES = {
    "pathfinder": {"epochs": 20, "batch_size": 64, "learning_rate": 4e-3, "d_model": 128, "depth": 4, "d_state": 128},
    "few": {"epochs": 10, "batch_size": 32, "learning_rate": 4e-3, "d_model": 64, "depth": 4, "d_state": 64},
}
CONTOUR_LENGTHS = (6, 9, 14)
COUNTS = {"pathfinder": (40_000, 4_000), "few": (4_000, 1_000)}
PUBLISHED = {
    "accuracy": 95.33,
    "label": "S5, published (14 paddles, 160,000 images, 200 epochs)",
    "source": "arXiv 2208.04933",
}


@dataclasses.dataclass(frozen=True)
class Config(sequence.Config):
    """Every field is a flag; a field that is None takes the recipe's value for the data set."""

    data: str = "pathfinder"
    """pathfinder, or few, a tenth of the images."""
    norm: str = "batch"
    bidirectional: bool = True
    contour_length: int = 6
    """Paddles of a contour: 14 as published, 9 or 6."""
    data_seed: int = 0
    """The seed of the data set, the same for all seeds of the training."""


def main(config: Config = Config()) -> dict[str, Any]:
    """Draws the data, trains, evaluates, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields; `main(Config(data="few", smoke=True))` works in a notebook.

    Returns:
        What the results file holds, and the folder of the first seed's `weights`.
    """
    if config.contour_length not in CONTOUR_LENGTHS:
        wanted = f"one of {CONTOUR_LENGTHS}, the published lengths"
        raise bad_argument(NAME, "contour_length", config.contour_length, wanted)
    variants = ("data", "layer", "contour_length")
    return sequence.run(NAME, config, _task, RECIPES, published=lambda config: PUBLISHED, variants=variants)


def _task(config: Config) -> sequence.Task:
    data = load(config)
    baseline = {"accuracy": 50.0, "label": "chance"}
    return sequence.Task(data, sequence.pixels(data), {"in_features": 1}, unit="images", baseline=baseline)


def load(config: Config) -> SequenceData:
    """The images, drawn anew or from the file of an earlier call."""
    counts = (64, 32) if config.smoke else COUNTS[config.data]
    name = f"pathfinder-{config.contour_length}-{config.data_seed}-{sum(counts)}"
    path = config.runs_dir / "data" / f"{name}.npz"

    def draw() -> dict[str, np.ndarray]:
        rules = dataclasses.replace(PATHFINDER["pathfinder32"], contour_length=config.contour_length)
        workers = 1 if config.smoke else os.cpu_count() or 1
        drawn = draw_pathfinder(rules, sum(counts), seed=config.data_seed, workers=workers)
        return {"images": drawn.images, "labels": drawn.labels}

    stored = common.kept(path, draw)
    pixels = stored["images"].reshape(len(stored["images"]), -1, 1)
    splits = [
        {"inputs": pixels[rows], "label": stored["labels"][rows]} for rows in (slice(counts[0]), slice(counts[0], None))
    ]
    source = f"draw_pathfinder, {config.contour_length} paddles, seed {config.data_seed}"
    return sequence_data(f"{NAME}, {config.contour_length} paddles", *splits, ("apart", "joined"), source=source)


if __name__ == "__main__":
    common.run_cli(main, Config)
