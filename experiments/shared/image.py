"""What the experiments with image classifiers share: settings, data, model, optimizer, the run of all seeds."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ssmjax
from experiments.shared import classifier, common, plots
from ssmjax.data import (
    AugmentConfig,
    Batches,
    ImageData,
    augment,
    eval_batches,
    load_image_folders,
    load_images,
    normalize,
)
from ssmjax.training.compilation import enable_compilation_cache
from ssmjax.training.evaluate import MetricFn, classification_sums
from ssmjax.training.losses import softmax_cross_entropy
from ssmjax.training.optim import adamw
from ssmjax.training.step import Prepare

__all__ = [
    "SETS",
    "Config",
    "Experiment",
    "ImageSet",
    "build",
    "hold_out",
    "load",
    "make_prepare",
    "optimizer",
    "resolve",
    "run",
    "run_folder",
    "smoke",
    "train_seed",
]


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """What suits a data set: the side that its images are brought to, and how they are varied in training."""

    img_size: int
    augment: AugmentConfig


_HANDWRITING = dataclasses.replace(AugmentConfig.none(), crop_padding=2)
_PHOTOGRAPHS = dataclasses.replace(AugmentConfig.none(), crop_padding=4, flip=True, erase_probability=0.25)

SETS = {
    "digits": ImageSet(16, dataclasses.replace(_HANDWRITING, crop_padding=1)),
    "mnist": ImageSet(28, _HANDWRITING),
    "fashion_mnist": ImageSet(28, dataclasses.replace(_HANDWRITING, flip=True)),
    "cifar10": ImageSet(32, _PHOTOGRAPHS),
    "cifar100": ImageSet(32, _PHOTOGRAPHS),
}


@dataclasses.dataclass(frozen=True)
class Config(classifier.Config):
    """The settings of an image classifier; one that is None takes the recipe's value for the data set."""

    data: str = "cifar10"
    """cifar10, cifar100, mnist, fashion_mnist or digits (embedded, no download)."""
    model: str = ""
    """The name of the model."""
    drop_path: float = 0.0
    ema_decay: float | None = None
    held_out: int = 0
    """So many training images are kept from the training and stand in for the test set: for choosing settings."""


def optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """AdamW with a warm-up over a twentieth of the steps, and a cosine to nearly zero."""
    return adamw(
        config.learning_rate, steps=steps, warmup_steps=steps // 20, weight_decay=config.weight_decay, end=1e-5
    )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What makes an experiment with images what it is.

    Attributes:
        name: Its name, that of its module.
        recipes: By data set, values for the settings that are None: at least `epochs`, `batch_size`, `learning_rate`.
        fields: The model's fields that settings decide, by the name of the setting; a setting of None leaves the
            model's own value.
        smoke: Further settings of a smoke run that are None, such as a depth.
        optimizer: Gets the settings and the number of steps.
        augment: The augmentation in training; by default that of the data set.
        unmixed: The share of the training, at its end, without mixup and cutmix.
        published: The accuracy, label and source of what the settings are compared with, or None.
        variants: Settings by which the experiment makes several claims, each with a results file of its own.
        load: Gets the settings, and gives images that are none of `SETS`; a smoke run takes the first of them.
        build: Gets the settings, the images and the seed, and gives the model, in place of `build`.
        metric_fn: The sums of the test metrics, which may be more than loss and accuracy.
        timed: Whether the last evaluation is timed.
    """

    name: str
    recipes: Mapping[str, Mapping[str, Any]]
    fields: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"drop_path": "drop_path_rate"})
    smoke: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: Callable[[Any, int], optax.GradientTransformation] = optimizer
    augment: Callable[[Any], AugmentConfig] = lambda config: SETS[config.data].augment
    unmixed: float = 0.0
    published: Callable[[Any], Mapping[str, Any] | None] = lambda config: None
    variants: Sequence[str] = ("data",)
    load: Callable[[Any], ImageData] | None = None
    build: Callable[[Any, ImageData, int], Any] | None = None
    metric_fn: MetricFn = classification_sums
    timed: bool = False


def run(experiment: Experiment, config: Config) -> dict[str, Any]:
    """What the `main` of an experiment does: fills in its settings, trains all seeds, and writes and prints the report.

    Args:
        experiment: What is special about it.
        config: The settings as the user gave them; those of their type by itself are the experiment's claim.

    Returns:
        What the results file holds, and the folder of the first seed's `weights`.
    """
    command = common.command(experiment.name, config, type(config)())
    config = resolve(experiment, config)
    loaded = load(config) if experiment.load is None else hold_out(experiment.load(config), config.held_out)
    data = smoke(config, loaded)
    enable_compilation_cache()
    classifier.announce(data, config.model, config.dtype)
    runs = [train_seed(experiment, config, data, config.seed + i) for i in range(config.seeds)]
    published = experiment.published(config)
    return classifier.conclude(
        experiment.name,
        result_name(experiment, config),
        config,
        runs,
        plots.draw_classifier,
        command=command,
        data=describe(data),
        predictions=_predictions(runs[0]["model"], data, make_prepare(data, AugmentConfig.none(), config)),
        **({} if published is None else {"published": published}),
    )


def resolve(experiment: Experiment, config: Any) -> Any:
    """Fills in the recipe, and refuses what cannot work before anything is loaded.

    Args:
        experiment: Its recipes are the values for the settings that are None.
        config: The settings, some of them None.
    """
    ssmjax.errors.require_known("data set", config.data, experiment.recipes)
    classifier.check(experiment.name, config, {"drop_path": 1, "ema_decay": 1})
    filled = {**experiment.recipes[config.data], **(experiment.smoke if config.smoke else {})}
    filled = {name: value for name, value in filled.items() if getattr(config, name) is None}
    if config.dtype == "auto":
        filled["dtype"] = common.accelerator_dtype()
    if config.smoke:
        filled |= {"epochs": 2, "batch_size": 16, "seeds": 1}
    config = dataclasses.replace(config, **filled)
    ssmjax.model_config(config.model)  # an unknown model is an error now, not after the data
    return config


def load(config: Config) -> ImageData:
    """The images, brought to the size that suits them.

    In place of a folder that TensorFlow Datasets prepared, `data_dir/NAME` may hold class folders, `train` and `test`.
    """
    folder = None if config.data_dir is None else config.data_dir / config.data
    if folder and (folder / "train").is_dir():
        data = load_image_folders(folder, name=config.data)
    else:
        data = load_images(config.data, data_dir=config.data_dir, download_dir=config.download_dir)
    size = SETS[config.data].img_size
    if data.image_shape[0] != size:
        data = data.resized(size)
    return smoke(config, hold_out(data, config.held_out))


def hold_out(data: ImageData, count: int) -> ImageData:
    """The training images without `count` of them, drawn once for all runs, which become the test images."""
    if not count:
        return data
    if not 0 < count < len(data.train_images):
        raise ssmjax.errors.bad_argument("settings", "held_out", count, f"less than {len(data.train_images)} images")
    order = np.random.default_rng(0).permutation(len(data.train_images))
    kept, held = np.sort(order[count:]), np.sort(order[:count])
    return dataclasses.replace(
        data,
        train_images=data.train_images[kept],
        train_labels=data.train_labels[kept],
        test_images=data.train_images[held],
        test_labels=data.train_labels[held],
    )


def smoke(config: Config, data: ImageData) -> ImageData:
    """The first images only, in a smoke run."""
    if config.smoke:
        names = ("train_images", "train_labels", "test_images", "test_labels")
        data = dataclasses.replace(data, **{name: getattr(data, name)[:64] for name in names})
    return data


def build(experiment: Experiment, config: Any, data: ImageData, seed: int) -> Any:
    """The classifier of the settings, with fresh parameters."""
    chosen = {field: getattr(config, name) for name, field in experiment.fields.items()}
    return ssmjax.create_model(
        config.model,
        num_classes=data.num_classes,
        seed=seed,
        dtype=config.dtype,
        img_size=data.image_shape[0],
        in_channels=data.image_shape[2],
        **{name: value for name, value in chosen.items() if value is not None},
    )


def make_prepare(data: ImageData, augmentation: AugmentConfig, config: Config, unmixed: float = 0.0) -> Prepare:
    """What happens to a batch on the device: augmentation and soft labels in training, and normalization.

    Mixed images are none that the model will be asked about, so the last part of the training may do without them.
    """
    plain = dataclasses.replace(augmentation, mixup_alpha=0.0, cutmix_alpha=0.0)

    def prepare(batch: Mapping[str, Any], key: jax.Array | None, train: bool, progress: Any = 0.0) -> dict[str, Any]:
        images, labels = batch["image"], batch["label"]
        if train:
            labels = optax.smooth_labels(jax.nn.one_hot(labels, data.num_classes), config.label_smoothing)
            if unmixed and plain != augmentation:
                ways = [lambda *x, way=way: augment(*x, way) for way in (plain, augmentation)]
                images, labels = jax.lax.cond(progress >= 1 - unmixed, *ways, key, images, labels)
            else:
                images, labels = augment(key, images, labels, augmentation)
        return {**batch, "image": normalize(images, data.mean, data.std), "label": labels}

    return prepare


def loss(model: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The cross entropy with soft labels."""
    logits = model(batch["image"], train=True, key=key)
    right = jnp.argmax(logits, -1) == jnp.argmax(batch["label"], -1)
    return softmax_cross_entropy(logits, batch["label"]).mean(), {"accuracy": right.mean()}


