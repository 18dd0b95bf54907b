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
# # State space layers: a kernel and a state
#
# A linear state space layer is one function with two forms. As a *convolution* it multiplies the past by a kernel, all
# tokens at once; as a *recurrence* it carries a state from token to token. This notebook shows both for two layers,
# [S4D](https://arxiv.org/abs/2206.11893) and [S5](https://arxiv.org/abs/2208.04933): their kernels and their states
# before training, and the filters that they become when they learn to clean a noisy tone. It runs in a minute on a CPU.
#
# $$x' = A x + B u, \qquad y = \mathrm{Re}\, C x + D u$$

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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from ssmjax.layers import S4D, S5

SMOKE = bool(os.environ.get("SSMJAX_SMOKE"))
STEPS = 20 if SMOKE else 500
LENGTH = 256

# %% [markdown]
# ## Kernels
# `S4D` has a state space for every feature. Its kernel is a sum of damped oscillations, one for each mode of $A$: the
# real part of a mode says how fast it forgets, the imaginary part how fast it turns. `init="diag-lin"` spaces the
# frequencies evenly, and the step size sets the unit of time, which is drawn for each feature between `dt_min` and
# `dt_max`: some features look back a few samples, others hundreds.

# %%
s4d = S4D(4, d_state=32, init="diag-lin", rngs=nnx.Rngs(0))
kernels = s4d.kernel(LENGTH)[0]  # (l h), from (c l h)
modes = s4d.kernel.A()  # (h n), one mode of each conjugate pair
steps = s4d.kernel.step_sizes()[:, 0]

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3), width_ratios=[2, 1], layout="constrained")
for feature in range(4):
    left.plot(kernels[:, feature], label=f"step size {steps[feature]:.3f}")
left.set(title="kernels of an S4D", xlabel="samples into the past", ylabel="weight")
left.legend(fontsize=8)
s5 = S5(4, d_state=32, rngs=nnx.Rngs(0))
for name, frequencies in {"S4D, diag-lin": modes[0].imag, "S5, HiPPO-LegS": s5.Lambda_im[...]}.items():
    right.semilogy(np.sort(np.abs(frequencies)), "o", markersize=3, label=name)
right.set(title="how fast modes turn", xlabel="mode", ylabel="imaginary part of A")
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## One function, several forms
# A call is a convolution in `S4D` and a scan in `S5`. Both take a sequence in chunks, with the state in between, and
# token by token. All forms agree to rounding.


# %%
def in_steps(layer, u):
    """The outputs (b l d) and the states (l b ...) of a loop over tokens."""

    def step(state, token):
        y, state = layer.step(token, state)
        return state, (y, state)

    _, (y, states) = jax.lax.scan(step, layer.init_state(len(u)), u.swapaxes(0, 1))
    return y.swapaxes(0, 1), states


u = jax.random.normal(jax.random.key(0), (1, LENGTH, 4))
for layer in (s4d, s5):
    whole = nnx.jit(lambda layer, u: layer(u))(layer, u)
    first, state = layer(u[:, :100], return_state=True)
    chunks = jnp.concatenate([first, layer(u[:, 100:], state=state)], axis=1)
    stepped, _ = nnx.jit(in_steps)(layer, u)
    largest = [float(jnp.abs(other - whole).max()) for other in (chunks, stepped)]
    print(f"{type(layer).__name__}: chunks differ by {largest[0]:.0e}, steps by {largest[1]:.0e}")

# %% [markdown]
# ## What a state remembers
# Two pulses go into an S5 and nothing after them. Each row of the picture is a mode of its one state: all start to
# swing at a pulse, and many still know of the first pulse when the second comes.

