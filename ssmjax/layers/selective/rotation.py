"""Rotations whose angles depend on the data and add up along the sequence, as Mamba-3 has them."""

import jax
import jax.numpy as jnp
from einops import rearrange

from ssmjax.shapes import Array, Float, SegmentIds

__all__ = ["accumulate_angles", "rotate"]


def accumulate_angles(
    turns: Float[Array, "b l h s"], start: Float[Array, "b h s"], segment_ids: SegmentIds | None = None
) -> Float[jax.Array, "b l h s"]:
    """`theta_t = theta_{t-1} + turns_t` modulo 2 pi: the running sums, each kept small, so that no precision is lost.

    Args:
        turns: (b l h s), in radians.
        start: (b h s), the angle before the first turn.
        segment_ids: (b l); where the id changes the sum starts anew from zero.

    Returns:
        (b l h s), from 0 to 2 pi.

    >>> import jax.numpy as jnp
    >>> accumulate_angles(jnp.full((1, 3, 1, 1), 3.0), jnp.zeros((1, 1, 1)))[0, :, 0, 0].round(3).tolist()
    [3.0, 6.0, 2.717]
    """
    if turns.shape[1] == 0:
        return turns
    keep = jnp.ones(turns.shape[:2], bool)
    if segment_ids is not None:
        keep = jnp.pad(segment_ids[:, 1:] == segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)

    def combine(earlier, later):
        (sum_before, keep_before), (sum_after, keep_after) = earlier, later
        both = jnp.where(keep_after, sum_before + sum_after, sum_after)
        return _small(both), keep_before & keep_after

    first = turns[:, :1] + start[:, None]
    keep = keep[..., None, None]
    turns = jnp.concatenate([first, turns[:, 1:]], axis=1)
    sums, _ = jax.lax.associative_scan(combine, (_small(turns), keep), axis=1)
    return sums


def rotate(x: Float[Array, "*b n"], angles: Float[Array, "*c s"], convention: str) -> Float[jax.Array, "*b n"]:
    """Turns the first `s` planes of the last axis; the others stay.

    Args:
        x: (*b n).
        angles: (*c s), s at most n/2, with leading axes that broadcast to those of `x`.
        convention: `"pairs"`: plane i is of the channels 2i and 2i + 1. `"halves"`: of i and i + n/2.

    >>> import jax.numpy as jnp
    >>> quarter = jnp.array([jnp.pi / 2])
    >>> rotate(jnp.array([1.0, 0.0, 3.0, 4.0]), quarter, "pairs").round(3).tolist()
    [-0.0, 1.0, 3.0, 4.0]
    >>> rotate(jnp.array([1.0, 0.0, 3.0, 4.0]), quarter, "halves").round(3).tolist()
    [-3.0, 0.0, 1.0, 4.0]
    """
    n = x.shape[-1]
    angles = jnp.pad(angles, [(0, 0)] * (angles.ndim - 1) + [(0, n // 2 - angles.shape[-1])])
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    layout = "... (s two) -> two ... s" if convention == "pairs" else "... (two s) -> two ... s"
    first, second = rearrange(x, layout, two=2)
    turned = jnp.stack([first * cos - second * sin, first * sin + second * cos])
    back = "two ... s -> ... (s two)" if convention == "pairs" else "two ... s -> ... (two s)"
    return rearrange(turned, back)


def _small(angle):
    return jnp.mod(angle, 2 * jnp.pi)
