"""A vision-language model from nothing: a tower, a projector and a language model that answer questions about pictures.

DigitScenes (`ssmjax.data.synthetic.draw_digit_scenes`): real handwritten digits in colors anywhere on a textured canvas
of 48 x 48, 12 x 12 visual tokens, six types of questions. Test digits are in no training picture. Four stages:

    1. the tower alone: by labels of patches ("dense"), or by captions as CLIP's ("contrastive")
    2. alignment: the projector and the language model on captions, the tower frozen
    3. instruction: the same on questions
    4. instruction with the tower unfrozen

Recipe (device, minutes, what is expected):
    python -m experiments.vlm_scenes                         one H200, 5; every type at 95 % or more of its ceiling
    python -m experiments.vlm_scenes --seed 1                the same from other initial values
    python -m experiments.vlm_scenes --tower contrastive     one H200, 9; frozen, places are lost; unfrozen they are not
    python -m experiments.vlm_scenes --size cpu              two CPU cores, under 45, no claim

The ceiling is a model that is given each digit's own pixels, its color and its place. The same command goes on from
where it was cut off. Models are kept in
`--runs-dir/vlm_scenes_TOWER`, after stage 3 (`frozen`) and after stage 4 (`unfrozen`), for `experiments.token_merge`.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import vlmjax
from experiments.shared import common, plots_vlm, scenes
from experiments.shared.plots import encode_images
from ssmjax import errors
from ssmjax.paths import LocalPaths
from ssmjax.training.report import make_report, render_table, write_report
from vlmjax.models import CLIPText, CLIPTextConfig, Llava, contrastive_loss

NAME = "vlm_scenes"

EMPTY, END, VOCAB = 31, 62, 64
SHARED = 64
"""The width in which pictures and captions meet."""

SIZES: dict[str, dict[str, Any]] = {
    "full": dict(
        pictures=60_000,
        tests=2_000,
        tower_steps=2_000,
        align_steps=300,
        frozen_steps=3_000,
        steps=4_000,
        batch=256,
        chunk=50,
    ),
    "cpu": dict(
        pictures=20_000,
        tests=1_000,
        tower_steps=1_000,
        align_steps=100,
        frozen_steps=1_500,
        steps=1_500,
        batch=64,
        chunk=50,
    ),
    "smoke": dict(pictures=64, tests=32, tower_steps=4, align_steps=2, frozen_steps=2, steps=4, batch=8, chunk=2),
}
SIZES["full, contrastive"] = SIZES["full"] | dict(frozen_steps=1_500, steps=6_000)
"""A contrastive tower has learned little about places: it needs more steps when it is free."""


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """Every field is a flag."""

    tower: str = "dense"
    """How the tower is pre-trained: dense or contrastive."""
    size: str = "full"
    """full, or cpu."""
    learning_rate: float = 1e-3
    contrast_batch: int = 1024
    seed: int = 0
    out_dir: Path = Path(".")
    """Where the result and the figure go."""
    runs_dir: Path = Path("runs")
    """Where the models go."""
    smoke: bool = False
    """A check of the plumbing in under a minute."""


class Labeler(nnx.Module):
    """A tower with a linear classifier of its tokens."""

    def __init__(self, tower: nnx.Module, *, rngs: nnx.Rngs):
        self.tower = tower
        self.head = nnx.Linear(tower.config.d_model, 61, rngs=rngs)

    def loss(self, batch, key):
        """Cross entropy of the patches' labels; background counts a tenth."""
        x = self.head(self.tower.post_norm(self.tower.hidden(scenes.normalized(batch["images"]))))
        weight = jnp.where(batch["labels"] == 60, 0.1, 1.0)
        return (optax.softmax_cross_entropy_with_integer_labels(x, batch["labels"]) * weight).sum() / weight.sum()


