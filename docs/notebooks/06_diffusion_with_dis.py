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
# # Diffusion with DiS
#
# A diffusion model learns to take noise out of images; started from noise alone, it draws new ones.
# [DiS](https://arxiv.org/abs/2402.05608) uses bidirectional Mamba blocks for that, in the shape of a U, where a
# transformer or a convolutional U-Net is usual. This notebook trains a small one on handwritten digits, class by class,
# watches an image come to be, and compares samplers.
#
# It runs on a stock Colab, on a CPU (about ten minutes), a T4 or more, or a TPU. The digits come with scikit-learn, so
# there is no download.

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
import matplotlib.pyplot as plt
import numpy as np

import ssmjax
from experiments.dis_images import Config, main
from ssmjax.data import load_images
from ssmjax.diffusion import add_noise, cosine_schedule, linear_schedule, sample

SMOKE = bool(os.environ.get("SSMJAX_SMOKE"))  # a check of the notebook itself: few steps
print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")


# %% [markdown]
# ## Noise
#
# A schedule says how much noise each of 1000 steps adds. What is left of the image after $t$ of them has the share
# $\bar\alpha_t$ of the variance:
#
# $$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1 - \bar\alpha_t}\;\epsilon,\qquad \epsilon \sim \mathcal N(0, 1).$$
#
# The linear schedule of DDPM destroys a small image long before the last step; the cosine schedule takes its time.


# %%
def show(ax, images, title=""):
    """Images from -1 to 1 in one row."""
    ax.imshow(np.concatenate([np.asarray(image).squeeze() for image in images], axis=1), cmap="gray", vmin=-1, vmax=1)
    ax.set_title(title, fontsize=9, loc="left")
    ax.axis("off")


data = load_images("digits")
digit = jnp.asarray(data.train_images[3], jnp.float32) / 127.5 - 1
schedules = {"linear": linear_schedule(), "cosine": cosine_schedule()}
times = jnp.linspace(0, 999, 12).astype(int)
noise = jax.random.normal(jax.random.key(0), (len(times), *digit.shape))

fig = plt.figure(figsize=(11, 3.4), layout="constrained")
left, right = fig.subfigures(1, 2, width_ratios=[1, 2])
ax = left.subplots()
for name, schedule in schedules.items():
    ax.plot(schedule.alpha_bars, label=name)
ax.set_xlabel("step")
ax.set_ylabel("share of the image")
ax.legend(frameon=False)
for ax, (name, schedule) in zip(right.subplots(2, 1), schedules.items(), strict=True):
    show(ax, add_noise(schedule, jnp.repeat(digit[None], len(times), 0), times, noise), name)
plt.show()

# %% [markdown]
# ## Train
#
# The network sees $x_t$, $t$ and the class, and predicts $\epsilon$; it also learns the variance of a denoising step
# (the hybrid loss of [Improved DDPM](https://arxiv.org/abs/2102.09672)). In a tenth of the cases the class is hidden
# from it, so that it learns to do without. At the end, classifiers trained on real digits judge what it draws.

# %%
folder = Path(tempfile.mkdtemp()) if SMOKE else Path("runs/notebook")
results = main(Config(smoke=SMOKE, out_dir=folder, runs_dir=folder / "runs"))

# %%
share = results["metrics"]["recognised"]["mean"]
print(f"{100 * share:.1f} % of the samples are recognised as the class that was asked for")

# %% [markdown]
# ## Guidance
#
# One line loads the trained weights, one draws. Classifier-free guidance exaggerates what the class changes in the
# prediction: $\epsilon = \epsilon_\varnothing + s\,(\epsilon_c - \epsilon_\varnothing)$. At $s = 1$ nothing is
# exaggerated; large $s$ gives clearer digits that are more alike.

# %%
model = ssmjax.load_pretrained(results["weights"], dtype="float32")
labels = jnp.arange(10)
steps = 4 if SMOKE else 50
options = dict(schedule=cosine_schedule(), steps=steps)

fig, axes = plt.subplots(3, 1, figsize=(8, 3), layout="constrained")
for ax, scale in zip(axes, (1.0, 2.0, 5.0), strict=True):
    show(ax, sample(model, labels, key=jax.random.key(1), guidance=scale, **options), f"guidance {scale:g}")
plt.show()

# %% [markdown]
# ## How an image comes to be
#
# In every step the network has an idea of the finished image, computed from its prediction of the noise. It begins as
# the mean of the class, and takes its form in the first half of the steps.

# %%
_, path = sample(model, labels, key=jax.random.key(1), guidance=2.0, return_path=True, **options)
chosen = np.linspace(0, steps - 1, min(steps, 12)).round().astype(int)

fig, axes = plt.subplots(4, 1, figsize=(9, 3.6), layout="constrained")
for ax, label in zip(axes, (0, 3, 6, 9), strict=True):
    show(ax, path[chosen, label], f"class {label}")
plt.show()

# %% [markdown]
# ## Samplers
#
# All start from the same noise. DDIM and DPM-Solver++ follow the same path from noise to image, in steps of first and
# of second order, so that they meet where the steps are small; DDPM adds fresh noise in each step and ends elsewhere. A
# call with another number of steps compiles nothing.

# %%
start = jax.random.normal(jax.random.key(2), (10, *model.image_shape))
counts = (2, 4) if SMOKE else (5, 10, 50)

fig, axes = plt.subplots(3, len(counts), figsize=(4.2 * len(counts), 2.4), layout="constrained")
for row, sampler in zip(axes, ("ddpm", "ddim", "dpm++"), strict=True):
    for ax, count in zip(row, counts, strict=True):
        drawn = sample(
            model, labels, key=jax.random.key(3), noise=start, sampler=sampler, schedule=cosine_schedule(), steps=count
        )
        show(ax, drawn, f"{sampler}, {count} steps")
plt.show()

# %% [markdown]
# ## Next
#
# - `python -m experiments.dis_images --data mnist` is the larger run; its figure has quality against steps for each
#   sampler.
# - `ssmjax.diffusion.flow_loss` and `sample_flow` train and draw by flow matching, with `learn_sigma=False`.
# - `ssmjax.create_model("dis_huge_latent256")` is the largest published size, for the latents of an autoencoder; pass
#   `clip=None` to `sample`, as latents have no bounds.
