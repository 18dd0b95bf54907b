"""How many visual tokens does an answer need? Methods of fewer tokens on the vision-language model of DigitScenes.

The teacher is `experiments.vlm_scenes`'s model; it stays as it is. Between its tower and its projector 144 tokens
become 36, 16, 9 or 4: by slicing, at random, by pooling, by bipartite matching (ToMe), by attention with contextual
tokens (VisionZip-like), by density anchors, and by what is trained for the same steps and with the same loss each: a
selection ("prune"), a resampler, the tower itself for smaller pictures ("shrunk"), and the anchored merge ("ours";
"ours, KL" learns from the teacher's answers alone). "adapter" is density anchors with a network as large as ours behind
them: what the losses alone bring. Merging methods have the logarithm of the sizes in attention; "no size" is without.

Recipe (device, minutes, what is expected):
    python -m experiments.token_merge --teacher runs/vlm_scenes_dense/unfrozen                   one H200, 10
    python -m experiments.token_merge --teacher experiments/weights/llava_scenes --size cpu --trained ours --seeds 0
        two CPU cores, 10: a merger for the small teacher that comes with the project

The headline is the divergence of the answers (KL, nats). Everything is tuned on validation scenes; `--split test`
reads the test scenes, which is to be done once. What is finished is kept in `--runs-dir`, so that the same command goes
on from there.
"""

import dataclasses
import functools
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import vlmjax
from experiments.shared import common, plots_vlm, scenes
from experiments.shared.merge_methods import OURS, TRAINED, Features, features, make_method, untrained, without_size
from experiments.shared.plots import encode_images
from ssmjax import errors
from ssmjax.data.synthetic import QUESTION_TYPES
from ssmjax.paths import LocalPaths
from ssmjax.training.report import make_report, render_table, write_report
from vlmjax.metrics import answer_divergence
from vlmjax.models import Llava

NAME = "token_merge"

SIZES: dict[str, dict[str, Any]] = {
    "full": {"train": 20_000, "tests": 2_000, "steps": 2_000, "batch": 128, "chunk": 50},
    "cpu": {"train": 1_000, "tests": 500, "steps": 200, "batch": 24, "chunk": 10},
    "smoke": {"train": 24, "tests": 16, "steps": 2, "batch": 4, "chunk": 1},
}

MERGING = ("tome", "density", "pool")
"""Those of the untrained ones whose row without sizes is shown."""


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
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
    runs_dir: Path = Path("runs")
    """Where what is finished is kept."""
    smoke: bool = False
    """A check of the plumbing, with a fresh teacher."""


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
    size = SIZES["smoke" if config.smoke else config.size]
    small = {"vision": {"depth": 1}, "text": {"depth": 1}}
    model = vlmjax.create_model("llava_scenes", **small) if config.smoke else _teacher(config)
    tests = scenes.load(size["tests"], seed=3, split=config.split)
    held = features(model, tests, size["batch"])
    train = scenes.load(size["train"], seed=4, split="train")
    seen = features(model, train, size["batch"])
    print("features are there", flush=True)
    runs, answers, maps, fixed = [], {}, {}, {}
    for seed in config.seeds:
        begin, rows = time.time(), dict(fixed)
        for m in config.budgets:
            for name, merge in untrained(m, seed).items():
                if name != "random" and fixed:
                    continue
                rows[f"{name} {m}"] = evaluate(model, held, merge)
                if name in MERGING:
                    rows[f"{name}, no size {m}"] = evaluate(model, held, without_size(merge))
        fixed = fixed or {row: found for row, found in rows.items() if not row.startswith("random")}
        for name in config.trained:
            module = _trained(model, seen, name, config, size, seed)
            for m in config.budgets:
                rows[f"{name} {m}"] = evaluate(model, held, functools.partial(_merge, module, m=m))
            maps = _maps(module, held, config) if name == "ours" and not maps else maps
        for row, found in rows.items():
            answers.setdefault(row, []).append(found)
        metrics = {f"{row}/{kind}": value for row, found in rows.items() for kind, value in _numbers(found).items()}
        runs.append({"seed": seed, "seconds": time.time() - begin, "metrics": metrics})
    return _report(config, size, runs, answers, held, tests, maps)


