"""Tunes a LLaVA on your own pictures and conversations, in LLaVA's JSON form, and trains a token merge for it.

What is tuned is chosen by `--train`: the projector, the language model, the vision tower, and the merger, which is
trained last, for the model as it is then. The model is a folder of `save_pretrained` or of Hugging Face.

    [{"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                     {"from": "gpt", "value": "A cat."}]}, ...]

Recipe (device, minutes, what is expected):
    python -m experiments.vlm_finetune --model experiments/weights/llava_scenes --data F.json --images D --train merger
        two CPU cores, some minutes: a merger for the small teacher that comes with the project
    python -m experiments.vlm_finetune --model llava-hf/llava-1.5-7b-hf --chat llava_hf --data F.json --images D
        --train projector --batch 8         one H200; the weights are 14 GB

The last tenth of the conversations is held out: its loss and the share of answer tokens that are right are reported,
before and after, and with the merge at each budget. The tuned model is in `--save`, and the merger in `--save/merger`.
"""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import vlmjax
from experiments.shared import common, conversations
from ssmjax import errors
from ssmjax.paths import LocalPaths
from ssmjax.training.report import make_report, render_table, write_report
from vlmjax.layers import Merger
from vlmjax.models import Llava
from vlmjax.processing import CHATS
from vlmjax.training import llava_answers

NAME = "vlm_finetune"

PARTS = ("projector", "language", "vision", "merger")


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """Every field is a flag."""

    data: Path = Path("data.json")
    """The conversations."""
    images: Path = Path("images")
    """The folder of the pictures."""
    model: str = "experiments/weights/llava_scenes"
    """A folder, or a name on the Hugging Face hub."""
    tokenizer: Path | None = None
    """A `tokenizer.json`; None means that in the model's folder."""
    train: tuple[str, ...] = ("projector",)
    """Which parts: projector, language, vision, merger."""
    chat: str = "plain"
    """The template: plain, vicuna, llava_hf."""
    fit: str = "pad"
    """How pictures are made square: pad, crop, stretch."""
    mean: tuple[float, ...] = ()
    """Of the channels of a picture, from 0 to 1; those of the tower's kind (CLIP, SigLIP) by default."""
    std: tuple[float, ...] = ()
    budgets: tuple[int, ...] = (36, 16, 9)
    """Of the merger."""
    steps: int = 500
    merger_steps: int = 500
    batch: int = 16
    learning_rate: float = 2e-5
    merger_rate: float = 2e-3
    max_length: int = 2048
    seed: int = 0
    save: Path = Path("runs/vlm_finetune")
    """Where the tuned model goes."""
    out_dir: Path = Path(".")


