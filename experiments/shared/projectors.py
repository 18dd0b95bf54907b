"""The projectors of `experiments.projector_study`: what they cost, and the training of many at once."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.shared import scenes
from ssmjax.checkpoints.arrays import model_arrays
from vlmjax.layers import Projector
from vlmjax.models import Llava

__all__ = ["FAMILIES", "Runs", "Trained", "costs", "make", "published", "train", "train_answers"]

FAMILIES = ("linear", "low_rank", "mlp", "llava_mlp", "gated", "lora")
"""The published five, and LLaVA-1.5's own."""

PUBLISHED = {
    "linear": dict(loss=0.1719, parameters=1.05, macs=1.05, seconds=7.90),
    "low_rank": dict(loss=0.1414, parameters=0.52, macs=0.52, seconds=7.99),
    "mlp": dict(loss=0.1169, parameters=4.20, macs=4.19, seconds=31.97),
    "gated": dict(loss=0.1773, parameters=2.10, macs=2.10, seconds=13.27),
    "lora": dict(loss=0.1874, parameters=1.07, macs=1.57, seconds=12.74),
}
"""The table of the study: test loss, millions of parameters and of "FLOPs" (one for a multiplication and an addition),
seconds."""

WIDTH = 1024
"""Its channels, which reproduce all its digits: the width of CLIP ViT-L/14."""


def make(family: str, d_in: int, d_out: int, *, seed: int = 0, rank: int | None = None) -> Projector:
    """A projector in the study's proportions: a rank of a quarter, an MLP twice as wide, LoRA of rank 8."""
    rngs = nnx.Rngs(seed)
    if family == "low_rank":
        return Projector("low_rank", d_in, d_out, rank=rank or d_in // 4, rngs=rngs)
    if family == "mlp":
        return Projector("mlp2x_gelu", d_in, d_out, hidden=2 * d_in, rngs=rngs)
    if family == "llava_mlp":
        return Projector("mlp2x_gelu", d_in, d_out, rngs=rngs)
    return Projector(family, d_in, d_out, rank=rank or 8, rngs=rngs)


def counted(family: str, d_in: int, d_out: int, rank: int | None = None) -> dict[str, int]:
    """Parameters, and multiplications a token: every matrix is used once, biases are left out as in the study."""
    arrays = model_arrays(nnx.eval_shape(lambda: make(family, d_in, d_out, rank=rank)))
    return {
        "parameters": sum(x.size for x in arrays.values()),
        "macs": sum(x.size for x in arrays.values() if len(x.shape) == 2),
    }


def published() -> dict[str, dict[str, Any]]:
    """The study's table beside what its modules have; LoRA's multiplications at the rank of 8 and at 256."""
    rows = {name: {"printed": row, "ours": counted(name, WIDTH, WIDTH)} for name, row in PUBLISHED.items()}
    rows["lora"]["ours"]["macs_at_rank_256"] = counted("lora", WIDTH, WIDTH, 256)["macs"]
    return rows


def costs(*, smoke: bool = False) -> dict[str, dict[str, float]]:
    """Counts, bytes of weights and milliseconds in LLaVA-1.5's shape, in the compute type of the device."""
    d_in, d_out, tokens = (16, 32, 8) if smoke else (1024, 4096, 576)
    dtype = jnp.bfloat16 if jax.default_backend() != "cpu" else jnp.float32
    found = {}
    for family in FAMILIES:
        row: dict[str, float] = dict(counted(family, d_in, d_out))
        row["bytes"] = row["parameters"] * jnp.dtype(dtype).itemsize
        definition, state = nnx.split(make(family, d_in, d_out))
        state = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), state)
        run = jax.jit(lambda state, x, definition=definition: nnx.merge(definition, state)(x))
        for batch in (1, 8):
            x = jnp.ones((batch, tokens, d_in), dtype)
            row[f"ms_{batch}"] = _milliseconds(run, state, x)
        found[family] = row
    return found


def _milliseconds(run: Callable, *arguments: Any) -> float:
    times = []
    for _ in range(35):
        begin = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times[5:]))


@dataclasses.dataclass(frozen=True)
class Runs:
    """Every seed at every learning rate, as one axis.

    Attributes:
        seeds: The seeds.
        rates: The learning rates.
    """

    seeds: Sequence[int]
    rates: Sequence[float]

    def __len__(self) -> int:
        return len(self.seeds) * len(self.rates)

    @property
    def pairs(self) -> list[tuple[int, float]]:
        """Seed and rate of each run."""
        return [(seed, rate) for rate in self.rates for seed in self.seeds]

    def best(self, losses: np.ndarray) -> int:
        """The number of the rate whose mean over the seeds is least."""
        return int(np.nanargmin(losses.reshape(len(self.rates), len(self.seeds)).mean(1)))

    def of_rate(self, values: np.ndarray, rate: int) -> np.ndarray:
        """The values of one rate, a seed each."""
        return values.reshape(len(self.rates), len(self.seeds))[rate]


