"""What each part of Vision Mamba and of its recipe is worth on CIFAR-10.

The claim: at one budget for all, what is left out of the model and of the training of `experiments.vim_cifar` costs
accuracy, and the table says how much. Two models are varied: the compact one with stages that reaches the most, and a
plain Vim of 64 tokens, for what only it has: a class token and a position embedding.

Recipes (device, minutes, what is expected):
    python -m experiments.vim_ablation                    one Hopper GPU, 45; 84 to 90 % at 15 epochs
    python -m experiments.vim_ablation --data digits      two CPU cores, 60; no download, and little to see

Every variant is trained once; those with the largest effects, and the models that they are compared with, three times.
Accuracies are those of 5,000 training images that are held out, so that settings can be chosen by them: one standard
error of a difference is about 0.6 points. Regularization pays in longer trainings than these.

Started several times at once, one process a GPU, the processes share the runs; the same command resumes one that was
stopped. `--smoke` is a check of the plumbing, not a result.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import ssmjax
from experiments import vim_cifar
from experiments.shared import classifier, common, image
from experiments.shared.plots_ablation import draw, largest
from experiments.shared.shared_runs import share
from ssmjax.data import AugmentConfig, ImageData
from ssmjax.errors import require_known
from ssmjax.training.compilation import enable_compilation_cache
from ssmjax.training.report import make_report, write_report

NAME = "vim_ablation"
BASES = {"compact": "vim_compact_small", "plain": "vim_nano"}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One change.

    Attributes:
        base: What is changed, a name in `BASES`.
        text: The change in words.
        model: Changed fields of the model.
        settings: Changed settings of the training.
        augment: Changed fields of the augmentation.
        unmixed: The share of the training, at its end, without mixup and cutmix.
    """

    base: str
    text: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    augment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unmixed: float = vim_cifar.UNMIXED


VARIANTS = {
    "compact": Variant("compact", "as in vim_cifar: stages, both directions, N = 4, AdamW"),
    "one_direction": Variant("compact", "one direction", {"bidirectional": "none"}),
    "v1": Variant("compact", "directions differ in A only (v1)", {"bidirectional": "v1"}),
    "no_stages": Variant("compact", "no stages: 64 tokens", {"widths": (216,), "depths": (10,), "stem_stride": 4}),
    "no_local_conv": Variant("compact", "no 3 x 3 depthwise convolutions", {"local_conv": False}),
    "rows_only": Variant("compact", "all blocks read rows", {"alternate_axes": False}),
    "state_1": Variant("compact", "N = 1", {"d_state": 1}),
    "state_16": Variant("compact", "N = 16", {"d_state": 16}),
    "no_drop_path": Variant("compact", "no drop path", settings={"drop_path": 0.0}),
    "ema": Variant("compact", "with a moving average of the parameters", settings={"ema_decay": 0.998}),
    "muon": Variant("compact", "Muon instead of AdamW", settings={"optimizer": "muon"}),
    "no_trivial": Variant("compact", "no TrivialAugment", augment={"trivial": False}),
    "no_mixing": Variant("compact", "no mixup and cutmix", augment={"mixup_alpha": 0.0, "cutmix_alpha": 0.0}),
    "mixing_to_the_end": Variant("compact", "mixup and cutmix to the end", unmixed=0.0),
    "no_erasing": Variant("compact", "no random erasing", augment={"erase_probability": 0.0}),
    "plain": Variant("plain", "plain Vim: class token in the middle, positions, v2"),
    "plain_one_direction": Variant("plain", "one direction", {"bidirectional": "none"}),
    "plain_v1": Variant("plain", "directions differ in A only (v1)", {"bidirectional": "v1"}),
    "plain_no_position": Variant("plain", "no position embedding", {"pos_embed": False}),
    "plain_head": Variant("plain", "class token at the head", {"class_token": "head"}),
    "plain_double": Variant("plain", "class tokens at both ends", {"class_token": "double"}),
    "plain_mean": Variant("plain", "mean of all tokens, no class token", {"class_token": "none", "pool": "mean"}),
}
"""By name; the bases come before what is changed of them."""


