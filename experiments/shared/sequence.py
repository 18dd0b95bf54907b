"""What the experiments with sequence classifiers share: settings, model, optimizer, the run of all seeds."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ssmjax
from experiments.shared import classifier, common, plots_sequence
from ssmjax.data import ArrayBatches, SequenceData, eval_array_batches, load_images, pixel_sequences
from ssmjax.errors import bad_argument, require_known
from ssmjax.training.compilation import enable_compilation_cache
from ssmjax.training.evaluate import classification_sums
from ssmjax.training.losses import softmax_cross_entropy
from ssmjax.training.optim import ParameterGroup, adamw
from ssmjax.training.optim_groups import S5_MODES, s4_groups, s5_groups
from ssmjax.training.step import Loss, Metrics, Prepare

__all__ = ["LAYERS", "Config", "Task", "build", "job", "pixel_task", "pixels", "resolve", "run", "sums_at", "tokens"]

LAYERS = ("s4", "s4d", "dss", "s5", "lru")


@dataclasses.dataclass(frozen=True)
class Config(classifier.Config):
    """The settings of a sequence classifier; one that is None takes the recipe's value for the data set."""

    data: str = "mnist"
    layer: str = "s5"
    """s4, s4d, dss, s5 or lru."""
    d_model: int | None = None
    depth: int | None = None
    d_state: int | None = None
    dropout: float = 0.1
    norm: str = "layer"
    """layer or batch."""
    prenorm: bool = True
    bidirectional: bool = False
    state_learning_rate: float = 1e-3
    """The peak for A, B and the step sizes, which have no weight decay."""
    s5_mode: str = "standard"
    """What of S5 and the LRU has that peak: standard, BandCdecay, BfastandCdecay or noBCdecay."""
    label_smoothing: float = 0.0


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set, and how a model takes it.

    Attributes:
        data: The sequences.
        prepare: Makes of a batch what the model reads, on the device.
        model: The model's fields that the task decides.
        unit: What an example is called.
        baseline: Accuracy (%) and label of what a rule without any training gets.
    """

    data: SequenceData
    prepare: Prepare
    model: Mapping[str, Any]
    unit: str = "sequences"
    baseline: Mapping[str, Any] | None = None


def resolve(name: str, config: Config, recipes: Mapping[str, Mapping[str, Any]]) -> Any:
    """Fills in the recipe of the data set, and refuses what cannot work before anything is loaded.

    Args:
        name: The experiment's name.
        config: The settings, some of them None.
        recipes: Values for the fields that are None, by data set.
    """
    require_known("data set", config.data, recipes)
    layers = ("s4nd",) if type(config)().layer == "s4nd" else LAYERS  # images as they are, or read pixel by pixel
    require_known("layer", config.layer, layers)
    require_known("s5_mode", config.s5_mode, S5_MODES)
    classifier.check(name, config, {"dropout": 1, "state_learning_rate": math.inf})
    for field in ("d_model", "depth", "d_state"):
        if (value := getattr(config, field)) is not None and value < 1:
            raise bad_argument(name, field, value, "positive")
    small = {"epochs": 1, "batch_size": 16, "d_model": 16, "d_state": 16, "depth": 2} if config.smoke else {}
    recipe = {**recipes[config.data], **small}
    filled = {field: value for field, value in recipe.items() if getattr(config, field) is None}
    if config.dtype == "auto":
        filled["dtype"] = common.accelerator_dtype()
    return dataclasses.replace(config, **filled)


def pixel_task(config: Config, *, permuted: bool = False, flip: bool = False) -> Task:
    """Images that are read pixel by pixel.

    Args:
        config: Names the data set.
        permuted: Whether the pixels come in one fixed random order.
        flip: Whether half of the training images are mirrored.
    """
    images = load_images(config.data, data_dir=config.data_dir, download_dir=config.download_dir)
    data = pixel_sequences(images, permuted=permuted)
    data = data.first(64) if config.smoke else data
    _, width, channels = images.image_shape
    return Task(data, pixels(data, flip_width=width if flip else None), {"in_features": channels}, unit="images")


def pixels(data: SequenceData, *, flip_width: int | None = None) -> Prepare:
    """Makes normalized floats of uint8 pixels.

    Args:
        data: Its training set gives mean and standard deviation of each channel.
        flip_width: Mirrors half of the training images, read row by row in rows of this width; None mirrors none.
    """
    levels, inputs = np.arange(256), data.train["inputs"]
    counts = np.stack([np.bincount(inputs[..., c].ravel(), minlength=256) for c in range(inputs.shape[-1])])
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    std = np.sqrt(share @ levels**2 - mean**2)
    mean, scale = (np.asarray(v, np.float32).reshape((1,) * (inputs.ndim - 1) + (-1,)) for v in (mean, 1 / std))

    def prepare(batch: Mapping[str, Any], key: jax.Array | None, train: bool) -> dict[str, Any]:
        inputs = (jnp.asarray(batch["inputs"], jnp.float32) - mean) * scale
        if train and flip_width is not None:
            rows = inputs.reshape(len(inputs), -1, flip_width, inputs.shape[-1])
            chosen = jax.random.bernoulli(key, shape=(len(inputs), 1, 1, 1))
            inputs = jnp.where(chosen, rows[:, :, ::-1], rows).reshape(inputs.shape)
        return {**batch, "inputs": inputs}

    return prepare


def tokens(batch: Mapping[str, Any], key: jax.Array | None, train: bool) -> dict[str, Any]:
    """Makes int32 of the bytes that tokens are kept in."""
    del key, train
    return {**batch, "inputs": jnp.asarray(batch["inputs"], jnp.int32)}


def build(config: Config, task: Task, seed: int, **overrides: Any) -> Any:
    """The classifier of the settings, with fresh parameters; `overrides` are further fields of the model."""
    # C~ of S4 is made for a length, and modes of DSS are normalized over one: so all sequences have the same kernel.
    longest = {"l_max": task.data.length} if config.layer in ("s4", "dss") else {}
    return ssmjax.create_model(
        f"{config.layer}_classifier",
        num_classes=task.data.num_classes,
        seed=seed,
        dtype=config.dtype,
        d_model=config.d_model,
        depth=config.depth,
        d_state=config.d_state,
        dropout=config.dropout,
        norm=config.norm,
        prenorm=config.prenorm,
        bidirectional=config.bidirectional,
        **{**longest, **task.model, **overrides},
    )


def groups(config: Config) -> tuple[ParameterGroup, ...]:
    """The optimizer's groups by the convention of the layer's own school."""
    if config.layer in ("s5", "lru"):
        return s5_groups(config.s5_mode, config.state_learning_rate)
    return s4_groups(config.state_learning_rate)


def optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """AdamW with the layer's groups, a warm-up over a tenth of the steps, and a cosine to zero."""
    return adamw(
        config.learning_rate,
        steps=steps,
        warmup_steps=steps // 10,
        weight_decay=config.weight_decay,
        groups=groups(config),
    )


