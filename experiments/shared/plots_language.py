"""Figures of the experiments with language models, drawn from their results files alone."""

import json
from pathlib import Path

import tyro

from experiments.shared.plots import pyplot, save

__all__ = ["draw_lines"]


def draw_lines(results: Path, figure: Path) -> None:
    """Draws what the field `plot` of a results file asks for: a line with the spread over seeds for each series.

    Args:
        results: The JSON file.
        figure: The PNG to write.
    """
    record = json.loads(results.read_text())
    plot, plt = record["plot"], pyplot()
    fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for name, points in plot["series"].items():
        found = [record["metrics"][metric] for metric in points.values()]
        places, means = [float(x) for x in points], [each["mean"] for each in found]
        spreads = [each["spread"] or 0.0 for each in found]
        ax.errorbar(places, means, spreads, marker="o", ms=4, capsize=3, label=name)
    if plot.get("log"):
        ax.set_xscale("log", base=2)
    for place, label in plot.get("marks", {}).items():
        ax.axvline(float(place), color="#999999", lw=1, ls="--", label=label)
    smoke = "SMOKE RUN, not a result: " if record["config"].get("smoke") else ""
    ax.set(xlabel=plot["x"], ylabel=plot["y"], title=smoke + plot["title"])
    ax.grid(color="#dddddd")
    ax.legend(frameon=False)
    save(fig, figure)


def main(results: tyro.conf.Positional[Path], figure: tyro.conf.Positional[Path]) -> None:
    """Redraws a figure from a results file.

    Args:
        results: The JSON file.
        figure: The PNG to write.
    """
    draw_lines(results, figure)
    print(f"{figure} drawn from {results}")


if __name__ == "__main__":
    tyro.cli(main)