class Captioner(nnx.Module):
    """A tower beside a text tower of one block, as in CLIP."""

    def __init__(self, tower: nnx.Module, *, rngs: nnx.Rngs):
        config = CLIPTextConfig(vocab=VOCAB, length=11, d_model=128, depth=1, heads=4, d_mlp=512, eos=END)
        self.tower, self.text = tower, CLIPText(config, rngs=rngs)
        self.from_picture = nnx.Linear(tower.config.d_model, SHARED, rngs=rngs)
        self.from_text = nnx.Linear(128, SHARED, rngs=rngs)
        self.scale = nnx.Param(jnp.asarray(2.0))

    def loss(self, batch, key):
        """The contrastive loss of pictures and their captions."""
        captions = jnp.pad(batch["captions"], ((0, 0), (0, 1)), constant_values=END)
        x = self.from_picture(self.tower(scenes.normalized(batch["images"])))
        y = self.from_text(self.text(captions))
        x, y = (v / jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (x, y))
        return contrastive_loss(jnp.exp(jnp.minimum(self.scale[...], 4.6)) * x @ y.T)


def caption_loss(model: Llava, batch, key):
    """Next-token loss of the captions behind the pictures."""
    visual = model.projector(model.visual_tokens(scenes.normalized(batch["images"])))
    captions = batch["captions"]
    x = jnp.concatenate([visual, model.language.embed(captions[:, :-1])], axis=1)
    x, _ = model.language.decode(x)
    logits = model.language.logits(x[:, -captions.shape[1] :])
    weight = captions != EMPTY
    return (optax.softmax_cross_entropy_with_integer_labels(logits, captions) * weight).sum() / weight.sum()


