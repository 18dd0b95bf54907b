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
# # Vision Mamba on CIFAR-10
#
# A Vision Mamba ([Vim](https://arxiv.org/abs/2401.09417)) cuts an image into patches, puts them in a row, and reads the
# row with a selective scan from both ends. This notebook trains a small one, draws its curves and predictions, and then
# switches off one direction at a time to see what each of them contributes.
#
# It runs on a stock Colab:
#
# | runtime | what runs | compute type |
# |---|---|---|
# | CPU | the sequential scan with a hand-written backward pass | float32 |
# | T4 | XLA's associative scan in chunks; a T4 has no native bfloat16 | float32 |
# | L4, A100 and later | the fastest form that supports the call | bfloat16, states in float32 |
# | TPU | XLA's associative scan in chunks | bfloat16, states in float32 |
#
# No compiler is needed, and the jax that Colab brings is kept.

# %%
import os
import subprocess
import sys

REPOSITORY = ""  # in Colab: the git address of ssmjax or of your fork

if "google.colab" in sys.modules and not os.path.exists("experiments"):
    assert REPOSITORY, "set REPOSITORY above to the git address of ssmjax"
    subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, "ssmjax"], check=True)
    os.chdir("ssmjax")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-e", ".[experiments]"], check=True)
    sys.path.insert(0, os.getcwd())

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ssmjax
from experiments.vim_cifar import Config, main
from ssmjax.data import load_images, normalize

SMOKE = bool(os.environ.get("SSMJAX_SMOKE"))  # a check of the notebook itself: seconds, no download
PLATFORM = jax.devices()[0].platform
print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")

# %% [markdown]
# ## Train
#
# CIFAR-10 comes through TensorFlow Datasets. If it cannot be downloaded, the cell stops and says so;
# `Config(data="digits")` trains on scikit-learn's 1,797 handwritten digits, which need no download.
#
# On a CPU this is a first taste, a few hundred steps; a GPU or TPU trains 30 epochs. The same call goes on from where
# it was stopped.

# %%
folder = Path(tempfile.mkdtemp()) if SMOKE else Path("runs/notebook")
config = Config(
    data="digits" if SMOKE else "cifar10",
    model="vim_nano",
    smoke=SMOKE,
    epochs=None if PLATFORM == "cpu" else 30,
    steps=300 if PLATFORM == "cpu" and not SMOKE else None,
    batch_size=64 if PLATFORM == "cpu" else 256,
    out_dir=folder,
    runs_dir=folder / "runs",
)
results = main(config)

# %% [markdown]
# ## Curves

# %%
# %matplotlib inline
import matplotlib.pyplot as plt

curves = results["curves"][0]
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
for ax, name in zip(axes, ("loss", "accuracy"), strict=True):
    for part, label in (("train", "training, augmented"), ("test", "test")):
        ax.plot(curves[part]["epoch"], curves[part][name], label=label)
    ax.set_xlabel("epoch")
    ax.set_title(name)
    ax.grid(alpha=0.3)
axes[0].legend(frameon=False)
plt.show()
print(f"test accuracy {100 * results['metrics']['test_accuracy']['mean']:.1f} %")

# %% [markdown]
# ## Predictions
#
# The trained weights were saved as safetensors; one line loads them. The model takes channels-last images, normalized
# with the training set's mean and standard deviation.

# %%
model = ssmjax.load_pretrained(results["weights"], dtype="float32")
data = load_images(config.data, data_dir=config.data_dir, download_dir=config.download_dir)
if data.image_shape[:2] != model.config.size:
    data = data.resized(model.config.img_size)

count = 64 if SMOKE else 1000
images = normalize(data.test_images[:count], data.mean, data.std)
labels = data.test_labels[:count]
predict = nnx.jit(lambda model, images: model(images))
predicted = np.asarray(predict(model, images).argmax(-1))

fig, axes = plt.subplots(2, 8, figsize=(12, 3.6), layout="constrained")
for ax, image, label, guess in zip(axes.flat, data.test_images, labels, predicted, strict=False):
    ax.imshow(image.squeeze(), cmap="gray")
    ax.set_title(data.class_names[guess], color="C2" if guess == label else "C3", fontsize=9)
    ax.axis("off")
plt.show()

# %% [markdown]
# ## What the two directions see
#
# In each block the forward scan lets a token depend on the tokens before it, the backward scan on those after it:
#
# $$
# y_t = \tfrac12\,\big(C_t^\top h^{\rightarrow}_t + D\,x_t\big)
#     + \tfrac12\,\big(C_t^\top h^{\leftarrow}_t + D\,x_t\big),
# $$
#
# each with parameters of its own. A direction's $C$ and $B$ come from its `x_proj`; with `x_proj` and `D` at zero, the
# direction adds nothing. That is all it takes to switch one off, in every block at once, since the blocks' parameters
# are stacked.


# %%
def without(model, suffix):
    """A copy of the model whose forward ("") or backward ("_b") direction adds nothing."""
    definition, state = nnx.split(model)

    def silence(path, value):
        names = {str(getattr(key, "key", getattr(key, "name", key))) for key in path}
        return jnp.zeros_like(value) if names & {f"x_proj{suffix}", f"D{suffix}"} else value

    return nnx.merge(definition, jax.tree_util.tree_map_with_path(silence, state))


variants = {"both directions": model, "forward only": without(model, "_b"), "backward only": without(model, "")}
for name, variant in variants.items():
    accuracy = (np.asarray(predict(variant, images).argmax(-1)) == labels).mean()
    print(f"{name:16s} accuracy {100 * accuracy:.1f} % on {count} test images, without retraining")

# %% [markdown]
# The model reads its answer from a class token in the middle of the row. So the forward scan can bring it only what
# stands before it, the upper half of the image, and the backward scan only the lower half. The maps show it: how
# strongly the right class's logit reacts to each pixel (the absolute gradient, the largest over channels).


# %%
@nnx.jit
def influence(model, images, labels):
    """|d logit of the right class / d pixel|, (b y x)."""

    def score(images):
        return jnp.take_along_axis(model(images), labels[:, None], axis=1).sum()

    return jnp.abs(jax.grad(score)(images)).max(-1)


rows = 4
maps = {name: np.asarray(influence(variant, images[:rows], labels[:rows])) for name, variant in variants.items()}

fig, axes = plt.subplots(rows, 4, figsize=(8, 2 * rows), layout="constrained")
for row in range(rows):
    axes[row, 0].imshow(data.test_images[row].squeeze(), cmap="gray")
    axes[row, 0].set_ylabel(data.class_names[labels[row]])
    for ax, name in zip(axes[row, 1:], variants, strict=True):
        ax.imshow(maps[name][row], cmap="magma")
        ax.set_title(name if row == 0 else "")
for ax in axes.flat:
    ax.set_xticks([])
    ax.set_yticks([])
plt.show()

# %% [markdown]
# In numbers: the share of the influence that falls on the upper half of the image. The seam is a few pixels wide,
# because the convolutions that make the patches look a little beyond a patch's edge.

# %%
for name, each in maps.items():
    upper = each[:, : each.shape[1] // 2].sum() / each.sum()
    print(f"{name:16s} {100 * upper:5.1f} % of the influence lies in the upper half")

# %% [markdown]
# ## Next
#
# - `python -m experiments.vim_cifar --help` lists every option; `--seeds 3` gives a mean and a spread.
# - `ssmjax.create_model("vim_tiny", img_size=32, patch_size=4, num_classes=10)` makes a larger model, and
#   `print(ssmjax.summary(model, images.shape))` a table of its parts.
# - `ssmjax.ops.report()` says which implementation of each op ran on this machine.
