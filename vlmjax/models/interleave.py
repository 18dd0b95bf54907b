"""Texts with media between their words: placeholders spread to visual tokens, labels, truncation, padding, packing.

What the data pipelines of LLaVA, VILA and NVILA do on embeddings is done here on token numbers, in numpy: the result
says which visual token stands where, and the model puts them there (`vlmjax.models.place`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ssmjax import errors
from ssmjax.shapes import Array, Bool, Int

__all__ = ["IGNORE", "Interleaved", "interleave", "pack", "pool_frames"]

IGNORE = -100
"""The label of what is not predicted."""


class Interleaved(NamedTuple):
    """A batch of texts with visual tokens in it.

    Attributes:
        tokens: (b l), with the image token where a visual token stands and zero at padding.
        places: (b l), the number of the visual token at a place, over all media of the batch; -1 for text and padding.
        mask: (b l), False at padding.
        labels: (b l), `IGNORE` at visual tokens and padding.
        positions: (b l), counted from zero in each text; zero at padding.
        segments: (b l), the number of the text that a token belongs to.
    """

    tokens: np.ndarray
    places: np.ndarray
    mask: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    segments: np.ndarray


def interleave(
    tokens: Int[Array, "b l"],
    media: Mapping[int, Sequence[Sequence[int]]],
    *,
    mask: Bool[Array, "b l"] | None = None,
    labels: Int[Array, "b l"] | None = None,
    image_token: int | None = None,
    ends: Mapping[int, Sequence[int]] | None = None,
    dummies: bool = False,
    max_length: int | None = None,
    padding: str = "right",
) -> Interleaved:
    """Spreads placeholders to the visual tokens of their media.

    Media are used in the order of their placeholders, row by row. A text may begin or end with one, and several may
    stand side by side.

    Args:
        tokens: (b l), with one placeholder for each image or video.
        media: For each kind of placeholder, the media of the batch; each is the numbers of tokens of its spans: `[576]`
            for an image, a number for each frame for a video. Visual tokens are numbered in this order.
        mask: (b l), False at padding, on whichever side.
        labels: (b l); None for `IGNORE` everywhere.
        image_token: What stands in the result for a visual token; None for the placeholder.
        ends: For each kind of placeholder, the tokens after each span: `{image: [newline]}` in NVILA.
        dummies: Whether a text without a placeholder uses up one item of the first kind (LLaVA, whose data has a blank
            image for such texts). VILA's do not.
        max_length: Longer texts are cut off, which may be inside an image. VILA and LLaVA always do that, NVILA in
            training.
        padding: On which side of the result the padding is, "right" or "left".

    Returns:
        An `Interleaved`, as long as its longest text.

    Raises:
        ValueError: There are more placeholders than media, or fewer.

    >>> interleave(np.array([[1, 9, 2]]), {9: [[3]]}).places.tolist()
    [[-1, 0, 1, 2, -1]]
    """
    if padding not in ("right", "left"):
        raise errors.bad_argument("interleave", "padding", padding, "'right' or 'left'")
    tokens = np.asarray(tokens)
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask) != 0
    labels = np.full(tokens.shape, IGNORE) if labels is None else np.asarray(labels)
    queues = _Queues(media)
    rows = []
    for row, real, label in zip(tokens, mask, labels, strict=True):
        row, label = row[real], label[real]
        if dummies and not np.isin(row, list(media)).any():
            queues.take(next(iter(media)))
        rows.append(_row(row, label, queues, image_token, ends or {})[:, :max_length])
    queues.finish()
    return _padded(rows, padding)


def pack(batch: Interleaved) -> Interleaved:
    """All texts of a batch one after the other, as one row, with a padding token at its end (NVILA).

    Positions begin anew in each text, and the label of each text's first token is `IGNORE`, as nothing predicts it. The
    `segments` keep the texts apart in attention.

    >>> pack(interleave(np.array([[1, 2], [3, 4]]), {}, labels=np.array([[1, 2], [3, 4]]))).labels.tolist()
    [[-100, 2, -100, 4, -100]]
    """
    labels = batch.labels.copy()
    first = (np.cumsum(batch.mask, axis=1) == 1) & batch.mask
    labels[first] = IGNORE
    parts = {"tokens": 0, "places": -1, "mask": False, "labels": IGNORE, "positions": 0, "segments": len(labels)}
    batch = batch._replace(labels=labels)
    rows = {name: np.append(getattr(batch, name)[batch.mask], end)[None] for name, end in parts.items()}
    return Interleaved(**rows)


def pool_frames(x: Array, windows: Sequence[tuple[int, int, int]]) -> list[Array]:
    """A video's tokens averaged over frames, rows and columns, once for each size of window (NVILA's TSP encoder).

    Args:
        x: (t n d), the tokens of square frames.
        windows: How many frames, rows and columns become one.

    Returns:
        For each window, (t' n' d).

    Raises:
        ValueError: Frames are not square, or a window does not divide them.

    >>> [y.shape for y in pool_frames(np.ones((4, 16, 2)), [(2, 1, 1), (1, 2, 2)])]
    [(2, 16, 2), (4, 4, 2)]
    """
    t, n, d = x.shape
    side = int(n**0.5)
    if side * side != n:
        raise errors.bad_shape("pool_frames", "x", x, "(t n d) with a square number n of tokens")
    pooled = []
    for window in windows:
        if t % window[0] or side % window[1] or side % window[2]:
            raise errors.bad_argument("pool_frames", "windows", window, f"divisors of {t} frames of {side} x {side}")
        parts = x.reshape(t // window[0], window[0], side // window[1], window[1], side // window[2], window[2], d)
        y = parts.mean(axis=(1, 3, 5))
        pooled.append(y.reshape(y.shape[0], -1, d))
    return pooled


class _Queues:
    """The media of each kind that are left, with the number of the first visual token of each."""

    def __init__(self, media: Mapping[int, Sequence[Sequence[int]]]):
        self.left: dict[int, list[tuple[int, Sequence[int]]]] = {}
        first = 0
        for kind, items in media.items():
            self.left[kind] = []
            for spans in items:
                self.left[kind].append((first, spans))
                first += sum(spans)

    def take(self, kind: int) -> tuple[int, Sequence[int]]:
        if not self.left[kind]:
            wanted = "an image or video for each placeholder"
            raise errors.bad_argument("interleave", "media", f"too few for the placeholders {kind}", wanted)
        return self.left[kind].pop(0)

    def finish(self) -> None:
        more = {kind: len(items) for kind, items in self.left.items() if items}
        if more:
            wanted = "a placeholder in the texts for each"
            raise errors.bad_argument("interleave", "media", f"more than the placeholders, by {more}", wanted)


def _row(row: np.ndarray, labels: np.ndarray, queues: _Queues, image_token: int | None, ends) -> np.ndarray:
    """Tokens, places and labels of one text: (3 l)."""
    parts = []
    for token, label in zip(row.tolist(), labels.tolist(), strict=True):
        if token not in queues.left:
            parts.append(np.array([[token], [-1], [label]]))
            continue
        first, spans = queues.take(token)
        for count in spans:
            places = np.arange(first, first + count)
            first += count
            token_here = token if image_token is None else image_token
            parts.append(np.stack([np.full(count, token_here), places, np.full(count, IGNORE)]))
            end = np.array(list(ends.get(token, ())), np.int64)
            parts.append(np.stack([end, np.full(len(end), -1), np.full(len(end), IGNORE)]))
    return np.concatenate(parts, axis=1) if parts else np.zeros((3, 0), np.int64)


def _padded(rows: Sequence[np.ndarray], padding: str) -> Interleaved:
    length = max((row.shape[1] for row in rows), default=0)
    columns = [np.full((len(rows), length), value) for value in (0, -1, IGNORE)]
    mask, positions = np.zeros((len(rows), length), bool), np.zeros((len(rows), length), int)
    for i, row in enumerate(rows):
        start = length - row.shape[1] if padding == "left" else 0
        here = slice(start, start + row.shape[1])
        for column, values in zip(columns, row, strict=True):
            column[i, here] = values
        mask[i, here], positions[i, here] = True, np.arange(row.shape[1])
    segments = np.broadcast_to(np.arange(len(rows))[:, None], mask.shape)
    return Interleaved(columns[0], columns[1], mask, columns[2], positions, segments)
