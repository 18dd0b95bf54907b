"""Vision Mamba trained from scratch on small images.

The claim: with small patches, a convolution stem and a sensible learning rate, a Vim of about a million parameters
passes 85 % on CIFAR-10 in minutes on one GPU; the public ports of Vim to CIFAR-10 report 24 to 68 %.

Recipe (device, minutes a seed, expected test accuracy of the last epoch):
    python -m experiments.vim_cifar --data digits        two CPU cores, under 5, 97 % or more
    python -m experiments.vim_cifar --data mnist         one H100, under 5, 98.5 % or more
    python -m experiments.vim_cifar --seeds 3            one H100, under 8, 85 % or more

The test set is read for the curves too; what is reported is the last epoch, never the best one. The same command
resumes a run that was stopped or killed. `--data digits` needs no download. `--smoke` is a check of the plumbing, not
a result.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ssmjax
from experiments import common, plots
from ssmjax.data import AugmentConfig, Batches, ImageData, augment, eval_batches, load_images, normalize
from ssmjax.errors import bad_argument
from ssmjax.training.compilation import enable_compilation_cache
from ssmjax.training.evaluate import evaluate
from ssmjax.training.fit import FitConfig, fit
from ssmjax.training.guards import TrainingDiverged
from ssmjax.training.losses import softmax_cross_entropy
from ssmjax.training.optim import adamw
from ssmjax.training.report import make_report, render_table, write_report

NAME = "vim_cifar"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What suits a data set: epochs, batch, learning rate, augmentation, and the model's geometry."""

    epochs: int
    batch_size: int
    learning_rate: float
    augment: AugmentConfig
    img_size: int
    patch_size: int = 4


_HANDWRITING = dataclasses.replace(AugmentConfig.none(), crop_padding=2)
_PHOTOGRAPHS = dataclasses.replace(AugmentConfig.none(), crop_padding=4, flip=True, erase_probability=0.25)

