"""Networks whose predictions are known in closed form: the data are normal, or a class is a single image."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssmjax.diffusion import linear_schedule

MEAN, DEVIATION = 0.5, 0.3
SCHEDULE = linear_schedule()


class Normal(nnx.Module):
    """The ideal network for one-pixel images drawn from a normal distribution."""

    image_shape = (1, 1, 1)
    null_label = None
    learn_sigma = False

    def __init__(self):
        self.bars = nnx.Variable(jnp.asarray(SCHEDULE.alpha_bars, jnp.float32))

    def __call__(self, images, times, labels=None, *, train=False, key=None):
        bars = self.bars[...][jnp.round(times).astype(jnp.int32)][:, None, None, None]
        return jnp.sqrt(1 - bars) * (images - jnp.sqrt(bars) * MEAN) / (bars * DEVIATION**2 + 1 - bars)


class NormalFlow(Normal):
    """The ideal velocity for the same images under flow matching."""

    def __call__(self, images, times, labels=None, *, train=False, key=None):
        s = times[:, None, None, None] / 1000
        variance = (1 - s) ** 2 * DEVIATION**2 + s**2
        centered = images - (1 - s) * MEAN
        return (s - (1 - s) * DEVIATION**2) / variance * centered - MEAN


class Classes(nnx.Module):
    """Takes the image of class `c` to be `c / 10` everywhere, and that of no class to be 0; two channels."""

    image_shape = (2, 2, 2)
    null_label = 10
    learn_sigma = True

    def __init__(self):
        self.bars = nnx.Variable(jnp.asarray(SCHEDULE.alpha_bars, jnp.float32))

    def __call__(self, images, times, labels=None, *, train=False, key=None):
        bars = self.bars[...][jnp.round(times).astype(jnp.int32)][:, None, None, None]
        value = jnp.where(labels == 10, 0.0, labels / 10)[:, None, None, None]
        noise = (images - jnp.sqrt(bars) * value) / jnp.sqrt(1 - bars)
        return jnp.concatenate([noise, -jnp.ones_like(noise)], axis=-1)


def exact(noise: jax.Array) -> np.ndarray:
    """Where the probability flow takes noise at the last step of the schedule."""
    bar = SCHEDULE.alpha_bars[-1]
    start = np.asarray(noise, np.float64)
    return MEAN + DEVIATION * (start - np.sqrt(bar) * MEAN) / np.sqrt(bar * DEVIATION**2 + 1 - bar)
