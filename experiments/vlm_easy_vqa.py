"""A second set of pictures and questions, made by nobody here: easy-VQA, questions in words about one flat shape.

The model of `experiments.vlm_scenes`, with a tower that cuts 64 x 64 pixels into 8 x 8 patches, is trained from nothing
on 38,575 questions about 4,000 pictures, all parts at once, and answers 9,673 about 1,000 others. The questions are
padded on the left, as a prompt is. "blank" is the same model without the picture.

Recipe (device, minutes, what is expected):
    python -m experiments.vlm_easy_vqa --data easy-vqa.tar.gz                one H200, 4; 99 % or more
    python -m experiments.vlm_easy_vqa --data easy-vqa.tar.gz --steps 2000 --batch 64 --seeds 0      two CPU cores, 40
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
from experiments.shared import common, easy_vqa, plots_vlm, scenes
from experiments.shared.plots import encode_images
from ssmjax.paths import LocalPaths
from ssmjax.training.report import make_report, render_table, write_report
from vlmjax.models import Llava

NAME = "vlm_easy_vqa"

IMAGE = 63
"""The token that stands for a visual token."""


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """Every field is a flag."""

    data: Path = Path("easy-vqa.tar.gz")
    """The archive."""
    steps: int = 4_000
    batch: int = 256
    learning_rate: float = 1e-3
    seeds: tuple[int, ...] = (0, 1, 2)
    out_dir: Path = Path(".")
    smoke: bool = False
    """A check of the plumbing in under a minute."""


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains, evaluates, writes the results file, and prints the table.

    Args:
        config: The command line's fields.

    Returns:
        What the results file holds.
    """
    common.require_writable("out_dir", config.out_dir)
    data = easy_vqa.load(config.data, 24 if config.smoke else None)
    steps, batch, chunk = (4, 4, 2) if config.smoke else (config.steps, config.batch, 50)
    arrays = {field.name: jnp.asarray(getattr(data.train, field.name)) for field in dataclasses.fields(data.train)}
    runs, model, curves = [], None, {}
    for seed in config.seeds:
        begin = time.time()
        model = make_model(seed)
        curves[str(seed)] = scenes.train(
            model,
            question_loss,
            arrays,
            steps=steps,
            batch=batch,
            learning_rate=config.learning_rate,
            seed=seed,
            chunk=chunk,
            label=f"seed {seed}",
        )
        metrics = {f"test/{kind}": value for kind, value in accuracies(model, data.test, data).items()}
        metrics |= {f"blank/{kind}": value for kind, value in accuracies(model, data.test, data, blank=True).items()}
        runs.append({"seed": seed, "seconds": time.time() - begin, "metrics": metrics})
    report = make_report(
        NAME,
        command=common.command(NAME, dataclasses.replace(config, data=Config().data), Config()),
        config=dataclasses.asdict(config) | {"data": "", "out_dir": ""},
        runs=runs,
        data={"name": "easy-VQA", "sha256": data.sha256, "train": 38_575, "test": int(data.test.counts.sum())},
        curves=curves,
        parameters=sum(v.size for v in jax.tree.leaves(nnx.state(model, nnx.Param))),
        examples=_examples(model, data),
    )
    results, figure = common.result_paths(config.out_dir, NAME)
    write_report(results, report)
    plots_vlm.draw_easy_vqa(results, figure)
    print(render_table(report))
    return report


def make_model(seed: int) -> Llava:
    """The model of DigitScenes with a tower for 64 pixels, 8 x 8 tokens."""
    vision = {"img_size": 64, "patch_size": 8}
    model = vlmjax.create_model("llava_scenes", seed=seed, vision=vision)
    assert isinstance(model, Llava) and model.config.image_token == IMAGE
    return model


def answers_of(model: Llava, images: jax.Array, questions: jax.Array) -> jax.Array:
    """The logits of the answers to one question about each picture: (b v)."""
    count = model.config.tokens_per_image
    tokens = jnp.pad(questions, ((0, 0), (count, 0)), constant_values=IMAGE)
    return model(tokens, images=images, mask=tokens != 0)[:, -1]


def question_loss(model: Llava, batch, key):
    """Cross entropy of the answers to one of each picture's questions; pictures are mirrored and moved at random."""
    ask, turn, shift = jax.random.split(key, 3)
    b = len(batch["images"])
    rows = jnp.arange(b)
    which = jax.random.randint(ask, (b,), 0, batch["counts"])
    images = _normalized(batch["images"])
    images = jnp.where(jax.random.bernoulli(turn, 0.5, (b, 1, 1, 1)), images[:, :, ::-1], images)
    by = jax.random.randint(shift, (b, 2), 0, 9)
    padded = jnp.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
    images = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), (64, 64, 3)))(padded, by)
    logits = answers_of(model, images, batch["questions"][rows, which])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["answers"][rows, which]).mean()


def accuracies(model: Llava, part: easy_vqa.Part, data: easy_vqa.EasyVQA, *, blank: bool = False) -> dict[str, float]:
    """The share of right answers to all questions, and by what is asked for: a shape, a color, or yes and no."""
    definition, state = nnx.split(model)
    run = jax.jit(functools.partial(_predict, definition, blank))
    there = np.arange(part.questions.shape[1])[None] < part.counts[:, None]
    image, question = np.nonzero(there)
    wanted, given = part.answers[there], []
    size = 500
    for first in range(0, len(image), size):
        rows = np.resize(np.arange(first, min(first + size, len(image))), size)  # one shape, one compilation
        answers = run(state, part.images[image[rows]], part.questions[image[rows], question[rows]])
        given.append(np.asarray(answers)[: min(size, len(image) - first)])
    right = np.concatenate(given) == wanted
    words = np.array(data.words)[wanted]
    yes, shape = np.isin(words, ("yes", "no")), np.isin(words, ("circle", "rectangle", "triangle"))
    kinds = {"all": yes | True, "yes or no": yes, "shape": shape, "color": ~(yes | shape)}
    return {kind: float(right[rows].mean()) for kind, rows in kinds.items() if rows.any()}


def _examples(model: Llava, data: easy_vqa.EasyVQA) -> dict[str, Any]:
    """Four test pictures with up to three questions, the answers given and the right ones, in words."""
    part, found = data.test, []
    definition, state = nnx.split(model)
    count = min(4, len(part.images))
    for i in range(count):
        asked = part.questions[i, : min(3, part.counts[i])]
        given = np.asarray(_predict(definition, False, state, np.repeat(part.images[i][None], len(asked), 0), asked))
        texts = [" ".join(data.words[word] for word in question if word) for question in asked]
        found.append(
            [list(row) for row in zip(texts, _words(data, given), _words(data, part.answers[i]), strict=False)]
        )
    return {"images": encode_images(part.images[:count]), "asked": found}


def _words(data: easy_vqa.EasyVQA, tokens: np.ndarray) -> list[str]:
    return [data.words[token] if token < len(data.words) else "-" for token in tokens]


def _predict(definition, blank: bool, state, images, questions):
    images = _normalized(images)
    model = nnx.merge(definition, state)
    return answers_of(model, images * 0 if blank else images, questions).argmax(-1)


def _normalized(images):
    return images.astype(jnp.float32) / 127.5 - 1.0


if __name__ == "__main__":
    common.run_cli(main, Config)