RECIPES = {
    "digits": Recipe(15, 64, 2e-3, dataclasses.replace(_HANDWRITING, crop_padding=1), img_size=16),
    "mnist": Recipe(10, 256, 2e-3, _HANDWRITING, img_size=28),
    "fashion_mnist": Recipe(30, 256, 2e-3, dataclasses.replace(_HANDWRITING, flip=True), img_size=28),
    "cifar10": Recipe(45, 512, 3e-3, _PHOTOGRAPHS, img_size=32),
    "cifar100": Recipe(45, 512, 3e-3, _PHOTOGRAPHS, img_size=32),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field is a flag; a field that is None takes the recipe's value for the data set."""

    data: str = "cifar10"
    """cifar10, cifar100, mnist, fashion_mnist or digits (embedded, no download)."""
    model: str = "vim_nano"
    """vim_nano, vim_tiny, vim_small or vim_base."""
    data_dir: Path | None = None
    """Folder of prepared TFDS data sets (default: ~/tensorflow_datasets)."""
    download_dir: Path | None = None
    """Folder with the official archives, placed by hand."""
    epochs: int | None = None
    steps: int | None = None
    """Training steps, instead of epochs."""
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    drop_path: float = 0.0
    ema_decay: float | None = None
    patch_size: int | None = None
    depth: int | None = None
    stem: str | None = None
    """patch (as published) or conv; None is the model's own."""
    dtype: str = "auto"
    """Compute type: float32, bfloat16, float16, or auto (bfloat16 where the device has it)."""
    seed: int = 0
    seeds: int = 1
    """How many seeds, from `seed` on; the table gives mean and spread."""
    smoke: bool = False
    """A few steps on a few images: checks that everything runs."""
    resume: bool = True
    """Go on from the newest good checkpoint; --no-resume starts anew."""
    out_dir: Path = Path(".")
    """Where experiments/results and figures are written."""
    runs_dir: Path = Path("runs")
    """Where checkpoints and logs go."""
    profile: bool = False
    """Writes a jax.profiler trace of ten steps into the run's folder."""
    tensorboard: bool = False
    progress: bool = True


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains, evaluates, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields; `main(Config(data="digits", smoke=True))` works in a notebook.

    Returns:
        What the results file holds, and the folder of the first seed's `weights`.
    """
    command = common.command(NAME, config, Config())
    config = _resolve(config)
    data = _load(config)
    enable_compilation_cache()
    device = jax.devices()[0]
    print(f"{data}\n{config.model} in {config.dtype} on {device.device_kind}")
    runs = [_run(config, data, config.seed + i) for i in range(config.seeds)]
    report = make_report(
        NAME,
        command=command,
        config=common.identity(config),
        runs=runs,
        data=_describe(data),
        curves=[run["curves"] for run in runs],
        confusion=runs[0]["confusion"],
        predictions=runs[0]["predictions"],
        parameters=runs[0]["parameters"],
    )
    results, figure = common.result_paths(config.out_dir, _result_name(config))
    write_report(results, report)
    plots.draw_classifier(results, figure)
    print(f"\n{render_table(report)}\nresults {results}\nfigure  {figure}\nweights {runs[0]['weights']}")
    return report | {"weights": runs[0]["weights"]}


def _resolve(config: Config) -> Config:
    """Fills in the recipe, and refuses what cannot work before anything is loaded."""
    if config.data not in RECIPES:
        raise ssmjax.errors.unknown_name("data set", config.data, list(RECIPES))
    for field in ("epochs", "steps", "batch_size", "seeds", "learning_rate"):
        value = getattr(config, field)
        if value is not None and not 0 < value < math.inf:
            raise bad_argument(NAME, field, value, "positive and finite")
    for field, limit in {
        "label_smoothing": 1,
        "drop_path": 1,
        "ema_decay": 1,
        "weight_decay": math.inf,
        "seed": 2**63,
    }.items():
        value = getattr(config, field)
        if value is not None and not 0 <= value < limit:
            raise bad_argument(NAME, field, value, f"at least 0 and less than {limit}")
    if config.dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise bad_argument(NAME, "dtype", config.dtype, "auto, float32, bfloat16 or float16")
    ssmjax.model_config(config.model)  # an unknown model is an error now, not after the data
    for flag in ("out_dir", "runs_dir"):
        common.require_writable(flag, getattr(config, flag))
    recipe = RECIPES[config.data]
    filled = {name: getattr(recipe, name) for name in ("epochs", "batch_size", "learning_rate", "patch_size")}
    filled = {name: value for name, value in filled.items() if getattr(config, name) is None}
    if config.dtype == "auto":
        filled["dtype"] = common.accelerator_dtype()
    if config.smoke:
        filled |= {"epochs": 2, "batch_size": 16, "depth": config.depth or 2, "seeds": 1}
    return dataclasses.replace(config, **filled)


def _load(config: Config) -> ImageData:
    data = load_images(config.data, data_dir=config.data_dir, download_dir=config.download_dir)
    size = RECIPES[config.data].img_size
    if data.image_shape[0] != size:
        data = data.resized(size)
    if config.smoke:
        few = {
            name: getattr(data, name)[:64] for name in ("train_images", "train_labels", "test_images", "test_labels")
        }
        data = dataclasses.replace(data, **few)
    return data


def _run(config: Config, data: ImageData, seed: int) -> dict[str, Any]:
    """Trains and evaluates one seed; goes on from its checkpoints if there are any."""
    batches = Batches(data.train_images, data.train_labels, config.batch_size, seed=seed)
    per_epoch = batches.steps_per_epoch
    steps = config.steps or config.epochs * per_epoch
    every = per_epoch * math.ceil(steps / per_epoch / 30)
    run_dir = config.runs_dir / f"{NAME}-{config.data}-{config.model}-{common.config_digest(config)}" / f"seed{seed}"
    prepare = _make_prepare(data, RECIPES[config.data].augment, config)
    batch_size = min(config.batch_size, len(data.test_images))
    test = functools.partial(eval_batches, data.test_images, data.test_labels, batch_size)

    def scores(model: Any, step: int) -> dict[str, float]:
        del step
        found = evaluate(model, test(), prepare=prepare)
        return {"loss": found["loss"], "accuracy": found["accuracy"]}

    result = fit(
        _create_model(config, data, seed),
        _loss,
        batches.at,
        steps=steps,
        optimizer=adamw(
            config.learning_rate, steps=steps, warmup_steps=steps // 20, weight_decay=config.weight_decay, end=1e-5
        ),
        config=_fit_config(config, seed, run_dir, log_every=max(1, per_epoch // 4), every=every),
        prepare=prepare,
        eval_fn=scores,
        run_config={"experiment": NAME, "config": common.identity(config), "data": data.checksum},
    )
    if result.interrupted:
        print(f"\nInterrupted at step {int(result.state.step)} of {steps}; the same command goes on from {run_dir}.")
        sys.exit(result.exit_code)
    trained = result.ema_model or result.model
    final = evaluate(trained, test(), prepare=prepare)
    if not math.isfinite(final["loss"]):
        raise TrainingDiverged(f"The test loss of the trained model is {final['loss']}; nothing was written.", final)
    ssmjax.save_pretrained(trained, run_dir / "weights")
    return {
        "seed": seed,
        "seconds": result.seconds,
        "metrics": {"test_accuracy": final["accuracy"], "test_loss": final["loss"]},
        "confusion": final["confusion"],
        "curves": {"train": _curve(result.train, per_epoch), "test": _curve(result.evals, per_epoch)},
        "predictions": _predictions(trained, data, prepare),
        "parameters": sum(x.size for x in result.state.params.values()),
        "weights": run_dir / "weights",
    }


def _create_model(config: Config, data: ImageData, seed: int) -> Any:
    chosen = {name: getattr(config, name) for name in ("patch_size", "depth", "stem")}
    return ssmjax.create_model(
        config.model,
        num_classes=data.num_classes,
        seed=seed,
        dtype=config.dtype,
        img_size=data.image_shape[0],
        in_channels=data.image_shape[2],
        drop_path_rate=config.drop_path,
        **{name: value for name, value in chosen.items() if value is not None},
    )


def _fit_config(config: Config, seed: int, run_dir: Path, *, log_every: int, every: int) -> FitConfig:
    return FitConfig(
        seed=seed,
        log_every=log_every,
        eval_every=every,
        save_every=every,
        checkpoint_dir=str(run_dir),
        fresh=not config.resume,
        ema_decay=config.ema_decay,
        progress=config.progress,
        unit="images",
        tensorboard_dir=str(run_dir / "tensorboard") if config.tensorboard else None,
        profile_dir=str(run_dir / "profile") if config.profile else None,
    )


def _make_prepare(data: ImageData, augmentation: AugmentConfig, config: Config) -> Callable[..., Any]:
    """What happens to a batch on the device: augmentation and soft labels in training, and normalization."""

    def prepare(batch: Mapping[str, Any], key: jax.Array | None, train: bool) -> dict[str, Any]:
        images, labels = batch["image"], batch["label"]
        if train:
            labels = optax.smooth_labels(jax.nn.one_hot(labels, data.num_classes), config.label_smoothing)
            images, labels = augment(key, images, labels, augmentation)
        return {**batch, "image": normalize(images, data.mean, data.std), "label": labels}

    return prepare


def _loss(model: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    logits = model(batch["image"], train=True, key=key)
    right = jnp.argmax(logits, -1) == jnp.argmax(batch["label"], -1)
    return softmax_cross_entropy(logits, batch["label"]).mean(), {"accuracy": right.mean()}


def _predictions(model: Any, data: ImageData, prepare: Callable[..., Any], count: int = 12) -> dict[str, Any]:
    """The first test images and what the model takes them for."""
    images, labels = data.test_images[:count], data.test_labels[:count]
    logits = model(prepare({"image": images, "label": labels}, None, False)["image"])
    predicted = np.asarray(jnp.argmax(logits, -1))
    return {"images": plots.encode_images(images), "label": labels.tolist(), "predicted": predicted.tolist()}


def _curve(records: list[dict[str, Any]], per_epoch: int) -> dict[str, list[float]]:
    return {
        "epoch": [round(record["step"] / per_epoch, 3) for record in records],
        "loss": [record["loss"] for record in records],
        "accuracy": [record["accuracy"] for record in records],
    }


def _describe(data: ImageData) -> dict[str, Any]:
    return {
        "name": data.name,
        "sha256": data.checksum,
        "source": data.source.partition(" in ")[0],  # without the folder, which is of one machine
        "train": len(data.train_images),
        "test": len(data.test_images),
        "class_names": list(data.class_names),
    }


def _result_name(config: Config) -> str:
    """The claim is CIFAR-10 by its recipe; other data, models and settings, and smoke runs, get files of their own."""
    claim = _resolve(Config(data=config.data, seed=config.seed, dtype=config.dtype))
    parts = [NAME] if config.data == "cifar10" else [NAME, config.data]
    if config.smoke:
        parts.append("smoke")
    elif common.identity(config) != common.identity(claim):
        parts += [config.model, common.config_digest(config)]
    return "_".join(parts)


if __name__ == "__main__":
    common.run_cli(main, Config)
