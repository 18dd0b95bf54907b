"""Which projector between a vision tower and a language model? The published table, and an honest version of it.

A published course study compared five projectors from 1,024 to 1,024 channels by how well they reconstruct CLIP's
embeddings. Three parts:

    1. its table: parameters and multiplications of each, counted on our modules, beside the printed digits
    2. its task, the identity: a linear map solves it exactly, so what a table of losses ranks is how far training got
    3. the honest version, on the vision-language model of DigitScenes (`experiments.vlm_scenes`): each projector in the
       place of the teacher's, with everything else frozen, trained (a) towards the teacher's projected tokens, beside
       the best linear map in closed form, and the answers that it then gives, and (b) by the loss of the answers;
       every family with the same steps and the same learning rates, of which the best on validation is taken

Recipe (device, minutes, what is expected):
    python -m experiments.projector_study --teacher runs/vlm_scenes_dense/unfrozen                 one H200, 8
    python -m experiments.projector_study --teacher runs/vlm_scenes_dense/unfrozen --size cpu --no-answers --rates 3e-3
                                                                                                   two CPU cores, 8

Times are of LLaVA-1.5's shape: 576 tokens an image, 1,024 to 4,096 channels, the median of 30 calls.
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

import vlmjax
from experiments.shared import common, plots_projector, scenes
from experiments.shared.projectors import FAMILIES, Runs, costs, make, published, train, train_answers
from ssmjax import errors
from ssmjax.paths import LocalPaths
from ssmjax.training.report import make_report, render_table, write_report
from vlmjax.metrics import answer_divergence
from vlmjax.models import Llava

NAME = "projector_study"

SIZES: dict[str, dict[str, Any]] = {
    "full": dict(train=10_000, held=1_000, steps=2_000, batch=4_096, answer_steps=1_500, answer_batch=32, chunk=100),
    "cpu": dict(train=500, held=200, steps=400, batch=512, answer_steps=150, answer_batch=8, chunk=25),
    "smoke": dict(train=12, held=8, steps=4, batch=16, answer_steps=2, answer_batch=2, chunk=2),
}

IDENTITY_RATE = 1e-3
"""The learning rate of part 2, where the number of steps is what varies."""


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """Every field is a flag."""

    teacher: Path = Path("runs/vlm_scenes_dense/unfrozen")
    """A folder that `experiments.vlm_scenes` wrote."""
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Learning rates, of which the best on validation is reported."""
    seeds: tuple[int, ...] = (0, 1, 2)
    answers: bool = True
    """Whether each is trained by the loss of the answers, too: part 3 (b)."""
    size: str = "full"
    """full or cpu."""
    out_dir: Path = Path(".")
    smoke: bool = False
    """A check of the plumbing, with a fresh teacher."""


def main(config: Config = Config()) -> dict[str, Any]:
    """Counts, trains, measures, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields.

    Returns:
        What the results file holds.
    """
    errors.require_known("size", config.size, ["full", "cpu"])
    common.require_writable("out_dir", config.out_dir)
    size, start = SIZES["smoke" if config.smoke else config.size], time.time()
    small = {"vision": {"depth": 1}, "text": {"depth": 1}}
    model = vlmjax.create_model("llava_scenes", **small) if config.smoke else vlmjax.load_pretrained(config.teacher)
    splits = {
        "train": scenes.load(size["train"], seed=5, split="train"),
        "validation": scenes.load(size["held"], seed=6, split="validation"),
        "test": scenes.load(size["held"], seed=7, split="test"),
    }
    features = {name: _features(model, split) for name, split in splits.items()}
    targets = {name: _projected(model, x) for name, x in features.items()}
    rates = config.rates[:1] if config.smoke else config.rates
    runs = Runs(config.seeds, rates)
    floor = _least_squares(features, targets)
    rows: dict[str, dict[str, Any]] = {}
    curves: dict[str, Any] = {}
    for family in FAMILIES if not config.smoke else ("linear", "lora"):
        width = features["train"].shape[-1], targets["train"].shape[-1]
        build = lambda seed, family=family, width=width: make(family, *width, seed=seed)  # noqa: E731
        tokens = train(build, runs, features["train"], targets["train"], size, label=f"{family}, tokens")
        same = train(
            lambda seed, family=family, width=width: make(family, width[0], width[0], seed=seed),
            Runs(config.seeds, (IDENTITY_RATE,)),
            features["train"],
            features["train"],
            size,
            label=f"{family}, identity",
        )
        curves[family] = {"steps": same.steps, "unexplained": same.curve.mean(0)}
        rows[family] = _best_tokens(tokens, runs, model, features, targets, splits["test"])
        rows[family]["identity"] = same.curve[:, -1]
        if config.answers:
            label, split = f"{family}, answers", splits["train"]
            answers = train_answers(build, runs, model, features["train"], split, size, label=label)
            rows[family] |= _best_answers(answers, runs, model, features, targets, splits)
    whole = _answers_of(model, targets["test"], splits["test"], targets["test"])
    return _report(config, size, rows, curves, floor, whole, splits, time.time() - start)


def _features(model: Llava, split: scenes.Split) -> jax.Array:
    """The tower's tokens of a split, (b 144 d)."""
    definition, state = nnx.split(model)
    run = jax.jit(lambda state, images: nnx.merge(definition, state).visual_tokens(scenes.normalized(images)))
    images = split.arrays["images"]
    return jnp.concatenate([run(state, images[i : i + 250]) for i in range(0, len(images), 250)])


