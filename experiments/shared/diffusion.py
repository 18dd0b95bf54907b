"""What experiments with diffusion share: settings, training, drawing in batches, measures of quality, the report."""

import dataclasses
import functools
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

import ssmjax
from experiments.shared import classifier, common, image, judge, plots, plots_diffusion
from ssmjax.data import Batches, ImageData, load_images
from ssmjax.diffusion import (
    SAMPLERS,
    Schedule,
    cosine_schedule,
    diffusion_loss,
    frechet_distance,
    linear_schedule,
    precision_recall,
    sample,
)
from ssmjax.training.compilation import enable_compilation_cache
from ssmjax.training.fit import FitConfig, FitResult, fit
from ssmjax.training.optim import adamw
from ssmjax.training.report import make_report, render_table, write_report

__all__ = ["Config", "Recipe", "draw", "run"]

SCHEDULES = {"cosine": cosine_schedule, "linear": linear_schedule}
CURVE_STEPS = (5, 10, 25, 50)
FULL_STEPS, QUICK_STEPS = 250, 50
BATCH = 500


@dataclasses.dataclass(frozen=True)
class Config(classifier.Config):
    """The settings of an experiment with diffusion; one that is None takes the recipe's value for the data set."""

    data: str = ""
    """The data set."""
    model: str = "dis_nano"
    """The named size whose fields below are changed."""
    patch_size: int | None = None
    d_model: int | None = None
    depth: int | None = None
    schedule: str = "cosine"
    """cosine or linear."""
    ema_decay: float = 0.999
    guidance: float = 2.0
    """The scale of classifier-free guidance in the grid and in the share that is recognised."""
    sampler: str = "ddim"
    """ddim, ddpm or dpm++, for the same two."""
    samples: int | None = None
    """How many samples the measures of quality are taken on."""
    judge_epochs: int | None = None
    """How long the classifiers are trained that measure."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What suits a data set."""

    epochs: int
    batch_size: int
    learning_rate: float
    patch_size: int
    d_model: int
    depth: int
    samples: int
    judge_epochs: int


def run(name: str, recipes: Mapping[str, Recipe], config: Config) -> dict[str, Any]:
    """What the `main` of an experiment does.

    Args:
        name: The experiment's name.
        recipes: The values of settings that are None, by data set.
        config: The settings as the user gave them.

    Returns:
        What the results file holds, and the folder of the first seed's `weights`.
    """
    command = common.command(name, config, type(config)())
    filled = _resolve(name, recipes, config)
    data = _load(filled)
    enable_compilation_cache()
    classifier.announce(data, filled.model, filled.dtype)
    runs = [_run(name, filled, data, filled.seed + i) for i in range(filled.seeds)]
    claim = _resolve(name, recipes, type(config)(data=config.data, seed=config.seed, dtype=filled.dtype))
    parts = [name] if filled.data == "digits" else [name, filled.data]
    results, figure = common.result_paths(filled.out_dir, classifier.result_name(parts, filled, claim))
    shared = {key: [run[key] for run in runs] for key in ("curves", "quality")}
    pictures = {key: runs[0][key] for key in ("grid", "path", "real", "confusion", "parameters")}
    report = make_report(
        name,
        command=command,
        config=common.identity(filled),
        runs=runs,
        data=image.describe(data),
        **shared,
        **pictures,
    )
    write_report(results, report)
    plots_diffusion.draw(results, figure)
    weights = runs[0]["weights"]
    print(f"\n{render_table(report)}\nresults {results}\nfigure  {figure}\nweights {weights}")
    return report | {"weights": weights}


def draw(
    model: Any, labels: np.ndarray, key: jax.Array, *, progress: bool = True, batch: int = BATCH, **options: Any
) -> np.ndarray:
    """Images (b y x d) from -1 to 1, drawn in batches of one shape, for which there is one program.

    Args:
        model: The network.
        labels: (b), their classes.
        key: The random key.
        progress: Whether to show a progress bar.
        batch: The size of a batch.
        **options: Those of `ssmjax.diffusion.sample`.
    """
    batch = min(batch, len(labels))
    padded = np.concatenate([labels, np.zeros(-len(labels) % batch, labels.dtype)]).reshape(-1, batch)
    what = f"{options.get('sampler', 'ddim')}, {options.get('steps', QUICK_STEPS)} steps"
    bar = tqdm(total=len(labels), desc=what, unit=" images", disable=not progress)
    parts = []
    for i, part in enumerate(padded):
        parts.append(np.asarray(sample(model, part, key=jax.random.fold_in(key, i), **options)))
        bar.update(min(batch, len(labels) - i * batch))
    bar.close()
    return np.concatenate(parts)[: len(labels)]


