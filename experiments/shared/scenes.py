"""What the experiments on DigitScenes share: data on the device, answers from a cached picture, loops, ceilings."""

import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx

from ssmjax.data.synthetic import QUESTION_TYPES, DigitScenes, draw_digit_scenes, scene_questions
from ssmjax.data.synthetic.digit_scenes import RGB as _RGB
from vlmjax.models import CausalLM, Llava
from vlmjax.ops import MergeState

__all__ = [
    "PATCHES",
    "Split",
    "accuracies",
    "answer_logits",
    "ceilings",
    "load",
    "normalized",
    "priors",
    "restored",
    "store",
    "train",
]

PATCHES = 144
VERSIONS = 4
"""How many questions of each type there are about a training picture."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Pictures with their questions; arrays on the device.

    Attributes:
        arrays: `images`, `labels`, `captions`, and for each version of the questions `questions` (b 4 6 4), `answers`
            (b 4 6); with one version for tests.
        scenes: The pictures as they were drawn.
        sha256: The checksum of the images.
        seed: The seed of the pictures; the questions' seeds follow from it.
    """

    arrays: dict[str, jax.Array]
    scenes: DigitScenes
    sha256: str
    seed: int


def load(count: int, *, seed: int, split: str) -> Split:
    """Draws a split and puts it on the device."""
    scenes = draw_digit_scenes(count, seed=seed, split=split)
    versions = VERSIONS if split == "train" else 1
    asked = [scene_questions(scenes, seed=1000 * seed + version) for version in range(versions)]
    arrays = {
        "images": jnp.asarray(scenes.images),
        "labels": jnp.asarray(scenes.labels, jnp.int32),
        "captions": jnp.asarray(scenes.captions, jnp.int32),
        "questions": jnp.asarray(np.stack([q for q, _ in asked], axis=1), jnp.int32),
        "answers": jnp.asarray(np.stack([a for _, a in asked], axis=1), jnp.int32),
    }
    return Split(arrays, scenes, hashlib.sha256(scenes.images.tobytes()).hexdigest(), seed)


def normalized(images: jax.Array) -> jax.Array:
    """What the tower reads."""
    return (images.astype(jnp.float32) - 0.35) / 0.25


def answer_logits(
    language: CausalLM, visual: jax.Array, questions: jax.Array, merged: MergeState | None = None
) -> jax.Array:
    """The logits of the answers; the picture is read once, and all its questions continue from that cache.

    Args:
        language: The language model.
        visual: (b m d), projected visual tokens.
        questions: (b q t).
        merged: Their sizes and positions, where they were merged.

    Returns:
        (b q v).
    """
    (b, m, _), (_, q, t) = visual.shape, questions.shape
    cache = language.init_cache(b, m + t)
    positions = jnp.broadcast_to(jnp.arange(m)[None], (b, m)) if merged is None else merged.position
    bias = None if merged is None else jnp.log(jnp.maximum(merged.size, 1e-9))
    _, cache = language.decode(visual, positions=positions, bias=bias, cache=cache)
    layers = cache.layers
    many = layers._replace(
        keys=jnp.repeat(layers.keys, q, axis=1),
        values=jnp.repeat(layers.values, q, axis=1),
        bias=jnp.repeat(layers.bias, q, axis=1),
    )
    cache = cache._replace(layers=many, position=jnp.repeat(cache.position, q))
    rows = rearrange(questions, "b q t -> (b q) t")
    after = jnp.broadcast_to(PATCHES + jnp.arange(t)[None], rows.shape)  # where they stand without any merge, too
    x, _ = language.decode(language.embed(rows), positions=after, cache=cache)
    return rearrange(language.logits(x[:, -1]), "(b q) v -> b q v", b=b)


