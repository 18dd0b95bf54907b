"""Training a merger for a model that stays as it is: its own answers without a merge are what the merge is to keep."""

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ssmjax import errors
from vlmjax.layers.merger import Merger
from vlmjax.metrics import answer_divergence
from vlmjax.ops import MergeState

__all__ = ["Answers", "llava_answers", "train_merger"]

logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]
Answers = Callable[[nnx.Module, Batch, Callable | None], tuple[jax.Array, jax.Array]]
"""`answers(model, batch, merge)`: logits that predict answer tokens (*b v), and those tokens (*b), -1 for none."""

TEMPERATURE, SHARPNESS = (0.5, 0.02), (8.0, 60.0)
"""Of the soft merge, from the first step to the last."""


def train_merger(
    model: nnx.Module,
    data: Iterable[Batch],
    *,
    budgets: Sequence[int],
    steps: int = 1000,
    learning_rate: float = 2e-3,
    task_weight: float = 0.3,
    merger: Merger | None = None,
    answers: Answers | None = None,
    seed: int = 0,
) -> tuple[Merger, dict[str, list[float]]]:
    """Trains the heads of an anchored merge for a frozen vision-language model; one set of parameters for all budgets.

        loss = KL(p_whole || p_merged) + task_weight * cross entropy of the answers

    Each step draws one budget, and the merge is in its soft form, with a choice and an assignment that sharpen from
    step to step: its limit is the hard merge, which is what `merger(x, m)` does. One step is compiled for all budgets.

    Args:
        model: The teacher and the model that is served, such as a `Llava`; its parameters are not changed.
        data: Batches, as `answers` reads them; by default mappings of `images`, `tokens` (b l) with their image tokens,
            and `labels` (b l), the tokens of the answers and -1 elsewhere. Repeated when they end.
        budgets: The numbers of tokens to train for.
        steps: How many steps.
        learning_rate: The largest learning rate of AdamW with a cosine.
        task_weight: The weight of the labels; 0 learns from the model's own answers alone.
        merger: The merger to go on with; None makes one, which starts at density anchors.
        answers: How logits of answers come from a batch; `llava_answers` by default.
        seed: The seed of the budgets and of a new merger.

    Returns:
        The merger, and `loss` and `divergence` of each hundredth of the training.

    Raises:
        ValueError: A budget does not fit, or there is no batch.

    >>> import jax, jax.numpy as jnp, vlmjax
    >>> model = vlmjax.create_model("llava_nano", vision={"depth": 1}, text={"depth": 1})
    >>> n, image = model.config.tokens_per_image, model.config.image_token
    >>> tokens = jnp.concatenate([jnp.full((2, n), image), jnp.array([[1, 2], [1, 3]])], axis=1)
    >>> batch = {"images": jnp.ones((2, 32, 32, 3)), "tokens": tokens, "labels": jnp.where(tokens == image, -1, tokens)}
    >>> merger, curve = train_merger(model, [batch], budgets=(8, 16), steps=2)
    >>> merger(model.visual_tokens(batch["images"]), 8).tokens.shape
    (2, 8, 64)
    """
    budgets = [errors.as_int("train_merger", "budgets", m, least=1) for m in budgets]
    if not budgets:
        raise errors.bad_argument("train_merger", "budgets", budgets, "one budget or more")
    steps = errors.as_int("train_merger", "steps", steps, least=1)
    checked = answers is None
    if answers is None:
        answers, n = llava_answers, model.config.vision.length - model.config.dropped
        if max(budgets) > n:
            raise errors.bad_argument("train_merger", "budgets", budgets, f"from 1 to the {n} tokens of an image")
    if merger is None:
        side = model.config.vision.side
        merger = Merger(model.config.vision.d_model * len(model.config.layers), grid=(side, side), rngs=nnx.Rngs(seed))
    definition, params, rest = nnx.split(merger, nnx.Param, ...)
    frozen = nnx.split(model)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(_schedule(learning_rate, steps)))
    run = _step_of(definition, rest, frozen[0], optimizer, answers, steps, task_weight)
    state, batches, kept = optimizer.init(params), _endless(data), {"loss": [], "divergence": []}
    every = max(1, steps // 100)
    choices = jax.random.choice(jax.random.key(seed), jnp.asarray(budgets, jnp.float32), (steps,))
    for number, batch in zip(range(steps), batches, strict=False):
        if checked and number == 0:
            _check_batch(model, batch)
        params, state, loss, divergence = run(params, state, frozen[1], dict(batch), choices[number], number)
        if number % every == 0 or number == steps - 1:
            kept["loss"].append(float(loss))
            kept["divergence"].append(float(divergence))
    logger.info("Trained a merger for %d steps: divergence %.4f.", steps, kept["divergence"][-1])
    return nnx.merge(definition, params, rest), kept


def llava_answers(model: nnx.Module, batch: Batch, merge: Callable | None) -> tuple[jax.Array, jax.Array]:
    """The logits that predict the labels of LLaVA's conversations, and the labels.

    With a soft merge an image has as many tokens as without, so that the text is the same.

    Args:
        model: A `Llava`.
        batch: `images`, `tokens` (b l), `labels` (b l), -1 where no answer is.
        merge: What merges visual tokens, or None.

    >>> import jax.numpy as jnp, vlmjax
    >>> model = vlmjax.create_model("llava_nano", vision={"depth": 1}, text={"depth": 1})
    >>> tokens = jnp.concatenate([jnp.full((1, 64), 63), jnp.array([[1, 2, 3]])], axis=1)
    >>> batch = {"images": jnp.ones((1, 32, 32, 3)), "tokens": tokens, "labels": tokens}
    >>> logits, labels = llava_answers(model, batch, None)
    >>> logits.shape, labels.shape
    ((1, 66, 64), (1, 66))
    """
    logits = model(batch["tokens"], images=batch["images"], merge=merge)
    return logits[:, :-1], batch["labels"][:, 1:]


def _check_batch(model: nnx.Module, batch: Batch) -> None:
    """Of what `llava_answers` reads: is it all there, and do the images fit the text?"""
    missing = [name for name in ("images", "tokens", "labels") if name not in batch]
    if missing:
        wanted = "batches of images, tokens and labels"
        raise errors.bad_argument("train_merger", "data", f"a batch without {', '.join(missing)}", wanted)
    if jnp.shape(batch["labels"]) != jnp.shape(batch["tokens"]):
        raise errors.bad_shape("train_merger", "labels", batch["labels"], f"of tokens, {jnp.shape(batch['tokens'])}")
    model.check_inputs(batch["tokens"], images=batch["images"])


def _schedule(learning_rate: float, steps: int):
    warm = max(1, steps // 20)
    return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warm, max(steps, warm + 1), learning_rate / 50)


def _step_of(definition, rest, frozen_definition, optimizer, answers, steps, task_weight):
    """The compiled step; the budget is traced, so there is one for all of them."""

    def loss_of(params, frozen, batch, m, share):
        merger, model = nnx.merge(definition, params, rest), nnx.merge(frozen_definition, frozen)
        temperature, sharpness = (a * (b / a) ** share for a, b in (TEMPERATURE, SHARPNESS))

        def merge(x) -> MergeState:
            return merger.soft(x, m, temperature=temperature, sharpness=sharpness)

        wanted, labels = answers(model, batch, None)
        logits, _ = answers(model, batch, merge)
        counted = labels >= 0
        divergence = answer_divergence(jax.lax.stop_gradient(wanted), logits, counted)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        task = jnp.where(counted, losses, 0).sum() / jnp.maximum(counted.sum(), 1)
        return divergence + task_weight * task, divergence

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(params, state, frozen, batch, m, number):
        value, grads = jax.value_and_grad(loss_of, has_aux=True)(params, frozen, batch, m, number / steps)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, *value

    return run


def _endless(data: Iterable[Batch]):
    batches = iter(data)
    first = next(batches, None)
    if first is None:
        raise errors.bad_argument("train_merger", "data", data, "one batch or more")
    yield first
    yield from batches
    for again in itertools.repeat(data):
        yield from again
