"""The smallest honest test of the learned merge: four transformer blocks that read handwritten digits.

MNIST, 49 tokens an image. After the first of four blocks the tokens become fewer: every s-th ("slicing"), bipartite
matching with sizes ("tome"), density anchors ("density"), or the anchored merge with learned heads ("ours"). Beside
them stand the whole model ("naive") and a narrower one, its channels pruned to as many operations ("channels"). Every
reduced model starts from the naive one and is trained for the same steps with the same loss: cross entropy and the
divergence from the naive model's answers. Ours spends the first half of its steps in its soft form.

Recipe (device, minutes, what is expected):
    python -m experiments.token_merge_classifier                  one H200, 5; ours keeps 99 % of the accuracy at 0.4 x
    python -m experiments.token_merge_classifier --task binary    one H200, 5; is the digit five or more?
    python -m experiments.token_merge_classifier --size cpu       two CPU cores, 40, no claim

Operations are counted by formula, the merge's own included; times are of a batch of 256 images, the median of 30. What
is trained is kept in `--runs-dir`: the same command goes on from there, and budgets can be trained side by side.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.shared import common, plots_vlm, scenes
from experiments.shared.plots import encode_images
from experiments.shared.small_vit import METHODS, Size, SmallViT, flops, pruned, pruned_size
from ssmjax import errors
from ssmjax.data import load_images
from ssmjax.paths import LocalPaths
from ssmjax.training.report import make_report, render_table, write_report

NAME = "token_merge_classifier"

SIZES: dict[str, dict[str, Any]] = {
    "full": dict(steps=4_000, tune=1_500, batch=256, train=None, test=None, chunk=50),
    "cpu": dict(steps=1_500, tune=500, batch=128, train=None, test=2_000, chunk=50),
    "smoke": dict(steps=4, tune=4, batch=16, train=256, test=128, chunk=2),
}

TEMPERATURE, SHARPNESS = (0.5, 0.02), (8.0, 60.0)
"""Of the soft form, from the first of its steps to the last."""


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """Every field is a flag."""

    task: str = "ten"
    """ten (which digit) or binary (is it five or more)."""
    budgets: tuple[int, ...] = (16, 9, 6)
    """Tokens behind the first block, of 49. With none, only the naive model is trained and kept."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """All are trained at once."""
    size: str = "full"
    """full or cpu."""
    learning_rate: float = 1e-3
    data_dir: Path | None = None
    download_dir: Path | None = None
    out_dir: Path = Path(".")
    runs_dir: Path = Path("runs")
    """Where trained models are kept."""
    smoke: bool = False
    """A check of the plumbing."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Models of all seeds as one: their definition, and their variables with a leading axis of seeds."""

    definition: Any
    state: Any

    @classmethod
    def of(cls, models: list[SmallViT]) -> "Group":
        """Stacks models of the same sizes."""
        definition = nnx.split(models[0])[0]
        return cls(definition, jax.tree.map(lambda *x: jnp.stack(x), *(nnx.split(model)[1] for model in models)))

    def one(self, seed: int) -> SmallViT:
        """The model of one seed."""
        return nnx.merge(self.definition, jax.tree.map(lambda x: x[seed], self.state))


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains every model, measures, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields.

    Returns:
        What the results file holds.
    """
    errors.require_known("task", config.task, ["ten", "binary"])
    errors.require_known("size", config.size, SIZES)
    common.require_writable("out_dir", config.out_dir)
    options, start = SIZES["smoke" if config.smoke else config.size], time.time()
    arrays, tests, source = _data(config, options)
    size = Size(classes=10 if config.task == "ten" else 2)
    naive = Group.of([SmallViT(size, rngs=nnx.Rngs(seed)) for seed in config.seeds])
    naive = _kept(
        config,
        "naive",
        naive,
        lambda: train(naive, None, arrays, config, options, steps=options["steps"], rate=config.learning_rate),
    )
    if not config.budgets:
        return {}
    whole = answers(naive, tests, None, None)
    rows = {"naive": measure(naive, whole, tests, None, None)}
    rows["naive"] |= {"flops": flops(size), "tokens": size.tokens}
    maps = None
    for m in config.budgets if not config.smoke else config.budgets[-1:]:
        for method in METHODS:
            group = _kept(
                config,
                f"{method}_{m}",
                naive,
                lambda method=method, m=m: _reduced(naive, method, m, arrays, config, options),
            )
            row = measure(group, whole, tests, method, m)
            rows[f"{method} {m}"] = row | {"flops": flops(size, m, method), "tokens": m}
            maps = _maps(group.one(0), tests, m) if method == "ours" else maps
        smaller = pruned_size(size, flops(size, m, "ours"))
        group = Group.of([pruned(naive.one(i), smaller) for i in range(len(config.seeds))])
        tune = functools.partial(train, group, naive, arrays, config, options, steps=options["tune"])
        group = _kept(config, f"channels_{m}", group, functools.partial(tune, rate=config.learning_rate / 2))
        rows[f"channels {m}"] = measure(group, whole, tests, None, None)
        rows[f"channels {m}"] |= {"flops": flops(smaller), "tokens": size.tokens, "d_model": smaller.block.d_model}
    for row in rows.values():
        row["share"] = row["flops"] / rows["naive"]["flops"]
    return _report(config, options, rows, maps, source, time.time() - start)


def train(group, teacher, arrays, config, options, *, steps, rate, method=None, m=None, soft=False) -> Group:
    """Trains the models of all seeds at once; with a teacher, also towards its answers."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, min(200, steps // 5)), steps, rate / 50)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.02))
    batch, count = options["batch"], len(arrays["images"])

    def loss(state, teacher_state, picked, number):
        share = number / steps
        form = None
        if soft:
            form = tuple(a * (b / a) ** share for a, b in (TEMPERATURE, SHARPNESS))
        logits, _ = nnx.merge(group.definition, state)(picked["images"], method, m, form)
        total = optax.softmax_cross_entropy_with_integer_labels(logits, picked["labels"]).mean()
        if teacher_state is None:
            return total
        wanted, _ = nnx.merge(teacher.definition, teacher_state)(picked["images"])
        return total + divergence(jax.lax.stop_gradient(wanted), logits).mean()

    def of_seed(state, opt_state, teacher_state, seed, arrays, number):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), seed), number)
        rows_key, shift_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (batch,), 0, count)
        picked = {"images": _shifted(shift_key, arrays["images"][rows]), "labels": arrays["labels"][rows]}
        value, grads = jax.value_and_grad(loss)(state, teacher_state, picked, number)
        updates, opt_state = optimizer.update(grads, opt_state, state)
        return optax.apply_updates(state, updates), opt_state, value

    @jax.jit
    def run(state, opt_state, teacher_state, seeds, arrays, first):
        each = jax.vmap(of_seed, in_axes=(0, 0, None if teacher is None else 0, 0, None, None))

        def step(carry, number):
            state, opt_state, value = each(*carry, teacher_state, seeds, arrays, number)
            return (state, opt_state), value

        return jax.lax.scan(step, (state, opt_state), first + jnp.arange(options["chunk"]))

    state, seeds = group.state, jnp.asarray(config.seeds)
    opt_state = jax.vmap(optimizer.init)(state)
    teacher_state = None if teacher is None else teacher.state
    for first in range(0, steps, options["chunk"]):
        (state, opt_state), values = run(state, opt_state, teacher_state, seeds, arrays, first)
    print(
        f"{method or 'blocks'} {m or ''}{' soft' if soft else ''}: loss {np.asarray(values[-1]).round(4)}", flush=True
    )
    return Group(group.definition, state)