def main(config: Config = Config()) -> dict[str, Any]:
    """Tunes, evaluates, saves, and writes the results file.

    Args:
        config: The command line's fields.

    Returns:
        What the results file holds.
    """
    unknown = [part for part in config.train if part not in PARTS]
    if unknown or not config.train:
        raise errors.unknown_name("part to train", unknown[0] if unknown else "", PARTS)
    errors.require_known("chat", config.chat, CHATS)
    common.require_writable("out_dir", config.out_dir)
    begin = time.time()
    tokenizer = _tokenizer(config)
    model = vlmjax.load_pretrained(config.model)
    if not isinstance(model, Llava):
        raise errors.bad_argument(NAME, "model", config.model, "a LLaVA")
    most = min(config.max_length, model.config.text.max_length)
    data = conversations.load(config.data, config.images, model, tokenizer, chat=config.chat, fit=config.fit, most=most)
    data = dataclasses.replace(data, mean=config.mean or data.mean, std=config.std or data.std)
    held = max(1, len(data.images) // 10)
    order = np.random.default_rng([config.seed, 1]).permutation(len(data.images))
    seen, kept = (order[held:], order[:held]) if len(order) > 1 else (order, order)
    metrics = {f"before/{kind}": value for kind, value in _scores(model, data, kept, config, None).items()}
    parts, curve = tuple(part for part in config.train if part != "merger"), {}
    if parts:
        curve["loss"] = _tune(model, _batches(data, seen, config), parts, config)
        metrics |= {f"after/{kind}": value for kind, value in _scores(model, data, kept, config, None).items()}
        vlmjax.save_pretrained(model, config.save / "model")
    if "merger" in config.train:
        curves, found = _merge(model, data, seen, kept, config)
        curve, metrics = curve | curves, metrics | found
    report = make_report(
        NAME,
        command=common.command(NAME, config, Config()),
        config=dataclasses.asdict(config) | {"out_dir": "", "save": "", "data": config.data.name, "images": ""},
        runs=[{"seed": config.seed, "seconds": time.time() - begin, "metrics": metrics}],
        data={
            "name": config.data.name,
            "sha256": hashlib.sha256(config.data.read_bytes()).hexdigest(),
            "train": len(seen),
            "test": len(kept),
        },
        curve=curve,
    )
    write_report(common.result_paths(config.out_dir, NAME)[0], report)
    print(render_table(report))
    return report


def _merge(model: Llava, data: conversations.Conversations, seen, kept, config: Config):
    """Trains a merger for the model as it is, and saves it: its curves, and the scores at each budget."""
    side = round(model.config.tokens_per_image**0.5)
    merger = Merger(
        model.config.vision.d_model * len(model.config.layers),
        grid=(side, side) if side**2 == model.config.tokens_per_image else None,
        adapt=True,
        rngs=nnx.Rngs(config.seed),
    )
    merger, curve = vlmjax.train_merger(
        model,
        _batches(data, seen, config),
        budgets=config.budgets,
        steps=config.merger_steps,
        learning_rate=config.merger_rate,
        merger=merger,
        seed=config.seed,
    )
    vlmjax.save_merger(merger, config.save / "merger")
    metrics = {}
    for m in config.budgets:
        found = _scores(model, data, kept, config, merger, m)
        metrics |= {f"{m} tokens/{kind}": value for kind, value in found.items()}
    return {f"merger {name}": values for name, values in curve.items()}, metrics


def _tokenizer(config: Config) -> Any:
    from tokenizers import Tokenizer

    file = Path(config.model) / "tokenizer.json" if config.tokenizer is None else config.tokenizer
    if not file.is_file():
        raise errors.bad_argument(
            NAME, "tokenizer", str(file), "a tokenizer.json", "Give the file of the model's tokenizer with --tokenizer."
        )
    return Tokenizer.from_file(str(file))


def _batches(data: conversations.Conversations, rows: np.ndarray, config: Config) -> Iterator[dict[str, np.ndarray]]:
    """Endless; a batch is a function of the seed and the step."""
    step = 0
    while True:
        rng = np.random.default_rng([config.seed, 2, step])
        yield data.batch(rng.choice(rows, config.batch, replace=len(rows) < config.batch))
        step += 1


def _tune(
    model: Llava, batches: Iterator[dict[str, np.ndarray]], parts: tuple[str, ...], config: Config
) -> list[float]:
    """AdamW on some parts, with a warm-up and a cosine, as LLaVA does; the losses."""

    def chosen(path, value):
        return isinstance(value, nnx.Param) and path[0] in parts

    definition, params, rest = nnx.split(model, chosen, ...)
    steps, rate = config.steps, config.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps * 3 // 100), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.0))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, rest, batch):
        def loss(params):
            logits, labels = llava_answers(nnx.merge(definition, params, rest), batch, None)
            return _loss(logits, labels)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params, losses = jax.tree.map(jnp.copy, params), []
    state = optimizer.init(params)
    for number in range(steps):
        params, state, value = step(params, state, rest, next(batches))
        if number % max(1, steps // 20) == 0 or number + 1 == steps:
            losses.append(float(value))
            print(f"step {number + 1} of {steps}, loss {losses[-1]:.3f}", flush=True)
    nnx.update(model, params)
    return losses


def _scores(model: Llava, data, rows, config: Config, merger, m: int | None = None) -> dict[str, float]:
    """The loss of the held-out answers, and the share of their tokens that are the most likely ones.

    With a merge, a text has as many image tokens as are left of its picture's.
    """
    definition, state = nnx.split(model)
    count, image = model.config.tokens_per_image, model.config.image_token
    merge = None if merger is None else lambda x: merger(x, m)

    @jax.jit
    def run(state, batch):
        logits, labels = llava_answers(nnx.merge(definition, state), batch, merge)
        right = jnp.where(labels >= 0, logits.argmax(-1) == labels, False)
        return _loss(logits, labels) * (labels >= 0).sum(), right.sum(), (labels >= 0).sum()

    totals = np.zeros(3)
    for first in range(0, len(rows), config.batch):
        batch = data.batch(rows[first : first + config.batch])
        if m is not None:
            drop = (np.cumsum(batch["tokens"] == image, axis=1) > m) & (batch["tokens"] == image)
            batch["tokens"], batch["labels"] = (
                np.stack([row[~gone] for row, gone in zip(batch[name], drop, strict=True)])
                for name in ("tokens", "labels")
            )
            assert batch["tokens"].shape[1] == data.tokens.shape[1] - (count - m)
        totals += np.array([float(value) for value in run(state, batch)])
    return {"loss": totals[0] / max(1, totals[2]), "right": totals[1] / max(1, totals[2])}


def _loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    counted = labels >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.where(counted, losses, 0).sum() / jnp.maximum(counted.sum(), 1)


if __name__ == "__main__":
    common.run_cli(main, Config)
