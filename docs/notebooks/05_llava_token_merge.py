# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
#

# %% [markdown]
# # Merging the visual tokens of a LLaVA
#
# A vision-language model reads a picture as a few hundred tokens, and nearly all of its work on a prompt is on them.
# Most say little: a plain background is many tokens that are all alike. This notebook takes a small LLaVA that comes
# with the project, makes 144 visual tokens to 16 or 4, and trains a *merger* that keeps what the answers need.
#
# It runs on a stock Colab, on a CPU (about ten minutes), a T4 or more. Nothing is downloaded: the pictures are drawn,
# and the model lies in the repository.

# %%
import os
import subprocess
import sys

REPOSITORY = ""  # in Colab: the git address of ssmjax or of your fork

if "google.colab" in sys.modules and not os.path.exists("experiments"):
    assert REPOSITORY, "set REPOSITORY above to the git address of ssmjax"
    subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, "ssmjax"], check=True)
    os.chdir("ssmjax")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-e", ".[experiments,vlm]"], check=True)
    sys.path.insert(0, os.getcwd())

# %%
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import experiments
import vlmjax
from experiments.shared import scenes
from experiments.shared.plots_vlm import question_text
from ssmjax.data.synthetic import SCENE_VOCABULARY
from vlmjax.layers import Merger
from vlmjax.metrics import agreement, answer_divergence
from vlmjax.ops import bipartite_merge, density_anchors, select_tokens

SMOKE = bool(os.environ.get("SSMJAX_SMOKE"))  # a check of the notebook itself: few steps
WEIGHTS = Path(experiments.__file__).parent / "weights"
print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")

# %% [markdown]
# ## The model and its pictures
#
# DigitScenes are small pictures with a few real handwritten digits in colors, on gradients with noise and strokes,
# and six types of questions. The model is a tower of four blocks, a projector, and a language model of four blocks,
# 1.7 million parameters; `python -m experiments.vlm_scenes` trains it from nothing.

# %%
model = vlmjax.load_pretrained(WEIGHTS / "llava_scenes", param_dtype="float32")
data = scenes.load(32 if SMOKE else 500, seed=3, split="validation")
images, questions, answers = (data.arrays[name] for name in ("images", "questions", "answers"))
questions, answers = questions[:, 0], answers[:, 0]


@nnx.jit
def see(model, images):
    return model.visual_tokens(scenes.normalized(images))


@nnx.jit
def answer(model, x, questions, merged=None):
    visual = model.projector(x if merged is None else merged.tokens)
    return scenes.answer_logits(model.language, visual, questions, merged)


tokens = see(model, images)
whole = answer(model, tokens, questions)
accuracy = 100 * (whole.argmax(-1) == answers).mean()
print(f"{tokens.shape[1]} tokens of {tokens.shape[2]} channels; accuracy {accuracy:.1f} %")

# %%
fig, axes = plt.subplots(1, 4, figsize=(11, 3.4), layout="constrained")
for i, ax in enumerate(axes):
    ax.imshow(np.clip(np.asarray(images[i], np.float32), 0, 1))
    said = [
        f"{question_text(q)} {SCENE_VOCABULARY[int(a)]}" for q, a in zip(questions[i], whole[i].argmax(-1), strict=True)
    ]
    ax.set_title("\n".join(said[:1] + said[2:5]), fontsize=8)
    ax.axis("off")
plt.show()

# %% [markdown]
# ## Fewer tokens, without training
#
# Keeping every s-th token loses whole digits. *Bipartite matching* (ToMe) merges pairs that are alike. *Density
# anchors* take the tokens that stand for many others and are far from each other, and let every token join the one it
# is most like. A merged token must count as what it stands for: attention adds the logarithm of its size to its
# logits.


# %%
def loss_of(merge, m):
    merged = jax.jit(merge, static_argnums=1)(tokens, m)
    logits = answer(model, tokens, questions, merged)
    unsized = answer(model, tokens, questions, merged._replace(size=jnp.ones_like(merged.size)))
    right = [100 * float((each.argmax(-1) == answers).mean()) for each in (logits, unsized)]
    return right, float(answer_divergence(whole, logits)), float(agreement(whole, logits))


