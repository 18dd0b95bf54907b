"""The visual tokens of Qwen2-VL on their way to the language model, and fewer of them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from ssmjax import errors
from ssmjax.shapes import Array
from vlmjax.ops.token_merge import MergeState
from vlmjax.processing.patches import PackedPatches

__all__ = ["VisualTokens", "merged_frames", "merged_images", "whole_frames"]


class VisualTokens(NamedTuple):
    """What a language model reads of images and videos. Only the first are real, as many as `count` says.

    Attributes:
        tokens: (m d), float32.
        offsets: (m 3) int32, the slice, row and column of each in its image or video; of a merged token, its anchor's.
        extents: (m 3) int32, at the last one of an image or video its slices, rows and columns; else 0. Merged tokens
            have those of the whole image, so that the text stands where it would stand without a merge.
        seconds: (m), the seconds from a slice to the next.
        size: (m), how many tokens each stands for, 0 at padding; None where nothing was merged.
    """

    tokens: Array
    offsets: Array
    extents: Array
    seconds: Array
    size: Array | None = None

    @property
    def count(self) -> int:
        """The number of real visual tokens, known outside of `jax.jit` only."""
        if self.size is not None:
            return int((np.asarray(self.size) > 0).sum())
        return int(np.asarray(self.extents).prod(-1).sum())

    def fitted(self, room: int) -> "VisualTokens":
        """The same in arrays of another length: longer by padding, or shorter by it.

        A language model that reads `tokens.size` of them compiles once, whatever the size of the images.
        """
        missing = max(0, room - self.tokens.shape[0])
        widths = lambda x: ((0, missing), *((0, 0),) * (x.ndim - 1))  # noqa: E731
        return jax.tree.map(lambda x: jnp.pad(jnp.asarray(x), widths(x))[:room], self)


def merged_images(visual: VisualTokens, merge: Callable) -> VisualTokens:
    """Merges the tokens of each image or video on their own; `merge(x) -> MergeState` for an x of (1 n d).

    >>> from vlmjax.ops import density_anchors
    >>> whole = VisualTokens(jnp.eye(4), np.zeros((4, 3), int), np.array([[0] * 3] * 3 + [[1, 2, 2]]), np.ones(4))
    >>> merged_images(whole, lambda x: density_anchors(x, 2)).size.tolist()
    [3.0, 1.0]
    """
    parts, start = [], 0
    for extent in _extents(visual.extents):
        n = int(extent.prod())
        each = jax.tree.map(lambda x, start=start, n=n: x[start : start + n], visual)
        state = _merged(each.tokens[None], merge)
        parts.append(_taken(each, state, extent))
        start += n
    return _joined(parts)


def merged_frames(images: PackedPatches, state: MergeState) -> VisualTokens:
    """What a merge within each frame left: `state` has a row for each frame, of equally many tokens.

    Args:
        images: The patches that the tower has read.
        state: From `QwenVisionTower.merged`.
    """
    parts, frame, start = [], 0, 0
    whole = VisualTokens(jnp.zeros((len(images.offsets), 1)), images.offsets, images.extents, images.seconds)
    for extent in _extents(images.extents):
        slices, n = int(extent[0]), int(extent[1:].prod())
        # The rows of one image or video as one row: the position of an anchor then counts through all of its frames.
        rows = jax.tree.map(lambda x, frame=frame, slices=slices: x[frame : frame + slices], state)
        shifted = rows.position + n * jnp.arange(slices)[:, None]
        flat = jax.tree.map(lambda x: rearrange(x, "t m ... -> 1 (t m) ..."), rows._replace(position=shifted))
        each = jax.tree.map(lambda x, start=start, size=slices * n: x[start : start + size], whole)
        parts.append(_taken(each, flat, extent))
        frame, start = frame + slices, start + slices * n
    return _joined(parts)


def whole_frames(images: PackedPatches) -> PackedPatches:
    """The same patches without padding, for frames of one size, each in a row of its own.

    Raises:
        ValueError: The frames are of several sizes.
    """
    lengths = _known(images.lengths)
    sizes = sorted({int(n) for n in lengths if n})
    if images.segments is not None or len(sizes) != 1:
        got = "frames in one row" if images.segments is not None else f"frames of {sizes} patches"
        remedy = "pack_patches(..., separate=True) packs so; encode images of other sizes in a call of their own."
        raise errors.bad_argument("Qwen2VL.encode", "images", got, "frames of one size, each in its own row", remedy)
    frames, n = int((lengths > 0).sum()), sizes[0]
    rows = {name: jnp.asarray(getattr(images, name))[:frames, :n] for name in ("patches", "places")}
    return images._replace(**rows, lengths=lengths[:frames])


@functools.partial(jax.jit, static_argnames="merge")
def _merged(x, merge):
    return merge(x)


def _known(x: Array) -> np.ndarray:
    if isinstance(x, jax.core.Tracer):
        remedy = "Call encode(images, merge=...) before jax.jit, and pass on what it returns."
        raise errors.bad_argument("Qwen2VL.encode", "images", "traced", "arrays with values where tokens merge", remedy)
    return np.asarray(x)


def _extents(extents: Array) -> np.ndarray:
    known = _known(extents)
    return known[known.any(1)]


def _taken(whole: VisualTokens, state: MergeState, extent: np.ndarray) -> VisualTokens:
    """The merged tokens of one image, with the places of their anchors."""
    anchors, m = state.position[0], state.tokens.shape[1]
    extents = jnp.zeros((m, 3), jnp.int32).at[m - 1].set(jnp.asarray(extent, jnp.int32))
    offsets, seconds = (jnp.take(jnp.asarray(x), anchors, axis=0) for x in (whole.offsets, whole.seconds))
    return VisualTokens(state.tokens[0].astype(jnp.float32), offsets, extents, seconds, state.size[0])


def _joined(parts: list[VisualTokens]) -> VisualTokens:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
