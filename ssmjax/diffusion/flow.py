"""Flow matching: straight lines from images to noise, and the network that follows them back."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.diffusion.denoiser import TIME_SCALE, Denoiser, check_labels, predictor
from ssmjax.diffusion.sampling import first_noise, guided_channels
from ssmjax.shapes import Array, Float, Images, Int, PRNGKey

__all__ = ["flow_loss", "sample_flow"]

SOLVERS = ("euler", "heun")


def flow_loss(model: Denoiser, batch: Mapping[str, Array], key: PRNGKey) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of rectified flow (https://arxiv.org/abs/2209.03003; https://arxiv.org/abs/2210.02747).

    The point at time `s` in [0, 1] is `(1 - s) images + s noise`; the network learns its velocity, `noise - images`,
    and is told the time as `1000 s`.

    Args:
        model: The network, without a learned variance.
        batch: `image`, (b y x d) in about [-1, 1], and for a conditional network `label`, (b).
        key: A random key.

    Returns:
        The mean squared error, and no further metrics: the form that `ssmjax.training.fit` takes.

    Raises:
        ValueError: The network predicts variances, which have no meaning here.

    >>> import jax, jax.numpy as jnp, ssmjax
    >>> model = ssmjax.create_model("dis_nano", depth=2, d_model=16, learn_sigma=False)
    >>> batch = {"image": jnp.zeros((2, 16, 16, 1)), "label": jnp.array([3, 4])}
    >>> nnx.jit(flow_loss)(model, batch, jax.random.key(0))[0].shape
    ()
    """
    _check("flow_loss", model)
    images = batch["image"]
    time_key, noise_key, model_key = jax.random.split(key, 3)
    times = jax.random.uniform(time_key, (len(images),))
    noise = jax.random.normal(noise_key, images.shape)
    share = times[:, None, None, None]
    labels = None if model.null_label is None else batch["label"]
    out = model((1 - share) * images + share * noise, TIME_SCALE * times, labels, train=True, key=model_key)
    return jnp.square(jnp.asarray(out, jnp.float32) - (noise - images)).mean(), {}


def sample_flow(
    model: Denoiser,
    labels: Int[Array, "b"] | None = None,
    *,
    key: PRNGKey,
    count: int | None = None,
    steps: int = 25,
    solver: str = "heun",
    guidance: float = 1.0,
    guidance_channels: int | None = None,
    noise: Images | None = None,
) -> Float[jax.Array, "b y x d"]:
    """Draws images by following the velocity from noise to the images' end, in one compiled call.

    Args:
        model: The network, trained with `flow_loss`.
        labels: (b), the class of each image.
        key: A random key.
        count: How many images, where there are no labels.
        steps: How many steps of equal length.
        solver: `"euler"`, one evaluation of the network a step, or `"heun"`, two of them and second order.
        guidance: The scale of classifier-free guidance; 1 has none.
        guidance_channels: How many channels are guided; None is all.
        noise: (b y x d), what to begin with, in place of a draw from the key.

    Returns:
        (b y x d) float32.

    Raises:
        ValueError: `sample` refuses the arguments, or the network predicts variances.

    >>> import jax, ssmjax
    >>> model = ssmjax.create_model("dis_nano", depth=2, d_model=16, learn_sigma=False)
    >>> sample_flow(model, jax.numpy.array([3, 8]), key=jax.random.key(0), steps=2).shape
    (2, 16, 16, 1)
    """
    where = "sample_flow"
    _check(where, model)
    if solver not in SOLVERS:
        raise ValueError(f"{where}: {errors.unknown_name('solver', solver, list(SOLVERS))}")
    steps = errors.as_int(where, "steps", steps, least=1)
    labels, count = check_labels(where, model, labels, count, guidance)
    channels = guided_channels(where, model, guidance_channels)
    noise = first_noise(where, model, count, noise, key)
    times = np.linspace(1, 0, steps + 1, dtype=np.float32)
    scale = None if guidance == 1 else np.float32(guidance)
    return _run(*nnx.split(model), noise, labels, times, scale, solver=solver, channels=channels)


@functools.partial(jax.jit, static_argnames=("graphdef", "solver", "channels"))
def _run(graphdef: Any, state: Any, noise, labels, times, scale, *, solver: str, channels: int) -> jax.Array:
    predict = predictor(nnx.merge(graphdef, state), labels, scale, channels)

    def velocity(x, time):
        return jnp.asarray(predict(x, TIME_SCALE * time), jnp.float32)

    def step(x, ends):
        time, after = ends
        first = velocity(x, time)
        if solver == "heun":
            first = (first + velocity(x + (after - time) * first, after)) / 2
        return x + (after - time) * first, None

    return jax.lax.scan(step, noise, (times[:-1], times[1:]))[0]


def _check(where: str, model: Denoiser) -> None:
    if model.learn_sigma:
        remedy = "Create the network with learn_sigma=False."
        raise errors.bad_argument(where, "model", type(model).__name__, "a network without a learned variance", remedy)
