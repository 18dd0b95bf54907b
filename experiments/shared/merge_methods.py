"""What `experiments.token_merge` compares: what pictures' features are, and the methods, trained and untrained."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.shared import scenes
from vlmjax.layers import Merger, Resampler
from vlmjax.layers.merger import Adapter
from vlmjax.models import Llava
from vlmjax.ops import (
    MergeState,
    attention_anchors,
    average_pool,
    bipartite_merge,
    density_anchors,
    select_tokens,
)

__all__ = ["GRID", "OURS", "TRAINED", "Features", "features", "make_method", "untrained", "without_size"]

GRID = (12, 12)
POOLED = {36: (6, 6), 16: (4, 4), 9: (3, 3), 4: (2, 2)}
WIDTH = 64
"""Of the hidden layer of what is trained for a merge."""

TEMPERATURE, SHARPNESS = (0.5, 0.02), (8.0, 60.0)
"""Of the soft merge, from the first step to the last."""

TRAINED = ("prune", "resampler", "shrunk", "adapter", "ours", "ours, KL")
OURS = ("ours", "ours, KL")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["images", "tokens", "keys", "scores", "questions", "answers", "logits"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Features:
    """Pictures, what the frozen tower makes of them, and what the teacher answers.

    Attributes:
        images: (b 48 48 3), as drawn.
        tokens: (b 144 d), what the projector reads.
        keys: (b 144 p), the mean over heads of the keys of the tower's last block.
        scores: (b 144), the attention that each token gets there.
        questions: (b 6 4).
        answers: (b 6).
        logits: (b 6 v), the teacher's.
    """

    images: jax.Array
    tokens: jax.Array
    keys: jax.Array
    scores: jax.Array
    questions: jax.Array
    answers: jax.Array
    logits: jax.Array


def features(model: Llava, split: scenes.Split, batch: int) -> Features:
    """Runs the tower and the teacher once over a split (one version of the questions)."""
    definition, state = nnx.split(model)

    @jax.jit
    def run(state, images, questions):
        model = nnx.merge(definition, state)
        images = scenes.normalized(images)
        tokens = model.visual_tokens(images)
        block_definition, blocks = nnx.split(model.vision.layers)
        block = nnx.merge(block_definition, jax.tree.map(lambda x: x[-1], blocks))
        before = block.norm1(model.vision.hidden(images, -2))
        _, keys, _ = block.attn.project(before)
        received = block.attn.weights(before).mean((1, 2))
        logits = scenes.answer_logits(model.language, model.projector(tokens), questions)
        return tokens, keys.mean(2), received, logits

    parts = []
    for first in range(0, len(split.arrays["images"]), batch):
        rows = slice(first, first + batch)
        parts.append(run(state, split.arrays["images"][rows], split.arrays["questions"][rows, 0]))
    tokens, keys, received, logits = (jnp.concatenate(x) for x in zip(*parts, strict=True))
    arrays = split.arrays
    return Features(
        arrays["images"], tokens, keys, received, arrays["questions"][:, 0], arrays["answers"][:, 0], logits
    )


def untrained(m: int, seed: int) -> dict[str, Callable[[Features], MergeState]]:
    """The methods that need no training, at one budget."""
    n = scenes.PATCHES
    drawn = np.sort(np.random.default_rng([seed, m]).permutation(n)[:m])
    found: dict[str, Callable[[Features], MergeState]] = {
        "slicing": lambda f: select_tokens(f.tokens, np.arange(m) * n // m + n // (2 * m)),
        "random": lambda f: select_tokens(f.tokens, drawn),
        "tome": lambda f: bipartite_merge(f.tokens, m, features=f.keys),
        "attention": lambda f: attention_anchors(f.tokens, f.keys, f.scores, m),
        "density": lambda f: density_anchors(f.tokens, m),
    }
    if m in POOLED:
        found["pool"] = lambda f: average_pool(f.tokens, GRID, POOLED[m])
    return found


def without_size(merge: Callable[[Features], MergeState]) -> Callable[[Features], MergeState]:
    """The same merge, whose tokens count as one each."""

    def run(f):
        state = merge(f)
        return state._replace(size=jnp.ones_like(state.size))

    return run


def make_method(name: str, model: Llava, budgets: tuple[int, ...], seed: int) -> nnx.Module:
    """One of `TRAINED`, as it is before its training.

    Each is called as `method(features, m)`, and as `method.learn(features, m, share)` in the training, of which `share`
    has passed. Where `method.traced`, the budget of a step is a number and not a shape.
    """
    d, rngs = model.config.vision.d_model, nnx.Rngs(seed)
    if name in ("prune", *OURS):
        return Anchored(Merger(d, grid=GRID, hidden=WIDTH, prune=name == "prune", adapt=name in OURS, rngs=rngs))
    if name == "resampler":
        return Resampled(Resampler(d, queries=max(budgets), tokens=scenes.PATCHES, rngs=rngs))
    if name == "adapter":
        return Adapted(d, rngs=rngs)
    return Shrunk(model)


class Anchored(nnx.Module):
    """A `Merger`: the anchored merge, or with its heads a selection."""

    traced = True
    rate = 1.0

    def __init__(self, merger: Merger):
        self.merger = merger

    def __call__(self, f: Features, m: int) -> MergeState:
        return self.merger(f.tokens, m)

    def learn(self, f: Features, m, share) -> MergeState:
        temperature, sharpness = (a * (b / a) ** share for a, b in (TEMPERATURE, SHARPNESS))
        return self.merger.soft(f.tokens, m, temperature=temperature, sharpness=sharpness)


class Resampled(nnx.Module):
    """A `Resampler`."""

    traced = False
    rate = 0.25

    def __init__(self, resampler: Resampler):
        self.resampler = resampler

    def __call__(self, f: Features, m: int) -> MergeState:
        return self.resampler(f.tokens, m)

    def learn(self, f: Features, m, share) -> MergeState:
        return self(f, m)


class Adapted(nnx.Module):
    """Density anchors with sizes, and behind them a network of the size of all of ours: what the losses alone bring."""

    traced = False
    rate = 1.0

    def __init__(self, d: int, *, rngs: nnx.Rngs):
        self.adapter = Adapter(d, 2 * WIDTH, rngs=rngs)

    def __call__(self, f: Features, m: int) -> MergeState:
        state = density_anchors(f.tokens, m)
        return state._replace(tokens=self.adapter(state.tokens, state.size))

    def learn(self, f: Features, m, share) -> MergeState:
        return self(f, m)


class Shrunk(nnx.Module):
    """Smaller pictures, for which a copy of the whole tower is trained; a token stands where its part of them stood."""

    traced = False
    rate = 0.1

    def __init__(self, model: Llava):
        definition, state = nnx.split(model.vision)
        self.tower = nnx.merge(definition, jax.tree.map(jnp.copy, state))
        self.final_norm = model.config.final_norm

    def __call__(self, f: Features, m: int) -> MergeState:
        side = round(m**0.5)
        pixels = side * self.tower.config.patch_size
        images = f.images.astype(jnp.float32)
        images = jax.image.resize(images, (len(images), pixels, pixels, 3), "linear", antialias=True)
        x = self.tower.hidden(scenes.normalized(images))
        x = self.tower.post_norm(x) if self.final_norm else x
        middle = (2 * np.arange(side) + 1) * GRID[0] // (2 * side)
        places = (middle[:, None] * GRID[1] + middle).reshape(1, m)
        shares = jnp.full((len(images), m, scenes.PATCHES), 1 / m, jnp.float32)
        sizes = jnp.full((len(images), m), scenes.PATCHES / m, jnp.float32)
        return MergeState(x, sizes, jnp.broadcast_to(jnp.asarray(places), (len(images), m)), shares)

    def learn(self, f: Features, m, share) -> MergeState:
        return self(f, m)
