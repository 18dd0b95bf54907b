"""What diffusion needs of a network, and classifier-free guidance."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ssmjax import errors
from ssmjax.shapes import Array, Float, Images, Int, PRNGKey

__all__ = ["Denoiser", "check_labels", "guide", "predictor"]

TIME_SCALE = 1000.0
"""What a network is told at the noisy end: times run from 0 to it, whether steps are whole or fractions."""


@runtime_checkable
class Denoiser(Protocol):
    """A Flax NNX module that predicts, for noisy images, the noise (or the velocity, with `flow_loss`).

    Attributes:
        image_shape: The rows, columns and channels of an image.
        null_label: The label that stands for no class; None if the network takes no labels.
        learn_sigma: Whether the output has twice the channels, of which the second half places the variance of a
            denoising step between its bounds.
    """

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The rows, columns and channels of an image."""
        ...

    @property
    def null_label(self) -> int | None:
        """The label that stands for no class."""
        ...

    @property
    def learn_sigma(self) -> bool:
        """Whether the output tells the variance of a step."""
        ...

    def __call__(
        self,
        images: Images,
        times: Array,
        labels: Array | None = None,
        *,
        train: bool = False,
        key: PRNGKey | None = None,
    ) -> Array:
        """The prediction for images (b y x d), times (b) from 0 to 1000 and labels (b)."""
        ...


def guide(
    conditional: Float[Array, "b y x v"],
    unconditional: Float[Array, "b y x v"],
    scale: Float[Array, ""] | float,
    channels: int,
) -> Float[jax.Array, "b y x v"]:
    """Classifier-free guidance: `unconditional + scale * (conditional - unconditional)`.

    "Classifier-Free Diffusion Guidance" (https://arxiv.org/abs/2207.12598, equation 6).

    Args:
        conditional: (b y x v), the prediction with classes.
        unconditional: (b y x v), that with the null class.
        scale: 1 gives the conditional prediction; more follows the class more closely.
        channels: How many channels are guided. The rest, such as the learned variance, stays conditional. (The original
            DiS guides three, even of latents with four.)

    Returns:
        (b y x v).

    >>> import jax.numpy as jnp
    >>> guide(jnp.ones((1, 1, 1, 2)), jnp.zeros((1, 1, 1, 2)), 3.0, 1).ravel().tolist()
    [3.0, 1.0]
    """
    noise = unconditional[..., :channels] + scale * (conditional[..., :channels] - unconditional[..., :channels])
    return jnp.concatenate([noise, conditional[..., channels:]], axis=-1)


def predictor(
    model: Denoiser, labels: Int[Array, "b"] | None, scale: Array | None, channels: int
) -> Callable[[Array, Array], jax.Array]:
    """The function `(images, time) -> prediction` of a sampler; `scale` None does not guide."""

    def plain(x: Array, time: Array) -> jax.Array:
        return model(x, jnp.broadcast_to(time, (len(x),)), labels, train=False)

    def guided(x: Array, time: Array) -> jax.Array:
        both = jnp.concatenate([labels, jnp.full_like(labels, model.null_label)])
        out = model(jnp.concatenate([x, x]), jnp.broadcast_to(time, (2 * len(x),)), both, train=False)
        return guide(*jnp.split(out, 2), scale, channels)

    return plain if scale is None else guided


def check_labels(
    where: str, model: Denoiser, labels: Array | None, count: int | None, guidance: float
) -> tuple[jax.Array | None, int]:
    """The labels (None for a network without classes) and the number of images that a sampler is asked for.

    Raises:
        ValueError: Labels or guidance and no classes; a label out of range; guidance without labels; neither or both of
            labels and count.
    """
    classes = model.null_label
    if classes is None and (labels is not None or guidance != 1):
        name, got = ("labels", "labels") if labels is not None else ("guidance", guidance)
        remedy = "Guidance and labels need a network that was made and trained with num_classes."
        raise errors.bad_argument(where, name, got, "left out for a network without classes", remedy)
    if (labels is None) == (count is None):
        remedy = "Labels say how many images there are; without labels, give count."
        raise errors.bad_argument(where, "labels and count", (labels, count), "one of the two", remedy)
    if labels is None and guidance != 1:
        remedy = "It strengthens the class, so it needs labels."
        raise errors.bad_argument(where, "guidance", guidance, "1 without labels", remedy)
    if labels is None:
        count = errors.as_int(where, "count", count, least=1)
        return None if classes is None else jnp.full((count,), classes, jnp.int32), count
    labels = jnp.asarray(labels)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise errors.bad_shape(where, "labels", labels, "(b) integers")
    if not isinstance(labels, jax.core.Tracer) and not bool(((labels >= 0) & (labels <= classes)).all()):  # type: ignore[operator]
        raise errors.bad_argument(where, "labels", labels.tolist(), f"in 0..{classes} ({classes} is the null class)")
    return labels.astype(jnp.int32), len(labels)
