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
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ssmjax
from experiments import classifier, common, plots
from ssmjax.data import AugmentConfig, Batches, ImageData, augment, eval_batches, load_images, normalize
from ssmjax.training.compilation import enable_compilation_cache
from ssmjax.training.losses import softmax_cross_entropy
from ssmjax.training.optim import adamw

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
class Config(classifier.Config):
    """Every field is a flag; a field that is None takes the recipe's value for the data set."""

    data: str = "cifar10"
    """cifar10, cifar100, mnist, fashion_mnist or digits (embedded, no download)."""
    model: str = "vim_nano"
    """vim_nano, vim_tiny, vim_small or vim_base."""
    drop_path: float = 0.0
    ema_decay: float | None = None
    patch_size: int | None = None
    depth: int | None = None
    stem: str | None = None
    """patch (as published) or conv; None is the model's own."""


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
    classifier.announce(data, config.model, config.dtype)
    runs = [_run(config, data, config.seed + i) for i in range(config.seeds)]
    return classifier.conclude(
        NAME,
        _result_name(config),
        config,
        runs,
        plots.draw_classifier,
        command=command,
        data=_describe(data),
        predictions=_predictions(runs[0]["model"], data, _make_prepare(data, AugmentConfig.none(), config)),
    )


def _resolve(config: Config) -> Config:
    """Fills in the recipe, and refuses what cannot work before anything is loaded."""
    if config.data not in RECIPES:
        raise ssmjax.errors.unknown_name("data set", config.data, list(RECIPES))
    classifier.check(NAME, config, {"drop_path": 1, "ema_decay": 1})
    ssmjax.model_config(config.model)  # an unknown model is an error now, not after the data
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
    run = f"{NAME}-{config.data}-{config.model}-{common.config_digest(config)}"
    batch_size = min(config.batch_size, len(data.test_images))
    job = classifier.Job(
        model=_create_model(config, data, seed),
        loss=_loss,
        optimizer=functools.partial(_optimizer, config),
        batches=Batches(data.train_images, data.train_labels, config.batch_size, seed=seed),
        test=functools.partial(eval_batches, data.test_images, data.test_labels, batch_size),
        run_dir=config.runs_dir / run / f"seed{seed}",
        identity={"experiment": NAME, "config": common.identity(config), "data": data.checksum},
        prepare=_make_prepare(data, RECIPES[config.data].augment, config),
        ema_decay=config.ema_decay,
        unit="images",
    )
    return classifier.train(job, config, seed)


def _optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    return adamw(
        config.learning_rate, steps=steps, warmup_steps=steps // 20, weight_decay=config.weight_decay, end=1e-5
    )


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
    return classifier.result_name(parts, config, claim, config.model)


if __name__ == "__main__":
    common.run_cli(main, Config)
