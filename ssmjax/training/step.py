"""The training step: one pure function from a state and a batch to the next state and its metrics."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssmjax.errors import bad_argument, bad_shape
from ssmjax.training.parameter_info import described
from ssmjax.training.state import Arrays, Layout, LossScale, TrainState

__all__ = ["Batch", "Loss", "Metrics", "Prepare", "init_state", "make_step"]

Batch = Any
"""A pytree of arrays with the examples on their leading axis."""

Metrics = dict[str, jax.Array]

Loss = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Mapping[str, jax.Array]]]
"""`loss(model, batch, key) -> (scalar, metrics)`; what it changes in the model's variables is kept."""

Prepare = Callable[..., Batch]
"""`prepare(batch, key, train) -> batch`, inside the compiled step, to normalize and augment; no key in evaluation.

A function that has an argument `progress` gets the share of the training that is done, from 0 at the first step to
nearly 1 at the last, a traced number; 1 in evaluation. With it augmentation can end early.
"""

FIRST_SCALE = 2.0**15
LARGEST_SCALE = 2.0**24
GROWTH_STEPS = 2000
"""After so many finite steps the scale of the loss is doubled."""


def init_state(
    params: Arrays,
    rest: Arrays,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema: bool,
    layout: Layout | None = None,
    loss_scaling: bool = False,
) -> TrainState:
    """Returns the state before the first step.

    Args:
        params: The parameters, by path.
        rest: The other variables, by path.
        optimizer: Its state is made from the parameters.
        seed: The seed of the run.
        ema: Whether to keep a moving average of the parameters.
        layout: The model without its arrays, which tells the optimizer what the parameters are.
        loss_scaling: Whether the loss has a scale.
    """
    zero = jnp.zeros((), jnp.int32)
    with described({} if layout is None else layout.parameter_info):
        opt_state = optimizer.init(params)
    return TrainState(
        step=zero,
        key=jax.random.key(seed),
        params=params,
        rest=rest,
        opt_state=opt_state,
        ema=params if ema else None,
        bad_steps=zero,
        bad_streak=zero,
        loss_scale=LossScale(jnp.asarray(FIRST_SCALE, jnp.float32), zero) if loss_scaling else None,
    )


def make_step(
    layout: Layout,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare | None = None,
    ema_decay: float | None = None,
    max_bad_steps: int = 10,
    steps: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds the step, to be jitted by the caller.

    A step whose loss, gradients or updates are not finite changes nothing but the counters. After `max_bad_steps` of
    them in a row all later steps are skipped too, so that the state is still that of the last good step when the host
    looks. With a scale of the loss (`init_state(loss_scaling=True)`), gradients that overflow halve the scale; that
    counts as a bad step only when the scale is 1.

    Args:
        layout: The model without its arrays.
        loss: The loss of a batch.
        optimizer: Any optax transformation.
        prepare: A transformation of the batch.
        ema_decay: The decay of the moving average, `ema = decay * ema + (1 - decay) * params`; None keeps none.
        max_bad_steps: How many bad steps in a row end the training.
        steps: How many steps there are in all, for the progress that `prepare` sees.

    Returns:
        `step(state, batch, frozen) -> (state, metrics)`, where `frozen` are the parameters that are not trained; the
        metrics are the loss's own and `loss`, `grad_norm`, `bad_steps` and `bad_streak`, and `loss_scale` if there is
        one.
    """

    def objective(params: Arrays, rest: Arrays, frozen: Any, batch: Batch, key: jax.Array, scale: Any) -> Any:
        model = layout.merge(params, rest, frozen)
        value, metrics = loss(model, batch, key)
        _check_scalars({"the loss": value, **metrics})
        scaled = value if scale is None else value.astype(jnp.float32) * scale
        return scaled, (value, dict(metrics), layout.rest_of(model))

    def step(state: TrainState, batch: Batch, frozen: Arrays | None = None) -> tuple[TrainState, Metrics]:
        prepare_key, loss_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        if prepare is not None:
            batch = call_prepare(prepare, batch, prepare_key, True, state.step / steps)
        scale = None if state.loss_scale is None else state.loss_scale.scale
        gradient = jax.grad(objective, has_aux=True)
        grads, (value, metrics, rest) = gradient(state.params, state.rest, frozen, batch, loss_key, scale)
        if scale is not None:
            grads = jax.tree.map(lambda g: (g.astype(jnp.float32) / scale).astype(g.dtype), grads)
        with described(layout.parameter_info):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = None if ema_decay is None else optax.incremental_update(params, state.ema, 1.0 - ema_decay)

        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(updates))
        good = finite & (state.bad_streak < max_bad_steps)
        new = {"params": params, "rest": rest, "opt_state": opt_state, "ema": ema}
        old = {name: getattr(state, name) for name in new}
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
        loss_scale, overflow = _next_scale(state.loss_scale, finite, jnp.isfinite(value))
        streak = jnp.where(good, 0, state.bad_streak + jnp.where(overflow, 0, 1))
        bad_steps = state.bad_steps + jnp.where(good | overflow, 0, 1)
        metrics |= {"loss": value, "grad_norm": grad_norm, "bad_steps": bad_steps, "bad_streak": streak}
        metrics |= {} if scale is None else {"loss_scale": scale}
        counters = {"bad_steps": bad_steps, "bad_streak": streak, "loss_scale": loss_scale}
        return TrainState(step=state.step + 1, key=state.key, **kept, **counters), metrics

    return step


def call_prepare(prepare: Prepare, batch: Batch, key: jax.Array | None, train: bool, progress: Any) -> Batch:
    """Calls a preparation, with the progress of the training if it asks for it."""
    asks = "progress" in inspect.signature(prepare).parameters
    return prepare(batch, key, train, **({"progress": progress} if asks else {}))


def _next_scale(scale: LossScale | None, finite: jax.Array, finite_loss: jax.Array) -> tuple[LossScale | None, Any]:
    """The scale of the next step, and whether this one has overflowed and a smaller scale may help."""
    if scale is None:
        return None, False
    overflow = ~finite & finite_loss & (scale.scale > 1)
    good_steps = jnp.where(finite, scale.good_steps + 1, 0)
    grows = good_steps >= GROWTH_STEPS
    grown = jnp.minimum(2 * scale.scale, LARGEST_SCALE)
    value = jnp.where(overflow, scale.scale / 2, jnp.where(grows, grown, scale.scale))
    return LossScale(value, jnp.where(grows, 0, good_steps)), overflow


def _check_scalars(values: Mapping[str, jax.Array]) -> None:
    for name, value in values.items():
        if jnp.shape(value) != ():
            raise bad_shape("fit", f"{name} that `loss` returns", value, "a scalar", "Take the mean over the batch.")
    if not jnp.issubdtype(values["the loss"].dtype, jnp.floating):
        raise bad_argument("fit", "the loss", values["the loss"].dtype, "of a floating dtype")
