"""Five vision models of equal size: Vim, VMamba with four and with two directions, MambaVision, and a ViT.

The claim: trained alike from scratch, on images of 64 pixels, each with 2.6 to 3.0 million parameters, they differ in
accuracy, in speed and in how memory grows with the image. Vim's paper reports 2.8 times DeiT's speed and 13 % of its
memory at 1248 pixels (https://arxiv.org/abs/2401.09417); the ViT here has the fused attention of today.

Recipes (device, minutes a seed for all five, expected):
    python -m experiments.vision_shootout                    one Hopper GPU, 40, CIFAR-10 above 85 %
    python -m experiments.vision_shootout --data digits      two CPU cores, 40; a stand-in, no download

Costs are those of a forward pass of `--cost-batch` images at each of `--sizes` pixels. Receptive fields are the
gradients of the middle of the last map by the image, averaged over test images. The same command resumes a run that was
stopped. `--smoke` is a check of the plumbing, not a result.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ssmjax
from experiments.shared import classifier, common, image, plots
from ssmjax.data import AugmentConfig, ImageData
from ssmjax.errors import require_known
from ssmjax.models.flops import count_flops
from ssmjax.training.compilation import enable_compilation_cache
from ssmjax.training.report import make_report, write_report

NAME = "vision_shootout"

_VMAMBA = {"dims": (48, 96, 192, 288), "depths": (1, 2, 3, 1)}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vim": ("vim_nano", {"patch_size": 8, "d_model": 192, "depth": 9}),
    "vmamba_4": ("vmamba_micro", _VMAMBA),
    "vmamba_2": ("vmamba_micro", {**_VMAMBA, "directions": "two"}),
    "mambavision": ("mambavision_nano", {}),
    "vit": ("vit_nano", {"patch_size": 8, "d_model": 192, "depth": 6}),
}
"""The named size and the changes that make them equal in parameters; tokens are 8 pixels wide in the flat ones."""


@dataclasses.dataclass(frozen=True)
class Config(image.Config):
    """Every field is a flag; a field that is None takes the recipe's value for the data set."""

    data: str = "cifar10"
    """cifar10, cifar100 or digits (embedded, no download)."""
    models: tuple[str, ...] = tuple(MODELS)
    model: str = "vim"
    """Has no effect here: see `models`."""
    sizes: tuple[int, ...] | None = None
    """The sides of images, multiples of 32 pixels, at which a forward pass is measured; none by default on a CPU."""
    cost_batch: int = 8


_PHOTOGRAPHS = {"epochs": 60, "batch_size": 256, "learning_rate": 2e-3}
RECIPES = {
    "cifar10": _PHOTOGRAPHS,
    "cifar100": _PHOTOGRAPHS,
    "digits": {"epochs": 15, "batch_size": 64, "learning_rate": 1e-3},
}
VARIED = AugmentConfig(crop_padding=8, mixup_alpha=0.8)


def load(config: Config) -> ImageData:
    """The images at 64 pixels."""
    return image.load(dataclasses.replace(config, smoke=False)).resized(64)


def create(config: Config, label: str, side: int, classes: int, channels: int, seed: int) -> Any:
    """One of the five at an image size."""
    name, changes = MODELS[label]
    options = dict(num_classes=classes, in_channels=channels, img_size=side, seed=seed, dtype=config.dtype)
    return ssmjax.create_model(name, **options, **changes, drop_path_rate=config.drop_path)


def one(config: Config, label: str) -> Config:
    """The settings of the training of one of the five, the same whichever others a command has."""
    return dataclasses.replace(config, models=(label,), sizes=None, cost_batch=Config.cost_batch)