def question_loss(model: Llava, batch, key):
    """Cross entropy of the answers to one version of the questions."""
    rows, version = (
        jnp.arange(len(batch["answers"])),
        jax.random.randint(key, (len(batch["answers"]),), 0, scenes.VERSIONS),
    )
    visual = model.projector(model.visual_tokens(scenes.normalized(batch["images"])))
    logits = scenes.answer_logits(model.language, visual, batch["questions"][rows, version])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["answers"][rows, version]).mean()


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains, evaluates, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields; `main(Config(smoke=True))` works in a notebook.

    Returns:
        What the results file holds.
    """
    errors.require_known("tower", config.tower, ["dense", "contrastive"])
    errors.require_known("size", config.size, ["full", "cpu"])
    common.require_writable("out_dir", config.out_dir)
    chosen = "smoke" if config.smoke else config.size
    size, start = SIZES.get(f"{chosen}, {config.tower}", SIZES[chosen]), time.time()
    name = f"{NAME}_{config.tower}" + (f"_{config.seed}" if config.seed else "")
    data = scenes.load(size["pictures"], seed=1, split="train")
    tests = scenes.load(size["tests"], seed=2, split="test")
    model = vlmjax.create_model("llava_scenes", seed=config.seed)
    known = {"ceiling": scenes.ceilings(data, tests), "prior": scenes.priors(tests)}
    curves, found = _stages(config, size, model, data, tests, config.runs_dir / name)
    known |= found
    known["blank"] = scenes.accuracies(scenes.predictor(model, blank=True), tests)
    known["question alone"] = scenes.accuracies(_without_picture(model), tests)
    metrics = {f"{row}/{kind}": value for row, columns in known.items() for kind, value in columns.items()}
    report = make_report(
        name,
        command=common.command(NAME, config, Config()),
        config=dataclasses.asdict(config) | {"out_dir": "", "runs_dir": ""},
        runs=[{"seed": config.seed, "seconds": time.time() - start, "metrics": metrics}],
        data={"name": "DigitScenes", "sha256": tests.sha256, "train": size["pictures"], "test": size["tests"]},
        curves=curves,
        parameters=sum(v.size for v in jax.tree.leaves(nnx.state(model, nnx.Param))),
        examples=_examples(model, tests),
    )
    results, figure = common.result_paths(config.out_dir, name)
    write_report(results, report)
    plots_vlm.draw_scenes(results, figure)
    print(render_table(report))
    return report


def _stages(config: Config, size: dict[str, Any], model: Llava, data: scenes.Split, tests: scenes.Split, folder: Path):
    """The four stages, in place: their curves, and the accuracies with the tower frozen and unfrozen."""

    def keep(stage: str) -> Path | None:
        steps = "_".join(str(value) for value in size.values())
        return None if config.smoke else folder / "stages" / f"{stage}_{config.learning_rate}_{steps}.npz"

    def learn(loss, stage: str, steps: str, rate: float, seed: int, parts=None) -> dict[str, Any]:
        return scenes.train(
            model,
            loss,
            data.arrays,
            steps=size[steps],
            batch=size["batch"],
            learning_rate=rate,
            seed=config.seed + seed,
            parts=parts,
            chunk=size["chunk"],
            label=stage,
            keep=keep(stage),
        )

    both, rate = ("projector", "language"), config.learning_rate
    curves, known = {"tower": _tower(config, size, model, data, keep("tower"))}, {}
    curves["align"] = learn(caption_loss, "alignment", "align_steps", rate, 1, both)
    curves["frozen"] = learn(question_loss, "frozen", "frozen_steps", rate, 1, both)
    known["frozen"] = scenes.accuracies(scenes.predictor(model), tests)
    vlmjax.save_pretrained(model, folder / "frozen")
    curves["unfrozen"] = learn(question_loss, "unfrozen", "steps", rate / 2, 2)
    known["unfrozen"] = scenes.accuracies(scenes.predictor(model), tests)
    vlmjax.save_pretrained(model, folder / "unfrozen")
    return curves, known


def _tower(config: Config, size: dict[str, Any], model: Llava, data: scenes.Split, keep: Path | None) -> dict[str, Any]:
    """Stage 1; the tower is the model's own."""
    rngs = nnx.Rngs(config.seed + 100)
    module = Labeler(model.vision, rngs=rngs) if config.tower == "dense" else Captioner(model.vision, rngs=rngs)
    batch = size["batch"] if config.tower == "dense" else config.contrast_batch
    return scenes.train(
        module,
        type(module).loss,
        data.arrays,
        steps=size["tower_steps"],
        batch=min(batch, size["pictures"]),
        learning_rate=config.learning_rate,
        seed=config.seed,
        chunk=size["chunk"],
        label=f"tower, {config.tower}",
        keep=keep,
    )


def _without_picture(model: Llava):
    """Answers of the language model to the questions, with no visual token before them."""

    @jax.jit
    def run(images, questions):
        b, q, t = questions.shape
        rows = questions.reshape(b * q, t)
        positions = jnp.broadcast_to(scenes.PATCHES + jnp.arange(t)[None], rows.shape)
        x, _ = model.language.decode(model.language.embed(rows), positions=positions)
        return model.language.logits(x[:, -1]).argmax(-1).reshape(b, q)

    return run


def _examples(model: Llava, tests: scenes.Split) -> dict[str, Any]:
    """Four pictures, a question about each, the answer, and where the question looks."""
    count, kinds = 4, (0, 2, 4, 3)
    questions = tests.arrays["questions"][:count, 0]
    given = np.asarray(scenes.predictor(model)(tests.arrays["images"][:count], questions))
    looks = [
        scenes.question_attention(model, tests.arrays["images"][i], questions[i, kind]) for i, kind in enumerate(kinds)
    ]
    rows = np.arange(count)
    return {
        "images": encode_images((np.clip(tests.scenes.images[:count].astype(np.float32), 0, 1) * 255).astype(np.uint8)),
        "questions": np.asarray(questions)[rows, kinds],
        "answers": np.asarray(tests.arrays["answers"])[rows, 0, kinds],
        "given": given[rows, kinds],
        "attention": np.round(np.stack(looks), 5),
    }


if __name__ == "__main__":
    common.run_cli(main, Config)
