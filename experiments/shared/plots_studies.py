"""Figures of the studies, drawn from results files and nothing else.

`python -m experiments.shared.plots_studies experiments/results/lti_shootout.json figures/lti_shootout.png` redraws one.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.discretization_error import order_text
from experiments.shared.plots import pyplot, save

__all__ = ["draw_discretization", "draw_shootout"]

_COLORS = ("#c8553d", "#3b6fb6", "#2f7d32", "#8e5ea2", "#e0a030", "#555555")
_GRID = "#dddddd"


def draw_discretization(results: Path, figure: Path) -> None:
    """Draws the errors, the stability and the accuracies of `experiments.discretisation_study`.

    Args:
        results: Its JSON file.
        figure: Where the PNG goes.
    """
    record = json.loads(results.read_text())
    rules = list(record["errors"]["held"]["error"])
    color = dict(zip(rules, _COLORS, strict=False))
    fig, axes = pyplot().subplots(2, 2, figsize=(12, 8.4), layout="constrained")
    for ax, kind in zip(axes[0], ("held", "smooth"), strict=True):
        found = record["errors"][kind]
        for rule in rules:
            label = f"{rule}, order: {order_text(found, rule)}"
            ax.loglog(found["dt"], np.minimum(found["error"][rule], 10), "o-", ms=3, color=color[rule], label=label)
        where = "held over each step" if kind == "held" else "smooth, read in the middle of each step"
        _label(ax, f"input {where}", "step size dt", "relative error of the output (cut at 10)")
    _stability(axes[1, 0], record["stability"], color)
    _accuracies(axes[1, 1], record, rules, color)
    fig.suptitle(f"{_smoke(record)}Discretizations of x' = A x + B u with the modes of S4D-Lin", fontsize=11)
    save(fig, figure)


def _stability(ax: Any, found: dict[str, Any], color: dict[str, str]) -> None:
    imag = np.asarray(found["imag"]) / np.pi
    ax.semilogy(imag, found["predicted"], "-", color="#555555", label="-2 Re A / |A|²: |1 + dt A| = 1")
    ax.semilogy(imag, found["measured"], "o", color=color["euler"], label="where the recurrence begins to grow")
    _label(ax, "Euler's rule: the largest stable step of each mode", "Im A / π", "step size dt")


def _accuracies(ax: Any, record: dict[str, Any], rules: list[str], color: dict[str, str]) -> None:
    largest = [v for v in record["config"]["largest_steps"] if f"zoh_dt{v:g}" in record["metrics"]]
    rules = [rule for rule in rules if any(f"{rule}_dt{v:g}" in record["metrics"] for v in largest)]
    for i, rule in enumerate(rules):
        places = np.arange(len(largest)) + 0.2 * (i - (len(rules) - 1) / 2)
        names = [f"{rule}_dt{v:g}" for v in largest]
        heights = [100 * record["metrics"][name]["mean"] for name in names]
        errors = [100 * (record["metrics"][name]["spread"] or 0.0) for name in names]
        ax.bar(places, heights, 0.18, yerr=errors, color=color[rule], label=rule)
        for place, name in zip(places, names, strict=True):
            if any(name in diverged for diverged in record["diverged"]):
                ax.text(place, 14, "diverged", rotation=90, ha="center", fontsize=8)
    ax.set_ylim(0, 112)
    ax.set_xticks(range(len(largest)), [f"dt up to {v:g}" for v in largest])
    what = f"S4D on {record['data']['name']}, {len(record['seeds'])} seed(s)"
    title = f"the same classifier under each rule: {what}"
    _label(ax, title, "", "test accuracy, %", ncols=len(rules), loc="upper center")


def draw_shootout(results: Path, figure: Path) -> None:
    """Draws accuracy against parameters, and step time and memory against the length, of `experiments.lti_shootout`.

    Args:
        results: Its JSON file.
        figure: Where the PNG goes.
    """
    record = json.loads(results.read_text())
    fig, axes = pyplot().subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    for (layer, row), color in zip(record["layers"].items(), _COLORS, strict=False):
        found = record["metrics"][f"{layer}_accuracy"]
        axes[0].errorbar(
            row["parameters"], 100 * found["mean"], 100 * (found["spread"] or 0.0), fmt="o", color=color, label=layer
        )
        lengths = [cost["length"] for cost in row["costs"]]
        axes[1].loglog(lengths, [cost["milliseconds"] for cost in row["costs"]], "o-", color=color, label=layer)
        axes[2].loglog(lengths, [cost["gigabytes"] for cost in row["costs"]], "o-", color=color, label=layer)
    what, batch = record["data"]["name"], record["config"]["cost_batch"]
    _label(axes[0], f"{what}, {record['seconds']['mean'] / 60:.1f} min a seed in all", "parameters", "test accuracy, %")
    _label(axes[1], f"a training step of {batch} sequences", "length", "milliseconds")
    _label(axes[2], "temporary memory of that step", "length", "GB")
    fig.suptitle(f"{_smoke(record)}The LTI layers in one classifier, on {record['device']['kind']}", fontsize=11)
    save(fig, figure)


def _label(ax: Any, title: str, x: str, y: str, **legend: Any) -> None:
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(color=_GRID)
    ax.legend(frameon=False, fontsize=8, **legend)


def _smoke(record: dict[str, Any]) -> str:
    return "SMOKE RUN, not a result: " if record["config"]["smoke"] else ""


def main(results: tyro.conf.Positional[Path], figure: tyro.conf.Positional[Path]) -> None:
    """Redraws a figure from a results file.

    Args:
        results: The JSON file.
        figure: The PNG to write.
    """
    draws = {"discretisation_study": draw_discretization, "lti_shootout": draw_shootout}
    draws[json.loads(results.read_text())["name"]](results, figure)
    print(f"{figure} drawn from {results}")


if __name__ == "__main__":
    tyro.cli(main)
