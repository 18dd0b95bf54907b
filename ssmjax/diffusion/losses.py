"""What a denoiser is trained on: the error of the noise and, where the variance is learned, the variational bound."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ssmjax import errors
from ssmjax.diffusion.denoiser import Denoiser
from ssmjax.diffusion.schedule import Schedule, linear_schedule
from ssmjax.diffusion.steps import Estimate, estimate, posterior_mean, tables
from ssmjax.shapes import Array, Float, Images, Int, PRNGKey

__all__ = ["add_noise", "diffusion_loss", "hybrid_terms"]

_PIXEL = 1 / 255  # half the distance of two grey values on the scale from -1 to 1
_LEAST_PROBABILITY = 1e-12


def add_noise(schedule: Schedule, images: Images, times: Int[Array, "b"], noise: Images) -> Images:
    """The images after so many steps of noise: `sqrt(alpha_bar) images + sqrt(1 - alpha_bar) noise`.

    Args:
        schedule: The schedule.
        images: (b y x d), in about [-1, 1].
        times: (b), indices of the schedule's steps.
        noise: (b y x d), standard normal.

    Returns:
        (b y x d).

    >>> import jax.numpy as jnp
    >>> x = jnp.ones((1, 1, 1, 1))
    >>> add_noise(linear_schedule(1000), x, jnp.array([999]), 0 * x).round(4).item()
    0.0064
    """
    return _noisy(_rows(schedule, times), images, noise)


def hybrid_terms(
    model: Denoiser,
    images: Images,
    times: Int[Array, "b"],
    noise: Images,
    labels: Int[Array, "b"] | None = None,
    *,
    schedule: Schedule,
    train: bool = False,
    key: PRNGKey | None = None,
) -> Mapping[str, Float[jax.Array, "b"]]:
    """The terms of the loss of "Improved DDPM" (https://arxiv.org/abs/2102.09672, equation 16), for each image.

    Args:
        model: The network.
        images: (b y x d) without noise, in [-1, 1].
        times: (b), indices of the schedule's steps.
        noise: (b y x d), standard normal.
        labels: (b), the classes of a conditional network.
        schedule: The schedule.
        train: Handed to the network, as is `key`.
        key: A random key.

    Returns:
        `mse`, the mean squared error of the noise; `vb`, with a learned variance, the term of the variational bound in
        bits a dimension, in which the mean is held fixed; `loss`, their sum. Each (b) float32.

    >>> import jax.numpy as jnp
    >>> class NoNoise:
    ...     image_shape, null_label, learn_sigma = (1, 1, 1), None, False
    ...     def __call__(self, images, times, labels=None, *, train=False, key=None):
    ...         return 0 * images
    >>> x = jnp.ones((2, 1, 1, 1))
    >>> hybrid_terms(NoNoise(), x, jnp.array([3, 900]), x, schedule=linear_schedule())["mse"].tolist()
    [1.0, 1.0]
    """
    rows = _rows(schedule, times)
    x = _noisy(rows, images, noise)
    told = jnp.asarray(schedule.timesteps)[times]
    out = jnp.asarray(model(x, told, labels, train=train, key=key), jnp.float32)
    channels = images.shape[-1]
    mse = _mean(jnp.square(noise - out[..., :channels]))
    if not model.learn_sigma:
        return {"mse": mse, "loss": mse}
    # Only the variance learns from the bound: it is too noisy a teacher for the mean.
    fixed = jnp.concatenate([jax.lax.stop_gradient(out[..., :channels]), out[..., channels:]], axis=-1)
    vb = _bound(rows, images, x, estimate(fixed, x, rows, learned=True), times)
    return {"mse": mse, "vb": vb, "loss": mse + vb}


def diffusion_loss(
    model: Denoiser, batch: Mapping[str, Array], key: PRNGKey, *, schedule: Schedule | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a batch at random times with random noise, in the form that `ssmjax.training.fit` takes.

    Args:
        model: The network.
        batch: `image`, (b y x d) in [-1, 1], and for a conditional network `label`, (b).
        key: A random key.
        schedule: The schedule; None is `linear_schedule()`.

    Returns:
        The loss and its terms `mse` and, with a learned variance, `vb`, each the mean over the batch.

    >>> import jax, jax.numpy as jnp, ssmjax
    >>> from flax import nnx
    >>> model = ssmjax.create_model("dis_nano", depth=2, d_model=16)
    >>> batch = {"image": jnp.zeros((2, 16, 16, 1)), "label": jnp.array([3, 4])}
    >>> loss, terms = nnx.jit(diffusion_loss)(model, batch, jax.random.key(0))
    >>> loss.shape, sorted(terms)
    ((), ['mse', 'vb'])
    """
    schedule = linear_schedule() if schedule is None else schedule
    images = batch["image"]
    if images.ndim != 4:
        raise errors.bad_shape("diffusion_loss", "batch['image']", images, "(b, y, x, d)")
    time_key, noise_key, model_key = jax.random.split(key, 3)
    times = jax.random.randint(time_key, (len(images),), 0, len(schedule))
    noise = jax.random.normal(noise_key, images.shape)
    labels = None if model.null_label is None else batch["label"]
    terms = hybrid_terms(model, images, times, noise, labels, schedule=schedule, train=True, key=model_key)
    means = {name: term.mean() for name, term in terms.items()}
    return means.pop("loss"), means


def _rows(schedule: Schedule, times: Array) -> dict[str, jax.Array]:
    """The schedule's numbers at the time of each image, to be multiplied with images."""
    return {name: jnp.asarray(table)[times][:, None, None, None] for name, table in tables(schedule).items()}


def _noisy(rows: Mapping[str, jax.Array], images: Array, noise: Array) -> jax.Array:
    return rows["signal"] * images + rows["noise"] * noise


def _mean(x: jax.Array) -> jax.Array:
    return x.mean(axis=(1, 2, 3))


def _bound(rows, images, x, found: Estimate, times) -> jax.Array:
    """The divergence of the model's step from the posterior; at the first step the likelihood of the image. In bits."""
    true_mean, true_log = posterior_mean(images, x, rows), rows["least_log_variance"]
    mean, log = posterior_mean(found.image, x, rows), found.log_variance
    apart = jnp.exp(true_log - log) + jnp.square(true_mean - mean) * jnp.exp(-log)
    divergence = 0.5 * (-1.0 + log - true_log + apart)
    surprise = -_log_likelihood(images, mean, 0.5 * log)
    return _mean(jnp.where(times[:, None, None, None] == 0, surprise, divergence)) / math.log(2)


def _log_likelihood(images: jax.Array, mean: jax.Array, log_deviation: jax.Array) -> jax.Array:
    """The logarithm of the probability that a normal variable is rounded to the grey value of each pixel."""
    centered, rate = images - mean, jnp.exp(-log_deviation)
    above, below = _normal_cdf((centered + _PIXEL) * rate), _normal_cdf((centered - _PIXEL) * rate)
    chance = jnp.where(images < -0.999, above, jnp.where(images > 0.999, 1 - below, above - below))
    return jnp.log(jnp.maximum(chance, _LEAST_PROBABILITY))


def _normal_cdf(x: jax.Array) -> jax.Array:
    """The normal distribution function by a tanh (Page 1977), with which the published bounds are computed."""
    return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