def answers(group: Group, tests, method, m) -> jax.Array:
    """The logits of each seed's model for all test images: (seeds b v)."""
    run = jax.jit(jax.vmap(lambda state, images: nnx.merge(group.definition, state)(images, method, m)[0], (0, None)))
    images = tests["images"]
    return jnp.concatenate([run(group.state, images[i : i + 500]) for i in range(0, len(images), 500)], axis=1)


def measure(group: Group, whole: jax.Array, tests, method, m) -> dict[str, Any]:
    """Accuracy and divergence from the naive model's answers for each seed, and the time of a batch."""
    logits = answers(group, tests, method, m)
    found: dict[str, Any] = {
        "accuracy": (logits.argmax(-1) == tests["labels"][None]).mean(-1),
        "kl": divergence(whole, logits).mean(-1),
        "agreement": (logits.argmax(-1) == whole.argmax(-1)).mean(-1),
    }
    found = {name: [float(value) for value in values] for name, values in found.items()}
    run = jax.jit(lambda state, images: nnx.merge(group.definition, state)(images, method, m)[0])
    state, images = jax.tree.map(lambda x: x[0], group.state), tests["images"][:256]
    times = []
    for _ in range(35):
        begin = time.perf_counter()
        run(state, images).block_until_ready()
        times.append(1e3 * (time.perf_counter() - begin))
    return found | {"ms": float(np.median(times[5:]))}