@dataclasses.dataclass(frozen=True)
class Config(image.Config):
    """Every field is a flag; a field that is None takes the recipe's value for the data set."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: int = 3
    """Seeds of the largest effects; all others have one."""
    effects: int = 4
    """How many effects get all seeds."""
    model: str = "vim_compact_small"
    """Has no effect here: see `variants`."""
    optimizer: str = "adamw"
    """adamw or muon."""
    drop_path: float = 0.05
    held_out: int | None = None
    minutes: float | None = None
    """Stop this call after so long; the same command goes on from there."""


_RECIPE = {"epochs": 15, "batch_size": 256, "learning_rate": 2e-3, "held_out": 5000}
_DIGITS = {"epochs": 5, "batch_size": 64, "learning_rate": 1e-3, "held_out": 300}
RECIPES = {"cifar10": _RECIPE, "cifar100": _RECIPE, "digits": _DIGITS}


def experiment(name: str, config: Config) -> image.Experiment:
    """The training of a variant."""
    variant = VARIANTS[name]
    digits = {"flip": False, "crop_padding": 1} if config.data == "digits" else {}
    varied: AugmentConfig = dataclasses.replace(vim_cifar.VARIED, **digits, **variant.augment)

    def build(config: Config, data: ImageData, seed: int) -> Any:
        fields = {"img_size": data.image_shape[0], "drop_path_rate": config.drop_path, **variant.model}
        options = dict(num_classes=data.num_classes, in_channels=data.image_shape[2], seed=seed, dtype=config.dtype)
        return ssmjax.create_model(BASES[variant.base], **options, **fields)

    return image.Experiment(
        f"{NAME}-{name}",
        RECIPES,
        optimizer=vim_cifar.optimizer,
        augment=lambda config: varied,
        unmixed=variant.unmixed,
        build=build,
    )


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains all variants, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields; `main(Config(data="digits", smoke=True))` works in a notebook.

    Returns:
        What the results file holds.
    """
    command = common.command(NAME, config, Config())
    deadline = None if config.minutes is None else time.monotonic() + 60 * config.minutes
    config = resolve(config)
    data = image.load(config)
    enable_compilation_cache()
    classifier.announce(data, f"{len(config.variants)} variants", config.dtype)
    runs = _share(config, data, [(name, config.seed) for name in config.variants], deadline)
    found = {name: [run] for name, run in zip(config.variants, runs, strict=True)}
    again = _again(config, found)
    more = [(name, config.seed + i) for i in range(1, config.seeds) for name in again]
    for (name, _), run in zip(more, _share(config, data, more, deadline), strict=True):
        found[name].append(run)
    report = make_report(
        NAME,
        command=command,
        config=common.identity(config) | {"seeds": config.seeds},
        runs=[_first(config, found)],
        data=image.describe(data),
        variants={name: _row(name, found[name], found) for name in config.variants},
    )
    results, figure = common.result_paths(config.out_dir, _result_name(config))
    write_report(results, report)
    draw(results, figure)
    print(f"\n{table(report)}\nresults {results}\nfigure  {figure}")
    return report


def resolve(config: Config) -> Config:
    """Fills in the recipe, and refuses what cannot work."""
    for name in config.variants:
        require_known("variant", name, VARIANTS)
    bases = dict.fromkeys(VARIANTS[name].base for name in config.variants)
    variants = tuple(dict.fromkeys((*bases, *config.variants)))
    if config.smoke:
        variants = ("plain", "plain_mean") if set(variants) == set(VARIANTS) else variants[:2]
    return image.resolve(experiment(variants[0], config), dataclasses.replace(config, variants=variants))