def _resolve(name: str, recipes: Mapping[str, Recipe], config: Config) -> Config:
    """Fills in the recipe, and refuses what cannot work before anything is loaded."""
    for kind, value, known in (
        ("data set", config.data, recipes),
        ("schedule", config.schedule, SCHEDULES),
        ("sampler", config.sampler, SAMPLERS),
    ):
        if value not in known:
            raise ssmjax.errors.unknown_name(kind, value, list(known))
    classifier.check(name, config, {"ema_decay": 1, "guidance": 100})
    ssmjax.model_config(config.model)
    recipe = dataclasses.asdict(recipes[config.data])
    filled = {field: value for field, value in recipe.items() if getattr(config, field) is None}
    if config.dtype == "auto":
        filled["dtype"] = common.accelerator_dtype()
    if config.smoke:
        filled |= {
            "epochs": 2,
            "batch_size": 16,
            "d_model": 16,
            "depth": 2,
            "samples": 20,
            "judge_epochs": 1,
            "seeds": 1,
        }
    return dataclasses.replace(config, **filled)


def _load(config: Config) -> ImageData:
    """The images in their own size."""
    data = load_images(config.data, data_dir=config.data_dir, download_dir=config.download_dir)
    if not config.smoke:
        return data
    names = ("train_images", "train_labels", "test_images", "test_labels")
    return dataclasses.replace(data, **{name: getattr(data, name)[:64] for name in names})


