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

    A second call with the same sampler and number of images compiles nothing, whatever the number of steps, the labels,
    the key, the weights and the scale of guidance are. The same key gives the same bits.

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
    most, schedule = (
        len(schedule),
        schedule.respaced(steps, spacing or ("log_snr" if sampler == "dpm++" else "uniform")),
    )
    noise_key, draw_key = jax.random.split(key)
    noise = first_noise(where, model, count, noise, noise_key)
    limit = np.float32(np.inf if clip is None else errors.as_nonnegative(where, "clip", clip, positive=True))
    scale = None if guidance == 1 else np.float32(guidance)
    images, path = _run(
        *nnx.split(model), noise, labels, draw_key, _padded(schedule, eta, most), np.int32(steps), scale, limit,
        sampler=sampler, channels=channels, keep=steps if return_path else 0,
    )  # fmt: skip
    return (images, path) if return_path else images


def _padded(schedule: Schedule, eta: float, length: int) -> dict[str, np.ndarray]:
    """The numbers of the steps in the order in which they are taken, with zeros up to a length."""
    numbers = tables(schedule, eta) | {"time": np.asarray(schedule.timesteps, np.float32)}
    return {name: np.pad(table[::-1], (0, length - len(schedule))) for name, table in numbers.items()}


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
    graphdef: Any, state: Any, noise, labels, key, rows, steps, scale, clip, *, sampler: str, channels: int, keep: int
) -> tuple[jax.Array, jax.Array]:
    """Every step of a sampler, as one loop over the numbers of the steps; keeps `keep` estimates."""
    model = nnx.merge(graphdef, state)
    predict, take = predictor(model, labels, scale, channels), SAMPLERS[sampler]

    def step(i, carry):
        x, last, path = carry
        row = {name: table[i] for name, table in rows.items()}
        out = jnp.asarray(predict(x, row["time"]), jnp.float32)
        found = estimate(out, x, row, learned=model.learn_sigma, clip=clip)
        x = take(x, found, last, row, jax.random.normal(jax.random.fold_in(key, i), x.shape))
        return x, found.image, path.at[i].set(found.image) if keep else path

    # The number of steps is an argument of the program, so that another one compiles nothing.
    images, _, path = jax.lax.fori_loop(
        0, steps, step, (noise, jnp.zeros_like(noise), jnp.zeros((keep, *noise.shape), noise.dtype))
    )
    return images, path
