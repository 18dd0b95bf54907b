"""Figures of the vision-language experiments, drawn from results files and nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.shared.plots import decode_images, pyplot, save
from ssmjax.data.synthetic import COLORS, QUESTION_TYPES, SCENE_VOCABULARY

__all__ = [
    "METHOD_COLORS",
    "draw_easy_vqa",
    "draw_maps",
    "draw_merge_classifier",
    "draw_merge_method",
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
    plt = pyplot()

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
    save(fig, figure, dpi=130)


def draw_easy_vqa(results: Path, figure: Path) -> None:
    """Draws accuracies by kind of answer, and pictures with questions and answers.

    Args:
        results: A JSON file as `experiments.vlm_easy_vqa` writes it.
        figure: Where the PNG goes.
    """
    plt = pyplot()

    record = json.loads(Path(results).read_text())
    metrics, examples = record["metrics"], record["examples"]
    images = decode_images(examples["images"])
    kinds = [kind for kind in ("all", "yes or no", "shape", "color") if f"test/{kind}" in metrics]
    fig, axes = plt.subplots(1, 1 + len(images), figsize=(3 + 2.4 * len(images), 3.2), layout="constrained")
    for i, (row, label, color) in enumerate((("blank", "picture blank", "#bbbbbb"), ("test", "with it", "#3b6fb6"))):
        found = [metrics[f"{row}/{kind}"] for kind in kinds]
        heights, spread = ([100 * (each[name] or 0) for each in found] for name in ("mean", "spread"))
        axes[0].bar(np.arange(len(kinds)) + 0.4 * i - 0.2, heights, 0.38, yerr=spread, color=color, label=label)
    axes[0].set(xticks=range(len(kinds)), xticklabels=kinds, ylabel="accuracy (%)", ylim=(0, 112))
    axes[0].legend(fontsize=7, frameon=False, ncols=2, loc="upper center")
    axes[0].spines[["top", "right"]].set_visible(False)
    for axis, image, asked in zip(axes[1:], images, examples["asked"], strict=True):
        axis.imshow(image)
        axis.axis("off")
        lines = [f"{text} {given}" + ("" if given == right else f" (not {right})") for text, given, right in asked]
        axis.set_title("\n".join(lines), fontsize=7)
    save(fig, figure, dpi=130)


METHOD_COLORS = {
    "slicing": "#bbbbbb",
    "tome": "#c8553d",
    "density": "#e0a030",
    "channels": "#7a6fb0",
    "attention": "#559e83",
    "prune": "#8c6d4f",
    "resampler": "#5ab4c5",
    "shrunk": "#d68fb5",
    "adapter": "#a3b86c",
    "ours, KL": "#6f94cf",
    "ours": "#1f4e9c",
}


def draw_merge_classifier(results: Path, figure: Path) -> None:
    """Draws accuracy against operations and time, and merge maps: patches of one color became one token.

    Args:
        results: A JSON file as `experiments.token_merge_classifier` writes it.
        figure: Where the PNG goes.
    """
    plt = pyplot()

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
    save(fig, figure, dpi=130)


def draw_token_merge(results: Path, figure: Path) -> None:
    """Draws accuracy and divergence against the visual tokens and the time, and merge maps, groups as colors.

    Args:
        results: A JSON file as `experiments.token_merge` writes it.
        figure: Where the PNG goes.
    """
    plt = pyplot()

    record = json.loads(Path(results).read_text())
    metrics, maps = record["metrics"], record.get("maps") or {}
    methods: dict[str, list[int]] = {}
    for name in metrics:
        row, _, kind = name.partition("/")
        method, _, m = row.rpartition(" ")
        if kind == "kl" and "no size" not in method:
            methods.setdefault(method, []).append(int(m))
    fig = plt.figure(figsize=(12, 6.6 if maps else 4), layout="constrained")
    grid = fig.add_gridspec(2 if maps else 1, 3, height_ratios=(1.9, 1) if maps else (1,))
    axes = [fig.add_subplot(grid[0, i]) for i in range(3)]
    spare = iter(plt.get_cmap("Greys")(np.linspace(0.35, 0.7, 4)))
    for method, found in methods.items():
        budgets = sorted(found)
        color = METHOD_COLORS.get(method)
        color = next(spare, "#999999") if color is None else color
        style = dict(color=color, marker="o", ms=4, lw=2.2 if method == "ours" else 1.2)
        rows = {kind: [metrics[f"{method} {m}/{kind}"] for m in budgets] for kind in ("accuracy", "kl", "ms")}
        accuracy = [100 * each["mean"] for each in rows["accuracy"]]
        spread = [100 * (each["spread"] or 0) for each in rows["accuracy"]]
        axes[0].errorbar(budgets, accuracy, spread, label=method, **style)
        kl = [each["mean"] for each in rows["kl"]]
        axes[1].errorbar(budgets, kl, [each["spread"] or 0 for each in rows["kl"]], **style)
        axes[2].plot([each["mean"] for each in rows["ms"]], accuracy, **style)
    axes[0].axhline(100 * record["teacher"]["accuracy"], color="#333333", lw=0.8, ls=":", label="all 144 tokens")
    axes[0].set(ylabel="accuracy (%)")
    axes[1].set(ylabel="divergence of the answers (nats)", yscale="log")
    axes[2].set(ylabel="accuracy (%)", xlabel="ms a batch of 125 pictures")
    for axis in axes[:2]:
        axis.set(xlabel="visual tokens", xscale="log")
        axis.set_xticks(budgets, [str(m) for m in budgets])
        axis.minorticks_off()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=7, frameon=False, ncols=2)
    if maps:
        draw_maps(fig, grid[1, :], maps)
    save(fig, figure, dpi=130)


def draw_maps(fig: Any, place: Any, maps: dict[str, Any]) -> None:
    """Draws pictures, and over each which merged token its patches went to, at each budget.

    Args:
        fig: The figure.
        place: Where in it: a cell of a grid.
        maps: `images`, and for each budget the `groups` (b 12 12).
    """
    plt = pyplot()
    images, palette = decode_images(maps["images"]), plt.get_cmap("tab20")
    budgets = [m for m in ("36", "16", "9", "4") if m in maps["groups"]] or list(maps["groups"])
    shown = [(image, m) for image in range(min(2, len(images))) for m in (None, *budgets)]
    grid = place.subgridspec(1, len(shown))
    for i, (image, m) in enumerate(shown):
        axis = fig.add_subplot(grid[0, i])
        axis.imshow(images[image])
        axis.axis("off")
        axis.set_title("picture" if m is None else f"{m} tokens", fontsize=8)
        if m is not None:
            groups = np.asarray(maps["groups"][m][image])
            colors = palette((groups * 7) % 20)[..., :3]
            axis.imshow(np.kron(colors, np.ones((4, 4, 1))), alpha=0.6)


def draw_merge_speed(results: Path, figure: Path) -> None:
    """Draws where the time of a block goes, at each number of visual tokens.

    Args:
        results: A JSON file as `experiments.token_merge_speed` writes it.
        figure: Where the PNG goes.
    """
    plt = pyplot()

    record = json.loads(Path(results).read_text())
    metrics, config = record["metrics"], record["config"]
    dtype = config["dtypes"][-1]
    counts = [config["tokens"], *config["budgets"]]
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    shades = ("#1f4e9c", "#559e83", "#8fb1d9", "#e0a030", "#bbbbbb")
    for axis, part in zip(axes, ("tower", "language"), strict=True):
        below = np.zeros(len(counts))
        for name, color in zip(("qkv", "attention", "output", "mlp", "norms"), shades, strict=True):
            heights = np.array([metrics[f"{dtype}/{part}/{name} {count}"]["mean"] for count in counts])
            axis.bar(range(len(counts)), heights, bottom=below, color=color, label=name, width=0.6)
            below += heights
        whole = [metrics[f"{dtype}/{part}/block {count}"]["mean"] for count in counts]
        axis.plot(range(len(counts)), whole, "k_", ms=26, mew=2, label="the whole block")
        axis.set(
            xticks=range(len(counts)),
            xticklabels=counts,
            xlabel="visual tokens",
            ylabel="ms",
            title=f"{part} block, {dtype}",
        )
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False)
    save(fig, figure, dpi=130)


def draw_merge_method(results: Path, figure: Path) -> None:
    """Draws the steps of the anchored merge on one picture, and what is answered with all tokens and with few.

    Args:
        results: A JSON file as `experiments.token_merge_method` writes it.
        figure: Where the PNG goes.
    """
    plt = pyplot()

    example = json.loads(Path(results).read_text())["example"]
    (image,) = decode_images(example["image"])
    groups, anchors, sizes = (np.asarray(example[name]) for name in ("groups", "anchors", "sizes"))
    m = len(anchors)
    palette = plt.get_cmap("tab20")((np.arange(m) * 7) % 20)[:, :3]
    fig = plt.figure(figsize=(13, 4.6), layout="constrained")
    grid = fig.add_gridspec(2, 5, height_ratios=(2.2, 1), width_ratios=(1, 1, 1, 1, 1.1))
    axes = [fig.add_subplot(grid[0, i]) for i in range(5)]
    for axis in axes[:1] + axes[2:4]:
        axis.imshow(image)
    for at in np.arange(0, 49, 4) - 0.5:
        axes[0].axhline(at, color="white", lw=0.3)
        axes[0].axvline(at, color="white", lw=0.3)
    axes[0].set_title("the tower: 144 tokens", fontsize=10)
    low, high = np.percentile(example["score"], (2, 98))
    axes[1].imshow(example["score"], cmap="viridis", vmin=low, vmax=high)
    axes[1].set_title("1. a score: how much is each\nan anchor?", fontsize=10)
    for color, place in zip(palette, anchors, strict=True):
        y, x = divmod(int(place), 12)
        axes[2].add_patch(plt.Rectangle((4 * x - 0.5, 4 * y - 0.5), 4, 4, fill=False, ec=color, lw=2))
    axes[2].set_title(f"2. the {m} best are anchors", fontsize=10)
    axes[3].imshow(np.kron(palette[groups], np.ones((4, 4, 1))), alpha=0.65)
    axes[3].set_title("3. each token joins the anchor\nit is most like", fontsize=10)
    for axis in axes[:4]:
        axis.axis("off")
    axes[4].barh(np.arange(m), sizes, color=palette)
    axes[4].invert_yaxis()
    axes[4].set(yticks=[], xscale="log", xlabel="size S; attention adds log S")
    axes[4].set_title(f"4. {m} means, which count\nas what they stand for", fontsize=10)
    axes[4].spines[["top", "right"]].set_visible(False)
    axis = fig.add_subplot(grid[1, :])
    axis.axis("off")
    rows = [
        [question_text(question), *(SCENE_VOCABULARY[answer] for answer in (right, whole, merged)), f"{sure:.2f}"]
        for question, right, whole, merged, sure in zip(
            *(example[name] for name in ("questions", "answers", "whole", "merged", "sure")), strict=True
        )
    ]
    heads = ["question", "right", "with 144 tokens", f"with {m}", "probability"]
    table = axis.table(rows, colLabels=heads, loc="center", cellLoc="left", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    save(fig, figure, dpi=130)