@dataclasses.dataclass(frozen=True)
class Trained:
    """Projectors of all runs.

    Attributes:
        definition: The graph definition of one.
        state: The parameters of all, with a leading axis.
        steps: At which the losses were kept.
        curve: (runs, steps), the losses.
    """

    definition: Any
    state: Any
    steps: list[int]
    curve: np.ndarray

    def apply(self, run: int, x: jax.Array) -> jax.Array:
        """What the projector of one run makes of tokens."""
        state = jax.tree.map(lambda v: v[run], self.state)
        call = _call(self.definition)
        return jnp.concatenate([call(state, x[i : i + 250]) for i in range(0, len(x), 250)])


@functools.cache
def _call(definition: Any) -> Callable:
    return jax.jit(lambda state, x: nnx.merge(definition, state)(x))


def train(build, runs: Runs, features: jax.Array, targets: jax.Array, size: dict[str, Any], *, label: str) -> Trained:
    """Towards targets, by the mean square error over the targets' variance."""
    x, y = (v.reshape(-1, v.shape[-1]) for v in (features, targets))
    spread = jnp.square(y - y.mean(0, keepdims=True)).mean()

    def loss(projector, key, data):
        x, y = data
        rows = jax.random.randint(key, (size["batch"],), 0, len(x))
        return jnp.square(projector(x[rows][None])[0] - y[rows]).mean() / spread

    return _train(build, runs, loss, (x, y), size["steps"], size["chunk"], label)


def train_answers(
    build, runs: Runs, model: Llava, features: jax.Array, split: scenes.Split, size: dict[str, Any], *, label: str
) -> Trained:
    """By the cross entropy of the answers; the tower and the language model are frozen."""
    language, frozen = nnx.split(model.language)

    def loss(projector, key, data):
        state, features, questions, answers = data
        rows_key, version_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (size["answer_batch"],), 0, len(features))
        version = jax.random.randint(version_key, rows.shape, 0, scenes.VERSIONS)
        visual = projector(features[rows])
        logits = scenes.answer_logits(nnx.merge(language, state), visual, questions[rows, version])
        return optax.softmax_cross_entropy_with_integer_labels(logits, answers[rows, version]).mean()

    data = (frozen, features, split.arrays["questions"], split.arrays["answers"])
    return _train(build, runs, loss, data, size["answer_steps"], size["chunk"], label)


def _train(build, runs: Runs, loss, data, steps: int, chunk: int, label: str) -> Trained:
    """Adam with a warm-up and a cosine, all runs at once; a batch is a function of the seed and the step."""
    models = [nnx.split(build(seed)) for seed, _ in runs.pairs]
    definition = models[0][0]
    state = jax.tree.map(lambda *x: jnp.stack(x), *(state for _, state in models))
    rates = jnp.array([rate for _, rate in runs.pairs])
    seeds = jnp.array([seed for seed, _ in runs.pairs])
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, max(1, steps // 20), steps, 0.02)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_schedule(schedule))

    def one(state, moments, seed, rate, data, number):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(2), seed), number)
        value, grads = jax.value_and_grad(lambda state: loss(nnx.merge(definition, state), key, data))(state)
        updates, moments = optimizer.update(grads, moments)
        return jax.tree.map(lambda p, u: p - rate * u, state, updates), moments, value

    @jax.jit
    def run(state, moments, data, first):
        def step(carry, number):
            state, moments, value = jax.vmap(one, in_axes=(0, 0, 0, 0, None, None))(*carry, seeds, rates, data, number)
            return (state, moments), value

        carry, values = jax.lax.scan(step, (state, moments), first + jnp.arange(chunk))
        return *carry, values.mean(0)

    moments, curve, kept, start = jax.vmap(optimizer.init)(state), [], [], time.time()
    for first in range(0, steps, chunk):
        state, moments, values = run(state, moments, data, first)
        curve.append(np.asarray(values))
        kept.append(first + chunk // 2)
    print(f"{label}: loss {curve[-1].min():.4f} at best, {time.time() - start:.0f} s", flush=True)
    return Trained(definition, state, kept, np.stack(curve, axis=1))
