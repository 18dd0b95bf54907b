"""The figure of an experiment with diffusion, drawn from its results file and nothing else.

`python -m experiments.shared.plots_diffusion experiments/results/dis_images.json figures/dis_images.png` redraws it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.shared.plots import decode_images, pyplot, save

__all__ = ["draw", "tiled"]

_COLORS = {"ddpm": "#c8553d", "ddim": "#3b6fb6", "dpm++": "#2f7d32"}


def tiled(images: np.ndarray, columns: int) -> np.ndarray:
    """One large image of many, row by row, with a line of one pixel between them."""
    b, y, x, d = images.shape
    sheet = np.full((-(-b // columns) * (y + 1) + 1, columns * (x + 1) + 1, d), 128, np.uint8)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        sheet[row * (y + 1) + 1 : (row + 1) * (y + 1), column * (x + 1) + 1 : (column + 1) * (x + 1)] = image
    return sheet


def draw(results: Path, figure: Path) -> None:
    """Draws samples beside real images, how samples come to be, quality against steps, and the loss.

    Args:
        results: A JSON file as `experiments.shared.diffusion` writes it.
        figure: Where the PNG goes.
    """
    plt = pyplot()

    record = json.loads(results.read_text())
    classes = len(record["data"]["class_names"])
    fig = plt.figure(figsize=(15, 9.2), layout="constrained")
    grid = fig.add_gridspec(2, 3, height_ratios=[3, 1.9])
    scale = record["config"]["guidance"]
    for place, part, title in (
        (grid[0, 0], "grid", f"drawn, a class a row (guidance {scale:g}, {record['config']['sampler']})"),
        (grid[0, 1], "path", "the estimate of the image, from the first step to the last"),
        (grid[0, 2], "real", "real images of the training set"),
    ):
        images = decode_images(record[part])
        sheet = tiled(images, max(1, len(images) // classes))
        ax = fig.add_subplot(place)
        ax.imshow(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet, cmap="gray", interpolation="nearest")
        ax.set_title(title, fontsize=10)
        ax.set_xticks([])
        ax.set_yticks([])
    _draw_quality(fig.add_subplot(grid[1, 0]), record)
    _draw_loss(fig.add_subplot(grid[1, 1]), record)
    _draw_numbers(fig.add_subplot(grid[1, 2]), record)
    label = "SMOKE RUN, not a result: " if record["config"]["smoke"] else ""
    minutes, device = record["seconds"]["mean"] / 60, record["device"]["kind"]
    fig.suptitle(
        f"{label}DiS of {record['parameters'] / 1e6:.2f} M parameters on {record['data']['name']}: "
        f"{100 * record['metrics']['recognised']['mean']:.1f} % of guided samples recognised "
        f"({minutes:.1f} min on {device})",
        fontsize=12,
    )
    save(fig, figure)


def _draw_quality(ax: Any, record: dict[str, Any]) -> None:
    for quality in record["quality"]:
        for name, color in _COLORS.items():
            ax.plot(quality["steps"], quality[name], marker="o", ms=4, color=color, label=name)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(record["quality"][0]["steps"], record["quality"][0]["steps"])
    ax.minorticks_off()
    ax.set_xlabel("steps of the sampler, no guidance")
    ax.set_ylabel(f"Frechet distance, {record['quality'][0]['samples']} samples")
    ax.grid(color="#dddddd")
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[:3], labels[:3], frameon=False)


def _draw_loss(ax: Any, record: dict[str, Any]) -> None:
    for rows in record["curves"]:
        ax.plot([row["epoch"] for row in rows], [row["mse"] for row in rows], color="#3b6fb6", lw=1)
    ax.set_yscale("log")
    ax.set_xlabel("epoch")
    ax.set_ylabel("mean squared error of the noise")
    ax.grid(color="#dddddd")


def _draw_numbers(ax: Any, record: dict[str, Any]) -> None:
    metrics = {name: row["mean"] for name, row in record["metrics"].items()}
    lines = [
        f"recognised as the class asked for   {100 * metrics['recognised']:6.1f} %",
        f"real test images recognised         {100 * metrics['judge_accuracy']:6.1f} %",
        f"Frechet distance, DDIM, 50 steps    {metrics['frechet_ddim_50']:8.3f}",
        f"Frechet distance, DDPM, 250 steps   {metrics['frechet_ddpm_250']:8.3f}",
        f"precision                           {metrics['precision']:8.3f}",
        f"recall                              {metrics['recall']:8.3f}",
        "",
        "on features of a classifier trained here;",
        f"{record['config']['samples']} samples, {len(record['seeds'])} seed(s)",
    ]
    ax.text(0.0, 0.95, "\n".join(lines), va="top", family="monospace", fontsize=9.5, transform=ax.transAxes)
    ax.axis("off")


def main(results: tyro.conf.Positional[Path], figure: tyro.conf.Positional[Path]) -> None:
    """Redraws the figure from a results file.

    Args:
        results: The JSON file.
        figure: The PNG to write.
    """
    draw(results, figure)
    print(f"{figure} drawn from {results}")


if __name__ == "__main__":
    tyro.cli(main)
