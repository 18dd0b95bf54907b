"""How many visual tokens does an answer need? Methods of fewer tokens on the vision-language model of DigitScenes.

The teacher is `experiments.vlm_scenes`'s model; it stays as it is. Between its tower and its projector 144 tokens
become 36, 16, 9 or 4: by slicing, at random, by pooling, by bipartite matching (ToMe), by attention with contextual
tokens (VisionZip-like), by density anchors, and by what is trained for the same steps and with the same loss each:
selection with the same heads ("prune"), a resampler, and the anchored merge ("ours"; "ours, KL" learns from the
teacher's answers alone). Merging methods have the logarithm of the sizes in attention; "no size" is without it.

Recipe (device, minutes, what is expected):
    python -m experiments.token_merge --teacher runs/vlm_scenes_dense/unfrozen                   one H200, 10
    python -m experiments.token_merge --teacher runs/vlm_scenes_dense/unfrozen --size cpu        two CPU cores, 20

The headline is the divergence of the answers (KL, nats). Everything is tuned on validation scenes; `--split test`
reads the test scenes, which is to be done once.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import vlmjax
from experiments.shared import common, plots_vlm, scenes
from ssmjax import errors
from ssmjax.data.synthetic import QUESTION_TYPES
from ssmjax.training.report import make_report, render_table, write_report
from vlmjax.layers import Merger, Resampler
from vlmjax.metrics import answer_divergence
from vlmjax.models import Llava
from vlmjax.ops import (
    MergeState,
    attention_anchors,
    average_pool,
    bipartite_merge,
    density_anchors,
    select_tokens,
)

NAME = "token_merge"

GRID = (12, 12)
POOLED = {36: (6, 6), 16: (4, 4), 9: (3, 3), 4: (2, 2)}

SIZES: dict[str, dict[str, Any]] = {
    "full": {"train": 20_000, "tests": 2_000, "steps": 1_500, "batch": 128, "chunk": 50},
    "cpu": {"train": 1_000, "tests": 500, "steps": 200, "batch": 24, "chunk": 10},
    "smoke": {"train": 24, "tests": 16, "steps": 2, "batch": 4, "chunk": 1},
}

TRAINED = ("prune", "resampler", "ours", "ours, KL")
TEMPERATURE, SHARPNESS = (0.5, 0.02), (8.0, 60.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field is a flag."""

    teacher: Path = Path("runs/vlm_scenes_dense/unfrozen")
    """A folder that `experiments.vlm_scenes` wrote."""
    budgets: tuple[int, ...] = (36, 16, 9, 4)
    trained: tuple[str, ...] = TRAINED
    """Which of the trained methods."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the trained methods; the others have one result."""
    learning_rate: float = 4e-3
    task_weight: float = 0.3
    """Of the cross entropy of the answers beside the divergence."""
    split: str = "validation"
    """validation, or test."""
    size: str = "full"
    """full or cpu."""
    out_dir: Path = Path(".")
    smoke: bool = False
    """A check of the plumbing, with a fresh teacher."""


