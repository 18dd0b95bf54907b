"""Padding by mask: real tokens are moved to the front, so that neither a state nor a convolution sees a pad."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from ssmjax import errors
from ssmjax.ops._numerics.permute import permute
from ssmjax.shapes import Array, Expanded, Float, Int, Mask, SegmentIds

__all__ = ["Compaction", "as_mask", "compact"]

CLOSED = -1e4
"""A raw step size whose softplus is exactly zero in float32 (and which float16 can hold): the state stays as it is."""


@dataclasses.dataclass(frozen=True)
class Compaction:
    """The permutation that moves the real tokens of each row to its front, in order, whichever side the padding is on.

    Attributes:
        order: (b l), the position that each place takes its token from.
        inverse: (b l), the inverse permutation.
        mask: (b l), True for the real tokens in their new places.
        lengths: (b), the number of real tokens.
    """

    order: Int[Array, "b l"]
    inverse: Int[Array, "b l"]
    mask: Mask
    lengths: Int[Array, " b"]

    def apply(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Moves the real tokens to the front and zeroes the others."""
        return jnp.where(self.mask[..., None], _permute(x, self.order, self.inverse), 0)

    def ids(self, segment_ids: SegmentIds | None) -> SegmentIds | None:
        """Moves segment ids along; padding gets the id of the last real token, so that it resets no state."""
        if segment_ids is None:
            return None
        places = jnp.minimum(jnp.arange(self.order.shape[1])[None], jnp.maximum(self.lengths - 1, 0)[:, None])
        return jnp.take_along_axis(segment_ids, jnp.take_along_axis(self.order, places, axis=1), axis=1)

    def undo(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Moves the real tokens back to where they were and zeroes the padding."""
        return _permute(jnp.where(self.mask[..., None], x, 0), self.inverse, self.order)

    def to_end(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Moves real tokens from the front, where `apply` put them, to the end, in order, with zeros before."""
        length = self.order.shape[1]
        places, shift = jnp.arange(length)[None], length - self.lengths[:, None]
        return _permute(jnp.where(self.mask[..., None], x, 0), (places - shift) % length, (places + shift) % length)

    def silence(self, x: Expanded, dt: Expanded) -> tuple[Expanded, Expanded]:
        """Zeroes the scan's input and its step size at the padding; `dt` is before its softplus."""
        here = self.mask[..., None]
        return jnp.where(here, x, 0), jnp.where(here, dt, CLOSED)

    def window(
        self, x: Expanded, state: Float[Array, "b k e"], segment_ids: SegmentIds | None = None
    ) -> Float[Array, "b k e"]:
        """Returns the last real inputs of a convolution: what its state is after the real tokens, before any padding.

        Inputs of segments before the last real token's are zero, as in the state that `causal_conv1d` returns. The ids
        are those of the moved tokens, and `state` belongs to the first.
        """
        if segment_ids is not None:
            changed = jnp.cumsum(segment_ids[:, 1:] != segment_ids[:, :-1], axis=1)
            run = jnp.pad(changed, ((0, 0), (1, 0)))
            last = jnp.take_along_axis(run, jnp.maximum(self.lengths - 1, 0)[:, None], axis=1)
            x = jnp.where((run == last)[..., None], x, 0)
            state = jnp.where((last == 0)[..., None], state, 0)
        history = jnp.concatenate([state, x], axis=1)
        places = self.lengths[:, None] + jnp.arange(state.shape[1])[None]
        return jnp.take_along_axis(history, places[..., None], axis=1)


def as_mask(where: str, mask: Any) -> Mask:
    """Returns a mask of booleans from one of booleans or of whole numbers, of which zero is False.

    Args:
        where: The public name, for the message.
        mask: (b l).

    Raises:
        ValueError: It is neither.

    >>> as_mask("layer", jnp.array([[0, 2]])).tolist()
    [[False, True]]
    """
    dtype = getattr(mask, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jnp.bool) or jnp.issubdtype(dtype, jnp.integer)):
        got = type(mask).__name__ if dtype is None else f"{dtype}{list(mask.shape)}"
        raise errors.bad_argument(where, "mask", got, "an array of booleans, or of integers, (b, l)")
    return jnp.asarray(mask).astype(bool)


def compact(mask: Mask) -> Compaction:
    """Sorts real tokens before padding, stably.

    Args:
        mask: (b l), True where a token is real.

    >>> import jax.numpy as jnp
    >>> moved = compact(jnp.array([[False, True, True]]))
    >>> moved.order.tolist(), moved.mask.tolist(), moved.lengths.tolist()
    ([[1, 2, 0]], [[True, True, False]], [2])
    """
    mask = as_mask("compact", mask)
    order = jnp.argsort(~mask, axis=1, stable=True)
    lengths = mask.sum(1)
    return Compaction(order, jnp.argsort(order, axis=1), jnp.arange(mask.shape[1])[None] < lengths[:, None], lengths)


def _permute(x, order, inverse):
    return permute(x, order[..., None], inverse[..., None], 1)
