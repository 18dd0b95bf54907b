"""From noise to images: the samplers, and the one loop that runs them in one compiled program."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.diffusion.denoiser import Denoiser, check_labels, predictor
from ssmjax.diffusion.schedule import Schedule, linear_schedule
from ssmjax.diffusion.steps import ddim_step, ddpm_step, dpm_step, estimate, tables
from ssmjax.shapes import Array, Float, Images, Int, PRNGKey

__all__ = ["SAMPLERS", "first_noise", "guided_channels", "sample"]

SAMPLERS = {"ddpm": ddpm_step, "ddim": ddim_step, "dpm++": dpm_step}
"""The samplers by name: DDPM with fresh noise in each step, DDIM, and the second-order DPM-Solver++."""


def sample(
    model: Denoiser,
    labels: Int[Array, "b"] | None = None,
    *,
    key: PRNGKey,
    count: int | None = None,
    schedule: Schedule | None = None,
    steps: int = 50,
    sampler: str = "ddim",
    spacing: str | None = None,
    guidance: float = 1.0,
    guidance_channels: int | None = None,
    eta: float = 0.0,
    clip: float | None = 1.0,
    noise: Images | None = None,
    return_path: bool = False,
) -> Float[jax.Array, "b y x d"] | tuple[Float[jax.Array, "b y x d"], Float[jax.Array, "steps b y x d"]]:
    """Draws images by denoising, in one compiled call.

    A second call with the same sampler and number of images and steps compiles nothing, whatever the labels, the key,
    the weights and the scale of guidance are. The same key gives the same bits.

    Args:
        model: The network, such as a `DiS` trained with `diffusion_loss`.
        labels: (b), the class of each image.
        key: A random key.
        count: How many images, where there are no labels; a conditional network then gets the null class.
        schedule: What the network was trained with; None is `linear_schedule()`.
        steps: How many of its steps are taken.
        sampler: One of `SAMPLERS`.
        spacing: How the steps are spread, see `Schedule.respaced`. None is `"log_snr"` for `"dpm++"`, whose order needs
            it, and `"uniform"` for the others.
        guidance: The scale of classifier-free guidance (`guide`); 1 has none. Above 1 each step evaluates the network
            on twice the images.
        guidance_channels: How many channels are guided; None is all.
        eta: How much fresh noise `"ddim"` adds, from 0 to 1.
        clip: In each step the estimate of the image is clipped to `[-clip, clip]`; None, as latents need, does not.
        noise: (b y x d), what to begin with, in place of a draw from the key.
        return_path: Whether the estimates of the image in every step are returned, too.

    Returns:
        (b y x d) float32, in about [-1, 1]. With `return_path`, a pair of them and the estimates (steps b y x d).

    Raises:
        ValueError: There are more steps than the schedule has; labels or guidance for a network without classes;
            another argument does not fit.

    >>> import jax, ssmjax
    >>> model = ssmjax.create_model("dis_nano", depth=2, d_model=16)
    >>> sample(model, jax.numpy.array([3, 8]), key=jax.random.key(0), steps=2, guidance=2.0).shape
    (2, 16, 16, 1)
    """
    where = "sample"
    if sampler not in SAMPLERS:
        raise ValueError(f"{where}: {errors.unknown_name('sampler', sampler, list(SAMPLERS))}")
    labels, count = check_labels(where, model, labels, count, guidance)
    channels = guided_channels(where, model, guidance_channels)
    eta = errors.as_nonnegative(where, "eta", eta)
    schedule = linear_schedule() if schedule is None else schedule
    remedy = f"The schedule has {len(schedule)} steps, and a sampler can only leave some out."
    steps = errors.as_int(where, "steps", steps, least=1, most=len(schedule), remedy=remedy)
    schedule = schedule.respaced(steps, spacing or ("log_snr" if sampler == "dpm++" else "uniform"))
    noise_key, draw_key = jax.random.split(key)
    noise = first_noise(where, model, count, noise, noise_key)
    per_step = {name: table[::-1] for name, table in tables(schedule, eta).items()}
    per_step["time"] = np.asarray(schedule.timesteps[::-1], np.float32)
    limit = np.float32(np.inf if clip is None else errors.as_nonnegative(where, "clip", clip, positive=True))
    scale = None if guidance == 1 else np.float32(guidance)
    images, path = _run(
        *nnx.split(model), noise, labels, draw_key, per_step, scale, limit,
        sampler=sampler, channels=channels, keep=return_path,
    )  # fmt: skip
    return (images, path) if return_path else images


def guided_channels(where: str, model: Denoiser, channels: int | None) -> int:
    """How many channels guidance acts on."""
    most = model.image_shape[-1]
    return most if channels is None else errors.as_int(where, "guidance_channels", channels, least=1, most=most)


def first_noise(where: str, model: Denoiser, count: int, noise: Images | None, key: PRNGKey) -> jax.Array:
    """The noise that a sampler begins with, given or drawn."""
    shape = (count, *model.image_shape)
    if noise is None:
        return jax.random.normal(key, shape)
    if noise.shape != shape:
        raise errors.bad_shape(where, "noise", noise, f"(b, y, x, d) = {shape}")
    return jnp.asarray(noise, jnp.float32)


@functools.partial(jax.jit, static_argnames=("graphdef", "sampler", "channels", "keep"))
def _run(
    graphdef: Any, state: Any, noise, labels, key, per_step, scale, clip, *, sampler: str, channels: int, keep: bool
) -> tuple[jax.Array, jax.Array | None]:
    """Every step of a sampler, as one scan over the numbers of the steps."""
    model = nnx.merge(graphdef, state)
    predict, take = predictor(model, labels, scale, channels), SAMPLERS[sampler]
    keys = jax.random.split(key, len(per_step["time"]))

    def step(carry, values):
        x, last = carry
        row, key = values
        out = jnp.asarray(predict(x, row["time"]), jnp.float32)
        found = estimate(out, x, row, learned=model.learn_sigma, clip=clip)
        x = take(x, found, last, row, jax.random.normal(key, x.shape))
        return (x, found.image), found.image if keep else None

    (images, _), path = jax.lax.scan(step, (noise, jnp.zeros_like(noise)), (per_step, keys))
    return images, path