def experiment(label: str) -> image.Experiment:
    """The training of one of the five."""
    return image.Experiment(
        f"{NAME}-{label}",
        RECIPES,
        augment=lambda config: image.SETS["digits"].augment if config.data == "digits" else VARIED,
        unmixed=0.2,
        build=lambda config, data, seed: create(
            config, label, data.image_shape[0], data.num_classes, data.image_shape[2], seed
        ),
    )


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains all models, measures them, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields; `main(Config(data="digits", smoke=True))` works in a notebook.

    Returns:
        What the results file holds.
    """
    command = common.command(NAME, config, Config())
    config = resolve(config)
    data = image.smoke(config, load(config))
    enable_compilation_cache()
    classifier.announce(data, ", ".join(config.models), config.dtype)
    runs, fields = [], {}
    for seed in range(config.seed, config.seed + config.seeds):
        done = {label: image.train_seed(experiment(label), one(config, label), data, seed) for label in config.models}
        metrics = {f"{label}_accuracy": run["metrics"]["test_accuracy"] for label, run in done.items()}
        metrics |= {f"{label}_seconds": run["seconds"] for label, run in done.items()}
        runs.append({"seed": seed, "seconds": sum(run["seconds"] for run in done.values()), "metrics": metrics})
        fields = fields or {label: receptive_field(run["model"], data) for label, run in done.items()}
        parameters = {label: run["parameters"] for label, run in done.items()}
    models = {
        label: {
            "parameters": parameters[label],
            "receptive_field": fields[label],
            "costs": [cost(config, label, side, data) for side in config.sizes or ()],
        }
        for label in config.models
    }
    identity, described = common.identity(config), image.describe(data)
    report = make_report(NAME, command=command, config=identity, runs=runs, data=described, models=models)
    default = dataclasses.replace(Config(), data=config.data, seed=config.seed, dtype=config.dtype, sizes=config.sizes)
    parts = [NAME, *([] if config.data == Config().data else [config.data])]
    results, figure = common.result_paths(config.out_dir, classifier.result_name(parts, config, resolve(default)))
    write_report(results, report)
    draw(results, figure)
    print(f"\n{table(report)}\nresults {results}\nfigure  {figure}")
    return report


def resolve(config: Config) -> Config:
    """Fills in the recipe, and refuses what cannot work."""
    for label in config.models:
        require_known("model", label, MODELS)
    filled = image.resolve(experiment("vim"), dataclasses.replace(config, model="vim_nano"))
    if config.smoke:
        return dataclasses.replace(filled, models=config.models[2::2], sizes=(64,), cost_batch=2)
    sizes = (64, 128) if jax.default_backend() == "cpu" else (64, 128, 256, 512, 768, 1248)
    return filled if config.sizes else dataclasses.replace(filled, sizes=sizes)


def cost(config: Config, label: str, side: int, data: ImageData, repeats: int = 10) -> dict[str, Any]:
    """The operations, time and temporary memory of a forward pass of random images of one size."""
    definition, state = nnx.split(create(config, label, side, data.num_classes, data.image_shape[2], 0))
    forward = jax.jit(lambda state, x: nnx.merge(definition, state)(x))
    rng = np.random.default_rng(0)
    x = jax.device_put(rng.standard_normal((config.cost_batch, side, side, data.image_shape[2])).astype(np.float32))
    compiled, milliseconds = forward.lower(state, x).compile(), []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        jax.block_until_ready(compiled(state, x))
        milliseconds.append(1e3 * (time.perf_counter() - began))
    middle = statistics.median(milliseconds[2:])
    return {
        "side": side,
        "gigaflops": count_flops(forward, state, x) / config.cost_batch / 1e9,
        "milliseconds": middle,
        "spread": statistics.stdev(milliseconds[2:]),
        "images_per_second": 1e3 * config.cost_batch / middle,
        "gigabytes": compiled.memory_analysis().temp_size_in_bytes / 1e9,
    }


def receptive_field(model: Any, data: ImageData, count: int = 16, cells: int = 32) -> list[list[float]]:
    """How much the middle of the last map depends on each part of an image, with a largest value of one."""
    images = jnp.asarray((data.test_images[:count] / 255 - data.mean) / data.std, jnp.float32)

    @jax.jit
    def gradient(images):
        return jax.grad(lambda x: _middle(model, x).astype(jnp.float32).sum())(images)

    found = np.abs(np.asarray(gradient(images))).mean((0, 3))
    side = found.shape[0] // cells * cells
    found = found[:side, :side].reshape(cells, side // cells, cells, side // cells).mean((1, 3))
    return np.round(found / max(found.max(), 1e-30), 4).tolist()


def _middle(model: Any, images: jax.Array) -> jax.Array:
    """The features of the place in the middle of the last map, (b d)."""
    if type(model).__name__ == "Vim":  # the class token stands in the middle, before the lower half of the patches
        tokens = model.tokens(images)
        return tokens[:, tokens.shape[1] // 2 + 1 + model.config.grid[1] // 2]
    x = model.features(images)[-1]
    return x[:, x.shape[1] // 2, x.shape[2] // 2]


def draw(results: Path, figure: Path) -> None:
    """Draws accuracy, speed and memory against image size, and receptive fields, from a results file."""
    plt = plots.pyplot()

    record = json.loads(results.read_text())
    models = record["models"]
    fig = plt.figure(figsize=(13, 7), layout="constrained")
    device = record["device"]["kind"]
    smoke = "SMOKE RUN, not a result: " if record["config"]["smoke"] else ""
    fig.suptitle(f"{smoke}five vision models of equal size on {record['data']['name']}, {device}")
    grid = fig.add_gridspec(2, 1, height_ratios=[1.2, 1])
    top, bottom = grid[0].subgridspec(1, 3), grid[1].subgridspec(1, len(models))
    axes = [fig.add_subplot(top[0, i]) for i in range(3)]
    means = [100 * record["metrics"][f"{label}_accuracy"]["mean"] for label in models]
    spreads = [100 * (record["metrics"][f"{label}_accuracy"]["spread"] or 0.0) for label in models]
    axes[0].barh(list(models), means, xerr=spreads, color="#3b6fb6")
    axes[0].set_xlabel(f"test accuracy, %, {record['data']['name']}")
    axes[0].invert_yaxis()
    for ax, key, text in ((axes[1], "images_per_second", "images a second"), (axes[2], "gigabytes", "temporary GB")):
        for label, row in models.items():
            ax.plot([c["side"] for c in row["costs"]], [c[key] for c in row["costs"]], marker="o", label=label)
        sides = record["config"]["sizes"]
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xticks(sides, labels=map(str, sides))
        ax.minorticks_off()
        ax.set_xlabel("side of the image, pixels")
        ax.set_ylabel(f"{text}, forward, batch {record['config']['cost_batch']}")
    axes[1].legend(fontsize=8)
    for i, (label, row) in enumerate(models.items()):
        ax = fig.add_subplot(bottom[0, i])
        ax.imshow(np.sqrt(row["receptive_field"]), cmap="magma", vmin=0, vmax=1)
        ax.set_title(f"{label}\n{row['parameters']:,} parameters", fontsize=9)
        ax.set_axis_off()
    plots.save(fig, figure, dpi=120)


def table(report: dict[str, Any]) -> str:
    """One row for each model, in Markdown."""
    sizes = report["config"]["sizes"]
    columns = [f"images/s, {side} px" for side in sizes] + [f"GB, {sizes[-1]} px"]
    lines = [f"| model | parameters | GFLOPs, {sizes[0]} px | test accuracy, % | {' | '.join(columns)} |"]
    lines.append("|---" * (4 + len(columns)) + "|")
    for label, row in report["models"].items():
        found = report["metrics"][f"{label}_accuracy"]
        spread = "" if found["spread"] is None else f" ± {100 * found['spread']:.2f}"
        cells = [label, f"{row['parameters']:,}", f"{row['costs'][0]['gigaflops']:.2f}"]
        cells.append(f"{100 * found['mean']:.2f}{spread}")
        cells += [f"{c['images_per_second']:.0f}" for c in row["costs"]] + [f"{row['costs'][-1]['gigabytes']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    common.run_cli(main, Config)
