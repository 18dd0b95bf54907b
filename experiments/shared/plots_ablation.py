"""The figure of `experiments.vim_ablation`, drawn from its results file and nothing else.

`python -m experiments.shared.plots_ablation experiments/results/vim_ablation.json figures/vim_ablation.png` redraws it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from experiments.shared.plots import pyplot, save

__all__ = ["draw", "largest"]

_BETTER, _WORSE, _GRID = "#2f7d32", "#c8553d", "#dddddd"


def largest(rows: Mapping[str, Mapping[str, Any]], count: int) -> list[str]:
    """The names of the variants with the largest effects, in either direction.

    >>> rows = {"base": {"base": "base", "effect": 0.0}, "x": {"base": "base", "effect": -0.3},
    ...         "y": {"base": "base", "effect": 0.1}}
    >>> largest(rows, 1)
    ['x']
    """
    changed = [name for name, row in rows.items() if name != row["base"]]
    return sorted(changed, key=lambda name: -abs(rows[name]["effect"]))[:count]


def draw(results: Path, figure: Path) -> None:
    """Draws the effect of each variant as a bar, a panel for each model.

    Args:
        results: The JSON file.
        figure: Where the PNG goes.
    """
    record = json.loads(results.read_text())
    bases = list(dict.fromkeys(row["base"] for row in record["variants"].values()))
    panels = {
        base: sorted((row for n, row in record["variants"].items() if row["base"] == base != n), key=_effect)
        for base in bases
    }
    heights = [1 + len(rows) for rows in panels.values()]
    size = (10, 1.4 + 0.36 * sum(heights))
    fig, axes = pyplot().subplots(
        len(bases), figsize=size, layout="constrained", sharex=True, height_ratios=heights, squeeze=False
    )
    for ax, (base, rows) in zip(axes[:, 0], panels.items(), strict=True):
        _panel(ax, rows, record["variants"][base])
    axes[-1, 0].set_xlabel("points of accuracy against the model without the change; dots are seeds")
    smoke = "SMOKE RUN, not a result: " if record["config"]["smoke"] else ""
    kept, epochs, device = record["data"]["test"], record["config"]["epochs"], record["device"]["kind"]
    what = f"{record['data']['name']}, {epochs} epochs, {kept:,} held-out images, {device}"
    fig.suptitle(f"{smoke}What the parts of Vision Mamba and of its recipe are worth: {what}", fontsize=11)
    save(fig, figure)


def _effect(row: Mapping[str, Any]) -> float:
    return row["effect"]


def _panel(ax: Any, rows: list[dict[str, Any]], base: dict[str, Any]) -> None:
    for place, row in enumerate(rows):
        ax.barh(place, 100 * row["effect"], color=_BETTER if row["effect"] > 0 else _WORSE, alpha=0.75)
        if len(row["accuracies"]) > 1:  # seed by seed, as both saw the same batches
            dots = [100 * (a - b) for a, b in zip(row["accuracies"], base["accuracies"], strict=False)]
            ax.plot(dots, [place] * len(dots), ".", color="k", ms=5)
    ax.set_yticks(range(len(rows)), [row["text"] for row in rows], fontsize=9)
    ax.axvline(0, color="k", lw=0.8)
    ax.grid(axis="x", color=_GRID)
    ax.set_axisbelow(True)
    ax.set_title(f"{base['text']}: {100 * base['accuracy']:.2f} %", fontsize=10)


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
