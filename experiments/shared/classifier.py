"""What the experiments that train a classifier share: their settings, the training of one seed, and the report."""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

import ssmjax
from experiments.shared import common
from ssmjax.data import ArrayBatches
from ssmjax.errors import bad_argument
from ssmjax.paths import LocalPaths
from ssmjax.training.evaluate import MetricFn, classification_sums, evaluate
from ssmjax.training.fit import FitConfig, fit
from ssmjax.training.guards import TrainingDiverged
from ssmjax.training.report import make_report, render_table, write_report
from ssmjax.training.step import Loss, Prepare

__all__ = ["Config", "Job", "announce", "check", "conclude", "result_name", "train"]


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """The settings of every experiment, each a flag; one that is None takes the recipe's value for the data set."""

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
    dtype: str = "auto"
    """Compute type: float32, bfloat16, float16, or auto (bfloat16 where the device has it)."""
    seed: int = 0
    seeds: int = 1
    """How many seeds, from `seed` on; the table gives mean and spread."""
    minutes: float | None = None
    """Stop this call when a seed has trained for so long; the same command goes on from there."""
    smoke: bool = False
    """A few steps on a few examples: checks that everything runs."""
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


_POSITIVE = ("epochs", "steps", "batch_size", "seeds", "minutes", "learning_rate")
_LIMITS = {"label_smoothing": 1, "weight_decay": math.inf, "seed": 2**63}


def check(name: str, config: Config, limits: Mapping[str, float] = {}) -> None:
    """Refuses settings that cannot work, before anything is loaded.

    Args:
        name: The experiment's name, for the message.
        config: The settings.
        limits: What further numbers must be less than; they may be zero.
    """
    for field in _POSITIVE:
        value = getattr(config, field)
        if value is not None and not 0 < value < math.inf:
            raise bad_argument(name, field, value, "positive and finite")
    for field, limit in {**_LIMITS, **limits}.items():
        value = getattr(config, field)
        if value is not None and not 0 <= value < limit:
            raise bad_argument(name, field, value, f"at least 0 and less than {limit}")
    if config.dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise bad_argument(name, "dtype", config.dtype, "auto, float32, bfloat16 or float16")
    for flag in ("out_dir", "runs_dir"):
        common.require_writable(flag, getattr(config, flag))


@dataclasses.dataclass(frozen=True)
class Job:
    """The training of one seed.

    Attributes:
        model: The model with its initial parameters.
        loss: The loss of a batch.
        optimizer: Gets the number of steps.
        batches: The training batches.
        test: A new iterator over the test batches at each call.
        run_dir: Where checkpoints, logs and weights go.
        identity: What a checkpoint must agree with to be resumed from.
        prepare: What happens to a batch on the device.
        metric_fn: The sums of the test metrics; `confusion` is one of them.
        ema_decay: The decay of the parameters' moving average, None without one.
        unit: What an example is called.
    """

    model: Any
    loss: Loss
    optimizer: Callable[[int], optax.GradientTransformation]
    batches: ArrayBatches
    test: Callable[[], Iterable[Any]]
    run_dir: Path
    identity: Mapping[str, Any]
    prepare: Prepare | None = None
    metric_fn: MetricFn = classification_sums
    ema_decay: float | None = None
    unit: str = "examples"
    timed: bool = False
    """Whether the last evaluation is timed, as examples a second with the way from the host."""


