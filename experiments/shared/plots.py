"""Figures, drawn from results files and nothing else.

`python -m experiments.shared.plots experiments/results/vim_cifar.json figures/vim_cifar.png` redraws a figure.
"""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

__all__ = ["decode_images", "draw_classifier", "draw_confusion", "draw_curves", "encode_images", "pyplot", "save"]

_TRAIN, _TEST, _GRID = "#3b6fb6", "#c8553d", "#dddddd"


def encode_images(images: np.ndarray) -> dict[str, Any]:
    """Packs a few uint8 images (b y x d) into a results file: their shape and their bytes in base64."""
    images = np.ascontiguousarray(images, np.uint8)
    return {"shape": list(images.shape), "uint8": base64.b64encode(images.tobytes()).decode("ascii")}


def decode_images(packed: dict[str, Any]) -> np.ndarray:
    """The inverse of `encode_images`.

    >>> decode_images(encode_images(np.zeros((2, 4, 4, 1), np.uint8))).shape
    (2, 4, 4, 1)
    """
    return np.frombuffer(base64.b64decode(packed["uint8"]), np.uint8).reshape(packed["shape"])


def pyplot() -> Any:
    """Matplotlib's interface, for files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save(fig: Any, figure: Path, *, dpi: int = 110) -> None:
    """Writes a figure and closes it."""
    figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(figure, dpi=dpi)
    pyplot().close(fig)


def draw_classifier(results: Path, figure: Path) -> None:
    """Draws loss and accuracy curves, a confusion matrix and a row of predictions from a classifier's results file.

    Args:
        results: A JSON file as `experiments.vim_cifar` writes it.
        figure: Where the PNG goes.
    """
    plt = pyplot()

    record = json.loads(results.read_text())
    names, shown = record["data"]["class_names"], record["predictions"]
    images = decode_images(shown["images"])
    fig = plt.figure(figsize=(13, 7.6), layout="constrained")
    grid = fig.add_gridspec(2, 3, height_ratios=[3, 1.15])
    draw_curves(fig.add_subplot(grid[0, 0]), fig.add_subplot(grid[0, 1]), record)
    draw_confusion(fig.add_subplot(grid[0, 2]), np.asarray(record["confusion"]), names)
    strip = grid[1, :].subgridspec(1, len(images))
    for i, (image, label, predicted) in enumerate(zip(images, shown["label"], shown["predicted"], strict=True)):
        ax = fig.add_subplot(strip[0, i])
        ax.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", interpolation="nearest")
        ax.set_title(names[predicted], fontsize=9, color="#2f7d32" if predicted == label else "#b3261e")
        ax.set_xlabel("" if predicted == label else f"is {names[label]}", fontsize=8)
        ax.set_xticks([])
        ax.set_yticks([])
    fig.suptitle(_title(record), fontsize=11)
    save(fig, figure)


def _title(record: dict[str, Any]) -> str:
    accuracy, config, seeds = record["metrics"]["test_accuracy"], record["config"], len(record["seeds"])
    spread = f" ± {100 * accuracy['spread']:.2f}" if seeds > 1 else ""
    label = "SMOKE RUN, not a result: " if config["smoke"] else ""
    minutes, device = record["seconds"]["mean"] / 60, record["device"]["kind"]
    return (
        f"{label}{config['model']} on {record['data']['name']}: test accuracy {100 * accuracy['mean']:.2f}{spread} % "
        f"({seeds} seed{'s' if seeds > 1 else ''}, {minutes:.1f} min each on {device})"
    )


def draw_curves(loss_ax: Any, accuracy_ax: Any, record: dict[str, Any]) -> None:
    for i, curves in enumerate(record["curves"]):
        train, test = curves["train"], curves["test"]
        names = ("training", "test") if i == 0 else (None, None)
        training = {"color": _TRAIN, "lw": 1, "alpha": 0.6, "label": names[0]}
        testing = {"color": _TEST, "lw": 1.5, "marker": ".", "ms": 4, "label": names[1]}
        loss_ax.plot(train["epoch"], train["loss"], **training)
        loss_ax.plot(test["epoch"], test["loss"], **testing)
        accuracy_ax.plot(train["epoch"], 100 * np.asarray(train["accuracy"]), **training)
        accuracy_ax.plot(test["epoch"], 100 * np.asarray(test["accuracy"]), **testing)
    for ax, what in ((loss_ax, "cross entropy"), (accuracy_ax, "accuracy, %")):
        ax.set_xlabel("epoch")
        ax.set_ylabel(what)
        ax.grid(color=_GRID)
        ax.legend(frameon=False)


def draw_confusion(ax: Any, counts: np.ndarray, names: list[str]) -> None:
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ax.set_title("confusion matrix, % of a true class (first seed)", fontsize=10)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    if len(names) > 20:
        return
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    for (i, j), value in np.ndenumerate(share):
        if value >= 0.005:
            ax.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color="w" if value > 0.5 else "k")


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
