"""Figures of `experiments.projector_study` and `experiments.efficient_attention`, from their results files alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.shared.plots import pyplot, save

__all__ = ["LABELS", "draw_attention", "draw_projectors", "published_table"]

LABELS = {
    "linear": "Linear",
    "low_rank": "LowRank",
    "mlp": "MLP",
    "llava_mlp": "LLaVA MLP",
    "gated": "Gated",
    "lora": "LoRA",
}
COLORS = {
    "linear": "#333333",
    "low_rank": "#c8553d",
    "mlp": "#1f4e9c",
    "llava_mlp": "#5b8bd0",
    "gated": "#559e83",
    "lora": "#e0a030",
}


def published_table(report: dict[str, Any]) -> str:
    """The published table beside our counts, as Markdown.

    >>> row = {"printed": {"parameters": 1.05, "macs": 1.05}, "ours": {"parameters": 1049600, "macs": 1048576}}
    >>> print(published_table({"published": {"linear": row}}).splitlines()[-1])
    | Linear | 1.05 | 1.05 | 1.05 | 1.05 |  |
    """
    lines = ["| projector | parameters M | ours | FLOPs M | ours | |", "|---|---|---|---|---|---|"]
    for name, row in report["published"].items():
        printed, ours = row["printed"], row["ours"]
        note = ""
        if "macs_at_rank_256" in ours:
            note = f"rank 8; with rank 256 it is {ours['macs_at_rank_256'] / 1e6:.2f}"
        cells = [
            LABELS[name],
            f"{printed['parameters']:.2f}",
            f"{ours['parameters'] / 1e6:.2f}",
            f"{printed['macs']:.2f}",
            f"{ours['macs'] / 1e6:.2f}",
            note,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_projectors(results: Path, figure: Path) -> None:
    """Draws the four panels: the identity over the steps, tokens, answers, and time.

    Args:
        results: A JSON file as `experiments.projector_study` writes it.
        figure: Where the PNG goes.
    """
    plt = pyplot()

    record = json.loads(Path(results).read_text())
    metrics, costs = record["metrics"], record["costs"]
    families = [name for name in LABELS if f"{name}/unexplained" in metrics]
    fig, axes = plt.subplots(1, 4, figsize=(14, 3.8), layout="constrained")
    for name in families:
        curve = record["identity_curves"][name]
        axes[0].plot(curve["steps"], curve["unexplained"], color=COLORS[name], label=LABELS[name])
    axes[0].set(
        yscale="log", xscale="log", xlabel="training steps", ylabel="variance not explained", title="the identity"
    )
    axes[0].axhline(0.1719, color="#999999", lw=0.7, ls=":")
    axes[0].axhline(0.1169, color="#999999", lw=0.7, ls=":")
    axes[0].legend(fontsize=7, frameon=False)
    _bars(axes[1], metrics, families, "unexplained", "teacher's projected tokens")
    axes[1].axhline(record["linear_floor"]["test"], color="#333333", lw=0.9, ls="--", label="best linear map")
    axes[1].set(yscale="log", ylabel="variance not explained")
    axes[1].legend(fontsize=7, frameon=False)
    trained = "answer_accuracy" if f"{families[0]}/answer_accuracy" in metrics else "token_accuracy"
    _bars(axes[2], metrics, families, trained, "answers, trained by " + trained.split("_", maxsplit=1)[0] + "s", 100)
    axes[2].axhline(100 * record["teacher"]["accuracy"], color="#333333", lw=0.9, ls="--", label="teacher")
    found = [100 * metrics[f"{name}/{trained}"]["mean"] for name in families]
    axes[2].set(ylabel="accuracy (%)", ylim=(max(0.0, min(found) - 5), 100))
    axes[2].legend(fontsize=7, frameon=False)
    places = np.arange(len(families))
    for shift, batch in ((-0.2, 1), (0.2, 8)):
        heights = [costs[name][f"ms_{batch}"] for name in families]
        colors = [COLORS[name] for name in families]
        axes[3].bar(places + shift, heights, 0.38, color=colors, alpha=1.0 if batch == 1 else 0.5)
    axes[3].set(ylabel="ms, batch 1 and 8", title="576 tokens, 1,024 to 4,096", yscale="log")
    axes[3].set_xticks(places, [LABELS[name] for name in families], rotation=40, fontsize=8)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(9)
    save(fig, figure, dpi=130)


def _names(part: str) -> tuple[str, str]:
    return f"ratio_{part}", f"spread_{part}"


def _bars(axis, metrics, families, key, title, scale=1.0) -> None:
    found = [metrics[f"{name}/{key}"] for name in families]
    heights = [scale * each["mean"] for each in found]
    spread = [scale * (each["spread"] or 0) for each in found]
    places = np.arange(len(families))
    axis.bar(places, heights, 0.7, yerr=spread, color=[COLORS[name] for name in families], capsize=2)
    axis.set_xticks(places, [LABELS[name] for name in families], rotation=40, fontsize=8)
    axis.set(title=title)


def draw_attention(results: Path, figure: Path) -> None:
    """Draws accuracies by learning rate, the differences beside the published one, and what fusing saves.

    Args:
        results: A JSON file as `experiments.efficient_attention` writes it.
        figure: Where the PNG goes.
    """
    plt = pyplot()

    record = json.loads(Path(results).read_text())
    metrics = record["metrics"]
    variants = list(dict.fromkeys(name.rpartition("/")[0] for name in metrics))
    rates = list(dict.fromkeys(name.rpartition("/")[2] for name in metrics))
    colors = dict(zip(variants, ("#1f4e9c", "#c8553d", "#7fa3d6", "#e3a493", "#559e83"), strict=False))
    fig, axes = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained", width_ratios=(1.2, 1, 1.1))
    for i, variant in enumerate(variants):
        for j, rate in enumerate(rates):
            values = [100 - value for value in metrics[f"{variant}/{rate}"]["values"]]
            spot = j + 0.15 * (i - (len(variants) - 1) / 2)
            label = variant if j == 0 else None
            axes[0].plot([spot] * len(values), values, ".", color=colors[variant], ms=5, alpha=0.7, label=label)
    axes[0].set_xticks(range(len(rates)), rates)
    axes[0].set(xlabel="learning rate", ylabel="test error (%)", yscale="log", title="five epochs, a dot a seed")
    axes[0].legend(fontsize=7, frameon=False)
    rows = record["gaps"]
    places = np.arange(len(rows))
    means = [row["mean"] for row in rows.values()]
    axes[1].errorbar(
        means, places, xerr=[row["interval"] for row in rows.values()], fmt="o", color="#1f4e9c", capsize=3
    )
    axes[1].axvline(0, color="#999999", lw=0.8)
    gap = record["published"]["fused"]["accuracy"] - record["published"]["separate"]["accuracy"]
    axes[1].axvline(gap, color="#c8553d", lw=1.2, ls="--", label=f"published: {gap:.2f}")
    axes[1].set_yticks(places, list(rows), fontsize=8)
    axes[1].set(xlabel="fused less separate (points)", title="mean difference, 95 % interval")
    axes[1].legend(fontsize=7, frameon=False)
    shades = plt.get_cmap("viridis")
    widths = list(dict.fromkeys(row["width"] for row in record["times"]))
    for i, width in enumerate(widths):
        chosen = [row for row in record["times"] if row["width"] == width]
        color = shades(i / max(1, len(widths) - 1) * 0.85)
        for part, style in (("forward", "-"), ("train", "--")):
            label = f"{width} wide" if part == "forward" else None
            places, ratios, spreads = ([row[name] for row in chosen] for name in ("tokens", *_names(part)))
            axes[2].errorbar(places, ratios, spreads, ls=style, marker="o", ms=4, color=color, label=label, lw=1.2)
    axes[2].axhline(1, color="#999999", lw=0.8)
    axes[2].set(xscale="log", xlabel="tokens", ylabel="times as fast when fused")
    axes[2].set_title(f"{record['device']['kind']}: forward (solid), training (dashed)")
    axes[2].legend(fontsize=7, frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(9)
    save(fig, figure, dpi=130)