def train(job: Job, config: Config, seed: int) -> dict[str, Any]:
    """Trains and evaluates one seed; goes on from its checkpoints if there are any.

    Args:
        job: What to train.
        config: How long, and what to write.
        seed: The seed.

    Returns:
        A run as `make_report` takes it, and the trained `model`, its `weights` folder, `parameters`, `curves` and
        `confusion`.
    """
    per_epoch = job.batches.steps_per_epoch
    steps = config.steps or (config.epochs or 1) * per_epoch

    def scores(model: Any, step: int) -> dict[str, float]:
        del step
        found = evaluate(model, job.test(), job.metric_fn, prepare=job.prepare)
        return {"loss": found["loss"], "accuracy": found["accuracy"]}

    result = fit(
        job.model,
        job.loss,
        job.batches.at,
        steps=steps,
        optimizer=job.optimizer(steps),
        config=_fit_config(job, config, seed, per_epoch, steps),
        prepare=job.prepare,
        eval_fn=scores,
        run_config=job.identity,
    )
    if not result.finished:
        why = "Interrupted" if result.interrupted else "The minutes are over"
        print(f"\n{why} at step {int(result.state.step)} of {steps}; the same command goes on from {job.run_dir}.")
        sys.exit(result.exit_code)
    trained = result.ema_model or result.model
    start = time.perf_counter()  # nothing is compiled here: this is the evaluation that was made all along
    final = evaluate(trained, job.test(), job.metric_fn, prepare=job.prepare)
    speed = {f"{job.unit}_per_second": final["count"] / (time.perf_counter() - start)} if job.timed else {}
    if not math.isfinite(final["loss"]):
        raise TrainingDiverged(f"The test loss of the trained model is {final['loss']}; nothing was written.", final)
    ssmjax.save_pretrained(trained, job.run_dir / "weights")
    return {
        "seed": seed,
        "seconds": result.seconds,
        "steps": steps,
        "metrics": {"test_accuracy": final["accuracy"], "test_loss": final["loss"]} | _further(final) | speed,
        "confusion": final["confusion"],
        "curves": {"train": _curve(result.train, per_epoch), "test": _curve(result.evals, per_epoch)},
        "parameters": sum(x.size for x in result.state.params.values()),
        "model": trained,
        "weights": job.run_dir / "weights",
    }


def _further(final: Mapping[str, Any]) -> dict[str, float]:
    """The metrics beside loss and accuracy that an experiment has its own `metric_fn` for."""
    own = {name: x for name, x in final.items() if name not in ("count", "loss", "accuracy", "confusion")}
    return {f"test_{name}": x for name, x in own.items()}


def _fit_config(job: Job, config: Config, seed: int, per_epoch: int, steps: int) -> FitConfig:
    """About thirty evaluations at most, each at the end of an epoch, and a checkpoint at each."""
    every = per_epoch * math.ceil(steps / per_epoch / 30)
    return FitConfig(
        seed=seed,
        log_every=max(1, per_epoch // 4),
        eval_every=every,
        save_every=every,
        checkpoint_dir=str(job.run_dir),
        fresh=not config.resume,
        ema_decay=job.ema_decay,
        time_limit=None if config.minutes is None else 60 * config.minutes,
        progress=config.progress,
        unit=job.unit,
        tensorboard_dir=str(job.run_dir / "tensorboard") if config.tensorboard else None,
        profile_dir=str(job.run_dir / "profile") if config.profile else None,
    )


def _curve(records: list[dict[str, Any]], per_epoch: int) -> dict[str, list[float]]:
    return {
        "epoch": [round(record["step"] / per_epoch, 3) for record in records],
        "loss": [record["loss"] for record in records],
        "accuracy": [record["accuracy"] for record in records],
    }


def result_name(parts: Sequence[str], config: Config, claim: Config, *labels: str) -> str:
    """The name of a results file: a claim by its recipe has the plain one; other settings and smoke runs their own.

    Args:
        parts: The experiment's name, and what tells its claims apart.
        config: The settings, filled in.
        claim: Those of the claim.
        *labels: What other settings are called, before their digest.
    """
    if config.smoke:
        return "_".join([*parts, "smoke"])
    if common.identity(config) != common.identity(claim):
        return "_".join([*parts, *labels, common.config_digest(config)])
    return "_".join(parts)


def conclude(
    name: str,
    result: str,
    config: Config,
    runs: Sequence[Mapping[str, Any]],
    draw: Callable[[Path, Path], None],
    **details: Any,
) -> dict[str, Any]:
    """Writes the results file and the figure, and prints the table.

    Args:
        name: The name of the experiment.
        result: The name of the results file.
        config: The settings, filled in.
        runs: What `train` returned for each seed.
        draw: Draws the figure, from the path of the results to that of the figure.
        **details: What else the claim rests on: at least `command` and `data`.

    Returns:
        What the results file holds, and the folder of the first seed's `weights`.
    """
    report = make_report(
        name,
        config=common.identity(config),
        runs=runs,
        curves=[run["curves"] for run in runs],
        confusion=runs[0]["confusion"],
        parameters=runs[0]["parameters"],
        **details,
    )
    results, figure = common.result_paths(config.out_dir, result)
    write_report(results, report)
    draw(results, figure)
    weights = runs[0]["weights"]
    print(f"\n{render_table(report)}\nresults {results}\nfigure  {figure}\nweights {weights}")
    return report | {"weights": weights}


def announce(what: object, model: str, dtype: str) -> None:
    """Says what is trained on what."""
    print(f"{what}\n{model} in {dtype} on {jax.devices()[0].device_kind}")
