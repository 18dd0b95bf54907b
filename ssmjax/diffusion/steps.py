"""One denoising step of each sampler, from the numbers of a schedule: pure functions of arrays."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax.diffusion.schedule import Schedule
from ssmjax.shapes import Array

__all__ = ["Estimate", "ddim_step", "ddpm_step", "dpm_step", "estimate", "posterior_mean", "tables"]

Row = Mapping[str, jax.Array]
"""The numbers of `tables` at one step, or at the step of each image."""


class Estimate(NamedTuple):
    """What a prediction says: the image without noise, the noise, and the logarithm of the variance of the step."""

    image: jax.Array
    noise: jax.Array
    log_variance: jax.Array


def tables(schedule: Schedule, eta: float = 0.0) -> dict[str, np.ndarray]:
    """What the steps need of a schedule, (steps) float32 each, computed in float64.

    Args:
        schedule: The schedule.
        eta: How much fresh noise a DDIM step adds, between none (0) and that of DDPM (1).
    """
    bars, before = schedule.alpha_bars, schedule.previous_alpha_bars
    least, largest = schedule.log_variance_bounds
    of_image, of_noisy = schedule.posterior_mean
    deviation = eta * np.sqrt((1 - before) / (1 - bars) * (1 - bars / before))
    # Half the logarithm of the ratio of signal and noise; infinite where there is no noise any more.
    with np.errstate(divide="ignore"):
        growth = 0.5 * np.log(before / (1 - before)) - 0.5 * np.log(bars / (1 - bars))
    # The last two estimates are extrapolated, but not before there are two, nor in the step to no noise.
    extrapolate = np.zeros_like(growth)
    extrapolate[1:-1] = 0.5 * growth[1:-1] / growth[2:]
    found = {
        "signal": np.sqrt(bars),
        "noise": np.sqrt(1 - bars),
        "least_log_variance": least,
        "largest_log_variance": largest,
        "mean_of_image": of_image,
        "mean_of_noisy": of_noisy,
        "ddim_signal": np.sqrt(before),
        "ddim_noise": np.sqrt(np.maximum(1 - before - deviation**2, 0)),
        "ddim_deviation": deviation,
        "dpm_keep": np.sqrt((1 - before) / (1 - bars)),
        "dpm_image": -np.sqrt(before) * np.expm1(-growth),
        "dpm_extrapolate": extrapolate,
        "fresh": (np.arange(len(schedule)) > 0).astype(np.float64),
    }
    return {name: x.astype(np.float32) for name, x in found.items()}


def estimate(out: Array, x: Array, row: Row, *, learned: bool, clip: Array | float = np.inf) -> Estimate:
    """Reads a prediction.

    Args:
        out: The network's output for `x`.
        x: The noisy images.
        row: The numbers of the step.
        learned: Whether the output's second half places the variance between its bounds; else it is the least.
        clip: The images without noise are clipped to `[-clip, clip]`, and the noise follows.
    """
    channels = x.shape[-1]
    image = (x - row["noise"] * out[..., :channels]) / row["signal"]
    image = jnp.clip(image, -clip, clip)
    noise = (x - row["signal"] * image) / row["noise"]
    if not learned:
        return Estimate(image, noise, row["least_log_variance"])
    share = (out[..., channels:] + 1) / 2
    return Estimate(image, noise, share * row["largest_log_variance"] + (1 - share) * row["least_log_variance"])


def posterior_mean(image: Array, x: Array, row: Row) -> jax.Array:
    """The mean of the images one step before, given those without noise and those now."""
    return row["mean_of_image"] * image + row["mean_of_noisy"] * x


def ddpm_step(x: Array, found: Estimate, last: Array, row: Row, draw: Array) -> jax.Array:
    """Ancestral sampling (https://arxiv.org/abs/2006.11239, algorithm 2): the posterior's mean and fresh noise."""
    return posterior_mean(found.image, x, row) + row["fresh"] * jnp.exp(0.5 * found.log_variance) * draw


def ddim_step(x: Array, found: Estimate, last: Array, row: Row, draw: Array) -> jax.Array:
    """The step of DDIM (https://arxiv.org/abs/2010.02502, equation 12)."""
    mean = row["ddim_signal"] * found.image + row["ddim_noise"] * found.noise
    return mean + row["ddim_deviation"] * draw


def dpm_step(x: Array, found: Estimate, last: Array, row: Row, draw: Array) -> jax.Array:
    """The second-order multistep DPM-Solver++ (https://arxiv.org/abs/2211.01095, algorithm 2)."""
    image = found.image + row["dpm_extrapolate"] * (found.image - last)
    return row["dpm_keep"] * x + row["dpm_image"] * image
