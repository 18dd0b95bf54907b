"""Rotary positions as language models have them: one position a token, channels turned in pairs half a head apart."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax import errors
from ssmjax.shapes import Array, Float, Int

__all__ = ["Llama3Scaling", "rope_angles", "rotate"]


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """How Llama 3.1 stretches the wavelengths of rotary positions for longer contexts.

    Wavelengths beyond `original_length / low` are `factor` times as long, those below `original_length / high` stay,
    and between the two the frequencies are interpolated (https://arxiv.org/abs/2407.21783; the values are those of the
    published configurations).

    Attributes:
        factor: By how much the long wavelengths grow.
        low: The lower bound, in turns over the original length.
        high: The upper bound.
        original_length: The length that the model was trained on before.

    >>> Llama3Scaling().apply(np.array([1.0, 1e-6])).tolist()
    [1.0, 1.25e-07]
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192

    def apply(self, frequencies: np.ndarray) -> np.ndarray:
        """The frequencies after stretching."""
        turns = self.original_length * frequencies / (2 * math.pi)
        share = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return share * frequencies + (1 - share) * frequencies / self.factor


def rope_angles(
    positions: Int[Array, "b l"] | Int[Array, "b l 3"],
    width: int,
    *,
    base: float = 10000.0,
    scaling: Llama3Scaling | None = None,
    sections: tuple[int, int, int] | None = None,
) -> Float[jax.Array, "b l r"]:
    """The angle of each pair of channels at each position: `position * base**(-2 i / width)` for pair `i`.

    RoPE, https://arxiv.org/abs/2104.09864, equation 15. With a position in time, rows and columns (M-RoPE,
    https://arxiv.org/abs/2409.12191, section 2.1), each pair turns by one of the three.

    Args:
        positions: (b l), or (b l 3) with `sections`.
        width: The width of a head, even.
        base: The base of the wavelengths.
        scaling: Llama 3.1's stretching of them.
        sections: How many pairs turn by time, then by rows, then by columns; not read where there is one position.

    Returns:
        (b l width/2), float32.

    Raises:
        ValueError: The width is odd, or there are three positions and no sections.

    >>> import jax.numpy as jnp
    >>> rope_angles(jnp.array([[0, 3]]), 4).round(2).tolist()
    [[[0.0, 0.0], [3.0, 0.029999999329447746]]]
    """
    if width % 2:
        raise errors.bad_argument("rope_angles", "width", width, "even, as channels turn in pairs")
    frequencies = base ** (-np.arange(0, width, 2) / width)
    frequencies = frequencies if scaling is None else scaling.apply(frequencies)
    if positions.ndim == 2:
        turned = positions[..., None]
    elif sections is None:
        raise errors.bad_argument("rope_angles", "sections", None, "three numbers where a token has three positions")
    else:
        turned = positions[..., np.repeat(np.arange(3), sections)]
    return turned.astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)[None, None]


def rotate(x: Float[Array, "b l h p"], angles: Float[Array, "b l r"]) -> Float[jax.Array, "b l h p"]:
    """Turns channel `i` of each head with channel `i + p / 2` by an angle (Llama in Hugging Face's form).

    Args:
        x: (b l h p). Turned in float32.
        angles: (b l p/2).

    Returns:
        As `x`.

    >>> import jax.numpy as jnp
    >>> rotate(jnp.array([[[[1.0, 0.0]]]]), jnp.full((1, 1, 1), jnp.pi / 2)).round(3).tolist()
    [[[[-0.0, 1.0]]]]
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = (f(angles)[:, :, None] for f in (jnp.cos, jnp.sin))
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
