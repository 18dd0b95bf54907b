"""The figure of `vlm_profile`: shares of the visual part and of attention, stacked bars, and a roofline."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.shared.plots import pyplot, save

__all__ = ["draw_profile"]

_COLORS = {
    "patches": "#cfd8dc",
    "norms and sums": "#b0bec5",
    "q, k, v": "#8fb1d9",
    "rope": "#f2c14e",
    "attention": "#c8553d",
    "output": "#5b8cc4",
    "mlp": "#3b6fb6",
    "projector": "#588157",
    "head": "#6d597a",
}
_MARKERS = {"tower": "o", "projector": "s", "prefill": "^", "decode": "x"}
_STAGES = ("tower", "projector", "prefill")


def draw_profile(results: Path, figure: Path) -> None:
    """Draws the figure from the results file.

    Args:
        results: A JSON file as `experiments.vlm_profile` writes it.
        figure: Where the PNG goes.
    """
    plt = pyplot()

    record = json.loads(results.read_text())
    fig, axes = plt.subplots(2, 2, figsize=(14, 10), layout="constrained")
    _shares(axes[0, 0], record)
    _tower(axes[0, 1], record)
    _bars(axes[1, 0], record)
    _roofline(axes[1, 1], record)
    fig.suptitle(f"{record['device']['kind']}, {record['config']['dtype']}: {record['command']}", fontsize=10)
    save(fig, figure)


def _by_model(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    models: dict[str, list[dict[str, Any]]] = {}
    for case in record["cases"].values():
        models.setdefault(case["model"], []).append(case)
    return models


def _shares(ax: Any, record: dict[str, Any]) -> None:
    """The visual part of the time to the first token, over the size of the image."""
    for color, (name, cases) in zip(("#3b6fb6", "#c8553d", "#588157"), _by_model(record).items(), strict=False):
        sizes = [case["size"] for case in cases]
        for key, style, label in (
            ("visual_share", "o-", "time to the first token"),
            ("visual_share_of_an_answer", "o--", f"with {record['config']['new']} tokens of an answer"),
        ):
            share = [100 * case["summary"][key] for case in cases]
            ax.plot(sizes, share, style, color=color, label=f"{name}, {label}", markersize=4)
    ax.axhline(100 * record["published"]["visual_share"], color="#333333", linewidth=1, linestyle=":")
    ax.text(0.01, 0.985, "dotted: 97.9 %, the course report's", transform=ax.transAxes, va="top", fontsize=8)
    ax.set(xlabel="side of the image, pixels", ylabel="visual part, %", ylim=(0, 104), title="The visual part")
    ax.legend(fontsize=7, frameon=False)


def _tower(ax: Any, record: dict[str, Any]) -> None:
    """The parts of the tower, in percent of its time."""
    _stack(ax, list(record["cases"].values()), ("tower",))
    ax.set_title("Inside the tower (ms above)")


def _bars(ax: Any, record: dict[str, Any]) -> None:
    """The time to the first token by part, in percent."""
    _stack(ax, list(record["cases"].values()), _STAGES)
    ax.set_title("Time to the first token (ms above; hatched: the language model)")


def _stack(ax: Any, cases: list[dict[str, Any]], stages: tuple[str, ...]) -> None:
    """A bar for each case; parts on their own are not fused with others, so they share their stage's time."""
    labels = [f"{case['model'].split('_')[0]} {case['size']}" for case in cases]
    totals = [sum(case["stages"][stage]["ms"] for stage in stages) for case in cases]
    bottom, labelled = np.zeros(len(cases)), set()
    for stage in stages:
        names = dict.fromkeys(name for case in cases for name in case["stages"][stage]["parts"])
        for name in names:
            heights = []
            for case, total in zip(cases, totals, strict=True):
                found = case["stages"][stage]
                parts = {key: part["ms"] for key, part in found["parts"].items()}
                heights.append(100 * parts.get(name, 0.0) / sum(parts.values()) * found["ms"] / total)
            hatch = "///" if stage == "prefill" else None
            label = None if name in labelled else name
            labelled.add(name)
            ax.bar(labels, heights, bottom=bottom, color=_COLORS[name], hatch=hatch, edgecolor="white", label=label)
            bottom += heights
    for i, total in enumerate(totals):
        ax.text(i, 101, f"{total:.3g}", ha="center", fontsize=8)
    ax.set(ylabel="%", ylim=(0, 108))
    ax.tick_params(axis="x", rotation=45, labelsize=8)
    ax.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _roofline(ax: Any, record: dict[str, Any]) -> None:
    """What each part reaches, beside what the device's products and copies reach in the same run."""
    rates = record["rates"]
    intensity = np.logspace(-1, 4.5, 100)
    ax.loglog(intensity, np.minimum(rates["flops"], intensity * rates["bytes"]) / 1e12, color="#333333", linewidth=1)
    for case in record["cases"].values():
        for stage, marker in _MARKERS.items():
            for name, part in case["stages"][stage]["parts"].items():
                if part["flops"] > 0 and part["ms"] > 0:
                    reached = part["flops"] / (1e-3 * part["ms"]) / 1e12
                    ax.plot(part["flops"] / part["bytes"], reached, marker, color=_COLORS[name], markersize=4)
    for stage, marker in _MARKERS.items():
        ax.plot([], [], marker, color="#777777", label=stage)
    ax.set(xlabel="FLOP per byte", ylabel="TFLOP/s", title="Roofline: products and copies as measured in this run")
    ax.legend(fontsize=7, frameon=False)