# %%
pulses = jnp.zeros((1, LENGTH, 4)).at[:, 20].set(1.0).at[:, 120].set(1.0)
_, states = nnx.jit(in_steps)(s5, pulses)
picture = np.asarray(states[:, 0]).T  # (p l)
turns = np.abs(np.asarray(s5.Lambda_im[...] * jnp.exp(s5.log_step[...][:, 0])))  # radians a sample
picture = picture[np.argsort(turns)]
figure, (upper, lower) = plt.subplots(2, 1, figsize=(10, 4.5), sharex=True, height_ratios=[1, 3], layout="constrained")
upper.plot(pulses[0, :, 0])
upper.set(ylabel="input")
scale = np.abs(picture).max(axis=1, keepdims=True)
lower.imshow(picture.real / scale, aspect="auto", cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
lower.set(
    xlabel="sample", ylabel="mode, slow ones first", title="real part of the state, each mode by its largest value"
)
plt.show()

# %% [markdown]
# ## Learning a filter
# The input is a tone of an unknown phase, buried in noise; the target is the tone. What is linear and causal can at
# best become the filter that passes the tone's band, and both layers find it.


# %%
def examples(key, batch):
    """Noisy tones and clean ones (b l 1), of 7 to 9 periods."""
    phase_key, pitch_key, noise_key = jax.random.split(key, 3)
    periods = jax.random.uniform(pitch_key, (batch, 1), minval=7.0, maxval=9.0)
    phase = jax.random.uniform(phase_key, (batch, 1))
    clean = jnp.sin(2 * jnp.pi * (periods * jnp.arange(LENGTH)[None] / LENGTH + phase))[..., None]
    return clean + jax.random.normal(noise_key, clean.shape), clean


@nnx.jit
def train_step(layer, optimizer, noisy, clean):
    def loss(layer):
        return jnp.mean((layer(noisy) - clean) ** 2)

    value, gradient = nnx.value_and_grad(loss)(layer)
    optimizer.update(layer, gradient)
    return value


def train(layer):
    optimizer = nnx.Optimizer(layer, optax.adam(1e-2), wrt=nnx.Param)
    keys = jax.random.split(jax.random.key(1), STEPS)
    return [float(train_step(layer, optimizer, *examples(key, 16))) for key in keys]


layers = {
    "S4D": S4D(1, d_state=32, init="diag-lin", rngs=nnx.Rngs(0)),
    "S5": S5(1, d_state=32, rngs=nnx.Rngs(0)),
}
curves = {name: train(layer) for name, layer in layers.items()}
noisy, clean = examples(jax.random.key(2), 64)
for name, layer in layers.items():
    error = float(jnp.mean((layer(noisy) - clean) ** 2))
    print(f"{name}: mean squared error {error:.3f}; of the noisy signal itself 1.0, of silence 0.5")

# %%
figure, axes = plt.subplots(1, 3, figsize=(14, 3), layout="constrained")
impulse = jnp.zeros((1, LENGTH, 1)).at[0, 0].set(1.0)
for name, layer in layers.items():
    response = np.asarray(layer(impulse)[0, :, 0])  # the kernel, and D at the first sample
    axes[0].plot(curves[name], label=name)
    axes[1].plot(response, label=name)
    axes[2].plot(np.abs(np.fft.rfft(response))[:40], label=name)
axes[0].set(title="training", xlabel="step", ylabel="mean squared error")
axes[1].set(title="the learned filters", xlabel="sample", ylabel="response to an impulse")
axes[2].set(title="what they pass", xlabel="periods in the sequence", ylabel="gain")
axes[2].axvspan(7, 9, alpha=0.2, color="gray", label="tones")
for axis in axes:
    axis.legend(fontsize=8)
plt.show()

# %%
plt.figure(figsize=(10, 3))
plt.plot(noisy[0, :, 0], color="lightgray", label="input")
plt.plot(clean[0, :, 0], color="black", label="tone")
for name, layer in layers.items():
    plt.plot(layer(noisy[:1])[0, :, 0], label=name)
plt.xlabel("sample")
plt.legend(fontsize=8, ncols=4)
plt.show()

# %% [markdown]
# ## The same filter at another sampling rate
# The layer learned a differential equation, not a list of weights. With every second sample, `rate=2.0` doubles the
# step sizes, and the same parameters filter the same tone.

# %%
for name, layer in layers.items():
    half = layer(clean[:, ::2], rate=2.0)
    error = float(jnp.mean((half - layer(clean)[:, ::2]) ** 2) / jnp.mean(half**2))
    print(f"{name}: at half the sampling rate the output differs by {100 * error**0.5:.0f} %")

# %% [markdown]
# From here: `SequenceBlock` puts a norm, a gate and a residual around any of these layers, and
# `ssmjax.create_model("s4d_classifier")` stacks them; the page on
# [linear time-invariant layers](../state_space_layers.md) has padding, packing, events of different length and two
# directions.
