"""Figures of the experiments with sequence classifiers, drawn from results files and nothing else.

`python -m experiments.shared.plots_sequence experiments/results/listops.json figures/listops.png` redraws a figure.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.shared.plots import draw_confusion, draw_curves, pyplot, save

__all__ = ["draw_classifier", "title"]

_GRID = "#dddddd"


def draw_classifier(results: Path, figure: Path) -> None:
    """Draws loss and accuracy curves, with the published value and a baseline where there is one, and the confusion.

    Args:
        results: A JSON file as the sequence experiments write it.
        figure: Where the PNG goes.
    """
    plt = pyplot()
    record = json.loads(results.read_text())
    fig, axes = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    draw_curves(axes[0], axes[1], record)
    for name, color in (("published", "#777777"), ("baseline", "#b3261e")):
        if shown := record.get(name):
            axes[1].axhline(shown["accuracy"], color=color, ls="--", lw=1, label=shown["label"])
    axes[1].legend(frameon=False, fontsize=8)
    draw_minutes(axes[1], record)
    draw_confusion(axes[2], np.asarray(record["confusion"]), record["data"]["class_names"])
    fig.suptitle(title(record), fontsize=11)
    save(fig, figure)


def draw_minutes(ax: Any, record: dict[str, Any]) -> None:
    """Adds an axis of the minutes that a seed had trained."""
    last, minutes = record["curves"][0]["test"]["epoch"][-1], record["seconds"]["mean"] / 60
    scale = minutes / last
    top = ax.secondary_xaxis("top", functions=(lambda epoch: epoch * scale, lambda minute: minute / scale))
    top.set_xlabel(f"minutes of one {record['device']['kind']}")


def title(record: dict[str, Any]) -> str:
    """One line: what was trained on what, and how well it does."""
    accuracy, config, seeds = record["metrics"]["test_accuracy"], record["config"], len(record["seeds"])
    spread = f" ± {100 * accuracy['spread']:.2f}" if seeds > 1 else ""
    label = "SMOKE RUN, not a result: " if config["smoke"] else ""
    return (
        f"{label}{config['layer']}, {record['parameters']:,} parameters, "
        f"on {record['data']['name']} (L = {record['data']['length']:,}): test accuracy "
        f"{100 * accuracy['mean']:.2f}{spread} % ({seeds} seed{'s' if seeds > 1 else ''}, "
        f"{record['seconds']['mean'] / 60:.1f} min each on {record['device']['kind']})"
    )


def main(results: tyro.conf.Positional[Path], figure: tyro.conf.Positional[Path]) -> None:
    """Redraws a figure from a results file.

    Args:
        results: The JSON file.
        figure: The PNG to write.
    """
    draw_classifier(results, figure)
    print(f"{figure} drawn from {results}")


if __name__ == "__main__":
    tyro.cli(main)
