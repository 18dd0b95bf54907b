"""The training step: one pure function from a state and a batch to the next state and its metrics."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssmjax.errors import bad_argument, bad_shape
from ssmjax.training.state import Arrays, Layout, TrainState

__all__ = ["Batch", "Loss", "Metrics", "Prepare", "init_state", "make_step"]

Batch = Any
"""A pytree of arrays with the examples on their leading axis."""

Metrics = dict[str, jax.Array]

Loss = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Mapping[str, jax.Array]]]
"""`loss(model, batch, key) -> (scalar, metrics)`; what it changes in the model's variables is kept."""

Prepare = Callable[[Batch, jax.Array | None, bool], Batch]
"""`prepare(batch, key, train) -> batch`, inside the compiled step, to normalize and augment; no key in evaluation."""


def init_state(
    params: Arrays, rest: Arrays, optimizer: optax.GradientTransformation, *, seed: int, ema: bool
) -> TrainState:
    """Returns the state before the first step.

    Args:
        params: The parameters, by path.
        rest: The other variables, by path.
        optimizer: Its state is made from the parameters.
        seed: The seed of the run.
        ema: Whether to keep a moving average of the parameters.
    """
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        key=jax.random.key(seed),
        params=params,
        rest=rest,
        opt_state=optimizer.init(params),
        ema=params if ema else None,
        bad_steps=zero,
        bad_streak=zero,
    )


def make_step(
    layout: Layout,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare | None = None,
    ema_decay: float | None = None,
    max_bad_steps: int = 10,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds the step, to be jitted by the caller.

    A step whose loss, gradients or updates are not finite changes nothing but the counters. After `max_bad_steps` of
    them in a row all later steps are skipped too, so that the state is still that of the last good step when the host
    looks.

    Args:
        layout: The model without its arrays.
        loss: The loss of a batch.
        optimizer: Any optax transformation.
        prepare: A transformation of the batch.
        ema_decay: The decay of the moving average, `ema = decay * ema + (1 - decay) * params`; None keeps none.
        max_bad_steps: How many bad steps in a row end the training.

    Returns:
        `step(state, batch) -> (state, metrics)`; the metrics are the loss's own and `loss`, `grad_norm`, `bad_steps`
        and `bad_streak`.
    """

    def objective(params: Arrays, rest: Arrays, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        model = layout.merge(params, rest)
        value, metrics = loss(model, batch, key)
        _check_scalars({"the loss": value, **metrics})
        return value, (dict(metrics), layout.rest_of(model))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        prepare_key, loss_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        if prepare is not None:
            batch = prepare(batch, prepare_key, True)
        gradient = jax.value_and_grad(objective, has_aux=True)
        (value, (metrics, rest)), grads = gradient(state.params, state.rest, batch, loss_key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = None if ema_decay is None else optax.incremental_update(params, state.ema, 1.0 - ema_decay)

        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(updates))
        good = finite & (state.bad_streak < max_bad_steps)
        new = {"params": params, "rest": rest, "opt_state": opt_state, "ema": ema}
        old = {name: getattr(state, name) for name in new}
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
        streak = jnp.where(good, 0, state.bad_streak + 1)
        bad_steps = state.bad_steps + jnp.where(good, 0, 1)
        state = TrainState(step=state.step + 1, key=state.key, bad_steps=bad_steps, bad_streak=streak, **kept)
        return state, {**metrics, "loss": value, "grad_norm": grad_norm, "bad_steps": bad_steps, "bad_streak": streak}

    return step


def _check_scalars(values: Mapping[str, jax.Array]) -> None:
    for name, value in values.items():
        if jnp.shape(value) != ():
            raise bad_shape("fit", f"{name} that `loss` returns", value, "a scalar", "Take the mean over the batch.")
    if not jnp.issubdtype(values["the loss"].dtype, jnp.floating):
        raise bad_argument("fit", "the loss", values["the loss"].dtype, "of a floating dtype")