def result_name(experiment: Experiment, config: Any) -> str:
    """The name of the results file: each of the `variants` by its recipe is a claim with a plain name of its own."""
    default = type(config)()
    chosen = {field: getattr(config, field) for field in experiment.variants}
    claim = resolve(experiment, dataclasses.replace(default, **chosen, seed=config.seed, dtype=config.dtype))
    parts = [experiment.name, *(str(value) for field, value in chosen.items() if value != getattr(default, field))]
    return classifier.result_name(parts, config, claim, config.model)


def describe(data: ImageData) -> dict[str, Any]:
    """What a results file says of its data."""
    return {
        "name": data.name,
        "sha256": data.checksum,
        "source": data.source.partition(" in ")[0],  # without the folder, which is of one machine
        "train": len(data.train_images),
        "test": len(data.test_images),
        "class_names": list(data.class_names),
    }


def run_folder(experiment: Experiment, config: Any, seed: int) -> Path:
    """Where the checkpoints, logs and weights of a seed lie."""
    digest = common.config_digest(dataclasses.replace(config, seed=seed))
    folder = f"{experiment.name}-{Path(config.data).name}-{config.model}-{digest}"
    return config.runs_dir / folder / f"seed{seed}"


def train_seed(experiment: Experiment, config: Any, data: ImageData, seed: int) -> dict[str, Any]:
    """Trains and evaluates one seed; goes on from its checkpoints, whichever of several seeds a command began with."""
    name, config = experiment.name, dataclasses.replace(config, seed=seed)
    batch_size = min(config.batch_size, len(data.test_images))
    job = classifier.Job(
        model=experiment.build(config, data, seed) if experiment.build else build(experiment, config, data, seed),
        loss=loss,
        optimizer=functools.partial(experiment.optimizer, config),
        batches=Batches(data.train_images, data.train_labels, config.batch_size, seed=seed),
        test=functools.partial(eval_batches, data.test_images, data.test_labels, batch_size),
        run_dir=run_folder(experiment, config, seed),
        identity={"experiment": name, "config": common.identity(config), "data": data.checksum},
        prepare=make_prepare(data, experiment.augment(config), config, experiment.unmixed),
        metric_fn=experiment.metric_fn,
        ema_decay=config.ema_decay,
        unit="images",
        timed=experiment.timed,
    )
    return classifier.train(job, config, seed)


def _predictions(model: Any, data: ImageData, prepare: Prepare, count: int = 12) -> dict[str, Any]:
    """The first test images and what the model takes them for."""
    images, labels = data.test_images[:count], data.test_labels[:count]
    logits = model(prepare({"image": images, "label": labels}, None, False)["image"])
    predicted: Sequence[int] = np.asarray(jnp.argmax(logits, -1)).tolist()
    return {"images": plots.encode_images(images), "label": labels.tolist(), "predicted": predicted}