def _share(config: Config, data: ImageData, wanted: list[tuple[str, int]], deadline: float | None) -> list[Any]:
    """The outcomes of variants and seeds, made here or by other processes of the same command."""
    runs = {}
    for name, seed in wanted:
        own = dataclasses.replace(config, **VARIANTS[name].settings, seed=seed, variants=(name,), effects=0)
        folder = image.run_folder(experiment(name, own), own, seed)
        runs[folder] = lambda minutes, name=name, own=own, seed=seed: _train(name, own, data, seed, minutes)
    found = share(runs, deadline=deadline, fresh=not config.resume)
    if found is None:
        print(f"\nThe minutes are over; the same command goes on from {config.runs_dir}.")
        sys.exit(0)
    return found


def _train(name: str, config: Config, data: ImageData, seed: int, minutes: float | None) -> dict[str, Any]:
    print(f"\n{name}, seed {seed}: {VARIANTS[name].text}", flush=True)
    run = image.train_seed(experiment(name, config), dataclasses.replace(config, minutes=minutes), data, seed)
    metrics = run["metrics"]
    print(f"{name}, seed {seed}: accuracy {metrics['test_accuracy']:.4f} in {run['seconds']:.0f} s", flush=True)
    return {
        "seed": seed,
        "seconds": run["seconds"],
        "accuracy": metrics["test_accuracy"],
        "loss": metrics["test_loss"],
        "train_loss": run["curves"]["train"]["loss"][-1],
        "parameters": run["parameters"],
    }


def _again(config: Config, found: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """The variants that get all seeds: those of the largest effects, and what they are compared with."""
    if config.smoke:
        return []
    effects = largest({name: _row(name, runs, found) for name, runs in found.items()}, config.effects)
    return [*dict.fromkeys(VARIANTS[name].base for name in effects), *effects]


def _first(config: Config, found: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The runs of the first seed, as one run of a report."""
    metrics = {f"{name}_accuracy": runs[0]["accuracy"] for name, runs in found.items()}
    seconds = sum(runs[0]["seconds"] for runs in found.values())
    return {"seed": config.seed, "seconds": seconds, "metrics": metrics}


def _row(name: str, runs: list[dict[str, Any]], found: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """A variant in the report. Its effect compares the seeds that it has in common with its base."""
    base, accuracies = found[VARIANTS[name].base], [run["accuracy"] for run in runs]
    common_seeds = [run["accuracy"] for run in base][: len(accuracies)]
    return {
        "base": VARIANTS[name].base,
        "text": VARIANTS[name].text,
        "accuracy": statistics.fmean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "accuracies": accuracies,
        "effect": statistics.fmean(accuracies) - statistics.fmean(common_seeds),
        "loss": statistics.fmean(run["loss"] for run in runs),
        "train_loss": statistics.fmean(run["train_loss"] for run in runs),
        "seconds": statistics.fmean(run["seconds"] for run in runs),
        "parameters": runs[0]["parameters"],
    }


def _result_name(config: Config) -> str:
    claim = resolve(Config(data=config.data, seed=config.seed, dtype=config.dtype))
    parts = [NAME, *([] if config.data == Config.data else [config.data])]
    return classifier.result_name(parts, config, claim)


def table(report: dict[str, Any]) -> str:
    """One row for each variant, in Markdown, the effects of each model from the best to the worst."""
    epochs, kept = report["config"]["epochs"], report["data"]["test"]
    head = f"accuracy on {kept:,} held-out images after {epochs} epochs, %"
    lines = [f"| variant | {head} | against the model above, points | seeds | parameters | seconds a seed |"]
    lines.append("|---" * 6 + "|")
    for base in BASES:
        rows = {name: row for name, row in report["variants"].items() if row["base"] == base}
        for name, row in sorted(rows.items(), key=lambda item: (item[0] != base, -item[1]["effect"])):
            spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.2f}"
            cells = [f"**{row['text']}**" if name == base else row["text"], f"{100 * row['accuracy']:.2f}{spread}"]
            cells.append("" if name == base else f"{100 * row['effect']:+.2f}")
            cells += [str(len(row["accuracies"])), f"{row['parameters']:,}", f"{row['seconds']:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    common.run_cli(main, Config)