def make_loss(label_smoothing: float) -> Loss:
    """The cross entropy of a batch of sequences."""

    def loss(model: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = model(batch["inputs"], lengths=batch.get("lengths"), train=True, key=key)
        losses = softmax_cross_entropy(logits, batch["label"], label_smoothing=label_smoothing)
        return losses.mean(), {"accuracy": jnp.mean(jnp.argmax(logits, -1) == batch["label"])}

    return loss


@functools.cache
def sums_at(rate: float) -> Callable[[Any, Mapping[str, jax.Array]], Metrics]:
    """The sums of the metrics of a model that is told that its input is sampled 1 / `rate` times as fast."""

    def sums(model: Any, batch: Mapping[str, jax.Array]) -> Metrics:
        def classify(inputs: jax.Array) -> jax.Array:
            return model(inputs, lengths=batch.get("lengths"), rate=rate)

        named = {"image": batch["inputs"], "label": batch["label"]}
        return classification_sums(classify, named | ({"mask": batch["mask"]} if "mask" in batch else {}))

    return sums


def job(name: str, config: Config, task: Task, seed: int, **overrides: Any) -> classifier.Job:
    """The training of one seed; `overrides` are further fields of the model."""
    run = f"{name}-{config.data}-{config.layer}-{common.config_digest(config)}"
    batch_size = min(config.batch_size, len(task.data.test["label"]))
    return classifier.Job(
        model=build(config, task, seed, **overrides),
        loss=make_loss(config.label_smoothing),
        optimizer=functools.partial(optimizer, config),
        batches=ArrayBatches(task.data.train, config.batch_size, seed=seed, on_device=True),
        test=functools.partial(eval_array_batches, task.data.test, batch_size),
        run_dir=config.runs_dir / run / f"seed{seed}",
        identity={"experiment": name, "config": common.identity(config), "data": task.data.checksum},
        prepare=task.prepare,
        metric_fn=sums_at(1.0),
        unit=task.unit,
    )


def run(
    name: str,
    config: Config,
    make_task: Callable[[Any], Task],
    recipes: Mapping[str, Mapping[str, Any]],
    *,
    published: Callable[[Any], Mapping[str, Any] | None],
    variants: Sequence[str] = ("data", "layer"),
    after: Callable[[Any, Task, Mapping[str, Any]], dict[str, float]] = lambda config, task, run: {},
) -> dict[str, Any]:
    """What the `main` of an experiment does: fills in its settings, trains all seeds, and writes and prints the report.

    Args:
        name: The experiment's name.
        config: The settings as the user gave them; those of their type by itself are the experiment's claim.
        make_task: Loads or draws the data of filled in settings.
        recipes: Values for the fields that are None, by data set.
        published: The accuracy, label and source of what the settings are compared with, or None.
        variants: Fields by which the experiment makes several claims, each with a results file of its own.
        after: Further metrics of a finished run.

    Returns:
        What the results file holds, and the folder of the first seed's `weights`.
    """
    default = type(config)()
    command = common.command(name, config, default)
    config = resolve(name, config, recipes)
    task = make_task(config)
    enable_compilation_cache()
    classifier.announce(task.data, f"{config.layer}_classifier", config.dtype)
    runs = []
    for seed in range(config.seed, config.seed + config.seeds):
        done = classifier.train(job(name, config, task, seed), config, seed)
        done["metrics"] |= after(config, task, done)
        runs.append(done)
    chosen = {field: getattr(config, field) for field in variants}
    claim = dataclasses.replace(default, **chosen, seed=config.seed, dtype=config.dtype)
    parts = [name, *(_word(f, v) for f, v in chosen.items() if v != getattr(default, f))]
    beside = {"published": published(config), "baseline": task.baseline}
    return classifier.conclude(
        name,
        classifier.result_name(parts, config, resolve(name, claim, recipes)),
        config,
        runs,
        plots_sequence.draw_classifier,
        command=command,
        data=describe(task.data),
        steps=runs[0]["steps"],
        **{key: value for key, value in beside.items() if value is not None},
    )


def describe(data: SequenceData) -> dict[str, Any]:
    """What a results file says of its data."""
    shape = data.train["inputs"].shape
    return {
        "name": data.name,
        "sha256": data.checksum,
        "source": data.source.partition(" in ")[0],  # without the folder, which is of one machine
        "train": len(data.train["label"]),
        "test": len(data.test["label"]),
        "length": math.prod(shape[1:-1] or shape[1:]),  # of images all pixels
        "class_names": list(data.class_names),
    }


def _word(field: str, value: Any) -> str:
    return field if value is True else str(value)