def _projected(model: Llava, x: jax.Array) -> jax.Array:
    definition, state = nnx.split(model.projector)
    run = jax.jit(lambda state, x: nnx.merge(definition, state)(x))
    return jnp.concatenate([run(state, x[i : i + 250]) for i in range(0, len(x), 250)])


def unexplained(y: jax.Array, wanted: jax.Array) -> float:
    """The share of the targets' variance that is not explained: the mean square error over the variance."""
    wanted = wanted.reshape(-1, wanted.shape[-1])
    spread = jnp.square(wanted - wanted.mean(0, keepdims=True)).mean()
    return float(jnp.square(y.reshape(wanted.shape) - wanted).mean() / spread)


def _least_squares(features, targets) -> dict[str, float]:
    """The best affine map in closed form, float64 on the host: what no linear projector can beat in training."""
    x, y = (np.asarray(v["train"], np.float64).reshape(-1, v["train"].shape[-1]) for v in (features, targets))
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    gram = x.T @ x
    weights = np.linalg.solve(gram + 1e-9 * np.trace(gram) / len(gram) * np.eye(len(gram)), x.T @ y)
    found = {}
    for name in ("train", "test"):
        each = np.asarray(features[name], np.float64).reshape(-1, features[name].shape[-1])
        each = np.concatenate([each, np.ones((len(each), 1))], axis=1)
        found[name] = unexplained(jnp.asarray(each @ weights, jnp.float32), targets[name])
    return found


def _best_tokens(trained, runs: Runs, model: Llava, features, targets, test: scenes.Split) -> dict[str, Any]:
    """At the rate that is best on validation, for each seed: the share unexplained of the test, and the answers."""
    held = [unexplained(trained.apply(i, features["validation"]), targets["validation"]) for i in range(len(runs))]
    rate = runs.best(np.array(held))
    found: list[dict[str, float]] = []
    for i in runs.of_rate(np.arange(len(runs)), rate):
        visual = trained.apply(int(i), features["test"])
        share = {"unexplained": unexplained(visual, targets["test"])}
        found.append(share | _answers_of(model, visual, test, targets["test"]))
    values = {key: np.array([each[key] for each in found]) for key in found[0]}
    return {"rate": runs.rates[rate]} | {
        key if key == "unexplained" else f"token_{key}": v for key, v in values.items()
    }


def _best_answers(trained, runs: Runs, model: Llava, features, targets, splits) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {}
    for name in ("validation", "test"):
        found[name] = []
        for i in range(len(runs)):
            visual = trained.apply(i, features[name])
            found[name].append(_answers_of(model, visual, splits[name], targets[name]))
    rate = runs.best(np.array([each["loss"] for each in found["validation"]]))
    rows = {key: runs.of_rate(np.array([each[key] for each in found["test"]]), rate) for key in found["test"][0]}
    return {f"answer_{key}": value for key, value in rows.items()} | {"answer_rate": runs.rates[rate]}


def _answers_of(model: Llava, visual, split: scenes.Split, whole) -> dict[str, float]:
    """Loss, accuracy and divergence from the teacher of the answers to one version of the questions."""
    definition, state = nnx.split(model.language)
    run, parts = _judged(definition), []
    for first in range(0, len(visual), 250):
        rows = slice(first, first + 250)
        asked = (split.arrays[name][rows, 0] for name in ("questions", "answers"))
        parts.append([float(v) for v in run(state, visual[rows], whole[rows], *asked)])
    return dict(zip(("loss", "accuracy", "kl"), np.mean(parts, axis=0).tolist(), strict=True))


@functools.cache
def _judged(definition):
    @jax.jit
    def run(state, visual, whole, questions, answers):
        language = nnx.merge(definition, state)
        ours, theirs = (scenes.answer_logits(language, x, questions) for x in (visual, whole))
        loss = optax.softmax_cross_entropy_with_integer_labels(ours, answers).mean()
        return loss, (ours.argmax(-1) == answers).mean(), answer_divergence(theirs, ours)

    return run


def _report(config, size, rows, curves, floor, whole, splits, seconds) -> dict[str, Any]:
    measured = [key for key, value in next(iter(rows.values())).items() if np.ndim(value) == 1]
    runs = [
        {
            "seed": seed,
            "seconds": seconds / len(config.seeds),
            "metrics": {f"{family}/{key}": row[key][i] for family, row in rows.items() for key in measured},
        }
        for i, seed in enumerate(config.seeds)
    ]
    report = make_report(
        NAME,
        command=common.command(NAME, config, Config()),
        config=dataclasses.asdict(config) | {"teacher": config.teacher.parent.name, "out_dir": "", "options": size},
        runs=runs,
        data={"name": "DigitScenes", "sha256": splits["test"].sha256, "train": size["train"], "test": size["held"]},
        published=published(),
        costs=costs(smoke=config.smoke),
        rates={
            family: {key: row[key] for key in ("rate", "answer_rate") if key in row} for family, row in rows.items()
        },
        linear_floor=floor,
        teacher=whole,
        identity_curves=curves,
    )
    results, figure = common.result_paths(config.out_dir, NAME)
    write_report(results, report)
    plots_projector.draw_projectors(results, figure)
    print(plots_projector.published_table(report))
    print(render_table(report))
    return report


if __name__ == "__main__":
    common.run_cli(main, Config)