def fit(model: Llava, seen: Features, name: str, config: Config, size: dict[str, Any], seed: int) -> nnx.Module:
    """Trains one method for all budgets; every method has the same steps, batches and loss."""
    module = make_method(name, model, config.budgets, seed)
    traced, rate = module.traced, config.learning_rate * module.rate
    weight = 0.0 if name == "ours, KL" else config.task_weight
    definition, params, rest = nnx.split(module, nnx.Param, ...)
    frozen_definition, frozen = nnx.split(model)
    steps, budgets, chunk = size["steps"], jnp.asarray(config.budgets, jnp.float32), size["chunk"]
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 20), steps, rate / 50)),
    )

    def loss(params, frozen, picked, m, number):
        module, teacher = nnx.merge(definition, params, rest), nnx.merge(frozen_definition, frozen)
        state = module.learn(picked, m, number / steps)
        logits = scenes.answer_logits(teacher.language, teacher.projector(state.tokens), picked.questions, state)
        task = optax.softmax_cross_entropy_with_integer_labels(logits, picked.answers).mean()
        return answer_divergence(picked.logits, logits) + weight * task

    # The budget is a shape for some methods: these have one for each call of a chunk; the others draw it in each step.
    @functools.partial(jax.jit, static_argnames=("shape", "count"), donate_argnums=(0, 1))
    def run(params, state, frozen, seen, first, shape, count):
        def step(carry, number):
            rows_key, m_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), number))
            rows = jax.random.randint(rows_key, (size["batch"],), 0, len(seen.tokens))
            picked = jax.tree.map(lambda x: x[rows], seen)
            m = jax.random.choice(m_key, budgets) if shape is None else shape
            value, grads = jax.value_and_grad(loss)(carry[0], frozen, picked, m, number)
            updates, state = optimizer.update(grads, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), value

        (params, state), values = jax.lax.scan(step, (params, state), first + jnp.arange(count))
        return params, state, values.mean()

    params, state = jax.tree.map(jnp.copy, params), optimizer.init(params)
    count = chunk if traced else max(1, chunk // 5)
    rng, begin, recent = np.random.default_rng([seed, 11]), time.time(), []
    for first in range(0, steps, count):
        shape = None if traced else int(rng.choice(config.budgets))
        params, state, value = run(params, state, frozen, seen, first, shape=shape, count=count)
        recent.append(value)
    loss_now = float(np.mean([float(v) for v in recent[-10:]]))
    print(f"{name}, seed {seed}: {steps} steps, loss {loss_now:.3f}, {time.time() - begin:.0f} s", flush=True)
    return nnx.merge(definition, params, rest)


def evaluate(model: Llava, held: Features, merge) -> dict[str, np.ndarray]:
    """Of each picture and question (b 6 3): is the answer right, the divergence, is it the teacher's; and the time."""
    state, parts, times = nnx.split(model)[1], [], []
    run = _compiled(nnx.split(model)[0])
    merge = jax.jit(merge)
    for first in range(0, len(held.tokens), 125):
        part = jax.tree.map(lambda x, first=first: x[first : first + 125], held)
        begin = time.perf_counter()
        logits = jax.block_until_ready(run(state, merge(part), part.questions))
        times.append(1e3 * (time.perf_counter() - begin))
        p, q = jax.nn.log_softmax(part.logits), jax.nn.log_softmax(logits)
        same = logits.argmax(-1) == part.logits.argmax(-1)
        kl = (jnp.exp(p) * (p - q)).sum(-1)
        parts.append(np.stack([logits.argmax(-1) == part.answers, kl, same], axis=-1))
    return {"found": np.concatenate(parts).astype(np.float64), "ms": np.float64(np.median(times[1:] or times))}


@functools.cache
def _compiled(definition):
    @jax.jit
    def run(state, merged, questions):
        model = nnx.merge(definition, state)
        return scenes.answer_logits(model.language, model.projector(merged.tokens), questions, merged)

    return run


def _merge(module: nnx.Module, f: Features, *, m: int):
    return module(f, m)


def _numbers(row: dict[str, np.ndarray]) -> dict[str, float]:
    found = row["found"]
    by_type = {name: float(found[:, i, 0].mean()) for i, name in enumerate(QUESTION_TYPES)}
    accuracy, kl, agreement = (float(value) for value in found.mean((0, 1)))
    return by_type | {"accuracy": accuracy, "kl": kl, "agreement": agreement, "ms": float(row["ms"])}


def _teacher(config: Config) -> Llava:
    model = vlmjax.load_pretrained(config.teacher, param_dtype="float32")
    assert isinstance(model, Llava)
    return model


def _name(config: Config) -> str:
    """What the teacher is called: `vlm_scenes` keeps it in a folder of the run's name, frozen and unfrozen."""
    stage, run = config.teacher.name, config.teacher.parent.name.removeprefix("vlm_scenes_")
    return {"unfrozen": run, "frozen": f"{run}_frozen"}.get(stage, stage)


def _trained(model, seen, name: str, config: Config, size, seed: int) -> nnx.Module:
    """The method after its training, from an earlier call if that came so far."""
    if config.smoke:
        return fit(model, seen, name, config, size, seed)
    settings = repr((name, seed, config.budgets, config.learning_rate, config.task_weight, sorted(size.items())))
    folder = config.runs_dir / NAME / _name(config)
    file = folder / f"{name.replace(', ', '_')}_{seed}_{zlib.crc32(settings.encode()):08x}.npz"
    if file.is_file():
        definition, state = nnx.split(make_method(name, model, config.budgets, seed))
        return nnx.merge(definition, scenes.restored(file, state)[0])
    module = fit(model, seen, name, config, size, seed)
    scenes.store(file, nnx.split(module)[1])
    if name == "ours" and seed == 0:
        vlmjax.save_merger(module.merger, folder / "merger")
    return module


def _maps(module: nnx.Module, held: Features, config: Config) -> dict[str, Any]:
    """Which merged token each patch of four pictures went to, at each budget."""
    some = jax.tree.map(lambda x: x[:4], held)
    groups = {str(m): np.asarray(module(some, m).assign.argmax(1)).reshape(4, 12, 12) for m in config.budgets}
    pictures = (np.clip(np.asarray(some.images, np.float32), 0, 1) * 255).astype(np.uint8)
    return {"images": encode_images(pictures), "groups": groups}


def paired(answers: dict[str, list[dict[str, np.ndarray]]], budgets: tuple[int, ...]) -> dict[str, Any]:
    """Ours against the best baseline at each budget, over pictures: the mean difference with its 95 % interval."""
    result: dict[str, Any] = {}
    for m in budgets:
        accuracy = {
            row.rpartition(" ")[0]: np.mean([each["found"][..., 0].mean(1) for each in found], axis=0)
            for row, found in answers.items()
            if row.endswith(f" {m}") and "no size" not in row
        }
        if "ours" not in accuracy:
            continue
        baselines = [name for name in accuracy if name not in (*OURS, "adapter")]
        best = max(baselines, key=lambda name: accuracy[name].mean())
        result[str(m)] = {"best": best}
        for name in {best, "adapter"} & set(accuracy):
            gain = accuracy["ours"] - accuracy[name]
            half = 1.96 * gain.std(ddof=1) / len(gain) ** 0.5
            key = "best_baseline" if name == best else name
            result[str(m)][key] = {
                "accuracy": accuracy[name].mean(),
                "gain": gain.mean(),
                "low": gain.mean() - half,
                "high": gain.mean() + half,
            }
    return result


def _report(config, size, runs, answers, held, tests, maps) -> dict[str, Any]:
    right = np.asarray(held.logits.argmax(-1) == held.answers)
    teacher = {name: float(right[:, i].mean()) for i, name in enumerate(QUESTION_TYPES)}
    teacher["accuracy"] = float(right.mean())
    name = f"{NAME}_{_name(config)}" + ("" if config.split == "validation" else f"_{config.split}")
    paths = {"teacher": _name(config), "out_dir": "", "runs_dir": "", "options": size}
    report = make_report(
        name,
        command=common.command(NAME, config, Config()),
        config=dataclasses.asdict(config) | paths,
        runs=runs,
        data={"name": f"DigitScenes, {config.split}", "sha256": tests.sha256, "test": size["tests"]},
        teacher=teacher,
        paired=paired(answers, config.budgets),
        maps=maps,
    )
    results, figure = common.result_paths(config.out_dir, name)
    write_report(results, report)
    plots_vlm.draw_token_merge(results, figure)
    print(render_table(report))
    return report


if __name__ == "__main__":
    common.run_cli(main, Config)
