"""Figures of the vision-language experiments, drawn from results files and nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.shared.plots import decode_images
from ssmjax.data.synthetic import COLORS, QUESTION_TYPES, SCENE_VOCABULARY

__all__ = [
    "METHOD_COLORS",
    "draw_merge_classifier",
    "draw_merge_speed",
    "draw_scenes",
    "draw_token_merge",
    "question_text",
]

_BARS = (
    ("blank", "picture blank", "#bbbbbb"),
    ("prior", "most frequent answer", "#dddddd"),
    ("frozen", "tower frozen", "#8fb1d9"),
    ("unfrozen", "tower unfrozen", "#3b6fb6"),
    ("ceiling", "ceiling", "#333333"),
)


def question_text(tokens: Any) -> str:
    """A question in words.

    >>> question_text([26, 10, 12, 30])
    'is red left of blue?'
    """
    kind, one, two, _ = (int(token) for token in tokens)
    a, b = (COLORS[token - 10] if 10 <= token < 16 else "" for token in (one, two))
    return {
        "digit": f"which digit is {a}?",
        "count": "how many digits?",
        "left": f"is {a} left of {b}?",
        "greater": f"is {a} greater than {b}?",
        "nearest": f"which is nearest to {a}?",
        "exists": f"is there a {a} digit?",
    }[QUESTION_TYPES[kind - 24]]


def draw_scenes(results: Path, figure: Path) -> None:
    """Draws accuracies by type of question, and pictures with a question, its answer and where it looks.

    Args:
        results: A JSON file as `experiments.vlm_scenes` writes it.
        figure: Where the PNG goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    record = json.loads(Path(results).read_text())
    metrics, examples = record["metrics"], record["examples"]
    images = decode_images(examples["images"])
    fig = plt.figure(figsize=(10, 6.2), layout="constrained")
    grid = fig.add_gridspec(2, len(images), height_ratios=(1.1, 1))
    axis = fig.add_subplot(grid[0, :])
    kinds, places = (*QUESTION_TYPES, "mean"), np.arange(len(QUESTION_TYPES) + 1)
    for i, (row, label, color) in enumerate(_BARS):
        heights = [100 * metrics[f"{row}/{kind}"]["mean"] for kind in kinds]
        axis.bar(places + 0.16 * (i - 2), heights, 0.15, label=label, color=color)
    axis.set(xticks=places, xticklabels=kinds, ylabel="accuracy (%)", ylim=(0, 104))
    axis.legend(ncols=len(_BARS), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.16), frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    for i, image in enumerate(images):
        axis = fig.add_subplot(grid[1, i])
        axis.imshow(image)
        look = np.asarray(examples["attention"][i])
        axis.imshow(
            look / look.max(), cmap="magma", alpha=0.45, extent=(-0.5, 47.5, 47.5, -0.5), interpolation="bilinear"
        )
        given, wanted = (SCENE_VOCABULARY[examples[name][i]] for name in ("given", "answers"))
        right = "" if given == wanted else f" (not {wanted})"
        axis.set_title(f"{question_text(examples['questions'][i])}\n{given}{right}", fontsize=9)
        axis.axis("off")
    figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(figure, dpi=130)
    plt.close(fig)


METHOD_COLORS = {
    "slicing": "#bbbbbb",
    "tome": "#c8553d",
    "density": "#e0a030",
    "channels": "#7a6fb0",
    "attention": "#559e83",
    "prune": "#8c6d4f",
    "resampler": "#5ab4c5",
    "ours": "#1f4e9c",
}


