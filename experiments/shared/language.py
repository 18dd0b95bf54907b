"""What the experiments with small language models share: settings, models by kind, training on drawn or read tokens."""

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.shared import common, plots_language
from experiments.shared.parts import Part
from ssmjax.errors import require_known
from ssmjax.models.language_model import LanguageModel, LanguageModelConfig
from ssmjax.models.registry import build
from ssmjax.paths import LocalPaths
from ssmjax.training.fit import FitConfig, fit
from ssmjax.training.losses import chunked_cross_entropy, mean_over_labels
from ssmjax.training.optim import adamw
from ssmjax.training.report import make_report, render_table, write_report
from ssmjax.training.step import Loss, Prepare

__all__ = [
    "KINDS",
    "Config",
    "Draw",
    "accuracy",
    "finish",
    "fit_part",
    "make_model",
    "next_token_loss",
    "sample_of",
    "to_labels",
    "train",
]

Draw = Callable[[jax.Array, int], Mapping[str, jax.Array]]
"""`draw(key, batch)`: `tokens` and `labels` (b l), made on the device; a label below 0 does not count."""

KINDS: dict[str, dict[str, Any]] = {
    "mamba": {"mixer": "mamba"},
    "mamba2": {"mixer": "mamba2", "mixer_options": {"d_state": 64, "head_dim": 16, "chunk": 64}},
    "mamba3": {"mixer": "mamba3", "mixer_options": {"d_state": 64, "head_dim": 16, "rope_fraction": 1.0}},
    "s4d": {"mixer": "s4d", "mixer_options": {"d_state": 64}, "mlp_width": 128},
    "transformer": {"mixer": "attention", "mixer_options": {"heads": 4}, "mlp_width": 256},
}
"""The models that are compared, by name: fields of `LanguageModelConfig`."""


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """The settings of all these experiments; every field is a flag."""

    models: tuple[str, ...] = ("mamba", "mamba2", "mamba3", "transformer")
    """mamba, mamba2, mamba3, s4d, transformer."""
    d_model: int = 64
    depth: int = 2
    steps: int = 20000
    batch_size: int = 64
    learning_rate: float = 1e-3
    end: float = 0.0
    """The learning rate at the last step; as much as the first for one that stays."""
    weight_decay: float = 0.0
    seeds: int = 3
    """How many runs, with seeds 0, 1, ..."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    minutes: float | None = None
    """Stop this call after so long; the same command goes on from there."""
    smoke: bool = False
    """A check of the plumbing in less than a minute; no result."""
    progress: bool = True
    out_dir: Path = Path(".")
    """Where `experiments/results` and `figures` are."""
    runs_dir: Path = Path("runs")
    """Where the parts that are done and the checkpoints of the others are; processes that run the same command share
    the work there."""


def make_model(kind: str, config: Config, vocab: int, seed: int, **fields: Any) -> LanguageModel:
    """A fresh model of one kind.

    Args:
        kind: A key of `KINDS`.
        config: The settings.
        vocab: The number of tokens.
        seed: Determines the parameters.
        **fields: Further fields of the configuration; options of the mixer are merged.
    """
    require_known("model", kind, KINDS)
    options = KINDS[kind].get("mixer_options", {}) | fields.pop("mixer_options", {})
    sizes = dict(vocab_size=vocab, d_model=config.d_model, depth=config.depth, dtype=config.dtype)
    whole = LanguageModelConfig(**KINDS[kind] | {"mixer_options": options} | sizes | fields)
    return build("language_model", whole, seed=seed)


def next_token_loss(model: LanguageModel, batch: Mapping[str, jax.Array], key: jax.Array):
    """The mean cross entropy of the labels that count; their logits never exist all at once."""
    del key
    features = model.features(batch["tokens"])
    losses = chunked_cross_entropy(features, model.head_kernel, batch["labels"], chunk=4096)
    return mean_over_labels(losses, batch["labels"]), {}


def train(
    model: LanguageModel,
    draw: Draw,
    config: Config,
    seed: int,
    part: Part,
    loss: Loss = next_token_loss,
) -> tuple[Any, dict[str, Any]]:
    """Trains on batches that are drawn on the device; returns the model, and the loss at some steps and the seconds."""
    batch = 4 if config.smoke else config.batch_size

    def prepare(rows, key, train):
        del train
        return draw(key, len(rows["row"]))

    rows = {"row": np.arange(batch, dtype=np.int32)}
    return fit_part(model, loss, lambda step: rows, config, seed, part, prepare=prepare)


def fit_part(
    model: Any,
    loss: Loss,
    batches: Callable[[int], Any],
    config: Config,
    seed: int,
    part: Part,
    *,
    b2: float = 0.98,
    prepare: Prepare | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Trains as a part of an experiment, and ends the process if its minutes are over; returns as `train` does."""
    steps = 3 if config.smoke else config.steps
    rate = dict(warmup_steps=steps // 20, end=config.end, weight_decay=config.weight_decay, b2=b2)
    settings = FitConfig(
        seed=seed,
        log_every=max(1, steps // 20),
        save_every=0 if config.smoke else steps // 4,
        checkpoint_dir=str(part.folder),
        keep=1,
        time_limit=part.seconds_left,
        progress=config.progress,
        unit="sequences",
    )
    result = fit(
        model,
        loss,
        batches,
        steps=steps,
        optimizer=adamw(config.learning_rate, steps=steps, **rate),
        prepare=prepare,
        config=settings,
        run_config=part.identity,
    )
    if not result.finished:
        why = "Interrupted" if result.interrupted else "The minutes are over"
        print(f"\n{why} at step {int(result.state.step)} of {steps}; the same command goes on from {part.folder}.")
        sys.exit(result.exit_code)
    losses = {str(record["step"]): round(record["loss"], 5) for record in result.train}
    return result.model, {"losses": losses, "seconds": result.seconds}


def accuracy(model: LanguageModel, draw: Draw, *, sequences: int, batch: int, seed: int = 10**6) -> float:
    """The share (%) of the labels that count whose token is the most likely one, over fresh sequences."""
    definition, state = nnx.split(model)

    @jax.jit
    def count(state, key):
        drawn = draw(key, batch)
        right = nnx.merge(definition, state)(drawn["tokens"]).argmax(-1) == drawn["labels"]
        real = drawn["labels"] >= 0
        return (right & real).sum(), real.sum()

    keys = jax.random.split(jax.random.key(seed), -(-sequences // batch))
    right, real = np.sum([jax.device_get(count(state, key)) for key in keys], axis=0, dtype=np.int64)
    return 100 * float(right) / float(real)


def finish(
    name: str,
    config: Config,
    runs: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any],
    plot: Mapping[str, Any],
    **details: Any,
) -> dict[str, Any]:
    """Writes the results file and the figure, and prints the table.

    Args:
        name: The experiment.
        config: The settings.
        runs: One a seed, of `seed`, `seconds` and `metrics`.
        data: What the model was trained on: a `name`, and a `sample`, an array whose checksum tells the data.
        plot: What `plots_language.draw_lines` reads: `series` (for each line, the metric at each place on the x axis),
            `x`, `y`, `title`, and perhaps `log` and `marks`.
        **details: Whatever else the results file should hold.
    """
    checksum = hashlib.sha256(np.ascontiguousarray(data["sample"]).tobytes()).hexdigest()
    origin = {key: value for key, value in data.items() if key != "sample"} | {"sha256": checksum}
    report = make_report(
        name,
        command=common.command(name, config, type(config)()),
        config=common.identity(config),
        runs=runs,
        data=origin,
        plot=plot,
        **details,
    )
    results, figure = common.result_paths(config.out_dir, name)
    write_report(results, report)
    plots_language.draw_lines(results, figure)
    print(f"{render_table(report)}\nresults {results}\nfigure  {figure}")
    return report


def sample_of(draw: Draw) -> np.ndarray:
    """Eight sequences of a task, for its checksum."""
    return np.asarray(draw(jax.random.key(0), 8)["tokens"], np.int32)


def to_labels(tokens: jax.Array, answers: jax.Array, places: jax.Array | slice) -> jax.Array:
    """Labels (b l) that count only at some places, where they are the answers."""
    return jnp.full(tokens.shape, -100, jnp.int32).at[:, places].set(answers)