def divergence(wanted: jax.Array, logits: jax.Array) -> jax.Array:
    """KL(wanted || logits) in nats, (*b)."""
    p, q = jax.nn.log_softmax(wanted), jax.nn.log_softmax(logits)
    return (jnp.exp(p) * (p - q)).sum(-1)


def _reduced(naive: Group, method: str, m: int, arrays, config: Config, options) -> Group:
    """The naive model with fewer tokens, after as many steps as any other; ours is soft in the first half of them."""
    tune = functools.partial(train, teacher=naive, arrays=arrays, config=config, options=options, method=method, m=m)
    if method != "ours":
        return tune(naive, steps=options["tune"], rate=config.learning_rate / 2)
    half = options["tune"] // 2
    group = tune(naive, steps=half, rate=config.learning_rate / 2, soft=True)
    return tune(group, steps=options["tune"] - half, rate=config.learning_rate / 2)


def _kept(config: Config, name: str, like: Group, make) -> Group:
    """Models that an earlier call trained, if it came so far; else what `make()` trains."""
    seeds = "-".join(map(str, config.seeds))
    file = config.runs_dir / f"{NAME}_{config.task}" / f"{config.size}_{config.learning_rate}_{seeds}_{name}.npz"
    if not config.smoke and file.is_file():
        return Group(like.definition, scenes.restored(file, like.state)[0])
    group = make()
    if not config.smoke:
        scenes.store(file, group.state)
    return group


def _shifted(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images moved by up to two pixels along each axis."""
    padded = jnp.pad(images, ((0, 0), (2, 2), (2, 2)))
    corner = jax.random.randint(key, (len(images), 2), 0, 5)
    return jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, start, (28, 28)))(padded, corner)


def _data(config: Config, options) -> tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, Any]]:
    if config.smoke and config.data_dir is None and config.download_dir is None:
        rng = np.random.default_rng(0)  # the plumbing needs no digits
        images, labels = rng.random((384, 28, 28), np.float32), rng.integers(0, 10, 384)
        sets = [(images[:256], labels[:256]), (images[256:], labels[256:])]
        source = {"name": "noise", "sha256": "0" * 64}
    else:
        data = load_images("mnist", data_dir=config.data_dir, download_dir=config.download_dir)
        sets = [(data.train_images, data.train_labels), (data.test_images, data.test_labels)]
        sets = [(images[..., 0].astype(np.float32) / 255, labels) for images, labels in sets]
        source = {"name": "mnist", "sha256": data.checksum}
    arrays = []
    for (images, labels), count in zip(sets, (options["train"], options["test"]), strict=True):
        labels = labels if config.task == "ten" else labels >= 5
        arrays.append({"images": jnp.asarray(images[:count]), "labels": jnp.asarray(labels[:count], jnp.int32)})
    return arrays[0], arrays[1], source | {"train": len(arrays[0]["images"]), "test": len(arrays[1]["images"])}


def _maps(model: SmallViT, tests, m: int) -> dict[str, Any]:
    """Which of the merged tokens each patch of six test images went to."""
    images = tests["images"][:6]
    _, state = jax.jit(lambda images: model(images, "ours", m))(images)
    return {
        "images": encode_images((np.asarray(images)[..., None] * 255).astype(np.uint8)),
        "groups": np.asarray(state.assign.argmax(1)).reshape(len(images), 7, 7),
        "m": m,
    }


def _report(config, options, rows, maps, source, seconds) -> dict[str, Any]:
    runs = [
        {
            "seed": seed,
            "seconds": seconds / len(config.seeds),
            "metrics": {
                f"{row}/{name}": values[name][i]
                for row, values in rows.items()
                for name in ("accuracy", "kl", "agreement")
            },
        }
        for i, seed in enumerate(config.seeds)
    ]
    name = f"{NAME}_{config.task}"
    report = make_report(
        name,
        command=common.command(NAME, config, Config()),
        config=dataclasses.asdict(config)
        | {"data_dir": "", "download_dir": "", "out_dir": "", "runs_dir": ""}
        | {"options": options},
        runs=runs,
        data=source,
        costs={row: {k: v for k, v in values.items() if not isinstance(v, list)} for row, values in rows.items()},
        maps=maps,
    )
    results, figure = common.result_paths(config.out_dir, name)
    write_report(results, report)
    plots_vlm.draw_merge_classifier(results, figure)
    print(render_table(report))
    return report


if __name__ == "__main__":
    common.run_cli(main, Config)