def train(
    module: nnx.Module,
    loss: Callable[[Any, Mapping[str, jax.Array], jax.Array], jax.Array],
    arrays: Mapping[str, jax.Array],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    parts: Sequence[str] | None = None,
    weight_decay: float = 0.02,
    chunk: int = 50,
    label: str = "",
    keep: Path | None = None,
) -> dict[str, Any]:
    """Trains a module in place: AdamW with a warm-up and a cosine, `chunk` steps to a compiled call.

    A batch is a function of the seed and the step. Only parameters whose path begins with one of `parts` change.

    Args:
        module: What is trained.
        loss: `loss(module, batch, key)`, a mean over the batch.
        arrays: The data, with a leading axis of examples.
        steps: How many.
        batch: Examples a step.
        learning_rate: The largest.
        seed: The seed of the batches.
        parts: Names of attributes; None means all.
        weight_decay: The weight decay of AdamW.
        chunk: Steps to a compiled call.
        label: What to call it in the progress.
        keep: A file in which the training is kept every 20 chunks; where there is one, it goes on from there.

    Returns:
        The loss of every chunk, and the seconds, with and without compiling.
    """
    wanted = nnx.Param if parts is None else _beginning(tuple(parts))
    definition, params, rest = nnx.split(module, wanted, ...)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(1, min(300, steps // 5)), steps, learning_rate / 50
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=weight_decay))
    count = len(next(iter(arrays.values())))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(params, state, rest, arrays, first):
        def step(carry, number):
            params, state = carry
            key = jax.random.fold_in(jax.random.key(seed), number)
            rows_key, loss_key = jax.random.split(key)
            rows = jax.random.randint(rows_key, (batch,), 0, count)
            picked = jax.tree.map(lambda x: x[rows], dict(arrays))
            value, grads = jax.value_and_grad(lambda p: loss(nnx.merge(definition, p, rest), picked, loss_key))(params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, state), values = jax.lax.scan(step, (params, state), first + jnp.arange(chunk))
        return params, state, values.mean()

    params = jax.tree.map(jnp.copy, params)  # the module keeps its own until the end
    state, start, losses = optimizer.init(params), time.time(), []
    if keep is not None and keep.is_file():
        (params, state), losses = restored(keep, (params, state))
    compiled, begin = start, len(losses) * chunk
    for first in range(begin, steps, chunk):
        params, state, value = run(params, state, rest, arrays, first)
        losses.append(float(value))
        compiled = time.time() if first == begin else compiled
        if keep is not None and (first + chunk >= steps or (first // chunk + 1) % 20 == 0):
            store(keep, (params, state), losses)
        if first // chunk % 10 == 0 or first + chunk >= steps:
            print(f"{label}: step {min(first + chunk, steps)} of {steps}, loss {losses[-1]:.3f}", flush=True)
    nnx.update(module, params)
    end = time.time()
    return {"losses": losses, "seconds": end - start, "seconds_without_first_chunk": end - compiled}


def store(file: Path, tree: Any, losses: Sequence[float] = ()) -> None:
    """Writes the arrays of a tree, and losses, under another name first, so that there is never half of a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    temporary = file.with_name(f"{file.stem}.{os.getpid()}.npz")
    np.savez(temporary, losses=np.asarray(losses, np.float64), **arrays)  # type: ignore[arg-type]
    temporary.replace(file)


def restored(file: Path, tree: Any) -> tuple[Any, list[float]]:
    """What `store` wrote, in the form of `tree`, and the losses."""
    with np.load(file) as kept:
        leaves = [jnp.asarray(kept[str(i)]) for i in range(len(kept.files) - 1)]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves), kept["losses"].tolist()


def accuracies(
    predict: Callable[[jax.Array, jax.Array], jax.Array], split: Split, *, batch: int = 250
) -> dict[str, float]:
    """The accuracy of each type of question, and their mean: `predict(images, questions)` gives tokens (b 6)."""
    images, questions, answers = (split.arrays[name] for name in ("images", "questions", "answers"))
    right = []
    for first in range(0, len(images), batch):
        rows = slice(first, first + batch)
        right.append(np.asarray(predict(images[rows], questions[rows, 0]) == answers[rows, 0]))
    share = np.concatenate(right).mean(0)
    return by_type(share)


def by_type(share: np.ndarray) -> dict[str, float]:
    """Names of the types for six numbers, and their mean."""
    named = {name: float(value) for name, value in zip(QUESTION_TYPES, share, strict=True)}
    return named | {"mean": float(np.mean(share))}


def priors(split: Split) -> dict[str, float]:
    """The share of the most frequent answer to each type."""
    answers = np.asarray(split.arrays["answers"][:, 0])
    return by_type(np.array([np.bincount(answers[:, t]).max() / len(answers) for t in range(answers.shape[1])]))


def ceilings(train_split: Split, test: Split) -> dict[str, float]:
    """What a model would reach that is given each digit's own pixels, its color and its place.

    A support vector machine reads the 8 x 8 crops of up to 3,000 training pictures; questions are answered from what
    it reads, and from the true colors and places.
    """
    from sklearn.svm import SVC

    crops, digits, _ = _crops(train_split.scenes, 3000)
    machine = SVC(C=10.0, gamma="scale").fit(crops, digits)
    crops, digits, where = _crops(test.scenes, len(test.scenes.images))
    read = test.scenes.digit.copy()
    read[where] = machine.predict(crops)
    told = dataclasses.replace(test.scenes, digit=read)
    seed = 1000 * test.seed
    _, answers = scene_questions(test.scenes, seed=seed)
    _, guessed = scene_questions(told, seed=seed)
    return by_type((answers == guessed).mean(0))


def predictor(model: Llava, *, blank: bool = False) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Compiled answers of a model; with `blank`, every picture is zero."""
    definition, state = nnx.split(model)

    @jax.jit
    def run(state, images, questions):
        model = nnx.merge(definition, state)
        images = normalized(images)
        visual = model.projector(model.visual_tokens(images * 0 if blank else images))
        return answer_logits(model.language, visual, questions).argmax(-1)

    return functools.partial(run, state)


def question_attention(model: Llava, image: jax.Array, question: jax.Array) -> np.ndarray:
    """How much the last token of a question looks at each visual token: (12 12), the mean over heads and layers."""
    visual = model.projector(model.visual_tokens(normalized(image[None])))
    x = jnp.concatenate([visual, model.language.embed(question[None])], axis=1)
    states = model.language.hidden_states(x)
    definition, state = nnx.split(model.language.layers)
    angles = _angles(model.language, x.shape[1])
    looks = []
    for i in range(model.language.config.depth):
        block = nnx.merge(definition, jax.tree.map(lambda v, i=i: v[i], state))
        weights = block.attn.weights(block.norm1(states[i]), angles)
        looks.append(np.asarray(weights[0, :, -1, :PATCHES].mean(0)))
    return np.mean(looks, axis=0).reshape(12, 12)


def _angles(language: CausalLM, length: int) -> jax.Array:
    from vlmjax.layers import rope_angles

    config = language.config
    return rope_angles(jnp.arange(length)[None], config.block.head_width, base=config.rope_base)


def _beginning(parts: tuple[str, ...]):
    def chosen(path, value):
        return isinstance(value, nnx.Param) and path[0] in parts

    return chosen


def _crops(scenes: DigitScenes, most: int) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    where = np.where(scenes.digit[:most] >= 0)
    corner = scenes.place[:most][where].astype(int)
    y, x = (corner[:, axis, None] + np.arange(8)[None] for axis in (0, 1))
    crops = scenes.images[where[0][:, None, None], y[:, :, None], x[:, None, :]].astype(np.float32)
    # The color is known, and with it the direction in which a glyph's pixels differ from what is behind.
    color = _RGB[where[1]][:, None, None]
    gray = ((crops - crops.mean((1, 2), keepdims=True)) * (color - color.mean(-1, keepdims=True))).sum(-1)
    return gray.reshape(len(gray), -1), scenes.digit[:most][where], where
