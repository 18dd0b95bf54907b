"""The training loop."""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ssmjax.checkpoints.manifest import write_atomically
from ssmjax.checkpoints.store import CheckpointStore
from ssmjax.errors import as_int, as_nonnegative, bad_argument, require_flags, shape_of
from ssmjax.paths import local_path
from ssmjax.training.guards import StopSignals, TrainingDiverged
from ssmjax.training.journal import Journal
from ssmjax.training.prefetch import Prefetcher
from ssmjax.training.profiling import ProfileWindow
from ssmjax.training.recorder import Recorder
from ssmjax.training.settings import check_settings, model_settings
from ssmjax.training.state import Arrays, TrainState, commit, split_trainable
from ssmjax.training.step import Batch, Loss, Metrics, Prepare, init_state, make_step

__all__ = ["FitConfig", "FitResult", "fit"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How to run the loop; what to train are the arguments of `fit`.

    Attributes:
        seed: The seed of every random key of the training.
        log_every: Steps between records of the loss; the first and the last step are recorded too.
        eval_every: Steps between calls of `eval_fn`; 0 calls it only at the end.
        save_every: Steps between checkpoints; 0 saves only at the end.
        checkpoint_dir: The folder of the checkpoints and of `metrics.jsonl`; None saves nothing.
        keep: How many checkpoints to keep.
        fresh: Delete the checkpoints that are there and start anew, instead of resuming.
        ema_decay: The decay of the moving average of the parameters; None keeps none.
        max_bad_steps: How many steps in a row may be skipped because the loss or the gradients were not finite.
        loss_scaling: Whether the loss is multiplied by a scale that adapts, so that gradients in float16 neither vanish
            nor overflow (Micikevicius et al. 2018, section 3.2). None does so for a model that computes in float16.
        time_limit: Seconds after which the loop saves and returns, for a later call to go on; None sets no limit.
        progress: Whether to show a progress bar.
        unit: What an example is called there.
        tensorboard_dir: A folder for TensorBoard.
        profile_dir: A folder for a trace of ten steps by `jax.profiler`.

    Raises:
        ValueError: A number or a switch is none, or out of its bounds.
    """

    seed: int = 0
    log_every: int = 50
    eval_every: int = 0
    save_every: int = 0
    checkpoint_dir: str | Path | None = None
    keep: int = 3
    fresh: bool = False
    ema_decay: float | None = None
    max_bad_steps: int = 10
    loss_scaling: bool | None = None
    time_limit: float | None = None
    progress: bool = True
    unit: str = "examples"
    tensorboard_dir: str | Path | None = None
    profile_dir: str | Path | None = None

    def __post_init__(self) -> None:
        where = "FitConfig"
        require_flags(where, fresh=self.fresh, progress=self.progress)
        if self.loss_scaling is not None:
            require_flags(where, loss_scaling=self.loss_scaling)
        least_of = {"seed": 0, "log_every": 1, "eval_every": 0, "save_every": 0, "keep": 1, "max_bad_steps": 1}
        for name, least in least_of.items():
            as_int(where, name, getattr(self, name), least=least)
        if self.time_limit is not None:
            as_nonnegative(where, "time_limit", self.time_limit, positive=True, remedy="None has no limit.")
        for name in ("checkpoint_dir", "tensorboard_dir", "profile_dir"):  # before any work is done
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(local_path(where, name, getattr(self, name))))
        if self.ema_decay is not None and not as_nonnegative(where, "ema_decay", self.ema_decay) < 1:
            raise bad_argument(where, "ema_decay", self.ema_decay, "less than 1", "None keeps no average.")


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a training run leaves.

    Attributes:
        state: The last state.
        model: The model with its last parameters.
        ema_model: The model with their moving average, None without one.
        train: The records of the training, oldest first, those before a resume too: `step`, `loss`, `grad_norm`, ...
        evals: What `eval_fn` returned, with its `step`.
        finished: Whether all steps are done; False after a signal or the time limit.
        resumed_from: The step the run was resumed at, 0 if it began anew.
        seconds: The time of the loop in all, that before a resume too.
        signal: The number of the signal that asked the run to stop, None without one.
    """

    state: TrainState
    model: Any
    ema_model: Any
    train: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    finished: bool
    resumed_from: int
    seconds: float
    signal: int | None

    @property
    def interrupted(self) -> bool:
        """Whether a signal asked the run to stop, be it during the last step."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The exit status a program should end with: 0, or 130 after Ctrl-C and 143 after SIGTERM."""
        return 0 if self.signal is None else 128 + self.signal


def fit(
    model: Any,
    loss: Loss,
    batch_fn: Callable[[int], Batch],
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
    config: FitConfig = FitConfig(),
    prepare: Prepare | None = None,
    trainable: Any = None,
    eval_fn: Callable[[Any, int], Mapping[str, Any]] | None = None,
    run_config: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains a model.

    With a `checkpoint_dir` the same call resumes from the newest good checkpoint and ends with the same bits as a run
    that was never interrupted. SIGTERM and Ctrl-C finish the step, save and return.

    Args:
        model: An NNX module. It is not changed; the trained one is in the result.
        loss: `loss(model, batch, key) -> (scalar, metrics)`, traced once.
        batch_fn: `batch_fn(step)` returns the batch of a step counted from 0, always the same one, of one shape.
        steps: How many steps there are in all.
        optimizer: Any optax transformation, such as `ssmjax.training.optim.adamw`.
        config: How to run the loop.
        prepare: `prepare(batch, key, train)`, applied to each batch inside the compiled step. If it has an argument
            `progress`, it also gets the share of the steps that is done.
        trainable: Which `nnx.Param` variables are trained, a filter of NNX such as `nnx.PathContains("projector")`;
            None trains all. The others, a frozen teacher or tower, have no gradient, no optimizer state and no moving
            average, and are not in the checkpoints: a resumed run takes them from the model that it is given.
        eval_fn: `eval_fn(model, step)` returns numbers to record. The model is that of `model.eval()`, has the moving
            average if there is one, and its arrays are valid during the call only.
        run_config: What else a checkpoint must agree with to be resumed from, as JSON can hold it.

    Returns:
        The trained model and the history.

    Raises:
        TrainingDiverged: The loss or the gradients were not finite in `max_bad_steps` steps in a row.
        CheckpointError: The disk is full, or no checkpoint can be trusted.
        ValueError: The checkpoints are of another run.

    >>> import jax.numpy as jnp, numpy as np
    >>> from flax import nnx
    >>> x = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
    >>> loss = lambda model, batch, key: (jnp.mean((model(batch["x"]) - 3 * batch["x"]) ** 2), {})
    >>> result = fit(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), loss, lambda step: {"x": x}, steps=200,
    ...              optimizer=optax.sgd(0.3), config=FitConfig(progress=False))
    >>> round(float(result.model.kernel[...][0, 0]), 3)
    3.0
    """
    if steps < 1:
        raise bad_argument("fit", "steps", steps, "at least 1")
    scaling = _computes_in_float16(model) if config.loss_scaling is None else config.loss_scaling
    layout, params, rest, frozen = split_trainable(model, trainable)
    state = init_state(
        params,
        rest,
        optimizer,
        seed=config.seed,
        ema=config.ema_decay is not None,
        layout=layout,
        loss_scaling=scaling,
    )
    train_step = make_step(
        layout,
        loss,
        optimizer,
        prepare=prepare,
        ema_decay=config.ema_decay,
        max_bad_steps=config.max_bad_steps,
        steps=steps,
    )
    identity = {"seed": config.seed, "ema_decay": config.ema_decay, **({"loss_scaling": True} if scaling else {})}
    # Through JSON, because it is compared with what a checkpoint holds.
    identity = json.loads(json.dumps({**identity, **(run_config or {})}))
    settings = model_settings(model)

    def evaluate(state: TrainState, done: int) -> Mapping[str, Any]:
        best = state.params if state.ema is None else state.ema
        model = layout.merge(best, state.rest, frozen)
        model.eval()
        return eval_fn(model, done) if eval_fn else {}

    try:
        with contextlib.ExitStack() as stack:
            run = _open(stack, commit(state), batch_fn, steps, config, identity, settings)
            state, seconds = _loop(run, train_step, frozen, steps, config, evaluate if eval_fn else None)
    except TrainingDiverged as error:
        if config.checkpoint_dir:
            write_atomically(Path(config.checkpoint_dir) / "diverged.json", json.dumps(error.report, indent=1) + "\n")
        raise
    return FitResult(
        state=state,
        model=layout.merge(state.params, state.rest, frozen),
        ema_model=None if state.ema is None else layout.merge(state.ema, state.rest, frozen),
        train=run.recorder.of_kind("train"),
        evals=run.recorder.of_kind("eval"),
        finished=int(state.step) >= steps,
        resumed_from=run.start,
        seconds=seconds,
        signal=run.stop.received,
    )


class _Run(NamedTuple):
    """What the loop works with."""

    state: TrainState
    start: int  # the number of steps done before
    seconds: float  # the time they took
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]
    stop: StopSignals
    store: CheckpointStore | None
    recorder: Recorder
    journal: Journal
    batches: Prefetcher
    profile: ProfileWindow


def _open(
    stack: contextlib.ExitStack,
    state: TrainState,
    batch_fn: Callable[[int], Batch],
    steps: int,
    config: FitConfig,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> _Run:
    """Restores the newest checkpoint and opens what the loop writes to; `stack` closes it."""
    directory = Path(config.checkpoint_dir) if config.checkpoint_dir else None
    stop = stack.enter_context(StopSignals())
    store = stack.enter_context(CheckpointStore(directory, keep=config.keep)) if directory else None
    state, start, seconds = _resume(store, state, identity, settings, fresh=config.fresh)
    recorder = Recorder(directory / "metrics.jsonl" if directory else None, start, config.tensorboard_dir)
    stack.enter_context(recorder)
    journal = Journal(
        recorder, start, steps, max_bad_steps=config.max_bad_steps, progress=config.progress, unit=config.unit
    )
    stack.enter_context(journal)
    batches = stack.enter_context(Prefetcher(batch_fn, start, steps))
    profile = stack.enter_context(ProfileWindow(config.profile_dir, min(start + 10, steps)))
    return _Run(state, start, seconds, identity, settings, stop, store, recorder, journal, batches, profile)


def _loop(
    run: _Run,
    train_step: Callable[..., tuple[TrainState, Metrics]],
    frozen: Arrays,
    steps: int,
    config: FitConfig,
    evaluate: Callable[[TrainState, int], Mapping[str, Any]] | None,
) -> tuple[TrainState, float]:
    """Runs the steps that are left, until a signal comes; returns the state and the time since the first of all."""
    called = time.perf_counter()
    began, state, journal, compiled = called - run.seconds, run.state, run.journal, None
    for done in range(run.start + 1, steps + 1):
        batch = run.batches.next()
        if compiled is None:
            journal.compiling(batch)
            compiled = _compile(train_step, state, batch, frozen)
        run.profile.before(done)
        state, metrics = _call(compiled, state, batch, frozen, done)
        journal.tick()
        last, stopped = done == steps, run.stop.received is not None or _out_of_time(called, config.time_limit)
        if done == 1 or last or done % config.log_every == 0:
            journal.log(done, metrics)
        if evaluate and (last or _due(done, config.eval_every)):
            journal.settle(done, metrics)
            journal.evaluated(done, evaluate(state, done))
        if run.store and (last or stopped or _due(done, config.save_every)):
            # The records first: a run that resumes here counts on all records up to here.
            journal.settle(done, metrics)
            run.recorder.sync()
            record = {"identity": run.identity, "model": run.settings, "seconds": time.perf_counter() - began}
            run.store.save(done, state, record)
            journal.skip_time()
        if stopped:
            break
    journal.flush()
    return state, time.perf_counter() - began


def _computes_in_float16(model: Any) -> bool:
    """Whether a module of the model has float16 as the dtype of its computation."""
    modules = (module for _, module in nnx.iter_graph(model) if isinstance(module, nnx.Module))
    return any(getattr(module, "dtype", None) == jnp.float16 for module in modules)


def _out_of_time(called: float, limit: float | None) -> bool:
    return limit is not None and time.perf_counter() - called > limit


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _resume(
    store: CheckpointStore | None,
    state: TrainState,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    fresh: bool,
) -> tuple[TrainState, int, float]:
    """Returns the state to go on from, its step, and the seconds of training behind it."""
    if store is None:
        return state, 0, 0.0
    if fresh:
        store.clear()
    found = store.restore(state)
    if found is None:
        return state, 0, 0.0
    restored, start, metadata = found
    stored = metadata["identity"]
    if changed := sorted(name for name in stored.keys() | identity.keys() if stored.get(name) != identity.get(name)):
        pairs = "; ".join(f"{name}: {stored.get(name)!r} there, {identity.get(name)!r} now" for name in changed)
        raise ValueError(
            f"fit: the checkpoints in {store.directory} are of a run with other settings ({pairs}). Use another "
            "folder, or start anew with `fresh=True` (on the command line, `--no-resume`)."
        )
    check_settings(str(store.directory), metadata.get("model", {}), settings)
    logger.info("Resuming from step %d in %s.", start, store.directory)
    return restored, start, metadata["seconds"]


def _compile(train_step: Callable[..., Any], state: TrainState, batch: Batch, frozen: Arrays) -> jax.stages.Compiled:
    """Compiles the step ahead of time, so that there can be no second compilation later."""
    began = time.perf_counter()
    compiled = jax.jit(train_step, donate_argnums=0).lower(state, batch, frozen).compile()
    logger.info("Compiled the training step in %.1f s.", time.perf_counter() - began)
    return compiled


def _call(
    compiled: jax.stages.Compiled, state: TrainState, batch: Batch, frozen: Arrays, done: int
) -> tuple[TrainState, Metrics]:
    try:
        return compiled(state, batch, frozen)
    except TypeError as error:
        shapes = jax.tree.map(shape_of, batch)
        raise ValueError(
            f"fit: batch_fn({done - 1}) returned {shapes}, and the step was compiled for another shape, dtype or "
            "structure. Every batch must be alike; leave out the last, smaller one of an epoch."
        ) from error