def _run(name: str, config: Config, data: ImageData, seed: int) -> dict[str, Any]:
    """Trains, draws and measures one seed."""
    trained = _of_training(config, seed)
    schedule = SCHEDULES[config.schedule]()
    run_dir = config.runs_dir / f"{name}-{config.data}-{common.config_digest(trained)}" / f"seed{seed}"
    result = _train(name, trained, data, schedule, seed, run_dir)
    began, model = time.perf_counter(), result.ema_model
    ssmjax.save_pretrained(model, run_dir / "weights")
    judges = [
        judge.train_judge(data, epochs=config.judge_epochs, seed=1000 + seed + i, progress=config.progress)
        for i in range(2)
    ]
    found = _measure(model, config, data, schedule, judges, jax.random.key(seed))
    per_epoch = max(1, len(data.train_images) // (config.batch_size or 1))
    return {
        "seed": seed,
        "seconds": result.seconds + time.perf_counter() - began,
        "parameters": sum(x.size for x in result.state.params.values()),
        "curves": [{"epoch": row["step"] / per_epoch, "loss": row["loss"], "mse": row["mse"]} for row in result.train],
        "weights": run_dir / "weights",
        **found,
    }


def _of_training(config: Config, seed: int) -> Config:
    """The settings that decide the training of a seed, without those of drawing and measuring."""
    drawing = {field: getattr(Config, field) for field in ("guidance", "sampler", "samples", "judge_epochs")}
    return dataclasses.replace(config, seed=seed, **drawing)


def _train(name: str, config: Config, data: ImageData, schedule: Schedule, seed: int, run_dir: Path) -> FitResult:
    """Trains the network; goes on from its checkpoints if there are any."""
    rows, columns, channels = data.image_shape
    model = ssmjax.create_model(
        config.model,
        num_classes=data.num_classes,
        seed=seed,
        dtype=config.dtype,
        img_size=(rows, columns),
        in_channels=channels,
        patch_size=config.patch_size,
        d_model=config.d_model,
        depth=config.depth,
        scan_together=jax.default_backend() == "gpu",  # half as many steps to launch
    )
    batches = Batches(data.train_images, data.train_labels, config.batch_size, seed=seed)
    steps = config.steps or config.epochs * batches.steps_per_epoch
    result = fit(
        model,
        functools.partial(diffusion_loss, schedule=schedule),
        batches.at,
        steps=steps,
        optimizer=adamw(
            config.learning_rate, steps=steps, warmup_steps=steps // 20, weight_decay=config.weight_decay, end=1e-5
        ),
        config=FitConfig(
            seed=seed,
            log_every=max(1, steps // 100),
            save_every=max(1, steps // 10),
            checkpoint_dir=str(run_dir),
            fresh=not config.resume,
            ema_decay=config.ema_decay,
            time_limit=None if config.minutes is None else 60 * config.minutes,
            progress=config.progress,
            unit="images",
        ),
        prepare=_prepare,
        run_config={"experiment": name, "config": common.identity(config), "data": data.checksum},
    )
    if not result.finished:
        why = "Interrupted" if result.interrupted else "The minutes are over"
        print(f"\n{why} at step {int(result.state.step)} of {steps}; the same command goes on from {run_dir}.")
        sys.exit(result.exit_code)
    return result


def _prepare(batch: Mapping[str, Any], key: jax.Array | None, train: bool) -> dict[str, Any]:
    return {"image": judge.to_unit(batch["image"]), "label": batch["label"]}


def _measure(
    model: Any, config: Config, data: ImageData, schedule: Schedule, judges: Any, key: jax.Array
) -> dict[str, Any]:
    """Draws for the grid, the path and the measures, and takes them."""
    (first, _), (second, accuracy) = judges
    many = functools.partial(draw, model, schedule=schedule, progress=config.progress)
    quick, full = (3, 5) if config.smoke else (QUICK_STEPS, FULL_STEPS)
    labels = np.arange(config.samples) % data.num_classes
    keys = iter(jax.random.split(key, 4 + len(SAMPLERS) * len(CURVE_STEPS)))
    guided = many(labels, next(keys), steps=quick, sampler=config.sampler, guidance=config.guidance)
    classes, _ = judge.judged(second, guided)
    real = judge.to_unit(data.train_images[: max(config.samples, BATCH)])
    real_features = judge.judged(first, np.asarray(real))[1]

    def distance(count: int, **options: Any) -> tuple[float, np.ndarray]:
        features = judge.judged(first, many(labels[:count], next(keys), **options))[1]
        return frechet_distance(real_features, features), features

    ddpm, _ = distance(config.samples, steps=full, sampler="ddpm")
    ddim, features = distance(config.samples, steps=quick, sampler="ddim")
    precision, recall = precision_recall(real_features, features)
    fewer, steps = min(config.samples // 2, 2000), (2, 3) if config.smoke else CURVE_STEPS
    quality = {name: [distance(fewer, steps=n, sampler=name)[0] for n in steps] for name in SAMPLERS}
    _, path = sample(
        model, np.arange(data.num_classes), key=next(keys), schedule=schedule, steps=quick, sampler=config.sampler,
        guidance=config.guidance, return_path=True,
    )  # fmt: skip
    shown = np.linspace(0, quick - 1, min(10, quick)).round().astype(int)
    per_class = min(10, config.samples // data.num_classes)
    rows = np.argsort(labels[: per_class * data.num_classes], kind="stable")
    return {
        "metrics": {
            "recognised": float((classes == labels).mean()),
            "judge_accuracy": accuracy,
            "frechet_ddim_50": ddim,
            "frechet_ddpm_250": ddpm,
            "precision": precision,
            "recall": recall,
        },
        "confusion": np.asarray(jax.nn.one_hot(labels, data.num_classes).T @ jax.nn.one_hot(classes, data.num_classes)),
        "quality": {"steps": list(steps), "samples": fewer, **quality},
        "grid": _packed(guided[rows]),
        "path": _packed(np.asarray(path)[shown].swapaxes(0, 1).reshape(-1, *data.image_shape)),
        "real": _packed(np.asarray(_some_of_each(data, per_class))),
    }


def _some_of_each(data: ImageData, count: int) -> jax.Array:
    """The first real images of each class, in the order of the grid."""
    rows = [np.flatnonzero(data.train_labels == label)[:count] for label in range(data.num_classes)]
    return judge.to_unit(data.train_images[np.concatenate(rows)])


def _packed(images: np.ndarray) -> dict[str, Any]:
    return plots.encode_images(np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8))