@dataclasses.dataclass(frozen=True)
class Features:
    """What the frozen tower makes of pictures: tokens, mean keys, attention received; and the teacher's answers."""

    tokens: jax.Array
    keys: jax.Array
    scores: jax.Array
    questions: jax.Array
    answers: jax.Array
    logits: jax.Array


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains what is trained, evaluates all methods at all budgets, writes the results file and the figure.

    Args:
        config: The command line's fields.

    Returns:
        What the results file holds.
    """
    unknown = [name for name in config.trained if name not in TRAINED]
    if unknown:
        raise errors.unknown_name("trained method", unknown[0], TRAINED)
    common.require_writable("out_dir", config.out_dir)
    size, start = SIZES["smoke" if config.smoke else config.size], time.time()
    small = {"vision": {"depth": 1}, "text": {"depth": 1}}
    model = vlmjax.create_model("llava_scenes", **small) if config.smoke else vlmjax.load_pretrained(config.teacher)
    tests = scenes.load(size["tests"], seed=3, split=config.split)
    train = scenes.load(size["train"], seed=4, split="train")
    print("features", flush=True)
    held, seen = _features(model, tests, size["batch"]), _features(model, train, size["batch"])
    runs = []
    for seed in config.seeds:
        begin, rows = time.time(), {}
        for m in config.budgets:
            for name, merge in _untrained(m, seed).items():
                rows[f"{name} {m}"] = evaluate(model, held, merge)
                if name in ("tome", "density", "pool") and seed == config.seeds[0]:
                    rows[f"{name}, no size {m}"] = evaluate(model, held, _without_size(merge))
        for name in config.trained:
            module = fit(model, seen, name, config, size, seed)
            for m in config.budgets:
                rows[f"{name} {m}"] = evaluate(model, held, lambda f, m=m, module=module: module(f.tokens, m))
        runs.append({"seed": seed, "seconds": time.time() - begin, "metrics": _flat(rows)})
    shared = set.intersection(*(set(run["metrics"]) for run in runs))
    extra = {k: v for k, v in runs[0]["metrics"].items() if k not in shared}
    for run in runs:
        run["metrics"] = {k: v for k, v in run["metrics"].items() if k in shared} | extra
    return _report(config, size, runs, held, model, tests, time.time() - start)


def fit(model: Llava, seen: Features, name: str, config: Config, size: dict[str, Any], seed: int) -> nnx.Module:
    """Trains one method for all budgets; every method has the same steps, batches and loss."""
    d = model.config.vision.d_model
    rngs = nnx.Rngs(seed)
    if name == "resampler":
        module: nnx.Module = Resampler(d, queries=max(config.budgets), tokens=scenes.PATCHES, rngs=rngs)
    else:
        module = Merger(d, grid=GRID, prune=name == "prune", rngs=rngs)
    weight = 0.0 if name == "ours, KL" else config.task_weight
    definition, params, rest = nnx.split(module, nnx.Param, ...)
    frozen_definition, frozen = nnx.split(model)
    steps, rate = size["steps"], config.learning_rate * (0.25 if name == "resampler" else 1.0)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 20), steps, rate / 50)),
    )

    def loss(params, frozen, picked, m, number):
        module, teacher = nnx.merge(definition, params, rest), nnx.merge(frozen_definition, frozen)
        if name == "resampler":
            state = module(picked.tokens, int(m))
        else:
            temperature, sharpness = (a * (b / a) ** (number / steps) for a, b in (TEMPERATURE, SHARPNESS))
            state = module.soft(picked.tokens, m, temperature=temperature, sharpness=sharpness)
        logits = scenes.answer_logits(teacher.language, teacher.projector(state.tokens), picked.questions, state)
        task = optax.softmax_cross_entropy_with_integer_labels(logits, picked.answers).mean()
        return answer_divergence(picked.logits, logits) + weight * task

    # The resampler's budget is a shape; the others' is a number, so that one program serves all.
    @functools.partial(jax.jit, static_argnames=("shape",))
    def step(params, state, frozen, picked, m, number, shape=None):
        value, grads = jax.value_and_grad(loss)(params, frozen, picked, m if shape is None else shape, number)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, rng, values = optimizer.init(params), np.random.default_rng([seed, 11]), []
    for number in range(steps):
        picked = _pick(seen, rng, size)
        m = int(rng.choice(config.budgets))
        shape = m if name == "resampler" else None
        params, state, value = step(params, state, frozen, picked, float(m), number, shape=shape)
        values.append(value)
        if number % max(1, steps // 10) == 0 or number + 1 == steps:
            recent = float(np.mean([float(v) for v in values[-20:]]))
            print(f"{name}, seed {seed}: step {number + 1} of {steps}, loss {recent:.3f}", flush=True)
    return nnx.merge(definition, params, rest)


def evaluate(model: Llava, held: Features, merge: Callable[[Features], MergeState]) -> dict[str, float]:
    """Accuracy of each type, divergence from the whole, agreement, at one budget."""
    rows = []
    for first in range(0, len(held.tokens), 125):
        part = jax.tree.map(lambda x, first=first: x[first : first + 125], held)
        state = jax.jit(merge)(part)
        logits = _answers(model)(state, part.questions)
        p, q = jax.nn.log_softmax(part.logits), jax.nn.log_softmax(logits)
        kl = (jnp.exp(p) * (p - q)).sum(-1)
        same = logits.argmax(-1) == part.logits.argmax(-1)
        rows.append(np.stack([logits.argmax(-1) == part.answers, kl, same], axis=-1))
    found = np.concatenate(rows).astype(np.float64)  # (b 6 3)
    by_type = {name: float(found[:, i, 0].mean()) for i, name in enumerate(QUESTION_TYPES)}
    whole = {"accuracy": found[..., 0].mean(), "kl": found[..., 1].mean(), "agreement": found[..., 2].mean()}
    return by_type | {name: float(value) for name, value in whole.items()}


jax.tree_util.register_dataclass(
    Features, data_fields=[field.name for field in dataclasses.fields(Features)], meta_fields=[]
)


@functools.cache
def _compiled(definition):
    @jax.jit
    def run(state, merged, questions):
        model = nnx.merge(definition, state)
        return scenes.answer_logits(model.language, model.projector(merged.tokens), questions, merged)

    return run


def _answers(model: Llava):
    definition, state = nnx.split(model)
    return functools.partial(_compiled(definition), state)


def _features(model: Llava, split: scenes.Split, batch: int) -> Features:
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
    return Features(tokens, keys, received, split.arrays["questions"][:, 0], split.arrays["answers"][:, 0], logits)


def _pick(seen: Features, rng: np.random.Generator, size: dict[str, Any]) -> Features:
    rows = jnp.asarray(rng.integers(0, len(seen.tokens), size["batch"]))
    return jax.tree.map(lambda x: x[rows], seen)


def _untrained(m: int, seed: int) -> dict[str, Callable[[Features], MergeState]]:
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


def _without_size(merge: Callable[[Features], MergeState]) -> Callable[[Features], MergeState]:
    def run(f):
        state = merge(f)
        return state._replace(size=jnp.ones_like(state.size))

    return run


def _flat(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"{row}/{name}": value for row, values in rows.items() for name, value in values.items()}


def _report(config, size, runs, held, model, tests, seconds) -> dict[str, Any]:
    teacher = {
        name: float((held.logits.argmax(-1) == held.answers)[:, i].mean()) for i, name in enumerate(QUESTION_TYPES)
    }
    teacher["accuracy"] = float((held.logits.argmax(-1) == held.answers).mean())
    report = make_report(
        NAME,
        command=common.command(NAME, config, Config()),
        config=dataclasses.asdict(config) | {"teacher": config.teacher.parent.name, "out_dir": "", "options": size},
        runs=runs,
        data={"name": f"DigitScenes, {config.split}", "sha256": tests.sha256, "test": size["tests"]},
        teacher=teacher,
    )
    results, figure = common.result_paths(config.out_dir, NAME)
    write_report(results, report)
    plots_vlm.draw_token_merge(results, figure)
    print(render_table(report))
    print(f"{seconds:.0f} s")
    return report


if __name__ == "__main__":
    common.run_cli(main, Config)
