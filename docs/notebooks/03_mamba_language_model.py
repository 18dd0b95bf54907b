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
# # A Mamba language model: parallel to train, recurrent to write
#
# This notebook trains a small Mamba on the characters of a text, writes with it, and shows what makes a state space
# model different from a transformer: a whole sequence at once and one token at a time are the same function, and the
# memory of the second does not grow with the text. It runs in minutes on any accelerator, and on a CPU in smoke form.

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
SMOKE = bool(os.environ.get("SSMJAX_SMOKE"))
STEPS = 3 if SMOKE else 1500

# %% [markdown]
# ## A text
# Any text will do. Put its path here, or keep the sums, which the model can learn in a minute: every line adds two
# numbers, digits reversed, so that a digit of the result depends on a carry that the state has to keep.

# %%
import numpy as np

rng = np.random.default_rng(0)
pairs = rng.integers(0, 1000, (20_000, 2))
text = "".join(f"{str(a)[::-1]}+{str(b)[::-1]}={str(a + b)[::-1]}\n" for a, b in pairs)
characters = "".join(sorted(set(text)))
tokens = np.array([characters.index(each) for each in text], np.int32)
print(text[:48])
print(len(tokens), "characters,", len(characters), "different ones")

# %% [markdown]
# ## A model
# `mamba2_nano` or `mamba3_nano` in place of `mamba_nano` gives the successors; `transformer_nano` is the baseline.

# %%
import jax
import jax.numpy as jnp

import ssmjax

model = ssmjax.create_model("mamba_nano", vocab_size=len(characters), d_model=64 if SMOKE else 128, depth=2)
print(ssmjax.summary(model))

# %% [markdown]
# ## Training
# The loss is the cross entropy of the next character. Logits of the whole batch never exist at once, which matters when
# a vocabulary has 50,000 entries.

# %%
from ssmjax.data import TokenBatches
from ssmjax.training.fit import FitConfig, fit
from ssmjax.training.losses import chunked_cross_entropy
from ssmjax.training.optim import adamw


def loss(model, batch, key):
    losses = chunked_cross_entropy(model.features(batch["tokens"]), model.head_kernel, batch["labels"])
    return losses.mean(), {}


batches = TokenBatches(tokens, batch_size=4 if SMOKE else 64, length=64, seed=0)
result = fit(
    model,
    loss,
    batches.at,
    steps=STEPS,
    optimizer=adamw(3e-3, steps=STEPS, warmup_steps=STEPS // 20, model=model),
    config=FitConfig(log_every=max(1, STEPS // 30), progress=not SMOKE),
)
model = result.model

# %%
import matplotlib.pyplot as plt

plt.figure(figsize=(5, 3))
plt.plot([row["step"] for row in result.train], [row["loss"] for row in result.train])
plt.xlabel("step")
plt.ylabel("nats a character")
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## Writing
# A prompt is read in parallel; then one compiled loop goes on step by step. A batch may hold prompts of different
# lengths: padding changes nothing.

# %%
prompt = jnp.array([[characters.index(each) for each in "21+43="]])
new = ssmjax.generate(model, prompt, max_new_tokens=4)
print("12 + 34, reversed:", "".join(characters[min(i, len(characters) - 1)] for i in np.asarray(new[0])).strip())

# %% [markdown]
# ## One function, two forms
# The state after a prompt is all that the model keeps of it: its size is the same for a prompt of ten characters and of
# ten thousand.

# %%
sequence = jnp.asarray(tokens[None, :24])
whole = model(sequence)
cache = model.init_cache(1, 24)
logits, cache = model.prefill(sequence[:, :10], cache)
differences = [float(abs(logits - whole[:, 9]).max())]
step = jax.jit(model.step)
for i in range(10, 24):
    logits, cache = step(sequence[:, i], cache)
    differences.append(float(abs(logits - whole[:, i]).max()))
print("largest difference between the forms:", max(differences))
print("bytes of the state:", sum(x.nbytes for x in jax.tree.leaves(cache)))

# %% [markdown]
# ## Published weights
# The same three methods serve the published models. Reading a `.bin` file means to trust where it came from.
#
# ```python
# model = ssmjax.load_pretrained("state-spaces/mamba-130m-hf")
# model = ssmjax.load_pretrained("state-spaces/mamba2-130m", allow_pickle=True)
# ```
#
# `python -m experiments.mamba_generate --model ... --tokenizer tokenizer.json --prompt "..."` writes with them.