def draw_merge_classifier(results: Path, figure: Path) -> None:
    """Draws accuracy against operations and time, and merge maps: patches of one color became one token.

    Args:
        results: A JSON file as `experiments.token_merge_classifier` writes it.
        figure: Where the PNG goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    record = json.loads(Path(results).read_text())
    metrics, costs, maps = record["metrics"], record["costs"], record["maps"]
    images = decode_images(maps["images"])
    fig = plt.figure(figsize=(10, 6.4), layout="constrained")
    grid = fig.add_gridspec(2, len(images), height_ratios=(1.9, 1))
    for part, (name, label) in enumerate(
        (("share", "operations, share of the naive blocks'"), ("ms", "ms a batch of 256"))
    ):
        half = len(images) // 2
        axis = fig.add_subplot(grid[0, part * half : (part + 1) * half])
        naive = metrics["naive/accuracy"]
        axis.axhline(100 * naive["mean"], color="#333333", lw=0.8, ls=":")
        axis.plot(costs["naive"][name], 100 * naive["mean"], "k*", ms=10, label="naive")
        for method, color in METHOD_COLORS.items():
            rows = sorted((row for row in costs if row.split(" ")[0] == method), key=lambda row: costs[row][name])
            if not rows:
                continue
            found = [metrics[f"{row}/accuracy"] for row in rows]
            spread = [100 * (each["spread"] or 0) for each in found]
            heights = [100 * each["mean"] for each in found]
            axis.errorbar(
                [costs[row][name] for row in rows], heights, spread, fmt="o-", color=color, label=method, ms=5
            )
        axis.set(xlabel=label, ylabel="accuracy (%)" if part == 0 else "")
        axis.spines[["top", "right"]].set_visible(False)
        if part == 0:
            axis.legend(fontsize=8, frameon=False)
    palette = plt.get_cmap("tab20")
    for i, (image, groups) in enumerate(zip(images, maps["groups"], strict=True)):
        axis = fig.add_subplot(grid[1, i])
        colors = palette(np.asarray(groups) % 20)[..., :3]
        axis.imshow(np.kron(colors, np.ones((4, 4, 1))) * (0.35 + 0.65 * image / 255.0))
        axis.axis("off")
    fig.suptitle(f"merge maps of ours: {maps['m']} tokens of 49", y=0.33, fontsize=9)
    figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(figure, dpi=130)
    plt.close(fig)


def draw_token_merge(results: Path, figure: Path) -> None:
    """Draws accuracy and divergence against the number of visual tokens.

    Args:
        results: A JSON file as `experiments.token_merge` writes it.
        figure: Where the PNG goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    record = json.loads(Path(results).read_text())
    metrics = record["metrics"]
    methods: dict[str, list[int]] = {}
    for name in metrics:
        row, _, kind = name.partition("/")
        method, _, m = row.rpartition(" ")
        if kind == "kl" and "no size" not in method:
            methods.setdefault(method, []).append(int(m))
    fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    others = plt.get_cmap("Greys")(np.linspace(0.35, 0.7, 4))
    spare = iter(others)
    for method, budgets in methods.items():
        budgets = sorted(budgets)
        color = METHOD_COLORS.get(method)
        color = next(spare, "#999999") if color is None else color
        style = dict(color=color, marker="o", ms=4, lw=2.2 if method == "ours" else 1.2)
        for axis, kind, scale in ((axes[0], "accuracy", 100), (axes[1], "kl", 1)):
            found = [metrics[f"{method} {m}/{kind}"] for m in budgets]
            spread = [scale * (each["spread"] or 0) for each in found]
            axis.errorbar(budgets, [scale * each["mean"] for each in found], spread, label=method, **style)
    axes[0].axhline(100 * record["teacher"]["accuracy"], color="#333333", lw=0.8, ls=":", label="all 144 tokens")
    axes[0].set(ylabel="accuracy (%)")
    axes[1].set(ylabel="divergence of the answers (nats)", yscale="log")
    for axis in axes:
        axis.set(xlabel="visual tokens", xscale="log")
        axis.set_xticks(budgets, [str(m) for m in budgets])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=7, frameon=False, ncols=2)
    figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(figure, dpi=130)
    plt.close(fig)


def draw_merge_speed(results: Path, figure: Path) -> None:
    """Draws where the time of a block goes, at each number of visual tokens.

    Args:
        results: A JSON file as `experiments.token_merge_speed` writes it.
        figure: Where the PNG goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    record = json.loads(Path(results).read_text())
    metrics, config = record["metrics"], record["config"]
    counts = [config["tokens"], *config["budgets"]]
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    shades = ("#1f4e9c", "#559e83", "#8fb1d9", "#e0a030", "#bbbbbb")
    for axis, part in zip(axes, ("tower", "language"), strict=True):
        below = np.zeros(len(counts))
        for name, color in zip(("qkv", "attention", "output", "mlp", "norms"), shades, strict=True):
            heights = np.array([metrics[f"{part}/{name} {count}"]["mean"] for count in counts])
            axis.bar(range(len(counts)), heights, bottom=below, color=color, label=name, width=0.6)
            below += heights
        whole = [metrics[f"{part}/block {count}"]["mean"] for count in counts]
        axis.plot(range(len(counts)), whole, "k_", ms=26, mew=2, label="the whole block")
        axis.set(
            xticks=range(len(counts)), xticklabels=counts, xlabel="visual tokens", ylabel="ms", title=f"{part} block"
        )
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False)
    figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(figure, dpi=130)
    plt.close(fig)