def table(methods, budgets):
    print(f"{'':>10} tokens  accuracy  without sizes  KL, nats  same answer")
    for name, merge in methods.items():
        for m in budgets:
            right, kl, same = loss_of(merge, m)
            print(f"{name:>10} {m:6}  {right[0]:8.1f}  {right[1]:13.1f}  {kl:8.4f}  {100 * same:9.1f} %")


budgets = (16,) if SMOKE else (36, 16, 9, 4)
table(
    {
        "slicing": lambda x, m: select_tokens(x, jnp.arange(m) * 144 // m),
        "ToMe": bipartite_merge,
        "density": density_anchors,
    },
    budgets,
)

# %% [markdown]
# ## A merger, trained for this model
#
# `Merger` starts as density anchors, and learns what to change: which tokens make good anchors, what is alike, and
# what counts in a mean. The teacher is the model itself without a merge: the loss is the divergence of its answers.
# In training the choice is soft, and becomes hard by itself (`docs/token_merge`). One set of parameters serves every
# budget.


# %%
def answers_of(model, batch, merge):
    x = model.visual_tokens(scenes.normalized(batch["images"]))
    merged = None if merge is None else merge(x)
    visual = model.projector(x if merged is None else merged.tokens)
    return scenes.answer_logits(model.language, visual, batch["questions"], merged), batch["answers"]


seen = scenes.load(32 if SMOKE else 2000, seed=4, split="train").arrays


def batches(size=8 if SMOKE else 32):
    rng = np.random.default_rng(0)
    while True:
        rows = rng.integers(0, len(seen["images"]), size)
        yield {
            "images": seen["images"][rows],
            "questions": seen["questions"][rows, 0],
            "answers": seen["answers"][rows, 0],
        }


start = time.time()
merger, curve = vlmjax.train_merger(
    model,
    batches(),
    budgets=(36, 16, 9, 4),
    steps=2 if SMOKE else 200 if jax.default_backend() == "cpu" else 1000,
    learning_rate=4e-3,
    merger=Merger(128, grid=(12, 12), adapt=True, rngs=nnx.Rngs(0)),
    answers=answers_of,
)
first, last = curve["divergence"][0], curve["divergence"][-1]
print(f"{time.time() - start:.0f} s; divergence {first:.3f} at first, {last:.3f} at last")

table({"merger": merger}, budgets)
vlmjax.save_merger(merger, Path(tempfile.mkdtemp()) / "merger")  # `load_merger` reads it

# %% [markdown]
# `python -m experiments.token_merge` trains it for longer, and all that it is compared with for as long.

# %% [markdown]
# ## What became one token
#
# Patches of one color became one token. The background needs few; digits keep theirs.

# %%
shown = (16,) if SMOKE else (36, 16, 9)
fig, axes = plt.subplots(2, 1 + len(shown), figsize=(2.6 * (1 + len(shown)), 5), layout="constrained")
for i, row in enumerate(axes):
    picture = np.clip(np.asarray(images[i], np.float32), 0, 1)
    row[0].imshow(picture)
    for ax, m in zip(row[1:], shown, strict=True):
        groups = np.asarray(merger(tokens[i : i + 1], m).assign[0].argmax(0)).reshape(12, 12)
        ax.imshow(picture)
        ax.imshow(np.kron(plt.get_cmap("tab20")((groups * 7) % 20)[..., :3], np.ones((4, 4, 1))), alpha=0.6)
        ax.set_title(f"{m} tokens")
    for ax in row:
        ax.axis("off")
plt.show()

# %% [markdown]
# ## With your own model
#
# A merge is a function that goes into the model's call, its prompt or its generation; a text then has as many image
# tokens as are left:
#
# ```python
# model = vlmjax.load_pretrained("llava-hf/llava-1.5-7b-hf", dtype="bfloat16")
# merger, curve = vlmjax.train_merger(model, batches, budgets=(192, 128, 64))
# logits = model(tokens, images=images, merge=lambda x: merger(x, 64))
# ```
#
# `python -m experiments.vlm_finetune --data FILE.json --images DIR --train merger` does so from conversations in
# LLaVA's JSON form. `python -m experiments.token_merge_speed` measures what is saved at the sizes of LLaVA-1.5-7B.
